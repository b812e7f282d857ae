"""What every cell has, whatever its genotype: settings, output, recurrence over time.

What becomes of the output is said in `space.cell_end`. In propagate mode a key frame takes the static network's logits
and starts the cell's state anew; which places of which frames are key frames, the schedule says (`space.schedule`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dvsnas_jax.core import errors, types
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import cell_end, operations, projections
from dvsnas_jax.space import genotype as genotype_lib
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
      max_offset: as `attention_window`, `attention_heads` and `correlation_window`, of `operations.CellScope`.
      mode: one of `MODES`.
      cut: propagate: the deepest encoder stage that every frame passes.
      reduction: how much coarser than the logits, per axis, the grid is that the cell works at.
      schedule: propagate: which frames are key frames.
      end: one of `cell_end.ENDS`.
    """

    channels: int
    feature_channels: Mapping[str, int]
    max_offset: float = 4.0
    attention_window: int = 3
    attention_heads: int = 1
    correlation_window: int = 7
    mode: str = "refine"
    cut: str = "stage2"
    reduction: int = 1
    schedule: schedule_lib.Schedule = schedule_lib.Schedule()
    end: str = cell_end.HEADS

    def __post_init__(self) -> None:
        choices = ("mode", self.mode, MODES), ("cut", self.cut, STAGES), ("end", self.end, cell_end.ENDS)
        for key, value, allowed in choices:
            if value not in allowed:
                raise errors.UserError(f"space.{key}: unknown {value!r}, allowed are {', '.join(allowed)}")
        for key in ("attention_window", "correlation_window"):
            if getattr(self, key) not in (3, 5, 7, 9):
                raise errors.UserError(f"space.{key}: must be 3, 5, 7 or 9, got {getattr(self, key)}")
        if self.attention_heads < 1 or self.channels % self.attention_heads:
            raise errors.UserError(
                f"space.attention_heads: must divide space.channels ({self.channels}), got {self.attention_heads}"
            )

        if self.reduction > 1 and self.schedule.has_regions:
            raise errors.UserError(
                f"net.grid_stride: regions (schedule.kind={self.schedule.kind}) are joined at the grid of the logits; "
                "set it to 4, or schedule.kind to fixed or adaptive"
            )

    def scope(self, record: operations.Moments | None = None) -> operations.CellScope:
        """What the cell's members are told, at the root of its parameters; `record` receives the batch moments."""
        sizes = self.max_offset, self.attention_window, self.attention_heads, self.correlation_window
        return operations.CellScope((), record, *sizes)

    @property
    def num_classes(self) -> int:
        return self.feature_channels["logits"]

    @property
    def is_propagating(self) -> bool:
        return self.mode == "propagate"

    @property
    def has_known_key_frames(self) -> bool:
        """Whether key frames come at the interval alone, the first frame of a clip being one."""
        return self.is_propagating and not self.schedule.is_learned

    @property
    def has_output(self) -> bool:
        """Whether there is anything of the cell beside the baseline that it starts from."""
        return self.end != cell_end.NONE

    @property
    def num_ages(self) -> int:
        """Frames from one key frame to the next, of ages 0 to this - 1; 0 in refine mode, which has none."""
        return self.schedule.interval if self.is_propagating else 0

    def provided(self) -> tuple[str, ...]:
        """Names of the inputs that the mode gives to a cell."""
        if not self.is_propagating:
            return genotype_lib.REFINE_INPUTS
        too_deep = STAGES[STAGES.index(self.cut) + 1 :]
        missing = {"decoder", "logits", *too_deep, *(f"prev_{name}" for name in too_deep)}
        return tuple(name for name in genotype_lib.REFINE_INPUTS if name not in missing)

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


def with_fixed_interval(settings: CellSettings) -> CellSettings:
    """With key frames at the schedule's interval, whatever it predicts."""
    return dataclasses.replace(settings, schedule=settings.schedule.without_head())


