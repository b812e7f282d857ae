"""The cell whose genotype is data: one compilation serves every architecture.

Parameters of all operations of all layers exist (weight sharing as in ENAS, Pham 2018); `lax.switch`
executes only the chosen ones, backward as well (`space.supernet_gradient`, `space.shared_layers`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax

from dvsnas_jax.core import errors, types
from dvsnas_jax.space import cell_frame, operations, supernet_gradient
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]


class Supernet:
    """Pure functions of a supernet; features are data, they have no gradient. `frames` are of a clip, [T, B, ...]."""

    def __init__(self, space: genotype_lib.Space, settings: cell_frame.CellSettings) -> None:
        self._space, self._settings = space, settings
        self.settings = settings
        self._clip = supernet_gradient.Clip(space, settings, settings.scope())

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters."""
        space, settings = self._space, self._settings
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        # One leading axis L on every array: the layers are scanned, which compiles one layer instead of L.
        init_fn = functools.partial(
            operations.init_layer, space=space, channels=settings.channels, scope=settings.scope()
        )
        stacked = jax.vmap(init_fn)(layer_rngs)
        return {"ports": cell_frame.init(ports_rng, settings, space.inputs), "layers": stacked}

    def step(
        self, params: Params, genotype: jax.Array, state: types.CellState, features: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        """The state after one frame, features [B, ...], and its logits [B, h, w, K]; genotype i32 [L, 5]."""
        frames = jax.tree.map(lambda x: x[None], features)
        state, logits = self._clip.run(params, genotype, state, frames)
        return state, logits[0]

    def unroll(self, params: Params, genotype: jax.Array, frames: types.Features) -> jax.Array:
        """Logits [T, B, h, w, K] of a clip."""
        return self._clip.run(params, genotype, self._start(frames), frames)[1]

    def buffers(self, frames: types.Features) -> supernet_gradient.Buffers:
        """What `value_and_grad` writes to, for clips of this shape."""
        return self._clip.buffers(frames)

    def value_and_grad(
        self,
        params: Params,
        genotype: jax.Array,
        frames: types.Features,
        loss_fn: Callable[[jax.Array], jax.Array],
        buffers: supernet_gradient.Buffers,
    ) -> tuple[jax.Array, Params, supernet_gradient.Buffers]:
        """What autodiff of `loss_fn(unroll(...))` finds: loss, gradient of params, and the buffers.

        A loop over steps hands the buffers on instead of filling new ones.
        """
        return self._clip.value_and_grad(params, genotype, self._start(frames), frames, loss_fn, buffers)

    def _start(self, frames: types.Features) -> types.CellState:
        """The state before a clip."""
        chex.assert_rank(frames.logits, 5)
        first = jax.tree.map(lambda x: x[0], frames)
        return cell_frame.initial_state(self._settings, first, self._space.inputs)


def make(space: genotype_lib.Space, settings: cell_frame.CellSettings) -> Supernet:
    """Builds the supernet of a space.

    In propagate mode its key frames come at the schedule's interval: what a learned schedule would decide, it only
    learns with one cell.

    Raises:
      UserError: the mode does not provide an input of the space, or the cell is to be its baseline alone.
    """
    settings.check(space.inputs)
    if not settings.has_output:
        raise errors.UserError("space.end: 'none' leaves nothing to search; set it to 'heads'")
    return Supernet(space, cell_frame.with_fixed_interval(settings))
