"""The two layouts of CamVid on disk.

SegNet layout: `{train,val,test}/<sequence>_<number>.png` and `{train,val,test}annot/<same name>.png`
with ids 0..10 and 11 = void. Official layout: `701_StillsRaw_full/<sequence>_<number>.png` and
`LabeledApproved_full/<same name>_L.png` in the colours of 32 classes. The number may carry a letter:
`0006R0_f00930.png`.

Either may have the frames of the videos as `frames/<sequence>/<number>.png` (or
`<sequence>_<number>.png` there). A frame that is among the labelled ones is left out, so that none
is there twice; any other belongs, without labels, to the split of the next labelled frame of its
sequence, whose history it is. So no frame is in two splits, and frames after the last label are unused.
"""

from __future__ import annotations

import bisect
import pathlib
import re
from collections.abc import Callable

from dvsnas_jax.data.datasets import listing

SPLITS = ("train", "val", "test")
STILLS, LABELED, VIDEO = "701_StillsRaw_full", "LabeledApproved_full", "frames"
SEGNET_TEXT = "expected {train,val,test}/<sequence>_<number>.png and {train,val,test}annot/<same name>.png"
OFFICIAL_TEXT = f"expected {STILLS}/<sequence>_<number>.png and {LABELED}/<same name>_L.png"
_NUMBER = re.compile(r"^(?:.*_)?[A-Za-z]?(\d+)$")


def is_segnet(root: pathlib.Path) -> bool:
    """The folder looks like the SegNet layout."""
    return any((root / f"{split}annot").is_dir() for split in SPLITS)


def is_official(root: pathlib.Path) -> bool:
    """The folder looks like the official layout."""
    return (root / STILLS).is_dir() or (root / LABELED).is_dir()


def segnet(root: pathlib.Path, split: str) -> listing.Scan:
    """Looks at one split of the SegNet layout."""
    scan = listing.Scan()
    folder, annotations = root / split, root / f"{split}annot"
    paths = listing.images(folder, scan) if folder.is_dir() else []
    if not paths:
        scan.fail(folder, f"no frames; {SEGNET_TEXT}")
        return scan
    if not annotations.is_dir():
        scan.fail(annotations, f"no such folder, frames of {split} have no labels; {SEGNET_TEXT}")
        return scan
    labels = {path.stem: path for path in listing.images(annotations, scan)}
    _add_pairs(scan, paths, labels, lambda path: annotations / path.name)
    for path in labels.values():
        scan.fail(path, f"a label image without its frame in {folder}; add the frame or remove it", is_fatal=False)
    marks: dict[str, list[tuple[int, str]]] = {}
    for other in SPLITS if (root / VIDEO).is_dir() else ():
        stems = [path.stem for path in listing.images(root / other, listing.Scan())] if (root / other).is_dir() else []
        for stem in stems:
            key = listing.parse(pathlib.Path(stem), listing.Scan(), stem=stem)
            if key is not None:
                marks.setdefault(key[0], []).append((key[1], other))
    _add_video(scan, root, split, marks)
    return scan


def _add_pairs(
    scan: listing.Scan,
    paths: list[pathlib.Path],
    labels: dict[str, pathlib.Path],
    expected_fn: Callable[[pathlib.Path], pathlib.Path],
) -> None:
    """Adds labelled frames; takes their labels (stem -> path) out of `labels`."""
    for path in paths:
        key = listing.parse(path, scan)
        label = labels.pop(expected_fn(path).stem, None)
        if key is None:
            continue
        if label is None:
            missing = expected_fn(path)
            scan.fail(path, f"its label image {missing} is missing; add it or remove the frame")
        else:
            scan.add(*key, path, label)


