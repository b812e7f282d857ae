"""Faults of a camera behind a wet windscreen, frame by frame: what history can repair.

Exposure flicker, sensor noise, motion blur, rain streaks, and patches (glare, mud, drops, spray)
that hide a region for one to three frames and are gone. Every value follows from the key of the
clip and the frame number.
"""

from __future__ import annotations

import functools

import numpy as np

_BLOCK = 4
_PATCHES_PER_BLOCK = 2
_PATCH_CHANCE = 0.85
_STREAM_FRAME, _STREAM_PATCH = 1, 2


@functools.cache
def _rain() -> np.ndarray:
    """Tiling opacity f32 [256, 256] of falling streaks, 0..1."""
    rng = np.random.default_rng(5)
    drops = (rng.random((256, 256)) > 0.9965).astype(np.float32)
    total = np.zeros_like(drops)
    for step in range(9):
        total += np.roll(drops, (step, step // 4), (0, 1))
    return np.clip(total, 0, 1)


@functools.cache
def _clouds() -> np.ndarray:
    """A smooth tiling texture f32 [128, 128], about -1..1: ragged edges of patches."""
    rng = np.random.default_rng(9)
    coarse = np.kron(rng.uniform(-1, 1, (16, 16)), np.ones((8, 8)))
    for _ in range(10):
        coarse = (coarse + np.roll(coarse, 1, 0) + np.roll(coarse, 1, 1) + np.roll(coarse, (-1, -1), (0, 1))) / 4
    return (coarse / np.abs(coarse).max()).astype(np.float32)


def _patches(key: tuple[int, ...], frame: int) -> list[np.random.Generator]:
    """Generators of the patches that cover this frame, each advanced past its own schedule."""
    found = []
    for block in (frame // _BLOCK - 1, frame // _BLOCK):
        if block < 0:
            continue
        for number in range(_PATCHES_PER_BLOCK):
            rng = np.random.default_rng((*key, _STREAM_PATCH, block, number))
            is_there, start, length = rng.random() < _PATCH_CHANCE, block * _BLOCK + rng.integers(_BLOCK), rng.integers(1, 4)
            if is_there and start <= frame < start + length:
                found.append(rng)
    return found


def _patch_alpha(rng: np.random.Generator, age: int, height: int, width: int) -> tuple[np.ndarray, int]:
    """Opacity f32 [H, W] of a patch and its kind (0 glare, 1 mud, 2 drop, 3 spray)."""
    kind = int(rng.integers(4))
    area = rng.uniform(0.05, 0.15) * height * width
    stretch = rng.uniform(0.6, 1.7) if kind != 3 else rng.uniform(2.2, 3.5)
    radius_y, radius_x = np.sqrt(area / np.pi / stretch), np.sqrt(area / np.pi * stretch)
    center_y, center_x = rng.uniform(0.15, 0.9) * height, rng.uniform(0.05, 0.95) * width
    drift_y, drift_x = rng.normal(0, 0.02, 2) * (height, width) * age
    tilt = rng.uniform(-0.6, 0.6)
    y = (np.arange(height, dtype=np.float32)[:, None] - np.float32(center_y + drift_y)) / np.float32(radius_y)
    x = (np.arange(width, dtype=np.float32)[None, :] - np.float32(center_x + drift_x)) / np.float32(radius_x)
    shift = rng.integers(128, size=2)
    rows, cols = (np.arange(height) + shift[0]) & 127, (np.arange(width) + shift[1]) & 127
    y = y + np.float32(tilt) * x
    far = x * x + y * y + 0.7 * _clouds()[rows[:, None], cols[None, :]]
    soft = 1.1 if kind == 0 else 3.0
    return np.clip((1.25 - far) * np.float32(soft), 0, 1), kind


def _hide(image: np.ndarray, rng: np.random.Generator, age: int, strength: float) -> None:
    """Lays a patch over the image f32 [H, W, 3], in place."""
    height, width = image.shape[:2]
    alpha, kind = _patch_alpha(rng, age, height, width)
    grain = _clouds()[: min(height, 128), : min(width, 128)]
    tone = rng.uniform(-1, 1, 3)
    if kind == 0:
        cover = np.array([252.0, 248, 232], np.float32) + 4 * tone.astype(np.float32)
    elif kind == 1:
        cover = (np.array([82.0, 66, 48]) * (1 + 0.3 * tone[0])).astype(np.float32)
    else:
        step = max(height // 12, 1)
        cover = image[::step, ::step].mean((0, 1)) * (1 + 0.2 * tone[0]) + (25 if kind == 3 else 0)
        if kind == 2:
            rows = np.linspace(0.85, 1.15, height, dtype=np.float32)[:, None, None]
            cover = cover * rows
    del grain
    alpha = (alpha * np.float32(min(strength, 1.0) * 0.96))[:, :, None]
    image += alpha * (cover - image)


def apply(clean: np.ndarray, *, key: tuple[int, ...], frame: int, is_rainy: bool, strength: float) -> np.ndarray:
    """Degrades one frame.

    Args:
      clean: u8 [H, W, 3].
      key: non-negative integers that name the clip.
      frame: its number.
      is_rainy: the clip has rain streaks.
      strength: 0 = none (the frame comes back as it is), 1 = as designed.

    Returns:
      u8 [H, W, 3].
    """
    if strength <= 0:
        return clean.copy()
    height, width = clean.shape[:2]
    rng = np.random.default_rng((*key, _STREAM_FRAME, frame))
    gain, cast, do_blur, length, noise = rng.normal(), rng.normal(0, 1, 3), rng.random() < 0.3, rng.integers(1, 4), rng.uniform(5, 15)
    image = clean.astype(np.float32)
    if do_blur:
        reach = max(round(int(length) * width / 128 * min(strength, 2.0)), 0)
        wide = np.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="edge")
        image = wide[:, : width].copy()
        for step in range(1, 2 * reach + 1):
            image += wide[:, step : step + width]
        image /= 2 * reach + 1
    image *= np.exp(strength * (0.2 * gain + 0.04 * cast)).astype(np.float32)
    if is_rainy:
        rows, cols = (np.arange(height) + rng.integers(256)) & 255, (np.arange(width) + rng.integers(256)) & 255
        image += (0.45 * strength * _rain()[rows[:, None], cols])[:, :, None] * (215 - image)
    for number, patch in enumerate(_patches(key, frame)):
        _hide(image, patch, frame % _BLOCK + number, strength)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise * strength)
    np.clip(image, 0, 255, out=image)
    return (image + 0.5).astype(np.uint8)
