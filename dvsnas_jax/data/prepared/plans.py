"""What a prepared dataset will hold: one example for each labelled frame, with the frames before it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.prepared import file_bytes

VERSION = "1.0.0"
"""Of the form of the examples: another first number cannot be read by this program."""
INDEX = "clips.json"
"""Beside the records: which frames each example holds."""
DIGEST = "digest"
_SHARD_BYTES = (1 << 24, 1 << 28)
"""Smallest and largest shard wanted; between them a split has 16."""
_NUM_SAMPLES = 6
"""Frames that are resized to estimate the bytes of all."""
_EXAMPLE_BYTES, _FRAME_BYTES, _SPLIT_BYTES = 256, 160, 1 << 18
"""About what an example, each frame in it, and a split take beside the images."""


@dataclasses.dataclass(frozen=True)
class Computed:
    """What is to be prepared of a data set that is computed: clips of arrays."""

    dataset: str
    data: ml_collections.ConfigDict  # section of the configuration
    left_out = ()

    @property
    def counts(self) -> dict[str, int]:
        """Examples by split."""
        num_eval = int(self.data.num_val_clips)
        return {"train": int(self.data.num_train_clips), "val": num_eval, "test": num_eval}

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a folder that is there already."""
        sizes = {key: int(self.data[key]) for key in ("seed", "num_frames", "height", "width")}
        return {**sizes, "degrade": float(self.data.degrade)}

    def estimate(self) -> dict[str, int]:
        """Bytes that each split will take."""
        return {
            split: 4 * int(self.data.num_frames) * int(self.data.height) * int(self.data.width) * count
            for split, count in self.counts.items()
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be prepared of a data set on disk, the bytes aside."""

    dataset: str
    sources: Mapping[str, frames.Source]  # by split, in the order of the splits
    clips: Mapping[str, np.ndarray]  # by split: i32 [N, 2], first and last place of each example; the last is labelled
    options: Mapping[str, Any]  # JSON values that decide what is written
    left_out: tuple[str, ...] = ()  # splits of the folder that have no labels

    @property
    def counts(self) -> dict[str, int]:
        """Examples by split."""
        return {split: len(clips) for split, clips in self.clips.items()}

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a folder that is there already: the options, and names and sizes of all files."""
        found = hashlib.sha256()
        for split in sorted(self.sources):
            for frame in self.sources[split].frames:
                files = [part for path in frame.paths for part in (path.name, frames.num_bytes(path))]
                found.update(repr((split, frame.sequence, frame.number, *files)).encode())
        return {**self.options, DIGEST: found.hexdigest()}

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the prepared frames, None where they stay as they are."""
        height, width = self.options["height"], self.options["width"]
        return (height, width) if height else None

    def estimate(self) -> dict[str, int]:
        """Bytes that each split will take: sums of file sizes, scaled by some resized frames where asked for."""
        total = {}
        for split, source in self.sources.items():
            first, last = self.clips[split].T
            sizes = np.array([sum(map(frames.num_bytes, frame.paths)) for frame in source.frames], np.float64)
            if self.size is not None:
                chosen = np.unique(np.linspace(0, len(sizes) - 1, min(_NUM_SAMPLES, len(sizes))).astype(int))
                made = [sum(map(len, file_bytes.pair(source.frames[i], self.size))) for i in chosen]
                sizes *= 1.1 * sum(made) / max(sizes[chosen].sum(), 1)
            sums = np.concatenate([[0.0], np.cumsum(sizes)])
            content = int(float((sums[last + 1] - sums[first]).sum()) * 1.005)
            num_frames = int((last + 1 - first).sum())
            total[split] = content + _EXAMPLE_BYTES * len(first) + _FRAME_BYTES * num_frames + _SPLIT_BYTES
        return total


def make(
    data: ml_collections.ConfigDict, splits: tuple[str, ...] = (), *, height: int = 0, width: int = 0
) -> Plan | Computed:
    """Looks at the dataset and decides what is to be prepared.

    Args:
      data: section of the configuration: the dataset, its folder, and how long a history is kept.
      splits: which; () = all that the folder has.
      height: of the prepared frames, pixels; 0 = unchanged (computed: that of `data`).
      width: likewise.

    Raises:
      UserError: the folder is not as it should be, or only one of height and width is given.
    """
    if datasets.of(data).is_computed:
        if splits or height or width:
            raise errors.UserError(
                f"--splits, --height, --width: not for {data.name} clips; set data.height and data.width"
            )
        return Computed(data.name, data)
    if (height > 0) != (width > 0) or min(height, width) < 0:
        raise errors.UserError(f"--height {height} --width {width}: give both, above 0, or neither")
    is_still = data.history == "stills"
    num_frames = 1 if is_still else int(data.num_frames)
    gap, tolerance = (0, 0) if is_still else (int(data.frame_gap), int(data.frame_gap_tolerance))
    found = {split: datasets.find(data, split) for split in splits or _present(data)}
    span = (num_frames - 1) * (gap + tolerance)
    every = {split: windows(source.frames, span) for split, source in found.items()}
    clips = {split: each for split, each in every.items() if len(each) or split in splits}
    for split in splits or tuple(every)[: not clips]:
        if not len(every[split]):
            raise errors.UserError(
                f"{datasets.root(data)}: no frame of {split} has labels; add some, or name other --splits"
            )
    sources = {split: found[split] for split in clips}
    options = {
        "splits": sorted(sources),
        "num_frames": num_frames,
        "frame_gap": gap,
        "frame_gap_tolerance": tolerance,
        "height": height,
        "width": width,
        "layout": ", ".join(sorted({source.layout for source in sources.values()})),
    }
    return Plan(data.name, sources, clips, options, left_out=tuple(split for split in found if split not in clips))


def _present(data: ml_collections.ConfigDict) -> list[str]:
    """The splits that the folder has; of those that are lists, not folders, the ones that are not empty."""
    folder = datasets.recognise(datasets.root(data), data.name, datasets.options(data))
    found = folder.present()
    if folder.layout in folder.dataset.on_disk.listed:
        found = [split for split in found if folder.scan(split).frames] or found
    return found or ["train"]


def windows(found: tuple[frames.Frame, ...], span: int) -> np.ndarray:
    """The clip of every labelled frame: the frames at most `span` frame numbers before it, and itself.

    Returns:
      i32 [N, 2], first and last place in `found`, which is ordered by (sequence, number).
    """
    clips, first = [], 0
    for last, frame in enumerate(found):
        while found[first].sequence != frame.sequence or found[first].number < frame.number - span:
            first += 1
        if frame.label is not None:
            clips.append((first, last))
    return np.array(clips, np.int32).reshape(-1, 2)


def metadata(plan: Plan) -> dict[str, Any]:
    """What makes a prepared folder independent of the dataset's own, as JSON values: classes, label code, layout."""
    source = next(iter(plan.sources.values()))
    return {
        "dataset": plan.dataset,
        "options": dict(plan.options),
        DIGEST: plan.identity[DIGEST],
        "layouts": {split: each.layout for split, each in plan.sources.items()},
        "frame_rate": source.frame_rate,
        "class_names": list(source.table.names),
        "class_colors": source.table.colors.tolist(),
        "label_raw": source.code.raw.tolist(),
        "label_train": source.code.train.tolist(),
        "label_is_color": bool(source.code.is_color),
    }


def index_text(plan: Plan) -> str:
    """The content of `INDEX`: by split, the frames in use, and the first and last one of each example."""
    content = {}
    for split, source in plan.sources.items():
        clips = plan.clips[split]
        is_used = np.zeros(len(source.frames) + 1, bool)
        for first, last in clips:
            is_used[first : last + 1] = True
        place = np.cumsum(is_used) - 1
        content[split] = {
            "frames": [
                [frame.sequence, frame.number, frame.image.name, frame.label.name if frame.label else ""]
                for frame, used in zip(source.frames, is_used, strict=False)
                if used
            ],
            "clips": place[clips].tolist(),
        }
    return json.dumps(content, separators=(",", ":"))


def num_shards(num_bytes: int, num_examples: int) -> int:
    """How many files the examples of a split are divided into."""
    wanted = min(max(num_bytes // 16, _SHARD_BYTES[0]), _SHARD_BYTES[1])
    return max(min(round(num_bytes / wanted), num_examples), 1)
