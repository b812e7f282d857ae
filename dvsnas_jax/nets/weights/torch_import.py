"""Weights from PyTorch: torchvision's MobileNetV2 and ResNet classifiers, EfficientNet-Lite in its widespread port, the
authors' light-weight RefineNet."""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.nets import encoders, static_net
from dvsnas_jax.nets.weights import torch_files, torch_match, weights_folder


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
) -> torch_match.Report:
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
    report, found = torch_match.match(tensors, source.names, source.head, source.shapes(classes))
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


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a PyTorch file holds, and which networks it fits.

    Returns:
      kind, tensors (name -> [shape, type]), parameters (numbers in all but counters and running statistics),
      non_finite (names) and fits (keys of `sources` of which it has every tensor by name).

    Raises:
      UserError: the file is refused.
    """
    kind, tensors = torch_files.read(path)
    return {
        "kind": kind,
        "tensors": {name: [list(value.shape), value.dtype.name] for name, value in tensors.items()},
        "parameters": sum(value.size for name, value in tensors.items() if not name.endswith(torch_match.STATISTICS)),
        "non_finite": [name for name, value in tensors.items() if not torch_match.is_finite(value)],
        "fits": [net for net, source in sources().items() if set(source.names.values()) <= tensors.keys()],
    }


def _num_classes(source: Source, tensors: Mapping[str, np.ndarray]) -> int:
    """K of a file; 1 where it does not say."""
    bias = tensors.get(source.names.get("params/classifier/bias", ""))
    return len(bias) if bias is not None and bias.ndim == 1 and len(bias) else 1
