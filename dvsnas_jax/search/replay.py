"""`dvsnas compare-strategies --table`: strategies on equal budgets against a table, in seconds."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.search import evidence, evidence_report, outcome
from dvsnas_jax.search import table as table_lib

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
) -> outcome.Report:
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
    settings = evidence.Settings(
        budget=evidence.budget_of(budget, table.num_cells),
        num_runs=num_runs,
        per_step=per_step,
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
        "per_step": per_step,
        "num_cells": table.num_cells,
        "training_seeds": list(settings.training_seeds),
        "is_cached": is_cached,
        "table": {key: table.head[key] for key in ("command", "config_hash")},
        "results": results,
        "verdict": evidence.verdict(results),
    }
    return evidence_report.write_replays(content, output)


def _check(table: table_lib.Table, names: Sequence[str], settings: evidence.Settings) -> None:
    """Refuses words that make no sense."""
    if settings.per_step < 1:
        raise errors.UserError(f"--per-step: must be at least 1, got {settings.per_step}")
    if settings.budget > table.num_cells:
        raise errors.UserError(f"--budget: {settings.budget} evaluations are more than the {table.num_cells} cells")
    if not names or len(set(names)) < len(names):
        raise errors.UserError(f"--strategies: needs distinct names separated by commas, got {','.join(names)!r}")


def _make(
    table: table_lib.Table, names: Sequence[str], config_path: str | None, overrides: Mapping[str, str]
) -> dict[str, strategies.Strategy]:
    """The strategies, all of them before the first runs: a wrong name is told at once."""
    made = {}
    for name in names:
        tuned = {} if config_path else TUNED.get(name, {})
        config = config_lib.load(config_path, {**tuned, **overrides})
        made[name] = strategies.make(name, table.space, config.controller)
        if made[name].relaxation is not None:
            raise errors.UserError(
                f"--strategies: {name} learns from gradients, a table has rewards only; leave out --table to compare "
                "it in real searches"
            )
    return made


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
