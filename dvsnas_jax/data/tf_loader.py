"""The tf.data loader: files are streamed, decoded and augmented in parallel, in a fixed order.

Order comes from the same generator as in the NumPy loader; random numbers are stateless, keyed by
(seed, example counter). The twin in NumPy averages where it makes frames smaller; here they are interpolated.
"""

from __future__ import annotations

import itertools
import types as pytypes
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import augment, classes, folders, store

_PIECE = 1024
"""Batches whose order is handed to tf.data at once."""


def tensorflow() -> pytypes.ModuleType:
    """TensorFlow, kept off the accelerators.

    Raises:
      UserError: it is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise errors.UserError(
            "data.loader 'tf' needs TensorFlow, which is not installed; install it or set data.loader to 'numpy'"
        ) from error
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        pass  # somebody uses TensorFlow on the accelerator already
    return tf


def _file_reader(tf: Any, root: str, split: str, size: tuple[int, int]) -> Any:
    """A function from a place in the index to its frame u8 [H, W, 3] and labels u8 [H, W]."""
    folders.check(root, split)
    found = folders.index(root, split)
    images, labels = (tf.constant([str(getattr(frame, kind)) for frame in found]) for kind in ("image", "label"))

    def nearest(total: Any, out: int) -> Any:
        return (2 * tf.range(out) + 1) * total // (2 * out)

    def read(place: Any) -> tuple[Any, Any]:
        image = tf.io.decode_png(tf.io.read_file(images[place]), channels=3)
        image = tf.image.resize(image, size, method="bilinear", antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
        label = tf.io.decode_png(tf.io.read_file(labels[place]), channels=1)[:, :, 0]
        label = tf.gather(
            tf.gather(label, nearest(tf.shape(label)[0], size[0])), nearest(tf.shape(label)[1], size[1]), axis=1
        )
        label = tf.where(label == classes.VOID, tf.constant(types.IGNORE, tf.uint8), label)
        return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(label, size)

    return read


def _memory_reader(tf: Any, stored: store.Store) -> Any:
    """The same from arrays in memory."""
    frames, labels = tf.constant(stored.frames), tf.constant(stored.labels)
    return lambda place: (frames[place], labels[place])


def _augment(tf: Any, rules: augment.Rules, frames: Any, labels: Any, key: Any) -> tuple[Any, Any]:
    """`augment.apply` on tensors; key: i64 [2]."""
    num_frames = frames.shape[0]
    uniforms = tf.random.stateless_uniform([augment.num_uniforms(num_frames)], seed=key)
    affine, color = augment.plan(rules, uniforms, num_frames, xp=tf)
    affine, color = tf.cast(affine, tf.float32), tf.cast(color, tf.float32)
    frames, labels = tf.cast(frames, tf.float32), labels[..., None]
    if not rules.keeps_geometry:
        a, b, c, d, e, f = tf.unstack(affine, axis=1)
        zero = tf.zeros_like(a)
        # from pixel centres at +0.5 to pixel centres at whole numbers
        maps = tf.stack([a, b, c + 0.5 * (a + b) - 0.5, d, e, f + 0.5 * (d + e) - 0.5, zero, zero], 1)

        def warp(images: Any, fill: float, interpolation: str) -> Any:
            return tf.raw_ops.ImageProjectiveTransformV3(
                images=images,
                transforms=maps,
                output_shape=(rules.crop_height, rules.crop_width),
                fill_value=fill,
                interpolation=interpolation,
                fill_mode="CONSTANT",
            )

        frames, labels = warp(frames, 0.0, "BILINEAR"), warp(labels, float(types.IGNORE), "NEAREST")
    if rules.jitter:
        matrix = tf.reshape(color, (num_frames, 3, 4))
        frames = tf.einsum("thwc,tdc->thwd", frames, matrix[:, :, :3]) + matrix[:, None, None, :, 3]
    if rules.noise:
        noise = tf.random.stateless_normal(frames[:-1].shape, seed=key + 1) * rules.noise
        frames = tf.concat([frames[:-1] + noise, frames[-1:]], 0)
    return tf.cast(tf.clip_by_value(tf.round(frames), 0.0, 255.0), tf.uint8), labels[..., 0]


def batches(
    data: ml_collections.ConfigDict,
    split: str,
    examples: Iterator[tuple[int, np.ndarray]],
    rules: augment.Rules,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
) -> Iterator[types.Clip]:
    """Endless batches, see `pipeline.train_batches`.

    Args:
      data: section of the configuration.
      split: train, val or test.
      examples: (counter, places i32 [T], or [1] for stills), endless.
      rules: of augmentation.
      batch_size: B.
      num_frames: T.
      seed: of the augmentation.

    Raises:
      UserError: TensorFlow is missing, or a file is not as it should be.
    """
    tf = tensorflow()
    if data.name == "synthetic":
        read = _memory_reader(tf, store.load(data, split))
    else:
        read = _file_reader(tf, store.folder(data), split, (int(data.height), int(data.width)))

    def make(counter: Any, places: Any) -> tuple[Any, Any]:
        clips = [read(place) for place in tf.unstack(places)]
        clips = clips * (num_frames if len(clips) < num_frames else 1)
        frames, labels = (tf.stack([clip[i] for clip in clips]) for i in range(2))
        if rules.is_identity:
            return frames, labels
        return _augment(tf, rules, frames, labels, tf.stack([tf.constant(seed, tf.int64), counter]))

    def stream() -> Iterator[types.Clip]:
        while True:  # the order comes in long pieces: a Python generator inside tf.data complains when the program ends
            piece = list(itertools.islice(examples, _PIECE * batch_size))
            counters, places = np.array([c for c, _ in piece], np.int64), np.stack([p for _, p in piece])
            dataset = tf.data.Dataset.from_tensor_slices((counters, places))
            dataset = dataset.map(
                tf.autograph.experimental.do_not_convert(make), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
            for frames, labels in dataset.batch(batch_size).prefetch(2).as_numpy_iterator():
                yield types.Clip(frames=frames, labels=labels)

    return stream()
