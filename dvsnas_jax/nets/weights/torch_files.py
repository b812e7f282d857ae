"""Reads PyTorch state dicts, `.safetensors` and `.pth` (zip or older), without PyTorch and without running anything."""

from __future__ import annotations

import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.nets.weights import torch_pickle, weights_folder

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model", "segmenter")
"""Keys under which training scripts keep the state dict of the network."""


def read(path: str | os.PathLike[str]) -> tuple[str, dict[str, np.ndarray]]:
    """All tensors of a `.safetensors` file or of what `torch.save(model.state_dict(), path)` wrote; the content
    decides, not the suffix.

    Returns:
      What the file is, and its tensors by name (a common prefix `module.` is taken off).

    Raises:
      UserError: it cannot be read, is cut off, or holds anything but tensors.
    """
    file = pathlib.Path(path)
    try:
        with file.open("rb") as source:
            head = source.read(9)
    except OSError as error:
        advice = "give a .safetensors or .pth file that is there"
        raise errors.UserError(f"{file}: cannot be read ({error.strerror or error}); {advice}") from None
    try:
        if head.startswith(_ZIP_MAGIC):
            kind, found = "PyTorch zip file", _read_zip(file)
        elif head.startswith(_PICKLE_MAGIC):
            kind, found = "PyTorch file of before 1.6", _read_legacy(file)
        elif head[8:] == b"{":
            kind, found = "safetensors file", weights_folder.read_safetensors(file)
        else:
            raise torch_pickle.Refused("it is neither a .safetensors file nor one of torch.save")
    except torch_pickle.Refused as problem:
        advice = "give a .safetensors file or one of torch.save(model.state_dict(), FILE)"
        raise errors.UserError(f"{file}: refused: {problem}; {advice}") from None
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return kind, found


def _read_zip(file: pathlib.Path) -> dict[str, np.ndarray]:
    """A file of torch.save since PyTorch 1.6."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
                raise torch_pickle.Refused("it is no archive of tensors alone (a TorchScript program?)")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder").strip() != b"little":
                raise torch_pickle.Refused("its numbers are big-endian")
            value, _ = torch_pickle.load(_entry(archive, pickles[0]))
            tensors = _state_dict(value)
            used = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
            numbers = {key: _numbers(_entry(archive, f"{root}data/{key}"), storage) for key, storage in used.items()}
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise torch_pickle.Refused(f"it is damaged or cut off ({error})") from None
    return {name: tensor.materialise(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry; torch.save never compresses, so a small file cannot unfold to a huge one."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise torch_pickle.Refused(f"its entry {name} is missing") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise torch_pickle.Refused(f"its entry {name} is compressed")
    return archive.read(info)


def _read_legacy(file: pathlib.Path) -> dict[str, np.ndarray]:
    """A file of torch.save before PyTorch 1.6: five pickles and the numbers of each storage."""
    try:
        with file.open("rb") as source:
            for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
                if torch_pickle.load(source)[0] != expected:
                    raise torch_pickle.Refused("it is a pickle, but not one of torch.save")
            system, _ = torch_pickle.load(source)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise torch_pickle.Refused("its numbers are not little-endian")
            value, storages = torch_pickle.load(source)
            tensors = _state_dict(value)
            keys, _ = torch_pickle.load(source)
            if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
                raise torch_pickle.Refused("its list of storages is not that of its tensors")
            numbers = {}
            for storage in (storages[str(key)] for key in keys):
                if struct.unpack("<q", source.read(8)) != (storage.size,):
                    raise torch_pickle.Refused(f"its storage {storage.key!r} has another size than its tensors say")
                numbers[storage.key] = _numbers(source.read(storage.size * storage.dtype.itemsize), storage)
    except (OSError, struct.error) as error:
        raise torch_pickle.Refused(f"it is damaged or cut off ({error})") from None
    return {name: tensor.materialise(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _numbers(data: bytes, storage: torch_pickle.Storage) -> np.ndarray:
    if len(data) != storage.size * storage.dtype.itemsize:
        has = f"{len(data)} bytes of {storage.size} numbers"
        raise torch_pickle.Refused(f"its storage {storage.key!r} is cut off: {has}")
    return np.frombuffer(data, storage.dtype)


def _state_dict(value: Any) -> dict[str, torch_pickle.Tensor]:
    """The tensors of a state dict, also of one inside a checkpoint."""
    if _is_state_dict(value):
        return dict(value)
    if not isinstance(value, Mapping):
        raise torch_pickle.Refused(f"it holds a {type(value).__name__} and not a state dict")
    inner = [key for key, part in value.items() if _is_state_dict(part)]
    chosen = [key for key in _WRAPPERS if key in inner] or inner
    if not chosen:
        others = [str(key) for key, part in value.items() if not isinstance(part, torch_pickle.Tensor)]
        raise torch_pickle.Refused(f"it is no state dict: {', '.join(others[:3]) or 'nothing'} in it is no tensor")
    if len(chosen) > 1:
        raise torch_pickle.Refused(f"it has several state dicts: {', '.join(map(str, chosen))}")
    return dict(value[chosen[0]])


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and isinstance(item, torch_pickle.Tensor) for key, item in value.items())
