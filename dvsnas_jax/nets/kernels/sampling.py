"""Maps sampled at displaced positions: warping and deformable convolution (pure functions, NHWC)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dvsnas_jax.nets.kernels import layers, precision


def warp_bilinear(x: jax.Array, offsets: jax.Array) -> jax.Array:
    """Samples a map [B, h, w, C] at displaced positions (Jaderberg et al. 2015, arXiv 1506.02025).

    The result at p is x at p + offset, offsets [B, h, w, 2] being (x, y) in grid cells; positions outside the map are
    moved to its border. Differentiable in both arguments.
    """
    height, width = x.shape[1:3]
    offsets = precision.at_least_float32(offsets)
    rows = jnp.clip(jnp.arange(height, dtype=offsets.dtype)[None, :, None] + offsets[..., 1], 0, height - 1)
    cols = jnp.clip(jnp.arange(width, dtype=offsets.dtype)[None, None] + offsets[..., 0], 0, width - 1)
    index, weights = _neighbours(rows, cols, (height, width))
    pixels = x.reshape(-1, x.shape[-1])
    return weighted_take(pixels, index.reshape(4, -1), weights.reshape(4, -1)).reshape(x.shape)


def deform_conv(x: jax.Array, kernel: jax.Array, offsets: jax.Array, masks: jax.Array) -> jax.Array:
    """Modulated deformable convolution (Zhu et al. 2018, "Deformable ConvNets v2", arXiv 1811.11168).

    The sum over the taps (row by row) of a kernel [kh, kw, Cin, Cout] of odd sizes, kernel[tap] applied to
    mask[tap] * x(p + tap + offset[tap]): masks [B, h, w, kh * kw], offsets [B, h, w, kh * kw, 2] as (x, y) in grid
    cells. The map [B, h, w, Cin] is zero outside, and interpolated to zero within one cell around its border: with
    offsets 0 and masks 1 this is `layers.conv`, padding included. In the type of x; differentiable in all arguments.
    """
    batch, height, width, channels = x.shape
    kh, kw, _, channels_out = kernel.shape
    matrices = kernel.astype(x.dtype).reshape(kh * kw, channels, channels_out)
    offsets, masks = (jnp.moveaxis(precision.at_least_float32(x), 3, 0) for x in (offsets, masks))
    tap_row, tap_col = (np.float32(taps).reshape(-1, 1, 1, 1) for taps in np.mgrid[:kh, :kw])
    own_row = np.arange(height, dtype=np.float32).reshape(1, 1, -1, 1) + tap_row - kh // 2
    own_col = np.arange(width, dtype=np.float32).reshape(1, 1, 1, -1) + tap_col - kw // 2
    # One ring of zeros; a position further out moves to it, where the sample is zero.
    rows = 1 + jnp.clip(own_row + offsets[..., 1], -1, height)
    cols = 1 + jnp.clip(own_col + offsets[..., 0], -1, width)
    index, weights = _neighbours(rows, cols, (height + 2, width + 2))
    index, weights = (value.swapaxes(0, 1).reshape(kh * kw, 4, -1) for value in (index, weights * masks[None]))
    pixels = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(-1, channels)
    if layers.is_cpu():
        # Only the border of a loop keeps XLA from computing the positions anew for every channel (3x slower).
        def tap_fn(total: jax.Array, tap: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            return total + weighted_take(pixels, *tap[:2]) @ tap[2], None

        total = jnp.zeros((batch * height * width, channels_out), x.dtype)
        y, _ = lax.scan(tap_fn, total, (index, weights, matrices))
    else:
        samples = weighted_take(pixels, index.swapaxes(0, 1), weights.swapaxes(0, 1))  # [kh * kw, N, Cin]
        y = jnp.einsum("tnc,tcd->nd", samples, matrices)
    return y.reshape(batch, height, width, channels_out)


@jax.custom_vjp
def weighted_take(pixels: jax.Array, index: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums [..., C] of k of the pixels [P, C] each: those of the index i32 [k, ...] (not checked) times their weight
    f32 [k, ...]. The gradient is written out: autodiff would keep every pixel taken."""
    total = _take(pixels, index[0]) * weights[0].astype(pixels.dtype)[..., None]
    for one, weight in zip(index[1:], weights[1:], strict=True):
        total = total + _take(pixels, one) * weight.astype(pixels.dtype)[..., None]
    return total


def _take_backward(residuals: Any, grad: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    pixels, index, weights = residuals
    grad_weights = jnp.stack([jnp.sum(precision.at_least_float32(_take(pixels, one) * grad), axis=-1) for one in index])
    shares = weights[..., None] * precision.at_least_float32(grad)[None]
    grad_pixels = jnp.zeros(pixels.shape, shares.dtype).at[index].add(shares, mode="promise_in_bounds")
    return grad_pixels.astype(pixels.dtype), None, grad_weights


weighted_take.defvjp(lambda *args: (weighted_take(*args), args), _take_backward)


def _take(pixels: jax.Array, index: jax.Array) -> jax.Array:
    return pixels.at[index].get(mode="promise_in_bounds")


def _neighbours(rows: jax.Array, cols: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The four pixels around each position (f32 [..., B, h, w], inside maps of this size): their index among the
    pixels of all B maps, i32 [4, ..., B, h, w], and their bilinear weights, f32 of that shape."""
    height, width = size
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(cols).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    low, high = rows - top, cols - left
    first = lax.broadcasted_iota(jnp.int32, rows.shape, rows.ndim - 3) * (height * width)
    index = [first + row * width + col for row in (top, bottom) for col in (left, right)]
    weights = [row * col for row in (1 - low, low) for col in (1 - high, high)]
    return jnp.stack(index), jnp.stack(weights)
