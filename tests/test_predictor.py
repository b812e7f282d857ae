"""The predictor: its features, its Gaussian process against scikit-learn's, what it proposes and what it finds."""

import jax
import made_up_table
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import gaussian_process

from dvsnas_jax.controller import gaussian, strategies
from dvsnas_jax.controller.strategies import predictor
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.search import derive
from dvsnas_jax.space import canonical, encoding
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import strategies_replay, strategies_statistics

SPACE = genotype_lib.Space(
    inputs=("prev_state", "decoder", "stage1"),
    num_layers=1,
    operations=("none", "skip", "conv_1x1", "sep_conv_3x3"),
    aggregations=("sum", "warp"),
)
DEEP = genotype_lib.Space(inputs=("prev_state", "decoder", "stage1"), num_layers=3)
NONE, SKIP, CONV, SEP = range(4)


def make_config(**changes):
    config = config_lib.defaults().controller
    config.update(changes)
    return config


def samples_of(genotypes) -> types.Samples:
    return types.Samples(genotypes=genotypes, log_prob=np.zeros(len(genotypes)), entropy=np.zeros(len(genotypes)))


def play(model, num_rewards, *, seed=0, op_mask=None):
    """A history of uniform draws whose reward is the share of SEP among their operations."""
    op_mask = np.ones(len(model.space.operations), bool) if op_mask is None else op_mask
    rows = genotype_lib.random(model.space, np.random.default_rng(seed), num_rewards, op_mask=op_mask)
    rewards = (rows[..., 2:4] == SEP).mean(axis=(1, 2)).astype(np.float32)
    return model.learn(model.init(jax.random.key(0)), samples_of(rows), rewards, np.ones(num_rewards, bool))[0]


# --- features -----------------------------------------------------------------------------------------------------


def test_counts_of_a_cell():
    encoder = encoding.Encoder(SPACE)
    rows = np.array([[[0, 1, SKIP, CONV, 1]], [[0, 1, SKIP, SEP, 1]], [[0, 1, SKIP, CONV, 0]]], np.int32)
    found = encoder.encode(rows)
    # Aggregation, two operations, two sources, the output; two branches; two branches under their aggregation.
    assert [counts[0].sum() for counts in found.counts] == [6, 2, 2]
    squared = [((counts[:, None] - counts[None]) ** 2).sum(axis=2) for counts in found.counts]
    # Another operation: one name, one branch for another. Another aggregation: it and the output; all that is nested.
    assert [values[0, 1] for values in squared] == [2, 2, 2]
    assert [values[0, 2] for values in squared] == [4, 0, 4]
    distances = encoder.distances(found, found)
    np.testing.assert_allclose(distances, distances.T)
    drawn = encoder.encode(genotype_lib.random(SPACE, np.random.default_rng(0), encoding.NUM_SCALE))
    assert encoder.distances(drawn, drawn).mean() == pytest.approx(1)


def test_equal_cells_are_one_and_the_order_of_meeting_does_not_matter():
    rows = genotype_lib.random(DEEP, np.random.default_rng(3), 60)
    first, second = encoding.Encoder(DEEP), encoding.Encoder(DEEP)
    second.encode(genotype_lib.random(DEEP, np.random.default_rng(4), 200)[::-1])
    ours, theirs = first.encode(rows), second.encode(rows)
    np.testing.assert_array_equal(first.distances(ours, ours), second.distances(theirs, theirs))  # bit for bit
    swapped = np.array([[[0, 1, SKIP, CONV, 0]], [[1, 0, CONV, SKIP, 0]], [[1, 0, SKIP, CONV, 0]]], np.int32)
    encoder = encoding.Encoder(SPACE)
    found = encoder.encode(swapped)
    np.testing.assert_array_equal(encoding.same(found.forms, found.forms)[0], [True, True, False])
    assert encoder.distances(found, found)[0, 1] == 0 < encoder.distances(found, found)[0, 2]


# --- the process --------------------------------------------------------------------------------------------------


