"""`dvsnas data check` and `dvsnas data preview`: the report, many kinds of broken input, exit codes, pictures."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.data import check, preview
from dvsnas_jax.data.datasets import classes, folder_layout, layouts
from dvsnas_jax.data.loading import encoded_frames, store

FRAME, LABEL = "train/0006R0_f00930.png", "trainannot/0006R0_f00930.png"
COLORS = "LabeledApproved_full/0006R0_f00930_L.png"
AACHEN = "aachen/aachen_000000_000019"


def _options(**changes):
    section = config_lib.defaults().data.folder
    section.update(changes)
    return folder_layout.options(section)


# --- what is right --------------------------------------------------------------------------------


def test_report_of_a_good_tree(tmp_path):
    report = check.run(str(trees.camvid_segnet(tmp_path)), "auto", _options(), workers=2)
    assert report.problems == report.notes == () and report.layout == "camvid_segnet"
    assert [(each.split, len(each.source.frames), each.num_labelled) for each in report.splits] == [
        ("train", 7, 7),
        ("val", 5, 5),
        ("test", 5, 5),
    ]
    for each in report.splits:
        expected = np.zeros(256, np.int64)
        for name in trees.SEGNET[each.split]:
            ids = trees.blocks(name, range(12)).ravel()
            expected += np.bincount(np.where(ids == 11, 255, ids), minlength=256)
        np.testing.assert_array_equal(each.histogram, expected)
        assert dict(each.sizes) == {trees.SIZE: len(each.source.frames)}
    lines = check.text(report).splitlines()
    assert "40x30 (5); 2 (3 times), 4 (1 times)" in next(line for line in lines if line.startswith("val"))
    val = report.splits[1].histogram
    shown = next(line for line in lines if line.startswith("building")).split()
    assert shown[2] == f"{100 * val[1] / val[:11].sum():.2f}%"


@pytest.mark.parametrize("make", [trees.camvid_official, trees.cityscapes, trees.camvid_segnet])
def test_official_trees_are_fine(make, tmp_path, capsys):
    is_video = {"is_video": True}
    assert cli.main(["data", "check", str(make(tmp_path, **is_video))]) == 0
    out = capsys.readouterr().out
    assert make.__name__ in out.splitlines()[0] and "problem" not in out


def test_a_folder_is_checked_by_its_options(tmp_path, capsys):
    trees.folder(tmp_path)
    words = ["frames=images/{split}/{sequence}/{number}.*", "masks=masks/{split}/{sequence}/{number}.*"]
    words += ["classes=a,b,c", "ids=10,20,30", "ignore=0"]
    overrides = [f"--config.data.folder.{word}" for word in words]
    assert cli.main(["data", "check", str(tmp_path), *overrides]) == 0
    assert "train         12         6          2  40x30 (12); 1 (10 times)" in capsys.readouterr().out
    overrides[-1] = "--config.data.folder.ignore=255"
    assert cli.main(["data", "check", str(tmp_path), *overrides]) == 2
    out, err = capsys.readouterr()
    masks = sorted((tmp_path / "masks").rglob("*.png"))
    num = sum(int((np.asarray(Image.open(path)) == 0).sum()) for path in masks)
    assert out.splitlines() == [
        f"{masks[0]}: label id 0 is out of range; ids are 10, 20, 30, 255, of which [255] are ignored ({num:,} pixels "
        "in 12 masks); make a class of it by data.folder.ids, or leave it out: --config.data.folder.ignore=255,0"
    ]
    assert err.strip().splitlines()[-1].endswith("1 problems (listed above); correct them and check again")
    overrides[-1] = "--config.data.folder.ignore=255,0"
    assert cli.main(["data", "check", str(tmp_path), *overrides]) == 0


# --- what is broken -------------------------------------------------------------------------------


def _cut(root, name, size=60):
    path = root / name
    path.write_bytes(path.read_bytes()[:size])


def _save(root, name, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(root / name, **options)


def _pixels(root, name):
    return np.asarray(Image.open(root / name))


def _palette_ids(root, name):
    palette = Image.fromarray(_pixels(root, name))
    palette.putpalette(list(range(255, -1, -1)) * 3)
    _save(root, name, palette)


def _loop(root, name):
    (root / name).unlink()
    (root / name).symlink_to(root / name)


def _link(root, name, target):
    (root / name).unlink()
    (root / name).symlink_to(target)


def _folder(root, name):
    (root / name).unlink()
    (root / name).mkdir()


def _locked(root, name):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (root / name).chmod(0)


def _rename(root, old, new):
    (root / old).rename(root / new)


def _copy(root, old, new):
    shutil.copy(root / old, root / new)


def _without(root, folder):
    shutil.rmtree(root / folder)


def _shape(root, shape):
    _save(root, FRAME, np.zeros((*shape, 3), np.uint8))
    _save(root, LABEL, np.zeros(shape, np.uint8))


def _lists(root, **names):
    for split, text in names.items():
        (root / f"{split}.txt").write_text(text)


SEGNET, OFFICIAL, CITY, STILLS = (
    trees.camvid_segnet,
    trees.camvid_official,
    trees.cityscapes,
    lambda root: trees.cityscapes(root, is_video=False),
)
CLIP = f"leftImg8bit_sequence/train/{AACHEN}_leftImg8bit.png"
GROUND = f"gtFine/train/{AACHEN}_gtFine_labelIds.png"

BROKEN = {  # name: (tree, what is done to it, the file named, what is said, does training stop too)
    "truncated frame": (SEGNET, lambda r: _cut(r, FRAME), FRAME, "not a readable image", True),
    "truncated label": (SEGNET, lambda r: _cut(r, LABEL), LABEL, "not a readable image", True),
    "empty file": (SEGNET, lambda r: _cut(r, FRAME, 0), FRAME, "the file is empty", True),
    "no image at all": (SEGNET, lambda r: (r / FRAME).write_text("hello"), FRAME, "no known image format", True),
    "folder named like an image": (SEGNET, lambda r: _folder(r, FRAME), FRAME, "a folder with the name of", True),
    "link to itself": (SEGNET, lambda r: _loop(r, FRAME), FRAME, "leads to no file (or in a circle)", True),
    "link to nothing": (SEGNET, lambda r: _link(r, LABEL, "nowhere"), LABEL, "leads to no file", True),
    "no permission": (SEGNET, lambda r: _locked(r, FRAME), FRAME, "Permission denied", True),
    "label of another size": (
        SEGNET,
        lambda r: _save(r, LABEL, np.zeros((15, 20), np.uint8)),
        LABEL,
        "20x15 pixels, but its frame 0006R0_f00930.png has 40x30; make them equal",
        True,
    ),
    "frame of another shape": (SEGNET, lambda r: _shape(r, (30, 30)), FRAME, "30x30 pixels, but most frames", False),
    "label without frame": (
        SEGNET,
        lambda r: _copy(r, LABEL, "trainannot/0006R0_f00945.png"),
        "trainannot/0006R0_f00945.png",
        "a label image without its frame",
        False,
    ),
    "frame without label": (SEGNET, lambda r: (r / LABEL).unlink(), FRAME, f"{LABEL} is missing", True),
    "name without a number": (
        SEGNET,
        lambda r: _copy(r, FRAME, "train/0006R0_last.png"),
        "train/0006R0_last.png",
        "the name is not <sequence>_<frame number>.png",
        True,
    ),
    "two files of one frame": (
        SEGNET,
        lambda r: [
            (_save(r, f"{folder}/0006R0_930.png", np.zeros(shape, np.uint8)))
            for folder, shape in (("train", (30, 40, 3)), ("trainannot", (30, 40)))
        ],
        "train/0006R0_f00930.png",
        "frame 930 of sequence 0006R0 is 0006R0_930.png already",
        True,
    ),
    "id above the range": (
        SEGNET,
        lambda r: _save(r, LABEL, np.full((30, 40), 17, np.uint8)),
        LABEL,
        "label id 17 is out of range; ids are 0, 1, 2",
        True,
    ),
    "16-bit ids above the range": (
        SEGNET,
        lambda r: _save(r, LABEL, np.full((30, 40), 259, np.uint16)),
        LABEL,
        "label id 259 is out of range",
        True,
    ),
    "colours instead of ids": (
        SEGNET,
        lambda r: _save(r, LABEL, np.zeros((30, 40, 3), np.uint8)),
        LABEL,
        "one channel of ids, this one is RGB",
        True,
    ),
    "JPEG label": (
        SEGNET,
        lambda r: _save(r, LABEL, np.zeros((30, 40), np.uint8), format="JPEG"),
        LABEL,
        "a JPEG blurs labels",
        True,
    ),
    "ids instead of colours": (
        OFFICIAL,
        lambda r: _save(r, COLORS, np.zeros((30, 40), np.uint8)),
        COLORS,
        "the colours of classes (RGB), this one is L",
        True,
    ),
    "unknown colour": (
        OFFICIAL,
        lambda r: _save(r, COLORS, np.full((30, 40, 3), (127, 64, 128), np.uint8)),
        COLORS,
        "the colour (127, 64, 128) belongs to no class",
        True,
    ),
    "no folder of labels": (SEGNET, lambda r: _without(r, "trainannot"), "trainannot", "no such folder", True),
    "no folder of official labels": (
        OFFICIAL,
        lambda r: _without(r, "LabeledApproved_full"),
        "LabeledApproved_full",
        "no such folder; expected 701_StillsRaw_full",
        True,
    ),
    "empty folder of frames": (
        SEGNET,
        lambda r: (_without(r, "train"), (r / "train").mkdir()),
        "train",
        "no frames; expected",
        True,
    ),
    "unknown sequence": (
        OFFICIAL,
        lambda r: [
            _save(r, f"{folder}/Mine_00001{end}.png", np.zeros((30, 40, 3), np.uint8))
            for folder, end in (("701_StillsRaw_full", ""), ("LabeledApproved_full", "_L"))
        ],
        "701_StillsRaw_full/Mine_00001.png",
        "the usual split knows no sequence Mine",
        True,
    ),
    "list of missing frames": (
        OFFICIAL,
        lambda r: _lists(r, train="0006R0_f00930.png\n0006R0_f99999.png\n"),
        "train.txt",
        "lists 0006R0_f99999, which is not in 701_StillsRaw_full",
        True,
    ),
    "frame in two lists": (
        OFFICIAL,
        lambda r: _lists(r, train="0006R0_f00930.png\n", val="0006R0_f00930.png\n0016E5_07959\n"),
        "val.txt",
        "lists 0006R0_f00930, which train.txt lists too",
        True,
    ),
    "name of a video frame": (
        SEGNET,
        lambda r: (trees.camvid_video(r), _rename(r, "frames/0016E5/07955.png", "frames/0016E5/last.png")),
        "frames/0016E5/last.png",
        "the name is not <frame number>.png",
        True,
    ),
    "same picture in two splits": (
        SEGNET,
        lambda r: _copy(r, FRAME, "val/0016E5_07961.png"),
        "val/0016E5_07961.png",
        f"the same picture as {{root}}/{FRAME}",
        False,
    ),
    "no labelled frame in a split": (
        CITY,
        lambda r: _without(r, "gtFine/train"),
        "gtFine/train",
        "no label images, nothing of train is labelled",
        False,
    ),
    "snippet without label": (
        CITY,
        lambda r: (r / GROUND).unlink(),
        "leftImg8bit_sequence/train/aachen/aachen_000000_000000_leftImg8bit.png",
        "frames 0..29 of aachen_000000 have no label image",
        False,
    ),
    "still without label": (
        STILLS,
        lambda r: (r / GROUND).unlink(),
        f"leftImg8bit/train/{AACHEN}_leftImg8bit.png",
        f"{GROUND} is missing",
        True,
    ),
    "labelled frame missing": (CITY, lambda r: (r / CLIP).unlink(), GROUND, "a label image without its frame", False),
    "frame of another city": (
        CITY,
        lambda r: _rename(r, CLIP, "leftImg8bit_sequence/train/hamburg/aachen_000000_000019_leftImg8bit.png"),
        "leftImg8bit_sequence/train/hamburg/aachen_000000_000019_leftImg8bit.png",
        "the name starts with another city",
        True,
    ),
    "Cityscapes id above the range": (
        CITY,
        lambda r: _save(r, GROUND, np.full((16, 32), 34, np.uint8)),
        GROUND,
        "label id 34 is out of range; ids are 0..255",
        True,
    ),
}


def _config(root, make):
    data = config_lib.defaults().data
    name = "camvid" if make in (SEGNET, OFFICIAL) else "cityscapes"
    data.update({"name": name, "dir": str(root), "loader": "numpy", "height": 30, "width": 40})
    return data


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_named_in_one_line(name, tmp_path, capsys):
    make, break_fn, file, text, is_fatal = BROKEN[name]
    break_fn(make(tmp_path))
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    text = text.replace("{root}", str(tmp_path))
    named = [line for line in out.splitlines() if line.startswith(f"{tmp_path / file}: ") and text in line]
    assert len(named) == 1, out
    assert err.strip().splitlines()[-1].startswith("dvsnas") and "Traceback" not in err
    data = _config(tmp_path, make)
    split = "val" if file.startswith("val") else "train"
    if is_fatal:
        with pytest.raises(errors.UserError) as caught:
            store.load(data, split)
        assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value) and text in str(caught.value)
    else:
        assert len(store.load(data, split).frames) > 3


def test_missing_folders(tmp_path, capsys):
    assert cli.main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    assert "no frames; set data.folder.frames to their pattern" in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path), "--layout=camvid"]) == 2
    assert "no split and no frames are here; expected" in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path), "--workers=-1"]) == 2
    assert "--workers: must be at least 0" in capsys.readouterr().err


def _grey(root):
    grey = _pixels(root, FRAME)[:, :, 0]
    _save(root, FRAME, grey)
    return np.repeat(grey[..., None], 3, 2)


def _deep(root):
    grey = _pixels(root, FRAME)[:, :, 0]
    _save(root, FRAME, grey.astype(np.uint16) * 257)
    return np.repeat(grey[..., None], 3, 2)


def _alpha(root):
    pixels = _pixels(root, FRAME)
    _save(root, FRAME, np.concatenate([pixels, np.full((30, 40, 1), 7, np.uint8)], 2))
    return pixels


def _palette_frame(root):
    image = Image.open(root / FRAME).quantize(64)
    _save(root, FRAME, image)
    return np.asarray(image.convert("RGB"))


def _jpeg(root):
    _save(root, FRAME, _pixels(root, FRAME), format="JPEG")
    return _pixels(root, FRAME)


def _upper(root):
    pixels = _pixels(root, FRAME)
    _rename(root, FRAME, FRAME.replace(".png", ".PNG"))
    _rename(root, LABEL, LABEL.replace(".png", ".PNG"))
    return pixels


def _deep_label(root):
    _save(root, LABEL, _pixels(root, LABEL).astype(np.uint16))


def _palette_colors(root):
    _save(root, COLORS, Image.open(root / COLORS).quantize(64))


def _alpha_colors(root):
    pixels = _pixels(root, COLORS)
    _save(root, COLORS, np.concatenate([pixels, np.full((30, 40, 1), 255, np.uint8)], 2))


def _gap(root):
    for folder in ("train", "trainannot"):
        (root / folder / "0006R0_f00960.png").unlink()


def _share_numbers(root):
    for folder in ("train", "trainannot"):
        _rename(root, f"{folder}/0016E5_07950.png", f"{folder}/0016E5_00930.png")


def _strangers(root):
    (root / "train" / "Thumbs.db").write_text("x")
    (root / "train" / "._0006R0_f00930.png").write_text("x")
    (root / "README.md").write_text("x")


HARMLESS = {
    "grey frame": (SEGNET, _grey),
    "16-bit frame": (SEGNET, _deep),
    "alpha channel": (SEGNET, _alpha),
    "frame with a palette": (SEGNET, _palette_frame),
    "JPEG renamed to .png": (SEGNET, _jpeg),
    "upper-case suffix": (SEGNET, _upper),
    "label with a palette": (SEGNET, lambda r: _palette_ids(r, LABEL)),
    "16-bit label": (SEGNET, _deep_label),
    "official label with a palette": (OFFICIAL, _palette_colors),
    "official label with alpha": (OFFICIAL, _alpha_colors),
    "gap in a sequence": (SEGNET, _gap),
    "sequences that share numbers": (SEGNET, _share_numbers),
    "files of other programs": (SEGNET, _strangers),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_input_is_accepted(name, tmp_path, capsys):
    make, change_fn = HARMLESS[name]
    make(tmp_path)
    data = _config(tmp_path, make)
    before = store.read(encoded_frames.open_media(data, "train"), range(7), (30, 40), what="train").labels
    layouts.find_in.cache_clear()
    expected = change_fn(tmp_path)
    assert cli.main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    frames = layouts.find(data, "train").frames
    stored = store.load(data, "train")
    place = next(i for i, frame in enumerate(frames) if frame.image.stem == "0006R0_f00930")
    if expected is not None:
        np.testing.assert_array_equal(stored.frames[place], expected)
    if len(frames) == 7 and name != "sequences that share numbers":
        np.testing.assert_array_equal(stored.labels, before)
    if name == "gap in a sequence":
        assert "930..990, gaps 60 (1 times)" in out
    if name == "sequences that share numbers":
        assert [(f.sequence, f.number) for f in frames if f.number == 930] == [("0006R0", 930), ("0016E5", 930)]


def test_a_folder_that_links_to_itself_is_harmless(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "images" / "train" / "again").symlink_to(tmp_path / "images" / "train")
    report = check.run(str(tmp_path), "folder", _options(frames="images/{split}/{sequence}/{number}.png"))
    assert [len(each.source.frames) for each in report.splits] == [12, 12] and not report.problems


def test_a_standing_video_is_a_note(tmp_path):
    trees.folder(tmp_path)
    shutil.copy(tmp_path / "images/val/val_a/0000.png", tmp_path / "images/val/val_a/0002.png")
    report = check.run(str(tmp_path), "folder", _options(frames="images/{split}/{sequence}/{number}.png"))
    assert not report.problems and report.notes == ("sequence val_a: 1 frames repeat an earlier picture",)


def test_several_problems_are_all_listed(tmp_path, capsys):
    trees.camvid_segnet(tmp_path)
    _cut(tmp_path, FRAME)
    _save(tmp_path, LABEL, np.full((30, 40), 200, np.uint8))
    (tmp_path / "val" / "x.png").write_bytes(b"")
    (tmp_path / "trainannot" / "0006R0_f00960.png").unlink()
    assert cli.main(["data", "check", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4 and "4 problems (listed above)" in err
    layouts.find_in.cache_clear()
    (tmp_path / "trainannot" / "0006R0_f00990.png").unlink()
    with pytest.raises(errors.UserError, match=r"\(1 more problems: run `dvsnas data check"):
        layouts.find(_config(tmp_path, SEGNET), "train")


# --- previews -------------------------------------------------------------------------------------


def _tiny(tmp_path):
    data = _config(trees.camvid_segnet(tmp_path / "tree"), SEGNET)
    data.update({"eval_gap": 2, "crop_height": 30, "crop_width": 40})
    return data


@pytest.mark.parametrize("ending", ["gif", "webp", "apng"])
def test_animation_shows_frames_and_overlay(ending, tmp_path):
    data = _tiny(tmp_path)
    pictures, rate = preview.animate(data)
    assert rate == 15 and len(pictures) == 4 and pictures.shape[2] == 480  # 40 pixels x 6 x 2
    name = "0016E5_07961"
    small = pictures[1][:180:6, ::6]
    np.testing.assert_array_equal(small[:, :40], trees.frame(name))
    ids = trees.blocks(name, range(12))
    mixed = 0.45 * trees.frame(name) + 0.55 * classes.colorize(ids.astype(np.uint8))
    expected = np.where((ids == 11)[..., None], trees.frame(name), mixed)
    assert np.abs(small[:, 40:] - expected).max() <= 0.51
    path = tmp_path / f"clip.{ending}"
    preview.save_animation(data, path)
    with Image.open(path) as image:
        assert image.n_frames == 4 and image.size == (480, pictures.shape[1])
        image.seek(1)
        seen = np.asarray(image.convert("RGB")).astype(int)
    tolerance = {"apng": 0, "webp": 12, "gif": 16}[ending]
    assert np.abs(seen - pictures[1]).mean() <= tolerance


def test_animation_of_one_video_and_unlabelled_frames(tmp_path):
    data = _tiny(tmp_path)
    trees.camvid_video(data.dir)
    data.eval_gap = 1
    pictures, rate = preview.animate(data, num_frames=3)
    assert rate == 30 and len(pictures) == 3
    np.testing.assert_array_equal(pictures[0][:180, :240], pictures[0][:180, 240:])  # no labels: the bare frame
    with pytest.raises(errors.UserError, match="--video: must be from 0 to 0, the videos of val, got 5"):
        preview.animate(data, number=5)


def test_preview_commands(tmp_path, capsys):
    root = trees.cityscapes(tmp_path / "tree")
    words = ["data", "preview", "--config.data.name=cityscapes", f"--config.data.dir={root}"]
    words += ["--config.data.height=16", "--config.data.width=32", "--config.data.loader=numpy"]
    clip, sheet = tmp_path / "clip.png", tmp_path / "sheet.png"
    assert cli.main([*words, f"--output={clip}", "--animate", "--frames=4", "--video=1"]) == 0
    with Image.open(clip) as image:
        assert image.n_frames == 4
    assert cli.main([*words, f"--output={sheet}", "--frames=2"]) == 0
    with Image.open(sheet) as image:
        assert image.size[0] == 2 * 36
        np.testing.assert_array_equal(np.asarray(image)[:16, :32], trees.frame("frankfurt_000000_000275", (32, 16)))
    train = tmp_path / "train.png"
    small = ["--config.data.crop_height=16", "--config.data.crop_width=32"]
    assert cli.main([*words, *small, f"--output={train}", "--split=train"]) == 0 and train.exists()
    capsys.readouterr()
    assert cli.main([*words, f"--output={tmp_path / 'clip.mp4'}"]) == 2
    assert "must end in .png or .apng or .gif or .webp" in capsys.readouterr().err
    assert cli.main([*words, f"--output={sheet}", "--video=1"]) == 2
    assert "add --animate" in capsys.readouterr().err
    assert pathlib.Path(clip).stat().st_size > 0
