"""Image and label files as bytes: as they are, or made smaller without loss of a label."""

from __future__ import annotations

import io
import os
import pathlib

import numpy as np
from PIL import Image

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import decode


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file.

    Raises:
      UserError: it is not there or cannot be read.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise errors.UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


def pair(frame: frames.Frame, size: tuple[int, int] | None = None) -> tuple[bytes, bytes]:
    """The image and the label of a frame.

    Args:
      frame: where it lies.
      size: height and width to resize to (image: Lanczos, label: nearest, both as PNG); None: the bytes of the files.

    Returns:
      Encoded image, and encoded label or b"" where the frame has none. Resized ones are upright; the bytes of files
      keep what they say of their orientation, for who reads them.

    Raises:
      UserError: a file cannot be read or is no image, or the two have other sizes.
    """
    image, image_size = _checked(frame.image)
    label = b""
    if frame.label is not None:
        label, label_size = _checked(frame.label)
        if label_size != image_size:
            raise errors.UserError(decode.size_problem(frame, image_size, label_size))
    if size is None or size == image_size[::-1]:
        return image, label
    small = Image.fromarray(image_files.read_image(frame.image, image)).resize(size[::-1], Image.Resampling.LANCZOS)
    return _png(small), label and _resized_label(label, size)


def _checked(path: pathlib.Path) -> tuple[bytes, tuple[int, int]]:
    """The bytes of an image file whose checksums are right, and width and height, upright."""
    content = frames.read_bytes(path)
    try:
        size = image_files.size(content)
        with Image.open(io.BytesIO(content)) as image:
            image_files.require_one(path, image)
            image.verify()
    except errors.UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise image_files.unreadable(path, error) from error
    return content, size


def _resized_label(content: bytes, size: tuple[int, int]) -> bytes:
    """Nearest pixels, upright, with their values and palette."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image_files.upright(image))
        small = Image.fromarray(np.ascontiguousarray(image_files.resized_nearest(pixels, size)))
        if image.mode == "P":
            small.putpalette(image.getpalette() or [])
    return _png(small)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