def test_the_posterior_is_scikit_learns():
    rng = np.random.default_rng(0)
    known, pool = rng.normal(size=(9, 2)), rng.normal(size=(5, 2))
    rewards = rng.normal(size=9)
    rewards -= rewards.mean()

    def squared(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(axis=2)

    scales = gaussian.Scales(length=1.6, own_share=0.1, noise=0.03)
    none = np.zeros((5, 9), bool)
    found = gaussian.predict(
        scales, rewards, known=(squared(known, known), np.eye(9, dtype=bool)), cross=(squared(pool, known), none)
    )
    # The same with what is found for the mean and the amplitude put in; a cell's own share is noise there.
    kernels = gaussian_process.kernels
    prior = kernels.ConstantKernel(0.9) * kernels.RBF(np.sqrt(1.6))
    correlation = prior(known) + 0.13 * np.eye(9)
    inverse = np.linalg.inv(correlation)
    mean = inverse.sum(axis=0) @ rewards / inverse.sum()
    amplitude = (rewards - mean) @ inverse @ (rewards - mean) / 9
    theirs = gaussian_process.GaussianProcessRegressor(prior, alpha=0.13, optimizer=None)
    expected, covariance = theirs.fit(known, rewards - mean).predict(pool, return_cov=True)
    np.testing.assert_allclose(found.mean, mean + expected, rtol=1e-9)
    np.testing.assert_allclose(found.variance, amplitude * (np.diag(covariance) + 0.1), rtol=1e-9)
    assert found.noise == pytest.approx(0.03 * amplitude)
    column = gaussian.kernel(squared(pool, pool), np.eye(5, dtype=bool), scales)[:, 2]
    expected = amplitude * (covariance[:, 2] + 0.1 * np.eye(5)[2])
    np.testing.assert_allclose(found.covariance(column, 2), expected, rtol=1e-9, atol=1e-12)


def test_repeats_of_a_cell_are_averaged():
    """Two cells without anything in common, closed form: of n repeats the mean has weight n / (n + noise)."""
    same = np.equal.outer([0, 0, 0, 1], [0, 0, 0, 1])
    far = np.where(same, 0.0, 1e6)
    rewards = np.array([1.0, 2.0, 3.0, -2.0])
    found = gaussian.predict(
        gaussian.Scales(0.2, 0.3, 0.5), rewards, known=(far, same), cross=(far[[0, 3]], same[[0, 3]])
    )
    weights = np.array([3 / 3.5, 1 / 1.5])
    means = np.array([2.0, -2.0])
    centre = weights @ means / weights.sum()
    np.testing.assert_allclose(found.mean, centre + weights * (means - centre), rtol=1e-9)


def test_the_scales_are_those_of_greatest_likelihood():
    rng = np.random.default_rng(5)
    points = rng.normal(size=(40, 1))
    distances, same = (points - points.T) ** 2, np.eye(40, dtype=bool)
    truth = gaussian.Scales(0.8, 0.03, 0.3)
    covariance = gaussian.kernel(distances, same, truth) + truth.noise * np.eye(40)
    rewards = 5 + 2 * np.linalg.cholesky(covariance) @ rng.normal(size=40)

    def likelihood(scales):
        matrix = gaussian.kernel(distances, same, scales) + scales.noise * np.eye(40)
        inverse = np.linalg.inv(matrix)
        mean = inverse.sum(axis=0) @ rewards / inverse.sum()
        amplitude = (rewards - mean) @ inverse @ (rewards - mean) / 40
        return stats.multivariate_normal(np.full(40, mean), amplitude * matrix).logpdf(rewards)

    grid = [
        gaussian.Scales(*values)
        for values in np.stack(
            np.meshgrid(gaussian.LENGTHS, gaussian.OWN_SHARES, gaussian.NOISES, indexing="ij"), -1
        ).reshape(-1, 3)
    ]
    assert gaussian.find_scales(distances, same, rewards) == max(grid, key=likelihood)
    assert gaussian.find_scales(distances, same, np.ones(40)) in grid  # nothing to learn, no error


def test_expected_improvement_is_the_integral():
    gain, deviation = np.array([0.3, -0.5]), np.array([0.4, 0.2])
    for mean, spread, value in zip(gain, deviation, predictor.expected_improvement(gain, deviation), strict=True):
        density = stats.norm(mean, spread).pdf
        assert value == pytest.approx(integrate.quad(lambda x, p=density: x * p(x), 0, 5)[0], abs=1e-7)


# --- proposals ----------------------------------------------------------------------------------------------------


def test_a_group_is_kept_apart():
    """Three cells of equal promise, two of them nearly the same: the second choice is the other one."""
    correlation = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    posterior = gaussian.Posterior(np.array([0.0, 0.0, -0.01]), np.ones(3), 0.01, 1.0, np.zeros((1, 3)))
    belief = predictor.Belief(np.zeros((3, 1, 5)), np.zeros(3, bool), posterior, lambda index: correlation[:, index])
    assert predictor.choose(belief, 2) == [0, 2]
    assert sorted(predictor.choose(belief, 9)) == [0, 1, 2]


def test_proposals_are_valid_keep_the_mask_and_are_better_than_chance():
    op_mask = np.array([name not in ("none", "conv_3x3") for name in DEEP.operations])
    config = make_config(predictor_draws=8, predictor_pool=60)
    model = predictor.Predictor(DEEP, config)
    sep = DEEP.operations.index("sep_conv_3x3")
    rows = genotype_lib.random(DEEP, np.random.default_rng(0), 30)  # what an earlier mask allowed
    rewards = (rows[..., 2:4] == sep).mean(axis=(1, 2))
    state, _ = model.learn(model.init(jax.random.key(0)), samples_of(rows), rewards, np.ones(30, bool))
    drawn = model.sample(state, jax.random.key(1), op_mask, 12)
    for row in drawn.genotypes:
        genotype_lib.validate(DEEP, row)
    assert op_mask[drawn.genotypes[..., 2:4]].all()
    assert len({canonical.of(DEEP, row) for row in drawn.genotypes}) == 12
    assert (drawn.genotypes[..., 2:4] == sep).mean() > 2 / 11  # uniform: one of eleven
    assert np.isnan(drawn.log_prob).all()
    again = model.sample(state, jax.random.key(1), op_mask, 12)
    np.testing.assert_array_equal(drawn.genotypes, again.genotypes)
    other = model.sample(state, jax.random.key(2), op_mask, 12)
    assert (drawn.genotypes != other.genotypes).any()
    best = model.probable(state, jax.random.key(1), op_mask, 5)
    assert op_mask[best[..., 2:4]].all() and len({row.tobytes() for row in best}) == 5
    mean = predictor.predict(model.encoder, None, state.rows(), best).mean
    assert (np.diff(mean) <= 0).all() and mean[0] > rewards.mean()


def test_the_first_draws_are_uniform():
    model = predictor.Predictor(SPACE, make_config(predictor_draws=8))
    op_mask = np.array([True, False, True, True])
    drawn = model.sample(model.init(jax.random.key(0)), jax.random.key(1), op_mask, 4000)
    assert not (drawn.genotypes[..., 2:4] == SKIP).any()
    np.testing.assert_allclose(drawn.log_prob, -np.log(3 * 3 * 3 * 3 * 2), rtol=1e-6)
    np.testing.assert_allclose(np.bincount(drawn.genotypes[:, 0, 0]) / 4000, 1 / 3, atol=0.04)
    np.testing.assert_allclose(np.bincount(drawn.genotypes[:, 0, 2])[[0, 2, 3]] / 4000, 1 / 3, atol=0.04)


def test_children_differ_in_one_token():
    parents = genotype_lib.random(DEEP, np.random.default_rng(0), 400)
    op_mask = np.arange(len(DEEP.operations)) != NONE
    children = predictor.mutate(DEEP, parents, np.random.default_rng(1), op_mask)
    differing = children != parents
    assert (differing.sum(axis=(1, 2)) == 1).all() and differing.any(axis=0).all()  # every token has its turn
    for child in children:
        genotype_lib.validate(DEEP, child)
    assert not (children[..., 2:4] == NONE)[differing[..., 2:4]].any()


def test_what_is_not_valid_is_left_out_and_the_oldest_is_forgotten():
    model = predictor.Predictor(SPACE, make_config(predictor_memory=4, predictor_draws=3))
    rows = genotype_lib.random(SPACE, np.random.default_rng(0), 7)
    rewards = np.array([0.1, 0.2, np.nan, 0.4, 0.5, 0.6, 0.7], np.float32)
    valid = np.array([True, True, True, True, True, False, True])
    start = model.init(jax.random.key(0))
    state, metrics = model.learn(start, samples_of(rows[:2]), rewards[:2], valid[:2])
    assert metrics == {"num_updates": 2.0} and int(state.num_added) == 2
    state, metrics = model.learn(state, samples_of(rows[2:]), rewards[2:], valid[2:])
    assert metrics["num_updates"] == 3 and metrics["predictor_noise"] in gaussian.NOISES
    genotypes, held = state.rows()
    np.testing.assert_allclose(held, [0.2, 0.4, 0.5, 0.7], rtol=1e-6)
    np.testing.assert_array_equal(genotypes, rows[[1, 3, 4, 6]])
    assert (start.reward == 0).all() and int(start.num_added) == 0  # the state that went in is as it was


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_finds_the_best_cell_sooner_than_random_draws(seed):
    made = made_up_table.make(SPACE, seed, noise=0.0)
    settings = strategies_replay.Settings(budget=24, num_runs=8, per_step=3, training_seeds=(0,))
    found = {}
    for name in ("predictor", "random"):
        strategy = strategies.make(name, SPACE, make_config(predictor_draws=6, predictor_pool=60))
        runs = strategies_replay.replay(made, strategy, settings)
        found[name] = strategies_statistics.summarize_table(made, runs, settings)
    regret = {name: np.asarray(found[name]["curve"]["mean"]) for name in found}
    np.testing.assert_array_equal(regret["predictor"][:3] >= 0, True)
    assert regret["predictor"][-1] < 0.5 * regret["random"][-1]
    assert found["predictor"]["seen_top"]["value"] > found["random"]["seen_top"]["value"]


# --- the choice at the end ----------------------------------------------------------------------------------------


def test_the_choice_by_the_posterior_is_not_fooled_by_one_lucky_reward():
    """Cells with SEP earn 1, others 0; noise gave one other cell 1.2 once and next to 0 twice."""
    cells = canonical.enumerate_cells(SPACE)[0]
    is_good = (cells[:, 0, 2:4] == SEP).any(axis=1)
    lucky = int(np.flatnonzero(~is_good)[5])
    rows = np.concatenate([np.arange(0, len(cells), 3), [lucky] * 3])
    rewards = np.concatenate([is_good[::3].astype(np.float64), [1.2, 0.0, 0.01]])
    smoothed = predictor.smooth(encoding.Encoder(SPACE), cells[rows], rewards)
    assert np.argmax(rewards) == len(rows) - 3
    assert is_good[rows[np.argmax(smoothed)]] and smoothed[-3] < 0.6
    np.testing.assert_allclose(smoothed[-3:], smoothed[-1])
    log = [
        {"reward": value, "step": step, "index": 0, "hash": str(row), "genotype": cells[row].tolist()}
        for step, (row, value) in enumerate(zip(rows.tolist(), rewards.tolist(), strict=True))
    ]
    empty = np.zeros((0, 1, 5), np.int32)
    first = {rank: derive.candidates(SPACE, log, empty, num_rewarded=1, rank=rank) for rank in ("reward", "posterior")}
    np.testing.assert_array_equal(first["reward"][0], cells[lucky])
    np.testing.assert_array_equal(first["posterior"][0], cells[rows[np.argmax(smoothed)]])


def test_an_answer_from_a_log_is_no_second_observation():
    """A reward that a search repeats for an equal cell changes nothing; another reward of it does."""
    model = predictor.Predictor(SPACE, make_config())
    rows = genotype_lib.random(SPACE, np.random.default_rng(3), 12)
    rewards = np.random.default_rng(4).normal(size=12)
    swapped = np.array([[0, 1, CONV, SEP, 0]], np.int32), np.array([[1, 0, SEP, CONV, 0]], np.int32)  # `sum`
    rows[0] = swapped[0]
    answers = np.concatenate([rows, [swapped[1]], rows[3:7], rows[3:7]])
    repeated = np.concatenate([rewards, rewards[:1], rewards[3:7], rewards[3:7]])
    pool = canonical.enumerate_cells(SPACE)[0]
    once, many = (predictor.predict(model.encoder, None, pair, pool) for pair in ((rows, rewards), (answers, repeated)))
    np.testing.assert_array_equal(once.mean, many.mean)
    np.testing.assert_array_equal(once.variance, many.variance)
    repeated[-1] += 0.5
    trained_again = predictor.predict(model.encoder, None, (answers, repeated), pool)
    assert np.abs(trained_again.mean - once.mean).max() > 1e-3


def test_derivation_compares_stopped_candidates_as_if_they_were_trained_to_the_end():
    cells = canonical.enumerate_cells(SPACE)[0][:8]
    log = [
        {"reward": 0.1 * row, "step": row, "index": 0, "hash": str(row), "genotype": cell.tolist()}
        for row, cell in enumerate(cells)
    ]
    log[2] |= {"status": "stopped", "expected": 5.0}
    empty = np.zeros((0, 1, 5), np.int32)
    best = {rank: derive.candidates(SPACE, log, empty, num_rewarded=1, rank=rank)[0] for rank in derive.RANKS}
    np.testing.assert_array_equal(best["reward"], cells[7])
    np.testing.assert_array_equal(best["posterior"], cells[2])


def test_repeats_go_to_the_most_promising_cells_and_are_paid_from_the_budget():
    made = made_up_table.make(SPACE, 1, noise=0.5)
    settings = strategies_replay.Settings(budget=30, num_runs=6, per_step=3, training_seeds=(0, 1))
    runs = strategies_replay.replay(made, strategies.make("random", SPACE, make_config()), settings)
    found = strategies_statistics.ends(made, runs, settings)
    for choice, (chosen, evaluated) in found.items():
        assert evaluated.shape == (6, 30) and (chosen[:, None] == evaluated).any(axis=1).all(), choice
    best = np.take_along_axis(runs.rows, runs.rewards.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(found["reward"][0], best)
    np.testing.assert_array_equal(found["posterior"][1], runs.rows)
    repeated = found["repeats"][1]
    np.testing.assert_array_equal(repeated[:, :24], runs.rows[:, :24])
    quality = made.quality()
    for row in repeated:
        assert set(row[24:]) <= set(row[:24])
        assert quality[row[24:]].mean() > quality[row[:24]].mean()
