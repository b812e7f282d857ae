"""The layers of a cell whose genotype is data, forward and backward, for one frame of a clip.

What flows between the parts is kept in buffers that hold all frames of a clip: the layers' outputs, and both operands
of every aggregation. Nothing else is kept; a backward pass computes what it needs of a part anew. (Autodiff of the same
loops copies maps into the residuals of every conditional, and whole buffers for every layer and every frame.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.space import conditional, operations
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]


class Memory(NamedTuple):
    """What a forward pass keeps, f32 [rows, B, h, w, C] each.

    Attributes:
      outputs: of the layers.
      a: first operand of each layer's aggregation; no rows where nothing is to be differentiated.
      b: the second one.
    """

    outputs: jax.Array
    a: jax.Array
    b: jax.Array


class Frame(NamedTuple):
    """One frame of a clip.

    Attributes:
      pick: `(token, outputs) -> node`: an input, or a row of the outputs.
      memory: of the clip.
      row: the first of the L rows of this frame.
    """

    pick: Callable[[jax.Array, jax.Array], jax.Array]
    memory: Memory
    row: jax.Array | int


class Layers(NamedTuple):
    """The layers of one frame; `params` are stacked over the layers on axis 0.

    Attributes:
      forward: `(params, genotype i32 [L, 5], frame) -> memory` with the rows of this frame.
      backward: `(params, genotype, frame, grads [.., B, h, w, C], rows i32 [num_nodes], mean) -> (grads, gradient of
        params)`. Writes the gradients of the nodes that are read to their rows, whatever was there. `mean`: the
        weights f32 [L] of the outputs in the mean of the loose ends, and its gradient [B, h, w, C].
    """

    forward: Callable[..., Memory]
    backward: Callable[..., tuple[jax.Array, Params]]


def make(space: genotype_lib.Space, scope: operations.CellScope) -> Layers:
    """Builds the layers of a space."""
    apply_op = [_member(operations.OPERATIONS, name, scope) for name in space.operations]
    apply_agg = [_member(operations.AGGREGATIONS, name, scope) for name in space.aggregations]
    pull_op, pull_agg = [_pull_op(branch) for branch in apply_op], [_pull_agg(branch) for branch in apply_agg]

    def forward(params: Params, genotype: jax.Array, frame: Frame) -> Memory:
        def layer(memory: Memory, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[Memory, None]:
            params, tokens, row = xs
            a = jax.lax.switch(tokens[2], apply_op, params["a"], frame.pick(tokens[0], memory.outputs))
            b = jax.lax.switch(tokens[3], apply_op, params["b"], frame.pick(tokens[1], memory.outputs))
            output = jax.lax.switch(tokens[4], apply_agg, params["agg"], a, b)
            kept = [put(buffer, x, row) for buffer, x in zip(memory, (output, a, b), strict=True)]
            return Memory(*kept), None

        xs = params, genotype, frame.row + jnp.arange(space.num_layers)
        return jax.lax.scan(layer, frame.memory, xs)[0]

    def backward(
        params: Params,
        genotype: jax.Array,
        frame: Frame,
        grads: jax.Array,
        rows: jax.Array,
        mean: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, Params]:
        memory, (weights, grad_mean) = frame.memory, mean

        def layer(grads: jax.Array, xs: Any) -> tuple[jax.Array, Params]:
            params, tokens, row, own, weight, is_first = xs
            operands: tuple[Any, ...] = params["agg"], memory.a, memory.b, row, grads, own, weight, grad_mean
            grad_agg, *grad_maps = jax.lax.switch(tokens[4], pull_agg, *operands)
            grad_params = {"agg": grad_agg}
            for index, slot in enumerate("ab"):
                node, target = frame.pick(tokens[index], memory.outputs), rows[tokens[index]]
                operands = params[slot], node, grad_maps[index], grads, target, is_first[index]
                grad_params[slot], total = jax.lax.switch(tokens[2 + index], pull_op, *operands)
                grads = put(grads, total, target)
            return grads, grad_params

        own = rows[space.num_inputs :]
        xs = params, genotype, frame.row + jnp.arange(space.num_layers), own, weights, _first_reads(genotype)
        return jax.lax.scan(layer, grads, xs, reverse=True)

    return Layers(forward, backward)


def take(maps: jax.Array, row: jax.Array | int) -> jax.Array:
    """A row of a buffer."""
    return jax.lax.dynamic_index_in_dim(maps, row, keepdims=False)


def put(maps: jax.Array, x: jax.Array, row: jax.Array) -> jax.Array:
    """A buffer with a row written; one without rows as it is."""
    return jax.lax.dynamic_update_index_in_dim(maps, x, row, axis=0) if len(maps) else maps


def _member(table: dict[str, operations.Operation], name: str, scope: operations.CellScope) -> conditional.Branch:
    """A member of a vocabulary that is told the parameters of all members of its slot."""
    return lambda params, *maps: table[name].apply(params[name], *maps, scope)


def _pull_op(apply: conditional.Branch) -> conditional.Branch:
    """`(params, x, gradient, grads, row, is_first) -> (gradient of params, row of grads + gradient of x)`."""

    def pull(
        params: Params, x: jax.Array, grad: jax.Array, grads: jax.Array, row: jax.Array, is_first: jax.Array
    ) -> tuple[Any, jax.Array]:
        grad_params, grad_x = jax.vjp(apply, params, x)[1](grad)
        return grad_params, grad_x + jnp.where(is_first, 0, take(grads, row))

    return pull


def _pull_agg(apply: conditional.Branch) -> conditional.Branch:
    """`(params, buffer of a, of b, row, grads, own, weight, grad_mean) -> (gradient of params, of a, of b)`."""

    def pull(params: Params, a: jax.Array, b: jax.Array, row: jax.Array, *output: jax.Array) -> tuple[Any, ...]:
        grads, own, weight, grad_mean = output
        grad = jnp.where(weight > 0, weight * grad_mean, take(grads, own))  # a loose end is read by no layer
        return jax.vjp(apply, params, take(a, row), take(b, row))[1](grad)

    return pull


def _first_reads(genotype: jax.Array) -> jax.Array:
    """Whether a read is the first one of its node, from the last layer to the first, a before b; bool [L, 2]."""
    tokens = genotype[::-1, :2].ravel()
    is_earlier = jnp.tri(len(tokens), k=-1, dtype=bool)
    is_known = ((tokens[:, None] == tokens[None]) & is_earlier).any(axis=1)
    return ~is_known.reshape(-1, 2)[::-1]
