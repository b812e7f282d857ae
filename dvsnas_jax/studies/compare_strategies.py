"""`dvsnas compare-strategies --table` and `--made-up`: strategies on equal budgets without networks, in seconds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import ml_collections

from dvsnas_jax.controller import strategies
from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import made_up_rewards, strategies_replay, strategies_report, study_report
from dvsnas_jax.studies import strategies_statistics as statistics_lib
from dvsnas_jax.studies import table as table_lib
from dvsnas_jax.train import features


@dataclasses.dataclass(frozen=True)
class Options:
    """Of replays; None is the default: 200 runs of 0.05 with 3 a step on a table, else 24 of the config's search.

    Attributes:
      config_path: whose sections `controller` and, for made-up rewards, `space` to take; None: the defaults (on a table
        those for short searches, of each record).
      overrides: of the config, as text.
      budget: evaluations of a run; on a table, below 1: a share of the cells.
      num_runs: of each strategy.
      per_step: genotypes between two updates.
      is_cached: a repeated cell costs nothing and has the reward that it had.
    """

    config_path: str | None = None
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    budget: float | None = None
    num_runs: int | None = None
    per_step: int | None = None
    is_cached: bool = False


def on_table(
    table: table_lib.Table,
    names: Sequence[str],
    options: Options,
    *,
    training_seeds: str | None = None,
    output: pathlib.Path | None = None,
) -> study_report.Report:
    """Compares strategies on a table by some of its trainings (numbers with commas; None: all).

    Without an `output` folder no files are written. A UserError for an unknown strategy or a number that makes no
    sense.
    """
    budget = budget_of(0.05 if options.budget is None else options.budget, table.num_cells)
    per_step = min(3 if options.per_step is None else options.per_step, budget)
    seeds = _seeds(training_seeds, table)
    if budget > table.num_cells:
        raise errors.UserError(f"--budget: must be at most the number of cells ({table.num_cells}), got {budget}")
    study_report.check_at_least(1, per_step=per_step)
    strategies.check_names(names)
    made = {}
    for name in names:  # all of them before the first runs: a wrong one is told at once
        tuned = {} if options.config_path else strategies.TABLE[name].short_search
        config = config_lib.load(options.config_path, {**tuned, **options.overrides})
        made[name] = _make(name, table.space, config)
    num_runs = 200 if options.num_runs is None else options.num_runs
    settings = strategies_replay.Settings(budget, num_runs, per_step, seeds, options.is_cached)
    results = {}
    for name, strategy in made.items():
        # Random search would not train a cell twice.
        own = dataclasses.replace(settings, is_cached=settings.is_cached or name == strategies.BASELINE)
        runs = strategies_replay.replay(table, strategy, own)
        results[name] = statistics_lib.summarize_table(table, runs, settings)
    content = {
        "budget": budget,
        "num_runs": num_runs,
        "per_step": per_step,
        "num_cells": table.num_cells,
        "training_seeds": list(seeds),
        "disjoint": statistics_lib.disjointness(table, seeds),
        "is_cached": options.is_cached,
        "table": {key: table.head[key] for key in ("command", "config_hash")},
        "results": results,
        "verdict": statistics_lib.verdict(results),
    }
    return strategies_report.write_replays(content, output)


def on_made_up(
    names: Sequence[str], options: Options, *, tau: float = 0.4, output: pathlib.Path | None = None
) -> study_report.Report:
    """Compares strategies on made-up rewards in the space of a config, each run in a world of its own.

    `tau` is Kendall's rank correlation of a reward with the quality, from which its noise follows. Otherwise as
    `on_table`.
    """
    config = config_lib.load(options.config_path, options.overrides)
    section = config.search
    per_step = section.genotypes_per_step if options.per_step is None else options.per_step
    budget = section.steps * section.genotypes_per_step if options.budget is None else options.budget
    num_runs = 24 if options.num_runs is None else options.num_runs
    strategies.check_names(names)
    for flag, value in (("--per-step", per_step), ("--budget", budget), ("--seeds", num_runs)):
        if not (value >= 1 and value % 1 == 0):
            raise errors.UserError(f"{flag}: must be a whole number of at least 1 on made-up rewards, got {value:g}")
    if not 0 < tau <= 1:
        raise errors.UserError(f"--tau: must be above 0 and at most 1, got {tau:g}")
    budget, per_step = int(budget), int(min(per_step, budget))
    space, noise = features.space_of(config), made_up_rewards.noise_of(tau)
    made = {name: _make(name, space, config) for name in names}
    op_mask = made[names[0]].op_mask
    worlds = [made_up_rewards.World(space, seed, noise=noise, op_mask=op_mask) for seed in range(num_runs)]
    results = {}
    for name, strategy in made.items():
        runs = []
        for seed, world in enumerate(worlds):
            settings = strategies_replay.Settings(budget, 1, per_step, (0,), options.is_cached, seed)
            runs.append(strategies_replay.replay(world, strategy, settings))
        results[name] = statistics_lib.summarize_worlds(worlds, runs)
    content = {
        "budget": budget,
        "num_runs": num_runs,
        "per_step": per_step,
        "tau": tau,
        "is_cached": options.is_cached,
        "controller": config_lib.to_json_dict(config.controller),
        "results": results,
    }
    return strategies_report.write_worlds(content, output)


def budget_of(share: float, num_cells: int) -> int:
    """Evaluations of a budget: a share of the space below 1, else a number. A UserError if not above 0."""
    if not (share > 0 and (share < 1 or share % 1 == 0)):
        raise errors.UserError(
            f"--budget: must be a share of the space between 0 and 1 or a whole number of evaluations, got {share:g}"
        )
    return max(1, round(share * num_cells)) if share < 1 else int(share)


def _make(name: str, space: genotype_lib.Space, config: ml_collections.ConfigDict) -> strategy_lib.Strategy:
    """A strategy that learns from rewards alone."""
    strategy = strategies.make(name, space, config.controller)
    if strategy.record.is_relaxed:
        raise errors.UserError(
            f"--strategies: {name} learns from gradients, a replay has rewards only; leave {name} out, or compare it "
            "in real searches, without --table and --made-up"
        )
    return strategy


def _seeds(text: str | None, table: table_lib.Table) -> tuple[int, ...]:
    """Training seeds from their text."""
    num_seeds = table.rewards.shape[1]
    if text is None:
        return tuple(range(num_seeds))
    seeds = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(seeds) != len(text.split(",")) or not set(seeds) <= set(range(num_seeds)):
        raise errors.UserError(f"--training-seeds: must be numbers from 0 to {num_seeds - 1}, got {text!r}")
    num_common = int(table.num_trainings.min())
    if min(seeds) >= num_common:
        raise errors.UserError(
            f"--training-seeds: every cell was trained with seeds 0 to {num_common - 1} only, of which one is needed, "
            f"got {text!r}"
        )
    return tuple(dict.fromkeys(seeds))
