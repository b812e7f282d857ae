"""Several processes: who belongs where, what they share, and how they end. Whole runs: test_many_processes.py."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals, watchdog

ROOT = pathlib.Path(__file__).resolve().parents[1]


# --- who belongs where ---------------------------------------------------------------------------------------------


def test_without_flags_or_a_launcher_a_process_is_alone() -> None:
    assert distributed.detect({}) is None
    assert distributed.detect({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert distributed.is_main() and distributed.num_processes() == 1 and distributed.process_id() == 0
    assert distributed.agree(True) and not distributed.agree(False)
    distributed.barrier("alone")
    assert distributed.leave(2) == 2


def test_flags_come_before_the_environment() -> None:
    environ = {"DVSNAS_COORDINATOR": "a:1", "DVSNAS_NUM_PROCESSES": "2", "DVSNAS_PROCESS_ID": "1"}
    assert distributed.detect(environ) == distributed.Launch("environment", "a:1", 2, 1)
    found = distributed.detect(environ, coordinator="b:2", num_processes=3, process_id=0)
    assert found == distributed.Launch("flags", "b:2", 3, 0)
    assert distributed.detect(environ, num_processes=1) is None
    indexed = {"DVSNAS_COORDINATOR": "a:1", "DVSNAS_NUM_PROCESSES": "8", "JOB_COMPLETION_INDEX": "5"}
    assert distributed.detect(indexed) == distributed.Launch("environment", "a:1", 8, 5)


@pytest.mark.parametrize(
    "flags, text",
    [
        ({"coordinator": "a:1"}, "--coordinator: .* needs --num-processes and --process-id, too"),
        ({"num_processes": 2, "process_id": 0}, "--num-processes, --process-id: .* needs --coordinator, too"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process-id: must be from 0 .* got 2 of 2"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "--coordinator: must be HOST:PORT .* got 'a'"),
        ({"coordinator": "a:0", "num_processes": 2, "process_id": 1}, "--coordinator: .* from 1 to 65535, got 'a:0'"),
        ({"coordinator": "a:65536", "num_processes": 2, "process_id": 1}, "from 1 to 65535, got 'a:65536'"),
        ({"coordinator": "a b:1", "num_processes": 2, "process_id": 1}, "must be HOST:PORT .* got 'a b:1'"),
    ],
)
def test_flags_that_make_no_sense(flags, text) -> None:
    with pytest.raises(errors.UserError, match=text):
        distributed.detect({}, **flags)


def test_an_environment_that_makes_no_sense() -> None:
    with pytest.raises(errors.UserError, match="DVSNAS_NUM_PROCESSES and DVSNAS_PROCESS_ID: must be whole numbers"):
        distributed.detect({"DVSNAS_COORDINATOR": "a:1", "DVSNAS_NUM_PROCESSES": "x", "DVSNAS_PROCESS_ID": "1"})
    with pytest.raises(errors.UserError, match="needs DVSNAS_NUM_PROCESSES, too"):
        distributed.detect({"JOBSET_NAME": "run", "JOB_COMPLETION_INDEX": "0"})


def test_launchers() -> None:
    jobset = {"JOBSET_NAME": "run", "JOB_COMPLETION_INDEX": "3", "DVSNAS_NUM_PROCESSES": "4"}
    assert distributed.detect(jobset) == distributed.Launch("jobset", "run-workers-0-0.run:12355", 4, 3)
    named = {**jobset, "REPLICATED_JOB_NAME": "slice"}
    assert distributed.detect(named).coordinator == "run-slice-0-0.run:12355"
    assert distributed.detect({**named, "DVSNAS_PORT": "80"}).coordinator == "run-slice-0-0.run:80"
    for port in ("0", "65536", "-1", "x", ""):
        with pytest.raises(errors.UserError, match=f"DVSNAS_PORT: must be a port from 1 to 65535, got '{port}'"):
            distributed.detect({**jobset, "DVSNAS_PORT": port})
    assert distributed.detect({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}) == distributed.Launch("tpu")
    assert distributed.detect({"DVSNAS_TPU_POD": "1"}) == distributed.Launch("tpu")


@pytest.mark.parametrize(
    "nodes, host",
    [("node7", "node7"), ("node[003-004,9]", "node003"), ("a1,b[2-3]", "a1"), ("gpu-[12,14]", "gpu-12")],
)
def test_slurm(nodes, host) -> None:
    environ = {
        "SLURM_JOB_ID": "5000",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    found = distributed.detect(environ)
    assert found == distributed.Launch("slurm", f"{host}:{12355 + 904}", 4, 3, (1,))
    # One task a node takes all accelerators; so does a task to which SLURM shows only its own.
    assert distributed.detect({**environ, "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}).local_devices is None
    assert distributed.detect({**environ, "CUDA_VISIBLE_DEVICES": "3"}).local_devices is None
    assert distributed.detect({**environ, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert distributed.detect({**environ, "DVSNAS_PORT": "20000"}).coordinator == f"{host}:20000"


# --- lost processes ------------------------------------------------------------------------------------------------


def test_silence_is_counted_for_each_process() -> None:
    silence = watchdog.Silence(0, 4, longest=4.0)
    silence.hear({0: "1", 1: "1", 2: "1"})
    for count in range(2, 12):
        silence.wait(4.0)
        silence.hear({0: str(count), 1: str(count), 2: "1", 3: "done"})
    assert silence.lost(30.0) == [2]
    assert silence.lost(40.0) == []
    silence.hear({2: "2"})
    assert silence.lost(0.0) == []
    silence.wait(1.0)
    silence.hear({1: "12", 2: "2"})
    assert silence.lost(0.5) == [2, 3]


def test_time_in_which_this_process_was_frozen_does_not_count() -> None:
    silence = watchdog.Silence(1, 2, longest=4.0)
    silence.wait(3600.0)
    assert silence.lost(5.0) == [] and silence.lost(3.0) == [0]


class Service:
    """A coordination service in this process; each client sees what all have set."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        return [item for item in self.values.items() if item[0].startswith(key)]


