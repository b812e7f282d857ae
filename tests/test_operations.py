"""The laws that every operation and aggregation keeps, and what each one does where the answer is known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import cell_frame, operations
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib

MEMBERS = {**operations.OPERATIONS, **operations.AGGREGATIONS}
SCOPE = operations.CellScope(max_offset=3.0, attention_window=5, attention_heads=2, correlation_window=3)
EVERY = pytest.mark.parametrize("name", list(MEMBERS))

PARAMETER_COUNTS = {
    "none": lambda c: 0,
    "skip": lambda c: 0,
    "conv_1x1": lambda c: c * c + 2 * c,
    "conv_3x3": lambda c: 9 * c * c + 2 * c,
    "sep_conv_3x3": lambda c: 9 * c + c * c + 2 * c,
    "sep_conv_5x5": lambda c: 25 * c + c * c + 2 * c,
    "conv_3x3_dil3": lambda c: 9 * c * c + 2 * c,
    "conv_3x3_dil12": lambda c: 9 * c * c + 2 * c,
    "sep_conv_3x3_dil3": lambda c: 9 * c + c * c + 2 * c,
    "sep_conv_5x5_dil6": lambda c: 25 * c + c * c + 2 * c,
    "max_pool_3x3": lambda c: 0,
    "global_average_pool": lambda c: c * c + c,
    "deform_conv_3x3": lambda c: 9 * c * c + 9 * c * 27 + 27 + 2 * c,
    "sum": lambda c: 2 * c,
    "concat": lambda c: 2 * c * c + 2 * c,
    "gate": lambda c: 2 * c * c + 2 * c,
    "warp": lambda c: 9 * 2 * c * 2 + 2,
    "max": lambda c: 0,
    "local_attention": lambda c: 2 * c * c + 5 * 5 * 2,  # window 5, 2 heads
    "correlation": lambda c: (3 * 3 + c) * c + 2 * c,  # window 3
}


def make_maps(name: str, *, seed: int = 0, size: tuple[int, int] = (7, 9), dtype: jnp.dtype = jnp.float32) -> list:
    """One map for an operation, two for an aggregation, [2, h, w, 8]."""
    num_maps = 1 if name in operations.OPERATIONS else 2
    return [np.random.default_rng(seed + i).normal(size=(2, *size, 8)).astype(dtype) for i in range(num_maps)]


@functools.cache
def starts() -> dict[str, types.Params]:
    """The first weights of every member."""
    made = compilation.jit_once(lambda rng: {name: member.init(rng, 8, SCOPE) for name, member in MEMBERS.items()})
    return jax.device_get(made(jax.random.key(0)))


def make_params(name: str) -> types.Params:
    """Every weight away from its special start (those of warp, deform_conv and the query are zero)."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (x + 0.2 * rng.normal(size=x.shape)).astype(x.dtype), starts()[name])


@functools.cache
def _apply_fn(name: str):
    return compilation.jit_once(lambda params, *maps: MEMBERS[name].apply(params, *maps, SCOPE))


def apply(name: str, params: types.Params, *maps: np.ndarray) -> np.ndarray:
    """The map of a member, by one program: operation by operation takes many times as long to compile."""
    return np.asarray(_apply_fn(name)(params, *maps))


@functools.cache
def program(name: str, *, backend: str = ""):
    """`(params, *maps) -> (map, gradients by parameters and maps of a fixed random weighting of it)`, jitted."""

    def both(params: types.Params, *maps: jax.Array) -> tuple:
        TRACES.append(name)
        output, pull_fn = jax.vjp(lambda params, *maps: MEMBERS[name].apply(params, *maps, SCOPE), params, *maps)
        return output, pull_fn(jax.random.normal(jax.random.key(9), output.shape).astype(output.dtype))

    return jax.jit(both)


TRACES: list[str] = []


def test_the_tables_keep_the_order_of_the_first_vocabulary() -> None:
    assert tuple(operations.OPERATIONS)[: len(genotype_lib.FIRST_OPERATIONS)] == genotype_lib.FIRST_OPERATIONS
    assert tuple(operations.AGGREGATIONS)[: len(genotype_lib.FIRST_AGGREGATIONS)] == genotype_lib.FIRST_AGGREGATIONS


