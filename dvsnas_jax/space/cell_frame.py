"""What every cell has, whatever its genotype: settings, output, head, recurrence over time.

Refine mode: the cell's logits are the static network's plus a correction that starts at zero. Propagate mode: a key
frame takes the static network's logits and starts the cell's state anew; on the other frames the logits are the head
of the cell's output alone. Which of the two a place is, the schedule says (`space.schedule`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dvsnas_jax.core import errors, types
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations, projections
from dvsnas_jax.space import schedule as schedule_lib

Params = dict[str, Any]

MODES = ("refine", "propagate")
STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclasses.dataclass(frozen=True)
class CellSettings:
    """Sizes of a cell.

    Attributes:
      channels: C, of every map inside the cell.
      feature_channels: channels of `decoder`, `logits`, `stage1` .. `stage4`, `image`.
      max_offset: largest displacement of `warp` and `deform_conv_3x3`, in grid cells.
      attention_window: side of the window of `local_attention`, odd, 3 to 9 grid cells.
      attention_heads: heads of `local_attention`, a divisor of C.
      mode: one of `MODES`.
      cut: propagate: the deepest encoder stage that every frame passes.
      schedule: propagate: which frames are key frames.
    """

    channels: int
    feature_channels: Mapping[str, int]
    max_offset: float = 4.0
    attention_window: int = 3
    attention_heads: int = 1
    mode: str = "refine"
    cut: str = "stage2"
    schedule: schedule_lib.Schedule = schedule_lib.Schedule()

    def __post_init__(self) -> None:
        for key, value, allowed in (("mode", self.mode, MODES), ("cut", self.cut, STAGES)):
            if value not in allowed:
                raise errors.UserError(f"space.{key}: unknown {value!r}, allowed are {', '.join(allowed)}")
        if self.attention_window not in (3, 5, 7, 9):
            raise errors.UserError(f"space.attention_window: must be 3, 5, 7 or 9, got {self.attention_window}")
        if self.attention_heads < 1 or self.channels % self.attention_heads:
            raise errors.UserError(
                f"space.attention_heads: must divide space.channels ({self.channels}), got {self.attention_heads}"
            )

    def scope(self, record: operations.Moments | None = None) -> operations.CellScope:
        """What the cell's members are told, at the root of its parameters; `record` receives the batch moments."""
        return operations.CellScope(
            record=record,
            max_offset=self.max_offset,
            attention_window=self.attention_window,
            attention_heads=self.attention_heads,
        )

    @property
    def num_classes(self) -> int:
        return self.feature_channels["logits"]

    @property
    def is_propagating(self) -> bool:
        return self.mode == "propagate"

    def provided(self) -> tuple[str, ...]:
        """Names of the inputs that the mode gives to a cell."""
        if not self.is_propagating:
            return genotype_lib.REFINE_INPUTS
        too_deep = {"decoder", "logits", *STAGES[STAGES.index(self.cut) + 1 :]}
        return tuple(name for name in genotype_lib.REFINE_INPUTS if name not in too_deep)

    def check(self, inputs: Iterable[str]) -> None:
        """Whether a cell may read these inputs.

        Raises:
          UserError: the mode does not provide one of them.
        """
        missing = [name for name in inputs if name not in self.provided()]
        if missing:
            raise errors.UserError(
                f"space.inputs: mode propagate with cut {self.cut} does not provide {', '.join(missing)}; "
                f"allowed are {', '.join(self.provided())}"
            )

    def input_channels(self, name: str) -> int:
        """Channels of a cell input before its projection."""
        if name == "prev_state":
            return self.channels
        if name == "image_diff":
            return self.feature_channels["image"]
        return self.feature_channels[name.removeprefix("prev_")]


