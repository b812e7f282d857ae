"""Where features lie: dealt out to parts, fetched from anywhere, chosen by size; a cache that is never stale."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.train import feature_cache, feature_store, features

NAMES = ("decoder", "image")


def host_store(num_clips: int) -> types.FeatureStore:
    """Every value of a clip is its number."""

    def numbered(*shape: int, dtype) -> np.ndarray:
        return np.broadcast_to(np.arange(num_clips).reshape(-1, *(1,) * len(shape)), (num_clips, *shape)).astype(dtype)

    maps = {"decoder": numbered(2, 3, 4, 5, dtype=jnp.bfloat16)}
    logits = numbered(2, 3, 4, 2, dtype=jnp.bfloat16)
    return types.FeatureStore(
        features=types.Features(maps=maps, logits=logits), labels=numbered(2, 6, 8, dtype=np.uint8)
    )


def placement(kind: str, parts: int) -> feature_store.Placement:
    return feature_store.Placement(mesh_lib.make(1, jax.devices()[:1]), parts, kind, "")


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("kind", ["device", "host"])
def test_every_way_gives_the_clips_that_were_asked_for(kind: str, parts: int) -> None:
    store = feature_store.place(placement(kind, parts), feature_cache.Memory(host_store(11)), 11)
    assert store.num_clips == 11 and store.grid == (3, 4)
    assert isinstance(store, types.FeatureStore) == (kind == "device" and parts == 1)
    drawn = np.random.default_rng(0).integers(0, 11, (3, 8), np.int32)
    clips = feature_store.deal(drawn, 11, parts)
    padded = feature_store.in_order(11, 16, 8, parts)
    assert (padded < 0).sum() == 5
    for found, (rows, places) in (
        (clips, feature_store.training(store, clips)),
        (padded, feature_store.evaluation(store, padded)),
        (clips, feature_store.anywhere(store, clips)),
    ):
        assert ((places < 0) == (found < 0)).all()
        clips_there, rows_there = feature_store.number(found), feature_store.number(places)
        np.testing.assert_array_equal(np.asarray(rows.labels)[rows_there, 0, 0, 0], clips_there)
        logits = np.asarray(rows.features.logits, np.float32)[rows_there, 1, 2, 3, 1]
        np.testing.assert_array_equal(logits, clips_there)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_have_clips_of_their_own(parts: int) -> None:
    drawn = np.random.default_rng(1).integers(0, 21, (500, 8), np.int32)
    dealt = feature_store.deal(drawn, 21, parts)
    numbers = np.arange(8) // (8 // parts)
    assert (dealt % parts == numbers[None]).all() and dealt.dtype == np.int32
    assert set(dealt.ravel()) == set(range(21))
    if parts == 1:
        assert dealt is drawn
    ordered = feature_store.in_order(21, 24, 8, parts)
    real = ordered[ordered >= 0]
    assert sorted(real) == list(range(21)) and (ordered < 0).sum() == 3
    filled = feature_store.number(ordered)
    assert (filled % parts == numbers[None]).all()
    assert all(len(set(batch)) == len(batch) or parts == 8 for batch in filled.tolist())


def test_more_parts_than_clips_are_refused() -> None:
    with pytest.raises(errors.UserError, match=r"batch_parts': must be at most the number of clips \(3\), got 4"):
        feature_store.deal(np.zeros((1, 4), np.int32), 3, 4)


@pytest.mark.parametrize(
    "device_bytes, host_bytes, wanted, kind",
    [
        (4e6, 4e6, "auto", "device"),
        (1e6, 4e6, "auto", "host"),
        (1e6, 1e6, "auto", "disk"),
        (4e6, 4e6, "disk", "disk"),
        (1e3, 4e6, "device", "device"),
    ],
)
def test_the_place_follows_from_the_sizes(device_bytes, host_bytes, wanted, kind) -> None:
    section = config_lib.load(None, {"search.store": wanted}).search
    shapes = {
        name: types.FeatureStore(
            features=types.Features(maps={}, logits=jax.ShapeDtypeStruct((num, 2, 10, 10, 5), jnp.bfloat16)),
            labels=jax.ShapeDtypeStruct((num, 2, 40, 100), np.uint8),
        )
        for name, num in (("training", 90), ("validation", 10))
    }
    found = feature_store.plan(section, shapes, device_bytes=int(device_bytes), host_bytes=int(host_bytes))
    # 100 clips of 2 x 10 x 10 x 5 x 2 + 2 x 40 x 100 = 10,000 bytes.
    assert found.kind == kind
    assert "90 training + 10 validation clips x 0.01 MB = 1.00 MB" in found.reason
    assert found.reason.endswith(f"50% may be used -> {kind}")


# --- the cache on disk ---------------------------------------------------------------------------------------------


def tiny_config(**changes: str):
    return config_lib.load(
        None,
        {
            "data.height": "32",
            "data.width": "32",
            "data.num_train_clips": "3",
            "data.num_frames": "2",
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


def test_the_key_changes_with_all_that_features_follow_from(tmp_path: pathlib.Path) -> None:
    weights = {"params": {"a": np.ones(3, np.float32)}, "batch_stats": {"b": np.zeros(2, np.float32)}}
    clips = np.array([0, 2])

    def key(config=None, weights=weights, clips=clips, names=NAMES, num_drawn=0) -> str:
        return feature_cache.key(config or tiny_config(), weights, clips, names, num_drawn=num_drawn)

    changed = {"params": {"a": np.array([1, 1, 1 + 2**-23], np.float32)}, "batch_stats": weights["batch_stats"]}
    keys = [
        key(),
        key(weights=changed),
        key(tiny_config(data__seed="1")),
        key(tiny_config(net__width="0.25")),
        key(clips=np.array([0, 1])),
        key(names=("decoder",)),
        key(num_drawn=4),
        key(tiny_config(seed="3"), num_drawn=4),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0] and key(weights=jax.tree.map(jnp.asarray, weights)) == keys[0]
    assert key(tiny_config(search__steps="7", seed="3")) == keys[0]  # what features do not follow from


def test_the_key_changes_with_the_files(tmp_path: pathlib.Path) -> None:
    from PIL import Image

    for name in ("1", "2"):
        for folder in ("train/a", "train_masks/a"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((32, 32), np.uint8)).convert("L" if "mask" in folder else "RGB").save(
                tmp_path / folder / f"{name}.png"
            )
    config = tiny_config(
        data__name="folder",
        data__dir=str(tmp_path),
        data__folder__frames="{split}/{sequence}/{number}.png",
        data__folder__masks="{split}_masks/{sequence}/{number}.png",
        data__folder__classes="ground",
    )
    weights = {"a": np.ones(1, np.float32)}
    first = feature_cache.key(config, weights, np.arange(1), NAMES)
    assert feature_cache.key(config, weights, np.arange(1), NAMES) == first
    path = tmp_path / "train" / "a" / "1.png"
    os.utime(path, ns=(1, 1))
    assert feature_cache.key(config, weights, np.arange(1), NAMES) != first


@pytest.mark.parametrize("place", ["data/loading/store.py", "nets/kernels/layers.py", "train/features.py"])
def test_the_key_changes_with_the_code_that_makes_features(place: str, tmp_path: pathlib.Path, monkeypatch) -> None:
    """Also with that of a sub-package."""
    package = tmp_path / "package"
    for name in ("data", "nets", "train"):
        shutil.copytree(feature_cache._PACKAGE / name, package / name)
    weights = {"a": np.ones(1, np.float32)}
    before = feature_cache.key(tiny_config(), weights, np.arange(1), NAMES)
    monkeypatch.setattr(feature_cache, "_PACKAGE", package)
    feature_cache._code.cache_clear()
    assert feature_cache.key(tiny_config(), weights, np.arange(1), NAMES) == before
    (package / place).write_text((package / place).read_text() + "\n")
    feature_cache._code.cache_clear()
    assert feature_cache.key(tiny_config(), weights, np.arange(1), NAMES) != before


def test_files_are_made_once_and_torn_ones_again(tmp_path: pathlib.Path) -> None:
    whole, made = host_store(37), []

    def make(first: int, last: int) -> types.FeatureStore:
        made.append((first, last))
        return jax.tree.map(lambda x: x[first:last], whole)

    source = feature_cache.build(tmp_path / "key", 37, make)
    assert made == [(0, 16), (16, 32), (32, 37)]
    chosen = np.array([36, 0, 17, 0])
    for found, wanted in zip(
        jax.tree.leaves(source.take(chosen)), jax.tree.leaves(jax.tree.map(lambda x: x[chosen], whole)), strict=True
    ):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    files = sorted((tmp_path / "key").iterdir())
    assert len(files) == 3
    feature_cache.build(tmp_path / "key", 37, make)
    assert len(made) == 3
    os.truncate(files[0], files[0].stat().st_size - 1)
    data = bytearray(files[1].read_bytes())
    data[-100] ^= 1
    files[1].write_bytes(data)
    files[2].unlink()
    (tmp_path / "key" / ".clips_000002.features.99.tmp").write_bytes(b"{")
    again = feature_cache.build(tmp_path / "key", 37, make)
    assert made[3:] == [(0, 16), (16, 32), (32, 37)]
    np.testing.assert_array_equal(again.take(np.arange(37)).labels, whole.labels)


@pytest.mark.parametrize("cache_clips", ["0", "5"])
def test_features_on_disk_are_those_in_memory(tmp_path: pathlib.Path, monkeypatch, cache_clips: str) -> None:
    """The place does not change a bit, files or not, augmented or not; the network is replaced by an average."""
    monkeypatch.setattr(feature_cache, "CLIPS_PER_FILE", 2)
    config = tiny_config(search__cache_clips=cache_clips, data__crop_height="32", data__crop_width="32")

    def forward(variables, frames):
        frames = np.asarray(frames, np.float32)
        yield types.Features(maps={"decoder": frames[:, ::4, ::4], "image": frames[:, 1::4, ::4]}, logits=frames)

    monkeypatch.setattr(features, "make_forward", lambda config: forward)
    wanted = features.Wanted(np.array([2, 0, 1]), NAMES, int(cache_clips))
    networks = features.Networks({"w": np.ones(2, np.float32)})
    found = [
        features.placed(config, networks, wanted, placement(kind, 1), workdir.Workdir(tmp_path))
        for kind in ("device", "host", "disk")
    ]
    rows = np.arange(found[0].num_clips)
    assert len(rows) == (int(cache_clips) or 3)
    first, *others = [feature_store.anywhere(store, rows)[0] for store in found]
    assert first.features.logits.dtype == jnp.bfloat16
    for other in others:
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert len(list((tmp_path / "features").glob("*/*.features"))) == -(-len(rows) // 2)


def test_features_are_in_memory_once_where_the_device_is_the_cpu(monkeypatch) -> None:
    """A search on real video holds gigabytes of them: host array, what is taken of it and device array are the same."""
    if jax.default_backend() != "cpu":
        pytest.skip("the device has a memory of its own")
    made = []
    compute = features.compute
    monkeypatch.setattr(features, "compute", lambda *args: made.append(compute(*args)) or made[-1])
    config = tiny_config(search__cache_clips="0")

    def forward(variables, frames):
        frames = np.asarray(frames, np.float32)
        yield types.Features(maps={"decoder": frames[:, ::4, ::4], "image": frames[:, 1::4, ::4]}, logits=frames)

    monkeypatch.setattr(features, "make_forward", lambda config: forward)
    wanted = features.Wanted(np.array([2, 0, 1]), NAMES)
    store = features.placed(config, features.Networks({"w": np.ones(2)}), wanted, placement("device", 1), None)
    assert isinstance(store, types.FeatureStore)
    for host, held in zip(jax.tree.leaves(made[0].features), jax.tree.leaves(store.features), strict=True):
        assert held.unsafe_buffer_pointer() == host.ctypes.data


def test_a_run_of_clips_is_not_copied() -> None:
    whole = host_store(6)
    for clips, is_shared in ((np.arange(2, 5), True), (np.array([2, 4]), False), (np.array([3, 2]), False)):
        part = feature_cache.Memory(whole).take(clips)
        assert np.shares_memory(part.labels, whole.labels) == is_shared
        np.testing.assert_array_equal(part.labels[:, 0, 0, 0], clips)
