"""Datasets on disk: recognition, splits, sequences, class tables, clips and runs with partial labels, the store."""

import os

import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.data.datasets import camvid_layouts, camvid_table, cityscapes_table, folder_layout, frames, layouts
from dvsnas_jax.data.loading import clip_index, pipeline, store, whole_videos

FOLDER = {
    "frames": "images/{split}/{sequence}/{number}.png",
    "masks": "masks/{split}/{sequence}/{number}.png",
    "classes": ("tree", "road", "sky"),
    "ids": ("10", "20", "30"),
    "ignore": ("0",),
}


def _data(name, root, folder=None, **changes):
    data = config_lib.defaults().data
    data.update({"name": name, "dir": str(root), "loader": "numpy", "height": 30, "width": 40, **changes})
    data.folder.update(folder or {})
    return data


def _names(source):
    return [(frame.sequence, frame.number) for frame in source.frames]


def _labelled(source):
    return [(frame.sequence, frame.number) for frame in source.frames if frame.label]


def _frames(*rows):
    """Frames (sequence, number, is labelled)."""
    return [frames.Frame(s, n, f"{s}/{n}.png", f"{s}/{n}_L.png" if is_labelled else None) for s, n, is_labelled in rows]


# --- class tables ---------------------------------------------------------------------------------


def test_camvid_table_has_32_rows_and_groups_as_documented():
    rows = camvid_table.OFFICIAL
    assert len(rows) == 32 == len({name for name, _, _ in rows}) == len({color for _, color, _ in rows})
    groups = {}
    for name, _, group in rows:
        groups.setdefault(group, []).append(name)
    assert set(groups) == {*camvid_table.TABLE.names, None} and groups[None] == ["Void"]
    assert groups["building"] == ["Archway", "Bridge", "Building", "Tunnel", "Wall"]
    assert groups["pole"] == ["Column_Pole", "TrafficCone"]
    assert groups["road"] == ["LaneMkgsDriv", "LaneMkgsNonDriv", "Road"]
    assert groups["pavement"] == ["ParkingBlock", "RoadShoulder", "Sidewalk"]
    assert groups["sign"] == ["Misc_Text", "SignSymbol", "TrafficLight"]
    assert groups["car"] == ["Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"]
    assert groups["pedestrian"] == ["Animal", "CartLuggagePram", "Child", "Pedestrian"]
    assert groups["bicyclist"] == ["Bicyclist", "MotorcycleScooter"] and groups["tree"] == ["Tree", "VegetationMisc"]
    pixels = np.array([[[128, 64, 128], [0, 0, 0], [64, 0, 64]]], np.uint8)  # Road, Void, Tunnel
    np.testing.assert_array_equal(camvid_table.official_code().decode(pixels, "x"), [[3, 255, 1]])


def test_cityscapes_table_is_the_official_one():
    official = pytest.importorskip("cityscapesscripts.helpers.labels")
    table, code = cityscapes_table.table(), cityscapes_table.code()
    assert table.num_classes == 19
    for row in official.labels:
        raw = np.array([[row.id]]).astype(np.uint8)  # -1 is 255 in 8 bits
        expected = row.trainId if 0 <= row.trainId < 255 else 255
        assert code.decode(raw, "x")[0, 0] == expected
        if expected < 255:
            assert table.names[expected] == row.name and tuple(table.colors[expected]) == row.color
            assert cityscapes_table.train_to_id()[expected] == row.id
    assert cityscapes_table.train_to_id()[255] == 0
    with pytest.raises(errors.UserError, match=r"x\.png: label id 77 is out of range; ids are 0\.\.255"):
        code.decode(np.full((2, 2), 77), "x.png")


@pytest.mark.parametrize("is_color", [False, True])
def test_decoding_equals_a_dictionary(is_color):
    rng = np.random.default_rng(0)
    raw = [(5, 9, 1), (250, 0, 3), (0, 0, 0)] if is_color else [7, 300, 0, 12]
    code = (frames.color_code if is_color else frames.id_code)([(value, i + 1) for i, value in enumerate(raw)])
    chosen = rng.integers(0, len(raw), (6, 8))
    pixels = np.array(raw)[chosen].astype(np.uint8 if is_color else np.uint16)
    np.testing.assert_array_equal(code.decode(pixels, "x"), chosen + 1)
    assert code.decode(pixels, "x").dtype == np.uint8
    pixels[2, 3] = 13
    what = r"the colour \(13, 13, 13\) belongs to no class" if is_color else "label id 13 is out of range; ids are 0, 7"
    with pytest.raises(errors.UserError, match=what):
        code.decode(pixels, "x")


