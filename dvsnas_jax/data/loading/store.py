"""A split in memory: its frames once, and its clips as places among them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Sequence

import ml_collections
import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames, record
from dvsnas_jax.data.loading import clip_index, encoded_frames
from dvsnas_jax.data.prepared import reading

HISTORIES = ("frames", "stills")


@dataclasses.dataclass(frozen=True)
class Store:
    """Frames u8 [M, H, W, 3] and labels u8 [M, H, W] of a split."""

    frames: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClipIndex:
    """Which frames make which clip."""

    places: np.ndarray  # i32 [N, T], places in the store, oldest first; with stills [N, 1]
    spare: int = 0  # a training clip may start up to so many frames earlier (the same for all clips)


def check(data: ml_collections.ConfigDict, split: str) -> None:
    """Raises UserError where the data section or the split makes no sense."""
    datasets.of(data)
    if data.history not in HISTORIES:
        raise errors.UserError(f"data.history: unknown value '{data.history}'; use one of {', '.join(HISTORIES)}")
    if split not in frames.SPLITS:
        raise errors.UserError(f"data split: unknown name '{split}'; use one of {', '.join(frames.SPLITS)}")


def is_still(data: ml_collections.ConfigDict) -> bool:
    """Histories are made from single frames."""
    return bool(data.history == "stills")


def size_of(data: ml_collections.ConfigDict) -> tuple[int, int]:
    """Height and width that frames are read at."""
    return int(data.height), int(data.width)


def computed_counts(data: ml_collections.ConfigDict, split: str) -> tuple[int, int]:
    """Of a computed data set: number of clips and of frames in each."""
    if split == "train":
        return int(data.num_train_clips), int(data.num_frames)
    return int(data.num_val_clips), int(data.val_frames)


def source(data: ml_collections.ConfigDict, split: str) -> frames.Source:
    """The frames of a split on disk; see `encoded_frames.open_media`."""
    return encoded_frames.open_media(data, split).source


def index(data: ml_collections.ConfigDict, split: str, num_frames: int) -> ClipIndex:
    """The clips of a split, in a fixed order.

    Synthetic training clips are the last `num_frames` of each clip, others are cut one after the other.

    Raises:
      UserError: not one clip of that many frames.
    """
    check(data, split)
    if num_frames < 1:
        raise errors.UserError(f"num_frames: {num_frames} frames make no clip; use at least 1")
    wanted = 1 if is_still(data) else num_frames
    if not datasets.of(data).is_computed:
        found = source(data, split).frames
        return ClipIndex(clip_index.clips(found, wanted, int(data.frame_gap), int(data.frame_gap_tolerance)))
    num_clips, length = computed_counts(data, split)
    is_train = split == "train"
    if wanted > length:
        key = "data.num_frames" if is_train else "data.val_frames"
        raise errors.UserError(f"{data.name} {split}: clips have {length} frames, {wanted} are asked for; raise {key}")
    if num_clips < 1:
        raise errors.UserError(f"{data.name} {split}: no clips; raise data.num_{'train' if is_train else 'val'}_clips")
    firsts = [length - wanted] if is_train else range(0, length - wanted + 1, wanted)
    starts = [clip * length + first for clip in range(num_clips) for first in firsts]
    places = np.array(starts)[:, None] + np.arange(wanted)
    return ClipIndex(places.astype(np.int32), spare=length - wanted if is_train else 0)


def free_memory() -> int:
    """Bytes of this host's memory that can be had without swapping; a large number where the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 1 << 62


def _blank(num: int, size: tuple[int, int], what: str, label_size: tuple[int, int] | None = None) -> Store:
    """Room for frames and labels (of a size of their own, where one is given) of the split `what`.

    Raises UserError: there is none in the memory that is free now; with the arithmetic.
    """
    free = free_memory()
    if label_size is not None and (need := num * (3 * math.prod(size) + math.prod(label_size))) > free:
        raise errors.UserError(
            f"{what}: {num} frames and their labels at {label_size[1]}x{label_size[0]} need {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB of memory are free; set evaluate.size to 'frame'"
        )
    if (need := num * size[0] * size[1] * 4) > free:
        raise errors.UserError(
            f"{what}: {num} frames x {size[0]} x {size[1]} pixels x 4 bytes = {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB of memory are free; set data.loader to 'tf', or lower data.height and data.width"
        )
    return Store(np.empty((num, *size, 3), np.uint8), np.empty((num, *(label_size or size)), np.uint8))


def read(
    media: encoded_frames.Media,
    places: Sequence[int],
    size: tuple[int, int],
    *,
    what: str,
    label_size: tuple[int, int] | None = None,
) -> Store:
    """Reads some frames of the split `what`, resized to (height, width), in parallel; labels see `decode.load`.

    Raises UserError: too large for the memory, or a file is not as it should be.
    """
    stored = _blank(len(places), size, what, label_size)

    def fill(i: int) -> None:
        stored.frames[i], stored.labels[i] = encoded_frames.load(media, places[i], size, label_size=label_size)

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:
        try:
            for _ in pool.map(fill, range(len(places))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return stored


@functools.lru_cache(maxsize=6)
def _disk(root: str, split: str, name: str, options: record.Options, size: tuple[int, int], folder: str) -> Store:
    media: encoded_frames.Media
    if folder:
        media = reading.open_media(folder, split, options.also_ignored)
    else:
        media = encoded_frames.FolderMedia(datasets.find_in(root, split, name, options))
    return read(media, range(len(media.source.frames)), size, what=f"{folder or root}, {split}")


@functools.lru_cache(maxsize=6)
def _computed(world: record.World, counts: tuple[int, int], what: str) -> Store:
    num_clips, length = counts
    stored = _blank(num_clips * length, (world.height, world.width), what)
    for i in range(num_clips):
        video, place = world.clip(i, length, with_flow=False), slice(i * length, (i + 1) * length)
        stored.frames[place], stored.labels[place] = video.frames, video.labels
    return stored


def load(data: ml_collections.ConfigDict, split: str) -> Store:
    """All frames of a split, resized; kept for the life of the process.

    Raises UserError: the files are not as they should be (see `decode`), or the memory is too small for them.
    """
    check(data, split)
    if not datasets.of(data).is_computed:
        reading.of(data, split)  # says so where it is of another dataset
        return _disk(datasets.root(data), split, data.name, datasets.options(data), size_of(data), str(data.prepared))
    return _computed(datasets.world(data, split), computed_counts(data, split), f"{data.name} {split}")


def select(data: ml_collections.ConfigDict, split: str, places: np.ndarray) -> tuple[Store, np.ndarray]:
    """The frames at some places i32 [...] of the split, and where they are in what is returned, i64 [...].

    Of a split on disk, no other frames are read.

    Raises:
      UserError: as in `load`.
    """
    if datasets.of(data).is_computed:
        return load(data, split), places
    check(data, split)
    chosen, own = np.unique(places, return_inverse=True)
    media, what = encoded_frames.open_media(data, split), f"data.{data.name}, {split}"
    return read(media, chosen.tolist(), size_of(data), what=what), own.reshape(places.shape)
