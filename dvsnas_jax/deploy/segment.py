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
from PIL import Image

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import prefetch
from dvsnas_jax.deploy import load, segment_outputs, segment_summary
from dvsnas_jax.infer.video import cuts, video_in

AHEAD = 4
"""Frames that wait to be segmented, and frames from the start of their step until they are written."""
RATED_FRAMES = 64
"""Frames that the rate of steps alone is measured on."""


class _Started(NamedTuple):
    """A step that was started: what `Found` has, its state, and when."""

    prepared: segment_outputs.Prepared
    state: Any
    labels: jax.Array
    static: jax.Array | None
    is_cut: bool
    started: float


def run(segmenter: load.Segmenter, source: video_in.Source, options: segment_outputs.Options) -> dict[str, Any]:
    """Segments a video and writes what is asked for.

    Args:
      segmenter: of `load.load`.
      source: of `video.open_source`.
      options: checked.

    Returns:
      The summary, see `segment_summary.Tally.result`.

    Raises:
      UserError: an input or output fails; what was written is complete as far as it goes.
      StoppedEarly: SIGTERM or SIGINT arrived; likewise.
    """
    _check_sides(segmenter, options)
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
    summary = {
        **_described(segmenter, source, options),
        "output_size": outputs.size,
        **tally.result(),
        **_times(tally.num_frames, started, ready, time.perf_counter()),
        "stopped_by": stop.name or None,
        "warnings": [*source.warnings, *outputs.notes],
    }
    _say(summary["warnings"], told, "warning: ")
    if options.do_rate and not stop.requested:
        summary["steps_per_second"] = step_rate(segmenter, first, is_static_too=options.is_side_by_side)
    if options.summary:
        segment_outputs.write_summary(options.summary, summary)
    if stop.requested:
        raise errors.StoppedEarly(f"{stop.name} after {tally.num_frames} frames")
    return summary


def _check_sides(segmenter: load.Segmenter, options: segment_outputs.Options) -> None:
    """Whether the two sides of a video would differ.

    Raises:
      UserError: they would not.
    """
    if options.is_side_by_side and not segmenter.has_cell:
        raise errors.UserError(
            "--side-by-side: there is no cell, both sides would be the same network; leave it out, or train a cell "
            "(`dvsnas train --genotype=FILE`, `dvsnas search`)"
        )


def _say(lines: Sequence[str], told: list[str], kind: str = "") -> None:
    """Prints the lines that were not told yet."""
    for line in lines:
        if line not in told:
            print(f"dvsnas: {kind}{line}", file=sys.stderr)
            told.append(line)


def _times(num_frames: int, started: float, ready: float, ended: float) -> dict[str, float]:
    """What the summary says of the time."""
    seconds = ended - ready
    return {"fps": num_frames / seconds, "seconds": seconds, "startup_seconds": ready - started}


def _described(segmenter: load.Segmenter, source: video_in.Source, options: segment_outputs.Options) -> dict[str, Any]:
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
        "about": segment_summary.about(segmenter, source, options.resize),
    }


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame at another size, as the frames of a dataset are resized: u8 [H, W, 3] -> u8 [*size, 3]."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def step_rate(segmenter: load.Segmenter, frames: Sequence[np.ndarray], *, is_static_too: bool = False) -> float:
    """Frames per second of the steps alone, nothing else running: the programs are compiled, frames are in memory.

    Args:
      segmenter: that has seen such frames.
      frames: each u8 [h, w, 3].
      is_static_too: with the static network's own labels of each frame.
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
    source: video_in.Source, size: tuple[int, int], options: segment_outputs.Options
) -> Iterator[segment_outputs.Prepared]:
    """Frames in the size of the outputs and in that of the network."""
    wanted = options.resize or source.size
    is_told = False
    for frame in source:
        if frame.image.shape[:2] != source.size and not is_told:
            shape = frame.image.shape
            source.warnings.append(
                f"{source.label}: frame {frame.name} is {shape[0]}x{shape[1]}, the first one was "
                f"{source.size[0]}x{source.size[1]}; such frames were resized"
            )
            is_told = True
        shown = resize_image(frame.image, wanted)
        yield segment_outputs.Prepared(frame, shown, resize_image(frame.image, size))


def _warm_up(segmenter: load.Segmenter, options: segment_outputs.Options) -> None:
    """Compiles the programs of a first and of a second frame."""
    state, frame = segmenter.init(), np.zeros((*segmenter.size, 3), np.uint8)
    for _ in range(2):
        state, labels = segmenter.step(state, frame)
    segmenter.key_share(state)
    jax.block_until_ready((labels, segmenter.static_step(frame) if options.is_side_by_side else None))


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
