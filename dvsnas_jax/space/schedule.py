"""When propagate mode runs the whole static network: on key frames, or in key regions of a frame (pure functions).

`TABLE` holds the kinds. In all of them the interval is the longest distance between key frames; `fixed` has no other
rule. `adaptive`: a small head predicts from the cheap maps where the cell's labels will differ from the static
network's, and a frame whose predicted share exceeds the threshold becomes a key frame (Li, Shi, Lin, CVPR 2018, arXiv
1804.00389). `regions`: the same decision for each region of the frame by itself (Xu et al., CVPR 2018, arXiv
1804.00931).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dvsnas_jax.core import errors, types
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import operation_cost as counts
from dvsnas_jax.space import operations

Params = dict[str, Any]

ERROR_CHANNELS = 16
"""Of the hidden map of the head that predicts errors."""


def region_means(x: jax.Array, regions: tuple[int, int]) -> jax.Array:
    """Mean over each region, [B, h, w] -> [B, rows, columns]."""
    rows, columns = (region_bounds(size, num) for size, num in zip(x.shape[1:], regions, strict=True))
    means = [x[:, top:end, left:right].mean(axis=(1, 2)) for top, end in rows for left, right in columns]
    return jnp.stack(means, axis=1).reshape(-1, *regions)


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a learned rule spends on a frame.

    Attributes:
      stride: it decides by every so many rows and columns of what the head predicts.
      cuts_maps: regions are computed from the first stages' maps of the whole frame, which were computed for the
        decision; else from the frame.
      most_regions: so many regions of a frame at most are computed by themselves; of more, the whole frame. None: all
        but all.
    """

    stride: int
    cuts_maps: bool
    most_regions: int | None