@EVERY
def test_a_record_says_what_is_true(name: str) -> None:
    """What the canonical form relies on, with any weights; and nothing that would be true is left out."""
    member, params, (x, *_) = MEMBERS[name], make_params(name), make_maps(name)
    zeros, positive = 0 * x, np.abs(x)

    def is_map(expected: np.ndarray, *maps: np.ndarray) -> bool:
        return np.allclose(apply(name, params, *maps), expected, atol=1e-5)

    assert member.is_weightless == (not jax.tree.leaves(params))
    bias = params.get("bias", params.get("norm", {}).get("bias"))
    is_pair = isinstance(member, operations.Aggregation)
    of_zeros = [zeros, zeros] if is_pair else [zeros]
    is_constant = bias is not None and bias.shape == (8,) and is_map(zeros + np.maximum(bias, 0), *of_zeros)
    assert member.of_zeros == ("zeros" if is_map(zeros, *of_zeros) else "constant" if is_constant else "other")
    if is_pair:
        assert member.is_idempotent == is_map(x, x, x)
        assert member.passes_second == is_map(x, zeros, x)
        assert member.passes_positive == (is_map(positive, zeros, positive) and is_map(positive, positive, zeros))
    else:
        assert member.is_zero == is_map(zeros, x) and member.is_identity == is_map(x, x)
        assert member.is_zero or member.ends_in_activation == bool((apply(name, params, x) >= 0).all())


@EVERY
@pytest.mark.parametrize("channels", [8, 12])
def test_parameter_count(name: str, channels: int) -> None:
    params = jax.eval_shape(lambda rng: MEMBERS[name].init(rng, channels, SCOPE), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == PARAMETER_COUNTS[name](channels)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@EVERY
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_dtype_and_gradients(name: str, dtype: jnp.dtype) -> None:
    """Shape and type are kept, gradients are finite, no parameter is dead, bfloat16 is float32 but for rounding."""
    maps, params = make_maps(name, dtype=dtype), make_params(name)
    output, (params_grad, *maps_grad) = program(name)(params, *maps)
    assert output.shape == maps[0].shape and output.dtype == dtype
    chex.assert_trees_all_equal_shapes_and_dtypes((params_grad, *maps_grad), (params, *maps))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves((params_grad, maps_grad)))
    if dtype == jnp.float32:
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(params_grad))
    else:
        exact, _ = program(name)(params, *[x.astype(np.float32) for x in maps])
        error = np.abs(np.asarray(output, np.float32) - exact)
        assert float(error.mean()) < 0.02 and float(error.max()) < 0.5


@EVERY
def test_untrained_members_have_finite_gradients(name: str) -> None:
    """At the start offsets are whole cells and queries are zero."""
    _, grads = program(name)(starts()[name], *make_maps(name))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@EVERY
def test_backend_variants_are_equal(name: str) -> None:
    """Those of the backend in use and of the other kind."""
    other = "gpu" if jax.default_backend() == "cpu" else "cpu"
    results = [program(name)(make_params(name), *make_maps(name))]
    with compilation.target(other):
        results.append(program(name, backend=other)(make_params(name), *make_maps(name)))
    chex.assert_trees_all_close(*results, atol=2e-4, rtol=2e-4)


@EVERY
def test_other_weights_and_maps_trace_nothing(name: str) -> None:
    first, _ = program(name)(starts()[name], *make_maps(name))
    num_traces = len(TRACES)
    second, _ = program(name)(make_params(name), *make_maps(name, seed=5))
    assert len(TRACES) == num_traces > 0
    assert name == "none" or np.abs(np.subtract(first, second)).max() > 0.1


def test_known_values_of_the_simple_members() -> None:
    a, b = make_maps("max")
    np.testing.assert_array_equal(apply("none", {}, a), np.zeros_like(a))
    np.testing.assert_array_equal(apply("skip", {}, a), a)
    np.testing.assert_allclose(apply("max_pool_3x3", {}, a)[0, 0, 0], a[0, :2, :2].max(axis=(0, 1)))
    np.testing.assert_array_equal(apply("max", {}, a, b), np.maximum(a, b))
    weights = starts()["sum"]
    np.testing.assert_allclose(apply("sum", weights, a, b), 0.5 * (a + b), rtol=1e-6)


def test_gate_saturates_to_either_input() -> None:
    a, b = make_maps("gate")
    gate = starts()["gate"]
    for bias, expected in ((50.0, a), (-50.0, b)):
        saturated = {**gate, "norm": {**gate["norm"], "bias": np.full(8, bias, np.float32)}}
        np.testing.assert_allclose(apply("gate", saturated, a, b), expected, atol=1e-5)


def test_warp_starts_as_the_identity_and_moves_by_its_bias() -> None:
    a, b = make_maps("warp")
    warp = starts()["warp"]
    np.testing.assert_allclose(apply("warp", warp, a, b), a + b, rtol=1e-5, atol=1e-6)
    one_cell = {**warp, "bias": np.array([np.arctanh(1 / SCOPE.max_offset), 0.0], np.float32)}
    moved = apply("warp", one_cell, a, 0 * b)
    np.testing.assert_allclose(moved[:, :, :-1], a[:, :, 1:], atol=1e-5)
    np.testing.assert_allclose(moved[:, :, -1], a[:, :, -1], atol=1e-5)  # the border is repeated
    too_far = apply("warp", {**warp, "bias": np.array([0.0, 99.0], np.float32)}, a, 0 * b)
    np.testing.assert_allclose(too_far[:, :-3], a[:, 3:], atol=1e-5)  # never more than max_offset, 3 cells


