"""Where the files of a split come from: a folder, or the records of a prepared dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np

from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import folders
from dvsnas_jax.data.prepared import reading


class Media(Protocol):
    """The encoded frames of one split.

    Attributes:
      source: the index of the frames.
    """

    source: frames.Source

    def read(self, places: np.ndarray) -> tuple[list[bytes], list[bytes]]:
        """Encoded images and labels (b"" = none) of frames i32 [T] of the source, the target last; thread-safe."""


class FolderMedia:
    """Files as they lie in the dataset's folder.

    Attributes:
      source: the index of the frames.
    """

    def __init__(self, source: frames.Source) -> None:
        self.source = source

    def read(self, places: np.ndarray) -> tuple[list[bytes], list[bytes]]:
        """See `Media`.

        Raises:
          UserError: a file cannot be read.
        """
        chosen = [self.source.frames[place] for place in places]
        images = [frames.read_bytes(frame.image) for frame in chosen]
        return images, [frames.read_bytes(frame.label) if frame.label else b"" for frame in chosen]


def open_media(data: ml_collections.ConfigDict, split: str) -> Media:
    """The prepared dataset where data.prepared names one, else the folder.

    Raises:
      UserError: see `datasets.find` and `prepared.of`.
    """
    found = reading.of(data, split)
    return FolderMedia(datasets.find(data, split)) if found is None else found


def explain(media: Any, places: Sequence[int] | np.ndarray, size: tuple[int, int]) -> None:
    """Reads some frames once more, slowly, to say what is wrong with them.

    Args:
      media: of the split.
      places: of the frames.
      size: height and width that were asked for.

    Raises:
      UserError: the first thing that is wrong.
    """
    for place in places:
        images, labels = media.read(np.array([place], np.int32))
        folders.load(media.source.frames[place], media.source.code, *size, content=(images[0], labels[0]))
