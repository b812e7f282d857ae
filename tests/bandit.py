"""The bandit: a world whose answer is known.

The reward of a genotype is the share of its tokens that equal those of a hidden genotype, so the best is 1 and a
uniform draw earns the mean of one over the number of choices.
"""

from __future__ import annotations

import jax
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.space import genotype


def controller_config() -> ml_collections.ConfigDict:
    """The controller's defaults with rates at which PPO finds the hidden genotype in seconds."""
    config = config_lib.defaults().controller
    config.update({"learning_rate": 3e-3, "buffer": 100, "minibatch": 20, "epochs": 4, "normalize_advantage": True})
    return config


def reward(genotypes: types.Array, hidden: types.Array) -> np.ndarray:
    """Share of equal tokens: i32 [N, L, 5] and i32 [L, 5] to f32 [N]."""
    return np.asarray(np.asarray(genotypes) == np.asarray(hidden), np.float32).mean(axis=(1, 2))


def run(
    strategy: strategies.Strategy,
    space: genotype.Space,
    hidden: types.Array,
    *,
    num_steps: int,
    num_per_step: int,
    rng: jax.Array,
) -> np.ndarray:
    """Lets a strategy look for a hidden genotype i32 [L, 5]: rewards, f32 [num_steps, N], in order of time."""
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
