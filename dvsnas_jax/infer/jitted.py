"""A trained network and cell in this process: its programs jitted, and whole sequences many frames at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.infer import dispatch, programs
from dvsnas_jax.nets import forward


class Jitted(dispatch.Dispatch):
    """The dispatch of a model's programs, compiled when they are called with the effort that is set now."""

    def __init__(self, model: programs.Model) -> None:
        where, bound = jax.sharding.SingleDeviceSharding(dispatch.device()), {}
        for name, program in programs.make(model).items():
            step_fn = compilation.jit(program.fn, out_shardings=where)
            bound[name] = functools.partial(step_fn, jax.device_put(program.weights, where))
        super().__init__(programs.describe(model), bound)
        self._model, self._forward = model, forward.batches(model.net)
        self._follow_fn = compilation.jit(functools.partial(_follow, model))
        self._average_fn, self._predict_fn = compilation.jit(_average), compilation.jit(model.predict)
        self._sized = {model.label_size or model.size: self}

    def at_label_size(self, size: tuple[int, int]) -> Jitted:
        """The same with labels of this height and width, interpolated from the same logits; one compilation a size."""
        if size not in self._sized:
            self._sized[size] = Jitted(dataclasses.replace(self._model, label_size=size))
        return self._sized[size]

    def segment(self, frames: np.ndarray) -> dispatch.Labels:
        """As frame by frame, up to ties of the arg-max, but many frames at a time."""
        return self.segment_averaged(frames, None)[0]

    def segment_averaged(self, frames: np.ndarray, share: float | None) -> tuple[dispatch.Labels, np.ndarray | None]:
        """As `segment`, and in the same pass labels u8 [T, H, W] of the running average of the static network's logits.

        `share` is that of the current frame's logits in the average, see `train.averaging`; None: no average.
        """
        state, average, parts, averaged = self._model.initial_state(), None, [], []
        for number, found in enumerate(self._forward(self._model.variables, frames)):
            num_left = len(frames) - number * forward.BATCH_FRAMES
            state, (static, cell, shares) = self._follow_fn(self._model.params, state, found)
            static = self._sized_labels(static, num_left)
            parts.append((static, self._sized_labels(cell, num_left) if self.has_cell else static, shares))
            if share is not None:
                average, after = self._average_fn(found.logits[0] if average is None else average, found.logits, share)
                averaged.append(self._predicted(after, num_left))
        columns = zip(*jax.device_get(parts), strict=True)
        labels = dispatch.Labels(*(np.concatenate(column)[: len(frames)] for column in columns))
        # Regions are cut out before they are computed: their borders differ from those of the whole frame.
        labels = dispatch.Labels(labels.static, *self.follow(frames)) if self._regions else labels
        return labels, np.concatenate(averaged)[: len(frames)] if averaged else None

    def _sized_labels(self, found: jax.Array, num_frames: int) -> types.Array:
        """Labels of the first frames; `found` are labels already, or logits where these have a size of their own."""
        return found if self._model.label_size is None else self._predicted(found, num_frames)

    def _predicted(self, logits: jax.Array, num_frames: int) -> np.ndarray:
        """Labels u8 [n, H, W] of the first frames, from logits [T, h, w, K].

        At a size of their own one by one: interpolated logits of a Cityscapes frame are 160 MB.
        """
        if self._model.label_size is None:
            return np.asarray(self._predict_fn(logits))
        return np.concatenate([np.asarray(self._predict_fn(one[None])) for one in logits[:num_frames]])


def _average(before: jax.Array, logits: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The average f32 [h, w, K] after consecutive frames of one video, and [T, h, w, K] after each of them.

    Of the average before them (before the first frame: its own logits), and of their logits [T, h, w, K].
    """

    def step(before: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
        after = share * frame + (1 - share) * before
        return after, after

    return jax.lax.scan(step, before, logits)


def _follow(
    model: programs.Model, params: Any, state: dispatch.State, found: types.Features
) -> tuple[dispatch.State, tuple[jax.Array, jax.Array, jax.Array]]:
    """The fields of `Labels` for the consecutive frames of one video, features [T, h, w, C].

    Logits in place of labels where the labels have a size of their own.
    """

    def predict(logits: jax.Array) -> jax.Array:
        return model.predict(logits) if model.label_size is None else logits

    static = predict(jnp.asarray(found.logits))
    if model.cell is None:
        return state, (static, static, jnp.ones(len(static)))
    cell = model.cell

    def step(state: types.CellState, frame: types.Features) -> tuple[types.CellState, tuple[jax.Array, jax.Array]]:
        state, logits = cell.step(params, state, frame)
        share = (jnp.asarray(state.age) == 0).mean(dtype=jnp.float32) if state.is_propagating else jnp.ones(())
        return state, (logits, share)

    clip = jax.tree.map(lambda x: x[:, None], found)  # of one video
    after, (logits, shares) = jax.lax.scan(step, model.cell_state(state), clip)
    return after.to_dict(), (static, predict(logits[:, 0]), shares)
