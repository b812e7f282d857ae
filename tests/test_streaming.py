"""Order and content of batches: hosts, workers, restarts, gaps, and every kind of file through both loaders."""

import itertools
import time

import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import augment, decode, encoded_frames, example_order, pipeline, tf_loader, whole_videos
from dvsnas_jax.data.prepared import prepare

HOSTS = (1, 2, 3, 8)


def _data(root="", **changes):
    values = {
        "name": "folder" if root else "synthetic", "dir": str(root), "height": 30, "width": 40, "crop_height": 24,
        "crop_width": 32, "num_frames": 2, "num_train_clips": 7, "num_val_clips": 3, "val_frames": 4, "loader": "tf",
    }  # fmt: skip
    data = config_lib.defaults().data
    data.update({**values, **changes})
    if data.name == "folder":
        place = "/{split}/{sequence}/{number}.png"
        data.folder.update({"frames": "images" + place, "masks": "masks" + place})
        data.folder.update({"classes": ("a", "b", "c", "d"), "ids": ("10", "20", "30", "1"), "ignore": ("0",)})
    return data


def _plain(root="", **changes):
    return _data(
        root, **{"flip": False, "scale": (1.0, 1.0), "jitter": 0.0, "crop_height": 30, "crop_width": 40} | changes
    )


def _take(data, count, **changes):
    batches = pipeline.train_batches(data, **{"batch_size": 4, "num_frames": 2, "seed": 3} | changes)
    return list(itertools.islice(batches, count))


