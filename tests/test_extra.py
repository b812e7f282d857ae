"""Further data for training: entries, classes by name, clips, batches and features of a mixture."""

import itertools
import os
import pathlib
import types as types_lib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, extra_data, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import camvid, class_names
from dvsnas_jax.data.loading import example_order, extra, mixture, pipeline
from dvsnas_jax.train import cell_loss, features, require_labels

IGNORE = types.IGNORE
CAMVID_OF_RAW = {
    "sky": [23], "building": [11, 12, 15, 16], "pole": [17, 18], "road": [7], "pavement": [8], "tree": [21, 22],
    "sign": [19, 20], "fence": [13, 14], "car": [26, 27, 28, 29, 30], "pedestrian": [24], "bicyclist": [25, 33],
}  # fmt: skip
"""Raw ids of CityScapes in CamVid's 11 classes; all else is ignored."""
EXPECTED = np.full(256, IGNORE, np.uint8)
for _train, _name in enumerate(camvid.CLASSES.names):
    EXPECTED[CAMVID_OF_RAW[_name]] = _train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """CamVid, CityScapes and a video of five frames without labels."""
    root = tmp_path_factory.mktemp("extra")
    trees.camvid_segnet(root / "camvid", splits=("train",))
    trees.cityscapes(root / "cityscapes", size=(40, 30), is_still=False)
    for number in range(5):
        trees.save(root / "video" / f"{number}.png", trees.frame(f"video{number}"))
    return root


def make_config(root, *entries, **changes):
    size = {
        f"data.{key}": value
        for key, value in zip(("height", "width", "crop_height", "crop_width"), "30 40 30 40".split(), strict=True)
    }
    plain = {"data.name": "camvid", "data.dir": str(root / "camvid"), "data.history": "stills", "data.num_frames": "3"}
    return config_lib.load(None, {**size, **plain, "data.loader": "numpy", "data.extra": ",".join(entries), **changes})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("cityscapes:/data", "'cityscapes:/data' is not KIND:PATH:SHARE"),
        ("/data:0.5", "is not KIND:PATH:SHARE"),
        ("video::0.5", "is not KIND:PATH:SHARE"),
        ("video:a.mp4:1", "with a share between 0 and 1"),
        ("video:a.mp4:half", "with a share between 0 and 1"),
        ("video:a.mp4:0.5,video:b.mp4:0.5", "the shares add up to 1, which leaves nothing"),
    ],
)
def test_bad_entries_are_told_by_the_config(texts, message):
    with pytest.raises(errors.UserError, match=message):
        config_lib.load(None, {"data.extra": texts})


def test_entries_may_have_colons_in_their_paths_and_are_compared_by_where_they_lead(tmp_path, monkeypatch):
    (entry,) = extra_data.parse(["video:/data/a:b.mp4:0.25"])
    assert entry == ("video", "/data/a:b.mp4", 0.25) and extra_data.parse([str(entry)]) == (entry,)
    monkeypatch.chdir(tmp_path)
    one, two = (config_lib.load(None, {"data.extra": f"video:{path}:0.3"}) for path in ("a.mp4", tmp_path / "a.mp4"))
    assert config_lib.differences(one, two) == []
    other = config_lib.load(None, {"data.extra": "video:b.mp4:0.3"})
    assert config_lib.differences(one, other) == ["data.extra"]
    stored = config_lib.with_absolute_paths(config_lib.to_json_dict(one))
    assert stored["data"]["extra"] == [f"video:{tmp_path}/a.mp4:0.3"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("kitti:{root}/video:0.5", "kind: unknown 'kitti'; use one of "),
        ("cityscapes:{root}/nowhere:0.5", "no such file or folder"),
        ("cityscapes:{root}/video:0.5", "no frames"),
        ("video:{root}/mine.py:0.5", "no video that can be read"),
        ("config:{root}/computed.py:0.5", "data.name: synthetic lies in no files"),
        ("config:{root}/mine.py:0.5", r"none of its own \(lamp, moon\) has the name of one of the run's"),
    ],
)
def test_entries_that_cannot_be_used(root, entry, message):
    trees.folder(root / "mine", splits=("train",))
    text = "from dvsnas_jax.core import config as c\ndef get_config():\n  config = c.defaults()\n"
    (root / "computed.py").write_text(f"{text}  return config\n")
    lines = {"name": "folder", "dir": str(root / "mine"), "folder.frames": "images/{split}/{sequence}/{number}.png"}
    lines |= {"folder.masks": "masks/{split}/{sequence}/{number}.png", "folder.classes": ("lamp", "moon")}
    lines |= {"folder.ids": ("10+20", "30"), "folder.ignore": ("0",)}
    body = "".join(f"  config.data.{key} = {value!r}\n" for key, value in lines.items())
    (root / "mine.py").write_text(f"{text}{body}  return config\n")
    config = make_config(root, entry.format(root=root))
    with pytest.raises(errors.UserError, match=f"^data.extra {entry.split(':')[0]}:.*{message}"):
        extra.find(config.data)


