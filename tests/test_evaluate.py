"""`dvsnas evaluate`: the same counts however the frames are read, against scikit-learn, and its tables."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
import sklearn.metrics
import trained
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data.loading import pipeline, whole_videos
from dvsnas_jax.deploy import run_model
from dvsnas_jax.evaluate import baselines, evaluation, metrics, score_tables, timing
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import pretrain


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
        videos, expected = whole_videos.open_split(streamed.data, "val"), whole_videos.find(config.data, "val")
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


@pytest.fixture(scope="module")
def model(run):
    """The run's network and cell, jitted."""
    return run_model.jit(run[0].config(), run_model.read(run[0].config(), run[0])[0])


@pytest.fixture(scope="module")
def large_config(folder_config, tmp_path_factory):
    """The same videos as files of 2 x 3 times the size, with labels that no file of the frames' size could have."""
    root, small = tmp_path_factory.mktemp("large"), pathlib.Path(folder_config.data.dir)
    for path in small.glob("*/val/*/*.png"):
        pixels = np.asarray(Image.open(path)).repeat(2, axis=0).repeat(3, axis=1)
        if "masks" in path.parts:
            pixels[::2, ::3] = 1
        _png(root / path.relative_to(small), pixels)
    config = folder_config.copy_and_resolve_references()
    config.data.dir = str(root)
    config.evaluate.size = "file"
    return config


def _is_alike(a, b):
    """Up to ties of the arg-max."""
    assert a.shape == b.shape and (a != b).mean() < 1e-3


def test_scores_at_the_size_of_the_label_files(run, model, large_config):
    folder, seen = run[0], []
    watch_fn = lambda number, video, static, cell: seen.append((video, static, cell))  # noqa: E731
    result = evaluation.run(large_config, folder, watch_fn=watch_fn, is_other_data=True)
    expected = np.zeros((11, 11), int)
    for number, (video, static, cell) in enumerate(seen):
        folder_of = pathlib.Path(large_config.data.dir) / f"masks/val/video{number}"
        truth = np.stack([np.asarray(Image.open(folder_of / f"{index:04d}.png")) for index in range(6)])
        assert video.frames.shape == (6, 34, 70, 3)
        np.testing.assert_array_equal(video.labels, truth)
        known = truth != 255
        expected += sklearn.metrics.confusion_matrix(truth[known], cell[known], labels=range(11))
        state = model.initial_state()
        for index, frame in enumerate(video.frames):
            state, _ = model.step(state, frame[None])
            _is_alike(cell[index], np.asarray(static_net.predict(state["logits"], (68, 210))[0]))
        # Interpolated, not enlarged; by the same network.
        assert 0 < (static[:, ::2, ::3].repeat(2, 1).repeat(3, 2) != static).mean() < 0.05
    assert result["cell"]["confusion"] == expected.tolist() and result["size"] == "file"
    assert "labels at the size of their files" in score_tables.summary(result).splitlines()[0]
    # The other loader, whose frames are the same, and one compilation a size.
    large_config.data.loader = "tf"
    other = whole_videos.open_split(large_config.data, "val", has_file_labels=True)[0]
    large_config.data.loader = "auto"
    np.testing.assert_array_equal(other.labels, seen[0][0].labels)
    sized = model.at_label_size((68, 210))
    assert model.at_label_size((68, 210)) is sized and model.at_label_size((34, 70)) is model
    _is_alike(sized.follow(seen[0][0].frames)[0], seen[0][2])


