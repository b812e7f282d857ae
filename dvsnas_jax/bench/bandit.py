"""The bandit: a world whose answer is known, and the controller's running times.

The reward of a genotype is the share of its tokens that equal those of a hidden genotype, so the
best is 1 and a uniform draw earns the mean of one over the number of choices.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.controller.strategies import ppo
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.space import genotype

BENCHMARK_SPACE = genotype.Space(inputs=genotype.REFINE_INPUTS[:8], num_layers=7)
"""The space of the running times: the whole vocabulary, 35 tokens."""


def controller_config() -> ml_collections.ConfigDict:
    """The controller's defaults with rates at which PPO finds the hidden genotype in seconds."""
    config = config_lib.defaults().controller
    config.update({"learning_rate": 3e-3, "buffer": 100, "minibatch": 20, "epochs": 4, "normalize_advantage": True})
    return config


def reward(genotypes: types.Array, hidden: types.Array) -> np.ndarray:
    """Share of equal tokens: i32 [N, L, 5] and i32 [L, 5] to f32 [N]."""
    return np.asarray(np.asarray(genotypes) == np.asarray(hidden), np.float32).mean(axis=(1, 2))


def run(
    strategy: strategy_lib.Strategy,
    space: genotype.Space,
    hidden: types.Array,
    *,
    num_steps: int,
    num_per_step: int,
    rng: jax.Array,
) -> np.ndarray:
    """Lets a strategy look for a hidden genotype.

    Args:
      strategy: who looks.
      space: where.
      hidden: i32 [L, 5].
      num_steps: updates of the strategy.
      num_per_step: N, genotypes between two of them.
      rng: the run is a function of it.

    Returns:
      Rewards, f32 [num_steps, N], in order of time.
    """
    hidden = genotype.validate(space, hidden)
    init_rng, run_rng = jax.random.split(rng)
    state = strategy.init(init_rng)
    rewards = []
    for step in range(num_steps):
        sample_rng, update_rng = jax.random.split(jax.random.fold_in(run_rng, step))
        samples = strategy.sample(state, sample_rng, num_per_step)
        rewards.append(reward(samples.genotypes, hidden))
        state, _ = strategy.update(state, samples, rewards[-1], np.ones(num_per_step, bool), update_rng)
    return np.stack(rewards)


def benchmark(
    *, num_repeats: int = 9, minibatches: tuple[int, ...] = (1, 10, 100), num_rollouts: int = 100
) -> dict[str, dict[str, float]]:
    """Times the controller at the published sizes (LSTM 2 x 100, 100 rollouts) on `BENCHMARK_SPACE`.

    Args:
      num_repeats: runs behind one time.
      minibatches: sizes at which an update on a full buffer is timed.
      num_rollouts: rows of the buffer, and genotypes of one draw.

    Returns:
      `sample` and `update_minibatch_<size>`, each with `median_ms`, `best_ms` and `compile_s` (apart;
      it includes the first run).
    """
    config = config_lib.defaults().controller
    config.buffer = num_rollouts
    policy = policy_lib.make(
        BENCHMARK_SPACE, hidden=config.hidden, lstm_layers=config.lstm_layers, init_scale=config.init_scale
    )
    init_rng, sample_rng, update_rng = jax.random.split(jax.random.key(0), 3)
    op_mask = np.ones(len(BENCHMARK_SPACE.operations), bool)
    draw = jax.jit(policy.sample, static_argnames="num")
    params = jax.jit(policy.init)(init_rng)
    results = {"sample": _time(lambda: draw(params, sample_rng, op_mask, num=num_rollouts), num_repeats)}
    samples = draw(params, sample_rng, op_mask, num=num_rollouts)
    rewards = np.random.default_rng(0).random(num_rollouts, np.float32)
    for size in minibatches:
        config.minibatch = size
        algorithm = ppo.make(policy, config)
        state, _ = jax.jit(algorithm.record)(
            jax.jit(algorithm.init)(init_rng), samples, rewards, jnp.ones(num_rollouts, bool)
        )
        update = jax.jit(algorithm.update)
        results[f"update_minibatch_{size}"] = _time(functools.partial(update, state, update_rng, op_mask), num_repeats)
    return results


def _time(call_fn: Callable[[], object], num_repeats: int) -> dict[str, float]:
    """Median and best time of a call, its first run apart."""
    times = []
    for _ in range(num_repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call_fn())
        times.append(time.perf_counter() - start)
    return {
        "median_ms": 1e3 * float(np.median(times[1:])),
        "best_ms": 1e3 * min(times[1:]),
        "compile_s": times[0],
    }
