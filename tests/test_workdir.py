"""The run folder: claim, JSONL, atomic JSON, checkpoints (bit exact, whole after SIGKILL), signals, progress."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "params": [
            jnp.asarray(rng.standard_normal((3, 4)), jnp.float32),
            jnp.asarray(rng.standard_normal(5), jnp.bfloat16),
        ],
        "count": jnp.asarray(seed, jnp.int32),
        "bits": jnp.asarray(rng.integers(0, 2**32, 4), jnp.uint32),
        "mask": jnp.asarray([True, False]),
        "bytes": np.asarray(rng.integers(0, 256, 3), np.uint8),
        "empty": np.zeros((0, 2), np.float32),
        "special": jnp.asarray([np.nan, np.inf, -0.0, 1e-42], jnp.float32),
        "key": jax.random.key(seed),
        "host": {"int": np.int64(2**40 + seed), "python": seed, "rate": 0.1, "flag": True},
    }


def _bits(leaf) -> tuple:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return type(leaf), array.dtype, array.shape, array.tobytes()


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert _bits(left) == _bits(right)


def test_claim_writes_and_accepts_the_same_config(tmp_path):
    folder = workdir.Workdir(tmp_path / "a" / "b")
    config = config_lib.load(None, {})
    folder.claim(config)
    assert config_lib.differences(folder.read_json("config.json"), config) == []
    environment = folder.read_json("environment.json")
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["devices"]
    workdir.Workdir(folder.path).claim(config)
    assert "resumed_with" not in folder.read_json("environment.json")


def test_claim_refuses_another_config_and_names_the_keys(tmp_path):
    workdir.Workdir(tmp_path).claim(config_lib.load(None, {}))
    workdir.Workdir(tmp_path).append("metrics.jsonl", {"stage": "pretrain", "step": 1})
    other = config_lib.load(None, {"search.steps": "51", "seed": "1", "evaluate.split": "test"})
    with pytest.raises(
        errors.UserError, match="keys differ: evaluate.split, search.steps, seed;?; use another --workdir"
    ):
        workdir.Workdir(tmp_path).claim(other)
    workdir.Workdir(tmp_path).claim(other, ignore=("search", "seed", "evaluate.split"))
    with pytest.raises(errors.UserError, match="differ: evaluate.split; "):
        workdir.Workdir(tmp_path).claim(other, ignore=("search", "seed", "eval"))


def test_claim_gives_keys_that_an_older_run_lacks_their_defaults(tmp_path):
    folder, config = workdir.Workdir(tmp_path), config_lib.load(None, {})
    folder.claim(config)
    folder.append("metrics.jsonl", {"stage": "pretrain", "step": 1})
    values = folder.read_json("config.json")
    del values["controller"]["population"], values["search"]["mode"], values["schedule"]
    folder.write_json("config.json", values)
    folder.claim(config)
    assert folder.read_json("config.json") == values  # it stays as it was written
    with pytest.raises(errors.UserError, match="keys differ: controller.population, search.mode; use another"):
        folder.claim(config_lib.load(None, {"controller.population": "21", "search.mode": "scratch"}))


def test_claim_notes_another_environment_once(tmp_path, monkeypatch):
    folder, config = workdir.Workdir(tmp_path), config_lib.load(None, {})
    folder.claim(config)
    changed = {**workdir.environment(), "devices": ["tpu:0"]}
    monkeypatch.setattr(workdir, "environment", lambda: changed)
    folder.claim(config)
    folder.claim(config)
    assert [item["devices"] for item in folder.read_json("environment.json")["resumed_with"]] == [["tpu:0"]]


def test_workdir_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(errors.UserError, match="--workdir: cannot write the folder"):
            workdir.Workdir(path).claim(config_lib.load(None, {}))


@pytest.mark.parametrize("tail", [b'{"step": 2, "x"', b"{", b'{"step": 2}', b"\x00\x00\n", b'{"step"\n'])
def test_torn_last_line_is_cut_off(tmp_path, tail):
    folder = workdir.Workdir(tmp_path)
    folder.append("a.jsonl", {"step": 0})
    folder.append("a.jsonl", {"step": np.int32(1), "x": np.float32(0.5), "g": jnp.arange(2)})
    whole = (tmp_path / "a.jsonl").read_bytes()
    kept = [{"step": 0}, {"step": 1, "x": 0.5, "g": [0, 1]}]
    (tmp_path / "a.jsonl").write_bytes(whole + tail)
    assert workdir.Workdir(tmp_path).read("a.jsonl") == kept
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    (tmp_path / "a.jsonl").write_bytes(whole + tail)
    again = workdir.Workdir(tmp_path)
    again.append("a.jsonl", {"step": 3})
    assert again.read("a.jsonl") == [*kept, {"step": 3}]


def test_read_of_nothing_and_of_a_broken_line(tmp_path):
    folder = workdir.Workdir(tmp_path)
    assert folder.read("none.jsonl") == []
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nbroken\n{"a": 2}\n')
    with pytest.raises(errors.UserError, match="a.jsonl, line 2"):
        folder.read("a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"{")
    assert folder.read("b.jsonl") == []
    with pytest.raises(errors.UserError, match="does not exist"):
        folder.read_json("config.json")


def test_truncate_keeps_the_chosen_records_byte_for_byte(tmp_path):
    folder = workdir.Workdir(tmp_path)
    lines = []
    for step in range(5):
        folder.append("a.jsonl", {"step": step, "x": 0.1 * step})
        lines.append((tmp_path / "a.jsonl").read_bytes())
    folder.truncate("a.jsonl", lambda record: record["step"] <= 2)
    assert (tmp_path / "a.jsonl").read_bytes() == lines[2]
    folder.append("a.jsonl", {"step": 3, "x": 0.1 * 3})
    assert (tmp_path / "a.jsonl").read_bytes() == lines[3]
    folder.truncate("none.jsonl", lambda record: False)
    assert not (tmp_path / "none.jsonl").exists()


def test_write_json_that_fails_leaves_the_old_file(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.write_json("a/b.json", {"x": np.float32(0.5)})
    with pytest.raises(TypeError):
        folder.write_json("a/b.json", {"x": object()})
    assert folder.read_json("a/b.json") == {"x": 0.5}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_scalars_go_to_metrics_and_tensorboard(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.scalars("pretrain", 5, {"loss": jnp.float32(0.25)})
    folder.close()
    assert folder.read("metrics.jsonl") == [{"stage": "pretrain", "step": 5, "loss": 0.25}]
    (events,) = (tmp_path / "tensorboard" / "pretrain").iterdir()
    assert b"loss" in events.read_bytes()


def test_checkpoint_round_trip_is_bit_exact(tmp_path):
    saver = workdir.Workdir(tmp_path).checkpointer("stage")
    assert saver.latest_step() is None
    for step in (0, 3, 7):
        assert saver.save(step, _tree(step))
    assert not saver.save(7, _tree(8))
    with pytest.raises(ValueError, match="older"):
        saver.save(5, _tree(5))
    reader = workdir.Workdir(tmp_path).checkpointer("stage")
    assert reader.steps() == [3, 7]
    _assert_same(reader.restore(_tree(0)), _tree(7))
    _assert_same(reader.restore(_tree(0), step=3), _tree(3))
    shape = jax.eval_shape(lambda: {"a": jnp.zeros((2, 3), jnp.int32)})
    other = workdir.Workdir(tmp_path).checkpointer("shapes")
    other.save(1, {"a": jnp.arange(6, dtype=jnp.int32).reshape(2, 3)})
    np.testing.assert_array_equal(other.restore(shape)["a"], np.arange(6).reshape(2, 3))
    other.save(2, {"best": {"a": np.arange(3)}, "bestow": np.ones(2), "last": {"a": np.zeros(3, np.int64)}})
    part = other.restore({"a": np.zeros(3, np.int64)}, part="['best']")
    np.testing.assert_array_equal(part["a"], np.arange(3))
    with pytest.raises(errors.UserError, match=r"only the checkpoint has \['best'\]\['a'\]"):
        other.restore({}, part="['best']")


def test_what_is_restored_is_free_to_move_where_the_template_is(tmp_path):
    """Else a resumed training would compile its step once more."""
    free = jnp.arange(3.0)
    tree = {"free": free, "bound": jax.device_put(free, jax.devices()[0]), "shape": jax.ShapeDtypeStruct((3,), "f4")}
    saver = workdir.Workdir(tmp_path).checkpointer("stage")
    saver.save(1, {**tree, "shape": free})
    found = saver.restore(tree)
    assert {name: leaf.committed for name, leaf in found.items()} == {"free": False, "bound": True, "shape": False}


def test_checkpoint_of_another_tree_names_the_leaf(tmp_path):
    saver = workdir.Workdir(tmp_path).checkpointer("stage")
    with pytest.raises(errors.UserError, match="no checkpoint"):
        saver.restore({})
    saver.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(2)})
    for template, message in (
        ({"a": jnp.zeros(4), "b": jnp.zeros(2)}, r"\['a'\] is float32 \(3,\), the program wants float32 \(4,\)"),
        ({"a": jnp.zeros(3, jnp.int32), "b": jnp.zeros(2)}, "the program wants int32"),
        ({"a": jnp.zeros(3)}, r"only the checkpoint has \['b'\]"),
        ({"a": jnp.zeros(3), "b": jnp.zeros(2), "c": jnp.zeros(1)}, r"only the program has \['c'\]"),
    ):
        with pytest.raises(errors.UserError, match=message):
            saver.restore(template)


def test_damaged_checkpoint_is_told(tmp_path):
    saver = workdir.Workdir(tmp_path).checkpointer("stage")
    tree = {"a": jnp.asarray(np.random.default_rng(0).standard_normal(5000), jnp.float32)}
    saver.save(1, tree)
    largest = max(
        (path for path in (saver.path / "1").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)
    with pytest.raises(errors.UserError, match="damaged checkpoint"):
        workdir.Workdir(tmp_path).checkpointer("stage").restore(tree)


def test_checkpoint_of_a_small_tree_is_fast(tmp_path):
    tree = {f"a{index}": jnp.full((24, 24), index, jnp.float32) for index in range(200)}
    saver = workdir.Workdir(tmp_path).checkpointer("stage")
    saver.save(0, tree)
    seconds = []
    for step in range(1, 6):
        start = time.perf_counter()
        saver.save(step, tree)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.15


_SAVE_FOREVER = """
import sys
import numpy as np
from dvsnas_jax.core.files import workdir
saver = workdir.Workdir(sys.argv[1]).checkpointer("stage")
step = saver.latest_step() or 0
while True:
    step += 1
    saver.save(step, {"a": np.full(200_000, step, np.int32), "step": step})
    print(step, flush=True)
