"""The one training loop: resume, step, log, checkpoint, stop. What is trained comes as functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals

LOG_EVERY = 25
"""Steps between lines of metrics.jsonl."""
VALIDATION = "_val"
"""Added to the name of a stage for the lines of its validation."""
State = TypeVar("State")


class Stage(NamedTuple):
    """One training of a run.

    Attributes:
      name: of its checkpoints and of its lines in metrics.jsonl.
      folder: the run folder.
      stop: a signal asks to save and stop.
      num_steps: in all.
      checkpoint_every: steps between checkpoints.
    """

    name: str
    folder: workdir.Workdir
    stop: signals.StopFlag
    num_steps: int
    checkpoint_every: int

    @classmethod
    def of(
        cls, section: ml_collections.ConfigDict, name: str, folder: workdir.Workdir, stop: signals.StopFlag
    ) -> Stage:
        """With the `steps` and `checkpoint_every` of a section."""
        return cls(name, folder, stop, section.steps, section.checkpoint_every)


def fit(
    state: State,
    stage: Stage,
    *,
    step_fn: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    batches_fn: Callable[[int], Iterator[Any]],
    after_fn: Callable[[int, State], State] | None = None,
) -> State:
    """Runs the steps of a stage, from its last checkpoint if there is one.

    Args:
      state: before the first step; also the template of the checkpoints.
      stage: which, where and how long.
      step_fn: `(state, batch) -> (state, metrics)`, usually jitted with a donated state.
      batches_fn: `start step -> batches`; the batch of a step depends on the step alone.
      after_fn: `(steps done, state) -> state`, called after every step.

    Raises:
      Stopped: a signal arrived; the state was saved.
      FloatingPointError: the loss is not finite.
    """
    name, folder, num_steps = stage.name, stage.folder, stage.num_steps
    checkpoints = folder.checkpointer(name)
    start = checkpoints.latest_step() or 0
    if start:
        state = checkpoints.restore(state)
    if start >= num_steps:
        return state
    own = (name, f"{name}{VALIDATION}")  # another stage may be called by a longer name
    folder.truncate("metrics.jsonl", lambda line: line["stage"] not in own or line["step"] <= start)
    batches = batches_fn(start)
    with progress.bar(num_steps, name, initial=start) as bar:
        for done in range(start + 1, num_steps + 1):
            state, metrics = step_fn(state, next(batches))
            if after_fn is not None:
                state = after_fn(done, state)
            if done % LOG_EVERY == 0 or done == num_steps:
                bar.note(f"loss {_log(stage, done, metrics):.3f}")
            bar.update()
            is_stopping = stage.stop.is_due(done, every=LOG_EVERY)
            if done % stage.checkpoint_every == 0 or done == num_steps or is_stopping:
                checkpoints.save(done, state)
            if is_stopping and done < num_steps:
                raise errors.Stopped(f"{name}: stopped after step {done} of {num_steps}")
    return state


def _log(stage: Stage, done: int, metrics: dict[str, jax.Array]) -> float:
    """Writes the metrics of a step, gives its loss."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not np.isfinite(values["loss"]):
        raise FloatingPointError(f"{stage.name}: the loss is {values['loss']} at step {done}")
    stage.folder.scalars(stage.name, done, values)
    return values["loss"]