def init(rng: jax.Array, settings: CellSettings, inputs: Iterable[str]) -> Params:
    """Parameters of the projections (`decoder` always: it starts the state), the output, the end and the schedule."""

    def projection(rng: jax.Array, channels: int) -> Params:
        kernel = operations.init_kernel(rng, 1, channels, settings.channels)
        return {"kernel": kernel, "norm": operations.init_norm(settings.channels)}

    names = sorted({*map(projections.weights_of, inputs), "decoder"})
    output_rng, head_rng, schedule_rng = (jax.random.fold_in(rng, len(names) + use) for use in range(3))
    end = cell_end.init(
        head_rng, settings.end, settings.channels, settings.num_classes, is_propagating=settings.is_propagating
    )
    params: Params = {
        "inputs": {
            name: projection(jax.random.fold_in(rng, index), settings.input_channels(name))
            for index, name in enumerate(names)
        },
        "output": projection(output_rng, settings.channels),
        **end,
    }
    if settings.is_propagating:
        params["schedule"] = schedule_lib.init(schedule_rng, settings.schedule, settings.feature_channels[settings.cut])
    return params


def initial_state(
    settings: CellSettings, features: types.Features, inputs: Iterable[str], *, is_projected: bool = False
) -> types.CellState:
    """The state before the first frame (all zeros, `is_first`) of a cell that may read these inputs, shaped after one
    frame's features; `is_projected`: see `CellState`."""
    names = list(inputs)

    def zeros(name: str, is_read: bool) -> jax.Array:
        like = jnp.zeros_like(features.maps[name])
        return jnp.zeros((*like.shape[:3], settings.channels), like.dtype) if is_projected and is_read else like

    logits, schedule = features.logits, settings.schedule
    num, has_reference = logits.shape[0], settings.is_propagating and schedule.is_learned
    return types.CellState(
        state=jnp.zeros((*features.maps["decoder"].shape[:3], settings.channels), logits.dtype),
        decoder=zeros("decoder", "prev_decoder" in names),
        logits=jnp.zeros_like(logits),
        is_first=jnp.ones((num,), bool),
        age=jnp.full((num, *schedule.regions), -1, jnp.int32) if settings.is_propagating else None,
        reference=jnp.zeros_like(features.maps[settings.cut]) if has_reference else None,
        maps={name: zeros(name, name != "image") for name in projections.compared(names)},
        is_propagating=settings.is_propagating,
        is_projected=is_projected,
    )


