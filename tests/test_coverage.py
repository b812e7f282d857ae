"""Labelled pixels where a run trains and measures: one rule for `data check` and before any training; the reward."""

import json

import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data import coverage, datasets
from dvsnas_jax.data.datasets import labels
from dvsnas_jax.data.loading import store
from dvsnas_jax.search import pipeline, reward
from dvsnas_jax.studies import compare, strategies_search, table_maker
from dvsnas_jax.train import cell_training, clip_scores, pretrain, require_labels

SIZE = (16, 12)
NUM = 12
PATTERNS = {
    "frames": "images/{split}/{sequence}/{number}.png",
    "masks": "masks/{split}/{sequence}/{number}.png",
}


def _save(root, split, number, mask):
    place = f"{split}/v0/{number:05d}.png"
    trees.save(root / "images" / place, trees.frame(place, SIZE))
    trees.save(root / "masks" / place, mask)


def _mask(values):
    """Stripes of the values, u8 [12, 16]."""
    return np.repeat(np.asarray(values, np.uint8)[np.arange(SIZE[1]) * len(values) // SIZE[1]][:, None], SIZE[0], 1)


def _tree(root, values=(0, 1, 2), splits=("train", "val")):
    for split in splits:
        for i in range(NUM):
            _save(root, split, i, _mask(values))
    return root


def _config(root, classes=("other", "square", "stripe"), folder=None, **changes):
    config = config_lib.defaults()
    config.compile_effort = "quick"
    config.data.update({"name": "folder", "dir": str(root), "loader": "numpy"})
    config.data.update({"height": 6, "width": 8, "num_frames": 2})
    config.data.folder.update({**PATTERNS, "classes": classes, **(folder or {})})
    config.search.meta_val_fraction = 0.25
    config.search.update(changes)
    return config


def _words(config):
    section = config.data.folder
    names = ("frames", "masks", "classes", "ids", "ignore", "absent", "labels", "colors")
    values = {name: ",".join(section[name]) if isinstance(section[name], tuple) else section[name] for name in names}
    return [f"--config.data.folder.{name}={value}" for name, value in values.items() if value]


def _check(root, config, capsys):
    code = cli.main(["data", "check", str(root), "--layout=folder", *_words(config)])
    return (code, *capsys.readouterr())


def _blank_meta_val(root, config, num=None):
    """Makes the targets of the (first) meta-validation clips unlabelled; returns their number."""
    _, held_out = pretrain.split_clips(config)
    for clip in held_out[:num]:
        _save(root, "train", int(clip) + 1, _mask((255,)))
    return len(held_out[:num])


def _refused(config, **what):
    datasets.find_in.cache_clear()
    with pytest.raises(errors.UserError) as caught:
        require_labels.check(config, **what)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- before a training ----------------------------------------------------------------------------


def test_a_labelled_folder_is_fine_and_says_nothing(tmp_path, capsys):
    config = _config(_tree(tmp_path))
    assert require_labels.check(config, is_rewarded=True, is_evaluated=True) == NUM - 1
    assert capsys.readouterr() == ("", "")


def test_meta_validation_clips_without_a_labelled_pixel_are_refused(tmp_path):
    config = _config(_tree(tmp_path))
    assert _blank_meta_val(tmp_path, config) == 3
    assert "no labelled pixel in the 3 meta-validation clips that rewards are measured on" in _refused(
        config, is_rewarded=True
    )
    assert "no labelled pixel in the 3 training clips that are held out to choose" in _refused(config)
    config.seed = 5  # the advice: other clips
    assert require_labels.check(config, is_rewarded=True) == NUM - 1


def test_with_a_teacher_and_a_trained_network_no_training_clip_needs_a_label(tmp_path, monkeypatch):
    config, folder = _config(_tree(tmp_path / "data")), workdir.Workdir(tmp_path / "run")
    training, _ = pretrain.split_clips(config)
    for clip in training:
        _save(tmp_path / "data", "train", int(clip) + 1, _mask((255,)))
    _save(tmp_path / "data", "train", 0, _mask((255,)))  # the history of the first clip
    needed = f"no labelled pixel in the {len(training)} clips to train on"
    assert needed in _refused(config)
    config.train.teacher_weight = 1.0
    assert needed in _refused(config) and needed in _refused(config, folder=folder)  # the network needs labels
    monkeypatch.setattr(pretrain, "is_trained", lambda config, folder: True)
    assert require_labels.check(config, folder) == NUM - 1
    config.train.teacher_weight = 0.0
    assert needed in _refused(config, folder=folder)


def test_rewards_are_measured_on_the_first_clips_alone(tmp_path):
    config = _config(_tree(tmp_path), reward_clips=1)
    _blank_meta_val(tmp_path, config, num=1)
    assert "in the 1 meta-validation clips" in _refused(config, is_rewarded=True)
    config.search.reward_clips = 2
    assert require_labels.check(config, is_rewarded=True) == NUM - 1


def test_data_check_with_a_config_looks_where_its_search_measures(tmp_path, capsys):
    root, config = _tree(tmp_path / "data"), _config(tmp_path / "data")
    lines = [
        "from dvsnas_jax.core import config as config_lib",
        "def get_config():",
        "    config = config_lib.defaults()",
    ]
    lines += ["    config.data.name = 'folder'", "    config.data.update({'num_frames': 2, 'height': 6, 'width': 8})"]
    lines += ["    config.search.meta_val_fraction = 0.25", "    return config"]
    (tmp_path / "own.py").write_text("\n".join(lines))
    words = ["data", "check", str(root), f"--config={tmp_path / 'own.py'}", *_words(config)]
    assert cli.main(words) == 0
    _blank_meta_val(root, config)
    datasets.find_in.cache_clear()
    assert cli.main(words) == 2
    assert "no labelled pixel in the 3 meta-validation clips" in capsys.readouterr().err


def test_pixels_that_get_lost_by_resizing_do_not_count(tmp_path):
    config = _config(_tree(tmp_path))
    mask = _mask((255,)).copy()
    mask[0, 0] = 1  # not among the pixels that 6x8 takes
    _, held_out = pretrain.split_clips(config)
    for clip in held_out:
        _save(tmp_path, "train", int(clip) + 1, mask)
    assert "at 6x8 pixels" in _refused(config, is_rewarded=True)
    config.data.update({"height": SIZE[1], "width": SIZE[0]})
    assert require_labels.check(config, is_rewarded=True) == NUM - 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_pixel_is_refused(split, tmp_path, capsys):
    config = _config(_tree(tmp_path))
    for i in range(NUM):
        _save(tmp_path, split, i, _mask((255,)))
    line = f"split {split}: no labelled pixel in its 12 masks, they hold 255 (100.0 %)"
    assert line in _refused(config, is_rewarded=True, is_evaluated=True)
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 2 and line in out
    if split == "val":  # `train` does not measure on it
        assert require_labels.check(config) == NUM - 1


def test_an_evaluation_split_without_masks_is_refused(tmp_path):
    config = _config(_tree(tmp_path))
    for path in (tmp_path / "masks" / "val" / "v0").iterdir():
        path.unlink()
    assert "split val: none of its frames has a label image, and the run is scored on it" in _refused(
        config, is_evaluated=True
    )
    assert require_labels.check(config, is_rewarded=True) == NUM - 1


def test_labels_of_the_test_split_may_be_withheld(tmp_path, capsys):
    config = _config(_tree(tmp_path, splits=("train", "val", "test")))
    for i in range(NUM):
        _save(tmp_path, "test", i, _mask((255,)))
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 0 and "note: split test: no labelled pixel in its 12 masks" in out


def test_one_clip_cannot_be_trained_and_measured_on():
    config = config_lib.defaults()
    config.data.num_train_clips = 1
    assert "has one clip; at least two are needed" in _refused(config)
    config.data.num_train_clips = 2
    assert require_labels.check(config, is_rewarded=True, is_evaluated=True) == 2


def test_a_missing_evaluation_split_is_said_before_the_training(tmp_path):
    config = _config(_tree(tmp_path, splits=("train",)))
    assert "no frames match this pattern" in _refused(config, is_evaluated=True)
    assert require_labels.check(config, is_rewarded=True) == NUM - 1


@pytest.mark.parametrize(
    "run_fn",
    [
        lambda config, folder: pipeline.run(config, folder),
        lambda config, folder: cell_training.run(config, folder, None),
        lambda config, folder: compare.run(config, folder, ["zoo:static"], num_seeds=1),
        lambda config, folder: table_maker.run(config, folder, num_seeds=1, command=""),
        lambda config, folder: strategies_search.run(
            config, folder, ["random"], strategies_search.Budget(num_seeds=1, num_top=0, num_correlated=0)
        ),
    ],
    ids=["search", "train", "compare", "table", "compare-strategies"],
)
def test_every_command_that_trains_refuses_before_the_folder_is_claimed(run_fn, tmp_path):
    config = _config(_tree(tmp_path / "data"))
    config.space.update({"inputs": ("prev_state", "decoder"), "num_layers": 1, "operations": ("none", "skip")})
    config.space.aggregations = ("sum",)
    _blank_meta_val(tmp_path / "data", config)
    with pytest.raises(errors.UserError, match="no labelled pixel in the 3"):
        run_fn(config, workdir.Workdir(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_stability_factor_that_nothing_is_known_for_is_refused(tmp_path):
    """Flicker is counted on two consecutive frames with labels; here every second frame has some."""
    config = _config(_tree(tmp_path / "data"), stability=0.5)
    assert require_labels.check(config, is_rewarded=True) == NUM - 1
    for i in range(0, NUM, 2):
        (tmp_path / "data" / "masks" / "train" / "v0" / f"{i:05d}.png").unlink()
    assert "search.stability: must be 0 here" in _refused(config, is_rewarded=True)
    folder = workdir.Workdir(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "metrics.jsonl").write_text("{}\n")
    assert require_labels.check(config, folder, is_rewarded=True) == NUM // 2  # an older run goes on
    config.search.stability = 0.0
    assert require_labels.check(config, is_rewarded=True) == NUM // 2
    config.search.reward = "gain"
    assert "search.reward: must be plain here, as gain counts flicker" in _refused(config, is_rewarded=True)
    config.search.stability, config.data.history = 0.5, "stills"  # whose labels move with them
    assert require_labels.check(config, is_rewarded=True) == NUM // 2
    config.data.num_frames = 1
    assert "raise data.num_frames (is 1)" in _refused(config, is_rewarded=True)


# --- classes --------------------------------------------------------------------------------------


def test_masks_of_0_and_255_are_a_problem_and_the_advice_works(tmp_path, capsys):
    _tree(tmp_path, values=(0, 0, 0, 255))
    config = _config(tmp_path, classes=("background", "car"))
    line = (
        "class car has no pixel in any split, and masks hold 0 (75.0 %), 255 (25.0 %): of which 255 is ignored; set "
        "data.folder.ids, as 0,255, or name classes that are not there in data.folder.absent"
    )
    assert _refused(config) == line
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 2 and out == f"{line}\n"
    config.data.folder.ids = ("0", "255")
    assert require_labels.check(config, is_rewarded=True, is_evaluated=True) == NUM - 1
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 0 and ["car", "25.00%", "25.00%"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    "values, classes, expected",
    [
        ((0, 1, 255), ("a", "b", "c"), "set data.folder.ids, as 0,1,255"),
        ((0, 255), ("a", "b", "c"), "classes b, c have no pixel in any split"),
        ((1, 255), ("a", "b"), "set data.folder.ids, as 255,1"),
    ],
)
def test_other_masks_whose_last_class_is_ignored(values, classes, expected, tmp_path):
    config = _config(_tree(tmp_path, values=values), classes=classes)
    assert expected in _refused(config)
    config.data.folder.absent = ("all",)
    if len(values) > 2:
        assert require_labels.check(config) == NUM - 1


def test_classes_may_be_absent_where_the_config_says_so(tmp_path, capsys):
    config = _config(_tree(tmp_path, values=(0, 1, 255)), folder={"absent": ("stripe",)})
    assert require_labels.check(config) == NUM - 1
    assert capsys.readouterr().err == "note: class stripe has no pixel in any split\n"
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 0 and "note: class stripe has no pixel in any split" in out
    ignored = [line.split() for line in out.splitlines() if line.startswith("  255")]
    assert ignored == [["255", "(ignored)", "33.33%", "33.33%"]]
    assert "note: 255 is ignored: 1,536 pixels, 33.3 % of the masks; data.folder.ids makes a class of it" in out


def test_a_class_that_is_missing_in_one_split_is_a_note(tmp_path, capsys):
    config = _config(_tree(tmp_path))
    for i in range(NUM):
        _save(tmp_path, "val", i, _mask((0, 2)))
    assert require_labels.check(config, is_evaluated=True) == NUM - 1
    assert capsys.readouterr().err == "note: class square has no pixel in split val\n"
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 0 and "note: class square has no pixel in split val" in out


def test_masks_of_one_class_alone_are_a_problem(tmp_path):
    config = _config(_tree(tmp_path, values=(0,)))
    assert "every labelled pixel is of one class, classes square, stripe have no pixel in any split" in _refused(config)


def test_unknown_ids_are_all_named_with_the_key_that_ignores_them(tmp_path, capsys):
    config = _config(_tree(tmp_path, values=(0, 1, 2)))
    _save(tmp_path, "train", 3, _mask((0, 7)))
    _save(tmp_path, "train", 4, _mask((0, 1, 9)))
    message = _refused(config)
    assert "label id 7 is out of range; ids are 0, 1, 2, 255" in message and "(96 pixels in 1 mask)" in message
    assert "--config.data.folder.ignore=255,7,9 (1 more problems" in message
    code, out, _ = _check(tmp_path, config, capsys)
    lines = out.splitlines()
    assert code == 2 and len(lines) == 2 and lines[0].startswith(str(tmp_path / "masks/train/v0/00003.png"))
    assert "label id 9" in lines[1] and "(64 pixels in 1 mask)" in lines[1]
    config.data.folder.ignore = ("255", "7", "9")
    assert require_labels.check(config) == NUM - 1
    assert _check(tmp_path, config, capsys)[0] == 0


def test_few_masks_are_read_where_they_show_every_class(tmp_path, monkeypatch):
    config, read = _config(_tree(tmp_path)), []
    real = coverage.decode.read_pixels
    monkeypatch.setattr(coverage.decode, "read_pixels", lambda path, *rest: read.append(path) or real(path, *rest))
    monkeypatch.setattr(coverage, "FEWEST", 1)
    found = coverage.read(config.data, "train", limit=coverage.LIMIT)
    assert found.num_read == 1 and found.num_masks == NUM and found.counts == {0: 64, 1: 64, 2: 64}
    assert len(set(read)) < NUM


def test_all_masks_are_read_before_they_are_called_wrong(tmp_path, monkeypatch, capsys):
    config = _config(_tree(tmp_path, values=(0, 1, 255)))
    monkeypatch.setattr(coverage, "LIMIT", 2)
    order = np.random.default_rng(0).permutation(NUM)
    _save(tmp_path, "train", int(order[-1]), _mask((0, 1, 2)))
    assert require_labels.check(config) == NUM - 1
    assert capsys.readouterr().err == ""


# --- colours --------------------------------------------------------------------------------------


def _colored(root):
    """CamVid's official layout with two unknown colours, of 1 and 3 pixels."""
    trees.camvid_official(root)
    first, second = (root / "LabeledApproved_full" / f"{name}_L.png" for name in ("0006R0_f00930", "0006R0_f00960"))
    for path, pixels in ((first, [(0, 0, (0, 0, 1)), (1, 1, (199, 21, 133))]), (second, [(2, 2, (199, 21, 133))] * 2)):
        image = np.array(Image.open(path))
        for row, column, color in pixels:
            image[row, column] = color
        Image.fromarray(image).save(path)
    return first


def test_unknown_colours_are_all_listed_and_the_key_ignores_them(tmp_path, capsys):
    first = _colored(tmp_path)
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{first}: the colour (0, 0, 1) belongs to no class (1 pixel in 1 mask); leave it out: "
        "--config.data.ignore=#000001,#c71585",
        f"{first}: the colour (199, 21, 133) belongs to no class (2 pixels in 2 masks); leave it out: "
        "--config.data.ignore=#000001,#c71585",
    ]
    assert cli.main(["data", "check", str(tmp_path), "--config.data.ignore=#000001,#c71585"]) == 0
    data = config_lib.defaults().data
    data.update({"name": "camvid", "dir": str(tmp_path), "loader": "numpy", "height": 30, "width": 40})
    message = r"the colours \(0, 0, 1\), \(199, 21, 133\) belong to no class \(1, 1 pixels\)"
    with pytest.raises(errors.UserError, match=message):
        store.load(data, "train")
    data.ignore = ("#000001", "#c71585")
    labels = store.load(data, "train").labels
    place = [str(frame.label) for frame in datasets.find(data, "train").frames].index(str(first))
    assert labels[place, 0, 0] == labels[place, 1, 1] == 255 and labels[place, 0, 2] != 255
    assert cli.main(["data", "check", str(tmp_path), "--config.data.ignore=7"]) == 2
    assert "data.ignore: '7' is no colour; write it as #rrggbb" in capsys.readouterr().err


def test_ids_of_known_data_sets_can_be_ignored(tmp_path, capsys):
    trees.camvid_segnet(tmp_path)
    trees.save(tmp_path / "trainannot/0006R0_f00930.png", np.full((30, 40), 40, np.uint8))
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    assert "leave it out: --config.data.ignore=40" in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path), "--config.data.ignore=40"]) == 0


