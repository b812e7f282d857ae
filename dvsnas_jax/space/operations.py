"""The operations (on one map) and aggregations (of two maps) of a cell, as pairs of pure functions.

A member of `OPERATIONS` is `init(rng, channels) -> params` and `apply(params, x, scope) -> map`; of
`AGGREGATIONS`, `init(rng, channels) -> params` and `apply(params, a, b, scope) -> map`. Maps are
[B, h, w, C], C is kept, the stride is kept. `scope` normalises (see `NormScope`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.nets import layers
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]
Moments = dict[tuple[str, ...], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class NormScope:
    """How a cell normalises: by the batch, or by the running statistics where its parameters hold them.

    A normalisation's parameters are `{scale, bias}`, and `{scale, bias, mean, var}` once a retrained
    cell was calibrated: the presence of `mean` decides, so one code path serves both.

    Attributes:
      path: where in the parameter tree this scope is.
      record: if given, receives the batch moments of every normalisation by its path.
      max_offset: largest displacement of `warp`, in grid cells.
    """

    path: tuple[str, ...] = ()
    record: Moments | None = None
    max_offset: float = 4.0

    def child(self, *keys: str) -> NormScope:
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
    """Dense convolution, normalisation, ReLU."""

    def init(rng: jax.Array, channels: int) -> Params:
        return {"kernel": init_kernel(rng, size, channels, channels), "norm": init_norm(channels)}

    def apply(params: Params, x: jax.Array, scope: NormScope) -> jax.Array:
        y = layers.conv(x, params["kernel"].astype(x.dtype), dilation=dilation)
        return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))

    return Operation(init, apply)


def _sep_conv(size: int, dilation: int) -> Operation:
    """Depthwise convolution, 1x1 convolution, normalisation, ReLU."""

    def init(rng: jax.Array, channels: int) -> Params:
        depthwise_rng, pointwise_rng = jax.random.split(rng)
        depthwise = jax.random.normal(depthwise_rng, (size, size, channels)) / size
        return {
            "depthwise": depthwise,
            "pointwise": init_kernel(pointwise_rng, 1, channels, channels),
            "norm": init_norm(channels),
        }

    def apply(params: Params, x: jax.Array, scope: NormScope) -> jax.Array:
        y = layers.depthwise_conv(x, params["depthwise"].astype(x.dtype), dilation=dilation)
        y = layers.conv(y, params["pointwise"].astype(x.dtype))
        return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))

    return Operation(init, apply)


def _without_params(fn: Callable[[jax.Array], jax.Array]) -> Operation:
    """An operation that learns nothing."""
    return Operation(lambda rng, channels: {}, lambda params, x, scope: fn(x))


def _init_global_average_pool(rng: jax.Array, channels: int) -> Params:
    return {"kernel": init_kernel(rng, 1, channels, channels), "bias": jnp.zeros((channels,))}


def _global_average_pool(params: Params, x: jax.Array, scope: NormScope) -> jax.Array:
    """Mean over the map, 1x1 convolution, the same value everywhere."""
    mean = x.mean(axis=(1, 2)) @ params["kernel"][0, 0].astype(x.dtype) + params["bias"].astype(x.dtype)[None]
    return jnp.broadcast_to(jax.nn.relu(mean)[:, None, None, :], x.shape)


def _build_operations() -> dict[str, Operation]:
    """The table, in the order of the vocabulary; a name like `sep_conv_5x5_dil6` says what it is."""
    table = {
        "none": _without_params(jnp.zeros_like),
        "skip": _without_params(lambda x: x),
        "max_pool_3x3": _without_params(lambda x: layers.max_pool(x, 3)),
        "global_average_pool": Operation(_init_global_average_pool, _global_average_pool),
    }
    for name in genotype_lib.OPERATIONS:
        match = re.fullmatch(r"(sep_)?conv_(\d)x\2(?:_dil(\d+))?", name)
        if match:
            table[name] = (_sep_conv if match[1] else _conv)(int(match[2]), int(match[3] or 1))
    return {name: table[name] for name in genotype_lib.OPERATIONS}


def _init_sum(rng: jax.Array, channels: int) -> Params:
    half = jnp.full((channels,), 0.5, jnp.float32)  # typed: a weak type would be traced anew after the first step
    return {"weight_a": half, "weight_b": half}


def _sum(params: Params, a: jax.Array, b: jax.Array, scope: NormScope) -> jax.Array:
    """Per-channel weighted sum."""
    weight_a, weight_b = (params[key].astype(a.dtype)[None, None, None] for key in ("weight_a", "weight_b"))
    return weight_a * a + weight_b * b


def _init_pair(rng: jax.Array, channels: int) -> Params:
    return {"kernel": init_kernel(rng, 1, 2 * channels, channels), "norm": init_norm(channels)}


def _concat(params: Params, a: jax.Array, b: jax.Array, scope: NormScope) -> jax.Array:
    """Concatenation, 1x1 convolution, normalisation, ReLU."""
    y = layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype))
    return jax.nn.relu(scope.child("norm").normalize(params["norm"], y))


def _gate(params: Params, a: jax.Array, b: jax.Array, scope: NormScope) -> jax.Array:
    """Convex combination decided per pixel and channel by both, as the update gate of a GRU."""
    y = layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype))
    gate = jax.nn.sigmoid(scope.child("norm").normalize(params["norm"], y))
    return gate * a + (1 - gate) * b


def _init_warp(rng: jax.Array, channels: int) -> Params:
    """Zero: the warp starts as the identity."""
    return {"kernel": jnp.zeros((3, 3, 2 * channels, 2)), "bias": jnp.zeros((2,))}


def _warp(params: Params, a: jax.Array, b: jax.Array, scope: NormScope) -> jax.Array:
    """Resamples a bilinearly at offsets predicted from both (bounded; border clamped), adds b."""
    offsets = layers.conv(jnp.concatenate([a, b], axis=-1), params["kernel"].astype(a.dtype))
    offsets = scope.max_offset * jnp.tanh(offsets + params["bias"].astype(a.dtype)[None, None, None])
    return layers.warp_bilinear(a, offsets) + b


OPERATIONS: dict[str, Operation] = _build_operations()
AGGREGATIONS: dict[str, Operation] = {
    "sum": Operation(_init_sum, _sum),
    "concat": Operation(_init_pair, _concat),
    "gate": Operation(_init_pair, _gate),
    "warp": Operation(_init_warp, _warp),
    "max": Operation(lambda rng, channels: {}, lambda params, a, b, scope: jnp.maximum(a, b)),
}


def init_layer(rng: jax.Array, space: genotype_lib.Space, channels: int) -> types.Params:
    """Parameters of every operation (both slots) and aggregation of one layer."""
    params: Params = {}
    for slot, table, names in (
        ("a", OPERATIONS, space.operations),
        ("b", OPERATIONS, space.operations),
        ("agg", AGGREGATIONS, space.aggregations),
    ):
        slot_rng = jax.random.fold_in(rng, ("a", "b", "agg").index(slot))
        params[slot] = {
            name: table[name].init(jax.random.fold_in(slot_rng, index), channels) for index, name in enumerate(names)
        }
    return params
