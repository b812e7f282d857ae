"""Where the files of a split come from: a folder, or the records of a prepared dataset."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import ml_collections
import numpy as np

from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import decode
from dvsnas_jax.data.prepared import reading


class Media(Protocol):
    """The encoded frames of one split; `source` is their index."""

    source: frames.Source

    def read(self, places: np.ndarray) -> tuple[list[bytes], list[bytes]]:
        """Encoded images and labels (b"" = none) of frames i32 [T] of the source, the target last; thread-safe.

        Raises:
          UserError: they cannot be read.
        """


@dataclasses.dataclass
class FolderMedia:
    """Files as they lie in the dataset's folder."""

    source: frames.Source

    def read(self, places: np.ndarray) -> tuple[list[bytes], list[bytes]]:
        """See `Media`."""
        chosen = [self.source.frames[place] for place in places]
        images = [frames.read_bytes(frame.image) for frame in chosen]
        return images, [frames.read_bytes(frame.label) if frame.label else b"" for frame in chosen]


def open_media(data: ml_collections.ConfigDict, split: str) -> Media:
    """The prepared dataset where data.prepared names one, else the folder.

    Raises UserError: see `datasets.find` and `reading.of`.
    """
    return reading.of(data, split) or FolderMedia(datasets.find(data, split))


def load(
    media: Media,
    place: int,
    size: tuple[int, int],
    *,
    as_bytes: bool = False,
    label_size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its labels, see `decode.load`; files are read by their path, but `as_bytes` as a loader does it."""
    content = None
    if as_bytes or not isinstance(media, FolderMedia):
        images, labels = media.read(np.array([place], np.int32))
        content = images[0], labels[0]
    return decode.load(media.source.frames[place], media.source.code, size, content, label_size)


def file_size(media: Media, place: int) -> tuple[int, int]:
    """Height and width of a frame, and so of its label image, as it is stored; upright.

    Raises:
      UserError: it cannot be read.
    """
    images, _ = media.read(np.array([place], np.int32))
    height, width, _ = image_files.read_image(media.source.frames[place].image, images[0]).shape
    return height, width
