"""The operations (on one map) and aggregations (of two maps) of a cell: all that the program knows of each.

To add one, add a record to a table here. Pure functions: maps are [B, h, w, C] and keep C and the stride; `scope`
normalises and holds the sizes (see `CellScope`). The tree of parameters of each member is in the docstring that
describes it; a normalisation's is `{scale [C], bias [C]}`. The order of the tables is that of the tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.nets.kernels import layers, local_attention, sampling
from dvsnas_jax.space import operation_cost as counts

if TYPE_CHECKING:  # a space asks this module for the names that it may hold
    from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]
Moments = dict[tuple[str, ...], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class CellScope:
    """What the members share: their sizes, and how a cell normalises.

    A cell normalises by the batch, or by the running statistics where its parameters hold them. A
    normalisation's parameters are `{scale, bias}`, and `{scale, bias, mean, var}` once a retrained
    cell was calibrated: the presence of `mean` decides, so one code path serves both.

    Attributes:
      path: where in the parameter tree this scope is.
      record: if given, receives the batch moments of every normalisation by its path.
      max_offset: largest displacement of `warp` and `deform_conv_3x3`, in grid cells.
      attention_window: side of the window of `local_attention`, odd, grid cells.
      attention_heads: heads of `local_attention`, a divisor of C.
      correlation_window: side of the window of `correlation`, odd, grid cells.
    """

    path: tuple[str, ...] = ()
    record: Moments | None = None
    max_offset: float = 4.0
    attention_window: int = 3
    attention_heads: int = 1
    correlation_window: int = 7

    def child(self, *keys: str) -> CellScope:
        """The scope of a sub-tree of the parameters."""
        return dataclasses.replace(self, path=self.path + keys)

    def normalize(self, params: Params, x: jax.Array) -> jax.Array:
        """Normalises x [..., C] per channel; moments and parameters are float32."""
        if "mean" in params:
            mean, var = params["mean"], params["var"]
        else:
            mean, var = layers.batch_moments(x)
            if self.record is not None:
                self.record[self.path] = (mean, var)
        return layers.normalize(x, params["scale"], params["bias"], mean, var)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """What operations and aggregations have in common.

    What a member is said to do, here and below, it does whatever its weights are. That decides which genotypes count as
    the same cell (`space.canonical`): a false claim merges different cells, a missing one merges fewer.

    Attributes:
      init: `(rng, channels, scope) -> params`.
      apply: `(params, map, scope) -> map`, an aggregation's takes two maps.
      cost: `sizes -> cost`, of one frame.
      label: its name in drawings.
      is_weightless: whether it learns nothing; `init` gives {}.
      of_zeros: what it makes of zeros: zeros; the constant relu(bias), of a trained bias [C] that starts at 0; other.
    """

    init: Callable[..., Params] = lambda rng, channels, scope: {}
    apply: Callable[..., jax.Array]
    cost: Callable[[counts.Sizes], counts.Cost]
    label: str
    is_weightless: bool
    of_zeros: Literal["zeros", "constant", "other"] = "other"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation(Member):
    """An operation on one map.

    Attributes:
      ends_in_activation: whether no value of its result is negative, as after a ReLU.
      is_zero: whether it gives zeros of anything, so that nothing has to be read for it.
      is_identity: whether it gives the map itself.
    """

    ends_in_activation: bool
    is_zero: bool = False
    is_identity: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aggregation(Member):
    """An aggregation of two maps.

    Attributes:
      is_symmetric: whether the maps can be exchanged, with weights that are drawn as often.
      is_idempotent: whether it gives x of x and x.
      passes_second: whether it gives x of zeros and x.
      passes_positive: whether it gives x of zeros and x, and of x and zeros, where no value of x is negative.
    """

    is_symmetric: bool = False
    is_idempotent: bool = False
    passes_second: bool = False
    passes_positive: bool = False


def init_norm(channels: int) -> Params:
    """Parameters of a normalisation: scale 1, bias 0."""
    return {"scale": jnp.ones((channels,)), "bias": jnp.zeros((channels,))}


def init_kernel(rng: jax.Array, size: int, channels_in: int, channels_out: int) -> jax.Array:
    """He-normal kernel [size, size, in, out]."""
    return layers.he_normal(rng, (size, size, channels_in, channels_out))


def _norm_relu(params: Params, y: jax.Array, scope: CellScope) -> jax.Array:
    return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))


def _conv(size: int, dilation: int = 1) -> Operation:
    """Dense convolution, normalisation, ReLU: `{kernel [k, k, C, C], norm}`."""

    def init(rng: jax.Array, channels: int, scope: CellScope) -> Params:
        return {"kernel": init_kernel(rng, size, channels, channels), "norm": init_norm(channels)}

    def apply(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
        return _norm_relu(params, layers.conv(x, params["kernel"].astype(x.dtype), dilation=dilation), scope)

    def count(s: counts.Sizes) -> counts.Cost:
        return counts.conv(s, s.channels, s.channels, size, dilation) + counts.norm_relu(s)

    return _activated(init, apply, count, f"conv {_kernel_label(size, dilation)}")


def _sep_conv(size: int, dilation: int = 1) -> Operation:
    """Depthwise and 1x1 convolution, normalisation, ReLU: `{depthwise [k, k, C], pointwise [1, 1, C, C], norm}`."""

    def init(rng: jax.Array, channels: int, scope: CellScope) -> Params:
        depthwise_rng, pointwise_rng = jax.random.split(rng)
        depthwise = jax.random.normal(depthwise_rng, (size, size, channels)) / size
        pointwise = init_kernel(pointwise_rng, 1, channels, channels)
        return {"depthwise": depthwise, "pointwise": pointwise, "norm": init_norm(channels)}

    def apply(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
        y = layers.depthwise_conv(x, params["depthwise"].astype(x.dtype), dilation=dilation)
        return _norm_relu(params, layers.conv(y, params["pointwise"].astype(x.dtype)), scope)

    def count(s: counts.Sizes) -> counts.Cost:
        return counts.depthwise(s, size, dilation) + counts.conv(s, s.channels, s.channels) + counts.norm_relu(s)

    return _activated(init, apply, count, f"sep {_kernel_label(size, dilation)}")


def _kernel_label(size: int, dilation: int) -> str:
    return f"{size}x{size}" + (f" dil {dilation}" if dilation > 1 else "")


def _activated(init: Any, apply: Any, count: Any, label: str) -> Operation:
    """An operation that is the ReLU of something with a bias."""
    return Operation(
        init=init, apply=apply, cost=count, label=label,
        is_weightless=False, ends_in_activation=True, of_zeros="constant",
    )  # fmt: skip


def _weightless(
    fn: Callable[[jax.Array], jax.Array], count: Any, label: str, *, is_zero: bool = False, is_identity: bool = False
) -> Operation:
    """An operation that learns nothing and makes zeros of zeros."""
    return Operation(
        apply=lambda params, x, scope: fn(x), cost=count, label=label,
        is_weightless=True, ends_in_activation=False, of_zeros="zeros", is_zero=is_zero, is_identity=is_identity,
    )  # fmt: skip


def _init_average(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{kernel [1, 1, C, C], bias [C]}`."""
    return {"kernel": init_kernel(rng, 1, channels, channels), "bias": jnp.zeros((channels,))}


