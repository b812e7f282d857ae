"""The procedural street video: endless labelled clips with true motion, NumPy only.

A clip is a pure function of (seed, split, index), a frame of (seed, split, index, frame number).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.street import degradations, projection, raster, scene

SPLITS = ("train", "val", "test")


@functools.lru_cache(maxsize=64)
def _world(key: tuple[int, ...]) -> scene.World:
    return scene.make_world(np.random.default_rng((*key, 0)))


def _smoothed(image: np.ndarray) -> np.ndarray:
    """Weights 1 4 1 along the rows of an f32 [3, rows, ...] image; the sum is not normalised."""
    total = image * np.float32(4)
    total[:, 1:-1] += image[:, :-2]
    total[:, 1:-1] += image[:, 2:]
    total[:, 0] += image[:, 0] + image[:, min(1, image.shape[1] - 1)]
    total[:, -1] += image[:, -1] + image[:, max(image.shape[1] - 2, 0)]
    return total


def _lens(color: np.ndarray) -> np.ndarray:
    """Slight blur of an f32 [3, H, W] image, as u8 [H, W, 3]."""
    tall = _smoothed(np.clip(color, 0, 255)) * np.float32(1 / 36)
    total = _smoothed(tall.transpose(0, 2, 1)) + np.float32(0.5)
    return total.astype(np.uint8).transpose(2, 1, 0)


@dataclasses.dataclass(frozen=True)
class Street:
    """The clips of one split of a synthetic world; no street is in two splits.

    Attributes:
      seed: of the whole world, >= 0.
      split: train, val or test.
      height: width: of the frames, pixels.
      degrade: strength of the degradations, 0 = none.
    """

    seed: int
    split: str
    height: int
    width: int
    degrade: float = 1.0

    def clip(self, index: int, num_frames: int, *, start: int = 0, with_flow: bool = True) -> types.Sequence:
        """Renders frames `start` .. `start + num_frames - 1` of the clip number `index`.

        A frame is the same whatever range is asked for; `with_flow` adds the true backward motion.

        Raises:
          UserError: unknown split or a negative number.
        """
        if self.split not in SPLITS:
            raise errors.UserError(f"data split: unknown name '{self.split}'; use one of {', '.join(SPLITS)}")
        if min(self.seed, index, start) < 0 or min(num_frames, self.height, self.width) < 1:
            raise errors.UserError(
                "synthetic clip: seed, index and start must be at least 0, the sizes at least 1; correct data.seed, "
                "data.height or data.width"
            )
        key = (int(self.seed), SPLITS.index(self.split), int(index))
        world, shape = _world(key), (num_frames, self.height, self.width)
        frames, clean = np.empty((*shape, 3), np.uint8), np.empty((*shape, 3), np.uint8)
        labels = np.empty(shape, np.uint8)
        flow = np.zeros((*shape, 2), np.float32) if with_flow else None
        before = raster.draw(world, start - 1, *shape[1:]) if with_flow and start > 0 else None
        for i, number in enumerate(range(start, start + num_frames)):
            drawing = raster.draw(world, number, *shape[1:])
            clean[i] = _lens(drawing.color)
            labels[i] = world.label.take(drawing.entry)
            frames[i] = degradations.apply(clean[i], key, number, is_rainy=world.is_rainy, strength=self.degrade)
            if flow is not None and before is not None:
                flow[i] = projection.flow(drawing, before, world)
            before = drawing
        return types.Sequence(name=f"{self.split}{index:05d}", frames=frames, labels=labels, flow=flow, clean=clean)
