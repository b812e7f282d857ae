"""Frames of a run as pictures: the strip with its errors, the looping clip, and the strip as one PNG for elsewhere."""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.evaluate import figures

Arrays = Mapping[str, np.ndarray]
"""`frames` u8 [n, H, W, 3]; `labels`, `static` and, where there is one, `cell` u8 [n, H, W]; `colors` u8 [K, 3]."""

TILE_WIDTH = 320
"""Of a tile in pixels, about: larger frames are thinned out, smaller ones enlarged by a whole factor."""
MAX_CLIP_BYTES = 1_400_000
_GAP = 4
_FRAME_MS = 160
_WRONG = np.array((213, 94, 0), np.float64)


def rows(arrays: Arrays) -> dict[str, tuple[bytes, str]]:
    """The strip as pictures of consecutive frames: name of the row -> WebP file and what is said beside it.

    Rows are `frame`, `label`, `static`, `static errors`, `cell`, `cell errors`. Errors lie in orange on the frame in
    grey; what has no label is dark.
    """
    thin = _thinned(arrays)
    colors = _palette(arrays)
    found = {
        "frame": (_webp(_side_by_side(thin["frames"]), quality=85), ""),
        "label": (_webp(_side_by_side(colors[thin["labels"]])), ""),
    }
    for name in networks(arrays):
        shares = [wrong_share(*pair) for pair in zip(arrays["labels"], arrays[name], strict=True)]
        shown = ", ".join("no label" if share is None else f"{100 * share:.0f}" for share in shares)
        found[name] = (_webp(_side_by_side(colors[thin[name]])), "")
        marked = marked_errors(thin["frames"], thin["labels"], thin[name])
        found[f"{name} errors"] = (_webp(_side_by_side(marked), quality=85), f"{shown} % of the pixels")
    return found


def networks(arrays: Arrays) -> list[str]:
    """Whose predictions there are: of the static network, and of the cell where there is one."""
    return [name for name in ("static", "cell") if name in arrays]


def wrong_share(labels: np.ndarray, predictions: np.ndarray) -> float | None:
    """Share of the labelled pixels that are predicted wrongly, None where nothing is labelled."""
    is_labelled = labels != types.IGNORE
    return float((labels != predictions)[is_labelled].mean()) if is_labelled.any() else None


