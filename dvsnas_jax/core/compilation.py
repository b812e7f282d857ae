"""How much work XLA puts into a program: all of it, or little where the program runs only a few times."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax

EFFORTS: dict[str, dict[str, Any] | None] = {"full": None, "quick": {"xla_backend_optimization_level": 0}}
"""The compiler's options on a CPU, where "quick" halves the time of a compilation; other backends know none."""
_effort = contextvars.ContextVar("effort", default="full")
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def effort(name: str) -> Iterator[None]:
    """Sets the effort of every `jit` inside; see `config.compile_effort`."""
    token = _effort.set(name)
    try:
        yield
    finally:
        _effort.reset(token)


@contextlib.contextmanager
def target(backend: str) -> Iterator[None]:
    """What is traced inside is meant for this backend ("cpu", "gpu" or "tpu"), whichever runs it.

    Trace functions that were traced nowhere else: JAX keeps what it traced, and knows nothing of this.
    """
    token = _target.set(backend)
    try:
        yield
    finally:
        _target.reset(token)


def backend() -> str:
    """The backend that is traced for: that of `target`, else the one in use."""
    return _target.get() or jax.default_backend()


def jit(fn: Callable[..., Any], **kwargs: Any) -> Any:
    """`jax.jit` with the effort that is set where this is called; `fn` is not to be used inside another traced one."""
    return jax.jit(fn, compiler_options=_options(_effort.get()), **kwargs)


def jit_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jit` with little effort for a function that runs once, such as the drawing of initial weights."""
    return jax.jit(fn, compiler_options=_options("quick"))


def _options(effort: str) -> dict[str, Any] | None:
    options = EFFORTS[effort]
    return options if options and jax.default_backend() == "cpu" else None


class Ahead:
    """A jitted function (from `jit`) that a thread compiles before its first call, which waits for it.

    `shapes`: its arguments, as `jax.ShapeDtypeStruct`s; the calls must have exactly these.
    """

    def __init__(self, fn: Any, *shapes: Any):
        pool = futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiled = pool.submit(lambda: fn.lower(*shapes).compile())
        pool.shutdown(wait=False)

    def __call__(self, *args: Any) -> Any:
        """Runs the program; an error of its compilation is raised here."""
        return self._compiled.result()(*args)
