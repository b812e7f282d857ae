"""Uniform draws of genotypes under an operation mask: the line that every search is compared with."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.controller import strategy
from dvsnas_jax.core import compilation, types
from dvsnas_jax.space import genotype


def draw(table: policy_lib.TokenTable, rng: jax.Array, op_mask: types.Array, num: int) -> types.Samples:
    """Draws `num` (static) genotypes, every token by itself, with their exact log-probability and entropy."""
    allowed = table.mask(op_mask)
    log_size = jnp.log(allowed.sum(axis=1)).sum()
    logits = jnp.where(allowed, 0.0, -jnp.inf)
    tokens = jax.random.categorical(rng, logits, shape=(num, table.num_tokens)) - table.offsets[None]
    return types.Samples(
        genotypes=tokens.astype(jnp.int32).reshape(num, -1, len(genotype.FIELDS)),
        log_prob=jnp.full(num, -log_size),
        entropy=jnp.full(num, log_size),
    )


def make(space: genotype.Space, controller_config: ml_collections.ConfigDict) -> strategy.Functions:
    """Uniform draws; nothing is learnt."""
    del controller_config
    jitted_draw = compilation.jit(functools.partial(draw, policy_lib.token_table(space)), static_argnames="num")

    def init(rng: jax.Array) -> dict[str, jax.Array]:
        del rng
        return {"num_seen": jnp.zeros((), jnp.int32)}

    def sample(state: Any, rng: jax.Array, op_mask: np.ndarray, num: int) -> types.Samples:
        del state
        return jitted_draw(rng, op_mask, num=num)

    def update(
        state: Any, samples: types.Samples, rewards: np.ndarray, valid: np.ndarray, *_: Any
    ) -> tuple[Any, dict[str, float]]:
        del samples
        num_valid = np.int32(np.sum(valid & np.isfinite(rewards)))
        return {"num_seen": state["num_seen"] + num_valid}, {"num_updates": 0.0}

    return strategy.Functions(compilation.jit_once(init), sample, update)


RECORD = strategy.Record("random", make, order=6, learns_from_any=True)
