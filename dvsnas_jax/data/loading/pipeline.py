"""Clips for training and sequences for evaluation: the face of the data package.

Every function takes the `data` section of the configuration. Two loaders give the same clips:
"numpy" from arrays in memory, "tf" through tf.data (TensorFlow is imported only there).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceType

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import augment, sharding, store, warp
from dvsnas_jax.data.loading import encoded_frames as media_lib

LOADERS = ("auto", "tf", "numpy")


def class_table(data: ml_collections.ConfigDict) -> types.ClassTable:
    """Names and colours of the train ids of a dataset."""
    store.check(data, "train")
    if data.prepared:
        return store.source(data, "train").table
    return datasets.class_table(data)


def num_clips(data: ml_collections.ConfigDict, split: str, num_frames: int) -> int:
    """How many clips of `num_frames` frames a split has: what `load_clips` would return."""
    return len(store.index(data, split, num_frames).places)


def load_clips(
    data: ml_collections.ConfigDict,
    *,
    split: str,
    num_frames: int,
    indices: SequenceType[int] | np.ndarray | None = None,
) -> types.Clip:
    """All or some clips of a split in memory, in a fixed order, unaugmented.

    Args:
      data: section of the configuration.
      split: train, val or test.
      num_frames: T; 1 gives the target frames alone.
      indices: numbers of the wanted clips; all where None. Of a dataset on disk only their frames are read.

    Returns:
      frames u8 [N, T, H, W, 3], labels u8 [N, T, H, W]; every clip of a split ends in the same target whatever T is,
      but for synthetic val/test, whose sequences are cut in pieces of T.

    Raises:
      UserError: bad files, or no clip of that many frames.
    """
    index = store.index(data, split, num_frames)
    if indices is None:
        numbers, stored, places = np.arange(len(index.places)), store.load(data, split), index.places
    else:
        numbers = np.asarray(indices, np.int64)
        stored, places = store.select(data, split, index.places[numbers])
    if not store.is_still(data) or num_frames == 1:
        return types.Clip(frames=stored.frames[places], labels=stored.labels[places])
    rules = _plain_rules(data)
    examples = sharding.evaluation(index.places, num_frames, _seed(data.seed), map(int, numbers))
    made = [
        _render(rules, stored, dataclasses.replace(example, places=own), num_frames)
        for example, own in zip(examples, places, strict=True)
    ]
    return types.Clip(frames=np.stack([clip[0] for clip in made]), labels=np.stack([clip[1] for clip in made]))


def sequences(data: ml_collections.ConfigDict, split: str) -> SequenceType[types.Sequence]:
    """Whole videos for evaluation frame by frame; those on disk are read when they are asked for.

    Synthetic: the clips of the split, with true flow and clean frames. On disk: maximal runs of
    frames `eval_gap` apart (training stills: each frame by itself).

    Raises:
      UserError: bad files, or no two frames `eval_gap` apart.
    """
    return store.videos(data, split)


def _seed(seed: int) -> int:
    return int(seed) & 0xFFFFFFFF


def _rules(data: ml_collections.ConfigDict) -> augment.Rules:
    low, high = (float(value) for value in data.scale)
    if not 0 < low <= high:
        raise errors.UserError(f"data.scale: ({low}, {high}) is no range of scales; use 0 < smallest <= largest")
    return augment.Rules(
        height=int(data.height),
        width=int(data.width),
        crop_height=int(data.crop_height),
        crop_width=int(data.crop_width),
        scale=(low, high),
        jitter=float(data.jitter),
        flip=bool(data.flip),
        is_still=store.is_still(data),
        jitter_per_frame=bool(data.jitter_per_frame),
        max_ratio=float(data.crop_max_ratio),
        tries=int(data.crop_tries),
    )


def _plain_rules(data: ml_collections.ConfigDict) -> augment.Rules:
    """For evaluation: nothing random, but the history of a still."""
    is_still = store.is_still(data)
    jitter = float(data.jitter) if is_still else 0.0
    return augment.plain(int(data.height), int(data.width), jitter=jitter, is_still=is_still)


def _uses_tf(data: ml_collections.ConfigDict) -> bool:
    if data.loader not in LOADERS:
        raise errors.UserError(f"data.loader: unknown loader '{data.loader}'; use one of {', '.join(LOADERS)}")
    return bool(data.loader == "tf" or (data.loader == "auto" and not datasets.of(data).is_computed))


def _history(data: ml_collections.ConfigDict, split: str, num_frames: int) -> sharding.History | None:
    """Where the distances of frames vary from example to example, None where they do not."""
    if not data.gap_jitter or num_frames == 1 or store.is_still(data):
        return None
    if datasets.of(data).is_computed:
        length = int(data.num_frames if split == "train" else data.val_frames)
        clips = int(data.num_train_clips if split == "train" else data.num_val_clips)
        places = np.arange(clips * length, dtype=np.int32)
        return sharding.History(places // length, places % length, gap=1, jitter=int(data.gap_jitter))
    found = store.source(data, split).frames
    names = [frame.sequence for frame in found]
    starts = np.array([True, *(a != b for a, b in zip(names[:-1], names[1:], strict=True))])
    return sharding.History(
        sequences=np.cumsum(starts),
        numbers=np.array([frame.number for frame in found], np.int64),
        gap=int(data.frame_gap),
        jitter=int(data.gap_jitter),
    )


def _render(
    rules: augment.Rules, stored: store.Store, example: sharding.Example, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """One clip from arrays in memory."""
    if rules.is_identity:
        return stored.frames[example.places], stored.labels[example.places]
    words = warp.pack(stored.frames[example.places], stored.labels[example.places])
    return augment.render(rules, words, example.uniforms, example.key, num_frames)


def _numpy_batches(
    stored: store.Store, rules: augment.Rules, num_frames: int, examples: Iterator[list[sharding.Example]]
) -> Iterator[types.Clip]:
    for batch in examples:
        made = [_render(rules, stored, example, num_frames) for example in batch]
        yield types.Clip(frames=np.stack([clip[0] for clip in made]), labels=np.stack([clip[1] for clip in made]))


def _batches(
    data: ml_collections.ConfigDict,
    split: str,
    rules: augment.Rules,
    num_frames: int,
    examples: Iterator[list[sharding.Example]],
) -> Iterator[types.Clip]:
    """The clips of the examples, by the loader of the configuration."""
    if not _uses_tf(data):
        return _numpy_batches(store.load(data, split), rules, num_frames, examples)
    from dvsnas_jax.data.loading import tf_loader

    tf, size = tf_loader.tensorflow(), (rules.height, rules.width)
    explain: Callable[[SequenceType[sharding.Example]], None] = lambda batch: None  # noqa: E731
    if datasets.of(data).is_computed:
        decoder = tf_loader.memory_decoder(tf, store.load(data, split))
    else:
        media = media_lib.open_media(data, split)
        decoder = tf_loader.media_decoder(tf, media, size)
        explain = functools.partial(_explain, media, size)
    return tf_loader.batches(decoder, rules, num_frames, examples, workers=int(data.workers), explain=explain)


def _explain(media: media_lib.Media, size: tuple[int, int], batch: SequenceType[sharding.Example]) -> None:
    for example in batch:
        media_lib.explain(media, example.places, size)


def train_batches(
    data: ml_collections.ConfigDict,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    start_step: int = 0,
    indices: SequenceType[int] | np.ndarray | None = None,
    split: str = "train",
    shard: sharding.Shard = sharding.WHOLE,
) -> Iterator[types.Clip]:
    """Endless batches of augmented clips, shuffled in every epoch.

    Batch i is a function of (seed, i) alone: an iterator made with start_step=i begins with it.

    Args:
      data: section of the configuration.
      batch_size: B, over all hosts.
      num_frames: T. Where synthetic training clips are longer, any T consecutive frames of them.
      seed: of order and augmentation.
      start_step: number of the first batch.
      indices: numbers of the clips to draw from, in the order of `load_clips`; all where None.
      split: train, val or test.
      shard: this host among all: it gets every n-th clip of each batch.

    Returns:
      An iterator of clips u8 [B / hosts, T, crop_height, crop_width, ...]. Files are read as it goes on: one that is
      not as it should be raises UserError when its batch is asked for.

    Raises:
      UserError: unknown loader, no clip of that many frames, a clip number out of range, a batch that does not divide.
    """
    rules = _rules(data)
    _uses_tf(data)  # an unknown loader is told before the disk is looked at
    index = store.index(data, split, num_frames)
    places = index.places
    if indices is not None:
        chosen = np.asarray(indices, np.int64).reshape(-1)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(places):
            raise errors.UserError(
                f"train_batches: clip numbers must be in 0..{len(places) - 1} and at least one; got {len(chosen)}"
            )
        places = places[chosen]
    shard.local(batch_size)
    stream = sharding.Stream(places, index.spare, rules, num_frames, _seed(seed), _history(data, split, num_frames))
    return _batches(data, split, rules, num_frames, stream.batches(batch_size, shard, start_step))


def eval_batches(
    data: ml_collections.ConfigDict,
    *,
    split: str,
    batch_size: int,
    num_frames: int,
    shard: sharding.Shard = sharding.WHOLE,
) -> Iterator[tuple[types.Clip, np.ndarray]]:
    """Every clip of a split once, in the order and with the content of `load_clips`, streamed.

    Args:
      data: section of the configuration.
      split: train, val or test.
      batch_size: B, over all hosts.
      num_frames: T.
      shard: this host among all; all hosts get the same number of batches.

    Yields:
      Clips u8 [B / hosts, T, height, width, ...], and which of them count, bool [B / hosts]: those that only fill the
      last batch do not, and all their labels are 255.

    Raises:
      UserError: as in `train_batches`.
    """
    places = store.index(data, split, num_frames).places
    numbers = list(sharding.padded(len(places), batch_size, shard))
    examples = (list(sharding.evaluation(places, num_frames, _seed(data.seed), part)) for part in numbers)
    rules = _plain_rules(data)
    if num_frames == 1 and rules.is_still:
        rules = augment.plain(rules.height, rules.width)
    for part, clip in zip(numbers, _batches(data, split, rules, num_frames, examples), strict=True):
        valid = np.array(part) < len(places)
        labels = np.where(valid[:, None, None, None], clip.labels, np.uint8(types.IGNORE))
        yield types.Clip(frames=clip.frames, labels=labels), valid
