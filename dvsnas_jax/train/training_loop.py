"""The one training loop: resume, step, log, checkpoint, stop. What is trained comes as functions.

`fit_kept` keeps the best of a training: what scores highest on the meta-validation clips, the untrained cell included.
So a cell is never worse there than what it starts from.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, progress, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals
from dvsnas_jax.train import clip_scores, optim

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptState:
    """What the training of a cell changes where the best is kept.

    Attributes:
      training: the state of the optimizer, with averaged weights.
      best: the averaged weights that scored highest, without running statistics.
      best_score: their score; -inf before the first validation.
      best_step: optimizer steps that were taken then.
    """

    training: optim.TrainState
    best: types.Params
    best_score: np.float32
    best_step: np.int32


class Validation(NamedTuple):
    """How averaged weights are scored.

    Attributes:
      calibrate_fn: adds running statistics to weights.
      count_fn: counts on all meta-validation clips, of weights with running statistics.
      score_fn: see `make_score`.
    """

    calibrate_fn: Callable[[types.Params], types.Params]
    count_fn: Callable[[types.Params], clip_scores.ClipScores]
    score_fn: Callable[[dict[str, float]], float]


def make_score(config: ml_collections.ConfigDict, base: float | None = None) -> Callable[[dict[str, float]], float]:
    """What decides, of `clip_scores.shares`: the reward, or mIoU times the stability factor of rewards.

    The factor of the price is left out: it is the same for all steps of a cell. `base`: that of `clip_scores.Rule`.
    """
    rule = clip_scores.rule(config.search, base)

    def score(shares: dict[str, float]) -> float:
        if config.train.keep_by == "reward":
            return clip_scores.reward(shares, rule)
        return shares["miou"] * (1.0 - shares["flicker"]) ** rule.stability

    return score


def start_kept(training: optim.TrainState) -> KeptState:
    """The state before the first step and the first validation."""
    best = optim.copied(training.average)  # a copy: steps donate the state
    return KeptState(training, best, np.float32(-np.inf), np.int32(0))


def fit_kept(
    state: KeptState,
    stage: Stage,
    eval_every: int,
    validation: Validation,
    *,
    step_fn: Callable[[optim.TrainState, Any], tuple[optim.TrainState, dict[str, jax.Array]]],
    batches_fn: Callable[[int], Iterator[Any]],
) -> KeptState:
    """As `fit`, validated before the first step, every `eval_every` steps and after the last.

    Raises:
      UserError: no pixel of the meta-validation clips is labelled.
    """
    name = f"{stage.name}{VALIDATION}"

    def after(done: int, state: KeptState) -> KeptState:
        if done % eval_every and done != stage.num_steps:
            return state
        score, shares = _scored(validation, state.training.average)
        stage.folder.scalars(name, done, {"score": score, **shares})
        if np.float32(score) <= state.best_score:
            return state
        best = optim.copied(state.training.average)
        return dataclasses.replace(state, best=best, best_score=np.float32(score), best_step=np.int32(done))

    def step(state: KeptState, batch: Any) -> tuple[KeptState, dict[str, jax.Array]]:
        training, found = step_fn(state.training, batch)
        return dataclasses.replace(state, training=training), found

    if not stage.folder.checkpointer(stage.name).latest_step():
        stage.folder.truncate("metrics.jsonl", lambda line: line["stage"] != name)
        state = after(0, state)
    state = fit(state, stage, step_fn=step, batches_fn=batches_fn, after_fn=after)
    if distributed.is_main():
        print(_told(stage, state), file=sys.stderr, flush=True)
    return state


def _scored(validation: Validation, average: types.Params) -> tuple[float, dict[str, float]]:
    """Score and shares of averaged weights; -inf where they diverged."""
    found = validation.count_fn(validation.calibrate_fn(average))
    if not found.counts.any():
        raise errors.UserError(
            "train.eval_every: no pixel of the meta-validation clips that is scored has a label; label them, or set it "
            "to 0 (the last weights are then kept)"
        )
    shares = clip_scores.shares(found)
    return (validation.score_fn(shares) if found.is_finite[0] else -np.inf), shares


def _told(stage: Stage, state: KeptState) -> str:
    step, score = int(state.best_step), float(state.best_score)
    if not step:
        return f"{stage.name}: training did not improve on the start, which is kept (score {score:.4f})"
    return f"{stage.name}: the best on meta-validation, step {step} of {stage.num_steps}, is kept (score {score:.4f})"
