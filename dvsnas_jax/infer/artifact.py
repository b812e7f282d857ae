"""An exported folder: what is in it, and how it is opened. It needs JAX, of ours `core`, and safetensors unless
all weights are baked in.

manifest.json           what the programs are and how they go together; SHA-256 of every other file
weights.safetensors     all weights, unless they are baked into the programs
NAME.TARGET.jax         one program, a serialised `jax.export.Exported`; TARGET is `cpu` or `accelerator`
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.infer import dispatch

MANIFEST, TENSORS = "manifest.json", "weights.safetensors"
FORMAT, VERSION = "dvsnas_jax.export", 1
TARGETS: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "accelerator": ("cuda", "rocm", "tpu")}
"""A CPU has other variants of the layers than the rest (`nets.kernels.layers`), so there is a program for each."""

_KEYS: dict[str, Any] = {
    "genotype": dict, "mode": str, "schedule": (dict, type(None)), "classes": list, "colors": list,
    "normalisation": dict, "size": list, "state": dict, "programs": dict, "regions": list, "versions": dict,
    "files": dict,
}  # fmt: skip


class StoredProgram:
    """One serialised program, read and compiled at its first call, with its weights unless these are baked in."""

    def __init__(self, data: bytes, weights: list[jax.Array] | None) -> None:
        self._data, self._weights = data, weights
        where = jax.sharding.SingleDeviceSharding(dispatch.device())
        self._fn = compilation.jit(self._read_and_call, out_shardings=where)

    def _read_and_call(self, *args: Any) -> Any:
        return jax.export.deserialize(bytearray(self._data)).call(*args)

    def __call__(self, *args: Any) -> Any:
        return self._fn(*args) if self._weights is None else self._fn(self._weights, *args)


def is_artifact(path: pathlib.Path) -> bool:
    """Whether a folder is an exported one."""
    return (path / MANIFEST).is_file()


def open_folder(path: pathlib.Path) -> tuple[dict[str, Any], dispatch.Dispatch]:
    """Reads and checks an exported folder: its manifest, and its programs for the backend in use put together.

    They are compiled with the effort that is set now.

    Raises:
      UserError: it is of another format, a file is missing or is not what was exported.
    """
    manifest = _manifest(path)
    contents = _files(path, manifest["files"], target())
    tensors = _tensors(contents[TENSORS]) if TENSORS in contents else {}
    programs = {}
    for name, entry in manifest["programs"].items():
        weights = None if entry["weights"] is None else [tensors[tensor] for tensor in entry["weights"]]
        programs[name] = StoredProgram(contents[program_file(name, target())], weights)
    return manifest, dispatch.Dispatch(manifest, programs)


def target() -> str:
    """That of `TARGETS` which runs on the backend in use."""
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def _tensors(content: bytes) -> dict[str, jax.Array]:
    """The weights of a file, on the device."""
    import safetensors.numpy

    return dict(jax.device_put(safetensors.numpy.load(content)))


def program_file(name: str, target: str) -> str:
    """Name of the file of a program."""
    return f"{name}.{target}.jax"


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a folder, checked."""
    where = path / MANIFEST
    try:
        manifest = json.loads(where.read_text())
    except (OSError, ValueError) as error:
        raise errors.UserError(f"{where}: cannot be read: {error}; export again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise errors.UserError(f"{where}: is no manifest of `dvsnas export`; give a folder that it wrote")
    if manifest.get("version") != VERSION:
        raise errors.UserError(
            f"{where}: format version {manifest.get('version')!r}, this program reads {VERSION}; export again, or use "
            f"dvsnas_jax {manifest.get('versions', {}).get('dvsnas_jax', 'of that version')}"
        )
    for key, kind in _KEYS.items():
        if not isinstance(manifest.get(key, ...), kind):
            raise errors.UserError(f"{where}: {key} is missing or of the wrong type; export again")
    return manifest


def _files(path: pathlib.Path, hashes: Mapping[str, str], target: str) -> dict[str, bytes]:
    """Reads all files and compares them with their hashes; keeps those that the target needs."""
    kept = {}
    for name, expected in hashes.items():
        if pathlib.PurePath(name).name != name:
            raise errors.UserError(f"{path / MANIFEST}: names {name!r}, which is no file of this folder; export again")
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise errors.UserError(
                f"{path / name}: cannot be read: {error.strerror or error}; copy the whole folder, or export again"
            ) from None
        if hashlib.sha256(data).hexdigest() != expected:
            raise errors.UserError(
                f"{path / name}: is not what was exported (SHA-256 differs); copy it again, or export again"
            )
        if name == TENSORS or name.endswith(f".{target}.jax"):
            kept[name] = data
    return kept
