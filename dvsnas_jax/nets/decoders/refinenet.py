"""The decoders of light-weight RefineNet (Nekrasov, Shen, Reid, BMVC 2018, arXiv 1810.03272)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.kernels import layers

MOBILENET_LEVELS = (
    # number of the chained pooling, the encoder maps that enter there; from the coarsest to the finest
    (4, (8, 7)),
    (3, (6, 5)),
    (2, (4,)),
    (1, (3,)),
)
POOL_STAGES = 4
POOL_WINDOW = 5


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
            top = blocks.Pointwise(x.shape[-1], self.dtype, name=f"pointwise{stage}")(top)
            x = x + top
        return x


def _raised(y: jax.Array, lateral: jax.Array) -> jax.Array:
    """A coarser level's map at the grid of a finer one, corners aligned."""
    return layers.resize_bilinear(y, (lateral.shape[1], lateral.shape[2]), align_corners=True)


class MobileNetRefineNet(nn.Module):
    """The decoder on MobileNetV2 maps up to the map before the classifier.

    Attributes:
      channels: of the decoder; 256 as published.
      dtype: of the computation.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """Encoder maps `layer3` .. `layer8` -> [B, h, w, channels] at the grid of `layer3`."""
        del train  # it has neither normalisation nor dropout
        y: jax.Array | None = None
        for level, laterals in MOBILENET_LEVELS:
            parts = [blocks.Pointwise(self.channels, self.dtype, name=f"conv{i}")(maps[f"layer{i}"]) for i in laterals]
            if y is not None:
                y = blocks.Pointwise(self.channels, self.dtype, name=f"adapt{level + 1}")(y)
                parts.append(_raised(y, parts[0]))
            y = ChainedPooling(self.dtype, name=f"pool{level}")(blocks.relu6(sum(parts[1:], parts[0])))
        assert y is not None
        return y


class ResNetRefineNet(nn.Module):
    """The decoder on ResNet maps up to the map before the classifier; its coarsest level has twice the channels.

    Attributes:
      channels: of the decoder; 256 as published.
      dropout: share of the values of the two deepest maps that training drops; 0.5 as published. Above 0, training
        needs a key: `rngs={"dropout": ...}`.
      dtype: of the computation.
    """

    channels: int = 256
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """Encoder maps `layer1` .. `layer4` -> [B, h, w, channels] at the grid of `layer1`."""
        y: jax.Array | None = None
        for level in (4, 3, 2, 1):
            x = maps[f"layer{level}"]
            if level >= 3 and self.dropout > 0:
                x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{level}")(x)
            width = self.channels * (2 if level == 4 else 1)
            adapt = None if y is None else blocks.Pointwise(width, self.dtype, name=f"adapt{level}")
            x = blocks.Pointwise(width, self.dtype, then=adapt, name=f"reduce{level}")(x)
            if y is not None:
                x = x + _raised(y, x)
            y = ChainedPooling(self.dtype, name=f"pool{level}")(blocks.relu(x))
            if level > 1:
                y = blocks.Pointwise(self.channels, self.dtype, name=f"merge{level}")(y)
        assert y is not None
        return y
