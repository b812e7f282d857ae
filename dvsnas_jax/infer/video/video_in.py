"""Videos as frames: files (FFmpeg through PyAV), folders and globs of images, cameras; one frame in memory."""

from __future__ import annotations

import dataclasses
import decimal
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

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.infer.video import animation, video_pictures

CAMERA = "camera:"
DEFAULT_RATE = fractions.Fraction(30)
"""Frames per second of what does not say it itself."""
MAX_RATE = 1000
"""The highest rate that may be given; the lowest is one frame in so many seconds."""
_DECIMAL = re.compile(r"(?<![\d.])(\d+\.\d+)(?![\d.])")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_TEXT = decimal.Decimal(-1)
"""Before every number, where names are put in order."""


class Frame(NamedTuple):
    """One frame.

    Attributes:
      image: u8 [H, W, 3], RGB, upright.
      pts: its time after the first frame, in units of `Source.time_base`; grows from frame to frame.
      name: number of the frame, or the name of its file without the suffix.
      is_lying: it was turned by a quarter: width and height, also of its pixels, were exchanged.
    """

    image: np.ndarray
    pts: int
    name: str
    is_lying: bool = False


class Source:
    """A video that is open for reading, once, from its first frame on.

    Attributes:
      label: what the user called it.
      size: height and width, upright.
      rate: frames per second, on average.
      time_base: seconds of one unit of the time stamps.
      aspect: width of a pixel by its height, upright.
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
        self.aspect = 1 / aspect if first.is_lying else aspect

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
      name: a video file, an animation (GIF, PNG, WebP), a folder of images, a glob of images, one image, or
        `camera:NUMBER`.
      max_frames: no more than so many are read; None: all.
      rate: frames per second of images; None: `DEFAULT_RATE`.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if max_frames is not None and max_frames < 1:
        raise errors.UserError(f"--max-frames: must be at least 1, got {max_frames}")
    if name.startswith(CAMERA):
        return _open_camera(name, max_frames)
    path, is_there = pathlib.Path(name), _is_there(name)
    if path.is_dir():
        return _open_images(name, _images_in(path), max_frames, rate)
    if not is_there and glob.has_magic(name):
        found = _matches(name)
        if len(found) > 1:
            return _open_images(name, found, max_frames, rate)
        path, is_there = found[0], True
    if not is_there:
        raise errors.UserError(f"{name}: no such file or folder; give another input")
    if is_image(path) and animation.count(path) != 1:
        return _open_animation(path, max_frames, rate)
    if is_image(path):
        return _open_images(name, [path], max_frames, rate)
    if rate is not None:
        raise errors.UserError(f"{name}: a video file has a frame rate of its own; leave --fps out")
    return _open_file(path, max_frames)


def _is_there(name: str) -> bool:
    """Whether there is a file or folder of a name.

    Raises:
      UserError: nobody can say, for example of a name that is too long.
    """
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise errors.UserError(f"{name}: cannot be read ({error.strerror}); give another input") from None
    return True


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a folder. A GIF beside other images is a picture of them, no frame.

    Raises:
      UserError: there is none, or the folder cannot be listed.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and not entry.is_dir())
    except OSError as error:
        raise errors.UserError(f"{folder}: cannot be listed ({error.strerror}); correct its permissions") from None
    images = [entry for entry in entries if is_image(entry)]
    images = [entry for entry in images if entry.suffix.lower() != ".gif"] or images
    if not images:
        there = f"; there is {entries[0].name}: give the file itself, or convert it" if entries else ""
        raise errors.UserError(f"{folder}: the folder holds no image ({', '.join(image_files.SUFFIXES)}){there}")
    return images


def _matches(pattern: str) -> list[pathlib.Path]:
    """The files that match a pattern, whose folder may have brackets in its name.

    Raises:
      UserError: there is none.
    """
    found = glob.glob(pattern, recursive=True)
    if not found:
        folder, name = os.path.split(pattern)
        found = glob.glob(os.path.join(glob.escape(folder), name))
    files = [pathlib.Path(match) for match in found if not os.path.isdir(match)]
    if not files:
        raise errors.UserError(f"{pattern}: no file matches this pattern; give another one, in quotes")
    return files


def is_image(path: pathlib.Path) -> bool:
    """Whether the name of a file is that of an image."""
    return path.suffix.lower() in image_files.SUFFIXES


def in_order(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Files by the numbers in their names: `2.png` before `10.png`, the time `0.15.png` before `0.2.png`.

    A number with a point is a decimal one, but for counters as 1.9, 1.10: decimals of several lengths end in no 0.
    """
    digits = [match[1].partition(".")[2] for path in paths for match in _DECIMAL.finditer(path.stem)]
    is_counter = len(set(map(len, digits))) > 1 and any(len(each) > 1 and each.endswith("0") for each in digits)

    def key(path: pathlib.Path) -> list[tuple[decimal.Decimal, str]]:
        parts: list[str] = re.split(r"(\d+)", f"{path.parent}/")
        for index, part in enumerate([path.stem] if is_counter else _DECIMAL.split(path.stem)):
            parts += [part] if index % 2 else re.split(r"(\d+)", part)
        found = [(decimal.Decimal(part), "") if _NUMBER.fullmatch(part) else (_TEXT, part) for part in parts if part]
        return [*found, (_TEXT, path.name)]

    return sorted(paths, key=key)


