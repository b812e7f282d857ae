"""Cityscapes: its classes and its official evaluator, both of the package `cityscapesscripts`, and its layout on disk.

`leftImg8bit_sequence/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png` (30 frames a snippet, the 20th labelled) or,
where a split has no sequences, the stills `leftImg8bit/<split>/...`; labels
`gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png`. A sequence is `<city>_<seq>`; some cities are one long
sequence of snippets, so their numbers do not start at 0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.datasets import frames, labels, listing, record

_SEQUENCES, _STILLS, _LABELS = "leftImg8bit_sequence", "leftImg8bit", "gtFine"
_TEXT = (
    f"expected {_SEQUENCES}/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png (or {_STILLS}/...) and {_LABELS}/..."
)
_NAME = re.compile(r"^(?P<sequence>.+_\d+)_(?P<number>\d+)_(?P<kind>leftImg8bit|gtFine_labelIds)$")
_CAMVID = {
    "wall": "building", "bridge": "building", "tunnel": "building", "polegroup": "pole", "sidewalk": "pavement",
    "vegetation": "tree", "terrain": "tree", "traffic light": "sign", "traffic sign": "sign", "guard rail": "fence",
    "truck": "car", "bus": "car", "caravan": "car", "trailer": "car", "person": "pedestrian", "rider": "bicyclist",
    "bicycle": "bicyclist",
}  # fmt: skip
"""Name in the official table -> one of CamVid's 11 classes, where it is another; sky, building, pole, road, fence and
car are those of CamVid. All else is ignored there: trains and motorcycles, too, which have no class of their own."""
_INSTALL = "which is not installed; run: pip install 'dvsnas-jax[cityscapes]'"


@functools.cache
def _labels() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """All official rows, and those that have a train id, by it; each has name, id, trainId and color."""
    try:
        from cityscapesscripts.helpers import labels as official
    except ImportError as error:
        raise errors.UserError(f"data.name: Cityscapes needs the package cityscapesscripts, {_INSTALL}") from error
    trained = sorted((row for row in official.labels if 0 <= row.trainId < types.IGNORE), key=lambda row: row.trainId)
    return tuple(official.labels), tuple(trained)


def _classes(options: record.Options) -> types.ClassTable:
    """The 19 train ids."""
    _, rows = _labels()
    return types.ClassTable(
        names=tuple(row.name for row in rows), colors=np.array([row.color for row in rows], np.uint8)
    )


def _code(layout: str, options: record.Options) -> labels.LabelCode:
    """The ids 0..33 by the official table; 255 (how 8 bits keep -1) is ignored."""
    every, trained = _labels()
    return labels.code_of({row.id % 256: row.trainId if row in trained else types.IGNORE for row in every})


def _ids(options: record.Options) -> tuple[int, ...]:
    """The original id of every train id."""
    return tuple(row.id for row in _labels()[1])


def _raw_names(options: record.Options) -> dict[int, tuple[str, ...]]:
    """The official name of every id, then the class of CamVid that it belongs to."""
    names = {row.id % 256: row.name for row in _labels()[0] if row.id >= 0}
    return {value: (name, *([_CAMVID[name]] if name in _CAMVID else [])) for value, name in names.items()}


def _recognise(root: pathlib.Path) -> str:
    return "cityscapes" if any((root / name).is_dir() for name in (_SEQUENCES, _STILLS, _LABELS)) else ""


def _present(root: pathlib.Path, layout: str, options: record.Options) -> list[str]:
    tops = (_SEQUENCES, _STILLS, _LABELS)
    return [split for split in frames.SPLITS if any((root / top / split).is_dir() for top in tops)]


def _scan(root: pathlib.Path, split: str, layout: str, options: record.Options) -> frames.Scan:
    is_video = (root / _SEQUENCES / split).is_dir()
    found = frames.Scan(layout="cityscapes" if is_video else "cityscapes_stills")
    folder = root / (_SEQUENCES if is_video else _STILLS) / split
    images = _files(folder, "leftImg8bit", found)
    if not images:
        found.fail(folder, f"no frames; {_TEXT}")
        return found
    masks = _files(root / _LABELS / split, "gtFine_labelIds", found)
    if not masks and split != frames.WITHHELD:
        found.fail(root / _LABELS / split, f"no label images, nothing of {split} is labelled; {_TEXT}", is_fatal=False)
    is_labelled = bool(masks)
    for key, path in images.items():
        label = masks.pop(key, None)
        if label is None and is_labelled and not is_video:
            name = path.name.replace("leftImg8bit", "gtFine_labelIds")
            missing = root / _LABELS / split / path.parent.name / name
            found.fail(path, f"its label image {missing} is missing; add it or remove the frame")
            continue
        found.add(*key, path, label)
    for path in masks.values():
        found.fail(path, f"a label image without its frame in {folder}; add the frame or remove it", is_fatal=False)
    if is_video and any(frame.label for frame in found.frames.values()):
        _check_snippets(found)
    return found


def _files(folder: pathlib.Path, kind: str, found: frames.Scan) -> dict[tuple[str, int], pathlib.Path]:
    """The files of a kind in the folders of the cities, by (sequence, number)."""
    files: dict[tuple[str, int], pathlib.Path] = {}
    for city in listing.folders(folder, found) if folder.is_dir() else ():
        for path in listing.images(city, found):
            match = _NAME.match(path.stem)
            if kind != "leftImg8bit" and not path.stem.endswith(kind):
                continue  # colours, instances, polygons
            if match is None or match["kind"] != kind:
                found.fail(path, f"the name is not <city>_<seq>_<frame>_{kind}{path.suffix}; rename the file")
            elif not match["sequence"].startswith(f"{city.name}_"):
                found.fail(path, f"the name starts with another city than its folder {city.name}; move the file")
            elif (key := (match["sequence"], int(match["number"]))) in files:
                found.fail(path, f"the same frame as {files[key].name}; remove one of the two")
            else:
                files[key] = path
    return files


def _check_snippets(found: frames.Scan) -> None:
    """A run of consecutive frames without any label has lost its label image."""
    run: list[frames.Frame] = []
    for frame in (*found.ordered, None):
        is_next = run and frame and (frame.sequence, frame.number) == (run[-1].sequence, run[-1].number + 1)
        if run and not is_next:
            if not any(each.label for each in run):
                numbers = f"{run[0].number}..{run[-1].number} of {run[0].sequence}"
                text = f"frames {numbers} have no label image; add it or remove them"
                found.fail(run[0].image, text, is_fatal=False)
            run = []
        run += [frame] if frame else []


def _prediction_name(frame: frames.Frame, is_color: bool) -> str:
    stem = frame.image.stem.removesuffix("_leftImg8bit")
    return f"{stem}_pred_{'color' if is_color else 'labelIds'}.png"


def _score(directory: str | os.PathLike[str], truth: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Scores predictions, found by their names, against `*_gtFine_labelIds.png` by the owners' own evaluator.

    That is `evalPixelLevelSemanticLabeling`.

    Raises:
      UserError: the package is not installed, or the evaluator finds something wrong, as a missing prediction.
    """
    try:
        official = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    except ImportError as error:
        raise errors.UserError(f"the official evaluator is in the package cityscapesscripts, {_INSTALL}") from error
    settings = official.CArgs()
    vars(settings).update(vars(official.args))
    settings.predictionPath, settings.predictionWalk, settings.evalLabels = os.fspath(directory), None, []
    settings.quiet, settings.JSONOutput, settings.evalInstLevelScore = True, False, False
    names = [os.fspath(path) for path in truth]
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
    iou = {row.name: result["classScores"][row.name] for row in _labels()[1]}
    return {
        "miou": result["averageScoreClasses"],
        "iou": {name: None if math.isnan(value) else value for name, value in iou.items()},
    }


RECORD = record.Dataset(
    name="cityscapes",
    order=2,
    title="Cityscapes",
    classes=_classes,
    ids=_ids,
    num_classes=19,
    raw_names=_raw_names,
    submission=record.Submission(file_name=_prediction_name, score=_score),
    files=record.Files(
        layouts=("cityscapes",),
        expected=_TEXT,
        recognise=_recognise,
        present=_present,
        scan=_scan,
        code=_code,
        frame_rate=17.0,
        variable="DVSNAS_CITYSCAPES",
    ),
)
