"""Multiply-adds, parameters and bytes of what cells are made of, in closed form.

One frame, batch 1, float32, the retrained cell (running statistics).
"""

from __future__ import annotations

import dataclasses

import numpy as np

VALUE_BYTES = 4
POSITION_FLOPS = 48
"""Of one bilinear sample before any channel is read: clipping, neighbours, weights, addresses."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a cell or of a part of it, for one frame. Costs add up.

    Attributes:
      macs: multiply-adds of the convolutions and matrix products; all taps of a kernel count, those on the zero
        padding too, as is usual where networks are compared.
      params: trained values and running statistics.
      bytes: of the maps that every operation reads and writes. A normalisation, an activation or a sum is fused into
        what it follows; the zeros of `none` are read like any map.
      elementwise: the other floating point operations (normalisation, ReLU, sums, interpolation); exponentials,
        tanh and square roots are not among them, as in XLA's analysis.
      padding: those of `macs` that a `lax` convolution leaves out, as they multiply the padding.
    """

    macs: int = 0
    params: int = 0
    bytes: int = 0
    elementwise: int = 0
    padding: int = 0

    @property
    def flops(self) -> int:
        """Floating point operations as XLA's analysis counts them: 2 a multiply-add, 1 for any other."""
        return 2 * (self.macs - self.padding) + self.elementwise

    def __add__(self, other: Cost) -> Cost:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What costs depend on: the grid [height, width, channels], the members' settings.

    `is_sliced`: depthwise convolutions are sums of shifted slices and pools are one-dimensional, as on a CPU.
    """

    height: int
    width: int
    channels: int
    attention_window: int
    attention_heads: int
    correlation_window: int
    is_sliced: bool

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def taps_inside(self, size: int, dilation: int) -> int:
        """Pairs of a pixel and a tap of a square kernel where the tap is on the map."""
        reach = dilation * (np.arange(size) - size // 2)
        rows, cols = (int(np.maximum(n - np.abs(reach), 0).sum()) for n in (self.height, self.width))
        return rows * cols


def moved(sizes: Sizes, *channels: int) -> Cost:
    """Maps of so many channels are read or written."""
    return Cost(bytes=VALUE_BYTES * sizes.pixels * sum(channels))


def maps(sizes: Sizes, num: int) -> Cost:
    """So many maps of the cell are read or written."""
    return moved(sizes, *[sizes.channels] * num)


def each(sizes: Sizes, count: int, channels: int | None = None) -> Cost:
    """So many elementwise operations for every value of a map."""
    return Cost(elementwise=count * sizes.pixels * (sizes.channels if channels is None else channels))


def conv(sizes: Sizes, channels_in: int, channels_out: int, size: int = 1, dilation: int = 1) -> Cost:
    """A dense convolution without bias."""
    kernel = size * size * channels_in * channels_out
    macs = sizes.pixels * kernel
    padding = macs - sizes.taps_inside(size, dilation) * channels_in * channels_out
    total = Cost(macs=macs, params=kernel, padding=padding) + moved(sizes, channels_in, channels_out)
    if sizes.is_sliced and size > 1 and channels_out <= channels_in // 4:  # the product first, the shifts after it
        total = dataclasses.replace(total, padding=0) + each(sizes, size * size - 1, channels_out)
    return total


def depthwise(sizes: Sizes, size: int, dilation: int) -> Cost:
    """A depthwise convolution without bias; slices multiply the padding too."""
    taps, inside = size * size * sizes.pixels, sizes.taps_inside(size, dilation)
    padding = 0 if sizes.is_sliced else (taps - inside) * sizes.channels
    total = Cost(macs=taps * sizes.channels, params=size * size * sizes.channels, padding=padding)
    return total + maps(sizes, 2)


def norm(sizes: Sizes) -> Cost:
    """Scale, bias, running mean and variance of every channel; a product and a sum for every value."""
    return Cost(params=4 * sizes.channels) + each(sizes, 2)


def norm_relu(sizes: Sizes) -> Cost:
    """A normalisation and its ReLU."""
    return norm(sizes) + each(sizes, 1)


def samples(sizes: Sizes, num: int = 1, channels: int | None = None) -> Cost:
    """Bilinear samples at `num` positions for each pixel: positions and addresses, then 4 weights for every value."""
    return each(sizes, POSITION_FLOPS * num, 1) + each(sizes, 7 * num, channels)


def nothing(sizes: Sizes) -> Cost:
    """No work, no parameters."""
    return Cost()


def max_pool(sizes: Sizes) -> Cost:
    """Comparisons of a 3x3 window, or of two windows of 3."""
    return each(sizes, 4 if sizes.is_sliced else 8) + maps(sizes, 2)


def global_average_pool(sizes: Sizes) -> Cost:
    """The mean, its product with a kernel, the same value everywhere."""
    channels = sizes.channels
    product = Cost(macs=channels**2, params=channels**2 + channels, elementwise=3 * channels)
    return product + each(sizes, 1) + maps(sizes, 1)


def deform_conv(sizes: Sizes) -> Cost:
    """Offsets and masks of 9 taps, the samples, one product of all taps."""
    control, sampled = 27, 9 * sizes.channels
    offsets = conv(sizes, sizes.channels, control, 3) + Cost(params=control) + each(sizes, 2, control)
    offsets += each(sizes, 3, 9)  # the masks' sigmoid
    found = samples(sizes, 9) + moved(sizes, control, sizes.channels, sampled)
    return offsets + found + conv(sizes, sampled, sizes.channels) + norm_relu(sizes)


def gate(sizes: Sizes) -> Cost:
    """The gate's product and its sigmoid (3 beside the exponential), then both maps weighted by it."""
    return conv(sizes, 2 * sizes.channels, sizes.channels) + norm(sizes) + each(sizes, 3 + 4) + maps(sizes, 4)


def warp(sizes: Sizes) -> Cost:
    """Offsets from both, the first resampled, the second added."""
    offsets = conv(sizes, 2 * sizes.channels, 2, 3) + Cost(params=2) + each(sizes, 2, 2)
    return offsets + samples(sizes) + each(sizes, 1) + moved(sizes, 2) + maps(sizes, 3)


def local_attention(sizes: Sizes) -> Cost:
    """Query and key, their products over the window, the softmax, the weighted sum, the second map added."""
    channels, taps = sizes.channels, sizes.attention_window**2
    weights = taps * sizes.attention_heads
    products = Cost(macs=2 * taps * channels * sizes.pixels, params=weights)
    projections = conv(sizes, channels, channels) + conv(sizes, channels, channels)
    found = maps(sizes, 5) + moved(sizes, weights, weights)
    return projections + products + each(sizes, 7, weights) + each(sizes, 1) + found


def correlation(sizes: Sizes) -> Cost:
    """Both maps to length 1 at every pixel, their products over the window, which are joined with the second map."""
    taps = sizes.correlation_window**2
    lengths = each(sizes, 2 * 3) + each(sizes, 2, 1) + maps(sizes, 4)
    products = Cost(macs=taps * sizes.channels * sizes.pixels) + maps(sizes, 2) + moved(sizes, taps)
    return lengths + products + conv(sizes, taps + sizes.channels, sizes.channels) + norm_relu(sizes)
