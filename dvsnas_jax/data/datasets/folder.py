"""Any folder of frames with optional masks, described by the section data.folder of the configuration.

The frames are found by a pattern (`folder_patterns`); where it has no {split} they are split as `folder_splits` says.
"""

from __future__ import annotations

import colorsys
import decimal
import itertools
import pathlib

import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import camvid, folder_patterns, folder_splits, frames, labels, record

_DEFAULT_IGNORE = ("255",)
_MAX_CLASSES = types.IGNORE


def _classes(options: record.Options) -> types.ClassTable:
    """Names and colours of the classes; CamVid's 11 where no class is named.

    Raises:
      UserError: names that are there twice, or colours that are none or not one a class.
    """
    names, colors = options.classes, options.colors
    if not names:
        if colors:
            raise errors.UserError("data.folder.colors: colours without classes; name them in data.folder.classes")
        return camvid.CLASSES
    known = _known(names)
    if known is not None:
        if colors:
            raise errors.UserError(f"data.folder.colors: {names[0]} has colours; leave them out")
        return known.classes(options)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.UserError(
            f"data.folder.classes: {twice[0]!r} is there twice; name it once, all its ids in data.folder.ids, as 1+2"
        )
    num = len(names)
    if num > _MAX_CLASSES:
        raise errors.UserError(f"data.folder.classes: {num} classes, at most {_MAX_CLASSES} are possible; name fewer")
    if not colors:
        hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.45 + 0.25 * (i % 3), 0.95 - 0.2 * (i % 2)) for i in range(num)]
        return types.ClassTable(names=names, colors=(np.array(hues) * 255).round().astype(np.uint8))
    if len(colors) != num:
        raise errors.UserError(f"data.folder.colors: {len(colors)} colours for {num} classes; give one a class")
    first = [labels.parse_color(text.split("+")[0], "data.folder.colors") for text in colors]
    rgb = np.array([(value >> 16, value >> 8 & 255, value & 255) for value in first], np.uint8)
    return types.ClassTable(names=names, colors=rgb)


def _known(names: tuple[str, ...]) -> record.Dataset | None:
    """The data set on disk whose name stands for its classes."""
    known = datasets.on_disk().get(names[0]) if len(names) == 1 else None
    return None if known is None or known.is_own else known


def _code(layout: str, options: record.Options) -> labels.LabelCode:
    """How the masks become train ids.

    Raises:
      UserError: masks whose classes have no names; ids or colours that are none, are there twice, or not one a class.
    """
    table, is_color = _classes(options), options.labels == "colors"
    if options.is_unnamed:
        known = ", or ".join(name for name, each in datasets.on_disk().items() if not each.is_own)
        raise errors.UserError(
            "data.folder.classes: the classes of the masks have no names; give one for each id 0, 1, 2, ... (other "
            f"ids: data.folder.ids), as sky,road,car; {known}, stands for all of its classes"
        )
    strange = [name for name in options.absent if name not in (*table.names, record.ALL_ABSENT)]
    if strange:
        known = ", ".join(table.names)
        raise errors.UserError(f"data.folder.absent: {strange[0]!r} is no class; use {known}, or all")
    if is_color:
        if options.classes and not options.colors and _known(options.classes) is None:
            raise errors.UserError("data.folder.colors: masks in colours need them; give one a class, as #rrggbb")
        painted = tuple("#{:02x}{:02x}{:02x}".format(*color) for color in table.colors.tolist())
        texts, key, parse_fn, what = options.colors or painted, "colors", labels.parse_color, "colour"
    else:
        texts = options.ids or tuple(map(str, range(table.num_classes)))
        key, parse_fn, what = "ids", labels.parse_id, "id"
        if len(texts) != table.num_classes:
            raise errors.UserError(
                f"data.folder.ids: {len(texts)} ids for {table.num_classes} classes; give one a class, several as 1+2"
            )
    groups = [[parse_fn(part.strip(), f"data.folder.{key}") for part in text.split("+")] for text in texts]
    values = [value for group in groups for value in group]
    # The default, unlike what a user names, gives way: to a class of the id 255, and to masks that hold colours.
    is_default = options.ignore == _DEFAULT_IGNORE and (is_color or int(_DEFAULT_IGNORE[0]) in values)
    ignore = () if is_default else options.ignore
    ignored = [parse_fn(text, "data.folder.ignore") for text in ignore]
    values += ignored
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        shown = f"#{twice[0]:06x}" if is_color else twice[0]
        raise errors.UserError(
            f"data.folder: the {what} {shown} means two things; correct data.folder.ids, colors and ignore"
        )
    train = {value: i for i, group in enumerate(groups) for value in group} | dict.fromkeys(ignored, types.IGNORE)
    return labels.code_of(train, is_color=is_color, ignore_key="data.folder.ignore", ignore=ignore)