def _assert_same(ours, theirs, most=0):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)
        assert np.abs(np.asarray(a.frames, int) - b.frames).max() <= most


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two sequences of six frames a split, every second one labelled."""
    return trees.folder(tmp_path_factory.mktemp("video"))


# --- order ----------------------------------------------------------------------------------------


def _stream(num, num_frames=1):
    places = np.arange(num, dtype=np.int32)[:, None]
    return example_order.Stream(places, 0, augment.plain(4, 4), num_frames, seed=5)


@pytest.mark.parametrize("num_hosts", HOSTS)
def test_the_union_over_hosts_is_every_example_once_an_epoch(num_hosts):
    stream, batch_size, num = _stream(37), 24, 37
    hosts = [stream.batches(batch_size, example_order.Part(0, host, num_hosts)) for host in range(num_hosts)]
    seen = []
    for _ in range(5):
        parts = [next(host) for host in hosts]
        assert {len(part) for part in parts} == {batch_size // num_hosts}
        seen += [example for group in zip(*parts, strict=True) for example in group]
    whole = [example for batch in itertools.islice(stream.batches(batch_size), 5) for example in batch]
    assert [(e.clip, e.key) for e in seen] == [(e.clip, e.key) for e in whole]
    np.testing.assert_array_equal([e.uniforms for e in seen], [e.uniforms for e in whole])
    epochs = [[e.clip for e in seen[start : start + num]] for start in range(0, 3 * num, num)]
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs) and epochs[0] != epochs[1]


def test_a_restart_costs_nothing_and_changes_nothing():
    stream = _stream(1000)
    started = time.perf_counter()
    later = next(stream.batches(8, example_order.Part(10**9)))
    assert time.perf_counter() - started < 0.5
    ahead = next(itertools.islice(stream.batches(8, example_order.Part(10**9 - 300)), 300, None))
    assert [(e.clip, e.key) for e in later] == [(e.clip, e.key) for e in ahead]


def test_batches_that_do_not_divide():
    for part, batch_size, text in (
        (example_order.Part(0, 0, 3), 4, "4 clips do not divide among 3 hosts"),
        (example_order.Part(0, 3, 3), 3, "host 3 of 3 does not exist"),
    ):
        with pytest.raises(errors.UserError, match=text):
            next(pipeline.train_batches(_data(), batch_size=batch_size, num_frames=2, seed=0, part=part))


@pytest.mark.parametrize("loader", ["numpy", "tf"])
def test_hosts_share_a_batch(loader, video):
    data = _data(video, loader=loader)
    (whole,) = _take(data, 1, part=example_order.Part(2))
    for host in range(2):
        (part,) = _take(data, 1, part=example_order.Part(2, host, 2))
        np.testing.assert_array_equal(part.frames, whole.frames[host::2])
        np.testing.assert_array_equal(part.labels, whole.labels[host::2])


# --- content --------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["frames", "stills"])
def test_batches_do_not_depend_on_workers_and_go_on_after_a_restart(history, video):
    changes = {"history": history, "crop_max_ratio": 0.75, "jitter_per_frame": True}
    one = _take(_data(video, workers=1, **changes), 4)
    _assert_same(_take(_data(video, workers=2, **changes), 4), one)
    _assert_same(_take(_data(video, workers=2, **changes), 2, part=example_order.Part(2)), one[2:])
    assert one[0].frames.shape == (4, 2, 24, 32, 3) and (one[0].frames != one[1].frames).any()


def test_long_pieces_of_order_join_without_a_seam(video, monkeypatch):
    whole = _take(_data(video), 5)
    monkeypatch.setattr(tf_loader, "_PIECE", 8)  # two batches
    _assert_same(_take(_data(video), 5), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"history": "frames"},
        {"history": "stills", "still_noise": "clip"},
        {"history": "stills", "still_motion": "shake", "still_noise": "history"},
        {"history": "stills", "still_objects": 1.0, "crop_max_ratio": 0.75},
    ],
    ids=["frames", "stills", "shake", "objects"],
)
def test_both_loaders_agree_with_augmentation(changes, video):
    def take(loader, **more):
        data = _data(video, loader=loader, **changes | more)
        data.folder.classes = ("car", "b", "c", "d")
        return _take(data, 3)

    ours, theirs = take("numpy"), take("tf")
    for a, b in zip(ours, theirs, strict=True):
        assert (a.labels == b.labels).mean() > 0.999  # a coordinate between two pixels may be rounded either way
        assert (np.abs(a.frames.astype(int) - b.frames) <= 1).mean() > 0.999
    if "still_objects" in changes:
        without = take("numpy", still_objects=0.0)
        assert any((a.labels != b.labels).any() for a, b in zip(ours, without, strict=True))
        assert all((a.labels[:, -1] == b.labels[:, -1]).all() for a, b in zip(ours, without, strict=True))


def test_frames_without_labels_are_ignored_and_only_labelled_ones_are_targets(video):
    source = datasets.find(_plain(video), "train")
    for loader in ("numpy", "tf"):
        for batch in _take(_plain(video, loader=loader), 3):
            assert (batch.labels[:, 0] == 255).all() and (batch.labels[:, 1] != 255).any((1, 2)).all()
    images = {image_files.read_image(frame.image).tobytes(): frame for frame in source.frames}
    for frames in itertools.chain.from_iterable(batch.frames for batch in _take(_plain(video), 3)):
        before, target = (images[frame.tobytes()] for frame in frames)
        assert target.label and not before.label
        assert before.sequence == target.sequence and target.number - before.number == 1


def test_gaps_vary_among_the_frames_that_exist(video):
    data = _plain(video, frame_gap=2, gap_jitter=1)
    source = datasets.find(data, "train")
    images = {image_files.read_image(frame.image).tobytes(): frame for frame in source.frames}
    found = set()
    for frames in itertools.chain.from_iterable(batch.frames for batch in _take(data, 12, num_frames=3)):
        clip = [images[frame.tobytes()] for frame in frames]
        assert len({frame.sequence for frame in clip}) == 1 and clip[-1].label
        steps = tuple(b.number - a.number for a, b in zip(clip[:-1], clip[1:], strict=True))
        assert all(1 <= step <= 3 for step in steps)
        found.add(steps)
    assert len(found) >= 4
    _assert_same(_take(data, 2, num_frames=3, part=example_order.Part(1)), _take(data, 3, num_frames=3)[1:])


def test_a_history_that_leads_nowhere_keeps_the_exact_gaps():
    numbers = np.array([0, 2, 4, 0, 1, 7, 9])
    history = example_order.History(np.array([0, 0, 0, 1, 1, 1, 1]), numbers, gap=2, jitter=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert history.draw(np.array([0, 1, 2]), rng).tolist() == [0, 1, 2]  # nothing else exists
        assert history.draw(np.array([9, 5, 6]), rng).tolist() == [9, 5, 6]  # 7 has nothing 1 to 3 before it
    wide = example_order.History(np.zeros(7, int), np.arange(7), gap=2, jitter=1)
    drawn = {tuple(wide.draw(np.array([2, 4, 6]), rng).tolist()) for _ in range(200)}
    assert drawn == {(a, b, 6) for b in (3, 4, 5) for a in (b - 3, b - 2, b - 1)}


def _save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def _kinds(root):
    """A sequence in which every frame, or its label, is stored in another way."""
    names = ["plain", "grey", "grey16", "palette", "alpha", "jpeg", "label_palette", "label16", "label1", "wide"]
    for number, kind in enumerate(names):
        frame = Image.fromarray(trees.frame(kind))
        ids = trees.blocks(kind, (10, 20, 30, 0) if kind != "label1" else (0, 1)).astype(np.uint8)
        label = Image.fromarray(ids)
        if kind == "grey":
            frame = frame.convert("L")
        elif kind == "grey16":
            frame = Image.fromarray(np.asarray(frame.convert("L")).astype(np.uint16) * 257)
        elif kind == "palette":
            frame = frame.quantize(32)
        elif kind == "alpha":
            frame.putalpha(Image.fromarray(ids))
        elif kind == "label_palette":
            label = label.convert("P")
            label.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        elif kind == "label16":
            label = Image.fromarray(ids.astype(np.uint16))
        elif kind == "label1":
            label = Image.fromarray(ids.astype(bool))
        elif kind == "wide":
            frame, label = frame.resize((80, 70)), label.resize((80, 70), Image.Resampling.NEAREST)
        # a JPEG under a name that ends in .png is still an image
        _save(root / f"images/train/a/{number:04d}.png", frame, format="JPEG" if kind == "jpeg" else "PNG")
        _save(root / f"masks/train/a/{number:04d}.png", label)
    return names


def test_every_kind_of_file_is_read_as_by_pillow(tmp_path):
    names = _kinds(tmp_path)
    data = _plain(tmp_path)
    source = datasets.find(data, "train")
    for height, width in ((30, 40), (20, 28)):
        data.update({"height": height, "width": width})
        (video,) = whole_videos.Streamed(data, "train")
        for t, (kind, frame) in enumerate(zip(names, source.frames, strict=True)):
            image, labels = decode.load(frame, source.code, (height, width))
            np.testing.assert_array_equal(video.labels[t], labels, err_msg=kind)
            # decoders of JPEG differ a little, and so do the two ways to make an image smaller
            most = 8 if kind == "jpeg" else 2 if height == 20 or kind == "wide" else 0
            assert np.abs(video.frames[t].astype(int) - image).max() <= most, kind


@pytest.mark.parametrize("tree", ["camvid_official", "camvid_segnet", "cityscapes"])
def test_every_layout_gives_the_same_clips_through_both_loaders(tree, tmp_path):
    root = getattr(trees, tree)(tmp_path, is_video=True)
    size = {"height": 16, "width": 32} if tree == "cityscapes" else {}
    data = _plain(root, name=tree.split("_")[0], **size)
    clips = {}
    for loader in ("numpy", "tf"):
        data.loader = loader
        clips[loader] = _take(data, 3)
    _assert_same(clips["numpy"], clips["tf"])
    assert any((clip.labels[:, 1] != 255).any() for clip in clips["tf"])


def test_a_prepared_dataset_gives_the_clips_of_the_folder(video, tmp_path):
    data = _data(video)
    prepare.run(data, tmp_path / "prepared")
    stored = _data(video, prepared=str(tmp_path / "prepared"), dir="")
    _assert_same(_take(stored, 3), _take(data, 3))
    folder, other = (encoded_frames.open_media(each, "train") for each in (data, stored))
    assert isinstance(folder, encoded_frames.FolderMedia) and not isinstance(other, encoded_frames.FolderMedia)
    places = np.array([0, 1], np.int32)
    assert folder.read(places) == other.read(places)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, text",
    [
        ("frame", "not a readable image"),
        ("label", "not a readable image"),
        ("id", "label id 77 is out of range"),
        ("size", "20x15 pixels, but its frame"),
        ("missing", "o such file"),
    ],
)
def test_a_bad_file_is_named_when_its_batch_is_asked_for(tmp_path, kind, text):
    root = trees.folder(tmp_path, splits=("train",))
    image, mask = (root / kind_of / "train/train_b/0003.png" for kind_of in ("images", "masks"))
    data = _plain(root)
    datasets.find(data, "train")  # known before the file breaks
    whole = list(itertools.islice(pipeline.train_batches(data, batch_size=1, num_frames=2, seed=3), 6))  # an epoch
    pixels = image_files.read_image(image)
    first = next(i for i, clip in enumerate(whole) if any(np.array_equal(frame, pixels) for frame in clip.frames[0]))
    bad = mask if kind in ("label", "id", "size") else image
    if kind == "missing":
        bad.unlink()
    elif kind == "id":
        Image.fromarray(np.full((30, 40), 77, np.uint8)).save(bad)
    elif kind == "size":
        Image.fromarray(np.zeros((15, 20), np.uint8)).save(bad)
    else:
        bad.write_bytes(bad.read_bytes()[:60])
    batches = pipeline.train_batches(data, batch_size=1, num_frames=2, seed=3)
    good = []
    with pytest.raises(errors.UserError) as caught:
        good += (next(batches) for _ in range(6))
    assert len(good) == first > 0, "those before it"
    _assert_same(good, whole[:first])
    assert str(bad) in str(caught.value) and text in str(caught.value) and "\n" not in str(caught.value)
