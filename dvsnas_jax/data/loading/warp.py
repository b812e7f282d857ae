"""Resampling and colours of packed pixels: red | green << 8 | blue << 16 | label << 24 in one u32.

One word a pixel moves frame and labels together, and two channels are interpolated by one multiplication. Every
function takes the array module and runs on NumPy arrays and, with TensorFlow in NumPy's place, on tensors: integers,
so both give the same bits (colours: up to the rounding of a float).

On tensors each stage wants to be an XLA program of its own: in one loop with the next, its work would be repeated for
each pixel that the next one looks at. Columns are resampled as rows of the transposed image: XLA makes vector
instructions of it, three times as fast (two frames of 480x360: 0.3 against 0.9 ms).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

_WORD = np.uint32
OUTSIDE = _WORD(0xFF000000)
"""Black, labelled `types.IGNORE`."""
_RED_BLUE, _LABEL, _BYTE = _WORD(0xFF00FF), _WORD(0xFF000000), _WORD(0xFF)
_8, _16, _24 = _WORD(1 << 8), _WORD(1 << 16), _WORD(1 << 24)
_SHIFTS = (_WORD(1), _8, _16)
_ROUNDING = np.float32(1 << 23)
"""From here on, floats are whole numbers."""
_NOISE_MEAN, _NOISE_STD = 4 * 127.5, (4 * (256**2 - 1) / 12) ** 0.5
"""Of the sum of four random bytes."""

Stage = Callable[[Any, Any, Any, Any, Any], Any]
"""(array module, words u32, maps f32 [T, 8 or 17], colours f32 [T, 12], key u32) -> words."""


def cast(xp: Any, array: Any, dtype: Any) -> Any:
    """`array` as another type."""
    return array.astype(dtype) if xp is np else xp.cast(array, dtype)


def take(xp: Any, array: Any, places: Any, axis: int) -> Any:
    """Entries of an axis."""
    return np.take(array, places, axis=axis) if xp is np else xp.gather(array, places, axis=axis)


def _bits(xp: Any, array: Any) -> Any:
    """The bits of floats f32 as u32."""
    return array.view(np.uint32) if xp is np else xp.bitcast(array, np.uint32)


def count(xp: Any, is_true: Any) -> Any:
    """How many are true, i32."""
    return np.sum(is_true, dtype=np.int32) if xp is np else xp.reduce_sum(xp.cast(is_true, np.int32))


def pack(frames: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Words u32 [..., H, W] of frames u8 [..., H, W, 3] and labels u8 [..., H, W]."""
    return np.ascontiguousarray(np.concatenate([frames, labels[..., None]], -1)).view(np.uint32)[..., 0]


