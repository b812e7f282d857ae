"""Cityscapes' classes, from the table of the official package `cityscapesscripts` (34 ids -> 19 train ids)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.datasets import frames


@functools.cache
def _labels() -> tuple[Any, ...]:
    """The official rows: each has name, id, trainId and color."""
    try:
        from cityscapesscripts.helpers import labels
    except ImportError as error:
        raise errors.UserError(
            "data.name: Cityscapes needs the package cityscapesscripts, which is not installed; "
            "run: pip install 'dvsnas-jax[cityscapes]'"
        ) from error
    return tuple(labels.labels)


def _is_trained(row: Any) -> bool:
    return 0 <= row.trainId < types.IGNORE


@functools.cache
def table() -> types.ClassTable:
    """Names and colours of the 19 train ids.

    Raises:
      UserError: the package is not installed.
    """
    rows = sorted((row for row in _labels() if _is_trained(row)), key=lambda row: row.trainId)
    return types.ClassTable(
        names=tuple(row.name for row in rows), colors=np.array([row.color for row in rows], np.uint8)
    )


@functools.cache
def code() -> frames.LabelCode:
    """How the ids of `*_gtFine_labelIds.png` become train ids: 0..33 by the table, 255 (how 8 bits keep -1) ignored.

    Raises:
      UserError: the package is not installed.
    """
    pairs = [(row.id % 256, row.trainId if _is_trained(row) else types.IGNORE) for row in _labels()]
    return frames.id_code(pairs)


@functools.cache
def train_to_id() -> np.ndarray:
    """The original id of every train id, u8 [256]; 255 (ignored) becomes 0 = unlabeled, as all that is no class.

    Raises:
      UserError: the package is not installed.
    """
    ids = np.zeros(256, np.uint8)
    for row in _labels():
        if _is_trained(row):
            ids[row.trainId] = row.id
    return ids
