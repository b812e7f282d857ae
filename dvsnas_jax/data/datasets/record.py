"""What the program knows of a data set: one `Dataset` record each, in a file of its own in this room.

The modules of the room that state a `RECORD` are its members; everything else asks the record, never which one it is.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import frames, labels

ALL_ABSENT = "all"
"""In data.folder.absent: any class."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the configuration says of files (hashable): the section data.folder, key by key, see `core.defaults`.

    Every data set gets it, and may go by it; `also_ignored`, which is data.ignore, holds for all.
    """

    frames: str
    masks: str
    splits: tuple[str, ...]
    split_by: str
    labels: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    ids: tuple[str, ...]
    ignore: tuple[str, ...]
    absent: tuple[str, ...]
    frame_rate: float
    also_ignored: tuple[str, ...] = ()

    @property
    def is_unnamed(self) -> bool:
        """There are masks, and no names of their classes."""
        return bool(self.masks and not self.classes)

    def may_be_absent(self, name: str) -> bool:
        """A class that may have no pixel in any mask."""
        return name in self.absent or ALL_ABSENT in self.absent


@dataclasses.dataclass(frozen=True)
class Files:
    """How a data set lies on disk."""

    expected: str  # what a folder should hold, for messages
    layouts: tuple[str, ...]  # the forms that it comes in; the first where a folder does not show which
    recognise: Callable[[pathlib.Path], str]  # folder -> its layout, "" where it does not look like this data set
    scan: Callable[[pathlib.Path, str, str, Options], frames.Scan]  # folder, split, layout, options -> what is there
    code: Callable[[str, Options], labels.LabelCode]  # layout, options -> what the pixels of label files mean
    # folder, layout, options -> the splits that are there; None: those with frames, or else train
    present: Callable[[pathlib.Path, str, Options], list[str]] | None = None
    listed: tuple[str, ...] = ()  # layouts whose splits are lists of names, so that one may turn out to have no frame
    frame_rate: float | None = None  # Hz, of consecutive frame numbers; None: as data.folder says
    variable: str = ""  # environment variable that holds the folder where data.dir is empty


@dataclasses.dataclass(frozen=True)
class Submission:
    """How the owners of a data set want predictions, and how they score them."""

    file_name: Callable[[frames.Frame, bool], str]  # frame, whether it holds colours -> name of its prediction
    # folder of predictions, label files -> {"miou": share, "iou": class -> share, None where it is absent}
    score: Callable[[str | os.PathLike[str], Sequence[pathlib.Path]], dict[str, Any]]


class World(Protocol):
    """One split of a data set that is computed; hashable. `height`, `width`: of its frames, pixels."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    def __hash__(self) -> int: ...

    def clip(self, index: int, num_frames: int, *, with_flow: bool = True) -> types.Sequence:
        """The first frames of the clip number `index`; the same frames whatever their number."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set; either it lies in files, or its clips are computed."""

    name: str  # value of data.name
    title: str  # for descriptions
    classes: Callable[[Options], types.ClassTable]  # names and colours of the train ids; the disk is not looked at
    order: int = 0  # of the table; the first that recognises a folder has it
    files: Files | None = None  # on disk
    world: Callable[[int, str, int, int, float], World] | None = None  # computed: seed, split, height, width, degrade
    ids: Callable[[Options], tuple[int, ...]] = lambda options: ()  # of each class in label files; () = 0, 1, 2, ...
    # What a pixel of a label file holds -> the names of what it shows, best first, for runs with other classes
    # (`class_names`); None: its classes have no names but their own.
    raw_names: Callable[[Options], Mapping[int, tuple[str, ...]]] | None = None
    submission: Submission | None = None  # None: nobody scores it
    is_own: bool = False  # the user's own files: classes and ids are those of data.folder, and may be wrong
    num_classes: int | None = None  # where their names need a package that may be missing

    @property
    def is_computed(self) -> bool:
        """It lies in no files."""
        return self.files is None

    @property
    def on_disk(self) -> Files:
        """`files`, of a data set that has some."""
        assert self.files is not None, f"{self.name} is computed"
        return self.files


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of a data set, recognised: its layout and the options that it is read with."""

    path: pathlib.Path
    dataset: Dataset
    layout: str
    options: Options

    def present(self) -> list[str]:
        """The splits that it has, by looking for their folders or lists."""
        present_fn = self.dataset.on_disk.present
        if present_fn is not None:
            return present_fn(self.path, self.layout, self.options)
        return [split for split in frames.SPLITS if self.scan(split).frames] or ["train"]

    def scan(self, split: str) -> frames.Scan:
        """Looks at one split, whatever is wrong with it."""
        return self.dataset.on_disk.scan(self.path, split, self.layout, self.options)

    def source(self, scan: frames.Scan) -> frames.Source:
        """What `scan` found, with the classes, their code and the rate; UserError where options make no sense."""
        rate = self.dataset.on_disk.frame_rate
        return frames.Source(
            layout=scan.layout or self.layout,
            frames=scan.ordered,
            table=self.dataset.classes(self.options),
            code=labels.with_ignored(self.dataset.on_disk.code(self.layout, self.options), self.options.also_ignored),
            frame_rate=self.options.frame_rate if rate is None else rate,
        )
