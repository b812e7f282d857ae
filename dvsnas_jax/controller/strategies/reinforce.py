"""REINFORCE on whole genotypes: the plain policy gradient, one step for each group of rewards.

Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", with a
moving average of the rewards as baseline, as Zoph and Le (2017, arXiv 1611.01578) and ENAS (Pham 2018, arXiv
1802.03268) train their controllers. It is on-policy: what a step drew is used once and thrown away, so that buffer,
minibatch, epochs and ppo_clip mean nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct

from dvsnas_jax.controller import descent, strategy
from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.core import types

Metrics = dict[str, jax.Array]


class ReinforceState(struct.PyTreeNode):
    """All that REINFORCE carries from step to step; see `ppo.PPOState`."""

    params: types.Params
    opt_state: optax.OptState
    baseline: jax.Array
    baseline_weight: jax.Array
    num_updates: jax.Array


class Reinforce(NamedTuple):
    """REINFORCE as pure functions of fixed shapes, nothing jitted yet."""

    init: Callable[[jax.Array], ReinforceState]  # `(rng) -> ReinforceState`
    # `(state, samples, rewards f32 [N], valid bool [N], rng, op_mask) -> (state, metrics)`: one optimizer step on the
    # valid rows; nothing where no row is valid, which `num_updates` says
    learn: Callable[..., tuple[ReinforceState, Metrics]]


def make(policy: policy_lib.Policy, controller_config: ml_collections.ConfigDict) -> Reinforce:
    """REINFORCE for a policy at the rates of the section `controller`."""
    optimizer = descent.make_optimizer(controller_config)

    def init(rng: jax.Array) -> ReinforceState:
        params = policy.init(rng)
        return ReinforceState(
            params=params,
            opt_state=optimizer.init(params),
            baseline=jnp.zeros(()),
            baseline_weight=jnp.zeros(()),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def learn(
        state: ReinforceState,
        samples: types.Samples,
        rewards: types.Array,
        valid: types.Array,
        rng: jax.Array,
        op_mask: types.Array,
    ) -> tuple[ReinforceState, Metrics]:
        del rng
        rewards = jnp.asarray(rewards, jnp.float32)
        chex.assert_rank([rewards, valid], 1)
        valid = jnp.asarray(valid) & jnp.isfinite(rewards)
        rewards = jnp.where(valid, rewards, 0.0)
        before, baseline, weight = descent.follow(
            state.baseline, state.baseline_weight, rewards, valid, decay=controller_config.baseline_decay
        )
        advantage = advantages(rewards, before, valid, normalize=controller_config.normalize_advantage)

        def objective(params: types.Params) -> tuple[jax.Array, Metrics]:
            log_prob, entropy = policy.score(params, samples.genotypes, op_mask)
            return loss(log_prob, entropy, advantage, valid, bonus=controller_config.entropy)

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        stepped = (optax.apply_updates(state.params, updates), opt_state, state.num_updates + 1)
        kept = (state.params, state.opt_state, state.num_updates)
        is_any = valid.any()
        params, opt_state, num_updates = jax.tree.map(lambda new, old: jnp.where(is_any, new, old), stepped, kept)
        metrics |= {"grad_norm": optax.tree.norm(grads), "baseline": baseline}
        metrics |= {"num_updates": is_any.astype(jnp.int32), "reward": _mean(rewards, valid)}
        return ReinforceState(params, opt_state, baseline, weight, num_updates), metrics

    return Reinforce(init=init, learn=learn)


def advantages(rewards: jax.Array, before: jax.Array, valid: jax.Array, *, normalize: bool) -> jax.Array:
    """Reward over the baseline before it, f32 [N]; 0 where a row is not valid.

    `normalize`: to variance 1 over the valid rows. The mean stays: of a few rows it is what the baseline is for.
    """
    chex.assert_equal_shape([rewards, before, valid])
    advantage = jnp.where(valid, rewards - before, 0.0)
    if normalize:
        advantage = advantage / (jnp.sqrt(_mean(advantage**2, valid)) + 1e-8)
    return advantage


def loss(
    log_prob: jax.Array, entropy: jax.Array, advantage: jax.Array, valid: jax.Array, *, bonus: float
) -> tuple[jax.Array, Metrics]:
    """Mean over the valid rows of -advantage * log-probability, less `bonus` times the entropy, and its parts."""
    chex.assert_rank([log_prob, entropy, advantage, valid], 1)
    chex.assert_equal_shape([log_prob, entropy, advantage, valid])
    entropy_mean = _mean(entropy, valid)
    total = -_mean(advantage * log_prob, valid) - bonus * entropy_mean
    return total, {"loss": total, "entropy": entropy_mean}


def _mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Over the valid rows, 0 where there are none."""
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(valid.sum(), 1)


RECORD = strategy.Record(
    "reinforce",
    descent.functions(make),
    order=2,
    short_search={"controller.learning_rate": "0.02", "controller.normalize_advantage": "true"},
)
