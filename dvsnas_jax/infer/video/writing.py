"""What is written of a segmented video: an H.264 file with the labels laid over the frames, masks as PNG."""

from __future__ import annotations

import fractions
import pathlib
from typing import Any

import av
import numpy as np
from av import error as av_error
from av.video import reformatter
from PIL import Image

from dvsnas_jax.core.files import output_files

SUFFIXES = (".mp4", ".mov", ".mkv")
# Encoding shares the processor with the network: this preset takes half the time of "superfast" and a quarter of that
# of "veryfast", for a file that is 1.7 and 2.3 times as large.
_OPTIONS = {"preset": "ultrafast", "crf": "20"}
_BT709 = 1  # AVCOL_PRI_BT709, AVCOL_TRC_BT709 and AVCOL_SPC_BT709
_LIMITED = 1  # AVCOL_RANGE_MPEG


class Palette:
    """Colours u8 [K, 3] laid over frames with a weight `alpha` of 0 .. 1; `table` u8 [256, 3] has them."""

    def __init__(self, colors: np.ndarray, alpha: float):
        self.table = np.zeros((256, 3), np.uint8)
        self.table[: len(colors)] = colors
        self._alpha = alpha

    def overlay(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The frame u8 [H, W, 3] under the colours of its labels u8 [H, W]."""
        colored = Image.fromarray(labels)
        colored.putpalette(self.table.tobytes())
        return np.asarray(Image.blend(Image.fromarray(image), colored.convert("RGB"), self._alpha))


class VideoWriter:
    """Writes frames as H.264, yuv420p. `close` makes the file playable, whatever was written before.

    Attributes:
      size: height and width of the file's frames: even.
    """

    def __init__(
        self,
        path: pathlib.Path,
        size: tuple[int, int],
        *,
        rate: fractions.Fraction,
        time_base: fractions.Fraction,
        aspect: fractions.Fraction = fractions.Fraction(1),
    ) -> None:
        """For frames u8 [*size, 3]; an odd size is padded by its last row or column.

        Raises UserError where the file cannot be written, as `write` does where the disk is full.
        """
        self._path, self._time_base = path, time_base
        self.size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self._padding = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
        # One for all frames: to make one takes longer than to use it.
        self._reformatter = reformatter.VideoReformatter()
        self._container: Any = None
        try:
            self._container = av.open(f"file:{path}", "w")  # a name with a colon is no address
            self._stream = self._container.add_stream("libx264", rate=rate, options=dict(_OPTIONS))
            context = self._stream.codec_context
            context.height, context.width = self.size
            context.pix_fmt = "yuv420p"
            context.time_base, context.sample_aspect_ratio = time_base, aspect
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            self._container.start_encoding()
        except (av_error.FFmpegError, OSError) as error:
            self._container = None
            raise output_files.refusal(path, error) from None

    def write(self, image: np.ndarray, pts: int) -> None:
        """Appends a frame u8 [H, W, 3]; its time, in units of the time base, is later than that of the one before."""
        if any(after for _, after in self._padding):
            image = np.pad(image, self._padding, mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        colors = reformatter.Colorspace.ITU709
        frame = self._reformatter.reformat(frame, format="yuv420p", dst_colorspace=colors, threads=1)
        frame.pts, frame.time_base = pts, self._time_base
        self._mux(frame)

    def close(self) -> None:
        """Writes what is still in the encoder, and the index of the file."""
        if self._container is None:
            return
        try:
            self._mux(None)
        finally:
            container, self._container = self._container, None
            container.close()

    def _mux(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (av_error.FFmpegError, OSError) as error:
            raise output_files.refusal(self._path, error) from None


def write_mask(folder: pathlib.Path, name: str, labels: np.ndarray, table: np.ndarray) -> None:
    """Writes labels u8 [H, W] as `name`.png, each as the table has it: ids u8 or u16 [256], or colours u8 [256, 3].

    Raises UserError: it cannot be written.
    """
    path = folder / f"{name}.png"
    try:
        Image.fromarray(table[labels]).save(path, compress_level=1)
    except OSError as error:
        raise output_files.refusal(path, error, flag="--masks") from None
