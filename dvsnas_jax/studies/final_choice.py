"""How a search ends with one cell, for every strategy alike.

A reward is a single noisy training, so that the cell of the highest one is partly the luckiest one. The predictor's
posterior mean after all rewards costs nothing. Or the last part of the same budget trains the most promising cells
again, which also tells noise from what is a cell's own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dvsnas_jax.controller import predictor
from dvsnas_jax.space import encoding
from dvsnas_jax.studies import table as table_lib

CHOICES = ("reward", "posterior", "repeats")
"""The highest reward; the highest posterior mean of the predictor; that after the last `REPEATED` of the evaluations
were spent on repeats in place of what the strategy drew."""
REPEATED = 0.2
"""Share of the budget; found on made-up tables whose noise is four times the spread of the best twentieth."""
GROUP = 3
"""Repeats between two fits of the predictor."""
Found = tuple[np.ndarray, np.ndarray]
"""Rows i32 [E] of a table and their rewards f64 [E], in the order of the evaluations."""


def by_reward(rewards: np.ndarray) -> int:
    """Which of the rewards f64 [E] is the highest, the first of equals; -1 where all are nan."""
    return int(np.nanargmax(rewards)) if np.isfinite(rewards).any() else -1


def by_posterior(encoder: encoding.Encoder, cells: np.ndarray, rewards: np.ndarray) -> int:
    """Which of the evaluated cells i32 [E, L, 5] has the highest posterior mean; -1 where all rewards are nan."""
    seen = np.flatnonzero(np.isfinite(rewards))
    return int(seen[np.argmax(predictor.smooth(encoder, cells[seen], rewards[seen]))]) if seen.size else -1


def repeat(
    encoder: encoding.Encoder, table: table_lib.Table, found: Found, num: int, draw_fn: Callable[[int], float]
) -> Found:
    """Trains the cells of the highest posterior mean and one deviation again, `num` times.

    `draw_fn` gives the reward of another training of a row. The repeats are behind what was found, [E + num] each;
    where there is no reward, nothing is repeated.
    """
    rows, rewards = found
    for start in range(0, num, GROUP):
        seen = np.isfinite(rewards)
        if not seen.any():
            break
        distinct = np.unique(rows[seen])
        posterior = predictor.predict(encoder, None, (table.cells[rows[seen]], rewards[seen]), table.cells[distinct])
        promise = posterior.mean + np.sqrt(posterior.variance)
        best = distinct[np.argsort(-promise, kind="stable")[: min(GROUP, num - start)]]
        rows = np.concatenate([rows, best]).astype(np.int32)
        rewards = np.concatenate([rewards, [draw_fn(int(row)) for row in best]])
    return rows, rewards
