"""Clip-consistent augmentation, and histories made from stills, as one affine map per frame.

`plan` turns uniform numbers into maps with NumPy; the tf.data loader calls it with TensorFlow in
NumPy's place, so both loaders share one definition. Coordinates have pixel centres at +0.5.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from dvsnas_jax.core import types

NUM_SHARED = 11
"""Uniform numbers of a clip; each frame has NUM_PER_FRAME more."""
NUM_PER_FRAME = 5
_GRAY = (0.299, 0.587, 0.114)
_STILL_STEP = (0.035, 0.02, 0.008, 0.012)
"""Stills: largest motion per frame: zoom, shift in x (image widths), shift in y (image heights), rotation (radians)."""
_STILL_GAIN, _STILL_NOISE = 0.4, 15.0
"""Stills: change of exposure, and deviation of the noise (grey levels), of a history frame per unit of jitter."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What to do at random; the sizes are in pixels.

    Attributes:
      height: width: of the stored frames.
      crop_height: crop_width: of the result.
      scale: smallest and largest.
      jitter: largest relative change of brightness, contrast, saturation.
      flip: mirror every second clip.
      is_still: make the history by camera motions of the last frame.
    """

    height: int
    width: int
    crop_height: int
    crop_width: int
    scale: tuple[float, float]
    jitter: float
    flip: bool
    is_still: bool

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


def plain(height: int, width: int, *, jitter: float = 0.0, is_still: bool = False) -> Rules:
    """The rules that change nothing (besides the making of a history from stills)."""
    return Rules(
        height=height,
        width=width,
        crop_height=height,
        crop_width=width,
        scale=(1.0, 1.0),
        jitter=jitter,
        flip=False,
        is_still=is_still,
    )


def num_uniforms(num_frames: int) -> int:
    """How many uniform numbers `plan` takes."""
    return NUM_SHARED + NUM_PER_FRAME * num_frames


def _still_motions(rules: Rules, uniforms: Any, num_frames: int, xp: Any) -> list[tuple[Any, Any, Any, Any]]:
    """Per frame (zoom, dx, dy, angle) against the last frame: smooth motions summed up backwards in time."""
    base = [2 * uniforms[7 + i] - 1 for i in range(4)]
    total: list[Any] = [0.0, 0.0, 0.0, 0.0]
    motions = [tuple(total)]
    for back in range(1, num_frames):
        first = NUM_SHARED + NUM_PER_FRAME * (num_frames - 1 - back)
        for i in range(4):
            total[i] = total[i] + _STILL_STEP[i] * (0.75 * base[i] + 0.25 * (2 * uniforms[first + i] - 1))
        motions.append(tuple(total))
    motions = [
        (xp.exp(zoom + 0.0), dx * rules.width, dy * rules.height, angle + 0.0) for zoom, dx, dy, angle in motions
    ]
    return motions[::-1]


def plan(rules: Rules, uniforms: Any, num_frames: int, *, xp: Any = np) -> tuple[Any, Any]:
    """The maps of one clip.

    Args:
      rules: what to do.
      uniforms: f32 [num_uniforms(T)] in 0..1.
      num_frames: T.
      xp: the array module: numpy or tensorflow.

    Returns:
      affine f32 [T, 6]: (a, b, c, d, e, f), the result at (x, y) shows the stored frame at (ax + by + c, dx + ey + f);
      color f32 [T, 12]: rows of a 3x4 matrix on (r, g, b, 1).
    """
    low, high = rules.scale
    scale = low + uniforms[0] * (high - low)
    off_y = xp.floor(uniforms[1] * (scale * rules.height - rules.crop_height) + 0.5)
    off_x = xp.floor(uniforms[2] * (scale * rules.width - rules.crop_width) + 0.5)
    mirrored = xp.floor(uniforms[3] + 0.5) if rules.flip else 0.0 * uniforms[3]
    # x' = (sign * x + off_x + mirrored * crop_width) / scale
    sign = 1.0 - 2.0 * mirrored
    base = (sign / scale, (off_x + mirrored * rules.crop_width) / scale, 1.0 / scale, off_y / scale)
    bright, contrast, saturation = (1.0 + rules.jitter * (2 * uniforms[4 + i] - 1) for i in range(3))
    middle_x, middle_y = rules.width / 2, rules.height / 2
    zero = 0.0 * uniforms[0]
    still = (1.0 + zero, zero, zero, zero)
    motions = _still_motions(rules, uniforms, num_frames, xp) if rules.is_still else [still] * num_frames
    affine, color = [], []
    for t, (zoom, dx, dy, angle) in enumerate(motions):
        cos, sin = zoom * xp.cos(angle + zero), zoom * xp.sin(angle + zero)
        x0, y0 = base[1] - middle_x, base[3] - middle_y
        affine.append(
            xp.stack(
                [
                    cos * base[0],
                    -sin * base[2],
                    cos * x0 - sin * y0 + middle_x + dx,
                    sin * base[0],
                    cos * base[2],
                    sin * x0 + cos * y0 + middle_y + dy,
                ]
            )
        )
        gain = bright
        if rules.is_still and t < num_frames - 1:
            gain = bright * (1.0 + _STILL_GAIN * rules.jitter * (2 * uniforms[NUM_SHARED + NUM_PER_FRAME * t + 4] - 1))
        mix = gain * contrast
        rest, offset = mix * (1.0 - saturation), 128.0 * (1.0 - contrast)
        color.append(
            xp.stack(
                [
                    value
                    for i in range(3)
                    for value in (*(rest * _GRAY[j] + (mix * saturation if i == j else 0.0) for j in range(3)), offset)
                ]
            )
        )
    return xp.stack(affine), xp.stack(color)


def apply(
    rules: Rules, frames: np.ndarray, labels: np.ndarray, rng: np.random.Generator, uniforms: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Augments one clip.

    Args:
      rules: what to do.
      frames: u8 [T, H, W, 3].
      labels: u8 [T, H, W].
      rng: the generator of this example.
      uniforms: f64 [num_uniforms(T)], what `plan` takes; drawn from `rng` where None.

    Returns:
      frames u8 [T, crop_height, crop_width, 3] and labels likewise; 255 where nothing was stored.
    """
    if rules.is_identity:
        return frames, labels
    num_frames = len(frames)
    if uniforms is None:
        uniforms = rng.random(num_uniforms(num_frames))
    affine, color = plan(rules, uniforms, num_frames)
    size = (rules.crop_width, rules.crop_height)
    out_frames = np.zeros((num_frames, rules.crop_height, rules.crop_width, 3), np.uint8)
    out_labels = np.empty((num_frames, rules.crop_height, rules.crop_width), np.uint8)
    for t in range(num_frames):
        if rules.keeps_geometry:
            out_frames[t], out_labels[t] = frames[t], labels[t]
            continue
        if rules.is_still:
            image = Image.fromarray(frames[t])
            image = image.transform(size, Image.Transform.AFFINE, tuple(affine[t]), Image.Resampling.BILINEAR)
            out_frames[t] = np.asarray(image)
        else:
            _resample(frames[t], affine[t], out_frames[t])
        warped = Image.fromarray(labels[t]).transform(
            size, Image.Transform.AFFINE, tuple(affine[t]), Image.Resampling.NEAREST, fillcolor=types.IGNORE
        )
        out_labels[t] = np.asarray(warped)
    if rules.jitter:
        for part in range(0, num_frames, 1 if rules.is_still else num_frames):
            group = out_frames[part : part + 1] if rules.is_still else out_frames
            tall = Image.fromarray(group.reshape(-1, *group.shape[2:]))
            group[...] = np.asarray(tall.convert("RGB", tuple(color[part]))).reshape(group.shape)
    if rules.noise:
        noisy = out_frames[:-1] + rules.noise * rng.standard_normal(out_frames[:-1].shape, dtype=np.float32)
        out_frames[:-1] = np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
    return out_frames, out_labels


