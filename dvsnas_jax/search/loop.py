"""The search: sample, train the shared weights, score, update the policy. Its parts come as functions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

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
    """Everything that a search changes.

    Attributes:
      strategy: state of the strategy (controller, optimizer, rollout buffer, baseline).
      shared: state of the shared weights.
    """

    strategy: Any
    shared: Any


def search(
    state: LoopState,
    *,
    num_steps: int,
    sample: Callable[[Any, int], types.Samples],
    train: Callable[[LoopState, int], tuple[LoopState, dict[str, float]]],
    evaluate: Callable[[Any, np.ndarray], list[dict[str, Any]]],
    update: Callable[..., tuple[Any, dict[str, Any]]],
    describe: Callable[[np.ndarray], dict[str, Any]],
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    checkpoint_every: int,
) -> LoopState:
    """Runs the search, from its last checkpoint if there is one.

    Args:
      state: before the first step; also the template of the checkpoints.
      num_steps: iterations in all.
      sample: `(strategy state, step) -> samples`.
      train: `(state, step) -> (state, metrics)`: trains the shared weights; a strategy may learn from gradients here.
      evaluate: `(shared state, genotypes [N, L, 5]) -> N records` with reward, parts and status.
      update: `(strategy state, samples, rewards f32 [N], valid bool [N], step) -> (state, metrics)`.
      describe: `genotype -> fields` of its log line.
      folder: the run folder; candidates go to genotypes.jsonl.
      stop: a signal asks to save and stop.
      checkpoint_every: steps between checkpoints.

    Returns:
      The state after the last step.

    Raises:
      Stopped: a signal arrived; the state was saved.
    """
    checkpoints = folder.checkpointer(STAGE)
    state, start = _resume(state, checkpoints, folder)
    with progress.bar(num_steps, STAGE, initial=start) as bar:
        for step in range(start, num_steps):
            samples = sample(state.strategy, step)
            genotypes = np.asarray(samples.genotypes)
            chex.assert_rank(genotypes, 3)
            started = time.perf_counter()
            state, train_metrics = train(state, step)
            records = evaluate(state.shared, genotypes)
            speed = {"seconds_per_candidate": (time.perf_counter() - started) / len(genotypes)}
            rewards, valid = to_arrays(records)
            strategy, update_metrics = update(state.strategy, samples, rewards, valid, step)
            state = LoopState(strategy=strategy, shared=state.shared)
            log(folder, describe, genotypes, records, step=step)
            metrics = {**train_metrics, **_floats(update_metrics), **summary(rewards, valid), **speed}
            folder.scalars(STAGE, step + 1, metrics)
            bar.note(f"reward {np.mean(rewards[valid]) if valid.any() else float('nan'):.3f}")
            bar.update()
            done = step + 1
            is_stopping = stop.is_due(done)
            if done % checkpoint_every == 0 or done == num_steps or is_stopping:
                checkpoints.save(done, state)
            if is_stopping and done < num_steps:
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


def to_arrays(records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards f32 [N] (0 where there is none) and valid bool [N]."""
    valid = np.array([record["reward"] is not None for record in records])
    rewards = np.array([record["reward"] or 0.0 for record in records], np.float32)
    return rewards, valid


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