def _average(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
    """Mean over the map, 1x1 convolution, the same value everywhere."""
    mean = x.mean(axis=(1, 2)) @ params["kernel"][0, 0].astype(x.dtype) + params["bias"].astype(x.dtype)[None]
    return jnp.broadcast_to(jax.nn.relu(mean)[:, None, None, :], x.shape)


def _init_deform(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{kernel [3, 3, C, C], offset: {kernel [3, 3, C, 27], bias [27]}, norm}`.

    Of the 27 the first 18 are the taps' (x, y), row by row, the last 9 their masks. Zero, so that it starts as
    the plain convolution.
    """
    offset = {"kernel": jnp.zeros((3, 3, channels, 27)), "bias": jnp.zeros((27,))}
    return {"kernel": init_kernel(rng, 3, channels, channels), "offset": offset, "norm": init_norm(channels)}


def _deform(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
    """Modulated deformable convolution (Zhu et al. 2018, arXiv 1811.11168), normalisation, ReLU.

    Offsets and masks are predicted from x. Ours: offsets are bounded by max_offset * tanh(.), and masks are
    2 * sigmoid(.), which is 1 at the start (the paper's is 0.5). The map is zero outside, as in `conv_3x3`.
    """
    control = layers.conv(x, params["offset"]["kernel"]) + params["offset"]["bias"].astype(x.dtype)[None, None, None]
    offsets = scope.max_offset * jnp.tanh(control[..., :18])
    masks = 2 * jax.nn.sigmoid(control[..., 18:])
    y = sampling.deform_conv(x, params["kernel"], offsets.reshape(*x.shape[:3], 9, 2), masks)
    return _norm_relu(params, y, scope)


OPERATIONS: dict[str, Operation] = {
    "none": _weightless(jnp.zeros_like, counts.nothing, "none", is_zero=True),
    "skip": _weightless(lambda x: x, counts.nothing, "skip", is_identity=True),
    "conv_1x1": _conv(1),
    "conv_3x3": _conv(3),
    "sep_conv_3x3": _sep_conv(3),
    "sep_conv_5x5": _sep_conv(5),
    "conv_3x3_dil3": _conv(3, 3),
    "conv_3x3_dil12": _conv(3, 12),
    "sep_conv_3x3_dil3": _sep_conv(3, 3),
    "sep_conv_5x5_dil6": _sep_conv(5, 6),
    "max_pool_3x3": _weightless(lambda x: layers.max_pool(x, 3), counts.max_pool, "max pool 3x3"),
    "global_average_pool": _activated(_init_average, _average, counts.global_average_pool, "global avg pool"),
    "deform_conv_3x3": _activated(_init_deform, _deform, counts.deform_conv, "deform conv 3x3"),
}


def _init_sum(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{weight_a [C], weight_b [C]}`."""
    half = jnp.full((channels,), 0.5, jnp.float32)  # typed: a weak type would be traced anew after the first step
    return {"weight_a": half, "weight_b": half}


def _sum(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """Per-channel weighted sum."""
    weight_a, weight_b = (params[key].astype(a.dtype)[None, None, None] for key in ("weight_a", "weight_b"))
    return weight_a * a + weight_b * b


def _init_pair(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """Of `concat` and of `gate`: `{kernel [1, 1, 2 C, C], norm}`."""
    return {"kernel": init_kernel(rng, 1, 2 * channels, channels), "norm": init_norm(channels)}


def _concat(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """Concatenation, 1x1 convolution, normalisation, ReLU."""
    return _norm_relu(params, layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype)), scope)


def _gate(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """Convex combination decided per pixel and channel by both, as the update gate of a GRU."""
    y = layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype))
    gate = jax.nn.sigmoid(scope.child("norm").normalize(params["norm"], y))
    return gate * a + (1 - gate) * b


def _init_warp(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{kernel [3, 3, 2 C, 2], bias [2]}`, zero: the warp starts as the identity."""
    return {"kernel": jnp.zeros((3, 3, 2 * channels, 2)), "bias": jnp.zeros((2,))}


def _warp(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """Resamples a bilinearly at offsets predicted from both, adds b.

    Offsets are bounded by max_offset * tanh(.). A position outside the map is moved to its border.
    """
    offsets = layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype))
    offsets = scope.max_offset * jnp.tanh(offsets + params["bias"].astype(a.dtype)[None, None, None])
    return sampling.warp_bilinear(a, offsets) + b


def _init_attention(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{query [1, 1, C, C], key [1, 1, C, C], position [k, k, G]}`, window k, G heads.

    The query starts at zero and the positions with half of the weight on the pixel itself: it starts as a slight
    blur of the first map, added to the second.
    """
    window, heads = scope.attention_window, scope.attention_heads
    middle = (window // 2, window // 2)
    return {
        "query": jnp.zeros((1, 1, channels, channels)),
        "key": init_kernel(rng, 1, channels, channels),
        "position": jnp.zeros((window, window, heads)).at[middle].set(math.log(window * window - 1)),
    }


def _attention(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """Each pixel of b attends to the window of a around it; adds b.

    Spatially variant propagation (Li, Shi and Lin 2018, arXiv 1804.00389), with the weights from a softmax of
    query(b) . key(a) and a learnt bias per relative position. Pixels outside the map have no weight.
    """
    query, keys = layers.conv(b, params["query"]), layers.conv(a, params["key"])
    return local_attention.attend(query, keys, a, params["position"]) + b


def _init_correlation(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{kernel [1, 1, k * k + C, C], norm}`, window k; the first k * k rows are of the products, row by row."""
    kernel = init_kernel(rng, 1, scope.correlation_window**2 + channels, channels)
    return {"kernel": kernel, "norm": init_norm(channels)}


def _correlation(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """How well each pixel of b matches those of a in the window around it: their cosines; joined with b by a 1x1
    convolution, normalisation, ReLU.

    The matching costs of FlowNet (Dosovitskiy et al. 2015, arXiv 1504.06852), which say where a pixel came from: no
    flow is made of them. Ours: cosines in place of products. Pixels outside the map match nothing, 0.
    """

    matches = local_attention.cosines(b, a, scope.correlation_window)
    both = jnp.concatenate([matches, b], axis=-1)
    return _norm_relu(params, layers.conv(both, params["kernel"].astype(b.dtype)), scope)


AGGREGATIONS: dict[str, Aggregation] = {
    "sum": Aggregation(
        init=_init_sum, apply=_sum, label="sum",
        cost=lambda s: counts.Cost(params=2 * s.channels) + counts.each(s, 3) + counts.maps(s, 3),
        is_weightless=False, of_zeros="zeros", is_symmetric=True,
    ),
    "concat": Aggregation(
        init=_init_pair, apply=_concat, label="concat",
        cost=lambda s: counts.conv(s, 2 * s.channels, s.channels) + counts.norm_relu(s),
        is_weightless=False, of_zeros="constant", is_symmetric=True,
    ),
    "gate": Aggregation(
        init=_init_pair, apply=_gate, cost=counts.gate, label="gate",
        is_weightless=False, of_zeros="zeros", is_symmetric=True, is_idempotent=True,
    ),
    "warp": Aggregation(
        init=_init_warp, apply=_warp, cost=counts.warp, label="warp",
        is_weightless=False, of_zeros="zeros", passes_second=True,
    ),
    "max": Aggregation(
        apply=lambda params, a, b, scope: jnp.maximum(a, b), label="max",
        cost=lambda s: counts.each(s, 1) + counts.maps(s, 3),
        is_weightless=True, of_zeros="zeros", is_symmetric=True, is_idempotent=True, passes_positive=True,
    ),
    "local_attention": Aggregation(
        init=_init_attention, apply=_attention, cost=counts.local_attention, label="attention",
        is_weightless=False, of_zeros="zeros", passes_second=True,
    ),
    "correlation": Aggregation(
        init=_init_correlation, apply=_correlation, cost=counts.correlation, label="matching",
        is_weightless=False, of_zeros="constant",
    ),
}  # fmt: skip


def init_layer(rng: jax.Array, space: genotype_lib.Space, channels: int, scope: CellScope) -> types.Params:
    """Parameters of every operation (both slots) and aggregation of one layer."""
    chosen: dict[str, Member] = {name: OPERATIONS[name] for name in space.operations}
    paired: dict[str, Member] = {name: AGGREGATIONS[name] for name in space.aggregations}
    params: Params = {}
    for index, (slot, members) in enumerate((("a", chosen), ("b", chosen), ("agg", paired))):
        slot_rng = jax.random.fold_in(rng, index)
        params[slot] = {
            name: member.init(jax.random.fold_in(slot_rng, token), channels, scope)
            for token, (name, member) in enumerate(members.items())
        }
    return params
