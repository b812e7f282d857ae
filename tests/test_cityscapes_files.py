"""The real files of CityScapes at their full size: layout, preparation, scores of the owners' evaluator.

DVSNAS_CITYSCAPES_STILLS names a folder of stills in the official layout whose train split has human labels.
"""

import json
import os
import pathlib

import numpy as np
import pytest
import trained
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.data import check, datasets
from dvsnas_jax.data.datasets import camvid
from dvsnas_jax.data.loading import extra, store, whole_videos
from dvsnas_jax.data.prepared import prepare
from dvsnas_jax.evaluate import evaluation, metrics, submission

WHOLE = (1024, 2048)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The training stills, those of one city as the val split, too: by links, nothing is copied."""
    there = pathlib.Path(os.environ.get("DVSNAS_CITYSCAPES_STILLS", ""))
    if not (there / "leftImg8bit" / "train").is_dir():
        pytest.skip("DVSNAS_CITYSCAPES_STILLS names no folder of real stills (leftImg8bit/train, gtFine/train)")
    root = tmp_path_factory.mktemp("stills")
    for kind in ("leftImg8bit", "gtFine"):
        cities = sorted((there.resolve() / kind / "train").iterdir())
        for split, chosen in (("train", cities), ("val", cities[:1])):
            (root / kind / split).mkdir(parents=True)
            for city in chosen:
                (root / kind / split / city.name).symlink_to(city)
    return root


def _config(root, **changes):
    values = {"data.name": "cityscapes", "data.dir": str(root), "data.history": "stills"}
    return config_lib.load(None, {**values, "data.height": "32", "data.width": "64", **changes})


def test_stills_are_recognised_prepared_and_read_back(root, tmp_path):
    there = os.environ["DVSNAS_CITYSCAPES_STILLS"]
    report = check.run(there, "auto", datasets.options(config_lib.defaults().data))
    assert not report.problems and "cityscapes" in check.text(report) and "2048x1024" in check.text(report)
    config = _config(root)
    prepare.run(config.data, tmp_path, splits=("val",))
    own = store.load(config.data, "val")
    prepared = store.load(_config(root, **{"data.prepared": str(tmp_path)}).data, "val")
    np.testing.assert_array_equal(own.frames, prepared.frames)
    np.testing.assert_array_equal(own.labels, prepared.labels)


def test_their_evaluator_gives_our_scores_at_the_full_size(root, tmp_path):
    data = _config(root).data
    source = whole_videos.find(data, "val", has_file_labels=True)
    total = metrics.SequenceScores(tuple(datasets.class_table(data).names))
    writer = submission.Writer(data, "val", tmp_path)
    for number in range(len(source)):
        labels, rng = source[number].labels, np.random.default_rng(number)
        assert labels.shape == (1, *WHOLE)
        blocks = rng.integers(0, 19, (1, 32, 64), np.uint8).repeat(32, 1).repeat(32, 2)
        is_wrong = (rng.random((1, 32, 64)) < 0.4).repeat(32, 1).repeat(32, 2) | (labels == types.IGNORE)
        found = np.where(is_wrong, blocks, labels).astype(np.uint8)
        total.add(labels, found)
        writer.add(number, found)
    assert {Image.open(path).size for path in writer.paths} == {WHOLE[::-1]}
    with submission.ground_truth(data, "val") as truth:
        official = datasets.TABLE["cityscapes"].submission.score(tmp_path, truth)
    expected = total.result()
    assert official["miou"] == pytest.approx(expected["miou"], abs=1e-12) and 0.1 < official["miou"] < 0.7
    for ours, theirs in zip(expected["iou"].values(), official["iou"].values(), strict=True):
        assert ours == (None if theirs is None else pytest.approx(theirs, abs=1e-12))


def test_human_labels_in_the_classes_of_camvid(root):
    data = _config(root).data.copy_and_resolve_references().unlock()
    data.update({"name": "camvid", "height": WHOLE[0] // 4, "width": WHOLE[1] // 4})
    data.extra = (f"cityscapes:{root}:0.5",)
    (found,) = extra.find(data)
    (frame,) = found.clips(np.arange(1), 1, 0, is_augmented=False).labels[:, 0]
    groups = {"sky": 23, "road": 7, "pavement": 8, "pedestrian": 24}
    raw = [np.asarray(Image.open(each.label))[2::4, 2::4] for each in found.frames]
    (same,) = [each for each in raw if ((each == 7) == (frame == camvid.CLASSES.names.index("road"))).all()]
    for name, value in groups.items():
        assert ((same == value) == (frame == camvid.CLASSES.names.index(name))).all()


@pytest.mark.slow  # a network and a cell at 2048x1024
def test_predictions_of_a_run_are_scored_alike_at_the_full_size(root, tmp_path, capsys):
    config = trained.make_config("refine")
    config.data.update({"name": "cityscapes", "dir": str(root), "history": "stills"})
    config.evaluate.size = "file"
    path = trained.write(tmp_path / "run", "refine", config)
    assert cli.main(["evaluate", f"--workdir={path}", f"--predictions={tmp_path / 'found'}"]) == 0
    with submission.ground_truth(config.data, "val") as truth:
        official = datasets.TABLE["cityscapes"].submission.score(tmp_path / "found", truth)
    result = json.loads((path / evaluation.RESULT).read_text())
    assert result["size"] == "file" and result["cell"]["miou"] == pytest.approx(official["miou"], abs=1e-12)
    assert result["cell"]["miou"] != result["static"]["miou"]
    assert f"{100 * official['miou']:.1f} mIoU of the cell" in capsys.readouterr().out
    assert {Image.open(each).size for each in (tmp_path / "found").iterdir()} == {WHOLE[::-1]}
