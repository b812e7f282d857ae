"""The relaxed cell: each token of a genotype is a weighted sum over all that it could be (SNAS).

Xie et al. 2019, "SNAS: Stochastic Neural Architecture Search" (arXiv 1812.09926). It takes the supernet's parameters,
and with the weights of one genotype it equals the supernet; between genotypes it has a gradient with respect to the
weights. For that it computes every operation (in both slots) and every aggregation of every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.space import cell_frame, operations, projections
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]


class Relaxed:
    """Pure functions of a relaxed cell; `params` are those of a supernet.

    Weights are f32 [L, 5, V]: of layer l and field f, the weight of each token, 0 for one that is not allowed there.
    """

    def __init__(self, space: genotype_lib.Space, settings: cell_frame.CellSettings) -> None:
        self._space, self._settings, self._scope = space, settings, settings.scope()

    def step(
        self, params: Params, weights: jax.Array, state: types.CellState, features: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        """The state after a frame and its logits [B, h, w, K]."""
        space, ports = self._space, cell_frame.Ports(params["ports"], self._settings, self._scope)
        chex.assert_shape(weights, (space.num_layers, len(genotype_lib.FIELDS), num_tokens(space)))
        project_fn = projections.make_project(params["ports"], self._scope)
        inputs = projections.cell_inputs(state, features, space.inputs, project_fn)
        outputs = _run_layers(space, params["layers"], weights, jnp.stack(list(inputs.values())), self._scope)
        mean = _weighted(loose_end_weights(space, weights), outputs)
        state, _ = ports.finish(state, ports.output(mean, state, features), features)
        return state, jnp.asarray(state.logits)

    def unroll(self, params: Params, weights: jax.Array, frames: types.Features) -> jax.Array:
        """Logits [T, B, h, w, K] of a clip [T, B, ...]."""
        state = cell_frame.initial_state(self._settings, jax.tree.map(lambda x: x[0], frames), self._space.inputs)
        return jax.lax.scan(lambda state, frame: self.step(params, weights, state, frame), state, frames)[1]


def make(space: genotype_lib.Space, settings: cell_frame.CellSettings) -> Relaxed:
    """Builds the relaxed cell of a space; key frames come at the schedule's interval, as in the supernet.

    Raises:
      UserError: the mode does not provide an input of the space.
    """
    settings.check(space.inputs)
    return Relaxed(space, cell_frame.with_fixed_interval(settings))


def num_tokens(space: genotype_lib.Space) -> int:
    """V, the largest number of tokens that a field of a layer has."""
    return int(space.limits().max())


def num_branches(space: genotype_lib.Space) -> int:
    """Operations and aggregations that the relaxed cell computes for a frame; a genotype's cell computes 3 L."""
    return space.num_layers * (2 * len(space.operations) + len(space.aggregations))


def one_hot(space: genotype_lib.Space, genotype: types.Array) -> jax.Array:
    """The weights of one genotype i32 [L, 5], f32 [L, 5, V]."""
    return jax.nn.one_hot(genotype, num_tokens(space))


def loose_end_weights(space: genotype_lib.Space, weights: jax.Array) -> jax.Array:
    """Weight of each layer's output in the cell's output, f32 [L], sum 1.

    In proportion to the probability that no later layer takes it, if each input were drawn by its weights: for one
    genotype, 1 / count for loose ends, else 0.
    """
    taken = weights[:, :2, space.num_inputs : space.num_nodes - 1]  # [L, 2, L - 1]; nothing reads the last layer
    loose = jnp.append(jnp.prod(1 - taken, axis=(0, 1)), 1.0)
    return loose / loose.sum()


def _run_layers(
    space: genotype_lib.Space,
    params: Params,
    weights: jax.Array,
    inputs: jax.Array,
    scope: operations.CellScope,
) -> jax.Array:
    """Runs the layers: weights f32 [L, 5, V] and inputs [num_inputs, B, h, w, C] to outputs [L, B, h, w, C]."""
    operation_mix = _mix(operations.OPERATIONS, space.operations, scope)
    aggregation_mix = _mix(operations.AGGREGATIONS, space.aggregations, scope)
    num_readable = space.num_nodes - 1

    def layer(nodes: jax.Array, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        layer_params, rows, index = xs
        a, b = _weighted(rows[:2, :num_readable], nodes[:num_readable])
        a = operation_mix(layer_params["a"], rows[2], a)
        b = operation_mix(layer_params["b"], rows[3], b)
        output = aggregation_mix(layer_params["agg"], rows[4], a, b)
        return jax.lax.dynamic_update_index_in_dim(nodes, output, index, axis=0), None

    empty = jnp.zeros((space.num_layers, *inputs.shape[1:]), inputs.dtype)
    nodes = jnp.concatenate([inputs, empty])
    indices = space.num_inputs + jnp.arange(space.num_layers)
    nodes, _ = jax.lax.scan(layer, nodes, (params, weights, indices))
    return nodes[space.num_inputs :]


def _weighted(weights: jax.Array, maps: jax.Array) -> jax.Array:
    """Sums of maps [n, ...] with weights [..., n]; exact where a weight is 1 and the others are 0."""
    return jnp.tensordot(weights.astype(maps.dtype), maps, axes=1, precision=jax.lax.Precision.HIGHEST)


def _mix(
    table: Mapping[str, operations.Member], names: Sequence[str], scope: operations.CellScope
) -> Callable[..., jax.Array]:
    """`(parameters of a slot, weights [V], *maps) -> map`, the weighted sum of all members."""

    def weigh(name: str, params: Params, weight: jax.Array, *maps: jax.Array) -> jax.Array:
        return weight.astype(maps[0].dtype) * table[name].apply(params, *maps, scope)

    # Recomputed for the gradient: otherwise the maps inside all branches of all layers and frames are kept.
    branches = [jax.checkpoint(functools.partial(weigh, name)) for name in names]

    def mix(params: Params, weights: jax.Array, *maps: jax.Array) -> jax.Array:
        members = enumerate(zip(names, branches, strict=True))
        found = [branch(params[name], weights[index], *maps) for index, (name, branch) in members]
        return functools.reduce(jnp.add, found)

    return mix
