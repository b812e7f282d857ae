"""A program with its inner calls written out, for converters that know fewer forms than XLA (pure functions).

Converters to ONNX translate primitive by primitive. What they translate wrongly or not at all is replaced here by an
equal form of plain primitives: functions with gradients of their own by their bodies (a program that is exported has no
gradient), short loops by their rounds, maxima over windows by maxima of shifted maps, and constants get the type that
they have in the program.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jax_core

_BODIES = ("jaxpr", "call_jaxpr")
_CALLS = ("jit", "pjit", "custom_vjp_call", "custom_jvp_call", "closed_call", "core_call", "checkpoint", "remat2")
_MAX_ROUNDS = 16
"""Of a loop that is written out."""


def write_out(fn: Callable[..., Any], *args: Any) -> Callable[..., list[Any]]:
    """A function of the leaves of `args` (shapes and types) that computes the leaves of `fn`'s results."""
    closed = jax.make_jaxpr(fn)(*args)
    return lambda *leaves: _run(closed.jaxpr, closed.consts, leaves)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Computes a program, primitive by primitive."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        # A literal may be a number of Python's: of no type that a converter would see.
        if isinstance(atom, jax_core.Literal):
            return np.asarray(atom.val, getattr(atom.aval, "dtype", None))
        return known[atom]

    for equation in jaxpr.eqns:
        found = _apply(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, values: list[Any]) -> Sequence[Any]:
    """The results of one primitive."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        body = next(params[key] for key in _BODIES if key in params)
        jaxpr, consts = (body.jaxpr, body.consts) if hasattr(body, "consts") else (body, ())
        return _run(jaxpr, consts, values)
    if name == "scan" and params["length"] <= _MAX_ROUNDS:
        return _rounds(params, values)
    if name == "reduce_window_max":
        return [_maxima(params, values[0])]
    if name == "optimization_barrier":
        return values
    if name == "stack":
        return [_stack(values, params.get("axis", 0))]
    found = equation.primitive.bind(*values, **params)
    return found if equation.primitive.multiple_results else [found]


def _rounds(params: dict[str, Any], values: list[Any]) -> list[Any]:
    """A loop, round by round."""
    num_fixed, num_carried, body = params["num_consts"], params["num_carry"], params["jaxpr"]
    fixed, carry = values[:num_fixed], values[num_fixed : num_fixed + num_carried]
    stacks, outputs = values[num_fixed + num_carried :], []
    steps = range(params["length"])
    for index in reversed(steps) if params["reverse"] else steps:
        slices = [lax.index_in_dim(stack, index, keepdims=False) for stack in stacks]
        found = _run(body.jaxpr, body.consts, [*fixed, *carry, *slices])
        carry = found[:num_carried]
        outputs.append(found[num_carried:])
    if params["reverse"]:
        outputs.reverse()
    return [*carry, *(_stack(column, 0) for column in zip(*outputs, strict=True))]


def _stack(values: Sequence[Any], axis: int) -> Any:
    return lax.concatenate([lax.expand_dims(value, (axis,)) for value in values], axis)


def _maxima(params: dict[str, Any], x: Any) -> Any:
    """Maxima over windows as maxima of shifted maps."""
    window, strides, padding = (params[key] for key in ("window_dimensions", "window_strides", "padding"))
    padded = lax.pad(x, np.array(-np.inf, x.dtype), [(low, high, 0) for low, high in padding])
    spans = [
        (padded.shape[axis] - size) // stride * stride + 1
        for axis, (size, stride) in enumerate(zip(window, strides, strict=True))
    ]
    shifts = [
        lax.slice(padded, first, [a + span for a, span in zip(first, spans, strict=True)], strides)
        for first in itertools.product(*map(range, window))
    ]
    return functools.reduce(lax.max, shifts)
