"""Further data that training clips are drawn from: the entries of `data.extra`.

Its clips are true histories at the size of the run, augmented as the run's own. Labels become those of the run's
classes, by their names. Where no frame has a label, every frame with enough history is a target.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator

import ml_collections
import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, extra_data, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import class_names, frames
from dvsnas_jax.data.loading import augment, clip_index, encoded_frames, example_order, pipeline, store, video_file

VIDEO, CONFIG = "video", "config"
"""Kinds of entries beside the data sets on disk."""
_SPLIT = "train"
_STREAM = 104
_DESCRIBED = ("name", "dir", "prepared", "ignore", "frame_gap", "frame_gap_tolerance")
"""What a config file says of further data, beside data.folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Extra:
    """Further data of a run.

    Attributes:
      entry: of `data.extra`.
      data: a section `data` that describes it.
      frames: of its train split, in order.
      is_labelled: some frame has a label image.
      media: where they are read from; None: a video file.
      seed_step: what it adds to the seed of a run.
    """

    entry: extra_data.Entry
    data: ml_collections.ConfigDict
    frames: tuple[frames.Frame, ...]
    is_labelled: bool
    media: encoded_frames.Media | None
    seed_step: int

    @functools.cached_property
    def _places(self) -> dict[int, np.ndarray]:
        return {}

    def places(self, num_frames: int) -> np.ndarray:
        """Its clips i32 [N, T], as places in `frames`.

        Raises:
          UserError: there is none.
        """
        if num_frames not in self._places:
            gap, tolerance = int(self.data.frame_gap), int(self.data.frame_gap_tolerance)
            with _named(self.entry):
                found = clip_index.clips(self.frames, num_frames, gap, tolerance, is_any=not self.is_labelled)
            self._places[num_frames] = found
        return self._places[num_frames]

    def read(self, places: np.ndarray) -> store.Store:
        """Some frames i64 [n], at the size of the run; labels in the run's classes."""
        size = store.size_of(self.data)
        with _named(self.entry):
            if self.media is not None:
                return store.read(self.media, places.tolist(), size, what=str(self.entry))
            found = video_file.read(self.entry.path, size)[places]
        return store.Store(found, np.full(found.shape[:-1], types.IGNORE, np.uint8))

    def clips(self, numbers: np.ndarray, num_frames: int, seed: int, *, is_augmented: bool) -> types.Clip:
        """Some of an endless stream of clips, each a function of (seed, its number) alone.

        Every epoch is a permutation of all clips.

        Args:
          numbers: integers [n].
          num_frames: T.
          seed: of the run.
          is_augmented: crops, as of training clips; else whole frames as they are.
        """
        rules = augment.plain(*store.size_of(self.data))
        if is_augmented:
            rules = pipeline.rules_of(self.data)
        seed = pipeline.seed_of(seed + self.seed_step)
        stream = example_order.Stream(self.places(num_frames), 0, rules, num_frames, seed)
        examples = [next(stream.batches(1, example_order.Part(int(number))))[0] for number in numbers]
        chosen, own = np.unique([example.places for example in examples], return_inverse=True)
        moved = zip(examples, own.reshape(len(examples), num_frames), strict=True)
        stored = self.read(chosen)
        return pipeline.made(stored, rules, num_frames, (dataclasses.replace(e, places=p) for e, p in moved))

    def describe(self) -> list[object]:
        """All that its clips follow from besides the sizes of the run: for the names of caches."""
        paths = [path for frame in self.frames for path in frame.paths] if self.media else [self.entry.path]
        root = self.entry.path if os.path.isdir(self.entry.path) else os.path.dirname(self.entry.path)
        stats = [(path, os.stat(path)) for path in map(str, paths) if os.path.exists(path)]
        files = [(os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        about = config_lib.to_json_dict(self.data)
        return [self.entry.kind, self.entry.share, {**about, "dir": "", "prepared": bool(about["prepared"])}, files]


@contextlib.contextmanager
def _named(entry: extra_data.Entry) -> Iterator[None]:
    """Says which entry an error is of."""
    try:
        yield
    except errors.UserError as error:
        raise errors.UserError(f"data.extra {entry}: {error}") from None


def find(data: ml_collections.ConfigDict) -> list[Extra]:
    """The further data of a run; `data` is its section of the configuration.

    Raises:
      UserError: an entry that makes no sense, or whose files cannot be used.
    """
    text = json.dumps(config_lib.to_json_dict(data), sort_keys=True) if data.extra else ""
    return [_open(entry, index, text) for index, entry in enumerate(extra_data.parse(data.extra))]


@functools.lru_cache(maxsize=16)
def _open(entry: extra_data.Entry, index: int, text: str) -> Extra:
    """An entry of the data section in `text`, JSON; kept for the life of the process."""
    run = ml_collections.ConfigDict(json.loads(text))
    with _named(entry):
        known = (*datasets.on_disk(), VIDEO, CONFIG)
        if entry.kind not in known:
            raise errors.UserError(f"kind: unknown {entry.kind!r}; use one of {', '.join(known)}")
        if not os.path.exists(entry.path):
            raise errors.UserError("path: there is no such file or folder; correct it")
        step = 7919 * (index + 1)
        data = _section(run, entry)
        if entry.kind == VIDEO:
            num, path = len(video_file.read(entry.path, store.size_of(data))), pathlib.Path(entry.path)
            listed = tuple(frames.Frame(path.stem, number, path, None) for number in range(num))
            return Extra(entry, data, listed, False, None, step)
        media = copy.copy(encoded_frames.open_media(data, _SPLIT))
        source, table = media.source, pipeline.class_table(run)
        is_labelled = any(frame.label for frame in source.frames)
        if is_labelled:
            code = class_names.mapped_code(datasets.of(data), source, datasets.options(data), table)
            if (code.train == types.IGNORE).all():
                raise errors.UserError(
                    f"classes: none of its own ({', '.join(source.table.names)}) has the name of one of the run's "
                    f"({', '.join(table.names)}); rename them in a config file, or give its frames alone as folder"
                )
            media.source = dataclasses.replace(source, table=table, code=code)
        return Extra(entry, data, source.frames, is_labelled, media, step)


def _section(run: ml_collections.ConfigDict, entry: extra_data.Entry) -> ml_collections.ConfigDict:
    """A section `data` for an entry: sizes and augmentation are those of the run."""
    plain = config_lib.defaults().data
    own = {"history": "frames", "gap_jitter": 0, "still_objects": 0.0, "extra": (), "name": entry.kind}
    own |= {"dir": entry.path, "prepared": "", "ignore": (), "folder": plain.folder}
    if entry.kind == CONFIG:
        given = config_lib.load(entry.path).data
        if datasets.of(given).is_computed:
            raise errors.UserError(f"data.name: {given.name} lies in no files; name data on disk")
        own |= {key: given[key] for key in (*_DESCRIBED, "folder")}
    return ml_collections.ConfigDict({**run, **own})


def train_batches(
    data: ml_collections.ConfigDict,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    indices: pipeline.Indices | None = None,
    part: example_order.Part = example_order.WHOLE,
) -> Iterator[types.Clip]:
    """`pipeline.train_batches` in which each clip is one of further, labelled data with the probability of its share.

    Which those are is a function of (seed, number of the example) alone; the others are what they are without them.

    Raises:
      UserError: as there and `find`.
    """
    own = pipeline.train_batches(
        data, batch_size=batch_size, num_frames=num_frames, seed=seed, indices=indices, part=part
    )
    labelled = [each for each in find(data) if each.is_labelled]
    for each in labelled:
        each.places(num_frames)  # says so where there is no clip
    if not labelled:
        return own
    return _mixed(own, labelled, num_frames, seed, (batch_size, part))


def _mixed(
    own: Iterator[types.Clip],
    labelled: list[Extra],
    num_frames: int,
    seed: int,
    sizes: tuple[int, example_order.Part],
) -> Iterator[types.Clip]:
    batch_size, part = sizes
    ends = np.cumsum([each.entry.share for each in labelled])
    for batch, clip in enumerate(own, part.start):
        numbers = batch * batch_size + part.host + part.num_hosts * np.arange(len(clip.labels))
        drawn = [
            np.random.default_rng((pipeline.seed_of(seed), _STREAM, number)).random() for number in numbers.tolist()
        ]
        which = np.searchsorted(ends, drawn, side="right")
        made, labels = np.array(clip.frames), np.array(clip.labels)
        for index, each in enumerate(labelled):
            rows = np.flatnonzero(which == index)
            if len(rows):
                found = each.clips(numbers[rows], num_frames, seed, is_augmented=True)
                made[rows], labels[rows] = found.frames, found.labels
        yield types.Clip(frames=made, labels=labels)
