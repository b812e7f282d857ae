"""A folder of one's own: how its frames are split, names, classes and ids, odd inputs, an example from end to end."""

import os
import pathlib
import zlib

import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import pipeline, store
from dvsnas_jax.infer.video import sources
from dvsnas_jax.train import require_labels

SIZE = (12, 8)
VIDEO = {"frames": "frames/{sequence}/{number}.png", "masks": "masks/{sequence}/{number}.png", "classes": ("a", "b")}
SPLIT = {
    "frames": "images/{split}/{sequence}/{number}.png",
    "masks": "masks/{split}/{sequence}/{number}.png",
    "classes": ("a", "b"),
}


def _ids(name, values=(0, 1)):
    """A mask u8 [8, 12] of two halves; which is where depends on the name."""
    turned = zlib.crc32(str(name).encode()) % 2
    mask = np.full(SIZE[::-1], values[turned], np.uint8)
    mask[:, SIZE[0] // 2 :] = values[1 - turned]
    return mask


def _pair(frame, mask, values=(0, 1)):
    trees.save(frame, trees.frame(frame.name + frame.parent.name, SIZE))
    trees.save(mask, _ids(mask.name, values))


def _videos(root, names=("v0", "v1", "v2", "v3"), count=4, values=(0, 1)):
    for name in names:
        for i in range(count):
            place = f"{name}/{i:04d}.png"
            _pair(root / "frames" / place, root / "masks" / place, values)
    return root


def _tree(root, values=(0, 1), count=6):
    for split in ("train", "val"):
        for i in range(count):
            place = f"{split}/v_{split}/{i:04d}.png"
            _pair(root / "images" / place, root / "masks" / place, values)
    return root


def _data(root, folder, **changes):
    config = config_lib.defaults()
    config.data.update({"name": "folder", "dir": str(root), "loader": "numpy", "height": 8, "width": 12, **changes})
    config.data.folder.update(folder)
    config_lib.validate(config)
    return config.data


def _splits(root, folder):
    """Split -> its frames, as sequence/number."""
    datasets.find_in.cache_clear()
    found = {}
    for split in frames.SPLITS:
        try:
            source = datasets.find(_data(root, folder), split)
        except errors.UserError as error:
            found[split] = str(error)
            continue
        found[split] = [f"{frame.sequence}/{frame.number}" for frame in source.frames]
    return found


def _check(root, folder, capsys, *words):
    """Exit code and what `data check` prints."""
    overrides = [
        f"--config.data.folder.{key}={','.join(value) if isinstance(value, tuple) else value}"
        for key, value in folder.items()
    ]
    code = cli.main(["data", "check", str(root), "--layout=folder", *overrides, *words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


# --- splits ---------------------------------------------------------------------------------------


def test_without_a_way_to_split_all_frames_are_train(tmp_path, capsys):
    _videos(tmp_path)
    found = _splits(tmp_path, VIDEO)
    assert len(found["train"]) == 16
    for split in ("val", "test"):
        assert f"a score on {split} would be one on the same frames" in found[split] and "\n" not in found[split]
        assert "data.folder.splits=0.8,0.2 splits the 4 videos" in found[split]
    code, out, _ = _check(tmp_path, VIDEO, capsys)
    assert code == 0 and "note: " in out and "all frames are train, there is nothing to score on" in out
    assert [line.split()[:3] for line in out.splitlines()[2:4]] == [["train", "16", "16"], []]


def test_shares_split_whole_videos_and_do_not_depend_on_the_seed(tmp_path):
    _videos(tmp_path, names=[f"v{i}" for i in range(10)], count=2)
    found = _splits(tmp_path, {**VIDEO, "splits": ("0.6", "0.2", "0.2")})
    videos = {split: {name.split("/")[0] for name in names} for split, names in found.items()}
    assert {split: len(names) for split, names in videos.items()} == {"train": 6, "val": 2, "test": 2}
    assert set().union(*videos.values()) == {f"v{i}" for i in range(10)}
    assert all(len(names) == 2 * len(videos[split]) for split, names in found.items())
    assert _splits(tmp_path, {**VIDEO, "splits": ("6", "2", "2")}) == found
    datasets.find_in.cache_clear()
    source = datasets.find(_data(tmp_path, {**VIDEO, "splits": ("6", "2", "2")}, seed=7), "val")
    assert {frame.sequence for frame in source.frames} == videos["val"]


def test_shares_give_scores_to_videos_with_masks(tmp_path):
    _videos(tmp_path)
    for name in ("v0", "v2"):
        for path in (tmp_path / "masks" / name).iterdir():
            path.unlink()
    found = _splits(tmp_path, {**VIDEO, "splits": ("0.5", "0.5")})
    assert {name[:2] for name in found["val"]} <= {"v1", "v3"} and len(found["val"]) == 4
    assert {"v0", "v2"} < {name[:2] for name in found["train"]}


def test_one_video_is_cut_only_where_blocks_are_asked_for(tmp_path, capsys):
    _videos(tmp_path, names=("v0",), count=10)
    one = {**VIDEO, "splits": ("0.7", "0.2", "0.1")}
    assert "1 video with masks cannot be shared among 3 splits" in _splits(tmp_path, one)["train"]
    found = _splits(tmp_path, {**one, "split_by": "blocks"})
    assert [len(found[split]) for split in frames.SPLITS] == [7, 2, 1]
    assert found["train"] == [f"v0/{i}" for i in range(7)] and found["val"] == ["v0/7", "v0/8"]
    advice = _splits(tmp_path, VIDEO)["val"]
    assert "data.folder.splits=0.8,0.2 with data.folder.split_by=blocks cuts this one video in two" in advice
    code, out, _ = _check(tmp_path, {**VIDEO, "splits": ("0.8", "0.2"), "split_by": "blocks"}, capsys)
    assert code == 0 and [line.split()[:2] for line in out.splitlines()[2:4]] == [["train", "8"], ["val", "2"]]


def test_videos_by_name(tmp_path):
    _videos(tmp_path)
    found = _splits(tmp_path, {**VIDEO, "splits": ("val:v1", "test:v[23]")})
    assert {split: sorted({name[:2] for name in names}) for split, names in found.items()} == {
        "train": ["v0"],
        "val": ["v1"],
        "test": ["v2", "v3"],
    }
    only = _splits(tmp_path, {**VIDEO, "splits": ("train:v0", "val:v1")})
    assert len(only["train"]) == len(only["val"]) == 4 and "gives it none" in only["test"]


def test_vspw_is_split_by_its_lists(tmp_path):
    for name in ("10_a", "11_b", "12_c"):
        for i in range(3):
            _pair(tmp_path / f"data/{name}/origin/{i:08d}.jpg", tmp_path / f"data/{name}/mask/{i:08d}.png")
    (tmp_path / "train.txt").write_text("12_c\n10_a\n")
    (tmp_path / "val.txt").write_text("11_b\r\n\r\n")
    folder = {"frames": "data/{sequence}/origin/{number}.jpg", "masks": "data/{sequence}/mask/{number}.png"}
    found = _splits(tmp_path, {**folder, "classes": ("a", "b")})
    assert found["train"] == [f"{name}/{i}" for name in ("10_a", "12_c") for i in range(3)]
    assert found["val"] == [f"11_b/{i}" for i in range(3)] and "add test.txt" in found["test"]


def test_davis_is_split_by_the_lists_that_the_key_names(tmp_path):
    for name in ("bear", "dog jump"):
        for i in range(3):
            place = f"480p/{name}/{i:05d}"
            _pair(tmp_path / f"JPEGImages/{place}.jpg", tmp_path / f"Annotations/{place}.png")
    lists = tmp_path / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\n")
    (lists / "val.txt").write_text("dog jump")
    folder = {"frames": "JPEGImages/480p/{sequence}/{number}.jpg", "masks": "Annotations/480p/{sequence}/{number}.png"}
    folder |= {"classes": ("a", "b"), "splits": ("ImageSets/2017/{split}.txt",)}
    found = _splits(tmp_path, folder)
    assert found["train"] == [f"bear/{i}" for i in range(3)] and found["val"] == [f"dog jump/{i}" for i in range(3)]
    pairs = tmp_path / "ImageSets" / "480p"  # as in 2016: paths of frame and mask
    pairs.mkdir()
    for split, name in (("train", "bear"), ("val", "bear")):
        numbers = (0, 1) if split == "train" else (2,)
        lines = [f"/JPEGImages/480p/{name}/{i:05d}.jpg /Annotations/480p/{name}/{i:05d}.png\n" for i in numbers]
        (pairs / f"{split}.txt").write_text("".join(lines))
    found = _splits(tmp_path, {**folder, "splits": ("ImageSets/480p/{split}.txt",)})
    assert found["train"] == ["bear/0", "bear/1"] and found["val"] == ["bear/2"]


def test_lists_of_labelled_frames_take_the_history_with_them(tmp_path):
    for i in range(8):
        trees.save(tmp_path / f"img_{i:03d}.png", trees.frame(i, SIZE))
    for i in (2, 5, 7):
        trees.save(tmp_path / "masks" / f"img_{i:03d}.png", _ids(i))
    (tmp_path / "train.txt").write_text("img_002.png\nimg_007.png\n")
    (tmp_path / "val.txt").write_text("./img_005\n")
    folder = {"frames": "img_{number}.png", "masks": "masks/img_{number}.png", "classes": ("a", "b")}
    found = _splits(tmp_path, folder)
    assert found["train"] == [f"video/{i}" for i in (0, 1, 2, 6, 7)]
    assert found["val"] == [f"video/{i}" for i in (3, 4, 5)]


def test_a_folder_like_cityscapes(tmp_path):
    for split, city in (("train", "aachen"), ("val", "ulm")):
        for i in (19, 20):
            name = f"{split}/{city}/{city}_000001_{i:06d}"
            mask = tmp_path / f"gtFine/{name}_gtFine_labelTrainIds.png"
            _pair(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png", mask)
    folder = {"frames": "leftImg8bit/{split}/*/{sequence}_{number}_leftImg8bit.png", "classes": ("a", "b")}
    folder |= {"masks": "gtFine/{split}/*/{sequence}_{number}_gtFine_labelTrainIds.png"}
    found = _splits(tmp_path, folder)
    assert found["train"] == ["aachen_000001/19", "aachen_000001/20"] and found["val"][0] == "ulm_000001/19"
    labels = pipeline.load_clips(_data(tmp_path, folder), split="val", num_frames=2).labels
    np.testing.assert_array_equal(labels[0, 0], _ids("ulm_000001_000019_gtFine_labelTrainIds.png"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"splits": ("0.8",)}, "'0.8' are no shares of train, val, test"),
        ({"splits": ("0.8", "x")}, "'0.8,x' is no way to split; give shares"),
        ({"splits": ("0", "1")}, "'0,1' are no shares"),
        ({"splits": ("-1", "2")}, "'-1,2' are no shares"),
        ({"splits": ("nan", "1")}, "'nan,1' are no shares"),
        ({"splits": ("val:v9",)}, "'val:v9' is no video of data.dir; there are v0, v1, v2, v3"),
        ({"splits": ("valid:v0",)}, "'valid:v0' names no split; use train, val, test"),
        ({"splits": ("val:v0", "test:v*")}, "v0 is val and test; keep it in one of them"),
        ({"splits": ("lists/{split}.txt",)}, r"lists/train.txt: no such file; correct the pattern of the lists"),
        ({"frames": "frames/{split}/{number}.png", "splits": ("0.8", "0.2")}, "must both have {sequence}"),
        ({"masks": "masks/{split}/{sequence}/{number}.png"}, "write * for it in the masks, and set data.folder.splits"),
    ],
)
def test_ways_to_split_that_make_no_sense(changes, message, tmp_path):
    _videos(tmp_path)
    with pytest.raises(errors.UserError) as caught:
        datasets.find(_data(tmp_path, {**VIDEO, **changes}), "train")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_pattern_with_splits_needs_no_key(tmp_path):
    _tree(tmp_path)
    with pytest.raises(errors.UserError, match="has {split} already; leave one of the two out"):
        datasets.find(_data(tmp_path, {**SPLIT, "splits": ("0.8", "0.2")}), "train")


def test_broken_lists_are_problems(tmp_path, capsys):
    _videos(tmp_path)
    (tmp_path / "train.txt").write_text("v0\nv7\n")
    (tmp_path / "val.txt").write_text("v1\nv0\n")
    code, out, _ = _check(tmp_path, VIDEO, capsys)
    assert code == 2 and out.splitlines() == [
        f"{tmp_path / 'train.txt'}: lists v7, which is no video and no frame that is there; correct or remove it, "
        "or split by data.folder.splits",
        f"{tmp_path / 'val.txt'}: lists v0, which train.txt lists too; keep it in one of them",
    ]


# --- names ----------------------------------------------------------------------------------------


def test_time_stamps_are_not_called_duplicates_and_the_advice_works(tmp_path, capsys):
    for i in range(3):
        stamp = f"1403636579.{763550 + i}"
        _pair(tmp_path / "imgs" / f"{stamp}.png", tmp_path / "masks" / f"{stamp}.png")
    _pair(tmp_path / "imgs" / "1403636580.01.png", tmp_path / "masks" / "1403636580.01.png")
    code, out, _ = _check(tmp_path / "imgs", {}, capsys)
    assert code == 2 and "names hold more than one number" in out and "give data.folder.frames" in out
    assert out.strip().endswith("for example {time}.png") and len(out.splitlines()) == 1
    folder = {"frames": "imgs/{time}.png", "masks": "masks/{time}.png", "classes": ("a", "b")}
    source = datasets.find(_data(tmp_path, folder), "train")
    assert [(frame.number, frame.image.stem, frame.label.stem) for frame in source.frames] == [
        (0, "1403636579.763550", "1403636579.763550"),
        (1, "1403636579.763551", "1403636579.763551"),
        (2, "1403636579.763552", "1403636579.763552"),
        (3, "1403636580.01", "1403636580.01"),
    ]


def test_names_of_several_numbers_get_a_pattern_that_works(tmp_path, capsys):
    for i in range(3):
        trees.save(tmp_path / f"cam0_{i:04d}_v2.png", trees.frame(i, SIZE))
    code, out, _ = _check(tmp_path, {"frames": "*{number}.png"}, capsys)
    pattern = out.strip().rpartition(" ")[2]
    assert code == 2 and "names hold more than one number" in out and pattern == "cam0_{number}_v2.png"
    assert [f.number for f in datasets.find(_data(tmp_path, {"frames": pattern}), "train").frames] == [0, 1, 2]


def test_frame_and_mask_side_by_side_and_the_advice_works(tmp_path, capsys):
    for i in range(3):
        _pair(tmp_path / f"{i:05d}.jpg", tmp_path / f"{i:05d}.png")
    code, out, _ = _check(tmp_path, {}, capsys)
    assert code == 2 and len(out.splitlines()) == 1 and "the same name as 00000.jpg (3 such files)" in out
    words = dict(word.split("=") for word in out.replace(",", " ").split() if word.startswith("data.folder."))
    assert words == {"data.folder.frames": "{number}.jpg", "data.folder.masks": "{number}.png"}
    folder = {key.rpartition(".")[2]: value for key, value in words.items()} | {"classes": ("a", "b")}
    code, out, _ = _check(tmp_path, folder, capsys)
    assert code == 0 and "unused" not in out
    frames = datasets.find(_data(tmp_path, folder), "train").frames
    names = [(frame.image.name, frame.label.name) for frame in frames]
    assert names == [(f"{i:05d}.jpg", f"{i:05d}.png") for i in range(3)]


def test_segment_warns_where_masks_are_read_as_frames(tmp_path):
    for i in range(3):
        _pair(tmp_path / f"{i:05d}.jpg", tmp_path / f"{i:05d}.png")
    source = sources.open_source(str(tmp_path))
    assert source.num_frames == 6 and len(source.warnings) == 1
    assert "names repeat: 6 images have 3 names (00000.jpg, 00000.png), all are read as frames" in source.warnings[0]
    pattern = source.warnings[0].rpartition("'")[0].rpartition("'")[2]
    other = sources.open_source(pattern)
    assert other.num_frames == 3 and other.warnings == []
    assert image_files.repeated_names([pathlib.Path("a/1.png"), pathlib.Path("a/2.png")]) == ""


# --- classes and ids ------------------------------------------------------------------------------


def test_masks_without_classes_are_refused_and_the_ids_are_said(tmp_path, capsys):
    _tree(tmp_path, values=(3, 7))
    unnamed = {**SPLIT, "classes": ()}
    with pytest.raises(errors.UserError, match="data.folder.classes: the classes of the masks have no names"):
        datasets.find(_data(tmp_path, unnamed), "train")
    code, out, _ = _check(tmp_path, unnamed, capsys)
    assert code == 2
    assert out.startswith("data.folder.classes: the masks hold the ids 3 (50.0 %), 7 (50.0 %); name a class for each")
    assert "in the order of data.folder.ids (3,7)" in out
    assert pipeline.class_table(_data(tmp_path, {**unnamed, "masks": ""})).names[0] == "sky"
    camvid = datasets.class_table(_data(tmp_path, {**SPLIT, "classes": ("camvid",)}))
    assert camvid.names[:3] == ("sky", "building", "pole")


def test_several_ids_are_one_class(tmp_path):
    _tree(tmp_path, values=(3, 9))
    folder = {**SPLIT, "classes": ("a", "b"), "ids": ("1", "3 + 4+9")}
    labels = pipeline.load_clips(_data(tmp_path, folder), split="train", num_frames=1).labels
    assert np.unique(labels).tolist() == [1]
    code = datasets.find(_data(tmp_path, folder), "train").code
    assert code.raw.tolist() == [1, 3, 4, 9, 255] and code.train.tolist() == [0, 1, 1, 1, 255]


def test_several_colours_are_one_class(tmp_path):
    data = _data(tmp_path, {**SPLIT, "labels": "colors", "colors": ("#000001", "#0000ff+#0000fe")})
    code = datasets.of(data).on_disk.code("folder", datasets.options(data))
    assert code.raw.tolist() == [1, 254, 255] and code.train.tolist() == [0, 1, 1] and code.is_color
    assert datasets.class_table(data).colors.tolist() == [[0, 0, 1], [0, 0, 255]]


def test_the_id_255_may_be_a_class(tmp_path):
    _tree(tmp_path, values=(0, 255))
    data = _data(tmp_path, {**SPLIT, "ids": ("0", "255")})
    labels = pipeline.load_clips(data, split="train", num_frames=1).labels
    assert np.bincount(labels.ravel()).tolist() == [labels.size // 2, labels.size // 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": ("a", "a")}, "'a' is there twice; name it once, all its ids in data.folder.ids, as 1+2"),
        ({"ids": ("0", "1+0")}, "the id 0 means two things"),
        ({"ids": ("0", "1+")}, "'' is no id"),
        ({"ids": ("0", "1", "2")}, "3 ids for 2 classes; give one a class, several as 1+2"),
        ({"ids": ("0", "65536")}, "'65536' is no id; write whole numbers in 0..65535"),
        ({"ignore": ("255", "1")}, "the id 1 means two things"),
        ({"absent": ("car",)}, "data.folder.absent: 'car' is no class; use a, b, or all"),
        ({"classes": ("camvid",), "colors": ("#000000",)}, "camvid has colours; leave them out"),
        ({"classes": tuple(f"c{i}" for i in range(256))}, "256 classes, at most 255 are possible"),
    ],
)
def test_classes_that_make_no_sense(changes, message, tmp_path):
    _tree(tmp_path)
    with pytest.raises(errors.UserError) as caught:
        datasets.find(_data(tmp_path, {**SPLIT, **changes}), "train")
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- odd inputs -----------------------------------------------------------------------------------

FRAME, MASK = "images/train/v_train/0002.png", "masks/train/v_train/0002.png"


def _rename(root, old, new):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


def _upper(root):
    for name in (FRAME, MASK):
        _rename(root, name, name.replace(".png", ".PNG"))


def _spaces(root):
    for part in ("images", "masks"):
        _rename(root, f"{part}/train/v_train", f"{part}/train/Überfahrt im Regen")


def _two_forms(root):
    _rename(root, "images/train/v_train", "images/train/caf\u00e9")
    _rename(root, "masks/train/v_train", "masks/train/cafe\u0301")


def _other_padding(root):
    for path in sorted((root / "masks/train/v_train").iterdir()):
        path.rename(path.with_name(f"{int(path.stem)}.png"))


def _palette(root):
    image = Image.fromarray(_ids("0002.png"))
    image.putpalette([200, 0, 0, 0, 200, 0] + [7] * 762)
    image.save(root / MASK)


def _one_bit(root):
    Image.fromarray(_ids("0002.png").astype(bool)).save(root / MASK)


def _sixteen(root):
    trees.save(root / MASK, _ids("0002.png").astype(np.uint16))


def _strangers(root):
    for name in (".DS_Store", "._0002.png", "Thumbs.db", "notes.txt"):
        (root / "images/train/v_train" / name).write_text("x")
        (root / "masks/train/v_train" / name).write_text("x")


def _empty_folders(root):
    (root / "images/train/empty/deeper").mkdir(parents=True)
    (root / "masks/train/empty").mkdir(parents=True)


def _big_numbers(root):
    for part in ("images", "masks"):
        for i in range(6):
            _rename(root, f"{part}/train/v_train/{i:04d}.png", f"{part}/train/v_train/{1403636579763555584 + i}.png")


def _some_masks(root):
    for i in (0, 1, 3):
        (root / f"masks/train/v_train/{i:04d}.png").unlink()


FINE = {
    "upper-case suffix": _upper,
    "spaces and umlauts": _spaces,
    "an accent written in two ways": _two_forms,
    "other zeros before the numbers": _other_padding,
    "palette of its own": _palette,
    "one bit a pixel": _one_bit,
    "16 bits a pixel": _sixteen,
    "files of other programs": _strangers,
    "empty folders": _empty_folders,
    "nanoseconds as numbers": _big_numbers,
    "masks of some frames": _some_masks,
}


@pytest.mark.parametrize("name", FINE)
def test_odd_folders_that_work(name, tmp_path, capsys):
    FINE[name](_tree(tmp_path))
    code, out, _ = _check(tmp_path, SPLIT, capsys)
    assert code == 0, out
    data = _data(tmp_path, SPLIT)
    source = datasets.find(data, "train")
    assert len(source.frames) == 6 and len({frame.sequence for frame in source.frames}) == 1
    stored = store.load(data, "train")
    place = len([frame for frame in source.frames[:2]])
    np.testing.assert_array_equal(stored.labels[place], _ids("0002.png"))
    np.testing.assert_array_equal(stored.frames[place], trees.frame("0002.pngv_train", SIZE))
    assert sum(frame.label is not None for frame in source.frames) == (3 if name == "masks of some frames" else 6)


def _no_masks(root):
    for path in (root / "masks/train/v_train").iterdir():
        path.unlink()


def _mask_size(root):
    trees.save(root / MASK, np.zeros((4, 6), np.uint8))


def _twice(root):
    trees.save(root / "images/train/v_train/02.png", trees.frame("other", SIZE))


def _huge(root):
    trees.save(root / MASK, np.full(SIZE[::-1], 40000, np.uint16))


def _rgb(root):
    trees.save(root / MASK, np.zeros((*SIZE[::-1], 3), np.uint8))


def _link(root):
    (root / MASK).unlink()
    (root / MASK).symlink_to(root / "nowhere.png")


def _locked(root):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (root / MASK).chmod(0)


def _jpeg(root):
    for path in sorted((root / "images").rglob("*.png")):
        path.rename(path.with_suffix(".jpeg"))


def _other_type(root):
    for path in sorted((root / "images").rglob("*.png")):
        path.rename(path.with_suffix(".exr"))


REFUSED = {  # what is done, what is said, whether training is refused, too
    "masks folder is empty": (_no_masks, "no mask of any frame matches this pattern; correct data.folder.masks", True),
    "mask of another size": (_mask_size, "6x4 pixels, but its frame 0002.png has 12x8; make them equal", True),
    "a number twice": (_twice, "02.png: the same frame number as 0002.png; rename one of the two", True),
    "huge ids": (_huge, "label id 40000 is out of range; ids are 0, 1, 255", True),
    "colours as ids": (_rgb, "this one is RGB; convert it; or set data.folder.labels", True),
    "broken link": (_link, "the link leads to no file (or in a circle)", True),
    "no permission": (_locked, "Permission denied", True),
    "not an image": (lambda root: (root / MASK).write_text("no"), "no known image format", True),
    "empty file": (lambda root: (root / FRAME).write_bytes(b""), "the file is empty", True),
    "other suffix": (_jpeg, "no frames match this pattern (there is: images/train/v_train/0000.jpeg)", True),
    "other type": (_other_type, "no frames match this pattern (there is: masks/train/v_train/0000.png)", True),
    "mask without frame": (lambda root: (root / FRAME).unlink(), "a mask without its frame", False),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_folders_that_are_refused(name, tmp_path, capsys):
    break_fn, message, is_fatal = REFUSED[name]
    break_fn(_tree(tmp_path))
    code, out, err = _check(tmp_path, SPLIT, capsys)
    assert code == 2 and message in out and all(len(line) < 400 for line in out.splitlines()), out
    assert len(err.strip().splitlines()[-1:]) == 1
    if is_fatal:
        with pytest.raises(errors.UserError) as caught:
            pipeline.load_clips(_data(tmp_path, SPLIT), split="train", num_frames=1)
        said = "none of the 6 frames" if name == "masks folder is empty" else message
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_no_program_reads_are_named_by_type(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0001.exr").write_text("x")
    code, out, _ = _check(tmp_path, {}, capsys)
    assert code == 2 and "no frames; set data.folder.frames to their pattern" in out
    assert f"files of the type .exr; images that can be read: {', '.join(image_files.SUFFIXES)}" in out


# --- from an empty directory to a segmented video -------------------------------------------------

EXAMPLE = """
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import presets


def get_config():
    config = config_lib.defaults()
    presets.small_networks(config)
    config.data.name = "folder"
    config.data.dir = "mydata"
    config.data.folder.frames = "frames/{sequence}/{number}.jpg"
    config.data.folder.masks = "masks/{sequence}/{number}.png"
    config.data.folder.classes = ("background", "car", "person")
    config.data.folder.ids = ("0", "1+2", "3")  # the ids 1 and 2 are both cars
    config.data.folder.splits = ("0.7", "0.3")  # whole videos
    config.data.num_frames = 2
    return config
"""
"""The config of the worked example of the documentation."""


def _example(root):
    """Three videos of a street: noise, a moving car and a person; masks of every frame."""
    for v in range(3):
        for i in range(6):
            frame = trees.rng(f"{v} {i}").integers(0, 60, (48, 64, 3)).astype(np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            boxes = ((1 + v % 2, slice(10, 30), 5 + 4 * i, 20, 120), (3, slice(20, 44), 50 - 3 * i, 8, 60))
            for value, rows, left, width, light in boxes:
                frame[rows, left : left + width] += np.uint8(light)
                mask[rows, left : left + width] = value
            trees.save(root / f"frames/drive {v}/{i:05d}.jpg", frame)
            trees.save(root / f"masks/drive {v}/{i:05d}.png", mask)
    return root


def _example_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _example(tmp_path / "mydata")
    pathlib.Path("mine.py").write_text(EXAMPLE)
    return "--config=mine.py"


def test_the_worked_example_is_checked(tmp_path, monkeypatch, capsys):
    config_word = _example_words(tmp_path, monkeypatch)
    assert cli.main(["data", "check", "mydata", config_word]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:4] for line in out.splitlines()[2:4]] == [["train", "12", "12", "2"], ["val", "6", "6", "1"]]
    assert "note" not in out
    config = config_lib.load("mine.py")
    assert require_labels.check(config, is_rewarded=True, is_evaluated=True) == 10
    labels = pipeline.load_clips(config.data, split="train", num_frames=1).labels
    masks = [np.asarray(Image.open(frame.label)) for frame in datasets.find(config.data, "train").frames]
    np.testing.assert_array_equal(labels[:, 0], np.array([0, 1, 1, 2])[np.stack(masks)])


@pytest.mark.slow
def test_the_worked_example_ends_in_a_segmented_video(tmp_path, monkeypatch, capsys):
    config_word = _example_words(tmp_path, monkeypatch)
    tiny = {"net.width": 0.125, "net.decoder_channels": 8, "space.channels": 8, "space.num_layers": 2}
    tiny |= {"pretrain.steps": 12, "pretrain.eval_every": 6, "space.inputs": "prev_state,decoder,logits"}
    tiny |= {"search.steps": 2, "search.genotypes_per_step": 2, "search.shared_steps": 1, "search.warmup_steps": 2}
    tiny |= {"search.num_random": 2, "search.batch_size": 2, "derive.num_rewarded": 1, "derive.num_probable": 1}
    tiny |= {"train.steps": 10, "train.norm_batches": 2, "train.batch_size": 2, "evaluate.latency_frames": 0}
    tiny |= {"derive.num_retrain": 1}
    tiny |= {"space.operations": "none,skip,conv_1x1", "space.aggregations": "sum,gate", "compile_effort": "quick"}
    words = [f"--config.{key}={value}" for key, value in tiny.items()]
    assert cli.main(["search", config_word, "--workdir=run", *words]) == 0
    table = capsys.readouterr().out
    assert "val, 6 frames" in table and "nan" not in table
    assert cli.main(["segment", "mydata/frames/drive 0", "--workdir=run", "--output=out.mp4", "--masks=out"]) == 0
    assert pathlib.Path("out.mp4").stat().st_size > 0 and len(list(pathlib.Path("out").iterdir())) == 6
