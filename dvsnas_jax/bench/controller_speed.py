"""`dvsnas bench controller`: the controller's running times."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.bench import stopwatch
from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import ppo
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.space import genotype

SPACE = genotype.Space(inputs=genotype.REFINE_INPUTS[:8], num_layers=7)
"""The whole vocabulary, 35 tokens."""


def run(
    *, num_repeats: int = 9, minibatches: tuple[int, ...] = (1, 10, 100), num_rollouts: int = 100
) -> dict[str, dict[str, float]]:
    """Times the controller at the published sizes (LSTM 2 x 100, a buffer of 100 rollouts) on `SPACE`.

    `sample` and `update_minibatch_<size>` -> `median_ms` and `best_ms` of several runs, and `compile_s` (apart; it
    includes the first run).
    """
    config = config_lib.defaults().controller
    config.buffer = num_rollouts
    policy = policy_lib.make(SPACE, hidden=config.hidden, lstm_layers=config.lstm_layers, init_scale=config.init_scale)
    init_rng, sample_rng, update_rng = jax.random.split(jax.random.key(0), 3)
    op_mask = np.ones(len(SPACE.operations), bool)
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
    first, *times = (stopwatch.seconds(call_fn) for _ in range(num_repeats + 1))
    return {"median_ms": 1e3 * statistics.median(times), "best_ms": 1e3 * min(times), "compile_s": first}
