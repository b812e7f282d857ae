"""The rewards of candidates, part by part: what `clip_scores` makes of their counts, and the factor of the price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cost as cost_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.train import clip_scores, features


def compute(
    found: clip_scores.ClipScores, rule: clip_scores.Rule, macs: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Rewards of N candidates.

    Args:
      found: what they counted.
      rule: how that is weighed.
      macs: N multiply-adds of the cell per frame; None: not known, no factor.

    Returns:
      N records: reward and its parts, status `ok`; or reward None and status `diverged`, or `unlabelled` where no pixel
      was scored.
    """
    known_macs = [None] * len(found.counts) if macs is None else macs
    records: list[dict[str, Any]] = []
    rows = zip(*map(np.asarray, (found.counts, found.is_finite)), known_macs, strict=True)
    for index, (count, finite, num_macs) in enumerate(rows):
        if not finite or not count.any():
            records.append({"reward": None, "status": "unlabelled" if finite else "diverged"})
            continue
        parts = clip_scores.shares(found, index)
        reward = clip_scores.reward(parts, rule)
        if rule.base is not None:
            parts["gain"] = clip_scores.gain(parts, rule.base)
        if num_macs is not None:
            parts["macs"] = num_macs
            reward *= cost_factor(num_macs, rule)
        records.append({"reward": reward, **parts, "status": "ok"})
    return records


def cost_factor(macs: float, rule: clip_scores.Rule) -> float:
    """(target / MACs)^cost where the MACs exceed the target, else 1.

    The hard constraint of MnasNet (Tan et al. 2019, arXiv 1807.11626, equation 2 with alpha = 0, beta = -cost), with
    multiply-adds instead of the latency on a phone: a cell below the target gains nothing by being cheaper still.
    """
    return min(1.0, rule.cost_target * 1e6 / max(macs, 1)) ** rule.cost


def cell_macs(
    config: ml_collections.ConfigDict, space: genotype_lib.Space, genotypes: np.ndarray, grid: tuple[int, int]
) -> list[int]:
    """Multiply-adds a frame of the cells of some genotypes, i32 [N, L, 5], on a feature grid (height, width)."""
    settings = features.settings_of(config)
    return [
        cost_lib.of(space, genotype, settings, grid).macs + encoder_macs(config, space, genotype)
        for genotype in genotypes
    ]


def encoder_macs(config: ml_collections.ConfigDict, space: genotype_lib.Space, genotype: np.ndarray) -> int:
    """Multiply-adds of the encoder stages that a cell makes necessary: in propagate mode, as far as it reads."""
    settings = features.settings_of(config)
    if not settings.is_propagating:
        return 0
    last = settings_lib.depth(cell_lib.used_inputs(space, genotype), settings)
    net = static_net.make(config.net, settings.num_classes)
    return static_net.num_macs(net, (config.data.height, config.data.width), last)
