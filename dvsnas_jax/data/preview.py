"""Pictures of a dataset: a contact sheet of frames and labels, and an animated clip under its labels."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import json_files, output_files
from dvsnas_jax.data.datasets import classes
from dvsnas_jax.data.loading import pipeline, store, whole_videos

_GAP = 4
_LINE = 18
_PAPER = 255
_PANEL = 240
"""Smaller videos are enlarged by a whole number until they are so wide, pixels."""
_OPACITY = 55
"""Of the labels over a frame, percent."""


def _legend(table: types.ClassTable, width: int, *, is_overlay: bool = False) -> np.ndarray:
    """Names beside their colours, u8 [height, width, 3]; over a frame, ignored pixels have no colour."""
    entries = [(name, tuple(int(c) for c in color)) for name, color in zip(table.names, table.colors, strict=True)]
    if not is_overlay:
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
    """Draws the first frames of some videos and their true labels; of train, augmented clips as a network gets them.

    Args:
      data: section of the configuration.
      split: train, val or test.
      num_clips: rows at most; the videos are spread over the split.
      num_frames: columns at most.

    Returns:
      u8 [height, width, 3], RGB.

    Raises:
      UserError: see `pipeline.train_batches` and `whole_videos.find`.
    """
    table = pipeline.class_table(data)
    if num_clips < 1:
        raise errors.UserError(f"data preview: the number of clips must be at least 1, got {num_clips}")
    if num_frames < 1:
        raise errors.UserError(f"--frames: must be at least 1, got {num_frames}")
    if split == "train":
        wanted = min(num_frames, int(data.num_frames))
        clips = next(pipeline.train_batches(data, batch_size=num_clips, num_frames=wanted, seed=int(data.seed)))
        shown = list(zip(clips.frames, clips.labels, strict=True))
    else:
        videos = whole_videos.find(data, split)
        chosen = np.unique(np.linspace(0, len(videos) - 1, min(num_clips, len(videos))).round().astype(int))
        shown = [(video.frames, video.labels) for video in (_head(videos, number, num_frames) for number in chosen)]
    rows = []
    for frames, labels in shown:
        rows += [_row(np.asarray(frames)), _row(classes.colorize(np.asarray(labels), table))]
    width = max(row.shape[1] for row in rows)
    rows.append(_legend(table, width))
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_PAPER) for row in rows]
    )


def _head(videos: Sequence[types.Sequence], number: int, num_frames: int) -> types.Sequence:
    """The first frames of a video; of one on disk no others are read."""
    if isinstance(videos, whole_videos.Videos):
        videos = videos.shortened(num_frames)
    video = videos[number]
    return types.Sequence(name=video.name, frames=video.frames[:num_frames], labels=video.labels[:num_frames])


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
    _write(Image.fromarray(render(data, split=split, num_clips=num_clips, num_frames=num_frames)), path)


def animate(
    data: ml_collections.ConfigDict, *, split: str = "val", number: int | None = None, num_frames: int = 60
) -> tuple[np.ndarray, float]:
    """A video beside itself under its labels, frame by frame, above the legend of the classes.

    Args:
      data: section of the configuration.
      split: train, val or test.
      number: of the video in `whole_videos.find`; None: the longest.
      num_frames: at most.

    Returns:
      u8 [T, height, width, 3], and frames per second (10 for synthetic streets, which have no rate of their own).

    Raises:
      UserError: no such video, or see `whole_videos.find`.
    """
    table = pipeline.class_table(data)
    videos = whole_videos.find(data, split, is_split_up=False)
    runs = videos.runs if isinstance(videos, whole_videos.Videos) else [video.labels for video in videos]
    lengths = list(map(len, runs))
    if num_frames < 1:
        raise errors.UserError(f"--frames: must be at least 1, got {num_frames}")
    if number is not None and not 0 <= number < len(lengths):
        raise errors.UserError(f"--video: must be from 0 to {len(lengths) - 1}, the videos of {split}, got {number}")
    video = _head(videos, int(np.argmax(lengths)) if number is None else number, num_frames)
    rate = store.source(data, split).frame_rate / int(data.eval_gap) if data.name != "synthetic" else 10.0
    frames, labels = np.asarray(video.frames), np.asarray(video.labels)
    enlarge = -(-_PANEL // frames.shape[2])
    overlay = overlaid(frames, labels, table)
    panels = np.concatenate([frames, overlay], axis=2).repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    feet = [_foot(video.name, t, labels[t], table, panels.shape[2]) for t in range(len(frames))]
    return np.concatenate([panels, np.stack(feet)], axis=1), rate


def overlaid(frames: np.ndarray, labels: np.ndarray, table: types.ClassTable) -> np.ndarray:
    """Frames u8 [..., H, W, 3] under the colours of their labels u8 [..., H, W]; ignored pixels stay as they are."""
    painted = classes.colorize(labels, table).astype(np.uint16)
    mixed = ((frames.astype(np.uint16) * (100 - _OPACITY) + painted * _OPACITY + 50) // 100).astype(np.uint8)
    return np.where((labels < table.num_classes)[..., None], mixed, frames)


def _foot(name: str, t: int, labels: np.ndarray, table: types.ClassTable, width: int) -> np.ndarray:
    """A line of text and the legend."""
    image = Image.new("RGB", (width, _LINE), (_PAPER,) * 3)
    state = "" if (labels < table.num_classes).any() else " (no labels)"
    ImageDraw.Draw(image).text((4, 3), f"{name}, frame {t}{state}", fill=(20, 20, 20))
    return np.concatenate([np.asarray(image), _legend(table, width, is_overlay=True)])


def save_animation(
    data: ml_collections.ConfigDict,
    path: str | os.PathLike[str],
    *,
    split: str = "val",
    number: int | None = None,
    num_frames: int = 60,
) -> None:
    """Writes `animate(...)`: .gif, .webp, or .png and .apng (animated PNG), by the ending of `path`.

    Raises:
      UserError: the picture cannot be written.
    """
    pictures, rate = animate(data, split=split, number=number, num_frames=num_frames)
    images = [Image.fromarray(picture) for picture in pictures]
    if os.fspath(path).lower().endswith(".gif"):  # one palette for all, or the colours flicker
        palette = Image.fromarray(pictures[:: max(len(pictures) // 8, 1)].reshape(-1, *pictures.shape[2:]))
        palette = palette.quantize(256, Image.Quantize.MEDIANCUT)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    duration = max(round(1000 / rate), 20)  # milliseconds; browsers slow down what is shorter
    _write(images[0], path, save_all=True, append_images=images[1:], duration=duration, loop=0)


def _write(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> None:
    output_files.make_folder(pathlib.Path(path).parent)
    try:
        image.save(path, **options)
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"--output: {path}: cannot write the picture ({json_files.reason(error)}); choose another --output"
        ) from error
