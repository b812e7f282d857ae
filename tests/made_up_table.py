"""A table of made-up rewards: nothing was trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import made_up_rewards, table


def make(
    space: genotype_lib.Space, seed: int, *, num_seeds: int = 2, noise: float | None = None, noise_scale: float = 1.0
) -> table.Table:
    """The qualities are those of `made_up_rewards`; every training adds noise.

    Args:
      space: a small one.
      seed: the table is a function of it.
      num_seeds: trainings of each cell.
      noise: standard deviation, where that of the qualities is 1; None: that of the best twentieth of the qualities,
        as a search ends where the noise hides what is better.
      noise_scale: by which it is multiplied.
    """
    cells, index = canonical.enumerate_cells(space)
    rng = np.random.default_rng(seed)
    softness, saturation = rng.choice(made_up_rewards.SOFTNESSES), rng.choice(made_up_rewards.SATURATIONS)
    effects: dict[Any, float] = {}

    def effect(key: Any, scale: float) -> float:
        return effects.setdefault(key, scale * rng.normal())

    forms = [canonical.of(space, cell) for cell in cells]
    values = _standardize(np.asarray([made_up_rewards.quality(form, effect, softness) for form in forms]))
    if saturation:
        values = _standardize(made_up_rewards.saturate(values, saturation))
    if noise is None:
        noise = float(np.sort(values)[-max(2, len(values) // 20) :].std())
    rewards = values[:, None] + noise_scale * noise * rng.normal(size=(len(cells), num_seeds))
    head = {"command": "made up", "config_hash": "", "num_cells": len(cells), "num_seeds": num_seeds}
    num_trainings = np.full(len(cells), num_seeds, np.int32)
    return table.Table(space, cells, {name: rewards for name in table.PARTS}, num_trainings, index, head)


def _standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()
