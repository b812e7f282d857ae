"""The cell whose genotype is data: one compilation serves every architecture.

Parameters of all operations of all layers exist (weight sharing as in ENAS, Pham 2018); `lax.switch`
executes only the chosen ones, backward as well (`space.layers`, `space.lazy`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations, ports, projections, shared_layers

Params = dict[str, Any]


class Supernet(NamedTuple):
    """Pure functions of a supernet.

    Attributes:
      init: `rng -> params`.
      step: `(params, genotype i32 [L, 5], state, features of one frame) -> (state, logits [B, h, w, K])`; a fifth
        argument is what `projections.of_clip` knew before.
      unroll: `(params, genotype, features [B, T, ...]) -> logits [T, B, h, w, K]`.
    """

    init: Callable[[jax.Array], Params]
    step: types.StepFn
    unroll: Callable[[Params, jax.Array, types.Features], jax.Array]


def make(space: genotype_lib.Space, settings: ports.CellSettings) -> Supernet:
    """Builds the supernet of a space.

    In propagate mode its key frames come at the schedule's interval: what a learned schedule would decide, it only
    learns with one cell.

    Raises:
      UserError: the mode does not provide an input of the space.
    """
    settings.check(space.inputs)
    settings = dataclasses.replace(settings, schedule=dataclasses.replace(settings.schedule, kind="fixed"))
    scope = settings.scope()
    run_layers = shared_layers.make(space, scope)

    def init(rng: jax.Array) -> Params:
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        # One leading axis L on every array: the layers are scanned, which compiles one layer instead of L.
        init_fn = functools.partial(operations.init_layer, space=space, channels=settings.channels, scope=scope)
        stacked = jax.vmap(init_fn)(layer_rngs)
        return {"ports": ports.init(ports_rng, settings, space.inputs), "layers": stacked}

    def step(
        params: Params,
        genotype: jax.Array,
        state: types.CellState,
        features: types.Features,
        known: Mapping[str, jax.Array] | None = None,
    ) -> tuple[types.CellState, jax.Array]:
        known, reads = known or {}, _reads(space, settings, genotype)
        inputs = projections.cell_inputs(
            params["ports"], state, features, space.inputs, scope, known=known, reads=reads
        )
        outputs = run_layers(params["layers"], genotype, tuple(inputs.values()))
        weights = loose_end_weights(space, genotype).astype(outputs.dtype)
        mean = jnp.tensordot(weights, outputs, axes=1)
        after = ports.cell_output(params["ports"], mean, state, features, scope)
        start = known.get("decoder")
        state, _ = ports.finish(params["ports"], settings, state, after, features, scope, start=start)
        return state, jnp.asarray(state.logits)

    def unroll(params: Params, genotype: jax.Array, features: types.Features) -> jax.Array:
        chex.assert_rank(features.logits, 5)
        frames, reads = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), features), _reads(space, settings, genotype)
        known = projections.of_clip(params["ports"], frames, reads, scope, is_propagating=settings.is_propagating)
        state = ports.initial_state(settings, jax.tree.map(lambda x: x[0], frames))
        return jax.lax.scan(lambda state, xs: step(params, genotype, state, *xs), state, (frames, known))[1]

    return Supernet(init, step, unroll)


def read_inputs(space: genotype_lib.Space, genotype: jax.Array) -> jax.Array:
    """Which inputs some layer reads through an operation other than `none`, bool [num_inputs]."""
    tokens, names = genotype[:, :2].ravel(), genotype[:, 2:4].ravel()
    if "none" in space.operations:
        tokens = jnp.where(names == space.operations.index("none"), space.num_inputs, tokens)
    return (tokens[None] == jnp.arange(space.num_inputs)[:, None]).any(axis=1)


def _reads(space: genotype_lib.Space, settings: ports.CellSettings, genotype: jax.Array) -> dict[str, jax.Array]:
    """Whether each input, and the decoder map that starts the state, has to be projected, bool []."""
    found = dict(zip(space.inputs, read_inputs(space, genotype), strict=True))
    starts = jnp.array(True) if settings.is_propagating else found.get("prev_state", jnp.array(False))
    return {**found, "decoder": starts | found.get("decoder", False)}


def loose_end_weights(space: genotype_lib.Space, genotype: jax.Array) -> jax.Array:
    """Weight of each layer's output in the cell's output: 1 / count for loose ends, else 0; f32 [L]."""
    layers = jnp.arange(space.num_layers)[:, None] + space.num_inputs
    used = (genotype[:, :2].reshape(1, -1) == layers).any(axis=1)
    loose = 1.0 - used.astype(jnp.float32)
    return loose / loose.sum()