# --- CamVid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [trees.camvid_segnet, trees.camvid_official])
def test_both_camvid_layouts_have_the_same_frames(make, tmp_path):
    data = _data("camvid", make(tmp_path))
    for split, names in trees.SEGNET.items():
        source = layouts.find(data, split)
        assert source.layout == make.__name__ and source.frame_rate == 30
        expected = sorted((name.split("_")[0], int(name.split("_")[1].lstrip("f"))) for name in names)
        assert _names(source) == _labelled(source) == expected


@pytest.mark.parametrize("make", [trees.camvid_segnet, trees.camvid_official])
def test_video_frames_join_as_history(make, tmp_path):
    data = _data("camvid", make(tmp_path, is_video=True))
    train, val = layouts.find(data, "train"), layouts.find(data, "val")
    # 7951..7969 lead to labels of val, 7970 to frame 8190 of train; labelled numbers are not there twice
    assert _names(val) == [("0016E5", n) for n in range(7951, 7970)]
    assert _labelled(val) == [("0016E5", n) for n in (7959, 7961, 7963, 7965, 7969)]
    assert [n for s, n in _names(train) if s == "0016E5"] == [7950, 7970, 8190]
    assert [n for s, n in _names(train) if s == "0006R0"] == [930, *range(950, 991)]  # 991, 992: after the last label
    assert not set(_names(train)) & set(_names(val))
    places = store.index(data, "val", 3).places  # frame_gap 1
    assert [[val.frames[i].number for i in clip] for clip in places][0] == [7957, 7958, 7959]
    clips = pipeline.load_clips(data, split="val", num_frames=3)
    assert (clips.labels[0, :2] == 255).all() and (clips.labels[0, 2] < 11).any()
    np.testing.assert_array_equal(clips.frames[0, 1], trees.frame("0016E5_07958"))


def test_official_labels_become_the_groups(tmp_path):
    trees.camvid_official(tmp_path)
    clips = pipeline.load_clips(_data("camvid", tmp_path), split="test", num_frames=1)
    names = [camvid_table.TABLE.names.index(g) if g else 255 for _, _, g in camvid_table.OFFICIAL]
    for i, name in enumerate(trees.SEGNET["test"]):  # already in the order of the source
        np.testing.assert_array_equal(clips.labels[i, 0], np.array(names)[trees.blocks(name, range(32))])
        np.testing.assert_array_equal(clips.frames[i, 0], trees.frame(name))


def test_split_files_replace_the_usual_split(tmp_path):
    lists = {"train": ["Seq05VD_f00000", "/SegNet/CamVid/0016E5_07961"], "val": ["0001TP_006690"]}
    data = _data("camvid", trees.camvid_official(tmp_path, lists=lists))
    assert _names(layouts.find(data, "train")) == [("0016E5", 7961), ("Seq05VD", 0)]
    assert _names(layouts.find(data, "val")) == [("0001TP", 6690)]
    assert layouts.present(str(tmp_path), "camvid_official", folder_layout.options(data.folder)) == ["train", "val"]
    with pytest.raises(errors.UserError, match="no frames of the split test; add them, or list"):
        layouts.find(data, "test")


def test_usual_split_is_that_of_the_real_dataset():
    root = os.environ.get("DVSNAS_CAMVID", "")
    if not root:
        pytest.skip("DVSNAS_CAMVID names no folder with the real CamVid")
    for split, count in (("train", 367), ("val", 101)):
        names = _names(layouts.find(_data("camvid", root), split))
        assert len(names) == count and {camvid_layouts.usual_split(*name) for name in names} == {split}
    assert camvid_layouts.usual_split("0001TP", 8550) == camvid_layouts.usual_split("Seq05VD", 0) == "test"


# --- Cityscapes -----------------------------------------------------------------------------------