def marked_errors(frames: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Frames u8 [n, H, W, 3] in grey, wrong pixels (of ids u8 [n, H, W]) in orange, pixels without a label dark."""
    grey = frames.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    is_labelled = labels != types.IGNORE
    is_wrong = is_labelled & (labels != predictions)
    base = np.where(is_labelled[..., None], 95 + 0.6 * grey, 0.35 * grey)
    return np.where(is_wrong[..., None], 0.75 * _WRONG + 0.25 * grey, base).round().astype(np.uint8)


def clip(arrays: Arrays) -> tuple[bytes, bytes]:
    """A looping video: frame, labels, static network and cell in a square; without a cell the network's errors.

    An animated WebP file of at most `MAX_CLIP_BYTES`, and its first picture alone.
    """
    thin, colors = _thinned(arrays), _palette(arrays)
    factor = max(1, TILE_WIDTH // thin["frames"].shape[2])
    tiles = {"frame": thin["frames"]}
    titles = {"labels": "label", "static": "static network", "cell": "with the cell"}
    for key, name in [(key, titles[key]) for key in ("labels", *networks(arrays))]:
        blended = 0.3 * thin["frames"] + 0.7 * colors[thin[key]]
        is_blank = (thin[key] == types.IGNORE)[..., None]
        tiles[name] = np.where(is_blank, 0.35 * thin["frames"], blended).round().astype(np.uint8)
    if "cell" not in arrays:
        tiles["its errors"] = marked_errors(thin["frames"], thin["labels"], thin["static"])
    large = {name: _named(images.repeat(factor, axis=1).repeat(factor, axis=2), name) for name, images in tiles.items()}
    top, bottom = (np.concatenate([large[a], large[b]], axis=2) for a, b in zip(*[iter(tiles)] * 2, strict=True))
    pictures = np.concatenate([top, bottom], axis=1)
    while True:
        for quality in (75, 55, 35):
            data = _webp(*pictures, quality=quality)
            if len(data) <= MAX_CLIP_BYTES or len(pictures) == 1:
                return data, _webp(pictures[0], quality=75)
        pictures = pictures[: max(1, len(pictures) // 2)]


def _thinned(arrays: Arrays) -> dict[str, np.ndarray]:
    """Every so many pixels only, so that a tile is about `TILE_WIDTH` wide at most; frames are averaged."""
    step = max(1, round(arrays["frames"].shape[2] / TILE_WIDTH))
    height, width = (length // step * step for length in arrays["frames"].shape[1:3])
    blocks = arrays["frames"][:, :height, :width]
    blocks = blocks.reshape(len(blocks), height // step, step, width // step, step, 3)
    maps = {key: arrays[key][:, :height:step, :width:step] for key in ("labels", *networks(arrays))}
    return {"frames": blocks.mean(axis=(2, 4)).round().astype(np.uint8), **maps}


def _palette(arrays: Arrays) -> np.ndarray:
    """Colours of all 256 ids, black where there is no class; u8 [256, 3]."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(arrays["colors"])] = arrays["colors"]
    return colors


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """Pictures u8 [n, H, W, 3] in a row with grey between them."""
    space = np.full((images.shape[1], _GAP, 3), 128, np.uint8)
    parts = [part for image in images for part in (space, image)][1:]
    return np.concatenate(parts, axis=1)


def _named(images: np.ndarray, name: str) -> np.ndarray:
    """Pictures u8 [n, H, W, 3] with their name in a corner."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(11, images.shape[1] // 11))
    found = []
    for array in images:
        image = Image.fromarray(array)
        pen = ImageDraw.Draw(image)
        left, top, right, bottom = pen.textbbox((6, 4), name, font=font)
        pen.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=(20, 22, 26))
        pen.text((6, 4), name, font=font, fill=(255, 255, 255))
        found.append(np.asarray(image))
    return np.stack(found)


def _webp(*images: np.ndarray, quality: int | None = None) -> bytes:
    """A WebP file, moving where there are several pictures; without a quality nothing is lost."""
    from PIL import Image

    first, *others = [Image.fromarray(image) for image in images]
    options: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    if others:
        options |= {"save_all": True, "append_images": others, "duration": _FRAME_MS, "loop": 0}
    buffer = io.BytesIO()
    first.save(buffer, format="WEBP", method=4, **options)
    return buffer.getvalue()


def strip(arrays: Arrays, names: Sequence[str], path: str | pathlib.Path, notes: Mapping[str, str]) -> None:
    """Consecutive frames side by side as one PNG: frame, label, what the static network says, what the cell says.

    `names` are those of the K classes, `notes` a few words under the name of a row.
    """
    colors, num_classes = _palette(arrays), len(arrays["colors"])
    maps = {"label": arrays["labels"], **{name: arrays[name] for name in networks(arrays)}}
    rows = {"frame": arrays["frames"], **{row: colors[ids] for row, ids in maps.items()}}
    present = np.unique(np.stack(list(maps.values())))
    entries = [
        (names[index] if index < len(names) else f"class {index}", colors[index] / 255)
        for index in present[present < num_classes].tolist()
    ]
    entries += [("ignored", colors[255] / 255)] if present[-1] >= num_classes else []
    num, height, width = arrays["frames"].shape[:3]
    tile_width, left, top, space, entry_width = 2.1, 1.05, 0.32, 0.06, 1.3
    tile_height = tile_width * height / width
    total_width = left + num * (tile_width + space) + space
    per_row = max(1, int((total_width - left) / entry_width))
    bottom = 0.12 + 0.26 * math.ceil(len(entries) / per_row)
    total_height = top + len(rows) * (tile_height + space) + bottom
    with figures.canvas(path, total_width, total_height) as figure:
        figure.set_layout_engine("none")
        for row, (label, images) in enumerate(rows.items()):
            y = total_height - top - (row + 1) * (tile_height + space) + space
            _strip_label(figure, 0.12, y + tile_height / 2, label, notes.get(label, ""))
            for column, image in enumerate(images):
                box = (left + column * (tile_width + space), y, tile_width, tile_height)
                totals = (total_width, total_height, total_width, total_height)
                axes = figure.add_axes(np.divide(box, totals))
                axes.imshow(image, interpolation="lanczos" if label == "frame" else "nearest", aspect="auto")
                axes.axis("off")
                if row == 0:
                    time = f"t + {column}" if column else "t"
                    axes.set_title(time, loc="center", fontsize=10, pad=4, fontweight="normal")
        for index, (name, color) in enumerate(entries):
            corner = (left + index % per_row * entry_width, bottom - 0.28 - 0.26 * (index // per_row))
            _strip_entry(figure, corner, name, color)


def _strip_label(figure: Any, x: float, y: float, label: str, note: str) -> None:
    """The name of a row, a note under it; x and y in inches."""
    width, height = figure.get_size_inches()
    shift = 0.1 if note else 0.0
    figure.text(x / width, (y + shift) / height, label, fontsize=12, fontweight="bold", va="center")
    figure.text(x / width, (y - shift) / height, note, fontsize=8.5, color="#5A616B", va="center")


def _strip_entry(figure: Any, corner: tuple[float, float], name: str, color: Any) -> None:
    """A class of the legend; its lower left corner in inches."""
    from matplotlib import patches

    width, height = figure.get_size_inches()
    x, y = corner[0] / width, corner[1] / height
    figure.add_artist(patches.Rectangle((x, y), 0.16 / width, 0.16 / height, fc=color, ec=figures.GREY, lw=0.6))
    figure.text(x + 0.23 / width, y + 0.08 / height, name, fontsize=9.5, va="center")
