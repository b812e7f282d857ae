"""Weights from PyTorch: torchvision's MobileNetV2 and ResNet classifiers, the authors' light-weight RefineNet."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.nets import encoders, static_net
from dvsnas_jax.nets.encoders import encoder as encoder_lib
from dvsnas_jax.nets.weights import torch_files, weights_folder

_COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the tensors of a file; all names are the file's.

    Attributes:
      used: went into the network.
      unused: known, but of no use here: a classifier's head, counters of batches.
      missing: the network needs them, the file has none.
      left_over: in the file, unknown to the network.
      other_shape: name -> (shape in the file, shape needed), both in PyTorch's order.
      wrong_type: name -> type, where that is no floating-point number.
      bad_values: name -> what is wrong with its numbers.
    """

    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    wrong_type: dict[str, str]
    bad_values: dict[str, str]

    def problems(self) -> list[str]:
        """What --partial lets pass, one phrase a kind."""
        shapes = [f"{name} is {list(has)}, not {list(need)}" for name, (has, need) in self.other_shape.items()]
        kinds = {"missing": self.missing, "left over": self.left_over, "of another shape": shapes}
        return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]

    def faults(self) -> list[str]:
        """What nothing lets pass."""
        kinds = {"of a wrong type": self.wrong_type, "with bad values": self.bad_values}
        listed = {kind: [f"{name}: {what}" for name, what in found.items()] for kind, found in kinds.items()}
        return [f"{len(names)} {kind} ({_some(names)})" for kind, names in listed.items() if names]


def nets() -> dict[str, tuple[str, str]]:
    """What `--net` may be: the key of an encoder, of which torchvision's classifier is taken, or of a decoder and an
    encoder, whose authors' files have both. Its encoder, and its decoder or ""."""
    pairs = [(encoder, decoder) for encoder, record in encoders.TABLE.items() for decoder in record.torch_files]
    named = {f"{decoder}_{encoder}".removeprefix("_"): (encoder, decoder) for encoder, decoder in pairs}
    return dict(sorted(named.items(), key=lambda item: item[1][1]))


def _file(net: str) -> encoder_lib.TorchFile:
    encoder, decoder = nets()[net]
    return encoders.TABLE[encoder].torch_files[decoder]


def import_file(
    path: str | os.PathLike[str],
    net: str,
    output: str | os.PathLike[str],
    *,
    width: float = 1.0,
    num_classes: int | None = None,
    is_partial: bool = False,
) -> Report:
    """Writes a PyTorch file's tensors as a folder `output` that `config.net.weights` can name.

    Args:
      path: of the file.
      net: a key of `nets`.
      output: the folder.
      width: multiplier of the encoder's channels.
      num_classes: K of the network; None: as in the file.
      is_partial: take what fits where tensors are missing, left over or of another shape.

    Raises:
      UserError: the file is refused, or does not fit exactly and `is_partial` is False.
    """
    if net not in nets():
        raise errors.UserError(f"--net: unknown {net!r}, allowed are {', '.join(nets())}")
    if not (0 < width < math.inf):
        raise errors.UserError(f"--width: must be above 0, got {width:g}")
    if num_classes is not None and num_classes < 1:
        raise errors.UserError(f"--classes: must be at least 1, got {num_classes}")
    weights_folder.refuse_other(output)
    kind, tensors = torch_files.read(path)
    net_settings = settings(net, width)
    names = tensor_names(net)
    classes = num_classes or _num_classes(names, tensors)
    report, found = _match(tensors, names, wanted(net, width, classes), unused=_file(net).head)
    if report.faults():
        raise errors.UserError(
            f"{path}: does not fit {net}: {'; '.join(report.faults())}; give a file of trained weights of {net}"
        )
    if report.problems() and not is_partial:
        raise errors.UserError(
            f"{path}: does not fit {net}: {'; '.join(report.problems())}; give another --net, or add --partial to take "
            "what fits"
        )
    if not found:
        raise errors.UserError(f"{path}: not one tensor of it fits {net}; see them with `dvsnas weights inspect`")
    ours = {theirs: name for name, theirs in names.items()}
    manifest = {
        "source": pathlib.Path(path).name,
        "sha256": hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest(),
        "kind": kind,
        "net": {**net_settings, "num_classes": classes} if nets()[net][1] else net_settings,
        "used": len(report.used),
        "unused": list(report.unused),
        "missing": sorted(ours[name] for name in (*report.missing, *report.other_shape)),
        "left_over": list(report.left_over),
    }
    weights_folder.save(output, found, manifest)
    return report