def test_cityscapes_sequences(tmp_path):
    data = _data("cityscapes", trees.cityscapes(tmp_path), height=16, width=32)
    for split, sequences in trees.CITYSCAPES.items():
        source = layouts.find(data, split)
        assert source.layout == "cityscapes" and source.frame_rate == 17 and source.table.num_classes == 19
        expected = {(s, n) for s, targets in sequences.items() for t in targets for n in range(t - 19, t + 11)}
        assert set(_names(source)) == expected and len(source.frames) == len(expected)
        assert _labelled(source) == sorted((s, t) for s, targets in sequences.items() for t in targets)
    clips = pipeline.load_clips(data, split="train", num_frames=3)
    assert clips.frames.shape == (4, 3, 16, 32, 3)  # one a snippet, also in the long sequence of hamburg
    np.testing.assert_array_equal(clips.frames[2, 0], trees.frame("hamburg_000000_000627", (32, 16)))
    ids = trees.blocks("hamburg_000000_000629", range(34), (32, 16))
    official = pytest.importorskip("cityscapesscripts.helpers.labels")
    expected = np.vectorize(lambda i: official.id2label[i].trainId)(ids)
    np.testing.assert_array_equal(clips.labels[2, 2], expected)
    videos = whole_videos.find(data, "val")
    assert [(video.name, len(video.frames)) for video in videos] == [
        ("frankfurt_000000_000275", 20),  # what follows the labelled 20th frame changes no score
        ("frankfurt_000000_000557", 20),
        ("munster_000173_000000", 20),
    ]
    assert all((video.labels[:19] == 255).all() and (video.labels[19] < 19).any() for video in videos)


def test_cityscapes_stills(tmp_path):
    data = _data("cityscapes", trees.cityscapes(tmp_path, is_video=False), height=16, width=32)
    source = layouts.find(data, "val")
    assert source.layout == "cityscapes_stills"
    assert (
        _labelled(source)
        == _names(source)
        == [("frankfurt_000000", 294), ("frankfurt_000000", 576), ("munster_000173", 19)]
    )
    assert [len(video.frames) for video in whole_videos.find(data, "val")] == [1, 1, 1]
    with pytest.raises(errors.UserError, match="set data.history to 'stills'"):
        pipeline.num_clips(data, "train", 2)
    data.history = "stills"
    assert pipeline.num_clips(data, "train", 2) == 4


def test_a_split_without_labels_has_no_clips(tmp_path):
    trees.cityscapes(tmp_path)
    for path in (tmp_path / "gtFine" / "test").rglob("*.png"):
        path.unlink()
    data = _data("cityscapes", tmp_path)
    assert len(layouts.find(data, "test").frames) == 30
    with pytest.raises(errors.UserError, match="none of the 30 frames of this split has a label image"):
        pipeline.num_clips(data, "test", 1)


# --- any folder -----------------------------------------------------------------------------------


def test_folder_with_masks(tmp_path):
    data = _data("folder", trees.folder(tmp_path), FOLDER)
    source = layouts.find(data, "val")
    assert len(source.frames) == 12 and source.table.names == ("tree", "road", "sky") and source.frame_rate == 30
    assert _labelled(source) == [(s, n) for s in ("val_a", "val_b") for n in (1, 3, 5)]
    clips = pipeline.load_clips(data, split="val", num_frames=2)
    ids = trees.blocks("val/val_a/0003.png", (10, 20, 30, 0))
    np.testing.assert_array_equal(clips.labels[1, 1], np.where(ids == 0, 255, ids // 10 - 1))
    assert [len(video.frames) for video in whole_videos.find(data, "val")] == [6, 6]
    assert layouts.class_table(data).colors.shape == (3, 3) and len({tuple(c) for c in source.table.colors}) == 3


def test_folder_with_colours(tmp_path):
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 0]], np.uint8)
    chosen = np.arange(12).reshape(3, 4) % 3
    trees.save(tmp_path / "a_1.png", np.zeros((3, 4, 3), np.uint8))
    trees.save(tmp_path / "masks" / "a_1.png", colors[chosen])
    options = {"masks": "masks/{sequence}_{number}.png", "labels": "colors", "classes": ("x", "y")}
    options |= {"colors": ("#ff0000", "#00FF00"), "ignore": ("#000000",)}
    data = _data("folder", tmp_path, options, height=3, width=4)
    clips = pipeline.load_clips(data, split="train", num_frames=1)
    np.testing.assert_array_equal(clips.labels[0, 0], np.array([0, 1, 255])[chosen])
    with pytest.raises(errors.UserError, match="a score on val would be one on the same frames"):
        layouts.find(data, "val")


