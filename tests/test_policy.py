"""The policy: probabilities that are probabilities, one meaning for sampling and scoring, masks, gradients."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.space import genotype

GOLDEN = pathlib.Path(__file__).parent / "golden" / "policy.json"
TINY = genotype.Space(
    inputs=("prev_state", "decoder"), num_layers=2, operations=("skip", "conv_1x1", "none"), aggregations=("sum",)
)
# The defaults with the vocabulary at the time of the golden file: a longer one leaves that file as it is.
REAL = genotype.Space(
    inputs=("prev_state", "prev_decoder", "prev_logits", "decoder", "logits", "stage1", "stage2", "image_diff"),
    num_layers=4,
    operations=genotype.vocabulary("operations")[:12],
    aggregations=genotype.vocabulary("aggregations")[:5],
)
TINY_MASK = np.asarray([True, False, True])


def compiled(policy):
    return policy._replace(
        init=jax.jit(policy.init),
        sample=jax.jit(policy.sample, static_argnums=3),
        score=jax.jit(policy.score),
        greedy=jax.jit(policy.greedy),
    )


@pytest.fixture(scope="module")
def real():
    policy = compiled(policy_lib.make(REAL, hidden=100, lstm_layers=2, init_scale=0.1))
    return policy, policy.init(jax.random.key(0))


@pytest.fixture(scope="module")
def tiny():
    """A small policy with weights large enough to prefer some genotypes clearly."""
    policy = compiled(policy_lib.make(TINY, hidden=8, lstm_layers=2, init_scale=1.5))
    return policy, policy.init(jax.random.key(1))


def every_genotype(space):
    ranges = [range(limit) for limit in space.limits().ravel()]
    return np.asarray(list(itertools.product(*ranges)), np.int32).reshape(-1, space.num_layers, 5)


def test_table_of_a_space():
    table = policy_lib.token_table(TINY)
    assert table.operations == slice(3, 6)
    np.testing.assert_array_equal(table.offsets, [0, 0, 3, 3, 6] * 2)
    first, operation, last = [1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]
    second = [1, 1, 1, 0, 0, 0, 0]
    expected = [first, first, operation, operation, last, second, second, operation, operation, last]
    np.testing.assert_array_equal(table.allowed, np.asarray(expected, bool))
    np.testing.assert_array_equal(table.mask(TINY_MASK)[2], np.asarray([0, 0, 0, 1, 0, 1, 0], bool))


def test_parameters_are_uniform_and_counted(real):
    _, params = real
    leaves = jax.tree.leaves(params)
    tokens, vocabulary, hidden = 20, 8 + 3 + 12 + 5, 100
    expected = 4 * hidden * (vocabulary + tokens + 3 * hidden + 2) + (hidden + 1) * vocabulary
    assert sum(leaf.size for leaf in leaves) == expected
    values = np.concatenate([np.ravel(leaf) for leaf in leaves])
    assert np.abs(values).max() <= 0.1
    assert abs(values.mean()) < 1e-3
    assert values.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.01)


def test_score_is_the_log_probability_of_the_draw(real):
    policy, params = real
    mask = np.ones(12, bool)
    mask[[0, 5]] = False
    samples = policy.sample(params, jax.random.key(2), mask, 50)
    log_prob, entropy = policy.score(params, samples.genotypes, mask)
    np.testing.assert_allclose(log_prob, samples.log_prob, atol=1e-4)
    np.testing.assert_allclose(entropy, samples.entropy, atol=1e-4)


def test_draws_are_valid_and_cover_what_is_allowed(real):
    policy, params = real
    mask = np.ones(12, bool)
    mask[[3, 11]] = False
    samples = policy.sample(params, jax.random.key(3), mask, 1000)
    rows = np.asarray(samples.genotypes)
    assert rows.dtype == np.int32
    for row in rows:
        genotype.validate(REAL, row)  # refuses forward references and anything out of range
    for layer, field in np.ndindex(4, 5):
        allowed = np.flatnonzero(mask) if field in (2, 3) else np.arange(REAL.limits()[layer, field])
        np.testing.assert_array_equal(np.unique(rows[:, layer, field]), allowed)


@pytest.mark.parametrize("mask", [np.ones(3, bool), TINY_MASK])
def test_probabilities_of_all_genotypes_sum_to_one(tiny, mask):
    policy, params = tiny
    rows = every_genotype(TINY)
    log_prob, entropy = (np.asarray(x, np.float64) for x in policy.score(params, rows, mask))
    prob = np.exp(log_prob)
    assert prob.sum() == pytest.approx(1.0, abs=1e-4)
    is_masked = (~mask)[rows[:, :, 2:4]].any(axis=(1, 2))
    assert prob[is_masked].max(initial=0.0) == 0.0
    # Chain rule: the expected sum of the tokens' entropies is the entropy of the whole.
    kept = ~is_masked
    joint = -(prob[kept] * log_prob[kept]).sum()
    assert (prob * entropy).sum() == pytest.approx(joint, abs=1e-3)


def test_draws_have_the_scored_frequencies(tiny):
    policy, params = tiny
    rows, num = every_genotype(TINY), 40000
    prob = np.exp(np.asarray(policy.score(params, rows, TINY_MASK)[0]))
    drawn = np.asarray(policy.sample(params, jax.random.key(4), TINY_MASK, num).genotypes).reshape(num, -1)
    index = np.ravel_multi_index(drawn.T, TINY.limits().ravel())
    frequency = np.bincount(index, minlength=len(rows)) / num
    best = np.argsort(-prob)[:50]
    # Five standard deviations of each count.
    assert np.all(np.abs(frequency - prob)[best] < 5 * np.sqrt(prob[best] / num))
    assert 0.5 * np.abs(frequency - prob).sum() < 0.06


def test_greedy_takes_the_most_probable_token_after_each_prefix(tiny):
    policy, params = tiny
    rows = every_genotype(TINY).reshape(-1, 10)
    prob = np.exp(np.asarray(policy.score(params, rows.reshape(-1, 2, 5), TINY_MASK)[0]))
    alive = np.ones(len(rows), bool)
    for position in range(10):
        mass = np.bincount(rows[alive, position], weights=prob[alive])
        alive &= rows[:, position] == mass.argmax()
    greedy = policy.greedy(params, TINY_MASK)
    np.testing.assert_array_equal(greedy, rows[alive][0].reshape(2, 5))
    cold = policy.sample(params, jax.random.key(5), TINY_MASK, 3, 0.0).genotypes
    np.testing.assert_array_equal(cold, np.stack([greedy] * 3))


def test_equals_a_plain_numpy_lstm(real):
    policy, params = real
    rows = genotype.random(REAL, np.random.default_rng(0), 3)
    mask = np.ones(12, bool)
    mask[7] = False
    rows[..., 2:4] = np.where(rows[..., 2:4] == 7, 1, rows[..., 2:4])
    log_prob, entropy = policy.score(params, rows, mask)
    for row, got_log_prob, got_entropy in zip(rows, log_prob, entropy, strict=True):
        expected = _numpy_score(jax.tree.map(np.float64, params["params"]), row, mask)
        np.testing.assert_allclose([got_log_prob, got_entropy], expected, rtol=1e-5)


def _numpy_score(weights, row, mask):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    num_nodes, num_ops = REAL.num_nodes - 1, len(REAL.operations)
    starts = [0, 0, num_nodes, num_nodes, num_nodes + num_ops]
    state = [(np.zeros(100), np.zeros(100)) for _ in range(2)]
    before, total, entropy = np.zeros(400), 0.0, 0.0
    for position, token in enumerate(row.ravel()):
        layer, field = divmod(position, 5)
        gates = before + weights["position"][position] + weights["bias0"]
        for k in range(2):
            if k:
                gates = state[0][0] @ weights["input1"] + weights["bias1"]
            i, f, u, o = np.split(gates + state[k][0] @ weights[f"recurrent{k}"], 4)
            cell = sigmoid(f) * state[k][1] + sigmoid(i) * np.tanh(u)
            state[k] = (sigmoid(o) * np.tanh(cell), cell)
        logits = state[1][0] @ weights["head"] + weights["head_bias"]
        allowed = np.arange(starts[field], starts[field] + REAL.limits()[layer, field])
        allowed = allowed[mask] if field in (2, 3) else allowed
        prob = dict(zip(allowed, np.exp(logits[allowed]) / np.exp(logits[allowed]).sum(), strict=True))
        total += np.log(prob[starts[field] + token])
        entropy -= sum(p * np.log(p) for p in prob.values())
        before = weights["embedding"][starts[field] + token]
    return total, entropy


def test_written_gradient_is_the_derivative():
    rng = jax.random.split(jax.random.key(6), 3)
    weights, pre = jax.random.normal(rng[0], (5, 20)), jax.random.normal(rng[1], (7, 3, 20))
    weight = jax.random.normal(rng[2], (7, 3, 5))
    gradient = lambda run: jax.jit(jax.grad(lambda w, p: jnp.sum(weight * run(w, p)), argnums=(0, 1)))(weights, pre)  # noqa: E731
    written = gradient(policy_lib._recurrence)
    autodiff = gradient(lambda w, p: policy_lib._run(w, p)[1])
    for got, expected in zip(written, autodiff, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)
        assert np.abs(expected).max() > 0.1


def test_written_gradient_of_a_product_is_the_derivative():
    rng = jax.random.split(jax.random.key(8), 3)
    x, weights = jax.random.normal(rng[0], (4, 3, 5)), jax.random.normal(rng[1], (5, 2))
    weight = jax.random.normal(rng[2], (4, 3, 2))
    gradient = lambda run: jax.jit(jax.grad(lambda x, w: jnp.sum(weight * run(x, w)), argnums=(0, 1)))(x, weights)  # noqa: E731
    for got, expected in zip(gradient(policy_lib._product), gradient(jnp.matmul), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)
        assert np.abs(expected).max() > 0.1


def test_another_operation_mask_traces_nothing(tiny):
    policy, params = tiny
    traces = []

    @jax.jit
    def draw(params, rng, mask):
        traces.append(1)
        samples = policy.sample(params, rng, mask, 4)
        return samples, policy.score(params, samples.genotypes, mask)

    for masked in range(3):
        samples, _ = draw(params, jax.random.key(7), np.arange(3) != masked)
        assert not np.any(np.asarray(samples.genotypes)[:, :, 2:4] == masked)
    assert len(traces) == 1


def test_golden_log_probabilities(real):
    policy, params = real
    golden = json.loads(GOLDEN.read_text())
    rows = np.asarray(golden["genotypes"], np.int32)
    log_prob, entropy = policy.score(params, rows, np.asarray(golden["op_mask"]))
    np.testing.assert_allclose(log_prob, golden["log_prob"], rtol=1e-5)
    np.testing.assert_allclose(entropy, golden["entropy"], rtol=1e-5)
    np.testing.assert_array_equal(policy.greedy(params, np.asarray(golden["op_mask"])), golden["greedy"])
