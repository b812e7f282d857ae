"""Convolution for XLA's CPU backend, out of shifted slices and matrix products (NHWC, pure functions).

Depthwise = sum over the taps of a shifted map times a per-channel weight; dense = concatenated shifts times one
matrix. Gradients are written out where the ones of autodiff run slowly there.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dvsnas_jax.nets.kernels import precision, winograd

_MAX_COLUMNS = 1 << 18  # values of an image that taps may see side by side: 1 MiB
_MAX_TURNED = 1 << 12  # values of a matrix whose gradient is computed transposed
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MAX_FOLDED = 1 << 15  # values of a map whose rows are added up side by side; larger ones gained nothing measurable
_MAX_ROWS = 64  # of such a map: each is a term, more compile too long


def conv(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """`layers.conv` with a kernel in the type of x, as matrix products where those are faster."""
    kh, kw, cin, cout = kernel.shape
    if kh == kw == 1:
        return _product(x[:, ::stride, ::stride], kernel[0, 0])
    if stride > 1 or cout > cin // 4:
        return _dense(x, kernel, stride, dilation)
    # Few channels come out, as from a classifier: the product first, the shifts after it.
    parts = _product(x, kernel.reshape(kh * kw, cin, cout).swapaxes(0, 1).reshape(cin, kh * kw * cout))
    padded = jnp.pad(parts, ((0, 0), *_padding((kh, kw), dilation), (0, 0)))
    taps = [padded[..., tap * cout : (tap + 1) * cout] for tap in range(kh * kw)]
    shape = (*x.shape[:3], cout)
    shifts = [_tap(part, shape, (kh, kw), tap, stride=1, dilation=dilation) for tap, part in enumerate(taps)]
    return functools.reduce(jnp.add, shifts)


def lax_conv(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, *, groups: int = 1) -> jax.Array:
    """`lax`'s convolution with the padding of `layers.conv`."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), _padding(kernel.shape, dilation), rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS, feature_group_count=groups,
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """`lax`'s convolution, fast forward; its own gradient runs 10 to 20 times slower inside a conditional."""
    has_many = min(kernel.shape[2:]) >= winograd.MIN_CHANNELS and x.dtype == jnp.float32
    if kernel.shape[:2] == (3, 3) and stride == dilation == 1 and has_many:
        return winograd.conv_3x3(x, kernel)
    return lax_conv(x, kernel, stride, dilation)


