"""Segments a video: decoding, the network and writing work at the same time, on a bounded number of frames."""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dvsnas_jax.core import errors, json_text, progress, signals
from dvsnas_jax.data import prefetch
from dvsnas_jax.run import cuts, load, segment_summary, video, video_out

AHEAD = 4
"""Frames that wait to be segmented, and frames from the start of their step until they are written."""
RATED_FRAMES = 64
"""Frames that the rate of steps alone is measured on."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is written and how.

    Attributes:
      output: video file to write; None: none.
      masks: folder for masks as PNG; None: none.
      mask_format: one of `video_out.MASK_FORMATS`.
      is_side_by_side: left the static network alone, right the cell.
      resize: height and width that frames are brought to as they are read, and the outputs have; None: their own.
      alpha: weight of the labels' colours over the frame.
      do_reset: the state is reset where a cut is found.
      summary: JSON file to write; None: none.
      do_rate: measure the rate of steps alone afterwards.
    """

    output: str | None = None
    masks: str | None = None
    mask_format: str = "ids"
    is_side_by_side: bool = False
    resize: tuple[int, int] | None = None
    alpha: float = 0.5
    do_reset: bool = False
    summary: str | None = None
    do_rate: bool = False

    def check(self) -> None:
        """Checks the values and makes the folders.

        Raises:
          UserError: a value is out of range, nothing would be written, or a folder cannot be made.
        """
        if not (self.output or self.masks or self.summary):
            raise errors.UserError("nothing would be written; give --output, --masks or --summary")
        if self.is_side_by_side and not self.output:
            raise errors.UserError("--side-by-side: is a kind of video, give --output as well")
        if self.resize is not None and min(self.resize) < 1:
            raise errors.UserError(f"--resize: must be at least 1x1, got {self.resize[0]}x{self.resize[1]}")
        if not 0 <= self.alpha <= 1:
            raise errors.UserError(f"--alpha: must lie between 0 and 1, got {self.alpha:g}")
        if self.output:
            video_out.check_output(self.output)
        if self.masks:
            video_out.make_folder(pathlib.Path(self.masks), "--masks")
        if self.summary:
            video_out.make_folder(pathlib.Path(self.summary).parent, "--summary")

    def refuse_overwriting(self, source: video.Source) -> None:
        """Checks that no input would be written over.

        Raises:
          UserError: one would.
        """
        if self.output and any(_is_same(pathlib.Path(self.output), path) for path in source.paths):
            raise errors.UserError(f"--output: {self.output} is the input; give another name")
        if self.masks and any(_is_same(pathlib.Path(self.masks), path.parent) for path in source.paths[:1000]):
            raise errors.UserError(f"--masks: {self.masks} is the folder of the input; give another one")


def _is_same(a: pathlib.Path, b: pathlib.Path) -> bool:
    return a.exists() and a.samefile(b)


class Prepared(NamedTuple):
    """A frame that was read: `shown` u8 [H, W, 3] for the outputs, `seen` u8 [h, w, 3] for the network."""

    frame: video.Frame
    shown: np.ndarray
    seen: np.ndarray


class Found(NamedTuple):
    """A segmented frame.

    Attributes:
      prepared: the frame.
      labels: u8 [h, w].
      static: u8 [h, w], of the static network alone; None where that is not asked for.
      is_cut: a new take begins with it.
      key_share: share of it that the static network computed.
      seconds: of its step, from its start, or from the end of the step before where that is later, to its labels on the
        host. In it: the frame's way to the device, the choice of key frames, the network and the cell, and the static
        network alone where that is asked for; not in it: reading, resizing, drawing and writing. Those run at the same
        time and slow it down where they share its processor.
    """

    prepared: Prepared
    labels: np.ndarray
    static: np.ndarray | None
    is_cut: bool
    key_share: float
    seconds: float


class _Started(NamedTuple):
    """A step that was started: what `Found` has, its state, and when."""

    prepared: Prepared
    state: Any
    labels: jax.Array
    static: jax.Array | None
    is_cut: bool
    started: float


