"""Patterns of the files in a folder of one's own: matching, guessing, and advice from the names that are there.

A pattern is a path below the dataset folder with the fields {split}, {sequence} and {number}, and `*`
for anything: `images/{split}/{sequence}/{number}.png`, `{sequence}_{number}.*`. A letter before the
number is skipped; {time} in its place is a time stamp with or without decimals: the frames of a video
are then numbered 0, 1, 2, ... in the order of their times. Without {sequence} all frames are one video.
Upper case of the suffix does not matter.
"""

from __future__ import annotations

import decimal
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames, listing

GUESSES = (
    "{split}/{sequence}/{number}.*",
    "{split}/{sequence}_{number}.*",
    "{split}/*{number}.*",
    "{sequence}/{number}.*",
    "{sequence}_{number}.*",
    "*{number}.*",
)
"""Patterns that are tried, in this order, where none is given; the one with most frames is taken."""
ONE_VIDEO = "video"
Stamp = tuple[str, int | decimal.Decimal]
"""Sequence and number, or time, of a frame."""
_FIELDS = {
    "sequence": r"(?P<sequence>[^/]+?)",
    "number": r"[A-Za-z]?(?<!\d)(?P<number>\d+)",
    "time": r"(?<![\d.])(?P<time>\d+(?:\.\d+)?)",
}
_FIELD = re.compile(r"\{(\w*)\}|\*")
_SUFFIX = re.compile(r"(.*?)((?:\.\w+)?)", re.DOTALL)
_DIGITS = re.compile(r"\d+")
_STAMP = re.compile(r"\d+\.\d+$")
_LOSSY = (".jpg", ".jpeg")
_MAX_FOLDERS = 1000
"""That are looked into for an example."""
_Pair = tuple[pathlib.Path, pathlib.Path]
"""The file that was met first, and another of the same frame."""


def guess(root: pathlib.Path) -> str:
    """The pattern of `GUESSES` that most files match; "" where none matches any."""
    counts = {}
    for pattern in GUESSES:
        splits = frames.SPLITS if "{split}" in pattern else frames.SPLITS[:1]
        counts[pattern] = sum(len(matches(root, pattern, split, frames.Scan())) for split in splits)
    best = max(counts, key=lambda pattern: counts[pattern])
    return best if counts[best] else ""


def matches(
    root: pathlib.Path, pattern: str, split: str, found: frames.Scan, *, key: str = "frames", beside: str = ""
) -> dict[Stamp, pathlib.Path]:
    """The files that match a pattern, that of a key, by sequence and number or time, in the order of their paths.

    Other files in the same folders are noted, but for those that the pattern `beside` matches.

    Raises:
      UserError: a pattern that makes no sense.
    """
    if ("{number}" in pattern) == ("{time}" in pattern):
        raise errors.UserError(
            f"data.folder: the pattern {pattern!r} has no {{number}}; add it, frames need an order "
            "({time} where names are time stamps)"
        )
    parts = pattern.replace("{split}", split).strip("/").split("/")
    whole = _regex("/".join(parts))
    known = _regex(beside.replace("{split}", split).strip("/")) if beside else None
    files: dict[Stamp, pathlib.Path] = {}
    others, repeated = [], []
    for path in _walk(root, [_regex(part) for part in parts], found):
        name = path.relative_to(root).as_posix()
        match = whole.fullmatch(name)
        if match is None:
            others += [] if known is not None and known.fullmatch(name) else [path]
            continue
        groups = match.groupdict()
        # Names may write an accent in two ways, frames and masks each in its own.
        sequence = unicodedata.normalize("NFC", groups.get("sequence", ONE_VIDEO))
        stamp = (sequence, decimal.Decimal(groups["time"]) if "time" in groups else int(groups["number"]))
        if stamp in files:
            repeated.append((files[stamp], path))
        else:
            files[stamp] = path
    _report_repeated(pattern, repeated, found, f"data.folder.{key}")
    if files and others:
        found.notes.append(f"{others[0]}: does not match the pattern {pattern} ({len(others)} such files are unused)")
    return files


