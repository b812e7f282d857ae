"""A found cell without what it does not need: what changes no output, and what is worth nothing within its noise.

The first is exact and needs no clips: the canonical form (`space.canonical`), and layers that no head of the end reads.
The second is measured on held-out clips, with the weights as they are: from the cheapest cell on, whatever loses no
more than its noise against the whole cell, in reward, mIoU and flicker, takes its place, until nothing does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.search import reward, worth
from dvsnas_jax.space import canonical, cell_end, cost, operations
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import clip_scores, feature_store, features

OFF, DEAD, NOISE = "off", "dead", "noise"
LEVELS = (OFF, DEAD, NOISE)
"""What `config.derive.simplify` may be: nothing is removed; what changes no output, before the cell is retrained;
besides, after that, what is worth nothing within its noise on the meta-validation clips."""
ROUNDING = 1e-3
"""The largest difference of logits that removing what is dead may make: sums in another order."""


class Simplified(NamedTuple):
    """A simplified cell, and what was measured, as JSON.

    Attributes:
      trained: the cell; its weights are those of the cell that it was made of.
      record: `before` and `after`, of each its `genotype` by name, `parameters` and `macs`; `dead`: the largest
        difference of `logits` that removing what is dead makes, and in how many of `total` pixels the `labels` differ;
        `noise`: None, or what `worth.compare` gives of the simplified cell against the one without dead parts.
    """

    trained: worth.Trained
    record: dict[str, Any]


def genotype_of(
    config: ml_collections.ConfigDict, space: genotype_lib.Space, genotype: np.ndarray
) -> tuple[genotype_lib.Space, np.ndarray]:
    """The genotype to train, with its space: without what is dead, unless `derive.simplify` is off."""
    if config.derive.simplify == OFF:
        return space, genotype
    return canonical.simplified(space, genotype)[:2]


def without_dead(trained: worth.Trained) -> worth.Trained:
    """A trained cell without what no output depends on, whatever the clips are."""
    space, rows, params = trained
    if cell_end.is_idle(params["ports"]):  # its heads read nothing: the baseline is all that it is
        rows = np.tile(_row(space, "none", 0), (space.num_layers, 1))
    return _carried(space, rows, params)


def _row(space: genotype_lib.Space, operation: str, node: int) -> np.ndarray:
    token = space.operations.index(operation)
    return np.array([node, node, token, token, space.aggregations.index(worth.PASSING)], np.int32)


def _carried(space: genotype_lib.Space, rows: np.ndarray, params: types.Params) -> worth.Trained:
    """The simplified genotype with weights of the cell that `rows` are a variant of."""
    small, tokens, layers = canonical.simplified(space, rows)
    return worth.Trained(small, tokens, cell_lib.carry_params(small, tokens, layers, params))


def run(
    config: ml_collections.ConfigDict,
    trained: worth.Trained,
    store: feature_store.AnyStore,
    *,
    is_measured: bool,
    baseline: clip_scores.Baseline | None = None,
) -> Simplified:
    """Simplifies a trained cell; `store` has features and labels of held-out clips.

    `is_measured`: what is worth nothing within its noise goes, too; `baseline`: see `worth.Bench`.

    Raises:
      UserError: that is asked for, and there are not two clips to tell noise from.
    """
    if is_measured and store.num_clips < 2:
        raise errors.UserError(
            f"simplify: {store.num_clips} held-out clips say nothing of noise; raise search.meta_val_fraction"
        )
    exact = without_dead(trained)
    gap = worth.difference(config, trained, exact, store)
    if not gap.logits <= ROUNDING * max(1.0, gap.scale):
        raise RuntimeError(f"what was dead changes logits by {gap.logits}: a record of space.operations claims wrong")
    found, measured = _within_noise(config, exact, store, baseline) if is_measured else (exact, None)
    grid = store.grid
    record = {
        "before": _about(config, trained, grid),
        "after": _about(config, found, grid),
        "dead": {"logits": gap.logits, "labels": gap.labels, "total": gap.total},
        "noise": measured,
        "num_clips": store.num_clips,
    }
    return Simplified(found, record)


def _about(config: ml_collections.ConfigDict, trained: worth.Trained, grid: tuple[int, int]) -> dict[str, Any]:
    price = cost.of(trained.space, trained.genotype, features.settings_of(config), grid)
    named = genotype_lib.to_dict(trained.space, trained.genotype)
    return {"genotype": named, "parameters": int(price.params), "macs": int(price.macs)}


def _within_noise(
    config: ml_collections.ConfigDict,
    trained: worth.Trained,
    store: feature_store.AnyStore,
    baseline: clip_scores.Baseline | None,
) -> tuple[worth.Trained, dict[str, Any] | None]:
    """The cheapest cell that loses no more than its noise, step by step, and what it loses; None: it stays as it is."""
    bench = worth.Bench(config, trained, store, baseline)
    whole, tokens, measured = bench.count(bench.genotype), bench.genotype, None

    def price(rows: np.ndarray) -> tuple[int, int]:
        small, fewer, _ = canonical.simplified(bench.space, rows)
        num_macs = reward.cell_macs(config, small, fewer[None], store.grid)[0]
        return num_macs, int(cost.of(small, fewer, bench.settings, store.grid).params)

    tried: set[bytes] = set()
    is_going_on = True
    while is_going_on:
        is_going_on, now = False, price(tokens)
        for rows in sorted(_variants(bench.space, tokens), key=price):
            if rows.tobytes() in tried or not price(rows) < now:
                continue
            tried.add(rows.tobytes())
            found = bench.compare(whole, bench.count(rows))
            if not worth.is_worth_something(found):
                tokens, measured, is_going_on = rows, found, True
                break
    if measured is None:
        return trained, None
    return _carried(bench.space, tokens, trained.params), {"whole": bench.values(whole), **measured}


def _variants(space: genotype_lib.Space, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """A genotype i32 [L, 5] without all layers, without each, and with less in each of its slots."""
    yield np.tile(_row(space, "none", 0), (len(tokens), 1))
    for layer in range(len(tokens)):
        yield from (rows for _, rows in worth.without_layer(space, tokens, layer))
        for column in (2, 3):
            if not operations.OPERATIONS[space.operations[tokens[layer, column]]].is_zero:
                for name in ("none", "skip"):
                    rows = tokens.copy()
                    rows[layer, column] = space.operations.index(name)
                    yield rows
