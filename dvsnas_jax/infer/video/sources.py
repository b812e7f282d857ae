"""Videos as frames: files, animations, folders and globs of images, cameras; one frame in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import decimal
import fractions
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.infer.video import animation, decoding

CAMERA = "camera:"
MAX_RATE = 1000
"""The highest rate that may be given; the lowest is one frame in so many seconds."""
_DECIMAL = re.compile(r"(?<![\d.])(\d+\.\d+)(?![\d.])")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_TEXT = decimal.Decimal(-1)
"""Before every number, where names are put in order."""


class Frame(NamedTuple):
    """One frame."""

    image: np.ndarray  # u8 [H, W, 3], RGB, upright
    pts: int  # its time after the first frame, in units of `Source.time_base`; grows from frame to frame
    name: str  # number of the frame, or the name of its file without the suffix
    is_lying: bool = False  # it was turned by a quarter: width and height, also of its pixels, were exchanged


@dataclasses.dataclass
class Source:
    """A video that is open for reading, once, from its first frame on, which is read at once."""

    label: str  # what the user called it
    frames: Iterator[Frame]
    time_base: fractions.Fraction  # seconds of one unit of the time stamps
    rate: fractions.Fraction  # frames per second, on average
    aspect: fractions.Fraction = fractions.Fraction(1)  # width of a pixel by its height: given as stored, then upright
    num_frames: int | None = None  # None where only reading tells
    paths: Sequence[pathlib.Path] = ()  # of the files that are read
    warnings: list[str] = dataclasses.field(default_factory=list)  # one line each, complete after the last frame
    size: tuple[int, int] = dataclasses.field(init=False)  # height and width, upright

    def __post_init__(self) -> None:
        first = next(self.frames, None)
        if first is None:
            raise errors.UserError(f"{self.label}: holds no frame; give another input")
        self._waiting = [first]
        self.size = (first.image.shape[0], first.image.shape[1])
        self.aspect = 1 / self.aspect if first.is_lying else self.aspect

    def __iter__(self) -> Iterator[Frame]:
        """The frames; a second time there are none."""
        try:
            while self._waiting:
                yield self._waiting.pop()
            yield from self.frames
        finally:
            if hasattr(self.frames, "close"):  # of the file
                self.frames.close()


def open_source(name: str, *, max_frames: int | None = None, rate: float | None = None) -> Source:
    """Opens a video file, an animation (GIF, PNG, WebP), a folder or a glob of images, one image, or `camera:NUMBER`.

    No more than `max_frames` are read; `rate` is the frames per second of images (None: `decoding.DEFAULT_RATE`).

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if max_frames is not None and max_frames < 1:
        raise errors.UserError(f"--max-frames: must be at least 1, got {max_frames}")
    if name.startswith(CAMERA):
        return _of_stream(name, decoding.open_camera(name, name.removeprefix(CAMERA)), max_frames, [])
    path, is_there = pathlib.Path(name), _is_there(name)
    if path.is_dir():
        return _of_images(name, _images_in(path), max_frames, rate)
    if not is_there and glob.has_magic(name):
        found = _matches(name)
        if len(found) > 1:
            return _of_images(name, found, max_frames, rate)
        path, is_there = found[0], True
    if not is_there:
        raise errors.UserError(f"{name}: no such file or folder; give another input")
    if not image_files.is_image(path):
        if rate is not None:
            raise errors.UserError(f"{name}: a video file has a frame rate of its own; leave --fps out")
        return _of_stream(str(path), decoding.open_file(path), max_frames, [path])
    if animation.count(path) != 1:
        return _of_animation(path, max_frames, rate)
    return _of_images(name, [path], max_frames, rate)


