"""Any folder of frames with optional masks, described by the section data.folder of the configuration.

A pattern is a path below the dataset folder with the fields {split}, {sequence} and {number}, and `*`
for anything: `images/{split}/{sequence}/{number}.png`, `{sequence}_{number}.*`. A letter before the
number is skipped; {time} in its place is a time stamp with or without decimals: the frames of a video
are then numbered 0, 1, 2, ... in the order of their times. Without {split} the frames are split as
`folder_splits` says, without {sequence} they are one video. Upper case of the suffix does not matter.
"""

from __future__ import annotations

import colorsys
import dataclasses
import decimal
import pathlib
import re
import unicodedata

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.datasets import camvid_table, cityscapes_table, folder_names, folder_splits, frames, listing

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
ALL_ABSENT = "all"
"""In data.folder.absent: any class."""
_FIELDS = {
    "sequence": r"(?P<sequence>[^/]+?)",
    "number": r"[A-Za-z]?(?<!\d)(?P<number>\d+)",
    "time": r"(?<![\d.])(?P<time>\d+(?:\.\d+)?)",
}
_DEFAULT_IGNORE = ("255",)
_MAX_CLASSES = types.IGNORE
_Stamp = tuple[str, int | decimal.Decimal]
"""Sequence and number, or time, of a frame."""
_FIELD = re.compile(r"\{(\w*)\}|\*")
_SUFFIX = re.compile(r"(.*?)((?:\.\w+)?)", re.DOTALL)


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
    absent: tuple[str, ...]
    rule: folder_splits.Rule
    frame_rate: float
    also_ignored: tuple[str, ...] = ()
    """The key data.ignore, for every layout."""

    @property
    def is_unnamed(self) -> bool:
        """There are masks, and no names of their classes."""
        return bool(self.masks and not self.classes)


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
        absent=tuple(section.absent),
        rule=folder_splits.Rule(tuple(section.splits), str(section.split_by)),
        frame_rate=float(section.frame_rate),
    )


def table(chosen: Options) -> types.ClassTable:
    """Names and colours of the classes; CamVid's 11 where no class is named.

    Raises:
      UserError: names that are there twice, or colours that are none or not one a class.
    """
    if not chosen.classes:
        if chosen.colors:
            raise errors.UserError("data.folder.colors: colours without classes; name them in data.folder.classes")
        return camvid_table.TABLE
    known = _known_table(chosen.classes)
    if known is not None:
        if chosen.colors:
            raise errors.UserError(f"data.folder.colors: {chosen.classes[0]} has colours; leave them out")
        return known
    twice = sorted({name for name in chosen.classes if chosen.classes.count(name) > 1})
    if twice:
        raise errors.UserError(
            f"data.folder.classes: {twice[0]!r} is there twice; name it once, all its ids in data.folder.ids, as 1+2"
        )
    num = len(chosen.classes)
    if num > _MAX_CLASSES:
        raise errors.UserError(f"data.folder.classes: {num} classes, at most {_MAX_CLASSES} are possible; name fewer")
    if not chosen.colors:
        hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.45 + 0.25 * (i % 3), 0.95 - 0.2 * (i % 2)) for i in range(num)]
        return types.ClassTable(names=chosen.classes, colors=(np.array(hues) * 255).round().astype(np.uint8))
    if len(chosen.colors) != num:
        raise errors.UserError(f"data.folder.colors: {len(chosen.colors)} colours for {num} classes; give one a class")
    first = [frames.parse_color(text.split("+")[0], "data.folder.colors") for text in chosen.colors]
    rgb = np.array([(value >> 16, value >> 8 & 255, value & 255) for value in first], np.uint8)
    return types.ClassTable(names=chosen.classes, colors=rgb)


def _known_table(classes: tuple[str, ...]) -> types.ClassTable | None:
    """The table of a known data set, where its name stands for its classes."""
    if classes == ("camvid",):
        return camvid_table.TABLE
    return cityscapes_table.table() if classes == ("cityscapes",) else None


