"""A split in memory: its frames once, and its clips as places among them."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import dataclasses
import functools
import os
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames, record
from dvsnas_jax.data.loading import folders
from dvsnas_jax.data.prepared import reading

HISTORIES = ("frames", "stills")


@dataclasses.dataclass(frozen=True)
class Store:
    """Frames and labels of a split.

    Attributes:
      frames: u8 [M, H, W, 3].
      labels: u8 [M, H, W].
    """

    frames: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClipIndex:
    """Which frames make which clip.

    Attributes:
      places: i32 [N, T], places in the store, oldest first; with stills [N, 1].
      spare: a training clip may start up to so many frames earlier (the same for all clips).
    """

    places: np.ndarray
    spare: int = 0


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


def _counts(data: ml_collections.ConfigDict, split: str) -> tuple[int, int]:
    """Synthetic: number of clips and of frames in each."""
    if split == "train":
        return int(data.num_train_clips), int(data.num_frames)
    return int(data.num_val_clips), int(data.val_frames)


def index(data: ml_collections.ConfigDict, split: str, num_frames: int) -> ClipIndex:
    """The clips of a split, in a fixed order.

    Synthetic training clips are the last `num_frames` of each clip; evaluation clips are cut one
    after the other from the sequences.

    Raises:
      UserError: not one clip of that many frames.
    """
    check(data, split)
    if num_frames < 1:
        raise errors.UserError(f"num_frames: {num_frames} frames make no clip; use at least 1")
    wanted = 1 if is_still(data) else num_frames
    if not datasets.of(data).is_computed:
        found = source(data, split).frames
        return ClipIndex(folders.clips(found, wanted, int(data.frame_gap), int(data.frame_gap_tolerance)))
    num_clips, length = _counts(data, split)
    if wanted > length:
        key = "data.num_frames" if split == "train" else "data.val_frames"
        raise errors.UserError(f"{data.name} {split}: clips have {length} frames, {wanted} are asked for; raise {key}")
    if num_clips < 1:
        raise errors.UserError(
            f"{data.name} {split}: no clips; raise data.num_{'train' if split == 'train' else 'val'}_clips"
        )
    if split == "train":
        starts = np.arange(num_clips)[:, None] * length + (length - wanted)
        return ClipIndex((starts + np.arange(wanted)).astype(np.int32), spare=length - wanted)
    pieces = length // wanted
    starts = (np.arange(num_clips)[:, None] * length + np.arange(pieces) * wanted).reshape(-1, 1)
    return ClipIndex((starts + np.arange(wanted)).astype(np.int32))


@functools.lru_cache(maxsize=6)
def _computed(
    name: str, split: str, seed: int, counts: tuple[int, int], size: tuple[int, int], degrade: float
) -> Store:
    num_clips, length = counts
    frames = np.empty((num_clips, length, *size, 3), np.uint8)
    labels = np.empty((num_clips, length, *size), np.uint8)
    for i in range(num_clips):
        video = datasets.TABLE[name].rendered(
            seed=seed,
            split=split,
            index=i,
            num_frames=length,
            height=size[0],
            width=size[1],
            degrade=degrade,
            with_flow=False,
        )
        frames[i], labels[i] = video.frames, video.labels
    return Store(frames.reshape(-1, *size, 3), labels.reshape(-1, *size))


def require_memory(num: int, size: tuple[int, int], what: str) -> None:
    """Checks that frames and labels fit into the memory that is free now.

    Args:
      num: of frames.
      size: (height, width).
      what: the split, for the error.

    Raises:
      UserError: they do not; with the arithmetic.
    """
    need = num * size[0] * size[1] * 4
    free = _free_memory()
    if need > free:
        raise errors.UserError(
            f"{what}: {num} frames x {size[0]} x {size[1]} pixels x 4 bytes = {need / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB of memory are free; set data.loader to 'tf', or lower data.height and data.width"
        )


def free_memory() -> int:
    """Bytes of this host's memory that can be had without swapping."""
    return _free_memory()