def _open_images(label: str, paths: list[pathlib.Path], max_frames: int | None, rate: float | None) -> Source:
    """Images in the order of the numbers in their names."""
    for path in paths:
        if not is_image(path):
            known = ", ".join(image_files.SUFFIXES)
            raise errors.UserError(f"{path}: no image ({known}); give a pattern of images alone")
    paths = in_order(paths)[:max_frames]
    given = _rate(rate)
    names, warning = [path.stem for path in paths], image_files.repeated_names(paths)
    if warning:
        names = [f"{index:06d}" for index in range(len(paths))]
    numbered = enumerate(zip(paths, names, strict=True))
    frames = (Frame(image_files.read_image(path), index, name) for index, (path, name) in numbered)
    warnings = [f"{label}: {warning}"] if warning else []
    return Source(label, frames, rate=given, time_base=1 / given, num_frames=len(paths), paths=paths, warnings=warnings)


def _rate(rate: float | None) -> fractions.Fraction:
    """Frames per second of images.

    Raises:
      UserError: out of range.
    """
    if rate is not None and not 1 / MAX_RATE <= rate <= MAX_RATE:
        raise errors.UserError(f"--fps: must be from {1 / MAX_RATE:g} to {MAX_RATE}, got {rate:g}")
    return DEFAULT_RATE if rate is None else fractions.Fraction(rate).limit_denominator(1001)


def _open_animation(path: pathlib.Path, max_frames: int | None, rate: float | None) -> Source:
    """A file of several pictures, with its own times where it has some."""
    warnings: list[str] = []
    pictures = animation.read(path, warnings)
    image, shown = next(pictures)
    if shown is not None and rate is not None:
        raise errors.UserError(f"{path}: an animation has times of its own; leave --fps out")
    given = _rate(rate)
    base = 1 / given if shown is None else fractions.Fraction(1, animation.UNITS)

    def timed() -> Iterator[Frame]:
        pts = 0
        for index, (picture, milliseconds) in enumerate(itertools.chain([(image, shown)], pictures)):
            yield Frame(picture, pts, f"{index:06d}")
            pts += 1 if milliseconds is None else max(milliseconds, 1)

    counts = [count for count in (animation.count(path), max_frames) if count is not None]
    return Source(
        str(path),
        itertools.islice(timed(), max_frames),
        rate=given if shown is None else fractions.Fraction(animation.UNITS, max(shown, 1)),
        time_base=base,
        num_frames=min(counts, default=None),
        paths=[path],
        warnings=warnings,
    )


