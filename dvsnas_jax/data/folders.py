"""Frames and label images in folders: the index of the SegNet layout of CamVid.

`{train,val,test}/<sequence>_<frame number>.png` and `{train,val,test}annot/<same name>.png` with
ids 0..10 and 11 = void. The number may carry a letter: `0006R0_f00930.png`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import re

import numpy as np
from PIL import Image

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import classes

LAYOUT = "expected {train,val,test}/<sequence>_<number>.png and {train,val,test}annot/<same name>.png"
_NAME = re.compile(r"^(?P<sequence>.+)_(?P<letter>[A-Za-z]?)(?P<number>\d+)$")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One labelled frame on disk."""

    sequence: str
    number: int
    image: pathlib.Path
    label: pathlib.Path


def _parse(path: pathlib.Path) -> tuple[str, int]:
    match = _NAME.match(path.stem)
    if match is None:
        raise errors.UserError(f"{path}: the name is not <sequence>_<frame number>.png; rename the file")
    return match["sequence"], int(match["number"])


@functools.lru_cache(maxsize=16)
def index(folder: str, split: str) -> tuple[Frame, ...]:
    """The labelled frames of a split, ordered by sequence and frame number.

    Args:
      folder: of the dataset.
      split: train, val or test.

    Raises:
      UserError: no such folder, no frames, a bad name, a frame without its label image.
    """
    root = pathlib.Path(folder)
    if not folder:
        raise errors.UserError(f"data.dir: no dataset folder given; set data.dir or DVSNAS_CAMVID ({LAYOUT})")
    if not root.is_dir():
        raise errors.UserError(f"{root}: no such dataset folder; {LAYOUT}")
    paths = sorted((root / split).glob("*.png"))
    if not paths:
        raise errors.UserError(f"{root / split}: no frames; {LAYOUT}")
    annotations = root / f"{split}annot"
    if not annotations.is_dir():
        raise errors.UserError(f"{annotations}: no such folder, frames of {split} have no labels; {LAYOUT}")
    frames = []
    for path in paths:
        sequence, number = _parse(path)
        label = annotations / path.name
        if not label.is_file():
            raise errors.UserError(f"{path}: its label image {label} is missing; add it or remove the frame")
        frames.append(Frame(sequence, number, path, label))
    return tuple(sorted(frames, key=lambda frame: (frame.sequence, frame.number)))


def _gaps(frames: tuple[Frame, ...]) -> str:
    """The distances between consecutive frames that exist, commonest first, as text."""
    counts = collections.Counter(
        b.number - a.number for a, b in zip(frames[:-1], frames[1:], strict=True) if a.sequence == b.sequence
    )
    return ", ".join(f"{gap} ({count} times)" for gap, count in counts.most_common(5)) or "none"


def clips(frames: tuple[Frame, ...], num_frames: int, gap: int, tolerance: int) -> np.ndarray:
    """Clips of frames `gap` +- `tolerance` apart: every frame with enough history is a target once.

    Args:
      frames: from `index`.
      num_frames: T.
      gap: wanted distance of consecutive frames, in frame numbers.
      tolerance: how far a distance may be off.

    Returns:
      i32 [N, T], places in `frames`, oldest first.

    Raises:
      UserError: not one clip exists; says which gaps there are.
    """
    place = {(frame.sequence, frame.number): i for i, frame in enumerate(frames)}
    offsets = sorted(
        range(max(gap - tolerance, 1), gap + tolerance + 1), key=lambda offset: (abs(offset - gap), offset)
    )
    found = []
    for target in range(len(frames)):
        chain = [target]
        while len(chain) < num_frames:
            last = frames[chain[-1]]
            before = [place[key] for offset in offsets if (key := (last.sequence, last.number - offset)) in place]
            if not before:
                break
            chain.append(before[0])
        if len(chain) == num_frames:
            found.append(chain[::-1])
    if not found:
        raise errors.UserError(
            f"{frames[0].image.parent}: no {num_frames} frames {gap} +- {tolerance} apart in any sequence; "
            f"gaps that exist: {_gaps(frames)}; change data.num_frames, data.frame_gap or data.frame_gap_tolerance, "
            "or set data.history to 'stills'"
        )
    return np.array(found, np.int32)


