"""Whole videos for evaluation frame by frame: read one at a time by Pillow, or decoded ahead by tf.data."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames, record
from dvsnas_jax.data.loading import augment, clip_index, encoded_frames, example_order, store, tf_loader


class Videos(collections.abc.Sequence[types.Sequence]):
    """Videos of a split on disk, each read when it is asked for.

    Frames are at `size`, and so are labels unless `has_file_labels`: then they are read as they are.

    Attributes:
      source: of the split.
      runs: the frames of each video, as places in the source.
    """

    def __init__(
        self, media: encoded_frames.Media, runs: list[list[int]], size: tuple[int, int], has_file_labels: bool = False
    ) -> None:
        self.source, self.runs, self._media, self._size = media.source, runs, media, size
        self._has_file_labels = has_file_labels

    def shortened(self, num_frames: int) -> Videos:
        """The same videos without what follows their first frames."""
        return Videos(self._media, [run[:num_frames] for run in self.runs], self._size, self._has_file_labels)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, number: Any) -> Any:
        name = _name(self.source.frames[self.runs[number][0]])
        label_size = encoded_frames.file_size(self._media, self.runs[number][0]) if self._has_file_labels else None
        stored = store.read(self._media, self.runs[number], self._size, what=name, label_size=label_size)
        return types.Sequence(name=name, frames=stored.frames, labels=stored.labels)


def _name(first: frames.Frame) -> str:
    return f"{first.sequence}_{first.number:06d}"


@functools.lru_cache(maxsize=4)
def _computed(world: record.World, num_clips: int, num_frames: int) -> tuple[types.Sequence, ...]:
    return tuple(world.clip(index, num_frames) for index in range(num_clips))


def find(
    data: ml_collections.ConfigDict, split: str, *, is_split_up: bool | None = None, has_file_labels: bool = False
) -> Sequence[types.Sequence]:
    """The videos of a split: `Videos` of those on disk, else synthetic ones with true flow and clean frames.

    On disk: maximal runs of frames `eval_gap` apart, or, `is_split_up`, every labelled frame by itself (None: the
    train split of stills is). `has_file_labels`: labels are at the size of their files.

    Raises:
      UserError: bad files, or no two frames `eval_gap` apart.
    """
    store.check(data, split)
    if datasets.of(data).is_computed:
        return _computed(datasets.world(data, split), *store.computed_counts(data, split))
    media = encoded_frames.open_media(data, split)
    found = media.source
    if is_split_up or (is_split_up is None and store.is_still(data) and split == "train"):
        runs = [[i] for i, frame in enumerate(found.frames) if frame.label]
    else:
        runs = clip_index.runs(found.frames, int(data.eval_gap), is_still=found.is_still)
    return Videos(media, runs, store.size_of(data), has_file_labels)


class Streamed(collections.abc.Sequence[types.Sequence]):
    """The videos of `find` decoded by tf.data: in order, they come from one stream, which decodes ahead.

    Raises UserError: TensorFlow is not installed, or the data is not as it should be.
    """

    def __init__(self, data: ml_collections.ConfigDict, split: str) -> None:
        self._data, self._split, self._videos = data, split, find(data, split)
        tf_loader.tensorflow()

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[types.Sequence]:
        return self._read(range(len(self)))

    def __getitem__(self, number: Any) -> Any:
        (video,) = self._read(range(len(self))[number : number + 1 or None])
        return video

    def _places(self, number: int) -> list[int]:
        """Of the frames of a video, in the store of the split."""
        if isinstance(self._videos, Videos):
            return self._videos.runs[number]
        length = len(self._videos[number].labels)
        return list(range(number * length, (number + 1) * length))

    def _read(self, numbers: range) -> Iterator[types.Sequence]:
        runs = [self._places(number) for number in numbers]
        places = np.array([place for run in runs for place in run], np.int32)[:, None]
        examples = ([example] for example in example_order.unaugmented(places, 1, 0, range(len(places))))
        decoder, rules = tf_loader.decoder(self._data, self._split), augment.plain(*store.size_of(self._data))
        stream = tf_loader.batches(decoder, rules, 1, examples, workers=int(self._data.workers))
        for number, run in zip(numbers, runs, strict=True):
            clips = [next(stream) for _ in run]
            decoded = {
                "frames": np.concatenate([clip.frames[0] for clip in clips]),
                "labels": np.concatenate([clip.labels[0] for clip in clips]),
            }
            if isinstance(self._videos, Videos):
                yield types.Sequence(name=_name(self._videos.source.frames[run[0]]), **decoded)
            else:
                known: Any = self._videos[number]  # of a synthetic video more is known
                yield dataclasses.replace(known, **decoded)


def open_split(
    data: ml_collections.ConfigDict, split: str, *, has_file_labels: bool = False
) -> Sequence[types.Sequence]:
    """The videos to score: `Streamed` where `data.loader` is "tf", else those of `find`.

    With `has_file_labels` always those of `find`, whose frames are the same.
    """
    if has_file_labels:
        return find(data, split, has_file_labels=True)
    return Streamed(data, split) if data.loader == "tf" else find(data, split)
