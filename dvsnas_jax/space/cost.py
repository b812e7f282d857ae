"""What a cell costs, in closed form: multiply-adds, parameters and bytes of any genotype, without building it.

One frame, batch 1, float32, the retrained cell (running statistics). Every operation and aggregation of the
vocabulary has an entry in a table here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import schedule as schedule_lib

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
    """What the cost of an operation depends on.

    Attributes:
      height: of the grid.
      width: of the grid.
      settings: of the cell.
      is_sliced: depthwise convolutions are sums of shifted slices and pools are one-dimensional, as on a CPU.
    """

    height: int
    width: int
    settings: cell_frame.CellSettings
    is_sliced: bool

    @property
    def channels(self) -> int:
        return self.settings.channels

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def taps_inside(self, size: int, dilation: int) -> int:
        """Pairs of a pixel and a tap of a square kernel where the tap is on the map."""
        reach = dilation * (np.arange(size) - size // 2)
        rows, cols = (int(np.maximum(n - np.abs(reach), 0).sum()) for n in (self.height, self.width))
        return rows * cols


def _moved(sizes: Sizes, *channels: int) -> Cost:
    """Maps of so many channels are read or written."""
    return Cost(bytes=VALUE_BYTES * sizes.pixels * sum(channels))


def _each(sizes: Sizes, count: int, channels: int | None = None) -> Cost:
    """So many elementwise operations for every value of a map."""
    return Cost(elementwise=count * sizes.pixels * (sizes.channels if channels is None else channels))


def conv(sizes: Sizes, channels_in: int, channels_out: int, size: int = 1, dilation: int = 1) -> Cost:
    """A dense convolution without bias."""
    kernel = size * size * channels_in * channels_out
    macs = sizes.pixels * kernel
    padding = macs - sizes.taps_inside(size, dilation) * channels_in * channels_out
    total = Cost(macs=macs, params=kernel, padding=padding) + _moved(sizes, channels_in, channels_out)
    if sizes.is_sliced and size > 1 and channels_out <= channels_in // 4:  # the product first, the shifts after it
        total = dataclasses.replace(total, padding=0) + _each(sizes, size * size - 1, channels_out)
    return total


def _depthwise(sizes: Sizes, size: int, dilation: int) -> Cost:
    """A depthwise convolution without bias; slices multiply the padding too."""
    taps, inside = size * size * sizes.pixels, sizes.taps_inside(size, dilation)
    padding = 0 if sizes.is_sliced else (taps - inside) * sizes.channels
    total = Cost(macs=taps * sizes.channels, params=size * size * sizes.channels, padding=padding)
    return total + _moved(sizes, sizes.channels, sizes.channels)


def _norm(sizes: Sizes) -> Cost:
    """Scale, bias, running mean and variance of every channel; a product and a sum for every value."""
    return Cost(params=4 * sizes.channels) + _each(sizes, 2)


def _norm_relu(sizes: Sizes) -> Cost:
    return _norm(sizes) + _each(sizes, 1)


def _conv_operation(size: int, dilation: int) -> Callable[[Sizes], Cost]:
    return lambda sizes: conv(sizes, sizes.channels, sizes.channels, size, dilation) + _norm_relu(sizes)


def _sep_conv_operation(size: int, dilation: int) -> Callable[[Sizes], Cost]:
    def cost(sizes: Sizes) -> Cost:
        pointwise = conv(sizes, sizes.channels, sizes.channels)
        return _depthwise(sizes, size, dilation) + pointwise + _norm_relu(sizes)

    return cost


def _max_pool(sizes: Sizes) -> Cost:
    """Comparisons of a 3x3 window, or of two windows of 3."""
    return _each(sizes, 4 if sizes.is_sliced else 8) + _moved(sizes, sizes.channels, sizes.channels)


def _global_average_pool(sizes: Sizes) -> Cost:
    channels = sizes.channels
    product = Cost(macs=channels**2, params=channels**2 + channels, elementwise=3 * channels)
    return product + _each(sizes, 1) + _moved(sizes, channels)


def _operation(name: str) -> Callable[[Sizes], Cost] | None:
    """The entry of a convolution, whose name says what it is; None for any other name."""
    match = re.fullmatch(r"(sep_)?conv_(\d)x\2(?:_dil(\d+))?", name)
    if not match:
        return None
    return (_sep_conv_operation if match[1] else _conv_operation)(int(match[2]), int(match[3] or 1))


def _pair_product(sizes: Sizes) -> Cost:
    """Concatenation, 1x1 convolution, normalisation."""
    return conv(sizes, 2 * sizes.channels, sizes.channels) + _norm(sizes)


def _gate(sizes: Sizes) -> Cost:
    """The gate's product and its sigmoid (3 beside the exponential), then both maps weighted by it."""
    return _pair_product(sizes) + _each(sizes, 3 + 4) + _moved(sizes, *[sizes.channels] * 4)


