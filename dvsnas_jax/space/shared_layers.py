"""The layers of a cell whose genotype is data, with their gradient written out.

The forward pass keeps what flows between the parts: the layers' outputs, and both operands of every aggregation. The
backward pass runs over the layers in reverse and adds to one buffer of the nodes' gradients. (Autodiff of the same loop
copies maps into the residuals of every conditional, and the whole buffer for every layer.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import lazy, operations

Params = dict[str, Any]
Inputs = tuple[jax.Array, ...]
Operands = tuple[jax.Array, jax.Array]
Residuals = tuple[Params, jax.Array, Inputs, jax.Array, Operands]


class _Branches(NamedTuple):
    """The members of the vocabularies; all are told the parameters of all members of their slot.

    Attributes:
      apply_op: `(params, x) -> map`.
      apply_agg: `(params, a, b) -> map`.
      pull_op: `(params, x, gradient, total) -> (gradient of params, total + gradient of x)`.
      pull_agg: `(params, a, b, gradient) -> (gradient of params, of a, of b)`.
    """

    apply_op: list[lazy.Branch]
    apply_agg: list[lazy.Branch]
    pull_op: list[lazy.Branch]
    pull_agg: list[lazy.Branch]


def make(space: genotype_lib.Space, scope: operations.CellScope) -> Callable[[Params, jax.Array, Inputs], jax.Array]:
    """Builds the function that runs the layers.

    Returns:
      `(params stacked over the layers on axis 0, genotype i32 [L, 5], inputs, each [B, h, w, C]) -> outputs of the
      layers [L, B, h, w, C]`.
    """
    branches = _make_branches(space, scope)

    @jax.custom_vjp
    def run(params: Params, genotype: jax.Array, inputs: Inputs) -> jax.Array:
        return _forward(branches, params, genotype, inputs)[0]

    def keep(params: Params, genotype: jax.Array, inputs: Inputs) -> tuple[jax.Array, Residuals]:
        outputs, operands = _forward(branches, params, genotype, inputs)
        return outputs, (params, genotype, inputs, outputs, operands)

    def pull(residuals: Residuals, grad: jax.Array) -> tuple[Params, None, Inputs]:
        grad_params, grad_inputs = _backward(branches, residuals, grad)
        return grad_params, None, grad_inputs

    run.defvjp(keep, pull)
    return run


def _forward(branches: _Branches, params: Params, genotype: jax.Array, inputs: Inputs) -> tuple[jax.Array, Operands]:
    """Outputs of the layers and operands of their aggregations, [L, B, h, w, C] each."""

    def layer(outputs: jax.Array, xs: tuple[Params, jax.Array, jax.Array]) -> tuple[jax.Array, Operands]:
        params, tokens, index = xs
        a = jax.lax.switch(tokens[2], branches.apply_op, params["a"], _node(inputs, outputs, tokens[0]))
        b = jax.lax.switch(tokens[3], branches.apply_op, params["b"], _node(inputs, outputs, tokens[1]))
        output = jax.lax.switch(tokens[4], branches.apply_agg, params["agg"], a, b)
        return jax.lax.dynamic_update_index_in_dim(outputs, output, index, axis=0), (a, b)

    num_layers = genotype.shape[0]
    empty = jnp.zeros((num_layers, *inputs[0].shape), inputs[0].dtype)
    return jax.lax.scan(layer, empty, (params, genotype, jnp.arange(num_layers)))


def _backward(branches: _Branches, residuals: Residuals, grad: jax.Array) -> tuple[Params, Inputs]:
    """Gradients of the parameters and of the inputs, from that of the outputs."""
    params, genotype, inputs, outputs, operands = residuals

    def layer(grads: jax.Array, xs: Any) -> tuple[jax.Array, Params]:
        params, tokens, index, (a, b) = xs
        first, second = tokens[0], tokens[1]
        grad_agg, grad_a, grad_b = jax.lax.switch(tokens[4], branches.pull_agg, params["agg"], a, b, _row(grads, index))
        # What is written depends on all that was read: in any other order XLA copies the whole buffer.
        total_a, total_b = _row(grads, first), _row(grads, second)
        x = _node(inputs, outputs, first)
        grad_op_a, total_a = jax.lax.switch(tokens[2], branches.pull_op, params["a"], x, grad_a, total_a)
        total_b = jnp.where(first == second, total_a, total_b)
        x = _node(inputs, outputs, second)
        grad_op_b, total_b = jax.lax.switch(tokens[3], branches.pull_op, params["b"], x, grad_b, total_b)
        total_a = jnp.where(first == second, total_b, total_a)
        for where, total in ((second, total_b), (first, total_a)):
            grads = jax.lax.dynamic_update_index_in_dim(grads, total, where, axis=0)
        return grads, {"a": grad_op_a, "b": grad_op_b, "agg": grad_agg}

    num_inputs = len(inputs)
    start = jnp.concatenate([jnp.zeros((num_inputs, *grad.shape[1:]), grad.dtype), grad])
    indices = num_inputs + jnp.arange(len(grad))
    grads, grad_params = jax.lax.scan(layer, start, (params, genotype, indices, operands), reverse=True)
    return grad_params, tuple(grads[:num_inputs])


def _row(maps: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(maps, index, keepdims=False)


def _node(inputs: Inputs, outputs: jax.Array, token: jax.Array) -> jax.Array:
    """An input, or the output of a layer."""

    def pick(index: int) -> lazy.Branch:
        return lambda inputs, outputs: inputs[index]

    branches = [*map(pick, range(len(inputs))), lambda inputs, outputs: _row(outputs, token - len(inputs))]
    return jax.lax.switch(jnp.minimum(token, len(inputs)), branches, inputs, outputs)


def _make_branches(space: genotype_lib.Space, scope: operations.CellScope) -> _Branches:
    def member(table: dict[str, operations.Operation], name: str) -> lazy.Branch:
        return lambda params, *maps: table[name].apply(params[name], *maps, scope)

    def adding(pull: lazy.Branch) -> lazy.Branch:
        def add(params: Params, x: jax.Array, grad: jax.Array, total: jax.Array) -> tuple[Params, jax.Array]:
            grad_params, grad_x = pull(params, x, grad)
            return grad_params, total + grad_x

        return add

    apply_op = [member(operations.OPERATIONS, name) for name in space.operations]
    apply_agg = [member(operations.AGGREGATIONS, name) for name in space.aggregations]
    pull_op = [adding(lazy.pullback(branch)) for branch in apply_op]
    return _Branches(apply_op, apply_agg, pull_op, [lazy.pullback(branch) for branch in apply_agg])