def _free_memory() -> int:
    """Bytes that can be had without swapping; a large number where the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 1 << 62


def source(data: ml_collections.ConfigDict, split: str) -> frames.Source:
    """The frames of a split on disk: of data.prepared where that is set, else of the dataset folder.

    Raises:
      UserError: see `datasets.find` and `prepared.of`.
    """
    media = reading.of(data, split)
    return datasets.find(data, split) if media is None else media.source


def read(
    found: frames.Source,
    places: collections.abc.Sequence[int],
    size: tuple[int, int],
    *,
    what: str,
    media: reading.PreparedMedia | None = None,
) -> Store:
    """Reads some frames, resized, in parallel.

    Args:
      found: the source of a split.
      places: of the wanted frames.
      size: (height, width).
      what: the split, for errors.
      media: where the frames are not files.

    Raises:
      UserError: too large for the memory, or a file is not as it should be.
    """
    require_memory(len(places), size, what)
    stored = Store(np.empty((len(places), *size, 3), np.uint8), np.empty((len(places), *size), np.uint8))

    def fill(i: int) -> None:
        content = None
        if media is not None:
            images, labels = media.read(np.array([places[i]], np.int32))
            content = images[0], labels[0]
        stored.frames[i], stored.labels[i] = folders.load(found.frames[places[i]], found.code, *size, content=content)

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
    media = reading.open_media(folder, split, options.also_ignored) if folder else None
    found = datasets.find_in(root, split, name, options) if media is None else media.source
    return read(found, range(len(found.frames)), size, what=f"{folder or root}, {split}", media=media)


def load(data: ml_collections.ConfigDict, split: str) -> Store:
    """All frames of a split, resized; kept for the life of the process.

    Raises:
      UserError: the files are not as they should be (see `folders`), or the memory is too small for them.
    """
    check(data, split)
    size = (int(data.height), int(data.width))
    if not datasets.of(data).is_computed:
        reading.of(data, split)  # says so where it is of another dataset
        return _disk(datasets.root(data), split, data.name, datasets.options(data), size, str(data.prepared))
    counts = _counts(data, split)
    require_memory(counts[0] * counts[1], size, f"{data.name} {split}")
    return _computed(data.name, split, int(data.seed), counts, size, float(data.degrade))


def select(data: ml_collections.ConfigDict, split: str, places: np.ndarray) -> tuple[Store, np.ndarray]:
    """The frames at some places, and where they are in what is returned.

    Args:
      data: section of the configuration.
      split: train, val or test.
      places: i32 [...], of the whole split.

    Returns:
      A store that has them, on disk no others, and their places in it i64 [...].

    Raises:
      UserError: as in `load`.
    """
    if datasets.of(data).is_computed:
        return load(data, split), places
    check(data, split)
    chosen, own = np.unique(places, return_inverse=True)
    size, what = (int(data.height), int(data.width)), f"data.{data.name}, {split}"
    media = reading.of(data, split)
    return read(source(data, split), chosen.tolist(), size, what=what, media=media), own.reshape(places.shape)


@functools.lru_cache(maxsize=4)
def _computed_sequences(
    name: str, split: str, seed: int, counts: tuple[int, int], size: tuple[int, int], degrade: float
) -> tuple[types.Sequence, ...]:
    return tuple(
        datasets.TABLE[name].rendered(
            seed=seed, split=split, index=i, num_frames=counts[1], height=size[0], width=size[1], degrade=degrade
        )
        for i in range(counts[0])
    )


class Videos(collections.abc.Sequence[types.Sequence]):
    """Videos of a split on disk, each read when it is asked for.

    Attributes:
      source: of the split.
      runs: the frames of each video, as places in the source.
    """

    def __init__(
        self,
        found: frames.Source,
        runs: list[list[int]],
        size: tuple[int, int],
        media: reading.PreparedMedia | None = None,
    ) -> None:
        self.source, self.runs, self._size, self._media = found, runs, size, media

    def shortened(self, num_frames: int) -> Videos:
        """The same videos without what follows their first frames."""
        return Videos(self.source, [run[:num_frames] for run in self.runs], self._size, self._media)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return Videos(self.source, self.runs[number], self._size, self._media)
        run = self.runs[number]
        first = self.source.frames[run[0]]
        name = f"{first.sequence}_{first.number:06d}"
        stored = read(self.source, run, self._size, what=name, media=self._media)
        return types.Sequence(name=name, frames=stored.frames, labels=stored.labels)


def videos(
    data: ml_collections.ConfigDict, split: str, *, is_split_up: bool | None = None
) -> collections.abc.Sequence[types.Sequence]:
    """Whole videos, those on disk read one at a time; see `pipeline.sequences`.

    Args:
      data: section of the configuration.
      split: train, val or test.
      is_split_up: every labelled frame is a video of its own; None: the train split of stills is.
    """
    check(data, split)
    if is_split_up is None:
        is_split_up = is_still(data) and split == "train"
    size = (int(data.height), int(data.width))
    if datasets.of(data).is_computed:
        return _computed_sequences(data.name, split, int(data.seed), _counts(data, split), size, float(data.degrade))
    found = source(data, split)
    if is_split_up:
        runs = [[i] for i, frame in enumerate(found.frames) if frame.label]
    else:
        runs = folders.runs(found.frames, int(data.eval_gap), is_still=found.layout.endswith("_stills"))
    return Videos(found, runs, size, reading.of(data, split))
