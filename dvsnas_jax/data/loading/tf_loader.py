"""The tf.data loader: files are streamed, decoded and augmented in parallel, in a fixed order.

Chance is decided before (`example_order`), by the same numbers as in the NumPy loader. Pixels are moved by the
functions of `warp`, each compiled by XLA; TensorFlow's own operations for it take several times as long as the decoding
of a PNG.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types as pytypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import cores, errors, types
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import labels as labels_lib
from dvsnas_jax.data.loading import augment, cutout, encoded_frames, example_order, store, tf_decode, warp

_PIECE = 2048
"""Examples, roughly, whose order is handed to tf.data at once."""


Batch = Sequence[example_order.Example]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How the frames of a clip are read."""

    read: Callable[[Any], Sequence[Any]]
    """Places i32 [T] -> tensors: words u32 [T, H, W] where `code` is None, else images, labels and has_label."""
    code: labels_lib.LabelCode | None = None  # of the labels
    explain: Callable[[Batch], None] = lambda batch: None  # names the file of a batch that cannot be made, by an error


@functools.cache
def tensorflow() -> pytypes.ModuleType:
    """TensorFlow, kept off the accelerators, with one thread an operation: the clips are what is done in parallel."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise errors.UserError(
            "data.loader: 'tf' needs TensorFlow, which is not installed; set data.loader to 'numpy', or run: "
            "pip install tensorflow"
        ) from error
    try:
        tf.config.set_visible_devices([], "GPU")
        # XLA's programs take all threads of the process, whatever the options of a dataset say.
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:
        pass  # somebody uses TensorFlow already
    return tf


def compiled(tf: Any, fn: Callable[..., Any]) -> Any:
    """`fn` as one XLA program."""
    return tf.function(fn, jit_compile=True, autograph=False)


def decoder(data: ml_collections.ConfigDict, split: str) -> Decoder:
    """Of the frames and labels of a split at the size of the configuration: synthetic ones from memory, else files."""
    tf, size = tensorflow(), store.size_of(data)
    if datasets.of(data).is_computed:
        stored = store.load(data, split)
        words = tf.constant(warp.pack(stored.frames, stored.labels))
        return Decoder(lambda places: [tf.gather(words, places)])
    media = encoded_frames.open_media(data, split)
    read_files, code = tf_decode.reader(tf, media), media.source.code

    def read(places: Any) -> Sequence[Any]:
        images, labels = read_files(places)
        return [*tf_decode.clip(tf, images, labels, code, size), tf.stack(labels) != b""]

    def explain(batch: Batch) -> None:
        for place in itertools.chain.from_iterable(example.places for example in batch):
            encoded_frames.load(media, place, size, as_bytes=True)

    return Decoder(read, code, explain)


class _Programs:
    """The XLA programs that make a clip, one after the other; each knows nothing but shapes, rules and label code."""

    def __init__(self, rules: augment.Rules, code: labels_lib.LabelCode | None) -> None:
        tf = self._tf = tensorflow()
        self._is_packed = code is None
        self._early = self._late = lambda labels: labels
        if code is not None and tf_decode.comes_late(code):
            self._late = functools.partial(tf_decode.train_ids, tf, code=code)
        elif code is not None:
            self._early = functools.partial(tf_decode.train_ids, tf, code=code)
        stages: list[Any] = [functools.partial(stage, tf) for stage in warp.stages(rules)]
        if rules.is_still or rules.num_tries > 1 or not stages:  # packed words are looked at more than once
            stages.insert(0, lambda words, *_: tf.stack(words))
        self._stage = stages[0]
        self.first = compiled(tf, self._first)
        self.middle = [compiled(tf, stage) for stage in stages[1:]]
        self.last = compiled(tf, self._last)
        self.target = compiled(tf, lambda words: self._late(tf.cast(words[-1] // np.uint32(1 << 24), tf.uint8)))

    def _first(self, maps: Any, color: Any, key: Any, *parts: Any) -> Any:
        return self._stage(parts[0] if self._is_packed else self._pack(*parts), maps, color, key)

    def _last(self, pixels: Any) -> tuple[Any, Any]:
        return pixels[..., :3], self._late(pixels[..., 3])

    def _pack(self, *parts: Any) -> list[Any]:
        tf, words, half = self._tf, [], len(parts) // 2
        for t, (image, labels) in enumerate(zip(parts[:half], parts[half:-1], strict=True)):
            labels = tf.where(parts[-1][t], self._early(labels), np.uint8(types.IGNORE))
            channels = [tf.cast(part, tf.uint32) for part in (*tf.unstack(image, axis=-1), labels)]
            words.append(sum(channel * np.uint32(1 << 8 * i) for i, channel in enumerate(channels)))
        return words


@functools.lru_cache(maxsize=32)
def _programs(rules: augment.Rules, code: tuple[bytes, bytes, bool] | None) -> _Programs:
    """Made once for streams that differ in order alone: XLA takes its time."""
    if code is None:
        return _Programs(rules, None)
    raw, train = np.frombuffer(code[0], np.int64), np.frombuffer(code[1], np.uint8)
    return _Programs(rules, labels_lib.LabelCode(raw, train, code[2]))


def _clip_maker(tf: Any, source: Decoder, rules: augment.Rules) -> Callable[..., tuple[Any, Any]]:
    """What makes one clip of a plan: a function of places i32 [T or 1], maps f32 [tries, T, 8 or 17], colours f32
    [T, 12] and key u32 [], to frames u8 [T, crop_height, crop_width, 3] and labels u8 [T, crop_height, crop_width]."""
    code = source.code
    key_of_code = code and (code.raw.astype(np.int64).tobytes(), code.train.astype(np.uint8).tobytes(), code.is_color)
    programs = _programs(rules, key_of_code)
    objects_layer = functools.partial(_objects_layer, rules.object_ids)

    def make(places: Any, maps: Any, color: Any, key: Any) -> tuple[Any, Any]:
        chosen = maps[0]
        words = programs.first(chosen, color, key, *source.read(places))
        if rules.num_tries > 1:
            chosen = augment.choose_crop(rules, maps, programs.target(words), xp=tf)
        if rules.has_objects:
            own = tf.numpy_function(objects_layer, [programs.target(words), chosen[-1, -1]], tf.uint32)
            words = tf.concat([words, tf.reshape(own, (1, rules.height, rules.width))], 0)
        for program in programs.middle:
            words = program(words, chosen, color, key)
        found, labels = programs.last(tf.bitcast(words, tf.uint8))
        is_unknown = tf.reduce_any(labels == tf_decode.UNKNOWN)
        with tf.control_dependencies([tf.debugging.Assert(~is_unknown, ["unknown label"])]):
            return found, tf.identity(labels)

    return make


def _objects_layer(classes: tuple[int, ...], labels: np.ndarray, number: np.float32) -> np.ndarray:
    return cutout.layer(labels, classes, float(number))


def num_workers(workers: int) -> int:
    """Clips that are made at the same time; 0 = one for each core of this process."""
    return workers or cores.count()


def batched(tf: Any, dataset: Any, make_fn: Callable[..., Any], batch_size: int, *, workers: int) -> Any:
    """A dataset of whole batches of what `make_fn` makes, so many elements at a time, in order."""
    options = tf.data.Options()
    options.deterministic = True
    # There is nothing to tune, and to let go of a tuned iterator takes as long as the tuner happens to sleep: seconds.
    options.autotune.enabled = False
    made = dataset.map(tf.autograph.experimental.do_not_convert(make_fn), num_parallel_calls=num_workers(workers))
    return made.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)


def batches(
    source: Decoder, rules: augment.Rules, num_frames: int, examples: Iterator[Batch], *, workers: int
) -> Iterator[types.Clip]:
    """Batches u8 [B, T, crop_height, crop_width, ...] of `num_frames` = T, in the order of `examples`.

    `workers` clips are made at the same time, 0 = one for each core; they change no batch.

    Raises:
      UserError: a file is not as it should be.
    """
    tf = tensorflow()
    make = tf.function(_clip_maker(tf, source, rules), autograph=False)  # traced once for all pieces

    def prepare() -> tuple[list[Batch], Any]:
        piece = _take(examples, _PIECE)
        if not piece:
            return piece, None
        dataset = tf.data.Dataset.from_tensor_slices(_tensors(rules, num_frames, piece))
        return piece, batched(tf, dataset, make, len(piece[0]), workers=workers).as_numpy_iterator()

    running: list[Any] = []
    # Readers of prepared datasets are Python: their threads must end before the interpreter does.
    at_exit = weakref.finalize(source, running.clear)
    with futures.ThreadPoolExecutor(1) as pool:
        piece, iterator = prepare()
        while piece:
            running[:] = [iterator]
            del iterator
            for number, batch in enumerate(piece):
                if number == len(piece) // 2:
                    upcoming = pool.submit(prepare)  # takes a third of a second
                try:
                    found, labels = next(running[0])
                except tf.errors.OpError:
                    source.explain(batch)
                    raise
                yield types.Clip(frames=found, labels=labels)
            piece, iterator = upcoming.result()
    at_exit.detach()


def _tensors(rules: augment.Rules, num_frames: int, piece: Sequence[Batch]) -> tuple[np.ndarray, ...]:
    """Places, maps, colours and keys of the examples of some batches, each [E, ...]."""
    flat = list(itertools.chain.from_iterable(piece))
    places, uniforms, key = (np.stack([getattr(each, name) for each in flat]) for name in ("places", "uniforms", "key"))
    return places, *augment.plan(rules, uniforms, num_frames), key


def _take(examples: Iterator[Batch], wanted: int) -> list[Batch]:
    """Whole batches of about so many examples, at least one; none where they have ended."""
    first = next(examples, None)
    if first is None:
        return []
    return [first, *itertools.islice(examples, max(wanted // max(len(first), 1) - 1, 0))]
