"""CamVid: its classes, and its two layouts on disk.

The usual 11 classes group the 32 official ones as SegNet's training does (Badrinarayanan, Kendall, Cipolla 2017), row
by row as MathWorks' CamVid example writes it down (`camvidPixelLabelIDs`); names and colours of the 32 are those of the
dataset's `label_colors.txt`. What the 11 leave out is ignored: only Void.

SegNet layout: `{train,val,test}/<sequence>_<number>.png` and `{train,val,test}annot/<same name>.png` with ids 0..10 and
11 = void. Official layout: `701_StillsRaw_full/<sequence>_<number>.png` and `LabeledApproved_full/<same name>_L.png` in
the colours of 32 classes. The number may carry a letter: `0006R0_f00930.png`.

Either may have the frames of the videos as `frames/<sequence>/<number>.png` (or `<sequence>_<number>.png` there). A
frame that is among the labelled ones is left out, so that none is there twice; any other belongs, without labels, to
the split of the next labelled frame of its sequence, whose history it is. So no frame is in two splits, and frames
after the last label are unused.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import frames, labels, listing, record

_COLORS = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CLASSES = types.ClassTable(names=tuple(_COLORS), colors=np.array(list(_COLORS.values()), np.uint8))
"""The 11 classes, in the order and colours of the SegNet tutorial data."""

OFFICIAL = (
    ("Animal", (64, 128, 64), "pedestrian"),
    ("Archway", (192, 0, 128), "building"),
    ("Bicyclist", (0, 128, 192), "bicyclist"),
    ("Bridge", (0, 128, 64), "building"),
    ("Building", (128, 0, 0), "building"),
    ("Car", (64, 0, 128), "car"),
    ("CartLuggagePram", (64, 0, 192), "pedestrian"),
    ("Child", (192, 128, 64), "pedestrian"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Fence", (64, 64, 128), "fence"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("Misc_Text", (128, 128, 64), "sign"),
    ("MotorcycleScooter", (192, 0, 192), "bicyclist"),
    ("OtherMoving", (128, 64, 64), "car"),
    ("ParkingBlock", (64, 192, 128), "pavement"),
    ("Pedestrian", (64, 64, 0), "pedestrian"),
    ("Road", (128, 64, 128), "road"),
    ("RoadShoulder", (128, 128, 192), "pavement"),
    ("Sidewalk", (0, 0, 192), "pavement"),
    ("SignSymbol", (192, 128, 128), "sign"),
    ("Sky", (128, 128, 128), "sky"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("TrafficCone", (0, 0, 64), "pole"),
    ("TrafficLight", (0, 64, 64), "sign"),
    ("Train", (192, 64, 128), "car"),
    ("Tree", (128, 128, 0), "tree"),
    ("Truck_Bus", (192, 128, 192), "car"),
    ("Tunnel", (64, 0, 64), "building"),
    ("VegetationMisc", (192, 192, 0), "tree"),
    ("Void", (0, 0, 0), None),
    ("Wall", (64, 192, 0), "building"),
)
"""(official name, RGB, one of the 11 or None = ignored), all 32."""

_SEGNET, _OFFICIAL = "camvid_segnet", "camvid_official"
_STILLS, _LABELED, _VIDEO = "701_StillsRaw_full", "LabeledApproved_full", "frames"
_SEGNET_TEXT = "expected {train,val,test}/<sequence>_<number>.png and {train,val,test}annot/<same name>.png"
_OFFICIAL_TEXT = f"expected {_STILLS}/<sequence>_<number>.png and {_LABELED}/<same name>_L.png"
_NAME = re.compile(r"^(?P<sequence>.+)_[A-Za-z]?(?P<number>\d+)$")
_NUMBER = re.compile(r"^(?:.*_)?[A-Za-z]?(\d+)$")


def _code(layout: str, options: record.Options) -> labels.LabelCode:
    """SegNet: 0..10 are themselves, 11 is void. Official: the 32 colours, and those of the 11, which are written."""
    train = {name: i for i, name in enumerate(CLASSES.names)}
    if layout == _SEGNET:
        return labels.code_of({**{i: i for i in train.values()}, CLASSES.num_classes: types.IGNORE})
    found = {labels.pack_color(color): train[name] for name, color in _COLORS.items()}
    found |= {labels.pack_color(color): types.IGNORE if group is None else train[group] for _, color, group in OFFICIAL}
    return labels.code_of(found, is_color=True)


def _recognise(root: pathlib.Path) -> str:
    if (root / _STILLS).is_dir() or (root / _LABELED).is_dir():
        return _OFFICIAL
    return _SEGNET if any((root / f"{split}annot").is_dir() for split in frames.SPLITS) else ""


def _present(root: pathlib.Path, layout: str, options: record.Options) -> list[str]:
    """SegNet: by folders. Official: those that have frames; all where that cannot be told."""
    if layout == _SEGNET:
        return [split for split in frames.SPLITS if (root / split).is_dir() or (root / f"{split}annot").is_dir()]
    owners = _owners(root, _images(root / _STILLS), frames.Scan())
    return [split for split in frames.SPLITS if split in owners.values()] or list(frames.SPLITS)


def _scan(root: pathlib.Path, split: str, layout: str, options: record.Options) -> frames.Scan:
    return _scan_segnet(root, split) if layout == _SEGNET else _scan_official(root, split)


def _scan_segnet(root: pathlib.Path, split: str) -> frames.Scan:
    scan = frames.Scan()
    folder, annotations = root / split, root / f"{split}annot"
    paths = listing.images(folder, scan) if folder.is_dir() else []
    if not paths:
        scan.fail(folder, f"no frames; {_SEGNET_TEXT}")
        return scan
    if not annotations.is_dir():
        scan.fail(annotations, f"no such folder, frames of {split} have no labels; {_SEGNET_TEXT}")
        return scan
    masks = {path.stem: path for path in listing.images(annotations, scan)}
    _add_pairs(scan, paths, masks, lambda path: annotations / path.name)
    for path in masks.values():
        scan.fail(path, f"a label image without its frame in {folder}; add the frame or remove it", is_fatal=False)
    if (root / _VIDEO).is_dir():
        _add_video(scan, root, split, ((path, other) for other in frames.SPLITS for path in _images(root / other)))
    return scan


def _scan_official(root: pathlib.Path, split: str) -> frames.Scan:
    """The split is that of `train.txt`, `val.txt`, `test.txt` beside the folders where one of them exists (a name a
    line, with or without folders and suffix), else the usual one."""
    scan = frames.Scan()
    stills, labeled = root / _STILLS, root / _LABELED
    for folder in (stills, labeled):
        if not folder.is_dir():
            scan.fail(folder, f"no such folder; {_OFFICIAL_TEXT}")
            return scan
    every = listing.images(stills, scan)
    if not every:
        scan.fail(stills, f"no frames; {_OFFICIAL_TEXT}")
        return scan
    owners = _owners(root, every, scan)
    masks = {path.stem: path for path in listing.images(labeled, scan)}
    mine = [path for path in every if owners.get(path.stem) in (split, None)]
    _add_pairs(scan, mine, masks, lambda path: labeled / f"{path.stem}_L.png")
    stems = {f"{path.stem}_L" for path in every}
    for stem, path in masks.items():
        if stem not in stems:
            scan.fail(path, f"a label image without its frame in {stills}; add the frame or remove it", is_fatal=False)
    if (root / _VIDEO).is_dir():
        _add_video(scan, root, split, ((path, owners[path.stem]) for path in every if path.stem in owners))
    if not scan.frames and not scan.problems:
        scan.fail(stills, f"no frames of the split {split}; add them, or list the split's frames in {split}.txt")
    return scan


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a folder, which may not be there; what is wrong with them is said elsewhere."""
    return listing.images(folder, frames.Scan()) if folder.is_dir() else []


