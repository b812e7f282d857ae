"""What the program knows of a decoder. Whoever needs to know more of one asks its record, never its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder of the static network.

    Attributes:
      name: what `config.net.decoder` calls it.
      make_fn: (channels, dtype, name, and `options`) -> module. It takes the encoder's maps and `train` and gives
        [B, h, w, channels] at the grid of `stage1`.
      options: further attributes of `static_net.StaticNet` that `make_fn` takes.
      torch_names: of its and the classifier's weights in PyTorch's files, as `encoder.Names`.
      torch_channels: in those files.
      order: place in the table.
    """

    name: str
    make_fn: Callable[..., nn.Module]
    options: tuple[str, ...] = ()
    torch_names: Iterable[tuple[str, str]] = ()
    torch_channels: int = 256
    order: int = 0