def unpack(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames u8 [..., H, W, 3] and labels u8 [..., H, W] of words u32 [..., H, W]."""
    parts = np.ascontiguousarray(words)[..., None].view(np.uint8)
    return parts[..., :3], parts[..., 3]


def stages(rules: Any) -> list[Stage]:
    """What `augment.Rules` ask for, one after the other, from words T x [H, W] ([1, H, W] for stills) to words
    [T, crop_height, crop_width]."""
    colors: list[Stage] = [functools.partial(_colors, rules)] if rules.jitter else []
    if rules.is_still:
        return [functools.partial(_perspective, rules), *colors]
    if rules.keeps_geometry:
        return colors
    return [functools.partial(_rows, rules), functools.partial(_columns, rules), _transposed]


def _blend(xp: Any, a: Any, b: Any, part: Any) -> Any:
    """Words between a and b; part: u32, 0 (a) to 256 (b). The label is that of the nearer one."""
    rest = _8 - part
    red_blue = ((a & _RED_BLUE) * rest + (b & _RED_BLUE) * part + _WORD(0x800080)) // _8 & _RED_BLUE
    green = ((a // _8 & _BYTE) * rest + (b // _8 & _BYTE) * part + _WORD(128)) & _WORD(0xFF00)
    return red_blue | green | (xp.where(part < _WORD(128), a, b) & _LABEL)


def _neighbours(xp: Any, at: Any, size: int) -> tuple[Any, Any, Any, Any]:
    """Places of the two pixels around a coordinate, the part (0..256) of the second, and whether it is inside."""
    low = xp.floor(at - 0.5)
    part = cast(xp, (at - 0.5 - low) * 256 + 0.5, np.uint32)
    first = cast(xp, low, np.int32)
    first, second = (xp.minimum(xp.maximum(place, 0), size - 1) for place in (first, first + 1))
    return first, second, part, (at >= 0.0) & (at < float(size))  # a far coordinate could overflow an integer


def _centres(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32) + np.float32(0.5)


def _rows(rules: Any, xp: Any, words: Any, maps: Any, color: Any, _: Any) -> Any:
    """The vertical half of an axis-parallel map, and the colours, in one loop: T x [H, W] -> T x [crop_height, W]."""
    at = _centres(rules.crop_height) * maps[0, 4] + maps[0, 5]
    first, second, part, is_inside = _neighbours(xp, at, rules.height)
    done = []
    for t in range(color.shape[0]):  # frame by frame, so that what is the same for all pixels of a loop is a scalar
        mixed = _blend(xp, take(xp, words[t], first, 0), take(xp, words[t], second, 0), part[:, None])
        if rules.jitter:
            mixed = _recolored(xp, mixed, [color[t, i] for i in range(12)])
        done.append(xp.where(is_inside[:, None], mixed, OUTSIDE))
    return done


def _columns(rules: Any, xp: Any, words: Any, maps: Any, *_: Any) -> Any:
    """The horizontal half: T x [h, W] -> T x [crop_width, h]."""
    at = _centres(rules.crop_width) * maps[0, 0] + maps[0, 2]
    first, second, part, is_inside = _neighbours(xp, at, rules.width)
    done = []
    for frame in words:
        frame = xp.transpose(frame)
        mixed = _blend(xp, take(xp, frame, first, 0), take(xp, frame, second, 0), part[:, None])
        done.append(xp.where(is_inside[:, None], mixed, OUTSIDE))
    return done


def _transposed(xp: Any, words: Any, *_: Any) -> Any:
    """T x [crop_width, h] -> [T, h, crop_width]."""
    return xp.stack([xp.transpose(frame) for frame in words])


def _perspective(rules: Any, xp: Any, words: Any, maps: Any, *_: Any) -> Any:
    """Any map, another for every frame, of one still: [1, H, W] -> [T, crop_height, crop_width].

    [2, H, W]: the second says by its labels where an object is that has maps of its own; it is pasted over.
    """
    flat = xp.reshape(words, (-1, rules.height * rules.width))
    found = _mapped(rules, xp, flat[0], maps)
    if not rules.has_objects:
        return found
    is_object = _mapped(rules, xp, flat[1], maps[:, 8:], outside=_WORD(0)) >= _24
    return xp.where(is_object, _mapped(rules, xp, flat[0], maps[:, 8:]), found)


def _mapped(rules: Any, xp: Any, flat: Any, maps: Any, outside: np.uint32 = OUTSIDE) -> Any:
    """The pixels [H W] of one still by the maps of T frames, [T, crop_height, crop_width]."""
    y, x = _centres(rules.crop_height)[:, None], _centres(rules.crop_width)
    a, b, c, d, e, f, g, h = (maps[:, i][:, None, None] for i in range(8))
    depth = g * x + h * y + 1.0
    x0, x1, part_x, in_x = _neighbours(xp, (a * x + b * y + c) / depth, rules.width)
    y0, y1, part_y, in_y = _neighbours(xp, (d * x + e * y + f) / depth, rules.height)
    top, bottom = (
        _blend(xp, take(xp, flat, row * rules.width + x0, 0), take(xp, flat, row * rules.width + x1, 0), part_x)
        for row in (y0, y1)
    )
    return xp.where(in_x & in_y, _blend(xp, top, bottom, part_y), outside)


def _colors(rules: Any, xp: Any, words: Any, _: Any, color: Any, key: Any) -> Any:
    """Colours of each frame, and noise on those of stills: T x [h, w] -> [T, h, w]."""
    done, num_frames = [], color.shape[0]
    for t in range(num_frames):
        weights = [color[t, i] for i in range(12)]
        noise = None
        if deviation := rules.noise(t, num_frames):
            shape, frame_key = (rules.crop_height, rules.crop_width), key ^ _WORD(t * 0x85EBCA6B % (1 << 32))
            noise = [np.float32(deviation) * _normal(xp, shape, frame_key, i) for i in range(3)]
        done.append(_recolored(xp, words[t], weights, noise))
    return xp.stack(done)


def _recolored(xp: Any, words: Any, weights: list[Any], noise: list[Any] | None = None) -> Any:
    """A 3x4 matrix on (r, g, b, 1)."""
    # By way of i32: processors convert between it and floats at once, but not between u32 and floats.
    channels = [cast(xp, cast(xp, words // shift & _BYTE, np.int32), np.float32) for shift in _SHIFTS]
    result = words & _LABEL
    for i, shift in enumerate(_SHIFTS):
        value = weights[4 * i] * channels[0] + weights[4 * i + 1] * channels[1] + weights[4 * i + 2] * channels[2]
        value = value + weights[4 * i + 3]
        if noise is not None:
            value = value + noise[i]
        value = xp.minimum(xp.maximum(value, np.float32(0)), np.float32(255))
        # The sum has the rounded value in its last bits; a cast would look out for infinities and take longer.
        result = result | (_bits(xp, value + _ROUNDING) & _BYTE) * shift
    return result


def _normal(xp: Any, shape: tuple[int, int], key: Any, channel: int) -> Any:
    """Nearly normal numbers f32 (mean 0, deviation 1) from a hash of key, place and channel (Wellons' lowbias32)."""
    row, column = (np.arange(size, dtype=np.uint32) for size in shape)
    # Small constants, put together by the program.
    place = xp.reshape(row * _WORD(3 * shape[1]), (-1, 1)) + (column * _WORD(3) + _WORD(channel))
    bits = place * _WORD(0x9E3779B1) + key
    for shift, factor in ((_16, 0x7FEB352D), (_WORD(1 << 15), 0x846CA68B)):
        bits = (bits ^ bits // shift) * _WORD(factor)
    bits = bits ^ bits // _16
    total = (bits & _BYTE) + (bits // _8 & _BYTE) + (bits // _16 & _BYTE) + bits // _24
    return (cast(xp, total, np.float32) - np.float32(_NOISE_MEAN)) / np.float32(_NOISE_STD)
