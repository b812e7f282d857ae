"""TFDS builders and the prepared store: the same bytes as the files, the same index as the folder."""

import io
import os
import threading
from concurrent import futures

import numpy as np
import pytest
import tensorflow_datasets as tfds
import trees
from PIL import Image

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames, layouts
from dvsnas_jax.data.loading import clip_index, decode, pipeline
from dvsnas_jax.data.prepared import clip_builders, encoded, prepare, reading


def _data(name, root, **changes):
    data = config_lib.defaults().data
    data.update({"name": name, "dir": str(root), **changes})
    return data


def _frames(*rows):
    """Frames from (sequence, number, has a label)."""
    return tuple(frames.Frame(name, number, f"{name}_{number}", "label" if has else None) for name, number, has in rows)


# --- windows and shards ---------------------------------------------------------------------------


def test_windows_are_the_frames_before_a_label():
    found = _frames(("a", 1, True), ("a", 4, False), ("a", 5, True), ("a", 9, True), ("b", 10, False), ("b", 11, True))
    assert clip_builders.windows(found, 4).tolist() == [[0, 0], [0, 2], [2, 3], [4, 5]]
    assert clip_builders.windows(found, 0).tolist() == [[0, 0], [2, 2], [3, 3], [5, 5]]
    assert clip_builders.windows(found[1:2], 4).shape == (0, 2)


def test_number_of_shards():
    mega = 1 << 20
    assert clip_builders.num_shards(3 * mega, 100) == 1  # of 16 MiB at least
    assert clip_builders.num_shards(160 * mega, 100) == 10
    assert clip_builders.num_shards(1600 * mega, 100) == 16
    assert clip_builders.num_shards(1600 * mega, 5) == 5  # an example each
    assert clip_builders.num_shards(256 * 100 * mega, 10_000) == 100  # of 256 MiB at most


# --- builders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["segnet", "official"])
def test_camvid_examples_are_the_files(tmp_path, layout):
    root = getattr(trees, f"camvid_{layout}")(tmp_path / "camvid", is_video=True)
    builder = clip_builders.camvid_clips(
        data_dir=tmp_path / "out", manual_dir=root, num_frames=2, frame_gap=2, frame_gap_tolerance=1
    )
    builder.shard_counts["train"] = 3
    builder.download_and_prepare()
    assert builder.name == "camvid_clips" and str(builder.version) == "1.0.0"
    again = tfds.builder_from_directory(builder.data_path)  # without our class: the folder tells everything
    assert {name: len(trees.SEGNET[name]) for name in again.info.splits} == {
        name: info.num_examples for name, info in again.info.splits.items()
    }
    assert again.info.splits["train"].num_shards == 3 and again.info.metadata["class_names"][3] == "road"
    example = again.as_data_source(split="train")[5]  # 0016E5_07950 comes before the extracted frames
    assert list(example["numbers"]) == [7950] and example["sequence"] == b"0016E5" and example["frame_rate"] == 30
    example = again.as_data_source(split="val")[1]
    assert list(example["numbers"]) == [7958, 7959, 7960, 7961]
    stills = root / ("701_StillsRaw_full" if layout == "official" else "val")
    labels = root / ("LabeledApproved_full" if layout == "official" else "valannot")
    suffix = "_L.png" if layout == "official" else ".png"
    video = root / "frames" / "0016E5"
    assert example["images"] == [
        (folder / name).read_bytes()
        for folder, name in (
            (video, "07958.png"),
            (stills, "0016E5_07959.png"),
            (video, "07960.png"),
            (stills, "0016E5_07961.png"),
        )
    ]
    label_bytes = [(labels / f"0016E5_0{number}{suffix}").read_bytes() for number in (7959, 7961)]
    assert example["labels"] == [b"", label_bytes[0], b"", label_bytes[1]]


