"""Clips and runs among the frames of a dataset on disk, and the reading of one frame."""

from __future__ import annotations

import collections
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames as frames_lib
from dvsnas_jax.data.datasets import labels as labels_lib

_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOR_MODES = ("RGB", "RGBA", "P")


def gaps(frames: Sequence[frames_lib.Frame]) -> collections.Counter[int]:
    """How often consecutive frames of a sequence are so far apart, in frame numbers."""
    return collections.Counter(
        b.number - a.number for a, b in zip(frames[:-1], frames[1:], strict=True) if a.sequence == b.sequence
    )


def gaps_text(frames: Sequence[frames_lib.Frame]) -> str:
    """The commonest distances as text."""
    return ", ".join(f"{gap} ({count} times)" for gap, count in gaps(frames).most_common(5)) or "none"


def _require_labels(frames: Sequence[frames_lib.Frame]) -> None:
    if not any(frame.label for frame in frames):
        raise errors.UserError(
            f"{frames[0].image.parent}: none of the {len(frames)} frames of this split has a label image; "
            "add labels or use another split"
        )


def clips(frames: Sequence[frames_lib.Frame], num_frames: int, gap: int, tolerance: int) -> np.ndarray:
    """Clips of frames `gap` +- `tolerance` apart: every labelled frame with enough history is a target once.

    Args:
      frames: of a source; those of the history need no labels.
      num_frames: T.
      gap: wanted distance of consecutive frames, in frame numbers.
      tolerance: how far a distance may be off.

    Returns:
      i32 [N, T], places in `frames`, oldest first.

    Raises:
      UserError: no frame is labelled, or not one clip exists; says which gaps there are.
    """
    _require_labels(frames)
    place = {(frame.sequence, frame.number): i for i, frame in enumerate(frames)}
    offsets = sorted(
        range(max(gap - tolerance, 1), gap + tolerance + 1), key=lambda offset: (abs(offset - gap), offset)
    )
    found = []
    for target, frame in enumerate(frames):
        chain = [target] if frame.label else []
        while 0 < len(chain) < num_frames:
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
            f"gaps that exist: {gaps_text(frames)}; change data.num_frames, data.frame_gap or "
            "data.frame_gap_tolerance, or set data.history to 'stills'"
        )
    return np.array(found, np.int32)


def runs(frames: Sequence[frames_lib.Frame], gap: int, *, is_still: bool = False) -> list[list[int]]:
    """Maximal runs of frames exactly `gap` apart, as places in `frames`, each frame in one run at most.

    Runs without a label are left out, and so is what follows the last label of a run: it changes no score. Where
    nothing at all is labelled, all runs are whole.

    Args:
      frames: of a source.
      gap: distance in frame numbers.
      is_still: runs of single frames are fine.

    Raises:
      UserError: every run is a single frame although sequences have several; says which gaps there are.
    """
    place = {(frame.sequence, frame.number): i for i, frame in enumerate(frames)}
    whole = []
    for i, frame in enumerate(frames):
        if (frame.sequence, frame.number - gap) in place:
            continue  # not the first of its run
        run, number = [i], frame.number + gap
        while (frame.sequence, number) in place:
            run.append(place[frame.sequence, number])
            number += gap
        whole.append(run)
    if any(frame.label for frame in frames):
        last = [max((t for t, i in enumerate(run) if frames[i].label), default=-1) for run in whole]
        found = [run[: end + 1] for run, end in zip(whole, last, strict=True) if end >= 0]
    else:
        found = whole
    if not is_still and gaps(frames) and all(len(run) == 1 for run in found):
        raise errors.UserError(
            f"{frames[0].image.parent}: no two frames are {gap} apart; gaps that exist: {gaps_text(frames)}; "
            "change data.eval_gap"
        )
    return found


def read_label(path: pathlib.Path, code: labels_lib.LabelCode, content: bytes | None = None) -> np.ndarray:
    """A label image, upright, as train ids u8 [H, W], 255 = ignore.

    Args:
      path: of the file.
      code: what its pixels mean.
      content: as in `read_image`.

    Raises:
      UserError: unreadable, not of the kind that the code needs, or an unknown id or colour.
    """
    return code.decode(read_pixels(path, code, content), str(path))


def read_pixels(path: pathlib.Path, code: labels_lib.LabelCode, content: bytes | None = None) -> np.ndarray:
    """A label image as it is stored: ids [H, W], or colours u8 [H, W, 3].

    Args:
      path: of the file.
      code: whether its pixels are colours.
      content: as in `read_image`.

    Raises:
      UserError: unreadable, or not of the kind that the code needs.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            mode, kind = image.mode, image.format
            image_files.require_one(path, image)
            turned = image_files.upright(image)
            is_painted = code.is_color and mode in _COLOR_MODES
            pixels = image_files.rgb(path, turned) if is_painted else np.asarray(turned)
    except errors.UserError:
        raise
    except Exception as error:
        raise image_files.unreadable(path, error) from error
    if kind in ("JPEG", "MPO"):
        raise errors.UserError(f"{path}: a JPEG blurs labels; save them as PNG, from the original")
    if mode not in (_COLOR_MODES if code.is_color else _ID_MODES):
        wanted = "the colours of classes (RGB)" if code.is_color else "one channel of ids"
        key = "; or set data.folder.labels" if code.ignore_key.startswith("data.folder") else ""
        raise errors.UserError(f"{path}: a label image holds {wanted}, this one is {mode}; convert it{key}")
    return pixels.astype(np.uint8) if mode == "1" else pixels


def size_problem(frame: frames_lib.Frame, size: tuple[int, ...], label_size: tuple[int, ...]) -> str:
    """Says that a frame and its labels differ in (width, height), as both are seen: upright."""
    turned = " (frames are turned as their EXIF orientation says, so turn the labels, too)"
    return (
        f"{frame.label}: {label_size[0]}x{label_size[1]} pixels, but its frame {frame.image.name} has "
        f"{size[0]}x{size[1]}; make them equal{turned if tuple(label_size[::-1]) == tuple(size) else ''}"
    )


def load(
    frame: frames_lib.Frame,
    code: labels_lib.LabelCode,
    height: int,
    width: int,
    *,
    content: tuple[bytes, bytes] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads and resizes one frame.

    Args:
      frame: where it lies.
      code: of its labels.
      height: of the result, pixels.
      width: of the result, pixels.
      content: bytes of the image and of the label (empty: it has none) where they come from elsewhere.

    Returns:
      u8 [height, width, 3] (bilinear, averaging) and labels u8 [height, width] (nearest), 255 where there are none.

    Raises:
      UserError: unreadable, another size than its label image, or an unknown label.
    """
    image_bytes, label_bytes = content or (None, None)
    image = image_files.read_image(frame.image, image_bytes)
    size = image.shape[1::-1]
    if size != (width, height):
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if frame.label is None:
        return image, np.full((height, width), types.IGNORE, np.uint8)
    labels = read_label(frame.label, code, label_bytes)
    if labels.shape[::-1] != size:
        raise errors.UserError(size_problem(frame, size, labels.shape[::-1]))
    return image, labels[
        image_files.nearest(labels.shape[0], height)[:, None], image_files.nearest(labels.shape[1], width)[None, :]
    ]
