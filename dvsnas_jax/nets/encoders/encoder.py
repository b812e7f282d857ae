"""What the program knows of an encoder. Whoever needs to know more of one asks its record, never its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from dvsnas_jax.nets import decoders
from dvsnas_jax.nets.decoders import decoder
from dvsnas_jax.nets.kernels import layers

Names = Iterator[tuple[str, str]]
"""Pairs of a path in the variables ("params/encoder/layer1/kernel") and what a file calls that tensor."""


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """PyTorch's files of an encoder's weights, alone or with a decoder.

    Attributes:
      names: of the encoder's weights, see `Names`; a decoder's are in its own record.
      settings: keys of the config's section `net` that these weights need.
      head: beginnings of names of what is in such a file and not in the network.
    """

    names: Iterable[tuple[str, str]]
    settings: Mapping[str, Any]
    head: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Package:
    """A Python package that brings a file of weights trained on ImageNet (`torch_files[""]` names what is in it).

    Attributes:
      name: as pip calls it; `version` is the one whose file this is.
      file: its place below the folder that the package is installed in.
      sha256: of the file, in full.
    """

    name: str
    version: str
    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder of the static network.

    Attributes:
      name: what `config.net.encoder` calls it.
      make_fn: (width, output_stride, is_frozen, dtype, name, and `options`) -> module. It takes f32 images
        [B, H, W, 3], `train` and `last` and gives maps by name, `stage1` .. `stage4` among them, at strides 4, 8, 16
        and output_stride; none after the one that `last` names. Where it `goes_on`, also `found`: maps that it gave for
        these images, to go on from.
      channels_fn: width -> channels of the four stages.
      options: further attributes of `static_net.StaticNet` that `make_fn` takes.
      output_strides: that it can do.
      mean: of the images' values (RGB, 0..1) as it expects them, taken off.
      std: then divided by.
      norm_epsilon: of its `blocks.ConvNorm`, which `blocks.fold` has to know.
      torch_files: which ones can be imported: "" (a classifier; the encoder is taken) or the decoder that they hold.
      imagenet: what `net.weights=imagenet` starts from; None: there is no such package.
      goes_on: whether it takes `found`; then a key frame that was looked at goes on from what the look computed.
      own_decoders: by their names in the table, those that on this encoder are others.
      order: place in the table.
    """

    name: str
    make_fn: Callable[..., nn.Module]
    channels_fn: Callable[[float], tuple[int, ...]]
    options: tuple[str, ...] = ()
    output_strides: tuple[int, ...] = (16, 32)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    norm_epsilon: float = layers.NORM_EPS
    torch_files: Mapping[str, TorchFile] = dataclasses.field(default_factory=dict)
    imagenet: Package | None = None
    goes_on: bool = False
    own_decoders: Mapping[str, decoder.Decoder] = dataclasses.field(default_factory=dict)
    order: int = 0

    def decoder_for(self, name: str) -> decoder.Decoder:
        """The decoder of this name on this encoder."""
        return self.own_decoders.get(name) or decoders.TABLE[name]


def resumed(names: Sequence[str], found: Mapping[str, jax.Array]) -> tuple[int, jax.Array | None]:
    """How many stages of these names are done where some maps are there, and the deepest of the maps; 0 and None."""
    done = max((index + 1 for index, name in enumerate(names) if name in found), default=0)
    return done, found[names[done - 1]] if done else None


def scaled(channels: int, width: float) -> int:
    """Channels under a width multiplier: the nearest multiple of 8, at least 8, never below 90 % of the product."""
    target = channels * width
    rounded = max(8, int(target + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * target else rounded


def conv_norm_names(path: str, conv: str, norm: str) -> Names:
    """Those of the five tensors of a `blocks.ConvNorm` of the encoder."""
    yield f"params/encoder/{path}/kernel", f"{conv}.weight"
    yield f"params/encoder/{path}/scale", f"{norm}.weight"
    yield f"params/encoder/{path}/bias", f"{norm}.bias"
    yield f"batch_stats/encoder/{path}/mean", f"{norm}.running_mean"
    yield f"batch_stats/encoder/{path}/var", f"{norm}.running_var"
