"""The one training loop: resume, step, log, checkpoint, stop. What is trained comes as functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import errors, progress
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals

VALIDATION = "_val"
"""Added to the name of a stage for the lines of its validation."""


def fit(
    state: Any,
    *,
    stage: str,
    num_steps: int,
    step_fn: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    batches_fn: Callable[[int], Iterator[Any]],
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    checkpoint_every: int,
    log_every: int = 25,
    after_fn: Callable[[int, Any], Any] | None = None,
) -> Any:
    """Runs `num_steps` steps, from the last checkpoint of the stage if there is one.

    Args:
      state: before the first step; also the template of the checkpoints.
      stage: names the checkpoints and the lines of metrics.jsonl.
      num_steps: in all.
      step_fn: `(state, batch) -> (state, metrics)`, usually jitted with a donated state.
      batches_fn: `start step -> batches`; the batch of a step depends on the step alone.
      folder: the run folder.
      stop: a signal asks to save and stop.
      checkpoint_every: steps between checkpoints.
      log_every: steps between lines of metrics.jsonl.
      after_fn: `(steps done, state) -> state`, called after every step.

    Returns:
      The state after the last step.

    Raises:
      Stopped: a signal arrived; the state was saved.
      FloatingPointError: the loss is not finite.
    """
    checkpoints = folder.checkpointer(stage)
    start = checkpoints.latest_step() or 0
    if start:
        state = checkpoints.restore(state)
    if start >= num_steps:
        return state
    own = (stage, f"{stage}{VALIDATION}")  # another stage may be called by a longer name
    folder.truncate("metrics.jsonl", lambda line: line["stage"] not in own or line["step"] <= start)
    batches = batches_fn(start)
    with progress.bar(num_steps, stage, initial=start) as bar:
        for done in range(start + 1, num_steps + 1):
            state, metrics = step_fn(state, next(batches))
            if after_fn is not None:
                state = after_fn(done, state)
            if done % log_every == 0 or done == num_steps:
                bar.note(f"loss {_log(folder, stage, done, metrics):.3f}")
            bar.update()
            is_stopping = stop.is_due(done, every=log_every)
            if done % checkpoint_every == 0 or done == num_steps or is_stopping:
                checkpoints.save(done, state)
            if is_stopping and done < num_steps:
                raise errors.Stopped(f"{stage}: stopped after step {done} of {num_steps}")
    return state


def _log(folder: workdir.Workdir, stage: str, done: int, metrics: dict[str, jax.Array]) -> float:
    """Writes the metrics of a step, gives its loss."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not np.isfinite(values["loss"]):
        raise FloatingPointError(f"{stage}: the loss is {values['loss']} at step {done}")
    folder.scalars(stage, done, values)
    return values["loss"]
