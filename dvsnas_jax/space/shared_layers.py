"""The layers of a cell whose genotype is data, forward and backward, for one frame of a clip.

What flows between the parts is kept in buffers that hold all frames of a clip: the layers' outputs, and both operands of
every aggregation. Nothing else is kept; a backward pass computes what it needs of a part anew. (Autodiff of the same
loops copies maps into the residuals of every conditional, and whole buffers for every layer and every frame.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import lazy, operations

Params = dict[str, Any]
Pick = Callable[[jax.Array, jax.Array], jax.Array]


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


class Layers(NamedTuple):
    """The layers of one frame.

    Attributes:
      forward: `(params, genotype i32 [L, 5], pick, memory, row) -> memory`, in which the rows from `row` on are those
        of this frame, a layer a row. `pick(token, outputs)` is a node: an input, or a row of the outputs.
      backward: `(params, genotype, pick, memory, row, grads, rows) -> (grads, gradient of params)`. `grads` [.., B, h,
        w, C] has a row for each node, those of the layers with what the rest of the cell has for them; `rows` i32
        [num_nodes] says where. What is added is the gradient of the operations.
    """

    forward: Callable[..., Memory]
    backward: Callable[..., tuple[jax.Array, Params]]


def make(space: genotype_lib.Space, scope: operations.CellScope) -> Layers:
    """Builds the layers of a space; `params` are stacked over the layers on axis 0."""
    apply_op = [_member(operations.OPERATIONS, name, scope) for name in space.operations]
    apply_agg = [_member(operations.AGGREGATIONS, name, scope) for name in space.aggregations]
    pull_op, pull_agg = [_pull_op(branch) for branch in apply_op], [_pull_agg(branch) for branch in apply_agg]

    def forward(params: Params, genotype: jax.Array, pick: Pick, memory: Memory, row: jax.Array) -> Memory:
        def layer(memory: Memory, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[Memory, None]:
            params, tokens, row = xs
            a = jax.lax.switch(tokens[2], apply_op, params["a"], pick(tokens[0], memory.outputs))
            b = jax.lax.switch(tokens[3], apply_op, params["b"], pick(tokens[1], memory.outputs))
            output = jax.lax.switch(tokens[4], apply_agg, params["agg"], a, b)
            kept = [put(buffer, x, row) for buffer, x in zip(memory, (output, a, b), strict=True)]
            return Memory(*kept), None

        return jax.lax.scan(layer, memory, (params, genotype, row + jnp.arange(space.num_layers)))[0]

    def backward(
        params: Params,
        genotype: jax.Array,
        pick: Pick,
        memory: Memory,
        row: jax.Array,
        grads: jax.Array,
        rows: jax.Array,
    ) -> tuple[jax.Array, Params]:
        def layer(grads: jax.Array, xs: tuple[Params, jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, Params]:
            params, tokens, row, own = xs
            operands = params["agg"], memory.a, memory.b, row, grads, own
            found, grad_a, grad_b = jax.lax.switch(tokens[4], pull_agg, *operands)
            grad_params = {"agg": found}
            for slot, token, name, grad in (("a", tokens[0], tokens[2], grad_a), ("b", tokens[1], tokens[3], grad_b)):
                operands = params[slot], pick(token, memory.outputs), grad, grads, rows[token]
                grad_params[slot], total = jax.lax.switch(name, pull_op, *operands)
                grads = put(grads, total, rows[token])
            return grads, grad_params

        xs = params, genotype, row + jnp.arange(space.num_layers), rows[space.num_inputs :]
        return jax.lax.scan(layer, grads, xs, reverse=True)

    return Layers(forward, backward)


def take(maps: jax.Array, row: jax.Array) -> jax.Array:
    """A row of a buffer."""
    return jax.lax.dynamic_index_in_dim(maps, row, keepdims=False)


def put(maps: jax.Array, x: jax.Array, row: jax.Array) -> jax.Array:
    """A buffer with a row written; one without rows as it is."""
    return jax.lax.dynamic_update_index_in_dim(maps, x, row, axis=0) if len(maps) else maps


def _member(table: dict[str, operations.Operation], name: str, scope: operations.CellScope) -> lazy.Branch:
    """A member of a vocabulary that is told the parameters of all members of its slot."""
    return lambda params, *maps: table[name].apply(params[name], *maps, scope)


def _pull_op(apply: lazy.Branch) -> lazy.Branch:
    """`(params, x, gradient, grads, row) -> (gradient of params, row of grads + gradient of x)`."""

    def pull(params: Params, x: jax.Array, grad: jax.Array, grads: jax.Array, row: jax.Array) -> tuple[Any, jax.Array]:
        grad_params, grad_x = jax.vjp(apply, params, x)[1](grad)
        return grad_params, take(grads, row) + grad_x

    return pull


def _pull_agg(apply: lazy.Branch) -> lazy.Branch:
    """`(params, buffer of a, of b, row, grads, own) -> (gradient of params, of a, of b)`."""

    def pull(
        params: Params, a: jax.Array, b: jax.Array, row: jax.Array, grads: jax.Array, own: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        return jax.vjp(apply, params, take(a, row), take(b, row))[1](take(grads, own))

    return pull
