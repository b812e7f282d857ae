"""Predictions as files: Cityscapes' own evaluator gives the scores of `evaluate.metrics`."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import whole_videos
from dvsnas_jax.data.prepared import prepare
from dvsnas_jax.evaluate import metrics, submission
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import features, pretrain, winners

SMOKE = str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "smoke.py")
ROAD, SIDEWALK, BICYCLE = (0, 7), (1, 8), (18, 33)
"""Train id and original id, from the paper's table."""


@pytest.fixture
def cityscapes(tmp_path):
    return trees.cityscapes(tmp_path / "cityscapes", size=(32, 16))


def _data(root, name="cityscapes", **changes):
    data = config_lib.defaults().data
    data.update({"name": name, "dir": str(root), "height": 16, "width": 32, **changes})
    return data


def _noisy(data, split, missing=()):
    """A network that is right on about 7 of 10 pixels and never answers the classes `missing`."""
    truth = {video.frames.tobytes(): video.labels for video in whole_videos.find(data, split)}

    def segment(video):
        labels = truth[video.tobytes()]
        rng = np.random.default_rng(int(video[-1].sum()))
        guess = rng.integers(0, 19, labels.shape).astype(np.uint8)
        found = np.where((rng.random(labels.shape) < 0.3) | (labels == types.IGNORE), guess, labels)
        return guess, np.where(np.isin(found, missing), 0, found).astype(np.uint8)

    return segment


def _expected(data, split, segment):
    """The scores of our own metrics at the size of the data section."""
    videos = whole_videos.find(data, split)
    total = metrics.SequenceScores(tuple(str(k) for k in range(19)))
    for video in videos:
        total.add(video.labels, segment(video.frames)[1])
    return total.result()


@pytest.mark.parametrize("is_video", [True, False])
def test_official_evaluator_agrees(tmp_path, is_video):
    root = trees.cityscapes(tmp_path / "cityscapes", size=(32, 16), is_video=is_video)
    for path in root.glob("gtFine/*/*/*labelIds.png"):  # no bicycle anywhere
        labels = np.asarray(Image.open(path))
        trees.save(path, np.where(labels == BICYCLE[1], 0, labels).astype(np.uint8))
    data = _data(root)
    segment = _noisy(data, "val", missing=(SIDEWALK[0], BICYCLE[0]))
    expected = _expected(data, "val", segment)
    paths = submission.write(segment, data, "val", tmp_path / "results")
    assert sorted(path.name for path in paths) == [
        "frankfurt_000000_000294_pred_labelIds.png",
        "frankfurt_000000_000576_pred_labelIds.png",
        "munster_000173_000019_pred_labelIds.png",
    ]
    with submission.ground_truth(data, "val") as labels:
        assert all(path.name.endswith("_gtFine_labelIds.png") for path in labels) and len(labels) == 3
        scores = datasets.TABLE["cityscapes"].submission.score(tmp_path / "results", labels)
    assert scores["miou"] == pytest.approx(expected["miou"], abs=1e-12) and 0.3 < scores["miou"] < 0.8
    assert list(scores["iou"])[:2] == ["road", "sidewalk"] and len(scores["iou"]) == 19
    assert scores["iou"]["sidewalk"] == 0 and scores["iou"]["bicycle"] is None
    for ours, theirs in zip(expected["iou"].values(), scores["iou"].values(), strict=True):
        assert ours == (None if theirs is None else pytest.approx(theirs, abs=1e-12))


def test_original_ids_at_the_original_size(cityscapes, tmp_path):
    data = _data(cityscapes, height=8, width=16)
    answer = np.zeros((8, 16), np.uint8)
    answer[:, 8:], answer[4:, :4] = BICYCLE[0], SIDEWALK[0]

    def segment(video):
        return np.zeros((len(video), 8, 16), np.uint8), np.broadcast_to(answer, (len(video), 8, 16))

    paths = submission.write(segment, data, "test", tmp_path / "results")
    assert [path.name for path in paths] == ["berlin_000000_000019_pred_labelIds.png"]
    image = Image.open(paths[0])
    assert image.mode == "L" and image.size == (32, 16)
    expected = np.full((16, 32), ROAD[1], np.uint8)
    expected[:, 16:], expected[8:, :8] = BICYCLE[1], SIDEWALK[1]
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_prepared_dataset_is_scored_alike(cityscapes, tmp_path):
    data = _data(cityscapes, num_frames=2)
    prepare.run(data, tmp_path / "prepared", splits=("val",))
    segment = _noisy(data, "val")
    # by the last frame alone, as the history of a prepared clip is shorter
    last = {video.frames[-1].tobytes(): segment(video.frames)[1][-1:] for video in whole_videos.find(data, "val")}

    def repeat(video):
        return None, np.repeat(last[video[-1].tobytes()], len(video), axis=0)

    found = []
    for folder in ("", str(tmp_path / "prepared")):
        data.prepared = folder
        paths = submission.write(repeat, data, "val", tmp_path / "results")
        with submission.ground_truth(data, "val") as labels:
            scores = datasets.TABLE["cityscapes"].submission.score(tmp_path / "results", labels)
        found.append([scores, {path.name: path.read_bytes() for path in paths}])
    assert found[0] == found[1] and len(found[0][1]) == 3