def runs(frames: tuple[Frame, ...], gap: int) -> list[list[int]]:
    """Maximal runs of frames exactly `gap` apart, as places in `frames`.

    Raises:
      UserError: every run is a single frame although there are several; says which gaps there are.
    """
    found: list[list[int]] = []
    for i, frame in enumerate(frames):
        last = frames[i - 1] if i else None
        if last is not None and last.sequence == frame.sequence and frame.number - last.number == gap:
            found[-1].append(i)
        else:
            found.append([i])
    if len(frames) > 1 and all(len(run) == 1 for run in found):
        raise errors.UserError(
            f"{frames[0].image.parent}: no two frames are {gap} apart; gaps that exist: {_gaps(frames)}; "
            "change data.eval_gap"
        )
    return found


def nearest(size: int, out: int) -> np.ndarray:
    """Places i32 [out] that nearest-neighbour resampling of `size` pixels takes (pixel centres at +0.5)."""
    return ((2 * np.arange(out, dtype=np.int64) + 1) * size // (2 * out)).astype(np.int32)


def _unreadable(path: pathlib.Path, error: Exception) -> errors.UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return errors.UserError(f"{path}: not a readable PNG ({reason}); replace the file")


def _open(path: pathlib.Path, mode: str | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if mode is None and image.mode not in ("L", "P", "I", "I;16"):
                raise errors.UserError(
                    f"{path}: a label image has one channel of ids, this one is {image.mode}; convert it"
                )
            return np.asarray(image if mode is None else image.convert(mode))
    except errors.UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _check_ids(labels: np.ndarray, path: pathlib.Path) -> None:
    highest = int(labels.max(initial=0))
    if highest > classes.VOID:
        raise errors.UserError(
            f"{path}: label id {highest} is out of range; ids are 0..{classes.VOID - 1} and {classes.VOID} = void"
        )


def load(frame: Frame, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads and resizes one labelled frame.

    Args:
      frame: where it lies.
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      u8 [height, width, 3] and labels u8 [height, width], void as 255.

    Raises:
      UserError: unreadable, another size than its label image, or an id out of range.
    """
    labels = _open(frame.label, None)
    try:
        with Image.open(frame.image) as image:
            _check_size(image.size, labels, frame)
            resized = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    except errors.UserError:
        raise
    except Exception as error:
        raise _unreadable(frame.image, error) from error
    _check_ids(labels, frame.label)
    small = labels[nearest(labels.shape[0], height)[:, None], nearest(labels.shape[1], width)[None, :]].astype(np.uint8)
    return resized, np.where(small == classes.VOID, np.uint8(types.IGNORE), small)


def _check_size(size: tuple[int, int], labels: np.ndarray, frame: Frame) -> None:
    if size != labels.shape[::-1]:
        raise errors.UserError(
            f"{frame.label}: {labels.shape[1]}x{labels.shape[0]} pixels, but its frame {frame.image.name} has "
            f"{size[0]}x{size[1]}; make them equal"
        )


@functools.lru_cache(maxsize=16)
def check(folder: str, split: str) -> None:
    """Checks every file of a split once: readable, sizes equal, ids in range, labels stored as plain grey.

    Raises:
      UserError: names the first bad file.
    """
    for frame in index(folder, split):
        labels = _open(frame.label, None)
        try:
            with Image.open(frame.label) as image:
                mode = image.mode
            with Image.open(frame.image) as image:
                _check_size(image.size, labels, frame)
                image.verify()
        except errors.UserError:
            raise
        except Exception as error:
            raise _unreadable(frame.image, error) from error
        if mode != "L":
            raise errors.UserError(
                f"{frame.label}: label images of mode {mode} need data.loader 'numpy'; set it, or convert to 8-bit grey"
            )
        _check_ids(labels, frame.label)
