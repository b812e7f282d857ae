"""MobileNetV2 as an encoder (Sandler et al., CVPR 2018, arXiv 1801.04381), without its 1280-channel head.

Projections are linear. The first block has its 1x1 expansion (as in light-weight RefineNet) or not (as in torchvision).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks

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
FEATURES = {"stage1": "layer3", "stage2": "layer4", "stage3": "layer6", "stage4": "layer8"}
"""The maps that other packages see, at strides 4, 8, 16 and 32 (or 16)."""


def scaled(channels: int, width: float) -> int:
    """Channels under a width multiplier: the nearest multiple of 8, at least 8, never below 90 % of the product."""
    target = channels * width
    rounded = max(8, int(target + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * target else rounded


def stage_channels(width: float) -> dict[str, int]:
    """Channels of the maps `layer2` .. `layer8`."""
    return {f"layer{i}": scaled(stage[1], width) for i, stage in enumerate(STAGES, start=2)}


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; the input is added where shapes agree.

    Attributes:
      features: output channels.
      expansion: factor of the inner channels.
      stride: of the output grid.
      dilation: of the depthwise convolution.
      has_expansion: whether there is a 1x1 convolution before the depthwise one.
      is_frozen: see `blocks.ConvNorm`.
      dtype: of the computation.
    """

    features: int
    expansion: int
    stride: int
    dilation: int = 1
    has_expansion: bool = True
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, Cin] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        shared: dict[str, Any] = {"is_frozen": self.is_frozen, "dtype": self.dtype}
        y = x
        if self.has_expansion:
            y = blocks.ConvNorm(x.shape[-1] * self.expansion, **shared, name="expand")(y, train)
        y = blocks.ConvNorm(
            None, size=3, stride=self.stride, dilation=self.dilation, **shared, name="depthwise"
        )(y, train)  # fmt: skip
        y = blocks.ConvNorm(self.features, activation_fn=None, **shared, name="project")(y, train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """The encoder.

    Attributes:
      width: multiplier of all channels, the stem's too.
      expand_first: whether the first block has a 1x1 expansion.
      output_stride: 32, or 16: the last strided stage keeps its grid and is dilated instead.
      is_frozen: see `blocks.ConvNorm`.
      dtype: of the computation.
    """

    width: float = 1.0
    expand_first: bool = True
    output_stride: int = 32
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, last: str = "layer8") -> dict[str, jax.Array]:
        """f32 [B, H, W, 3] -> maps `layer2` (stride 2), `layer3` (4), `layer4` (8), `layer5`, `layer6` (16),
        `layer7`, `layer8` (output_stride), as far as `last`; sizes are ceil(n / stride), step by step."""
        shared: dict[str, Any] = {"is_frozen": self.is_frozen, "dtype": self.dtype}
        stem = scaled(STEM_CHANNELS, self.width)
        x = blocks.ConvNorm(stem, size=3, stride=2, **shared, name="layer1")(images, train)
        maps = {}
        reached, dilation = 2, 1
        for index, (expansion, channels, num_blocks, first_stride) in enumerate(STAGES, start=2):
            is_dilated = first_stride > 1 and reached == self.output_stride
            stride = 1 if is_dilated else first_stride
            reached *= stride
            for block in range(num_blocks):
                # The first block still sees the grid's old spacing, the later ones its doubled one (as torchvision).
                is_wide = is_dilated and block > 0
                x = InvertedResidual(
                    scaled(channels, self.width),
                    expansion,
                    stride if block == 0 else 1,
                    dilation=2 * dilation if is_wide else dilation,
                    has_expansion=index > 2 or self.expand_first,
                    **shared,
                    name=f"layer{index}_{block}",
                )(x, train)
            dilation *= 2 if is_dilated else 1
            maps[f"layer{index}"] = x
            if last in maps:
                break
        return maps