def _ids(options: record.Options) -> tuple[int, ...]:
    """Those of data.folder.ids; masks of colours alone get 0, 1, 2, ..."""
    return tuple(int(text.split("+")[0]) for text in options.ids) if options.labels == "ids" else ()


def _scan(root: pathlib.Path, split: str, layout: str, options: record.Options) -> frames.Scan:
    """Looks at one split; UserError where a pattern makes no sense."""
    found = frames.Scan()
    pattern = options.frames or folder_patterns.guess(root)
    if not pattern:
        hint = folder_patterns.hint(root)
        found.fail(root, f"no frames; set data.folder.frames to their pattern, for example {hint}")
        return found
    stamps = folder_patterns.matches(root, pattern, split, found, beside=options.masks)
    masks: dict[folder_patterns.Stamp, pathlib.Path] = {}
    if options.masks:
        _check_fields(pattern, options.masks)
        masks = folder_patterns.matches(root, options.masks, split, found, key="masks", beside=pattern)
    if not stamps:
        if not found.fatal:
            text = f"no frames match this pattern{folder_patterns.example(root)}"
            found.fail(root / pattern.replace("{split}", split), f"{text}; correct data.folder.frames or data.dir")
        return found
    if not options.frames:
        folder_patterns.refuse_guess(pattern, list(stamps.values()), found)
    numbers = _numbers(stamps)
    images = {numbers[stamp]: path for stamp, path in stamps.items()}
    labelled = {numbers[stamp]: path for stamp, path in masks.items() if stamp in numbers}
    owner = dict.fromkeys(images, split)
    if "{split}" not in pattern:
        owner = folder_splits.owners(root, images, labelled, options, found)
    elif options.splits:
        raise errors.UserError(
            f"data.folder.splits: data.folder.frames {pattern!r} has {{split}} already; leave one of the two out"
        )
    for key, path in images.items():
        if owner.get(key) == split:
            found.add(*key, path, labelled.get(key))
    if not found.frames:
        found.fail(root, f"no frames of the split {split}; {folder_splits.why_empty(images, options, split, owner)}")
    if "{split}" in options.masks or "{split}" not in pattern:  # else they are those of the other splits
        for stamp, path in masks.items():
            if stamp not in stamps:
                found.fail(path, "a mask without its frame; add the frame or remove it", is_fatal=False)
    if options.masks and not labelled:
        place = root / options.masks.replace("{split}", split)
        found.fail(place, "no mask of any frame matches this pattern; correct data.folder.masks", is_fatal=False)
    return found


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


def _numbers(stamps: dict[folder_patterns.Stamp, pathlib.Path]) -> dict[folder_patterns.Stamp, folder_splits.Key]:
    """Sequence and frame number of what was found: times are numbered in their order, video by video."""
    return {
        stamp: (sequence, rank if isinstance(stamp[1], decimal.Decimal) else stamp[1])
        for sequence, group in itertools.groupby(sorted(stamps), lambda stamp: stamp[0])
        for rank, stamp in enumerate(group)
    }


RECORD = record.Dataset(
    name="folder",
    order=99,  # any folder is one
    title="A folder of the user's",
    classes=_classes,
    ids=_ids,
    is_own=True,
    files=record.Files(
        layouts=("folder",),
        expected="expected frames as data.folder.frames says",
        recognise=lambda root: "folder",
        scan=_scan,
        code=_code,
    ),
)
