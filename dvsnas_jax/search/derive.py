"""From the log of a search to one trained cell: re-score, retrain the best, choose, write."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.controller.strategies import predictor
from dvsnas_jax.space import canonical, cell, encoding
from dvsnas_jax.space import genotype as genotype_lib

RANKS = ("reward", "posterior")
"""What the log is sorted by: a single noisy reward, or the predictor's mean after all rewards."""


def candidates(
    space: genotype_lib.Space,
    records: Sequence[dict[str, Any]],
    probable: np.ndarray,
    *,
    num_rewarded: int,
    rank: str = "reward",
    is_propagating: bool = False,
) -> np.ndarray:
    """The most rewarded distinct genotypes of the log, then the policy's most probable ones, i32 [N, L, 5], distinct.

    A cell that sees nothing (propagate: nothing of the frame itself) is the baseline that every cell starts from, or
    little more: it takes no place where there is any other.

    `records`: log lines in order, of which `num_rewarded` are taken by `rank`, one of `RANKS`; `probable`: i32 [n, L,
    5].
    """
    # A cell that was answered from the log stands there already, written otherwise.
    scored = [record for record in records if record.get("reward") is not None and "same_as" not in record]
    values = [record["reward"] for record in scored]
    if rank == "posterior" and scored:
        genotypes = np.asarray([record["genotype"] for record in scored], np.int32)
        values = [record.get("expected", record["reward"]) for record in scored]
        values = predictor.smooth(encoding.Encoder(space), genotypes, values).tolist()
    order = sorted(range(len(scored)), key=lambda i: (-values[i], scored[i]["step"], scored[i]["index"]))
    seeing = [i for i in order if _sees(space, scored[i]["genotype"], is_propagating)]
    if seeing:
        order = seeing
        probable = probable[[_sees(space, genotype, is_propagating) for genotype in probable]]
    chosen: dict[str, np.ndarray] = {}
    for record in map(scored.__getitem__, order):
        if len(chosen) >= num_rewarded:
            break
        chosen.setdefault(record["hash"], np.asarray(record["genotype"], np.int32))
    for genotype in probable:
        chosen.setdefault(genotype_lib.digest(space, genotype), np.asarray(genotype, np.int32))
    return np.stack([genotype_lib.validate(space, genotype) for genotype in chosen.values()])


def _sees(space: genotype_lib.Space, genotype: Any, is_propagating: bool) -> bool:
    """Whether the output of a genotype depends on any input, on one of the frame itself where the end sees none.

    With weights that many cells share, cells that see nothing have the highest rewards for long: the held key frame is
    right from the start.
    """
    used = cell.used_inputs(*canonical.simplified(space, genotype)[:2])
    return any(not (is_propagating and name.startswith("prev_")) for name in used)


def choose(
    genotypes: np.ndarray,
    rescored: Sequence[dict[str, Any]],
    *,
    num_retrain: int,
    retrain: Callable[[np.ndarray], tuple[Any, dict[str, Any]]],
    name: Callable[[np.ndarray], Hashable],
) -> tuple[np.ndarray, Any, dict[str, Any]]:
    """Retrains the best `num_retrain` of genotypes i32 [N, L, 5] from scratch, and takes the best of them.

    `rescored`: a record each, rewards on the whole meta-validation split, taken anew: see `pipeline.score`. Genotypes
    of one `name` are the same cell when they are trained: the best of them counts.

    Returns:
      Genotype, parameters and record of the winner; the record keeps the shared reward beside its own.
    """
    order = sorted(range(len(genotypes)), key=lambda i: (-(rescored[i]["reward"] or 0.0), i))
    distinct: dict[Hashable, int] = {}
    for index in order:
        distinct.setdefault(name(genotypes[index]), index)
    trained = []
    for index in list(distinct.values())[:num_retrain]:
        params, record = retrain(genotypes[index])
        trained.append((record["reward"] or 0.0, index, params, {**record, "shared_reward": rescored[index]["reward"]}))
    _, index, params, record = max(trained, key=lambda row: (row[0], -row[1]))
    return genotypes[index], params, record
