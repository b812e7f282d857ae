"""Keeps the best of a training: what scores highest on the meta-validation clips, the untrained cell included.

So a cell is never worse there than what it starts from.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.train import clip_scores, optim, training_loop


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


def start(training: optim.TrainState) -> KeptState:
    """The state before the first step and the first validation."""
    best = optim.copied(training.average)  # a copy: steps donate the state
    return KeptState(training, best, np.float32(-np.inf), np.int32(0))


def fit(
    state: KeptState,
    stage: training_loop.Stage,
    eval_every: int,
    validation: Validation,
    *,
    step_fn: Callable[[optim.TrainState, Any], tuple[optim.TrainState, dict[str, jax.Array]]],
    batches_fn: Callable[[int], Iterator[Any]],
) -> KeptState:
    """As `training_loop.fit`, validated before the first step, every `eval_every` steps and after the last.

    Raises:
      UserError: no pixel of the meta-validation clips is labelled.
    """
    name = f"{stage.name}{training_loop.VALIDATION}"

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
    state = training_loop.fit(state, stage, step_fn=step, batches_fn=batches_fn, after_fn=after)
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


def _told(stage: training_loop.Stage, state: KeptState) -> str:
    step, score = int(state.best_step), float(state.best_score)
    if not step:
        return f"{stage.name}: training did not improve on the start, which is kept (score {score:.4f})"
    return f"{stage.name}: the best on meta-validation, step {step} of {stage.num_steps}, is kept (score {score:.4f})"