def _smooth_map(rng: jax.Array) -> jax.Array:
    """A map without fine detail, [4, 11, 13, 8]."""
    return layers.resize_bilinear(jax.random.normal(rng, (4, 5, 6, 8)), (11, 13), align_corners=True)


def test_trained_warp_aligns_a_shifted_input() -> None:
    """The first map is the second one moved by (2, -1); after training the warp undoes that on maps it has not seen."""
    warp = MEMBERS["warp"]

    @jax.jit
    def misfit(params: types.Params, rng: jax.Array) -> jax.Array:
        target = _smooth_map(rng)
        moved = jnp.roll(target, (-1, 2), axis=(1, 2))  # moved[row, col] = target[row + 1, col - 2]
        error = warp.apply(params, moved, target, SCOPE) - 2 * target  # the warp adds the second map
        return jnp.square(error[:, 2:-2, 3:-3]).mean()

    optimizer = optax.adam(0.01)

    def step(carry: tuple, index: jax.Array) -> tuple:
        params, state = carry
        grads = jax.grad(misfit)(params, jax.random.fold_in(jax.random.key(0), index))
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(start: types.Params) -> types.Params:
        return jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(200))[0][0]

    start = starts()["warp"]
    trained = train(start)
    unseen = jax.random.key(2)
    assert float(misfit(start, unseen)) > 0.2
    assert float(misfit(trained, unseen)) < 0.01 * float(misfit(start, unseen))
    np.testing.assert_allclose(SCOPE.max_offset * np.tanh(trained["bias"]), [2.0, -1.0], atol=0.1)


def test_attention_to_one_pixel_of_the_window_copies_it() -> None:
    a, b = make_maps("local_attention")
    params = make_params("local_attention")
    position = np.zeros((5, 5, 2), np.float32)
    position[0, 3, 0] = position[4, 2, 1] = 1e3  # head 0: (-2, 1), head 1: (2, 0)
    copied = apply("local_attention", {**params, "position": position}, a, b) - b
    np.testing.assert_allclose(copied[:, 2:, :-1, :4], a[:, :-2, 1:, :4], atol=1e-5)
    np.testing.assert_allclose(copied[:, :-2, :, 4:], a[:, 2:, :, 4:], atol=1e-5)


def test_attention_starts_with_half_of_the_weight_on_the_pixel_itself() -> None:
    a, b = make_maps("local_attention")
    params = starts()["local_attention"]
    blurred = apply("local_attention", params, a, b) - b
    others = (a[:, 1:6, 2:7].sum(axis=(1, 2)) - a[:, 3, 4]) / 24
    np.testing.assert_allclose(blurred[:, 3, 4], 0.5 * (a[:, 3, 4] + others), atol=1e-5)


def test_attention_weights_sum_to_one_at_the_border_too() -> None:
    _, b = make_maps("local_attention")
    flat = np.broadcast_to(np.arange(8, dtype=np.float32), b.shape)
    mean = apply("local_attention", make_params("local_attention"), flat, b) - b
    np.testing.assert_allclose(mean, flat, atol=1e-5)


def test_attention_decides_by_content() -> None:
    """One pixel of the first map has the key that all queries look for: its neighbours copy it, no others do."""
    marked, seeking = np.zeros((1, 9, 9, 8), np.float32), np.ones((1, 9, 9, 8), np.float32)
    marked[0, 4, 4] = 1
    eye = np.eye(8, dtype=np.float32)[None, None]
    params = {"query": 30 * eye, "key": eye, "position": np.zeros((5, 5, 2), np.float32)}
    taken = apply("local_attention", params, marked, seeking) - seeking
    expected = np.zeros((1, 9, 9, 8))
    expected[:, 2:7, 2:7] = 1
    np.testing.assert_allclose(taken, expected, atol=1e-5)


def _frozen(kernel: np.ndarray) -> types.Params:
    """Parameters of `conv_3x3` whose normalisation lets everything pass (running statistics 0 and 1, a bias)."""
    values = {"scale": 1, "bias": 5, "mean": 0, "var": 1}
    return {"kernel": kernel, "norm": {key: np.full(8, value, np.float32) for key, value in values.items()}}


