"""What the policy gradients share: the baseline of the rewards, and the optimizer of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import strategy
from dvsnas_jax.space import genotype

Pair = tuple[jax.Array, jax.Array]


def functions(make_fn: Callable[[policy_lib.Policy, ml_collections.ConfigDict], Any]) -> Callable[..., Any]:
    """The functions of a strategy whose policy an algorithm trains, which has `init` and `learn`."""

    def make(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> strategy.Functions:
        policy = policy_lib.of_config(space, controller_config)
        algorithm = make_fn(policy, controller_config)
        return strategy.learned(policy, algorithm.init, algorithm.learn)

    return make


def make_optimizer(controller_config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam on clipped gradients; `controller_config` is the section `controller`."""
    return optax.chain(clip_by_norm(controller_config.clip_norm), optax.adam(controller_config.learning_rate))


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` (same state) as one factor for all gradients.

    XLA fuses a product with a scalar into both of Adam's averages; optax's division it writes out for every array.
    """

    def clip(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        factor = max_norm / jnp.maximum(optax.tree.norm(updates), max_norm)
        return jax.tree.map(lambda update: update * factor, updates)

    return optax.stateless(clip)


def follow(
    baseline: jax.Array, weight: jax.Array, rewards: jax.Array, valid: jax.Array, *, decay: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves the baseline by rewards f32 [N], row by row; rows that are not valid, bool [N], leave it.

    Each row keeps the baseline before its own reward, which keeps the gradient unbiased. Returns that, f32 [N] (of the
    first reward ever: that reward), and after all rows the average and the sum of its weights.
    """

    def move(carry: Pair, xs: Pair) -> tuple[Pair, jax.Array]:
        average, total = carry
        reward, is_valid = xs
        before = jnp.where(total > 0, average, reward)
        new_total = decay * total + (1 - decay)
        new_average = before + (1 - decay) / new_total * (reward - before)
        return (jnp.where(is_valid, new_average, average), jnp.where(is_valid, new_total, total)), before

    (baseline, weight), before = jax.lax.scan(move, (baseline, weight), (rewards, valid))
    return before, baseline, weight
