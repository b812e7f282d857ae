"""A static network of five convolutions: most of what a test waits for is the compilation of a larger one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import pytest

from dvsnas_jax.nets import blocks, decoders, encoders, static_net
from dvsnas_jax.nets.decoders import decoder as decoder_lib
from dvsnas_jax.nets.encoders import encoder as encoder_lib
from dvsnas_jax.nets.kernels import layers

CONFIG = {"net.encoder": "tiny", "net.decoder": "tiny", "net.width": "0.5", "net.decoder_channels": "8"}


class Encoder(nn.Module):
    """A convolution a stage."""

    width: float
    output_stride: int
    is_frozen: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, last: str) -> dict[str, jax.Array]:
        maps: dict[str, jax.Array] = {}
        shared = {"size": 3, "is_frozen": self.is_frozen, "dtype": self.dtype}
        for name, stride in zip(static_net.STAGES, (4, 2, 2, 2), strict=True):
            x = maps[name] = blocks.ConvNorm(int(8 * self.width), stride=stride, **shared, name=name)(x, train)
            if name == last:
                break
        return maps


class Decoder(nn.Module):
    """The deepest map at the finest one's grid, projected."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> jax.Array:
        deep = layers.resize_bilinear(maps["stage4"], maps["stage1"].shape[1:3])
        return blocks.Pointwise(self.channels, self.dtype, name="project")(deep + maps["stage1"])


NAMES = [pair for name in static_net.STAGES for pair in encoder_lib.conv_norm_names(name, f"{name}.0", f"{name}.1")]
ENCODER = encoder_lib.Encoder(
    name="tiny",
    make_fn=Encoder,
    channels_fn=lambda width: (int(8 * width),) * 4,
    output_strides=(32,),
    mean=(0.5, 0.4, 0.6),
    std=(0.5, 0.6, 0.4),
    torch_files={"": encoder_lib.TorchFile(NAMES, settings={}, head=("fc.",))},
)
DECODER = decoder_lib.Decoder(name="tiny", make_fn=Decoder)


@contextlib.contextmanager
def added() -> Iterator[None]:
    """Both records in their tables, for a while: see `CONFIG`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.TABLE, "tiny", ENCODER)
        patch.setitem(decoders.TABLE, "tiny", DECODER)
        yield
