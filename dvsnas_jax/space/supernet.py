"""The cell whose genotype is data: one compilation serves every architecture.

Parameters of all operations of all layers exist (weight sharing as in ENAS, Pham 2018); `lax.switch`
executes only the chosen ones, backward as well (`space.supernet_gradient`, `space.shared_layers`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dvsnas_jax.core import errors, types
from dvsnas_jax.space import cell, cell_frame, operations, supernet_gradient
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]


class Supernet:
    """Pure functions of a supernet; features are data, they have no gradient. `frames` are of a clip, [T, B, ...]."""

    def __init__(self, space: genotype_lib.Space, settings: cell_frame.CellSettings) -> None:
        self._space, self._settings = space, settings
        self.settings = settings
        self._frame = supernet_gradient.Clip(space, settings, settings.scope())
        self._clip = supernet_gradient.Clip(space, settings, settings.scope(), is_whole=True)

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
        state, logits = self._frame.run(params, genotype, state, frames)
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

    def moments(self, params: Params, genotype: jax.Array, frames: types.Features) -> operations.Moments:
        """Batch moments of every normalisation by its path in `params`, as `cell.Cell.moments` finds those of one cell.

        `cell.freeze_norm` adds them to the weights: the supernet then normalises by them, for this genotype. Of what
        the genotype does not use they are any.
        """
        return _Recorded(self._space, genotype, self._settings).moments(params, frames)

    def _start(self, frames: types.Features) -> types.CellState:
        """The state before a clip."""
        chex.assert_rank(frames.logits, 5)
        first = jax.tree.map(lambda x: x[0], frames)
        return cell_frame.initial_state(self._settings, first, self._space.inputs)


class _Recorded(cell.Cell):
    """A cell whose genotype is data, frame by frame as one of a static genotype: its parameters are a supernet's."""

    def __init__(self, space: genotype_lib.Space, genotype: jax.Array, settings: cell_frame.CellSettings) -> None:
        self._space, self._genotype, self._settings = space, genotype, settings
        self.inputs, self._loose = space.inputs, (0,)  # the mean of the loose ends stands for the layers

    def _run_layers(
        self, params: Params, inputs: dict[str, jax.Array], like: types.Array, scope: operations.CellScope
    ) -> list[jax.Array]:
        space, num_inputs = self._space, self._space.num_inputs
        ops = [_recording(operations.OPERATIONS, name, scope) for name in space.operations]
        aggs = [_recording(operations.AGGREGATIONS, name, scope) for name in space.aggregations]

        def layer(nodes: jax.Array, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
            own, tokens, place = xs
            a, of_a = jax.lax.switch(tokens[2], ops, own["a"], nodes[tokens[0]])
            b, of_b = jax.lax.switch(tokens[3], ops, own["b"], nodes[tokens[1]])
            output, of_agg = jax.lax.switch(tokens[4], aggs, own["agg"], a, b)
            return nodes.at[place].set(output), {"a": of_a, "b": of_b, "agg": of_agg}

        nodes = jnp.stack([*inputs.values(), *[jnp.zeros(like.shape, like.dtype)] * space.num_layers])
        xs = params, self._genotype, num_inputs + jnp.arange(space.num_layers)
        nodes, found = jax.lax.scan(layer, nodes, xs)
        if scope.record is not None:
            scope.record.update({("layers", slot, *path): pair for slot in found for path, pair in found[slot].items()})
        weights = supernet_gradient.loose_end_weights(space, self._genotype).astype(nodes.dtype)
        return [jnp.tensordot(weights, nodes[num_inputs:], axes=1, precision=jax.lax.Precision.HIGHEST)]


def _recording(table: Mapping[str, operations.Member], name: str, scope: operations.CellScope) -> Callable[..., Any]:
    """`(parameters of a slot, *maps) -> (map, moments)` of a member; those of the other members are any."""

    def run(params: Params, *maps: jax.Array) -> tuple[jax.Array, operations.Moments]:
        record: operations.Moments = {}
        found = table[name].apply(params[name], *maps, dataclasses.replace(scope, path=(name,), record=record))
        any_moments = {
            path: (jnp.zeros_like(norm["bias"]), jnp.ones_like(norm["scale"])) for path, norm in _norms(params)
        }
        return found, any_moments | record

    return run


def _norms(tree: Params, path: tuple[str, ...] = ()) -> Sequence[tuple[tuple[str, ...], Params]]:
    """The normalisations in a tree of parameters, with their paths."""
    if {"scale", "bias"} <= set(tree):
        return [(path, tree)]
    inner = [(key, value) for key, value in tree.items() if isinstance(value, dict)]
    return [norm for key, value in inner for norm in _norms(value, (*path, key))]


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
