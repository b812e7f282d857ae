"""The arithmetic of every network here: convolution, pooling, normalisation, resampling (pure functions, NHWC).

XLA's CPU backend compiles depthwise convolutions, and convolution gradients inside conditionals, to slow
loops. So each costly layer has two variants that agree: "shifted slices" on a CPU (depthwise = sum over the
taps of a shifted map times a per-channel weight; dense = concatenated shifts times one matrix), `lax`'s own
primitive elsewhere. The choice is made when a function is traced; `backend` overrides it.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NORM_EPS = 1e-5

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _is_cpu(backend: str | None) -> bool:
    return (backend or jax.default_backend()) == "cpu"


def per_channel(values: jax.Array, ndim: int) -> jax.Array:
    """[C] -> [1, .., 1, C] with ndim axes: broadcasting is written out here."""
    return values.reshape((1,) * (ndim - 1) + (-1,))


def he_normal(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a kernel with variance 2 / fan-in (He et al. 2015, arXiv 1502.01852).

    Args:
      rng: a key.
      shape: [kh, kw, Cin, Cout] of a convolution, or [kh, kw, C] of a depthwise one.

    Returns:
      f32 of that shape.
    """
    return jax.random.normal(rng, shape, jnp.float32) * he_scale(shape)


def he_scale(shape: tuple[int, ...]) -> float:
    """Standard deviation of the weights of a kernel of this shape, sqrt(2 / fan-in)."""
    return math.sqrt(2.0 / math.prod(shape[:3] if len(shape) == 4 else shape[:2]))


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, backend: str | None = None
) -> jax.Array:
    """Convolution with symmetric zero padding dilation * (k // 2), so that sizes go ceil(n / stride).

    Args:
      x: [B, h, w, Cin].
      kernel: [kh, kw, Cin, Cout], odd sizes; cast to the type of x.
      stride: of the output grid.
      dilation: distance of neighbouring taps, in pixels.
      backend: "cpu", "gpu" or "tpu"; None: the one in use.

    Returns:
      [B, ceil(h / stride), ceil(w / stride), Cout], in the type of x.
    """
    kh, kw, cin, cout = kernel.shape
    kernel = kernel.astype(x.dtype)
    product_fn = _product if _is_cpu(backend) else jnp.matmul
    if kh == kw == 1:
        return product_fn(x[:, ::stride, ::stride], kernel[0, 0])
    if _is_cpu(backend) and cout <= cin // 2:  # fewer channels to move after the product than before
        parts = product_fn(x, kernel.reshape(kh * kw, cin, cout).swapaxes(0, 1).reshape(cin, kh * kw * cout))
        padded = jnp.pad(parts, ((0, 0), *_padding((kh, kw), dilation), (0, 0)))
        shape = (*x.shape[:3], cout)
        taps = [padded[..., tap * cout : (tap + 1) * cout] for tap in range(kh * kw)]
        shifts = [_tap(part, shape, (kh, kw), tap, stride, dilation) for tap, part in enumerate(taps)]
        return functools.reduce(jnp.add, shifts)
    if _is_cpu(backend):
        columns = jnp.concatenate(_shifts(x, (kh, kw), stride, dilation), axis=-1)
        return product_fn(columns, kernel.reshape(kh * kw * cin, cout))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        _padding((kh, kw), dilation),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
    )


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, backend: str | None = None
) -> jax.Array:
    """Convolution of each channel by itself, padded as `conv`.

    Args:
      x: [B, h, w, C].
      kernel: [kh, kw, C], odd sizes; cast to the type of x.
      stride: of the output grid.
      dilation: distance of neighbouring taps, in pixels.
      backend: "cpu", "gpu" or "tpu"; None: the one in use.

    Returns:
      [B, ceil(h / stride), ceil(w / stride), C], in the type of x.
    """
    kernel = kernel.astype(x.dtype)
    if _is_cpu(backend):
        return _depthwise_shifted(x, kernel, stride, dilation)
    kh, kw, channels = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        _padding((kh, kw), dilation),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=channels,
    )


@jax.custom_vjp
def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [..., Cin] @ matrix [Cin, Cout]. The gradient is written out: autodiff's has a transposed copy of the
    gradient map, and XLA's CPU backend fuses whatever computed the map into that copy a second time (2-4x slower)."""
    return x @ matrix


