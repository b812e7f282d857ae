"""What the training of a static network minimises: cross-entropy, an auxiliary loss, a teacher's predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import claims, losses

WEIGHT_BATCHES = 50
"""Batches whose labels decide the class weights that are counted."""
COUNTED = {"median": losses.median_weights, "log": losses.log_weights}
"""Kinds of `pretrain.class_weights` that follow from the training labels: pixel counts [N, K] -> weights [K]."""


class Teacher(NamedTuple):
    """A trained static network; `net` is None where there is no teacher."""

    net: static_net.StaticNet | None
    variables: Any


Loss = Callable[[Any, Any, types.Clip, Any, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]


def make(
    section: ml_collections.ConfigDict,
    net: static_net.StaticNet,
    teacher_net: static_net.StaticNet | None = None,
    class_weights: np.ndarray | None = None,
) -> Loss:
    """Builds the loss of a section `pretrain`.

    Args:
      section: of the configuration.
      net: that is trained.
      teacher_net: whose predictions count as well.
      class_weights: f32 [K].

    Returns:
      `(params, batch_stats, clip, teacher variables, rng) -> (loss, (new batch_stats, parts of the loss))`.
    """
    options = {"class_weights": class_weights, "smoothing": section.label_smoothing, "hardest": section.hardest}

    def segmentation(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.cross_entropy(logits, labels, **options)[0]

    def loss_fn(
        params: Any, batch_stats: Any, clip: types.Clip, teacher: Any, rng: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        frames = clip.frames.reshape(-1, *clip.frames.shape[2:])
        images = static_net.normalise(net, frames)
        labels = jnp.asarray(clip.labels).reshape(-1, *clip.labels.shape[2:])
        found, updated = net.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng} if net.dropout else {},
        )
        total = segmentation(found.logits, labels)
        parts = {}
        if net.has_auxiliary:
            parts["auxiliary"] = segmentation(found.maps["auxiliary"], labels)
            total += section.auxiliary_weight * parts["auxiliary"]
        if teacher_net is not None:
            images = static_net.normalise(teacher_net, frames)
            theirs: Any = jax.lax.stop_gradient(teacher_net.apply(teacher, images, train=False))
            parts["distillation"] = losses.distillation(found.logits, theirs.logits, section.temperature)
            total += section.distillation * parts["distillation"]
        return total, (updated["batch_stats"], parts)

    return loss_fn


def class_weights(text: str, num_classes: int, batches_fn: Callable[[], Iterator[types.Clip]]) -> np.ndarray | None:
    """The class weights f32 [K] that `pretrain.class_weights` asks for: empty (None: all alike), a kind of `COUNTED`
    or K numbers.

    `batches_fn` gives the training batches from the first one on; their labels are counted for those kinds.

    Raises:
      UserError: none of these.
    """
    if not text:
        return None
    if text in COUNTED:
        counts = [
            np.bincount(image.ravel(), minlength=256)[:num_classes]
            for clip in itertools.islice(batches_fn(), WEIGHT_BATCHES)
            for image in np.asarray(clip.labels).reshape(-1, *clip.labels.shape[2:])
        ]
        return COUNTED[text](np.array(counts))
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        values = np.zeros(0, np.float32)
    if len(values) != num_classes or not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise errors.UserError(
            f"config key 'pretrain.class_weights': must be {', '.join(COUNTED)} or {num_classes} numbers (at least 0, "
            f"not all 0) separated by commas, got {text!r}"
        )
    return values


def load_teacher(
    path: str,
    num_classes: int,
    restore_fn: Callable[[ml_collections.ConfigDict, workdir.Workdir], Any],
    *,
    key: str = "pretrain.teacher",
) -> Teacher:
    """The static network of another run, in the folder `path` (empty: no teacher).

    `key` is that of the config. `restore_fn` is `(config, folder) -> variables`, None where the network is not trained.

    Raises:
      UserError: no run, no trained network, or another number of classes.
    """
    if not path:
        return Teacher(None, None)
    folder = workdir.Workdir(path)
    instead = (
        "or leave pretrain.teacher empty"
        if key == "pretrain.teacher"
        else "or set train.teacher to network or augmented"
    )
    if not folder.is_claimed:
        raise errors.UserError(f"{key}: {path} holds no run (no config.json); give a run folder, {instead}")
    config = claims.config_of(folder)
    variables = restore_fn(config, folder)
    if variables is None:
        raise errors.UserError(
            f"{key}: {path} holds no trained static network; run `dvsnas train --workdir={path}` first, {instead}"
        )
    found = len(variables["params"]["classifier"]["bias"])
    if found != num_classes:
        raise errors.UserError(
            f"{key}: the network in {path} has {found} classes, not {num_classes}; give a run on the same "
            f"classes, {instead}"
        )
    return Teacher(static_net.make(config.net, found), variables)
