"""Weights of a static network as a folder: `weights.safetensors` and `manifest.json`.

The tensors are named by their path in the network's variables, `params/encoder/layer1/kernel`, in this package's
layout, float32. The manifest says where they come from and which ones the source did not have.
"""

from __future__ import annotations

import json
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import json_files, json_text

TENSORS = "weights.safetensors"
MANIFEST = "manifest.json"
_AGAIN = "make the folder again with `dvsnas weights import`"
VERSION = 1

_TYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip


def flatten(variables: types.Params) -> dict[str, Any]:
    """Variables as {"params/encoder/layer1/kernel": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def save(folder: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Writes a folder that `load` reads: f32 tensors named as by `flatten`, then the manifest, so that a folder with
    one is complete.

    Raises:
      UserError: the folder cannot be written.
    """
    import safetensors.numpy

    path = pathlib.Path(folder)
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / MANIFEST).unlink(missing_ok=True)
        safetensors.numpy.save_file(whole, path / TENSORS)
        (path / MANIFEST).write_text(json_text.dumps({"version": VERSION, **manifest}, indent=1) + "\n")
    except OSError as error:
        problem = f"cannot write the folder {path}: {error.strerror or error}"
        raise errors.UserError(f"--output: {problem}; choose another --output") from None


def refuse_other(folder: str | os.PathLike[str]) -> None:
    """Before a folder is written: it must be new, empty, or one of weights.

    Raises:
      UserError: it holds something else, of which a file of the same name would be lost.
    """
    path = pathlib.Path(folder)
    try:
        held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    except OSError:
        held = set()  # the writing says what is wrong
    try:
        is_exported = "format" in json.loads((path / MANIFEST).read_text())  # `dvsnas export`: files of the same names
    except (OSError, ValueError, TypeError):
        is_exported = False
    if held and (TENSORS not in held or is_exported):
        advice = "choose another --output, or empty it"
        raise errors.UserError(f"--output: {path} is no folder of weights and not empty; {advice}")


def load(
    folder: str | os.PathLike[str], variables: types.Params, settings: Mapping[str, Any] | None = None
) -> types.Params:
    """Puts the weights of a folder (of `dvsnas weights import`) in place of a network's variables.

    What the folder does not have stays: a whole part of the network (its decoder, where an encoder was imported), or
    what the manifest lists as missing. Where the manifest names a key of `settings`, the config's section `net`, the
    values have to be equal.

    Raises:
      UserError: no such folder, a broken one, or weights of another network.
    """
    path = pathlib.Path(folder)
    manifest = _manifest(path)
    of = manifest.get("net", {})
    for key, value in of.items():
        if settings is not None and key in settings and settings[key] != value:
            raise errors.UserError(
                f"net.weights: the weights in {path} are for net.{key} = {value!r}, the config has {settings[key]!r}; "
                f"set --config.net.{key}={value}, or import other weights with `dvsnas weights import`"
            )
    tensors = read_safetensors(path / TENSORS)
    current = flatten(variables)
    keys = " ".join(f"--config.net.{key}={value}" for key, value in of.items() if key != "num_classes")
    hint = f"these are weights for {of or 'another network'}; " + (
        f"set {keys}" if keys else "change the config's section net to fit"
    )
    for name, value in tensors.items():
        if name not in current:
            raise errors.UserError(f"net.weights: {path} has {name}, the network does not: {hint}")
        wanted = list(current[name].shape)
        if list(value.shape) != wanted:
            raise errors.UserError(f"net.weights: {path}: {name} is {list(value.shape)}, not {wanted}: {hint}")
    parts = {name.split("/")[1] for name in tensors}
    known = set(manifest.get("missing", ()))
    absent = [name for name in current if name not in tensors and name.split("/")[1] in parts and name not in known]
    if absent:
        raise errors.UserError(f"net.weights: {path} lacks {absent[0]} and {len(absent) - 1} more: {hint}")
    # Moved to the device as one tree, with the other leaves as they are.
    merged = [np.asarray(tensors.get(name, leaf), np.float32) for name, leaf in current.items()]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(variables), merged))


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a folder; the keys that are read have the types that `save` writes."""
    if not os.path.isfile(path / MANIFEST):
        raise errors.UserError(
            f"net.weights: {path} has no {MANIFEST}; make such a folder with `dvsnas weights import`, or leave "
            "net.weights empty"
        )
    manifest = json_files.read(path / MANIFEST, name="net.weights", advice=_AGAIN)
    is_ours = isinstance(manifest, dict) and manifest.get("version") == VERSION
    parts = {"net": dict, "missing": list}
    if not is_ours or not all(isinstance(manifest.get(key, kind()), kind) for key, kind in parts.items()):
        raise errors.UserError(f"net.weights: {path / MANIFEST} is not of version {VERSION}; {_AGAIN}")
    return manifest


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file.

    Raises:
      UserError: it cannot be read, is cut off, or has a type that no weight has.
    """
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise errors.UserError(f"{path}: {problem}; give a file of weights that is there") from None
    except (safetensors.SafetensorError, ValueError, OverflowError, struct.error) as error:
        raise errors.UserError(f"{path}: not a whole safetensors file: {error}; get the file again") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _TYPES:
            raise errors.UserError(f"{path}: {name} has the type {entry['dtype']}, allowed are {', '.join(_TYPES)}")
        tensors[name] = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors
