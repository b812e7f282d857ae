"""Whose run folder it is: the configuration and all that it leaves open, as it was when the run began.

A configuration leaves two things open. An empty list of names stands for all of the vocabulary, which grows. A folder
of data is a place: other data may come to lie there, or the same data elsewhere. `config.json` has the names,
`identity.json` says which lists were empty and what the data is, so that a run goes on with the same, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import pipeline, store
from dvsnas_jax.space import genotype as genotype_lib

SPLITS = ("train", "val")
PLACES = ("data.dir", "data.prepared")
SIZED_FRAMES = 32
"""Of a split, spread over it: the sizes of their files are a part of what the data is."""
_FIRST = {"space.operations": genotype_lib.FIRST_OPERATIONS, "space.aggregations": genotype_lib.FIRST_AGGREGATIONS}
"""What an empty list meant before its names were stored."""


def check(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, *, ignore: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """Whether a folder is free or this configuration's, but for the keys or sections to ignore; nothing is written.

    Returns:
      The configuration to go on with: empty lists of names as they were meant when the run began.

    Raises:
      UserError: the folder belongs to a run with another configuration, or with other data.
    """
    return _check(config, folder, ignore)[0]


def claim(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, *, ignore: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """As `check`, and makes a folder this configuration's; where its data lies elsewhere now, that is noted.

    Raises:
      UserError: as `check`, or the folder cannot be written.
    """
    named, stored, may_differ = _check(config, folder, ignore)
    identity = None if stored is not None else _identity(named)
    folder.claim(named, ignore=may_differ, stored=stored, identity=identity)
    if stored is not None and may_differ != tuple(ignore):
        _note_place(named, stored, folder)
    return named


def config_of(folder: workdir.Workdir) -> ml_collections.ConfigDict:
    """The configuration of a run for whoever uses what it trained: the classes are known without the data.

    Raises:
      UserError: the folder holds no run.
    """
    config = _filled(folder.config(), _FIRST)
    classes = _read_identity(folder).get("classes")
    if not config.data.prepared:
        return config
    is_own = datasets.of(config.data).is_own
    if is_own and classes is None and os.path.exists(config.data.prepared):
        return config
    config = config.copy_and_resolve_references().unlock()
    config.data.prepared = ""
    if is_own and classes is not None:
        config.data.folder.update({name: tuple(classes[name]) for name in ("classes", "colors")})
    return config.lock()


def _check(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, ignore: Sequence[str]
) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict | None, tuple[str, ...]]:
    """The configuration with names, that of the folder (None: nothing yet), and what may differ."""
    today = _today()
    fresh = _filled(config, today), None, tuple(ignore)
    if not folder.is_claimed:
        return fresh
    raw = folder.config()
    config = config_lib.as_before(config, folder.read_json(workdir.CONFIG))
    stored = _filled(raw, _FIRST)
    whole = _read_identity(folder).get("whole_vocabulary", [key for key in _FIRST if not _leaf(raw, key)])
    named = _filled(config, {key: _leaf(stored, key) if key in whole else names for key, names in today.items()})
    is_place_free = "data" not in ignore and _is_like(named.data, stored.data)
    may_differ = (*ignore, *PLACES) if is_place_free else tuple(ignore)
    if not folder.check(named, ignore=may_differ, stored=stored):
        return fresh
    if is_place_free:
        _require_same_data(named, stored, folder)
    return named, stored, may_differ


def _today() -> dict[str, tuple[str, ...]]:
    """What an empty list means for a run that begins now."""
    return {key: genotype_lib.vocabulary(key.removeprefix("space.")) for key in _FIRST}


def _filled(config: ml_collections.ConfigDict, names: Mapping[str, Sequence[str]]) -> ml_collections.ConfigDict:
    """The configuration with names in place of empty lists."""
    empty = [key for key in names if not _leaf(config, key)]
    if not empty:
        return config
    is_locked = config.is_locked
    config = config.copy_and_resolve_references().unlock()
    for key in empty:
        section, leaf = key.split(".")
        config[section][leaf] = tuple(names[key])
    return config.lock() if is_locked else config


def _leaf(config: ml_collections.ConfigDict, key: str) -> Any:
    section, leaf = key.split(".")
    return config[section][leaf]


def _read_identity(folder: workdir.Workdir) -> dict[str, Any]:
    """What was written when the run began; {} in the folder of an older run."""
    if not (folder.path / workdir.IDENTITY).is_file():
        return {}
    found = folder.read_json(workdir.IDENTITY)
    if not isinstance(found, dict):
        where = folder.path / workdir.IDENTITY
        raise errors.UserError(f"{where}: needs a JSON object; put the file of this run back, or use another --workdir")
    return found


def _identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What is written when a run begins."""
    table, root = pipeline.class_table(config.data), _root(config.data)
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in np.asarray(table.colors).tolist()]
    return {
        "whole_vocabulary": [key for key, names in _today().items() if tuple(_leaf(config, key)) == names],
        "classes": {"classes": list(table.names), "colors": colors},
        "data": None if root is None else {"root": root, "splits": describe(config.data)},
    }


