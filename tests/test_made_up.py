"""Made-up rewards, and strategies held against them."""

import json
import math
import pathlib

import numpy as np
import pytest
from scipy import stats

from dvsnas_jax import cli
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import compare_strategies, made_up_rewards, strategies_replay, strategies_statistics

SPACE = genotype_lib.Space(
    inputs=("prev_state", "decoder", "stage1"),
    num_layers=2,
    operations=("none", "skip", "conv_1x1", "conv_3x3"),
    aggregations=("sum", "warp"),
)


def draw(num: int, seed: int = 0) -> np.ndarray:
    return genotype_lib.random(SPACE, np.random.default_rng(seed), num)


@pytest.mark.parametrize("seed", range(5))
def test_a_world_does_not_depend_on_what_is_asked_first(seed):
    genotypes = draw(50)
    first, second = (made_up_rewards.World(SPACE, seed, noise=0.0) for _ in range(2))
    rows = first.rows(genotypes)
    forwards = first.quality()[rows]
    rows = second.rows(genotypes[::-1])
    np.testing.assert_array_equal(second.quality()[rows[::-1]], forwards)
    other = made_up_rewards.World(SPACE, seed + 1, noise=0.0)
    rows = other.rows(genotypes)
    assert np.abs(other.quality()[rows] - forwards).max() > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_random_cells_have_mean_0_and_variance_1(seed):
    world = made_up_rewards.World(SPACE, seed, noise=0.0)
    rows = world.rows(draw(2000, seed=7))
    values = world.quality()[rows]
    assert abs(values.mean()) < 0.2 and abs(values.std() - 1) < 0.2


def test_equal_cells_share_a_row():
    world = made_up_rewards.World(SPACE, 0, noise=0.0)
    one = np.array([[0, 1, 1, 2, 0], [3, 2, 1, 3, 0]], np.int32)
    swapped = np.array([[1, 0, 2, 1, 0], [3, 2, 1, 3, 0]], np.int32)
    rows = world.rows(np.stack([one, swapped, one]))
    assert rows.tolist() == [0, 0, 0] and len(world.quality()) == 1


def test_a_reward_is_the_quality_and_normal_noise():
    world = made_up_rewards.World(SPACE, 0, noise=0.5)
    (row,) = world.rows(draw(1))
    quality = world.quality()[row]
    assert world.draw(row, (0,), 0.5) == quality
    assert world.draw(row, (0,), stats.norm.cdf(1.0)) == pytest.approx(quality + 0.5)
    drawn = [world.draw(row, (0,), share) for share in np.random.default_rng(0).random(2000)]
    assert np.mean(drawn) == pytest.approx(quality, abs=0.05) and np.std(drawn) == pytest.approx(0.5, abs=0.03)
    assert math.isfinite(world.draw(row, (0,), 0.0))


@pytest.mark.parametrize("tau", [0.3, 0.66, 1.0])
def test_noise_makes_the_rank_correlation(tau):
    rng = np.random.default_rng(0)
    quality = rng.normal(size=4000)
    rewards = quality + made_up_rewards.noise_of(tau) * rng.normal(size=4000)
    assert stats.kendalltau(quality, rewards).statistic == pytest.approx(tau, abs=0.03)


class Known:
    """A world of five cells."""

    def quality(self) -> np.ndarray:
        return np.array([0.0, 1.0, 2.0, 3.0, -1.0])


def test_summary_of_known_runs():
    rewards = np.array([[0.5, 0.1, 0.9, 0.2, 0.3, 0.4, 0.0, np.nan]])
    run = strategies_replay.Runs(np.array([[0, 1, 2, 0, 3, 1, 4, -1]]), rewards, np.array([8]), 2.0)
    found = strategies_statistics.summarize_worlds([Known()], [run], num_top=2)
    assert found["last_quarter"]["value"] == -1 and found["best"]["value"] == 2
    assert found["top"]["value"] == 1  # cells 2 and 0, of the rewards 0.9 and 0.5
    assert found["distinct"]["value"] == pytest.approx(5 / 7) and found["seconds_per_run"] == 2
    assert found["curve"]["mean"] == [0, 0, 2, 2, 2, 2, 2, 2]


def test_strategies_on_made_up_rewards_through_the_command(tmp_path, capsys):
    words = ["compare-strategies", "--made-up", "--config=configs/smoke.py", "--strategies=evolution,random"]
    words += ["--seeds=8", "--budget=80", "--tau=0.9", "--cached", f"--output={tmp_path}"]
    words += ["--config.controller.population=10"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "8 made-up worlds, in each one run of 80 evaluations" in printed
    content = json.loads((tmp_path / "strategies.json").read_text())
    evolution, random = (content["results"][name] for name in ("evolution", "random"))
    assert len(evolution["curve"]["mean"]) == 80
    assert abs(random["last_quarter"]["value"]) < 0.3
    assert evolution["last_quarter"]["value"] > random["last_quarter"]["value"] + 0.4
    assert sorted(path.suffix for path in pathlib.Path(tmp_path).iterdir()) == [".json", ".md", ".png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget=0.05"], "--budget: must be a whole number of at least 1"),
        (["--budget=nan"], "--budget: must be a whole number of at least 1"),
        (["--per-step=0"], "--per-step: must be a whole number of at least 1"),
        (["--tau=0"], "--tau: must be above 0 and at most 1"),
        (["--strategies=ppo,ppo"], "--strategies: needs distinct names"),
        (["--strategies=gumbel"], "gumbel learns from gradients"),
        (["--table"], "--made-up: replays without a table"),
        (["--make-table"], "--made-up: replays without a table"),
    ],
)
def test_wrong_words_are_told_in_one_line(words, message, capsys):
    assert cli.main(["compare-strategies", "--made-up", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_budget_is_that_of_the_config():
    report = compare_strategies.on_made_up(["random"], compare_strategies.Options("configs/smoke.py", num_runs=1))
    config = report.content
    assert config["budget"] == 4 * 2 and config["per_step"] == 2


@pytest.mark.slow
def test_the_settings_of_short_searches_learn():
    options = compare_strategies.Options("configs/scratch.py", budget=150, num_runs=12, is_cached=True)
    report = compare_strategies.on_made_up(["ppo", "random"], options, tau=0.55)
    ppo, random = (report.content["results"][name] for name in ("ppo", "random"))
    assert ppo["last_quarter"]["low"] > 0.5 > random["last_quarter"]["high"]
    assert ppo["top"]["value"] > random["top"]["value"] + 0.2
