"""Files in folders, for the layouts: what is there, what is wrong, and names that hold a sequence and a number."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames

_NAME = re.compile(r"^(?P<sequence>.+)_[A-Za-z]?(?P<number>\d+)$")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a file or folder.

    Attributes:
      path: of it.
      text: what is wrong and what to do.
      is_fatal: the split cannot be used; else it can, without that file.
    """

    path: pathlib.Path
    text: str
    is_fatal: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclasses.dataclass
class Scan:
    """What a layout found for one split.

    Attributes:
      frames: by (sequence, number).
      problems: in the order in which they were met.
      notes: harmless, worth a line in a report.
    """

    frames: dict[tuple[str, int], frames.Frame] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

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
            self.frames[key] = frames.Frame(sequence, number, image, label)


def images(folder: pathlib.Path, scan: Scan) -> list[pathlib.Path]:
    """The image files of a folder, by name; hidden files and other types are left out.

    Args:
      folder: that exists.
      scan: gets a problem for every image that is no file.
    """
    found = []
    for entry in entries(folder, scan):
        if os.path.splitext(entry.name)[1].lower() not in image_files.SUFFIXES:
            continue
        path = folder / entry.name
        if _is_file(entry):
            found.append(path)
        elif entry.is_symlink():
            scan.fail(path, "the link leads to no file (or in a circle); repair or remove it")
        else:
            scan.fail(path, "a folder with the name of an image; rename or remove it")
    return found


def entries(folder: pathlib.Path, scan: Scan) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, without hidden entries; a folder that cannot be listed is a problem."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        scan.fail(folder, f"the folder cannot be listed ({error.strerror}); correct its permissions")
        return []


def folders(folder: pathlib.Path, scan: Scan) -> list[pathlib.Path]:
    """The folders in a folder, by name."""
    return [folder / entry.name for entry in entries(folder, scan) if _is_folder(entry)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def parse(path: pathlib.Path, scan: Scan, *, stem: str | None = None) -> tuple[str, int] | None:
    """Sequence and frame number of `<sequence>_<number>`, a letter before the number left out; None: a problem.

    Args:
      path: of the image.
      scan: gets the problem.
      stem: the name where it is not the file's own.
    """
    match = _NAME.match(path.stem if stem is None else stem)
    if match is None:
        scan.fail(path, f"the name is not <sequence>_<frame number>{path.suffix}; rename the file")
        return None
    return match["sequence"], int(match["number"])


def lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file, without blanks at their ends, without empty ones.

    Raises:
      UserError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{path}: cannot be read as text ({error}); replace the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
