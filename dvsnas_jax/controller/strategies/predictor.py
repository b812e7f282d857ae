"""A predictor of rewards that proposes the genotypes it expects most of: Bayesian optimisation on a pool.

A Gaussian process over counts of what a genotype holds (`space/encoding.py`) is fitted to all rewards so far. The next
genotypes are those of the largest expected improvement over the best cell so far (Mockus 1975; for architectures:
White et al. 2019, "BANANAS", arXiv 1910.11858) out of a pool of uniform draws, children of the best cells and all
cells so far: a space is never enumerated. One is chosen after the other as if the earlier ones had earned what is
expected of them, which keeps a group apart (kriging believer, Ginsbourger et al. 2010). NumPy on the host, float64.
An answer from the log of a search is no second observation: it is known by having the very reward of an equal cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import ml_collections
import numpy as np
from flax import struct
from scipy import special

from dvsnas_jax.controller import gaussian, strategy
from dvsnas_jax.core import types
from dvsnas_jax.space import encoding
from dvsnas_jax.space import genotype as genotype_lib

NUM_PARENTS = 5
"""The cells of the highest posterior mean whose children are in the pool."""
MAX_FITTED = 256
"""Newest rewards that the scales of the process are found on; the prediction uses all."""
TINY = 1e-18
"""Of a variance: keeps what is certain away from 0 / 0."""


class History(struct.PyTreeNode):
    """A ring of the last M rewards."""

    genotypes: np.ndarray  # i32 [M, L, 5]
    reward: np.ndarray  # f32 [M]
    num_added: np.ndarray  # i32, rewards so far
    scales: np.ndarray  # f32 [3], of the process, see `gaussian.Scales`

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Genotypes and rewards that are held, oldest first."""
        capacity, num = len(self.reward), int(self.num_added)
        order = np.arange(max(0, num - capacity), num) % capacity
        return np.asarray(self.genotypes)[order], np.asarray(self.reward)[order]


class Belief(NamedTuple):
    """What the predictor expects of a pool of P distinct cells."""

    genotypes: np.ndarray  # i32 [P, L, 5]
    is_known: np.ndarray  # bool [P], has a reward
    posterior: gaussian.Posterior  # of the P cells
    covary_fn: Callable[[int], np.ndarray]  # `index -> f64 [P]`, covariances of all cells with one