def init(rng: jax.Array, settings: CellSettings, inputs: Iterable[str]) -> Params:
    """Parameters of the projections (`decoder` always: it starts the state), the output, the head and the schedule."""
    names = dict.fromkeys([*inputs, "decoder"])
    projections = {}
    for index, name in enumerate(sorted(names)):
        kernel = operations.init_kernel(
            jax.random.fold_in(rng, index), 1, settings.input_channels(name), settings.channels
        )
        projections[name] = {"kernel": kernel, "norm": operations.init_norm(settings.channels)}
    output_rng, head_rng, schedule_rng = (jax.random.fold_in(rng, len(names) + use) for use in range(3))
    shape = (1, 1, settings.channels, settings.num_classes)
    params: Params = {
        "inputs": projections,
        "output": {
            "kernel": operations.init_kernel(output_rng, 1, settings.channels, settings.channels),
            "norm": operations.init_norm(settings.channels),
        },
        "head": {"kernel": jnp.zeros(shape), "bias": jnp.zeros((settings.num_classes,))},
    }
    if settings.is_propagating:  # nothing to correct: the head makes the logits
        params["head"]["kernel"] = operations.init_kernel(head_rng, *shape[1:])
        params["schedule"] = schedule_lib.init(schedule_rng, settings.schedule, settings.feature_channels[settings.cut])
    return params


def initial_state(settings: CellSettings, features: types.Features) -> types.CellState:
    """The state before the first frame (all zeros, `is_first`), shaped after one frame's features."""
    logits = features.logits
    num, schedule = logits.shape[0], settings.schedule
    has_reference = settings.is_propagating and schedule.is_learned
    return types.CellState(
        state=jnp.zeros((*logits.shape[:3], settings.channels), logits.dtype),
        decoder=jnp.zeros_like(features.maps["decoder"]),
        logits=jnp.zeros_like(logits),
        image=jnp.zeros_like(features.maps["image"]),
        is_first=jnp.ones((num,), bool),
        age=jnp.full((num, *schedule.regions), -1, jnp.int32) if settings.is_propagating else None,
        reference=jnp.zeros_like(features.maps[settings.cut]) if has_reference else None,
        is_propagating=settings.is_propagating,
    )


def cell_output(
    params: Params, mean: jax.Array, state: types.CellState, features: types.Features, scope: operations.CellScope
) -> types.CellState:
    """Projects the mean of the loose ends to the new state and makes the logits.

    Args:
      params: of `init`.
      mean: [B, h, w, C].
      state: before this frame.
      features: of this frame.
      scope: normalisation.

    Returns:
      The new state. Its logits [B, h, w, K] are, in refine mode, the static network's, corrected; in propagate mode
      those of a frame that is no key frame.
    """
    y = layers.conv(mean, params["output"]["kernel"].astype(mean.dtype))
    new = jax.nn.relu(scope.child("output", "norm").normalize(params["output"]["norm"], y))
    found = layers.conv(new, params["head"]["kernel"].astype(new.dtype))
    found += layers.per_channel(params["head"]["bias"].astype(new.dtype), 4)
    after = dataclasses.replace(
        state, state=new, logits=found, image=features.maps["image"], is_first=jnp.zeros((mean.shape[0],), bool)
    )
    if state.is_propagating:
        assert state.age is not None
        return dataclasses.replace(after, age=state.age + 1)
    return dataclasses.replace(after, decoder=features.maps["decoder"], logits=features.logits + found)


def key_frame(
    params: Params,
    settings: CellSettings,
    state: types.CellState,
    features: types.Features,
    scope: operations.CellScope,
    start: jax.Array | None = None,
) -> types.CellState:
    """The state after a key frame: the static network's own maps; the cell's state is the projected decoder map.

    `start` is that map, where it was projected before.
    """
    assert state.age is not None, "only propagate mode has key frames"
    return dataclasses.replace(
        state,
        state=projections.project(params, "decoder", features.maps["decoder"], scope) if start is None else start,
        decoder=features.maps["decoder"],
        logits=features.logits,
        image=features.maps["image"],
        is_first=jnp.zeros_like(state.is_first),
        age=jnp.zeros_like(state.age),
        reference=None if state.reference is None else features.maps[settings.cut],
    )


