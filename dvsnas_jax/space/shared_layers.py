"""The layers of a cell whose genotype is data, with their gradient written out.

The forward pass keeps what flows between the parts: the layers' outputs, and both operands of every aggregation. The
backward pass runs over the layers in reverse and adds to one buffer of the nodes' gradients. (Autodiff of the same loop
copies maps into the residuals of every conditional, and the whole buffer for every layer.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import lazy, operations

Params = dict[str, Any]
Inputs = tuple[jax.Array, ...]
Operands = tuple[jax.Array, jax.Array]
Residuals = tuple[Params, jax.Array, Inputs, jax.Array, Operands]


def make(
    space: genotype_lib.Space, scope: operations.CellScope
) -> Callable[[Params, jax.Array, tuple[jax.Array, ...]], jax.Array]:
    """Builds the function that runs the layers.

    Returns:
      `(params stacked over the layers on axis 0, genotype i32 [L, 5], inputs, each [B, h, w, C]) -> outputs of the
      layers [L, B, h, w, C]`.
    """
    apply_op, pull_op = _branches(operations.OPERATIONS, space.operations, scope)
    apply_agg, pull_agg = _branches(operations.AGGREGATIONS, space.aggregations, scope)

    def forward(params: Params, genotype: jax.Array, inputs: Inputs) -> tuple[jax.Array, Operands]:
        def layer(outputs: jax.Array, xs: Any) -> tuple[jax.Array, Operands]:
            params, tokens, index = xs
            a = jax.lax.switch(tokens[2], apply_op, params["a"], _node(inputs, outputs, tokens[0]))
            b = jax.lax.switch(tokens[3], apply_op, params["b"], _node(inputs, outputs, tokens[1]))
            output = jax.lax.switch(tokens[4], apply_agg, params["agg"], a, b)
            return jax.lax.dynamic_update_index_in_dim(outputs, output, index, axis=0), (a, b)

        empty = jnp.zeros((space.num_layers, *inputs[0].shape), inputs[0].dtype)
        return jax.lax.scan(layer, empty, (params, genotype, jnp.arange(space.num_layers)))

    def backward(residuals: Residuals, grad: jax.Array) -> tuple[Params, None, Inputs]:
        params, genotype, inputs, outputs, operands = residuals

        def layer(grads: jax.Array, xs: Any) -> tuple[jax.Array, Params]:
            params, tokens, index, (a, b) = xs
            found = {}
            found["agg"], grad_a, grad_b = jax.lax.switch(tokens[4], pull_agg, params["agg"], a, b, _row(grads, index))
            # What is written depends on all that was read: in any other order XLA copies the whole buffer.
            first, second = tokens[0], tokens[1]
            sum_a, sum_b = _row(grads, first), _row(grads, second)
            x = _node(inputs, outputs, first)
            found["a"], sum_a = jax.lax.switch(tokens[2], pull_op, params["a"], x, grad_a, sum_a)
            sum_b = jnp.where(first == second, sum_a, sum_b)
            x = _node(inputs, outputs, second)
            found["b"], sum_b = jax.lax.switch(tokens[3], pull_op, params["b"], x, grad_b, sum_b)
            sum_a = jnp.where(first == second, sum_b, sum_a)
            for where, total in ((second, sum_b), (first, sum_a)):
                grads = jax.lax.dynamic_update_index_in_dim(grads, total, where, axis=0)
            return grads, found

        zeros = jnp.zeros((space.num_inputs, *grad.shape[1:]), grad.dtype)
        indices = space.num_inputs + jnp.arange(space.num_layers)
        grads, found = jax.lax.scan(
            layer, jnp.concatenate([zeros, grad]), (params, genotype, indices, operands), reverse=True
        )
        return found, None, tuple(grads[: space.num_inputs])

    @jax.custom_vjp
    def run(params: Params, genotype: jax.Array, inputs: Inputs) -> jax.Array:
        return forward(params, genotype, inputs)[0]

    def keep(params: Params, genotype: jax.Array, inputs: Inputs) -> tuple[jax.Array, Residuals]:
        outputs, operands = forward(params, genotype, inputs)
        return outputs, (params, genotype, inputs, outputs, operands)

    run.defvjp(keep, backward)
    return run


def _row(maps: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(maps, index, keepdims=False)


def _node(inputs: Inputs, outputs: jax.Array, token: jax.Array) -> jax.Array:
    """An input, or the output of a layer."""

    def pick(index: int) -> lazy.Branch:
        return lambda inputs, outputs: inputs[index]

    branches = [*map(pick, range(len(inputs))), lambda inputs, outputs: _row(outputs, token - len(inputs))]
    return jax.lax.switch(jnp.minimum(token, len(inputs)), branches, inputs, outputs)


def _branches(
    table: dict[str, operations.Operation], names: tuple[str, ...], scope: operations.CellScope
) -> tuple[list[lazy.Branch], list[lazy.Branch]]:
    """The members of a vocabulary and their pullbacks; both are told the parameters of all members of a slot."""

    def member(name: str) -> lazy.Branch:
        return lambda params, *maps: table[name].apply(params[name], *maps, scope)

    def adding(pull: lazy.Branch) -> lazy.Branch:
        def add(params: Params, x: jax.Array, grad: jax.Array, total: jax.Array) -> tuple[Params, jax.Array]:
            grad_params, grad_x = pull(params, x, grad)
            return grad_params, total + grad_x

        return add

    members = [member(name) for name in names]
    pulls = [lazy.pullback(branch) for branch in members]
    return members, [adding(pull) for pull in pulls] if table is operations.OPERATIONS else pulls
