"""Labels: what the pixels of label images mean, and train ids as colours and as the ids that written masks hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dvsnas_jax.core import errors, types

_SHOWN_VALUES = 12
"""Unknown values that a message names."""
_PLACES = np.array([65536, 256, 1], np.int32)
"""Of red, green and blue in a colour as one number."""


@dataclasses.dataclass(frozen=True)
class LabelCode:
    """How the pixels of a label file become train ids."""

    raw: np.ndarray  # i32 [n], sorted: what a pixel may hold: an id or palette index, or 65536 r + 256 g + b
    train: np.ndarray  # u8 [n], its train id; 255 = ignore
    is_color: bool  # label files are RGB colours
    ignore_key: str = "data.ignore"  # config key that names more values to ignore
    ignore: tuple[str, ...] = ()  # what that key holds now

    def pack(self, pixels: np.ndarray) -> np.ndarray:
        """What the pixels [H, W] or u8 [H, W, 3] of a label image hold, as `raw` writes it: integers [H, W]."""
        return pixels.astype(np.int32) @ _PLACES if self.is_color else pixels

    def decode(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """Train ids u8 [H, W] of a label image, integers [H, W] or colours u8 [H, W, 3].

        Raises:
          UserError: values that the code does not know, each named; `where` is the file.
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
        """Says that values (-> their pixels) are not known, and what to do; the commonest are named.

        `num_masks` files hold them (0: one, which is named elsewhere); the advised setting leaves out those that are
        named, or all that are unknown `together`.
        """
        known = sorted(counts, key=lambda value: (-counts[value], value))
        shown, rest = sorted(known[:_SHOWN_VALUES]), known[_SHOWN_VALUES:]
        numbers = ", ".join(f"{counts[value]:,}" for value in shown)
        pixels = f"{numbers} pixel{'s' * (sum(counts[value] for value in shown) != 1)}"
        pixels += f" in {num_masks} mask{'s' * (num_masks != 1)}" if num_masks else ""
        more = f" and {len(rest)} more with {sum(counts[value] for value in rest):,} pixels" if rest else ""
        is_one = len(known) == 1
        setting = f"--config.{self.ignore_key}={','.join([*self.ignore, *map(self.text, together or shown)])}"
        advice = f"{self._class_hint()}leave {'it' if is_one else 'them'} out: {setting}"
        if self.is_color:
            names = ", ".join(f"{(v >> 16, v >> 8 & 255, v & 255)}" for v in shown)
            hint = "; smoothed or resized labels hold many: save them without" if rest else ""
            plural = "s" * (not is_one)
            return f"the colour{plural} {names}{more} belong{'s' * is_one} to no class ({pixels}{hint}); {advice}"
        ignored = list(map(int, self.raw[self.train == types.IGNORE]))
        ids = ", ".join(str(v) for v in self.raw) if len(self.raw) <= 16 else f"{self.raw[0]}..{self.raw[-1]}"
        names = ", ".join(map(str, shown))
        return (
            f"label id{'s' * (not is_one)} {names}{more} {'is' if is_one else 'are'} out of range; "
            f"ids are {ids}, of which {ignored} are ignored ({pixels}); {advice}"
        )

    def _class_hint(self) -> str:
        is_own = self.ignore_key.startswith("data.folder")
        return f"make a class of it by data.folder.{'colors' if self.is_color else 'ids'}, or " if is_own else ""


def code_of(
    train: Mapping[int, int], *, is_color: bool = False, ignore_key: str = "data.ignore", ignore: tuple[str, ...] = ()
) -> LabelCode:
    """A code from what a pixel holds (an id, or a colour as `pack_color` gives it) -> train id."""
    raw = sorted(train)
    values = np.array([train[value] for value in raw], np.uint8)
    return LabelCode(np.array(raw, np.int32), values, is_color, ignore_key, ignore)


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


def count_values(values: np.ndarray) -> dict[int, int]:
    """How often each value occurs in integers of any shape."""
    flat = values.ravel()
    if flat.size and 0 <= flat.min() and flat.max() <= 65535:  # much faster than sorting
        counts = np.bincount(flat)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return {int(value): int(count) for value, count in zip(*np.unique(flat, return_counts=True), strict=True)}


def pack_color(color: Sequence[int]) -> int:
    """(r, g, b) as 65536 r + 256 g + b."""
    return int(np.asarray(color, np.int32) @ _PLACES)


def parse_color(text: str, key: str) -> int:
    """`#rrggbb` as 65536 r + 256 g + b; UserError, which names `key` of the config, where it is no colour."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text) is None:
        raise errors.UserError(f"{key}: {text!r} is no colour; write it as #rrggbb, for example #804080")
    return int(text[1:], 16)


def parse_id(text: str, key: str) -> int:
    """An id of a label image, 0..65535; UserError, which names `key` of the config, where it is none."""
    if re.fullmatch(r"\d{1,5}", text) is None or int(text) > 65535:
        raise errors.UserError(f"{key}: {text!r} is no id; write whole numbers in 0..65535")
    return int(text)


def colorize(labels: np.ndarray, table: types.ClassTable) -> np.ndarray:
    """Train ids u8 [...] in the colours of their classes, u8 [..., 3]; ids without a class (255 = ignore) are black."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: table.num_classes] = table.colors
    return colors[labels]


def id_table(ids: np.ndarray) -> np.ndarray:
    """A table u8 [256] from train ids to ids, u16 where an id needs it; 0 for what is no class."""
    found = np.zeros(256, np.uint8 if max(ids, default=0) <= 255 else np.uint16)
    found[: len(ids)] = ids
    return found
