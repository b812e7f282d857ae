"""Optimizers, schedules and the loss that every training in this package shares."""

from __future__ import annotations

import functools
import operator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import optax

from dvsnas_jax.core import types
from dvsnas_jax.nets import layers


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up, then cosine or polynomial (power 0.9) decay to 0 over `config.steps`."""
    warmup = min(config.warmup_steps, max(config.steps - 1, 0))
    rest = max(config.steps - warmup, 1)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(config.learning_rate, rest)
    else:
        decay = optax.polynomial_schedule(config.learning_rate, 0.0, power=0.9, transition_steps=rest)
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1)), decay], [warmup])


def make(config: ml_collections.ConfigDict, *, is_constant: bool = False) -> optax.GradientTransformation:
    """AdamW with a gradient norm limit; decay on kernels only (rank 2 and more).

    Args:
      config: a section with learning_rate, weight_decay, clip_norm and, unless `is_constant`,
        steps, warmup_steps, schedule.
      is_constant: a constant learning rate, for training without a fixed end.
    """
    rate = config.learning_rate if is_constant else schedule(config)
    return in_two_vectors(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.adamw(rate, weight_decay=config.weight_decay, mask={"kernels": True, "others": False}),
        )
    )


def in_two_vectors(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs an element-wise transformation on two vectors in place of many small arrays.

    A network has hundreds of arrays, and each would get a handful of kernels of its own: more to launch on
    an accelerator, and half of the time that XLA takes to compile a training step.

    Args:
      inner: sees `{"kernels": f32 [n], "others": f32 [m]}`: arrays of rank 2 and more, and the rest.
    """

    def ravel(tree: Any) -> dict[str, jax.Array]:
        leaves = jax.tree.leaves(tree)
        groups = {
            "kernels": [leaf for leaf in leaves if leaf.ndim >= 2],
            "others": [leaf for leaf in leaves if leaf.ndim < 2],
        }
        return {
            name: jnp.concatenate([jnp.ravel(leaf) for leaf in group]) if group else jnp.zeros(0)
            for name, group in groups.items()
        }

    def unravel(vectors: dict[str, jax.Array], like: Any) -> Any:
        leaves, tree = jax.tree.flatten(like)
        places = {"kernels": 0, "others": 0}
        parts = []
        for leaf in leaves:
            name = "kernels" if leaf.ndim >= 2 else "others"
            parts.append(vectors[name][places[name] : places[name] + leaf.size].reshape(leaf.shape))
            places[name] += leaf.size
        return jax.tree.unflatten(tree, parts)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = inner.update(ravel(updates), state, None if params is None else ravel(params))
        return unravel(found, updates), state

    return optax.GradientTransformation(lambda params: inner.init(ravel(params)), update)


def polyak(decay: float, average: types.Params, params: types.Params, step: types.Array) -> types.Params:
    """Moving average of weights; its decay grows from 0 so that early weights are forgotten."""
    rate = jnp.minimum(decay, step / (step + 10.0))
    return jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average, params)


def cross_entropy(logits: types.Array, labels: types.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the labelled pixels.

    Args:
      logits: [..., h, w, K] at the grid of the network.
      labels: u8 [..., H', W'], 255 = ignore; where the size differs, logits are resized to it.

    Returns:
      Mean over the labelled pixels (0 where there is none) and their number, f32.
    """
    size = (labels.shape[-2], labels.shape[-1])
    labels = jnp.asarray(labels)
    flat = jnp.asarray(logits).reshape(-1, *logits.shape[-3:]).astype(jnp.float32)
    chex.assert_axis_dimension(flat, 0, functools.reduce(operator.mul, labels.shape[:-2], 1))
    if flat.shape[1:3] != size:
        flat = layers.resize_bilinear(flat, size)
    is_valid = (labels != types.IGNORE).reshape(flat.shape[:3])
    targets = jnp.where(is_valid, labels.reshape(flat.shape[:3]), 0).astype(jnp.int32)
    # A one-hot product instead of a gather: its gradient is not a scatter, which CPUs run serially.
    one_hot = jax.nn.one_hot(targets, flat.shape[-1], dtype=jnp.float32)
    losses = jax.nn.logsumexp(flat, axis=-1) - (flat * one_hot).sum(axis=-1)
    count = is_valid.sum().astype(jnp.float32)
    return jnp.where(is_valid, losses, 0.0).sum() / jnp.maximum(count, 1.0), count


def subsample_labels(labels: jax.Array, stride: int) -> jax.Array:
    """Every stride-th label of each axis, from the middle of its cell: u8 [..., H / stride, W / stride]."""
    return labels[..., stride // 2 :: stride, stride // 2 :: stride]
