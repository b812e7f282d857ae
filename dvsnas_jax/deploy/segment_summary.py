"""The summary of a segmented video: the task, what is counted over the frames without labels to compare with, times."""

from __future__ import annotations

import array
import pathlib
from typing import Any

import numpy as np

from dvsnas_jax.core.files import json_text, output_files
from dvsnas_jax.deploy import load, segment_outputs
from dvsnas_jax.infer.video import sources

PERCENTILES = {"median": 50, "p90": 90, "p95": 95, "p99": 99, "worst": 100}
"""Of the latencies, by their names in the summary."""
_SAME_ASPECT = 0.02
"""Ratios of width to height that differ by no more are the same."""


class Tally:
    """What is counted over the frames of a segmenter of a mode; it grows by eight bytes a frame."""

    def __init__(self, mode: str) -> None:
        self.num_frames = 0
        self._is_refining = mode == "refine"
        self._seconds: dict[str, array.array[float]] = {}
        self._cuts: list[int] = []
        self._key_share = 0.0
        self._flickering = self._triples = 0
        self._history: list[np.ndarray] = []

    def add(self, labels: np.ndarray, is_cut: bool, key_share: float, seconds: float) -> None:
        """Counts the labels u8 [h, w] of one frame; the rest as in `segment_outputs.Found`."""
        if is_cut:
            self._cuts.append(self.num_frames)
            self._history.clear()
        kind = "all" if self._is_refining else {1.0: "key", 0.0: "cell"}.get(key_share, "regions")
        self._seconds.setdefault(kind, array.array("d")).append(seconds)
        self._key_share += key_share
        self._history.append(labels)
        if len(self._history) == 3:
            before, middle, now = self._history
            self._flickering += int(np.count_nonzero((before == now) & (middle != now)))
            self._triples += now.size
            self._history.pop(0)
        self.num_frames += 1

    def result(self, *, seconds: float, startup_seconds: float) -> dict[str, Any]:
        """Ready for JSON.

        Returns:
          `frames`; `latency_ms`: of the steps (`Found.seconds`: without reading and writing), by kind of frame
          (`key`, `cell`, `regions`; refine: `all`) `count`, `median`, `p90`, `p95`, `p99`, `worst`; `key_share`: share
          that the static network computed; `flicker`: share of pixels whose label changes for one frame and changes
          back, None below three frames; `cuts`: numbers of the frames that begin a new take; `fps`; both times.
        """
        latency = {}
        for kind, steps in sorted(self._seconds.items()):
            found = np.percentile(np.asarray(steps) * 1e3, list(PERCENTILES.values())).tolist()
            latency[kind] = {"count": len(steps), **dict(zip(PERCENTILES, found, strict=True))}
        return {
            "frames": self.num_frames,
            "latency_ms": latency,
            "key_share": self._key_share / self.num_frames if self.num_frames else None,
            "flicker": self._flickering / self._triples if self._triples else None,
            "cuts": self._cuts,
            "fps": self.num_frames / seconds,
            "seconds": seconds,
            "startup_seconds": startup_seconds,
        }


def task(segmenter: load.Segmenter, source: sources.Source, options: segment_outputs.Options) -> dict[str, Any]:
    """What the summary says of the task."""
    return {
        "input": source.label,
        "output": options.output,
        "masks": options.masks,
        "mode": segmenter.mode,
        "resets_at_cuts": options.do_reset,
        "input_size": list(source.size),
        "computed_size": list(segmenter.size),
        "trained_on": segmenter.trained_on or None,
        "classes": list(segmenter.classes),
        "about": about(segmenter, source, options.resize),
    }


def about(segmenter: load.Segmenter, source: sources.Source, resize: tuple[int, int] | None) -> list[str]:
    """What the network gets, and what it knows, a line each, for people: sizes are width x height."""
    (height, width), (rows, columns) = source.size, segmenter.size
    have, get = float(source.aspect) * width / height, columns / rows
    lines = [f"frames of {width}x{height} are segmented at that size"]
    if (height, width) != (rows, columns):
        lines = [f"frames of {width}x{height} are scaled to {columns}x{rows} for the network"]
        back = resize or source.size
        lines[0] += f", its labels to {back[1]}x{back[0]}" if tuple(back) != (rows, columns) else ""
    if abs(have / get - 1) > _SAME_ASPECT:
        lines[0] += f"; width to height changes from {have:.2f} to {get:.2f}: what it sees is distorted"
    known = f"the network was trained on {segmenter.trained_on}" if segmenter.trained_on else "the network was trained"
    names = ", ".join(segmenter.classes)
    lines.append(f"{known} at {columns}x{rows}, {len(segmenter.classes)} classes: {names}")
    return lines


def text(summary: dict[str, Any]) -> str:
    """The summary for people."""
    parts = [f"{summary['frames']} frames, {summary['fps']:.1f} frames/s"]
    if "steps_per_second" in summary:
        parts.append(f"steps alone {summary['steps_per_second']:.1f} frames/s")
    for kind, row in summary["latency_ms"].items():
        name = "" if kind == "all" else f" ({kind}, {row['count']} frames)"
        parts.append(f"{row['median']:.1f} ms a step, 95 % below {row['p95']:.1f} ms{name}")
    if summary["mode"] == "propagate":
        parts.append(f"key frames {100 * summary['key_share']:.0f} %")
    if summary["flicker"] is not None:
        parts.append(f"flicker {100 * summary['flicker']:.2f} %")
    parts.append(f"cuts at {', '.join(map(str, summary['cuts']))}" if summary["cuts"] else "no cuts")
    written = [f"written: {summary[key]}" for key in ("output", "masks") if summary[key]]
    return "\n".join([*parts, *written])


def write(path: str, summary: dict[str, Any]) -> None:
    """Writes the summary as JSON; raises UserError where it cannot be written."""
    try:
        pathlib.Path(path).write_text(json_text.dumps(summary, indent=1) + "\n")
    except OSError as error:
        raise output_files.refusal(path, error, flag="--summary") from None