"""


def test_sigkill_during_saves_leaves_whole_checkpoints(tmp_path):
    rng = np.random.default_rng(0)
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        reported = [int(process.stdout.readline()) for _ in range(3)]
        time.sleep(float(rng.uniform(0, 0.08)))
        process.kill()
        reported += [int(line) for line in process.stdout.read().split()]
        process.wait()
        assert reported[0] == last + 1
        saver = workdir.Workdir(tmp_path).checkpointer("stage")
        last = saver.latest_step()
        assert last in (reported[-1], reported[-1] + 1)
        tree = saver.restore({"a": np.zeros(200_000, np.int32), "step": 0})
        assert tree["step"] == last
        assert (tree["a"] == last).all()
        saver.close()


def test_signals_set_a_flag_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals.stop_on_signal() as stop:
        assert not stop.requested
        with signals.stop_on_signal() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner is stop
        assert stop.requested
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before
    with signals.stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_signals_in_another_thread_do_nothing():
    seen = []

    def work():
        with signals.stop_on_signal() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_progress_in_a_log_gives_rate_and_remaining_time():
    now, stream = [0.0], io.StringIO()
    with progress.bar(100, "search", initial=40, stream=stream, clock=lambda: now[0]) as bar:
        bar.note("loss 0.5")
        for _ in range(30):
            now[0] += 0.5
            bar.update()
    lines = [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines == [
        "search 40/100, goes on",
        "search 60/100, 2/s, 0:20 left, loss 0.5",
        "search 70/100, 2/s, 0:15 left, loss 0.5",
    ]


def test_progress_of_a_few_steps_ends_with_one_line():
    stream = io.StringIO()
    with progress.bar(2, "clips", stream=stream) as bar:
        bar.update()
        bar.update()
    (line,) = stream.getvalue().splitlines()
    assert "clips 2/2" in line
    assert progress.duration(3725) == "1:02:05"


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress.bar(3, "steps", stream=stream) as bar:
        bar.note("loss 1")
        bar.update(3)
    assert "3/3" in stream.getvalue()
    assert "loss 1" in stream.getvalue()


def test_records_are_plain_json(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.append("a.jsonl", {"path": tmp_path, "b": np.bool_(True)})
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"path": str(tmp_path), "b": True}