def test_correlation_finds_where_a_pixel_came_from() -> None:
    """The products are cosines, 1 where the maps are equal: the kernel passes that of one tap on, the rest is 0."""
    (b, _), row, col = make_maps("correlation"), 0, 2
    down, left = 1, -1  # that tap looks at (row - 1, col - 1) of the middle
    a = np.roll(3 * b, (-down, -left), axis=(1, 2))  # what is at p of b is at p + (-1, 1) of a, three times as long
    kernel = np.zeros((1, 1, 9 + 8, 8), np.float32)
    kernel[0, 0, row * 3 + col] = 1
    norm = {"scale": 1, "bias": 0, "mean": 0, "var": 1 - layers.NORM_EPS}
    norm = {key: np.full(8, value, np.float32) for key, value in norm.items()}
    found = apply("correlation", {"kernel": kernel, "norm": norm}, a, b)
    np.testing.assert_allclose(found[:, 1:, :-1], 1.0, atol=2e-3)
    np.testing.assert_allclose(found[:, 0], 0.0)  # outside the map nothing matches
    other = apply("correlation", {"kernel": np.roll(kernel, 1, axis=2), "norm": norm}, a, b)
    assert float(other[:, 1:, :-1].mean()) < 0.5


def _kernel() -> np.ndarray:
    return np.asarray(layers.he_normal(jax.random.key(3), (3, 3, 8, 8)))


def _deform(x: np.ndarray, kernel: np.ndarray, bias: list[float]) -> np.ndarray:
    offset = {"kernel": np.zeros((3, 3, 8, 27), np.float32), "bias": np.asarray(bias, np.float32)}
    params = {**_frozen(kernel), "offset": offset}
    return apply("deform_conv_3x3", params, x)


def test_deform_conv_starts_as_the_plain_convolution() -> None:
    (x,) = make_maps("deform_conv_3x3")
    params = starts()["deform_conv_3x3"]
    plain = apply("conv_3x3", {key: params[key] for key in ("kernel", "norm")}, x)
    np.testing.assert_allclose(apply("deform_conv_3x3", params, x), plain, atol=1e-5)


def test_deform_conv_with_a_constant_offset_is_the_convolution_of_the_shifted_map() -> None:
    (x,) = make_maps("deform_conv_3x3")
    kernel = _kernel()
    plain = apply("conv_3x3", _frozen(kernel), x)
    per_tap = np.arctanh(np.array([1.0, -2.0]) / SCOPE.max_offset)
    moved = _deform(x, kernel, [*np.tile(per_tap, 9), *[0.0] * 9])
    np.testing.assert_allclose(moved[:, 3:-1, 1:-2], plain[:, 1:-3, 2:-1], atol=1e-4)
    furthest = _deform(x, kernel, [*np.tile([0.0, 99.0], 9), *[0.0] * 9])  # never more than max_offset, 3 cells
    np.testing.assert_allclose(furthest[:, 1:-4], plain[:, 4:-1], atol=1e-4)


def test_deform_conv_masks_its_taps() -> None:
    """Masks of 2 on one tap and of 0 on the others leave twice that tap; taps and masks are in the same order."""
    (x,) = make_maps("deform_conv_3x3")
    kernel = _kernel()
    tap = 5  # row 1, column 2: the pixel to the right
    y = _deform(x, kernel, [0.0] * 18 + [50.0 if i == tap else -50.0 for i in range(9)])
    shifted = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:]
    expected = np.maximum(2 * shifted @ kernel[1, 2] / np.sqrt(1 + layers.NORM_EPS) + 5.0, 0)
    np.testing.assert_allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_window": 4}, "space.attention_window: must be 3, 5, 7 or 9, got 4"),
        ({"attention_window": 11}, "space.attention_window: must be 3, 5, 7 or 9, got 11"),
        ({"correlation_window": 1}, "space.correlation_window: must be 3, 5, 7 or 9, got 1"),
        ({"attention_heads": 3}, r"space.attention_heads: must divide space.channels \(8\), got 3"),
        ({"attention_heads": 0}, r"space.attention_heads: must divide space.channels \(8\), got 0"),
    ],
)
def test_wrong_sizes_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        cell_frame.CellSettings(channels=8, feature_channels={"logits": 4}, **changes)


def test_the_settings_reach_the_members() -> None:
    settings = cell_frame.CellSettings(
        channels=8,
        feature_channels={"decoder": 6, "logits": 4, "image": 3},
        max_offset=2.5,
        attention_window=7,
        attention_heads=4,
    )
    scope = settings.scope()
    assert (scope.max_offset, scope.attention_window, scope.attention_heads) == (2.5, 7, 4)
    space = genotype_lib.Space(inputs=("decoder",), num_layers=2, aggregations=("local_attention",))
    params = jax.eval_shape(supernet_lib.make(space, settings).init, jax.random.key(0))
    assert params["layers"]["agg"]["local_attention"]["position"].shape == (2, 7, 7, 4)
