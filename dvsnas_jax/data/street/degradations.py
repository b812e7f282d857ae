"""Faults of a camera behind a wet windscreen, frame by frame: what history can repair.

Exposure flicker, sensor noise, motion blur, rain streaks, and patches (glare, mud, drops, spray) that hide a region
for one to three frames and are gone. Every value follows from the key of the clip and the frame number.
"""

from __future__ import annotations

import functools

import numpy as np

_BLOCK = 4
_PATCHES_PER_BLOCK = 2
_PATCH_CHANCE = 0.85
_STREAM_FRAME, _STREAM_PATCH = 1, 2
_GLARE, _MUD, _DROP, _SPRAY = range(4)
_NOISE_SIZE = 1 << 20


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


@functools.cache
def _normals() -> np.ndarray:
    """Standard normal numbers f32; noise is a piece from a random place (fresh numbers cost as much as the sky)."""
    return np.random.default_rng(13).standard_normal(_NOISE_SIZE, dtype=np.float32)


def _tiled(texture: np.ndarray, size: tuple[int, ...], shift: np.ndarray | tuple[int, int] = (0, 0)) -> np.ndarray:
    """A tiling texture, moved, [H, W]."""
    rows, cols = ((np.arange(length) + by) & (len(texture) - 1) for length, by in zip(size, shift, strict=True))
    return texture[rows[:, None], cols]


def _patches(key: tuple[int, ...], frame: int) -> list[tuple[np.random.Generator, int]]:
    """The patches on this frame: a generator that is past the schedule, and the age in frames."""
    found = []
    for block in range(max(frame // _BLOCK - 1, 0), frame // _BLOCK + 1):
        rng = np.random.default_rng((*key, _STREAM_PATCH, block))
        chance, start = rng.random(_PATCHES_PER_BLOCK), rng.integers(_BLOCK, size=_PATCHES_PER_BLOCK)
        length = rng.integers(1, 4, _PATCHES_PER_BLOCK)
        for number in range(_PATCHES_PER_BLOCK):
            age = frame - block * _BLOCK - int(start[number])
            if chance[number] < _PATCH_CHANCE and 0 <= age < length[number]:
                found.append((np.random.default_rng((*key, _STREAM_PATCH, block, number)), age))
    return found


def _patch_alpha(rng: np.random.Generator, kind: int, age: int, size: tuple[int, int]) -> np.ndarray:
    """Opacity f32 [H, W] of a patch, which hides 5 to 15 % of the image."""
    height, width = size
    area = rng.uniform(0.05, 0.15) * height * width
    stretch = rng.uniform(0.6, 1.7) if kind != _SPRAY else rng.uniform(2.2, 3.5)
    radius_y, radius_x = np.sqrt(area / np.pi / stretch), np.sqrt(area / np.pi * stretch)
    center_y, center_x = rng.uniform(0.15, 0.9) * height, rng.uniform(0.05, 0.95) * width
    drift_y, drift_x = rng.normal(0, 0.03, 2) * (height, width) * age
    tilt = rng.uniform(-0.6, 0.6)
    y = (np.arange(height, dtype=np.float32)[:, None] - np.float32(center_y + drift_y)) * np.float32(1 / radius_y)
    x = (np.arange(width, dtype=np.float32)[None, :] - np.float32(center_x + drift_x)) * np.float32(1 / radius_x)
    slanted = y + np.float32(tilt) * x
    far = x * x + slanted * slanted
    far += np.float32(0.5 if kind == _DROP else 0.8) * _tiled(_clouds(), size, rng.integers(128, size=2))
    soft = {_GLARE: 0.9, _MUD: 2.2, _DROP: 4.0, _SPRAY: 1.4}[kind]
    return np.clip((1.3 - far) * np.float32(soft), 0, 1)


def _seen_through_water(image: np.ndarray) -> np.ndarray:
    """The image f32 [3, H, W] as a drop shows it: upside down and without detail."""
    _, height, width = image.shape
    step_y, step_x = max(height // 8, 1), max(width // 10, 1)
    low = image[:, ::-1, :][:, step_y // 2 :: step_y, step_x // 2 :: step_x]
    sides = []
    for size, count in ((height, low.shape[1]), (width, low.shape[2])):
        place = np.linspace(0, count - 1, size, dtype=np.float32)
        sides.append(np.maximum(1 - np.abs(place[:, None] - np.arange(count, dtype=np.float32)), 0))
    return sides[0] @ low @ sides[1].T


def _hide(image: np.ndarray, rng: np.random.Generator, age: int, strength: float) -> None:
    """Lays a patch over the image f32 [3, H, W], in place."""
    kind = int(rng.integers(4))
    tone = rng.uniform(-1, 1, 3).astype(np.float32)
    alpha = _patch_alpha(rng, kind, age, image.shape[1:])
    if kind == _GLARE:
        cover = (np.array([252.0, 248, 232], np.float32) + 4 * tone)[:, None, None]
    elif kind == _MUD:
        grain = 1 + 0.3 * tone[0] + 0.25 * _tiled(_clouds(), image.shape[1:])
        cover = np.array([82.0, 66, 48], np.float32)[:, None, None] * grain
    else:
        cover = _seen_through_water(image) * (1 + 0.1 * tone[0])
        if kind == _SPRAY:
            cover = 0.3 * cover + 0.7 * np.float32(190 + 25 * tone[1])
    alpha *= np.float32(min(strength, 1.0) * 0.97)
    image += alpha * (cover - image)


def apply(clean: np.ndarray, key: tuple[int, ...], frame: int, *, is_rainy: bool, strength: float) -> np.ndarray:
    """Degrades the frame u8 [H, W, 3] number `frame` of a clip, which non-negative integers name.

    `strength` 0 = none, 1 = as designed; `is_rainy` adds rain streaks.
    """
    if strength <= 0:
        return clean.copy()
    height, width = clean.shape[:2]
    rng = np.random.default_rng((*key, _STREAM_FRAME, frame))
    gain, cast = np.clip(rng.normal(), -1.7, 1.7), rng.normal(0, 1, 3)
    do_blur, reach = rng.random() < 0.3, round(int(rng.integers(1, 4)) * width / 128 * min(strength, 2.0))
    noise, place, shift = rng.uniform(5, 15) * strength, int(rng.integers(_NOISE_SIZE)), rng.integers(256, size=2)
    image = clean.transpose(2, 0, 1).astype(np.float32)
    if do_blur and reach > 0:
        wide = np.pad(image, ((0, 0), (0, 0), (reach, reach)), mode="edge")
        image = wide[:, :, :width].copy()
        for step in range(1, 2 * reach + 1):
            image += wide[:, :, step : step + width]
        image *= np.float32(1 / (2 * reach + 1))
    image *= np.exp(strength * (0.2 * gain + 0.04 * cast)).astype(np.float32)[:, None, None]
    if is_rainy:
        image += np.float32(min(0.45 * strength, 1.0)) * _tiled(_rain(), (height, width), shift) * (215 - image)
    for patch, age in _patches(key, frame):
        _hide(image, patch, age, strength)
    normals = _normals()
    if image.size <= _NOISE_SIZE // 2:
        start = place % (_NOISE_SIZE - image.size)
        normals = normals[start : start + image.size].reshape(image.shape)
    else:
        normals = rng.standard_normal(image.shape, dtype=np.float32)
    image += normals * np.float32(noise)
    np.clip(image, 0, 254.5, out=image)
    image += np.float32(0.5)
    return image.astype(np.uint8).transpose(1, 2, 0)
