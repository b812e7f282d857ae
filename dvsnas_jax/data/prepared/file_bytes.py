"""A frame and its label as the bytes of two files: as they lie there, or made smaller without loss of a label."""

from __future__ import annotations

import io
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames
from dvsnas_jax.data.loading import decode

if TYPE_CHECKING:  # else where it is used: a machine that reads no image does without Pillow
    from PIL import Image


def pair(frame: frames.Frame, size: tuple[int, int] | None = None) -> tuple[bytes, bytes]:
    """The encoded image of a frame, and its encoded label, b"" where it has none.

    Resized to height and width (image: Lanczos, label: nearest, both as PNG) they are upright; None: the bytes of the
    files, which keep what they say of their orientation, for who reads them.

    Raises:
      UserError: a file cannot be read or is no image, or the two have other sizes.
    """
    from PIL import Image

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
    from PIL import Image

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
    from PIL import Image

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
