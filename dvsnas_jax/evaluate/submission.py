"""Predictions as files, in the form in which the owners of a data set score them, and their scores.

Cityscapes: `<city>_<seq>_<frame>_pred_labelIds.png` with the original ids. Any other dataset: the ids that its labels
have under the frame's name, so that predictions are labels of the same configuration. Both at the size of the frames on
disk (nearest), one channel; or in the colours of the classes, Cityscapes' then as `.._pred_color.png`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import image_files, output_files, workdir
from dvsnas_jax.data import datasets
from dvsnas_jax.data.datasets import frames, labels, record
from dvsnas_jax.data.loading import whole_videos
from dvsnas_jax.data.prepared import reading
from dvsnas_jax.evaluate import evaluation

_FLAG = "--predictions"
SegmentFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""As `evaluate.Segmenter.segment`."""


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    directory: str | os.PathLike[str],
    *,
    is_color: bool = False,
) -> tuple[dict[str, Any], str]:
    """The command `evaluate --predictions`: scores the run and writes the predictions of the cell into `directory`.

    Where the owners of the data give an evaluator and the labels, it scores the files too (but no colours).

    Returns:
      What `evaluate.run` returns, and what was written, for people.

    Raises:
      UserError: the run folder holds no trained network or cell, or the files cannot be written.
    """
    split = config.evaluate.split
    writer = Writer(config.data, split, directory, is_color=is_color)
    result = evaluation.run(config, folder, watch_fn=lambda number, _, __, found: writer.add(number, found))
    lines = [f"written: {len(writer.paths)} predictions of {split} in {os.fspath(directory)}"]
    submission = datasets.of(config.data).submission
    if submission is not None and split != frames.WITHHELD and not is_color:
        with ground_truth(config.data, split) as truth:
            scores = submission.score(directory, truth)
        lines.append(f"official evaluator: {100 * scores['miou']:.1f} mIoU of the cell over {len(truth)} frames")
    return result, "\n".join(lines)


def write(
    segment_fn: SegmentFn, data: ml_collections.ConfigDict, split: str, directory: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Segments a split and writes the predictions, the second value u8 [T, H, W] of `segment_fn`, see `Writer`."""
    writer = Writer(data, split, directory)
    with progress.bar(len(writer.videos), "predictions") as bar:
        for number in range(len(writer.videos)):
            writer.add(number, segment_fn(writer.videos[number].frames)[1])
            bar.update()
    return writer.paths


class Writer:
    """Writes the predictions of a split: of its labelled frames, or of all where none is labelled.

    The folder is made if need be, files of the same names are replaced; `is_color`: colours in place of ids.

    Attributes:
      videos: of the split, in the order of `whole_videos.find`.
      paths: files written.

    Raises:
      UserError: bad data, or the folder cannot be made.
    """

    def __init__(
        self, data: ml_collections.ConfigDict, split: str, directory: str | os.PathLike[str], *, is_color: bool = False
    ):
        self.videos, self.paths = whole_videos.find(data, split), list[pathlib.Path]()
        self._media, self._split, self._directory = reading.of(data, split), split, pathlib.Path(directory)
        self._dataset, self._is_color, self._known = datasets.of(data), is_color, set[str]()
        if is_color:
            self._table = labels.colorize(np.arange(256, dtype=np.uint8), datasets.class_table(data))
        else:
            self._table = labels.id_table(datasets.written_ids(data))
        output_files.check_folder(directory, flag=_FLAG)

    def add(self, number: int, predictions: np.ndarray) -> None:
        """Writes the predictions u8 [T, H, W] of a video.

        Raises:
          UserError: two frames of one name, or the files cannot be written.
        """
        output_files.make_folder(self._directory, _FLAG)
        for name, small, size in self._files(number, predictions):
            if name in self._known:
                raise errors.UserError(f"--predictions: two frames of {self._split} have the name {name}; rename one")
            self._known.add(name)
            try:
                Image.fromarray(self._table[enlarge(small, size)]).save(self._directory / name)
            except OSError as error:
                raise output_files.refusal(self._directory / name, error, flag=_FLAG) from error
            self.paths.append(self._directory / name)

    def _files(self, number: int, predictions: np.ndarray) -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
        """Names, train ids u8 [h, w] and (width, height) of the files of one video."""
        if not isinstance(self.videos, whole_videos.Videos):
            for time, found in enumerate(predictions):
                yield f"{self.videos[number].name}_{time:06d}.png", found, (found.shape[1], found.shape[0])
            return
        source, media = self.videos.source, self._media
        is_labelled = frames.num_labelled(source.frames) > 0
        for place, found in zip(self.videos.runs[number], predictions, strict=True):
            frame = source.frames[place]
            if frame.label is None and is_labelled:
                continue
            content = frames.read_bytes(frame.image) if media is None else media.read(np.array([place]))[0][0]
            yield file_name(self._dataset, frame, is_color=self._is_color), found, image_files.size(content)


def file_name(dataset: record.Dataset, frame: frames.Frame, *, is_color: bool = False) -> str:
    """Of a frame's prediction."""
    if dataset.submission is not None:
        return dataset.submission.file_name(frame, is_color)
    stem, sequence = frame.image.stem, frame.sequence.replace("/", "_")
    return f"{stem}.png" if stem.startswith(sequence) else f"{sequence}_{stem}.png"


def enlarge(found: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Train ids u8 [h, w] at the size (width, height) of the frame on disk: the nearest."""
    return image_files.resized_nearest(np.asarray(found, np.uint8), size[::-1])


@contextlib.contextmanager
def ground_truth(data: ml_collections.ConfigDict, split: str) -> Iterator[list[pathlib.Path]]:
    """The label files of the frames that are scored; those of a prepared dataset are written out for the while."""
    videos = whole_videos.find(data, split)
    if not isinstance(videos, whole_videos.Videos):
        raise errors.UserError("data.name: the official evaluator scores Cityscapes; set data.name to 'cityscapes'")
    media = reading.of(data, split)
    places = [place for run in videos.runs for place in run]
    labelled = [(place, label) for place in places if (label := videos.source.frames[place].label) is not None]
    if media is None:
        yield [label for _, label in labelled]
        return
    with tempfile.TemporaryDirectory() as name:
        paths = [pathlib.Path(name) / label.name for _, label in labelled]
        for (place, _), path in zip(labelled, paths, strict=True):
            path.write_bytes(media.read(np.array([place]))[1][0])
        yield paths
