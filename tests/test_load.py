"""The Python API on run folders: the labels of `evaluate`, no TensorFlow, and what is refused."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import trained

import dvsnas_jax
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import pretrain

ROOT = pathlib.Path(__file__).parents[1]


@functools.cache
def _segmenter(kind):
    return dvsnas_jax.load(trained.evaluated(kind).path)


@pytest.mark.parametrize("kind", ["refine", "fixed"])
def test_it_gives_the_labels_of_the_evaluation(kind):
    segmenter, (static, cell) = _segmenter(kind), trained.evaluated(kind).labels[0]
    state, shares = segmenter.init(), []
    for frame, *expected in zip(trained.frames(kind), cell, static, strict=True):
        state, labels = segmenter.step(state, frame)
        assert isinstance(labels, jax.Array) and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(segmenter.static_step(frame), expected[1])
        shares.append(segmenter.key_share(state))
    assert (cell != static).mean() > 0.05  # the cell does something
    assert shares == ([1.0] * 6 if kind == "refine" else [1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert segmenter.size == trained.SIZE and segmenter.mode == trained.make_config(kind).space.mode
    assert segmenter.classes[:2] == ("sky", "building") and segmenter.colors.shape == (11, 3)


@pytest.fixture(scope="module", name="old")
def _old(tmp_path_factory):
    """Of a mode: run folders and exported ones that earlier versions wrote, and `labels.npz` with frames and labels."""
    path = tmp_path_factory.mktemp("old")
    for mode in ("refine", "propagate"):
        shutil.unpack_archive(ROOT / "tests" / "golden" / f"old_{mode}.zip", path / mode)
    return path


@pytest.mark.parametrize("folder", ["run", "exported"])
def test_a_folder_of_an_older_version_gives_the_labels_that_it_gave(old, folder):
    """Written by version 0.1 before its run folders had an identity."""
    known = np.load(old / "refine" / "labels.npz")
    segmenter = dvsnas_jax.load(old / "refine" / folder)
    assert segmenter.has_cell and segmenter.mode == "refine" and segmenter.ids.tolist() == list(range(11))
    labels = np.stack(list(segmenter.segment(known["frames"])))
    assert (labels == known["labels"]).mean() > 0.999  # processors differ in the order of sums


@pytest.mark.parametrize("folder", ["run", "exported"])
@pytest.mark.parametrize("kind", ["fixed", "regions"])
def test_a_propagating_folder_of_an_older_version_gives_the_labels_that_it_gave(old, kind, folder):
    known = np.load(old / "propagate" / "labels.npz")
    segmenter = dvsnas_jax.load(old / "propagate" / kind / folder)
    state, labels, shares = segmenter.init(), [], []
    for frame in known["frames"]:
        state, found = segmenter.step(state, frame)
        labels.append(np.asarray(found))
        shares.append(segmenter.key_share(state))
    assert segmenter.mode == "propagate" and shares == known[f"{kind}_shares"].tolist()
    assert {1.0, 0.0} <= set(shares) <= {1.0, 0.5, 0.0} and (0.5 in shares) == (kind == "regions")
    assert (np.stack(labels) == known[kind]).mean() > 0.999


def test_videos_may_take_turns_and_are_read_as_the_labels_are_asked_for():
    frames, segmenter, read = trained.frames("fixed"), _segmenter("fixed"), []

    def video():
        for index, frame in enumerate(frames):
            read.append(index)
            yield frame

    expected = trained.evaluated("fixed").labels[0][1]
    one, other = segmenter.segment(video()), segmenter.segment(frames[::-1])
    next(one), next(other)
    assert read == [0]
    np.testing.assert_array_equal(next(one), expected[1])
    next(other)
    np.testing.assert_array_equal(np.stack(list(one)), expected[2:])


def test_the_interval_can_be_changed_where_there_is_one():
    path = trained.evaluated("fixed").path
    segmenter = dvsnas_jax.load(path, key_interval=1)
    state = segmenter.init()
    for frame in trained.frames("fixed")[:2]:
        state, _ = segmenter.step(state, frame)
        assert segmenter.key_share(state) == 1.0
    assert workdir.Workdir(path).config().schedule.interval == 4
    with pytest.raises(errors.UserError, match="key interval 0: must be at least 1"):
        dvsnas_jax.load(path, key_interval=0)
    with pytest.raises(errors.UserError, match="mode refine has no key frames"):
        dvsnas_jax.load(trained.evaluated("refine").path, key_interval=2)


def test_what_is_no_frame_or_no_run_is_refused_in_one_line(tmp_path):
    segmenter = _segmenter("refine")
    for frame in (np.zeros((34, 71, 3), np.uint8), np.zeros((34, 70, 3), np.float32), np.zeros((34, 70), np.uint8)):
        with pytest.raises(errors.UserError, match="resize it to 70x34 pixels RGB"):
            segmenter.step(segmenter.init(), frame)
    (tmp_path / "file").write_text("")
    for name, text in (("none", "no such folder"), ("file", "no such folder"), ("", "no run")):
        path = tmp_path / name
        with pytest.raises(errors.UserError, match=text) as caught:
            dvsnas_jax.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_folder_needs_no_tensorflow(tmp_path):
    run = trained.evaluated("refine")
    np.save(tmp_path / "frames.npy", trained.frames("refine"))
    code = (
        "import sys, numpy as np\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"  # an import of these raises
        "import dvsnas_jax\n"
        "assert 'jax' not in sys.modules\n"
        f"segmenter = dvsnas_jax.load({str(run.path)!r})\n"
        f"labels = list(segmenter.segment(np.load({str(tmp_path / 'frames.npy')!r})))\n"
        f"np.save({str(tmp_path / 'labels.npy')!r}, np.stack(labels))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), run.labels[0][1])


def test_a_network_is_traced_for_its_weights_and_for_its_program_alone(monkeypatch):
    """What a first frame waits for: shapes of maps and of the first state are computed, not traced."""
    path, calls, infer = trained.evaluated("fixed").path, [], static_net.infer

    def counted(net, *args):
        calls.append("program")
        return infer(net, *args)

    def whole(*args, **kwargs):
        raise AssertionError("the state of a training was asked for")

    monkeypatch.setattr(static_net, "infer", counted)
    monkeypatch.setattr(pretrain, "init", whole)
    segmenter = dvsnas_jax.load(path)
    state = segmenter.init()
    assert not calls
    segmenter.step(state, trained.frames("fixed")[0])
    assert calls == ["program"]
