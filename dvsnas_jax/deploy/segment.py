"""Segments a video: decoding, the network and writing work at the same time, on a bounded number of frames."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import image_files
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import prefetch
from dvsnas_jax.deploy import load, segment_outputs, segment_summary
from dvsnas_jax.infer.video import cuts, sources

AHEAD = 4
"""Frames that wait to be segmented, and frames from the start of their step until they are written."""
RATED_FRAMES = 64
"""Frames that the rate of steps alone is measured on."""


def run(segmenter: load.Segmenter, source: sources.Source, options: segment_outputs.Options) -> dict[str, Any]:
    """Segments a video and writes what the checked options ask for.

    Returns:
      The summary, see `segment_summary`.

    Raises:
      UserError: an input or output fails; what was written is complete as far as it goes.
      StoppedEarly: SIGTERM or SIGINT arrived; likewise.
    """
    if options.is_side_by_side and not segmenter.has_cell:
        raise errors.UserError(
            "--side-by-side: there is no cell, both sides would be the same network; leave it out, or train a cell "
            "(`dvsnas train --genotype=FILE`, `dvsnas search`)"
        )
    options.make_folders()
    started, told = time.perf_counter(), list[str]()
    _say(segment_summary.about(segmenter, source, options.resize), told)
    _say(source.warnings, told, "warning: ")
    tally, room = segment_summary.Tally(segmenter.mode), threading.Semaphore(AHEAD)
    first: list[np.ndarray] = []
    prepared = _prepare(source, segmenter.size, options)
    with signals.stop_on_signal() as stop, prefetch.on_host(prepared, depth=AHEAD) as read:
        _warm_up(segmenter, options)
        ready = time.perf_counter()
        outputs = segment_outputs.Outputs(source, segmenter, options)
        steps = _follow(segmenter, read, options, room)
        found = prefetch.on_host(_finish(segmenter, steps), depth=AHEAD)
        with contextlib.ExitStack() as stack:
            stack.callback(outputs.close)
            stack.enter_context(found)
            bar = stack.enter_context(progress.bar(source.num_frames, "segment"))
            stack.callback(room.release, 2 * AHEAD)  # a step that waits for room would keep `found` from closing
            for item in found:
                outputs.write(item)
                room.release()
                tally.add(item.labels, item.is_cut, item.key_share, item.seconds)
                if len(first) < RATED_FRAMES:
                    first.append(item.prepared.seen)
                bar.update()
                if stop.requested:
                    break
    summary = {**segment_summary.task(segmenter, source, options), "output_size": outputs.size}
    summary |= tally.result(startup_seconds=ready - started, seconds=time.perf_counter() - ready)
    summary |= {"stopped_by": stop.name or None, "warnings": [*source.warnings, *outputs.notes]}
    _say(summary["warnings"], told, "warning: ")
    if options.do_rate and not stop.requested:
        summary["steps_per_second"] = _step_rate(segmenter, first, is_static_too=options.is_side_by_side)
    if options.summary:
        segment_summary.write(options.summary, summary)
    if stop.requested:
        raise errors.StoppedEarly(f"{stop.name} after {tally.num_frames} frames")
    return summary


def _say(lines: Sequence[str], told: list[str], kind: str = "") -> None:
    """Prints the lines that were not told yet."""
    for line in lines:
        if line not in told:
            print(f"dvsnas: {kind}{line}", file=sys.stderr)
            told.append(line)


def _step_rate(segmenter: load.Segmenter, frames: Sequence[np.ndarray], *, is_static_too: bool) -> float:
    """Frames u8 [h, w, 3] per second of the steps alone, nothing else running, by programs that are compiled.

    `is_static_too`: with the static network's own labels of each frame.
    """
    state, before = segmenter.init(), None
    started = time.perf_counter()
    for frame in frames:
        static = segmenter.static_step(frame) if is_static_too else None
        state, labels = segmenter.step(state, frame)
        jax.device_get(before)  # as in `run`, the labels of a frame are fetched while the next one is computed
        before = (labels, static)
    jax.device_get(before)
    return len(frames) / (time.perf_counter() - started)


def _prepare(
    source: sources.Source, size: tuple[int, int], options: segment_outputs.Options
) -> Iterator[segment_outputs.Prepared]:
    """Frames in the size of the outputs and in that of the network."""
    wanted = options.resize or source.size
    is_told = False
    for frame in source:
        height, width = frame.image.shape[:2]
        if (height, width) != source.size and not is_told:
            source.warnings.append(
                f"{source.label}: frame {frame.name} is {height}x{width}, the first one was "
                f"{source.size[0]}x{source.size[1]}; such frames were resized"
            )
            is_told = True
        shown, seen = image_files.resized(frame.image, wanted), image_files.resized(frame.image, size)
        yield segment_outputs.Prepared(frame, shown, seen)


def _warm_up(segmenter: load.Segmenter, options: segment_outputs.Options) -> None:
    """Compiles the programs of a first and of a second frame."""
    state, frame = segmenter.init(), np.zeros((*segmenter.size, 3), np.uint8)
    for _ in range(2):
        state, labels = segmenter.step(state, frame)
    segmenter.key_share(state)
    jax.block_until_ready((labels, segmenter.static_step(frame) if options.is_side_by_side else None))


class _Started(NamedTuple):
    """A step that was started: what `Found` has, its state, and when."""

    prepared: segment_outputs.Prepared
    state: Any
    labels: jax.Array
    static: jax.Array | None
    is_cut: bool
    started: float


def _follow(
    segmenter: load.Segmenter,
    prepared: Iterator[segment_outputs.Prepared],
    options: segment_outputs.Options,
    room: threading.Semaphore,
) -> Iterator[_Started]:
    """Starts the steps; does not wait for them. None is started without room: its time would hold that of writing."""
    state = segmenter.init()
    for item, is_cut in cuts.mark(prepared, lambda item: item.seen):
        if is_cut and options.do_reset:
            state = segmenter.init()
        room.acquire()
        started = time.perf_counter()
        static = segmenter.static_step(item.seen) if options.is_side_by_side else None
        state, labels = segmenter.step(state, item.seen)
        yield _Started(item, state, labels, static, is_cut, started)


def _finish(segmenter: load.Segmenter, steps: Iterator[_Started]) -> Iterator[segment_outputs.Found]:
    """Waits for the labels, while the next step is started."""
    ready = 0.0
    with prefetch.on_host(steps, depth=1) as started:
        for item in started:
            labels, static = jax.device_get((item.labels, item.static))
            now = time.perf_counter()
            seconds, ready = now - max(item.started, ready), now
            share = 1.0 if segmenter.mode == "refine" else segmenter.key_share(item.state)
            yield segment_outputs.Found(item.prepared, labels, static, item.is_cut, share, seconds)
