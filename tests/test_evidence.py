"""Strategies held against a table, and what is made of many runs."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import made_up_table
import numpy as np
import pytest
from scipy import stats

from dvsnas_jax import cli
from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import compare_strategies, strategies_replay, strategies_report, strategies_search, table
from dvsnas_jax.studies import final_choice as choices_lib
from dvsnas_jax.studies import strategies_statistics as statistics_lib

SPACE = genotype_lib.Space(
    inputs=("prev_state", "decoder", "stage1"),
    num_layers=1,
    operations=("none", "skip", "conv_1x1"),
    aggregations=("sum", "warp"),
)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def made_up(noise: float = 0.1) -> table.Table:
    return made_up_table.make(SPACE, 1, num_seeds=2, noise=noise)


def settings(**changes) -> strategies_replay.Settings:
    values = {"budget": 12, "num_runs": 5, "per_step": 5, "training_seeds": (0, 1)}
    return strategies_replay.Settings(**{**values, **changes})


def make(name: str) -> strategies.Strategy:
    return strategies.make(name, SPACE, config_lib.defaults().controller)


@pytest.mark.parametrize(("share", "expected"), [(0.05, 45), (0.0001, 1), (1, 1), (30.0, 30)])
def test_budget(share, expected):
    assert compare_strategies.budget_of(share, 896) == expected


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_bad_budget(share):
    with pytest.raises(errors.UserError, match="--budget: must be"):
        compare_strategies.budget_of(share, 896)


def test_incumbents_are_the_best_seen_so_far():
    rewards = np.array([[0.2, 0.1, np.nan, 0.2, 0.3], [np.nan, np.nan, -1.0, -2.0, np.nan]])
    assert statistics_lib.incumbents(rewards).tolist() == [[0, 0, 0, 0, 4], [-1, -1, 2, 2, 2]]


def test_top_rows():
    quality = np.array([0.1, 0.9, -np.inf, 0.8, 0.7])
    assert statistics_lib.top_rows(quality, 0.4).tolist() == [False, True, False, True, False]
    assert statistics_lib.top_rows(quality, 0.01).sum() == 1  # at least one


def test_interval():
    constant = statistics_lib.interval(np.full(9, 0.25))
    assert constant == {"value": 0.25, "low": 0.25, "high": 0.25}
    data = np.random.default_rng(0).normal(3, 2, 400)
    found = statistics_lib.interval(data)
    assert found["value"] == pytest.approx(data.mean())
    # The percentile interval of a mean is close to 1.96 standard errors around it.
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * data.std() / 20, rel=0.15)
    assert statistics_lib.interval([1.0, 2.0, 9.0], np.median)["value"] == 2


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_replay_answers_from_the_table(is_cached):
    made = made_up()
    chosen = settings(is_cached=is_cached, num_runs=8, budget=30)
    runs = strategies_replay.replay(made, make("random"), chosen)
    assert runs.rows.shape == (8, 30) and runs.rows.min() >= 0
    np.testing.assert_array_equal(np.isin(runs.rewards, made.rewards), True)
    assert ((runs.rewards == made.rewards[runs.rows, 0]) | (runs.rewards == made.rewards[runs.rows, 1])).all()
    assert 0.3 < (runs.rewards == made.rewards[runs.rows, 0]).mean() < 0.7  # the training seed is drawn anew
    num_distinct = [len(set(row)) for row in runs.rows.tolist()]
    if is_cached:
        assert num_distinct == [30] * 8 and (runs.num_drawn > 30).all()
    else:
        assert max(num_distinct) < 30 and (runs.num_drawn == 30).all()
    again = strategies_replay.replay(made, make("random"), chosen)
    np.testing.assert_array_equal(runs.rows, again.rows)
    np.testing.assert_array_equal(runs.rewards, again.rewards)
    assert len({row.tobytes() for row in runs.rows}) == 8  # the runs differ


def test_one_training_seed_is_one_column():
    made = made_up()
    runs = strategies_replay.replay(made, make("random"), settings(training_seeds=(1,)))
    np.testing.assert_array_equal(runs.rewards, made.rewards[runs.rows, 1])


def test_a_strategy_that_only_repeats_itself_ends_early():
    made, genotype = made_up(), np.zeros((1, 5), np.int32)
    base = make("random")

    def sample(state, rng, num):
        drawn = base.sample(state, rng, num)
        return drawn.replace(genotypes=np.repeat(genotype[None], num, axis=0))

    runs = strategies_replay.replay(made, base._replace(sample=sample), settings(is_cached=True, num_runs=1))
    row = made.rows(genotype[None])[0]
    assert runs.rows[0].tolist() == [row] + [-1] * 11 and np.isnan(runs.rewards[0, 1:]).all()
    summary = statistics_lib.summarize_table(made, runs, settings(num_runs=1))
    quality = made.quality()
    for choice in choices_lib.CHOICES:
        regret = summary["choices"][choice]["regret_mean"]["value"]
        assert regret == pytest.approx(quality.max() - quality[row])


def test_summary_of_known_runs():
    """Four cells of quality 0.1, 0.2, 0.3, 0.9; the second run is fooled by noise."""
    made = made_up()
    rewards = np.full(made.rewards.shape, 0.0)
    rewards[:4] = np.array([[0.1, 0.1], [0.0, 0.4], [0.3, 0.3], [0.9, 0.9]])
    made = dataclasses.replace(made, parts={**made.parts, "reward": rewards})
    seen = np.array([[0.1, 0.3, 0.9, 0.1], [0.4, 0.3, 0.3, 0.1]])
    runs = strategies_replay.Runs(np.array([[0, 2, 3, 0], [1, 2, 2, 0]]), seen, np.array([4, 4]), 1.0)
    found = statistics_lib.summarize_table(made, runs, settings(budget=4, num_runs=2))
    assert found["curve"]["mean"] == pytest.approx([0.75, 0.65, 0.35, 0.35])
    assert found["curve"]["median"] == pytest.approx([0.75, 0.65, 0.35, 0.35])
    by_reward = found["choices"]["reward"]
    assert by_reward["regret_median"]["value"] == pytest.approx(0.35)
    assert by_reward["chosen_top"]["value"] == found["seen_top"]["value"] == 0.5
    assert found["last_quarter"]["value"] == pytest.approx(0.1)
    assert found["distinct"]["value"] == pytest.approx(0.75)
    assert found["seconds_per_run"] == 0.5


def test_verdict():
    def choices(by_reward, by_posterior):
        pairs = zip(choices_lib.CHOICES, (by_reward, by_posterior), strict=False)
        made = {name: {"regret_median": {"value": m}, "regret_mean": {"value": n}} for name, (m, n) in pairs}
        return {"choices": made}

    results = {
        "random": choices((0.4, 0.5), (0.2, 0.6)),
        "ppo": choices((0.1, 0.3), (0.3, 0.3)),
        "other": choices((0.1, 0.2), (0.5, 0.2)),
    }
    assert statistics_lib.verdict(results) == {
        "best": ["other", "reward"],
        "order": [
            ["other", "reward"], ["ppo", "reward"], ["random", "posterior"], ["ppo", "posterior"],
            ["random", "reward"], ["other", "posterior"],
        ],
        "regret_by_random": {
            "ppo": {"reward": pytest.approx(0.25), "posterior": pytest.approx(1.5)},
            "other": {"reward": pytest.approx(0.25), "posterior": pytest.approx(2.5)},
        },
        "regret_by_plain_random": {
            "random": {"posterior": pytest.approx(0.5)},
            "ppo": {"reward": pytest.approx(0.25), "posterior": pytest.approx(0.75)},
            "other": {"reward": pytest.approx(0.25), "posterior": pytest.approx(1.25)},
        },
    }  # fmt: skip


def test_the_packaged_table_through_the_command(tmp_path, capsys):
    words = ["compare-strategies", "--table", "--seeds=4", f"--output={tmp_path}"]
    words += ["--strategies=ppo,random"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "strategies.json").read_text())
    assert content["budget"] == 69 and content["num_cells"] == 1371
    assert list(content["results"]) == ["ppo", "random"]
    for name in content["results"]:
        assert len(content["results"][name]["curve"]["mean"]) == 69 and f"| {name} |" in printed
    assert (tmp_path / "strategies.md").read_text() == printed[: printed.index("written:")]
    assert (tmp_path / "strategies.png").read_bytes()[:4] == b"\x89PNG"
    # Far from the 200 runs of the README, yet far from chance.
    assert content["results"]["ppo"]["last_quarter"]["low"] > content["results"]["random"]["last_quarter"]["high"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "--strategies=ppo,rndom"], "unknown name 'rndom', did you mean 'random'"),
        (["--table", "--strategies=ppo,ppo"], "--strategies: needs distinct names"),
        (["--table", "--seeds=0"], "--seeds: must be at least 1"),
        (["--table", "--budget=2000"], "--budget: must be at most the number of cells (1371), got 2000"),
        (["--table", "--per-step=0"], "--per-step: must be at least 1"),
        (["--table", "--training-seeds=0,6"], "--training-seeds: must be numbers from 0 to 5"),
        (["--table", "--training-seeds=2,5"], "every cell was trained with seeds 0 to 1 only"),
        (["--table=none.json"], "--table: none.json does not exist"),
        (["--table", "--make-table"], "leave out one of them"),
        ([], "--workdir: is needed, or --table"),
        (["--config=configs/table.py"], "--workdir: is needed"),
    ],
)
def test_wrong_words_are_told_in_one_line(words, message, capsys):
    assert cli.main(["compare-strategies", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_tuned_values_give_way_to_a_config(tmp_path):
    made = made_up()
    path = tmp_path / "config.py"
    path.write_text("from dvsnas_jax.core import config as c\n\ndef get_config():\n  return c.defaults()\n")
    tuned = compare_strategies.on_table(made, ["ppo"], compare_strategies.Options(budget=24, num_runs=3))
    plain = compare_strategies.on_table(made, ["ppo"], compare_strategies.Options(str(path), budget=24, num_runs=3))
    # With the defaults the first update comes after 100 rollouts: PPO then draws like a fresh policy.
    curves = [report.content["results"]["ppo"]["last_quarter"]["value"] for report in (tuned, plain)]
    assert curves[0] > curves[1]


# --- real searches ------------------------------------------------------------------------------------------------


def test_kendall_is_scipys():
    first, second = [0.1, 0.4, 0.2, None, 0.4], [1.0, 2.0, 3.0, 4.0, 2.5]
    expected = stats.kendalltau([0.1, 0.4, 0.2, 0.4], [1.0, 2.0, 3.0, 2.5]).statistic
    assert statistics_lib.kendall(first, second) == pytest.approx(expected)
    assert statistics_lib.kendall([1, 2, 3], [4, 5, 6]) == 1
    assert statistics_lib.kendall([1, 2, 3], [6, 5, 4]) == -1
    assert np.isnan(statistics_lib.kendall([1.0, None], [1.0, 2.0]))


def lines() -> list[dict]:
    """Two searches of two strategies, 8 candidates each."""
    found = []
    for seed in range(2):
        for name, offset in (("ppo", 0.2), ("random", 0.0)):
            rewards = [0.1, None, 0.3, 0.2, 0.2, 0.2, 0.4 + offset, 0.2 + offset + 0.1 * seed]
            probes = [0.1, 0.2, 0.3] if name == "ppo" else [0.3, 0.2, 0.1]
            key = {"strategy": name, "seed": seed}
            found.append({"what": "search", **key, "rewards": rewards, "probes": probes, "seconds": 16.0})
            found += [{"what": "retrain", **key, "rank": rank, "reward": 0.5 + offset} for rank in range(3)]
    return found + [{"what": "alone", "index": index, "reward": 0.2 * index} for index in range(3)]


def test_summary_of_searches(tmp_path):
    content = statistics_lib.summarize_searches(lines(), ["ppo", "random"], num_seeds=2)
    ppo, random = (content["results"][name] for name in ("ppo", "random"))
    assert ppo["last_quarter"]["mean"] == pytest.approx(0.525) and ppo["last_quarter"]["error"] == pytest.approx(0.025)
    assert random["last_quarter"]["mean"] == pytest.approx(0.325) and random["best"]["mean"] == pytest.approx(0.4)
    assert ppo["retrained"] == {"mean": pytest.approx(0.7), "error": pytest.approx(0), "count": 2}
    assert ppo["tau"]["mean"] == 1 and random["tau"]["mean"] == -1
    assert ppo["seconds_per_candidate"]["mean"] == 2
    difference = content["differences"]["ppo"]["last_quarter"]
    assert difference["mean"] == pytest.approx(0.2) and difference["error"] == pytest.approx(0.025 * 2**0.5)
    report = strategies_report.write_searches(content, tmp_path)
    assert "ppo less random: last quarter 20.00 ± 3.54, retrained 20.00 ± 0.00." in report.text
    assert "| ppo | 52.50 ± 2.50 | 60.00 ± 0.00 | 70.00 ± 0.00 | 1.00 ± 0.00 | 2.00 ± 0.00 |" in report.text
    assert [pathlib.Path(path).suffix for path in report.paths] == [".json", ".md", ".png"]


def test_probes_are_distinct_cells():
    probes = strategies_search.draw_probes(SPACE, 30, 0, np.array([False, True, True]))
    assert probes.shape == (30, 1, 5) and probes[:, :, 2:4].min() == 1
    assert len({canonical.of(SPACE, probe) for probe in probes}) == 30
    num_cells = len(canonical.enumerate_cells(SPACE)[0])
    assert len(strategies_search.draw_probes(SPACE, 100, 0, np.ones(3, bool))) == num_cells
    assert strategies_search.draw_probes(SPACE, 0, 0, np.ones(3, bool)).shape == (0, 1, 5)


@pytest.mark.slow
def test_real_searches_go_on_where_they_stopped(tmp_path):
    words = [sys.executable, "-m", "dvsnas_jax", "compare-strategies", "--config=configs/smoke.py"]
    words += [f"--workdir={tmp_path}", "--seeds=1", "--top=1", "--correlate=3"]
    words += ["--config.search.steps=2", "--config.train.steps=10"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "strategies.json").read_text())
    written = map(json.loads, (tmp_path / strategies_search.LOG).read_text().splitlines())
    retrained = [line for line in written if line["what"] == "retrain"]
    for name in ("ppo", "random"):
        result = content["results"][name]
        assert len(result["curves"][0]) == 4 and len(result["probes"][0]) == 3 and result["retrained"]["count"] == 1
        (line,) = [line for line in retrained if line["strategy"] == name]
        cell = (tmp_path / strategies_search.FOLDER / f"{name}_0" / "derived_0.json").read_text()
        space, genotype = genotype_lib.from_json(cell)
        assert genotype_lib.digest(space, genotype) == line["hash"] and line["rank"] == 0
    log = (tmp_path / strategies_search.LOG).read_text().splitlines(keepends=True)
    assert len(log) == 7
    (tmp_path / strategies_search.LOG).write_text("".join(log[:3]) + log[3][:9])
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "strategies.json").read_text())
    assert again["alone"] == content["alone"]
    for name in ("ppo", "random"):
        for key in ("curves", "probes", "retrained"):
            assert again["results"][name][key] == content["results"][name][key], key
