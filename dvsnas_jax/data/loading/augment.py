"""Clip-consistent augmentation, and histories made from stills: random numbers become maps and colour matrices.

Both loaders take `plan`'s maps, one a frame, and have `warp` carry them out. Coordinates have pixel centres at +0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data.loading import cutout, warp

_NUM_MOTIONS = 6
_NUM_COLORS = 3
NUM_SHARED = 4 + _NUM_COLORS + _NUM_MOTIONS
"""Uniform numbers of a clip: scale, crop y, crop x, mirror, colours, motion; each frame has NUM_PER_FRAME more."""
NUM_PER_FRAME = _NUM_MOTIONS + 1 + _NUM_COLORS
_COLORS, _MOTION = 4, 4 + _NUM_COLORS
_FRAME_GAIN, _FRAME_COLORS = _NUM_MOTIONS, _NUM_MOTIONS + 1
_GRAY = (0.299, 0.587, 0.114)
DRIVE, SHAKE = "drive", "shake"
MOTIONS = (DRIVE, SHAKE)
"""What `config.data.still_motion` may be."""
NO_NOISE, ON_CLIP, ON_HISTORY = "none", "clip", "history"
NOISES = (NO_NOISE, ON_CLIP, ON_HISTORY)
"""What `config.data.still_noise` may be."""
_SHAKE_STEP = (0.035, 0.02, 0.008, 0.012, 0.008, 0.008)
"""Shake: largest motion per frame: zoom, shift in x (image widths), shift in y (image heights), rotation (radians),
perspective in x and in y (change of scale over the image)."""
_STANDING = 0.1
"""Drive: share of the clips in which the camera stands still; the speed of the others is spread evenly up to 1."""
_DRIVE_CLIP = (0.06, 0.04, 0.003, 0.002, 0.004)
"""Drive, at speed 1, largest motion per frame that a clip keeps: zoom, shift in x (most clips turn little: a cube of a
uniform number), shift in y, rotation, perspective in x."""
_DRIVE_FRAME = (0.006, 0.003, 0.004, 0.002, 0.002)
"""Drive: largest change of those from frame to frame."""
_EXPANSION = (0.15, 0.08)
"""Drive: farthest that the focus of expansion is from the middle of the image, in widths and heights."""
_OBJECT_STEP = (0.025, 0.006)
"""Largest motion of an object by itself per frame, in image widths and heights."""
_STILL_GAIN, _STILL_NOISE = 0.4, 15.0
"""Stills: change of exposure, and deviation of the noise (grey levels), per unit of jitter."""
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
    motion: str = DRIVE  # of stills, one of MOTIONS
    noisy: str = NO_NOISE  # frames of stills with noise and another exposure, one of NOISES
    objects: float = 0.0  # share of the clips of stills in which one object moves by itself
    object_ids: tuple[int, ...] = ()  # its train id is one of these
    jitter_per_frame: bool = False  # colours change from frame to frame
    max_ratio: float = 1.0  # a crop whose commonest class has this share or more of the labelled pixels is drawn again
    tries: int = 1  # how often a crop is drawn at most

    def noise(self, frame: int, num_frames: int) -> float:
        """Standard deviation of the noise on a frame of a clip, grey levels."""
        return _STILL_NOISE * self.jitter if self._is_noisy(frame, num_frames) else 0.0

    def _is_noisy(self, frame: int, num_frames: int) -> bool:
        """A frame without a history is none that was made."""
        is_history = frame < num_frames - 1
        return self.is_still and num_frames > 1 and (self.noisy == ON_CLIP or (self.noisy == ON_HISTORY and is_history))

    def gain(self, uniforms: np.ndarray, frame: int, num_frames: int) -> np.ndarray:
        """Exposure of a frame against the stored one: the same over a clip, or that of a history frame."""
        if not self._is_noisy(frame, num_frames):
            return np.ones_like(uniforms[0])
        drawn = uniforms[NUM_SHARED + NUM_PER_FRAME * (frame if self.noisy == ON_HISTORY else 0) + _FRAME_GAIN]
        return 1 + _STILL_GAIN * self.jitter * (2 * drawn - 1)

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
    def has_objects(self) -> bool:
        """There may be an object with a motion of its own."""
        return self.is_still and self.objects > 0 and bool(self.object_ids)

    @property
    def num_tries(self) -> int:
        """Crops drawn for a clip."""
        return self.tries if self.max_ratio < 1 else 1


def plain(height: int, width: int, **stills: Any) -> Rules:
    """The rules that change nothing, besides the making of a history from stills, with those fields of `Rules`."""
    return Rules(height, width, height, width, **stills)


def num_uniforms(num_frames: int, num_tries: int = 1) -> int:
    """How many uniform numbers `plan` takes; further crops come last, two numbers each."""
    return NUM_SHARED + NUM_PER_FRAME * num_frames + 2 * (num_tries - 1)


def _shaken(clip: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """One step back in time of `SHAKE`, f64 [6, ...], from numbers in -1..1 of the clip and of the frame."""
    step = np.array(_SHAKE_STEP, np.float32).reshape(-1, *[1] * (clip.ndim - 1))
    return step * (0.75 * clip[:_NUM_MOTIONS] + 0.25 * frame)


def _driven(clip: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """One step back in time of `DRIVE`, likewise: a camera that goes forward, or stands.

    Seen from the frame after it, a frame shows things closer to the focus of expansion. The lower the faster: the scene
    is taken for a plane that leans away, from upright to one whose upper edge is too far to move.
    """
    speed = np.maximum(0.5 + 0.5 * clip[0] - _STANDING, 0) / (1 - _STANDING)
    zoom, turn, *rest = _DRIVE_CLIP
    change = np.reshape(_DRIVE_FRAME, (-1, *[1] * (frame.ndim - 1)))
    kept = [zoom * np.ones_like(speed), turn * clip[1] ** 3, *(most * clip[i + 2] for i, most in enumerate(rest))]
    zoom, dx, dy, angle, px = speed * (np.stack(np.broadcast_arrays(*kept)) + change * frame[: len(kept)])
    focus_x, focus_y, lean = _EXPANSION[0] * clip[5], _EXPANSION[1] * clip[6], 1 + clip[7]
    return np.stack([zoom, dx - zoom * focus_x, dy - zoom * focus_y, angle, px, -lean * zoom])


def _still_motions(rules: Rules, uniforms: np.ndarray, num_frames: int) -> list[Sequence[np.ndarray | float]]:
    """Per frame (zoom, dx, dy, angle, px, py) against the last frame: smooth motions summed up backwards in time."""
    signed = 2 * uniforms - 1
    last = NUM_SHARED + NUM_PER_FRAME * (num_frames - 1)
    # The last frame does not move: its numbers are of the clip, too.
    clip = np.concatenate([signed[_MOTION : _MOTION + _NUM_MOTIONS], signed[last : last + _NUM_MOTIONS]])
    total = np.zeros_like(clip[:_NUM_MOTIONS])
    motions = [total]
    for back in range(1, num_frames):
        first = last - NUM_PER_FRAME * back
        step_fn = _shaken if rules.motion == SHAKE else _driven
        total = total + step_fn(clip, signed[first : first + _NUM_MOTIONS])
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


def _with_object(
    rules: Rules, camera: np.ndarray, base: tuple[np.ndarray, ...], motions: list[Any], uniforms: np.ndarray
) -> np.ndarray:
    """The maps of the camera [..., T, 8] with those of an object and its number, [..., T, 17].

    It moves as the camera says, and evenly by itself besides. The numbers are those of the last frame that the camera
    does not use.
    """
    num_frames = len(motions)
    last = NUM_SHARED + NUM_PER_FRAME * (num_frames - 1)
    number, across, up, is_there = (uniforms[last + i] for i in (2, 3, 4, _FRAME_GAIN))
    speed_x, speed_y = (most * (2 * value - 1) for most, value in zip(_OBJECT_STEP, (across, up), strict=True))
    own = []
    for t, (zoom, dx, dy, *rest) in enumerate(motions):
        steps = num_frames - 1 - t
        moved = dx + steps * speed_x * rules.width, dy + steps * speed_y * rules.height
        own.append(_map(rules, base, (zoom, *moved, *rest)))
    chosen = np.broadcast_to(np.where(is_there < rules.objects, number, -1.0)[..., None, None], (*camera.shape[:-1], 1))
    return np.concatenate([camera, np.stack(own, -2), chosen], -1)


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
        in the crop alone; with objects [..., 17]: then the map of the object, and the number that `cutout.find` takes;
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
        camera = np.stack([_map(rules, base, motion) for motion in motions], -2)
        maps.append(_with_object(rules, camera, base, motions, uniforms) if rules.has_objects else camera)
    color = []
    for t in range(num_frames):
        first = NUM_SHARED + NUM_PER_FRAME * t
        gain = rules.gain(uniforms, t, num_frames)
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
    if rules.has_objects:
        own = cutout.layer(warp.unpack(words[-1])[1], rules.object_ids, maps[-1, -1])
        words = np.concatenate([words, own[None]])
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
