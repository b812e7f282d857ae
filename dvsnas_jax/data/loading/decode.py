"""One frame of a dataset and its labels, decoded by Pillow; `tf_decode` does the same in TensorFlow."""

from __future__ import annotations

import pathlib

import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.datasets import labels as labels_lib

_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOR_MODES = ("RGB", "RGBA", "P")


def read_label(path: pathlib.Path, code: labels_lib.LabelCode, content: bytes | None = None) -> np.ndarray:
    """A label image, upright, as train ids u8 [H, W], 255 = ignore; `content` as in `image_files.opened`.

    Raises UserError: unreadable, not of the kind that the code needs, or an unknown id or colour.
    """
    return code.decode(read_pixels(path, code, content), str(path))


def read_pixels(path: pathlib.Path, code: labels_lib.LabelCode, content: bytes | None = None) -> np.ndarray:
    """A label image as it is stored: ids [H, W], or colours u8 [H, W, 3].

    Raises UserError: unreadable, or not of the kind that the code needs.
    """
    with image_files.opened(path, content) as image:
        mode, kind = image.mode, image.format
        turned = image_files.upright(image)
        is_painted = code.is_color and mode in _COLOR_MODES
        pixels = image_files.rgb(path, turned) if is_painted else np.asarray(turned)
    if kind in ("JPEG", "MPO"):
        raise errors.UserError(f"{path}: a JPEG blurs labels; save them as PNG, from the original")
    if mode not in (_COLOR_MODES if code.is_color else _ID_MODES):
        wanted = "the colours of classes (RGB)" if code.is_color else "one channel of ids"
        key = "; or set data.folder.labels" if code.ignore_key.startswith("data.folder") else ""
        raise errors.UserError(f"{path}: a label image holds {wanted}, this one is {mode}; convert it{key}")
    return pixels.astype(np.uint8) if mode == "1" else pixels


def size_problem(frame: frames.Frame, size: tuple[int, ...], label_size: tuple[int, ...]) -> str:
    """Says that a frame and its labels differ in (width, height), as both are seen: upright."""
    turned = " (frames are turned as their EXIF orientation says, so turn the labels, too)"
    return (
        f"{frame.label}: {label_size[0]}x{label_size[1]} pixels, but its frame {frame.image.name} has "
        f"{size[0]}x{size[1]}; make them equal{turned if tuple(label_size[::-1]) == tuple(size) else ''}"
    )


def load(
    frame: frames.Frame,
    code: labels_lib.LabelCode,
    size: tuple[int, int],
    content: tuple[bytes, bytes] | None = None,
    label_size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A frame u8 [height, width, 3] (bilinear, averaging) and its labels u8 [height, width] (nearest; 255 = none).

    `content`: bytes of the image and of the label (empty: it has none) where they come from elsewhere. `label_size`:
    the labels are not resized, but have to be of this (height, width).

    Raises:
      UserError: unreadable, another size than its label image or than `label_size`, or an unknown label.
    """
    image_bytes, label_bytes = content or (None, None)
    image = image_files.read_image(frame.image, image_bytes)
    if frame.label is None:
        return image_files.resized(image, size), np.full(label_size or size, types.IGNORE, np.uint8)
    labels = read_label(frame.label, code, label_bytes)
    if labels.shape != image.shape[:2]:
        raise errors.UserError(size_problem(frame, image.shape[1::-1], labels.shape[::-1]))
    if label_size is not None and labels.shape != label_size:
        raise errors.UserError(
            f"{frame.label}: {labels.shape[1]}x{labels.shape[0]} pixels, but the first frame of its video has "
            f"{label_size[1]}x{label_size[0]}; evaluate.size=file needs one size, set evaluate.size=frame"
        )
    return image_files.resized(image, size), image_files.resized_nearest(labels, label_size or size)
