"""What may be said of times that were taken in turns: the difference of two networks, and its noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import numpy as np

ASSUMED = 0.1
"""Noise of a difference whose single times are not known, as a share of the time itself."""
_MIN_FRAMES = 5
"""Fewer frames say nothing of their noise."""
_NUM_DRAWS = 400
_QUANTILES = (0.5, 99.5)
ERRORS = 2.576
"""Standard errors in the noise, which is that of 99 %."""


class Change(NamedTuple):
    """How much longer a frame takes with the cell than by the static network alone.

    Attributes:
      difference: milliseconds, negative where the cell saves time.
      noise: milliseconds; a difference that is no larger means nothing.
      is_measured: the noise is that of the single times; otherwise it is assumed.
    """

    difference: float
    noise: float
    is_measured: bool

    @property
    def is_clear(self) -> bool:
        """Whether the difference is larger than its noise."""
        return abs(self.difference) > self.noise


def change(static: Mapping[str, Any], cell: Mapping[str, Any], *, is_refining: bool = False) -> Change | None:
    """The difference of the times of a frame, None where one of them was not taken.

    The noise is half of the range that 99 % of 400 redrawn sets of frames have (bootstrap). A frame's two times, taken
    one right after the other, are drawn together where it is known which they are: what slows both is no difference.

    Args:
      static: with `ms_per_frame` and `latency`, of `stream.latency`; runs of earlier versions lack the latter.
      cell: likewise.
      is_refining: the cell's time holds the static network's: whatever it seems to save is noise.
    """
    alone, with_cell = static.get("ms_per_frame"), cell.get("ms_per_frame")
    if not (_is_time(alone) and _is_time(with_cell)):
        return None
    difference = with_cell - alone
    samples = (static.get("latency") or {}).get("all", {}).get("samples")
    kinds = list((cell.get("latency") or {}).values())
    known = [row.get("samples") for row in kinds]
    is_measured = bool(samples) and bool(known) and all(known) and len(samples or ()) >= _MIN_FRAMES
    if is_measured:
        drawn = _draw(np.asarray(samples, np.float64), kinds)
        low, high = np.percentile(drawn, _QUANTILES)
        noise = float(high - low) / 2
    else:
        noise = ASSUMED * alone
    if is_refining:
        noise = max(noise, -difference)
    return Change(difference, noise, is_measured)


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw(static: np.ndarray, kinds: list[Mapping[str, Any]]) -> np.ndarray:
    """The difference in redrawn sets of frames, f64 [_NUM_DRAWS]; each kind of frame keeps its number.

    Args:
      static: f64 [n], of the static network, in order.
      kinds: of frames with the cell: `samples`, and `frames`, the place of each in that order.
    """
    rng = np.random.default_rng(0)
    total = sum(len(row["samples"]) for row in kinds)
    mean, pairs = np.zeros(_NUM_DRAWS), []
    for row in kinds:
        samples = np.asarray(row["samples"], np.float64)
        frames = row.get("frames", range(len(static)) if len(kinds) == 1 else ())
        chosen = rng.integers(0, len(samples), (_NUM_DRAWS, len(samples)))
        mean += len(samples) / total * np.median(samples[chosen], axis=1)
        if len(frames) == len(samples) and max(frames) < len(static):
            pairs.append(static[np.asarray(frames)][chosen])
    is_paired = sum(part.shape[1] for part in pairs) == total
    redrawn = np.concatenate(pairs, axis=1) if is_paired else rng.choice(static, (_NUM_DRAWS, len(static)))
    return mean - np.median(redrawn, axis=1)


def sentence(found: Change, static_ms: float) -> str:
    """The difference in words, for a terminal."""
    spread = f"± {found.noise:.1f} ms" if found.is_measured else f"± {found.noise:.1f} ms (assumed)"
    if not found.is_clear:
        return f"time of a frame, timed in turns: with the cell no difference beyond the noise of {spread}"
    word = "more" if found.difference > 0 else "less"
    return (
        f"time of a frame, timed in turns: with the cell {abs(found.difference):.1f} {spread} {word} than the "
        f"{static_ms:.1f} ms of the network alone"
    )
