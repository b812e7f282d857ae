"""The operations (on one map) and aggregations (of two maps) of a cell, as pairs of pure functions.

A member of `OPERATIONS` is `init(rng, channels, scope) -> params` and `apply(params, x, scope) -> map`; of
`AGGREGATIONS`, `init(rng, channels, scope) -> params` and `apply(params, a, b, scope) -> map`. Maps are
[B, h, w, C], C is kept, the stride is kept. `scope` normalises and holds the sizes (see `CellScope`).
The tree of parameters of each member is in the docstring of its `init` or `apply`; a normalisation's is
`{scale [C], bias [C]}`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.nets.kernels import layers, local_attention, sampling
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
    """

    path: tuple[str, ...] = ()
    record: Moments | None = None
    max_offset: float = 4.0
    attention_window: int = 3
    attention_heads: int = 1

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


def init_norm(channels: int) -> Params:
    """Parameters of a normalisation: scale 1, bias 0."""
    return {"scale": jnp.ones((channels,)), "bias": jnp.zeros((channels,))}


class Operation(NamedTuple):
    """A pure function pair; `apply` takes one map (operation) or two (aggregation)."""

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def init_kernel(rng: jax.Array, size: int, channels_in: int, channels_out: int) -> jax.Array:
    """He-normal kernel [size, size, in, out]."""
    return layers.he_normal(rng, (size, size, channels_in, channels_out))


def _conv(size: int, dilation: int) -> Operation:
    """Dense convolution, normalisation, ReLU: `{kernel [k, k, C, C], norm}`."""

    def init(rng: jax.Array, channels: int, scope: CellScope) -> Params:
        return {"kernel": init_kernel(rng, size, channels, channels), "norm": init_norm(channels)}

    def apply(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
        y = layers.conv(x, params["kernel"].astype(x.dtype), dilation=dilation)
        return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))

    return Operation(init, apply)


def _sep_conv(size: int, dilation: int) -> Operation:
    """Depthwise and 1x1 convolution, normalisation, ReLU: `{depthwise [k, k, C], pointwise [1, 1, C, C], norm}`."""

    def init(rng: jax.Array, channels: int, scope: CellScope) -> Params:
        depthwise_rng, pointwise_rng = jax.random.split(rng)
        depthwise = jax.random.normal(depthwise_rng, (size, size, channels)) / size
        return {
            "depthwise": depthwise,
            "pointwise": init_kernel(pointwise_rng, 1, channels, channels),
            "norm": init_norm(channels),
        }

    def apply(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
        y = layers.depthwise_conv(x, params["depthwise"].astype(x.dtype), dilation=dilation)
        y = layers.conv(y, params["pointwise"].astype(x.dtype))
        return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))

    return Operation(init, apply)


def _without_params(fn: Callable[[jax.Array], jax.Array]) -> Operation:
    """An operation that learns nothing."""
    return Operation(lambda rng, channels, scope: {}, lambda params, x, scope: fn(x))


def _init_global_average_pool(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{kernel [1, 1, C, C], bias [C]}`."""
    return {"kernel": init_kernel(rng, 1, channels, channels), "bias": jnp.zeros((channels,))}


def _global_average_pool(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
    """Mean over the map, 1x1 convolution, the same value everywhere."""
    mean = x.mean(axis=(1, 2)) @ params["kernel"][0, 0].astype(x.dtype) + params["bias"].astype(x.dtype)[None]
    return jnp.broadcast_to(jax.nn.relu(mean)[:, None, None, :], x.shape)


def _init_deform_conv(rng: jax.Array, channels: int, scope: CellScope) -> Params:
    """`{kernel [3, 3, C, C], offset: {kernel [3, 3, C, 27], bias [27]}, norm}`.

    Of the 27 the first 18 are the taps' (x, y), row by row, the last 9 their masks. Zero, so that it starts as
    the plain convolution.
    """
    return {
        "kernel": init_kernel(rng, 3, channels, channels),
        "offset": {"kernel": jnp.zeros((3, 3, channels, 27)), "bias": jnp.zeros((27,))},
        "norm": init_norm(channels),
    }


def _deform_conv(params: Params, x: jax.Array, scope: CellScope) -> jax.Array:
    """Modulated deformable convolution (Zhu et al. 2018, arXiv 1811.11168), normalisation, ReLU.

    Offsets and masks are predicted from x. Ours: offsets are bounded by max_offset * tanh(.), and masks are
    2 * sigmoid(.), which is 1 at the start (the paper's is 0.5). The map is zero outside, as in `conv_3x3`.
    """
    control = layers.conv(x, params["offset"]["kernel"]) + params["offset"]["bias"].astype(x.dtype)[None, None, None]
    offsets = scope.max_offset * jnp.tanh(control[..., :18])
    masks = 2 * jax.nn.sigmoid(control[..., 18:])
    y = sampling.deform_conv(x, params["kernel"], offsets.reshape(*x.shape[:3], 9, 2), masks)
    return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))


def _build_operations() -> dict[str, Operation]:
    """The table, in the order of the vocabulary; a name like `sep_conv_5x5_dil6` says what it is."""
    table = {
        "none": _without_params(jnp.zeros_like),
        "skip": _without_params(lambda x: x),
        "max_pool_3x3": _without_params(lambda x: layers.max_pool(x, 3)),
        "global_average_pool": Operation(_init_global_average_pool, _global_average_pool),
        "deform_conv_3x3": Operation(_init_deform_conv, _deform_conv),
    }
    for name in genotype_lib.OPERATIONS:
        match = re.fullmatch(r"(sep_)?conv_(\d)x\2(?:_dil(\d+))?", name)
        if match:
            table[name] = (_sep_conv if match[1] else _conv)(int(match[2]), int(match[3] or 1))
    return {name: table[name] for name in genotype_lib.OPERATIONS}


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
    y = layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype))
    return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))


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


def _init_local_attention(rng: jax.Array, channels: int, scope: CellScope) -> Params:
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


def _local_attention(params: Params, a: jax.Array, b: jax.Array, scope: CellScope) -> jax.Array:
    """Each pixel of b attends to the window of a around it; adds b.

    Spatially variant propagation (Li, Shi and Lin 2018, arXiv 1804.00389), with the weights from a softmax of
    query(b) . key(a) and a learnt bias per relative position. Pixels outside the map have no weight.
    """
    query, keys = layers.conv(b, params["query"]), layers.conv(a, params["key"])
    return local_attention.attend(query, keys, a, params["position"]) + b


OPERATIONS: dict[str, Operation] = _build_operations()
AGGREGATIONS: dict[str, Operation] = {
    "sum": Operation(_init_sum, _sum),
    "concat": Operation(_init_pair, _concat),
    "gate": Operation(_init_pair, _gate),
    "warp": Operation(_init_warp, _warp),
    "max": Operation(lambda rng, channels, scope: {}, lambda params, a, b, scope: jnp.maximum(a, b)),
    "local_attention": Operation(_init_local_attention, _local_attention),
}


def init_layer(rng: jax.Array, space: genotype_lib.Space, channels: int, scope: CellScope) -> types.Params:
    """Parameters of every operation (both slots) and aggregation of one layer."""
    params: Params = {}
    for slot, table, names in (
        ("a", OPERATIONS, space.operations),
        ("b", OPERATIONS, space.operations),
        ("agg", AGGREGATIONS, space.aggregations),
    ):
        slot_rng = jax.random.fold_in(rng, ("a", "b", "agg").index(slot))
        params[slot] = {
            name: table[name].init(jax.random.fold_in(slot_rng, index), channels, scope)
            for index, name in enumerate(names)
        }
    return params
