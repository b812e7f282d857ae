"""From integer counts to the reward of a candidate, part by part (DESIGN: geometric mean, factors)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cost as cost_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.train import clip_scores, features


class Rule(NamedTuple):
    """What a reward is made of besides the accuracy.

    Attributes:
      stability: exponent of the factor (1 - flicker); 0 = off.
      cost: exponent of `cost_factor`; 0 = off.
      cost_target: of `cost_factor`, in millions of multiply-adds.
    """

    stability: float
    cost: float = 0.0
    cost_target: float = 1.0


def rule(section: ml_collections.ConfigDict) -> Rule:
    """That of a section `search`."""
    return Rule(section.stability, section.cost, section.cost_target)


def compute(
    counts: types.Array, flicker: types.Array, is_finite: types.Array, rule: Rule, macs: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Rewards of N candidates.

    Args:
      counts: i32 [N, K, K], confusion counts, rows = truth.
      flicker: i32 [N, 2], changed and all pixels whose truth did not change.
      is_finite: bool [N], whether the candidate's logits were finite.
      rule: how they are weighed.
      macs: N multiply-adds of the cell per frame; None: not known, no factor.

    Returns:
      N records: reward and its parts, status `ok`; or reward None and status `diverged`, or `unlabelled` where no pixel
      was scored.
    """
    known_macs = [None] * len(counts) if macs is None else macs
    records: list[dict[str, Any]] = []
    rows = zip(*map(np.asarray, (counts, flicker, is_finite)), known_macs, strict=True)
    for count, pair, finite, num_macs in rows:
        if not finite or not count.any():
            records.append({"reward": None, "status": "unlabelled" if finite else "diverged"})
            continue
        parts = clip_scores.shares(count, pair)
        reward = clip_scores.accuracy(parts)
        reward *= (1.0 - parts["flicker"]) ** rule.stability
        if num_macs is not None:
            parts["macs"] = num_macs
            reward *= cost_factor(num_macs, rule)
        records.append({"reward": reward, **parts, "status": "ok"})
    return records


def cost_factor(macs: float, rule: Rule) -> float:
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