def describe(data: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """What data on disk is, wherever it lies: of each split, where it has labels, the `frames` and a `digest`.

    The digest is of the frames' names, of which of them are labelled, and of the sizes of some of their files.

    Raises:
      UserError: the train split cannot be read.
    """
    found = {}
    for split in SPLITS:
        try:
            listed = store.source(data, split).frames
        except errors.UserError:
            if split == SPLITS[0]:
                raise
            continue
        places = np.unique(np.linspace(0, len(listed) - 1, min(len(listed), SIZED_FRAMES)).round().astype(int))
        names = [[frame.sequence, frame.number, frame.label is not None] for frame in listed]
        sizes = [_sizes(listed[place]) for place in places.tolist()]
        text = json.dumps([names, sizes])
        found[split] = {"frames": len(listed), "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}
    return found


def _sizes(frame: frames.Frame) -> list[int]:
    """Bytes of the image and of the mask; 0 where it is no file of its own."""
    return [path.stat().st_size if path.is_file() else 0 for path in frame.paths]


def _root(data: ml_collections.ConfigDict) -> str | None:
    """Where data on disk lies, absolute and without links; None: it is made, or no place is known."""
    root = "" if datasets.of(data).is_computed else str(data.prepared) or datasets.root(data)
    return os.path.realpath(root) if root else None


def _is_like(a: ml_collections.ConfigDict, b: ml_collections.ConfigDict) -> bool:
    """Whether two sections describe data on disk of one kind, so that its place may differ."""
    return a.name == b.name and not datasets.of(a).is_computed and bool(a.prepared) == bool(b.prepared)


def _places(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, folder: workdir.Workdir
) -> tuple[str | None, str | None]:
    """Where the data of the run was and where it is to be found now."""
    known = _read_identity(folder).get("data")
    return known["root"] if known else _root(stored.data), _root(config.data)


def _require_same_data(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, folder: workdir.Workdir
) -> None:
    """Refuses other data than that of the run, if it lies at another place."""
    before, now = _places(config, stored, folder)
    if before == now or now is None:
        return
    known = _read_identity(folder).get("data")
    if not known and not (before and os.path.isdir(before)):
        if distributed.is_main():
            print(f"warning: {folder.path}: whether {now} is the data of the run is not known", file=sys.stderr)
        return
    was = known["splits"] if known else describe(stored.data)
    found = describe(config.data)
    for split, about in was.items():
        if found.get(split) != about:
            count = found.get(split, {}).get("frames", 0)
            raise errors.UserError(
                f"data.dir: {now} is other data than that of the run in {folder.path}: {split} has {count} frames, it "
                f"was {about['frames']} frames of {before}, and names and sizes of files are compared too; give the "
                "same data, use another --workdir, or score other data by `dvsnas evaluate --other-data`"
            )


def _note_place(config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, folder: workdir.Workdir) -> None:
    """Writes where the data lies now, so that the next command finds it."""
    before, now = _places(config, stored, folder)
    if before == now or now is None:
        return
    values = folder.read_json(workdir.CONFIG)
    values["data"] |= {"dir": config.data.dir, "prepared": config.data.prepared}
    folder.write_json(workdir.CONFIG, config_lib.with_absolute_paths(values))
    identity = _read_identity(folder)
    if identity.get("data"):
        folder.write_json(workdir.IDENTITY, {**identity, "data": {**identity["data"], "root": now}})
