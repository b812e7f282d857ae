"""Where arithmetic needs more than a map's own type: moments, positions, sums of many products."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """A map of a narrower type as float32; float64 stays, so that a check in it is one."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