@pytest.mark.parametrize(
    ("name", "variable", "label_size"),
    [("camvid", "DVSNAS_CAMVID", (360, 480)), ("cityscapes", "DVSNAS_CITYSCAPES", (256, 512))],
)
def test_real_label_files_are_read_as_they_are(name, variable, label_size):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no folder of the real frames")
    data = config_lib.defaults().data
    data.update({"name": name, "dir": os.environ[variable], "height": 48, "width": 64, "eval_gap": 2})
    video = whole_videos.find(data, "val", has_file_labels=True).shortened(3)[0]
    assert video.frames.shape == (3, 48, 64, 3) and video.labels.shape == (3, *label_size)
    small = whole_videos.find(data, "val").shortened(3)[0]
    np.testing.assert_array_equal(video.frames, small.frames)
    rows, columns = (((2 * np.arange(n) + 1) * m // (2 * n)) for n, m in zip((48, 64), label_size, strict=True))
    np.testing.assert_array_equal(video.labels[:, rows][:, :, columns], small.labels)  # their nearest ones
    assert len(np.unique(video.labels)) > 5


def test_label_files_of_two_sizes_and_exported_folders_have_no_scores_at_the_size_of_files(large_config, tmp_path):
    config, root = large_config.copy_and_resolve_references(), pathlib.Path(large_config.data.dir)
    for path in root.glob("*/val/video0/*.png"):
        pixels = np.asarray(Image.open(path))
        _png(tmp_path / path.relative_to(root), pixels[:34] if path.stem == "0003" else pixels)
    config.data.dir = str(tmp_path)
    with pytest.raises(errors.UserError, match="0003.png: 210x34 pixels, but the first .* has 210x68; evaluate.size"):
        whole_videos.find(config.data, "val", has_file_labels=True)[0]
    assert whole_videos.find(config.data, "val")[0].labels.shape == (6, 34, 70)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(errors.UserError, match="evaluate.size: .* gives labels at the size of the frames"):
        evaluation.run_exported(config, tmp_path)


def test_the_running_average_is_scored_beside_a_refining_cell(run, model):
    folder, result, _ = run
    config = folder.config()
    trained_model = run_model.read(config, folder)[0]
    share = json.loads((folder.path / "averaging.json").read_text())["share"]
    infer = jax.jit(lambda frame: static_net.infer(trained_model.net, trained_model.variables, frame).logits)
    total = metrics.SequenceScores(result["classes"], (2, 4))
    for video in whole_videos.find(config.data, "val"):
        logits, found = None, []
        for frame in video.frames:
            now = infer(frame[None])
            logits = now if logits is None else 0.35 * now + (1 - 0.35) * logits
            found.append(np.asarray(static_net.predict(logits, trained.SIZE))[0])
        labels, averaged = model.segment_averaged(video.frames, 0.35)
        _is_alike(averaged, np.stack(found))
        assert (averaged != labels.static).any() and (averaged[0] == labels.static[0]).all()
        total.add(video.labels, model.segment_averaged(video.frames, share)[1], video.flow)
    assert result["ema"] == total.result() | {"share": share} and result["hold"] is None
    first = score_tables.summary(result).splitlines()[0]
    assert ("does not beat ema" in first) == (result["cell"]["miou"] <= result["ema"]["miou"])
    assert first.endswith(baselines.verdict(result)) and result["cell"]["by_age"] is None


def test_held_labels_and_ages_beside_a_propagating_cell():
    made = trained.evaluated("fixed")
    config = trained.make_config("fixed")
    interval, result = config.schedule.interval, made.result
    scores = {name: metrics.SequenceScores(result["classes"], (2, 4)) for name in ("hold", "static", "cell")}
    by_age = {}
    for video, (static, cell) in zip(whole_videos.find(config.data, "val"), made.labels, strict=True):
        held = static[[0, 0, 0, 0, 4, 4]]
        for name, found in (("hold", held), ("static", static), ("cell", cell)):
            scores[name].add(video.labels, found, video.flow)
        for age, frames in enumerate(([0, 4], [1, 5], [2], [3])):
            by_age.setdefault(age, metrics.SequenceScores(result["classes"])).add(video.labels[frames], held[frames])
    assert interval == 4 and result["ema"] is None
    for name, total in scores.items():
        found = {key: value for key, value in result[name].items() if key in total.result() and key != "by_age"}
        assert found == {key: value for key, value in total.result().items() if key != "by_age"}
        assert list(result[name]["by_age"]) == ["0", "1", "2", "3"]
    assert result["hold"]["interval"] == 4
    expected = {str(age): {"miou": each.result()["miou"]} for age, each in by_age.items()}
    assert {age: {"miou": row["miou"]} for age, row in result["hold"]["by_age"].items()} == expected
    assert [row["num_frames"] for row in result["cell"]["by_age"].values()] == [4, 4, 2, 2]
    # A key frame is the static network's, and so is what is held there.
    assert len({result[name]["by_age"]["0"]["miou"] for name in scores}) == 1
    lines = score_tables.summary(result).splitlines()
    (head,) = (number for number, line in enumerate(lines) if line.startswith("mIoU, frames since key"))
    assert lines[head].split()[-4:] == ["0", "1", "2", "3"] and len(lines[head + 1 : head + 4]) == 3
    assert lines[head + 3].split()[-4:] == [f"{100 * row['miou']:.1f}" for row in expected.values()]


def test_a_trained_cell_is_timed_on_a_held_out_clip_there_and_back(monkeypatch, capsys):
    folder, seen = workdir.Workdir(trained.evaluated("fixed").path), []
    config = folder.config().copy_and_resolve_references().unlock()
    assert evaluation.trained_time(config, folder) is None  # latency_frames is 0
    config.evaluate.latency_frames, config.data.num_frames = 2, 3

    def measured(model, frames, num):
        seen.append((frames, num))
        row = {"count": 2, "median": 5.0}
        return {"static": {"ms_per_frame": 4.0}, "cell": {"ms_per_frame": 5.0, "latency": {"key": row}}}

    monkeypatch.setattr(timing, "measure", measured)
    assert evaluation.trained_time(config, folder) == 1.25
    assert "warning: a frame takes 1.25 of the static network's 4.0 ms" in capsys.readouterr().err
    (frames, num), (first, *_) = seen[0], pretrain.split_clips(config)[1]
    clip = pipeline.load_clips(config.data, split="train", num_frames=3, indices=[first]).frames[0]
    np.testing.assert_array_equal(frames, clip[[0, 1, 2, 1]])
    assert num == 10
    config.space.mode = "refine"
    assert evaluation.trained_time(config, folder) is None


@pytest.mark.parametrize(
    ("wrong", "expected"), [([3], (-3, 0)), ([1, 3], (-3, 1)), ([0, 1, 4, 9, 2, 0, 0, 0, 0], (5, 2))]
)
def test_a_video_of_one_frame_has_a_strip_too(wrong, expected):
    """Of so many wrong pixels a frame; later the frames around the worst one."""
    labels = np.zeros((len(wrong), 1, 10), np.uint8)
    static = (np.arange(10) < np.array(wrong)[:, None, None]).astype(np.uint8)
    strip = evaluation.Strip(3)
    strip.watch(0, types.Sequence(name="a", frames=labels[..., None], labels=labels), static, static)
    loss, number, start = strip._best
    assert (round(10 * loss), number, start) == (expected[0], 0, expected[1])
