"""`dvsnas compare-strategies --table`: strategies on equal budgets against a table, in seconds."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from dvsnas_jax.controller import strategies
from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.studies import evidence, evidence_report, made_up, study_report
from dvsnas_jax.studies import table as table_lib
from dvsnas_jax.train import features

TUNED: dict[str, dict[str, str]] = {
    "ppo": {
        "controller.learning_rate": "0.02",
        "controller.buffer": "6",
        "controller.minibatch": "6",
        "controller.epochs": "4",
        "controller.normalize_advantage": "true",
    },
    "reinforce": {"controller.learning_rate": "0.02", "controller.normalize_advantage": "true"},
    "evolution": {"controller.population": "10", "controller.tournament": "5"},
}
"""What a search of some tens of evaluations needs in place of the defaults, which are for hundreds and more. Found on
made-up tables (`table.made_up`), not on the packaged one."""


def run(
    table: table_lib.Table,
    names: Sequence[str],
    *,
    config_path: str | None = None,
    overrides: Mapping[str, str] | None = None,
    budget: float = 0.05,
    num_runs: int = 200,
    per_step: int = 3,
    training_seeds: str | None = None,
    is_cached: bool = False,
    output: pathlib.Path | None = None,
) -> study_report.Report:
    """Compares strategies on a table.

    Args:
      table: of rewards.
      names: of the strategies.
      config_path: whose section `controller` to take; None: the defaults, changed by `TUNED`.
      overrides: of the config, as text.
      budget: evaluations of a run; below 1: a share of the cells.
      num_runs: of each strategy.
      per_step: genotypes between two updates.
      training_seeds: of the table's trainings, separated by commas; None: all.
      is_cached: a repeated cell costs nothing.
      output: folder of the report; None: no files.

    Raises:
      UserError: an unknown strategy, or a number that makes no sense.
    """
    num_evaluations = evidence.budget_of(budget, table.num_cells)
    settings = evidence.Settings(
        budget=num_evaluations,
        num_runs=num_runs,
        per_step=min(per_step, num_evaluations),
        training_seeds=_seeds(training_seeds, table),
        is_cached=is_cached,
    )
    _check(table, names, settings)
    results = {}
    for name, strategy in _make(table, names, config_path, overrides or {}).items():
        results[name] = evidence.summarize(table, evidence.replay(table, strategy, settings), settings)
    content = {
        "budget": settings.budget,
        "num_runs": num_runs,
        "per_step": settings.per_step,
        "num_cells": table.num_cells,
        "training_seeds": list(settings.training_seeds),
        "is_cached": is_cached,
        "table": {key: table.head[key] for key in ("command", "config_hash")},
        "results": results,
        "verdict": evidence.verdict(results),
    }
    return evidence_report.write_replays(content, output)


def run_made_up(
    names: Sequence[str],
    *,
    config_path: str | None = None,
    overrides: Mapping[str, str] | None = None,
    budget: int | None = None,
    num_runs: int = 24,
    per_step: int | None = None,
    tau: float = 0.4,
    is_cached: bool = False,
    output: pathlib.Path | None = None,
) -> study_report.Report:
    """Compares strategies on made-up rewards in the space of a config, each run in a world of its own.

    Args:
      names: of the strategies.
      config_path: whose space and section `controller` to take; None: the defaults.
      overrides: of the config, as text.
      budget: evaluations of a run; None: those of the config's search.
      num_runs: of each strategy; all are run in the same worlds.
      per_step: genotypes between two updates; None: those of the config's search.
      tau: Kendall's rank correlation of a reward with the quality, from which its noise follows.
      is_cached: a repeated cell costs nothing and has the reward that it had.
      output: folder of the report; None: no files.

    Raises:
      UserError: an unknown strategy, or a number that makes no sense.
    """
    config = config_lib.load(config_path, overrides or {})
    per_step = config.search.genotypes_per_step if per_step is None else per_step
    budget = config.search.steps * config.search.genotypes_per_step if budget is None else budget
    strategies.check_names(names)
    _check_made_up({"--per-step": per_step, "--budget": budget, "--seeds": num_runs}, tau)
    per_step = int(min(per_step, budget))
    space = features.space_of(config)
    made = {name: _refuse_gradients(name, strategies.make(name, space, config.controller)) for name in names}
    worlds = [
        made_up.World(space, seed, noise=made_up.noise_of(tau), op_mask=made[names[0]].op_mask)
        for seed in range(num_runs)
    ]
    results = {}
    for name, strategy in made.items():
        runs = [
            evidence.replay(world, strategy, evidence.Settings(int(budget), 1, per_step, (0,), is_cached, seed))
            for seed, world in enumerate(worlds)
        ]
        results[name] = evidence.summarize_worlds(worlds, runs)
    content = {
        "budget": int(budget),
        "num_runs": num_runs,
        "per_step": per_step,
        "tau": tau,
        "is_cached": is_cached,
        "controller": config_lib.to_json_dict(config.controller),
        "results": results,
    }
    return evidence_report.write_worlds(content, output)


def _check_made_up(numbers: Mapping[str, float], tau: float) -> None:
    """Refuses numbers that make no sense; `numbers` by their flags."""
    for flag, value in numbers.items():
        if not (value >= 1 and value % 1 == 0):
            raise errors.UserError(f"{flag}: must be a whole number of at least 1 on made-up rewards, got {value:g}")
    if not 0 < tau <= 1:
        raise errors.UserError(f"--tau: must be above 0 and at most 1, got {tau:g}")


def _check(table: table_lib.Table, names: Sequence[str], settings: evidence.Settings) -> None:
    """Refuses words that make no sense."""
    if settings.budget > table.num_cells:
        raise errors.UserError(
            f"--budget: must be at most the number of cells ({table.num_cells}), got {settings.budget}"
        )
    if settings.per_step < 1:
        raise errors.UserError(f"--per-step: must be at least 1, got {settings.per_step}")
    strategies.check_names(names)


def _make(
    table: table_lib.Table, names: Sequence[str], config_path: str | None, overrides: Mapping[str, str]
) -> dict[str, strategy_lib.Strategy]:
    """The strategies, all of them before the first runs: a wrong name is told at once."""
    made = {}
    for name in names:
        tuned = {} if config_path else TUNED.get(name, {})
        config = config_lib.load(config_path, {**tuned, **overrides})
        made[name] = _refuse_gradients(name, strategies.make(name, table.space, config.controller))
    return made


def _refuse_gradients(name: str, strategy: strategy_lib.Strategy) -> strategy_lib.Strategy:
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
