"""Encoded frames and labels to pixels, in TensorFlow operations; Python (`decode`) only for rare kinds of files."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import decode, encoded_frames

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH_AND_KIND = 24
"""Where a PNG file holds its bit depth and its kind of colour, a byte each."""
_IDS, _COLORS = (b"\x08\x00",), (b"\x08\x02", b"\x08\x06")
"""8 bits of grey; 8 bits of colour without and with alpha: the kinds that TensorFlow decodes as they are."""
UNKNOWN = np.uint8(254)
"""In place of the train id of an unknown value."""


def reader(tf: Any, media: encoded_frames.Media) -> Any:
    """A function from places i32 [T] to T encoded images and T encoded labels (b"" = none), string []."""
    listed = media.source.frames
    images = tf.constant([str(frame.image) for frame in listed])
    labels = tf.constant([str(frame.label or "") for frame in listed])
    is_whole = all(frame.label for frame in listed)

    def read_label(path: Any) -> Any:
        return tf.io.read_file(path) if is_whole else tf.cond(path == "", lambda: "", lambda: tf.io.read_file(path))

    def read_files(places: Any) -> list[list[Any]]:
        chosen = tf.unstack(places)
        return [[tf.io.read_file(images[place]) for place in chosen], [read_label(labels[place]) for place in chosen]]

    def read_records(places: Any) -> list[list[Any]]:
        def read(places: np.ndarray) -> list[np.ndarray]:
            return [np.array(contents, object) for contents in media.read(places)]

        parts = tf.numpy_function(read, [places], [tf.string, tf.string], stateful=False)
        return [tf.unstack(tf.ensure_shape(part, places.shape)) for part in parts]

    return read_files if isinstance(media, encoded_frames.FolderMedia) else read_records


def clip(tf: Any, images: list[Any], labels: list[Any], code: frames.LabelCode, size: tuple[int, int]) -> list[Any]:
    """Decodes the frames of a clip of T images and T labels, string [], to pixels of size (height, width).

    Returns:
      T images u8 [H, W, 3], then T arrays [H, W] of what `train_ids` takes: u8 ids, or u32 colours
      red | green << 8 | blue << 16 | anything << 24. A frame without labels (b"") has any values.
    """
    numbers = range(len(images))
    channels, dtype = (4, tf.uint32) if code.is_color else (1, tf.uint8)

    def usual() -> list[Any]:
        pixels = [tf.ensure_shape(tf.io.decode_png(images[t], channels=3), (*size, 3)) for t in numbers]
        values = [tf.ensure_shape(tf.io.decode_png(labels[t], channels=channels), (*size, channels)) for t in numbers]
        return pixels + [tf.bitcast(each, dtype) if code.is_color else tf.reshape(each, size) for each in values]

    def general() -> list[Any]:
        found = [_image(tf, images[t], size) for t in numbers]
        return [pixels for pixels, _ in found] + [_label(tf, labels[t], code, found[t][1], size) for t in numbers]

    # One decision for what is nearly always so: PNG files of the wanted size. The rest is in a function of its own:
    # TensorFlow visits every operation of a branch that is part of the same graph, taken or not.
    heads = tf.stack([tf.strings.substr(each, 0, _DEPTH_AND_KIND) for each in images])
    label_heads = tf.stack([tf.strings.substr(each, 0, _DEPTH_AND_KIND + 2) for each in labels])
    is_plain = tf.stack([label_heads == _header(size) + kind for kind in (*_kinds(code), b"")])
    is_usual = tf.reduce_all(heads == _header(size)) & tf.reduce_all(tf.reduce_any(is_plain, 0))
    is_usual = tf.cond(is_usual, lambda: _is_common(tf, [*images, *labels]), lambda: False)
    apart = tf.function(general, autograph=False, experimental_attributes={"_noinline": True})
    return tf.cond(is_usual, usual, apart)


def _is_common(tf: Any, contents: list[Any]) -> Any:
    """Whether TensorFlow, which knows no orientation, reads all of them as Pillow does: bool []."""
    is_common = tf.numpy_function(
        lambda *each: np.bool_(all(map(image_files.is_common, each))), contents, tf.bool, stateful=False
    )
    return tf.ensure_shape(is_common, ())


def _kinds(code: frames.LabelCode) -> tuple[bytes, ...]:
    """Kinds of label files that TensorFlow decodes to what is in them."""
    return _COLORS if code.is_color else _IDS if code.raw.max() <= 255 else ()


def _header(size: tuple[int, int]) -> bytes:
    """How a PNG file of so many pixels begins."""
    return _PNG + b"\x00\x00\x00\x0dIHDR" + size[1].to_bytes(4, "big") + size[0].to_bytes(4, "big")


def _image(tf: Any, content: Any, size: tuple[int, int]) -> tuple[Any, Any]:
    """One encoded frame, string [], upright, resized: u8 [H, W, 3] and the size before i32 [2]."""

    def resized() -> Any:
        small = tf.image.resize(pixels, size, method="bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(small), 0.0, 255.0), tf.uint8)

    def decoded_slowly() -> Any:  # turned pictures, other kinds of files and of colour
        read = functools.partial(image_files.read_image, pathlib.Path("image"))
        return tf.ensure_shape(tf.numpy_function(read, [content], tf.uint8, stateful=False), (None, None, 3))

    def decoded() -> Any:
        return tf.cond(
            tf.strings.substr(content, 0, len(_PNG)) == _PNG,
            lambda: tf.io.decode_png(content, channels=3),
            lambda: tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"),  # as Pillow
        )

    pixels = tf.cond(_is_common(tf, [content]) & (content != b""), decoded, decoded_slowly)
    stored = tf.shape(pixels)[:2]
    pixels = tf.cond(tf.reduce_all(stored == size), lambda: pixels, resized)
    return tf.ensure_shape(pixels, (*size, 3)), stored


def _label(tf: Any, content: Any, code: frames.LabelCode, stored: Any, size: tuple[int, int]) -> Any:
    """One encoded label image, string [], as the values in it (zeros where there is none), resized, as `clip` says.

    `stored` i32 [2] is the size of its frame, upright.
    """
    dtype = tf.uint32 if code.is_color else tf.uint8

    def decoded() -> Any:
        pixels = tf.io.decode_png(content, channels=4 if code.is_color else 1)
        return tf.bitcast(pixels, tf.uint32) if code.is_color else pixels[..., 0]

    def decoded_slowly() -> Any:
        values = tf.numpy_function(lambda data: _as_values(data, code), [content], dtype, stateful=False)
        return tf.ensure_shape(values, (None, None))

    def known() -> Any:
        header = tf.strings.substr(content, _DEPTH_AND_KIND, 2)
        is_plain = tf.reduce_any([header == kind for kind in (*_kinds(code), b"")])
        is_plain &= (tf.strings.substr(content, 0, len(_PNG)) == _PNG) & _is_common(tf, [content])
        pixels = tf.cond(is_plain, decoded, decoded_slowly)
        with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(pixels), stored)]):
            return tf.cond(tf.reduce_all(stored == size), lambda: pixels, lambda: _nearest(tf, pixels, size))

    nothing = tf.zeros(size, dtype)
    return tf.ensure_shape(tf.cond(content == b"", lambda: nothing, known), size)


def _nearest(tf: Any, pixels: Any, size: tuple[int, int]) -> Any:
    """`image_files.nearest` on both axes."""
    for axis, out in enumerate(size):
        pixels = tf.gather(pixels, (2 * tf.range(out) + 1) * tf.shape(pixels)[axis] // (2 * out), axis=axis)
    return pixels


def _as_values(content: bytes, code: frames.LabelCode) -> np.ndarray:
    """Palettes, other depths and turned labels, by way of the train ids: values that `train_ids` understands."""
    train = decode.read_label(pathlib.Path("label"), code, content)
    table = np.zeros(256, np.uint32 if code.is_color else np.uint8)
    for value, found in _values(code).items():
        table[found] = value
    return table[train]


def _values(code: frames.LabelCode) -> dict[int, int]:
    """Values that come out of `clip`, with their train ids."""
    pairs = {int(raw): int(train) for raw, train in zip(code.raw, code.train, strict=True)}
    if code.is_color:
        return {raw >> 16 | raw & 0xFF00 | (raw & 0xFF) << 16: train for raw, train in pairs.items()}
    if code.raw.max() > 255:  # no file is read in the fast way then
        return {train: train for train in pairs.values()}
    return {raw: train for raw, train in pairs.items() if raw >= 0}


def comes_late(code: frames.LabelCode) -> bool:
    """Ids in the files may be moved as they are, 255 beside the frame, and become train ids in the end."""
    return not code.is_color and _values(code).get(types.IGNORE, types.IGNORE) == types.IGNORE


def train_ids(tf: Any, values: Any, code: frames.LabelCode) -> Any:
    """Train ids u8 of label values from `clip`, of any shape: a chain of selections, of which XLA makes one fast loop.

    `UNKNOWN` for a value that the code does not know; 255 becomes 255 where `comes_late`.
    """
    table = _values(code)
    if code.is_color:
        values = values & np.uint32(0xFFFFFF)
    elif comes_late(code):
        table[types.IGNORE] = types.IGNORE
    found = tf.fill(values.shape, UNKNOWN)
    for first, last, train, is_shifted in _runs(table):
        to = tf.cast(values, tf.uint8) + np.uint8((train - first) % 256) if is_shifted else np.uint8(train)
        is_in = values == first if first == last else (values >= first) & (values <= last)
        found = tf.where(is_in, to, found)
    return found


def _runs(table: dict[int, int]) -> list[tuple[int, int, int, bool]]:
    """A table as runs of values (first, last, train id of the first, whether train ids rise with the values)."""
    runs: list[tuple[int, int, int, bool]] = []
    for value, train in sorted(table.items()):
        if runs and value == runs[-1][1] + 1:
            first, last, start, is_shifted = runs[-1]
            if train == start + value - first and (is_shifted or first == last):
                runs[-1] = (first, value, start, True)
                continue
            if train == start and (not is_shifted or first == last):
                runs[-1] = (first, value, start, False)
                continue
        runs.append((value, value, train, False))
    return runs
