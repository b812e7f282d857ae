"""The written-out gradients behind the supernet: those of autodiff, of what was read, without copies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_space import INPUTS, SETTINGS, loss_and_logits, make_features, randomised

from dvsnas_jax.core import types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, conditional, operations, shared_layers, supernet_gradient
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib

SPACE = genotype_lib.Space(
    inputs=INPUTS, num_layers=3, operations=("none", "skip", "sep_conv_3x3", "conv_1x1"), aggregations=("sum", "gate")
)
NONE, SKIP, SEPARABLE, POINTWISE = range(4)
SHAPE = (2, 3, 4, SETTINGS.channels)
GENOTYPES = {
    "a layer reads one node twice": [
        [0, 0, SEPARABLE, POINTWISE, 0],
        [7, 7, SKIP, SKIP, 1],
        [8, 8, SKIP, POINTWISE, 0],
    ],
    "nodes are read by several layers": [[1, 2, SKIP, POINTWISE, 1], [7, 1, SKIP, SKIP, 0], [7, 1, SEPARABLE, SKIP, 1]],
    "nodes are read through none": [[0, 1, NONE, NONE, 0], [7, 2, NONE, POINTWISE, 1], [8, 7, SKIP, NONE, 0]],
}


@functools.cache
def supernet_and_params() -> tuple[supernet_lib.Supernet, types.Params]:
    supernet = supernet_lib.make(SPACE, SETTINGS)
    return supernet, randomised(jax.jit(supernet.init)(jax.random.key(0)), 1)


def by_autodiff(params: types.Params, genotype: np.ndarray, inputs: tuple[jax.Array, ...]) -> jax.Array:
    """The layers as a plain loop over a static genotype."""
    nodes = list(inputs)
    for index, (first, second, op_a, op_b, agg) in enumerate(np.asarray(genotype).tolist()):
        own = jax.tree.map(lambda x, index=index: x[index], params)
        names = SPACE.operations[op_a], SPACE.operations[op_b], SPACE.aggregations[agg]
        a, b = (
            operations.OPERATIONS[name].apply(own[slot][name], nodes[node], SETTINGS.scope())
            for slot, name, node in (("a", names[0], first), ("b", names[1], second))
        )
        nodes.append(operations.AGGREGATIONS[names[2]].apply(own["agg"][names[2]], a, b, SETTINGS.scope()))
    return jnp.stack(nodes[len(inputs) :])


def by_hand(
    params: types.Params, genotype: jax.Array, inputs: tuple[jax.Array, ...], row: int, rows: jax.Array, garbage: float
) -> tuple[jax.Array, types.Params, jax.Array]:
    """Loss, gradient of the parameters, and the buffer of gradients whose `rows` are the nodes'."""
    layers = shared_layers.Layers(SPACE, SETTINGS.scope())
    weights = supernet_gradient.loose_end_weights(SPACE, genotype)
    memory = shared_layers.Memory(*[jnp.full((row + SPACE.num_layers, *SHAPE), garbage)] * 3)

    def pick(token: jax.Array, outputs: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.stack(inputs), outputs[row:]])[token]

    memory = layers.forward(params, genotype, shared_layers.Frame(pick, memory, row))
    loss, grad = jax.value_and_grad(mean_loss)(memory.outputs[row:], weights)
    grad_mean = grad[jnp.argmax(weights)] / weights.max()
    grads = jnp.full((len(rows) + 3, *SHAPE), garbage)
    frame = shared_layers.Frame(pick, memory, row)
    grads, grad_params = layers.backward(params, genotype, frame, grads, rows, (weights, grad_mean))
    return loss, grad_params, grads


def mean_loss(outputs: jax.Array, weights: jax.Array) -> jax.Array:
    return loss_and_logits(jnp.tensordot(weights, outputs, axes=1))[0]