def _resample(frame: np.ndarray, affine: np.ndarray, out: np.ndarray) -> None:
    """Fills `out` u8 [h, w, 3] by an affine map without rotation; black where the frame u8 [H, W, 3] ends.

    Smaller scales average (as `Image.resize` does); otherwise it is bilinear interpolation.
    """
    spans = []
    for slope, shift, size, result in (
        (affine[0], affine[2], frame.shape[1], out.shape[1]),
        (affine[4], affine[5], frame.shape[0], out.shape[0]),
    ):
        ends = sorted(((0 - shift) / slope, (size - shift) / slope))
        first, last = max(math.ceil(ends[0] - 1e-6), 0), min(math.floor(ends[1] + 1e-6), result)
        if first >= last:
            return
        low, high = sorted((slope * first + shift, slope * last + shift))
        spans.append((first, last, max(low, 0.0), min(high, float(size)), slope < 0))
    (x0, x1, left, right, is_mirrored), (y0, y1, top, bottom, _) = spans
    image = Image.fromarray(frame).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[y0:y1, x0:x1] = np.asarray(image)


def still_clip(
    frame: np.ndarray, labels: np.ndarray, num_frames: int, rules: Rules, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A clip whose last frame is the still itself and whose history is made by camera motions.

    Args:
      frame: u8 [H, W, 3].
      labels: u8 [H, W].
      num_frames: T.
      rules: with `is_still`; its scale, flip and crop are ignored.
      rng: decides the motion.

    Returns:
      frames u8 [T, H, W, 3], labels u8 [T, H, W].
    """
    height, width = labels.shape
    history = plain(height, width, jitter=rules.jitter, is_still=True)
    frames = np.broadcast_to(frame, (num_frames, *frame.shape))
    uniforms = rng.random(num_uniforms(num_frames))
    uniforms[4:7] = 0.5  # no change of colour over the whole clip: the last frame keeps its own
    frames, labels = apply(history, frames, np.broadcast_to(labels, (num_frames, height, width)), rng, uniforms)
    frames[-1] = frame
    return frames, labels
