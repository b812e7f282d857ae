"""What masks that the program writes hold: the ids that the configuration reads, so that they are masks of its own."""

from __future__ import annotations

import ml_collections
import numpy as np

from dvsnas_jax.data.datasets import cityscapes_table, layouts


def of(data: ml_collections.ConfigDict) -> np.ndarray:
    """The id of each class in label files, i32 [K]: the first one where a class has several.

    Cityscapes' own; data.folder.ids; else 0, 1, 2, ..., also where labels are colours alone.

    Args:
      data: section of the configuration.

    Raises:
      UserError: see `layouts.class_table`.
    """
    num = layouts.class_table(data).num_classes
    if data.name == "cityscapes":
        return cityscapes_table.train_to_id()[:num].astype(np.int32)
    if data.name == "folder" and data.folder.labels == "ids" and data.folder.ids:
        return np.array([int(str(ids).split("+")[0]) for ids in data.folder.ids], np.int32)
    return np.arange(num, dtype=np.int32)


def table(ids: np.ndarray) -> np.ndarray:
    """A table u8 [256] from train ids to ids, u16 where an id needs it; 0 for what is no class."""
    found = np.zeros(256, np.uint8 if max(ids, default=0) <= 255 else np.uint16)
    found[: len(ids)] = ids
    return found
