"""Which programs the next frame of a video needs: the one dispatch, whoever made the programs.

In propagate mode a frame is looked at first (the schedule), then computed by the static network, by the cell, or region
by region. The host decides, so that what is not needed is not run. An exported folder runs on this module and
`infer.artifact` alone: JAX, and of ours `core`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

State = dict[str, Any]
"""`types.CellState` without what is None: all that crosses the border of a program is a plain container."""


class Labels(NamedTuple):
    """Labels u8 [T, H, W] of a sequence: of the static network alone, and with the cell.

    `key_share`, f32 [T], is the share of each frame that the static network computed for the cell (refine: 1).
    """

    static: np.ndarray
    cell: np.ndarray
    key_share: np.ndarray


class Dispatch:
    """The programs of a trained network and cell, put together: functions of a batch of videos, mostly of one.

    Args:
      plan: what `programs.describe` says, or a manifest that holds it: `schedule`, `regions` and `state`.
      programs: of `programs.make` by name, with their weights.
      is_traced: the decision becomes a part of a program (`lax.cond`) in place of the host's.
    """

    def __init__(
        self, plan: Mapping[str, Any], programs: Mapping[str, Callable[..., Any]], *, is_traced: bool = False
    ) -> None:
        self._schedule, self._regions, self._state = plan["schedule"], plan["regions"], plan["state"]
        self._programs = programs
        self._choose: Callable[..., Any] = jax.lax.cond if is_traced else _choose
        self._array: Callable[[Any], Any] = jnp.asarray if is_traced else np.asarray

    @property
    def has_cell(self) -> bool:
        """False: the static network is used alone, and nothing is carried from frame to frame."""
        return bool(self._state)

    @property
    def is_propagating(self) -> bool:
        """Whether key frames differ from others."""
        return self._schedule is not None

    @property
    def schedule(self) -> Mapping[str, Any] | None:
        """What the plan says of key frames; refine: None."""
        found: Mapping[str, Any] | None = self._schedule
        return found

    @property
    def programs(self) -> Mapping[str, Callable[..., Any]]:
        """The programs by name, see `programs.make`."""
        return self._programs

    def initial_state(self, batch_size: int = 1) -> State:
        """The state of so many videos before their first frames."""
        return {
            name: jax.device_put(np.full((batch_size, *spec["shape"]), spec["fill"], spec["dtype"]), device())
            for name, spec in self._state.items()
        }

    def static_step(self, frame: Any) -> jax.Array:
        """Frames u8 [B, H, W, 3] -> labels u8 [B, H, W] of the static network alone."""
        return self._programs["static"](frame)

    def step(self, state: State, frame: Any) -> tuple[State, jax.Array]:
        """Segments the next frames u8 [B, H, W, 3]: the state and labels u8 [B, H, W].

        In propagate mode one decision holds for a batch: a key frame for one video is one for all. Regions: B = 1.
        """
        run, schedule = self._programs, self._schedule
        if schedule is None:
            return run["step"](state, frame)
        age = self._array(state["age"])
        is_due = (age < 0) | (age + 1 >= schedule["interval"])

        def look() -> tuple[State, jax.Array]:
            if not schedule["is_learned"]:
                return self._other(state, frame)
            maps, shares = run["look"](state, frame)
            return self.decided(state, frame, maps, is_due | (self._array(shares) > schedule["threshold"]))

        return self._choose(self._is_whole(is_due), lambda: run["key"](state, frame), look)

    def _other(self, state: State, seen: Any) -> tuple[State, jax.Array]:
        """The cell's frame; what the state has of the last key frame stays, and is no result of the program."""
        after, labels = self._programs["other"](state, seen)
        return {**state, **after}, labels

    def _is_whole(self, is_due: Any) -> Any:
        """Whether so many regions are due that the whole frame is computed."""
        return is_due.sum() > self._schedule.get("most_regions", is_due[0].size - 1)  # older exported folders: all

    def decided(self, state: State, frame: Any, maps: Any, is_due: Any) -> tuple[State, jax.Array]:
        """A frame after a look at it, which gave its cheap maps, with the regions that are due."""
        run = self._programs

        def whole() -> tuple[State, jax.Array]:
            return run["rest"](state, maps) if "rest" in run else run["key"](state, frame)  # older exported folders

        def some() -> tuple[State, jax.Array]:
            seen = maps if self._schedule.get("cuts_maps") else frame
            return run["join"](state, maps, self._paint(state, seen, is_due[0]), is_due)

        def part() -> tuple[State, jax.Array]:
            if not self._regions:
                return self._other(state, maps)
            return self._choose(is_due.any(), some, lambda: self._other(state, maps))

        return self._choose(self._is_whole(is_due), whole, part)

    def _paint(self, state: State, seen: Any, is_due: Any) -> list[Any]:
        """Decoder map and logits of the static network on the regions that are due, zeros elsewhere."""
        canvas = [jnp.zeros_like(state[name]) for name in ("decoder", "logits")]
        for row, column in np.ndindex(is_due.shape):
            region = self._regions[row][column]
            paint, places = self._programs[region["program"]], np.array(region["places"], np.int32)
            canvas = self._choose(
                is_due[row, column],
                lambda whole=canvas, paint=paint, places=places: list(paint(whole, seen, places)),
                lambda whole=canvas: whole,
            )
        return canvas

    def with_interval(self, interval: int) -> Dispatch:
        """The same with another (longest) distance of key frames; propagate."""
        schedule = {**self._schedule, "interval": interval}
        return Dispatch({"schedule": schedule, "regions": self._regions, "state": self._state}, self._programs)

    @staticmethod
    def key_share(state: State) -> float:
        """Share of the last frame that the static network computed; refine: 1."""
        return float((np.asarray(state["age"]) == 0).mean()) if "age" in state else 1.0

    def follow(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels and key shares of a sequence u8 [T, H, W, 3], frame by frame."""
        state, labels, shares = self.initial_state(), [], []
        for frame in frames:
            state, found = self.step(state, frame[None])
            labels.append(np.asarray(found)[0])
            shares.append(self.key_share(state))
        return np.stack(labels), np.array(shares, np.float32)

    def segment(self, frames: np.ndarray) -> Labels:
        """Segments a sequence u8 [T, H, W, 3], with the cell and without it."""
        static = np.stack([np.asarray(self.static_step(frame[None]))[0] for frame in frames])
        return Labels(static, *self.follow(frames))


def device() -> jax.Device:
    """Where states are, and results shall be: otherwise the states of later frames would compile a program again."""
    return jax.local_devices()[0]


def _choose(is_first: Any, first_fn: Callable[[], Any], second_fn: Callable[[], Any]) -> Any:
    """`lax.cond` on the host."""
    return first_fn() if is_first else second_fn()
