"""Regularised evolution: a population in which the oldest member dies, whatever its reward.

Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search" (arXiv 1802.01548), algorithm 1: a
parent is the best of a few members drawn with replacement, and a child differs from it in one token. What a lucky or
an outdated training earned is forgotten with the member that earned it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import strategy
from dvsnas_jax.controller.strategies import uniform
from dvsnas_jax.core import compilation, types
from dvsnas_jax.space import genotype

Metrics = dict[str, jax.Array]


class Population(struct.PyTreeNode):
    """A ring of P members; a new one takes the place of the oldest."""

    genotypes: jax.Array  # i32 [P, L, 5]
    reward: jax.Array  # f32 [P]
    num_added: jax.Array  # i32, members so far, those that died included

    def filled(self) -> jax.Array:
        """Which rows hold a member, bool [P]."""
        return jnp.arange(self.reward.shape[0]) < self.num_added


class Evolution(NamedTuple):
    """Evolution as pure functions of fixed shapes; `op_mask` is bool [num_ops], data."""

    init: Callable[[jax.Array], Population]  # `(rng) -> Population`, empty
    # `(population, rng, op_mask, num) -> types.Samples`; `num` is static. Uniform draws until the population is full,
    # then children. The `log_prob` of a child is that of its draw (parent, token, value), `entropy` that of such a
    # draw: two parents may have the same child, which is then more probable than that.
    sample: Callable[..., types.Samples]
    # `(population, samples, rewards f32 [N], valid bool [N]) -> (population, metrics)`: adds the valid rows
    learn: Callable[..., tuple[Population, Metrics]]


def make(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Evolution:
    """Evolution for a space; of the section `controller`, `population` and `tournament` count."""
    table = policy_lib.token_table(space)
    capacity, tournament = controller_config.population, controller_config.tournament

    def init(rng: jax.Array) -> Population:
        del rng
        return Population(
            genotypes=jnp.zeros((capacity, space.num_layers, len(genotype.FIELDS)), jnp.int32),
            reward=jnp.zeros(capacity),
            num_added=jnp.zeros((), jnp.int32),
        )

    def sample(population: Population, rng: jax.Array, op_mask: types.Array, num: int) -> types.Samples:
        uniform_rng, child_rng = jax.random.split(rng)
        drawn = uniform.draw(table, uniform_rng, op_mask, num)
        children = _children(table, population, child_rng, op_mask, drawn, parent_weights(population, tournament))
        is_first = (population.num_added + jnp.arange(num) < capacity) | (population.num_added == 0)

        def choose(first: jax.Array, child: jax.Array) -> jax.Array:
            return jnp.where(jnp.expand_dims(is_first, tuple(range(1, child.ndim))), first, child)

        return jax.tree.map(choose, drawn, children)

    return Evolution(init=init, sample=sample, learn=_learn)


def parent_weights(population: Population, tournament: int) -> jax.Array:
    """The probability of each member to be the best of `tournament` draws with replacement, f32 [P].

    Of n members the one with r of them not better than itself (itself included) is the best of k draws with
    probability (r / n)^k - ((r - 1) / n)^k. Among equal rewards the younger row of the ring counts as better.
    """
    filled = population.filled()
    rows = jnp.arange(filled.shape[0])
    order = jnp.lexsort((rows, jnp.where(filled, population.reward, jnp.inf)))  # worst first, empty rows last
    rank = jnp.zeros_like(rows).at[order].set(rows + 1)
    num = jnp.maximum(filled.sum(), 1)
    return jnp.where(filled, (rank / num) ** tournament - ((rank - 1) / num) ** tournament, 0.0)


def _children(
    table: policy_lib.TokenTable,
    population: Population,
    rng: jax.Array,
    op_mask: types.Array,
    fallback: types.Samples,
    weights: jax.Array,
) -> types.Samples:
    """One child for each row of `fallback`, whose tokens replace those of a parent that the mask forbids."""
    parent_rng, token_rng, value_rng = jax.random.split(rng, 3)
    num = fallback.log_prob.shape[0]
    allowed = table.mask(op_mask)
    num_allowed = allowed.sum(axis=1)
    offsets = jnp.asarray(table.offsets)[None]

    def flat(genotypes: types.Array) -> jax.Array:
        return jnp.reshape(genotypes, (-1, table.num_tokens)) + offsets

    parent = jax.random.categorical(parent_rng, jnp.log(weights), shape=(num,))
    tokens = flat(population.genotypes)[parent]
    is_allowed = jnp.take_along_axis(jnp.broadcast_to(allowed[None], (num, *allowed.shape)), tokens[..., None], axis=2)
    tokens = jnp.where(is_allowed[..., 0], tokens, flat(fallback.genotypes))
    # A token without a choice cannot mutate; where none has one, the child is its parent.
    has_choice = num_allowed > 1
    where = jax.random.categorical(token_rng, jnp.where(has_choice, 0.0, policy_lib.FORBIDDEN), shape=(num,))
    old = jnp.take_along_axis(tokens, where[:, None], axis=1)
    options = allowed[where] & ((jnp.arange(table.size)[None] != old) | ~has_choice[where][:, None])
    new = jax.random.categorical(value_rng, jnp.where(options, 0.0, -jnp.inf))
    tokens = tokens.at[jnp.arange(num), where].set(new)
    num_places = jnp.maximum(has_choice.sum(), 1)
    log_options = jnp.log(jnp.maximum(num_allowed - 1, 1))
    log_weights = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0)
    entropy = (
        jnp.log(num_places)
        + jnp.sum(jnp.where(has_choice, log_options, 0.0)) / num_places
        - jnp.sum(weights * log_weights)
    )
    return types.Samples(
        genotypes=(tokens - offsets).astype(jnp.int32).reshape(fallback.genotypes.shape),
        log_prob=log_weights[parent] - jnp.log(num_places) - log_options[where],
        entropy=jnp.full(num, entropy),
    )


def _learn(
    population: Population, samples: types.Samples, rewards: types.Array, valid: types.Array
) -> tuple[Population, Metrics]:
    """`Evolution.learn`: of more valid rows than the population holds, the last ones stay."""
    num, (capacity, *genotype_shape) = len(rewards), population.genotypes.shape
    rewards = jnp.asarray(rewards, jnp.float32)
    chex.assert_shape(samples.genotypes, (num, *genotype_shape))
    chex.assert_shape([rewards, valid], (num,))
    valid = jnp.asarray(valid) & jnp.isfinite(rewards)
    age = jnp.cumsum(valid)
    stays = valid & (age[-1] - age < capacity)
    # A row that does not count is written outside and dropped.
    where = jnp.where(stays, (population.num_added + age - 1) % capacity, capacity)
    population = Population(
        genotypes=population.genotypes.at[where].set(jnp.asarray(samples.genotypes), mode="drop"),
        reward=population.reward.at[where].set(rewards, mode="drop"),
        num_added=population.num_added + age[-1],
    )
    filled = population.filled()
    num_filled = jnp.maximum(filled.sum(), 1)
    return population, {
        "num_updates": age[-1],
        "population": filled.sum(),
        "population_mean": jnp.sum(jnp.where(filled, population.reward, 0.0)) / num_filled,
        "population_best": jnp.max(jnp.where(filled, population.reward, 0.0)),
    }


def _functions(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> strategy.Functions:
    algorithm = make(space, controller_config)
    draw = compilation.jit(algorithm.sample, static_argnames="num")
    draw_uniform = compilation.jit(
        functools.partial(uniform.draw, policy_lib.token_table(space)), static_argnames="num"
    )
    learn = compilation.jit(algorithm.learn, donate_argnums=0)

    def sample(state: Population, rng: jax.Array, op_mask: np.ndarray, num: int) -> types.Samples:
        return draw(state, rng, op_mask, num=num)

    def update(state: Population, *scored: Any) -> tuple[Population, Metrics]:
        return learn(state, *scored[:3])  # the others are keys and mask

    def probable(state: Population, rng: jax.Array, op_mask: np.ndarray, num: int) -> np.ndarray:
        members, rewards, filled = jax.device_get((state.genotypes, state.reward, state.filled()))
        order = sorted(np.flatnonzero(filled), key=lambda row: (-rewards[row], members[row].tobytes()))
        allowed = [members[row] for row in order if op_mask[members[row][:, 2:4]].all()]
        found = {row.tobytes(): row for row in allowed}
        for turn in range(strategy.MAX_DRAWS):
            if len(found) >= num:
                break
            turn_rng, size = jax.random.fold_in(rng, turn), max(strategy.NUM_CANDIDATES, num)
            # Children first; where those are too few, any genotype.
            drawn = draw_uniform(turn_rng, op_mask, num=size) if turn else draw(state, turn_rng, op_mask, num=size)
            for row in jax.device_get(drawn.genotypes):
                found.setdefault(row.tobytes(), row)
        return np.stack(list(found.values())[:num])

    return strategy.Functions(compilation.jit_once(algorithm.init), sample, update, probable)


RECORD = strategy.Record(
    "evolution",
    _functions,
    order=3,
    learns_from_any=True,
    short_search={"controller.population": "10", "controller.tournament": "5"},
)
