"""Clips for training: the face of the data package; `whole_videos` has the videos for evaluation.

Every function takes the `data` section of the configuration. Two loaders give the same clips:
"numpy" from arrays in memory, "tf" through tf.data (TensorFlow is imported only there).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import augment, cutout, example_order, store, tf_loader, warp

LOADERS = ("auto", "tf", "numpy")
Indices = Sequence[int] | np.ndarray


def class_table(data: ml_collections.ConfigDict) -> types.ClassTable:
    """Names and colours of the train ids of a dataset."""
    store.check(data, "train")
    return store.source(data, "train").table if data.prepared else datasets.class_table(data)


def num_clips(data: ml_collections.ConfigDict, split: str, num_frames: int) -> int:
    """How many clips of `num_frames` frames a split has: what `load_clips` would return."""
    return len(store.index(data, split, num_frames).places)


def load_clips(
    data: ml_collections.ConfigDict, *, split: str, num_frames: int, indices: Indices | None = None
) -> types.Clip:
    """Clips of T = `num_frames` frames of a split in memory, in a fixed order, unaugmented: all, or those of `indices`.

    Of a dataset on disk only the frames of `indices` are read. Every clip of a split ends in the same target whatever T
    is, but for synthetic val/test, whose sequences are cut in pieces of T.

    Returns:
      frames u8 [N, T, H, W, 3], labels u8 [N, T, H, W].

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
    noisy = data.still_noise if data.still_noise == augment.ON_HISTORY else augment.NO_NOISE  # the target as it is
    rules = augment.plain(
        *store.size_of(data), jitter=float(data.jitter), is_still=True, motion=data.still_motion, noisy=noisy
    )
    examples = example_order.unaugmented(index.places, num_frames, seed_of(data.seed), map(int, numbers))
    own = (dataclasses.replace(example, places=place) for example, place in zip(examples, places, strict=True))
    return made(stored, rules, num_frames, own)


def seed_of(seed: int) -> int:
    """Of the random numbers of a loader: 32 bits."""
    return int(seed) & 0xFFFFFFFF


def rules_of(data: ml_collections.ConfigDict) -> augment.Rules:
    """How training clips are augmented; raises UserError where data.scale is no range."""
    low, high = (float(value) for value in data.scale)
    if not 0 < low <= high:
        raise errors.UserError(f"data.scale: ({low}, {high}) is no range of scales; use 0 < smallest <= largest")
    return augment.Rules(
        *store.size_of(data),
        crop_height=int(data.crop_height),
        crop_width=int(data.crop_width),
        scale=(low, high),
        jitter=float(data.jitter),
        flip=bool(data.flip),
        is_still=store.is_still(data),
        motion=str(data.still_motion),
        noisy=str(data.still_noise),
        objects=float(data.still_objects),
        object_ids=cutout.ids(class_table(data)) if data.still_objects else (),
        jitter_per_frame=bool(data.jitter_per_frame),
        max_ratio=float(data.crop_max_ratio),
        tries=int(data.crop_tries),
    )


def _uses_tf(data: ml_collections.ConfigDict) -> bool:
    if data.loader not in LOADERS:
        raise errors.UserError(f"data.loader: unknown loader '{data.loader}'; use one of {', '.join(LOADERS)}")
    return bool(data.loader == "tf" or (data.loader == "auto" and not datasets.of(data).is_computed))


def _history(data: ml_collections.ConfigDict, split: str, num_frames: int) -> example_order.History | None:
    """Where the distances of frames vary from example to example, None where they do not."""
    jitter = int(data.gap_jitter)
    if not jitter or num_frames == 1 or store.is_still(data):
        return None
    if datasets.of(data).is_computed:
        clips, length = store.computed_counts(data, split)
        places = np.arange(clips * length, dtype=np.int32)
        return example_order.History(places // length, places % length, gap=1, jitter=jitter)
    found = store.source(data, split).frames
    names = [frame.sequence for frame in found]
    starts = np.array([True, *(a != b for a, b in zip(names[:-1], names[1:], strict=True))])
    numbers = np.array([frame.number for frame in found], np.int64)
    return example_order.History(np.cumsum(starts), numbers, gap=int(data.frame_gap), jitter=jitter)


def made(
    stored: store.Store, rules: augment.Rules, num_frames: int, examples: Iterable[example_order.Example]
) -> types.Clip:
    """The clips of examples, from arrays in memory."""
    made = []
    for example in examples:
        frames, labels = stored.frames[example.places], stored.labels[example.places]
        if not rules.is_identity:
            words = warp.pack(frames, labels)
            frames, labels = augment.render(rules, words, example.uniforms, example.key, num_frames)
        made.append((frames, labels))
    return types.Clip(frames=np.stack([clip[0] for clip in made]), labels=np.stack([clip[1] for clip in made]))


def clips_of_examples(indices: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
    """Which clips the examples of these numbers, integers [n], are made from, in `train_batches` of the same `indices`
    and seed: example i B + j is number j of batch i."""
    chosen, numbers = np.asarray(indices, np.int64), np.asarray(numbers, np.int64)
    epochs, places = np.divmod(numbers, len(chosen))
    orders = {epoch: example_order.order_of(seed_of(seed), epoch, len(chosen)) for epoch in np.unique(epochs).tolist()}
    return chosen[[orders[epoch][at] for epoch, at in zip(epochs.tolist(), places.tolist(), strict=True)]]


def train_batches(
    data: ml_collections.ConfigDict,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    indices: Indices | None = None,
    part: example_order.Part = example_order.WHOLE,
) -> Iterator[types.Clip]:
    """Endless batches of augmented training clips, shuffled in every epoch. Batch i is a function of (seed, i) alone.

    Args:
      data: section of the configuration.
      batch_size: B, over all hosts.
      num_frames: T. Where synthetic clips are longer, any T consecutive frames of them.
      seed: of order and augmentation.
      indices: numbers of the clips to draw from, in the order of `load_clips`; all where None.
      part: number of the first batch, and this host among all.

    Returns:
      An iterator of clips u8 [B / hosts, T, crop_height, crop_width, ...]. Files are read as it goes on: one that is
      not as it should be raises UserError when its batch is asked for.

    Raises:
      UserError: unknown loader, no clip of that many frames, a clip number out of range, a batch that does not divide.
    """
    rules = rules_of(data)
    uses_tf = _uses_tf(data)  # an unknown loader is told before the disk is looked at
    index = store.index(data, "train", num_frames)
    places = index.places
    if indices is not None:
        chosen = np.asarray(indices, np.int64).reshape(-1)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(places):
            raise errors.UserError(
                f"train_batches: clip numbers must be in 0..{len(places) - 1} and at least one; got {len(chosen)}"
            )
        places = places[chosen]
    part.size(batch_size)
    history = _history(data, "train", num_frames)
    stream = example_order.Stream(places, index.spare, rules, num_frames, seed_of(seed), history)
    examples = stream.batches(batch_size, part)
    if uses_tf:
        decoder = tf_loader.decoder(data, "train")
        return tf_loader.batches(decoder, rules, num_frames, examples, workers=int(data.workers))
    stored = store.load(data, "train")
    return (made(stored, rules, num_frames, batch) for batch in examples)
