"""A trained network and cell in this process: its programs jitted, and whole sequences many frames at a time."""

from __future__ import annotations

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

    def segment(self, frames: np.ndarray) -> dispatch.Labels:
        """As frame by frame, up to ties of the arg-max, but many frames at a time."""
        state, parts = self._model.initial_state(), []
        for found in self._forward(self._model.variables, frames):
            state, part = self._follow_fn(self._model.params, state, found)
            parts.append(part)
        columns = zip(*jax.device_get(parts), strict=True)
        labels = dispatch.Labels(*(np.concatenate(column)[: len(frames)] for column in columns))
        # Regions are cut out before they are computed: their borders differ from those of the whole frame.
        return dispatch.Labels(labels.static, *self.follow(frames)) if self._regions else labels


def _follow(
    model: programs.Model, params: Any, state: dispatch.State, found: types.Features
) -> tuple[dispatch.State, tuple[jax.Array, jax.Array, jax.Array]]:
    """The fields of `Labels` for the consecutive frames of one video, features [T, h, w, C]."""
    static = model.predict(found.logits)
    if model.cell is None:
        return state, (static, static, jnp.ones(len(static)))
    cell = model.cell

    def step(state: types.CellState, frame: types.Features) -> tuple[types.CellState, tuple[jax.Array, jax.Array]]:
        state, logits = cell.step(params, state, frame)
        share = (jnp.asarray(state.age) == 0).mean(dtype=jnp.float32) if state.is_propagating else jnp.ones(())
        return state, (logits, share)

    clip = jax.tree.map(lambda x: x[:, None], found)  # of one video
    after, (logits, shares) = jax.lax.scan(step, types.CellState.from_dict(state), clip)
    return after.to_dict(), (static, model.predict(logits[:, 0]), shares)