def code(chosen: Options) -> frames.LabelCode:
    """How the masks become train ids.

    Raises:
      UserError: masks whose classes have no names; ids or colours that are none, are there twice, or not one a class.
    """
    classes = table(chosen)
    if chosen.is_unnamed:
        raise errors.UserError(
            "data.folder.classes: the classes of the masks have no names; give one for each id 0, 1, 2, ... (other "
            "ids: data.folder.ids), as sky,road,car; camvid, or cityscapes, stands for all of its classes"
        )
    strange = [name for name in chosen.absent if name not in (*classes.names, ALL_ABSENT)]
    if strange:
        known = ", ".join(classes.names)
        raise errors.UserError(f"data.folder.absent: {strange[0]!r} is no class; use {known}, or all")
    is_color = chosen.labels == "colors"
    if is_color:
        if chosen.classes and not chosen.colors and _known_table(chosen.classes) is None:
            raise errors.UserError("data.folder.colors: masks in colours need them; give one a class, as #rrggbb")
        painted = tuple(f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in classes.colors)
        texts, key, parse_fn, what = chosen.colors or painted, "colors", frames.parse_color, "colour"
    else:
        texts = chosen.ids or tuple(map(str, range(classes.num_classes)))
        key, parse_fn, what = "ids", frames.parse_id, "id"
        if len(texts) != classes.num_classes:
            raise errors.UserError(
                f"data.folder.ids: {len(texts)} ids for {classes.num_classes} classes; give one a class, several as 1+2"
            )
    values = [[parse_fn(part.strip(), f"data.folder.{key}") for part in text.split("+")] for text in texts]
    flat = [value for group in values for value in group]
    # The default, unlike what a user names, gives way: to a class of the id 255, and to masks that hold colours.
    is_default = chosen.ignore == _DEFAULT_IGNORE and (is_color or int(_DEFAULT_IGNORE[0]) in flat)
    ignore = () if is_default else chosen.ignore
    ignored = [parse_fn(text, "data.folder.ignore") for text in ignore]
    _check_unique([*flat, *ignored], what)
    train = {value: i for i, group in enumerate(values) for value in group} | dict.fromkeys(ignored, types.IGNORE)
    return frames.code_of(train, is_color=is_color, ignore_key="data.folder.ignore", ignore=ignore)