@pytest.mark.parametrize(
    "files, pattern, expected",
    [
        (["train/a/0001.png", "train/a/0002.jpg"], "{split}/{sequence}/{number}.*", [("a", 1), ("a", 2)]),
        (["train/a_b_7.PNG", "train/a_b_x9.bmp"], "{split}/{sequence}_{number}.*", [("a_b", 7), ("a_b", 9)]),
        (["train/frame12.png"], "{split}/*{number}.*", [("video", 12)]),
        (["s1/5.png", "s2/5.png"], "{sequence}/{number}.*", [("s1", 5), ("s2", 5)]),
        (["drive_0003.png", "notes.txt"], "{sequence}_{number}.*", [("drive", 3)]),
        (["img0003.png", ".hidden_4.png"], "*{number}.*", [("video", 3)]),
    ],
)
def test_patterns_are_guessed(files, pattern, expected, tmp_path):
    for name in files:
        if name.endswith("txt"):
            (tmp_path / name).write_text("text")
        else:
            trees.save(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    assert folder_layout.guess(tmp_path, layouts.SPLITS) == pattern
    source = layouts.find(_data("folder", tmp_path), "train")
    assert _names(source) == expected and source.table.names == camvid_table.TABLE.names
    with pytest.raises(errors.UserError, match="none of the"):
        clip_index.clips(source.frames, 1, 1, 0)


def test_a_pattern_may_repeat_the_sequence(tmp_path):
    for name in ("a/a_1.png", "a/b_1.png"):
        trees.save(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    options = folder_layout.options(_data("folder", tmp_path, {"frames": "{sequence}/{sequence}_{number}.png"}).folder)
    scan = folder_layout.scan(tmp_path, "train", options, layouts.SPLITS)
    assert list(scan.frames) == [("a", 1)] and "1 such files are unused" in scan.notes[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": "{split}/a.png"}, r"the pattern '\{split\}/a.png' has no \{number\}"),
        ({"frames": "{video}/{number}.png"}, r"unknown field \{video\}"),
        ({"frames": "images/{split}/{sequence}/{number}.jpg"}, "no frames match this pattern"),
        ({"masks": "masks/{number}.png"}, r"must both have \{sequence\}"),
        ({"ids": ("1", "2")}, "2 ids for 3 classes"),
        ({"ids": ("1", "2", "x")}, "'x' is no id"),
        ({"ids": ("1", "2", "2")}, "the id 2 means two things"),
        ({"ignore": ("10",)}, "the id 10 means two things"),
        ({"colors": ("#000000",)}, "1 colours for 3 classes"),
        ({"colors": ("red", "#000000", "#000001")}, "'red' is no colour; write it as #rrggbb"),
        ({"classes": (), "colors": ("#000000",)}, "colours without classes"),
        ({"labels": "colors"}, "masks in colours need them"),
    ],
)
def test_errors_of_the_folder_options(options, message, tmp_path):
    trees.folder(tmp_path)
    with pytest.raises(errors.UserError, match=message) as caught:
        layouts.find(_data("folder", tmp_path, {**FOLDER, **options}), "train")
    assert "\n" not in str(caught.value)


# --- recognition ----------------------------------------------------------------------------------


def test_layouts_are_recognised_by_looking(tmp_path):
    makers = {
        "camvid_segnet": trees.camvid_segnet,
        "camvid_official": trees.camvid_official,
        "cityscapes": trees.cityscapes,
        "folder": trees.folder,
    }
    for layout, make in makers.items():
        assert layouts.recognise(str(make(tmp_path / layout))) == layout
    with pytest.raises(errors.UserError, match="no such folder"):
        layouts.recognise(str(tmp_path / "nowhere"))


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    for name, make in (("camvid", trees.camvid_segnet), ("cityscapes", trees.cityscapes)):
        variable = layouts.VARIABLES[name]
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(errors.UserError, match=f"set data.dir or {variable}"):
            layouts.find(_data(name, ""), "train")
        monkeypatch.setenv(variable, str(make(tmp_path / name)))
        assert layouts.find(_data(name, ""), "train").frames
    with pytest.raises(errors.UserError, match=r"set data.dir \("):
        layouts.find(_data("folder", ""), "train")


# --- clips and runs -------------------------------------------------------------------------------


def test_only_labelled_frames_are_targets():
    found = _frames(("a", 1, False), ("a", 2, True), ("a", 3, False), ("a", 4, True), ("b", 4, True))
    np.testing.assert_array_equal(clip_index.clips(found, 2, 1, 0), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(clip_index.clips(found, 1, 1, 0), [[1], [3], [4]])


def test_runs_hold_every_labelled_frame_once():
    found = _frames(*(("a", n, n % 3 == 0) for n in range(20)), *(("b", n, n == 7) for n in range(4, 12)))
    for gap in (1, 2, 5):
        runs = clip_index.runs(found, gap)
        places = [i for run in runs for i in run]
        assert len(places) == len(set(places))
        assert {i for i, frame in enumerate(found) if frame.label} <= set(places)
        for run in runs:
            numbers = [found[i].number for i in run]
            assert len({found[i].sequence for i in run}) == 1 and found[run[-1]].label
            assert numbers == list(range(numbers[0], numbers[-1] + 1, gap))
    assert [len(run) for run in clip_index.runs(found, 1)] == [19, 4]
    bare = _frames(("a", 1, False), ("a", 2, False))
    assert clip_index.runs(bare, 1) == [[0, 1]]


# --- the store ------------------------------------------------------------------------------------


def test_a_split_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    data = _data("camvid", trees.camvid_segnet(tmp_path), height=1000, width=2000, eval_gap=2)
    monkeypatch.setattr(store, "free_memory", lambda: 30_000_000)
    message = (
        r"train: 7 frames x 1000 x 2000 pixels x 4 bytes = 0\.1 GB, but 0\.0 GB of memory are free; set data.loader"
    )
    with pytest.raises(errors.UserError, match=message):
        store.load(data, "train")
    with pytest.raises(errors.UserError, match="4 frames x 1000"):
        whole_videos.find(data, "val")[0]


def test_videos_are_read_one_at_a_time(tmp_path):
    data = _data("camvid", trees.camvid_segnet(tmp_path), eval_gap=2)
    (tmp_path / "val" / "0016E5_07969.png").write_bytes(b"broken")
    videos = whole_videos.find(data, "val")
    assert [len(run) for run in videos.runs] == [4, 1] and len(videos) == 2
    assert videos[0].name == "0016E5_007959" and len(videos[0].frames) == 4
    assert len(videos.shortened(2)[0].frames) == 2
    with pytest.raises(errors.UserError, match="0016E5_07969.png: not a readable image"):
        videos[1]
    with pytest.raises(errors.UserError, match="0016E5_07969.png: not a readable image"):
        list(whole_videos.find(data, "val"))


def test_resizing_averages_frames_and_picks_labels(tmp_path):
    data = _data("camvid", trees.camvid_segnet(tmp_path), height=15, width=20)
    clips = pipeline.load_clips(data, split="test", num_frames=1)
    name = trees.SEGNET["test"][0]
    small = Image.fromarray(trees.frame(name)).resize((20, 15), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(clips.frames[0, 0], np.asarray(small))
    ids = trees.blocks(name, range(12))[1::2, 1::2]
    np.testing.assert_array_equal(clips.labels[0, 0], np.where(ids == 11, 255, ids))


@pytest.mark.parametrize("changes", [{"history": "stills"}, {"frame_gap": 2}], ids=["stills", "frames"])
def test_some_clips_are_those_of_the_whole_split_and_only_their_frames_are_read(tmp_path, monkeypatch, changes):
    data = _data("camvid", trees.camvid_segnet(tmp_path), **changes)
    whole = pipeline.load_clips(data, split="val", num_frames=2)
    asked = []
    read = store.read

    def noted(found, places, *rest, **options):
        asked.extend(places)
        return read(found, places, *rest, **options)

    monkeypatch.setattr(store, "read", noted)
    some = pipeline.load_clips(data, split="val", num_frames=2, indices=[2, 0])
    np.testing.assert_array_equal(some.frames, whole.frames[[2, 0]])
    np.testing.assert_array_equal(some.labels, whole.labels[[2, 0]])
    used = store.index(data, "val", 2).places[[2, 0]]
    assert sorted(asked) == sorted(set(used.ravel().tolist()))
