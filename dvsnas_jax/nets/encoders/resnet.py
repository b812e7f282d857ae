"""Residual networks as encoders (He et al., CVPR 2016, arXiv 1512.03385), v1.5 as in torchvision."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.encoders import mobilenet
from dvsnas_jax.nets.kernels import layers

STEM_CHANNELS = 64
STAGE_CHANNELS = (64, 128, 256, 512)
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""Blocks of the four stages."""
BOTTLENECK = 4
"""Output channels over inner channels of a bottleneck block."""
FEATURES = {"stage1": "layer1", "stage2": "layer2", "stage3": "layer3", "stage4": "layer4"}
"""The maps that other packages see, at strides 4, 8, 16 and 32 (or 16)."""


def has_bottlenecks(name: str) -> bool:
    """Whether the blocks are 1x1, 3x3, 1x1 instead of 3x3, 3x3."""
    return name != "resnet18"


def stage_channels(name: str, width: float) -> dict[str, int]:
    """Channels of the maps `layer1` .. `layer4`."""
    factor = BOTTLENECK if has_bottlenecks(name) else 1
    return {f"layer{i}": factor * mobilenet.scaled(inner, width) for i, inner in enumerate(STAGE_CHANNELS, start=1)}


class Block(nn.Module):
    """A residual block; the shortcut is projected where shapes differ.

    Attributes:
      features: inner channels.
      is_bottleneck: 1x1, 3x3, 1x1 with 4 times the channels at the end, else 3x3, 3x3.
      stride: of the output grid.
      dilation: of the 3x3 convolution of a bottleneck.
      stride_in_1x1: a bottleneck strides in its first convolution (the original) and not in its 3x3 one (v1.5).
      is_frozen: see `blocks.ConvNorm`.
      dtype: of the computation.
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
        if self.is_bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = blocks.ConvNorm(self.features, stride=first, **inner, name="conv1")(x, train)
            y = blocks.ConvNorm(
                self.features, size=3, stride=second, dilation=self.dilation, **inner, name="conv2"
            )(y, train)  # fmt: skip
            features, size, last = self.features * BOTTLENECK, 1, "conv3"
        else:
            y = blocks.ConvNorm(
                self.features, size=3, stride=self.stride, dilation=self.dilation, **inner, name="conv1"
            )(x, train)  # fmt: skip
            features, size, last = self.features, 3, "conv2"
        y = blocks.ConvNorm(features, size=size, activation_fn=None, **shared, name=last)(y, train)
        if self.stride > 1 or x.shape[-1] != features:
            x = blocks.ConvNorm(
                features, stride=self.stride, activation_fn=None, **shared, name="downsample"
            )(x, train)  # fmt: skip
        return blocks.relu(x + y)


class ResNet(nn.Module):
    """The encoder, without the classifier.

    Attributes:
      variant: a key of `BLOCKS`.
      width: multiplier of all channels.
      stride_in_1x1: see `Block`.
      output_stride: 32, or 16: the last stage keeps its grid and is dilated instead.
      is_frozen: see `blocks.ConvNorm`.
      dtype: of the computation.
    """

    variant: str
    width: float = 1.0
    stride_in_1x1: bool = False
    output_stride: int = 32
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, last: str = "layer4") -> dict[str, jax.Array]:
        """f32 [B, H, W, 3] -> maps `layer1` (stride 4), `layer2` (8), `layer3` (16), `layer4` (output_stride), as far
        as `last`."""
        shared: dict[str, Any] = {"is_frozen": self.is_frozen, "dtype": self.dtype}
        x = blocks.ConvNorm(
            mobilenet.scaled(STEM_CHANNELS, self.width), size=7, stride=2,
            activation_fn=blocks.relu, **shared, name="conv1",
        )(images, train)  # fmt: skip
        x = layers.max_pool(x, 3, stride=2)
        maps = {}
        for index, num_blocks in enumerate(BLOCKS[self.variant], start=1):
            is_dilated = index == 4 and self.output_stride == 16
            for block in range(num_blocks):
                x = Block(
                    mobilenet.scaled(STAGE_CHANNELS[index - 1], self.width),
                    has_bottlenecks(self.variant),
                    stride=2 if block == 0 and index > 1 and not is_dilated else 1,
                    dilation=2 if is_dilated and block > 0 else 1,
                    stride_in_1x1=self.stride_in_1x1,
                    **shared,
                    name=f"layer{index}_{block}",
                )(x, train)
            maps[f"layer{index}"] = x
            if last in maps:
                break
        return maps
