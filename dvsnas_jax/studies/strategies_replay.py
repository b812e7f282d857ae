"""Replays: a strategy searches many times in no time, its rewards those of a table or of a made-up world.

The reward of a genotype is the table's value for a training seed that is drawn anew for each evaluation, as a real
search trains once and never sees the mean; of the trainings that do not say what a cell is worth. What many replays
amount to: `strategies_statistics`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from dvsnas_jax.controller import strategy as strategy_lib

MAX_DRAWS_PER_EVALUATION = 50
"""Where repeated cells cost nothing, a strategy that only repeats itself is stopped after so many draws for each."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a replay: `num_runs`, each of `budget` evaluations, `per_step` genotypes between two updates of the strategy.

    `training_seeds` of the table are those that rewards and qualities come from; at least one that every cell was
    trained with. `is_cached`: a cell that was evaluated before is answered from the log of the run, with the reward it
    had, and costs nothing; otherwise it costs an evaluation like any other.
    """

    budget: int
    num_runs: int
    per_step: int
    training_seeds: tuple[int, ...]
    is_cached: bool = False
    seed: int = 0


class Rewards(Protocol):
    """What a replay asks for rewards: a table, or a made-up world."""

    def rows(self, genotypes: np.ndarray) -> np.ndarray: ...

    def draw(self, row: int, seeds: Sequence[int], share: float) -> float: ...


class Runs(NamedTuple):
    """The evaluations that count, in order; R runs of E evaluations.

    Attributes:
      rows: i32 [R, E], of the table; -1 where a run ended early.
      rewards: f64 [R, E], as the strategy saw them; nan where a training diverged or a run ended early.
      num_drawn: i32 [R], genotypes drawn, those that cost nothing included.
      seconds: of all runs.
    """

    rows: np.ndarray
    rewards: np.ndarray
    num_drawn: np.ndarray
    seconds: float


def replay(rewards: Rewards, strategy: strategy_lib.Strategy, settings: Settings) -> Runs:
    """Runs a strategy many times against a table or a made-up world of the same space."""
    started = time.perf_counter()
    found = [_replay_once(rewards, strategy, settings, run) for run in range(settings.num_runs)]
    rows, seen, drawn = (np.stack(column) for column in zip(*found, strict=True))
    return Runs(rows, seen, drawn, time.perf_counter() - started)


def _replay_once(
    source: Rewards, strategy: strategy_lib.Strategy, settings: Settings, run: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows and rewards [E] of one run, and how many genotypes it drew."""
    budget, size = settings.budget, settings.per_step
    noise = np.random.default_rng((settings.seed, 1, run))
    max_steps = -(-budget * (MAX_DRAWS_PER_EVALUATION if settings.is_cached else 1) // size)
    rng = jax.random.fold_in(jax.random.key(settings.seed), run)
    rngs = iter(jax.random.split(rng, 1 + 2 * max_steps))
    state = strategy.init(next(rngs))
    rows, rewards = np.full(budget, -1, np.int32), np.full(budget, np.nan)
    log: dict[int, float] = {}
    num_spent = num_drawn = 0
    for _ in range(max_steps):
        samples = strategy.sample(state, next(rngs), size)
        seen, valid = np.zeros(size, np.float32), np.zeros(size, bool)
        shares = noise.random(size)
        for index, row in enumerate(source.rows(np.asarray(samples.genotypes)).tolist()):
            if num_spent == budget:
                break
            num_drawn += 1
            if not (settings.is_cached and row in log):
                log[row] = source.draw(row, settings.training_seeds, shares[index])
                rows[num_spent], rewards[num_spent] = row, log[row]
                num_spent += 1
            valid[index] = math.isfinite(log[row])
            seen[index] = log[row] if valid[index] else 0.0
        if num_spent == budget:
            break
        state, _ = strategy.update(state, samples, seen, valid, next(rngs))
    return rows, rewards, num_drawn
