"""Does a strategy find good cells? Searches replayed against a table, and what to make of many runs.

A replay draws genotypes of the table's space; the reward of one is the table's value for a training seed that is
drawn anew for each evaluation, as a real search trains once and never sees the mean. A strategy is judged by the mean.
What a strategy evaluates is one question, which of that is chosen in the end another: see `choices.py`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import errors
from dvsnas_jax.space import encoding
from dvsnas_jax.studies import final_choice, made_up
from dvsnas_jax.studies import table as table_lib

NUM_BOOTSTRAPS = 1000
TOP_SHARE = 0.01
MAX_DRAWS_PER_EVALUATION = 50
"""Where repeated cells cost nothing, a strategy that only repeats itself is stopped after so many draws for each."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a replay.

    Attributes:
      budget: evaluations of a run.
      num_runs: runs, each with its own random numbers.
      per_step: genotypes between two updates of the strategy.
      training_seeds: of the table's trainings, those that rewards and qualities come from; at least one that every cell
        was trained with.
      is_cached: a cell that was evaluated before is answered from the log of the run, with the reward it had, and
        costs nothing; otherwise it costs an evaluation like any other.
      seed: of all runs.
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


def budget_of(share: float, num_cells: int) -> int:
    """Evaluations of a budget: a share of the space below 1, else a number.

    Raises:
      UserError: not above 0.
    """
    if not (share > 0 and (share < 1 or share % 1 == 0)):
        raise errors.UserError(
            f"--budget: must be a share of the space between 0 and 1 or a whole number of evaluations, got {share:g}"
        )
    return max(1, round(share * num_cells)) if share < 1 else int(share)


def replay(rewards: Rewards, strategy: strategy_lib.Strategy, settings: Settings) -> Runs:
    """Runs a strategy many times against a table or a made-up world.

    Args:
      rewards: of the cells.
      strategy: of the same space.
      settings: how often and how long.
    """
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


def incumbents(rewards: np.ndarray) -> np.ndarray:
    """Which evaluation was the best so far by the rewards that were seen: f64 [R, E] to i32 [R, E], -1 before any."""
    best = np.full(rewards.shape, -1, np.int32)
    for run, values in enumerate(rewards):
        place, least = -1, -math.inf
        for index, value in enumerate(values):
            if value > least:
                place, least = index, value
            best[run, index] = place
    return best


