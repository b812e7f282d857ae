"""Laws of the layers: the CPU variants equal `lax`, gradients equal, resampling equals independent references."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation
from dvsnas_jax.nets import blocks
from dvsnas_jax.nets.kernels import layers, winograd


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert error <= tolerance * max(np.abs(b).max(), 1e-3)


def _values_and_grads(fns: Iterable[Callable[..., jax.Array]], *args: jax.Array) -> list[tuple]:
    """Of each function the result, and gradients for a fixed random weighting of it; by one program."""

    @compilation.jit_once
    def every(*args: jax.Array) -> list[tuple]:
        pairs = [jax.vjp(fn, *args) for fn in fns]
        return [(out, pull(_normal(*out.shape, seed=9))) for out, pull in pairs]

    return every(*args)


def _value_and_grad(fn: Callable[..., jax.Array], *args: jax.Array) -> tuple:
    return _values_and_grads([fn], *args)[0]


def _on(backend: str, fn: Callable[..., jax.Array], **options) -> Callable[..., jax.Array]:
    """A function whose layers are those of a backend."""
    return compilation.target(backend)(lambda *args: fn(*args, **options))


def _on_both(fn: Callable[..., jax.Array], **options) -> list[Callable[..., jax.Array]]:
    return [_on(backend, fn, **options) for backend in ("cpu", "gpu")]


GEOMETRY = [
    # height, width, kernel, stride, dilation
    (9, 8, 3, 1, 1),
    (9, 8, 3, 2, 1),
    (8, 7, 5, 2, 1),
    (8, 9, 3, 1, 3),
    (24, 32, 5, 1, 6),
    (24, 32, 3, 1, 12),
    (7, 6, 3, 2, 3),
    (7, 6, 1, 2, 1),
]


CHANNELS = [(4, 6), (16, 2), (16, 5)]  # the last two: products before the shifts, gradient image by image (stride 1)


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "dilation", "cin", "cout"),
    [(*sizes, *channels) for channels in CHANNELS for sizes in GEOMETRY if sizes[3] == 1 or channels != CHANNELS[2]],
)
def test_conv_variants_agree(height, width, size, stride, dilation, cin, cout):
    x, kernel = _normal(2, height, width, cin), _normal(size, size, cin, cout, seed=1)
    results = _values_and_grads(_on_both(layers.conv, stride=stride, dilation=dilation), x, kernel)
    assert results[0][0].shape == (2, -(-height // stride), -(-width // stride), cout)
    _assert_close(*results)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2)])
def test_convolution_with_fewer_products_agrees(size):
    x, kernel = _normal(2, *size, winograd.MIN_CHANNELS), _normal(3, 3, winograd.MIN_CHANNELS, 70, seed=1)
    ours, theirs = _values_and_grads(_on_both(layers.conv), x, kernel)
    _assert_close(ours, theirs)
    products = [eqn for eqn in jax.make_jaxpr(winograd.conv_3x3)(x, kernel).eqns if eqn.primitive.name == "dot_general"]
    assert len(products) == 16  # for each tile of 2x2, which takes 36 otherwise
    _assert_close(jax.jit(winograd.conv_3x3)(x, kernel), ours[0])


def test_activations_and_their_gradients():
    x = jnp.array([-1.0, 0.0, 2.0, 6.0, 7.0])
    for fn, values, slopes in ((blocks.relu, [0, 0, 2, 6, 7], [0, 0, 1, 1, 1]),
                               (blocks.relu6, [0, 0, 2, 6, 6], [0, 0, 1, 0, 0])):  # fmt: skip
        np.testing.assert_array_equal(fn(x), values)
        np.testing.assert_array_equal(jax.grad(lambda x, fn=fn: (3 * fn(x)).sum())(x), 3 * np.array(slopes))


@pytest.mark.parametrize("size", [(1, 2), (5, 6)])  # fewer and more pixels than channels
def test_two_1x1_convolutions_as_one(size):
    class Two(nn.Module):
        is_joined: bool

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            second = blocks.Pointwise(3, name="second")
            if self.is_joined:
                return blocks.Pointwise(5, then=second, name="first")(x)
            return second(blocks.Pointwise(5, name="first")(x))

    x = _normal(1, *size, 4)
    params = jax.jit(Two(False).init)(jax.random.key(0), x)
    joined = jax.eval_shape(Two(True).init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, joined)
    results = _values_and_grads([Two(is_joined).apply for is_joined in (False, True)], params, x)
    _assert_close(*results)


@pytest.mark.parametrize(("height", "width", "size", "stride", "dilation"), [*GEOMETRY, (70, 3, 3, 1, 2)])
def test_depthwise_variants_agree(height, width, size, stride, dilation):
    x, kernel = _normal(2, height, width, 3), _normal(size, size, 3, seed=1)
    results = _values_and_grads(_on_both(layers.depthwise_conv, stride=stride, dilation=dilation), x, kernel)
    assert results[0][0].shape == (2, -(-height // stride), -(-width // stride), 3)
    _assert_close(*results)


@pytest.mark.parametrize("is_depthwise", [False, True])
def test_every_stride_and_dilation_agrees(is_depthwise):
    conv_fn = layers.depthwise_conv if is_depthwise else layers.conv
    kernel = _normal(3, 3, 4, seed=1) if is_depthwise else _normal(3, 3, 4, 5, seed=1)
    cases = list(itertools.product([(25, 27), (26, 28), (25, 28)], (1, 2), (1, 3, 6, 12)))

    @compilation.jit_once
    def run(kernel: jax.Array) -> list:
        return [
            [_on(b, conv_fn, stride=stride, dilation=dilation)(_normal(2, *size, 4), kernel) for b in ("cpu", "gpu")]
            for size, stride, dilation in cases
        ]

    for (size, stride, _), (ours, theirs) in zip(cases, run(kernel), strict=True):
        assert ours.shape[1:3] == tuple(-(-n // stride) for n in size)
        _assert_close(ours, theirs)


def test_strided_convolutions_of_images_agree():
    """Kernels of 3 channels, whose rows a CPU copies side by side: strides that do and do not divide, odd sizes, both
    paddings; bits are not compared, since sums are ordered otherwise. One of 7x7 is not copied."""
    cases = list(itertools.product([(8, 6), (7, 9), (2, 1)], (2, 3), (False, True)))

    @compilation.jit_once
    def run(kernel: jax.Array) -> list:
        found = []
        for size, stride, is_same in cases:
            fns = [_on(b, layers.conv, stride=stride, is_same=is_same) for b in ("cpu", "gpu")]
            outs = [jax.vjp(fn, _normal(2, *size, 3), kernel) for fn in fns]
            found.append([(out, pull(_normal(*out.shape, seed=9))) for out, pull in outs])
        return found

    for ours, theirs in run(_normal(3, 3, 3, 4, seed=1)):
        _assert_close(ours, theirs)

    def primitives(size: int) -> set[str]:
        fn = functools.partial(layers.conv, stride=2)
        return set(
            re.findall(
                r"dot_general|conv_general_dilated",
                str(jax.make_jaxpr(fn)(_normal(1, 8, 8, 3), _normal(size, size, 3, 4))),
            )
        )

    assert primitives(3) == {"dot_general"} and primitives(7) == {"conv_general_dilated"}


@pytest.mark.parametrize(("size", "channels"), [((12, 20), 3), ((6, 5), 11), ((3, 15), 2), ((7, 20), 4), ((3, 5), 19)])
def test_the_strongest_of_an_interpolation(size, channels):
    """Whole multiples of either axis, plane by plane, and any other size."""
    x = np.random.default_rng(0).normal(size=(2, 3, 5, channels)).astype(np.float32)
    expected = layers.resize_bilinear(jnp.asarray(x), size).argmax(axis=-1)
    np.testing.assert_array_equal(jax.jit(layers.strongest_at, static_argnums=1)(x, size), expected)


def test_the_strongest_channel_is_the_first_of_equals():
    x = np.array([[3, 3, 1], [0, 2, 2], [-1, -np.inf, -1], [np.nan, 1, 2]], np.float32)[None]
    for backend in ("cpu", "gpu"):
        with compilation.target(backend):
            found = jax.jit(layers.strongest)(x[:, :3])
        assert found.dtype == np.uint8 and found.tolist() == [[0, 1, 0]]
    many = _normal(2, 3, 40)
    np.testing.assert_array_equal(layers.strongest(many), many.argmax(axis=-1))
    assert jnp.all(jax.jit(layers.strongest)(np.full((1, 2, 3), np.nan, np.float32)) == 0)


@pytest.mark.parametrize("is_depthwise", [False, True])
def test_same_padding_is_that_of_tensorflow(is_depthwise):
    """Against `lax`'s own "SAME", with gradients; where the stride is 1, or the size odd, nothing changes."""
    conv_fn, groups = (layers.depthwise_conv, 4) if is_depthwise else (layers.conv, 1)
    cases = [((8, 6), 3, 2, 1), ((7, 6), 5, 2, 1), ((9, 7), 5, 2, 1), ((8, 6), 3, 1, 2)]

    def expected(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
        kernel = kernel[:, :, None] if is_depthwise else kernel
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, "SAME", rhs_dilation=(dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    @compilation.jit_once
    def run() -> list:
        found = []
        for size, taps, stride, dilation in cases:
            x, kernel = _normal(2, *size, 4), _normal(taps, taps, *((4,) if is_depthwise else (4, 5)), seed=1)
            geometry = {"stride": stride, "dilation": dilation}
            fns = [_on(backend, conv_fn, is_same=True, **geometry) for backend in ("cpu", "gpu")]
            fns += [functools.partial(expected, **geometry), _on("cpu", conv_fn, **geometry)]
            outs = [jax.vjp(fn, x, kernel) for fn in fns]
            found.append([(out, pull(_normal(*out.shape, seed=9))) for out, pull in outs])
        return found

    for (size, _, stride, _), (cpu, other, lax_same, symmetric) in zip(cases, run(), strict=True):
        _assert_close(cpu, lax_same)
        _assert_close(other, lax_same)
        is_alike = stride == 1 or all(length % 2 for length in size)
        assert np.allclose(cpu[0], symmetric[0], atol=1e-5) == is_alike


def test_same_padding_by_hand():
    row = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4, 1)
    kernel = np.array([[0, 0, 0], [1, 10, 100], [0, 0, 0]], np.float32).reshape(3, 3, 1)
    conv_fn = jax.jit(layers.depthwise_conv, static_argnames=("stride", "is_same"))
    # Sums over pixels 1 2 3 and 3 4 -; padded at both sides alike they are - 1 2 and 2 3 4.
    same, both = (conv_fn(row, kernel, stride=2, is_same=is_same) for is_same in (True, False))
    np.testing.assert_array_equal(same.ravel(), [321.0, 43])
    np.testing.assert_array_equal(both.ravel(), [210.0, 432])


@pytest.mark.parametrize(("features", "stride"), [(6, 2), (None, 1)])
def test_running_statistics_in_the_kernel_equal_those_on_the_result(features, stride):
    module = blocks.ConvNorm(features, size=3, stride=stride, activation_fn=None, epsilon=0.5)
    x = _normal(2, 9, 8, 4)
    drawn = jax.eval_shape(lambda rng: module.init(rng, x, False), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: np.abs(_normal(*leaf.shape, seed=3)) + np.float32(0.5), drawn)
    stats, params = variables["batch_stats"], {**variables["params"], "bias": _normal(features or 4, seed=4)}

    def normalised(x: jax.Array, params: dict) -> jax.Array:
        return module.apply({"params": params, "batch_stats": stats}, x, False)

    ours, theirs = _values_and_grads(_on_both(normalised), x, params)
    _assert_close(ours, theirs)
    conv_fn = functools.partial(layers.conv if features else layers.depthwise_conv, stride=stride)
    plain = np.asarray(jax.jit(conv_fn)(x, params["kernel"]))
    mean, var, scale, bias = map(np.asarray, (stats["mean"], stats["var"], params["scale"], params["bias"]))
    expected = (plain - mean) / np.sqrt(var + 0.5) * scale + bias
    np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-4)
    train_fn = jax.jit(lambda variables, x: module.apply(variables, x, True, mutable=["batch_stats"]))
    found, _ = train_fn({"params": params, "batch_stats": stats}, x)
    expected = (plain - plain.mean((0, 1, 2))) / np.sqrt(plain.var((0, 1, 2)) + 0.5) * scale + bias
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_conv_by_hand(backend):
    x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    ones = np.ones((3, 3, 1, 1), np.float32)

    @jax.jit
    def run(x: jax.Array, ones: jax.Array) -> tuple:
        plain, strided = (_on(backend, layers.conv, **options)(x, ones) for options in ({}, {"stride": 2}))
        return plain, strided, _on(backend, layers.depthwise_conv, dilation=2)(x, ones[..., 0])

    plain, strided, far = (np.asarray(found)[0, ..., 0] for found in run(x, ones))
    expected = [[8.0, 15, 12], [21, 36, 27], [20, 33, 24]]  # sums of the neighbourhoods, zeros around
    np.testing.assert_allclose(plain, expected)
    # Stride 2 pads (1, 1) and so looks at pixels 0 and 2; `SAME` would give another grid.
    np.testing.assert_allclose(strided, [[8.0, 12], [20, 24]])
    np.testing.assert_allclose(far, [[16.0, 8, 16], [8, 4, 8], [16, 8, 16]])


