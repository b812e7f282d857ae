"""Clips and runs among the frames of a dataset on disk: which frames belong together."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.data.datasets import frames as frames_lib


def gaps_text(frames: Sequence[frames_lib.Frame]) -> str:
    """The commonest distances of consecutive frames of a sequence, in frame numbers, as text."""
    return ", ".join(f"{gap} ({count} times)" for gap, count in _gaps(frames).most_common(5)) or "none"


def _gaps(frames: Sequence[frames_lib.Frame]) -> collections.Counter[int]:
    pairs = zip(frames[:-1], frames[1:], strict=True)
    return collections.Counter(b.number - a.number for a, b in pairs if a.sequence == b.sequence)


def clips(
    frames: Sequence[frames_lib.Frame], num_frames: int, gap: int, tolerance: int, *, is_any: bool = False
) -> np.ndarray:
    """Clips of T frames `gap` +- `tolerance` apart: every labelled frame with enough history is a target once.

    `is_any`: every frame is a target, labelled or not.

    Returns:
      i32 [N, T], places in `frames`, oldest first; those of the history need no labels.

    Raises:
      UserError: no frame is labelled, or not one clip exists; says which gaps there are.
    """
    if not is_any and not any(frame.label for frame in frames):
        raise errors.UserError(
            f"{frames[0].image.parent}: none of the {len(frames)} frames of this split has a label image; "
            "add labels or use another split"
        )
    place = {(frame.sequence, frame.number): i for i, frame in enumerate(frames)}
    offsets = range(max(gap - tolerance, 1), gap + tolerance + 1)
    nearest_first = sorted(offsets, key=lambda offset: (abs(offset - gap), offset))
    found = []
    for target, frame in enumerate(frames):
        chain = [target] if frame.label or is_any else []
        while 0 < len(chain) < num_frames:
            last = frames[chain[-1]]
            keys = ((last.sequence, last.number - offset) for offset in nearest_first)
            before = next((place[key] for key in keys if key in place), None)
            if before is None:
                break
            chain.append(before)
        if len(chain) == num_frames:
            found.append(chain[::-1])
    if not found:
        raise errors.UserError(
            f"{frames[0].image.parent}: no {num_frames} frames {gap} +- {tolerance} apart in any sequence; "
            f"gaps that exist: {gaps_text(frames)}; change data.num_frames, data.frame_gap or "
            "data.frame_gap_tolerance, or set data.history to 'stills'"
        )
    return np.array(found, np.int32)


def runs(frames: Sequence[frames_lib.Frame], gap: int, *, is_still: bool = False) -> list[list[int]]:
    """Maximal runs of frames exactly `gap` apart, as places in `frames`, each frame in one run at most.

    Runs without a label are left out, and so is what follows the last label of a run: it changes no score. Where
    nothing at all is labelled, all runs are whole.

    Raises:
      UserError: every run is a single frame (`is_still`: which is fine) although sequences have several.
    """
    place = {(frame.sequence, frame.number): i for i, frame in enumerate(frames)}
    found = []
    for i, frame in enumerate(frames):
        if (frame.sequence, frame.number - gap) in place:
            continue  # not the first of its run
        run, number = [i], frame.number + gap
        while (frame.sequence, number) in place:
            run.append(place[frame.sequence, number])
            number += gap
        found.append(run)
    if any(frame.label for frame in frames):
        ends = [max((t for t, i in enumerate(run) if frames[i].label), default=-1) for run in found]
        found = [run[: end + 1] for run, end in zip(found, ends, strict=True) if end >= 0]
    if not is_still and _gaps(frames) and all(len(run) == 1 for run in found):
        raise errors.UserError(
            f"{frames[0].image.parent}: no two frames are {gap} apart; gaps that exist: {gaps_text(frames)}; "
            "change data.eval_gap"
        )
    return found
