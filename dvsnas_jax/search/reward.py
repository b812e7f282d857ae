"""From integer counts to the reward of a candidate, part by part (DESIGN: geometric mean, factors)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cost as cost_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.train import features

PARTS = ("miou", "fwiou", "class_accuracy")
"""Whose geometric mean is the reward; the accuracy is the mean over classes, as in the sibling code."""


def compute(
    counts: types.Array,
    flicker: types.Array,
    is_finite: types.Array,
    *,
    stability: float,
    macs: Sequence[int] | None = None,
    cost: float = 0.0,
    cost_target: float = 1.0,
) -> list[dict[str, Any]]:
    """Rewards of N candidates.

    Args:
      counts: i32 [N, K, K], confusion counts, rows = truth.
      flicker: i32 [N, 2], changed and all pixels whose truth did not change.
      is_finite: bool [N], whether the candidate's logits were finite.
      stability: exponent of the factor (1 - flicker); 0 = off.
      macs: N multiply-adds of the cell per frame; None: not known, no factor.
      cost: exponent of `cost_factor`; 0 = off.
      cost_target: of `cost_factor`, in millions.

    Returns:
      N records: reward and its parts, status `ok`; or reward None and status `diverged`, or `unlabelled` where no pixel
      was scored.
    """
    known_macs = [None] * len(counts) if macs is None else macs
    records: list[dict[str, Any]] = []
    rows = zip(*map(np.asarray, (counts, flicker, is_finite)), known_macs, strict=True)
    for count, (changed, total), finite, num_macs in rows:
        if not finite:
            records.append({"reward": None, "status": "diverged"})
            continue
        if not count.any():
            records.append({"reward": None, "status": "unlabelled"})
            continue
        scores = metrics.scores(count)
        parts = {name: float(scores[name]) for name in (*PARTS, "accuracy")}
        parts["flicker"] = float(changed / max(total, 1))
        reward = float(np.prod([parts[name] for name in PARTS]) ** (1 / len(PARTS)))
        reward *= (1.0 - parts["flicker"]) ** stability
        if num_macs is not None:
            parts["macs"] = num_macs
            reward *= cost_factor(num_macs, cost, cost_target)
        records.append({"reward": reward, **parts, "status": "ok"})
    return records


def cost_factor(macs: float, cost: float, cost_target: float) -> float:
    """(target / MACs)^cost where the MACs exceed the target, else 1.

    The hard constraint of MnasNet (Tan et al. 2019, arXiv 1807.11626, equation 2 with alpha = 0, beta = -cost), with
    multiply-adds instead of the latency on a phone: a cell below the target gains nothing by being cheaper still.

    Args:
      macs: multiply-adds of the cell per frame.
      cost: exponent; 0 = off.
      cost_target: in millions of multiply-adds.
    """
    return min(1.0, cost_target * 1e6 / max(macs, 1)) ** cost


def factors(
    config: ml_collections.ConfigDict, space: genotype_lib.Space, genotypes: np.ndarray, grid: tuple[int, int]
) -> dict[str, Any]:
    """The keywords of `compute` for the cells of some genotypes, i32 [N, L, 5], on a feature grid (height, width)."""
    section, settings = config.search, features.settings_of(config)
    macs = [
        cost_lib.of(space, genotype, settings, grid).macs + encoder_macs(config, space, genotype)
        for genotype in genotypes
    ]
    return {
        "stability": section.stability,
        "cost": section.cost,
        "cost_target": section.cost_target,
        "macs": macs,
    }


def encoder_macs(config: ml_collections.ConfigDict, space: genotype_lib.Space, genotype: np.ndarray) -> int:
    """Multiply-adds of the encoder stages that a cell makes necessary: in propagate mode, as far as it reads."""
    settings = features.settings_of(config)
    if not settings.is_propagating:
        return 0
    last = settings_lib.depth(cell_lib.used_inputs(space, genotype), settings)
    net = static_net.make(config.net, settings.num_classes)
    return static_net.num_macs(net, (config.data.height, config.data.width), last)
