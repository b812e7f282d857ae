"""What every dataset on disk is to the rest: an ordered list of frames, some with labels, and how labels are coded."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dvsnas_jax.core import errors, types

_SHOWN_VALUES = 12
"""Unknown values that a message names."""


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
      ignore_key: config key that names more values to ignore.
      ignore: what that key holds now.
    """

    raw: np.ndarray
    train: np.ndarray
    is_color: bool
    ignore_key: str = "data.ignore"
    ignore: tuple[str, ...] = ()

    def pack(self, pixels: np.ndarray) -> np.ndarray:
        """What the pixels [H, W] or u8 [H, W, 3] of a label image hold, as `raw` writes it: integers [H, W]."""
        return pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32) if self.is_color else pixels

    def decode(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """Train ids of a label image.

        Args:
          pixels: integers [H, W], or u8 [H, W, 3] of colours.
          where: the file, for the error.

        Returns:
          u8 [H, W].

        Raises:
          UserError: values that the code does not know, each named.
        """
        pixels = self.pack(pixels)
        place = np.minimum(np.searchsorted(self.raw, pixels), len(self.raw) - 1)
        is_unknown = self.raw[place] != pixels
        if is_unknown.any():
            raise errors.UserError(f"{where}: {self.unknown(count_values(pixels[is_unknown]))}")
        return self.train[place].astype(np.uint8)

    def train_of(self, value: int) -> int | None:
        """The train id of one value, None where the code does not know it."""
        place = min(int(np.searchsorted(self.raw, value)), len(self.raw) - 1)
        return int(self.train[place]) if place >= 0 and self.raw[place] == value else None

    def text(self, value: int) -> str:
        """A value as people, and the config, write it."""
        return f"#{value:06x}" if self.is_color else str(value)

    def unknown(self, counts: Mapping[int, int], *, num_masks: int = 0, together: Sequence[int] = ()) -> str:
        """Says that values are not known, and what to do.

        Args:
          counts: value -> its pixels; the commonest are named.
          num_masks: files that hold them; 0: one, which is named elsewhere.
          together: values that the setting leaves out; none: those that are named.
        """
        known = sorted(counts, key=lambda value: (-counts[value], value))
        shown, rest = sorted(known[:_SHOWN_VALUES]), known[_SHOWN_VALUES:]
        numbers = ", ".join(f"{counts[value]:,}" for value in shown)
        pixels = f"{numbers} pixel{'s' * (sum(counts[value] for value in shown) != 1)}"
        pixels += f" in {num_masks} mask{'s' * (num_masks != 1)}" if num_masks else ""
        more = f" and {len(rest)} more with {sum(counts[value] for value in rest):,} pixels" if rest else ""
        setting = f"--config.{self.ignore_key}={','.join([*self.ignore, *map(self.text, together or shown)])}"
        is_one = len(known) == 1
        them = "it" if is_one else "them"
        if self.is_color:
            names = ", ".join(f"{(v >> 16, v >> 8 & 255, v & 255)}" for v in shown)
            hint = "; smoothed or resized labels hold many: save them without" if rest else ""
            return (
                f"the colour{'s' * (not is_one)} {names}{more} belong{'s' * is_one} to no class ({pixels}{hint}); "
                f"{self._class_hint()}leave {them} out: {setting}"
            )
        ignored = list(map(int, self.raw[self.train == types.IGNORE]))
        ids = ", ".join(str(v) for v in self.raw) if len(self.raw) <= 16 else f"{self.raw[0]}..{self.raw[-1]}"
        names = ", ".join(map(str, shown))
        return (
            f"label id{'s' * (not is_one)} {names}{more} {'is' if is_one else 'are'} out of range; "
            f"ids are {ids}, of which {ignored} are ignored ({pixels}); "
            f"{self._class_hint()}leave {them} out: {setting}"
        )

    def _class_hint(self) -> str:
        is_own = self.ignore_key.startswith("data.folder")
        key = "data.folder.colors" if self.is_color else "data.folder.ids"
        return f"make a class of it by {key}, or " if is_own else ""


def count_values(values: np.ndarray) -> dict[int, int]:
    """How often each value occurs in integers of any shape."""
    flat = values.ravel()
    if flat.size and 0 <= flat.min() and flat.max() <= 65535:  # much faster than sorting
        counts = np.bincount(flat)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return {int(value): int(count) for value, count in zip(*np.unique(flat, return_counts=True), strict=True)}


def parse_color(text: str, key: str) -> int:
    """`#rrggbb` as 65536 r + 256 g + b.

    Raises:
      UserError: it is no colour; `key` of the config is named.
    """
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text) is None:
        raise errors.UserError(f"{key}: {text!r} is no colour; write it as #rrggbb, for example #804080")
    return int(text[1:], 16)


def parse_id(text: str, key: str) -> int:
    """An id of a label image, 0..65535.

    Raises:
      UserError: it is none; `key` of the config is named.
    """
    if re.fullmatch(r"\d{1,5}", text) is None or int(text) > 65535:
        raise errors.UserError(f"{key}: {text!r} is no id; write whole numbers in 0..65535")
    return int(text)


def with_ignored(code: LabelCode, texts: Sequence[str]) -> LabelCode:
    """The code with data.ignore: ids or colours `#rrggbb` that are ignored, whatever the code makes of them.

    Raises:
      UserError: one is no id, or no colour where the labels are colours.
    """
    if not texts:
        return code
    parse = parse_color if code.is_color else parse_id
    train = dict(zip(code.raw.tolist(), code.train.tolist(), strict=True))
    train.update((parse(text, "data.ignore"), types.IGNORE) for text in texts)
    ignore = code.ignore if code.ignore_key != "data.ignore" else tuple(texts)
    return code_of(train, is_color=code.is_color, ignore_key=code.ignore_key, ignore=ignore)


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
    return code_of(dict(pairs), is_color=False)


def color_code(pairs: Iterable[tuple[tuple[int, int, int], int]]) -> LabelCode:
    """A code of colours, from ((r, g, b), train id)."""
    return code_of({65536 * r + 256 * g + b: train for (r, g, b), train in pairs}, is_color=True)


def code_of(
    train: Mapping[int, int], *, is_color: bool, ignore_key: str = "data.ignore", ignore: tuple[str, ...] = ()
) -> LabelCode:
    """A code from what a pixel holds -> train id; the other fields as in `LabelCode`."""
    raw = sorted(train)
    values = np.array([train[value] for value in raw], np.uint8)
    return LabelCode(np.array(raw, np.int32), values, is_color, ignore_key, ignore)