def _check_unique(values: list[int], what: str) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        shown = f"#{twice[0]:06x}" if what == "colour" else twice[0]
        raise errors.UserError(
            f"data.folder: the {what} {shown} means two things; correct data.folder.ids, colors and ignore"
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
        found.fail(root, f"no frames; set data.folder.frames to their pattern, for example {folder_names.hint(root)}")
        return found
    stamps = _matches(root, pattern, split, found, beside=chosen.masks)
    masks: dict[_Stamp, pathlib.Path] = {}
    if chosen.masks:
        _check_fields(pattern, chosen.masks)
        masks = _matches(root, chosen.masks, split, found, key="masks", beside=pattern)
    if not stamps:
        if not any(problem.is_fatal for problem in found.problems):
            there = folder_names.example(root)
            there = f" (there is: {there})" if there else ""
            place = root / pattern.replace("{split}", split)
            found.fail(place, f"no frames match this pattern{there}; correct data.folder.frames or data.dir")
        return found
    if not chosen.frames:
        folder_names.refuse_guess(pattern, list(stamps.values()), found)
    numbers = _numbers(stamps)
    images = {numbers[stamp]: path for stamp, path in stamps.items()}
    labels = {numbers[stamp]: path for stamp, path in masks.items() if stamp in numbers}
    owner = dict.fromkeys(images, split)
    if "{split}" not in pattern:
        owner = folder_splits.owners(root, images, labels, chosen.rule, splits, found)
    elif chosen.rule.splits:
        raise errors.UserError(
            f"data.folder.splits: data.folder.frames {pattern!r} has {{split}} already; leave one of the two out"
        )
    for key, path in images.items():
        if owner.get(key) == split:
            found.add(*key, path, labels.get(key))
    if not found.frames:
        why = folder_splits.why_empty(images, chosen.rule, split, owner)
        found.fail(root, f"no frames of the split {split}; {why}")
    _add_mask_problems(root / chosen.masks.replace("{split}", split), chosen, pattern, stamps, masks, found)
    return found


def _add_mask_problems(
    place: pathlib.Path,
    chosen: Options,
    pattern: str,
    stamps: dict[_Stamp, pathlib.Path],
    masks: dict[_Stamp, pathlib.Path],
    found: listing.Scan,
) -> None:
    """Masks of no frame, and masks that are nowhere."""
    if "{split}" in chosen.masks or "{split}" not in pattern:  # else they are those of the other splits
        for stamp, path in masks.items():
            if stamp not in stamps:
                found.fail(path, "a mask without its frame; add the frame or remove it", is_fatal=False)
    if chosen.masks and not any(stamp in stamps for stamp in masks):
        found.fail(place, "no mask of any frame matches this pattern; correct data.folder.masks", is_fatal=False)


def _check_fields(pattern: str, masks: str) -> None:
    """Frames and masks are found by the same fields."""
    for field in ("{sequence}", "{time}"):
        if (field in masks) != (field in pattern):
            raise errors.UserError(
                f"data.folder.masks: {masks!r} and data.folder.frames {pattern!r} must both have {field}, or neither"
            )
    if "{split}" in masks and "{split}" not in pattern:
        raise errors.UserError(
            f"data.folder.masks: {masks!r} has {{split}}, data.folder.frames {pattern!r} has not; the frames say what "
            "is train and val: write * for it in the masks, and set data.folder.splits"
        )


def _numbers(stamps: dict[_Stamp, pathlib.Path]) -> dict[_Stamp, folder_splits.Key]:
    """Sequence and frame number of what was found: times are numbered in their order, video by video."""
    found: dict[_Stamp, folder_splits.Key] = {}
    counts: dict[str, int] = {}
    for stamp in sorted(stamps):
        sequence, value = stamp
        rank = counts.get(sequence, 0)
        counts[sequence] = rank + 1
        found[stamp] = (sequence, rank if isinstance(value, decimal.Decimal) else int(value))
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
                "use {split}, {sequence}, {number}, {time} or *"
            )
        again = name is not None and f"(?P<{name}>" in text
        text += "[^/]*" if name is None else f"(?P={name})" if again else _FIELDS[name]
        last = match.end()
    stem, suffix = _SUFFIX.fullmatch(part[last:]).groups()  # type: ignore[union-attr]  # it matches any text
    return re.compile(text + re.escape(stem) + f"(?i:{re.escape(suffix)})")


def _matches(
    root: pathlib.Path, pattern: str, split: str, found: listing.Scan, *, key: str = "frames", beside: str = ""
) -> dict[_Stamp, pathlib.Path]:
    """The files that match a pattern, that of a key, by sequence and number or time, in the order of their paths.

    Other files in the same folders are noted, but for those that the pattern `beside` matches.
    """
    if ("{number}" in pattern) == ("{time}" in pattern):
        raise errors.UserError(
            f"data.folder: the pattern {pattern!r} has no {{number}}; add it, frames need an order "
            "({time} where names are time stamps)"
        )
    parts = pattern.replace("{split}", split).strip("/").split("/")
    whole = _regex("/".join(parts))
    known = _regex(beside.replace("{split}", split).strip("/")) if beside else None
    files: dict[_Stamp, pathlib.Path] = {}
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
    folder_names.report_repeated(pattern, repeated, found, f"data.folder.{key}")
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