def _samples(sizes: Sizes, num: int = 1) -> Cost:
    """Bilinear samples at `num` positions for each pixel: positions and addresses, then 4 weights for every value."""
    return _each(sizes, POSITION_FLOPS * num, 1) + _each(sizes, 7 * num)


def _warp(sizes: Sizes) -> Cost:
    """Offsets from both, the first resampled, the second added."""
    offsets = conv(sizes, 2 * sizes.channels, 2, 3) + Cost(params=2) + _each(sizes, 2, 2)
    return offsets + _samples(sizes) + _each(sizes, 1) + _moved(sizes, 2, *[sizes.channels] * 3)


def _deform_conv(sizes: Sizes) -> Cost:
    """Offsets and masks of 9 taps, the samples, one product of all taps."""
    control, sampled = 27, 9 * sizes.channels
    offsets = conv(sizes, sizes.channels, control, 3) + Cost(params=control) + _each(sizes, 2, control)
    offsets += _each(sizes, 3, 9)  # the masks' sigmoid
    samples = _samples(sizes, 9) + _moved(sizes, control, sizes.channels, sampled)
    return offsets + samples + conv(sizes, sampled, sizes.channels) + _norm_relu(sizes)


def _local_attention(sizes: Sizes) -> Cost:
    """Query and key, their products over the window, the softmax, the weighted sum, the second map added."""
    channels, taps = sizes.channels, sizes.settings.attention_window**2
    weights = taps * sizes.settings.attention_heads
    products = Cost(macs=2 * taps * channels * sizes.pixels, params=weights)
    moved = _moved(sizes, *[channels] * 5, weights, weights)
    projections = conv(sizes, channels, channels) + conv(sizes, channels, channels)
    return projections + products + _each(sizes, 7, weights) + _each(sizes, 1) + moved


OPERATIONS: dict[str, Callable[[Sizes], Cost]] = {
    "none": lambda sizes: Cost(),
    "skip": lambda sizes: Cost(),
    "max_pool_3x3": _max_pool,
    "global_average_pool": _global_average_pool,
    "deform_conv_3x3": _deform_conv,
    **{name: cost for name in genotype_lib.OPERATIONS if (cost := _operation(name))},
}
AGGREGATIONS: dict[str, Callable[[Sizes], Cost]] = {
    "sum": lambda s: Cost(params=2 * s.channels) + _each(s, 3) + _moved(s, *[s.channels] * 3),
    "concat": lambda s: _pair_product(s) + _each(s, 1),
    "gate": _gate,
    "warp": _warp,
    "local_attention": _local_attention,
    "max": lambda s: _each(s, 1) + _moved(s, *[s.channels] * 3),
}


