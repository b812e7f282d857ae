"""Conditionals whose gradients keep the operands alone and run one branch, as the forward pass does.

Autodiff of `lax.switch` writes the residuals of every branch, zeros for those that did not run, and copies of the
operands. Here the gradient is written out: it switches to the branch's own pullback, which computes what it needs anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Branch = Callable[..., Any]


def pullback(branch: Branch) -> Branch:
    """`(*operands, gradient of the output) -> (gradient of each operand)`."""
    return lambda *args: jax.vjp(branch, *args[:-1])[1](args[-1])


def when(is_needed: jax.Array, fn: Branch, operands: Sequence[Any]) -> Any:
    """`fn(*operands)` where it is needed (bool []), else zeros of its shape, in no time.

    The gradient is with respect to the operands, of floating point.
    """

    def choose(is_needed: jax.Array, branch: Branch, *args: Any) -> Any:
        shapes = jax.eval_shape(branch, *args)
        return jax.lax.cond(
            is_needed, branch, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), *args
        )

    @jax.custom_vjp
    def run(is_needed: jax.Array, operands: Sequence[Any]) -> Any:
        return choose(is_needed, fn, *operands)

    def forward(is_needed: jax.Array, operands: Sequence[Any]) -> tuple[Any, Any]:
        return run(is_needed, operands), (is_needed, operands)

    def backward(residuals: Any, grad: Any) -> tuple[None, Any]:
        is_needed, operands = residuals
        return None, choose(is_needed, pullback(fn), *operands, grad)

    run.defvjp(forward, backward)
    return run(is_needed, tuple(operands))