def test_cityscapes_examples_are_the_files(tmp_path):
    root = trees.cityscapes(tmp_path / "cityscapes")
    builder = clip_builders.cityscapes_clips(
        data_dir=tmp_path / "out", manual_dir=root, num_frames=4, frame_gap=3, splits=("train", "val")
    )
    builder.download_and_prepare()
    examples = list(tfds.builder_from_directory(builder.data_path).as_data_source(split="train"))
    assert [(example["sequence"].decode(), int(example["numbers"][-1])) for example in examples] == [
        ("aachen_000000", 19), ("aachen_000001", 19), ("hamburg_000000", 629), ("hamburg_000000", 803),
    ]  # fmt: skip
    assert list(examples[2]["numbers"]) == list(range(620, 630)) and examples[2]["frame_rate"] == 17
    path = root / "leftImg8bit_sequence" / "train" / "hamburg" / "hamburg_000000_000626_leftImg8bit.png"
    assert examples[2]["images"][6] == path.read_bytes()
    label = root / "gtFine" / "train" / "hamburg" / "hamburg_000000_000629_gtFine_labelIds.png"
    assert examples[2]["labels"] == [b""] * 9 + [label.read_bytes()]


def test_folder_clips(tmp_path):
    root = trees.folder(tmp_path / "mine")
    options = {"frames": "images/{split}/{sequence}/{number}.png", "masks": "masks/{split}/{sequence}/{number}.png"}
    options |= {"classes": ("a", "b", "c"), "ids": (10, 20, 30), "ignore": ("0",)}
    data = config_lib.defaults().data
    data.update({"name": "folder", "dir": str(root), "num_frames": 2})
    data.folder.update({key: tuple(map(str, v)) if isinstance(v, tuple) else v for key, v in options.items()})
    builder = clip_builders.make(clip_builders.plan(data), tmp_path / "out")
    builder.download_and_prepare()
    media = reading.open_media(str(tmp_path / "out"), "val")
    assert [frame.number for frame in media.source.frames] == [0, 1, 2, 3, 4, 5] * 2
    assert media.source.table.names == ("a", "b", "c") and list(media.source.code.raw) == [0, 10, 20, 30]


# --- resizing -------------------------------------------------------------------------------------


def test_resizing_is_lanczos_and_nearest(tmp_path):
    image, labels = trees.frame("x"), trees.blocks("x", range(12)).astype(np.uint8)
    trees.save(tmp_path / "x.png", image)
    mask = Image.fromarray(labels)
    mask.putpalette([value for index in range(12) for value in (index, 2 * index, 3 * index)])
    mask.save(tmp_path / "x_label.png")
    frame = frames.Frame("x", 0, tmp_path / "x.png", tmp_path / "x_label.png")
    small, small_label = (Image.open(io.BytesIO(content)) for content in encoded.pair(frame, (15, 16)))
    expected = Image.fromarray(image).resize((16, 15), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(small), np.asarray(expected))
    rows, columns = np.arange(15) * 2 + 1, (np.arange(16) * 5 + 2) // 2 + np.arange(16) % 2 * 0
    np.testing.assert_array_equal(columns, [int((i + 0.5) * 2.5) for i in range(16)])
    assert small_label.mode == "P" and small_label.getpalette()[3:6] == [1, 2, 3]
    np.testing.assert_array_equal(np.asarray(small_label), labels[rows][:, columns])
    contents = (tmp_path / "x.png").read_bytes(), (tmp_path / "x_label.png").read_bytes()
    assert encoded.pair(frame) == encoded.pair(frame, (30, 40)) == contents  # that size already: unchanged
    assert encoded.pair(frames.Frame("x", 0, tmp_path / "x.png", None), (15, 16))[1] == b""


@pytest.mark.parametrize("mode", ["RGB", "I;16", "1"])
def test_resized_labels_keep_their_kind(tmp_path, mode):
    drawn = trees.blocks("y", (0, 1, 700, 65535)) if mode == "I;16" else trees.blocks("y", (0, 1))
    pixels = {"RGB": np.stack([drawn * 64] * 3, -1).astype(np.uint8), "I;16": drawn.astype(np.uint16), "1": drawn > 0}
    trees.save(tmp_path / "y.png", trees.frame("y"))
    trees.save(tmp_path / "y_label.png", pixels[mode])
    _, content = encoded.pair(frames.Frame("y", 0, tmp_path / "y.png", tmp_path / "y_label.png"), (15, 20))
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[mode][1::2, 1::2])


