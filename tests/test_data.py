"""Folders, clips and batches: composition, errors, equality of the two loaders, restarts."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import datasets, preview
from dvsnas_jax.data.datasets import camvid, labels
from dvsnas_jax.data.loading import clip_index, example_order, pipeline, whole_videos
from dvsnas_jax.data.prepared import builders
from dvsnas_jax.data.street import synthetic

TRAIN_NAMES = [f"0006R0_f{n:05d}" for n in (930, 960, 990, 1020, 1080)] + [f"Seq05VD_f{n:05d}" for n in (0, 30, 62)]
VAL_NAMES = [f"0016E5_{n:05d}" for n in (7959, 7961, 7963, 7967, 7969)] + ["0001TP_006690"]


def _tiny(**changes):
    data = config_lib.defaults().data
    data.update(
        {
            "num_train_clips": 6,
            "num_val_clips": 2,
            "val_frames": 5,
            "height": 24,
            "width": 32,
            "crop_height": 24,
            "crop_width": 32,
            "num_frames": 3,
            "loader": "numpy",
        }
    )
    data.update(changes)
    return data


def _plain(**changes):
    return _tiny(**{"flip": False, "scale": (1.0, 1.0), "jitter": 0.0, **changes})


@pytest.fixture
def tree(tmp_path):
    """A small dataset in the SegNet layout, 40x30 pixels; image i is about as bright as 10 i."""
    rng = np.random.default_rng(0)
    for split, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES)):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for i, name in enumerate(names):
            frame = (rng.integers(0, 20, (30, 40, 3)) + 10 * i).astype(np.uint8)
            labels = np.kron(rng.integers(0, 12, (6, 8)), np.ones((5, 5))).astype(np.uint8)
            Image.fromarray(frame).save(tmp_path / split / f"{name}.png")
            Image.fromarray(labels).save(tmp_path / f"{split}annot" / f"{name}.png")
    return tmp_path


def _camvid(tree, **changes):
    return _plain(**{"name": "camvid", "dir": str(tree), "frame_gap": 30, "eval_gap": 2, **changes})


# --- class table ----------------------------------------------------------------------------------


def test_class_table_and_colours():
    table = pipeline.class_table(_tiny())
    assert table.num_classes == 11 and table.names[0] == "sky" and table.names[10] == "bicyclist"
    painted = labels.colorize(np.array([[3, 255], [8, 11]], np.uint8), camvid.CLASSES)
    np.testing.assert_array_equal(painted, [[[128, 64, 128], [0, 0, 0]], [[64, 0, 128], [0, 0, 0]]])


# --- synthetic clips ------------------------------------------------------------------------------


def test_load_clips_equals_the_generator():
    data = _tiny()
    clips = pipeline.load_clips(data, split="train", num_frames=3)
    assert clips.frames.shape == (6, 3, 24, 32, 3) and pipeline.num_clips(data, "train", 3) == 6
    video = synthetic.Street(0, "train", 24, 32).clip(4, 3)
    np.testing.assert_array_equal(clips.frames[4], video.frames)
    np.testing.assert_array_equal(clips.labels[4], video.labels)
    single = pipeline.load_clips(data, split="train", num_frames=1)
    np.testing.assert_array_equal(single.frames[:, 0], clips.frames[:, 2])  # the targets, whatever T is


def test_sequences_and_val_clips_of_synthetic():
    data = _tiny()
    videos = whole_videos.find(data, "val")
    assert [video.frames.shape for video in videos] == [(5, 24, 32, 3)] * 2 and videos[0].flow is not None
    clips = pipeline.load_clips(data, split="val", num_frames=2)
    assert len(clips.frames) == 4 == pipeline.num_clips(data, "val", 2)
    np.testing.assert_array_equal(clips.frames[3], videos[1].frames[2:4])
    with pytest.raises(errors.UserError, match="clips have 5 frames, 9 are asked for; raise data.val_frames"):
        pipeline.num_clips(data, "val", 9)


def test_synthetic_needs_no_tensorflow():
    code = (
        "import sys; from dvsnas_jax.core import config; from dvsnas_jax.data import preview\n"
        "from dvsnas_jax.data.loading import pipeline, whole_videos; from dvsnas_jax.data.prepared import builders\n"
        "d = config.defaults().data; d.num_train_clips = 1; d.height = d.width = 24\n"
        "next(pipeline.train_batches(d, batch_size=1, num_frames=1, seed=0))\n"
        "assert not {m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'tensorflow_datasets')}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- batches --------------------------------------------------------------------------------------


def _take(data, count, **kwargs):
    batches = pipeline.train_batches(data, **{"batch_size": 4, "num_frames": 2, "seed": 7, **kwargs})
    return [next(batches) for _ in range(count)]


def _assert_same(a, b):
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("loader", ["numpy", "tf"])
@pytest.mark.parametrize("history", ["frames", "stills"])
def test_batch_is_a_function_of_seed_and_step(loader, history):
    data = _tiny(loader=loader, history=history)
    whole = _take(data, 5)
    for got, want in zip(_take(data, 2, part=example_order.Part(3)), whole[3:], strict=True):
        _assert_same(got, want)
    assert (whole[0].frames != whole[1].frames).any()
    assert (whole[0].frames != _take(data, 1, seed=8)[0].frames).any()
    assert whole[0].frames.shape == (4, 2, 24, 32, 3) and whole[0].labels.shape == (4, 2, 24, 32)


def test_every_epoch_shows_every_clip_once():
    data = _plain()
    clips = pipeline.load_clips(data, split="train", num_frames=3)
    orders = []
    for batch in _take(data, 4, batch_size=6, num_frames=3):
        order = [next(i for i in range(6) if (clips.frames[i] == frames).all()) for frames in batch.frames]
        assert sorted(order) == list(range(6))
        orders.append(order)
    assert len({tuple(order) for order in orders}) > 1


def test_short_clips_are_any_frames_of_the_long_ones():
    data = _plain()
    clips = pipeline.load_clips(data, split="train", num_frames=3)
    starts = set()
    for batch in _take(data, 6, batch_size=6, num_frames=2):
        for frames in batch.frames:
            starts |= {s for i in range(6) for s in range(2) if (clips.frames[i, s : s + 2] == frames).all()}
    assert starts == {0, 1}


def test_indices_restrict_the_clips():
    data = _plain()
    clips = pipeline.load_clips(data, split="train", num_frames=3)
    for batch in _take(data, 3, num_frames=3, indices=[5, 2]):
        for frames in batch.frames:
            assert (frames == clips.frames[5]).all() or (frames == clips.frames[2]).all()
    with pytest.raises(errors.UserError, match=r"clip numbers must be in 0\.\.5"):
        _take(data, 1, indices=[6])


@pytest.mark.parametrize("name", ["synthetic", "camvid"])
def test_both_loaders_agree_without_augmentation(name, tree):
    data = _plain() if name == "synthetic" else _camvid(tree)
    batches = {}
    for loader in ("numpy", "tf"):
        data.loader = loader
        batches[loader] = _take(data, 3)
    for ours, theirs in zip(batches["numpy"], batches["tf"], strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= (0 if name == "synthetic" else 2)


# --- stills ----------------------------------------------------------------------------------------


def test_load_clips_of_stills_is_deterministic(tree):
    data = _camvid(tree, history="stills", jitter=0.2)
    a, b = (pipeline.load_clips(data, split="train", num_frames=3) for _ in range(2))
    _assert_same(a, b)
    assert len(a.frames) == len(TRAIN_NAMES)
    single = pipeline.load_clips(data, split="train", num_frames=1)
    np.testing.assert_array_equal(a.frames[:, -1], single.frames[:, 0])
    np.testing.assert_array_equal(a.labels[:, -1], single.labels[:, 0])
    moved = [(a.frames[i, 0] != a.frames[i, 2]).any() for i in range(len(a.frames))]
    assert len(moved) / 2 < sum(moved) < len(moved)  # one camera stands still
    data.still_motion = "shake"
    a = pipeline.load_clips(data, split="train", num_frames=3)
    assert all((a.frames[i, 0] != a.frames[i, 2]).any() for i in range(len(a.frames)))


# --- folders --------------------------------------------------------------------------------------


def test_clips_by_sequence_and_number(tree):
    frames = datasets.find(_camvid(tree), "train").frames
    names = [frame.image.stem for frame in frames]
    assert names == TRAIN_NAMES
    clips = [[names[i] for i in clip] for clip in clip_index.clips(frames, 3, 30, 0)]
    assert clips == [[f"0006R0_f{n:05d}" for n in numbers] for numbers in ((930, 960, 990), (960, 990, 1020))]
    clips = [[names[i] for i in clip] for clip in clip_index.clips(frames, 3, 30, 2)]
    assert clips[2] == ["Seq05VD_f00000", "Seq05VD_f00030", "Seq05VD_f00062"] and len(clips) == 3
    assert clip_index.clips(frames, 2, 60, 0).shape == (3, 2)  # 930-990, 960-1020, 1020-1080
    assert clip_index.clips(frames, 1, 30, 0).shape == (8, 1)


def test_runs_of_the_val_split(tree):
    videos = whole_videos.find(_camvid(tree), "val")
    assert [(video.name, len(video.frames)) for video in videos] == [
        ("0001TP_006690", 1),
        ("0016E5_007959", 3),
        ("0016E5_007967", 2),
    ]


def test_void_is_ignored_and_resizing_keeps_labels(tree):
    clips = pipeline.load_clips(_camvid(tree, height=30, width=40), split="train", num_frames=1)
    stored = np.asarray(Image.open(tree / "trainannot" / f"{TRAIN_NAMES[2]}.png"))
    np.testing.assert_array_equal(clips.labels[2, 0], np.where(stored == 11, 255, stored))
    np.testing.assert_array_equal(clips.frames[2, 0], np.asarray(Image.open(tree / "train" / f"{TRAIN_NAMES[2]}.png")))
    np.testing.assert_array_equal(image_files.nearest(4, 2), [1, 3])
    np.testing.assert_array_equal(image_files.nearest(5, 5), np.arange(5))
    np.testing.assert_array_equal(image_files.nearest(2, 4), [0, 0, 1, 1])


def _broken(tree, loader, **changes):
    datasets.find_in.cache_clear()
    data = _camvid(tree, loader=loader, **changes)
    with pytest.raises(errors.UserError) as caught:
        _take(data, 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("loader", ["numpy", "tf"])
def test_errors_of_folders(tree, loader, monkeypatch):
    monkeypatch.delenv("DVSNAS_CAMVID", raising=False)
    assert "expected {train,val,test}/<sequence>" in _broken(tree / "nowhere", loader)
    assert "no dataset folder given" in _broken("", loader)
    message = _broken(tree, loader, frame_gap=7)
    assert (
        "no 2 frames 7 +- 0 apart" in message
        and "gaps that exist: 30 (4 times)" in message
        and "60 (1 times)" in message
    )
    (tree / "empty" / "train").mkdir(parents=True)
    assert "no frames; expected" in _broken(tree / "empty", loader)
    label = tree / "trainannot" / f"{TRAIN_NAMES[1]}.png"
    good = label.read_bytes()
    label.unlink()
    assert f"its label image {label} is missing" in _broken(tree, loader)
    Image.fromarray(np.zeros((15, 20), np.uint8)).save(label)
    message = _broken(tree, loader)
    assert str(label) in message and "20x15 pixels" in message and "40x30" in message
    Image.fromarray(np.full((30, 40), 17, np.uint8)).save(label)
    assert f"{label}: label id 17 is out of range" in _broken(tree, loader)
    label.write_bytes(good)
    frame = tree / "train" / f"{TRAIN_NAMES[3]}.png"
    frame.write_bytes(frame.read_bytes()[:200])
    assert f"{frame}: not a readable" in _broken(tree, loader)
    frame.write_bytes(b"no picture")
    assert f"{frame}: not a readable" in _broken(tree, loader)


def test_errors_of_names_and_annotations(tree):
    (tree / "train" / "picture.png").write_bytes(b"")
    assert "is not <sequence>_<frame number>.png" in _broken(tree, "numpy")
    (tree / "train" / "picture.png").unlink()
    (tree / "trainannot").rename(tree / "labels")
    assert "trainannot: no such folder" in _broken(tree, "numpy")


def test_errors_of_the_configuration(tree):
    for changes, text in (
        ({"name": "kitti"}, "unknown dataset 'kitti'; use one of synthetic, camvid"),
        ({"history": "past"}, "unknown value 'past'"),
        ({"loader": "torch"}, "unknown loader 'torch'"),
        ({"scale": (1.5, 0.5)}, "is no range of scales"),
    ):
        with pytest.raises(errors.UserError, match=text):
            _take(_tiny(**changes), 1)
    with pytest.raises(errors.UserError, match="no two frames are 3 apart; gaps that exist: 2"):
        whole_videos.find(_camvid(tree, eval_gap=3), "val")
    with pytest.raises(errors.UserError, match="unknown name 'dev'"):
        pipeline.num_clips(_tiny(), "dev", 1)


# --- TFDS and preview -----------------------------------------------------------------------------


def test_tfds_builder_equals_the_generator(tmp_path):
    builder = builders.clips(
        "synthetic", data_dir=tmp_path, seed=2, num_train_clips=2, num_val_clips=1, num_frames=2, height=16, width=24
    )
    builder.download_and_prepare()
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {"train": 2, "val": 1, "test": 1}
    for split, count in (("train", 2), ("val", 1)):
        examples = {
            example["name"].decode(): example for example in builder.as_dataset(split=split).as_numpy_iterator()
        }
        assert len(examples) == count
        for index in range(count):
            video = synthetic.Street(2, split, 16, 24).clip(index, 2)
            np.testing.assert_array_equal(examples[video.name]["frames"], video.frames)
            np.testing.assert_array_equal(examples[video.name]["labels"], video.labels)


def test_preview_shows_frames_over_labels(tmp_path):
    data = _tiny()
    sheet = preview.render(data, num_clips=2, num_frames=3)
    video = whole_videos.find(data, "val")[0]
    np.testing.assert_array_equal(sheet[:24, 36:68], video.frames[1])
    np.testing.assert_array_equal(sheet[28:52, 36:68], labels.colorize(video.labels[1], camvid.CLASSES))
    preview.save(data, tmp_path / "sheet.png", num_clips=2, num_frames=3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet)
    preview.save(data, tmp_path / "new" / "sheet.png", num_clips=2, num_frames=3)  # its folder is made
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "sheet.png")), sheet)
    with pytest.raises(errors.UserError, match=f"{tmp_path / 'sheet.png'}.*choose another --output"):
        preview.save(data, tmp_path / "sheet.png" / "sheet.png")


# --- real CamVid ----------------------------------------------------------------------------------


def test_real_camvid():
    folder = os.environ.get("DVSNAS_CAMVID", "")
    if not folder:
        pytest.skip("DVSNAS_CAMVID names no folder with the real CamVid")
    data = _plain(name="camvid", dir="", frame_gap=30, eval_gap=2)
    assert pipeline.num_clips(data, "train", 1) == 367
    numbers = {frame: i for i, frame in enumerate((f.sequence, f.number) for f in datasets.find(data, "train").frames)}
    expected = sum(all((sequence, number - 30 * back) in numbers for back in range(4)) for sequence, number in numbers)
    assert pipeline.num_clips(data, "train", 4) == expected > 300
    videos = whole_videos.find(data, "val")
    assert [(video.name, len(video.frames)) for video in videos] == [("0016E5_007959", 101)]
    known = videos[0].labels[videos[0].labels != 255]
    assert known.max() <= 10 and (known == 3).mean() > 0.15  # road
