"""What the names of files in a folder of one's own say: two files for one frame, and what a pattern could be."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import listing

_DIGITS = re.compile(r"\d+")
_STAMP = re.compile(r"\d+\.\d+$")
_LOSSY = (".jpg", ".jpeg")
_MAX_FOLDERS = 1000
"""That are looked into for an example."""


def report_repeated(
    pattern: str, pairs: Sequence[tuple[pathlib.Path, pathlib.Path]], found: listing.Scan, key: str
) -> None:
    """Says why two files are one frame; a problem for each reason, and for each file that is really there twice.

    Args:
      pattern: of the files.
      pairs: (file that was met first, file of the same frame).
      found: gets the problems.
      key: of the config that holds the pattern.
    """
    folder = pattern.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    same_stem = [pair for pair in pairs if pair[0].stem == pair[1].stem]
    if same_stem:
        a, b = sorted(same_stem[0], key=lambda path: path.suffix.lower() not in _LOSSY)
        field = pattern.rpartition("/")[2].rpartition(".")[0]
        field = field if "." in pattern.rpartition("/")[2] else "{number}"
        field = "{number}" if a.stem.isdigit() and "{number}" in field else field
        found.fail(
            same_stem[0][1],
            f"the same name as {same_stem[0][0].name} ({_count(same_stem)}); where one is the frame and the other its "
            f"mask, give data.folder.frames={prefix}{field}{a.suffix} and data.folder.masks={prefix}{field}{b.suffix}",
        )
    several = [pair for pair in pairs if pair not in same_stem and not _is_padded(*pair)]
    if several:
        first, again = several[0]
        found.fail(
            again,
            f"names hold more than one number, and this one reads as the frame of {first.name} ({_count(several)}); "
            f"give {key} the pattern of the names, for example {prefix}{_pattern_of(first, again)}",
        )
    for first, again in pairs:
        if (first, again) not in same_stem and _is_padded(first, again):
            found.fail(again, f"the same frame number as {first.name}; rename one of the two, or remove it")


def refuse_guess(pattern: str, paths: Sequence[pathlib.Path], found: listing.Scan) -> None:
    """Decimal time stamps have two numbers, of which a guessed pattern takes one: the user has to say what they are."""
    stamps = [path for path in paths if _STAMP.search(path.stem)]
    if stamps and not found.problems:
        prefix = f"{folder}/" if (folder := pattern.rpartition("/")[0]) else ""
        text = _STAMP.sub("{time}", stamps[-1].stem) + stamps[-1].suffix
        found.fail(
            stamps[-1],
            f"names hold more than one number ({len(stamps)} such files); give data.folder.frames the pattern of the "
            f"names, for example {prefix}{text}",
        )


def _count(pairs: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> str:
    return "one such file" if len(pairs) == 1 else f"{len(pairs)} such files"


def _is_padded(a: pathlib.Path, b: pathlib.Path) -> bool:
    """The names differ in leading zeros, or in what is no number at all."""
    numbers = [[int(digits) for digits in _DIGITS.findall(path.stem)] for path in (a, b)]
    return numbers[0] == numbers[1]


def _pattern_of(a: pathlib.Path, b: pathlib.Path) -> str:
    """A pattern of the last part of two paths in which they are different frames."""
    if _STAMP.fullmatch(a.stem) and _STAMP.fullmatch(b.stem):
        return f"{{time}}{a.suffix}"
    spans = list(zip(_DIGITS.finditer(a.stem), _DIGITS.finditer(b.stem), strict=False))
    places = [x.span() for x, y in spans if int(x[0]) != int(y[0])] or [spans[-1][0].span()]
    start, end = places[0]
    return f"{a.stem[:start]}{{number}}{a.stem[end:]}{a.suffix}"


def example(root: pathlib.Path) -> str:
    """The path of an image below a folder, or else the types of the files that are there; "" where there are none."""
    types: dict[str, int] = {}
    for place, (path, folders, files) in enumerate(os.walk(root)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if place > _MAX_FOLDERS:
            break
        for name in sorted(name for name in files if not name.startswith(".")):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in image_files.SUFFIXES:
                return (pathlib.Path(path) / name).relative_to(root).as_posix()
            types[suffix or name] = types.get(suffix or name, 0) + 1
    if not types:
        return ""
    shown = ", ".join(sorted(types, key=lambda suffix: -types[suffix])[:4])
    return f"files of the type {shown}; images that can be read: {', '.join(image_files.SUFFIXES)}"


def hint(root: pathlib.Path) -> str:
    """Patterns that may fit, and what is there."""
    there = example(root)
    return (
        "images/{split}/{sequence}/{number}.png, or {sequence}/{number}.png and data.folder.splits"
        f"{f' (there is: {there})' if there else ''}"
    )
