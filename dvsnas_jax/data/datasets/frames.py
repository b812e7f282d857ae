"""The frames of a data set on disk: an ordered index of files, some with labels, and what is wrong with them."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.datasets import labels

SPLITS = ("train", "val", "test")
WITHHELD = "test"
"""The split whose labels are often kept by the owners of the data."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame on disk; `label` is None where it has none."""

    sequence: str
    number: int
    image: pathlib.Path
    label: pathlib.Path | None

    @property
    def paths(self) -> list[pathlib.Path]:
        """Of the image, and of the label where there is one."""
        return [path for path in (self.image, self.label) if path is not None]


def num_labelled(found: Iterable[Frame]) -> int:
    """How many have a label."""
    return sum(frame.label is not None for frame in found)


@contextlib.contextmanager
def _restorable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file of the data set; UserError where it cannot be read."""
    with _restorable(path):
        return path.read_bytes()


def num_bytes(path: pathlib.Path) -> int:
    """The size of a file of the data set; UserError where it is not there."""
    with _restorable(path):
        return path.stat().st_size


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a file or folder."""

    path: pathlib.Path
    text: str  # what, and what to do
    is_fatal: bool = True  # the split cannot be used; else it can, without that file

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclasses.dataclass
class Scan:
    """What is in one split."""

    frames: dict[tuple[str, int], Frame] = dataclasses.field(default_factory=dict)  # by (sequence, number)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # harmless, worth a line in a report
    layout: str = ""  # of this split, where it is not that of the whole folder

    @property
    def fatal(self) -> list[Problem]:
        """The problems with which the split cannot be used."""
        return [problem for problem in self.problems if problem.is_fatal]

    @property
    def ordered(self) -> tuple[Frame, ...]:
        """By (sequence, number)."""
        return tuple(self.frames[key] for key in sorted(self.frames))

    def fail(self, path: pathlib.Path, text: str, *, is_fatal: bool = True) -> None:
        """Records a problem."""
        self.problems.append(Problem(path, text, is_fatal))

    def add(self, sequence: str, number: int, image: pathlib.Path, label: pathlib.Path | None) -> None:
        """Records a frame; two files for one frame are a problem."""
        key = (sequence, number)
        if key in self.frames:
            first = self.frames[key].image.name
            self.fail(image, f"frame {number} of sequence {sequence} is {first} already; rename or remove one of them")
        else:
            self.frames[key] = Frame(sequence, number, image, label)


def history_owner(owner: Mapping[tuple[str, int], str]) -> Callable[[str, int], str]:
    """Which split a frame belongs to that is not among those that are owned, (sequence, number) -> split.

    That of the next one of its sequence, whose history it is; "" = after the last.
    """
    marks: dict[str, list[tuple[int, str]]] = {}
    for (sequence, number), split in sorted(owner.items()):
        marks.setdefault(sequence, []).append((number, split))

    def owner_fn(sequence: str, number: int) -> str:
        known = marks.get(sequence, [])
        after = bisect.bisect(known, (number, ""))
        return known[after][1] if after < len(known) else ""

    return owner_fn


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set on disk."""

    layout: str  # camvid_segnet, cityscapes_stills, ...
    frames: tuple[Frame, ...]  # ordered by (sequence, number)
    table: types.ClassTable
    code: labels.LabelCode
    frame_rate: float  # Hz, where frame numbers are consecutive

    @property
    def is_still(self) -> bool:
        """Of single frames, not of videos."""
        return self.layout.endswith("_stills")
