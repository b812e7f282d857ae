"""How long a call takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax


def seconds(call_fn: Callable[[], object]) -> float:
    """Seconds of a call, until its results are there."""
    started = time.perf_counter()
    jax.block_until_ready(call_fn())
    return time.perf_counter() - started


def median_seconds(call_fn: Callable[[], object], repeats: int) -> float:
    """The median of several calls."""
    return statistics.median(seconds(call_fn) for _ in range(repeats))
