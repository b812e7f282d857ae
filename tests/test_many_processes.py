"""Whole searches of several processes on this machine: equal to one process, also where one is lost on the way.

The run that the others are compared with is one process with as many devices. Sums of two terms have one order, sums of
four come in another order through the network; and the threads of a process share out a product in another way. So
the weights differ in their last digits, and predictions at some pixels: the candidates are the same in the same order,
their rewards agree within 0.005 (two devices) or 0.02 (four).
"""

import contextlib
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dvsnas_jax.core.files import workdir
from dvsnas_jax.evaluate import evaluation

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 3000
NAMES = ("step", "index", "source", "hash", "status")
STEPS = 16
SMALL = {
    "pretrain.steps": 4,
    "pretrain.eval_every": 4,
    "pretrain.checkpoint_every": 2,
    "pretrain.warmup_steps": 1,
    "search.steps": STEPS,
    "search.checkpoint_every": 1,
    "search.warmup_steps": 2,
    "search.shared_genotypes": 2,
    "search.num_random": 2,
    "train.steps": 4,
    "train.warmup_steps": 1,
    "train.norm_batches": 1,
    "data.num_train_clips": 16,
    "data.num_val_clips": 1,
    "data.val_frames": 4,
    "derive.num_rewarded": 1,
    "derive.num_probable": 1,
    "evaluate.vc_frames": 2,
}
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def launched(
    folder: pathlib.Path, num: int, devices: int, settings: dict, *, command: str = "search"
) -> Iterator[subprocess.Popen]:
    """A command of `num` processes with so many devices each; logs and ids are beside the run folder."""
    words = [
        str(ROOT / "launch" / "local_multiprocess.sh"), str(num),
        sys.executable, "-m", "dvsnas_jax", command, "--config=configs/smoke.py", f"--workdir={folder}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]  # fmt: skip
    logs, pids = folder.with_suffix(".logs"), folder.with_suffix(".pids")
    environment = {**os.environ, "DEVICES": str(devices), "LOGS": str(logs), "PIDS": str(pids)}
    environment.pop("XLA_FLAGS", None)
    pids.unlink(missing_ok=True)
    launcher = subprocess.Popen(words, cwd=ROOT, env=environment)
    try:
        yield launcher
    finally:
        if launcher.poll() is None:  # the test failed: nothing may go on behind it
            for pid in processes(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            launcher.wait()


def processes(folder: pathlib.Path) -> list[int]:
    """The ids of the processes of the run, in their order."""
    return [int(line) for line in folder.with_suffix(".pids").read_text().split()]


def log_of(folder: pathlib.Path, process: int) -> str:
    return (folder.with_suffix(".logs") / f"{process}.log").read_text()


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Waits, at most so long; time in which this machine was stopped does not count. Returns the seconds."""
    waited, last = 0.0, time.monotonic()
    while not condition():
        assert waited < seconds, f"waited {waited:.0f} s in vain"
        time.sleep(0.2)
        waited, last = waited + min(time.monotonic() - last, 2.0), time.monotonic()
    return waited


def steps_done(folder: pathlib.Path) -> int:
    path = folder / "genotypes.jsonl"
    return path.read_bytes().count(b"\n") // 2 if path.exists() else 0


def is_running(pid: int) -> bool:
    """Whether a process is there and not only waits to be asked how it ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def finish(folder: pathlib.Path, num: int, devices: int, settings: dict) -> dict[str, Any]:
    """Runs a search to its end: candidates, metrics without times, winner and scores."""
    with launched(folder, num, devices, settings) as launcher:
        code = launcher.wait(timeout=LIMIT)
    assert code == 0, "\n".join(log_of(folder, process)[-3000:] for process in range(num))
    found = workdir.Workdir(folder)
    return {
        "candidates": found.read("genotypes.jsonl"),
        "metrics": [
            {key: value for key, value in line.items() if not key.startswith("seconds")}
            for line in found.read("metrics.jsonl")
        ],
        "winner": found.read_json("best_genotype.json"),
        "evaluation": found.read_json("evaluation.json"),
    }


def compare(found: dict[str, Any], wanted: dict[str, Any], *, reward: float, score: float) -> None:
    """Same candidates in the same order and same winner; rewards and held-out scores within a tolerance."""
    for one, other in zip(wanted["candidates"], found["candidates"], strict=True):
        assert [one[key] for key in NAMES] == [other[key] for key in NAMES]
    pairs = list(zip(wanted["candidates"], found["candidates"], strict=True))
    largest = max(abs(one["reward"] - other["reward"]) for one, other in pairs)
    lines = [[(line["stage"], line["step"]) for line in run["metrics"]] for run in (wanted, found)]
    assert lines[0] == lines[1]
    losses = [[line["loss"] for line in run["metrics"] if "loss" in line] for run in (wanted, found)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    assert found["winner"]["layers"] == wanted["winner"]["layers"]
    scores = [[run["evaluation"][network]["miou"] for network in ("static", "cell")] for run in (wanted, found)]
    print(f"rewards differ by at most {largest:.2g}, mIoU by {np.abs(np.subtract(*scores)).max():.2g}")
    assert largest <= reward
    np.testing.assert_allclose(scores[1], scores[0], atol=score)


@pytest.fixture(scope="module", name="one")
def _one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The search in one process with two devices, never interrupted."""
    return finish(tmp_path_factory.mktemp("one") / "run", 1, 2, SMALL)


def environments(folder: pathlib.Path) -> list[tuple[int, int]]:
    """Processes and devices of the starts of a run, each where it is another than before."""
    first = workdir.Workdir(folder).read_json("environment.json")
    starts = [(found["num_processes"], len(found["devices"])) for found in (first, *first.get("resumed_with", ()))]
    return [start for start, _ in itertools.groupby(starts)]


def check_resumed(folder: pathlib.Path, before: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """The last start went on where the one before had saved: nothing of that was trained or scored again."""
    log = log_of(folder, 0)
    (start,) = [int(count) for count in re.findall(rf"search (\d+)/{STEPS}, goes on", log)]
    assert "pretrain" not in log and "warmup" not in log
    assert start in (before[-1]["step"], before[-1]["step"] + 1)  # the last step was saved, or only logged
    kept = [line for line in before if line["step"] < start]
    assert len(kept) == 2 * start >= 4 and found["candidates"][: len(kept)] == kept


def test_two_processes_search_as_one_does(tmp_path: pathlib.Path, one: dict[str, Any]) -> None:
    """And the second process is silent. (One shared core: 5 minutes with the run that it is compared with.)"""
    folder = tmp_path / "two"
    compare(finish(folder, 2, 1, SMALL), one, reward=0.005, score=0.01)
    assert len(one["candidates"]) == STEPS * 2 + 2
    assert environments(folder) == [(2, 2)]
    assert "pretrain" in log_of(folder, 0) and "pretrain" not in log_of(folder, 1)


def test_two_processes_train_and_score_a_static_network_alone(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "alone"
    with launched(folder, 2, 1, SMALL, command="train") as launcher:
        code = launcher.wait(timeout=LIMIT)
    assert code == 0, "\n".join(log_of(folder, process)[-3000:] for process in range(2))
    found = workdir.Workdir(folder)
    stored = found.read_json(evaluation.RESULT)
    assert stored["cell"] is None and stored["num_frames"] == 4 and not (folder / "best_genotype.json").exists()
    assert "static network" in log_of(folder, 0) and "static network" not in log_of(folder, 1)
    again = evaluation.run(found.config(), found)  # in one process
    assert again["static"]["miou"] == pytest.approx(stored["static"]["miou"], abs=1e-6)


def test_four_processes_search_as_one_does(tmp_path: pathlib.Path) -> None:
    """Two `arch` slices of two `data` slices. (One shared core: 14 minutes.)"""
    settings = {**SMALL, "search.steps": 3, "search.shared_genotypes": 4, "search.batch_parts": 2}
    one, four = (finish(tmp_path / f"{num}", num, 4 // num, settings) for num in (1, 4))
    assert len(one["candidates"]) == 3 * 2 + 2
    assert environments(tmp_path / "4") == [(4, 4)]
    compare(four, one, reward=0.02, score=0.05)


@pytest.mark.parametrize("victim, others", [(1, 1), (0, 4)])
def test_a_killed_process_ends_the_other_and_another_number_goes_on(
    tmp_path: pathlib.Path, one: dict[str, Any], victim: int, others: int
) -> None:
    """Kill -9 of one of two: the other leaves within 60 s with 75; one or four processes end as if nothing had been.

    One shared core: 7 minutes with one, 13 with four.
    """
    folder = tmp_path / "run"
    with launched(folder, 2, 1, SMALL) as launcher:
        wait_for(lambda: steps_done(folder) >= 3, LIMIT)
        pids = processes(folder)
        os.kill(pids[victim], signal.SIGKILL)
        seconds = wait_for(lambda: not is_running(pids[1 - victim]), 60)
        print(f"process {victim} of 2 killed: the other left after {seconds:.1f} s")
        assert launcher.wait(timeout=60) == (137 if victim == 0 else 75)
    text = log_of(folder, 1 - victim)
    assert f"dvsnas: process {1 - victim} of 2: stopped, " in text and "start all processes again to go on" in text
    before = workdir.Workdir(folder).read("genotypes.jsonl")
    assert not (folder / "best_genotype.json").exists()
    devices = max(2 // others, 1)
    found = finish(folder, others, devices, SMALL)
    compare(found, one, reward=0.005, score=0.01)
    check_resumed(folder, before, found)
    assert environments(folder) == [(2, 2), (others, others * devices)]


def test_two_processes_go_on_from_one(tmp_path: pathlib.Path, one: dict[str, Any]) -> None:
    """SIGTERM to a lone process with two devices; two processes with one each end as if nothing had been.

    One shared core: 5 minutes.
    """
    folder = tmp_path / "run"
    with launched(folder, 1, 2, SMALL) as launcher:
        wait_for(lambda: steps_done(folder) >= 3, LIMIT)
        launcher.terminate()
        assert launcher.wait(timeout=LIMIT) == 75
    assert "state saved" in log_of(folder, 0)
    before = workdir.Workdir(folder).read("genotypes.jsonl")
    found = finish(folder, 2, 1, SMALL)
    compare(found, one, reward=0.005, score=0.01)
    check_resumed(folder, before, found)
    assert environments(folder) == [(1, 2), (2, 2)]
