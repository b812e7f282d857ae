"""The procedural street video: endless labelled clips with true motion, NumPy only.

A clip is a pure function of (seed, split, index), a frame of (seed, split, index, frame number).
"""

from __future__ import annotations

import functools

import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.street import degradations as degrade_lib
from dvsnas_jax.data.street import projection, raster, scene

SPLITS = ("train", "val", "test")


@functools.lru_cache(maxsize=64)
def _world(key: tuple[int, ...]) -> scene.World:
    return scene.make_world(np.random.default_rng((*key, 0)))


def _lens(color: np.ndarray) -> np.ndarray:
    """Slight blur of an f32 [3, H, W] image (weights 1 4 1 in x and y), as u8 [H, W, 3]."""
    image = np.clip(color, 0, 255)
    tall = image * np.float32(4)
    tall[:, 1:-1] += image[:, :-2]
    tall[:, 1:-1] += image[:, 2:]
    tall[:, 0] += image[:, 0] + image[:, min(1, image.shape[1] - 1)]
    tall[:, -1] += image[:, -1] + image[:, max(image.shape[1] - 2, 0)]
    tall *= np.float32(1 / 36)
    total = tall * np.float32(4)
    total[:, :, 1:-1] += tall[:, :, :-2]
    total[:, :, 1:-1] += tall[:, :, 2:]
    total[:, :, 0] += tall[:, :, 0] + tall[:, :, min(1, image.shape[2] - 1)]
    total[:, :, -1] += tall[:, :, -1] + tall[:, :, max(image.shape[2] - 2, 0)]
    total += np.float32(0.5)
    return total.astype(np.uint8).transpose(1, 2, 0)


def clip(
    *,
    seed: int,
    split: str,
    index: int,
    num_frames: int,
    height: int,
    width: int,
    degrade: float = 1.0,
    start: int = 0,
    with_flow: bool = True,
) -> types.Sequence:
    """Renders frames `start` .. `start + num_frames - 1` of a clip.

    Args:
      seed: of the whole synthetic world, >= 0.
      split: train, val or test; no street is in two splits.
      index: number of the clip in its split, >= 0.
      num_frames: T.
      height: pixels.
      width: pixels.
      degrade: strength of the degradations, 0 = none.
      start: number of the first frame; a frame is the same whatever range is asked for.
      with_flow: compute the true motion too (the first frame of the range needs the one before it).

    Returns:
      The frames, the labels of the undegraded scene, the true backward flow and the clean frames.

    Raises:
      UserError: unknown split or a negative number.
    """
    if split not in SPLITS:
        raise errors.UserError(f"data split: unknown name '{split}'; use one of {', '.join(SPLITS)}")
    if min(seed, index, start) < 0 or min(num_frames, height, width) < 1:
        raise errors.UserError(
            "synthetic clip: seed, index and start must be at least 0, the sizes at least 1; correct data.seed, "
            "data.height or data.width"
        )
    key = (int(seed), SPLITS.index(split), int(index))
    world = _world(key)
    shape = (num_frames, height, width)
    frames, clean = np.empty((*shape, 3), np.uint8), np.empty((*shape, 3), np.uint8)
    labels = np.empty(shape, np.uint8)
    flow = np.zeros((*shape, 2), np.float32) if with_flow else None
    before = raster.draw(world, start - 1, height, width) if with_flow and start > 0 else None
    for i in range(num_frames):
        drawing = raster.draw(world, start + i, height, width)
        clean[i] = _lens(drawing.color)
        labels[i] = world.label.take(drawing.entry)
        frames[i] = degrade_lib.apply(clean[i], key=key, frame=start + i, is_rainy=world.is_rainy, strength=degrade)
        if flow is not None and before is not None:
            flow[i] = projection.flow(drawing, before, world)
        before = drawing
    return types.Sequence(name=f"{split}{index:05d}", frames=frames, labels=labels, flow=flow, clean=clean)