def _is_there(name: str) -> bool:
    """Whether there is a file or folder of a name.

    Raises UserError: nobody can say, for example of a name that is too long.
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

    Raises UserError: there is none, or the folder cannot be listed.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and not entry.is_dir())
    except OSError as error:
        raise errors.UserError(f"{folder}: cannot be listed ({error.strerror}); correct its permissions") from None
    images = [entry for entry in entries if image_files.is_image(entry)]
    images = [entry for entry in images if entry.suffix.lower() != ".gif"] or images
    if not images:
        there = f"; there is {entries[0].name}: give the file itself, or convert it" if entries else ""
        raise errors.UserError(f"{folder}: the folder holds no image ({', '.join(image_files.SUFFIXES)}){there}")
    return images


def _matches(pattern: str) -> list[pathlib.Path]:
    """The files that match a pattern, whose folder may have brackets in its name; UserError where there is none."""
    found = glob.glob(pattern, recursive=True)
    if not found:
        folder, name = os.path.split(pattern)
        found = glob.glob(os.path.join(glob.escape(folder), name))
    files = [pathlib.Path(match) for match in found if not os.path.isdir(match)]
    if not files:
        raise errors.UserError(f"{pattern}: no file matches this pattern; give another one, in quotes")
    return files


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


def _of_images(label: str, paths: list[pathlib.Path], max_frames: int | None, rate: float | None) -> Source:
    """Images in the order of the numbers in their names."""
    for path in paths:
        if not image_files.is_image(path):
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
    return Source(label, frames, 1 / given, given, num_frames=len(paths), paths=paths, warnings=warnings)


def _rate(rate: float | None) -> fractions.Fraction:
    """Frames per second of images; raises UserError where they are out of range."""
    if rate is not None and not 1 / MAX_RATE <= rate <= MAX_RATE:
        raise errors.UserError(f"--fps: must be from {1 / MAX_RATE:g} to {MAX_RATE}, got {rate:g}")
    return decoding.DEFAULT_RATE if rate is None else fractions.Fraction(rate).limit_denominator(1001)


def _of_animation(path: pathlib.Path, max_frames: int | None, rate: float | None) -> Source:
    """A file of several pictures, with its own times where it has some."""
    warnings: list[str] = []
    pictures = animation.read(path, warnings)
    image, shown = next(pictures)
    if shown is not None and rate is not None:
        raise errors.UserError(f"{path}: an animation has times of its own; leave --fps out")
    given = _rate(rate) if shown is None else fractions.Fraction(animation.UNITS, max(shown, 1))
    base = 1 / given if shown is None else fractions.Fraction(1, animation.UNITS)

    def timed() -> Iterator[Frame]:
        pts = 0
        for index, (picture, milliseconds) in enumerate(itertools.chain([(image, shown)], pictures)):
            yield Frame(picture, pts, f"{index:06d}")
            pts += 1 if milliseconds is None else max(milliseconds, 1)

    num_frames, frames = _least(animation.count(path), max_frames), itertools.islice(timed(), max_frames)
    return Source(str(path), frames, base, given, num_frames=num_frames, paths=[path], warnings=warnings)


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)


def _of_stream(label: str, container: Any, max_frames: int | None, paths: Sequence[pathlib.Path]) -> Source:
    """The main video stream of a container."""
    stream = decoding.main_stream(container)
    if stream is None:
        kind = "no video, only a cover picture" if container.streams.video else "no video"
        container.close()
        raise errors.UserError(f"{label}: holds {kind}; give another input")
    warnings: list[str] = []

    def frames() -> Iterator[Frame]:
        with contextlib.closing(decoding.decode(label, container, stream, warnings)) as decoded:
            for index, (image, pts, is_lying) in enumerate(itertools.islice(decoded, max_frames)):
                yield Frame(image, pts, f"{index:06d}", is_lying)

    return Source(
        label,
        frames(),
        stream.time_base,
        stream.average_rate or stream.guessed_rate or decoding.DEFAULT_RATE,
        stream.sample_aspect_ratio or fractions.Fraction(1),
        _least(stream.frames or None, max_frames),
        paths,
        warnings,
    )