@pytest.mark.parametrize("case", GENOTYPES)
def test_gradients_are_those_of_autodiff(case):
    """In rows anywhere, whatever was in the buffers before."""
    genotype, rng = np.asarray(GENOTYPES[case], np.int32), np.random.default_rng(0)
    params = supernet_and_params()[1]["layers"]
    inputs = tuple(rng.normal(size=SHAPE).astype(np.float32) for _ in INPUTS)
    weights = supernet_gradient.loose_end_weights(SPACE, jnp.asarray(genotype))
    rows = 2 + rng.permutation(SPACE.num_nodes)
    loss, grad_params, grads = jax.jit(by_hand, static_argnames="row")(
        params, jnp.asarray(genotype), inputs, 4, rows, 77.0
    )

    def loss_fn(params: types.Params, inputs: tuple[jax.Array, ...]) -> jax.Array:
        return mean_loss(by_autodiff(params, genotype, inputs), weights)

    expected_loss, expected = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))(params, inputs)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)

    def check(found: jax.Array, expected: jax.Array) -> None:
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=2e-5)

    jax.tree.map(check, grad_params, expected[0])
    for node, row in enumerate(rows.tolist()):
        if node in genotype[:, :2] and node < len(inputs):
            check(grads[row], expected[1][node])
        elif node < len(inputs):
            assert (np.asarray(grads[row]) == 77).all() and not np.any(expected[1][node])
    assert any(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(expected))


def test_the_gradient_reaches_the_state_before_a_frame():
    """Of what the state carries of the cell's own, as in the cell of one genotype."""
    genotype = np.array([[0, 2, SEPARABLE, POINTWISE, 1], [7, 3, SKIP, POINTWISE, 0], [0, 8, SKIP, SKIP, 1]], np.int32)
    assert INPUTS[0] == "prev_state" and INPUTS[2] == "prev_logits"
    (supernet, params), cell = supernet_and_params(), cell_lib.make(SPACE, genotype, SETTINGS)
    cut = cell_lib.gather_params(SPACE, genotype, params)
    features = make_features(2)
    frames = [jax.tree.map(lambda x, t=t: x[t], features) for t in range(2)]
    start = cell_frame.initial_state(SETTINGS, frames[0], INPUTS)  # with all that the supernet may read
    state, _ = jax.jit(cell.step)(cut, start, frames[0])

    def slopes(step) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        def loss_fn(own: tuple[jax.Array, jax.Array]) -> jax.Array:
            after, logits = step(dataclasses.replace(state, state=own[0], logits=own[1]))
            return loss_and_logits(logits)[0] + loss_and_logits(after.state)[0]

        return jax.jit(jax.value_and_grad(loss_fn))((state.state, state.logits))

    found = slopes(lambda state: supernet.step(params, genotype, state, frames[1]))
    expected = slopes(lambda state: cell.step(cut, state, frames[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), found, expected)
    assert all(np.abs(x).max() > 1e-4 for x in expected[1])


def test_what_is_not_read_is_not_computed():
    """An input of NaN that no operation reads, or `none` alone, changes nothing; read, it does."""
    supernet, params = supernet_and_params()
    features = make_features(2)
    bad = np.full_like(features.maps["stage1"], np.nan)
    broken = dataclasses.replace(features, maps={**features.maps, "stage1": bad})
    stage1 = INPUTS.index("stage1")
    run = jax.jit(
        jax.value_and_grad(
            lambda params, genotype, features: loss_and_logits(supernet.unroll(params, genotype, features))[0]
        )
    )
    unread = np.array([[0, 3, SKIP, SKIP, 0], [stage1, 2, NONE, SKIP, 1], [8, 7, SKIP, SKIP, 0]], np.int32)
    expected, found = (run(params, unread, one) for one in (features, broken))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.isfinite(found[0])
    read = unread.copy()
    read[1, 2] = SKIP
    assert np.isfinite(run(params, read, features)[0]) and np.isnan(run(params, read, broken)[0])


def test_reads_of_random_genotypes():
    for genotype in genotype_lib.random(SPACE, np.random.default_rng(0), 50):
        found = supernet_gradient.read_inputs(SPACE, jnp.asarray(genotype))
        names = [name for name, is_read in zip(INPUTS, found.tolist(), strict=True) if is_read]
        assert tuple(names) == cell_lib.used_inputs(SPACE, genotype)


def loss_of_logits(logits: jax.Array) -> jax.Array:
    return loss_and_logits(logits)[0]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="memory of XLA's CPU backend")