def _broken(frame):
    with pytest.raises(errors.UserError) as caught:
        encoded.pair(frame)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_broken_files_are_named(tmp_path):
    trees.save(tmp_path / "x.png", trees.frame("x"))
    trees.save(tmp_path / "small.png", np.zeros((15, 20), np.uint8))
    frame = frames.Frame("x", 0, tmp_path / "x.png", tmp_path / "small.png")
    assert f"{frame.label}: 20x15 pixels, but its frame x.png has 40x30" in _broken(frame)
    whole = frame.image.read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2], whole[:-40] + b"?" + whole[-39:]):
        frame.image.write_bytes(content)
        assert f"{frame.image}: not a readable image" in _broken(frame)
    frame.image.unlink()
    assert f"{frame.image}: cannot be read (No such file" in _broken(frame)
    with pytest.raises(errors.UserError, match="cannot be read"):
        encoded.size_of(frame.image)


# --- the prepared store ---------------------------------------------------------------------------


def _assert_same_clips(data, folder, splits):
    """Direct and prepared reading give the same clips, bytes and arrays."""
    options = int(data.num_frames), int(data.frame_gap), int(data.frame_gap_tolerance)
    total = 0
    for split in splits:
        direct = layouts.find(data, split)
        media = reading.open_media(str(folder), split)
        source = media.source
        assert source.layout == direct.layout and source.frame_rate == direct.frame_rate
        assert source.table.names == direct.table.names
        np.testing.assert_array_equal(source.table.colors, direct.table.colors)
        np.testing.assert_array_equal(source.code.raw, direct.code.raw)
        np.testing.assert_array_equal(source.code.train, direct.code.train)
        ours, theirs = (clip_index.clips(each.frames, *options) for each in (source, direct))
        assert len(ours) == len(theirs)
        for our_places, their_places in zip(ours, theirs, strict=True):
            images, labels = media.read(our_places)
            for ours_, theirs_, image, label in zip(our_places, their_places, images, labels, strict=True):
                mine, frame = source.frames[ours_], direct.frames[theirs_]
                assert (mine.sequence, mine.number, mine.image.name) == (frame.sequence, frame.number, frame.image.name)
                assert image == frame.image.read_bytes()
                assert label == (frame.label.read_bytes() if frame.label else b"")
                assert (mine.label is None) == (frame.label is None)
                total += 1
    return total


@pytest.mark.parametrize("name", ["camvid_segnet", "camvid_official", "cityscapes", "cityscapes_stills"])
def test_prepared_clips_equal_the_folder(tmp_path, name):
    if name.startswith("cityscapes"):
        root = trees.cityscapes(tmp_path / "data", is_video=name == "cityscapes")
        changes = {"num_frames": 3 if name == "cityscapes" else 1, "frame_gap": 3}
    else:
        root = getattr(trees, name)(tmp_path / "data", is_video=True)
        changes = {"num_frames": 3, "frame_gap": 1, "frame_gap_tolerance": 1}
    data = _data(name.split("_")[0], root, **changes)
    prepare.run(data, tmp_path / "out")
    assert _assert_same_clips(data, tmp_path / "out", ("train", "val")) >= 5
    # clips shorter or closer together than prepared
    data.update({"num_frames": 2, "frame_gap": 1, "frame_gap_tolerance": 0} if changes["num_frames"] > 1 else {})
    assert _assert_same_clips(data, tmp_path / "out", ("train", "val")) >= 5
    targets = [
        [(f.sequence, f.number) for f in each.frames if f.label]
        for each in (layouts.find(data, "val"), reading.open_media(str(tmp_path / "out"), "val").source)
    ]
    assert targets[0] == targets[1]


