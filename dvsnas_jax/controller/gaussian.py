"""Gaussian process regression on squared distances, its scales found by marginal likelihood on a small grid.

Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", chapters 2 and 5. A reward is
m + f(cell) + noise: f is smooth in the distance of cells, but for a share of its variance that every cell has to
itself; noise is what another training of the same cell changes. Mean and variance are those of greatest likelihood.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import linalg

LENGTHS = (0.2, 0.4, 0.8, 1.6)
"""Squared length scales, where the mean squared distance of two cells is 1."""
OWN_SHARES = (0.03, 0.1, 0.3)
"""Share of the variance that a cell has to itself: never 0, for the rest would then be certain of what it never saw."""
NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Variance of the noise by that of f."""


class Scales(NamedTuple):
    """What is found on the grid: squared length scale, share of the variance of f that a cell has to itself, and
    variance of the noise by that of f.
    """

    length: float
    own_share: float
    noise: float


class Posterior(NamedTuple):
    """What the rewards say of P cells."""

    mean: np.ndarray  # f64 [P], of m + f, in rewards
    variance: np.ndarray  # f64 [P], of f
    noise: float  # variance of a training's noise
    amplitude: float  # variance of f before any reward
    explained: np.ndarray  # f64 [N, P], whose columns' products are the correlations that the rewards explain

    def covariance(self, correlation: np.ndarray, index: int) -> np.ndarray:
        """Covariance of f at all cells and at one of them, f64 [P]; `correlation` is the kernel's, f64 [P]."""
        return self.amplitude * (correlation - self.explained[:, index] @ self.explained)


def kernel(distances: np.ndarray, same: np.ndarray, scales: Scales) -> np.ndarray:
    """The correlation of f, f64 [N, M], from squared distances f64 [N, M] and whether two cells are the same, bool [N,
    M].
    """
    smooth = np.exp(-distances / (2 * scales.length))
    return (1 - scales.own_share) * smooth + scales.own_share * same


def find_scales(distances: np.ndarray, same: np.ndarray, rewards: np.ndarray) -> Scales:
    """The scales of the greatest marginal likelihood on the grid, for rewards f64 [N].

    `distances`: squared, f64 [N, N]; `same`: bool [N, N].
    """
    values, ones, num = _standard(rewards)[0], np.ones(len(rewards)), len(rewards)
    best = -math.inf, Scales(LENGTHS[-1], OWN_SHARES[0], NOISES[-1])
    for length, own_share in itertools.product(LENGTHS, OWN_SHARES):
        # One decomposition serves every noise.
        weights, vectors = linalg.eigh(kernel(distances, same, Scales(length, own_share, 0.0)))
        value, one = vectors.T @ values, vectors.T @ ones
        for noise in NOISES:
            variances = np.maximum(weights, 0.0) + noise
            mean = (one * value / variances).sum() / (one * one / variances).sum()
            variance = ((value - mean * one) ** 2 / variances).mean()
            likelihood = -0.5 * (num * math.log(max(variance, 1e-12)) + np.log(variances).sum())
            if likelihood > best[0]:
                best = likelihood, Scales(length, own_share, noise)
    return best[1]


def predict(
    scales: Scales, rewards: np.ndarray, *, known: tuple[np.ndarray, np.ndarray], cross: tuple[np.ndarray, np.ndarray]
) -> Posterior:
    """The posterior of P cells after rewards f64 [N].

    `known`: squared distances and equality of the cells with rewards, [N, N] each; `cross`: the same from the P cells
    to them, [P, N] each.
    """
    values, centre, spread = _standard(rewards)
    ones = np.ones(len(values))
    factor = linalg.cho_factor(kernel(*known, scales) + scales.noise * np.eye(len(values)), lower=True)
    solved_values, solved_ones = linalg.cho_solve(factor, np.stack([values, ones], axis=1)).T
    mean = (ones @ solved_values) / (ones @ solved_ones)
    variance = max(float((values - mean) @ (solved_values - mean * solved_ones)) / len(values), 1e-12)
    across = kernel(*cross, scales)
    explained = linalg.solve_triangular(factor[0], across.T, lower=True)
    amplitude = spread**2 * variance
    return Posterior(
        mean=centre + spread * (mean + across @ (solved_values - mean * solved_ones)),
        variance=amplitude * np.maximum(1.0 - (explained**2).sum(axis=0), 0.0),
        noise=amplitude * scales.noise,
        amplitude=amplitude,
        explained=explained,
    )


def _standard(rewards: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Rewards of mean 0 and variance 1, and their mean and deviation."""
    values = np.asarray(rewards, np.float64)
    centre, spread = float(values.mean()), float(values.std())
    spread = spread if spread > 0 else 1.0
    return (values - centre) / spread, centre, spread
