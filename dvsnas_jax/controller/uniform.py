"""Uniform draws of genotypes under an operation mask, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dvsnas_jax.controller import policy as policy_lib
from dvsnas_jax.core import types
from dvsnas_jax.space import genotype


def draw(table: policy_lib.TokenTable, rng: jax.Array, op_mask: types.Array, num: int) -> types.Samples:
    """Draws genotypes, every token by itself.

    Args:
      table: of the space.
      rng: the draw is a function of it.
      op_mask: bool [num_ops], operations that may be drawn.
      num: N, static.

    Returns:
      Samples with their exact log-probability and entropy.
    """
    allowed = table.mask(op_mask)
    log_size = jnp.log(allowed.sum(axis=1)).sum()
    logits = jnp.where(allowed, 0.0, -jnp.inf)
    tokens = jax.random.categorical(rng, logits, shape=(num, table.num_tokens)) - table.offsets[None]
    return types.Samples(
        genotypes=tokens.astype(jnp.int32).reshape(num, -1, len(genotype.FIELDS)),
        log_prob=jnp.full(num, -log_size),
        entropy=jnp.full(num, log_size),
    )
