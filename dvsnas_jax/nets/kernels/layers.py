"""The arithmetic of every network here: convolution, pooling, normalisation, resampling (pure functions, NHWC).

XLA's CPU backend compiles depthwise convolutions, and convolution gradients inside conditionals, to slow loops. So each
costly layer has two variants that agree: "shifted slices" on a CPU (`shifted.py`, `winograd.py`, `pooling.py`), `lax`'s
own primitive elsewhere. The choice is made when a function is traced; `backend` overrides it.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dvsnas_jax.core import compilation
from dvsnas_jax.nets.kernels import pooling, precision, shifted

NORM_EPS = 1e-5

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def is_cpu(backend: str | None) -> bool:
    """Whether this backend is a CPU; None: the one that is traced for."""
    return (backend or compilation.backend()) == "cpu"


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
    kh, kw = kernel.shape[:2]
    kernel = kernel.astype(x.dtype)
    if is_cpu(backend):
        return shifted.conv(x, kernel, stride, dilation)
    if kh == kw == 1:
        return shifted.product(x[:, ::stride, ::stride], kernel[0, 0])
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        shifted.padding((kh, kw), dilation),
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
    if is_cpu(backend):
        return shifted.depthwise_conv(x, kernel, stride, dilation)
    kh, kw, channels = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        shifted.padding((kh, kw), dilation),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=channels,
    )


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
    if stride == 1 and is_cpu(backend):
        return pooling.max_pool(x, window)
    pad = (window // 2,) * 2
    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), pad, pad, (0, 0)),
    )


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels at every pixel, [B, h, w, C] in the type of x."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    return jnp.broadcast_to(mean, x.shape)


@jax.custom_vjp
def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance over all but the last axis.

    The gradient is written out: autodiff's keeps the centred map, one more pass over memory.

    Args:
      x: [..., C].

    Returns:
      f32 [C] and f32 [C]; wider where x is.
    """
    axes = tuple(range(x.ndim - 1))
    values = precision.at_least_float32(x)
    # One pass; around some value of the data, so that the difference does not cancel where mean >> deviation.
    center = values[(slice(0, 1),) * (x.ndim - 1)]
    mean = jnp.mean(values, axis=axes)
    square = jnp.mean(jnp.square(values - center), axis=axes)
    return mean, jnp.maximum(square - jnp.square(mean - center.reshape(-1)), 0.0)


def _moments_forward(x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    mean, var = batch_moments(x)
    return (mean, var), (x, mean)


def _moments_backward(residuals: tuple[jax.Array, jax.Array], grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array]:
    x, mean = residuals
    count = math.prod(x.shape[:-1])
    slope = per_channel(grads[1] * (2 / count), x.ndim)
    offset = per_channel(grads[0] / count, x.ndim) - slope * per_channel(mean, x.ndim)
    return ((precision.at_least_float32(x) * slope + offset).astype(x.dtype),)


batch_moments.defvjp(_moments_forward, _moments_backward)


def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, *, eps: float = NORM_EPS
) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias, computed in f32, or wider where x is.

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
    return (precision.at_least_float32(x) * factor + offset).astype(x.dtype)


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
    source, size = (x.shape[1], x.shape[2]), (int(size[0]), int(size[1]))
    if is_cpu(backend):
        return _resize_taps(x, source, size, align_corners)
    return _apply_matrices(x, *(_resize_matrix(source[axis], size[axis], align_corners) for axis in (0, 1)))


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
    """rows @ x @ cols.T per channel, as two products; the first one per image, which needs no transposed copy of x."""
    batch, height, width, channels = x.shape
    per_image = jnp.broadcast_to(jnp.asarray(rows, x.dtype)[None], (batch, *rows.shape))
    lines = jnp.matmul(per_image, x.reshape(batch, height, width * channels), precision=lax.Precision.HIGHEST)
    lines = lines.reshape(batch, len(rows), width, channels)
    return jnp.einsum("pw,bhwc->bhpc", jnp.asarray(cols, x.dtype), lines, precision=lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize_taps(x: jax.Array, source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> jax.Array:
    """Weighted neighbours forward, matrix products backward: each is the faster one on a CPU."""
    left, right, weight = _resize_weights(source[0], target[0], align_corners)
    part = jnp.asarray(weight.reshape(1, -1, 1, 1), x.dtype)
    x = x[:, left] * (1 - part) + x[:, right] * part
    left, right, weight = _resize_weights(source[1], target[1], align_corners)
    part = jnp.asarray(weight.reshape(1, 1, -1, 1), x.dtype)
    return x[:, :, left] * (1 - part) + x[:, :, right] * part


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


def average_to_grid(x: jax.Array, size: tuple[int, int], *, backend: str | None = None) -> jax.Array:
    """Shrinks a map: the mean over each cell where the sizes divide, else antialiased bilinear.

    Args:
      x: [B, H, W, C].
      size: height and width of the grid.
      backend: "cpu", "gpu" or "tpu"; None: the one in use.

    Returns:
      [B, *size, C] in the type of x.
    """
    batch, height, width, channels = x.shape
    rows, cols = size
    if height % rows or width % cols:
        return jax.image.resize(x, (batch, rows, cols, channels), "bilinear", antialias=True)
    cell = height // rows, width // cols
    if is_cpu(backend):
        # A reduction over two axes beside a short last one is a scalar loop there: five times as slow.
        parts = [x[:, i :: cell[0], j :: cell[1]].astype(jnp.float32) for i in range(cell[0]) for j in range(cell[1])]
        return (functools.reduce(jnp.add, parts) / len(parts)).astype(x.dtype)
    cells = x.reshape(batch, rows, cell[0], cols, cell[1], channels)
    return jnp.mean(cells, axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
