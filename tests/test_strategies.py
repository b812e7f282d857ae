"""The strategies: what they share, uniform draws, the most probable genotypes, restarts, the bandit."""

import time

import bandit
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.space import genotype

REAL = genotype.Space(inputs=tuple(config_lib.defaults().space.inputs), num_layers=4)
TINY = genotype.Space(
    inputs=("prev_state", "decoder"),
    num_layers=1,
    operations=("skip", "conv_1x1", "none"),
    aggregations=("sum",),
)


def make_config(**changes):
    config = config_lib.defaults().controller
    config.update({"buffer": 6, "hidden": 8, "learning_rate": 0.01, "minibatch": 3, **changes})
    return config


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pppo", {}, "search.strategy: unknown name 'pppo', did you mean 'ppo'"),
        ("ppo", {"masked_operations": ("skipp",)}, "unknown name 'skipp', did you mean 'skip'"),
        ("random", {"masked_operations": ("skip", "conv_1x1", "none")}, "masks every operation"),
    ],
)
def test_wrong_names_are_told_in_one_line(name, changes, message):
    with pytest.raises(errors.UserError, match=message) as error:
        strategies.make(name, TINY, make_config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(strategies.TABLE))
def test_every_strategy_keeps_the_contract(name):
    strategy = strategies.make(name, REAL, make_config(masked_operations=("none", "conv_3x3")))
    state = strategy.init(jax.random.key(0))
    structure = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for step in range(4):
        samples = strategy.sample(state, jax.random.key(step), 4)
        again = strategy.sample(state, jax.random.key(step), 4)
        np.testing.assert_array_equal(samples.genotypes, again.genotypes)
        rows = np.asarray(samples.genotypes)
        for row in rows:
            genotype.validate(REAL, row)
        assert not np.isin(rows[..., 2:4], [0, 3]).any()
        rewards = np.asarray([0.1, 0.2, np.nan, 0.4], np.float32)
        state, metrics = strategy.update(state, samples, rewards, ~np.isnan(rewards), jax.random.key(step))
        assert all(isinstance(value, float) for value in metrics.values())
        expected = {"ppo": step % 2, "random": 0, "reinforce": 1, "evolution": 3, "gumbel": 0, "predictor": 3}
        assert metrics["num_updates"] == expected[name]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == structure
    best = strategy.probable(state, jax.random.key(9), 5)
    assert best.shape == (5, 4, 5) and best.dtype == np.int32
    assert len({row.tobytes() for row in best}) == 5
    for row in best:
        genotype.validate(REAL, row)
    assert not np.isin(best[..., 2:4], [0, 3]).any()


def test_random_is_uniform_and_says_its_probability():
    strategy = strategies.make("random", TINY, make_config(masked_operations=("none",)))
    samples = strategy.sample(strategy.init(jax.random.key(0)), jax.random.key(1), 8000)
    np.testing.assert_allclose(samples.log_prob, -np.log(16), rtol=1e-6)
    np.testing.assert_allclose(samples.entropy, np.log(16), rtol=1e-6)
    rows = np.asarray(samples.genotypes).reshape(-1, 5)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == 16
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500))  # five standard deviations


def test_probable_is_the_top_of_an_enumeration():
    config = make_config(init_scale=1.5)
    strategy = strategies.make("ppo", TINY, config)
    state = strategy.init(jax.random.key(3))
    rows = np.stack(np.meshgrid(*[range(limit) for limit in TINY.limits()[0]], indexing="ij"), -1).reshape(-1, 1, 5)
    policy = policy_lib.make(TINY, hidden=8, lstm_layers=2, init_scale=1.5)
    log_prob = jax.jit(policy.score)(state.params, rows.astype(np.int32), np.ones(3, bool))[0]
    order = np.argsort(-np.asarray(log_prob))
    np.testing.assert_array_equal(strategy.probable(state, jax.random.key(4), 5), rows[order[:5]])
    everything = strategy.probable(state, jax.random.key(4), 100)  # the space has 36
    np.testing.assert_array_equal(everything, rows[order])


@pytest.mark.parametrize("name", ["ppo", "reinforce", "evolution", "predictor"])
def test_a_restored_state_goes_on_bit_for_bit(name, tmp_path):
    def play(strategy, state, steps):
        for step in steps:
            samples = strategy.sample(state, jax.random.key(step), 4)
            rewards = np.asarray(samples.genotypes, np.float32).mean(axis=(1, 2))
            state, _ = strategy.update(state, samples, rewards, np.ones(4, bool), jax.random.key(100 + step))
        return state

    strategy = strategies.make(name, TINY, make_config(population=5, tournament=2))
    undisturbed = play(strategy, strategy.init(jax.random.key(0)), range(7))
    stopped = play(strategy, strategy.init(jax.random.key(0)), range(4))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", stopped)
        checkpointer.wait_until_finished()
        template = jax.eval_shape(strategy.init, jax.random.key(0))
        restored = checkpointer.restore(tmp_path / "state", template)
    continued = play(strategy, restored, range(4, 7))
    jax.tree.map(np.testing.assert_array_equal, continued, undisturbed)
    count = continued.num_added if name in ("evolution", "predictor") else continued.num_updates
    assert int(count) == {"ppo": 4, "reinforce": 7, "evolution": 28, "predictor": 28}[name]


def test_ppo_finds_the_hidden_genotype_and_random_search_does_not():
    """The bandit on the real space: both see the same number of samples; the time includes compilation."""
    config = bandit.controller_config()
    hidden = genotype.random(REAL, np.random.default_rng(100), 1)[0]
    start = time.perf_counter()
    learned = bandit.run(
        strategies.make("ppo", REAL, config), REAL, hidden, num_steps=28, num_per_step=100, rng=jax.random.key(0)
    )
    assert time.perf_counter() - start < 60
    drawn = bandit.run(
        strategies.make("random", REAL, config), REAL, hidden, num_steps=28, num_per_step=100, rng=jax.random.key(0)
    )
    assert learned.shape == drawn.shape == (28, 100)
    assert learned[-7:].mean() >= 0.9
    assert learned.max() == 1.0
    assert drawn[-7:].mean() < 0.35
    expected = (1 / REAL.limits()).mean()  # of a uniform draw
    assert drawn.mean() == pytest.approx(expected, abs=0.01)
