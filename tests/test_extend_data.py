"""A data set added at run time: one file with one record, and everything knows it."""

import numpy as np
import pytest
import trees

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import records
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import pipeline, whole_videos
from dvsnas_jax.data.prepared import prepare
from dvsnas_jax.evaluate import submission
from dvsnas_jax.train import claims, require_labels

TOY = '''
"""A toy data set: pictures/<split>/<number>.png are one video, ids/<split>/<number>.png its masks, 4 or 7."""

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import frames, labels, listing, record


def _scan(root, split, layout, options):
    found = frames.Scan()
    folder = root / "pictures" / split
    for path in listing.images(folder, found) if folder.is_dir() else ():
        mask = root / "ids" / split / path.name
        found.add("toy", int(path.stem), path, mask if mask.is_file() else None)
    return found


RECORD = record.Dataset(
    name="toy",
    order=3,
    title="A toy",
    classes=lambda options: types.ClassTable(names=("in", "out"), colors=np.array([[9, 9, 9], [0, 0, 9]], np.uint8)),
    ids=lambda options: (4, 7),
    files=record.Files(
        expected="expected pictures/<split>/<number>.png",
        layouts=("toy",),
        recognise=lambda root: "toy" if (root / "pictures").is_dir() else "",
        scan=_scan,
        code=lambda layout, options: labels.code_of({4: 0, 7: 1, 0: types.IGNORE}),
        frame_rate=5.0,
        variable="DVSNAS_TOY",
    ),
)
'''


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The data section of a toy data set that lies in a folder; its one file is in the room, and found there."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "toy.py").write_text(TOY)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "room")])
    monkeypatch.setattr(datasets, "TABLE", records.find(datasets.__name__))
    for split in ("train", "val"):
        for number in range(6):
            name = f"{split}/{number}.png"
            trees.save(tmp_path / "toy" / "pictures" / name, trees.frame(name))
            trees.save(tmp_path / "toy" / "ids" / name, trees.blocks(name, (4, 7, 0)).astype(np.uint8))
    monkeypatch.setenv("DVSNAS_TOY", str(tmp_path / "toy"))
    data = config_lib.defaults().data
    data.update({"name": "toy", "height": 30, "width": 40, "loader": "numpy", "num_frames": 2})
    return data


def test_one_file_is_a_data_set(data, tmp_path, capsys):
    assert list(datasets.TABLE) == ["synthetic", "camvid", "cityscapes", "toy", "folder"]
    clips = pipeline.load_clips(data, split="train", num_frames=2)
    np.testing.assert_array_equal(clips.frames[1, 0], trees.frame("train/1.png"))
    ids = trees.blocks("train/2.png", (4, 7, 0))
    np.testing.assert_array_equal(clips.labels[1, 1], np.select([ids == 4, ids == 7], [0, 1], 255))
    assert len(clips.frames) == 5 and pipeline.class_table(data).names == ("in", "out")
    assert cli.main(["data", "check", str(tmp_path / "toy")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'toy'}: toy\n")
    assert cli.main(["data", "check", str(tmp_path / "toy"), "--layout=toy"]) == 0
    assert cli.main(["data", "check", str(tmp_path / "toy"), "--layout=kitti"]) == 2
    assert "--layout: must be one of auto, camvid, cityscapes, toy, folder" in capsys.readouterr().err


def test_it_is_trained_on_prepared_and_written_like_the_others(data, tmp_path):
    config = config_lib.defaults()
    config.data = data
    assert require_labels.check(config, is_rewarded=True, is_evaluated=True) == 5
    assert claims.describe(data)["val"]["frames"] == 6
    assert prepare.run(data, tmp_path / "out").path == tmp_path / "out" / "toy_clips" / "1.0.0"
    writer = submission.Writer(data, "val", tmp_path / "predictions")
    writer.add(0, whole_videos.find(data, "val")[0].labels)
    assert [path.name for path in writer.paths] == [f"toy_{number}.png" for number in range(6)]
    data.prepared = str(tmp_path / "out")
    clips = pipeline.load_clips(data, split="val", num_frames=2)
    np.testing.assert_array_equal(clips.frames[4, 1], trees.frame("val/5.png"))
    own = config_lib.defaults().data
    own.update({"name": "folder", "dir": str(tmp_path / "toy")})
    own.folder.update({"frames": "pictures/{split}/{number}.png", "classes": ("toy",)})
    assert pipeline.class_table(own).names == ("in", "out")  # its name stands for its classes
