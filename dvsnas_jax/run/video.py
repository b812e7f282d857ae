"""Videos as frames: files (FFmpeg through PyAV), folders and globs of images, cameras; one frame in memory."""

from __future__ import annotations

import fractions
import glob
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av import error as av_error
from av.video import reformatter

from dvsnas_jax.core import errors
from dvsnas_jax.data import folders, listing

CAMERA = "camera:"
DEFAULT_RATE = fractions.Fraction(30)
"""Frames per second of what does not say it itself."""


class Frame(NamedTuple):
    """One frame.

    Attributes:
      image: u8 [H, W, 3], RGB, upright.
      pts: its time after the first frame, in units of `Source.time_base`; grows from frame to frame.
      name: number of the frame, or the name of its file without the suffix.
    """

    image: np.ndarray
    pts: int
    name: str


class Source:
    """A video that is open for reading, once, from its first frame on.

    Attributes:
      label: what the user called it.
      size: height and width, upright.
      rate: frames per second, on average.
      time_base: seconds of one unit of the time stamps.
      aspect: width of a pixel by its height.
      num_frames: how many there are, None where only reading tells.
      paths: of the files that are read.
      warnings: one line each, complete after the last frame.
    """

    def __init__(
        self,
        label: str,
        frames: Iterator[Frame],
        *,
        rate: fractions.Fraction = DEFAULT_RATE,
        time_base: fractions.Fraction,
        aspect: fractions.Fraction = fractions.Fraction(1),
        num_frames: int | None = None,
        paths: Sequence[pathlib.Path] = (),
        warnings: list[str] | None = None,
    ) -> None:
        """Reads the first frame.

        Raises:
          UserError: there is none.
        """
        self.label, self.rate, self.time_base = label, rate, time_base
        self.num_frames, self.paths = num_frames, tuple(paths)
        self.warnings = [] if warnings is None else warnings
        self._frames = frames
        first = next(frames, None)
        if first is None:
            raise errors.UserError(f"{label}: holds no frame; give another input")
        self._first: Frame | None = first
        self.size = (first.image.shape[0], first.image.shape[1])
        self.aspect = aspect

    def __iter__(self) -> Iterator[Frame]:
        """The frames; a second time there are none."""
        first, self._first = self._first, None
        try:
            yield from itertools.chain([] if first is None else [first], self._frames)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the file."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


def open_source(name: str, *, max_frames: int | None = None, rate: float | None = None) -> Source:
    """Opens a video.

    Args:
      name: a video file, a folder of images, a glob of images, one image, or `camera:NUMBER`.
      max_frames: no more than so many are read; None: all.
      rate: frames per second of images; None: `DEFAULT_RATE`.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if max_frames is not None and max_frames < 1:
        raise errors.UserError(f"number of frames: must be at least 1, got {max_frames}")
    if name.startswith(CAMERA):
        return _open_camera(name, max_frames)
    path = pathlib.Path(name)
    if path.is_dir():
        found = [entry for entry in path.iterdir() if is_image(entry) and not entry.name.startswith(".")]
        if not found:
            raise errors.UserError(f"{name}: the folder holds no image ({', '.join(listing.SUFFIXES)})")
        return _open_images(name, found, max_frames, rate)
    if not path.exists() and glob.has_magic(name):
        found = [pathlib.Path(match) for match in glob.glob(name, recursive=True)]
        if not found:
            raise errors.UserError(f"{name}: no file matches this pattern")
        if len(found) > 1 or is_image(found[0]):
            return _open_images(name, found, max_frames, rate)
        path = found[0]
    if not path.exists():
        raise errors.UserError(f"{name}: no such file or folder")
    if is_image(path):
        return _open_images(name, [path], max_frames, rate)
    if rate is not None:
        raise errors.UserError(f"{name}: a video file has a frame rate of its own; leave the rate out")
    return _open_file(path, max_frames)


def is_image(path: pathlib.Path) -> bool:
    """Whether the name of a file is that of an image."""
    return path.suffix.lower() in listing.SUFFIXES


def natural_key(path: pathlib.Path) -> list[tuple[int, str]]:
    """Sorts `2.png` before `10.png`."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]


def _open_images(label: str, paths: list[pathlib.Path], max_frames: int | None, rate: float | None) -> Source:
    """Images in the order of the numbers in their names."""
    for path in paths:
        if not is_image(path):
            raise errors.UserError(f"{path}: no image ({', '.join(listing.SUFFIXES)}); give a pattern of images alone")
    paths = sorted(paths, key=natural_key)[:max_frames]
    if rate is not None and not 0 < rate <= 1000:
        raise errors.UserError(f"frame rate: must be above 0 and at most 1000, got {rate:g}")
    given = DEFAULT_RATE if rate is None else fractions.Fraction(rate).limit_denominator(1001)
    names, warning = [path.stem for path in paths], listing.repeated_names(paths)
    if warning:
        names = [f"{index:06d}" for index in range(len(paths))]
    numbered = enumerate(zip(paths, names, strict=True))
    frames = (Frame(folders.read_image(path), index, name) for index, (path, name) in numbered)
    warnings = [f"{label}: {warning}"] if warning else []
    return Source(label, frames, rate=given, time_base=1 / given, num_frames=len(paths), paths=paths, warnings=warnings)


