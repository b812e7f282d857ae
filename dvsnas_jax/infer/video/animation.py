"""Files of several pictures (animated GIF, PNG and WebP, TIFF with pages) as frames with their times."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files

UNITS = 1000
"""Of the times of a second."""
_SILENT_MS = 100
"""A picture that says no time, or 0, is shown so long, as browsers do."""


def count(path: pathlib.Path) -> int | None:
    """How many pictures a file holds; 1 for a still picture and what is no picture, None where damage hides it."""
    try:
        with Image.open(path) as image:
            try:
                return image_files.num_pictures(image)
            except Exception:  # Pillow raises many kinds for a file that ends early
                return None
    except Exception:  # whoever reads it says what is wrong
        return 1


def read(path: pathlib.Path, warnings: list[str]) -> Iterator[tuple[np.ndarray, int | None]]:
    """The pictures of a file, whole as they are shown; `warnings` gets a line where the file is damaged.

    Yields:
      u8 [H, W, 3], upright, and how many milliseconds it is shown; None where the format knows no times (TIFF).

    Raises:
      UserError: not even the first one can be read.
    """
    number = 0
    try:
        with Image.open(path) as image:
            for number in itertools.count():
                try:
                    image.seek(number)
                except EOFError:
                    return
                # A copy: the next picture of an animation is laid over this one.
                picture = image_files.rgb(path, image_files.upright(image).copy())
                yield picture, None if image.format == "TIFF" else round(image.info.get("duration") or _SILENT_MS)
    except errors.UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        if not number:
            raise image_files.unreadable(path, error) from error
        warnings.append(f"{path}: damaged ({image_files.reason(error)}); {number} pictures could be read")
