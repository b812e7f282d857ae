"""Objects cut out of a still: one connected region of a class of things that move, found on the host by NumPy."""

from __future__ import annotations

import numpy as np

from dvsnas_jax.core import types

MOVING = frozenset(
    ("car", "truck", "bus", "train", "pedestrian", "person", "rider", "bicyclist", "bicycle", "motorcycle")
)
"""Names of classes whose regions move by themselves."""
_FEWEST, _MOST = 1 / 2000, 1 / 5
"""An object has at least and at most such a share of the pixels: smaller ones get lost on a grid, larger ones hide
all."""


def ids(table: types.ClassTable) -> tuple[int, ...]:
    """The train ids of the classes that move."""
    return tuple(number for number, name in enumerate(table.names) if name.lower() in MOVING)


def find(labels: np.ndarray, classes: tuple[int, ...], number: float) -> np.ndarray:
    """One object of train ids u8 [H, W], bool [H, W]: the connected region (4 neighbours) around a pixel of `classes`.

    `number` in 0..1 chooses the pixel, and so an object in proportion to its size; below 0 there is none. A region that
    is too small or too large is none either.
    """
    inside = np.zeros(labels.shape, bool)
    candidates = np.flatnonzero(np.isin(labels, classes)) if number >= 0 else np.empty(0, np.int64)
    if not len(candidates):
        return inside
    seed = candidates[min(int(number * len(candidates)), len(candidates) - 1)]
    same = labels == labels.reshape(-1)[seed]
    inside.reshape(-1)[seed] = True
    size = 0
    while size < (size := int(inside.sum())):
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        inside = grown & same
    return inside if _FEWEST <= size / labels.size <= _MOST else np.zeros_like(inside)


def layer(labels: np.ndarray, classes: tuple[int, ...], number: float) -> np.ndarray:
    """`find` as words u32 [H, W], see `warp`: the label byte says where the object is."""
    return find(labels, classes, float(number)).astype(np.uint32) * np.uint32(0xFF000000)
