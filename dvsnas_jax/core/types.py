"""The values that cross a border between packages, each field with its shape.

Letters: B clips, T frames (oldest first, the last one is the target), H W pixels, h w feature
grid, C channels, K classes, L layers, N genotypes, S tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = Any

IGNORE = 255
"""The label of a pixel that counts in no loss and no metric."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clip:
    """A batch of short clips: RGB frames u8 [B, T, H, W, 3], train ids u8 [B, T, H, W], 255 = ignore."""

    frames: Array
    labels: Array


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One long video for evaluation frame by frame (host arrays).

    Attributes:
      name: of the sequence.
      frames: u8 [T, H, W, 3].
      labels: u8 [T, H, W], 255 = ignore.
      flow: f32 [T, H, W, 2] or None: for each pixel of frame t, the displacement (x, y) in pixels
        to where the same surface point was in frame t - 1 (zeros at t = 0); nan where it was not visible.
      clean: u8 [T, H, W, 3] or None: the frames before degradation, where they exist.
    """

    name: str
    frames: np.ndarray
    labels: np.ndarray
    flow: np.ndarray | None = None
    clean: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """What the static network knows of one frame.

    Attributes:
      maps: name -> [B, h, w, C_name]: `decoder`, `stage1` .. `stage4`, `image` (the normalised frame averaged to the
        grid), `patches` (its pixels, `static_net.to_patches`). All at the cell's grid after `static_net.infer`. Of one
        that only passed the first encoder stages: those, and what needs none.
      logits: [B, h, w, K], at stride 4; K = 0 where the frame only passed the first encoder stages.
    """

    maps: Mapping[str, Array]
    logits: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """The static network's features of M clips, computed once and kept.

    Maps and logits are bfloat16 [M, T, h, w, C], all at one grid, labels u8 [M, T, H, W], 255 = ignore.
    """

    features: Features
    labels: Array

    @property
    def num_clips(self) -> int:
        return self.labels.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.features.logits.shape[2], self.features.logits.shape[3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CellState:
    """What a cell carries from frame to frame.

    Attributes:
      state: [B, h, w, C], the cell's own output at t - 1.
      decoder: [B, h, w, C_decoder], the static network's decoder map at t - 1 (propagate: of the last key frame).
      logits: [B, h, w, K], the cell's logits at t - 1 (the static network's after a key frame).
      is_first: bool [B], nothing was seen yet: `prev_*` are the current frame's own values.
      age: propagate: i32 [B, rows, columns], frames since each region was computed by the static network, -1 = never.
      reference: propagate with a learned schedule: [B, h, w, C_cut], the deepest cheap map of that frame.
      maps: [B, h, w, C], those at t - 1 that a cell compares with the frame's own: `image` for `image_diff`, and what
        it reads as `prev_stageN` or `prev_patches`, named without `prev_`.
      is_propagating: the mode, not an array; None above is what it does not have.
      is_projected: propagate, not an array: `maps` but for `image`, and `decoder` where the cell reads it, are as the
        cell projects them, [B, h, w, C], so that each is projected once. Only where the statistics are running ones.
    """

    state: Array
    decoder: Array
    logits: Array
    is_first: Array
    age: Array | None = None
    reference: Array | None = None
    maps: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    is_propagating: bool = dataclasses.field(default=False, metadata={"static": True})
    is_projected: bool = dataclasses.field(default=False, metadata={"static": True})

    def to_dict(self) -> dict[str, Array]:
        """Its arrays by name, for what is told plain containers alone."""
        arrays = {name: value for name, value in vars(self).items() if name not in _NO_ARRAYS}
        return {name: value for name, value in (arrays | dict(self.maps)).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Array], *, is_projected: bool = False) -> CellState:
        """The inverse of `to_dict`."""
        own = {field.name for field in dataclasses.fields(cls)}
        maps = {name: value for name, value in values.items() if name not in own}
        arrays = {name: value for name, value in values.items() if name in own}
        return cls(**arrays, maps=maps, is_propagating="age" in values, is_projected=is_projected)


_NO_ARRAYS = ("maps", "is_propagating", "is_projected")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Genotypes i32 [N, L, 5] drawn by a policy; log_prob f32 [N], entropy f32 [N], nats, summed over the tokens."""

    genotypes: Array
    log_prob: Array
    entropy: Array


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Names of the K train ids and their colours, u8 [K, 3], RGB."""

    names: tuple[str, ...]
    colors: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.names)
