"""Any folder of frames with optional masks, described by the section data.folder of the configuration.

A pattern is a path below the dataset folder with the fields {split}, {sequence} and {number}, and `*`
for anything: `images/{split}/{sequence}/{number}.png`, `{sequence}_{number}.*`. A letter before the
number is skipped. Without {split} all files are in every split, without {sequence} they are one video.
"""

from __future__ import annotations

import colorsys
import dataclasses
import pathlib
import re

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import camvid_table, frames, listing

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
_FIELDS = {"sequence": r"(?P<sequence>[^/]+?)", "number": r"[A-Za-z]?(?<!\d)(?P<number>\d+)"}
_FIELD = re.compile(r"\{(\w*)\}|\*")


@dataclasses.dataclass(frozen=True)
class Options:
    """The section data.folder, checked for its types (hashable). See `core.defaults` for the meaning of a field."""

    frames: str
    masks: str
    labels: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    ids: tuple[str, ...]
    ignore: tuple[str, ...]
    frame_rate: float


def options(section: ml_collections.ConfigDict) -> Options:
    """The options of a configuration."""
    return Options(
        frames=str(section.frames),
        masks=str(section.masks),
        labels=str(section.labels),
        classes=tuple(section.classes),
        colors=tuple(section.colors),
        ids=tuple(section.ids),
        ignore=tuple(section.ignore),
        frame_rate=float(section.frame_rate),
    )


def table(chosen: Options) -> types.ClassTable:
    """Names and colours of the classes; CamVid's 11 where no class is named.

    Raises:
      UserError: colours that are none, or not one a class.
    """
    if not chosen.classes:
        if chosen.colors:
            raise errors.UserError("data.folder.colors: colours without classes; name them in data.folder.classes")
        return camvid_table.TABLE
    num = len(chosen.classes)
    if not chosen.colors:
        hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.45 + 0.25 * (i % 3), 0.95 - 0.2 * (i % 2)) for i in range(num)]
        return types.ClassTable(names=chosen.classes, colors=(np.array(hues) * 255).round().astype(np.uint8))
    if len(chosen.colors) != num:
        raise errors.UserError(f"data.folder.colors: {len(chosen.colors)} colours for {num} classes; give one a class")
    return types.ClassTable(
        names=chosen.classes, colors=np.array([_color(c, "colors") for c in chosen.colors], np.uint8)
    )


def code(chosen: Options) -> frames.LabelCode:
    """How the masks become train ids.

    Raises:
      UserError: ids or colours that are none, are there twice, or not one a class.
    """
    classes = table(chosen)
    if chosen.labels == "colors":
        if chosen.classes and not chosen.colors:
            raise errors.UserError("data.folder.colors: masks in colours need them; give one a class, as #rrggbb")
        rows = [((int(r), int(g), int(b)), i) for i, (r, g, b) in enumerate(classes.colors)]
        rows += [(_color(text, "ignore"), types.IGNORE) for text in chosen.ignore]
        _check_unique([color for color, _ in rows], "colour")
        return frames.color_code(rows)
    ids = [_id(text, "ids") for text in chosen.ids] or list(range(classes.num_classes))
    if len(ids) != classes.num_classes:
        raise errors.UserError(f"data.folder.ids: {len(ids)} ids for {classes.num_classes} classes; give one a class")
    ignored = [_id(text, "ignore") for text in chosen.ignore]
    _check_unique([*ids, *ignored], "id")
    return frames.id_code([*((value, i) for i, value in enumerate(ids)), *((value, types.IGNORE) for value in ignored)])


def _color(text: str, key: str) -> tuple[int, int, int]:
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text) is None:
        raise errors.UserError(f"data.folder.{key}: {text!r} is no colour; write it as #rrggbb, for example #804080")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _id(text: str, key: str) -> int:
    if re.fullmatch(r"\d{1,5}", text) is None or int(text) > 65535:
        raise errors.UserError(f"data.folder.{key}: {text!r} is no id; write whole numbers in 0..65535")
    return int(text)


def _check_unique(values: list, what: str) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise errors.UserError(
            f"data.folder: the {what} {twice[0]} means two things; correct data.folder.ids, colors and ignore"
        )


