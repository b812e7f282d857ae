"""Convolution for XLA's CPU backend, out of shifted slices and matrix products (NHWC, pure functions).

Depthwise = sum over the taps of a shifted map times a per-channel weight; dense = concatenated shifts times one
matrix. Gradients are written out where the ones of autodiff run slowly there.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dvsnas_jax.nets.kernels import precision, winograd

_MAX_COLUMNS = 1 << 18  # values of an image that taps may see side by side: 1 MiB
_FEW_COLUMNS = 32  # values of an image that a strided kernel sees, up to which they are copied side by side
_MAX_TURNED = 1 << 12  # values of a matrix whose gradient is computed transposed
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MAX_FOLDED = 1 << 15  # values of a map whose rows are added up side by side; larger ones gained nothing measurable
_MAX_ROWS = 64  # of such a map: each is a term, more compile too long


class Geometry(NamedTuple):
    """How a kernel moves over a map: pixels from one result to the next and between neighbouring taps, per axis.

    `is_same`: padded as TensorFlow's `SAME` does it, by no more than the taps reach, of an odd number of pixels one
    more at the end; else by dilation * (k // 2) at every side. They differ where the stride is above 1.
    """

    stride: int = 1
    dilation: int = 1
    is_same: bool = False

    def padding(self, lengths: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
        """Pixels before and after the rows and the columns of a map of these two lengths, for a kernel of this size."""
        pads = []
        for length, taps in zip(lengths, size[:2], strict=True):
            reach = self.dilation * (taps - 1)
            if self.is_same:
                total = max((-(-length // self.stride) - 1) * self.stride + 1 + reach - length, 0)
                pads.append((total // 2, total - total // 2))
            else:
                pads.append((reach // 2,) * 2)
        return pads


def conv(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`layers.conv` with a kernel in the type of x, as matrix products where those are faster."""
    kh, kw, cin, cout = kernel.shape
    if kh == kw == 1:
        return _product(x[:, :: geometry.stride, :: geometry.stride], kernel[0, 0])
    if geometry.stride > 1 or cout > cin // 4:
        return _dense(x, kernel, geometry)
    # Few channels come out, as from a classifier: the product first, the shifts after it.
    parts = _product(x, kernel.reshape(kh * kw, cin, cout).swapaxes(0, 1).reshape(cin, kh * kw * cout))
    padded = _padded(parts, (kh, kw), geometry)
    taps = [padded[..., tap * cout : (tap + 1) * cout] for tap in range(kh * kw)]
    shape = (*x.shape[:3], cout)
    shifts = [_tap(part, shape, (kh, kw), tap, geometry) for tap, part in enumerate(taps)]
    return functools.reduce(jnp.add, shifts)


def lax_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry, *, groups: int = 1) -> jax.Array:
    """`lax`'s convolution with the padding of `layers.conv`."""
    return lax.conv_general_dilated(
        x, kernel, (geometry.stride,) * 2, geometry.padding(x.shape[1:3], kernel.shape[:2]),
        rhs_dilation=(geometry.dilation,) * 2, dimension_numbers=_DIMENSIONS, feature_group_count=groups,
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`lax`'s convolution, fast forward; its own gradient runs 10 to 20 times slower inside a conditional."""
    has_many = min(kernel.shape[2:]) >= winograd.MIN_CHANNELS and x.dtype == jnp.float32
    if kernel.shape[:2] == (3, 3) and geometry.stride == geometry.dilation == 1 and has_many:
        return winograd.conv_3x3(x, kernel)
    if geometry.stride > 1 and geometry.dilation == 1 and math.prod(kernel.shape[:3]) <= _FEW_COLUMNS:
        return _strided_rows(x, kernel, geometry)
    return lax_conv(x, kernel, geometry)


def _strided_rows(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A strided convolution of few channels, as of an image, as one product: what a row of the kernel sees lies side by
    side in memory, so that it is copied in pieces of `stride` pixels (on a CPU twice as fast as `lax`'s)."""
    kh, kw, cin, cout = kernel.shape
    stride, out = geometry.stride, tuple(-(-length // geometry.stride) for length in x.shape[1:3])
    padded, num_pieces = _padded(x, (kh, kw), geometry), -(-kw // stride)
    lengths = (out[0] - 1) * stride + kh, (out[1] + num_pieces - 1) * stride
    ends = [max(length - have, 0) for length, have in zip(lengths, padded.shape[1:3], strict=True)]
    padded = jnp.pad(padded, ((0, 0), (0, ends[0]), (0, ends[1]), (0, 0)))[:, : lengths[0], : lengths[1]]
    cells = padded.reshape(*padded.shape[:2], -1, stride * cin)
    pieces = [cells[:, :, first : first + out[1]] for first in range(num_pieces)]
    rows = jnp.concatenate(pieces, axis=-1)[..., : kw * cin]
    columns = [rows[:, top : top + (out[0] - 1) * stride + 1 : stride] for top in range(kh)]
    return jnp.concatenate(columns, axis=-1) @ kernel.reshape(-1, cout)


def _dense_backward(geometry: Geometry, residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    kh, kw, cin, cout = kernel.shape
    if geometry.stride == 1 and 16 <= cin < winograd.MIN_CHANNELS and math.prod(x.shape[1:]) * kh * kw <= _MAX_COLUMNS:
        grad_x = _dense(grad, kernel[::-1, ::-1].swapaxes(2, 3), geometry)
        return grad_x, _kernel_grad_by_image(x, grad, (kh, kw), geometry)
    rows = grad.reshape(-1, cout)
    shifts = _shifts(x, (kh, kw), geometry)
    if cin < 16:  # products with so few columns are slow one by one
        shifts = [jnp.concatenate(shifts, axis=-1)]
    parts = [lax.dot_general(part.reshape(len(rows), -1), rows, (((0,), (0,)), ((), ()))) for part in shifts]
    grad_kernel = jnp.concatenate(parts).reshape(kernel.shape)
    if geometry.stride == 1:
        return _dense(grad, kernel[::-1, ::-1].swapaxes(2, 3), geometry), grad_kernel
    # Each tap's share of every pixel, put back where the tap looked.
    shares = lax.dot_general(rows, kernel.reshape(-1, cout), (((1,), (1,)), ((), ())))
    shares = shares.reshape(*grad.shape[:3], kh * kw * cin)
    _, spread_fn = jax.vjp(lambda x: jnp.concatenate(_shifts(x, (kh, kw), geometry), axis=-1), x)
    return spread_fn(shares)[0], grad_kernel


def _kernel_grad_by_image(x: jax.Array, grad: jax.Array, size: tuple[int, int], geometry: Geometry) -> jax.Array:
    """[kh, kw, Cin, Cout]: what all taps see of one image side by side stays in a core's cache (1.2 times as fast)."""
    cin, cout = x.shape[3], grad.shape[3]
    empty = precision.at_least_float32(jnp.zeros((cout, size[0] * size[1] * cin), x.dtype))

    def image_fn(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        columns = jnp.concatenate(_shifts(image[0][None], size, geometry), axis=-1)
        rows = image[1].reshape(-1, cout)
        operands = rows, columns.reshape(len(rows), -1)
        return total + lax.dot_general(*operands, (((0,), (0,)), ((), ())), preferred_element_type=empty.dtype), None

    total = lax.scan(image_fn, empty, (x, grad))[0].astype(x.dtype)
    return jnp.moveaxis(total.reshape(cout, *size, cin), 0, 3)


_dense.defvjp(lambda x, kernel, geometry: (_dense(x, kernel, geometry), (x, kernel)), _dense_backward)


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


def _padded(x: jax.Array, size: tuple[int, int], geometry: Geometry) -> jax.Array:
    """x [B, h, w, C] with the zeros around it that a kernel of this size sees."""
    return jnp.pad(x, ((0, 0), *geometry.padding(x.shape[1:3], size), (0, 0)))


def _shifts(x: jax.Array, size: tuple[int, int], geometry: Geometry) -> list[jax.Array]:
    """What each tap of a kernel sees, row by row: kh * kw maps [B, ceil(h / stride), ceil(w / stride), C]."""
    padded = _padded(x, size, geometry)
    return [_tap(padded, x.shape, size, tap, geometry) for tap in range(size[0] * size[1])]


def _tap(padded: jax.Array, shape: tuple[int, ...], size: tuple[int, int], tap: int, geometry: Geometry) -> jax.Array:
    """What one tap sees of a padded map that had this shape."""
    batch, height, width, channels = shape
    stride, dilation = geometry.stride, geometry.dilation
    top, left = tap // size[1] * dilation, tap % size[1] * dilation
    bottom, right = top + (-(-height // stride) - 1) * stride + 1, left + (-(-width // stride) - 1) * stride + 1
    return lax.slice(padded, (0, top, left, 0), (batch, bottom, right, channels), (1, stride, stride, 1))


def _weighted_sum(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Depthwise convolution as a sum over taps."""
    kh, kw, channels = kernel.shape
    weights = kernel.reshape(kh * kw, 1, 1, 1, channels)
    shifts = _shifts(x, (kh, kw), geometry)
    return functools.reduce(jnp.add, [shift * weights[tap] for tap, shift in enumerate(shifts)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`layers.depthwise_conv` with a kernel in the type of x, as a sum over taps.

    The gradient is written out: autodiff would add up one padded map per tap (1.4-1.7 times slower).
    """
    return _weighted_sum(x, kernel, geometry)


def _depthwise_backward(geometry: Geometry, residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    size, stride = (kernel.shape[0], kernel.shape[1]), geometry.stride
    grad_kernel = _depthwise_kernel_grad(x, grad, size, geometry)
    even = Geometry(1, geometry.dilation)
    if stride > 1:  # zeros between the pixels, so that the rest is a convolution of stride 1
        config = [(0, 0, 0)]
        pads = zip(even.padding(x.shape[1:3], size), geometry.padding(x.shape[1:3], size), strict=True)
        for length, out, (whole, own) in zip(x.shape[1:3], grad.shape[1:3], pads, strict=True):
            first = whole[0] - own[0]  # the pixel in the middle of what the first result saw
            config.append((first, length - (out - 1) * stride - 1 - first, stride - 1))
        grad = lax.pad(grad, jnp.zeros((), grad.dtype), (*config, (0, 0, 0)))
    grad_x = _weighted_sum(grad, kernel[::-1, ::-1], even)
    return grad_x, grad_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _depthwise_kernel_grad(x: jax.Array, grad: jax.Array, size: tuple[int, int], geometry: Geometry) -> jax.Array:
    """f32 [kh * kw, C]. Loops over the taps: written side by side, XLA computes x (often a normalisation and an
    activation) once more for each tap (2-3x slower, and longer to compile)."""
    padded, (stride, dilation, _) = _padded(x, size, geometry), geometry
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
    lambda x, kernel, geometry: (_weighted_sum(x, kernel, geometry), (x, kernel)), _depthwise_backward
)
