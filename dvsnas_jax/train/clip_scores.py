"""What is counted of a cell on clips whose features are known: during a search, while a cell is trained, after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import feature_store

PARTS = ("miou", "fwiou", "class_accuracy")
"""Whose geometric mean is the accuracy of rewards; the last is the mean over classes, as in the sibling code."""
UnrollFn = Callable[[types.Params, types.Features], jax.Array]
"""`(params, frames [T, B, ...]) -> logits [T, B, h, w, K]`."""
CountFn = Callable[[types.Params, types.FeatureStore, types.Array], "ClipScores"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipScores:
    """What is counted on the scored frames of N candidates, see `scored`.

    Attributes:
      counts: i32 [N, K, K], rows = truth.
      flicker: i32 [N, 2], changed and all pixels whose truth did not change since the frame before.
      changes: i32 [N, 2], followed at once and all pixels whose truth did (`metrics.changes_followed` with n = 0).
      is_finite: bool [N], all logits were finite.
    """

    counts: types.Array
    flicker: types.Array
    changes: types.Array
    is_finite: types.Array


def scored(frames: Any, ages: int) -> Any:
    """The frames of clips [T, ...] that a score counts.

    Refine (`ages` 0): the last one, the target. Propagate: the first `ages`, one of each age, so that all weigh alike;
    of clips with a label on the last frame alone, see `features.spread_ages`.
    """
    return frames[:ages] if ages else frames[-1:]


def batches(num_clips: int, section: ml_collections.ConfigDict) -> np.ndarray:
    """Clips 0 .. num_clips - 1 as groups of batches, i32 [groups, R, B], filled up as `feature_store.in_order` does it.

    R is that of one reward, so that rewards and re-scoring share one compiled program. B is `search.batch_size`, or as
    many clips as there are: no batch needs one of them twice. `section` is `search` of the configuration.
    """
    parts = section.batch_parts
    if num_clips < parts:
        raise errors.UserError(
            f"config key 'search.batch_parts': must be at most the number of scored clips ({num_clips}), got {parts}"
        )
    size = min(section.batch_size, num_clips // parts * parts)
    num_batches = -(-min(section.reward_clips, num_clips) // size)
    num_groups = -(-num_clips // (num_batches * size))
    clips = feature_store.in_order(num_clips, num_groups * num_batches * size, size, parts)
    return clips.reshape(num_groups, num_batches, size)


def sum_batches(
    unroll_fn: Callable[[types.Features], jax.Array], store: types.FeatureStore, clips: jax.Array, ages: int
) -> ClipScores:
    """Counts of one candidate over batches of clips, i32 [R, B], see `batches`; for traced code, without axis N."""
    return total(each_batch(unroll_fn, store, clips, ages))


def total(parts: ClipScores) -> ClipScores:
    """What was counted along the leading axis together, without that axis; for traced code, and for the host."""
    sums = (x.sum(axis=0) for x in (parts.counts, parts.flicker, parts.changes))
    return ClipScores(*sums, is_finite=parts.is_finite.all(axis=0))


def each_batch(
    unroll_fn: Callable[[types.Features], jax.Array], store: types.FeatureStore, clips: jax.Array, ages: int
) -> ClipScores:
    """Counts of each batch of clips, i32 [R, B], N = R; for traced code."""
    return jax.lax.map(lambda batch: _of_batch(unroll_fn, store, batch, ages), clips)


def _of_batch(
    unroll_fn: Callable[[types.Features], jax.Array], store: types.FeatureStore, clips: jax.Array, ages: int
) -> ClipScores:
    """Counts of one candidate on the scored frames of some clips, at the labels' size.

    Flicker and changes count up to the next key frame. Clip ~c (below 0) is clip c, which its batch is normalised with like any
    other; no count has it.
    """
    features, labels = feature_store.take(store, feature_store.number(clips))
    near = slice(0, ages + 1) if ages else slice(-2, None)
    labels = jnp.where((clips >= 0)[:, None, None], labels[near], types.IGNORE)
    logits = unroll_fn(features)[near]
    # Frame by frame: logits of that size are the largest arrays of the step.
    predictions = jax.lax.map(lambda frame: static_net.predict(frame, labels.shape[-2:]), logits)
    is_known = (labels[:-1] != types.IGNORE) & (labels[1:] != types.IGNORE)
    is_constant, is_change = is_known & (labels[:-1] == labels[1:]), is_known & (labels[:-1] != labels[1:])
    changed, is_right = is_constant & (predictions[:-1] != predictions[1:]), predictions == labels
    followed = is_change & is_right[:-1] & is_right[1:]
    return ClipScores(
        counts=metrics.confusion(scored(labels, ages), scored(predictions, ages), logits.shape[-1]),
        flicker=jnp.stack([changed.sum(), is_constant.sum()]).astype(jnp.int32),
        changes=jnp.stack([followed.sum(), is_change.sum()]).astype(jnp.int32),
        is_finite=jnp.isfinite(logits).all(),
    )


def add(parts: Sequence[ClipScores]) -> ClipScores:
    """The counts of groups of clips added up, on the host."""
    every = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(list(parts)))
    return total(every)


def make_count(unroll_fn: UnrollFn, ages: int = 0) -> CountFn:
    """The jitted `(params, store, clips i32 [R, B]) -> ClipScores` of one network, N = 1.

    `ages`: `CellSettings.num_ages`.
    """

    def count(params: types.Params, store: types.FeatureStore, clips: jax.Array) -> ClipScores:
        found = sum_batches(lambda features: unroll_fn(params, features), store, clips, ages)
        return jax.tree.map(lambda x: x[None], found)

    return compilation.jit(count)


def of_store(
    count_fn: CountFn, params: types.Params, store: feature_store.AnyStore, section: ml_collections.ConfigDict
) -> ClipScores:
    """What `make_count` made counts on all clips of a store; `section` is `search` of the configuration."""
    groups = batches(store.num_clips, section)
    return add([count_fn(params, *feature_store.anywhere(store, group)) for group in groups])


def shares(counts: types.Array, flicker: types.Array) -> dict[str, float]:
    """Shares in 0..1 of one candidate's counts, [K, K] and [2]: those of `PARTS`, `accuracy` and `flicker`."""
    found: dict[str, Any] = metrics.scores(counts)
    changed, total = np.asarray(flicker)
    return {name: float(found[name]) for name in (*PARTS, "accuracy")} | {"flicker": float(changed / max(total, 1))}


def accuracy(parts: dict[str, float]) -> float:
    """The accuracy of rewards, from `shares`."""
    return float(np.prod([parts[name] for name in PARTS]) ** (1 / len(PARTS)))
