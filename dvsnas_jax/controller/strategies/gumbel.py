"""Relaxed choices: a categorical distribution for every token, learnt by gradients through the cell (SNAS).

Xie et al. 2019, "SNAS: Stochastic Neural Architecture Search" (arXiv 1812.09926). A draw from a categorical
distribution is the largest of logit + Gumbel noise; a softmax of the same at a temperature is a draw that has a
gradient (Maddison et al. 2017, arXiv 1611.00712; Jang et al. 2017, arXiv 1611.01144). Rewards play no part: whoever
computes the loss of a relaxed cell hands its gradient to `descend`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import strategy
from dvsnas_jax.core import types
from dvsnas_jax.space import genotype


class GumbelState(struct.PyTreeNode):
    """All that the distribution carries from step to step."""

    # logits f32 [L, 5, V] of every token, independent of each other; those not allowed stay 0 and do not count
    params: jax.Array
    opt_state: optax.OptState  # of their optimizer
    num_updates: jax.Array  # i32, steps of it


class Gumbel(NamedTuple):
    """The distribution as pure functions of fixed shapes, nothing jitted yet; `op_mask` is bool [num_ops], data."""

    init: Callable[[jax.Array], GumbelState]  # `(rng) -> GumbelState`, every allowed token as probable as the others
    # `(logits, rng, op_mask, num, temperature=1.0) -> types.Samples`; `num` is static. The temperature scales the
    # noise, `log_prob` and `entropy` are those at temperature 1.
    sample: Callable[..., types.Samples]
    # `(logits, genotypes i32 [N, L, 5], op_mask) -> (log_prob f32 [N], entropy f32 [N])`
    score: Callable[..., tuple[jax.Array, jax.Array]]
    greedy: Callable[..., jax.Array]  # `(logits, op_mask) -> genotype i32 [L, 5]`
    # `(logits, noise f32 [L, 5, V], op_mask, temperature) -> weights f32 [L, 5, V]` with a gradient; noise is Gumbel's
    relax: Callable[..., jax.Array]
    # `(state, gradient f32 [L, 5, V], op_mask) -> (state, metrics)`: one optimizer step
    descend: Callable[..., tuple[GumbelState, dict[str, jax.Array]]]


def temperature(controller_config: ml_collections.ConfigDict, progress: float) -> float:
    """Falls exponentially from `temperature_start` to `temperature_end`; progress is from 0 to 1."""
    start, end = controller_config.temperature_start, controller_config.temperature_end
    return start * (end / start) ** progress


def make(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> Gumbel:
    """The distribution over the genotypes of a space.

    Of the section `controller`, `logits_rate`, `clip_norm`, `entropy` and `straight_through` count.
    """
    shape = _shape(space)
    optimizer = optax.chain(
        optax.clip_by_global_norm(controller_config.clip_norm), optax.adam(controller_config.logits_rate)
    )

    def init(rng: jax.Array) -> GumbelState:
        del rng
        logits = jnp.zeros(shape)
        return GumbelState(params=logits, opt_state=optimizer.init(logits), num_updates=jnp.zeros((), jnp.int32))

    def relax(logits: jax.Array, noise: jax.Array, op_mask: types.Array, temperature: types.Array) -> jax.Array:
        chex.assert_shape([logits, noise], shape)
        allowed = allowed_tokens(space, op_mask)
        soft = jax.nn.softmax(jnp.where(allowed, (logits + noise) / temperature, policy_lib.FORBIDDEN))
        if not controller_config.straight_through:
            return soft
        hard = jax.nn.one_hot(soft.argmax(axis=-1), shape[2])
        return hard + (soft - jax.lax.stop_gradient(soft))

    def descend(
        state: GumbelState, gradient: jax.Array, op_mask: types.Array
    ) -> tuple[GumbelState, dict[str, jax.Array]]:
        entropy, towards_entropy = jax.value_and_grad(entropy_of, argnums=1)(space, state.params, op_mask)
        total = gradient - controller_config.entropy * towards_entropy
        updates, opt_state = optimizer.update(total, state.opt_state, state.params)
        logits = optax.apply_updates(state.params, updates)
        metrics = {"logits_gradient_norm": optax.tree.norm(gradient), "choice_entropy": entropy}
        return GumbelState(params=logits, opt_state=opt_state, num_updates=state.num_updates + 1), metrics

    return Gumbel(
        init=init,
        sample=functools.partial(_sample, space),
        score=functools.partial(_score, space),
        greedy=functools.partial(_greedy, space),
        relax=relax,
        descend=descend,
    )


def _shape(space: genotype.Space) -> tuple[int, int, int]:
    """L, 5, V."""
    return space.num_layers, len(genotype.FIELDS), int(space.limits().max())


def _sample(
    space: genotype.Space,
    logits: jax.Array,
    rng: jax.Array,
    op_mask: types.Array,
    num: int,
    temperature: types.Array | float = 1.0,
) -> types.Samples:
    noise = temperature * jax.random.gumbel(rng, (num, *_shape(space)))
    tokens = jnp.argmax(masked_logits(space, logits, op_mask)[None] + noise, axis=-1).astype(jnp.int32)
    log_prob, entropy = _score(space, logits, tokens, op_mask)
    return types.Samples(genotypes=tokens, log_prob=log_prob, entropy=entropy)


def _score(
    space: genotype.Space, logits: jax.Array, genotypes: types.Array, op_mask: types.Array
) -> tuple[jax.Array, jax.Array]:
    chex.assert_shape(genotypes, (None, *logits.shape[:2]))
    log_probs = jax.nn.log_softmax(masked_logits(space, logits, op_mask))
    chosen = (jax.nn.one_hot(genotypes, logits.shape[2]) * log_probs[None]).sum(axis=(1, 2, 3))
    return chosen, jnp.full(genotypes.shape[0], entropy_of(space, logits, op_mask))


def _greedy(space: genotype.Space, logits: jax.Array, op_mask: types.Array) -> jax.Array:
    return masked_logits(space, logits, op_mask).argmax(axis=-1).astype(jnp.int32)


def allowed_tokens(space: genotype.Space, op_mask: types.Array) -> jax.Array:
    """What each token may be, bool [L, 5, V], under an operation mask bool [num_ops] (may be traced)."""
    chex.assert_shape(op_mask, (len(space.operations),))
    limits = space.limits()
    entries = jnp.arange(limits.max())
    allowed = entries[None, None] < limits[..., None]
    enabled = jnp.zeros(len(entries), bool).at[: len(space.operations)].set(op_mask)
    is_operation = jnp.asarray([field.startswith("op") for field in genotype.FIELDS])
    return allowed & (enabled[None, None] | ~is_operation[None, :, None])


def masked_logits(space: genotype.Space, logits: jax.Array, op_mask: types.Array) -> jax.Array:
    """The logits f32 [L, 5, V] with `policy.FORBIDDEN` for tokens that are not allowed."""
    return jnp.where(allowed_tokens(space, op_mask), logits, policy_lib.FORBIDDEN)


def entropy_of(space: genotype.Space, logits: jax.Array, op_mask: types.Array) -> jax.Array:
    """Entropy of a genotype, f32 [], nats."""
    log_probs = jax.nn.log_softmax(masked_logits(space, logits, op_mask))
    return -(jnp.exp(log_probs) * log_probs).sum()


def _functions(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> strategy.Functions:
    choices = make(space, controller_config)
    return dataclasses.replace(strategy.learned(choices, choices.init, learn=None), relaxation=choices)


RECORD = strategy.Record("gumbel", _functions, order=4, is_relaxed=True)
