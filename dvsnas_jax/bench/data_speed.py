"""Timing of the input pipeline against the bare decoding of the same files."""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import ml_collections
from PIL import Image

from dvsnas_jax.core import errors
from dvsnas_jax.data.loading import pipeline, store, tf_loader

_SIZE = {"data.height": "360", "data.width": "480", "data.crop_height": "360", "data.crop_width": "480"}
STANDARD = {**_SIZE, "data.num_frames": "2"}
"""What is measured where no config file says otherwise."""
_NUM_FRAMES = 48


def run(
    data: ml_collections.ConfigDict, *, repeats: int = 9, seconds: float = 1.5, batch_size: int = 8
) -> dict[str, Any]:
    """Clips per second of `pipeline.train_batches` and of decoding their PNG files alone, in turns.

    Both use as many threads as `data.workers` says and the same decoder. Before each turn, what is left over from the
    last one is thrown away. Synthetic frames are written as PNG files first.

    Returns:
      Medians of both over `repeats` turns, and median, least and greatest ratio of neighbouring turns.

    Raises:
      UserError: the loader is not tf, or the files are not as they should be.
    """
    if data.loader == "numpy":
        raise errors.UserError("bench data: measures data.loader 'tf', got 'numpy'; set data.loader to 'auto'")
    with tempfile.TemporaryDirectory() as folder:
        if data.name == "synthetic":
            data = _written(data, pathlib.Path(folder))
        return _measure(data, repeats, seconds, batch_size)


def _written(data: ml_collections.ConfigDict, folder: pathlib.Path) -> ml_collections.ConfigDict:
    """The same settings for PNG files of a synthetic video, in CamVid's SegNet layout."""
    video = store.street(data, "train").clip(0, _NUM_FRAMES, with_flow=False)
    for name, images in (("train", video.frames), ("trainannot", video.labels)):
        (folder / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"synthetic_{number:05d}.png")
    changed = ml_collections.ConfigDict(data.to_dict())
    changed.update({"name": "camvid", "dir": str(folder), "frame_gap": 1, "prepared": ""})
    return changed


def _measure(data: ml_collections.ConfigDict, repeats: int, seconds: float, batch_size: int) -> dict[str, Any]:
    num_frames = 1 if store.is_still(data) else int(data.num_frames)
    streams = {
        "bare": _decode(data, num_frames, batch_size),
        "pipeline": pipeline.train_batches(data, batch_size=batch_size, num_frames=int(data.num_frames), seed=0),
    }
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for batches in streams.values():
        next(batches)  # compiles
    for turn in range(repeats):
        for name, batches in streams.items():
            rates[name].append(_rate(batches, seconds if turn else seconds / 3) * batch_size)
    bare, whole = rates["bare"][1:], rates["pipeline"][1:]
    ratios = [b / a for a, b in zip(bare, whole, strict=True)]
    return {
        "frames": f"{data.name}, {num_frames} x {data.height} x {data.width}",
        "workers": tf_loader.num_workers(int(data.workers)),
        "bare_clips_per_s": statistics.median(bare),
        "pipeline_clips_per_s": statistics.median(whole),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_greatest": max(ratios),
    }


def _rate(batches: Iterator[Any], seconds: float, left_over: int = 4) -> float:
    """Batches per second, after those that were made before."""
    for _ in range(left_over):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - started)


def _decode(data: ml_collections.ConfigDict, num_frames: int, batch_size: int) -> Iterator[Any]:
    """Decodes the frames and labels of all clips, in parallel, and does nothing with them."""
    if data.prepared:
        raise errors.UserError("bench data: needs the files themselves; leave data.prepared empty")
    tf, found = tf_loader.tensorflow(), store.source(data, "train").frames
    index = store.index(data, "train", int(data.num_frames))
    images, labels = (tf.constant([str(getattr(frame, kind) or "") for frame in found]) for kind in ("image", "label"))

    def num_values(path: Any, channels: int) -> Any:
        return tf.size(tf.io.decode_png(tf.io.read_file(path), channels=channels))

    def decode(places: Any) -> Any:
        sizes = []
        for t in range(num_frames):
            label = labels[places[t]]
            sizes.append(num_values(images[places[t]], 3))
            sizes.append(tf.cond(label == "", lambda: 0, lambda label=label: num_values(label, 1)))
        return tf.stack(sizes)

    dataset = tf.data.Dataset.from_tensor_slices(index.places).repeat()
    return iter(tf_loader.batched(tf, dataset, decode, batch_size, workers=int(data.workers)).as_numpy_iterator())
