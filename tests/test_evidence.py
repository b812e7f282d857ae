"""Strategies held against a table, and what is made of many runs."""

import dataclasses
import itertools
import json
import math
import pathlib
import subprocess
import sys

import made_up_table
import numpy as np
import pytest
from scipy import stats

from dvsnas_jax import cli
from dvsnas_jax.controller import strategies
from dvsnas_jax.controller import strategy as strategy_lib
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
    return made_up_table.make(SPACE, 1, num_seeds=4, noise=noise)


def settings(**changes) -> strategies_replay.Settings:
    values = {"budget": 12, "num_runs": 5, "per_step": 5, "training_seeds": (0, 1, 2, 3)}
    return strategies_replay.Settings(**{**values, **changes})


def make(name: str) -> strategy_lib.Strategy:
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
    # The training seed is drawn anew, of those that do not say what a cell is worth.
    assert ((runs.rewards == made.rewards[runs.rows, 0]) | (runs.rewards == made.rewards[runs.rows, 1])).all()
    assert 0.3 < (runs.rewards == made.rewards[runs.rows, 0]).mean() < 0.7
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

    def sample(state, rng, op_mask, num):
        drawn = base.functions.sample(state, rng, op_mask, num)
        return dataclasses.replace(drawn, genotypes=np.repeat(genotype[None], num, axis=0))

    repeating = dataclasses.replace(base, functions=dataclasses.replace(base.functions, sample=sample))
    runs = strategies_replay.replay(made, repeating, settings(is_cached=True, num_runs=1))
    row = made.rows(genotype[None])[0]
    assert runs.rows[0].tolist() == [row] + [-1] * 11 and np.isnan(runs.rewards[0, 1:]).all()
    summary = statistics_lib.summarize_table(made, runs, settings(num_runs=1))
    quality = made.quality((2, 3))
    for choice in choices_lib.CHOICES:
        regret = summary["choices"][choice]["regret_mean"]["value"]
        assert regret == pytest.approx(quality.max() - quality[row])


def test_summary_of_known_runs():
    """Four cells that are worth 0.1, 0.2, 0.3, 0.9; the second run is fooled by noise."""
    made = made_up()
    rewards = np.full(made.rewards.shape, 0.0)
    rewards[:4, 2:] = np.array([[0.1, 0.1], [0.0, 0.4], [0.3, 0.3], [0.9, 0.9]])
    rewards[:4, :2] = 5.0  # what runs drew says nothing of what a cell is worth
    made = dataclasses.replace(made, parts={**made.parts, "reward": rewards})
    seen = np.array([[0.1, 0.3, 0.9, 0.1], [0.4, 0.3, 0.3, 0.1]])
    runs = strategies_replay.Runs(np.array([[0, 2, 3, 0], [1, 2, 2, 0]]), seen, np.array([4, 4]), 1.0)
    found = statistics_lib.summarize_table(made, runs, settings(budget=4, num_runs=2))
    assert found["curve"]["mean"] == pytest.approx([0.75, 0.65, 0.35, 0.35])
    assert found["curve"]["median"] == pytest.approx([0.75, 0.65, 0.35, 0.35])
    by_reward = found["choices"]["reward"]
    assert by_reward["regret_median"]["value"] == pytest.approx(0.35)
    assert by_reward["regrets"] == pytest.approx([0.0, 0.7])
    assert by_reward["chosen_top"]["value"] == found["seen_top"]["value"] == 0.5
    assert found["last_quarter"]["value"] == pytest.approx(0.1)
    assert found["distinct"]["value"] == pytest.approx(0.75)
    assert found["seconds_per_run"] == 0.5


def test_the_interval_of_a_ratio_is_of_both_sets_of_runs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(2, 0.3, 150), rng.normal(4, 0.6, 150)
    found = statistics_lib.ratio(first, second)
    assert found["value"] == pytest.approx(np.median(first) / np.median(second))
    # A median's standard error is 1.25 deviations by the root of the number; relative errors add as squares.
    expected = found["value"] * 1.25 / 150**0.5 * math.hypot(0.3 / 2, 0.6 / 4)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * expected, rel=0.25)
    only_above = statistics_lib.ratio(first, np.full(150, 4.0))
    assert only_above["high"] - only_above["low"] < found["high"] - found["low"]
    assert math.isinf(statistics_lib.ratio([1.0, 1.0, 1.0], [0.0, 1.0, 1.0])["high"])


