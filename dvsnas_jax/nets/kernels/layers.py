"""The arithmetic of every network here: convolution, pooling, normalisation, resampling (pure functions, NHWC).

XLA's CPU backend compiles depthwise convolutions, and convolution gradients inside conditionals, to slow loops. So each
costly layer has two variants that agree: "shifted slices" on a CPU (`shifted.py`, `winograd.py`, `pooling.py`), `lax`'s
own primitive elsewhere. The choice is made when a function is traced, for `compilation.backend`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dvsnas_jax.core import compilation
from dvsnas_jax.nets.kernels import pooling, precision, shifted

NORM_EPS = 1e-5
_MAX_COMPARED = 32  # channels that are compared one after the other


class Norm(NamedTuple):
    """Normalisation of a map's channels, each [C]; `epsilon` is added to the variance."""

    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array
    epsilon: float = NORM_EPS


def is_cpu() -> bool:
    """Whether the backend that is traced for is a CPU."""
    return compilation.backend() == "cpu"


def per_channel(values: jax.Array, ndim: int) -> jax.Array:
    """[C] -> [1, .., 1, C] with ndim axes: broadcasting is written out here."""
    return values.reshape((1,) * (ndim - 1) + (-1,))


def he_normal(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a kernel f32 [kh, kw, Cin, Cout], or [kh, kw, C] of a depthwise convolution, with variance 2 / fan-in
    (He et al. 2015, arXiv 1502.01852)."""
    return jax.random.normal(rng, shape, jnp.float32) * he_scale(shape)


def he_scale(shape: tuple[int, ...]) -> float:
    """Standard deviation of the weights of a kernel of this shape, sqrt(2 / fan-in)."""
    return math.sqrt(2.0 / math.prod(shape[:3] if len(shape) == 4 else shape[:2]))


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, is_same: bool = False) -> jax.Array:
    """Convolution of [B, h, w, Cin] with [kh, kw, Cin, Cout] of odd sizes, in the type of x.

    Zero padding of dilation * (k // 2) at every side, so that it gives [B, ceil(h / stride), ceil(w / stride), Cout];
    `is_same`: as TensorFlow pads, where that gives the same size, see `shifted.Geometry`. Dilation is the distance of
    neighbouring taps in pixels.
    """
    kernel, geometry = kernel.astype(x.dtype), shifted.Geometry(stride, dilation, is_same)
    if is_cpu():
        return shifted.conv(x, kernel, geometry)
    if kernel.shape[:2] == (1, 1):
        return shifted.product(x[:, ::stride, ::stride], kernel[0, 0])
    return shifted.lax_conv(x, kernel, geometry)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, is_same: bool = False
) -> jax.Array:
    """Convolution of each channel of [B, h, w, C] by itself with a kernel [kh, kw, C], otherwise as `conv`."""
    kernel, geometry = kernel.astype(x.dtype), shifted.Geometry(stride, dilation, is_same)
    if is_cpu():
        return shifted.depthwise_conv(x, kernel, geometry)
    return shifted.lax_conv(x, kernel[:, :, None], geometry, groups=kernel.shape[2])


def max_pool(x: jax.Array, window: int, *, stride: int = 1) -> jax.Array:
    """Maximum over a square window of odd side, padded with -inf: [B, ceil(h / stride), ceil(w / stride), C].

    Where several pixels of a window share the maximum, the CPU variant spreads the gradient over them and the other
    one gives it to the first.
    """
    if stride == 1 and is_cpu():
        return pooling.max_pool(x, window)
    pad = (window // 2,) * 2
    sizes, strides, padding = (1, window, window, 1), (1, stride, stride, 1), ((0, 0), pad, pad, (0, 0))
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, sizes, strides, padding)


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels at every pixel, [B, h, w, C] in the type of x."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    return jnp.broadcast_to(mean, x.shape)


@jax.custom_vjp
def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance of [..., C] over all but the last axis: f32 [C] and f32 [C]; wider where x is.

    The gradient is written out: autodiff's keeps the centred map, one more pass over memory.
    """
    axes = tuple(range(x.ndim - 1))
    values = precision.at_least_float32(x)
    # One pass; around some value of the data, so that the difference does not cancel where mean >> deviation.
    center = values[(slice(0, 1),) * (x.ndim - 1)]
    mean = jnp.mean(values, axis=axes)
    square = jnp.mean(jnp.square(values - center), axis=axes)
    return mean, jnp.maximum(square - jnp.square(mean - center.reshape(-1)), 0.0)


def _moments_forward(x: jax.Array) -> Any:
    mean, var = batch_moments(x)
    return (mean, var), (x, mean)


def _moments_backward(residuals: Any, grads: Any) -> tuple[jax.Array]:
    x, mean = residuals
    count = math.prod(x.shape[:-1])
    slope = per_channel(grads[1] * (2 / count), x.ndim)
    offset = per_channel(grads[0] / count, x.ndim) - slope * per_channel(mean, x.ndim)
    return ((precision.at_least_float32(x) * slope + offset).astype(x.dtype),)


batch_moments.defvjp(_moments_forward, _moments_backward)


def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float = NORM_EPS,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias of [..., C] in its type, computed in f32, or wider where x is;
    the others are [C]."""
    factor = scale * lax.rsqrt(var + epsilon)
    offset = bias - mean * factor
    factor, offset = per_channel(factor, x.ndim), per_channel(offset, x.ndim)
    return (precision.at_least_float32(x) * factor + offset).astype(x.dtype)


def fold_norm(kernel: jax.Array, norm: Norm) -> tuple[jax.Array, jax.Array]:
    """Kernel, and bias [C] after it, of the convolution that equals one with this kernel and the normalisation."""
    factor = norm.scale * lax.rsqrt(norm.var + norm.epsilon)
    return kernel * per_channel(factor, kernel.ndim), norm.bias - norm.mean * factor


def normalized_conv(x: jax.Array, kernel: jax.Array, norm: Norm, **geometry: Any) -> jax.Array:
    """`conv` or, with a kernel of three axes, `depthwise_conv`, and normalisation by known statistics after it.

    These are folded into the kernel; on a CPU they scale the result instead, in the pass that adds the bias (at batch
    1, a scaled copy of all kernels costs more).
    """
    conv_fn = depthwise_conv if kernel.ndim == 3 else conv
    if is_cpu():
        return normalize(conv_fn(x, kernel, **geometry), *norm)
    folded, bias = fold_norm(kernel, norm)
    return conv_fn(x, folded, **geometry) + per_channel(bias.astype(x.dtype), 4)


def resize_bilinear(x: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Bilinear interpolation of [B, h, w, C] to [B, *size, C] without antialiasing, in the type of x.

    Positions in the source are i * (in - 1) / (out - 1) with aligned corners; else half-pixel centres,
    (i + 0.5) * in / out - 0.5, clamped to the border.
    """
    if tuple(size) == x.shape[1:3]:
        return x
    geometry = (x.shape[1], x.shape[2]), (int(size[0]), int(size[1])), align_corners
    return _resize_taps(x, *geometry) if is_cpu() else _apply_matrices(x, *_resize_matrices(*geometry))


def _resize_weights(source: int, target: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left neighbour i32 [target], right neighbour i32 [target] and weight of the right one f32 [target]."""
    index = np.arange(target)
    if align_corners:
        position = index * (source - 1) / max(target - 1, 1)
    else:
        position = np.clip((index + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.minimum(np.floor(position).astype(np.int32), source - 1)
    return left, np.minimum(left + 1, source - 1), (position - left).astype(np.float32)


def _resize_matrices(source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> list[np.ndarray]:
    """The interpolation of either axis as a matrix, f32 [target, source]."""
    matrices = []
    for size, length in zip(source, target, strict=True):
        left, right, weight = _resize_weights(size, length, align_corners)
        matrix = np.zeros((length, size), np.float32)
        np.add.at(matrix, (np.arange(length), left), 1 - weight)
        np.add.at(matrix, (np.arange(length), right), weight)
        matrices.append(matrix)
    return matrices


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


def _resize_backward(source: Any, target: Any, align_corners: bool, _: None, grad: jax.Array) -> tuple[jax.Array]:
    rows, cols = _resize_matrices(source, target, align_corners)
    return (_apply_matrices(grad, rows.T, cols.T),)


_resize_taps.defvjp(lambda *args: (_resize_taps(*args), None), _resize_backward)


def strongest(x: jax.Array) -> jax.Array:
    """The first channel of the largest value, u8 [...] of [..., C], at most 256 channels; not a number is never it."""
    if not is_cpu() or x.shape[-1] > _MAX_COMPARED:
        return jnp.argmax(x, axis=-1).astype(jnp.uint8)
    # XLA's CPU backend runs `argmax` pixel by pixel: with 19 channels this is 4 times as fast.
    return _strongest_plane([x[..., channel] for channel in range(x.shape[-1])])


def strongest_at(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`strongest` of `resize_bilinear`: [B, h, w, C] -> u8 [B, *size]."""
    batch, height, width, channels = x.shape
    if not is_cpu() or channels > _MAX_COMPARED or size[0] % height or size[1] % width:
        return strongest(resize_bilinear(x, size))
    # Pixels at the same place of a cell have the same weights, so a channel is a plane that moves as a whole: twice as
    # fast with 11 channels, 3 times with 19.
    planes = jnp.pad(jnp.moveaxis(x, 3, 0), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    planes = jax.lax.optimization_barrier(planes)
    rows, columns = _places(size[0] // height), _places(size[1] // width)
    lines = jnp.stack(
        [planes[:, :, i : i + height] * (1 - part) + planes[:, :, i + 1 : i + 1 + height] * part for i, part in rows], 3
    )
    lines = jax.lax.optimization_barrier(lines.reshape(channels, batch, size[0], width + 2))
    found = [
        _strongest_plane(
            [line[:, :, i : i + width] * (1 - part) + line[:, :, i + 1 : i + 1 + width] * part for line in lines]
        )
        for i, part in columns
    ]
    return jnp.stack(found, axis=-1).reshape(batch, *size)


def _places(factor: int) -> list[tuple[int, np.float32]]:
    """Of each of so many pixels in a cell: its left neighbour, from the cell before on, and the weight of the right."""
    position = (np.arange(factor) + 0.5) / factor + 0.5
    return [(int(place), np.float32(place - int(place))) for place in position]


def _strongest_plane(planes: list[jax.Array]) -> jax.Array:
    """At every place the number of the first plane with the largest value, u8."""
    best, found = planes[0], jnp.zeros(planes[0].shape, jnp.uint8)
    for number, plane in enumerate(planes[1:], start=1):
        is_larger = plane > best
        best, found = jnp.where(is_larger, plane, best), jnp.where(is_larger, jnp.uint8(number), found)
    return found


def to_grid(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, *size, C]: averaged where that is smaller, else interpolated."""
    return average_to_grid(x, size) if x.shape[1] > size[0] else resize_bilinear(x, size)


def average_to_grid(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Shrinks [B, H, W, C] to [B, *size, C]: the mean over each cell where the sizes divide, else antialiased
    bilinear; in the type of x."""
    batch, height, width, channels = x.shape
    rows, cols = size
    if (rows, cols) == (height, width):
        return x
    if height % rows or width % cols:
        return jax.image.resize(x, (batch, rows, cols, channels), "bilinear", antialias=True)
    cell = height // rows, width // cols
    if is_cpu():
        # A reduction over two axes beside a short last one is a scalar loop there: five times as slow.
        parts = [x[:, i :: cell[0], j :: cell[1]].astype(jnp.float32) for i in range(cell[0]) for j in range(cell[1])]
        return (functools.reduce(jnp.add, parts) / len(parts)).astype(x.dtype)
    cells = x.reshape(batch, rows, cell[0], cols, cell[1], channels)
    return jnp.mean(cells, axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