class Predictor:
    """Proposals from a Gaussian process; the same calls give the same genotypes.

    Of the section `controller`, the keys `predictor_*` count.
    """

    def __init__(self, space: genotype_lib.Space, controller_config: ml_collections.ConfigDict) -> None:
        self.space, self.encoder = space, encoding.Encoder(space)
        self._num_first = controller_config.predictor_draws
        self._num_pool = controller_config.predictor_pool
        self._capacity = controller_config.predictor_memory

    def init(self, rng: jax.Array) -> History:
        """No rewards yet."""
        del rng
        return History(
            genotypes=np.zeros((self._capacity, self.space.num_layers, len(genotype_lib.FIELDS)), np.int32),
            reward=np.zeros(self._capacity, np.float32),
            num_added=np.zeros((), np.int32),
            scales=np.zeros(len(gaussian.Scales._fields), np.float32),
        )

    def sample(self, history: History, rng: jax.Array, op_mask: np.ndarray, num: int) -> types.Samples:
        """Uniform draws first, then proposals.

        `log_prob` and `entropy` are those of a uniform draw, nan where the predictor chose: the best of a pool has no
        probability in closed form.
        """
        generator = _generator(rng)
        drawn = genotype_lib.random(self.space, generator, num, op_mask=op_mask)
        log_prob = np.full(num, -self._log_size(op_mask), np.float32)
        if int(history.num_added) >= self._num_first:
            belief = self.believe(history, self._draw_pool(history, generator, op_mask))
            chosen = choose(belief, num)
            drawn[: len(chosen)] = belief.genotypes[chosen]  # the rest, of a tiny space, stays uniform
            log_prob[: len(chosen)] = np.nan
        return types.Samples(genotypes=drawn, log_prob=log_prob, entropy=-log_prob)

    def learn(
        self, history: History, samples: types.Samples, rewards: types.Array, valid: types.Array
    ) -> tuple[History, dict[str, float]]:
        """Adds the valid rows and finds the scales anew."""
        genotypes, rewards = np.asarray(samples.genotypes, np.int32), np.asarray(rewards, np.float32)
        chex.assert_shape(genotypes, (len(rewards), *history.genotypes.shape[1:]))
        chex.assert_equal_shape([rewards, valid])
        fresh = np.flatnonzero(np.asarray(valid, bool) & np.isfinite(rewards))
        where = (int(history.num_added) + np.arange(len(fresh))) % self._capacity
        held, earned = np.array(history.genotypes), np.array(history.reward)
        for place, row in zip(where, fresh, strict=True):  # in order: of more than fit, the last ones stay
            held[place], earned[place] = genotypes[row], rewards[row]
        num_added = np.asarray(int(history.num_added) + len(fresh), np.int32)
        history = history.replace(genotypes=held, reward=earned, num_added=num_added)
        metrics = {"num_updates": float(len(fresh))}
        if len(fresh) and num_added >= self._num_first:
            scales = fit(self.encoder, *history.rows())
            history = history.replace(scales=np.asarray(scales, np.float32))
            metrics |= {f"predictor_{name}": float(value) for name, value in scales._asdict().items()}
        return history, metrics

    def believe(self, history: History, pool: np.ndarray) -> Belief:
        """What is expected of the distinct cells of a pool i32 [N, L, 5], after at least one reward."""
        genotypes, rewards = history.rows()
        known, found = self.encoder.encode(genotypes), self.encoder.encode(pool)
        first: dict[Any, int] = {}
        for row, form in enumerate(found.forms):
            first.setdefault(form, row)
        rows = list(first.values())
        found, scales, with_reward = found.take(rows), _scales(history), set(known.forms)
        posterior = _predict(self.encoder, scales, (known, rewards), found)

        def covary(index: int) -> np.ndarray:
            correlation = gaussian.kernel(*_pairs(self.encoder, found, found.take([index])), scales)[:, 0]
            return posterior.covariance(correlation, index)

        return Belief(pool[rows], np.asarray([form in with_reward for form in first]), posterior, covary)

    def probable(self, history: History, rng: jax.Array, op_mask: np.ndarray, num: int) -> np.ndarray:
        """The distinct genotypes of the highest posterior mean, i32 [num, L, 5], of what has a reward and of pools."""
        generator, found = _generator(rng), {}
        for _ in range(strategy.MAX_DRAWS):
            pool = self._draw_pool(history, generator, op_mask, num)
            found.update({row.tobytes(): row for row in pool})
            if len(found) >= num:
                break
        rows = np.stack(list(found.values()))
        if not int(history.num_added):
            return rows[:num]
        scales = _scales(history) if int(history.num_added) >= self._num_first else None
        mean = predict(self.encoder, scales, history.rows(), rows).mean
        return rows[np.lexsort((np.arange(len(rows)), -mean))[:num]]

    def _draw_pool(
        self, history: History, generator: np.random.Generator, op_mask: np.ndarray, num_least: int = 0
    ) -> np.ndarray:
        """What has a reward and is allowed, children of the best of it, and uniform draws; in a fixed order."""
        size = max(self._num_pool, num_least)
        uniform = genotype_lib.random(self.space, generator, size, op_mask=op_mask)
        genotypes, rewards = history.rows()
        is_allowed = np.asarray(op_mask)[genotypes[..., 2:4]].all(axis=(1, 2)) if len(genotypes) else np.zeros(0, bool)
        known = genotypes[is_allowed]
        if not len(known):
            return uniform
        order = np.argsort(-rewards[is_allowed], kind="stable")
        parents = known[order[: 2 * NUM_PARENTS]]
        if int(history.num_added) >= self._num_first:
            mean = predict(self.encoder, _scales(history), (genotypes, rewards), parents).mean
            parents = parents[np.argsort(-mean, kind="stable")]
        parents = parents[:NUM_PARENTS]
        children = mutate(self.space, parents[generator.integers(len(parents), size=size // 2)], generator, op_mask)
        return np.concatenate([known, children, uniform])

    def _log_size(self, op_mask: np.ndarray) -> float:
        limits = self.space.limits()
        limits[:, 2:4] = int(np.sum(op_mask))
        return float(np.log(limits).sum())


def choose(belief: Belief, num: int) -> list[int]:
    """Rows of a belief, one after the other by expected improvement; fewer than num only where the pool is smaller."""
    mean, variance, noise = belief.posterior.mean, np.array(belief.posterior.variance), belief.posterior.noise
    goal = mean[belief.is_known].max() if belief.is_known.any() else mean.max()
    chosen: list[int] = []
    learnt: list[np.ndarray] = []
    for _ in range(min(num, len(mean))):
        value = expected_improvement(mean - goal, np.sqrt(np.maximum(variance, TINY)))
        value[chosen] = -1.0
        best = int(np.argmax(value))
        chosen.append(best)
        # A reward there, if it is the one expected, changes no mean, but what is uncertain.
        column = belief.covary_fn(best) - sum((column[best] * column for column in learnt), np.zeros(len(mean)))
        learnt.append(column / np.sqrt(column[best] + noise + TINY))
        variance = variance - learnt[-1] ** 2
    return chosen


def expected_improvement(gain: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E[max(0, X)] of normal X with this mean and standard deviation."""
    ratio = gain / deviation
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
    return gain * special.ndtr(ratio) + deviation * density


def mutate(
    space: genotype_lib.Space, parents: np.ndarray, generator: np.random.Generator, op_mask: np.ndarray
) -> np.ndarray:
    """Children of parents i32 [N, L, 5] that differ in one token, or in none where that token has no choice."""
    children = np.array(parents).reshape(len(parents), -1)
    limits, allowed = space.limits().ravel(), np.flatnonzero(op_mask)
    is_operation = np.tile(np.isin(np.arange(len(genotype_lib.FIELDS)), (2, 3)), space.num_layers)
    places = generator.integers(children.shape[1], size=len(children))
    steps = generator.random(len(children))
    for row, (place, step) in enumerate(zip(places, steps, strict=True)):
        options = allowed if is_operation[place] else np.arange(limits[place])
        options = options[options != children[row, place]]
        if len(options):
            children[row, place] = options[int(step * len(options))]
    return children.reshape(parents.shape)


def fit(encoder: encoding.Encoder, genotypes: np.ndarray, rewards: np.ndarray) -> gaussian.Scales:
    """The scales of the process after rewards f32 [N] of genotypes i32 [N, L, 5]."""
    known, values = _observed(encoder.encode(genotypes), rewards)
    known, values = known.take(range(len(values))[-MAX_FITTED:]), values[-MAX_FITTED:]
    return gaussian.find_scales(*_pairs(encoder, known, known), values)


def predict(
    encoder: encoding.Encoder, scales: gaussian.Scales | None, rewarded: tuple[np.ndarray, np.ndarray], pool: np.ndarray
) -> gaussian.Posterior:
    """The posterior of a pool i32 [P, L, 5] after `rewarded`, genotypes and rewards; scales None: found here."""
    genotypes, rewards = rewarded
    scales = fit(encoder, genotypes, rewards) if scales is None else scales
    return _predict(encoder, scales, (encoder.encode(genotypes), rewards), encoder.encode(pool))


def _predict(
    encoder: encoding.Encoder,
    scales: gaussian.Scales,
    rewarded: tuple[encoding.Encoded, np.ndarray],
    found: encoding.Encoded,
) -> gaussian.Posterior:
    """As `predict`, of what is encoded."""
    known, values = _observed(*rewarded)
    return gaussian.predict(
        scales,
        values,
        known=_pairs(encoder, known, known),
        cross=_pairs(encoder, found, known),
    )


def _observed(found: encoding.Encoded, rewards: np.ndarray) -> tuple[encoding.Encoded, np.ndarray]:
    """The observations among rewards f64 [N], in order: those that are no answers from a log."""
    values = np.asarray(rewards, np.float64)
    first = {pair: row for row, pair in reversed(list(enumerate(zip(found.forms, values.tolist(), strict=True))))}
    rows = sorted(first.values())
    return found.take(rows), values[rows]


def smooth(encoder: encoding.Encoder, genotypes: np.ndarray, rewards: Sequence[float] | np.ndarray) -> np.ndarray:
    """What cells i32 [N, L, 5], which may repeat, are expected to earn after all rewards f64 [N]: the posterior mean
    f64 [N].
    """
    return predict(encoder, None, (genotypes, np.asarray(rewards, np.float64)), genotypes).mean


def _pairs(encoder: encoding.Encoder, first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and equality."""
    return encoder.distances(first, second), encoding.same(first.forms, second.forms)


def _scales(history: History) -> gaussian.Scales:
    return gaussian.Scales(*np.asarray(history.scales, np.float64).tolist())


def _generator(rng: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.device_get(jax.random.key_data(rng))).ravel().tolist())


def _functions(space: genotype_lib.Space, controller_config: ml_collections.ConfigDict) -> strategy.Functions:
    model = Predictor(space, controller_config)

    def update(state: History, *scored: Any) -> tuple[History, dict[str, float]]:
        return model.learn(state, *scored[:3])  # the others are keys and mask

    return strategy.Functions(model.init, model.sample, update, model.probable)


RECORD = strategy.Record("predictor", _functions, order=5, learns_from_any=True, is_model=True)