def test_intervals_of_three_are_students():
    found = statistics_lib.mean_and_error([1.0, 2.0, 6.0])
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0]))
    assert (found["mean"] - found["half_width"], found["mean"] + found["half_width"]) == pytest.approx((low, high))
    assert np.isnan(statistics_lib.mean_and_error([1.0])["half_width"])
    other = statistics_lib.mean_and_error([0.0, 1.0, 0.5])
    difference = statistics_lib._difference(found, other)
    welch = stats.ttest_ind([1.0, 2.0, 6.0], [0.0, 1.0, 0.5], equal_var=False).confidence_interval(0.95)
    assert difference["mean"] - difference["half_width"] == pytest.approx(welch.low)


def test_the_best_cell_is_one_that_is_known_for_sure():
    """Of 200 cells 20 were trained six times; one other had luck in the training that says what it is worth."""
    num = np.array([6] * 20 + [2] * 180)
    quality, counts = np.linspace(0.2, 0.1, 200), np.where(num == 6, 3, 1)
    quality[150] = 0.9
    ranked = statistics_lib.surely_known(quality, counts)
    assert ranked.argmax() == 0 and np.isneginf(ranked[20:]).all()
    few = statistics_lib.surely_known(quality, np.where(np.arange(200) < 1, 3, 1))
    np.testing.assert_array_equal(few, quality)  # one cell alone holds no comparison


def test_what_is_not_disjoint_is_counted_and_told():
    made = made_up_table.make(SPACE, 1, num_seeds=6, noise=0.1)
    order = np.argsort(-made.quality(), kind="stable")
    made.num_trainings[:], made.num_trainings[order[:10]], made.num_trainings[order[-1]] = 2, 6, 1
    found = statistics_lib.disjointness(made, range(6))
    num_better = len(order) // 2
    assert found["num_same"] == 1 and found["num_known"] == 10 and found["num_better"] == num_better
    assert num_better - 10 <= found["num_few"] <= num_better
    report = compare_strategies.on_table(made, ["random"], compare_strategies.Options(budget=6, num_runs=2))
    assert report.content["disjoint"] == found and "Not so of 1 cells: they have one training" in report.text
    assert f"Of {found['num_few']} of the {num_better} cells of the better half" in report.text
    whole = made_up_table.make(SPACE, 1, num_seeds=4, noise=0.1)
    report = compare_strategies.on_table(whole, ["random"], compare_strategies.Options(budget=6, num_runs=2))
    assert report.content["disjoint"]["num_few"] == report.content["disjoint"]["num_same"] == 0
    assert "Not so" not in report.text and "better half" not in report.text
    assert report.content["results"]["random"]["distinct"]["value"] == 1  # random search does not train a cell twice


def all_of(value: float):
    """A ratio of runs that are all alike."""
    return dict.fromkeys(("value", "low", "high"), pytest.approx(value))


