"""Weights from PyTorch: torchvision's MobileNetV2 and ResNet classifiers, the authors' light-weight RefineNet."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.nets import encoders, static_net
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
        kinds: dict[str, Sequence[str]] = {"missing": self.missing, "left over": self.left_over}
        kinds["of another shape"] = shapes
        return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]

    def faults(self) -> list[str]:
        """What nothing lets pass."""
        kinds = {"of a wrong type": self.wrong_type, "with bad values": self.bad_values}
        listed = {kind: [f"{name}: {what}" for name, what in found.items()] for kind, found in kinds.items()}
        return [f"{len(names)} {kind} ({_some(names)})" for kind, names in listed.items() if names]


class Source(NamedTuple):
    """PyTorch's files for one network.

    Attributes:
      names: path in the variables -> name in the file.
      settings: keys of the config's section `net` that the weights need.
      head: beginnings of names in the file that are known to be of no use.
      is_whole: whether a decoder and a classifier for segmentation are in it, too.
    """

    names: dict[str, str]
    settings: dict[str, Any]
    head: tuple[str, ...]
    is_whole: bool

    def shapes(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Path in the variables -> shape there."""
        config = config_lib.defaults().net
        config.update(self.settings)
        found = weights_folder.flatten(static_net.shapes(static_net.make(config, num_classes)))
        return {path: found[path].shape for path in self.names}


def sources(width: float = 1.0) -> dict[str, Source]:
    """What `--net` may be: an encoder, of which torchvision's classifier is taken, or DECODER_ENCODER, of which the
    decoder's authors have files. `width` multiplies the encoder's channels."""
    found = {}
    for encoder, record in encoders.TABLE.items():
        for decoder, file in record.torch_files.items():
            names, settings = dict(file.names), {"encoder": encoder, "width": width, **file.settings}
            if decoder:
                added = record.decoder_for(decoder)
                names |= dict(added.torch_names)
                settings |= {"decoder": decoder, "decoder_channels": added.torch_channels}
            found[f"{decoder}_{encoder}".removeprefix("_")] = Source(names, settings, file.head, bool(decoder))
    return dict(sorted(found.items(), key=lambda item: item[1].is_whole))


def import_file(
    path: str | os.PathLike[str],
    net: str,
    output: str | os.PathLike[str],
    *,
    width: float = 1.0,
    num_classes: int | None = None,
    is_partial: bool = False,
) -> Report:
    """Writes the tensors of a PyTorch file for `net`, a key of `sources`, as a folder that `config.net.weights` can
    name.

    Args:
      num_classes: K of the network; None: as in the file.
      is_partial: take what fits where tensors are missing, left over or of another shape.

    Raises:
      UserError: the file is refused, or does not fit exactly and `is_partial` is False.
    """
    source = sources(width).get(net)
    if source is None:
        raise errors.UserError(f"--net: unknown {net!r}, allowed are {', '.join(sources())}")
    if not (0 < width < math.inf):
        raise errors.UserError(f"--width: must be above 0, got {width:g}")
    if num_classes is not None and num_classes < 1:
        raise errors.UserError(f"--classes: must be at least 1, got {num_classes}")
    weights_folder.refuse_other(output)
    kind, tensors = torch_files.read(path)
    classes = num_classes or _num_classes(source, tensors)
    report, found = _match(tensors, source, source.shapes(classes))
    advice = f"give a file of trained weights of {net}"
    problems = report.faults()
    if not problems and not is_partial:
        advice, problems = "give another --net, or add --partial to take what fits", report.problems()
    if problems:
        raise errors.UserError(f"{path}: does not fit {net}: {'; '.join(problems)}; {advice}")
    if not found:
        raise errors.UserError(f"{path}: not one tensor of it fits {net}; see them with `dvsnas weights inspect`")
    ours = {theirs: name for name, theirs in source.names.items()}
    manifest = {
        "source": pathlib.Path(path).name,
        "sha256": hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest(),
        "kind": kind,
        "net": {**source.settings, "num_classes": classes} if source.is_whole else source.settings,
        "used": len(report.used),
        "unused": list(report.unused),
        "missing": sorted(ours[name] for name in (*report.missing, *report.other_shape)),
        "left_over": list(report.left_over),
    }
    weights_folder.save(output, found, manifest)
    return report


def _match(
    tensors: Mapping[str, np.ndarray], source: Source, wanted: Mapping[str, tuple[int, ...]]
) -> tuple[Report, dict[str, np.ndarray]]:
    """Compares a file with what a network needs. Gives the tensors that fit, f32, in this package's layout, by path."""
    ours = {theirs: name for name, theirs in source.names.items()}
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
    is_known = {name: name.endswith(_COUNTER) or name.startswith(source.head) for name in rest}
    report = Report(
        used=tuple(source.names[path] for path in found),
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
      non_finite (names) and fits (keys of `sources` of which it has every tensor by name).

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
        "fits": [net for net, source in sources().items() if set(source.names.values()) <= tensors.keys()],
    }


def _num_classes(source: Source, tensors: Mapping[str, np.ndarray]) -> int:
    """K of a file; 1 where it does not say."""
    bias = tensors.get(source.names.get("params/classifier/bias", ""))
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
    return "a negative variance" if path.endswith("/var") and (value < 0).any() else None


def _some(names: Sequence[str], count: int = 3) -> str:
    """The first names of many."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
