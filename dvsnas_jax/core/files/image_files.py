"""What an image file says about the reading of its pixels: which way is up, one picture or several, bit depth, alpha.

Every reader of frames and labels goes by this file. Turned: EXIF orientation of JPEG, PNG, TIFF and WebP (and what XMP
says where EXIF is silent). Dropped: alpha, without laying the picture over a colour. Left alone, as decoders of
datasets do: gamma and colour profiles.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from dvsnas_jax.core import errors

if TYPE_CHECKING:  # else where it is used: a machine that reads no image does without Pillow
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Of image files, in lower case; files of the user may have them in upper case."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_SEVERAL = ("GIF", "PNG", "WEBP", "TIFF")
"""Kinds of files that hold several pictures on purpose; a JPEG of a phone may hold a preview, which is none."""
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_LYING = (5, 6, 7, 8)
"""Orientations that exchange width and height."""


def is_image(path: pathlib.Path) -> bool:
    """Whether the name of a file is that of an image."""
    return path.suffix.lower() in SUFFIXES


def num_pictures(image: Image.Image) -> int:
    """How many pictures an animation or a file of several pages holds; 1 for all else."""
    return int(getattr(image, "n_frames", 1)) if image.format in _SEVERAL else 1


def require_one(path: pathlib.Path, image: Image.Image) -> None:
    """Raises UserError where a file is an animation, or has several pages."""
    if (num := num_pictures(image)) > 1:
        raise errors.UserError(
            f"{path}: holds {num} pictures (an animated or paged {image.format}), a frame is one; "
            "save each as a file of its own"
        )


def orientation(image: Image.Image) -> int:
    """What the metadata says, 1 (upright) .. 8; 1 where it says nothing, or nothing that can be read."""
    from PIL import ExifTags

    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF is common, and says nothing of the pixels
        return 1
    return found if found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture as its metadata says; no copy where it stands already."""
    from PIL import Image

    image.load()  # Pillow turns TIFF here, by itself
    found = orientation(image)
    return image.transpose(Image.Transpose[_TURNS[found]]) if found in _TURNS else image


def rgb(path: pathlib.Path, image: Image.Image) -> np.ndarray:
    """The pixels of an upright picture, u8 [H, W, 3]. Grey becomes RGB, 16 bits lose the lower 8, alpha is dropped.

    Raises UserError: floats, or more than 16 bits.
    """
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise errors.UserError(f"{path}: its pixels have 32 bits; save it with 8 or 16")
        grey = (values.astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise errors.UserError(f"{path}: its pixels are floats; save it with 8 or 16 bits")
    image.info.pop("transparency", None)  # Pillow warns of some kinds of what is dropped
    return np.asarray(image.convert("RGB"))


def size(content: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture, upright; raises an exception of Pillow's where it is none."""
    from PIL import Image

    is_plain = is_common(content)
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size  # of a TIFF already upright
        is_lying = not is_plain and image.format != "TIFF" and orientation(image) in _LYING
    return (height, width) if is_lying else (width, height)


def is_common(content: bytes) -> bool:
    """Whether any decoder reads these bytes alike: one upright PNG, one upright JPEG of grey or colour, or b""."""
    from PIL import Image

    try:
        if content.startswith(_PNG):
            kinds = list(_png_chunks(content))
        elif content.startswith(_JPEG):
            kinds = list(_jpeg_segments(content))
        else:
            return not content
        if "several" in kinds or "four channels" in kinds:
            return False
        if "metadata" not in kinds:
            return True
        with Image.open(io.BytesIO(content)) as image:
            return orientation(image) == 1
    except Exception:  # damaged: Pillow finds the words for it
        return False


def _png_chunks(content: bytes) -> Iterator[str]:
    """What the chunks of a PNG mean for its reading."""
    place = len(_PNG)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"acTL":
            yield "several"
        text = content[place + 8 : place + 40] if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        if kind == b"eXIf" or text.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
            yield "metadata"
        place += length + 12


def _jpeg_segments(content: bytes) -> Iterator[str]:
    """What the segments of a JPEG before its pixels mean for its reading."""
    place = len(_JPEG)
    while True:
        start, marker, length = struct.unpack_from(">BBH", content, place)
        if start != 0xFF or marker == 0xDA:
            return
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == 0xE1:
            yield "metadata"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and content[place + 9] not in (1, 3):
            yield "four channels"
        place += 2 + length


def nearest(size: int, out: int) -> np.ndarray:
    """Places i32 [out] that nearest-neighbour resampling of `size` pixels takes (pixel centres at +0.5)."""
    return ((2 * np.arange(out, dtype=np.int64) + 1) * size // (2 * out)).astype(np.int32)


def resized_nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels [h, w] (or pixels [h, w, ...]) at another (height, width): the nearest."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    return pixels.take(nearest(pixels.shape[0], size[0]), axis=0).take(nearest(pixels.shape[1], size[1]), axis=1)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame u8 [h, w, 3] at another (height, width): bilinear, averaging."""
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unreadable(path: pathlib.Path, error: Exception) -> errors.UserError:
    """What Pillow said of a file, as an error for people."""
    from PIL import UnidentifiedImageError

    why = reason(error)
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    elif isinstance(error, UnidentifiedImageError):
        why = "the file is empty" if path.is_file() and not path.stat().st_size else "no known image format"
    return errors.UserError(f"{path}: not a readable image ({why}); replace the file")


@contextlib.contextmanager
def opened(path: pathlib.Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """A file that holds one picture; where its `content` comes from elsewhere, the path is a name for errors.

    Raises UserError: unreadable (also where that shows within the block), or not one picture.
    """
    from PIL import Image

    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            require_one(path, image)
            yield image
    except errors.UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise unreadable(path, error) from error


def read_image(path: pathlib.Path, content: bytes | None = None) -> np.ndarray:
    """A frame, upright: u8 [H, W, 3]; see `opened` and `rgb`."""
    with opened(path, content) as image:
        return rgb(path, upright(image))


def repeated_names(paths: Iterable[pathlib.Path]) -> str:
    """A warning where images differ in the suffix, or in the folder, alone: masks are easily read as frames."""
    files = list(paths)
    first: dict[str, pathlib.Path] = {}
    for path in files:
        same = first.setdefault(path.stem, path)
        if same is not path:
            num = len({path.stem for path in files})
            return (
                f"names repeat: {len(files)} images have {num} names ({same.name}, {path.name}), all are read as "
                f"frames, masks too; give a pattern of the frames alone, as '{same.parent}/*{same.suffix}'"
            )
    return ""