@dataclasses.dataclass(frozen=True)
class Ports:
    """How a cell is joined to a frame, with the parameters of `init`; `scope` says how they normalise."""

    params: Params
    settings: CellSettings
    scope: operations.CellScope

    def output(
        self,
        mean: jax.Array | None,
        state: types.CellState,
        features: types.Features,
        inputs: Mapping[str, jax.Array] | None = None,
    ) -> types.CellState:
        """The state after a frame; propagate: one that is no key frame.

        The mean of the loose ends, [B, h, w, C], is projected to the cell's output, whose end makes the logits. None:
        the cell has nothing beside its baseline. `inputs` are the cell's, projected.
        """
        new = None
        if mean is not None:
            output = self.params["output"]
            y = layers.conv(mean, output["kernel"].astype(mean.dtype))
            new = jax.nn.relu(self.scope.child("output", "norm").normalize(output["norm"], y))
        after = dataclasses.replace(
            state,
            state=state.state if new is None else new,
            logits=cell_end.logits(self.params, new, state, features, self.scope),
            is_first=jnp.zeros_like(state.is_first),
            maps={name: self._kept(name, state, features, inputs) for name in state.maps},
        )
        if state.is_propagating:
            return dataclasses.replace(after, age=_age(state) + 1)
        return dataclasses.replace(after, decoder=features.maps["decoder"])

    def key_frame(
        self, state: types.CellState, features: types.Features, start: jax.Array | None = None
    ) -> types.CellState:
        """The state after a key frame: the static network's own maps; the cell's state is the projected decoder map.

        `start` is that map, where it was projected before.
        """
        if not self.settings.has_output:
            start = jnp.asarray(state.state)
        elif start is None:
            start = projections.project(self.params, "decoder", features.maps["decoder"], self.scope)
        decoder = features.maps["decoder"]
        if state.is_projected and "prev_decoder" in self.params.get("inputs", {}):
            decoder = projections.project(self.params, "prev_decoder", decoder, self.scope)
        return dataclasses.replace(
            state,
            state=start,
            decoder=decoder,
            logits=features.logits,
            is_first=jnp.zeros_like(state.is_first),
            age=jnp.zeros_like(_age(state)),
            reference=None if state.reference is None else features.maps[self.settings.cut],
            maps={name: self._kept(name, state, features) for name in state.maps},
        )

    def _kept(
        self,
        name: str,
        state: types.CellState,
        features: types.Features,
        inputs: Mapping[str, jax.Array] | None = None,
    ) -> types.Array:
        """What the state keeps of a frame's map for the next one."""
        if not state.is_projected or name == "image":
            return features.maps[name]
        known = inputs or {}
        return known[name] if name in known else projections.project(self.params, name, features.maps[name], self.scope)

    def finish(
        self,
        before: types.CellState,
        after: types.CellState,
        features: types.Features,
        *,
        is_training: bool = False,
        start: jax.Array | None = None,
    ) -> tuple[types.CellState, jax.Array]:
        """Ends a step: in propagate mode, what is due is taken from the static network instead of the cell.

        In training, key frames come at the interval, whatever errors are predicted: the cell has to learn the longest
        stretch, and predictions that have yet to be learned must not decide.

        Args:
          before: the state before the frame.
          after: of `output`.
          features: of the frame, all of them.
          is_training: see above.
          start: of `key_frame`.

        Returns:
          The state, whose logits are those of the frame, and the loss of the schedule's predicted errors, f32 [] (0
          where it predicts none).
        """
        no_loss = jnp.zeros(())
        if not self.settings.is_propagating:
            return after, no_loss
        is_key, log_odds = due(self.params, self.settings, before, features)
        if is_training:
            is_key = schedule_lib.due(self.settings.schedule, _age(before), None)
        merged = merge(self.key_frame(before, features, start), after, is_key)
        if log_odds is None:
            return merged, no_loss
        places, grid = slice(None, None, self.settings.schedule.look.stride), after.state.shape[1:3]
        is_different = jnp.asarray(after.logits.argmax(axis=-1) != features.logits.argmax(axis=-1))
        shares = layers.average_to_grid(is_different[..., None].astype(jnp.float32), (grid[0], grid[1]))[
            :, places, places, 0
        ]
        return merged, schedule_lib.error_loss(log_odds, shares, ~jnp.asarray(before.is_first))


def due(
    params: Params, settings: CellSettings, state: types.CellState, features: types.Features
) -> tuple[jax.Array, jax.Array | None]:
    """Which regions of a frame the static network has to compute (propagate); the cheap maps are enough.

    Returns:
      bool [B, rows, columns], and the log-odds of `schedule.predict_error` (None where the schedule predicts nothing).
    """
    log_odds = None
    if state.reference is not None:
        current, reference = jnp.asarray(features.maps[settings.cut]), jnp.asarray(state.reference)
        log_odds = schedule_lib.predict_error(params["schedule"], current, reference, settings.schedule.look.stride)
    return schedule_lib.due(settings.schedule, _age(state), log_odds), log_odds


def merge(key: types.CellState, other: types.CellState, is_key: jax.Array) -> types.CellState:
    """The state of `key_frame` where `is_key`, bool [B, rows, columns], that of `output` elsewhere."""
    names = ("state", "decoder", "logits", *(["reference"] if key.reference is not None else []))
    picked: dict[str, Any] = {}
    for name in names:
        ours, theirs = getattr(key, name), getattr(other, name)
        picked[name] = jnp.where(schedule_lib.spread(is_key, ours.shape[1:3]), ours, theirs)
    return dataclasses.replace(other, **picked, age=jnp.where(is_key, _age(key), _age(other)))


def _age(state: types.CellState) -> jax.Array:
    assert state.age is not None, "only propagate mode has key frames"
    return jnp.asarray(state.age)
