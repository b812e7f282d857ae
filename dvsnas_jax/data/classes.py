"""Class tables, colours and label maps as data."""

from __future__ import annotations

import numpy as np

from dvsnas_jax.core import types

_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CAMVID = types.ClassTable(
    names=tuple(name for name, _ in _CAMVID),
    colors=np.array([color for _, color in _CAMVID], np.uint8),
)
"""The usual 11 classes of CamVid, in the order and colours of the SegNet tutorial data."""

VOID = CAMVID.num_classes
"""The id of unlabelled pixels in label files of the SegNet layout; it becomes `types.IGNORE`."""


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