def official(root: pathlib.Path, split: str) -> listing.Scan:
    """Looks at one split of the official layout.

    The split is that of `train.txt`, `val.txt`, `test.txt` beside the folders where one of them exists (a name
    a line, with or without folders and suffix), else the usual one, see `usual_split`.
    """
    scan = listing.Scan()
    stills, labeled = root / STILLS, root / LABELED
    for folder in (stills, labeled):
        if not folder.is_dir():
            scan.fail(folder, f"no such folder; {OFFICIAL_TEXT}")
            return scan
    every = listing.images(stills, scan)
    if not every:
        scan.fail(stills, f"no frames; {OFFICIAL_TEXT}")
        return scan
    owners = _owners(root, every, scan)
    labels = {path.stem: path for path in listing.images(labeled, scan)}
    mine = [path for path in every if owners.get(path.stem) in (split, None)]
    _add_pairs(scan, mine, labels, lambda path: labeled / f"{path.stem}_L.png")
    stems = {f"{path.stem}_L" for path in every}
    for stem, path in labels.items():
        if stem not in stems:
            scan.fail(path, f"a label image without its frame in {stills}; add the frame or remove it", is_fatal=False)
    marks: dict[str, list[tuple[int, str]]] = {}
    for path in every:
        key = listing.parse(path, listing.Scan())
        if key is not None and path.stem in owners:
            marks.setdefault(key[0], []).append((key[1], owners[path.stem]))
    _add_video(scan, root, split, marks)
    if not scan.frames and not scan.problems:
        scan.fail(stills, f"no frames of the split {split}; add them, or list the split's frames in {split}.txt")
    return scan


def official_splits(root: pathlib.Path) -> list[str]:
    """The splits of the official layout that have frames; all where that cannot be told."""
    folder = root / STILLS
    owners = _owners(root, listing.images(folder, listing.Scan()), listing.Scan()) if folder.is_dir() else {}
    return [split for split in SPLITS if split in owners.values()] or list(SPLITS)


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


def _owners(root: pathlib.Path, paths: list[pathlib.Path], scan: listing.Scan) -> dict[str, str]:
    """The split of every still, by its name without suffix; unknown ones are left out and are a problem."""
    lists = {split: root / f"{split}.txt" for split in SPLITS if (root / f"{split}.txt").is_file()}
    owners: dict[str, str] = {}
    if lists:
        stems = {path.stem for path in paths}
        for split, path in lists.items():
            for stem in _listed(path):
                if stem not in stems:
                    scan.fail(path, f"lists {stem}, which is not in {STILLS}; add the frame or remove the line")
                elif owners.setdefault(stem, split) != split:
                    scan.fail(path, f"lists {stem}, which {owners[stem]}.txt lists too; keep it in one of them")
        for stem in stems - owners.keys():
            owners[stem] = ""  # in no split
        return owners
    for path in paths:
        key = listing.parse(path, listing.Scan())
        usual = None if key is None else usual_split(*key)
        if usual is not None:
            owners[path.stem] = usual
        elif key is not None:
            scan.fail(path, f"the usual split knows no sequence {key[0]}; add train.txt, val.txt and test.txt")
            owners[path.stem] = ""
    return owners


def _listed(path: pathlib.Path) -> list[str]:
    names = [line.split()[0].replace("\\", "/") for line in listing.lines(path)]
    return [pathlib.PurePosixPath(name).stem for name in names]


def _add_video(scan: listing.Scan, root: pathlib.Path, split: str, marks: dict[str, list[tuple[int, str]]]) -> None:
    """Adds the unlabelled frames of the videos.

    Args:
      scan: of the split; gets them.
      root: of the dataset.
      split: whose frames are wanted.
      marks: sequence -> (number, split) of its labelled frames.
    """
    if not (root / VIDEO).is_dir():
        return
    for folder in listing.folders(root / VIDEO, scan):
        sequence = folder.name
        if sequence not in marks:
            scan.notes.append(f"{folder}: no labelled frame is of this sequence, its frames are unused")
            continue
        known = sorted(marks[sequence])
        labelled = {number for number, _ in known}
        for path in listing.images(folder, scan):
            match = _NUMBER.match(path.stem)
            if match is None:
                scan.fail(path, f"the name is not <frame number>{path.suffix}; rename the file")
                continue
            number = int(match[1])
            after = bisect.bisect_left(known, (number, ""))
            if number not in labelled and after < len(known) and known[after][1] == split:
                scan.add(sequence, number, path, None)