def test_conv_keeps_bfloat16():
    x = _normal(1, 5, 5, 4).astype(jnp.bfloat16)

    @jax.jit
    def run(x: jax.Array) -> tuple:
        kernel = _normal(3, 3, 4)
        found = layers.depthwise_conv(x, kernel), layers.conv(x, _normal(3, 3, 4, 5)), layers.max_pool(x, 3)
        return found, layers.depthwise_conv(x.astype(jnp.float32), kernel)

    found, exact = run(x)
    assert [y.dtype for y in found] == [jnp.bfloat16] * 3
    _assert_close(np.asarray(found[0], np.float32), exact, 0.05)


def test_layers_run_under_vmap_and_checkpoint():
    x, kernel = _normal(3, 1, 6, 5, 4), _normal(3, 3, 4, seed=1)

    @compilation.target("cpu")
    def fn(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(layers.max_pool(layers.depthwise_conv(x, kernel), 3)).sum()

    mapped = jax.jit(jax.vmap(jax.grad(jax.checkpoint(fn)), in_axes=(0, None)))(x, kernel)
    single = jax.jit(jax.grad(fn))
    _assert_close(mapped, jnp.stack([single(one, kernel) for one in x]))


@pytest.mark.parametrize(("window", "height", "width"), [(3, 6, 7), (5, 9, 4), (5, 3, 3)])
def test_pool_variants_agree_without_ties(window, height, width):
    x = _normal(2, height, width, 3)
    _assert_close(*_values_and_grads(_on_both(layers.max_pool, window=window), x))


def test_pool_of_large_maps_has_the_same_gradient():
    x = np.round(_normal(3, 60, 70, 64) * 4)  # many ties; large enough to be taken map by map
    weights = _normal(*x.shape, seed=3)

    @jax.jit
    def both(x: jax.Array, weights: jax.Array) -> tuple:
        out, pull = jax.vjp(_on("cpu", layers.max_pool, window=5), x)
        return out, pull(weights)[0]

    together = both(x, weights)
    for i in range(len(x)):
        _assert_close([part[i : i + 1] for part in together], both(x[i : i + 1], weights[i : i + 1]))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3)])
