"""Video files and cameras (FFmpeg through PyAV) as upright RGB, as their metadata says: matrix and range of colours,
turn, fields, HDR; of damaged files what can be decoded.

What says nothing of its colours is BT.601 with limited range, as FFmpeg has it: so are frames that it extracts.
"""

from __future__ import annotations

import dataclasses
import fractions
import glob
import os
import pathlib
import sys
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import av
import numpy as np
from av import error as av_error
from av import filter as av_filter
from av.video import reformatter

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_files
from dvsnas_jax.infer.video import hdr

DEFAULT_RATE = fractions.Fraction(30)
"""Frames per second of what does not say it itself."""
_ATTACHED = 0x400 | 0x800
"""Dispositions of what is a picture beside the video: a cover, thumbnails."""
_DEFAULT = 0x1
_QUICK = reformatter.Interpolation.BILINEAR
_EXACT = _QUICK | reformatter.Interpolation.ACCURATE_RND | reformatter.Interpolation.FULL_CHR_H_INT
"""FFmpeg's quick way from 10 bits to 8 is too dark by up to 2 of 255, which HDR multiplies."""
Decoded = Generator[tuple[np.ndarray, int, bool], None, None]
_UNREADABLE = {8: "YCgCo", 10: "BT.2020 of constant luminance", 14: "ICtCp (Dolby Vision)", 15: "IPT (Dolby Vision)"}


def open_file(path: pathlib.Path) -> Any:
    """A video file; raises UserError where it is none that can be read."""
    if not path.stat().st_size:
        raise errors.UserError(f"{path}: the file is empty; give another input")
    try:
        return av.open(f"file:{path}")  # a name with a colon is no address
    except av_error.FFmpegError as error:
        raise errors.UserError(
            f"{path}: no video that can be read ({json_files.reason(error)}), of another kind or damaged; "
            "give another input"
        ) from None


def open_camera(name: str, number: str) -> Any:
    """A camera of this machine, by its number; `name` is what the user called it.

    Raises UserError: there is none, or it cannot be opened.
    """
    if not number.isdecimal():
        raise errors.UserError(f"{name}: a camera needs a number, for example camera:0")
    device, kind = (number, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{number}", "v4l2")
    if kind == "v4l2" and not os.path.exists(device):
        there = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
        raise errors.UserError(f"{name}: no such camera ({device}, there is {there}); give another input")
    try:
        return av.open(device, format=kind)
    except (av_error.FFmpegError, ValueError) as error:
        why = json_files.reason(error)
        raise errors.UserError(f"{name}: the camera cannot be opened ({why}); give another input") from None


def main_stream(container: Any) -> Any:
    """The video stream to read: the one marked as default, else the first; None where there are covers at most."""
    streams = [stream for stream in container.streams.video if not int(stream.disposition) & _ATTACHED]
    marked = [stream for stream in streams if int(stream.disposition) & _DEFAULT]
    return (marked or streams or [None])[0]


def decode(label: str, container: Any, stream: Any, warnings: list[str]) -> Decoded:
    """Decodes what can be decoded of the video `label`, and closes it; what is worth a line is added to `warnings`.

    Yields:
      The picture u8 [H, W, 3], upright; its time after the first one, in units of the stream's time base, growing;
      whether it was turned by a quarter: width and height, also of its pixels, were exchanged.

    Raises:
      UserError: nothing can be decoded, or FFmpeg knows no way from the colours to RGB.
    """
    stream.thread_type = "AUTO"
    num_frames, damage, to_rgb = 0, _Damage(), _rgb_converter(label, warnings)
    first = last = None
    step = max(round(1 / ((stream.average_rate or DEFAULT_RATE) * stream.time_base)), 1)
    with container:
        for picture in _deinterlaced(_pictures(container, stream, damage)):
            pts = None if picture.pts is None else round(picture.pts * picture.time_base / stream.time_base)
            if first is None or last is None:
                first = last = pts or 0
            else:
                last = last + step if pts is None else max(pts, last + 1)
            matrix = _display_matrix(picture)
            yield _turned(to_rgb(picture), matrix), last - first, _is_lying(matrix)
            num_frames += 1
    if damage.reasons and not num_frames:
        raise errors.UserError(
            f"{label}: no frame of it can be decoded ({damage.reasons[0]}), the file is damaged; give another input"
        )
    if damage.reasons or (num_frames and damage.num_packets < stream.frames):
        why = damage.reasons[0] if damage.reasons else "the file ends early"
        of = f" of {stream.frames}" if stream.frames else ""
        warnings.append(f"{label}: damaged ({why}); {num_frames}{of} frames could be read")


@dataclasses.dataclass
class _Damage:
    """What was met while a file was read: packets with content, and why some could not be decoded."""

    num_packets: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)


