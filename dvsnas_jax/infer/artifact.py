"""An exported folder: what is in it, and how it is run. It needs JAX, NumPy and safetensors, and of ours only `core`.

manifest.json           what the programs are and how they go together; SHA-256 of every other file
weights.safetensors     all weights, unless they are baked into the programs
NAME.TARGET.jax         one program, a serialised `jax.export.Exported`; TARGET is `cpu` or `accelerator`
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dvsnas_jax.core import compilation, errors

MANIFEST, TENSORS = "manifest.json", "weights.safetensors"
FORMAT, VERSION = "dvsnas_jax.export", 1
TARGETS: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "accelerator": ("cuda", "rocm", "tpu")}
"""A CPU has other variants of the layers than the rest (`nets.kernels.layers`), so there is a program for each."""

_KEYS: dict[str, Any] = {
    "genotype": dict, "mode": str, "schedule": (dict, type(None)), "classes": list, "colors": list,
    "normalisation": dict, "size": list, "state": dict, "programs": dict, "regions": list, "versions": dict,
    "files": dict,
}  # fmt: skip

State = dict[str, Any]


class Model:
    """The programs of an exported folder, put together. All functions take a batch of videos, mostly of one.

    Attributes:
      manifest: of the folder.
      interval: propagate: the (longest) distance of key frames.
    """

    def __init__(self, manifest: dict[str, Any], programs: Mapping[str, Program], interval: int | None) -> None:
        self.manifest = manifest
        self.interval = interval or (manifest["schedule"] or {}).get("interval")
        self._programs = programs

    def initial_state(self, batch_size: int = 1) -> State:
        """The state of so many videos before their first frames."""
        return {
            name: jax.device_put(np.full((batch_size, *spec["shape"]), spec["fill"], spec["dtype"]), jax.devices()[0])
            for name, spec in self.manifest["state"].items()
        }

    def static_step(self, frame: Any) -> jax.Array:
        """Frames u8 [B, H, W, 3] -> labels u8 [B, H, W] of the static network alone."""
        return self._programs["static"](frame)

    def step(self, state: State, frame: Any) -> tuple[State, jax.Array]:
        """Segments the next frames u8 [B, H, W, 3].

        In propagate mode one decision holds for a batch: a key frame for one video is one for all. Regions: B = 1.

        Returns:
          The state, and labels u8 [B, H, W].
        """
        run = self._programs
        if self.manifest["schedule"] is None:
            return run["step"](state, frame)
        age = np.asarray(state["age"])
        is_due = (age < 0) | (age + 1 >= self.interval)
        if not self.manifest["schedule"]["is_learned"]:
            return run["key" if is_due.any() else "other"](state, frame)
        maps, shares = run["look"](state, frame)
        is_due |= np.asarray(shares) > self.manifest["schedule"]["threshold"]
        if not is_due.any():
            return run["other"](state, maps)
        if is_due.all() or not self.manifest["regions"]:
            return run["key"](state, frame)
        canvas = [jnp.zeros_like(state[name]) for name in ("decoder", "logits")]
        for row, column in np.argwhere(is_due[0]):
            region = self.manifest["regions"][row][column]
            canvas = list(run[region["program"]](canvas, frame, np.array(region["places"], np.int32)))
        return run["join"](state, maps, canvas, is_due)

    @staticmethod
    def key_share(state: State) -> float:
        """Share of the last frame that the static network computed; refine: 1."""
        return float((np.asarray(state["age"]) == 0).mean()) if "age" in state else 1.0


class Program:
    """One program with its weights, read and compiled at its first call.

    Args:
      data: serialised.
      weights: on the device, its first argument; None where they are baked in.
    """

    def __init__(self, data: bytes, weights: list[jax.Array] | None) -> None:
        self._data, self._weights = data, weights

    @functools.cached_property
    def _fn(self) -> Any:
        # Results lie as arguments do: otherwise the states of later frames would compile it again.
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return compilation.jit(jax.export.deserialize(bytearray(self._data)).call, out_shardings=where)

    def __call__(self, *args: Any) -> Any:
        return self._fn(*args) if self._weights is None else self._fn(self._weights, *args)


def is_artifact(path: pathlib.Path) -> bool:
    """Whether a folder is an exported one."""
    return (path / MANIFEST).is_file()


def open_folder(path: pathlib.Path, interval: int | None = None) -> Model:
    """Reads and checks an exported folder; its programs for the backend in use are compiled when they are called.

    Args:
      path: of the folder.
      interval: propagate: the (longest) distance of key frames, in place of the exported one.

    Raises:
      UserError: it is of another format, a file is missing or is not what was exported.
    """
    manifest = _manifest(path)
    target = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    contents = _files(path, manifest["files"], target)
    tensors = safetensors.numpy.load(contents[TENSORS]) if TENSORS in contents else {}
    on_device = jax.device_put(tensors)
    programs = {}
    for name, entry in manifest["programs"].items():
        weights = None if entry["weights"] is None else [on_device[tensor] for tensor in entry["weights"]]
        programs[name] = Program(contents[program_file(name, target)], weights)
    return Model(manifest, programs, interval)


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
