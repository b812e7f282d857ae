"""Compilation of programs that run once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def jit_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for a function that runs once, such as the drawing of initial weights.

    On a CPU it is compiled without the backend's optimizations, which would take longer than they save.
    Not to be used inside another traced function.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(fn, compiler_options=options)
