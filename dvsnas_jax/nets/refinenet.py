"""The decoder of light-weight RefineNet (Nekrasov, Shen, Reid, BMVC 2018, arXiv 1810.03272) on MobileNetV2 maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import layers

LEVELS = (
    # number of the chained pooling, the encoder maps that enter there; from the coarsest to the finest
    (4, (8, 7)),
    (3, (6, 5)),
    (2, (4,)),
    (1, (3,)),
)
POOL_STAGES = 4
POOL_WINDOW = 5


def kernel_scale(shape: tuple[int, ...]) -> float:
    """Standard deviation of the weights of a decoder kernel, sqrt(1 / (3 fan-in)).

    The decoder has no normalisation: He's larger kernels would drive its sums past the 6 of ReLU6, where gradients end.
    """
    return layers.he_scale(shape) / math.sqrt(6.0)


def init_kernel(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a decoder kernel, f32."""
    return jax.random.normal(rng, shape, jnp.float32) * kernel_scale(shape)


class Pointwise(nn.Module):
    """A 1x1 convolution without bias.

    Attributes:
      features: output channels.
      dtype: of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, Cin] -> [B, h, w, features]."""
        kernel = self.param("kernel", init_kernel, (1, 1, x.shape[-1], self.features))
        return layers.conv(x.astype(self.dtype), kernel)


class ChainedPooling(nn.Module):
    """Chained residual pooling: four times max-pool 5x5 and 1x1 convolution, each result added to the map.

    Attributes:
      dtype: of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        top = x
        for stage in range(1, POOL_STAGES + 1):
            top = layers.max_pool(top, POOL_WINDOW)
            top = Pointwise(x.shape[-1], self.dtype, name=f"pointwise{stage}")(top)
            x = x + top
        return x


class RefineNet(nn.Module):
    """The decoder up to the map before the classifier.

    Attributes:
      channels: of the decoder; 256 as published.
      dtype: of the computation.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array]) -> jax.Array:
        """Encoder maps `layer3` .. `layer8` -> [B, h, w, channels] at the grid of `layer3`."""
        y: jax.Array | None = None
        for level, laterals in LEVELS:
            parts = [Pointwise(self.channels, self.dtype, name=f"conv{i}")(maps[f"layer{i}"]) for i in laterals]
            if y is not None:  # from the coarser level, corners aligned
                y = Pointwise(self.channels, self.dtype, name=f"adapt{level + 1}")(y)
                size = (parts[0].shape[1], parts[0].shape[2])
                parts.append(layers.resize_bilinear(y, size, align_corners=True))
            y = jnp.clip(sum(parts[1:], parts[0]), 0, 6)
            y = ChainedPooling(self.dtype, name=f"pool{level}")(y)
        assert y is not None
        return y


class Classifier(nn.Module):
    """A 3x3 convolution with bias, the only one that has one.

    Attributes:
      num_classes: K.
      dtype: of the computation.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> logits [B, h, w, K]."""
        kernel = self.param("kernel", init_kernel, (3, 3, x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return layers.conv(x.astype(self.dtype), kernel) + layers.per_channel(bias.astype(self.dtype), 4)
