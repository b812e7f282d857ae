"""Local attention: sums over a square window around each pixel, with weights of its own (pure functions, NHWC).

`scores` (products of one map with the shifted other) and `weighted_sum` (of a shifted map) are each other's
gradients, so both are written out: autodiff would keep a map per tap. On a CPU some of the taps are a loop, which
compiles sooner and runs as fast or faster; elsewhere all taps are written side by side.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dvsnas_jax.nets.kernels import layers, precision

_MAX_TERMS = 256  # products that are added up side by side: more compile too long
_MIN_CHANNELS = 16  # from which on a CPU's products of blocks are faster than sums over the channels
_MAX_PRODUCTS = 2400  # of planes, all written out, where a CPU matches one image: more compile too long
_BLOCK = 16  # pixels of a row whose products with all keys around them are one matrix
_LENGTH_EPS = 1e-3  # of the squared length of a pixel's channels: zeros are like nothing
_LOOPED_SUM = 7  # from this window on, a CPU loops over the rows of a window where it adds up its taps


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array) -> jax.Array:
    """Each pixel takes a weighted mean of the values in the window around it (local attention).

    Query, keys and values are [B, h, w, C], position [k, k, G] with odd k; each of the G heads sees C / G = D channels.
    The weights are a softmax over the pixels of the window that lie inside the map, of
    query . key / sqrt(D) + position, as in self-attention with learnt relative positions (Ramachandran et al. 2019,
    arXiv 1906.05909). Weights that differ from pixel to pixel: spatially variant convolution (Li, Shi and Lin 2018,
    arXiv 1804.00389). In the type of the values.
    """
    window, heads = position.shape[0], position.shape[2]
    batch, height, width, channels = values.shape
    is_looped = layers.is_cpu()

    def heads_first(x: jax.Array) -> jax.Array:
        # A head is one more image of the batch: an axis of so few beside the channels runs slowly on a CPU.
        parts = x.reshape(batch, height, width, heads, channels // heads)
        return jnp.moveaxis(parts, 3, 0).reshape(heads * batch, height, width, channels // heads)

    products = scores(heads_first(query), heads_first(keys), window, is_looped)
    products = products.reshape(window * window, heads, batch, height, width) * (channels // heads) ** -0.5
    bias = precision.at_least_float32(position).reshape(window * window, heads, 1, 1, 1)
    inside = _inside(height, width, window)[:, None, None]
    weights = _softmax(jnp.where(inside, products + bias, -jnp.inf)).astype(values.dtype)
    weights = weights.reshape(window * window, heads * batch, height, width)
    total = weighted_sum(weights, heads_first(values), window, is_looped)
    return jnp.moveaxis(total.reshape(heads, batch, height, width, -1), 0, 3).reshape(values.shape)


def cosines(query: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """Of the angles between each pixel of the query [B, h, w, C] and the keys in the window of k x k around it, 0
    outside the map: [B, h, w, k * k] in the type of the query, the taps row by row."""
    num_products = window * window * query.shape[3]
    if layers.is_cpu() and query.shape[0] == 1 and num_products <= _MAX_PRODUCTS:
        return _cosines_of_planes(query, keys, window)
    return _cosines(query, keys, window)


def _cosines(query: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    def unit(x: jax.Array) -> jax.Array:
        values = precision.at_least_float32(x)
        squares = jnp.sum(jnp.square(values), axis=-1, keepdims=True)
        return (values * lax.rsqrt(squares + _LENGTH_EPS)).astype(x.dtype)

    found = scores(unit(query), unit(keys), window, layers.is_cpu())
    return jnp.moveaxis(found, 0, -1).astype(query.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cosines_of_planes(query: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """`cosines` of one image, as sums of its channels' planes, all written out: on a CPU in half to a third of the time
    of products of blocks, for seconds of compilation. The gradient is that of the others."""

    def planes(x: jax.Array) -> jax.Array:
        values = lax.optimization_barrier(precision.at_least_float32(jnp.moveaxis(x[0], 2, 0)))
        squares = functools.reduce(jnp.add, [plane * plane for plane in values])
        return lax.optimization_barrier(values * lax.rsqrt(squares + _LENGTH_EPS)[None])

    own, (height, width) = planes(query), query.shape[1:3]
    others = _pad(planes(keys), window, 1)
    pairs = list(zip(own, others, strict=True))

    def tap(top: int, left: int) -> jax.Array:
        # Primitives by name: thousands of jnp's operators take most of a second to trace.
        place = (top, left), (top + height, left + width)
        return functools.reduce(lax.add, [lax.mul(a, lax.slice(b, *place)) for a, b in pairs])

    found = [tap(top, left) for top in range(window) for left in range(window)]
    return jnp.stack(found, axis=-1)[None].astype(query.dtype)


def _cosines_backward(
    window: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(functools.partial(_cosines, window=window), *residuals)[1](grad)


_cosines_of_planes.defvjp(
    lambda query, keys, window: (_cosines_of_planes(query, keys, window), (query, keys)), _cosines_backward
)


@jax.custom_vjp
def _softmax(x: jax.Array) -> jax.Array:
    """Over the first axis. The gradient is written out: XLA's CPU backend runs autodiff's, with sums over that axis
    and quotients in one loop, 10 times slower."""
    return jax.nn.softmax(x, axis=0)


def _softmax_backward(weights: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    parts = weights * grad
    return (parts - weights * functools.reduce(jnp.add, list(parts))[None],)


_softmax.defvjp(lambda x: (_softmax(x),) * 2, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def scores(query: jax.Array, keys: jax.Array, window: int, is_looped: bool) -> jax.Array:
    """Products of each pixel of the query [N, h, w, D] with the keys (zero outside) in the window of k x k around it.

    Returns f32 [k * k, N, h, w], the taps row by row. `is_looped`: over the taps, which else are side by side.
    """
    padded, channels = _pad(keys, window, 1), keys.shape[3]
    if is_looped and channels >= _MIN_CHANNELS and window > 1:
        return _scores_by_block(query, padded, window)
    if is_looped and window * channels <= _MAX_TERMS:
        return _scores_by_image(query, padded, window)

    def tap_fn(tap: jax.Array | int) -> jax.Array:
        shift = lax.dynamic_slice(padded, (0, tap // window, tap % window, 0), keys.shape)
        return jnp.sum(precision.at_least_float32(query * shift), axis=-1)

    if is_looped:
        return lax.map(tap_fn, jnp.arange(window * window))
    return jnp.stack([tap_fn(tap) for tap in range(window * window)])


def _scores_by_image(query: jax.Array, padded: jax.Array, window: int) -> jax.Array:
    """`scores` as sums of whole maps, one for each channel: on a CPU twice as fast as sums over channels."""
    height, width = query.shape[1:3]

    def image_fn(image: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, others = jax.lax.optimization_barrier([jnp.moveaxis(x, 2, 0) for x in image])

        def column_fn(left: jax.Array) -> jax.Array:
            band = lax.dynamic_slice_in_dim(others, left, width, axis=2)
            parts = [[a * b[top : top + height] for a, b in zip(own, band, strict=True)] for top in range(window)]
            return jnp.stack([functools.reduce(jnp.add, map(precision.at_least_float32, part)) for part in parts])

        return lax.map(column_fn, jnp.arange(window)).swapaxes(0, 1)

    found = lax.map(image_fn, (query, padded))
    return jnp.moveaxis(found.reshape(query.shape[0], window * window, height, width), 1, 0)


def _scores_by_block(query: jax.Array, padded: jax.Array, window: int) -> jax.Array:
    """`scores` as matrix products: `_BLOCK` pixels of a row with every key that one of them sees. On a CPU 1.5 times as
    fast with 24 channels, 10 times with 64, though a pixel's own window is less than half of each product."""
    batch, height, width, channels = query.shape
    num_blocks, seen = -(-width // _BLOCK), _BLOCK + window - 1
    rest = ((0, 0), (0, 0), (0, num_blocks * _BLOCK - width), (0, 0))
    blocks = jnp.pad(query, rest).reshape(batch, height, num_blocks, _BLOCK, channels)
    padded = jnp.pad(padded, rest)
    keys = jnp.stack([padded[:, :, i * _BLOCK : i * _BLOCK + seen] for i in range(num_blocks)], axis=2)
    keys = jnp.concatenate([keys[:, top : top + height] for top in range(window)], axis=3)
    found = jnp.einsum(
        "bhnqc,bhnkc->bhnqk", blocks, keys, preferred_element_type=precision.at_least_float32(query[:0]).dtype
    )
    found = jnp.moveaxis(found.reshape(*blocks.shape[:4], window, seen), 4, 0)
    # Pixel q sees the keys q .. q + window - 1: with a key more in each row, they are the first of every row.
    flat = jnp.pad(found.reshape(*found.shape[:4], _BLOCK * seen), ((0, 0),) * 4 + ((0, _BLOCK),))
    own = flat.reshape(*found.shape[:5], seen + 1)[..., :window].reshape(window, batch, height, -1, window)
    return jnp.moveaxis(own[:, :, :, :width], 4, 1).reshape(window * window, batch, height, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def weighted_sum(weights: jax.Array, values: jax.Array, window: int, is_looped: bool) -> jax.Array:
    """Sum of the values [N, h, w, D] (zero outside) in the window of k x k around each pixel, with weights
    [k * k, N, h, w] in their type, the taps row by row. `is_looped`: over the rows of a large window."""
    height, width = values.shape[1:3]
    padded = _pad(values, window, 1)

    def row_fn(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        top, row_weights = row
        band = lax.dynamic_slice_in_dim(padded, top, height, axis=1)
        for left in range(window):
            total = total + row_weights[left][..., None] * lax.slice_in_dim(band, left, left + width, axis=2)
        return total, None

    rows = (jnp.arange(window), weights.reshape(window, window, *weights.shape[1:]))
    unroll = 1 if is_looped and window >= _LOOPED_SUM else window
    return lax.scan(row_fn, jnp.zeros_like(values), rows, unroll=unroll)[0]


def _scores_backward(window: int, is_looped: bool, residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    query, keys = residuals
    grad = grad.astype(keys.dtype)
    grad_query = weighted_sum(grad, keys, window, is_looped)
    return grad_query, weighted_sum(_seen_from_values(grad, window), query, window, is_looped)


def _sum_backward(window: int, is_looped: bool, residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights, values = residuals
    grad_weights = scores(grad, values, window, is_looped).astype(weights.dtype)
    return grad_weights, weighted_sum(_seen_from_values(weights, window), grad, window, is_looped)


scores.defvjp(lambda query, keys, *rest: (scores(query, keys, *rest), (query, keys)), _scores_backward)
weighted_sum.defvjp(
    lambda weights, values, *rest: (weighted_sum(weights, values, *rest), (weights, values)), _sum_backward
)


def _seen_from_values(weights: jax.Array, window: int) -> jax.Array:
    """The same weights by the pixel that is taken: at q and tap d, that of q in the window around q + d."""
    padded = _pad(weights[::-1], window, 2)
    starts = [(0, tap // window, tap % window) for tap in range(window * window)]
    return jnp.stack([lax.dynamic_slice(padded[tap], at, weights.shape[1:]) for tap, at in enumerate(starts)])


def _pad(x: jax.Array, window: int, axis: int) -> jax.Array:
    """Zeros around the height (at this axis) and the width."""
    pad = [(window // 2,) * 2 if a in (axis, axis + 1) else (0, 0) for a in range(x.ndim)]
    return jnp.pad(x, pad)


def _inside(height: int, width: int, window: int) -> np.ndarray:
    """Which taps of each pixel lie inside the map, bool [k * k, h, w]."""
    taps = np.arange(window)[:, None] - window // 2
    rows, cols = ((0 <= taps + np.arange(n)) & (taps + np.arange(n) < n) for n in (height, width))
    return (rows[:, None, :, None] & cols[None, :, None, :]).reshape(window * window, height, width)