def ends(table: table_lib.Table, runs: Runs, settings: Settings) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The cells that runs end with.

    Returns:
      How it is chosen (see `choices.CHOICES`) -> the chosen rows, i32 [R], -1 where nothing was seen; and all evaluated
      rows, i32 [R, E]. The repeats take the place of the last evaluations: the budget is the same.
    """
    encoder = encoding.Encoder(table.space)
    # A log that answers repeats tells nothing new.
    num_repeated = 0 if settings.is_cached else round(final_choice.REPEATED * settings.budget)
    found: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in final_choice.CHOICES}
    for run, (rows, rewards) in enumerate(zip(runs.rows, runs.rewards, strict=True)):
        noise = np.random.default_rng((settings.seed, 2, run))

        def draw(row: int, noise: np.random.Generator = noise) -> float:
            return table.draw(row, settings.training_seeds, noise.random())

        kept = slice(settings.budget - num_repeated)
        repeated = final_choice.repeat(encoder, table, (rows[kept], rewards[kept]), num_repeated, draw)
        evaluated = dict(zip(final_choice.CHOICES, ((rows, rewards), (rows, rewards), repeated), strict=True))
        for name, (own_rows, own_rewards) in evaluated.items():
            if name == "reward":
                place = final_choice.by_reward(own_rewards)
            else:
                place = final_choice.by_posterior(encoder, table.cells[own_rows], own_rewards)
            padding = np.full(max(0, settings.budget - len(own_rows)), -1, np.int32)
            found[name].append((int(own_rows[place]) if place >= 0 else -1, np.concatenate([own_rows, padding])))
    return {
        name: (np.asarray([row for row, _ in values], np.int32), np.stack([rows for _, rows in values]))
        for name, values in found.items()
    }


def top_rows(quality: np.ndarray, share: float = TOP_SHARE) -> np.ndarray:
    """Whether a row is among the best `share` of all, at least one: bool [M]."""
    order = np.argsort(-quality, kind="stable")
    is_top = np.zeros(len(quality), bool)
    is_top[order[: max(1, int(share * len(quality)))]] = True
    return is_top


def summarize_worlds(worlds: Sequence[made_up.World], runs: Sequence[Runs], num_top: int = 5) -> dict[str, Any]:
    """What one run of a strategy in each of many made-up worlds amounts to, in standard deviations of random cells.

    Returns:
      `last_quarter`: mean quality of the last quarter of the evaluations; `top`: of the `num_top` distinct cells of the
      highest rewards; `best`: of the one; `distinct`: share of the evaluations that were of a new cell; each
      `{value, low, high}` with a bootstrapped 95 % interval over worlds; `curve`: mean quality of the cell of the
      highest reward so far, and its standard error, after every evaluation; `seconds_per_run`.
    """
    late, top, best, distinct, curves = [], [], [], [], []
    for world, run in zip(worlds, runs, strict=True):
        rows, rewards = run.rows[0][run.rows[0] >= 0], run.rewards[0][run.rows[0] >= 0]
        values = world.quality()
        order = list(dict.fromkeys(rows[np.argsort(-rewards, kind="stable")].tolist()))
        late.append(values[rows[-max(1, len(rows) // 4) :]].mean())
        top.append(values[order[:num_top]].mean())
        best.append(values[order[0]])
        distinct.append(len(order) / len(rows))
        curves.append(values[run.rows[0][incumbents(run.rewards)[0]]])
    curve = np.stack(curves)
    named = {"last_quarter": late, "top": top, "best": best, "distinct": distinct}
    return {
        **{name: interval(value) for name, value in named.items()},
        "curve": {
            "mean": curve.mean(axis=0).tolist(),
            "error": (curve.std(axis=0) / math.sqrt(max(len(curve) - 1, 1))).tolist(),
        },
        "seconds_per_run": float(np.mean([run.seconds for run in runs])),
    }


def summarize(table: table_lib.Table, runs: Runs, settings: Settings) -> dict[str, Any]:
    """What many runs of one strategy amount to.

    Regrets are differences of mean rewards: the best cell of the table less the cell that is chosen.

    Returns:
      `choices`: how it is chosen (see `choices.CHOICES`) -> `regret_median`, `regret_mean`, `chosen_top` (share of runs
      whose choice is a top cell), `seen_top` (share of runs that evaluated one); of the strategy alone: `seen_top`,
      `last_quarter` (mean quality of the last quarter of the evaluations), `distinct` (share of the evaluations that
      were of a new cell): each `{value, low, high}` with a bootstrapped 95 % interval over runs; `curve`: the regret
      after every evaluation, by reward; `seconds_per_run`, `drawn_per_run`.
    """
    quality = table.quality(settings.training_seeds)
    known = np.append(quality, -np.inf)  # the row of a run that ended early
    best = incumbents(runs.rewards)
    rows = np.where(best >= 0, np.take_along_axis(runs.rows, np.maximum(best, 0), axis=1), -1)
    # Before anything was seen the choice is blind: a cell of mean quality.
    blind = quality[np.isfinite(quality)].mean()
    regret = quality.max() - np.where(rows >= 0, known[rows], blind)
    is_top = np.append(top_rows(quality), False)
    late = runs.rows[:, -max(1, settings.budget // 4) :]
    late_quality = np.where(late >= 0, known[late], np.nan)
    values = {
        "seen_top": is_top[runs.rows].any(axis=1).astype(np.float64),
        "last_quarter": _row_means(late_quality),
        "distinct": np.array([len(set(row[row >= 0].tolist())) for row in runs.rows]) / settings.budget,
    }
    by_choice = {}
    for choice, (end, evaluated) in ends(table, runs, settings).items():
        lost = quality.max() - np.where(end >= 0, known[end], blind)
        by_choice[choice] = {
            "regret_median": interval(lost, np.median),
            "regret_mean": interval(lost),
            "chosen_top": interval(is_top[end].astype(np.float64)),
            "seen_top": interval(is_top[evaluated].any(axis=1).astype(np.float64)),
        }
    return {
        "choices": by_choice,
        **{name: interval(value) for name, value in values.items()},
        "curve": {
            "mean": regret.mean(axis=0).tolist(),
            "error": (regret.std(axis=0) / math.sqrt(max(len(regret) - 1, 1))).tolist(),
            "median": np.median(regret, axis=0).tolist(),
            "quartiles": np.quantile(regret, (0.25, 0.75), axis=0).tolist(),
        },
        "seconds_per_run": runs.seconds / settings.num_runs,
        "drawn_per_run": float(runs.num_drawn.mean()),
    }


def _row_means(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of each row that has one."""
    counts = np.isfinite(values).sum(axis=1)
    sums = np.where(np.isfinite(values), values, 0.0).sum(axis=1)
    return (sums / np.maximum(counts, 1))[counts > 0]


def interval(
    values: np.ndarray | Sequence[float], statistic_fn: Callable[..., Any] = np.mean, *, seed: int = 0
) -> dict[str, float]:
    """A statistic of independent runs with its bootstrapped 95 % interval (Efron 1979, percentiles).

    Args:
      values: f64 [R].
      statistic_fn: `(values, axis) -> statistic`.
      seed: of the resampling.
    """
    data = np.asarray(values, np.float64)
    if not data.size:
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    drawn = np.random.default_rng(seed).integers(0, data.size, (NUM_BOOTSTRAPS, data.size))
    low, high = np.quantile(statistic_fn(data[drawn], axis=1), (0.025, 0.975))
    return {"value": float(statistic_fn(data, axis=0)), "low": float(low), "high": float(high)}


def verdict(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The best pair of strategy and choice by median regret (by mean regret among equals), and what each pair leaves.

    Returns:
      `best`, `order`: pairs `(strategy, choice)`; `regret_by_random`: strategy -> choice -> its median regret as a
      share of that of `random` with the same choice; `regret_by_plain_random`: of that of `random` by reward.
    """
    pairs = {(name, choice): found for name in results for choice, found in results[name]["choices"].items()}
    keys = ("regret_median", "regret_mean")
    order = sorted(pairs, key=lambda pair: tuple(pairs[pair][key]["value"] for key in keys))

    def ratios(base_fn: Callable[[str], str]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for (name, choice), value in pairs.items():
            base = pairs.get(("random", base_fn(choice)), {}).get("regret_median", {}).get("value")
            if base and (name, choice) != ("random", base_fn(choice)):
                found.setdefault(name, {})[choice] = value["regret_median"]["value"] / base
        return found

    return {
        "best": list(order[0]),
        "order": [list(pair) for pair in order],
        "regret_by_random": ratios(lambda choice: choice),
        "regret_by_plain_random": ratios(lambda choice: final_choice.CHOICES[0]),
    }