def _pictures(container: Any, stream: Any, damage: _Damage) -> Iterator[Any]:
    """What can be decoded of a stream, up to the first packet that cannot be read."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av_error.FFmpegError as error:
            damage.reasons.append(json_files.reason(error))
            return
        if packet is None:
            return
        damage.num_packets += packet.size > 0
        try:
            decoded = packet.decode()
        except av_error.FFmpegError as error:
            damage.reasons.append(json_files.reason(error))
            continue
        yield from decoded


def _deinterlaced(pictures: Iterable[Any]) -> Iterator[Any]:
    """The pictures; from the first interlaced one on with both fields brought to one time (FFmpeg's yadif)."""
    graph = kind = None
    for picture in pictures:
        now = (picture.width, picture.height, picture.format.name)
        if graph is not None and now != kind:
            yield from _pull(graph, None)
            graph = None
        if graph is None and picture.interlaced_frame:
            graph, kind = _yadif(picture), now
        if graph is None:
            yield picture
        else:
            yield from _pull(graph, picture)
    if graph is not None:
        yield from _pull(graph, None)


def _yadif(picture: Any) -> Any:
    graph = av_filter.Graph()
    size = {"width": picture.width, "height": picture.height}
    source = graph.add_buffer(**size, format=picture.format, time_base=picture.time_base)
    graph.link_nodes(source, graph.add("yadif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _pull(graph: Any, picture: Any) -> Iterator[Any]:
    """What the filter gives for one more picture, None: for the end."""
    graph.push(picture)
    while True:
        try:
            yield graph.pull()
        except (av_error.BlockingIOError, av_error.EOFError):
            return


def _rgb_converter(label: str, warnings: list[str]) -> Any:
    """A function that makes u8 [H, W, 3] of a decoded picture, as it lies in the file."""
    converter = reformatter.VideoReformatter()  # one for all: to make one takes longer than to use it

    def convert(picture: Any) -> np.ndarray:
        way = _EXACT if picture.format.components[0].bits > 8 else _QUICK
        try:
            image = converter.reformat(picture, format="rgb24", interpolation=way, threads=1).to_ndarray()
        except OSError as error:
            matrix = int(picture.colorspace)
            name = _UNREADABLE.get(matrix, f"those of matrix {matrix} of ITU-T H.273")
            raise errors.UserError(
                f"{label}: its colours are {name}, which cannot be read ({error.strerror or error}); "
                "convert it to BT.709 first"
            ) from None
        transfer = int(picture.color_trc)
        if transfer not in hdr.NAMES:
            return image
        line = (
            f"{label}: HDR ({hdr.NAMES[transfer]}) is brought to the range of ordinary video, highlights are compressed"
        )
        if line not in warnings:
            warnings.append(line)
        return hdr.to_ordinary(image, transfer, int(picture.color_primaries))

    return convert


def _display_matrix(picture: Any) -> np.ndarray | None:
    """[[a, b], [c, d]] of a picture: pixel (x, y) belongs at (a x + c y, b x + d y); None: it stands as it lies."""
    side = next((side for side in picture.side_data if side.type.name == "DISPLAYMATRIX"), None)
    if side is None:
        return None
    return np.frombuffer(side, "<i4").reshape(3, 3)[:2, :2].astype(float)


def _is_lying(matrix: np.ndarray | None) -> bool:
    """Whether a display matrix exchanges width and height (to the nearest quarter of a turn)."""
    return matrix is not None and bool(abs(matrix[0, 1]) > abs(matrix[0, 0]))


def _turned(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A picture u8 [H, W, 3] turned, and mirrored, by its display matrix."""
    if matrix is None:
        return image
    if _is_lying(matrix):
        image, (across, down) = image.transpose(1, 0, 2), (matrix[1, 0], matrix[0, 1])
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
