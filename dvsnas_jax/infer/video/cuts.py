"""Finds the cuts of a video, where what was known of the frames before says nothing of the next."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image

Item = TypeVar("Item")

THUMBNAIL = (16, 24)
SHIFTS = (1, 3)  # pixels of it, down and across, that motion may shift it by: a sixteenth and an eighth of the frame
THRESHOLD = 0.33
"""Between two takes the difference is 0.37 to 0.93 (CamVid, embedded clips), between frames of one 0.05 to 0.29."""
MEMORY, RATIO = 12, 2.0
"""A cut's difference has so many times the median of the last ones."""
_CONTRAST_FLOOR = 4.0


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What two frames u8 [H, W, 3] are compared by: small pictures without their brightness and contrast.

    f32 [16, 24, 3], each channel of mean 0 and deviation 1 (less where the picture is nearly of one colour).
    """
    height, width = THUMBNAIL
    rows = image[:: max(len(image) // (4 * height), 1)]  # four to a pixel are enough
    small = np.asarray(Image.fromarray(rows).resize((width, height), Image.Resampling.BOX), np.float32)
    return (small - small.mean(axis=(0, 1))) / (small.std(axis=(0, 1)) + _CONTRAST_FLOOR)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two thumbnails, the smallest over some shifts: a camera that turns is no cut."""
    height, width = THUMBNAIL
    smallest = np.inf
    for down, right in itertools.product(*(range(-most, most + 1) for most in SHIFTS)):
        part = a[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
        other = b[max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
        smallest = min(smallest, float(np.abs(part - other).mean()))
    return smallest


def mark(frames: Iterable[Item], image_fn: Callable[[Item], np.ndarray]) -> Iterator[tuple[Item, bool]]:
    """The frames of a video, and of each whether a new take begins with it; `image_fn` gives the image u8 [H, W, 3].

    A single spoilt frame is no cut: a frame that differs from the two before it waits for the next one, which has to
    differ from those as well. Where frames differ much all the time (noise, shaking), a cut has to stand out of that.
    """
    known: list[np.ndarray] = []  # of the last two frames of this take
    usual: collections.deque[float] = collections.deque(maxlen=MEMORY)
    waiting: tuple[Item, np.ndarray, float] | None = None  # may be the first of a new take

    def distance(now: np.ndarray) -> float:
        gap = difference(now, known[-1]) if known else 0.0
        return min(gap, difference(now, known[0])) if gap > THRESHOLD else gap  # the last one may be spoilt

    def is_far(gap: float) -> bool:
        return gap > max(THRESHOLD, RATIO * float(np.median(usual)) if usual else 0.0)

    def learn(now: np.ndarray, gap: float) -> None:
        if known:
            usual.append(gap)
        known.append(now)
        del known[:-2]

    for frame in frames:
        now = thumbnail(image_fn(frame))
        gap = distance(now)
        if waiting is not None:
            item, seen, seen_gap = waiting
            waiting, is_cut = None, is_far(gap)
            yield item, is_cut
            if is_cut:
                known.clear()
            learn(seen, seen_gap)
            gap = distance(now)
        if is_far(gap):
            waiting = frame, now, gap
            continue
        yield frame, False
        learn(now, gap)
    if waiting is not None:
        yield waiting[0], True
