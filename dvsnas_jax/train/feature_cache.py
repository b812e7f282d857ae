"""Features on disk: files of a few clips each, named by all that they follow from, so that they are never stale.

The key is a hash of the static network's weights, the sections of the configuration that shape the features, the code
that makes them and, of a data set on disk, name, size and time of every file. A file that a crash left incomplete, or
whose bytes changed, is made again. Of several processes each makes every n-th file; all see the same folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import store as clips_store

CLIPS_PER_FILE = 16
_VERSION = 2
_PACKAGE = pathlib.Path(__file__).parents[1]
_ROOMS, _MAKERS = ("data", "nets"), ("features.py", "teachers.py")


class Memory:
    """Features in this host's memory; a `feature_store.Source`."""

    def __init__(self, store: types.FeatureStore) -> None:
        self._store = store

    def take(self, clips: np.ndarray) -> types.FeatureStore:
        """Some clips, i32 [n]; a run of them as they lie, not copied."""
        clips = np.asarray(clips)
        is_run = len(clips) > 0 and bool((np.diff(clips) == 1).all())
        rows: Any = slice(int(clips[0]), int(clips[0]) + len(clips)) if is_run else clips
        return jax.tree.map(lambda x: np.asarray(x)[rows], self._store)


class Disk:
    """Features in the files of a folder, all whole, mapped into memory; a `feature_store.Source`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def take(self, clips: np.ndarray) -> types.FeatureStore:
        """Some clips, i32 [n]."""
        clips = np.asarray(clips)
        found = [self._open(int(clip) // CLIPS_PER_FILE) for clip in clips]
        places = clips % CLIPS_PER_FILE
        rows = [jax.tree.map(lambda x, at=at: x[at], part) for part, at in zip(found, places, strict=True)]
        return jax.tree.map(lambda *xs: np.stack(xs), *rows)

    @functools.cache  # noqa: B019 - lives as long as the run
    def _open(self, number: int) -> types.FeatureStore:
        return _read(_file(self._folder, number))


def key(
    config: ml_collections.ConfigDict,
    variables: Any,
    clips: np.ndarray,
    names: tuple[str, ...],
    num_drawn: int = 0,
    *,
    more: list[Any] | None = None,
) -> str:
    """The name of the folder of some features, which follow from all of this (`features.Wanted`).

    `more`, for JSON, is what else they follow from: of training clips, see `mixture.describe`.
    """
    digest = hashlib.sha256()
    settings = {
        "version": _VERSION,
        **_contents(config),
        "names": list(names),
        "clips": np.asarray(clips).tolist(),
        # What `features.spread_ages` goes by.
        "ages": config.schedule.interval if config.space.mode == "propagate" else 0,
        "drawn": [num_drawn, config.seed if num_drawn else 0],
        "more": more or [],
        "backend": jax.default_backend(),
        "jax": jax.__version__,
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(variables)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    digest.update(_code(_PACKAGE).encode())
    digest.update(_files(config.data).encode())
    return digest.hexdigest()[:32]


def _contents(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The sections that shape the features; where data and weights lie does not."""
    values = config_lib.to_json_dict(config)
    for key in config_lib.PATHS:
        section, leaf = key.split(".")
        values[section][leaf] = bool(values[section][leaf]) if key == "data.prepared" else ""
    values["data"]["extra"] = []  # what it gives is told by itself
    return {"data": values["data"], "net": values["net"]}


@functools.cache
def _code(package: pathlib.Path) -> str:
    """A hash of the code that reads data and makes features; what is asked of it is in the key itself."""
    digest = hashlib.sha256()
    makers = [package / "train" / name for name in _MAKERS]
    for path in [*(path for room in _ROOMS for path in sorted((package / room).rglob("*.py"))), *makers]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(data: ml_collections.ConfigDict) -> str:
    """Names, sizes and times of the files of the train split; empty where the clips are computed."""
    if datasets.of(data).is_computed:
        return ""
    root = data.prepared or datasets.root(data)
    if data.prepared:
        paths = sorted(path for path in pathlib.Path(data.prepared).rglob("*") if path.is_file())
    else:
        found = clips_store.source(data, "train").frames
        paths = [path for frame in found for path in frame.paths]
    # Named from the folder on: however its path is spelled, and wherever it was moved, it is the same data.
    stats = [(os.path.relpath(path, root), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return json.dumps(stats)


def build(folder: pathlib.Path, num_clips: int, make_fn: Callable[[int, int], types.FeatureStore]) -> Disk:
    """Makes the files that are not there or not whole, in a folder named by `key`; all processes call it.

    `make_fn` is `(first clip, clip after the last) -> features`, host arrays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-num_clips // CLIPS_PER_FILE))
    for number in numbers[distributed.process_id() :: distributed.num_processes()]:
        path = _file(folder, number)
        if not is_whole(path):
            first = number * CLIPS_PER_FILE
            _write(path, make_fn(first, min(first + CLIPS_PER_FILE, num_clips)))
    distributed.barrier("features")
    return Disk(folder)


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"clips_{number:06d}.features"


def _write(path: pathlib.Path, store: types.FeatureStore) -> None:
    """A line of JSON, then the bytes of all arrays; put in place in one step."""
    arrays = {**store.features.maps, "/logits": store.features.logits, "/labels": store.labels}
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {
        "leaves": [[name, array.dtype.name, list(array.shape)] for name, array in plain.items()],
        "crc32": _checksum([array.reshape(-1).view(np.uint8) for array in plain.values()]),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        out.write(json.dumps(header).encode() + b"\n")
        for array in plain.values():
            out.write(array.tobytes())
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def _checksum(parts: list[np.ndarray]) -> int:
    return functools.reduce(lambda crc, part: zlib.crc32(part.data, crc), parts, 0)


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """What a file holds, and where its arrays begin."""
    with path.open("rb") as file:
        line = file.readline()
    return json.loads(line), len(line)


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file is there, complete and as it was written."""
    try:
        header, start = _header(path)
        data = np.memmap(path, np.uint8, "r", offset=start)
    except (OSError, ValueError):
        return False
    return header["crc32"] == _checksum([data])


def _read(path: pathlib.Path) -> types.FeatureStore:
    """The arrays of a file, mapped."""
    header, start = _header(path)
    arrays = {}
    for name, dtype, shape in header["leaves"]:
        arrays[name] = np.memmap(path, jnp.dtype(dtype), "r", offset=start, shape=tuple(shape))
        start += arrays[name].nbytes
    labels, logits = arrays.pop("/labels"), arrays.pop("/logits")
    return types.FeatureStore(features=types.Features(maps=arrays, logits=logits), labels=labels)
