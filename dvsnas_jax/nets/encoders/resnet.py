"""Residual networks as encoders (He et al., CVPR 2016, arXiv 1512.03385), v1.5 as in torchvision."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.encoders import encoder
from dvsnas_jax.nets.kernels import layers

STEM_CHANNELS = 64
STAGE_CHANNELS = (64, 128, 256, 512)
BOTTLENECK = 4
"""Output channels over inner channels of a bottleneck block."""


class Block(nn.Module):
    """A residual block: 3x3, 3x3, or as a bottleneck 1x1, 3x3, 1x1; the shortcut is projected where shapes differ.

    `stride_in_1x1`: a bottleneck strides in its first convolution (the original) and not in its 3x3 one (v1.5).
    """

    features: int
    is_bottleneck: bool
    stride: int = 1
    dilation: int = 1
    stride_in_1x1: bool = False
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, ceil(h / stride), ceil(w / stride), features or 4 * features]."""
        shared: dict[str, Any] = {"is_frozen": self.is_frozen, "dtype": self.dtype}
        inner: dict[str, Any] = {"activation_fn": blocks.relu, **shared}
        wide = {"size": 3, "dilation": self.dilation, **inner}
        if self.is_bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = blocks.ConvNorm(self.features, stride=first, **inner, name="conv1")(x, train)
            y = blocks.ConvNorm(self.features, stride=second, **wide, name="conv2")(y, train)
            features, size, last = self.features * BOTTLENECK, 1, "conv3"
        else:
            y = blocks.ConvNorm(self.features, stride=self.stride, **wide, name="conv1")(x, train)
            features, size, last = self.features, 3, "conv2"
        y = blocks.ConvNorm(features, size=size, activation_fn=None, **shared, name=last)(y, train)
        if self.stride > 1 or x.shape[-1] != features:
            shortcut = {"stride": self.stride, "activation_fn": None, **shared}
            x = blocks.ConvNorm(features, **shortcut, name="downsample")(x, train)
        return blocks.relu(x + y)


class ResNet(nn.Module):
    """The encoder, of so many blocks a stage; at output stride 16 the last stage keeps its grid and is dilated."""

    num_blocks: tuple[int, ...]
    is_bottleneck: bool
    width: float = 1.0
    stride_in_1x1: bool = False
    output_stride: int = 32
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, last: str = "stage4", found: Mapping[str, jax.Array] | None = None
    ) -> dict[str, jax.Array]:
        """f32 [B, H, W, 3] -> maps `stage1` .. `stage4`, as far as `last`; `found`: see `encoder.Encoder.make_fn`."""
        shared: dict[str, Any] = {"is_frozen": self.is_frozen, "dtype": self.dtype}
        stem = {"size": 7, "stride": 2, "activation_fn": blocks.relu, **shared}
        maps: dict[str, jax.Array] = dict(found or {})
        done, x = encoder.resumed([f"stage{index}" for index in (1, 2, 3, 4)], maps)
        if x is None:
            x = blocks.ConvNorm(encoder.scaled(STEM_CHANNELS, self.width), **stem, name="conv1")(images, train)
            x = layers.max_pool(x, 3, stride=2)
        for index, (num, channels) in enumerate(zip(self.num_blocks, STAGE_CHANNELS, strict=True), start=1):
            if index <= done:
                continue
            is_dilated = index == 4 and self.output_stride == 16
            for block in range(num):
                x = Block(
                    encoder.scaled(channels, self.width),
                    self.is_bottleneck,
                    stride=2 if block == 0 and index > 1 and not is_dilated else 1,
                    dilation=2 if is_dilated and block > 0 else 1,
                    stride_in_1x1=self.stride_in_1x1,
                    **shared,
                    name=f"layer{index}_{block}",
                )(x, train)
            maps[f"stage{index}"] = x
            if last in maps:
                break
        return maps


def _names(num_blocks: tuple[int, ...], is_bottleneck: bool) -> encoder.Names:
    """Torchvision's, which the authors of light-weight RefineNet keep."""
    yield from encoder.conv_norm_names("conv1", "conv1", "bn1")
    for stage, num in enumerate(num_blocks, start=1):
        for block in range(num):
            ours, theirs = f"layer{stage}_{block}", f"layer{stage}.{block}"
            for i in (1, 2, 3) if is_bottleneck else (1, 2):
                yield from encoder.conv_norm_names(f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or is_bottleneck):
                shortcut = f"{theirs}.downsample"
                yield from encoder.conv_norm_names(f"{ours}/downsample", f"{shortcut}.0", f"{shortcut}.1")


def _record(
    order: int, name: str, num_blocks: tuple[int, ...], *, is_bottleneck: bool, has_refinenet: bool
) -> encoder.Encoder:
    """The record of one of them; `has_refinenet`: the authors of light-weight RefineNet published it on this one."""
    factor = BOTTLENECK if is_bottleneck else 1
    names = tuple(_names(num_blocks, is_bottleneck))
    settings = {"stride_in_1x1": False}
    files = {"": encoder.TorchFile(names, settings, head=("fc.",))}
    if has_refinenet:
        files["refinenet"] = encoder.TorchFile(names, settings)
    return encoder.Encoder(
        name=name,
        make_fn=functools.partial(ResNet, num_blocks, is_bottleneck),
        goes_on=True,
        channels_fn=lambda width: tuple(factor * encoder.scaled(inner, width) for inner in STAGE_CHANNELS),
        options=("stride_in_1x1",),
        torch_files=files,
        order=order,
    )


RECORDS = (
    _record(1, "resnet18", (2, 2, 2, 2), is_bottleneck=False, has_refinenet=False),
    _record(2, "resnet50", (3, 4, 6, 3), is_bottleneck=True, has_refinenet=True),
    _record(3, "resnet101", (3, 4, 23, 3), is_bottleneck=True, has_refinenet=True),
)