def _product_forward(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ matrix, (x, matrix)


def _product_backward(residuals: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = lax.dot_general(grad_rows, matrix, (((1,), (1,)), ((), ())))
    return grad_x.reshape(x.shape), lax.dot_general(rows, grad_rows, (((0,), (0,)), ((), ())))


_product.defvjp(_product_forward, _product_backward)


def _padding(size: tuple[int, int], dilation: int) -> list[tuple[int, int]]:
    return [(dilation * (k // 2),) * 2 for k in size]


def _shifts(x: jax.Array, size: tuple[int, int], stride: int, dilation: int) -> list[jax.Array]:
    """What each tap of a kernel sees, row by row: kh * kw maps [B, ceil(h / stride), ceil(w / stride), C]."""
    padded = jnp.pad(x, ((0, 0), *_padding(size, dilation), (0, 0)))
    return [_tap(padded, x.shape, size, tap, stride, dilation) for tap in range(size[0] * size[1])]


def _tap(
    padded: jax.Array, shape: tuple[int, ...], size: tuple[int, int], tap: int, stride: int, dilation: int
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
def _depthwise_shifted(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Shifted slices. The gradient is written out: autodiff would add up one padded map per tap (1.4-1.7x slower)."""
    return _weighted_sum(x, kernel, stride, dilation)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _weighted_sum(x, kernel, stride, dilation), (x, kernel)


def _depthwise_backward(
    stride: int, dilation: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    grad_kernel = _depthwise_kernel_grad(x, grad, kernel.shape[:2], stride, dilation)
    if stride > 1:  # zeros between the pixels, so that the rest is a convolution of stride 1
        rest = [size - (out - 1) * stride - 1 for size, out in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
        config = ((0, 0, 0), (0, rest[0], stride - 1), (0, rest[1], stride - 1), (0, 0, 0))
        grad = lax.pad(grad, jnp.zeros((), grad.dtype), config)
    grad_x = _weighted_sum(grad, kernel[::-1, ::-1], 1, dilation)
    return grad_x, grad_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _depthwise_kernel_grad(
    x: jax.Array, grad: jax.Array, size: tuple[int, int], stride: int, dilation: int
) -> jax.Array:
    """f32 [kh * kw, C]. A loop over the taps: written side by side, XLA computes x (often a normalisation and an
    activation) once more for each tap (2-3x slower, and longer to compile)."""
    padded = jnp.pad(x, ((0, 0), *_padding(size, dilation), (0, 0)))
    span = tuple((out - 1) * stride + 1 for out in grad.shape[1:3])

    def tap_fn(tap: jax.Array) -> jax.Array:
        corner = (0, tap // size[1] * dilation, tap % size[1] * dilation, 0)
        shift = lax.dynamic_slice(padded, corner, (x.shape[0], *span, x.shape[3]))[:, ::stride, ::stride]
        return jnp.sum((shift * grad).astype(jnp.float32), axis=(0, 1, 2))

    return lax.map(tap_fn, jnp.arange(size[0] * size[1]))


_depthwise_shifted.defvjp(_depthwise_forward, _depthwise_backward)


def max_pool(x: jax.Array, window: int, *, stride: int = 1, backend: str | None = None) -> jax.Array:
    """Maximum over a square window, padded with -inf.

    Args:
      x: [B, h, w, C].
      window: odd side of the square, pixels.
      stride: of the output grid.
      backend: "cpu", "gpu" or "tpu"; None: the one in use.

    Returns:
      [B, ceil(h / stride), ceil(w / stride), C]. Where several pixels of a window share the maximum, the
      CPU variant spreads the gradient over them and the other one gives it to the first.
    """
    if stride == 1 and _is_cpu(backend):
        return _pool_separable(x, window)
    pad = (window // 2,) * 2
    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), pad, pad, (0, 0)),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool_separable(x: jax.Array, window: int) -> jax.Array:
    """Two one-dimensional maxima, ten times faster than one two-dimensional on a CPU."""
    return _pool_axis(_pool_axis(x, window, 1), window, 2)


def _pool_axis(x: jax.Array, window: int, axis: int) -> jax.Array:
    """Maximum along one axis, stride 1."""
    size = [window if a == axis else 1 for a in range(4)]
    pad = [(window // 2,) * 2 if a == axis else (0, 0) for a in range(4)]
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, size, (1,) * 4, pad)


def _pool_forward(x: jax.Array, window: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    rows = _pool_axis(x, window, 1)
    out = _pool_axis(rows, window, 2)
    return out, (x, rows, out)


def _pool_backward(window: int, residuals: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array]:
    x, rows, out = residuals
    return (_pool_axis_grad(x, rows, _pool_axis_grad(rows, out, grad, window, 2), window, 1),)


def _pool_axis_grad(x: jax.Array, out: jax.Array, grad: jax.Array, window: int, axis: int) -> jax.Array:
    """Gradient of `_pool_axis`: each output's share goes to the pixels of its window that equal it."""

    def shifted(value: jax.Array, fill: float) -> list[jax.Array]:
        pad = [(window // 2,) * 2 if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(value, pad, constant_values=fill)
        return [lax.slice_in_dim(padded, i, i + value.shape[axis], axis=axis) for i in range(window)]

    ties = functools.reduce(jnp.add, [(value == out).astype(grad.dtype) for value in shifted(x, -np.inf)])
    share = grad / jnp.maximum(ties, 1)  # no equal at all only where there is a nan
    pairs = zip(shifted(out, np.inf), shifted(share, 0.0), strict=True)
    return functools.reduce(jnp.add, [jnp.where(value == x, part, 0) for value, part in pairs])


_pool_separable.defvjp(_pool_forward, _pool_backward)


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels at every pixel, [B, h, w, C] in the type of x."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    return jnp.broadcast_to(mean, x.shape)


def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance over all but the last axis.

    Args:
      x: [..., C].

    Returns:
      f32 [C] and f32 [C].
    """
    axes = tuple(range(x.ndim - 1))
    values = x.astype(jnp.float32)
    # One pass; around some value of the data, so that the difference does not cancel where mean >> deviation.
    center = lax.stop_gradient(values[(slice(0, 1),) * (x.ndim - 1)])
    values = values - center
    mean = jnp.mean(values, axis=axes)
    return center.reshape(-1) + mean, jnp.maximum(jnp.mean(jnp.square(values), axis=axes) - jnp.square(mean), 0.0)


def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, *, eps: float = NORM_EPS
) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias, computed in f32.

    Args:
      x: [..., C].
      scale: [C].
      bias: [C].
      mean: f32 [C].
      var: f32 [C].
      eps: added to the variance.

    Returns:
      [..., C] in the type of x.
    """
    factor = scale * lax.rsqrt(var + eps)
    offset = bias - mean * factor
    factor, offset = per_channel(factor, x.ndim), per_channel(offset, x.ndim)
    return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False, backend: str | None = None
) -> jax.Array:
    """Bilinear interpolation without antialiasing.

    Args:
      x: [B, h, w, C].
      size: height and width of the result, pixels.
      align_corners: True: source position = i * (in - 1) / (out - 1); False: half-pixel centres,
        (i + 0.5) * in / out - 0.5, clamped to the border.
      backend: "cpu", "gpu" or "tpu"; None: the one in use.

    Returns:
      [B, *size, C] in the type of x.
    """
    if tuple(size) == x.shape[1:3]:
        return x
    sources = tuple(x.shape[1:3])
    size = (int(size[0]), int(size[1]))
    if _is_cpu(backend):
        return _resize_taps(x, sources, size, align_corners)
    return _apply_matrices(x, _resize_matrix(sources[0], size[0], align_corners), _resize_matrix(sources[1], size[1], align_corners))


def _resize_weights(source: int, target: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left neighbour i32 [target], right neighbour i32 [target] and weight of the right one f32 [target]."""
    index = np.arange(target)
    if align_corners:
        position = index * (source - 1) / max(target - 1, 1)
    else:
        position = np.clip((index + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.minimum(np.floor(position).astype(np.int32), source - 1)
    return left, np.minimum(left + 1, source - 1), (position - left).astype(np.float32)


def _resize_matrix(source: int, target: int, align_corners: bool) -> np.ndarray:
    """The interpolation of one axis as a matrix, f32 [target, source]."""
    left, right, weight = _resize_weights(source, target, align_corners)
    matrix = np.zeros((target, source), np.float32)
    np.add.at(matrix, (np.arange(target), left), 1 - weight)
    np.add.at(matrix, (np.arange(target), right), weight)
    return matrix


def _apply_matrices(x: jax.Array, rows: np.ndarray, cols: np.ndarray) -> jax.Array:
    """rows @ x @ cols.T per channel, as two products."""
    rows, cols = jnp.asarray(rows, x.dtype), jnp.asarray(cols, x.dtype)
    return jnp.einsum("oh,pw,bhwc->bopc", rows, cols, x, precision=lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize_taps(
    x: jax.Array, source: tuple[int, int], target: tuple[int, int], align_corners: bool
) -> jax.Array:
    """Weighted neighbours forward, matrix products backward: each is the faster one on a CPU."""
    left, right, weight = _resize_weights(source[0], target[0], align_corners)
    weight = jnp.asarray(weight[None, :, None, None], x.dtype)
    x = x[:, left] * (1 - weight) + x[:, right] * weight
    left, right, weight = _resize_weights(source[1], target[1], align_corners)
    weight = jnp.asarray(weight[None, None, :, None], x.dtype)
    return x[:, :, left] * (1 - weight) + x[:, :, right] * weight


def _resize_forward(
    x: jax.Array, source: tuple[int, int], target: tuple[int, int], align_corners: bool
) -> tuple[jax.Array, None]:
    return _resize_taps(x, source, target, align_corners), None


def _resize_backward(
    source: tuple[int, int], target: tuple[int, int], align_corners: bool, _: None, grad: jax.Array
) -> tuple[jax.Array]:
    rows, cols = (_resize_matrix(source[axis], target[axis], align_corners).T for axis in (0, 1))
    return (_apply_matrices(grad, rows, cols),)


_resize_taps.defvjp(_resize_forward, _resize_backward)


def average_to_grid(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Shrinks a map: the mean over each cell where the sizes divide, else antialiased bilinear.

    Args:
      x: [B, H, W, C].
      size: height and width of the grid.

    Returns:
      [B, *size, C] in the type of x.
    """
    batch, height, width, channels = x.shape
    rows, cols = size
    if height % rows or width % cols:
        return jax.image.resize(x, (batch, rows, cols, channels), "bilinear", antialias=True)
    cells = x.reshape(batch, rows, height // rows, cols, width // cols, channels)
    return jnp.mean(cells, axis=(2, 4), dtype=jnp.float32).astype(x.dtype)


def warp_bilinear(x: jax.Array, offsets: jax.Array) -> jax.Array:
    """Samples a map at displaced positions (Jaderberg et al. 2015, arXiv 1506.02025).

    Args:
      x: [B, h, w, C].
      offsets: [B, h, w, 2], (x, y) in grid cells: the result at p is x at p + offset, positions
        outside the map being moved to its border.

    Returns:
      [B, h, w, C] in the type of x; differentiable in both arguments.
    """
    batch, height, width, channels = x.shape
    offsets = offsets.astype(jnp.float32)
    col = jnp.clip(jnp.arange(width, dtype=jnp.float32)[None, None] + offsets[..., 0], 0, width - 1)
    row = jnp.clip(jnp.arange(height, dtype=jnp.float32)[None, :, None] + offsets[..., 1], 0, height - 1)
    left, top = jnp.floor(col).astype(jnp.int32), jnp.floor(row).astype(jnp.int32)
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    part_x, part_y = (col - left).astype(x.dtype)[..., None], (row - top).astype(x.dtype)[..., None]
    first = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * (height * width)
    pixels = x.reshape(batch * height * width, channels)

    def tap(rows: jax.Array, cols: jax.Array) -> jax.Array:
        return pixels.at[first + rows * width + cols].get(mode="promise_in_bounds")

    upper = tap(top, left) * (1 - part_x) + tap(top, right) * part_x
    lower = tap(bottom, left) * (1 - part_x) + tap(bottom, right) * part_x
    return upper * (1 - part_y) + lower * part_y