@pytest.mark.parametrize("is_handed_on", [False, True])
def test_buffers_are_written_in_place(is_handed_on):
    """Those that hold all frames (of the gradients, of what the layers keep) are there once: a copy of the smallest,
    3 maps a frame, would not fit beside the 10 maps a frame of inputs, states and their gradients."""
    num_frames, size = 20, (12, 16)
    supernet = supernet_lib.make(SPACE, SETTINGS)
    params = jax.eval_shape(supernet.init, jax.random.key(0))
    features = jax.eval_shape(lambda: make_features(0, num_frames=num_frames, size=size))
    genotype = jax.ShapeDtypeStruct((SPACE.num_layers, 5), jnp.int32)

    def grad_fn(params: types.Params, genotype: jax.Array, features: types.Features) -> types.Params:
        return jax.grad(lambda params: loss_of_logits(supernet.unroll(params, genotype, features)))(params)

    def train(params: types.Params, genotype: jax.Array, features: types.Features) -> tuple:
        def step(carry: tuple[types.Params, supernet_gradient.Buffers], _: None) -> tuple:
            _, grads, buffers = supernet.value_and_grad(carry[0], genotype, features, loss_of_logits, carry[1])
            return (jax.tree.map(jnp.subtract, carry[0], grads), buffers), None

        return jax.lax.scan(step, (params, supernet.buffers(features)), length=3)[0]

    found = jax.jit(train if is_handed_on else grad_fn).lower(params, genotype, features).compile().memory_analysis()
    buffers = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(supernet.buffers, features)))
    one_map = np.prod((features.logits.shape[1], *size, SETTINGS.channels)) * 4
    rest = found.temp_size_in_bytes + found.output_size_in_bytes - buffers
    assert 0 < rest < 11 * num_frames * one_map


def test_gradients_do_not_depend_on_what_buffers_held():
    """They are those of autodiff, step after step; nothing is filled anew, what no layer reads stays as it was."""
    supernet, params = supernet_and_params()
    features, num_frames = make_features(2), 3
    buffers = jax.tree.map(lambda x: np.full(x.shape, 77, x.dtype), jax.eval_shape(supernet.buffers, features))

    @jax.jit
    def handed_on(genotype: jax.Array, buffers: supernet_gradient.Buffers) -> tuple:
        return supernet.value_and_grad(params, genotype, features, loss_of_logits, buffers)

    @jax.jit
    def by_autodiff(genotype: jax.Array) -> tuple:
        return jax.value_and_grad(lambda params: loss_of_logits(supernet.unroll(params, genotype, features)))(params)

    for genotype in map(jnp.array, GENOTYPES.values()):
        before, (loss, grads, buffers) = buffers, handed_on(genotype, buffers)
        for index, name in enumerate(INPUTS):
            rows = slice(index * num_frames, (index + 1) * num_frames)
            if index not in np.asarray(genotype)[:, :2]:
                np.testing.assert_array_equal(buffers.grads[rows], before.grads[rows], err_msg=name)
        jax.tree.map(np.testing.assert_array_equal, (loss, grads), by_autodiff(genotype))


def test_when_gives_zeros_and_their_gradient():
    def fn(x: jax.Array) -> jax.Array:
        return 3 * jnp.sin(x)

    def loss_fn(x: jax.Array, is_needed: jax.Array) -> jax.Array:
        return conditional.when(is_needed, fn, (x,)).sum()

    x, grad = jnp.arange(3.0), jax.jit(jax.value_and_grad(loss_fn))
    value, slope = grad(x, jnp.array(True))
    np.testing.assert_allclose(value, 3 * np.sin(x).sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, 3 * np.cos(x), rtol=1e-6)
    assert (float(grad(x, jnp.array(False))[0]), grad(x, jnp.array(False))[1].tolist()) == (0.0, [0.0] * 3)
