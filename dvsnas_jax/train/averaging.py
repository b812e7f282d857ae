"""The running average of the static network's logits: what costs nothing and needs no training (refine).

average_t = share * logits_t + (1 - share) * average_{t-1}, at the grid, before the logits are interpolated; the first
frame's is its own. The share is chosen on the meta-validation clips, once for a run folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data.loading import pipeline
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell_end
from dvsnas_jax.train import clip_scores, features, pretrain

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""What is tried, ascending; 1: the static network as it is."""
FILE = "averaging.json"
_CLIPS = 8
"""Clips counted at a time: one shape, one compilation."""


def share_of_run(config: ml_collections.ConfigDict, variables: Any, folder: workdir.Workdir) -> float:
    """The share of a run: the one that its folder holds, else `best_share` on the meta-validation clips, kept there.

    Args:
      config: of the run.
      variables: of its trained static network.
      folder: the run folder.

    Raises:
      UserError: the train split cannot be read.
    """
    if (known := known_share(folder)) is not None:
        return known
    data = config.data
    _, chosen = pretrain.split_clips(config)
    num_classes = pipeline.class_table(data).num_classes
    forward, counts = features.make_forward(config), np.zeros((len(SHARES), num_classes, num_classes), np.int64)
    for start in range(0, len(chosen), _CLIPS):
        clip = features.select(config, chosen[start : start + _CLIPS])
        frames, labels = np.asarray(clip.frames), np.asarray(clip.labels)[:, -1]
        found = [np.asarray(each.logits) for each in forward(variables, frames.reshape(-1, *frames.shape[2:]))]
        logits = np.concatenate(found)[: frames.shape[0] * frames.shape[1]]
        counts += share_counts(logits.reshape(*frames.shape[:2], *logits.shape[1:]).swapaxes(0, 1), labels)
    share = _best(counts) if data.num_frames > 1 else 1.0
    if distributed.is_main():
        mious = [metrics.scores(count)["miou"] for count in counts]
        tried = {f"{each}": round(miou, 5) for each, miou in zip(SHARES, mious, strict=True) if np.isfinite(miou)}
        folder.write_json(FILE, {"share": share, "miou": tried, "num_clips": len(chosen)})
    return share


def starting_share(config: ml_collections.ConfigDict, variables: Any, folder: workdir.Workdir) -> float | None:
    """The share that the cells of a run start from; None where they start from no running average."""
    is_averaging = config.space.mode == "refine" and config.space.end != cell_end.CLASSIFIER
    return share_of_run(config, variables, folder) if is_averaging else None


def baseline(config: ml_collections.ConfigDict, variables: Any, folder: workdir.Workdir) -> clip_scores.Baseline | None:
    """What the gain in the rewards of a run is measured from; None where they ask for none.

    Refine: the running average with the share of the run (`zoo:ema`). Propagate: the logits of the last key frame, at
    the interval of the schedule (`zoo:hold`). Args and errors: see `share_of_run`.
    """
    if config.search.reward != clip_scores.GAIN:
        return None
    ages = features.settings_of(config).num_ages
    share = share_of_run(config, variables, folder) if not ages else 1.0

    def held(logits: jax.Array) -> jax.Array:
        return logits[np.arange(len(logits)) // ages * ages]

    def averaged(logits: jax.Array) -> jax.Array:
        return jnp.stack([*_averages(logits, share)])

    return clip_scores.Baseline(held if ages else averaged, config.search, ages)


def _averages(logits: jax.Array, share: jax.Array | float) -> Iterator[jax.Array]:
    """The running average after each frame of logits [T, ...]."""
    average = logits[0]
    yield average
    for frame in logits[1:]:
        average = share * frame + (1 - share) * average
        yield average


def known_share(folder: workdir.Workdir) -> float | None:
    """The share that `share_of_run` keeps in a run folder, None where it was not chosen yet."""
    return float(folder.read_json(FILE)["share"]) if (folder.path / FILE).is_file() else None


def best_share(logits: types.Array, labels: types.Array) -> float:
    """The one of `SHARES` whose average gives the best mIoU on the target frames; of equal ones the steadiest.

    1 where nothing speaks for less: clips of one frame, or no labelled pixel.

    Args:
      logits: f32 [T, B, h, w, K] of the static network on clips, oldest frame first.
      labels: u8 [B, H, W] of their last frames, 255 = ignore.
    """
    if len(logits) == 1:
        return 1.0
    parts = range(0, len(labels), _CLIPS)
    return _best(sum(share_counts(logits[:, at : at + _CLIPS], labels[at : at + _CLIPS]) for at in parts))


def _best(counts: Any) -> float:
    """The best of `SHARES` by its confusion counts [S, K, K]."""
    mious = [metrics.scores(count)["miou"] for count in np.asarray(counts)]
    return SHARES[int(np.argmax(mious))] if np.isfinite(mious).all() else 1.0


def share_counts(logits: types.Array, labels: types.Array) -> np.ndarray:
    """Confusion counts i64 [S, K, K] of each of `SHARES` on the last frames of at most `_CLIPS` clips."""
    missing = _CLIPS - len(labels)
    chex.assert_equal(logits.shape[1], len(labels))
    filled = np.pad(np.asarray(logits, np.float32), [(0, 0), (0, missing), (0, 0), (0, 0), (0, 0)])
    ignored = np.pad(labels, [(0, missing), (0, 0), (0, 0)], constant_values=types.IGNORE)
    return np.asarray(compilation.jit_once(_counts)(filled, ignored), np.int64)


def _counts(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """i32 [S, K, K] of logits [T, B, h, w, K] and labels [B, H, W]."""

    def of_share(share: jax.Array) -> jax.Array:
        *_, average = _averages(logits, share)
        # Clip by clip: many at the size of the labels need not fit into memory.
        found = jax.lax.map(lambda one: static_net.predict(one[None], labels.shape[1:])[0], average)
        return metrics.confusion(labels, found, logits.shape[-1])

    return jax.lax.map(of_share, jnp.asarray(SHARES, jnp.float32))
