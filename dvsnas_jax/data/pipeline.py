"""Clips for training and sequences for evaluation: the face of the data package.

Every function takes the `data` section of the configuration. Two loaders give the same clips:
"numpy" from arrays in memory, "tf" through tf.data (TensorFlow is imported only there).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import augment, classes, store

LOADERS = ("auto", "tf", "numpy")
_STREAM_ORDER, _STREAM_AUGMENT, _STREAM_STILL = 101, 102, 103


def class_table(data: ml_collections.ConfigDict) -> types.ClassTable:
    """Names and colours of the train ids of a dataset."""
    store.check(data, "train")
    return classes.CAMVID


def num_clips(data: ml_collections.ConfigDict, split: str, num_frames: int) -> int:
    """How many clips of `num_frames` frames a split has: what `load_clips` would return."""
    return len(store.index(data, split, num_frames).places)


def load_clips(data: ml_collections.ConfigDict, *, split: str, num_frames: int) -> types.Clip:
    """All clips of a split in memory, in a fixed order, unaugmented.

    Args:
      data: section of the configuration.
      split: train, val or test.
      num_frames: T; 1 gives the target frames alone.

    Returns:
      frames u8 [N, T, H, W, 3], labels u8 [N, T, H, W]; every clip of a split ends in the same target whatever T is,
      but for synthetic val/test, whose sequences are cut in pieces of T.

    Raises:
      UserError: bad files, or no clip of that many frames.
    """
    index, stored = store.index(data, split, num_frames), store.load(data, split)
    frames, labels = stored.frames[index.places], stored.labels[index.places]
    if not store.is_still(data) or num_frames == 1:
        return types.Clip(frames=frames, labels=labels)
    rules = augment.plain(int(data.height), int(data.width), jitter=float(data.jitter), is_still=True)
    made = [
        augment.still_clip(
            frames[i, 0], labels[i, 0], num_frames, rules, np.random.default_rng((_seed(data.seed), _STREAM_STILL, i))
        )
        for i in range(len(frames))
    ]
    return types.Clip(frames=np.stack([clip[0] for clip in made]), labels=np.stack([clip[1] for clip in made]))


def sequences(data: ml_collections.ConfigDict, split: str) -> list[types.Sequence]:
    """Whole videos for evaluation frame by frame.

    Synthetic: the clips of the split, with true flow and clean frames. CamVid: maximal runs of
    labelled frames `eval_gap` apart (training stills: each frame by itself).

    Raises:
      UserError: bad files, or no two frames `eval_gap` apart.
    """
    return store.sequences(data, split)


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
    )


def _order(seed: int, num: int, counter: int, spare: int, cache: dict[int, np.ndarray]) -> tuple[int, int]:
    """Clip and start offset of the example `counter`: every epoch is another permutation."""
    epoch, place = divmod(counter, num)
    if epoch not in cache:
        cache.clear()
        rng = np.random.default_rng((seed, _STREAM_ORDER, epoch))
        cache[epoch] = np.stack([rng.permutation(num), rng.integers(0, spare + 1, num)])
    clip, offset = cache[epoch][:, place]
    return int(clip), int(offset)


def _examples(places: np.ndarray, spare: int, seed: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (counter, places of the frames i32 [T]) from example `first` on."""
    cache: dict[int, np.ndarray] = {}
    counter = first
    while True:
        clip, offset = _order(seed, len(places), counter, spare, cache)
        yield counter, (places[clip] - offset).astype(np.int32)
        counter += 1


def _numpy_batches(
    stored: store.Store,
    examples: Iterator[tuple[int, np.ndarray]],
    rules: augment.Rules,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
) -> Iterator[types.Clip]:
    shape = (batch_size, num_frames, rules.crop_height, rules.crop_width)
    while True:
        frames, labels = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
        for i in range(batch_size):
            counter, places = next(examples)
            if len(places) < num_frames:
                places = np.repeat(places, num_frames)
            rng = np.random.default_rng((seed, _STREAM_AUGMENT, counter))
            frames[i], labels[i] = augment.apply(rules, stored.frames[places], stored.labels[places], rng)
        yield types.Clip(frames=frames, labels=labels)


def train_batches(
    data: ml_collections.ConfigDict,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    start_step: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    split: str = "train",
) -> Iterator[types.Clip]:
    """Endless batches of augmented clips, shuffled in every epoch.

    Batch i is a function of (seed, i) alone: an iterator made with start_step=i begins with it.

    Args:
      data: section of the configuration.
      batch_size: B.
      num_frames: T. Where synthetic training clips are longer, any T consecutive frames of them.
      seed: of order and augmentation.
      start_step: number of the first batch.
      indices: numbers of the clips to draw from, in the order of `load_clips`; all where None.
      split: train, val or test.

    Returns:
      An iterator of clips u8 [B, T, crop_height, crop_width, ...].

    Raises:
      UserError: bad files, unknown loader, no clip of that many frames, a clip number out of range.
    """
    if data.loader not in LOADERS:
        raise errors.UserError(f"data.loader: unknown loader '{data.loader}'; use one of {', '.join(LOADERS)}")
    index, rules = store.index(data, split, num_frames), _rules(data)
    places = index.places
    if indices is not None:
        chosen = np.asarray(indices, np.int64).reshape(-1)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(places):
            raise errors.UserError(
                f"train_batches: clip numbers must be in 0..{len(places) - 1} and at least one; got {len(chosen)}"
            )
        places = places[chosen]
    examples = _examples(places, index.spare, _seed(seed), start_step * batch_size)
    sizes = {"batch_size": batch_size, "num_frames": num_frames, "seed": _seed(seed)}
    if data.loader == "tf" or (data.loader == "auto" and data.name != "synthetic"):
        from dvsnas_jax.data import tf_loader

        return tf_loader.batches(data, split, examples, rules, **sizes)
    return _numpy_batches(store.load(data, split), examples, rules, **sizes)
