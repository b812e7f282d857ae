"""MobileNetV2 as an encoder (Sandler et al., CVPR 2018, arXiv 1801.04381), in the variant of light-weight RefineNet.

Every block keeps its 1x1 expansion, also the first one; projections are linear; there is no 1280-channel head.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dvsnas_jax.nets import layers

STEM_CHANNELS = 32
STAGES = (
    # expansion, channels, blocks, stride of the first block; named layer2 .. layer8
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
NORM_DECAY = 0.9


def scaled(channels: int, width: float) -> int:
    """Channels under a width multiplier: the nearest multiple of 8, at least 8, never below 90 % of the product."""
    target = channels * width
    rounded = max(8, int(target + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * target else rounded


def stage_channels(width: float) -> dict[str, int]:
    """Channels of the maps `layer2` .. `layer8`."""
    return {f"layer{i}": scaled(stage[1], width) for i, stage in enumerate(STAGES, start=2)}


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and, if wanted, ReLU6.

    In evaluation the running statistics are folded into the kernel.

    Attributes:
      features: output channels; None: a depthwise convolution.
      size: side of the kernel.
      stride: of the output grid.
      is_active: whether ReLU6 follows.
      dtype: of the computation; parameters and statistics are float32.
    """

    features: int | None
    size: int = 1
    stride: int = 1
    is_active: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        channels = self.features or x.shape[-1]
        shape = (self.size, self.size, x.shape[-1]) + (() if self.features is None else (channels,))
        kernel = self.param("kernel", layers.he_normal, shape)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        conv_fn = layers.depthwise_conv if self.features is None else layers.conv
        x = x.astype(self.dtype)
        if train:
            y = conv_fn(x, kernel, stride=self.stride)
            batch_mean, batch_var = layers.batch_moments(y)
            y = layers.normalize(y, scale, bias, batch_mean, batch_var)
            if not self.is_initializing():
                mean.value = NORM_DECAY * mean.value + (1 - NORM_DECAY) * batch_mean
                var.value = NORM_DECAY * var.value + (1 - NORM_DECAY) * batch_var
        else:
            factor = scale * lax.rsqrt(var.value + layers.NORM_EPS)
            y = conv_fn(x, kernel * layers.per_channel(factor, kernel.ndim), stride=self.stride)
            y = y + layers.per_channel((bias - mean.value * factor).astype(self.dtype), 4)
        return jnp.clip(y, 0, 6) if self.is_active else y


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; the input is added where shapes agree.

    Attributes:
      features: output channels.
      expansion: factor of the inner channels.
      stride: of the output grid.
      dtype: of the computation.
    """

    features: int
    expansion: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        y = ConvNorm(x.shape[-1] * self.expansion, dtype=self.dtype, name="expand")(x, train)
        y = ConvNorm(None, size=3, stride=self.stride, dtype=self.dtype, name="depthwise")(y, train)
        y = ConvNorm(self.features, is_active=False, dtype=self.dtype, name="project")(y, train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """The encoder.

    Attributes:
      width: multiplier of all channels, the stem's too.
      dtype: of the computation.
    """

    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """f32 [B, H, W, 3] -> maps `layer2` (stride 2), `layer3` (4), `layer4` (8), `layer5`, `layer6` (16),
        `layer7`, `layer8` (32); sizes are ceil(n / stride), step by step."""
        stem = scaled(STEM_CHANNELS, self.width)
        x = ConvNorm(stem, size=3, stride=2, dtype=self.dtype, name="layer1")(images, train)
        maps = {}
        for index, (expansion, channels, blocks, stride) in enumerate(STAGES, start=2):
            for block in range(blocks):
                x = InvertedResidual(
                    scaled(channels, self.width),
                    expansion,
                    stride if block == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{index}_{block}",
                )(x, train)
            maps[f"layer{index}"] = x
        return maps
