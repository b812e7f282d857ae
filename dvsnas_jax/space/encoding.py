"""Genotypes as counts of what their canonical form holds, and how far two of them are apart.

Three groups are counted: single names (an operation, an input, an aggregation, what the output is the mean of),
branches (an operation on a source) and branches under their aggregation. A source that is a layer goes by its
aggregation, so that layers are alike wherever they stand. This is close to the neighbourhoods of size 0 and 1 that the
Weisfeiler-Lehman kernel counts (Ru et al. 2021, "Interpretable Neural Architecture Search via Bayesian Optimisation
with Weisfeiler-Lehman Kernels", arXiv 2006.07556). Equal cells have equal counts.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib

NUM_GROUPS = 3
NUM_SCALE = 256
"""Uniformly drawn genotypes whose mean distance is 1."""
MAX_KNOWN = 20_000
"""Genotypes whose counts are remembered: a pool proposes the same ones again and again."""


class Encoded(NamedTuple):
    """Canonical forms of N genotypes, and f32 [N, F] of each group: whole numbers, columns in order of discovery."""

    forms: tuple[canonical.Form, ...]
    counts: tuple[np.ndarray, ...]

    def take(self, rows: Sequence[int]) -> Encoded:
        """Some of them."""
        return Encoded(tuple(self.forms[row] for row in rows), tuple(counts[list(rows)] for counts in self.counts))


class Encoder:
    """Counts of the genotypes of a space."""

    def __init__(self, space: genotype_lib.Space) -> None:
        self.space = space
        self._columns: tuple[dict[Hashable, int], ...] = tuple({} for _ in range(NUM_GROUPS))
        self._read = functools.lru_cache(maxsize=MAX_KNOWN)(self._count)
        drawn = self.encode(genotype_lib.random(space, np.random.default_rng(0), NUM_SCALE))
        means = [float(_squared(counts, counts).mean()) for counts in drawn.counts]
        self._scales = [mean if mean > 0 else 1.0 for mean in means]

    def encode(self, genotypes: np.ndarray) -> Encoded:
        """Counts of genotypes, i32 [N, L, 5]."""
        tokens = np.asarray(genotypes, np.int32)
        found = [self._read(row.tobytes()) for row in tokens]
        counts = []
        for group, columns in enumerate(self._columns):
            values = np.zeros((len(found), len(columns)), np.float32)
            if found:
                places = [groups[group][0] for _, groups in found]
                rows = np.repeat(np.arange(len(found)), [len(place) for place in places])
                values[rows, np.concatenate(places)] = np.concatenate([groups[group][1] for _, groups in found])
            counts.append(values)
        return Encoded(tuple(form for form, _ in found), tuple(counts))

    def distances(self, first: Encoded, second: Encoded) -> np.ndarray:
        """Squared distances f64 [N, M]: the mean over the groups, each 1 for two uniform draws on average."""
        total = np.zeros((len(first.forms), len(second.forms)))
        for one, other, scale in zip(first.counts, second.counts, self._scales, strict=True):
            total += _squared(one, other).astype(np.float64) / scale
        return total / NUM_GROUPS

    def _count(self, tokens: bytes) -> tuple[canonical.Form, tuple[tuple[np.ndarray, np.ndarray], ...]]:
        """The form, and for each group the columns that are not zero with their counts."""
        shape = self.space.num_layers, len(genotype_lib.FIELDS)
        form = canonical.of(self.space, np.frombuffer(tokens, np.int32).reshape(shape))
        groups = []
        for columns, counter in zip(self._columns, _groups(form), strict=True):
            places = [columns.setdefault(key, len(columns)) for key in counter]
            groups.append((np.asarray(places, np.int64), np.asarray(list(counter.values()), np.float32)))
        return form, tuple(groups)


def same(first: Sequence[canonical.Form], second: Sequence[canonical.Form]) -> np.ndarray:
    """Which of two lists of forms are equal, bool [N, M]."""
    numbers: dict[canonical.Form, int] = {}
    left, right = ([numbers.setdefault(form, len(numbers)) for form in forms] for forms in (first, second))
    return np.equal.outer(np.asarray(left, np.int64), np.asarray(right, np.int64))


def _groups(form: canonical.Form) -> tuple[collections.Counter[Hashable], ...]:
    """Single names, branches, branches under their aggregation."""
    labels = {f"layer{index}": f"layer {node.aggregation}" for index, node in enumerate(form.nodes)}
    names, branches, nested = (collections.Counter[Hashable]() for _ in range(NUM_GROUPS))
    for node in form.nodes:
        names["aggregation", node.aggregation] += 1
        for operation, source in node.branches:
            label = labels.get(source, source)
            names["operation", operation] += 1
            names["source", label] += 1
            branches[operation, label] += 1
            nested[node.aggregation, operation, label] += 1
    for source, count in form.outputs:
        names["output", labels.get(source, source)] += count
    return names, branches, nested


def _squared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances of rows whose last columns may be missing (zeros)."""
    width = min(first.shape[1], second.shape[1])
    inner = first[:, :width] @ second[:, :width].T
    # Of small whole numbers: exact, in whatever order the columns are.
    return (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None] - 2 * inner
