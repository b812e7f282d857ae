"""Displaced samples and sums over windows equal the plain definitions, forward and gradient, on every backend."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation
from dvsnas_jax.nets.kernels import layers, local_attention, sampling


def _normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _value_and_grad(fn, *args: jax.Array) -> tuple:
    """The result, and gradients for a fixed random weighting of it."""

    def both(*args: jax.Array) -> tuple:
        out, pull = jax.vjp(fn, *args)
        return out, pull(_normal(*out.shape, seed=9))

    return jax.jit(both)(*args)


def _on_both(fn: Callable[..., jax.Array], *args: jax.Array) -> list[tuple]:
    """`_value_and_grad` of the variants of both kinds of backend."""
    found = []
    for backend in ("cpu", "gpu"):
        with compilation.target(backend):
            found.append(_value_and_grad(lambda *args: fn(*args), *args))
    return found


def _assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(np.abs(b).max()), 1e-3))


def _hats(positions: jax.Array, size: int) -> jax.Array:
    """Weight of each pixel of an axis in a linear interpolation, [...] -> [..., size]; 0 for pixels further than 1."""
    pixels = jnp.arange(size, dtype=jnp.float32).reshape((1,) * positions.ndim + (-1,))
    return jnp.maximum(0, 1 - jnp.abs(positions[..., None] - pixels))


def _plain_deform_conv(x, kernel, offsets, masks):
    """The definition: a sum over taps and over all pixels of the map, outside of which is zero."""
    height, width = x.shape[1:3]
    total = jnp.zeros((*x.shape[:3], kernel.shape[3]))
    for tap, (i, j) in enumerate(itertools.product(range(3), range(3))):
        rows = jnp.arange(height).reshape(1, -1, 1) + i - 1 + offsets[..., tap, 1]
        cols = jnp.arange(width).reshape(1, 1, -1) + j - 1 + offsets[..., tap, 0]
        taken = jnp.einsum("bhwp,bhwq,bpqc->bhwc", _hats(rows, height), _hats(cols, width), x)
        total += masks[..., tap, None] * (taken @ kernel[i, j])
    return total


def test_warp_by_whole_cells_is_a_roll():
    x = _normal(2, 6, 7, 3)
    offsets = jnp.broadcast_to(jnp.array([2.0, -1.0]).reshape(1, 1, 1, 2), (2, 6, 7, 2))
    rolled = jnp.roll(x, (1, -2), axis=(1, 2))  # the result at (row, col) is x at (row - 1, col + 2)
    np.testing.assert_allclose(sampling.warp_bilinear(x, offsets)[:, 1:, :-2], rolled[:, 1:, :-2], rtol=1e-6)
    np.testing.assert_array_equal(sampling.warp_bilinear(x, offsets * 0), x)
    far = sampling.warp_bilinear(x, offsets * 100)  # beyond the top right corner
    np.testing.assert_array_equal(far, jnp.broadcast_to(x[:, :1, -1:], x.shape))


def test_warp_equals_the_definition():
    """Forward and both gradients; the border is repeated outside."""
    x, offsets = _normal(2, 4, 5, 3), _normal(2, 4, 5, 2, seed=1) * 2

    def plain(x: jax.Array, offsets: jax.Array) -> jax.Array:
        rows = jnp.clip(jnp.arange(4).reshape(1, -1, 1) + offsets[..., 1], 0, 3)
        cols = jnp.clip(jnp.arange(5).reshape(1, 1, -1) + offsets[..., 0], 0, 4)
        return jnp.einsum("bhwp,bhwq,bpqc->bhwc", _hats(rows, 4), _hats(cols, 5), x)

    _assert_close(_value_and_grad(sampling.warp_bilinear, x, offsets), _value_and_grad(plain, x, offsets))


def test_warp_gradients_equal_differences():
    x, offsets = _normal(1, 4, 5, 2), _normal(1, 4, 5, 2, seed=1) * 0.2 + 0.5
    weights = _normal(1, 4, 5, 2, seed=2)

    @jax.jit
    def fn(x: jax.Array, offsets: jax.Array) -> jax.Array:
        return (sampling.warp_bilinear(x, offsets) * weights).sum()

    grads = jax.grad(fn, (0, 1))(x, offsets)
    # Bilinear in x and, inside a cell, in each coordinate: central differences are exact but for rounding.
    for argument, grad in enumerate(grads):
        direction = _normal(*grad.shape, seed=3) * (1.0 if argument == 0 else jnp.array([[[[1.0, 0.0]]]]))
        step = 1e-2
        moved = [[x, offsets], [x, offsets]]
        moved[0][argument] += step * direction
        moved[1][argument] -= step * direction
        difference = (fn(*moved[0]) - fn(*moved[1])) / (2 * step)
        np.testing.assert_allclose((grad * direction).sum(), difference, rtol=2e-3, atol=2e-3)


def test_deform_conv_equals_the_definition():
    """Forward and all four gradients, with offsets that leave the map on every side."""
    args = (
        _normal(2, 5, 6, 4),
        _normal(3, 3, 4, 3, seed=1),
        _normal(2, 5, 6, 9, 2, seed=2) * 2,
        _normal(2, 5, 6, 9, seed=3),
    )
    expected = _value_and_grad(_plain_deform_conv, *args)
    for ours in _on_both(sampling.deform_conv, *args):
        _assert_close(ours, expected, 2e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_deform_conv_without_offsets_is_the_convolution(backend):
    x, kernel = _normal(2, 5, 6, 4), _normal(3, 3, 4, 8, seed=1)
    still, ones = jnp.zeros((2, 5, 6, 9, 2)), jnp.ones((2, 5, 6, 9))
    with compilation.target(backend):
        ours = _value_and_grad(lambda x, k: sampling.deform_conv(x, k, still, ones), x, kernel)
        _assert_close(ours, _value_and_grad(lambda x, k: layers.conv(x, k), x, kernel))


def test_deform_conv_far_outside_is_zero():
    x, kernel = _normal(1, 4, 4, 2), _normal(3, 3, 2, 2, seed=1)
    far = jnp.full((1, 4, 4, 9, 2), 50.0)
    y, (grad,) = _value_and_grad(lambda x: sampling.deform_conv(x, kernel, far, jnp.ones((1, 4, 4, 9))), x)
    assert not np.any(y) and not np.any(grad)


def _plain_attention(query, keys, values, position):
    """The definition: every pixel looks at the whole map, of which what is outside of its window has no weight."""
    window, _, heads = position.shape
    batch, height, width, channels = values.shape
    size = channels // heads
    queries, keys, parts = (x.reshape(batch, -1, heads, size) for x in (query, keys, values))
    i, j = (at.ravel()[None] - at.ravel()[:, None] + window // 2 for at in np.mgrid[:height, :width])  # [pixel, other]
    is_inside = (i >= 0) & (i < window) & (j >= 0) & (j < window)
    bias = position[np.clip(i, 0, window - 1), np.clip(j, 0, window - 1)]
    logits = jnp.einsum("bphc,bqhc->bpqh", queries, keys) / np.sqrt(size) + bias[None]
    weights = jax.nn.softmax(jnp.where(is_inside[None, :, :, None], logits, -jnp.inf), axis=2)
    return jnp.einsum("bpqh,bqhc->bphc", weights, parts).reshape(values.shape)


@pytest.mark.parametrize("window, heads, channels", [(3, 1, 4), (5, 2, 4), (3, 2, 200)])  # 200: products of blocks
def test_attention_equals_the_definition(window, heads, channels):
    """Forward and all four gradients, borders included."""
    args = [_normal(2, 4, 3, channels, seed=seed) for seed in range(3)] + [_normal(window, window, heads, seed=4)]
    expected = _value_and_grad(_plain_attention, *args)
    for ours in _on_both(local_attention.attend, *args):
        _assert_close(ours, expected, 2e-5)


def test_attention_of_a_window_larger_than_the_map():
    args = [_normal(1, 2, 3, 4, seed=seed) for seed in range(3)] + [_normal(9, 9, 1, seed=4)]
    expected = _value_and_grad(_plain_attention, *args)
    for ours in _on_both(local_attention.attend, *args):
        _assert_close(ours, expected, 2e-5)


@pytest.mark.parametrize(
    ("num", "size", "channels", "window"),
    [
        (2, (4, 33), 16, 5),
        (2, (3, 16), 20, 3),
        (2, (2, 3), 16, 7),
        (2, (3, 4), 4, 3),
        (1, (3, 4), 4, 5),  # one image: sums of planes
    ],
)
def test_cosines_equal_the_definition(num, size, channels, window):
    """With gradients; rows of more than two blocks of pixels, of just one, and maps smaller than the window."""
    height, width = size
    query, keys = (_normal(num, *size, channels, seed=seed) for seed in range(2))

    def plain(query, keys):
        query, keys = (x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-3) for x in (query, keys))
        keys = jnp.pad(keys, ((0, 0), *((window // 2,) * 2,) * 2, (0, 0)))
        taps = [keys[:, i : i + height, j : j + width] for i in range(window) for j in range(window)]
        return jnp.stack([jnp.sum(query * tap, -1) for tap in taps], -1)

    expected = _value_and_grad(plain, query, keys)
    for ours in _on_both(functools.partial(local_attention.cosines, window=window), query, keys):
        _assert_close(ours, expected, 2e-5)