def test_any_frames_in_any_order_from_many_threads(tmp_path):
    root = trees.camvid_segnet(tmp_path / "data", is_video=True)
    data = _data("camvid", root, num_frames=2, frame_gap=4)
    prepare.run(data, tmp_path / "out")
    media = reading.open_media(str(tmp_path / "out"), "val")
    source = media.source
    direct = {(frame.sequence, frame.number): frame for frame in layouts.find(data, "val").frames}
    rng = np.random.default_rng(0)
    wanted = [rng.integers(0, len(source.frames), 4).astype(np.int32) for _ in range(200)]
    barrier = threading.Barrier(8)

    def read(part):
        barrier.wait()
        return [media.read(places) for places in wanted[part::8]]

    with futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(read, range(8)))
    for part, each in enumerate(answers):
        for places, (images, labels) in zip(wanted[part::8], each, strict=True):
            for place, image, label in zip(places, images, labels, strict=True):
                frame = direct[source.frames[place].sequence, source.frames[place].number]
                assert image == frame.image.read_bytes()
                assert label == (frame.label.read_bytes() if frame.label else b"")


@pytest.mark.parametrize("loader", ["numpy", "tf"])
@pytest.mark.parametrize("name", ["camvid_official", "cityscapes"])
def test_pipeline_of_prepared_equals_the_folder(tmp_path, name, loader):
    root = getattr(trees, name)(tmp_path / "data", is_video=True)
    changes = {"num_frames": 2, "frame_gap": 2, "frame_gap_tolerance": 1, "height": 12, "width": 16, "loader": loader}
    data = _data(name.split("_")[0], root, crop_height=8, crop_width=12, **changes)
    prepare.run(data, tmp_path / "out")
    found = []
    for folder in ("", str(tmp_path / "out")):
        data.prepared = folder
        if folder:
            data.dir = ""  # it is not needed any more
        clips = pipeline.load_clips(data, split="val", num_frames=2)
        batches = pipeline.train_batches(data, batch_size=3, num_frames=2, seed=5)
        found.append([clips, next(batches), next(batches)])
    for direct, ours in zip(*found, strict=True):
        np.testing.assert_array_equal(direct.frames, ours.frames)
        np.testing.assert_array_equal(direct.labels, ours.labels)


def test_config_key_opens_the_prepared_folder(tmp_path):
    root = trees.camvid_segnet(tmp_path / "data")
    data = _data("camvid", root, num_frames=1)
    assert reading.of(data, "val") is None
    prepare.run(data, tmp_path / "out")
    data.prepared = str(tmp_path / "out")
    assert len(reading.of(data, "val").source.frames) == 5
    data.prepared = str(tmp_path / "out" / "camvid_clips" / "1.0.0")  # the folder itself
    assert len(reading.of(data, "test").source.frames) == 5
    data.name = "cityscapes"
    with pytest.raises(errors.UserError, match="is made of 'camvid', but data.name is 'cityscapes'"):
        reading.of(data, "val")
    with pytest.raises(errors.UserError, match="no prepared dataset there; run `dvsnas data prepare --output="):
        reading.open_media(str(tmp_path / "nothing"), "val")


def test_real_camvid_direct_equals_prepared(tmp_path):
    folder = os.environ.get("DVSNAS_CAMVID", "")
    if not folder:
        pytest.skip("DVSNAS_CAMVID names no folder with the real CamVid")
    for split, gap, tolerance, minimum in (("train", 30, 0, 700), ("val", 2, 0, 190)):
        data = _data("camvid", folder, num_frames=2, frame_gap=gap, frame_gap_tolerance=tolerance)
        result = prepare.run(data, tmp_path / split, splits=(split,))
        assert result.counts == {split: {"train": 367, "val": 101}[split]}
        assert _assert_same_clips(data, tmp_path / split, (split,)) >= minimum
        index = [
            [(frame.sequence, frame.number, frame.image.stem) for frame in source.frames]
            for source in (layouts.find(data, split), reading.open_media(str(tmp_path / split), split).source)
        ]
        assert index[0] == index[1]
        media = reading.open_media(str(tmp_path / split), split)
        source = media.source
        place = len(source.frames) // 2
        (image,), (label,) = media.read(np.array([place]))
        direct, frame = layouts.find(data, split), source.frames[place]
        pixels, ids = (
            image_files.read_image(direct.frames[place].image),
            decode.read_label(direct.frames[place].label, direct.code),
        )
        np.testing.assert_array_equal(image_files.read_image(frame.image, image), pixels)
        np.testing.assert_array_equal(decode.read_label(frame.label, source.code, label), ids)
