"""What is counted of a cell on clips whose features are known, and from the counts to its reward.

The same during a search, while a cell is trained, and after it.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

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
PLAIN, GAIN = "plain", "gain"
RULES = (PLAIN, GAIN)
"""What a reward is before its factors, see `reward`."""
FOLLOW_FRAMES = 2
"""A true change counts as followed up to so many frames later, as far as a clip goes."""
_SOFT = 0.01  # what nothing gained still counts for, twice: a hundredth of what is left to gain
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
      changes: i32 [N, 3], of all frames before and among these: pixels whose truth changes and whose prediction follows
        within `FOLLOW_FRAMES` (`metrics.changes_followed`), all whose truth changes, and pixels that changed as in
        `flicker`; 0 where they were not asked for.
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
    unroll_fn: Callable[[types.Features], jax.Array],
    store: types.FeatureStore,
    clips: jax.Array,
    ages: int,
    do_follow: bool = False,
) -> ClipScores:
    """Counts of one candidate over batches of clips, i32 [R, B], see `batches`; for traced code, without axis N.

    `do_follow`: whether `changes` are counted, too, which takes the predictions of more frames.
    """
    return total(each_batch(unroll_fn, store, clips, ages, do_follow))


def total(parts: ClipScores) -> ClipScores:
    """What was counted along the leading axis together, without that axis; for traced code, and for the host."""
    counts, flicker, changes = (x.sum(axis=0) for x in (parts.counts, parts.flicker, parts.changes))
    return ClipScores(counts, flicker, changes, cast(types.Array, parts.is_finite.all(axis=0)))


def each_batch(
    unroll_fn: Callable[[types.Features], jax.Array],
    store: types.FeatureStore,
    clips: jax.Array,
    ages: int,
    do_follow: bool = False,
) -> ClipScores:
    """Counts of each batch of clips, i32 [R, B], N = R; for traced code."""
    return jax.lax.map(lambda batch: _of_batch(unroll_fn, store, batch, ages, do_follow), clips)


def _of_batch(
    unroll_fn: Callable[[types.Features], jax.Array],
    store: types.FeatureStore,
    clips: jax.Array,
    ages: int,
    do_follow: bool,
) -> ClipScores:
    """Counts of one candidate on the scored frames of some clips, at the labels' size.

    Flicker and changes count up to the next key frame. Clip ~c (below 0) is clip c, which its batch is normalised with
    like any other; no count has it.
    """
    features, labels = feature_store.take(store, feature_store.number(clips))
    near = slice(0, ages + 1) if ages else slice(None if do_follow else -2, None)
    labels = jnp.where((clips >= 0)[:, None, None], labels[near], types.IGNORE)
    logits = unroll_fn(features)[near]
    # Frame by frame: logits of that size are the largest arrays of the step.
    predictions = jax.lax.map(lambda frame: static_net.predict(frame, labels.shape[-2:]), logits)
    is_constant = (labels[:-1] == labels[1:]) & (labels[1:] != types.IGNORE)
    changed = is_constant & (predictions[:-1] != predictions[1:])
    flicker = [pixels[slice(None) if ages else slice(-1, None)].sum() for pixels in (changed, is_constant)]
    changes = [*_followed(labels, predictions), changed.sum()] if do_follow else [jnp.zeros((), jnp.int32)] * 3
    return ClipScores(
        counts=metrics.confusion(scored(labels, ages), scored(predictions, ages), logits.shape[-1]),
        flicker=jnp.stack(flicker).astype(jnp.int32),
        changes=jnp.stack(changes).astype(jnp.int32),
        is_finite=jnp.isfinite(logits).all(),
    )


def _followed(labels: jax.Array, predictions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`metrics.changes_followed` within `FOLLOW_FRAMES`, traced: of frames [T, ...]."""
    followed = total = jnp.zeros((), jnp.int32)
    left = jnp.zeros(labels.shape[1:], jnp.int32)  # frames in which a change may still be followed, this one included
    is_right = predictions == labels
    for frame in range(1, len(labels)):
        before, truth = labels[frame - 1], labels[frame]
        is_change = (truth != before) & (truth != types.IGNORE) & (before != types.IGNORE)
        left = jnp.where(is_change & is_right[frame - 1], FOLLOW_FRAMES + 1, jnp.where(truth == before, left, 0))
        is_followed = (left > 0) & is_right[frame]
        followed, total = followed + is_followed.sum(), total + is_change.sum()
        left = jnp.where(is_followed, 0, jnp.maximum(left - 1, 0))
    return followed, total


def add(parts: Sequence[ClipScores]) -> ClipScores:
    """The counts of groups of clips added up, on the host."""
    every = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(list(parts)))
    return total(every)


def make_count(unroll_fn: UnrollFn, ages: int = 0, do_follow: bool = False) -> CountFn:
    """The jitted `(params, store, clips i32 [R, B]) -> ClipScores` of one network, N = 1.

    `ages`: `CellSettings.num_ages`; `do_follow`: see `sum_batches`.
    """

    def count(params: types.Params, store: types.FeatureStore, clips: jax.Array) -> ClipScores:
        found = sum_batches(lambda features: unroll_fn(params, features), store, clips, ages, do_follow)
        return jax.tree.map(lambda x: x[None], found)

    return compilation.jit(count)


