"""The cell whose genotype is data: one compilation serves every architecture.

Parameters of all operations of all layers exist (weight sharing as in ENAS, Pham 2018); `lax.switch`
executes only the chosen ones. `jax.checkpoint` around each branch keeps the residuals of the others
from being stored.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations, ports

Params = dict[str, Any]


class Supernet(NamedTuple):
    """Pure functions of a supernet.

    Attributes:
      init: `rng -> params`.
      step: `(params, genotype i32 [L, 5], state, features of one frame) -> (state, logits [B, h, w, K])`.
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

    def init(rng: jax.Array) -> Params:
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        # One leading axis L on every array: the layers are scanned, which compiles one layer instead of L.
        init_fn = functools.partial(operations.init_layer, space=space, channels=settings.channels, scope=scope)
        stacked = jax.vmap(init_fn)(layer_rngs)
        return {"ports": ports.init(ports_rng, settings, space.inputs), "layers": stacked}

    def step(
        params: Params, genotype: jax.Array, state: types.CellState, features: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        inputs = ports.cell_inputs(params["ports"], state, features, space.inputs, scope)
        outputs = _run_layers(space, params["layers"], genotype, jnp.stack(list(inputs.values())), scope)
        weights = loose_end_weights(space, genotype).astype(outputs.dtype)
        mean = jnp.tensordot(weights, outputs, axes=1)
        after = ports.cell_output(params["ports"], mean, state, features, scope)
        state, _ = ports.finish(params["ports"], settings, state, after, features, scope)
        return state, jnp.asarray(state.logits)

    def unroll(params: Params, genotype: jax.Array, features: types.Features) -> jax.Array:
        first = jax.tree.map(lambda x: x[:, 0], features)
        state = ports.initial_state(settings, first)
        return ports.unroll(lambda s, f: step(params, genotype, s, f), state, features)[1]

    return Supernet(init, step, unroll)


def loose_end_weights(space: genotype_lib.Space, genotype: jax.Array) -> jax.Array:
    """Weight of each layer's output in the cell's output: 1 / count for loose ends, else 0; f32 [L]."""
    layers = jnp.arange(space.num_layers)[:, None] + space.num_inputs
    used = (genotype[:, :2].reshape(1, -1) == layers).any(axis=1)
    loose = 1.0 - used.astype(jnp.float32)
    return loose / loose.sum()


def _run_layers(
    space: genotype_lib.Space,
    params: Params,
    genotype: jax.Array,
    inputs: jax.Array,
    scope: operations.CellScope,
) -> jax.Array:
    """Runs the layers over the node buffer.

    Args:
      space: the cell space.
      params: of the layers, stacked on axis 0.
      genotype: i32 [L, 5].
      inputs: [num_inputs, B, h, w, C].
      scope: normalisation.

    Returns:
      The outputs of the layers, [L, B, h, w, C].
    """
    operation_branches = [_branch(operations.OPERATIONS[name], name, scope) for name in space.operations]
    aggregation_branches = [_branch(operations.AGGREGATIONS[name], name, scope) for name in space.aggregations]

    def layer(nodes: jax.Array, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        layer_params, tokens, index = xs
        a = jax.lax.dynamic_index_in_dim(nodes, tokens[0], keepdims=False)
        b = jax.lax.dynamic_index_in_dim(nodes, tokens[1], keepdims=False)
        a = jax.lax.switch(tokens[2], operation_branches, layer_params["a"], a)
        b = jax.lax.switch(tokens[3], operation_branches, layer_params["b"], b)
        output = jax.lax.switch(tokens[4], aggregation_branches, layer_params["agg"], a, b)
        return jax.lax.dynamic_update_index_in_dim(nodes, output, index, axis=0), None

    empty = jnp.zeros((space.num_layers, *inputs.shape[1:]), inputs.dtype)
    nodes = jnp.concatenate([inputs, empty])
    indices = space.num_inputs + jnp.arange(space.num_layers)
    nodes, _ = jax.lax.scan(layer, nodes, (params, genotype, indices))
    return nodes[space.num_inputs :]


def _branch(
    operation: operations.Operation, name: str, scope: operations.CellScope
) -> Callable[..., jax.Array]:
    """One branch of the switch: picks its own parameters out of the slot's."""
    apply_fn = jax.checkpoint(lambda params, *maps: operation.apply(params, *maps, scope))
    return lambda params, *maps: apply_fn(params[name], *maps)
