"""Made-up rewards: what the settings of strategies are chosen on, so that no measured reward is used up for it.

The quality of a cell is a sum of random effects of its outputs, of the aggregations of its nodes, of the nodes and of
their branches. Worlds differ, by their seed, in two ways that real ones differ in: how much a second branch adds to the
better one (from next to nothing to as much again), and how closely good cells crowd below a ceiling (not at all, or as
scores that saturate). Nothing is trained.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import special

from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib

SOFTNESSES = (0.3, 1.0, 3.0)
SATURATIONS = (0.0, 0.4, 0.8)
WORST = -3.0
"""Deviations below which no cell of a world is worse: below a ceiling one outlier would make up all of the variance."""
NUM_REFERENCES = 400
"""Uniformly drawn genotypes whose qualities have mean 0 and variance 1."""
Effect = Callable[[Hashable, float], float]
"""`(key, scale) -> value`, normal with deviation scale and the same for the same key."""


def quality(form: canonical.Form, effect: Effect, softness: float) -> float:
    """Of a cell, before it saturates; `softness` is how much a second branch adds to the better one."""
    total = effect(form.outputs, 0.5)
    for node in form.nodes:
        total += effect(node.aggregation, 0.5) + effect(node, 0.5)
        values = [
            effect(operation, 0.7) + effect(source, 0.7) + effect((operation, source), 0.7)
            for operation, source in node.branches
        ]
        total += softness * float(np.logaddexp.reduce(np.asarray(values) / softness))
    return total


def saturate(values: np.ndarray, saturation: float) -> np.ndarray:
    """Qualities of variance 1 below a ceiling, not standardised again."""
    return -np.exp(-saturation * values) if saturation else values


def noise_of(tau: float) -> float:
    """Standard deviation of a reward's noise at which Kendall's tau of reward and quality is `tau`, both normal."""
    return math.sqrt(1 / math.sin(math.pi / 2 * tau) ** 2 - 1)


class World:
    """Rewards of all cells of a space of any size; a cell gets its row when it is first met.

    The world is a function of its seed, whatever is asked first. `noise` is the standard deviation of a reward around
    the quality; qualities of cells of the operations in `op_mask` bool [num_ops] have mean 0 and variance 1.
    """

    def __init__(
        self, space: genotype_lib.Space, seed: int, *, noise: float, op_mask: np.ndarray | None = None
    ) -> None:
        rng = np.random.default_rng((seed, 10))
        self._space, self._seed, self._noise = space, seed, noise
        self._softness, self._saturation = rng.choice(SOFTNESSES), rng.choice(SATURATIONS)
        self._effects: dict[Hashable, float] = {}
        self._rows: dict[canonical.Form, int] = {}
        self._qualities: list[float] = []
        drawn = genotype_lib.random(space, rng, NUM_REFERENCES, op_mask=op_mask)
        values = np.asarray([self._raw(canonical.of(space, genotype)) for genotype in drawn])
        self._scales = [(values.mean(), values.std())]
        values = saturate(self._scaled(values), self._saturation)
        self._scales.append((values.mean(), values.std()))

    def rows(self, genotypes: np.ndarray) -> np.ndarray:
        """The rows of genotypes i32 [N, L, 5], i32 [N]; equal for equal cells."""
        found = []
        for genotype in genotypes:
            form = canonical.of(self._space, genotype)
            if form not in self._rows:
                self._rows[form] = len(self._rows)
                value = saturate(self._scaled(np.asarray(self._raw(form))), self._saturation)
                mean, deviation = self._scales[1]
                self._qualities.append(float((value - mean) / deviation))
            found.append(self._rows[form])
        return np.asarray(found, np.int32)

    def quality(self) -> np.ndarray:
        """Of all rows so far, f64 [M]."""
        return np.asarray(self._qualities)

    def draw(self, row: int, seeds: Sequence[int], share: float) -> float:
        """A reward of a cell; `share` in [0, 1) is its place in the distribution, `seeds` mean nothing here."""
        del seeds
        return self._qualities[row] + self._noise * float(special.ndtri(min(max(share, 1e-9), 1 - 1e-9)))

    def _raw(self, form: canonical.Form) -> float:
        return quality(form, self._effect, self._softness)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        mean, deviation = self._scales[0]
        return np.maximum((values - mean) / deviation, WORST)

    def _effect(self, key: Hashable, scale: float) -> float:
        """A function of the key, not of the order of the questions."""
        if key not in self._effects:
            rng = np.random.default_rng((self._seed, 11, zlib.crc32(repr(key).encode())))
            self._effects[key] = scale * rng.normal()
        return self._effects[key]
