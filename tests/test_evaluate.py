"""`dvsnas evaluate`: the same counts however the frames are read, against scikit-learn, and its tables."""

import json
import pathlib

import numpy as np
import pytest
import sklearn.metrics
import trained
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data.loading import pipeline, whole_videos
from dvsnas_jax.evaluate import evaluation, metrics, score_tables


@pytest.fixture(scope="module")
def run():
    """A run folder, its evaluation, and the labels of each sequence."""
    made = trained.evaluated("refine")
    return workdir.Workdir(made.path), made.result, made.labels


def _png(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def folder_config(run, tmp_path_factory):
    """The same videos as PNG files."""
    root, config = tmp_path_factory.mktemp("frames"), run[0].config().copy_and_resolve_references()
    for number, video in enumerate(whole_videos.find(config.data, "val")):
        for index, (frame, labels) in enumerate(zip(video.frames, video.labels, strict=True)):
            _png(root / f"images/val/video{number}/{index:04d}.png", frame)
            _png(root / f"masks/val/video{number}/{index:04d}.png", labels)
    names = pipeline.class_table(config.data).names
    with config.unlocked():
        config.data.update({"name": "folder", "dir": str(root)})
        place = "/{split}/{sequence}/{number}.png"
        config.data.folder.update({"frames": "images" + place, "masks": "masks" + place, "classes": names})
        config.data.folder.ignore = ("255",)
    return config


def _counts(result):
    pairs = {part: dict(result[part]["counts"]) for part in ("static", "cell")}
    for part in pairs.values():
        del part["flow_consistency"]  # the true flow of files is not known
    return pairs, {part: result[part]["confusion"] for part in ("static", "cell")}


def test_a_folder_of_the_same_frames_gives_the_same_counts(run, folder_config):
    folder, expected, _ = run
    before = (folder.path / "evaluation.json").read_bytes()
    result = evaluation.run(folder_config, folder, is_other_data=True)
    assert _counts(result) == _counts(expected)
    assert [row["cell"]["vc"] for row in result["sequences"]] == [row["cell"]["vc"] for row in expected["sequences"]]
    assert [row["name"] for row in result["sequences"]] == ["video0_000000", "video1_000000"]
    assert result["cell"]["flow_consistency"] is None and result["commonest_class"] is None
    assert json.loads((folder.path / "evaluation_folder_val.json").read_text()) == result
    assert (folder.path / "evaluation.json").read_bytes() == before  # the report stays what it was


def test_tf_data_reads_the_same_videos(run, folder_config):
    for config in (run[0].config(), folder_config):
        streamed = config.copy_and_resolve_references()
        streamed.data.loader = "tf"
        videos, expected = evaluation.sequences_of(streamed), whole_videos.find(config.data, "val")
        assert len(videos) == len(expected) == 2
        for video, known in zip([*videos, videos[1]], [*expected, expected[1]], strict=True):
            assert video.name == known.name
            for name in ("frames", "labels", "flow", "clean"):
                np.testing.assert_array_equal(getattr(video, name), getattr(known, name))


def test_other_data_has_to_be_asked_for_and_to_have_the_same_classes(run, folder_config):
    folder = run[0]
    with pytest.raises(errors.UserError, match="these keys differ: data.dir, data.folder.classes"):
        evaluation.run(folder_config, folder)
    other = folder_config.copy_and_resolve_references()
    with other.unlocked():
        other.data.folder.classes = ("a", "b")
    with pytest.raises(errors.UserError, match="was trained for the classes sky, .* the data has a, b"):
        evaluation.run(other, folder, is_other_data=True)


def test_counts_are_those_of_the_labels(run):
    folder, result, found_labels = run
    table = pipeline.class_table(folder.config().data)
    total = metrics.SequenceScores(table.names, (2, 4))
    truths, founds = [], []
    for video, (_, labels), row in zip(
        whole_videos.find(folder.config().data, "val"), found_labels, result["sequences"], strict=True
    ):
        own = metrics.SequenceScores(table.names, (2, 4))
        own.add(video.labels, labels, video.flow)
        assert row["cell"] == own.result() | {"key_share": 1.0} and row["num_frames"] == 6
        total.merge(own)
        truths.append(video.labels)
        founds.append(labels)
    assert result["cell"] == total.result() | total.pixel_counts() | {"key_share": 1.0}
    truth, found = np.stack(truths), np.stack(founds)
    known = truth != 255
    expected = sklearn.metrics.confusion_matrix(truth[known], found[known], labels=range(11))
    assert result["cell"]["confusion"] == expected.tolist()
    recall = sklearn.metrics.recall_score(truth[known], found[known], average=None, labels=range(11), zero_division=0)
    for name, value, present in zip(table.names, recall, expected.sum(axis=1) > 0, strict=True):
        assert result["cell"]["class_accuracies"][name] == (pytest.approx(value) if present else None)


def test_the_command_reads_by_tf_data_prints_the_same_numbers_and_refuses(run, tmp_path, capsys):
    folder, result, _ = run
    path = tmp_path / "config.py"
    values = config_lib.to_json_dict(folder.config())
    path.write_text(
        "from dvsnas_jax.core import config, overrides\n"
        "def get_config():\n"
        "    made = config.defaults()\n"
        f"    overrides.apply_values(made, {values!r}, 'here')\n"
        "    return made\n"
    )
    words = ["evaluate", f"--config={path}"]
    more = ["--config.data.loader=tf", "--per-sequence"]
    assert cli.main([*words, f"--workdir={folder.path}", *more]) == 0
    assert json.loads((folder.path / "evaluation.json").read_text()) == result
    assert result["cell"]["counts"]["flow_consistency"][1] > 0
    overall, classes, rows = capsys.readouterr().out.rstrip().split("\n\n")
    assert overall == score_tables.summary(result)
    cells = dict(zip(overall.splitlines()[1].split(), overall.splitlines()[3][28:].split(), strict=True))
    assert cells["mIoU"] == f"{100 * result['cell']['miou']:.1f}"
    assert cells["cl.acc."] == f"{100 * result['cell']['class_accuracy']:.1f}"
    assert cells["VC_4"] == f"{100 * result['cell']['vc']['4']:.1f}" and cells["ms/frame"] == "-"
    road = next(line for line in classes.splitlines() if line.startswith("road")).split()
    shares = [result[part][key]["road"] for key in ("iou", "class_accuracies") for part in ("static", "cell")]
    assert road[2:] == [f"{100 * share:.1f}" for share in shares]
    assert len(rows.splitlines()) == 5 and rows.splitlines()[2].startswith(f"{result['sequences'][0]['name']} cell")
    for more, text in (
        ([], "give one of --workdir"),
        ([f"--model={folder.path}", f"--workdir={folder.path}"], "give one of --workdir"),
        ([f"--model={folder.path}"], "is no exported folder"),
        ([f"--workdir={folder.path}", "--other-data", "--predictions=x"], "goes neither with --model"),
    ):
        assert cli.main([*words, *more]) == 2
        assert text in capsys.readouterr().err