def _match(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    unused: tuple[str, ...],
) -> tuple[Report, dict[str, np.ndarray]]:
    """Compares a file with what a network needs: names and shapes by path in the variables, and beginnings of names
    that are known to be of no use. Gives the tensors that fit, f32, in this package's layout and by path."""
    ours = {theirs: name for name, theirs in names.items()}
    found, other_shape, wrong_type, bad_values = {}, {}, {}, {}
    for name in (name for name in tensors if name in ours):
        path, value = ours[name], tensors[name]
        needed = torch_shape(wanted[path])
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            wrong_type[name] = value.dtype.name
        elif value.shape != needed:
            other_shape[name] = (value.shape, needed)
        elif problem := _bad_values(path, value):
            bad_values[name] = problem
        else:
            found[path] = _from_torch(value, wanted[path])
    rest = [name for name in tensors if name not in ours]
    is_known = {name: name.endswith(_COUNTER) or name.startswith(unused) for name in rest}
    report = Report(
        used=tuple(names[path] for path in found),
        unused=tuple(name for name in rest if is_known[name]),
        missing=tuple(name for name in ours if name not in tensors),
        left_over=tuple(name for name in rest if not is_known[name]),
        other_shape=other_shape,
        wrong_type=wrong_type,
        bad_values=bad_values,
    )
    return report, found


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a PyTorch file holds, and which networks it fits.

    Returns:
      kind, tensors (name -> [shape, type]), parameters (numbers in all but counters and running statistics),
      non_finite (names) and fits (keys of `nets` of which it has every tensor by name).

    Raises:
      UserError: the file is refused.
    """
    kind, tensors = torch_files.read(path)
    statistics = (_COUNTER, ".running_mean", ".running_var")
    return {
        "kind": kind,
        "tensors": {name: [list(value.shape), value.dtype.name] for name, value in tensors.items()},
        "parameters": sum(value.size for name, value in tensors.items() if not name.endswith(statistics)),
        "non_finite": [name for name, value in tensors.items() if not _is_finite(value)],
        "fits": [net for net in nets() if set(tensor_names(net).values()) <= tensors.keys()],
    }


def tensor_names(net: str) -> dict[str, str]:
    """Path in the variables -> name in the file, of all weights that a file for one of `nets` has for us."""
    encoder, decoder = nets()[net]
    names = dict(_file(net).names)
    return names | dict(encoders.TABLE[encoder].decoder_for(decoder).torch_names) if decoder else names


def settings(net: str, width: float = 1.0) -> dict[str, Any]:
    """The keys of the config's section `net` that weights of one of `nets` need."""
    encoder, decoder = nets()[net]
    found = {"encoder": encoder, "width": width, **_file(net).settings}
    if decoder:
        found |= {"decoder": decoder, "decoder_channels": encoders.TABLE[encoder].decoder_for(decoder).torch_channels}
    return found


def wanted(net: str, width: float, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the variables that have a name in a file for one of `nets`, by path."""
    config = config_lib.defaults().net
    config.update(settings(net, width))
    shapes = weights_folder.flatten(static_net.shapes(static_net.make(config, num_classes)))
    return {path: shapes[path].shape for path in tensor_names(net)}


def _num_classes(names: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> int:
    """K of a file; 1 where it does not say."""
    bias = tensors.get(names.get("params/classifier/bias", ""))
    return len(bias) if bias is not None and bias.ndim == 1 and len(bias) else 1


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's order of a shape of ours."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return (shape[2], 1, shape[0], shape[1]) if len(shape) == 3 else shape  # three axes: depthwise


def _from_torch(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[Cout, Cin, kh, kw] -> [kh, kw, Cin, Cout], a depthwise [C, 1, kh, kw] -> [kh, kw, C]; f32 of that shape."""
    value = value.astype(np.float32)
    return value.transpose(2, 3, 1, 0).reshape(shape) if value.ndim == 4 else value


def _is_finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(value.astype(np.float64)).all())


def _bad_values(path: str, value: np.ndarray) -> str | None:
    """What is wrong with the numbers of a tensor, None where nothing is."""
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    if not _is_finite(single):
        return "not all finite in float32"
    if path.endswith("/var") and (value < 0).any():
        return "a negative variance"
    return None


def _some(names: Any, count: int = 3) -> str:
    """The first names of many."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