def test_cityscapes_in_the_classes_of_camvid():
    opened = datasets.TABLE["cityscapes"]
    options = datasets.options(config_lib.load(None, {"data.ignore": "7"}).data)
    plain = datasets.options(config_lib.defaults().data)
    code = opened.on_disk.code("cityscapes", plain)
    source = types_lib.SimpleNamespace(table=opened.classes(plain), code=code)
    found = class_names.mapped_code(opened, source, plain, camvid.CLASSES)
    np.testing.assert_array_equal(found.raw, [*range(34), 255])
    np.testing.assert_array_equal(found.train, EXPECTED[found.raw])
    assert class_names.mapped_code(opened, source, plain, opened.classes(plain)) is code
    # by their own names first, without regard to case; what is ignored stays so
    table = types.ClassTable(names=("Person", "building", "road"), colors=np.zeros((3, 3), np.uint8))
    found = class_names.mapped_code(opened, source, options, table)
    expected = {24: 0, 11: 1, 12: 1, 15: 1, 16: 1}
    assert {int(r): int(t) for r, t in zip(found.raw, found.train, strict=True) if t != IGNORE} == expected


def test_clips_are_true_histories_with_the_labels_of_the_run(root):
    config = make_config(root, f"cityscapes:{root}/cityscapes:0.3", f"video:{root}/video:0.2")
    labelled, video = extra.find(config.data)
    assert labelled.is_labelled and not video.is_labelled
    # all labelled frames are targets; of the video every frame with two before it
    assert labelled.places(3).shape == (4, 3) and video.places(3).tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    clip = labelled.clips(np.arange(8), 3, 0, is_augmented=False)
    names = [labelled.frames[place] for place in labelled.places(3)[:, -1]]
    targets = [np.asarray(Image.open(frame.image)) for frame in names]
    for epoch in (slice(0, 4), slice(4, 8)):  # every clip once
        order = [
            next(i for i, target in enumerate(targets) if (target == frame).all()) for frame in clip.frames[epoch, -1]
        ]
        assert sorted(order) == [0, 1, 2, 3]
    for frames, labels in zip(clip.frames, clip.labels, strict=True):
        (target,) = [frame for frame, pixels in zip(names, targets, strict=True) if (pixels == frames[-1]).all()]
        before = [
            target.image.parent / f"{target.sequence}_{target.number - back:06d}_leftImg8bit.png" for back in (2, 1)
        ]
        np.testing.assert_array_equal(frames[:2], [np.asarray(Image.open(path)) for path in before])
        np.testing.assert_array_equal(labels[-1], EXPECTED[np.asarray(Image.open(target.label))])
        assert (labels[:-1] == IGNORE).all()
    found = video.clips(np.arange(3), 3, 0, is_augmented=False)
    assert (found.labels == IGNORE).all()
    stored = np.stack([np.asarray(Image.open(root / "video" / f"{i}.png")) for i in range(5)])
    firsts = {next(i for i in range(3) if (stored[i : i + 3] == frames).all()) for frames in found.frames}
    assert firsts == {0, 1, 2}
    # a clip is a function of its number, and augmented as the rules of the run say
    one = labelled.clips(np.array([5]), 3, 0, is_augmented=True)
    more = labelled.clips(np.array([2, 5]), 3, 0, is_augmented=True)
    np.testing.assert_array_equal(one.frames[0], more.frames[1])
    assert (one.frames[0] != clip.frames[5]).any()