def test_the_watchdog_ends_the_process_when_another_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.05)
    service, told = Service(), {0: [], 1: [], 2: []}
    dogs = [watchdog.Watchdog(service, i, 3, leave_fn=told[i].append, limit=0.8) for i in range(3)]
    for dog in dogs:
        dog.start()
    time.sleep(1.6)
    assert told == {0: [], 1: [], 2: []}
    dogs[2].stop()  # it said good-bye
    dogs[1]._stop.set()  # killed: it says nothing
    time.sleep(1.6)
    dogs[0].stop()
    assert told[0] and told[0][0] == "no sign of life from process 1 of 3 for 1 s"
    assert told[1] == told[2] == []


ABORT = """
import os, sys
from dvsnas_jax.core.processes import watchdog
def leave(reason):
    print(reason, flush=True)
    os._exit(75)
watchdog.on_abort(lambda: sys.argv[1] == "lost", leave)
os.abort()
"""


def test_an_abort_is_a_lost_process_only_where_one_is_lost() -> None:
    def run(word: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", ABORT, word]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (run("lost").returncode, run("lost").stdout) == (75, "another process is gone\n")
    assert run("fault").returncode == -signal.SIGABRT


def test_a_lone_process_stops_at_once() -> None:
    stop = signals.StopFlag(requested=True)
    assert stop.is_due(3, every=25) and not signals.StopFlag().is_due(25)


# --- processes of a small program ----------------------------------------------------------------------------------


def start_workers(mode: str, folder: pathlib.Path, num: int, devices: int = 1) -> subprocess.Popen:
    command = [
        str(ROOT / "launch" / "local_multiprocess.sh"), str(num),
        sys.executable, str(ROOT / "tests" / "distributed_worker.py"), mode, str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "DEVICES": str(devices), "LOGS": str(folder / "logs"), "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_two_processes_share_a_batch_a_log_and_a_checkpoint(tmp_path: pathlib.Path) -> None:
    """And one process with four devices reads what two wrote."""
    assert start_workers("work", tmp_path, 2).wait(timeout=400) == 0, (tmp_path / "logs" / "0.log").read_text()
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    assert [one["rows"] for one in found] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [one["shards"] for one in found] == [{"0": [0, 2, 4, 6]}, {"4": [1, 3, 5, 7]}]
    for one in found:
        assert (one["total"], one["sum"], one["agree"], one["back"]) == (84.0, 4.0, [True, False], [2.0, 2.0, 2])
        assert one["ahead"] == [0, 0.5]  # 2 devices, each 0.5 * 0.5
    assert workdir.Workdir(tmp_path).read("log.jsonl") == [{"total": 84.0, "rows": [0, 2, 4, 6]}]
    # Both have written: the byte vector has a chunk of each.
    written = list((tmp_path / "checkpoints" / "stage" / "2" / "default").glob("ocdbt.process_*"))
    assert sorted(path.name for path in written) == ["ocdbt.process_0", "ocdbt.process_1"]
    assert start_workers("restore", tmp_path, 1, devices=4).wait(timeout=400) == 0
    assert json.loads((tmp_path / "restored.json").read_text()) == [2.0, 2.0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("mode, victim", [("together", 1), ("together", 0), ("apart", 0), ("apart", 1)])
def test_a_killed_process_ends_the_others(tmp_path: pathlib.Path, mode: str, victim: int) -> None:
    """In a collective or not, the coordinator or another: within 60 s, with 75 and a message."""
    launcher = start_workers(mode, tmp_path, 3)
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 3, 400)
    pids = [int((tmp_path / f"{i}.pid").read_text()) for i in range(3)]
    killed = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    assert launcher.wait(timeout=60) == (137 if victim == 0 else 75)
    assert time.monotonic() - killed < 60
    for other in {0, 1, 2} - {victim}:
        text = (tmp_path / "logs" / f"{other}.log").read_text()
        assert f"dvsnas: process {other} of 3: stopped, " in text, text[-2000:]
        assert "start all processes again to go on" in text


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: pathlib.Path) -> None:
    launcher = start_workers("stop", tmp_path, 2)
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 400)
    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGTERM)
    assert launcher.wait(timeout=120) == 75
    steps = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    assert steps[0] == steps[1] and steps[0] % 5 == 0
