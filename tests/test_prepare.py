"""`data prepare`: all or nothing, whatever happens to the process and to the disk."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trees

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import locking
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.prepared import builders, plans, prepare, reading

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDS = "camvid_clips/1.0.0"


@pytest.fixture
def source(tmp_path):
    return trees.camvid_segnet(tmp_path / "data", splits=("train", "val"), is_video=True)


def _data(root, **changes):
    data = config_lib.defaults().data
    data.update({"name": "camvid", "dir": str(root), "num_frames": 2, "frame_gap": 2, **changes})
    return data


def _words(root, output, *more):
    config = f"--config={ROOT / 'configs' / 'camvid_small.py'}"
    return ["data", "prepare", config, f"--config.data.dir={root}", f"--output={output}", *more]


def _start(root, output, *more, **options):
    """A process of its own that prepares."""
    command = [sys.executable, "-m", "dvsnas_jax", *_words(root, output, *more)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def _end(process):
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*"))


def _message(call, *args, **kwargs):
    with pytest.raises(errors.UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is written ------------------------------------------------------------------------------


def test_repeated_is_a_no_op(source, tmp_path, capsys):
    words = _words(source, tmp_path / "out")
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert f"prepared: {tmp_path / 'out' / RECORDS}, train 7, val 5 clips" in said.out and "prepare 12/12" in said.err
    records = tmp_path / "out" / RECORDS
    before = {name: (records / name).stat().st_mtime_ns for name in _names(records)}
    assert {"clips.json", "dataset_info.json", "features.json", "metadata.json"} < set(before) and len(before) == 6
    assert cli.main(words) == 0
    assert "already prepared, nothing to do" in capsys.readouterr().out
    assert before == {name: (records / name).stat().st_mtime_ns for name in _names(records)}
    assert _names(tmp_path / "out")[:2] == ["camvid_clips", RECORDS]  # and no locks, no folder for downloads


def test_other_options_are_named(source, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.run(_data(source), out)
    message = _message(prepare.run, _data(source, num_frames=3, frame_gap=1), out, height=15, width=20)
    assert f"{out / RECORDS} was prepared with other options" in message
    for text in ("num_frames is 2, asked for is 3", "frame_gap is 2, asked for is 1", "height is 0, asked for is 15"):
        assert text in message
    assert "tolerance" not in message and "delete that folder" in message
    message = _message(prepare.run, _data(source), out, splits=("val",))
    assert "splits is ['train', 'val'], asked for is ['val']" in message
    (source / "val" / "0016E5_07959.png").write_bytes((source / "val" / "0016E5_07961.png").read_bytes())
    assert "the files of the dataset have changed since" in _message(prepare.run, _data(source), out)
    assert cli.main(_words(source, out)) == errors.EXIT_USER
    assert "was prepared with other options" in capsys.readouterr().err


def test_size_splits_and_stills(source, tmp_path):
    result = prepare.run(_data(source, history="stills"), tmp_path / "out", splits=("val",), height=15, width=20)
    assert result.is_new and result.counts == {"val": 5}
    media = reading.open_media(str(tmp_path / "out"), "val")
    index = media.source
    assert len(index.frames) == 5  # the labelled ones alone: stills need no history
    assert "has no split train, but val" in _message(reading.open_media, str(tmp_path / "out"), "train")
    assert "give both" in _message(prepare.run, _data(source), tmp_path / "out2", height=15)
    assert "not for synthetic clips" in _message(plans.make, config_lib.defaults().data, ("val",))
    shutil.rmtree(source / "valannot")
    (source / "valannot").mkdir()
    assert "label image" in _message(prepare.run, _data(source, dir=str(source) + "/"), tmp_path / "out3")
    assert not (tmp_path / "out2").exists() and not (tmp_path / "out3").exists()


def test_splits_without_labels_are_left_out(tmp_path):
    root = trees.cityscapes(tmp_path / "data", is_still=False)
    shutil.rmtree(root / "gtFine" / "test")
    data = _data(root, name="cityscapes")
    result = prepare.run(data, tmp_path / "out")
    assert result.counts == {"train": 4, "val": 3} and result.left_out == ("test",)
    assert "no frame of test has labels" in _message(prepare.run, data, tmp_path / "out2", splits=("train", "test"))


def test_synthetic(tmp_path):
    data = config_lib.defaults().data
    data.update({"num_train_clips": 2, "num_val_clips": 1, "num_frames": 1, "height": 16, "width": 16})
    result = prepare.run(data, tmp_path / "out")
    assert result.is_new and result.counts == {"train": 2, "val": 1, "test": 1}
    assert not prepare.run(data, tmp_path / "out").is_new
    data.seed = 3
    assert "seed is 0, asked for is 3" in _message(prepare.run, data, tmp_path / "out")


@pytest.mark.parametrize("size", [None, (60, 80)])
def test_estimate_is_near_and_not_below(source, tmp_path, size):
    options = {} if size is None else {"height": size[0], "width": size[1]}
    planned = plans.make(_data(source), **options)
    expected = sum(planned.estimate().values())
    written = prepare.run(_data(source), tmp_path / "out", **options).num_bytes
    assert written <= expected <= 1.25 * written + 2 * (1 << 18)
    assert prepare.size_text(999) == "999 bytes" and prepare.size_text(999_600) == "1 MB"
    assert prepare.size_text(624_002_261) == "624 MB" and prepare.size_text(3_210_000_000_000) == "3.21 TB"


# --- broken input and damaged records -------------------------------------------------------------


def test_broken_file_leaves_nothing(source, tmp_path):
    broken = source / "val" / "0016E5_07963.png"
    broken.write_bytes(broken.read_bytes()[:300])
    assert f"{broken}: not a readable image" in _message(prepare.run, _data(source), tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    _message(prepare.run, _data(source), tmp_path / "mine")
    assert _names(tmp_path / "mine") == []  # a folder that was there stays
    (tmp_path / "file").write_text("")
    assert "--output: cannot use the folder" in _message(prepare.run, _data(source), tmp_path / "file")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "index", "metadata", "version"])
def test_damaged_records_are_seen(source, tmp_path, damage):
    out = tmp_path / "out"
    prepare.run(_data(source), out)
    records = out / RECORDS
    shard = next(records.glob("*-val.array_record*"))
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        place = content.find((source / "val" / "0016E5_07961.png").read_bytes()[100:140])
        content[place] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        shard.unlink()
    elif damage == "version":
        records = records.rename(records.with_name("2.0.0"))
    else:
        name = "clips.json" if damage == "index" else "metadata.json"
        (records / name).write_text((records / name).read_text()[:-20])
    reading.open_media.cache_clear()

    def read():
        media = reading.open_media(str(out), "val")
        source = media.source
        for place in range(len(source.frames)):
            media.read(np.array([place]))

    message = _message(read)
    assert str(records) in message and "run `dvsnas data prepare` again" in message


# --- two at once, killed, stopped -----------------------------------------------------------------


def _wait_for(folder, pattern, process):
    deadline = time.monotonic() + 60
    while not list(pathlib.Path(folder).glob(pattern)):
        assert time.monotonic() < deadline and process.poll() is None, _end(process)
        time.sleep(0.01)


def test_two_processes_at_once(source, tmp_path):
    out = tmp_path / "out"
    size = ("--height=300", "--width=400")
    answers = sorted(_end(process) for process in [_start(source, out, *size) for _ in range(2)])
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert sorted(text.split(":")[0] for _, text, _ in answers) == ["already prepared, nothing to do", "prepared"]
    assert reading.open_media(str(out), "train").read(np.array([0]))[0][0].startswith(b"\x89PNG")
    assert _names(out)[:2] == ["camvid_clips", RECORDS] and not list(out.rglob("incomplete*"))


def test_killed_half_way(source, tmp_path):
    out = tmp_path / "out"
    process = _start(source, out, "--height=750", "--width=1000")  # slow on purpose
    _wait_for(out, "camvid_clips/incomplete.*/*.array_record*", process)
    process.send_signal(signal.SIGKILL)
    _end(process)
    rests = list(out.glob("camvid_clips/*"))
    assert len(rests) == 1 and rests[0].name.startswith("incomplete.")
    assert "no prepared dataset there" in _message(reading.open_media, str(out), "val")
    result = prepare.run(_data(source), out)
    assert result.is_new and [path.name for path in out.glob("camvid_clips/*")] == ["1.0.0"]


def test_stopped_half_way(source, tmp_path):
    process = _start(source, tmp_path / "out", "--height=750", "--width=1000")
    _wait_for(tmp_path / "out", "camvid_clips/incomplete.*/*.array_record*", process)
    process.send_signal(signal.SIGTERM)
    code, _, err = _end(process)
    assert code == errors.EXIT_STOPPED and "SIGTERM, the preparation begins anew" in err
    assert not (tmp_path / "out").exists()


def test_without_locks_the_slower_finds_the_faster(source, tmp_path, monkeypatch):
    plan, path = plans.make(_data(source)), tmp_path / "out" / RECORDS
    faster = []
    make = builders.of

    def of(plan, data_dir, *, on_example, **options):
        def count():
            if not faster:
                faster.append(True)
                prepare._write(plan, path, signals.StopFlag(), 1)
            on_example()

        return make(plan, data_dir, on_example=count, **options)

    monkeypatch.setattr(builders, "of", of)
    (tmp_path / "out").mkdir()
    prepare._write(plan, path, signals.StopFlag(), 1)
    assert prepare._finished(plan, path, is_new=True).counts == {"train": 7, "val": 5}
    assert [path.name for path in (tmp_path / "out").glob("camvid_clips/*")] == ["1.0.0"]


def test_lock_waits_and_can_be_stopped(tmp_path):
    folder, stop = tmp_path / "a" / "b", signals.StopFlag()
    with locking.exclusive(folder, stop) as is_held:
        assert is_held and folder.is_dir()
        stop.requested, stop.name = True, "SIGTERM"
        with pytest.raises(errors.Stopped, match="SIGTERM"), locking.exclusive(folder, stop):
            pass
    assert not (tmp_path / "a").exists()


# --- a full disk ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _small_disk(folder, options):
    """A tmpfs of that size; skips where this user may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_disk_too_small_is_told_before_writing(source, tmp_path):
    with _small_disk(tmp_path / "disk", "size=100k") as disk:
        message = _message(prepare.run, _data(source), disk / "out")
        assert "not enough disk space" in message and "102 kB are free" in message and "are needed" in message
        assert "choose another --output" in message
        assert _names(disk) == []


def test_disk_full_half_way(source, tmp_path):
    """No inode is left for the last files, although there is space."""
    with _small_disk(tmp_path / "disk", "size=64m,nr_inodes=6") as disk:
        message = _message(prepare.run, _data(source), disk / "out")
        assert "the disk is full" in message and "are needed" in message and "choose another --output" in message
        assert _names(disk) == []


def test_file_size_limit_half_way(source, tmp_path):
    """The same without the right to mount: the system refuses to let files grow."""
    limit = 3 * 65536 // 2
    process = _start(
        source, tmp_path / "out", "--height=240", "--width=320",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    code, _, err = _end(process)
    assert code == errors.EXIT_USER and "Traceback" not in err
    last = err.splitlines()[-1]
    assert "files may not become so large" in last and "are needed" in last and "choose another --output" in last
    assert not (tmp_path / "out").exists()