def run(segmenter: load.Segmenter, source: video.Source, options: Options) -> dict[str, Any]:
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
    started = time.perf_counter()
    tally, room = segment_summary.Tally(segmenter.mode), threading.Semaphore(AHEAD)
    first: list[np.ndarray] = []
    prepared = _prepare(source, segmenter.size, options)
    with signals.stop_on_signal() as stop, prefetch.on_host(prepared, depth=AHEAD) as read:
        _warm_up(segmenter, options)
        ready = time.perf_counter()
        outputs = _Outputs(source, segmenter, options)
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
    ended = time.perf_counter()
    summary = {
        **_described(segmenter, source, options),
        "output_size": outputs.size,
        **tally.result(),
        "fps": tally.num_frames / (ended - ready),
        "seconds": ended - ready,
        "startup_seconds": ready - started,
        "stopped_by": stop.name or None,
        "warnings": [*source.warnings, *outputs.notes],
    }
    for line in summary["warnings"]:
        print(f"dvsnas: warning: {line}", file=sys.stderr)
    if options.do_rate and not stop.requested:
        summary["steps_per_second"] = step_rate(segmenter, first, is_static_too=options.is_side_by_side)
    if options.summary:
        _write_summary(options.summary, summary)
    if stop.requested:
        raise errors.StoppedEarly(f"{stop.name} after {tally.num_frames} frames")
    return summary


def _described(segmenter: load.Segmenter, source: video.Source, options: Options) -> dict[str, Any]:
    """What the summary says of the task."""
    return {
        "input": source.label,
        "output": options.output,
        "masks": options.masks,
        "mode": segmenter.mode,
        "resets_at_cuts": options.do_reset,
        "input_size": list(source.size),
        "computed_size": list(segmenter.size),
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


def _prepare(source: video.Source, size: tuple[int, int], options: Options) -> Iterator[Prepared]:
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
        yield Prepared(frame, shown, resize_image(frame.image, size))


def _warm_up(segmenter: load.Segmenter, options: Options) -> None:
    """Compiles the programs of a first and of a second frame."""
    state, frame = segmenter.init(), np.zeros((*segmenter.size, 3), np.uint8)
    for _ in range(2):
        state, labels = segmenter.step(state, frame)
    segmenter.key_share(state)
    jax.block_until_ready((labels, segmenter.static_step(frame) if options.is_side_by_side else None))


def _follow(
    segmenter: load.Segmenter, prepared: Iterator[Prepared], options: Options, room: threading.Semaphore
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


def _finish(segmenter: load.Segmenter, steps: Iterator[_Started]) -> Iterator[Found]:
    """Waits for the labels, while the next step is started."""
    ready = 0.0
    with prefetch.on_host(steps, depth=1) as started:
        for item in started:
            labels, static = jax.device_get((item.labels, item.static))
            now = time.perf_counter()
            seconds, ready = now - max(item.started, ready), now
            share = 1.0 if segmenter.mode == "refine" else segmenter.key_share(item.state)
            yield Found(item.prepared, labels, static, item.is_cut, share, seconds)


class _Outputs:
    """The files that are written.

    Attributes:
      size: height and width of the video's frames, of the masks where there is none; None before the first frame.
      notes: what the user should know.
    """

    def __init__(self, source: video.Source, segmenter: load.Segmenter, options: Options) -> None:
        self.size: list[int] | None = None
        self.notes: list[str] = []
        self._source, self._options = source, options
        self._palette = video_out.Palette(segmenter.colors, options.alpha)
        self._table = None if options.mask_format == "ids" else self._palette.table
        self._writer: video_out.VideoWriter | None = None

    def write(self, found: Found) -> None:
        """Appends one frame."""
        shown = found.prepared.shown
        size = (shown.shape[0], shown.shape[1])
        labels = video_out.resize_labels(found.labels, size)
        self.size = self.size or list(size)
        if self._options.masks:
            video_out.write_mask(pathlib.Path(self._options.masks), found.prepared.frame.name, labels, self._table)
        if not self._options.output:
            return
        image = self._palette.overlay(shown, labels)
        if found.static is not None:
            image = np.concatenate(
                [self._palette.overlay(shown, video_out.resize_labels(found.static, size)), image], axis=1
            )
        if self._writer is None:
            self._writer = self._open((image.shape[0], image.shape[1]))
        self._writer.write(image, found.prepared.frame.pts)

    def _open(self, size: tuple[int, int]) -> video_out.VideoWriter:
        source = self._source
        writer = video_out.VideoWriter(
            pathlib.Path(str(self._options.output)),
            size,
            rate=source.rate,
            time_base=source.time_base,
            aspect=fractions.Fraction(1) if self._options.resize else source.aspect,
        )
        self.size = list(writer.size)
        if writer.size != size:
            self.notes.append(
                f"{self._options.output}: {size[0]}x{size[1]} padded to {writer.size[0]}x{writer.size[1]}, "
                "since H.264 needs even sizes"
            )
        return writer

    def close(self) -> None:
        """Makes the video playable."""
        if self._writer is not None:
            self._writer.close()


def _write_summary(path: str, summary: dict[str, Any]) -> None:
    try:
        pathlib.Path(path).write_text(json_text.dumps(summary, indent=1) + "\n")
    except OSError as error:
        raise errors.UserError(f"--summary: cannot write {path}: {error.strerror}") from None
