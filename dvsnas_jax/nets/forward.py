"""The static network over many frames, a fixed number at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.nets import static_net

BATCH_FRAMES = 16
"""Frames that pass the network at a time."""


def batches(net: static_net.StaticNet) -> Callable[[Any, np.ndarray], Iterator[types.Features]]:
    """`(variables, frames u8 [n, H, W, 3]) -> Features` of `BATCH_FRAMES` frames at a time, float32, at the grid.

    The last frame is repeated to fill the last batch.
    """
    infer_fn = _jitted(net)

    def follow(variables: Any, frames: np.ndarray) -> Iterator[types.Features]:
        for start in range(0, len(frames), BATCH_FRAMES):
            rows = np.minimum(np.arange(start, start + BATCH_FRAMES), len(frames) - 1)
            yield infer_fn(variables, frames[rows])

    return follow


@functools.cache
def _jitted(net: static_net.StaticNet) -> Callable[..., types.Features]:
    """Kept, because validation, features and evaluation each ask for it: compiled once."""
    return compilation.jit(functools.partial(static_net.infer, net))
