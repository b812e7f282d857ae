"""Predictions as files, in the form in which Cityscapes scores them, and its official evaluator.

Cityscapes: `<city>_<seq>_<frame>_pred_labelIds.png` with the original ids. Any other dataset: the ids that its labels
have under the frame's name, so that predictions are labels of the same configuration. Both at the size of the frames on
disk (nearest), one channel; or in the colours of the classes, Cityscapes' then as `.._pred_color.png`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import image_files, output_files, workdir
from dvsnas_jax.data.datasets import cityscapes_table, classes, frames, layouts, written_ids
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
    """The command `evaluate --predictions`: scores the run and writes the cell's predictions on its way.

    Cityscapes' train and val are scored with the official evaluator too.

    Args:
      config: of the run.
      folder: the run folder, with a trained network and cell.
      directory: for the files, made if need be.
      is_color: colours of the classes in place of ids; nothing scores them.

    Returns:
      What `evaluate.run` returns, and what was written, for people.

    Raises:
      UserError: the run folder holds no trained network or cell, or the files cannot be written.
    """
    split = config.evaluate.split
    writer = Writer(config.data, split, directory, is_color=is_color)
    result = evaluation.run(config, folder, watch_fn=lambda number, _, __, labels: writer.add(number, labels))
    lines = [f"written: {len(writer.paths)} predictions of {split} in {os.fspath(directory)}"]
    is_scored = config.data.name == "cityscapes" and split != "test"  # the labels of test are kept by the owners
    if is_scored and not is_color:
        with ground_truth(config.data, split) as labels:
            scores = official_scores(directory, labels)
        lines.append(f"official evaluator: {100 * scores['miou']:.1f} mIoU of the cell over {len(labels)} frames")
    return result, "\n".join(lines)


def write(
    segment_fn: SegmentFn, data: ml_collections.ConfigDict, split: str, directory: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Segments a split and writes the predictions.

    Args:
      segment_fn: of the frames u8 [T, H, W, 3] of a video; the second value u8 [T, H, W] is written.
      data: section of the configuration.
      split: train, val or test.
      directory: as in `Writer`.

    Returns:
      The files.

    Raises:
      UserError: bad data, two frames of one name, or the files cannot be written.
    """
    writer = Writer(data, split, directory)
    with progress.bar(len(writer.videos), "predictions") as bar:
        for number in range(len(writer.videos)):
            writer.add(number, segment_fn(writer.videos[number].frames)[1])
            bar.update()
    return writer.paths


class Writer:
    """Writes the predictions of a split: of its labelled frames, or of all where none is labelled.

    Attributes:
      videos: of the split, in the order of `whole_videos.find`.
      paths: files written.

    Args:
      data: section of the configuration.
      split: train, val or test.
      directory: for the files, made if need be; files of the same names are replaced.
      is_color: colours in place of ids.

    Raises:
      UserError: bad data, or the folder cannot be made.
    """

    def __init__(
        self, data: ml_collections.ConfigDict, split: str, directory: str | os.PathLike[str], *, is_color: bool = False
    ):
        self.videos, self.paths = whole_videos.find(data, split), list[pathlib.Path]()
        self._media, self._split, self._directory = reading.of(data, split), split, pathlib.Path(directory)
        self._known: set[str] = set()
        self._is_color = is_color
        self._table = written_ids.table(written_ids.of(data))
        if is_color:
            self._table = classes.colorize(np.arange(256, dtype=np.uint8), layouts.class_table(data))
        output_files.check_folder(directory, flag=_FLAG)

    def add(self, number: int, predictions: np.ndarray) -> None:
        """Writes the predictions u8 [T, H, W] of a video.

        Raises:
          UserError: two frames of one name, or the files cannot be written.
        """
        output_files.make_folder(self._directory, _FLAG)
        for name, small, size in self._files(number, predictions):
            labels = self._table[enlarge(small, size)]
            if name in self._known:
                raise errors.UserError(f"--predictions: two frames of {self._split} have the name {name}; rename one")
            self._known.add(name)
            try:
                Image.fromarray(labels).save(self._directory / name)
            except OSError as error:
                raise output_files.refusal(self._directory / name, error, flag=_FLAG) from error
            self.paths.append(self._directory / name)

    def _files(self, number: int, predictions: np.ndarray) -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
        """Names, train ids u8 [h, w] and (width, height) of the files of one video."""
        if not isinstance(self.videos, whole_videos.Videos):
            for time, labels in enumerate(predictions):
                yield f"{self.videos[number].name}_{time:06d}.png", labels, (labels.shape[1], labels.shape[0])
            return
        source, media = self.videos.source, self._media
        is_labelled = any(frame.label for frame in source.frames)
        for place, labels in zip(self.videos.runs[number], predictions, strict=True):
            frame = source.frames[place]
            if frame.label is None and is_labelled:
                continue
            content = frames.read_bytes(frame.image) if media is None else media.read(np.array([place]))[0][0]
            yield file_name(source.layout, frame, is_color=self._is_color), labels, image_files.size(content)


def file_name(layout: str, frame: frames.Frame, *, is_color: bool = False) -> str:
    """Of a frame's prediction."""
    stem = frame.image.stem
    if layout.startswith("cityscapes"):
        return f"{stem.removesuffix('_leftImg8bit')}_pred_{'color' if is_color else 'labelIds'}.png"
    sequence = frame.sequence.replace("/", "_")
    return f"{stem}.png" if stem.startswith(sequence) else f"{sequence}_{stem}.png"


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels u8 [h, w] at the size (width, height) of the frame on disk: the nearest."""
    return image_files.resized_nearest(np.asarray(labels, np.uint8), size[::-1])


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


def official_scores(directory: str | os.PathLike[str], labels: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Scores predictions with Cityscapes' own evaluator, `evalPixelLevelSemanticLabeling`.

    Args:
      directory: of the predictions, which are found by their names.
      labels: the files `*_gtFine_labelIds.png` to score against.

    Returns:
      `miou` and `iou` (by name of the 19 classes, None where a class is absent), shares in 0..1.

    Raises:
      UserError: the package is not installed, or the evaluator finds something wrong, as a missing prediction.
    """
    try:
        official = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    except ImportError as error:
        raise errors.UserError(
            "the official evaluator is in the package cityscapesscripts, which is not installed; "
            "run: pip install 'dvsnas-jax[cityscapes]'"
        ) from error
    settings = official.CArgs()
    vars(settings).update(vars(official.args))
    settings.predictionPath, settings.predictionWalk, settings.evalLabels = os.fspath(directory), None, []
    settings.quiet, settings.JSONOutput, settings.evalInstLevelScore = True, False, False
    names = [os.fspath(path) for path in labels]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            pairs = [official.getPrediction(settings, name) for name in names]
            result = official.evaluateImgLists(pairs, names, settings)
    except SystemExit as error:
        reason = " ".join(said.getvalue().split()) or "no reason given"
        raise errors.UserError(
            f"{os.fspath(directory)}: the official evaluator stops: {reason}; write all predictions again"
        ) from error
    iou = {name: result["classScores"][name] for name in cityscapes_table.table().names}
    return {
        "miou": result["averageScoreClasses"],
        "iou": {name: None if math.isnan(value) else value for name, value in iou.items()},
    }
