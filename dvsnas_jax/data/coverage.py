"""Which classes have pixels: what label images hold, and one rule for what is wrong with it.

`dvsnas data check` applies it to every file; before any training it is applied to as many files as it takes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import folder_layout, frames
from dvsnas_jax.data.loading import decode, store
from dvsnas_jax.data.prepared import reading

LIMIT = 256
"""Label images of a split that are read before a training, unless they look wrong."""
FEWEST = 32
"""That are read even where the first show every class: others may hold values that no class has."""
_SHOWN = 12
_WITHHELD = "test"
"""The split whose labels are often kept by the owners of the data."""


@dataclasses.dataclass
class Split:
    """What the label images of one split hold.

    Attributes:
      name: train, val or test.
      table: names of the classes.
      code: of the label images.
      num_masks: that the split has.
      num_read: of those.
      counts: pixels of each value (id or colour) in the files.
      masks: files that hold the value.
      first: the first of them.
    """

    name: str
    table: types.ClassTable
    code: frames.LabelCode
    num_masks: int
    num_read: int = 0
    counts: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    masks: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    first: dict[int, pathlib.Path] = dataclasses.field(default_factory=dict)

    def add(self, path: pathlib.Path, counts: Mapping[int, int]) -> None:
        """Adds one label image, value -> pixels."""
        self.num_read += 1
        self.counts.update(counts)
        self.masks.update(counts.keys())
        for value in counts:
            self.first.setdefault(value, path)

    @property
    def is_whole(self) -> bool:
        """Every label image was read."""
        return self.num_read == self.num_masks

    @property
    def histogram(self) -> np.ndarray:
        """Pixels of each train id, i64 [256]."""
        found = np.zeros(256, np.int64)
        for value, count in self.counts.items():
            train = self.code.train_of(value)
            if train is not None:
                found[train] += count
        return found

    def values(self, train: int | None) -> dict[int, int]:
        """The values of one train id, 255 the ignored ones, None the unknown ones: value -> pixels."""
        return {value: count for value, count in sorted(self.counts.items()) if self.code.train_of(value) == train}

    @property
    def missing(self) -> list[str]:
        """Classes without a pixel."""
        return [name for name, count in zip(self.table.names, self.histogram, strict=False) if not count]

    @property
    def is_labelled(self) -> bool:
        """Some pixel has a class."""
        return bool(self.histogram[: types.IGNORE].any())


def read(data: ml_collections.ConfigDict, split: str, *, limit: int | None = None) -> Split:
    """Counts the label images of a split on disk, in an order that is spread over it.

    Args:
      data: section of the configuration.
      split: train, val or test.
      limit: stop after so many, and after `FEWEST` where every class was met; None: all are read.

    Raises:
      UserError: the data set or a label image is not usable.
    """
    source = store.source(data, split)
    places = [i for i, frame in enumerate(source.frames) if frame.label]
    found = Split(split, source.table, source.code, len(places))
    order = np.random.default_rng(0).permutation(places).tolist()
    for path, pixels in _labels(data, split, source, order):
        found.add(path, frames.count_values(source.code.pack(pixels)))
        is_enough = found.num_read >= FEWEST and not found.missing
        if limit is not None and (is_enough or found.num_read >= limit):
            break
    return found


def has_labelled_pixel(data: ml_collections.ConfigDict, split: str, places: Sequence[int]) -> bool:
    """Whether frames of a split on disk have a pixel with a class, at the size that is trained on.

    Reads up to the first that has.

    Args:
      data: section of the configuration.
      split: train, val or test.
      places: of the frames in `store.source`.

    Raises:
      UserError: the data set or a label image is not usable.
    """
    source, size = store.source(data, split), (int(data.height), int(data.width))
    labelled = [place for place in places if source.frames[place].label]
    for path, pixels in _labels(data, split, source, labelled):
        seen = image_files.resized_nearest(pixels, size)
        if (source.code.decode(seen, str(path)) != types.IGNORE).any():
            return True
    return False


def _labels(data: ml_collections.ConfigDict, split: str, source: frames.Source, places: Sequence[int]):  # noqa: ANN202
    """Path and stored pixels of the label images of some frames, read ahead by a thread a core."""
    media = reading.of(data, split)

    def load(place: int) -> tuple[pathlib.Path, np.ndarray]:
        path = source.frames[place].label
        assert path is not None
        content = None if media is None else media.read(np.array([place], np.int32))[1][0]
        return path, decode.read_pixels(path, source.code, content)

    size = 2 * (os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(size // 2) as pool:
        for start in range(0, len(places), size):
            yield from pool.map(load, places[start : start + size])


def judge(splits: Sequence[Split], *, is_own: bool, absent: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """What is wrong with the labels of a data set, and what is worth a line.

    Args:
      splits: those with label images.
      is_own: a folder of the user's own: its ids and classes may be wrong, not its files alone.
      absent: classes that may have no pixel, or all.

    Returns:
      Problems, with which no training makes sense, and notes.
    """
    problems, notes = _unknown(splits), list[str]()
    known = [split for split in splits if split.num_masks]
    for split in known:
        if not split.is_labelled and not split.values(None):
            line = (
                f"split {split.name}: no labelled pixel in its {split.num_read} masks, they hold {shares([split])}; "
                f"{_advice(is_own)}"
            )
            (notes if split.name == _WITHHELD else problems).append(line)
    known = [split for split in known if split.is_labelled]
    if not known or problems:
        return problems, notes
    nowhere = [name for name in known[0].table.names if all(name in split.missing for split in known)]
    unexpected = [name for name in nowhere if name not in absent and folder_layout.ALL_ABSENT not in absent]
    trap = _trap(known, unexpected, is_own)
    if trap:
        return [trap], notes
    if nowhere:
        notes.append(f"{_classes(nowhere)} no pixel in any split{_of_read(known)}")
    for split in known:
        missing = [name for name in split.missing if name not in nowhere]
        if missing and split.is_whole:
            notes.append(f"{_classes(missing)} no pixel in split {split.name}")
    return problems, notes


def _trap(splits: Sequence[Split], missing: Sequence[str], is_own: bool) -> str:
    """Classes that are nowhere, where ignored ids may be theirs, or where one class is all there is; "" = neither."""
    if not missing:
        return ""
    ignored = sorted({value for split in splits for value in split.values(types.IGNORE)})
    text = splits[0].code.text
    met = splits[0].table.num_classes - len([name for name in splits[0].table.names if name in missing])
    if is_own and ignored:
        return (
            f"{_classes(missing)} no pixel in any split, and masks hold {shares(splits)}: of which "
            f"{', '.join(map(text, ignored))} {'is' if len(ignored) == 1 else 'are'} ignored; "
            f"{_setting(splits[0], missing, ignored)}, or name classes that are not there in data.folder.absent"
        )
    if met == 1:
        return (
            f"every labelled pixel is of one class, {_classes(missing)} no pixel in any split: masks hold "
            f"{shares(splits)}; {_advice(is_own)}"
        )
    return ""


def _setting(split: Split, missing: Sequence[str], ignored: Sequence[int]) -> str:
    """The key that gives the ignored values to the missing classes."""
    key = "colors" if split.code.is_color else "ids"
    if len(missing) != len(ignored):
        return f"set data.folder.{key} to those that the classes have"
    left = list(map(split.code.text, ignored))
    own = {name: _own_values(split, i) for i, name in enumerate(split.table.names)}
    values = [left.pop(0) if name in missing else own[name] for name in split.table.names]
    return f"set data.folder.{key}, as {','.join(values)}"


def _own_values(split: Split, train: int) -> str:
    """How the config writes the values of a class now."""
    raw = split.code.raw[split.code.train == train]
    return "+".join(split.code.text(int(value)) for value in raw)


def _unknown(splits: Sequence[Split]) -> list[str]:
    """A line for each value that no class has, the commonest first; one for the rest of many."""
    counts: collections.Counter[int] = collections.Counter()
    masks: collections.Counter[int] = collections.Counter()
    first: dict[int, pathlib.Path] = {}
    for split in splits:
        for value, count in split.values(None).items():
            counts[value] += count
            masks[value] += split.masks[value]
            first.setdefault(value, split.first[value])
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    shown = sorted(ranked[:_SHOWN])
    groups = [[value] for value in shown] + ([ranked[_SHOWN:]] if len(ranked) > _SHOWN else [])
    code = splits[0].code if splits else None
    return [
        f"{first[group[0]]}: " + code.unknown(
            {value: counts[value] for value in group}, num_masks=max(masks[value] for value in group), together=shown
        )
        for group in groups
        if code is not None
    ]  # fmt: skip


def shares(splits: Sequence[Split]) -> str:
    """What label images hold, as text: `0 (86.0 %), 255 (14.0 %)`, the commonest values."""
    counts: collections.Counter[int] = collections.Counter()
    for split in splits:
        counts.update(split.counts)
    total = max(sum(counts.values()), 1)
    common = sorted(value for value, _ in counts.most_common(_SHOWN))
    shown = ", ".join(f"{splits[0].code.text(value)} ({100 * counts[value] / total:.1f} %)" for value in common)
    return shown + (f" and {len(counts) - len(common)} more" if len(counts) > len(common) else "")


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"class {shown} has" if len(names) == 1 else f"classes {shown} have"


def _of_read(splits: Sequence[Split]) -> str:
    """Says where not every label image was read."""
    if all(split.is_whole for split in splits):
        return ""
    read, total = sum(split.num_read for split in splits), sum(split.num_masks for split in splits)
    return f" ({read} of {total:,} masks read; `dvsnas data check` reads all)"


def _advice(is_own: bool) -> str:
    keys = "data.folder.ids, data.folder.ignore" if is_own else "data.ignore"
    return f"correct the masks, or {keys}"