def due(
    params: Params, settings: CellSettings, state: types.CellState, features: types.Features
) -> tuple[jax.Array, jax.Array | None]:
    """Which regions of a frame the static network has to compute.

    Args:
      params: of `init`.
      settings: of the cell, mode propagate.
      state: before this frame.
      features: of this frame, the cheap maps are enough.

    Returns:
      bool [B, rows, columns], and the log-odds f32 [B, h, w] that the cell's labels would differ (None where the
      schedule does not predict them).
    """
    assert state.age is not None, "only propagate mode has key frames"
    log_odds = None
    if state.reference is not None:
        current, reference = jnp.asarray(features.maps[settings.cut]), jnp.asarray(state.reference)
        log_odds = schedule_lib.predict_error(params["schedule"], current, reference)
    return schedule_lib.due(settings.schedule, jnp.asarray(state.age), log_odds), log_odds


def merge(key: types.CellState, other: types.CellState, is_key: jax.Array) -> types.CellState:
    """Takes the one state where a region was computed by the static network, the other elsewhere.

    Args:
      key: of `key_frame`.
      other: of `cell_output`.
      is_key: bool [B, rows, columns].
    """
    mask = schedule_lib.spread(is_key, (key.logits.shape[1], key.logits.shape[2]))

    names = ("state", "decoder", "logits", *(["reference"] if key.reference is not None else []))
    picked: dict[str, Any] = {name: jnp.where(mask, getattr(key, name), getattr(other, name)) for name in names}
    return dataclasses.replace(other, **picked, age=jnp.where(is_key, jnp.asarray(key.age), jnp.asarray(other.age)))


def finish(
    params: Params,
    settings: CellSettings,
    before: types.CellState,
    after: types.CellState,
    features: types.Features,
    scope: operations.CellScope,
    *,
    is_training: bool = False,
    start: jax.Array | None = None,
) -> tuple[types.CellState, jax.Array]:
    """Ends a step: in propagate mode, what is due is taken from the static network instead of the cell.

    Args:
      params: of `init`.
      settings: of the cell.
      before: the state before the frame.
      after: what `cell_output` made of it.
      features: of the frame, all of them.
      scope: normalisation.
      is_training: key frames come at the interval, whatever errors are predicted: the cell has to learn the longest
        stretch, and predictions that have yet to be learned must not decide.
      start: of `key_frame`.

    Returns:
      The state, whose logits are those of the frame, and the loss of the schedule's predicted errors, f32 [] (0 where
      it predicts none).
    """
    no_loss = jnp.zeros(())
    if not settings.is_propagating:
        return after, no_loss
    is_key, log_odds = due(params, settings, before, features)
    if is_training:
        is_key = schedule_lib.due(settings.schedule, jnp.asarray(before.age), None)
    merged = merge(key_frame(params, settings, before, features, scope, start), after, is_key)
    if log_odds is None:
        return merged, no_loss
    is_different = after.logits.argmax(axis=-1) != features.logits.argmax(axis=-1)
    return merged, schedule_lib.error_loss(log_odds, jnp.asarray(is_different), ~jnp.asarray(before.is_first))


def unroll(
    step_fn: Callable[[types.CellState, types.Features], tuple[types.CellState, Any]],
    state: types.CellState,
    features: types.Features,
) -> tuple[types.CellState, Any]:
    """Scans a cell over time.

    Args:
      step_fn: `(state, features of one frame) -> (state, output)`.
      state: before the first frame.
      features: of the clip, maps and logits [B, T, h, w, C].

    Returns:
      The last state, and the outputs with a leading axis T.
    """
    chex.assert_rank(features.logits, 5)
    time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), features)
    return jax.lax.scan(step_fn, state, time_major)
