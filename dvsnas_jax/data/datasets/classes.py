"""Class tables and colours as data."""

from __future__ import annotations

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import camvid_table

CAMVID = camvid_table.TABLE
"""The usual 11 classes of CamVid, also those of the synthetic streets."""


def colorize(labels: np.ndarray, table: types.ClassTable = CAMVID) -> np.ndarray:
    """Paints train ids in the colours of their classes.

    Args:
      labels: u8 [...], train ids; ids without a class (255 = ignore) become black.
      table: names and colours of the train ids.

    Returns:
      u8 [..., 3], RGB.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: table.num_classes] = table.colors
    return colors[labels]
