"""Clip-consistent augmentation, and histories made from stills: random numbers become maps and colour matrices.

Both loaders take `plan`'s maps, one a frame, and have `warp` carry them out. Coordinates have pixel centres at +0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data.loading import warp

_NUM_MOTIONS = 6
_NUM_COLORS = 3
NUM_SHARED = 4 + _NUM_COLORS + _NUM_MOTIONS
"""Uniform numbers of a clip: scale, crop y, crop x, mirror, colours, motion; each frame has NUM_PER_FRAME more."""
NUM_PER_FRAME = _NUM_MOTIONS + 1 + _NUM_COLORS
_COLORS, _MOTION = 4, 4 + _NUM_COLORS
_FRAME_GAIN, _FRAME_COLORS = _NUM_MOTIONS, _NUM_MOTIONS + 1
_GRAY = (0.299, 0.587, 0.114)
_STILL_STEP = (0.035, 0.02, 0.008, 0.012, 0.008, 0.008)
"""Stills: largest motion per frame: zoom, shift in x (image widths), shift in y (image heights), rotation (radians),
perspective in x and in y (change of scale over the image)."""
_STILL_GAIN, _STILL_NOISE = 0.4, 15.0
"""Stills: change of exposure, and deviation of the noise (grey levels), of a history frame per unit of jitter."""
_GRID = 24
"""The share of a class in a crop is counted at so many points in y and in x."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What to do at random: stored frames of height x width pixels become crops of crop_height x crop_width."""

    height: int
    width: int
    crop_height: int
    crop_width: int
    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest
    jitter: float = 0.0  # largest relative change of brightness, contrast, saturation
    flip: bool = False  # mirror every second clip
    is_still: bool = False  # make the history by camera motions of the last frame
    jitter_per_frame: bool = False  # colours change from frame to frame
    max_ratio: float = 1.0  # a crop whose commonest class has this share or more of the labelled pixels is drawn again
    tries: int = 1  # how often a crop is drawn at most

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on history frames, grey levels."""
        return _STILL_NOISE * self.jitter if self.is_still else 0.0

    @property
    def is_identity(self) -> bool:
        """Nothing is changed at all."""
        return self.keeps_geometry and self.jitter == 0

    @property
    def keeps_geometry(self) -> bool:
        """No pixel moves."""
        same_size = (self.crop_height, self.crop_width) == (self.height, self.width)
        return same_size and tuple(self.scale) == (1.0, 1.0) and not self.flip and not self.is_still

    @property
    def num_tries(self) -> int:
        """Crops drawn for a clip."""
        return self.tries if self.max_ratio < 1 else 1


def plain(height: int, width: int, *, jitter: float = 0.0, is_still: bool = False) -> Rules:
    """The rules that change nothing (besides the making of a history from stills)."""
    return Rules(height, width, height, width, jitter=jitter, is_still=is_still)


def num_uniforms(num_frames: int, num_tries: int = 1) -> int:
    """How many uniform numbers `plan` takes; further crops come last, two numbers each."""
    return NUM_SHARED + NUM_PER_FRAME * num_frames + 2 * (num_tries - 1)


def _still_motions(rules: Rules, uniforms: np.ndarray, num_frames: int) -> list[Sequence[np.ndarray | float]]:
    """Per frame (zoom, dx, dy, angle, px, py) against the last frame: smooth motions summed up backwards in time."""
    base = 2 * uniforms[_MOTION : _MOTION + _NUM_MOTIONS] - 1
    step = np.array(_STILL_STEP, np.float32).reshape(-1, *[1] * (base.ndim - 1))
    total = np.zeros_like(base)
    motions = [total]
    for back in range(1, num_frames):
        first = NUM_SHARED + NUM_PER_FRAME * (num_frames - 1 - back)
        total = total + step * (0.75 * base + 0.25 * (2 * uniforms[first : first + _NUM_MOTIONS] - 1))
        motions.append(total)
    width, height = rules.width, rules.height
    return [
        (np.exp(zoom), dx * width, dy * height, angle, px / width, py / height)
        for zoom, dx, dy, angle, px, py in motions[::-1]
    ]


def _crop(rules: Rules, uniforms: np.ndarray, up: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, ...]:
    """(slope, shift) in x and in y, from the result to the stored frame; `up`, `across` in 0..1 place the crop."""
    low, high = rules.scale
    scale = low + uniforms[0] * (high - low)
    off_y = np.floor(up * (scale * rules.height - rules.crop_height) + 0.5)
    off_x = np.floor(across * (scale * rules.width - rules.crop_width) + 0.5)
    mirrored = (uniforms[3] >= 0.5) * float(rules.flip)
    return (1 - 2 * mirrored) / scale, (off_x + mirrored * rules.crop_width) / scale, 1 / scale, off_y / scale


def _map(rules: Rules, base: tuple[np.ndarray, ...], motion: Sequence[np.ndarray | float]) -> np.ndarray:
    """The homography (a, b, c, d, e, f, g, h) that moves the camera after a crop."""
    zoom, dx, dy, angle, px, py = motion
    middle_x, middle_y = rules.width / 2, rules.height / 2
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    x0, y0 = base[1] - middle_x, base[3] - middle_y
    g, h, one = px * base[0], py * base[2], 1 + px * x0 + py * y0
    to_x, to_y = middle_x + dx, middle_y + dy
    row_x = (cos * base[0] + to_x * g, -sin * base[2] + to_x * h, cos * x0 - sin * y0 + to_x * one)
    row_y = (sin * base[0] + to_y * g, cos * base[2] + to_y * h, sin * x0 + cos * y0 + to_y * one)
    return np.stack([value / one for value in (*row_x, *row_y, g, h)], -1)


def _color(rules: Rules, uniforms: np.ndarray, first: int, gain: np.ndarray) -> np.ndarray:
    """Brightness, contrast and saturation from three uniform numbers as rows of a 3x4 matrix."""
    bright, contrast, saturation = 1 + rules.jitter * (2 * uniforms[first : first + _NUM_COLORS] - 1)
    mix = bright * gain * contrast
    rest, offset = mix * (1 - saturation), 128 * (1 - contrast)
    rows = [
        value
        for i in range(3)
        for value in (*(rest * _GRAY[j] + (mix * saturation if i == j else 0.0) for j in range(3)), offset)
    ]
    return np.stack(rows, -1)


def plan(rules: Rules, uniforms: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The maps of clips, from uniforms f32 [..., num_uniforms(T, tries)] in 0..1.

    Returns:
      maps f32 [..., tries, T, 8]: (a, b, c, d, e, f, g, h), the result at (x, y) shows the stored frame at
        (ax + by + c, dx + ey + f) / (gx + hy + 1); b, d, g, h are 0 but for stills, where frames differ; tries differ
        in the crop alone;
      color f32 [..., T, 12]: rows of a 3x4 matrix on (r, g, b, 1).
    """
    uniforms = np.moveaxis(np.asarray(uniforms, np.float64), -1, 0)
    motions: list[Sequence[np.ndarray | float]] = [(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)] * num_frames
    if rules.is_still:
        motions = _still_motions(rules, uniforms, num_frames)
    more = uniforms[num_uniforms(num_frames) :]
    maps = []
    for up, across in [uniforms[1:3], *more.reshape(-1, 2, *more.shape[1:])]:
        base = _crop(rules, uniforms, up, across)
        maps.append(np.stack([_map(rules, base, motion) for motion in motions], -2))
    color = []
    for t in range(num_frames):
        first = NUM_SHARED + NUM_PER_FRAME * t
        gain = np.ones_like(uniforms[0])
        if rules.is_still and t < num_frames - 1:
            gain = 1 + _STILL_GAIN * rules.jitter * (2 * uniforms[first + _FRAME_GAIN] - 1)
        color.append(_color(rules, uniforms, first + _FRAME_COLORS if rules.jitter_per_frame else _COLORS, gain))
    return np.stack(maps, -3).astype(np.float32), np.stack(color, -2).astype(np.float32)


