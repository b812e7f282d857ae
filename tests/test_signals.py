"""`dvsnas compare-signals`: how rewards order cells, what they cost, and that a stopped comparison goes on."""

import itertools
import json
import pathlib
import subprocess
import sys
import types as std_types

import numpy as np
import pytest
from scipy import stats

from dvsnas_jax import cli
from dvsnas_jax.core import errors
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import signals, signals_report

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPACE = genotype_lib.Space(
    ("prev_state", "decoder", "stage1"), 2, ("none", "skip", "conv_1x1", "conv_3x3"), ("sum", "max")
)


def test_every_token_is_drawn_equally_often():
    mask = np.array([True, True, False, True])
    parts = std_types.SimpleNamespace(space=SPACE, strategy=std_types.SimpleNamespace(op_mask=mask))
    drawn = np.stack(list(itertools.islice(signals.fair(parts, np.random.default_rng(0)), 40)))
    for genotype in drawn:
        genotype_lib.validate(SPACE, genotype)
    length = 4  # the second layer reads one of three inputs or the first
    for run in drawn.reshape(-1, length, 2, 5):
        for layer, field in itertools.product(range(2), range(5)):
            allowed = [3 + layer, 3 + layer, 3, 3, 2][field]
            counts = np.unique(run[:, layer, field], return_counts=True)[1]
            assert len(counts) == allowed and counts.max() - counts.min() <= 1
    assert not (drawn[:, :, 2:4] == 2).any()
    assert len(np.unique(drawn.reshape(40, -1), axis=0)) > 30


def found(alone: list[list[float | None]]) -> dict[str, dict[str, dict[str, list]]]:
    rungs = {
        f"alone {steps}": {"reward": rewards, "seconds": [steps / 10] * len(rewards)}
        for steps, rewards in zip((30, 100, 200), alone, strict=True)
    }
    return {"shared": {"shared": {"reward": [4, 3, 2, 1], "seconds": [0.5] * 4}}, "alone": rungs}


def test_signals_are_ordered_by_the_mean_of_all_trainings():
    rewards = np.array([[1.0, 9], [2, 9], [3, 9], [5, 9]])
    worth = np.array([[1.0, 0], [2, 0], [0, 4], [5, np.nan]])
    trained = {"rewards": rewards, "worth": worth, "seconds": np.full((4, 2), 7.0)}
    alone = [[1, 2, 3, 4], [1, None, 2, 3], [4, 3, 2, 1]]
    content = signals_report.summarize(found(alone), trained, (30, 100, 200))
    assert content["worth"] == [0.5, 1.0, 2.0, 5.0]
    tau = {name: signal["tau"]["value"] for name, signal in content["signals"].items()}
    assert tau["shared"] == -1 and tau["alone 30"] == 1 and tau["alone 200"] == -1
    assert tau["alone 100"] == 1, "the cell that diverged is left out"
    # Of the four the better two go on, of these one: the last is the third by what it has after 100 steps.
    assert tau["halving"] == 1
    seconds = {name: signal["seconds"] for name, signal in content["signals"].items()}
    assert seconds["halving"] == pytest.approx((3 + 3 + 10 + 20) / 4) and seconds["alone 200"] == 20
    assert seconds[signals_report.WHOLE] == 7
    others = stats.kendalltau(rewards[:3, 0], worth[:3, 1]).statistic
    assert tau[signals_report.WHOLE] == pytest.approx(others)
    noise = content["noise"]
    assert noise["cells"] == pytest.approx(np.std([0.5, 1, 2, 5], ddof=1))
    assert noise["trainings"] == pytest.approx(np.sqrt(np.mean([0.5, 2, 8])))  # of the three without a failure
    assert noise["tau"]["value"] == pytest.approx(stats.kendalltau([1, 2, 0], [0, 0, 4]).statistic)


def test_halving_goes_by_the_last_rung_that_a_cell_reached():
    alone = [[4, 3, 2, 1], [1, 5, 9, 9], [7, 6, 9, 9]]
    ranks = signals_report._halving([found(alone)["alone"][f"alone {steps}"] for steps in (30, 100, 200)])
    assert ranks["halving"]["reward"] == [2, 3, 1, 0]
    assert ranks["halving"]["seconds"] == [10, 20, 3, 3]


def test_the_report_has_a_line_for_each_signal(tmp_path):
    trained = {key: np.array([[1.0, 1.5], [2, 2.5], [3, 3.5], [4, 4.5]]) for key in ("rewards", "worth", "seconds")}
    content = signals_report.summarize(found([[1, 2, 3, 4]] * 3), trained, (30, 100, 200))
    report = signals_report.write({**content, "num_trainings": 2, "split": "val"}, tmp_path)
    assert "| shared | -1.00 [-1.00, -1.00] | 0.50 |" in report.text and "| halving | 1.00 [" in report.text
    assert "mean reward over 2 trainings on val" in report.text
    assert "Cells differ by 1.2910 (standard deviation of their worth), trainings of one cell by 0.3536." in report.text
    assert json.loads((tmp_path / "signals.json").read_text())["num_genotypes"] == 4
    assert [pathlib.Path(path).name for path in report.paths] == ["signals.json", "signals.md", "signals.png"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--genotypes=1", "--genotypes: must be at least 2, got 1"),
        ("--trainings=1", "--trainings: must be at least 2, got 1"),
        ("--shared-rungs=30,10", "--shared-rungs: needs rising numbers of steps, such as 10,30,100, got 30,10"),
        ("--alone-rungs=0,10", "--alone-rungs: needs rising numbers of steps"),
        ("--alone-rungs=a", "needs numbers of steps such as 10,30,100, got 'a'"),
    ],
)
def test_words_that_make_no_sense(word, line, tmp_path, capsys):
    words = ["compare-signals", f"--config={ROOT / 'configs/smoke.py'}", f"--workdir={tmp_path / 'run'}", word]
    assert cli.main(words) == errors.EXIT_USER
    assert line in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_stopped(tmp_path):
    words = [sys.executable, "-m", "dvsnas_jax", "compare-signals", "--config=configs/smoke.py"]
    words += [f"--workdir={tmp_path}", "--genotypes=3", "--trainings=2", "--shared-rungs=2,4", "--alone-rungs=2,4,6"]
    words += ["--config.train.steps=4", "--config.search.steps=2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "signals.json").read_text())
    names = ["shared", "recalibrated", "shared 2", "shared 4", "fair", "longer", "alone 2", "alone 4", "alone 6"]
    assert list(first["signals"]) == [*names, "halving", signals_report.WHOLE] and first["num_genotypes"] == 3
    log = (tmp_path / signals.LOG).read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in log]
    assert len(lines) == 4 * 3 + 3 * 2
    own = [line["signals"]["shared"]["reward"] for line in lines if line.get("weights") == "shared"]
    assert len({*own}) > 1 and all(0 < reward < 1 for reward in own)
    (tmp_path / signals.LOG).write_text("".join(log[:4]) + log[4][:9])
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "signals.json").read_text())
    assert again["worth"] == first["worth"]
    for name, signal in again["signals"].items():
        assert signal["tau"] == first["signals"][name]["tau"], name
