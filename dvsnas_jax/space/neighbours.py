"""The neighbours of a genotype: every genotype that differs from it in one token."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dvsnas_jax.space import genotype as genotype_lib

FIRST: dict[str, tuple[str, ...]] = {"op": ("none", "skip"), "agg": ("sum",), "in": ()}
"""What a token of each kind is replaced by before all else."""


class Variant(NamedTuple):
    """A genotype i32 [L, 5] in which the token of a layer and field (of `genotype.FIELDS`) has another name."""

    genotype: np.ndarray
    layer: int
    field: str
    before: str
    after: str


def neighbours(space: genotype_lib.Space, genotype: np.ndarray) -> list[Variant]:
    """Every genotype that differs in one token, in rounds over the tokens, the most telling replacement first.

    Operations come first in a round, then aggregations, then inputs: a prefix of the list is a fair sample.
    """
    rows = genotype_lib.validate(space, genotype)
    order = [(layer, field) for kind in FIRST for layer in range(len(rows)) for field in genotype_lib.FIELDS
             if field.startswith(kind)]  # fmt: skip
    rounds = itertools.zip_longest(*(list(_replacements(space, rows, *place)) for place in order))
    return [variant for row in rounds for variant in row if variant is not None]


def _replacements(space: genotype_lib.Space, rows: np.ndarray, layer: int, field: str) -> Iterator[Variant]:
    """All other values of one token."""
    column = genotype_lib.FIELDS.index(field)
    kind = field.split("_")[0]
    nodes = [genotype_lib.node_name(space, node) for node in range(space.num_inputs + layer)]
    names = {"op": space.operations, "agg": space.aggregations, "in": nodes}[kind]
    first = [name for name in FIRST[kind] if name in names]
    before = names[rows[layer, column]]
    for name in [*first, *(name for name in names if name not in first)]:
        if name != before:
            tokens = rows.copy()
            tokens[layer, column] = names.index(name)
            yield Variant(tokens, layer, field, before, name)
