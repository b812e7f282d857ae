"""The decoders of light-weight RefineNet (Nekrasov, Shen, Reid, BMVC 2018, arXiv 1810.03272)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.decoders import decoder
from dvsnas_jax.nets.kernels import layers

MOBILENET_LEVELS = (
    # number of the chained pooling, encoder maps that enter there by the number of their convolution; coarsest first
    (4, {8: "stage4", 7: "layer7"}),
    (3, {6: "stage3", 5: "layer5"}),
    (2, {4: "stage2"}),
    (1, {3: "stage1"}),
)
POOL_STAGES = 4
POOL_WINDOW = 5


class ChainedPooling(nn.Module):
    """Chained residual pooling: four times max-pool 5x5 and 1x1 convolution, each result added to the map."""

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
    """The decoder on MobileNetV2 maps up to the map before the classifier; 256 channels as published."""

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """The maps of `MOBILENET_LEVELS` -> [B, h, w, channels] at the grid of `stage1`."""
        del train  # it has neither normalisation nor dropout
        y: jax.Array | None = None
        for level, laterals in MOBILENET_LEVELS:
            parts = [
                blocks.Pointwise(self.channels, self.dtype, name=f"conv{i}")(maps[name])
                for i, name in laterals.items()
            ]  # fmt: skip
            if y is not None:
                y = blocks.Pointwise(self.channels, self.dtype, name=f"adapt{level + 1}")(y)
                parts.append(_raised(y, parts[0]))
            y = ChainedPooling(self.dtype, name=f"pool{level}")(blocks.relu6(sum(parts[1:], parts[0])))
        assert y is not None
        return y


class RefineNet(nn.Module):
    """The decoder on the maps of any encoder, published on ResNets, up to the map before the classifier.

    Its coarsest level has twice the channels (256 as published). Training drops the share `dropout` of the values of
    the two deepest maps (0.5 as published); above 0 it needs a key: `rngs={"dropout": ...}`.
    """

    channels: int = 256
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """Maps `stage1` .. `stage4` -> [B, h, w, channels] at the grid of `stage1`."""
        y: jax.Array | None = None
        for level in (4, 3, 2, 1):
            x = maps[f"stage{level}"]
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


def _pool_names(level: int, theirs: str) -> Iterator[tuple[str, str]]:
    for stage in range(1, POOL_STAGES + 1):
        yield f"params/decoder/pool{level}/pointwise{stage}/kernel", f"{theirs}.0.{stage}_outvar_dimred.weight"


def _mobilenet_names() -> Iterator[tuple[str, str]]:
    for level, laterals in MOBILENET_LEVELS:
        for i in laterals:
            yield f"params/decoder/conv{i}/kernel", f"conv{i}.weight"
        yield from _pool_names(level, f"crp{level}")
        if level > 1:
            yield f"params/decoder/adapt{level}/kernel", f"conv_adapt{level}.weight"
    yield "params/classifier/kernel", "segm.weight"
    yield "params/classifier/bias", "segm.bias"


def _resnet_names() -> Iterator[tuple[str, str]]:
    for level in (4, 3, 2, 1):
        group = 5 - level  # counted from the coarsest
        yield f"params/decoder/reduce{level}/kernel", f"p_ims1d2_outl{group}_dimred.weight"
        if level < 4:
            yield f"params/decoder/adapt{level}/kernel", f"adapt_stage{group}_b2_joint_varout_dimred.weight"
        yield from _pool_names(level, f"mflow_conv_g{group}_pool")
        if level > 1:
            yield f"params/decoder/merge{level}/kernel", f"mflow_conv_g{group}_b3_joint_varout_dimred.weight"
    yield "params/classifier/kernel", "clf_conv.weight"
    yield "params/classifier/bias", "clf_conv.bias"


RECORD = decoder.Decoder("refinenet", RefineNet, options=("dropout",), torch_names=tuple(_resnet_names()))
ON_MOBILENET = decoder.Decoder("refinenet", MobileNetRefineNet, torch_names=tuple(_mobilenet_names()))
