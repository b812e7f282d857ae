"""What `segment` writes: which files and how, the labels over the frames, masks."""

from __future__ import annotations

import dataclasses
import fractions
import os
import pathlib
from typing import NamedTuple

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files, output_files
from dvsnas_jax.data.datasets import written_ids
from dvsnas_jax.deploy import load
from dvsnas_jax.infer.video import legend, sources, writing


@dataclasses.dataclass(frozen=True)
class Options:
    """What is written and how."""

    output: str | None = None  # video file
    masks: str | None = None  # folder for masks as PNG
    mask_format: str = "ids"  # or "colors"
    is_side_by_side: bool = False  # left the static network alone, right the cell
    resize: tuple[int, int] | None = None  # height and width that frames are read at and outputs have; None: their own
    alpha: float = 0.5  # weight of the labels' colours over the frame
    do_reset: bool = False  # the state is reset where a cut is found
    summary: str | None = None  # JSON file
    do_rate: bool = False  # measure the rate of steps alone afterwards
    has_legend: bool = False  # the video names the classes beside their colours

    def check(self) -> None:
        """Raises UserError where a value is out of range, or nothing would be written; nothing is made."""
        if not (self.output or self.masks or self.summary):
            raise errors.UserError("--output: nothing would be written; give --output, --masks or --summary")
        if self.is_side_by_side and not self.output:
            raise errors.UserError("--side-by-side: is a kind of video, give --output as well")
        if self.resize is not None and min(self.resize) < 1:
            raise errors.UserError(f"--resize: must be at least 1x1, got {self.resize[0]}x{self.resize[1]}")
        if not 0 <= self.alpha <= 1:
            raise errors.UserError(f"--alpha: must lie between 0 and 1, got {self.alpha:g}")
        if self.has_legend and not self.output:
            raise errors.UserError("--legend: is drawn into the video, give --output as well")
        if self.output:
            output_files.check_file(self.output, suffixes=writing.SUFFIXES)
        if self.masks:
            output_files.check_folder(self.masks, flag="--masks")
        if self.summary:
            output_files.check_file(self.summary, flag="--summary")
        if self.summary and self.output and os.path.realpath(self.summary) == os.path.realpath(self.output):
            raise errors.UserError(f"--summary: {self.summary} is the --output, too; give another name")

    def make_folders(self) -> None:
        """Makes the folders of what is written; raises UserError where one cannot be made."""
        if self.output:
            output_files.make_folder(pathlib.Path(self.output).parent)
        if self.masks:
            output_files.make_folder(self.masks, "--masks")
        if self.summary:
            output_files.make_folder(pathlib.Path(self.summary).parent, "--summary")

    def refuse_overwriting(self, source: sources.Source) -> None:
        """Raises UserError where an input would be written over."""
        for flag, name in (("--output", self.output), ("--summary", self.summary)):
            if name and any(_is_same(pathlib.Path(name), path) for path in source.paths):
                raise errors.UserError(f"{flag}: {name} is the input; give another name")
        if self.masks and any(_is_same(pathlib.Path(self.masks), path.parent) for path in source.paths[:1000]):
            raise errors.UserError(f"--masks: {self.masks} is the folder of the input; give another one")


def _is_same(a: pathlib.Path, b: pathlib.Path) -> bool:
    return a.exists() and a.samefile(b)


class Prepared(NamedTuple):
    """A frame that was read: `shown` u8 [H, W, 3] for the outputs, `seen` u8 [h, w, 3] for the network."""

    frame: sources.Frame
    shown: np.ndarray
    seen: np.ndarray


class Found(NamedTuple):
    """A segmented frame.

    `seconds` are those of its step, from its start, or from the end of the step before where that is later, to its
    labels on the host. In it: the frame's way to the device, the choice of key frames, the network and the cell, and
    the static network alone where that is asked for; not in it: reading, resizing, drawing and writing. Those run at
    the same time and slow it down where they share its processor.
    """

    prepared: Prepared
    labels: np.ndarray  # u8 [h, w]
    static: np.ndarray | None  # u8 [h, w], of the static network alone; None where that is not asked for
    is_cut: bool  # a new take begins with it
    key_share: float  # share of it that the static network computed
    seconds: float


class Outputs:
    """The files that are written; `notes` is what the user should know of them.

    `size` is height and width of the video's frames, of the masks where there is none; None before the first frame.
    """

    def __init__(self, source: sources.Source, segmenter: load.Segmenter, options: Options) -> None:
        self.size: list[int] | None = None
        self.notes: list[str] = []
        self._source, self._options = source, options
        self._palette = writing.Palette(segmenter.colors, options.alpha)
        is_color = options.mask_format == "colors"
        self._table = self._palette.table if is_color else written_ids.table(segmenter.ids)
        self._legend = legend.Legend(segmenter.classes, segmenter.colors) if options.has_legend else None
        self._writer: writing.VideoWriter | None = None

    def write(self, found: Found) -> None:
        """Appends one frame."""
        shown, frame = found.prepared.shown, found.prepared.frame
        size = (shown.shape[0], shown.shape[1])
        labels = image_files.resized_nearest(found.labels, size)
        self.size = self.size or list(size)
        if self._options.masks:
            writing.write_mask(pathlib.Path(self._options.masks), frame.name, labels, self._table)
        if not self._options.output:
            return
        both = [labels] if found.static is None else [image_files.resized_nearest(found.static, size), labels]
        image = np.concatenate([self._palette.overlay(shown, each) for each in both], axis=1)
        if self._legend is not None:
            image = self._legend.draw(image, *both)
        if self._writer is None:
            self._writer = self._open(self._options.output, (image.shape[0], image.shape[1]))
        self._writer.write(image, frame.pts)

    def _open(self, path: str, size: tuple[int, int]) -> writing.VideoWriter:
        source = self._source
        aspect = fractions.Fraction(1) if self._options.resize else source.aspect
        writer = writing.VideoWriter(
            pathlib.Path(path), size, rate=source.rate, time_base=source.time_base, aspect=aspect
        )
        self.size = list(writer.size)
        if writer.size != size:
            self.notes.append(
                f"{path}: {size[0]}x{size[1]} padded to {writer.size[0]}x{writer.size[1]}, since H.264 needs even sizes"
            )
        return writer

    def close(self) -> None:
        """Makes the video playable."""
        if self._writer is not None:
            self._writer.close()