def guess(root: pathlib.Path, splits: tuple[str, ...]) -> str:
    """The pattern of `GUESSES` that most files match; "" where none matches any."""
    counts = {}
    for pattern in GUESSES:
        names = splits if "{split}" in pattern else splits[:1]
        counts[pattern] = sum(len(_matches(root, pattern, split, listing.Scan())) for split in names)
    best = max(counts, key=lambda pattern: counts[pattern])
    return best if counts[best] else ""


def scan(root: pathlib.Path, split: str, chosen: Options, splits: tuple[str, ...]) -> listing.Scan:
    """Looks at one split.

    Args:
      root: of the dataset.
      split: one of `splits`.
      chosen: the options.
      splits: all names of splits.

    Raises:
      UserError: a pattern that makes no sense.
    """
    found = listing.Scan()
    pattern = chosen.frames or guess(root, splits)
    if not pattern:
        found.fail(root, "no frames; set data.folder.frames to their pattern, for example {sequence}/{number}.png")
        return found
    images = _matches(root, pattern, split, found)
    masks: dict[tuple[str, int], pathlib.Path] = {}
    if chosen.masks:
        if ("{sequence}" in chosen.masks) != ("{sequence}" in pattern):
            raise errors.UserError(
                f"data.folder.masks: {chosen.masks!r} and data.folder.frames {pattern!r} must both have {{sequence}}, "
                "or neither"
            )
        masks = _matches(root, chosen.masks, split, found)
    if not images:
        place = root / pattern.replace("{split}", split)
        found.fail(place, "no frames match this pattern; correct data.folder.frames or data.dir")
        return found
    for key, path in images.items():
        found.add(*key, path, masks.pop(key, None))
    for path in masks.values():
        found.fail(path, "a mask without its frame; add the frame or remove it", is_fatal=False)
    if chosen.masks and not any(frame.label for frame in found.frames.values()):
        place = root / chosen.masks.replace("{split}", split)
        found.fail(place, "no mask of any frame matches this pattern; correct data.folder.masks", is_fatal=False)
    return found


def _regex(part: str) -> re.Pattern[str]:
    """What a piece of a pattern matches.

    Raises:
      UserError: an unknown field.
    """
    text, last = "", 0
    for match in _FIELD.finditer(part):
        text += re.escape(part[last : match.start()])
        name = match[1]
        if name is not None and name not in _FIELDS:
            raise errors.UserError(
                f"data.folder: unknown field {{{name}}} in the pattern {part!r}; "
                "use {split}, {sequence}, {number} or *"
            )
        again = name is not None and f"(?P<{name}>" in text
        text += "[^/]*" if name is None else f"(?P={name})" if again else _FIELDS[name]
        last = match.end()
    return re.compile(text + re.escape(part[last:]))


def _matches(root: pathlib.Path, pattern: str, split: str, found: listing.Scan) -> dict[tuple[str, int], pathlib.Path]:
    """The files that match a pattern, by (sequence, number), in the order of their paths."""
    if "{number}" not in pattern:
        raise errors.UserError(f"data.folder: the pattern {pattern!r} has no {{number}}; add it, frames need an order")
    parts = pattern.replace("{split}", split).strip("/").split("/")
    whole = _regex("/".join(parts))
    files: dict[tuple[str, int], pathlib.Path] = {}
    others = []
    for path in _walk(root, [_regex(part) for part in parts], found):
        match = whole.fullmatch(path.relative_to(root).as_posix())
        if match is None:
            others.append(path)
            continue
        key = (match.groupdict().get("sequence", ONE_VIDEO), int(match["number"]))
        if key in files:
            found.fail(path, f"frame {key[1]} of sequence {key[0]} is {files[key].name} already; remove one of the two")
        else:
            files[key] = path
    if files and others:
        found.notes.append(f"{others[0]}: does not match the pattern {pattern} ({len(others)} such files are unused)")
    return files


def _walk(folder: pathlib.Path, parts: list[re.Pattern[str]], found: listing.Scan) -> list[pathlib.Path]:
    """The images as deep as the pattern goes, so that links in a circle do no harm."""
    if not folder.is_dir():
        return []
    if len(parts) == 1:
        return listing.images(folder, found)
    below = [path for path in listing.folders(folder, found) if parts[0].fullmatch(path.name)]
    return [file for path in below for file in _walk(path, parts[1:], found)]


def has_split(chosen: Options, root: pathlib.Path, splits: tuple[str, ...]) -> bool:
    """The pattern of the frames tells splits apart."""
    return "{split}" in (chosen.frames or guess(root, splits))
