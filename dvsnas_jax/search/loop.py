"""The search: sample, train the shared weights, score, update the policy. Its parts come as functions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np

from dvsnas_jax.core import errors, progress, types
from dvsnas_jax.core.files import checkpoint, workdir
from dvsnas_jax.core.processes import signals

LOG = "genotypes.jsonl"
STAGE = "search"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """Everything that a search changes."""

    strategy: Any  # state of the strategy (controller, optimizer, rollout buffer, baseline)
    shared: Any  # state of the shared weights


class SampleFn(Protocol):
    """Draws the genotypes of an iteration."""

    def __call__(self, strategy_state: Any, step: int) -> types.Samples: ...


class TrainFn(Protocol):
    """Trains the shared weights; a strategy may learn from gradients here."""

    def __call__(self, state: LoopState, step: int) -> tuple[LoopState, dict[str, float]]: ...


class EvaluateFn(Protocol):
    """Scores genotypes i32 [N, L, 5]: N records with reward, parts and status."""

    def __call__(self, shared: Any, genotypes: np.ndarray) -> list[dict[str, Any]]: ...


class UpdateFn(Protocol):
    """Learns from N records, see `to_arrays`."""

    def __call__(
        self, strategy_state: Any, samples: types.Samples, records: Sequence[dict[str, Any]], step: int
    ) -> tuple[Any, dict[str, float]]: ...


class Functions(NamedTuple):
    """What a search consists of.

    `describe` gives the fields of a genotype's log line, `count_steps` the optimizer steps that candidates took in so
    many iterations; the search ends when these reach `budget`, None: after its last iteration.
    """

    sample: SampleFn
    train: TrainFn
    evaluate: EvaluateFn
    update: UpdateFn
    describe: Callable[[np.ndarray], dict[str, Any]]
    count_steps: Callable[[int], int] = lambda num_iterations: 0
    budget: int | None = None


def search(
    state: LoopState,
    functions: Functions,
    num_steps: int,
    *,
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    checkpoint_every: int,
) -> LoopState:
    """Runs the search of at most `num_steps` iterations, from its last checkpoint on, to the state after it.

    `state`: before the first step; also the template of the checkpoints. Candidates go to genotypes.jsonl. A signal
    asks to save and stop, which raises Stopped.
    """
    sample, train, evaluate, update, describe, count_steps, budget = functions
    checkpoints = folder.checkpointer(STAGE)
    state, start = _resume(state, checkpoints, folder)
    with progress.bar(num_steps, STAGE, initial=start) as bar:
        for step in range(start, num_steps):
            if budget is not None and count_steps(step) >= budget:
                break
            samples = sample(state.strategy, step)
            genotypes = np.asarray(samples.genotypes)
            chex.assert_rank(genotypes, 3)
            started = time.perf_counter()
            state, train_metrics = train(state, step)
            records = evaluate(state.shared, genotypes)
            speed = {"seconds_per_candidate": (time.perf_counter() - started) / len(genotypes)}
            rewards, valid = to_arrays(records)
            strategy, update_metrics = update(state.strategy, samples, records, step)
            state = LoopState(strategy=strategy, shared=state.shared)
            log(folder, describe, genotypes, records, step=step)
            num_taken = count_steps(step + 1)
            speed["optimizer_steps"] = num_taken
            metrics = {**train_metrics, **_floats(update_metrics), **summary(rewards, valid), **speed}
            folder.scalars(STAGE, step + 1, metrics)
            bar.note(f"reward {np.mean(rewards[valid]) if valid.any() else float('nan'):.3f}")
            bar.update()
            done = step + 1
            is_over = done == num_steps or (budget is not None and num_taken >= budget)
            is_stopping = stop.is_due(done)
            if done % checkpoint_every == 0 or is_over or is_stopping:
                checkpoints.save(done, state)
            if is_stopping and not is_over:
                raise errors.Stopped(f"search: stopped after step {done} of {num_steps}")
    return state


def _resume(state: LoopState, checkpoints: checkpoint.Checkpointer, folder: workdir.Workdir) -> tuple[LoopState, int]:
    """The state of the last checkpoint and its step; lines of later steps, which will be done again, are dropped."""
    start = checkpoints.latest_step() or 0
    if start:
        state = checkpoints.restore(state)
    folder.truncate(LOG, lambda record: record["step"] < start)
    folder.truncate("metrics.jsonl", lambda record: record["stage"] != STAGE or record["step"] <= start)
    return state, start


def means(logged: Sequence[dict[str, jax.Array]]) -> dict[str, float]:
    """The mean of each metric over the optimizer steps of an iteration."""
    values = jax.device_get(list(logged))
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


def to_arrays(
    records: Sequence[dict[str, Any]],
    reward_fn: Callable[[dict[str, Any]], float | None] = lambda record: record["reward"],
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards f32 [N] (0 where there is none) and valid bool [N]."""
    found = [reward_fn(record) for record in records]
    valid = np.array([reward is not None for reward in found])
    return np.array([reward or 0.0 for reward in found], np.float32), valid


def summary(rewards: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Mean and best reward of the valid candidates of a step."""
    if not valid.any():
        return {}
    return {"reward_mean": float(rewards[valid].mean()), "reward_best": float(rewards[valid].max())}


def log(
    folder: workdir.Workdir,
    describe: Callable[[np.ndarray], dict[str, Any]],
    genotypes: np.ndarray,
    records: Sequence[dict[str, Any]],
    *,
    step: int,
) -> None:
    """Appends one line per candidate."""
    for index, (genotype, record) in enumerate(zip(genotypes, records, strict=True)):
        folder.append(LOG, {"step": step, "index": index, **describe(genotype), **record})


def _floats(values: dict[str, Any]) -> dict[str, float]:
    """The policy's metrics, named apart from those of the shared weights."""
    return {f"policy_{name}": float(value) for name, value in jax.device_get(values).items()}
