"""A contact sheet of a dataset: frames, their labels beneath, and the legend of the classes."""

from __future__ import annotations

import os

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from dvsnas_jax.core import errors, types
from dvsnas_jax.data import classes, pipeline

_GAP = 4
_LINE = 18
_PAPER = 255


def _legend(table: types.ClassTable, width: int) -> np.ndarray:
    """Names beside their colours, u8 [height, width, 3]."""
    entries = [(name, tuple(int(c) for c in color)) for name, color in zip(table.names, table.colors, strict=True)]
    entries.append(("ignored", (0, 0, 0)))
    lines: list[list[tuple[int, str, tuple[int, ...]]]] = [[]]
    x = 0
    for name, color in entries:
        need = 28 + 7 * len(name)
        if x + need > width and lines[-1]:
            lines.append([])
            x = 0
        lines[-1].append((x, name, color))
        x += need
    image = Image.new("RGB", (width, _LINE * len(lines) + _GAP), (_PAPER,) * 3)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        for x, name, color in line:
            draw.rectangle((x + 2, row * _LINE + 4, x + 14, row * _LINE + 14), fill=color)
            draw.text((x + 18, row * _LINE + 3), name, fill=(20, 20, 20))
    return np.asarray(image)


def _row(tiles: np.ndarray) -> np.ndarray:
    """Images [n, H, W, 3] side by side with gaps."""
    padded = np.pad(tiles, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=_PAPER)
    return np.concatenate(list(padded), axis=1)


def render(
    data: ml_collections.ConfigDict, *, split: str = "val", num_clips: int = 3, num_frames: int = 5
) -> np.ndarray:
    """Draws the first frames of some videos, as a network sees them, and their true labels.

    Args:
      data: section of the configuration.
      split: train, val or test.
      num_clips: rows at most; the videos are spread over the split.
      num_frames: columns at most.

    Returns:
      u8 [height, width, 3], RGB.

    Raises:
      UserError: see `pipeline.load_clips` and `pipeline.sequences`.
    """
    table = pipeline.class_table(data)
    if num_clips < 1 or num_frames < 1:
        raise errors.UserError("data preview: the numbers of clips and frames must be at least 1; raise them")
    if split == "train":
        clips = pipeline.load_clips(data, split=split, num_frames=min(num_frames, int(data.num_frames)))
        videos = list(zip(clips.frames, clips.labels, strict=True))
    else:
        videos = [(video.frames[:num_frames], video.labels[:num_frames]) for video in pipeline.sequences(data, split)]
    chosen = np.unique(np.linspace(0, len(videos) - 1, min(num_clips, len(videos))).round().astype(int))
    rows = []
    for number in chosen:
        frames, labels = videos[number]
        rows += [_row(np.asarray(frames)), _row(classes.colorize(np.asarray(labels), table))]
    width = max(row.shape[1] for row in rows)
    rows.append(_legend(table, width))
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_PAPER) for row in rows]
    )


def save(
    data: ml_collections.ConfigDict,
    path: str | os.PathLike[str],
    *,
    split: str = "val",
    num_clips: int = 3,
    num_frames: int = 5,
) -> None:
    """Writes `render(...)` as a picture; the ending of `path` names the format.

    Raises:
      UserError: the picture cannot be written.
    """
    sheet = render(data, split=split, num_clips=num_clips, num_frames=num_frames)
    try:
        Image.fromarray(sheet).save(path)
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"{path}: cannot write the picture ({error}); use a writable path that ends in .png"
        ) from error
