"""The cell whose genotype is data: one compilation serves every architecture.

Parameters of all operations of all layers exist (weight sharing as in ENAS, Pham 2018); `lax.switch`
executes only the chosen ones, backward as well (`space.supernet_gradient`, `space.shared_layers`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.space import cell_frame, operations, supernet_gradient
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]


class Supernet(NamedTuple):
    """Pure functions of a supernet; features are data, they have no gradient.

    Attributes:
      init: `rng -> params`.
      step: `(params, genotype i32 [L, 5], state, features of one frame) -> (state, logits [B, h, w, K])`.
      unroll: `(params, genotype, features [B, T, ...]) -> logits [T, B, h, w, K]`.
      buffers: `features [B, T, ...] -> unrolled.Buffers`.
      value_and_grad: `(params, genotype, features, loss_fn of the logits, buffers) -> (loss, gradient of params,
        buffers)`: what autodiff of `unroll` finds, in buffers that a loop over steps hands on instead of new ones.
    """

    init: Callable[[jax.Array], Params]
    step: types.StepFn
    unroll: Callable[[Params, jax.Array, types.Features], jax.Array]
    buffers: Callable[[types.Features], supernet_gradient.Buffers]
    value_and_grad: Callable[..., tuple[jax.Array, Params, supernet_gradient.Buffers]]


def make(space: genotype_lib.Space, settings: cell_frame.CellSettings) -> Supernet:
    """Builds the supernet of a space.

    In propagate mode its key frames come at the schedule's interval: what a learned schedule would decide, it only
    learns with one cell.

    Raises:
      UserError: the mode does not provide an input of the space.
    """
    settings.check(space.inputs)
    settings = dataclasses.replace(settings, schedule=settings.schedule.without_head())
    scope = settings.scope()
    clip = supernet_gradient.make(space, settings, scope)

    def init(rng: jax.Array) -> Params:
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        # One leading axis L on every array: the layers are scanned, which compiles one layer instead of L.
        init_fn = functools.partial(operations.init_layer, space=space, channels=settings.channels, scope=scope)
        stacked = jax.vmap(init_fn)(layer_rngs)
        return {"ports": cell_frame.init(ports_rng, settings, space.inputs), "layers": stacked}

    def step(
        params: Params, genotype: jax.Array, state: types.CellState, features: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        state, logits = clip.run(params, genotype, state, jax.tree.map(lambda x: x[None], features))
        return state, logits[0]

    def unroll(params: Params, genotype: jax.Array, features: types.Features) -> jax.Array:
        return clip.run(params, genotype, *start(features))[1]

    def start(features: types.Features) -> tuple[types.CellState, types.Features]:
        """The state before a clip, and its frames, [T, B, ...]."""
        chex.assert_rank(features.logits, 5)
        frames = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), features)
        return cell_frame.initial_state(settings, jax.tree.map(lambda x: x[0], frames)), frames

    def value_and_grad(
        params: Params,
        genotype: jax.Array,
        features: types.Features,
        loss_fn: Callable[[jax.Array], jax.Array],
        buffers: supernet_gradient.Buffers,
    ) -> tuple[jax.Array, Params, supernet_gradient.Buffers]:
        return clip.value_and_grad(params, genotype, *start(features), loss_fn, buffers)

    return Supernet(init, step, unroll, lambda features: clip.buffers(start(features)[1]), value_and_grad)
