"""A split in memory: its frames once, and its clips as places among them."""

from __future__ import annotations

import dataclasses
import functools
import os

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import folders, synthetic

NAMES = ("synthetic", "camvid")
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


def folder(data: ml_collections.ConfigDict) -> str:
    """The dataset folder: data.dir, or the environment variable DVSNAS_CAMVID."""
    return str(data.dir or os.environ.get("DVSNAS_CAMVID", ""))


def check(data: ml_collections.ConfigDict, split: str) -> None:
    """Raises UserError where the data section or the split makes no sense."""
    if data.name not in NAMES:
        raise errors.UserError(f"data.name: unknown dataset '{data.name}'; use one of {', '.join(NAMES)}")
    if data.history not in HISTORIES:
        raise errors.UserError(f"data.history: unknown value '{data.history}'; use one of {', '.join(HISTORIES)}")
    if split not in synthetic.SPLITS:
        raise errors.UserError(f"data split: unknown name '{split}'; use one of {', '.join(synthetic.SPLITS)}")


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
    if data.name == "camvid":
        frames = folders.index(folder(data), split)
        return ClipIndex(folders.clips(frames, wanted, int(data.frame_gap), int(data.frame_gap_tolerance)))
    num_clips, length = _counts(data, split)
    if wanted > length:
        key = "data.num_frames" if split == "train" else "data.val_frames"
        raise errors.UserError(f"synthetic {split}: clips have {length} frames, {wanted} are asked for; raise {key}")
    if num_clips < 1:
        raise errors.UserError(
            f"synthetic {split}: no clips; raise data.num_{'train' if split == 'train' else 'val'}_clips"
        )
    if split == "train":
        starts = np.arange(num_clips)[:, None] * length + (length - wanted)
        return ClipIndex((starts + np.arange(wanted)).astype(np.int32), spare=length - wanted)
    pieces = length // wanted
    starts = (np.arange(num_clips)[:, None] * length + np.arange(pieces) * wanted).reshape(-1, 1)
    return ClipIndex((starts + np.arange(wanted)).astype(np.int32))


@functools.lru_cache(maxsize=6)
def _synthetic(seed: int, split: str, counts: tuple[int, int], size: tuple[int, int], degrade: float) -> Store:
    num_clips, length = counts
    frames = np.empty((num_clips, length, *size, 3), np.uint8)
    labels = np.empty((num_clips, length, *size), np.uint8)
    for i in range(num_clips):
        video = synthetic.clip(
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


@functools.lru_cache(maxsize=6)
def _camvid(root: str, split: str, size: tuple[int, int]) -> Store:
    found = folders.index(root, split)
    frames, labels = np.empty((len(found), *size, 3), np.uint8), np.empty((len(found), *size), np.uint8)
    for i, frame in enumerate(found):
        frames[i], labels[i] = folders.load(frame, *size)
    return Store(frames, labels)


def load(data: ml_collections.ConfigDict, split: str) -> Store:
    """All frames of a split, resized; kept for the life of the process.

    Raises:
      UserError: the files are not as they should be (see `folders`).
    """
    check(data, split)
    size = (int(data.height), int(data.width))
    if data.name == "camvid":
        return _camvid(folder(data), split, size)
    return _synthetic(int(data.seed), split, _counts(data, split), size, float(data.degrade))


@functools.lru_cache(maxsize=4)
def _synthetic_sequences(
    seed: int, split: str, counts: tuple[int, int], size: tuple[int, int], degrade: float
) -> tuple[types.Sequence, ...]:
    return tuple(
        synthetic.clip(
            seed=seed, split=split, index=i, num_frames=counts[1], height=size[0], width=size[1], degrade=degrade
        )
        for i in range(counts[0])
    )


def sequences(data: ml_collections.ConfigDict, split: str) -> list[types.Sequence]:
    """Whole videos, see `pipeline.sequences`."""
    check(data, split)
    size = (int(data.height), int(data.width))
    if data.name == "synthetic":
        return list(_synthetic_sequences(int(data.seed), split, _counts(data, split), size, float(data.degrade)))
    found = folders.index(folder(data), split)
    if is_still(data) and split == "train":
        runs = [[i] for i in range(len(found))]
    else:
        runs = folders.runs(found, int(data.eval_gap))
    stored = load(data, split)
    return [
        types.Sequence(name=found[run[0]].image.stem, frames=stored.frames[run], labels=stored.labels[run])
        for run in runs
    ]