EFFORTS = {
    # Of the static network's time at 240x320 on a CPU, with the look: no region 0.44 (full: 0.49), one of 2x2 0.92,
    # all 1.12. A second one by itself would take more than all (docs/speed.md).
    "quick": Effort(stride=2, cuts_maps=True, most_regions=1),
    "full": Effort(stride=1, cuts_maps=False, most_regions=None),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A rule for key frames beside the interval.

    Attributes:
      score_fn: `(probabilities of errors f32 [B, h, w], (rows, columns)) -> f32 [B, rows, columns]`, what has to exceed
        the threshold; None: nothing is predicted, so there is no head, no map to compare with, no cost.
      has_regions: whether each region of the grid is decided by itself.
    """

    score_fn: Callable[[jax.Array, tuple[int, int]], jax.Array] | None = None
    has_regions: bool = False


TABLE = {
    "fixed": Kind(),
    "adaptive": Kind(score_fn=region_means),
    "regions": Kind(score_fn=region_means, has_regions=True),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which frames are key frames.

    Attributes:
      kind: a name of `TABLE`.
      interval: longest distance of two key frames.
      threshold: predicted share of differing labels from which a frame or region is computed anew.
      grid: rows and columns of the regions, where the kind has them.
      effort: a name of `EFFORTS`.
      most_due: share of the frames that are looked at of which something may be due; `train.due_share` sees to it.
    """

    kind: str = "fixed"
    interval: int = 5
    threshold: float = 0.1
    grid: tuple[int, int] = (2, 2)
    effort: str = "quick"
    most_due: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in TABLE:
            raise errors.UserError(f"schedule.kind: unknown {self.kind!r}, allowed are {', '.join(TABLE)}")
        if self.effort not in EFFORTS:
            raise errors.UserError(f"schedule.effort: unknown {self.effort!r}, allowed are {', '.join(EFFORTS)}")
        if self.interval < 1:
            raise errors.UserError(
                f"schedule.interval: a schedule needs key frames, give at least 1 (every frame), got {self.interval}"
            )
        if not 0 < self.threshold < 1:
            raise errors.UserError(f"schedule.threshold: must lie between 0 and 1, got {self.threshold}")
        if not 0 < self.most_due <= 1:
            raise errors.UserError(f"schedule.most_due: must be above 0 and at most 1, got {self.most_due}")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise errors.UserError(f"schedule.grid: needs two numbers (rows, columns) of at least 1, got {self.grid}")

    @property
    def is_learned(self) -> bool:
        """Whether it has a head that predicts errors, and a state that holds the map to compare with."""
        return TABLE[self.kind].score_fn is not None

    @property
    def has_regions(self) -> bool:
        return TABLE[self.kind].has_regions

    @property
    def regions(self) -> tuple[int, int]:
        """Rows and columns of what is decided by itself; the whole frame: (1, 1)."""
        return self.grid if self.has_regions else (1, 1)

    @property
    def look(self) -> Effort:
        """What it spends on a frame."""
        return EFFORTS[self.effort]

    @property
    def most_regions(self) -> int:
        """So many regions of a frame are computed by themselves at most; of more, the whole frame. 0: no regions."""
        most, but_one = self.look.most_regions, math.prod(self.regions) - 1
        return but_one if most is None else min(most, but_one)

    def scores(self, log_odds: types.Array) -> jax.Array:
        """What is compared with the threshold, f32 [B, rows, columns], of a learned schedule's `predict_error`."""
        score_fn = TABLE[self.kind].score_fn
        assert score_fn is not None, f"{self.kind} predicts nothing"
        return score_fn(jax.nn.sigmoid(jnp.asarray(log_odds)), self.regions)

    def without_head(self) -> Schedule:
        """Key frames at the same interval, and no other rule."""
        return dataclasses.replace(self, kind="fixed")


def between_key_frames(num_frames: int, interval: int) -> tuple[int, ...]:
    """The frames of a training clip that are no key frames: those come at the interval, the first frame is one."""
    return tuple(frame for frame in range(num_frames) if frame % interval)


def init(rng: jax.Array, schedule: Schedule, channels: int) -> Params:
    """Parameters of the head, which looks at a cheap map of so many channels; {} where there is none."""
    if not schedule.is_learned:
        return {}
    return {
        "hidden": operations.init_kernel(rng, 3, 2 * channels, ERROR_CHANNELS),
        "hidden_bias": jnp.zeros((ERROR_CHANNELS,)),
        "output": jnp.zeros((1, 1, ERROR_CHANNELS, 1)),
        "output_bias": jnp.zeros((1,)),
    }


def head_cost(schedule: Schedule, sizes: counts.Sizes, channels: int) -> counts.Cost:
    """What the head costs a frame that is no key frame."""
    if not schedule.is_learned:
        return counts.Cost()
    stride = schedule.look.stride
    few = dataclasses.replace(sizes, height=-(-sizes.height // stride), width=-(-sizes.width // stride))
    work = counts.conv(few, 2 * channels, ERROR_CHANNELS, 3) + counts.conv(few, ERROR_CHANNELS, 1)
    per_value = counts.each(sizes, 1, channels) + counts.each(few, 2, ERROR_CHANNELS) + counts.each(few, 1, 1)
    return work + per_value + counts.Cost(params=ERROR_CHANNELS + 1)


def less_often(params: Params, log_odds: float) -> Params:
    """Parameters of the head whose predictions are lower by so many log-odds."""
    return {**params, "output_bias": params["output_bias"] - log_odds}


def predict_error(params: Params, current: jax.Array, reference: jax.Array, stride: int = 1) -> jax.Array:
    """Log-odds f32 [B, h, w] that the cell's label of a grid cell will differ from the static network's.

    `current` [B, h, w, C] is the deepest cheap map of this frame, `reference` the same when the place was last a key
    frame. `stride`: of so many rows and columns one is predicted, [B, ceil(h / stride), ceil(w / stride)].
    """
    both = jnp.concatenate([current - reference, current], axis=-1)
    hidden = layers.conv(both, params["hidden"].astype(both.dtype), stride=stride)
    hidden = jax.nn.relu(hidden + layers.per_channel(params["hidden_bias"].astype(both.dtype), 4))
    found = layers.conv(hidden, params["output"].astype(both.dtype)).astype(jnp.float32)
    return (found + layers.per_channel(params["output_bias"], 4))[..., 0]


def error_loss(log_odds: jax.Array, shares: jax.Array, is_counted: jax.Array) -> jax.Array:
    """Cross-entropy f32 [] of `predict_error`'s log-odds with the share of each cell's labels that differ, [B, h, w].

    `is_counted` is bool [B]: a first frame has nothing to predict from.
    """
    losses = jax.nn.softplus(log_odds) - shares * log_odds
    return jnp.mean(jnp.mean(losses, axis=(1, 2)) * is_counted.astype(jnp.float32))


def due(schedule: Schedule, age: types.Array, log_odds: types.Array | None) -> Any:
    """Which regions have to be computed by the static network, bool [B, rows, columns]; all, where it is too many.

    Args:
      schedule: of the cell.
      age: i32 [B, rows, columns], frames since the region was; below 0: never.
      log_odds: f32 [B, h, w] of `predict_error`; None: the interval decides alone, in NumPy where `age` is.
    """
    is_due = (age < 0) | (age + 1 >= schedule.interval)
    if log_odds is None:
        return is_due
    is_due = is_due | (schedule.scores(log_odds) > schedule.threshold)
    return is_due | (is_due.sum(axis=(1, 2), keepdims=True) > schedule.most_regions)


def region_bounds(size: int, num: int) -> list[tuple[int, int]]:
    """First and last + 1 grid row (or column) of each of `num` regions that share `size` rows evenly."""
    edges = [-(-size * index // num) for index in range(num + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def spread(mask: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The decision at every grid cell: bool [B, rows, columns] -> bool [B, *size, 1]."""
    bounds = [region_bounds(length, num) for length, num in zip(size, mask.shape[1:], strict=True)]
    rows, columns = ([index for index, (a, b) in enumerate(pairs) for _ in range(b - a)] for pairs in bounds)
    return mask[:, jnp.array(rows)][:, :, jnp.array(columns)][..., None]