def _key(path: pathlib.Path) -> tuple[str, int] | None:
    """Sequence and frame number of `<sequence>_<number>`; None: another name."""
    match = _NAME.match(path.stem)
    return (match["sequence"], int(match["number"])) if match else None


def _add_pairs(
    scan: frames.Scan,
    paths: list[pathlib.Path],
    masks: dict[str, pathlib.Path],
    expected_fn: Callable[[pathlib.Path], pathlib.Path],
) -> None:
    """Adds labelled frames; takes their labels (stem -> path) out of `masks`."""
    for path in paths:
        key = _key(path)
        label = masks.pop(expected_fn(path).stem, None)
        if key is None:
            scan.fail(path, f"the name is not <sequence>_<frame number>{path.suffix}; rename the file")
        elif label is None:
            scan.fail(path, f"its label image {expected_fn(path)} is missing; add it or remove the frame")
        else:
            scan.add(*key, path, label)


def usual_split(sequence: str, number: int) -> str | None:
    """The split of SegNet and of most papers since: 367 training, 101 validation and 233 test frames.

    train: 0001TP up to frame 8520, 0006R0, 0016E5 outside the dense part; val: the dense part of 0016E5 (7959..8159,
    every second frame); test: 0001TP from 8550 on, Seq05VD. None: no sequence of CamVid.
    """
    if sequence == "0001TP":
        return "train" if number <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= number <= 8159 else "train"
    return {"0006R0": "train", "Seq05VD": "test"}.get(sequence)