def test_pool_of_maps_smaller_than_its_window(size):
    x = _normal(2, *size, 3)
    _assert_close(*_values_and_grads(_on_both(layers.max_pool, window=5), x))


def test_pool_pads_with_minus_infinity_and_strides():
    x = -1 - np.abs(_normal(1, 5, 5, 1))
    pooled = _on("cpu", layers.max_pool, window=3)(x)
    assert (pooled < 0).all()
    np.testing.assert_array_equal(layers.max_pool(x, 3, stride=2), pooled[:, ::2, ::2])


def test_pool_gradient_with_ties_keeps_its_sum():
    x = np.zeros((1, 6, 6, 2), np.float32)
    x[0, 2, 3, 0] = 1
    pool_fn = _on("cpu", layers.max_pool, window=3)
    out, (grad,) = jax.device_get(_value_and_grad(pool_fn, x))
    np.testing.assert_allclose(grad.sum(), _normal(*out.shape, seed=9).sum(), rtol=1e-5)
    middle = np.asarray(jax.jit(jax.grad(lambda x: pool_fn(x)[0, 3, 3, 1]))(x))
    expected = np.zeros((6, 6))
    expected[2:5, 2:5] = 1 / 9
    np.testing.assert_allclose(middle[0, :, :, 1], expected, rtol=1e-6)