def test_a_folder_of_colours_lists_unknown_ones_and_both_keys(tmp_path, capsys):
    colors = np.array([[255, 0, 0], [0, 255, 0], [1, 2, 3]], np.uint8)
    for split in ("train", "val"):
        for i in range(2):
            _save(tmp_path, split, i, colors[_mask((0, 1, 2))])
    config = _config(tmp_path, classes=("x", "y"), folder={"labels": "colors"})
    config.data.folder.colors = ("#ff0000", "#00ff00")
    line = "the colour (1, 2, 3) belongs to no class (256 pixels in 4 masks); make a class of it by data.folder.colors"
    code, out, _ = _check(tmp_path, config, capsys)
    assert code == 2 and f"{line}, or leave it out: --config.data.folder.ignore=#010203" in out
    config.data.folder.ignore = ("#010203",)
    assert _check(tmp_path, config, capsys)[0] == 0
    np.testing.assert_array_equal(np.unique(store.load(config.data, "train").labels), [0, 1, 255])


def test_many_unknown_colours_are_counted_not_listed():
    code = labels.code_of({0: 0}, is_color=True)
    pixels = np.arange(1, 1001).astype(np.uint32)
    image = np.stack([pixels >> 16, pixels >> 8 & 255, pixels & 255], -1).astype(np.uint8)[None]
    with pytest.raises(errors.UserError) as caught:
        code.decode(image, "x.png")
    assert "and 988 more with 988 pixels belong to no class" in str(caught.value)
    assert "smoothed or resized labels" in str(caught.value) and len(str(caught.value)) < 800


# --- the reward -----------------------------------------------------------------------------------


def test_a_candidate_without_a_scored_pixel_has_a_status_of_its_own():
    counts = np.zeros((2, 3, 3), np.int32)
    counts[1] = np.diag([4, 5, 6])
    found = clip_scores.ClipScores(counts, np.zeros((2, 2)), np.zeros((2, 3)), np.array([True, True]))
    records = reward.compute(found, clip_scores.Rule(1.0))
    assert records[0] == {"reward": None, "status": "unlabelled"}
    assert records[1]["status"] == "ok" and records[1]["reward"] == 1.0
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_a_network_alone_is_trained_without_a_split_to_score_it_on(tmp_path, capsys) -> None:
    assert require_labels.is_scorable(_config(_tree(tmp_path / "both")))
    assert capsys.readouterr().err == ""
    assert not require_labels.is_scorable(_config(_tree(tmp_path / "one", splits=("train",))))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the network is trained, but not scored: ") and "val" in line
    with pytest.raises(errors.UserError, match="train"):
        require_labels.is_scorable(_config(_tree(tmp_path / "none", splits=("val",))))
