"""Whole videos for evaluation, decoded by tf.data: the frames of `store.videos`, in its order."""

from __future__ import annotations

import collections.abc
import functools
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import augment, encoded_frames, sharding, store, tf_loader


class Videos(collections.abc.Sequence[types.Sequence]):
    """The videos of a split. In order, they come from one stream, which decodes ahead.

    Args:
      data: section of the configuration.
      split: train, val or test.

    Raises:
      UserError: TensorFlow is not installed, or the data is not as it should be.
    """

    def __init__(self, data: ml_collections.ConfigDict, split: str) -> None:
        self._data, self._split, self._videos = data, split, store.videos(data, split)
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
        if isinstance(self._videos, store.Videos):
            return self._videos.runs[number]
        length = len(self._videos[number].labels)
        return list(range(number * length, (number + 1) * length))

    def _read(self, numbers: range) -> Iterator[types.Sequence]:
        runs = [self._places(number) for number in numbers]
        places = np.array([place for run in runs for place in run], np.int32)[:, None]
        stream = self._frames(places)
        for number, run in zip(numbers, runs, strict=True):
            clips = [next(stream) for _ in run]
            frames = np.concatenate([clip.frames[0] for clip in clips])
            labels = np.concatenate([clip.labels[0] for clip in clips])
            yield self._with(number, run, frames, labels)

    def _frames(self, places: np.ndarray) -> Iterator[types.Clip]:
        """Clips of one frame each."""
        tf, size = tf_loader.tensorflow(), (int(self._data.height), int(self._data.width))
        explain: Any = lambda batch: None  # noqa: E731
        if datasets.of(self._data).is_computed:
            decoder = tf_loader.memory_decoder(tf, store.load(self._data, self._split))
        else:
            opened = encoded_frames.open_media(self._data, self._split)
            decoder = tf_loader.media_decoder(tf, opened, size)
            explain = functools.partial(_explain, opened, size)
        examples = ([example] for example in sharding.evaluation(places, 1, 0, range(len(places))))
        return tf_loader.batches(
            decoder, augment.plain(*size), 1, examples, workers=int(self._data.workers), explain=explain
        )

    def _with(self, number: int, run: list[int], frames: np.ndarray, labels: np.ndarray) -> types.Sequence:
        """A video with what else is known of it."""
        if not isinstance(self._videos, store.Videos):
            known = self._videos[number]
            return types.Sequence(name=known.name, frames=frames, labels=labels, flow=known.flow, clean=known.clean)
        first = self._videos.source.frames[run[0]]
        return types.Sequence(name=f"{first.sequence}_{first.number:06d}", frames=frames, labels=labels)


def _explain(opened: encoded_frames.Media, size: tuple[int, int], batch: Any) -> None:
    """Names the file of a batch that cannot be read."""
    for example in batch:
        encoded_frames.explain(opened, example.places, size)
