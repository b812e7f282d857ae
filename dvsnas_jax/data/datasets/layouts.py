"""Datasets on disk: which layout a folder has, and its frames, split by split.

`camvid` (SegNet and official layout), `cityscapes` (sequences or stills) and `folder` are told apart
by looking at what is there; see `camvid_layouts`, `cityscapes_layout` and `folder_layout`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

import ml_collections

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.datasets import (
    camvid_layouts,
    camvid_table,
    cityscapes_layout,
    cityscapes_table,
    folder_layout,
    frames,
    listing,
)

SPLITS = ("train", "val", "test")
NAMES = ("camvid", "cityscapes", "folder")
"""Datasets on disk: values of data.name."""
VARIABLES = {"camvid": "DVSNAS_CAMVID", "cityscapes": "DVSNAS_CITYSCAPES"}
"""Environment variables that hold the folder where data.dir is empty."""
_EXPECTED = {
    "camvid": f"{camvid_layouts.SEGNET_TEXT}, or {camvid_layouts.OFFICIAL_TEXT}",
    "cityscapes": cityscapes_layout.TEXT,
    "folder": "expected frames as data.folder.frames says",
}
_CAMVID_RATE = 30.0


def options(data: ml_collections.ConfigDict) -> folder_layout.Options:
    """What the data section says of files: data.folder, and data.ignore."""
    return dataclasses.replace(folder_layout.options(data.folder), also_ignored=tuple(data.ignore))


def root(data: ml_collections.ConfigDict) -> str:
    """The dataset folder: data.dir, or else what the environment variable of the dataset names; may be empty."""
    return str(data.dir or os.environ.get(VARIABLES.get(data.name, ""), ""))


def title(data: ml_collections.ConfigDict) -> str:
    """The data set for people: its name, of a folder the folder's too."""
    return f"folder {pathlib.PurePath(data.dir).name}" if data.name == "folder" and data.dir else str(data.name)


def class_table(data: ml_collections.ConfigDict) -> types.ClassTable:
    """Names and colours of a dataset's train ids; the disk is not looked at.

    Raises:
      UserError: `cityscapesscripts` is not installed, or data.folder makes no sense.
    """
    if data.name == "cityscapes":
        return cityscapes_table.table()
    if data.name == "folder":
        return folder_layout.table(folder_layout.options(data.folder))
    return camvid_table.TABLE


def find(data: ml_collections.ConfigDict, split: str) -> frames.Source:
    """The frames of one split of a dataset on disk; what was found is kept for the life of the process.

    Args:
      data: section of the configuration.
      split: train, val or test.

    Raises:
      UserError: no such folder, or the first thing that makes the split unusable.
    """
    folder = root(data)
    if folder and not os.path.isdir(folder):
        raise errors.UserError(
            f"{folder}: no such dataset folder; set data.dir to where it is now; {_EXPECTED.get(data.name, '')}"
        )
    return find_in(folder, split, data.name, options(data))


@functools.lru_cache(maxsize=32)
def find_in(folder: str, split: str, name: str, options: folder_layout.Options) -> frames.Source:
    """`find` by its single inputs.

    Args:
      folder: of the dataset.
      split: train, val or test.
      name: camvid, cityscapes or folder.
      options: of the folder layout.

    Raises:
      UserError: as in `find`.
    """
    if split not in SPLITS:
        raise errors.UserError(f"data split: unknown name '{split}'; use one of {', '.join(SPLITS)}")
    layout = recognise(folder, name)
    result = scan(folder, split, layout, options)
    fatal = [problem for problem in result.problems if problem.is_fatal]
    if fatal:
        more = f" ({len(fatal) - 1} more problems: run `dvsnas data check {folder}`)" if len(fatal) > 1 else ""
        raise errors.UserError(f"{fatal[0]}{more}")
    return source(folder, split, layout, options, result)


def recognise(folder: str, name: str = "auto") -> str:
    """The layout of a folder: camvid_segnet, camvid_official, cityscapes or folder.

    Args:
      folder: of the dataset.
      name: what data.name says it is; auto: whatever it looks like, folder where it looks like nothing known.

    Raises:
      UserError: no such folder, or it is not what `name` says.
    """
    expected = _EXPECTED.get(name, "")
    if not folder:
        variable = f" or {VARIABLES[name]}" if name in VARIABLES else ""
        raise errors.UserError(f"data.dir: no dataset folder given; set data.dir{variable} ({expected})")
    path = pathlib.Path(folder)
    if not os.path.isdir(path):
        what, shape = ("dataset folder", f", {expected}") if expected else ("folder", "")
        raise errors.UserError(f"{path}: no such {what}; give one that is there{shape}")
    if name in ("auto", "camvid"):
        if camvid_layouts.is_official(path):
            return "camvid_official"
        if camvid_layouts.is_segnet(path) or name == "camvid":
            return "camvid_segnet"
    if name == "cityscapes" or (name == "auto" and cityscapes_layout.is_cityscapes(path)):
        return "cityscapes"
    return "folder"


def expected(layout: str) -> str:
    """What a folder of a layout should hold, for messages."""
    return _EXPECTED[layout.split("_")[0]]


def scan(folder: str, split: str, layout: str, options: folder_layout.Options) -> listing.Scan:
    """Looks at one split, whatever is wrong with it.

    Args:
      folder: of the dataset.
      split: train, val or test.
      layout: from `recognise`.
      options: of the folder layout.
    """
    path = pathlib.Path(folder)
    if layout == "camvid_segnet":
        return camvid_layouts.segnet(path, split)
    if layout == "camvid_official":
        return camvid_layouts.official(path, split)
    if layout == "cityscapes":
        return cityscapes_layout.scan(path, split)
    return folder_layout.scan(path, split, options, SPLITS)


def source(folder: str, split: str, layout: str, options: folder_layout.Options, result: listing.Scan) -> frames.Source:
    """What `scan` found, with the classes and the rate of the layout."""
    ordered = tuple(result.frames[key] for key in sorted(result.frames))
    if layout == "cityscapes":
        is_video = cityscapes_layout.has_sequences(pathlib.Path(folder), split)
        kind = "cityscapes" if is_video else "cityscapes_stills"
        table, code, rate = cityscapes_table.table(), cityscapes_table.code(), cityscapes_layout.FRAME_RATE
    elif layout == "folder":
        kind, table, code, rate = layout, folder_layout.table(options), folder_layout.code(options), options.frame_rate
    else:
        is_segnet = layout == "camvid_segnet"
        code = camvid_table.segnet_code() if is_segnet else camvid_table.official_code()
        kind, table, rate = layout, camvid_table.TABLE, _CAMVID_RATE
    return frames.Source(kind, ordered, table, frames.with_ignored(code, options.also_ignored), rate)


def present(folder: str, layout: str, options: folder_layout.Options) -> list[str]:
    """The splits that a folder has, by looking for their folders.

    Args:
      folder: of the dataset.
      layout: from `recognise`.
      options: of the folder layout.
    """
    path = pathlib.Path(folder)
    if layout == "camvid_segnet":
        return [split for split in SPLITS if (path / split).is_dir() or (path / f"{split}annot").is_dir()]
    if layout == "camvid_official":
        return camvid_layouts.official_splits(path)
    if layout == "cityscapes":
        tops = (cityscapes_layout.SEQUENCES, cityscapes_layout.STILLS, cityscapes_layout.LABELS)
        return [split for split in SPLITS if any((path / top / split).is_dir() for top in tops)]
    return [split for split in SPLITS if folder_layout.scan(path, split, options, SPLITS).frames] or ["train"]