def test_verdict():
    def choices(by_reward, by_posterior):
        pairs = zip(choices_lib.CHOICES, (by_reward, by_posterior), strict=False)
        made = {
            name: {"regret_median": {"value": m}, "regret_mean": {"value": n}, "regrets": [m] * 3}
            for name, (m, n) in pairs
        }
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
            "ppo": {"reward": all_of(0.25), "posterior": all_of(1.5)},
            "other": {"reward": all_of(0.25), "posterior": all_of(2.5)},
        },
        "regret_by_plain_random": {
            "random": {"posterior": all_of(0.5)},
            "ppo": {"reward": all_of(0.25), "posterior": all_of(0.75)},
            "other": {"reward": all_of(0.25), "posterior": all_of(1.25)},
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
    """Two searches of two strategies, 8 candidates each; the last one was stopped half way."""
    found = []
    for seed in range(2):
        for name, offset in (("ppo", 0.2), ("random", 0.0)):
            rewards = [0.1, None, 0.3, 0.2, 0.2, 0.2, 0.4 + offset, 0.2 + offset + 0.1 * seed]
            probes = [0.1, 0.2, 0.3] if name == "ppo" else [0.3, 0.2, 0.1]
            key = {"strategy": name, "seed": seed}
            more = {"first_rewards": [*rewards[:-2], 0.3 + offset, 0.2 + offset + 0.1 * seed], "optimizer_steps": 60}
            more["is_whole"] = [True] * 7 + [False]
            found.append({"what": "search", **key, "rewards": rewards, "probes": probes, "seconds": 16.0, **more})
            for rank, training in itertools.product(range(3), range(2)):
                score = {"reward": 0.45 + 0.1 * training + offset, "unseen_reward": 0.4 + 0.5 * offset}
                found.append({"what": "retrain", **key, "rank": rank, "training": training, **score})
    alone = [(index, training) for index in range(3) for training in range(2)]
    return found + [{"what": "alone", "index": index, "reward": 0.2 * index + 0.3 * t} for index, t in alone]


def test_summary_of_searches(tmp_path):
    content = statistics_lib.summarize_searches(lines(), ["ppo", "random"], num_seeds=2)
    ppo, random = (content["results"][name] for name in ("ppo", "random"))
    # All after the same part of their training; of those that were trained to the end, their last reward.
    assert ppo["last_quarter"]["mean"] == pytest.approx(0.475) and ppo["last_quarter"]["error"] == pytest.approx(0.025)
    assert ppo["finished"]["mean"] == pytest.approx(0.6) and random["finished"]["mean"] == pytest.approx(0.4)
    assert random["last_quarter"]["mean"] == pytest.approx(0.275) and random["best"]["mean"] == pytest.approx(0.4)
    assert ppo["retrained"]["mean"] == pytest.approx(0.7) and ppo["retrained"]["count"] == 2
    assert ppo["unseen"]["mean"] == pytest.approx(0.5) and random["unseen"]["mean"] == pytest.approx(0.4)
    assert content["alone"] == pytest.approx([0.15, 0.35, 0.55]) and ppo["optimizer_steps"]["mean"] == 60
    assert ppo["tau"]["mean"] == 1 and random["tau"]["mean"] == -1
    assert ppo["seconds_per_candidate"]["mean"] == 2
    difference = content["differences"]["ppo"]["last_quarter"]
    assert difference["mean"] == pytest.approx(0.2) and difference["error"] == pytest.approx(0.025 * 2**0.5)
    report = strategies_report.write_searches(content, tmp_path)
    # Welch's degrees of freedom of two equal errors of two searches each are 2.
    assert "ppo less random: last quarter 20.00 ± 3.54 [4.79, 35.21], trained to the end 20.00 ± 0.00" in report.text
    scores = "47.50 ± 2.50 | 60.00 ± 0.00 | 60.00 ± 0.00 | 70.00 ± 0.00 | 50.00 ± 0.00 | 1.00 ± 0.00 | 2.00 ± 0.00"
    assert f"| ppo | {scores} | 60 |" in report.text
    assert [pathlib.Path(path).suffix for path in report.paths] == [".json", ".md", ".png"]


def test_probes_are_distinct_cells():
    probes = strategies_search.draw_probes(SPACE, 30, 0, np.array([False, True, True]))
    assert probes.shape == (30, 1, 5) and probes[:, :, 2:4].min() == 1
    assert len({canonical.of(SPACE, probe) for probe in probes}) == 30
    num_cells = len(canonical.enumerate_cells(SPACE)[0])
    assert len(strategies_search.draw_probes(SPACE, 100, 0, np.ones(3, bool))) == num_cells
    assert strategies_search.draw_probes(SPACE, 0, 0, np.ones(3, bool)).shape == (0, 1, 5)


def test_lines_of_earlier_versions_count_where_they_mean_the_same():
    """Searches with shared weights do; cells that were scored by the statistics of their batches do not."""
    config = config_lib.defaults()
    assert strategies_search._marks(config, "search") == {}
    assert strategies_search._marks(config, "retrain") == {"unseen_split": "val"}
    config.search.update({"mode": "scratch", "steps": 5, "genotypes_per_step": 3, "scratch_steps": 40})
    assert strategies_search._marks(config, "search") == {"budget": 600}
    older = [{name: line[name] for name in ("what", "strategy", "seed", "rewards", "probes", "seconds")}
             for line in lines() if line["what"] == "search"]  # fmt: skip
    content = statistics_lib.summarize_searches(older, ["ppo", "random"], num_seeds=2)
    assert content["results"]["ppo"]["finished"] == content["results"]["ppo"]["last_quarter"]


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
        line, again = [line for line in retrained if line["strategy"] == name]
        assert (line["training"], again["training"]) == (0, 1) and line["reward"] != again["reward"]
        assert 0 < line["unseen_reward"] < 1 and line["unseen_reward"] != line["reward"]
        cell = (tmp_path / strategies_search.FOLDER / f"{name}_0" / "derived_0.json").read_text()
        space, genotype = genotype_lib.from_dict(json.loads(cell))
        assert genotype_lib.digest(space, genotype) == line["hash"] and line["rank"] == 0
    log = (tmp_path / strategies_search.LOG).read_text().splitlines(keepends=True)
    assert len(log) == 12
    (tmp_path / strategies_search.LOG).write_text("".join(log[:3]) + log[3][:9])
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "strategies.json").read_text())
    assert again["alone"] == content["alone"]
    for name in ("ppo", "random"):
        for key in ("curves", "probes", "retrained"):
            assert again["results"][name][key] == content["results"][name][key], key