def _dense_backward(stride: int, dilation: int, residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    kh, kw, cin, cout = kernel.shape
    if stride == 1 and 16 <= cin < winograd.MIN_CHANNELS and math.prod(x.shape[1:]) * kh * kw <= _MAX_COLUMNS:
        grad_x = _dense(grad, kernel[::-1, ::-1].swapaxes(2, 3), 1, dilation)
        return grad_x, _kernel_grad_by_image(x, grad, (kh, kw), dilation)
    rows = grad.reshape(-1, cout)
    shifts = _shifts(x, (kh, kw), stride, dilation)
    if cin < 16:  # products with so few columns are slow one by one
        shifts = [jnp.concatenate(shifts, axis=-1)]
    parts = [lax.dot_general(part.reshape(len(rows), -1), rows, (((0,), (0,)), ((), ()))) for part in shifts]
    grad_kernel = jnp.concatenate(parts).reshape(kernel.shape)
    if stride == 1:
        return _dense(grad, kernel[::-1, ::-1].swapaxes(2, 3), 1, dilation), grad_kernel
    # Each tap's share of every pixel, put back where the tap looked.
    shares = lax.dot_general(rows, kernel.reshape(-1, cout), (((1,), (1,)), ((), ())))
    shares = shares.reshape(*grad.shape[:3], kh * kw * cin)
    _, spread_fn = jax.vjp(lambda x: jnp.concatenate(_shifts(x, (kh, kw), stride, dilation), axis=-1), x)
    return spread_fn(shares)[0], grad_kernel


def _kernel_grad_by_image(x: jax.Array, grad: jax.Array, size: tuple[int, int], dilation: int) -> jax.Array:
    """[kh, kw, Cin, Cout]: what all taps see of one image side by side stays in a core's cache (1.2 times as fast)."""
    cin, cout = x.shape[3], grad.shape[3]
    empty = precision.at_least_float32(jnp.zeros((cout, size[0] * size[1] * cin), x.dtype))

    def image_fn(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        columns = jnp.concatenate(_shifts(image[0][None], size, 1, dilation), axis=-1)
        rows = image[1].reshape(-1, cout)
        operands = rows, columns.reshape(len(rows), -1)
        return total + lax.dot_general(*operands, (((0,), (0,)), ((), ())), preferred_element_type=empty.dtype), None

    total = lax.scan(image_fn, empty, (x, grad))[0].astype(x.dtype)
    return jnp.moveaxis(total.reshape(cout, *size, cin), 0, 3)


_dense.defvjp(lambda x, kernel, *geometry: (_dense(x, kernel, *geometry), (x, kernel)), _dense_backward)


def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [..., Cin] @ matrix [Cin, Cout]; of maps one pixel wide as a convolution: TensorFlow Lite's converter fails on
    their product (the pooled map of DeepLab, the deepest maps of small frames)."""
    if x.ndim == 4 and x.shape[2] == 1:
        return lax.conv_general_dilated(x, matrix[None, None], (1, 1), "VALID", dimension_numbers=_DIMENSIONS)
    return x @ matrix


@jax.custom_vjp
def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [..., Cin] @ matrix [Cin, Cout]. The gradient is written out: autodiff's has a transposed copy of the
    gradient map, and XLA's CPU backend fuses whatever computed the map into that copy a second time (2-4x slower)."""
    return product(x, matrix)


def _product_backward(residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = lax.dot_general(grad_rows, matrix, (((1,), (1,)), ((), ())))
    if matrix.size > _MAX_TURNED:
        return grad_x.reshape(x.shape), lax.dot_general(rows, grad_rows, (((0,), (0,)), ((), ())))
    # This way round up to twice as fast; without the barrier, XLA makes it the other one.
    grad_matrix = lax.optimization_barrier(lax.dot_general(grad_rows, rows, (((0,), (0,)), ((), ())))).T
    return grad_x.reshape(x.shape), grad_matrix


_product.defvjp(lambda x, matrix: (product(x, matrix), (x, matrix)), _product_backward)


def _padding(size: tuple[int, ...], dilation: int) -> list[tuple[int, int]]:
    """Symmetric padding of height and width, dilation * (k // 2)."""
    return [(dilation * (k // 2),) * 2 for k in size[:2]]


def _shifts(x: jax.Array, size: tuple[int, int], stride: int, dilation: int) -> list[jax.Array]:
    """What each tap of a kernel sees, row by row: kh * kw maps [B, ceil(h / stride), ceil(w / stride), C]."""
    padded = jnp.pad(x, ((0, 0), *_padding(size, dilation), (0, 0)))
    return [_tap(padded, x.shape, size, tap, stride=stride, dilation=dilation) for tap in range(size[0] * size[1])]


def _tap(
    padded: jax.Array, shape: tuple[int, ...], size: tuple[int, int], tap: int, *, stride: int, dilation: int
) -> jax.Array:
    """What one tap sees of a padded map that had this shape."""
    batch, height, width, channels = shape
    top, left = tap // size[1] * dilation, tap % size[1] * dilation
    bottom, right = top + (-(-height // stride) - 1) * stride + 1, left + (-(-width // stride) - 1) * stride + 1
    return lax.slice(padded, (0, top, left, 0), (batch, bottom, right, channels), (1, stride, stride, 1))


def _weighted_sum(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Depthwise convolution as a sum over taps."""
    kh, kw, channels = kernel.shape
    weights = kernel.reshape(kh * kw, 1, 1, 1, channels)
    shifts = _shifts(x, (kh, kw), stride, dilation)
    return functools.reduce(jnp.add, [shift * weights[tap] for tap, shift in enumerate(shifts)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """`layers.depthwise_conv` with a kernel in the type of x, as a sum over taps.

    The gradient is written out: autodiff would add up one padded map per tap (1.4-1.7 times slower).
    """
    return _weighted_sum(x, kernel, stride, dilation)


def _depthwise_backward(stride: int, dilation: int, residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    grad_kernel = _depthwise_kernel_grad(x, grad, (kernel.shape[0], kernel.shape[1]), stride, dilation)
    if stride > 1:  # zeros between the pixels, so that the rest is a convolution of stride 1
        rest = [size - (out - 1) * stride - 1 for size, out in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
        config = ((0, 0, 0), (0, rest[0], stride - 1), (0, rest[1], stride - 1), (0, 0, 0))
        grad = lax.pad(grad, jnp.zeros((), grad.dtype), config)
    grad_x = _weighted_sum(grad, kernel[::-1, ::-1], 1, dilation)
    return grad_x, grad_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _depthwise_kernel_grad(
    x: jax.Array, grad: jax.Array, size: tuple[int, int], stride: int, dilation: int
) -> jax.Array:
    """f32 [kh * kw, C]. Loops over the taps: written side by side, XLA computes x (often a normalisation and an
    activation) once more for each tap (2-3x slower, and longer to compile)."""
    padded = jnp.pad(x, ((0, 0), *_padding(size, dilation), (0, 0)))
    if stride == 1 and x.shape[1] <= _MAX_ROWS and math.prod(x.shape[1:]) <= _MAX_FOLDED:
        return _folded_kernel_grad(padded, grad, size, dilation)
    span = tuple((out - 1) * stride + 1 for out in grad.shape[1:3])

    def tap_fn(tap: jax.Array) -> jax.Array:
        corner = (0, tap // size[1] * dilation, tap % size[1] * dilation, 0)
        shift = lax.dynamic_slice(padded, corner, (x.shape[0], *span, x.shape[3]))[:, ::stride, ::stride]
        return jnp.sum(precision.at_least_float32(shift * grad), axis=(0, 1, 2))

    return lax.map(tap_fn, jnp.arange(size[0] * size[1]))


def _folded_kernel_grad(padded: jax.Array, grad: jax.Array, size: tuple[int, int], dilation: int) -> jax.Array:
    """The same for small maps: whole rows of pixels and channels are added up, image by image (2-3x faster)."""
    batch, height, width, channels = grad.shape
    lines = grad.reshape(batch, height, width * channels)
    padded = padded.reshape(*padded.shape[:2], -1)

    def image_fn(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        padded, lines = image

        def column_fn(left: jax.Array) -> jax.Array:
            band = lax.dynamic_slice_in_dim(padded, left * dilation * channels, width * channels, axis=1)
            parts = [[band[top * dilation + y] * lines[y] for y in range(height)] for top in range(size[0])]
            return jnp.stack([functools.reduce(jnp.add, map(precision.at_least_float32, part)) for part in parts])

        return total + lax.map(column_fn, jnp.arange(size[1])), None

    empty = jnp.zeros((size[1], size[0], width * channels), precision.at_least_float32(grad[:0]).dtype)
    total = lax.scan(image_fn, empty, (padded, lines))[0].swapaxes(0, 1)
    return total.reshape(size[0] * size[1], width, channels).sum(axis=1)


depthwise_conv.defvjp(
    lambda x, kernel, *geometry: (_weighted_sum(x, kernel, *geometry), (x, kernel)), _depthwise_backward
)
