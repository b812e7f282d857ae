"""What every dataset on disk is to the rest: an ordered list of frames, some with labels, and how labels are coded."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from dvsnas_jax.core import errors, types


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame on disk; `label` is None where it has none."""

    sequence: str
    number: int
    image: pathlib.Path
    label: pathlib.Path | None


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file of the dataset.

    Raises:
      UserError: it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


@dataclasses.dataclass(frozen=True)
class LabelCode:
    """How the pixels of a label file become train ids.

    Attributes:
      raw: i32 [n], sorted: what a pixel may hold: an id or palette index, or 65536 r + 256 g + b.
      train: u8 [n], its train id; 255 = ignore.
      is_color: label files are RGB colours.
    """

    raw: np.ndarray
    train: np.ndarray
    is_color: bool

    def decode(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """Train ids of a label image.

        Args:
          pixels: integers [H, W], or u8 [H, W, 3] of colours.
          where: the file, for the error.

        Returns:
          u8 [H, W].

        Raises:
          UserError: a value that the code does not know.
        """
        if self.is_color:
            pixels = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        place = np.minimum(np.searchsorted(self.raw, pixels), len(self.raw) - 1)
        is_unknown = self.raw[place] != pixels
        if is_unknown.any():
            raise errors.UserError(f"{where}: {self._unknown(int(pixels[is_unknown].max()))}")
        return self.train[place].astype(np.uint8)

    def _unknown(self, value: int) -> str:
        if self.is_color:
            color = (value >> 16, value >> 8 & 255, value & 255)
            return f"the colour {color} belongs to no class; save the labels without smoothing, in the table's colours"
        ignored = self.raw[self.train == types.IGNORE]
        known = ", ".join(str(v) for v in self.raw) if len(self.raw) <= 16 else f"{self.raw[0]}..{self.raw[-1]}"
        return f"label id {value} is out of range; ids are {known}, of which {list(map(int, ignored))} are ignored"


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a dataset on disk.

    Attributes:
      layout: camvid_segnet | camvid_official | cityscapes | cityscapes_stills | folder.
      frames: ordered by (sequence, number).
      table: names and colours of the train ids.
      code: of the label files.
      frame_rate: frames per second where frame numbers are consecutive.
    """

    layout: str
    frames: tuple[Frame, ...]
    table: types.ClassTable
    code: LabelCode
    frame_rate: float


def id_code(pairs: Iterable[tuple[int, int]]) -> LabelCode:
    """A code of ids, from (id in the file, train id)."""
    return _code(dict(pairs), is_color=False)


def color_code(pairs: Iterable[tuple[tuple[int, int, int], int]]) -> LabelCode:
    """A code of colours, from ((r, g, b), train id)."""
    return _code({65536 * r + 256 * g + b: train for (r, g, b), train in pairs}, is_color=True)


def _code(train: dict[int, int], *, is_color: bool) -> LabelCode:
    raw = sorted(train)
    return LabelCode(np.array(raw, np.int32), np.array([train[value] for value in raw], np.uint8), is_color)
