"""The layout of Cityscapes on disk.

`leftImg8bit_sequence/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png` (30 frames a snippet, the
20th labelled) or, where a split has no sequences, the stills `leftImg8bit/<split>/...`; labels
`gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png`. A sequence is `<city>_<seq>`; some
cities are one long sequence of snippets, so their numbers do not start at 0.
"""

from __future__ import annotations

import pathlib
import re

from dvsnas_jax.data.datasets import listing

SEQUENCES, STILLS, LABELS = "leftImg8bit_sequence", "leftImg8bit", "gtFine"
TEXT = f"expected {SEQUENCES}/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png (or {STILLS}/...) and {LABELS}/..."
FRAME_RATE = 17.0
_NAME = re.compile(r"^(?P<sequence>.+_\d+)_(?P<number>\d+)_(?P<kind>leftImg8bit|gtFine_labelIds)$")


def is_cityscapes(root: pathlib.Path) -> bool:
    """The folder looks like Cityscapes."""
    return any((root / name).is_dir() for name in (SEQUENCES, STILLS, LABELS))


def has_sequences(root: pathlib.Path, split: str) -> bool:
    """The split has video, not stills alone."""
    return (root / SEQUENCES / split).is_dir()


def scan(root: pathlib.Path, split: str) -> listing.Scan:
    """Looks at one split."""
    found = listing.Scan()
    is_video = has_sequences(root, split)
    folder = root / (SEQUENCES if is_video else STILLS) / split
    images = _files(folder, "leftImg8bit", found)
    if not images:
        found.fail(folder, f"no frames; {TEXT}")
        return found
    labels = _files(root / LABELS / split, "gtFine_labelIds", found)
    if not labels and split != "test":
        found.fail(root / LABELS / split, f"no label images, nothing of {split} is labelled; {TEXT}", is_fatal=False)
    is_labelled = bool(labels)
    for key, path in images.items():
        label = labels.pop(key, None)
        if label is None and is_labelled and not is_video:
            name = path.name.replace("leftImg8bit", "gtFine_labelIds")
            missing = root / LABELS / split / path.parent.name / name
            found.fail(path, f"its label image {missing} is missing; add it or remove the frame")
            continue
        found.add(*key, path, label)
    for path in labels.values():
        found.fail(path, f"a label image without its frame in {folder}; add the frame or remove it", is_fatal=False)
    if is_video and any(frame.label for frame in found.frames.values()):
        _check_snippets(found)
    return found


def _files(folder: pathlib.Path, kind: str, found: listing.Scan) -> dict[tuple[str, int], pathlib.Path]:
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


def _check_snippets(found: listing.Scan) -> None:
    """A run of consecutive frames without any label has lost its label image."""
    run: list[tuple[str, int]] = []
    for key in [*sorted(found.frames), ("", -1)]:
        if run and key != (run[-1][0], run[-1][1] + 1):
            if not any(found.frames[each].label for each in run):
                first = found.frames[run[0]].image
                found.fail(
                    first,
                    f"frames {run[0][1]}..{run[-1][1]} of {run[0][0]} have no label image; add it or remove them",
                    is_fatal=False,
                )
            run = []
        run.append(key)