def test_global_average_pool():
    x = _normal(2, 3, 4, 5)
    np.testing.assert_allclose(
        layers.global_average_pool(x), np.broadcast_to(np.mean(x, (1, 2), keepdims=True), x.shape), rtol=1e-5
    )


def test_normalize_by_batch_moments():
    x = _normal(4, 5, 6, 3) * 2 + 1000  # a mean that dwarfs the deviation
    mean, var = layers.batch_moments(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)
    scale, bias = jnp.array([1.0, 2, 3]), jnp.array([0.0, 1, -1])
    y = np.asarray(layers.normalize(x, scale, bias, mean, var))
    np.testing.assert_allclose(y.mean((0, 1, 2)), bias, atol=2e-3)
    np.testing.assert_allclose(y.std((0, 1, 2)), scale, rtol=1e-3)


def test_batch_moments_gradient():
    x, weights = _normal(2, 3, 3, 2), _normal(2, seed=3)

    def fast(x: jax.Array) -> jax.Array:
        return sum((part * weights).sum() for part in layers.batch_moments(x))

    def plain(x: jax.Array) -> jax.Array:
        return ((x.mean((0, 1, 2)) + x.var((0, 1, 2))) * weights).sum()

    _assert_close(*jax.jit(lambda x: (jax.grad(fast)(x), jax.grad(plain)(x)))(x))