def of_store(
    count_fn: CountFn,
    params: types.Params,
    store: feature_store.AnyStore,
    section: ml_collections.ConfigDict,
    num_clips: int | None = None,
) -> ClipScores:
    """What `make_count` made counts on the first clips of a store, None: on all; `section` is `search` of the
    configuration."""
    groups = batches(num_clips or store.num_clips, section)
    return add([count_fn(params, *feature_store.anywhere(store, group)) for group in groups])


class Baseline:
    """What needs no training, scored on the clips that cells are scored on; `GAIN` is measured from it.

    Attributes:
      logits_fn: its logits [T, B, h, w, K], from those of the static network.
    """

    def __init__(
        self, logits_fn: Callable[[jax.Array], jax.Array], section: ml_collections.ConfigDict, ages: int
    ) -> None:
        """`section` is `search` of the configuration; `ages`: `CellSettings.num_ages`."""
        self.logits_fn, self._section = logits_fn, section
        self._count_fn = make_count(lambda _, frames: logits_fn(jnp.asarray(frames.logits)), ages, do_follow=True)
        self._known: list[tuple[feature_store.AnyStore, int, float]] = []
        self._lock = threading.Lock()  # candidates are scored in threads

    def accuracy(self, store: feature_store.AnyStore, num_clips: int | None = None) -> float:
        """Its accuracy on the first clips of a store, None: on all; they are counted once.

        Raises:
          UserError: no label changes there, so that no gain in stability can be measured.
        """
        num = num_clips or store.num_clips
        with self._lock:
            for known, count, value in self._known:
                if known is store and count == num:
                    return value
            parts = shares(of_store(self._count_fn, {}, store, self._section, num))
            if "change_f1" not in parts:
                raise errors.UserError(
                    "search.reward: must be plain here, as no label changes from a scored frame to the next in the "
                    f"{num} clips that cells are scored on; change the key, or score them on more clips"
                )
            value = accuracy(parts)
            self._known.append((store, num, value))
            return value


def shares(found: ClipScores, index: int = 0) -> dict[str, float]:
    """Shares in 0..1 of what one of N candidates counts: those of `PARTS`, `accuracy`, `flicker`.

    Where changes were counted also `followed` and `change_f1`, see `reward`.
    """
    scores: dict[str, Any] = metrics.scores(found.counts[index])
    (changed, constant), (followed, changes, false) = (np.asarray(x[index]) for x in (found.flicker, found.changes))
    parts = {name: float(scores[name]) for name in (*PARTS, "accuracy")}
    parts["flicker"] = float(changed / max(constant, 1))
    if changes:
        parts |= {
            "followed": float(followed / changes),
            "change_f1": float(2 * followed / (followed + changes + false)),
        }
    return parts


def accuracy(parts: dict[str, float]) -> float:
    """The accuracy of rewards, from `shares`."""
    return float(np.prod([parts[name] for name in PARTS]) ** (1 / len(PARTS)))


class Rule(NamedTuple):
    """What a reward is made of.

    Attributes:
      stability: exponent of the factor (1 - flicker); 0 = off.
      cost: exponent of the factor of the price (`search.reward.cost_factor`); 0 = off.
      cost_target: of that factor, in millions of multiply-adds.
      base: accuracy of the baseline on the same clips, which a gain is measured from; None: the rule is `PLAIN`.
    """

    stability: float = 0.0
    cost: float = 0.0
    cost_target: float = 1.0
    base: float | None = None


def rule(section: ml_collections.ConfigDict, base: float | None = None) -> Rule:
    """That of a section `search`; `base` of `Rule`, where it asks for the gain."""
    return Rule(section.stability, section.cost, section.cost_target, base)


def gain(parts: dict[str, float], base: float) -> float:
    """The share of the baseline's error that a candidate takes away; below 0 where it adds to it."""
    return (accuracy(parts) - base) / max(1.0 - base, 1e-6)


def reward(parts: dict[str, float], rule: Rule) -> float:
    """The reward, without the factor of the price, of a candidate with these `shares`.

    `PLAIN` is the accuracy. Most of it is what the baseline has, too, and a cell that repeats itself loses little of
    it. `GAIN` asks for both claims of the method, and each is nothing for who does nothing:

        sqrt(above_zero(gain) * change_f1)

    The first is `gain` over the baseline of the mode on the same clips. The second is the F1 score (van Rijsbergen
    1979, Information Retrieval, chapter 7) of the changes that the prediction makes: recall is the share of true
    changes that it follows, from the old label to the new, and precision falls with every flicker. Who holds makes no
    true change and has 0. Who flickers makes many, nearly all of them false, as true ones are a few per cent of the
    pixels. (1 - flicker) alone is highest for who holds. Recall * (1 - flicker) has next to nothing of the flicker,
    which differs by some hundredths. Recall - flicker is negative where few changes are followed, and then highest for
    who holds. It is no gain over the baseline's, which trades flicker for delay.
    """
    value = accuracy(parts)
    if rule.base is not None:
        value = math.sqrt(above_zero(gain(parts, rule.base)) * parts.get("change_f1", 0.0))
    return value * (1.0 - parts["flicker"]) ** rule.stability


def above_zero(value: float) -> float:
    """A rising, smooth map to what is above 0: the value itself where it is large, 0.005 at 0.

    (x + sqrt(x^2 + c^2)) / 2 with c = 0.01 (squareplus: Barron 2021, arXiv 2112.11687). Cut off at 0, most candidates
    of a short training would be alike. Below 0 it falls as c^2 / |4 x| and not exponentially, so that they are still
    told apart.
    """
    return (value + math.sqrt(value * value + _SOFT * _SOFT)) / 2
