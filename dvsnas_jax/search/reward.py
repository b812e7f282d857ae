"""From integer counts to the reward of a candidate, part by part (DESIGN: geometric mean, factors)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.run import metrics

PARTS = ("miou", "fwiou", "class_accuracy")
"""Whose geometric mean is the reward; the accuracy is the mean over classes, as in the sibling code."""


def compute(
    counts: types.Array, flicker: types.Array, is_finite: types.Array, *, stability: float
) -> list[dict[str, Any]]:
    """Rewards of N candidates.

    Args:
      counts: i32 [N, K, K], confusion counts, rows = truth.
      flicker: i32 [N, 2], changed and all pixels whose truth did not change.
      is_finite: bool [N], whether the candidate's logits were finite.
      stability: exponent of the factor (1 - flicker); 0 = off.

    Returns:
      N records: reward and its parts, status `ok`; or reward None and status `diverged`.
    """
    records: list[dict[str, Any]] = []
    for count, (changed, total), finite in zip(*map(np.asarray, (counts, flicker, is_finite)), strict=True):
        if not finite:
            records.append({"reward": None, "status": "diverged"})
            continue
        scores = metrics.scores(count)
        parts = {name: float(scores[name]) for name in (*PARTS, "accuracy")}
        parts["flicker"] = float(changed / max(total, 1))
        reward = float(np.prod([parts[name] for name in PARTS]) ** (1 / len(PARTS)))
        reward *= (1.0 - parts["flicker"]) ** stability
        records.append({"reward": reward, **parts, "status": "ok"})
    return records