def choose_crop(rules: Rules, maps: Any, labels: Any, *, xp: Any = np) -> Any:
    """The first crop whose commonest class is rare enough; the last one where there is none.

    The rule is that of MMSegmentation's `RandomCrop(cat_max_ratio)`; shares are counted at 24 x 24 points.

    Args:
      rules: with `max_ratio` from 0.5 on.
      maps: f32 [tries, T, 8], from `plan`; one [T, 8] is returned.
      labels: u8 [H, W], of the target, stored.
      xp: the array module: numpy or tensorflow.
    """
    chosen = maps[-1]
    for number in range(rules.num_tries - 2, -1, -1):
        chosen = xp.where(_is_mixed(rules, maps[number, -1], labels, xp), maps[number], chosen)
    return chosen


def _is_mixed(rules: Rules, affine: Any, labels: Any, xp: Any) -> Any:
    """No class has `max_ratio` of the labelled pixels of a crop."""
    steps = (np.arange(_GRID, dtype=np.float32) + np.float32(0.5)) / np.float32(_GRID)
    at_x = affine[0] * (steps * np.float32(rules.crop_width)) + affine[2]
    at_y = affine[4] * (steps * np.float32(rules.crop_height)) + affine[5]
    in_x, in_y = (at_x >= 0) & (at_x < rules.width), (at_y >= 0) & (at_y < rules.height)
    columns, rows = (
        warp.cast(xp, xp.minimum(xp.maximum(at, 0.0), size - 1.0), np.int32)
        for at, size in ((at_x, rules.width), (at_y, rules.height))
    )
    seen = warp.cast(xp, warp.take(xp, warp.take(xp, labels, rows, 0), columns, 1), np.int32)
    seen = xp.reshape(xp.where(in_y[:, None] & in_x, seen, np.int32(types.IGNORE)), (-1,))
    num_known = warp.count(xp, seen != types.IGNORE)
    # A class with more than half of the pixels is the one in the middle; ignored pixels are sorted to the end.
    commonest = xp.sort(seen)[num_known // 2]
    share = warp.cast(xp, warp.count(xp, seen == commonest), np.float32)
    return (num_known > 0) & (share < np.float32(rules.max_ratio) * warp.cast(xp, num_known, np.float32))


def render(
    rules: Rules, words: np.ndarray, uniforms: np.ndarray, key: np.uint32, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Augments one clip of packed pixels u32 [T, H, W] (`warp.pack`; [1, H, W] for stills), in NumPy.

    Returns:
      frames u8 [T, crop_height, crop_width, 3] and labels likewise; black and 255 where nothing was stored.
    """
    tries, color = plan(rules, uniforms, num_frames)
    maps = choose_crop(rules, tries, warp.unpack(words[-1])[1]) if rules.num_tries > 1 else tries[0]
    for stage in warp.stages(rules):
        words = stage(np, words, maps, color, np.uint32(key))
    return warp.unpack(words)


def draw(rng: np.random.Generator, num_frames: int, num_tries: int = 1) -> tuple[np.ndarray, np.uint32]:
    """The random numbers of one clip: uniforms f32 [num_uniforms(T, num_tries)] and the key of the noise."""
    return rng.random(num_uniforms(num_frames, num_tries), np.float32), rng.integers(1 << 32, dtype=np.uint32)


def neutral(uniforms: np.ndarray) -> np.ndarray:
    """The same numbers with no change of colour over the whole clip: the last frame keeps its own."""
    uniforms = uniforms.copy()
    uniforms[_COLORS:_MOTION] = 0.5
    return uniforms