def _regex(part: str) -> re.Pattern[str]:
    """What a piece of a pattern matches."""
    text, last = "", 0
    for match in _FIELD.finditer(part):
        text += re.escape(part[last : match.start()])
        name = match[1]
        if name is not None and name not in _FIELDS:
            raise errors.UserError(
                f"data.folder: unknown field {{{name}}} in the pattern {part!r}; "
                "use {split}, {sequence}, {number}, {time} or *"
            )
        again = name is not None and f"(?P<{name}>" in text
        text += "[^/]*" if name is None else f"(?P={name})" if again else _FIELDS[name]
        last = match.end()
    stem, suffix = _SUFFIX.fullmatch(part[last:]).groups()  # type: ignore[union-attr]  # it matches any text
    return re.compile(text + re.escape(stem) + f"(?i:{re.escape(suffix)})")


def _walk(folder: pathlib.Path, parts: list[re.Pattern[str]], found: frames.Scan) -> list[pathlib.Path]:
    """The images as deep as the pattern goes, so that links in a circle do no harm."""
    if not folder.is_dir():
        return []
    if len(parts) == 1:
        return listing.images(folder, found)
    below = [path for path in listing.folders(folder, found) if parts[0].fullmatch(path.name)]
    return [file for path in below for file in _walk(path, parts[1:], found)]


def _report_repeated(pattern: str, pairs: Sequence[_Pair], found: frames.Scan, key: str) -> None:
    """Says why two files are one frame; a problem for each reason, and for each file that is really there twice."""
    prefix, last = _prefix(pattern), pattern.rpartition("/")[2]
    same_stem = [pair for pair in pairs if pair[0].stem == pair[1].stem]
    if same_stem:
        a, b = sorted(same_stem[0], key=lambda path: path.suffix.lower() not in _LOSSY)
        field = last.rpartition(".")[0] if "." in last else "{number}"
        field = "{number}" if a.stem.isdigit() and "{number}" in field else field
        found.fail(
            same_stem[0][1],
            f"the same name as {same_stem[0][0].name} ({_count(same_stem)}); where one is the frame and the other its "
            f"mask, give data.folder.frames={prefix}{field}{a.suffix} and data.folder.masks={prefix}{field}{b.suffix}",
        )
    others = [pair for pair in pairs if pair not in same_stem]
    several = [pair for pair in others if not _is_padded(*pair)]
    if several:
        first, again = several[0]
        found.fail(
            again,
            f"names hold more than one number, and this one reads as the frame of {first.name} ({_count(several)}); "
            f"give {key} the pattern of the names, for example {prefix}{_pattern_of(first, again)}",
        )
    for first, again in others:
        if _is_padded(first, again):
            found.fail(again, f"the same frame number as {first.name}; rename one of the two, or remove it")


def refuse_guess(pattern: str, paths: Sequence[pathlib.Path], found: frames.Scan) -> None:
    """Decimal time stamps have two numbers, of which a guessed pattern takes one: the user has to say what they are."""
    stamps = [path for path in paths if _STAMP.search(path.stem)]
    if stamps and not found.problems:
        text = _prefix(pattern) + _STAMP.sub("{time}", stamps[-1].stem) + stamps[-1].suffix
        found.fail(
            stamps[-1],
            f"names hold more than one number ({len(stamps)} such files); give data.folder.frames the pattern of the "
            f"names, for example {text}",
        )


def _prefix(pattern: str) -> str:
    """The folders of a pattern, up to the last slash."""
    folder = pattern.rpartition("/")[0]
    return f"{folder}/" if folder else ""


def _count(pairs: Sequence[_Pair]) -> str:
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
    """Says what is there: the path of an image below a folder, or else the types of the files; "" where none are."""
    types: dict[str, int] = {}
    for place, (path, folders, files) in enumerate(os.walk(root)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if place > _MAX_FOLDERS:
            break
        for name in sorted(name for name in files if not name.startswith(".")):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in image_files.SUFFIXES:
                return f" (there is: {(pathlib.Path(path) / name).relative_to(root).as_posix()})"
            types[suffix or name] = types.get(suffix or name, 0) + 1
    if not types:
        return ""
    shown = ", ".join(sorted(types, key=lambda suffix: -types[suffix])[:4])
    return f" (there is: files of the type {shown}; images that can be read: {', '.join(image_files.SUFFIXES)})"


def hint(root: pathlib.Path) -> str:
    """Patterns that may fit, and what is there."""
    patterns = "images/{split}/{sequence}/{number}.png, or {sequence}/{number}.png and data.folder.splits"
    return f"{patterns}{example(root)}"
