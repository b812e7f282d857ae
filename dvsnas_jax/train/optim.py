"""Optimizers, schedules and averages that every training in this package shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dvsnas_jax.core import types


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What the training of a cell or of a supernet changes.

    Attributes:
      params: that are trained.
      opt_state: of the optimizer.
      step: i32 [], optimizer steps taken.
      average: moving average of `params`, None where none is kept.
    """

    params: types.Params
    opt_state: optax.OptState
    step: types.Array
    average: types.Params | None = None


def start(optimizer: optax.GradientTransformation, params: types.Params, *, is_averaged: bool = False) -> TrainState:
    """The state before the first step."""
    average = copied(params) if is_averaged else None  # a copy: steps donate the state
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), average)


@jax.jit
def copied(tree: Any) -> Any:
    """A tree of the same arrays in buffers of their own: one program, where each shape by itself would be one."""
    return jax.tree.map(jnp.copy, tree)


def descend(
    optimizer: optax.GradientTransformation, state: TrainState, grads: types.Params, decay: float = 0.0
) -> TrainState:
    """One step of the optimizer; `decay` of the average, where one is kept."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = None if state.average is None else polyak(decay, state.average, params, state.step)
    return TrainState(params, opt_state, state.step + 1, average)


DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": optax.cosine_decay_schedule,
    "polynomial": lambda rate, steps: optax.polynomial_schedule(rate, 0.0, power=0.9, transition_steps=steps),
}
"""From a rate to 0 in so many steps."""


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up, then cosine or polynomial (power 0.9) decay to 0 over `config.steps`."""
    warmup = min(config.warmup_steps, max(config.steps - 1, 0))
    rest = max(config.steps - warmup, 1)
    decay = DECAYS[config.schedule](config.learning_rate, rest)
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)), decay], [warmup])


def make(config: ml_collections.ConfigDict, *, is_constant: bool = False) -> optax.GradientTransformation:
    """AdamW with a gradient norm limit; decay on kernels only (rank 2 and more).

    `config` is a section with learning_rate, weight_decay, clip_norm and, unless the rate `is_constant` (for training
    without a fixed end), steps, warmup_steps, schedule.
    """
    rate = config.learning_rate if is_constant else schedule(config)
    return in_two_vectors(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.adamw(rate, weight_decay=config.weight_decay, mask={"kernels": True, "others": False}),
        )
    )


def scale_part(name: str, factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of one part of a network, such as its encoder: another learning rate for it."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return {**updates, name: jax.tree.map(lambda x: factor * x, updates[name])}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def in_two_vectors(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs an element-wise transformation on `{"kernels": f32 [n], "others": f32 [m]}` (rank 2 and more; the rest).

    Its state must start from sizes alone, whatever the values are.

    A network has hundreds of arrays, and each would get a handful of kernels of its own: more to launch on
    an accelerator, and half of the time that XLA takes to compile a training step.
    """

    def group_of(leaf: jax.Array) -> str:
        return "kernels" if leaf.ndim >= 2 else "others"

    def ravel(tree: Any) -> dict[str, jax.Array]:
        groups: dict[str, list[jax.Array]] = {"kernels": [], "others": []}
        for leaf in jax.tree.leaves(tree):
            groups[group_of(leaf)].append(jnp.ravel(leaf))
        return {name: jnp.concatenate(group) if group else jnp.zeros(0) for name, group in groups.items()}

    def init(params: Any) -> Any:
        groups: dict[str, list[Any]] = {"kernels": [], "others": []}
        for leaf in jax.tree.leaves(params):
            groups[group_of(leaf)].append(leaf)
        empty = {name: np.zeros(sum(leaf.size for leaf in group), np.float32) for name, group in groups.items()}
        return inner.init(empty)  # to ravel the values would be a program a shape

    def unravel(vectors: dict[str, jax.Array], like: Any) -> Any:
        leaves, tree = jax.tree.flatten(like)
        places = {"kernels": 0, "others": 0}
        parts = []
        for leaf in leaves:
            name = group_of(leaf)
            parts.append(vectors[name][places[name] : places[name] + leaf.size].reshape(leaf.shape))
            places[name] += leaf.size
        return jax.tree.unflatten(tree, parts)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = inner.update(ravel(updates), state, None if params is None else ravel(params))
        return unravel(found, updates), state

    return optax.GradientTransformation(init, update)


def polyak(decay: float, average: types.Params, params: types.Params, step: types.Array) -> types.Params:
    """Moving average of weights; its decay grows from 0 so that early weights are forgotten."""
    rate = jnp.minimum(decay, step / (step + 10.0))
    return jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average, params)