def _open_file(path: pathlib.Path, max_frames: int | None) -> Source:
    """A video file."""
    if not path.stat().st_size:
        raise errors.UserError(f"{path}: the file is empty; give another input")
    try:
        container = av.open(f"file:{path}")  # a name with a colon is no address
    except av_error.FFmpegError as error:
        raise errors.UserError(
            f"{path}: no video that can be read ({_reason(error)}), of another kind or damaged; give another input"
        ) from None
    return _make_source(str(path), container, max_frames, [path])


def _open_camera(name: str, max_frames: int | None) -> Source:
    """A camera of this machine."""
    number = name.removeprefix(CAMERA)
    if not number.isdecimal():
        raise errors.UserError(f"{name}: a camera needs a number, for example {CAMERA}0")
    device, kind = (number, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{number}", "v4l2")
    if kind == "v4l2" and not os.path.exists(device):
        there = sorted(glob.glob("/dev/video*"))
        shown = ", ".join(there) or "none"
        raise errors.UserError(f"{name}: no such camera ({device}, there is {shown}); give another input")
    try:
        container = av.open(device, format=kind)
    except (av_error.FFmpegError, ValueError) as error:
        raise errors.UserError(f"{name}: the camera cannot be opened ({_reason(error)}); give another input") from None
    return _make_source(name, container, max_frames, [])


def _make_source(label: str, container: Any, max_frames: int | None, paths: Sequence[pathlib.Path]) -> Source:
    """The main video stream of a container."""
    stream = video_pictures.main_stream(container)
    if stream is None:
        kind = "no video, only a cover picture" if container.streams.video else "no video"
        container.close()
        raise errors.UserError(f"{label}: holds {kind}; give another input")
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
    num_frames, last_pts = 0, None
    damage = _Damage()
    first_pts: int | None = None
    converter = video_pictures.Converter(label, warnings)
    step = max(round(1 / ((stream.average_rate or DEFAULT_RATE) * stream.time_base)), 1)
    with container:
        for picture in video_pictures.deinterlaced(_pictures(container, stream, damage)):
            pts = None if picture.pts is None else round(picture.pts * picture.time_base / stream.time_base)
            pts = pts if pts is not None else (0 if last_pts is None else last_pts + step)
            pts = pts if last_pts is None else max(pts, last_pts + 1)
            first_pts = pts if first_pts is None else first_pts
            last_pts = pts
            is_lying = video_pictures.is_lying(video_pictures.turn(picture))
            yield Frame(converter.convert(picture), pts - first_pts, f"{num_frames:06d}", is_lying)
            num_frames += 1
    is_short = damage.num_packets < stream.frames
    if damage.reasons and not num_frames:
        raise errors.UserError(
            f"{label}: no frame of it can be decoded ({damage.reasons[0]}), the file is damaged; give another input"
        )
    if damage.reasons or (is_short and num_frames):
        why = damage.reasons[0] if damage.reasons else "the file ends early"
        of = f" of {stream.frames}" if stream.frames else ""
        warnings.append(f"{label}: damaged ({why}); {num_frames}{of} frames could be read")


@dataclasses.dataclass
class _Damage:
    """What was met while a file was read: packets with content, and why some could not be decoded."""

    num_packets: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)


def _pictures(container: Any, stream: Any, damage: _Damage) -> Iterator[Any]:
    """What can be decoded of a stream."""
    for packet in _packets(container, stream, damage.reasons):
        damage.num_packets += packet.size > 0
        try:
            decoded = packet.decode()
        except av_error.FFmpegError as error:
            damage.reasons.append(_reason(error))
            continue
        yield from decoded


def _packets(container: Any, stream: Any, reasons: list[str]) -> Iterator[Any]:
    """The packets of a stream up to the first one that cannot be read."""
    try:
        yield from container.demux(stream)
    except av_error.FFmpegError as error:
        reasons.append(_reason(error))


def _reason(error: Exception) -> str:
    """What FFmpeg says of an error, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