def _owners(root: pathlib.Path, paths: list[pathlib.Path], scan: frames.Scan) -> dict[str, str]:
    """The split of every still, by its name without suffix, "" = in none; names that say nothing are left out."""
    lists = {split: root / f"{split}.txt" for split in frames.SPLITS if (root / f"{split}.txt").is_file()}
    owners: dict[str, str] = {}
    if not lists:
        for path in paths:
            if (key := _key(path)) is None:
                continue
            usual = usual_split(*key)
            if usual is None:
                scan.fail(path, f"the usual split knows no sequence {key[0]}; add train.txt, val.txt and test.txt")
            owners[path.stem] = usual or ""
        return owners
    stems = {path.stem for path in paths}
    for split, path in lists.items():
        for line in listing.lines(path):
            stem = pathlib.PurePosixPath(line.split()[0].replace("\\", "/")).stem
            if stem not in stems:
                scan.fail(path, f"lists {stem}, which is not in {_STILLS}; add the frame or remove the line")
            elif owners.setdefault(stem, split) != split:
                scan.fail(path, f"lists {stem}, which {owners[stem]}.txt lists too; keep it in one of them")
    return dict.fromkeys(stems, "") | owners


def _add_video(scan: frames.Scan, root: pathlib.Path, split: str, owned: Iterable[tuple[pathlib.Path, str]]) -> None:
    """Adds the unlabelled frames of the videos; `owned` are the labelled ones of all splits, each with its split."""
    owner = {key: its for path, its in owned if (key := _key(path)) is not None}
    owner_fn, sequences = frames.history_owner(owner), {sequence for sequence, _ in owner}
    for folder in listing.folders(root / _VIDEO, scan):
        sequence = folder.name
        if sequence not in sequences:
            scan.notes.append(f"{folder}: no labelled frame is of this sequence, its frames are unused")
            continue
        for path in listing.images(folder, scan):
            match = _NUMBER.match(path.stem)
            if match is None:
                scan.fail(path, f"the name is not <frame number>{path.suffix}; rename the file")
            elif (key := (sequence, int(match[1]))) not in owner and owner_fn(*key) == split:
                scan.add(*key, path, None)


RECORD = record.Dataset(
    name="camvid",
    order=1,
    title="CamVid",
    classes=lambda options: CLASSES,
    files=record.Files(
        layouts=(_SEGNET, _OFFICIAL),
        expected=f"{_SEGNET_TEXT}, or {_OFFICIAL_TEXT}",
        recognise=_recognise,
        present=_present,
        scan=_scan,
        code=_code,
        frame_rate=30.0,
        variable="DVSNAS_CAMVID",
        listed=(_OFFICIAL,),
    ),
)
