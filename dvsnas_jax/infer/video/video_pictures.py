"""Decoded pictures of a video as upright RGB, as their metadata says: matrix and range of colours, turn, fields, HDR.

What says nothing of its colours is BT.601 with limited range, as FFmpeg has it: so are frames that it extracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from av import error as av_error
from av import filter as av_filter
from av.video import reformatter

from dvsnas_jax.core import errors
from dvsnas_jax.infer.video import hdr

_ATTACHED = 0x400 | 0x800
"""Dispositions of what is a picture beside the video: a cover, thumbnails."""
_DEFAULT = 0x1
_EXACT = (
    reformatter.Interpolation.BILINEAR
    | reformatter.Interpolation.ACCURATE_RND
    | reformatter.Interpolation.FULL_CHR_H_INT
)
"""FFmpeg's quick way from 10 bits to 8 is too dark by up to 2 of 255, which HDR multiplies."""


def main_stream(container: Any) -> Any:
    """The video stream to read: the one marked as default, else the first; None where there are covers at most."""
    streams = [stream for stream in container.streams.video if not int(stream.disposition) & _ATTACHED]
    marked = [stream for stream in streams if int(stream.disposition) & _DEFAULT]
    return (marked or streams or [None])[0]


def turn(picture: Any) -> np.ndarray | None:
    """The display matrix [[a, b], [c, d]] of a picture: pixel (x, y) belongs at (a x + c y, b x + d y); None: none."""
    side = next((side for side in picture.side_data if side.type.name == "DISPLAYMATRIX"), None)
    if side is None:
        return None
    return np.frombuffer(side, "<i4").reshape(3, 3)[:2, :2].astype(float)


def is_lying(matrix: np.ndarray | None) -> bool:
    """Whether a display matrix exchanges width and height (to the nearest quarter of a turn)."""
    return matrix is not None and bool(abs(matrix[0, 1]) > abs(matrix[0, 0]))


def turned(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A picture u8 [H, W, 3] turned, and mirrored, by its display matrix."""
    if matrix is None:
        return image
    if is_lying(matrix):
        image, (across, down) = image.transpose(1, 0, 2), (matrix[1, 0], matrix[0, 1])
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


_UNREADABLE = {8: "YCgCo", 10: "BT.2020 of constant luminance", 14: "ICtCp (Dolby Vision)", 15: "IPT (Dolby Vision)"}


class Converter:
    """Makes u8 [H, W, 3] of pictures, one after the other."""

    def __init__(self, label: str, warnings: list[str]) -> None:
        """For the video `label`; what is worth a line is appended to `warnings`."""
        self._label, self._warnings = label, warnings
        self._reformatter = reformatter.VideoReformatter()  # one for all: to make one takes longer than to use it

    def convert(self, picture: Any) -> np.ndarray:
        """One picture, upright.

        Raises:
          UserError: FFmpeg knows no way from its colours to RGB.
        """
        is_hdr = int(picture.color_trc) in hdr.NAMES
        way = _EXACT if picture.format.components[0].bits > 8 else reformatter.Interpolation.BILINEAR
        try:
            image = self._reformatter.reformat(picture, format="rgb24", interpolation=way, threads=1).to_ndarray()
        except OSError as error:
            matrix = int(picture.colorspace)
            name = _UNREADABLE.get(matrix, f"those of matrix {matrix} of ITU-T H.273")
            raise errors.UserError(
                f"{self._label}: its colours are {name}, which cannot be read ({error.strerror or error}); "
                "convert it to BT.709 first"
            ) from None
        if is_hdr:
            self._say(
                f"{self._label}: HDR ({hdr.NAMES[int(picture.color_trc)]}) is brought to the range of ordinary video, "
                "highlights are compressed"
            )
            image = hdr.to_ordinary(image, int(picture.color_trc), int(picture.color_primaries))
        return turned(image, turn(picture))

    def _say(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings.append(line)


def deinterlaced(pictures: Iterable[Any]) -> Iterator[Any]:
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
