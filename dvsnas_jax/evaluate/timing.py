"""Times of the static network and of the cell, taken in turns, and what may be said of them: difference and noise."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import jax
import numpy as np

from dvsnas_jax.infer import dispatch

ASSUMED = 0.1
"""Noise of a difference whose single times are not known, as a share of the time itself."""
FEW_FRAMES = 10
"""Of a held-out clip, when a cell was trained: two key frames of the default interval."""
_MIN_FRAMES = 5
"""Fewer frames say nothing of their noise."""
_NUM_DRAWS = 400
_QUANTILES = (0.5, 99.5)
ERRORS = 2.576
"""Standard errors in the noise, which is that of 99 %."""


def measure(model: dispatch.Dispatch, frames: np.ndarray, num_frames: int) -> dict[str, dict[str, Any]]:
    """Times of single frames, synchronised, of the static network alone and with the cell, in turns.

    `num_frames` of the frames u8 [T, H, W, 3] (again from the first as often as needed) are timed, after as many to
    warm up.

    Returns:
      `static` and `cell`, each with `ms_per_frame` and `latency`: for every kind of frame (`key`, `cell`, `regions`;
      in refine mode and for the static network `all`) `count`, and `mean`, `median`, `p95`, `worst` and all the
      `samples` in milliseconds, with the numbers of their `frames` (what `change` pairs them by). `ms_per_frame` is
      the median of each kind, weighted by how often it came.
    """
    state = model.initial_state()
    times: dict[str, dict[str, list[tuple[int, float]]]] = {"static": {}, "cell": {}}
    # What the first one leaves in the caches serves the second. Each is the first as often, in an order without a
    # period, which would fall in with that of the key frames.
    is_cell_first = np.random.default_rng(0).permutation(num_frames) % 2
    for index in range(2 * num_frames):
        frame = frames[index % num_frames % len(frames)][None]
        if index == num_frames:
            state = model.initial_state()
        seconds = {}
        for name in ("cell", "static") if is_cell_first[index % num_frames] else ("static", "cell"):
            started = time.perf_counter()
            if name == "static":
                labels = model.static_step(frame)
            else:
                state, labels = model.step(state, frame)
            jax.block_until_ready(labels)
            seconds[name] = time.perf_counter() - started
        if index >= num_frames:
            kind = {1.0: "key", 0.0: "cell"}.get(model.key_share(state), "regions") if "age" in state else "all"
            for name, found in (("static", "all"), ("cell", kind)):
                times[name].setdefault(found, []).append((index - num_frames, seconds[name]))
    return {name: _summary(kinds) for name, kinds in times.items()}


def _summary(kinds: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """Statistics of each kind of frame, from the number and the seconds of every frame."""
    rows: dict[str, dict[str, Any]] = {}
    for kind, found in sorted(kinds.items()):
        ms = np.array([second for _, second in found]) * 1e3
        rows[kind] = {
            "count": len(ms),
            "mean": float(np.mean(ms)),
            "median": float(np.median(ms)),
            "p95": float(np.percentile(ms, 95)),
            "worst": float(np.max(ms)),
            "samples": ms.round(3).tolist(),
            "frames": [number for number, _ in found],
        }
    total = sum(row["count"] for row in rows.values())
    return {"ms_per_frame": sum(row["count"] * row["median"] for row in rows.values()) / total, "latency": rows}


class Change(NamedTuple):
    """How much longer a frame takes with the cell than by the static network alone, milliseconds."""

    difference: float  # negative where the cell saves time
    noise: float  # a difference that is no larger means nothing
    is_measured: bool  # the noise is that of the single times; otherwise it is assumed

    @property
    def is_clear(self) -> bool:
        """Whether the difference is larger than its noise."""
        return abs(self.difference) > self.noise


def change(static: Mapping[str, Any], cell: Mapping[str, Any], *, is_refining: bool = False) -> Change | None:
    """The difference of the times of a frame, None where one of them was not taken.

    The noise is half of the range that 99 % of 400 redrawn sets of frames have (bootstrap). A frame's two times, taken
    one right after the other, are drawn together where it is known which they are: what slows both is no difference.

    Args:
      static: with `ms_per_frame` and `latency`, of `measure`; runs of earlier versions lack the latter.
      cell: likewise.
      is_refining: the cell's time holds the static network's: whatever it seems to save is noise.
    """
    alone, with_cell = static.get("ms_per_frame"), cell.get("ms_per_frame")
    if not (_is_time(alone) and _is_time(with_cell)):
        return None
    difference = with_cell - alone
    samples = (static.get("latency") or {}).get("all", {}).get("samples") or ()
    kinds = list((cell.get("latency") or {}).values())
    is_measured = bool(kinds) and all(row.get("samples") for row in kinds) and len(samples) >= _MIN_FRAMES
    noise = ASSUMED * alone
    if is_measured:
        low, high = np.percentile(_draw(np.asarray(samples, np.float64), kinds), _QUANTILES)
        noise = float(high - low) / 2
    return Change(difference, max(noise, -difference) if is_refining else noise, is_measured)


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw(static: np.ndarray, kinds: list[Mapping[str, Any]]) -> np.ndarray:
    """The difference in redrawn sets of frames, f64 [_NUM_DRAWS]; each kind of frame keeps its number.

    Of the static network's times f64 [n] in order, and for each kind of frame with the cell the `samples`, and
    `frames`, the place of each in that order.
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


def share_of_static(static: Mapping[str, Any], cell: Mapping[str, Any]) -> float | None:
    """The mean time of a frame with the cell over the static network's; None where one of them was not taken."""
    alone, with_cell = static.get("ms_per_frame"), cell.get("ms_per_frame")
    return with_cell / alone if _is_time(alone) and _is_time(with_cell) else None


def slower(schedule: Mapping[str, Any] | None, static: Mapping[str, Any], cell: Mapping[str, Any] | None) -> str:
    """The line to say where a propagating cell costs more time than it saves, else empty.

    Args:
      schedule: `dispatch.Dispatch.schedule`.
      static: as in `change`; `cell` likewise.
    """
    share = None if schedule is None or cell is None else share_of_static(static, cell)
    if schedule is None or cell is None or share is None or share <= 1:
        return ""
    kinds = ", ".join(
        f"{row['count']} {kind} frames of {row['median']:.1f} ms" for kind, row in cell["latency"].items()
    )
    advice = "raise schedule.threshold, or set schedule.kind=fixed" if schedule["is_learned"] else "take a smaller cell"
    return (
        f"warning: a frame takes {share:.2f} of the static network's {static['ms_per_frame']:.1f} ms on the mean "
        f"({kinds}): the static network on every frame costs less; {advice}"
    )


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
