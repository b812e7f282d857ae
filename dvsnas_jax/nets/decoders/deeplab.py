"""The decoder of DeepLabv3+ (Chen et al., ECCV 2018, arXiv 1802.02611): atrous spatial pyramid, low-level branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.decoders import decoder
from dvsnas_jax.nets.kernels import layers

RATES = (6, 12, 18)
"""Dilations of the pyramid at stride 16; half of them at stride 32."""
LOW_LEVEL_CHANNELS = 48


class SeparableConv(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, each with normalisation and ReLU."""

    features: int
    dilation: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, h, w, features]."""
        shared: dict[str, Any] = {"activation_fn": blocks.relu, "dtype": self.dtype}
        x = blocks.ConvNorm(None, size=3, dilation=self.dilation, **shared, name="depthwise")(x, train)
        return blocks.ConvNorm(self.features, **shared, name="pointwise")(x, train)


class DeepLab(nn.Module):
    """The decoder up to the map before the classifier; 256 channels as published."""

    channels: int = 256
    output_stride: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """Maps `stage1` and `stage4` -> [B, h, w, channels] at the grid of `stage1`."""
        shared: dict[str, Any] = {"activation_fn": blocks.relu, "dtype": self.dtype}
        low, deep = maps["stage1"], maps["stage4"]
        branches = [blocks.ConvNorm(self.channels, **shared, name="aspp_1x1")(deep, train)]
        for rate in RATES:
            dilation = rate * 16 // self.output_stride
            branches.append(SeparableConv(self.channels, dilation, self.dtype, name=f"aspp_rate{rate}")(deep, train))
        pooled = layers.global_average_pool(deep)[:, :1, :1]
        pooled = blocks.ConvNorm(self.channels, **shared, name="aspp_pool")(pooled, train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = blocks.ConvNorm(self.channels, **shared, name="project")(jnp.concatenate(branches, axis=-1), train)
        y = layers.resize_bilinear(y, (low.shape[1], low.shape[2]))
        low_channels = max(LOW_LEVEL_CHANNELS * self.channels // 256, 1)
        low = blocks.ConvNorm(low_channels, **shared, name="low_level")(low, train)
        y = jnp.concatenate([y, low], axis=-1)
        for index in (1, 2):
            y = SeparableConv(self.channels, dtype=self.dtype, name=f"refine{index}")(y, train)
        return y


RECORD = decoder.Decoder(name="deeplab", make_fn=DeepLab, options=("output_stride",), order=1)
