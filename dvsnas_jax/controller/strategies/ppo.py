"""PPO on whole genotypes: a genotype is one action, its log-probability is the sum over its tokens.

The clipped objective is that of "Proximal Policy Optimization Algorithms" (Schulman et al., 2017). The default sizes
(buffer of 100 rollouts, one epoch of single rollouts, clip 0.1, Adam 1e-4, gradient norm 2.0, baseline with decay 0.95)
are those of the authors' public sibling code (Fast NAS, CVPR 2019).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct

from dvsnas_jax.controller import descent, strategy
from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.space import genotype

Metrics = dict[str, jax.Array]
Carry = tuple[types.Params, optax.OptState, Metrics]


class Rollouts(struct.PyTreeNode):
    """The buffer: M rows, of which the first `filled.sum()` hold a rollout."""

    genotypes: jax.Array  # i32 [M, L, 5]
    log_prob: jax.Array  # f32 [M], under the policy that drew the genotype
    reward: jax.Array  # f32 [M]
    baseline: jax.Array  # f32 [M], the baseline just before the reward arrived
    filled: jax.Array  # bool [M]


class PPOState(struct.PyTreeNode):
    """All that PPO carries from step to step."""

    params: types.Params  # of the policy
    opt_state: optax.OptState  # of its optimizer
    buffer: Rollouts  # rollouts since the last update
    baseline: jax.Array  # f32, moving average of the rewards so far, free of a start value's bias
    baseline_weight: jax.Array  # f32, sum of the average's weights: 0 before the first reward, then towards 1
    num_updates: jax.Array  # i32


class PPO(NamedTuple):
    """PPO as pure functions of fixed shapes: one trace each for a whole search, nothing jitted yet."""

    init: Callable[[jax.Array], PPOState]  # `(rng) -> PPOState`
    # `(state, samples, rewards f32 [N], valid bool [N]) -> (state, rest bool [N])`: appends the valid rows until the
    # buffer is full; `rest` marks those that found no room
    record: Callable[..., tuple[PPOState, jax.Array]]
    # `(state, rng, op_mask) -> (state, metrics)`: all epochs on the filled rows, then an empty buffer
    update: Callable[..., tuple[PPOState, Metrics]]
    # `(state, samples, rewards, valid, rng, op_mask) -> (state, metrics)`: records every valid row and updates whenever
    # the buffer is full; `metrics` are the last update's, and `num_updates` says how many there were (0: the others
    # mean nothing)
    learn: Callable[..., tuple[PPOState, Metrics]]


def make(policy: policy_lib.Policy, controller_config: ml_collections.ConfigDict) -> PPO:
    """PPO for a policy; a UserError where a size of the section `controller` makes no sense."""
    _check(controller_config)
    optimizer = descent.make_optimizer(controller_config)
    capacity = controller_config.buffer

    def init(rng: jax.Array) -> PPOState:
        params = policy.init(rng)
        return PPOState(
            params=params,
            opt_state=optimizer.init(params),
            buffer=_empty(capacity, policy.table.num_tokens // len(genotype.FIELDS)),
            baseline=jnp.zeros(()),
            baseline_weight=jnp.zeros(()),
            num_updates=jnp.zeros((), jnp.int32),
        )

    record = functools.partial(_record, decay=controller_config.baseline_decay)
    update = _make_update(policy, optimizer, controller_config)
    return PPO(init, record, update, functools.partial(_learn, record, update))


def _check(controller_config: ml_collections.ConfigDict) -> None:
    for key in ("buffer", "minibatch", "epochs"):
        if controller_config[key] < 1:
            raise errors.UserError(f"controller.{key}: must be at least 1, got {controller_config[key]}")
    if controller_config.minibatch > controller_config.buffer:
        raise errors.UserError(
            f"controller.minibatch: must be at most controller.buffer ({controller_config.buffer}), "
            f"got {controller_config.minibatch}"
        )


def _empty(capacity: int, num_layers: int) -> Rollouts:
    return Rollouts(
        genotypes=jnp.zeros((capacity, num_layers, len(genotype.FIELDS)), jnp.int32),
        log_prob=jnp.zeros(capacity),
        reward=jnp.zeros(capacity),
        baseline=jnp.zeros(capacity),
        filled=jnp.zeros(capacity, bool),
    )


def _record(
    state: PPOState, samples: types.Samples, rewards: types.Array, valid: types.Array, *, decay: float
) -> tuple[PPOState, jax.Array]:
    """`PPO.record`: the baseline moves row by row, and a row keeps the one before its own reward.

    A baseline that does not know the row's own reward keeps the gradient unbiased, and one that is as old as the row
    follows rewards that drift while the shared weights improve.
    """
    num, (capacity, *genotype_shape) = len(rewards), state.buffer.genotypes.shape
    rewards = jnp.asarray(rewards, jnp.float32)
    chex.assert_shape(samples.genotypes, (num, *genotype_shape))
    chex.assert_shape([samples.log_prob, rewards, valid], (num,))
    valid = jnp.asarray(valid) & jnp.isfinite(rewards)
    row = jnp.sum(state.buffer.filled) + jnp.cumsum(valid) - 1
    taken = valid & (row < capacity)
    before, baseline, weight = descent.follow(state.baseline, state.baseline_weight, rewards, taken, decay=decay)
    where = jnp.where(taken, row, capacity)  # a row that does not count is written outside and dropped
    new_rows = Rollouts(
        genotypes=jnp.asarray(samples.genotypes),
        log_prob=jnp.asarray(samples.log_prob),
        reward=rewards,
        baseline=before,
        filled=taken,
    )
    buffer = jax.tree.map(lambda old, new: old.at[where].set(new, mode="drop"), state.buffer, new_rows)
    return state.replace(buffer=buffer, baseline=baseline, baseline_weight=weight), valid & ~taken


def _learn(
    record: Callable[..., tuple[PPOState, jax.Array]],
    update: Callable[..., tuple[PPOState, Metrics]],
    state: PPOState,
    samples: types.Samples,
    *scored: Any,
) -> tuple[PPOState, Metrics]:
    """`PPO.learn`, for any N: rows that find no room wait for the update and then go into the next buffer."""
    rewards, valid, rng, op_mask = scored
    _, metric_shapes = jax.eval_shape(update, state, rng, op_mask)
    no_metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metric_shapes)
    num_before, capacity = state.num_updates, len(state.buffer.filled)

    def turn(carry: tuple[PPOState, jax.Array, Metrics], update_rng: jax.Array) -> tuple[Any, None]:
        state, rest, metrics = carry
        state, rest = record(state, samples, rewards, rest)
        is_full = jnp.all(state.buffer.filled)
        state, metrics = jax.lax.cond(is_full, lambda s: update(s, update_rng, op_mask), lambda s: (s, metrics), state)
        return (state, rest, metrics), None

    # At most M - 1 rows wait already, so this many turns leave none over.
    num_turns = (rewards.shape[0] + capacity - 1) // capacity + 1
    start = (state, jnp.asarray(valid), no_metrics)
    (state, _, metrics), _ = jax.lax.scan(turn, start, jax.random.split(rng, num_turns))
    return state, {**metrics, "num_updates": state.num_updates - num_before, "baseline": state.baseline}


def advantages(buffer: Rollouts, *, normalize: bool) -> jax.Array:
    """Reward over baseline of each row, f32 [M]; 0 where nothing is filled.

    `normalize`: to mean 0 and variance 1 over the filled rows.
    """
    chex.assert_rank([buffer.reward, buffer.baseline, buffer.filled], 1)
    advantage = jnp.where(buffer.filled, buffer.reward - buffer.baseline, 0.0)
    if normalize:
        count = jnp.maximum(jnp.sum(buffer.filled), 1)
        centred = jnp.where(buffer.filled, advantage - jnp.sum(advantage) / count, 0.0)
        advantage = centred / (jnp.sqrt(jnp.sum(centred**2) / count) + 1e-8)
    return advantage


def loss(
    log_prob: jax.Array, entropy: jax.Array, batch: Rollouts, advantage: jax.Array, *, clip: float, bonus: float
) -> tuple[jax.Array, Metrics]:
    """The clipped objective, averaged over the filled rows (Schulman et al. 2017, equation 7), and its parts.

    `log_prob`, `entropy` (nats): f32 [R], of the rows under the current parameters; `advantage`: f32 [R]; `clip`: how
    far the probability ratio may leave 1; `bonus`: coefficient of the entropy.
    """
    chex.assert_rank([log_prob, entropy, batch.log_prob, batch.filled, advantage], 1)
    chex.assert_equal_shape([log_prob, entropy, batch.log_prob, batch.filled, advantage])
    weight = batch.filled / jnp.maximum(jnp.sum(batch.filled), 1)
    log_ratio = jnp.where(batch.filled, log_prob - batch.log_prob, 0.0)
    ratio = jnp.exp(log_ratio)
    objective = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    entropy_mean = jnp.sum(weight * entropy)
    total = -jnp.sum(weight * objective) - bonus * entropy_mean
    return total, {
        "loss": total,
        "entropy": entropy_mean,
        "kl": jnp.sum(weight * (ratio - 1 - log_ratio)),
        "clipped": jnp.sum(weight * (jnp.abs(ratio - 1) > clip)),
    }


def _make_update(
    policy: policy_lib.Policy, optimizer: optax.GradientTransformation, controller_config: ml_collections.ConfigDict
) -> Callable[..., tuple[PPOState, Metrics]]:
    """`PPO.update`."""
    size, capacity = controller_config.minibatch, controller_config.buffer
    num_padding = -capacity % size

    def objective(params: types.Params, batch: Rollouts, advantage: jax.Array, op_mask: types.Array) -> Any:
        log_prob, entropy = policy.score(params, batch.genotypes, op_mask)
        clip, bonus = controller_config.ppo_clip, controller_config.entropy
        return loss(log_prob, entropy, batch, advantage, clip=clip, bonus=bonus)

    def update(state: PPOState, rng: jax.Array, op_mask: types.Array) -> tuple[PPOState, Metrics]:
        buffer = state.buffer
        advantage = advantages(buffer, normalize=controller_config.normalize_advantage)
        num_batches = (jnp.sum(buffer.filled) + size - 1) // size

        def minibatch(index: jax.Array, carry: Carry, order: jax.Array) -> Carry:
            params, opt_state, sums = carry
            rows = jax.lax.dynamic_slice_in_dim(order, index * size, size)
            is_row = rows < capacity  # the last minibatch may reach into the padding
            batch = jax.tree.map(lambda leaf: leaf[rows], buffer)
            batch = batch.replace(filled=batch.filled & is_row)
            grads, parts = jax.grad(objective, has_aux=True)(params, batch, advantage[rows], op_mask)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            parts["grad_norm"] = optax.tree.norm(grads)
            return optax.apply_updates(params, updates), opt_state, jax.tree.map(jnp.add, sums, parts)

        def epoch(index: jax.Array, carry: Carry) -> Carry:
            keys = jax.random.uniform(jax.random.fold_in(rng, index), (capacity,))
            order = jnp.argsort(jnp.where(buffer.filled, keys, 2.0))  # shuffled, filled rows first
            order = jnp.pad(order, (0, num_padding), constant_values=capacity)
            return jax.lax.fori_loop(0, num_batches, lambda i, c: minibatch(i, c, order), carry)

        sums = {name: jnp.zeros(()) for name in ("loss", "entropy", "kl", "clipped", "grad_norm")}
        carry = (state.params, state.opt_state, sums)
        params, opt_state, sums = jax.lax.fori_loop(0, controller_config.epochs, epoch, carry)
        num_steps = jnp.maximum(num_batches * controller_config.epochs, 1)
        metrics = {name: value / num_steps for name, value in sums.items()}
        num_filled = jnp.maximum(jnp.sum(buffer.filled), 1)
        metrics["reward"] = jnp.sum(jnp.where(buffer.filled, buffer.reward, 0.0)) / num_filled
        emptied = buffer.replace(filled=jnp.zeros_like(buffer.filled))
        state = state.replace(params=params, opt_state=opt_state, buffer=emptied, num_updates=state.num_updates + 1)
        return state, metrics

    return update


RECORD = strategy.Record(
    "ppo",
    descent.functions(make),
    order=1,
    short_search={
        "controller.learning_rate": "0.02",
        "controller.buffer": "6",
        "controller.minibatch": "6",
        "controller.epochs": "4",
        "controller.normalize_advantage": "true",
    },
)
