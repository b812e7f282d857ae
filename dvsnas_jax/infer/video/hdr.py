"""HDR video (PQ, HLG) to the range that networks are trained on: a table of colours for each kind.

Both standards (ITU-R BT.2100) say how much light a value means; BT.2408 puts white paper at 203 cd/m2. What is darker
than three quarters of that stays as bright as it would be in ordinary video, highlights up to 1000 cd/m2 are
compressed into the rest, colours of a wide gamut are brought into that of sRGB.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageFilter

NAMES = {16: "PQ", 18: "HLG"}
"""Transfer functions that are HDR, by the numbers of ITU-T H.273."""
_WHITE, _PEAK, _KNEE = 203.0, 1000.0, 0.75
_GRID = 65
_BT709, _DISPLAY_P3 = 1, 12
_TO_BT709 = {
    _BT709: np.eye(3),
    _DISPLAY_P3: np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
_BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def light(values: np.ndarray, transfer: int) -> np.ndarray:
    """Light in cd/m2 that a display of 1000 cd/m2 shows for the values [..., 3] in 0..1 of a transfer function."""
    if transfer == 16:
        power = values ** (1 / 78.84375)
        return 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return _PEAK * scene * luminance[..., None] ** 0.2


def ordinary(values: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """RGB values [..., 3] in 0..1 of a transfer function of `NAMES` as values of sRGB in 0..1.

    `primaries` by the numbers of ITU-T H.273; those of BT.2020 where a file does not say it.
    """
    linear = light(values, transfer) / _WHITE @ _TO_BT709.get(primaries, _BT2020_TO_BT709).T
    linear = np.maximum(linear, 0)
    brightest = linear.max(-1, keepdims=True)
    peak = _PEAK / _WHITE
    over = np.clip((brightest - _KNEE) / (peak - _KNEE), 0, 1)
    bend = (peak - _KNEE) / (1 - _KNEE) - 1  # the slope is 1 at the knee
    compressed = _KNEE + (1 - _KNEE) * (1 + bend) * over / (1 + bend * over)
    linear = linear * np.where(brightest > _KNEE, compressed / np.maximum(brightest, _KNEE), 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@functools.cache
def _table(transfer: int, primaries: int) -> ImageFilter.Color3DLUT:
    axis = np.linspace(0, 1, _GRID)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red is the fastest
    found = ordinary(np.stack([red, green, blue], -1), transfer, primaries)
    return ImageFilter.Color3DLUT(_GRID, found.reshape(-1).astype(np.float32))


def to_ordinary(image: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """An HDR picture u8 [H, W, 3] as ordinary video shows it; see `ordinary`."""
    return np.asarray(Image.fromarray(image).filter(_table(transfer, primaries)))