def _open_file(path: pathlib.Path, max_frames: int | None) -> Source:
    """A video file."""
    if not path.stat().st_size:
        raise errors.UserError(f"{path}: the file is empty; give another input")
    try:
        container = av.open(str(path))
    except av_error.FFmpegError as error:
        raise errors.UserError(
            f"{path}: no video that can be read ({_reason(error)}); it is of another kind, or damaged"
        ) from None
    return _make_source(str(path), container, max_frames, [path])


def _open_camera(name: str, max_frames: int | None) -> Source:
    """A camera of this machine."""
    number = name.removeprefix(CAMERA)
    if not number.isdecimal():
        raise errors.UserError(f"{name}: a camera has a number, for example {CAMERA}0")
    device, kind = (number, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{number}", "v4l2")
    if kind == "v4l2" and not os.path.exists(device):
        there = sorted(glob.glob("/dev/video*"))
        raise errors.UserError(f"{name}: no such camera ({device}); there is {', '.join(there) or 'none'}")
    try:
        container = av.open(device, format=kind)
    except (av_error.FFmpegError, ValueError) as error:
        raise errors.UserError(f"{name}: the camera cannot be opened ({_reason(error)})") from None
    return _make_source(name, container, max_frames, [])


def _make_source(label: str, container: Any, max_frames: int | None, paths: Sequence[pathlib.Path]) -> Source:
    """The first video stream of a container."""
    if not container.streams.video:
        container.close()
        raise errors.UserError(f"{label}: holds no video; give another input")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    warnings: list[str] = []
    frames: Iterator[Frame] = _decode(label, container, stream, warnings)
    if max_frames is not None:
        frames = _limit(frames, max_frames)
    counts = [count for count in (stream.frames or None, max_frames) if count is not None]
    return Source(
        label,
        frames,
        rate=stream.average_rate or stream.guessed_rate or DEFAULT_RATE,
        time_base=stream.time_base,
        aspect=stream.sample_aspect_ratio or fractions.Fraction(1),
        num_frames=min(counts, default=None),
        paths=paths,
        warnings=warnings,
    )


def _limit(frames: Iterator[Frame], max_frames: int) -> Iterator[Frame]:
    """The first frames; closes the iterator behind them."""
    try:
        yield from itertools.islice(frames, max_frames)
    finally:
        frames.close()  # type: ignore[attr-defined]


def _decode(label: str, container: Any, stream: Any, warnings: list[str]) -> Iterator[Frame]:
    """Decodes what can be decoded. At the end of a damaged file: one warning; an error where nothing could be."""
    num_frames = num_packets = 0
    reasons: list[str] = []
    first_pts = last_pts = None
    converter = reformatter.VideoReformatter()  # one for all frames: to make one takes longer than to use it
    step = max(round(1 / ((stream.average_rate or DEFAULT_RATE) * stream.time_base)), 1)
    with container:
        for packet in _packets(container, stream, reasons):
            num_packets += packet.size > 0
            try:
                decoded = packet.decode()
            except av_error.FFmpegError as error:
                reasons.append(_reason(error))
                continue
            for picture in decoded:
                pts = picture.pts if picture.pts is not None else (0 if last_pts is None else last_pts + step)
                pts = pts if last_pts is None else max(pts, last_pts + 1)
                first_pts = pts if first_pts is None else first_pts
                last_pts = pts
                yield Frame(_upright(picture, converter), pts - first_pts, f"{num_frames:06d}")
                num_frames += 1
    is_short = num_packets < stream.frames
    if reasons and not num_frames:
        raise errors.UserError(f"{label}: no frame of it can be decoded ({reasons[0]}); the file is damaged")
    if reasons or (is_short and num_frames):
        why = reasons[0] if reasons else "the file ends early"
        of = f" of {stream.frames}" if stream.frames else ""
        warnings.append(f"{label}: damaged ({why}); {num_frames}{of} frames could be read")


def _packets(container: Any, stream: Any, reasons: list[str]) -> Iterator[Any]:
    """The packets of a stream up to the first one that cannot be read."""
    try:
        yield from container.demux(stream)
    except av_error.FFmpegError as error:
        reasons.append(_reason(error))


def _upright(picture: Any, converter: reformatter.VideoReformatter) -> np.ndarray:
    """The picture as u8 [H, W, 3], turned as its metadata says (by quarters)."""
    image = converter.reformat(picture, format="rgb24", threads=1).to_ndarray()
    turns = round(picture.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _reason(error: Exception) -> str:
    """What FFmpeg says of an error, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
