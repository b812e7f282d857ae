"""What is counted of a cell on clips whose features are known: during a search, while a cell is trained, after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.train import feature_store

PARTS = ("miou", "fwiou", "class_accuracy")
"""Whose geometric mean is the accuracy of rewards; the last is the mean over classes, as in the sibling code."""
UnrollFn = Callable[[types.Params, types.Features], jax.Array]
"""`(params, frames [T, B, ...]) -> logits [T, B, h, w, K]`."""
CountFn = Callable[[types.Params, types.FeatureStore, types.Array], "ClipScores"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipScores:
    """What is counted on the scored frames of N candidates.

    Attributes:
      counts: i32 [N, K, K], rows = truth.
      flicker: i32 [N, 2], changed and all pixels whose truth did not change since the frame before.
      is_finite: bool [N], all logits were finite.
    """

    counts: types.Array
    flicker: types.Array
    is_finite: types.Array


def scored_frames(num_frames: int, interval: int | None) -> tuple[int, ...]:
    """The frames of a clip that are scored, in order.

    In mode propagate, with this interval of key frames, all between key frames, so that every age weighs alike; the
    others are the static network's. In mode refine (None), and where every frame is a key frame, the target alone.
    """
    return schedule_lib.between_key_frames(num_frames, interval) or (num_frames - 1,)


def batches(num_clips: int, section: ml_collections.ConfigDict) -> np.ndarray:
    """Clips 0 .. num_clips - 1 as groups of batches, i32 [groups, R, B], padded with -1; `section` is `search`.

    R is that of one reward, so that rewards and re-scoring share one compiled program.
    """
    num_batches = -(-section.reward_clips // section.batch_size)
    num_groups = -(-num_clips // (num_batches * section.batch_size))
    clips = feature_store.in_order(
        num_clips, num_groups * num_batches * section.batch_size, section.batch_size, section.batch_parts
    )
    return clips.reshape(num_groups, num_batches, section.batch_size)


def sum_batches(
    unroll_fn: Callable[[types.Features], jax.Array],
    store: types.FeatureStore,
    clips: jax.Array,
    interval: int | None,
) -> ClipScores:
    """Counts of one candidate over batches of clips, i32 [R, B], -1 = padding; for traced code, without axis N."""
    parts = jax.lax.map(lambda batch: _of_batch(unroll_fn, store, batch, interval), clips)
    return ClipScores(parts.counts.sum(axis=0), parts.flicker.sum(axis=0), parts.is_finite.all())


def _of_batch(
    unroll_fn: Callable[[types.Features], jax.Array],
    store: types.FeatureStore,
    clips: jax.Array,
    interval: int | None,
) -> ClipScores:
    """Counts on some clips, i32 [B], at the labels' size."""
    features, labels = feature_store.take(store, jnp.maximum(clips, 0))
    labels = jnp.where((clips >= 0)[:, None, None], labels, types.IGNORE)
    logits, size = unroll_fn(features), labels.shape[-2:]
    now = np.array(scored_frames(len(logits), interval))
    before = np.maximum(now - 1, 0)
    first = before.min()
    # Frame by frame: logits at the size of the labels are the largest arrays here.
    found = jax.lax.map(lambda frame: static_net.predict(frame, size), logits[first:])
    truth, predictions = labels[now], found[now - first]
    is_constant = (labels[before] == truth) & (truth != types.IGNORE)
    changed = is_constant & (found[before - first] != predictions)
    return ClipScores(
        counts=metrics.confusion(truth, predictions, logits.shape[-1]),
        flicker=jnp.stack([changed.sum(), is_constant.sum()]).astype(jnp.int32),
        is_finite=jnp.isfinite(logits[first:]).all(),
    )


def add(parts: Sequence[ClipScores]) -> ClipScores:
    """The counts of groups of clips added up, on the host."""
    every = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(list(parts)))
    return ClipScores(every.counts.sum(axis=0), every.flicker.sum(axis=0), every.is_finite.all(axis=0))


def make_count(unroll_fn: UnrollFn, interval: int | None) -> CountFn:
    """The jitted `(params, store, clips i32 [R, B]) -> ClipScores` of one network, N = 1."""

    def count(params: types.Params, store: types.FeatureStore, clips: jax.Array) -> ClipScores:
        found = sum_batches(lambda features: unroll_fn(params, features), store, clips, interval)
        return jax.tree.map(lambda x: x[None], found)

    return compilation.jit(count)


def of_store(
    count_fn: CountFn, params: types.Params, store: feature_store.AnyStore, section: ml_collections.ConfigDict
) -> ClipScores:
    """What `make_count` made counts on all clips of a store; `section` is `search` of the configuration."""
    groups = batches(store.num_clips, section)
    return add([count_fn(params, *feature_store.anywhere(store, group)) for group in groups])


def shares(counts: np.ndarray, flicker: np.ndarray) -> dict[str, float]:
    """Shares in 0..1 of one candidate's counts, [K, K] and [2]: those of `PARTS`, `accuracy` and `flicker`."""
    found: dict[str, Any] = metrics.scores(counts)
    changed, total = flicker
    return {name: float(found[name]) for name in (*PARTS, "accuracy")} | {"flicker": float(changed / max(total, 1))}


def accuracy(parts: dict[str, float]) -> float:
    """The accuracy of rewards, from `shares`."""
    return float(np.prod([parts[name] for name in PARTS]) ** (1 / len(PARTS)))