def test_datasets_of_plain_ids_get_train_ids(tmp_path):
    root = trees.camvid_official(tmp_path / "camvid", is_video=True)
    data = _data(root, name="camvid", height=30, width=40, eval_gap=1)
    labels = {}

    def segment(video):
        found = np.random.default_rng(int(video.sum())).integers(0, 11, video.shape[:3]).astype(np.uint8)
        labels[video.tobytes()] = found
        return found, found

    paths = submission.write(segment, data, "val", tmp_path / "results")
    assert [path.name for path in paths] == [f"{name}.png" for name in trees.SEGNET["val"]]  # labelled ones alone
    (video,) = whole_videos.find(data, "val")
    places = [number - 7951 for number in (7959, 7961, 7963, 7965, 7969)]
    for path, place in zip(paths, places, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), labels[video.frames.tobytes()][place])
    data = config_lib.defaults().data
    data.update({"num_val_clips": 1, "val_frames": 2, "height": 16, "width": 16})
    paths = submission.write(lambda video: (None, np.ones(video.shape[:3], np.uint8)), data, "val", tmp_path / "s")
    assert [path.name for path in paths] == ["val00000_000000.png", "val00000_000001.png"]


def _folder_data(root, **folder):
    frames_and_masks = {
        "frames": "images/{split}/{sequence}/{number}.png",
        "masks": "masks/{split}/{sequence}/{number}.png",
    }
    data = _data(root, name="folder", height=30, width=40, eval_gap=1)
    data.folder.update({**frames_and_masks, **folder})
    return data


@pytest.mark.parametrize("kind", ["ids", "many ids", "colors"])
def test_predictions_are_labels_of_the_same_config(kind, tmp_path):
    """The ids, or colours, that it reads: exactly the labels of the folder where the network is right."""
    ids = {"ids": ("9", "0", "255"), "many ids": ("9", "0", "1000"), "colors": None}[kind]
    colors = ("#102030", "#00ff00", "#ff0001")
    own = {"ids": ids} if ids else {"labels": "colors", "colors": colors}
    for number in range(3):
        trees.save(tmp_path / "d" / "images" / "val" / "v" / f"{number}.png", trees.frame(f"{number}"))
        labels = trees.blocks(f"{number}", range(3))
        values = (
            np.array([int(i) for i in ids], np.uint16)
            if ids
            else [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors]
        )
        values = np.array(values).astype(np.uint16 if kind == "many ids" else np.uint8)[labels]
        trees.save(tmp_path / "d" / "masks" / "val" / "v" / f"{number}.png", values)
    data = _folder_data(tmp_path / "d", classes=("a", "b", "c"), ignore=(), **own)
    writer = submission.Writer(data, "val", tmp_path / "p", is_color=kind == "colors")
    for number, each in enumerate(whole_videos.find(data, "val")):
        writer.add(number, each.labels)
    assert [path.name for path in writer.paths] == ["v_0.png", "v_1.png", "v_2.png"]
    for path in writer.paths:
        truth = tmp_path / "d" / "masks" / "val" / "v" / path.name.removeprefix("v_")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(truth)))


def test_colours_of_cityscapes_have_the_official_name(cityscapes, tmp_path):
    data = _data(cityscapes)
    writer = submission.Writer(data, "test", tmp_path / "p", is_color=True)
    writer.add(0, np.full((len(writer.videos.runs[0]), 16, 32), BICYCLE[0], np.uint8))
    assert [path.name for path in writer.paths] == ["berlin_000000_000019_pred_color.png"]
    assert np.asarray(Image.open(writer.paths[0]))[3, 4].tolist() == [119, 11, 32]


