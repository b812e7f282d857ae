"""The data sets: one record each, found in this room, and what the configuration asks of the one that it names."""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, records, types
from dvsnas_jax.data.datasets import frames, record

TABLE: dict[str, record.Dataset] = records.find(__name__)
"""data.name -> record."""


def of(data: ml_collections.ConfigDict) -> record.Dataset:
    """The record of the data set that a configuration names.

    Raises:
      UserError: there is none of that name.
    """
    if data.name not in TABLE:
        raise errors.UserError(f"data.name: unknown dataset '{data.name}'; use one of {', '.join(TABLE)}")
    return TABLE[data.name]


def on_disk() -> dict[str, record.Dataset]:
    """The data sets that lie in files."""
    return {name: each for name, each in TABLE.items() if not each.is_computed}


def options(data: ml_collections.ConfigDict) -> record.Options:
    """What the data section says of files: data.folder, and data.ignore."""
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.folder.items()}
    return record.Options(**values, also_ignored=tuple(data.ignore))


def root(data: ml_collections.ConfigDict) -> str:
    """The dataset folder: data.dir, or else what the environment variable of the dataset names; may be empty."""
    files = of(data).files
    return str(data.dir or os.environ.get(files.variable if files else "", ""))


def title(data: ml_collections.ConfigDict) -> str:
    """The data set for people: its name, of a folder of one's own the folder's too."""
    return f"{data.name} {pathlib.PurePath(data.dir).name}" if of(data).is_own and data.dir else str(data.name)


def world(data: ml_collections.ConfigDict, split: str) -> record.World:
    """Where the clips of a data set that is computed come from."""
    make = of(data).world
    assert make is not None, f"{data.name} lies in files"
    return make(int(data.seed), split, int(data.height), int(data.width), float(data.degrade))


def class_table(data: ml_collections.ConfigDict) -> types.ClassTable:
    """Names and colours of a dataset's train ids; the disk is not looked at.

    Raises:
      UserError: a package is not installed, or data.folder makes no sense.
    """
    return of(data).classes(options(data))


def written_ids(data: ml_collections.ConfigDict) -> np.ndarray:
    """The id of each class in masks that the program writes, i32 [K]: those that the configuration reads.

    Raises:
      UserError: see `class_table`.
    """
    num = class_table(data).num_classes
    return np.array(of(data).ids(options(data)) or range(num), np.int32)


def find(data: ml_collections.ConfigDict, split: str) -> frames.Source:
    """The frames of one split of a dataset on disk; what was found is kept for the life of the process.

    Raises:
      UserError: no such folder, or the first thing that makes the split unusable.
    """
    folder = root(data)
    if folder and not os.path.isdir(folder):
        expected = of(data).on_disk.expected
        raise errors.UserError(f"{folder}: no such dataset folder; set data.dir to where it is now; {expected}")
    return find_in(folder, split, data.name, options(data))


@functools.lru_cache(maxsize=32)
def find_in(folder: str, split: str, name: str, options: record.Options) -> frames.Source:
    """`find` by its single inputs."""
    if split not in frames.SPLITS:
        raise errors.UserError(f"data split: unknown name '{split}'; use one of {', '.join(frames.SPLITS)}")
    opened = recognise(folder, name, options)
    result = opened.scan(split)
    if fatal := result.fatal:
        more = f" ({len(fatal) - 1} more problems: run `dvsnas data check {folder}`)" if len(fatal) > 1 else ""
        raise errors.UserError(f"{fatal[0]}{more}")
    return opened.source(result)


def recognise(folder: str, name: str, options: record.Options) -> record.Folder:
    """Opens a folder of the data set `name`; auto: of the first of the table that it looks like.

    Raises:
      UserError: no such folder.
    """
    named = TABLE[name].on_disk if name != "auto" else None
    expected = named.expected if named else ""
    if not folder:
        variable = f" or {named.variable}" if named and named.variable else ""
        raise errors.UserError(f"data.dir: no dataset folder given; set data.dir{variable} ({expected})")
    path = pathlib.Path(folder)
    if not os.path.isdir(path):
        what, shape = ("dataset folder", f", {expected}") if expected else ("folder", "")
        raise errors.UserError(f"{path}: no such {what}; give one that is there{shape}")
    if named:
        return record.Folder(path, TABLE[name], named.recognise(path) or named.layouts[0], options)
    looked_at = ((each, each.on_disk.recognise(path)) for each in on_disk().values())
    dataset, layout = next((each, layout) for each, layout in looked_at if layout)
    return record.Folder(path, dataset, layout, options)