def test_batches_of_the_static_network_hold_labelled_data_in_its_share(root):
    config = make_config(root, f"cityscapes:{root}/cityscapes:0.3", f"video:{root}/video:0.2")
    sizes = {"batch_size": 4, "num_frames": 1, "seed": 3}
    own = list(itertools.islice(pipeline.train_batches(config.data, **sizes), 50))
    mixed = list(itertools.islice(extra.train_batches(config.data, **sizes), 50))
    labelled = extra.find(config.data)[0]
    is_own = np.array(
        [[(a == b).all() for a, b in zip(x.frames, y.frames, strict=True)] for x, y in zip(own, mixed, strict=True)]
    )
    assert 0.2 < 1 - is_own.mean() < 0.4
    number = int(np.flatnonzero(~is_own.reshape(-1))[-1])
    expected = labelled.clips(np.array([number]), 1, 3, is_augmented=True)
    np.testing.assert_array_equal(mixed[number // 4].labels[number % 4], expected.labels[0])
    np.testing.assert_array_equal(mixed[number // 4].frames[number % 4], expected.frames[0])
    # any step and any host give the same examples
    part = example_order.Part(number // 4, host=1, num_hosts=2)
    there = next(extra.train_batches(config.data, **sizes, part=part))
    np.testing.assert_array_equal(there.frames, mixed[number // 4].frames[1::2])
    # without labels nothing is mixed in
    alone = make_config(root, f"video:{root}/video:0.2")
    np.testing.assert_array_equal(next(extra.train_batches(alone.data, **sizes)).frames, own[0].frames)


@pytest.mark.parametrize(("cached", "expected"), [("0", (6, 4, 2)), ("10", (5, 3, 2))])
def test_features_of_a_mixture(root, cached, expected, monkeypatch):
    entries = f"cityscapes:{root}/cityscapes:0.3", f"video:{root}/video:0.2"
    config = make_config(root, *entries, **{"search.cache_clips": cached, "train.teacher_weight": "1"})
    clips = np.arange(6)
    wanted = features.Wanted(clips, ("decoder",), int(cached), is_training=True)
    assert (
        wanted.rows(config) == mixture.Rows(expected[0], expected[1:])
        and features.Wanted(clips, ()).rows(config).total == 6
    )

    def compute(config, variables, clip, names):
        logits = np.asarray(clip.frames)[:, :, ::8, ::8].astype(jnp.bfloat16)
        return types.FeatureStore(types.Features({"decoder": logits}, logits), np.asarray(clip.labels))

    monkeypatch.setattr(features, "compute", compute)
    store = features.make(config, features.Networks(None), wanted, 0, wanted.rows(config).total)
    own, labelled, _ = expected
    counts = np.asarray(store.features.maps[cell_loss.COUNTS], np.float32)
    assert counts.shape == (sum(expected), 3, 1, 1, 1)
    np.testing.assert_array_equal(counts[:own].reshape(own, 3), np.tile([0.0, 0.0, 1.0], (own, 1)))
    assert (counts[own:] == 1).all()
    each = extra.find(config.data)
    kinds = {"is_augmented": bool(int(cached))}
    np.testing.assert_array_equal(
        store.labels[own : own + labelled], each[0].clips(np.arange(labelled), 3, 0, **kinds).labels
    )
    assert (store.labels[own + labelled :] == IGNORE).all() and (store.labels[:own] != IGNORE).any()
    # in pieces, as files on disk are made, the same
    parts = [
        features.make(config, features.Networks(None), wanted, *piece)
        for piece in ((0, own + 1), (own + 1, sum(expected)))
    ]
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, store)
    shapes = features.shapes(
        config, ("decoder",), sum(expected), None, is_augmented=bool(int(cached)), is_training=True
    )
    assert shapes.features.maps[cell_loss.COUNTS].shape == counts.shape
    assert set(shapes.features.maps) == set(store.features.maps) and shapes.labels.shape == store.labels.shape


def test_frames_without_labels_need_a_teacher(root):
    for weight, message in (("0", "data.extra video:.*train.teacher_weight is 0"), ("1", "")):
        config = make_config(root, f"video:{root}/video:0.2", **{"train.teacher_weight": weight})
        if message:
            with pytest.raises(errors.UserError, match=message):
                require_labels.check(config)
        else:
            mixture.check(config)
    with pytest.raises(errors.UserError, match="data.extra video:.*no 9 frames 1"):
        mixture.check(make_config(root, f"video:{root}/video:0.2", **{"data.num_frames": "9"}))


def test_the_real_snippets_beside_the_real_camvid():
    folders = [os.environ.get(name, "") for name in ("DVSNAS_CAMVID", "DVSNAS_CITYSCAPES")]
    if not all(folder and pathlib.Path(folder).is_dir() for folder in folders):
        pytest.skip("DVSNAS_CAMVID and DVSNAS_CITYSCAPES name no folders of the real CamVid and CityScapes")
    sizes = {"data.height": "60", "data.width": "80", "data.crop_height": "60", "data.crop_width": "80"}
    plain = {"data.name": "camvid", "data.dir": folders[0], "data.extra": f"cityscapes:{folders[1]}:0.5"}
    (found,) = extra.find(config_lib.load(None, {**sizes, **plain}).data)
    clip = found.clips(np.arange(2), 3, 0, is_augmented=False)
    assert clip.frames.shape == (2, 3, 60, 80, 3) and found.is_labelled
    shares = np.bincount(clip.labels[:, -1].ravel(), minlength=256) / clip.labels[:, -1].size
    assert shares[camvid.CLASSES.names.index("road")] > 0.15 and shares[IGNORE] < 0.3