def test_names():
    def name(dataset, sequence, image):
        return submission.file_name(datasets.TABLE[dataset], frames.Frame(sequence, 1, pathlib.Path(image), None))

    assert name("cityscapes", "bonn_000001", "bonn_000001_000019_leftImg8bit.png") == (
        "bonn_000001_000019_pred_labelIds.png"
    )
    assert name("camvid", "0006R0", "x/0006R0_f00930.png") == "0006R0_f00930.png"
    assert name("camvid", "0006R0", "x/00931.png") == "0006R0_00931.png"
    assert name("folder", "a/b", "x/0001.jpg") == "a_b_0001.png"


def test_what_is_wrong_is_told(cityscapes, tmp_path):
    data = _data(cityscapes)
    paths = submission.write(_noisy(data, "val"), data, "val", tmp_path / "results")
    with submission.ground_truth(data, "val") as labels:
        (tmp_path / "results" / "more").mkdir()
        copy = paths[0].rename(tmp_path / "results" / "more" / "frankfurt_000000_000294_again.png")
        trees.save(paths[0], np.asarray(Image.open(copy)))
        for wrong in ("Found multiple predictions", "Found no prediction", "widths"):
            with pytest.raises(errors.UserError, match=wrong) as caught:
                datasets.TABLE["cityscapes"].submission.score(tmp_path / "results", labels)
            assert "\n" not in str(caught.value)
            if wrong.startswith("Found multiple"):
                copy.unlink()
                paths[0].unlink()
            else:
                trees.save(paths[0], np.zeros((16, 30), np.uint8))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="--predictions: cannot write"):
        submission.write(_noisy(data, "val"), data, "val", tmp_path / "file")
    with (
        pytest.raises(errors.UserError, match="scores Cityscapes"),
        submission.ground_truth(config_lib.defaults().data, "val"),
    ):
        pass


def _run_folder(words, path):
    """A run folder as after training, of drawn weights."""
    overrides = dict(word.removeprefix("--config.").split("=") for word in words)
    config, folder = config_lib.load(SMOKE, overrides), workdir.Workdir(path)
    folder.claim(config)
    net = static_net.make(config.net, 19)
    state = pretrain.init(static_net.init(net, jax.random.key(0)), pretrain.make_optimizer(config.pretrain))
    folder.checkpointer(pretrain.STAGE).save(config.pretrain.steps, state)
    space, genotype = genotype_lib.from_dict(
        {
            "version": 1,
            "inputs": ["prev_state", "decoder"],
            "layers": [{"in": ["prev_state", "decoder"], "ops": ["skip", "skip"], "agg": "sum"}],
        }
    )
    cell = cell_lib.make(space, genotype, features.settings_of(config))
    params = jax.jit(cell.init)(jax.random.key(1))
    moments = {name: (jnp.zeros_like(a), jnp.ones_like(b)) for name, (a, b) in winners.moment_shapes(params).items()}
    winners.save(folder, space, genotype, cell_lib.freeze_norm(params, moments))


def test_command(cityscapes, tmp_path, capsys):
    """The files score what the table says."""
    words = ["--config.data.name=cityscapes", f"--config.data.dir={cityscapes}", "--config.data.frame_gap=3"]
    words += ["--config.data.height=32", "--config.data.width=64", "--config.data.loader=numpy"]
    words += ["--config.data.eval_gap=19", "--config.net.decoder_channels=8", "--config.space.channels=4"]
    _run_folder(words, tmp_path / "run")
    command = ["evaluate", f"--config={SMOKE}", f"--workdir={tmp_path / 'run'}", *words]
    assert cli.main([*command, f"--predictions={tmp_path / 'results'}"]) == 0
    said = capsys.readouterr().out
    assert f"written: 3 predictions of val in {tmp_path / 'results'}" in said
    assert len(list((tmp_path / "results").glob("*_pred_labelIds.png"))) == 3
    assert cli.main([*command, "--colors"]) == errors.EXIT_USER
    assert "--colors: is a kind of predictions, give --predictions as well" in capsys.readouterr().err
    official = float(re.search(r"official evaluator: ([\d.]+) mIoU of the cell over 3 frames", said)[1])
    # the table is of twice the size on disk: of four answers there the file keeps one
    table = float(re.search(r"with the cell +([\d.]+)", said)[1])
    assert table > 0 and abs(official - table) < 2
    # At the size of the label files both are of the same pixels.
    command += ["--config.evaluate.size=file", f"--predictions={tmp_path / 'exact'}"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    official = re.search(r"official evaluator: ([\d.]+) mIoU of the cell over 3 frames", said)[1]
    assert re.search(r"with the cell +([\d.]+)", said)[1] == official