def of(
    space: genotype_lib.Space,
    genotype: Any,
    settings: cell_frame.CellSettings,
    size: tuple[int, int],
    *,
    backend: str | None = None,
) -> Cost:
    """The cost of one cell for one frame, without the static network and its encoder.

    In propagate mode it is a frame that is no key frame, the head that predicts errors included. A layer whose output
    is read through `none` only is not computed, so it costs nothing, but its parameters exist.

    Args:
      space: what the genotype refers to.
      genotype: integers [L, 5].
      settings: sizes of the cell.
      size: height and width of the grid.
      backend: "cpu", "gpu" or "tpu", None: the one in use; only `padding` and `elementwise` (so `flops`) depend on it.

    Returns:
      The sum over the input projections that are in use, the layers, the output and the head.
    """
    rows = genotype_lib.validate(space, genotype)
    sizes = Sizes(*size, settings, is_sliced=(backend or jax.default_backend()) == "cpu")
    live = live_layers(space, rows)
    total = _inputs(space, rows, live, sizes) + _output(len(genotype_lib.loose_ends(space, rows)), sizes)
    for layer, row in enumerate(rows.tolist()):
        parts = [OPERATIONS[space.operations[token]](sizes) for token in row[2:4]]
        parts.append(AGGREGATIONS[space.aggregations[row[4]]](sizes))
        for part in parts:
            total += part if layer in live else Cost(params=part.params)
    return total


def live_layers(space: genotype_lib.Space, rows: np.ndarray) -> set[int]:
    """Layers that the cell's output depends on: loose ends, and what they read other than through `none`."""
    live = set(genotype_lib.loose_ends(space, rows))
    for layer in reversed(range(space.num_layers)):
        if layer in live:
            live.update(node - space.num_inputs for node in _read(space, rows[layer]) if node >= space.num_inputs)
    return live


def _read(space: genotype_lib.Space, row: np.ndarray) -> list[int]:
    """Nodes that a layer reads other than through `none`."""
    return [int(row[slot]) for slot in (0, 1) if space.operations[row[2 + slot]] != "none"]


def _inputs(space: genotype_lib.Space, rows: np.ndarray, live: set[int], sizes: Sizes) -> Cost:
    """The projections: parameters of all that the cell holds, the work of those that a live layer reads."""
    settings = sizes.settings
    held = set(cell_lib.used_inputs(space, rows))
    nodes = {node for layer in live for node in _read(space, rows[layer]) if node < space.num_inputs}
    used = {space.inputs[node] for node in nodes}
    if settings.is_propagating:  # a key frame starts the state with the projected decoder map
        held.add("decoder")
    else:
        for names in (held, used):
            names.update({"decoder"} if "prev_state" in names else ())
    total = Cost()
    for name in sorted(held):
        channels = settings.input_channels(name)
        part = conv(sizes, channels, sizes.channels) + _norm(sizes) + _prepared(name, channels, sizes)
        total += part if name in used else Cost(params=part.params)
    return total


def _prepared(name: str, channels: int, sizes: Sizes) -> Cost:
    """What is done to an input before its projection: the choice at the first frame, softmax, the difference."""
    softmax = 4 if name in ("logits", "prev_logits") else 0
    has_own = not sizes.settings.is_propagating
    first_frame = 2 if name == "image_diff" else 1 if name.startswith("prev_") and has_own else 0
    return _each(sizes, softmax + first_frame, channels)


def _output(num_loose: int, sizes: Sizes) -> Cost:
    """The mean of the loose ends, its projection, the head; in refine mode the static network's logits are added."""
    channels, settings = sizes.channels, sizes.settings
    mean = _each(sizes, num_loose) + (_moved(sizes, *[channels] * num_loose, channels) if num_loose > 1 else Cost())
    head = conv(sizes, channels, settings.num_classes) + Cost(params=settings.num_classes)
    added = _each(sizes, 1 if settings.is_propagating else 2, settings.num_classes)
    return mean + conv(sizes, channels, channels) + _norm_relu(sizes) + head + added + _error_head(sizes)


def _error_head(sizes: Sizes) -> Cost:
    """The prediction of errors on which a learned schedule decides."""
    settings, hidden = sizes.settings, schedule_lib.ERROR_CHANNELS
    if not (settings.is_propagating and settings.schedule.is_learned):
        return Cost()
    cheap = settings.feature_channels[settings.cut]
    work = conv(sizes, 2 * cheap, hidden, 3) + conv(sizes, hidden, 1) + Cost(params=hidden + 1)
    return work + _each(sizes, 1, cheap) + _each(sizes, 2, hidden) + _each(sizes, 1, 1)
