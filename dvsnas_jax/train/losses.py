"""The losses of segmentation networks: cross-entropy with its usual variants, and distillation."""

from __future__ import annotations

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.nets.kernels import layers


def cross_entropy(
    logits: types.Array,
    labels: types.Array,
    *,
    class_weights: types.Array | None = None,
    smoothing: float = 0.0,
    hardest: float = 1.0,
    image_weights: types.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the labelled pixels.

    Args:
      logits: [..., h, w, K] at the grid of the network.
      labels: u8 [..., H', W'], 255 = ignore; where the size differs, logits are resized to it.
      class_weights: f32 [K]; the mean is over pixels by the weight of their class.
      smoothing: share of the target that is spread evenly over all classes (Szegedy 2016, arXiv 1512.00567).
      hardest: share of the labelled pixels that count, those of the largest losses (online hard example mining,
        Shrivastava 2016, arXiv 1604.03540).
      image_weights: f32 [...], what a pixel of each image weighs; those of weight 0 are none of the hardest.

    Returns:
      The mean (0 where no pixel is labelled) and the number of pixels that count, f32.
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
    total = jax.nn.logsumexp(flat, axis=-1)
    losses = total - (flat * one_hot).sum(axis=-1)
    if smoothing:
        losses = (1 - smoothing) * losses + smoothing * (total - flat.mean(axis=-1))
    weights = is_valid.astype(jnp.float32)
    if image_weights is not None:
        weights *= jnp.asarray(image_weights, jnp.float32).reshape(-1, 1, 1)
        is_valid &= weights > 0
    if class_weights is not None:
        weights *= one_hot @ jnp.asarray(class_weights, jnp.float32)
    if hardest < 1:
        weights *= losses >= _threshold(jnp.where(is_valid, losses, -jnp.inf), is_valid.sum(), hardest)
    mean = jnp.where(is_valid, losses * weights, 0.0).sum() / jnp.maximum(weights.sum(), 1e-6)
    return mean, (weights > 0).sum().astype(jnp.float32)


def _threshold(losses: jax.Array, num_valid: jax.Array, share: float) -> jax.Array:
    """The smallest of the `share` largest losses; -inf losses count nowhere."""
    ordered = jnp.sort(jax.lax.stop_gradient(losses).reshape(-1))[::-1]
    last = jnp.ceil(share * num_valid).astype(jnp.int32) - 1
    return ordered[jnp.clip(last, 0, ordered.size - 1)]


def subsample_labels(labels: jax.Array, stride: int) -> jax.Array:
    """Every stride-th label of each axis, from the middle of its cell: u8 [..., H / stride, W / stride]."""
    return labels[..., stride // 2 :: stride, stride // 2 :: stride]


def distillation(
    logits: types.Array, teacher: types.Array, temperature: float, image_weights: types.Array | None = None
) -> jax.Array:
    """Divergence of the softened predictions, [..., h, w, K], from a teacher's (Hinton 2015, arXiv 1503.02531).

    Mean Kullback-Leibler divergence in nats, times temperature^2, which keeps the size of its gradient.
    `image_weights`, f32 [...], are what a pixel of each image weighs in the mean, which is 0 where all of them are.
    """
    chex.assert_equal_shape([logits, teacher])
    own = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32) / temperature)
    theirs = jax.nn.log_softmax(jnp.asarray(teacher, jnp.float32) / temperature)
    divergence = temperature**2 * (jnp.exp(theirs) * (theirs - own)).sum(axis=-1)
    if image_weights is None:
        return divergence.mean()
    weights = jnp.asarray(image_weights, jnp.float32)
    return (divergence.mean(axis=(-2, -1)) * weights).sum() / jnp.maximum(weights.sum(), 1e-6)


def median_weights(counts: np.ndarray) -> np.ndarray:
    """Class weights f32 [K] by median frequency balancing (Eigen and Fergus 2015, arXiv 1411.4734).

    Of pixel counts [N, K] of N images: median frequency / frequency, where a class's frequency is its share of the
    pixels of the images that show it; 0 for a class that no image shows.
    """
    counts = np.asarray(counts, np.float64)
    total = ((counts > 0) * counts.sum(axis=1, keepdims=True)).sum(axis=0)
    frequency = counts.sum(axis=0) / np.maximum(total, 1)
    seen = frequency > 0
    median = np.median(frequency[seen]) if seen.any() else 0.0
    return np.where(seen, median / np.maximum(frequency, 1e-12), 0.0).astype(np.float32)


LOG_OFFSET = 1.10
"""ENet's is 1.02, with which the rarest class weighs up to 50; this one bounds the weights by 10.5."""


def log_weights(counts: np.ndarray) -> np.ndarray:
    """Class weights f32 [K] that grow with the logarithm of a class's rareness (ENet, Paszke 2016, arXiv 1606.02147).

    Of pixel counts [N, K]: 1 / ln(LOG_OFFSET + share of all labelled pixels).
    """
    totals = np.asarray(counts, np.float64).sum(axis=0)
    return (1 / np.log(LOG_OFFSET + totals / max(totals.sum(), 1))).astype(np.float32)