@pytest.mark.parametrize("size", [(12, 16), (5, 9), (7, 3), (1, 1), (6, 5)])
def test_resize_equals_jax_image(size):
    def theirs(x: jax.Array) -> jax.Array:
        return jax.image.resize(x, (2, *size, 3), "bilinear", antialias=False)

    *ours, expected = _values_and_grads([*_on_both(layers.resize_bilinear, size=size), theirs], _normal(2, 6, 5, 3))
    for found in ours:
        _assert_close(found, expected)


@pytest.mark.parametrize("size", [(12, 16), (5, 9), (11, 1)])
def test_resize_with_aligned_corners(size):
    x = _normal(1, 6, 5, 1)
    rows = [np.linspace(0, n - 1, m) if m > 1 else np.zeros(1) for n, m in zip((6, 5), size, strict=True)]
    grid = np.asarray(x)[0, :, :, 0]
    partly = np.stack([np.interp(rows[0], np.arange(6), column) for column in grid.T], axis=1)
    expected = np.stack([np.interp(rows[1], np.arange(5), row) for row in partly])
    for found in _values_and_grads(_on_both(layers.resize_bilinear, size=size, align_corners=True), x):
        y, (grad,) = jax.device_get(found)
        np.testing.assert_allclose(y[0, :, :, 0], expected, atol=1e-5)
        # The gradient is the adjoint of a linear map: <A x, g> = <x, A' g>.
        np.testing.assert_allclose((y * _normal(*y.shape, seed=9)).sum(), (x * grad).sum(), rtol=1e-4)


def test_average_to_grid():
    x = _normal(1, 6, 8, 2)
    np.testing.assert_allclose(layers.average_to_grid(x, (3, 2))[0, 1, 1], x[0, 2:4, 4:8].mean((0, 1)), rtol=1e-5)
    _assert_close(*(_on(backend, layers.average_to_grid)(x, (3, 2)) for backend in ("cpu", "gpu")))
    constant = layers.average_to_grid(jnp.full((1, 9, 10, 1), 3.0), (4, 3))
    np.testing.assert_allclose(constant, np.full((1, 4, 3, 1), 3.0), rtol=1e-6)


def test_he_normal_has_the_stated_deviation():
    rng = jax.random.key(0)
    np.testing.assert_allclose(layers.he_normal(rng, (3, 3, 32, 64)).std(), (2 / 288) ** 0.5, rtol=0.02)
    np.testing.assert_allclose(layers.he_normal(rng, (3, 3, 2048)).std(), (2 / 9) ** 0.5, rtol=0.02)
