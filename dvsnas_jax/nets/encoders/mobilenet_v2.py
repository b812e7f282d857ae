"""MobileNetV2 as an encoder (Sandler et al., CVPR 2018, arXiv 1801.04381), without its 1280-channel head.

Projections are linear. The first block has its 1x1 expansion (as in light-weight RefineNet) or not (as in torchvision).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.decoders import refinenet
from dvsnas_jax.nets.encoders import encoder

STEM_CHANNELS = 32
STAGES = (
    # expansion, channels, blocks, stride of the first block, name of the map; their parameters are layer2 .. layer8
    (1, 16, 1, 1, "layer2"),
    (6, 24, 2, 2, "stage1"),
    (6, 32, 3, 2, "stage2"),
    (6, 64, 4, 2, "layer5"),
    (6, 96, 3, 1, "stage3"),
    (6, 160, 3, 2, "layer7"),
    (6, 320, 1, 1, "stage4"),
)


class MobileNetV2(nn.Module):
    """The encoder; at output stride 16 the last strided stage keeps its grid and is dilated instead."""

    width: float = 1.0
    expand_first: bool = True
    output_stride: int = 32
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, last: str = "stage4", found: Mapping[str, jax.Array] | None = None
    ) -> dict[str, jax.Array]:
        """f32 [B, H, W, 3] -> maps by the names in `STAGES`, as far as `last`; sizes are ceil(n / stride), step by
        step. `found`: see `encoder.Encoder.make_fn`."""
        shared: dict[str, Any] = {"is_frozen": self.is_frozen, "dtype": self.dtype}
        stem = encoder.scaled(STEM_CHANNELS, self.width)
        maps: dict[str, jax.Array] = dict(found or {})
        done, x = encoder.resumed([name for *_, name in STAGES], maps)
        if x is None:
            x = blocks.ConvNorm(stem, size=3, stride=2, **shared, name="layer1")(images, train)
        reached, dilation = 2, 1
        for index, (expansion, channels, num_blocks, first_stride, name) in enumerate(STAGES, start=2):
            is_dilated = first_stride > 1 and reached == self.output_stride
            stride = 1 if is_dilated else first_stride
            reached *= stride
            if index - 2 < done:
                dilation *= 2 if is_dilated else 1
                continue
            for block in range(num_blocks):
                # The first block still sees the grid's old spacing, the later ones its doubled one (as torchvision).
                is_wide = is_dilated and block > 0
                x = blocks.InvertedResidual(
                    encoder.scaled(channels, self.width),
                    expansion,
                    stride=stride if block == 0 else 1,
                    dilation=2 * dilation if is_wide else dilation,
                    has_expansion=index > 2 or self.expand_first,
                    norm=shared,
                    name=f"layer{index}_{block}",
                )(x, train)
            dilation *= 2 if is_dilated else 1
            maps[name] = x
            if name == last:
                break
        return maps


def _channels(width: float) -> tuple[int, ...]:
    return tuple(encoder.scaled(channels, width) for _, channels, _, _, name in STAGES if name.startswith("stage"))


def _blocks() -> list[tuple[int, int]]:
    """Stage (2..8) and index in it of every block."""
    return [(stage, block) for stage, (_, _, num, *_) in enumerate(STAGES, start=2) for block in range(num)]


def _torchvision_names() -> encoder.Names:
    yield from encoder.conv_norm_names("layer1", "features.0.0", "features.0.1")
    for position, (stage, block) in enumerate(_blocks(), start=1):
        ours, theirs = f"layer{stage}_{block}", f"features.{position}.conv"
        parts = ["expand", "depthwise"] if stage > 2 else ["depthwise"]
        for index, part in enumerate(parts):
            yield from encoder.conv_norm_names(f"{ours}/{part}", f"{theirs}.{index}.0", f"{theirs}.{index}.1")
        last = len(parts)
        yield from encoder.conv_norm_names(f"{ours}/project", f"{theirs}.{last}", f"{theirs}.{last + 1}")


def _refinenet_names() -> encoder.Names:
    yield from encoder.conv_norm_names("layer1", "layer1.0", "layer1.1")
    for stage, block in _blocks():
        for index, part in enumerate(("expand", "depthwise", "project")):
            theirs = f"layer{stage}.{block}.output.{index}"
            yield from encoder.conv_norm_names(f"layer{stage}_{block}/{part}", f"{theirs}.0", f"{theirs}.1")


RECORD = encoder.Encoder(
    name="mobilenet_v2",
    make_fn=MobileNetV2,
    goes_on=True,
    channels_fn=_channels,
    options=("expand_first",),
    torch_files={
        "": encoder.TorchFile(tuple(_torchvision_names()), {"expand_first": False}, ("features.18.", "classifier.")),
        "refinenet": encoder.TorchFile(tuple(_refinenet_names()), {"expand_first": True}),
    },
    own_decoders={"refinenet": refinenet.ON_MOBILENET},
)
