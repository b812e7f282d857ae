"""What the training of cells minimises, in a search and after it: cross-entropy as the static network's, and a teacher.

The teacher is the static network itself, whose logits the features hold: between key frames (mode propagate) its
output is what a cell is to be near, and frames without labels can say it as well as others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.train import losses

AUTO, TARGET, ALL = "auto", "target", "all"
PRETRAIN, PLAIN = "pretrain", "plain"
COUNTS = "counts"
"""A map [T, B, 1, 1, 1] of the features of training clips where `is_mixed`: the frames whose pixels count, 0 or 1."""

TEACHER = "teacher"
"""A map [T, B, h, w, K] of the features of training clips where `has_teacher_map`: the teacher's logits."""


@dataclasses.dataclass(frozen=True)
class CellLoss:
    """The loss of clips; the default is the mean cross-entropy over the labelled pixels of all frames.

    Attributes:
      label_stride: pixels between the labels that count, per axis.
      class_weights: K numbers; as `smoothing` and `hardest`, of `losses.cross_entropy`. None: all alike.
      frames: whose pixels count, see `frame_weights`.
      is_still: the frames of a clip are made from one.
      num_ages: of `cell_frame.CellSettings`: mode propagate: the interval of the key frames; 0: mode refine.
      has_labels: False: labels are not looked at.
      teacher_weight: of the divergence from the static network, 0 = off; `temperature` as in `losses.distillation`.
      teaches_all: the teacher counts on labelled frames, too.
      is_taught_apart: the teacher's logits are not those of the static network, and the features hold both.
      is_mixed: which frames count differs from clip to clip, and the features say so.
    """

    label_stride: int
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    hardest: float = 1.0
    frames: str = ALL
    is_still: bool = False
    num_ages: int = 0
    has_labels: bool = True
    teacher_weight: float = 0.0
    temperature: float = 1.0
    teaches_all: bool = False
    is_taught_apart: bool = False
    is_mixed: bool = False

    def frame_weights(self, num_frames: int) -> tuple[float, ...]:
        """What a pixel of each frame of a clip weighs, 0 or 1; the last frame is the target.

        `target`: the last alone. `all`: every frame. `auto`: in mode propagate all frames between key frames alike,
        whatever their age (on a key frame the logits are the static network's, there is nothing to learn); in mode
        refine the target of stills, whose earlier frames are views of the same image in which the network has seen
        the labels as well, and all frames of a true history. Where every frame is a key frame, all.
        """
        chosen: tuple[int, ...] = tuple(range(num_frames))
        if self.frames == TARGET or (self.frames == AUTO and not self.num_ages and self.is_still):
            chosen = (num_frames - 1,)
        elif self.frames == AUTO and self.num_ages:
            chosen = schedule_lib.between_key_frames(num_frames, self.num_ages) or chosen
        return tuple(float(frame in chosen) for frame in range(num_frames))

    def of_batch(
        self, features: types.Features, labels: jax.Array
    ) -> tuple[Callable[[jax.Array], jax.Array], types.Features]:
        """The loss of a batch of clips [T, B, ...], `logits -> f32 []`, and the features without what is its alone."""
        maps = dict(features.maps)
        counts, teacher = maps.pop(COUNTS, None), maps.pop(TEACHER, None)
        assert (teacher is not None) == self.is_taught_apart, "the features lack what the teacher says"
        teacher = features.logits if teacher is None else teacher
        counts = None if counts is None else jnp.asarray(counts).reshape(labels.shape[:2])
        own = types.Features(maps=maps, logits=features.logits)
        return functools.partial(self, labels=labels, teacher=teacher, counts=counts), own

    def __call__(
        self, logits: jax.Array, labels: jax.Array, teacher: types.Array, counts: types.Array | None = None
    ) -> jax.Array:
        """The loss f32 [].

        Args:
          logits: [T, B, h, w, K], the cell's.
          labels: u8 [T, B, H, W], 255 = ignore.
          teacher: [T, B, h, w, K], the teacher's logits of the same frames.
          counts: f32 [T, B], whether the frames of each clip count, where `is_mixed`.
        """
        assert (counts is not None) == self.is_mixed, "which frames count is not known"
        weights = self.frame_weights(len(logits))
        # The frames that count nowhere are not computed.
        first = min(index for index, weight in enumerate(weights) if weight)
        stop = 1 + max(index for index, weight in enumerate(weights) if weight)
        weights, logits = weights[first:stop], logits[first:stop]
        labels = losses.subsample_labels(labels[first:stop], self.label_stride)
        images = None
        if min(weights) < max(weights):
            images = jnp.broadcast_to(np.array(weights, np.float32)[:, None], labels.shape[:2])
        if counts is not None:
            own = jnp.asarray(counts[first:stop])
            images = own if images is None else images * own
        total = jnp.zeros(())
        if self.has_labels:
            total += losses.cross_entropy(
                logits,
                labels,
                class_weights=None if self.class_weights is None else np.array(self.class_weights, np.float32),
                smoothing=self.smoothing,
                hardest=self.hardest,
                image_weights=images,
            )[0]
        if self.teacher_weight:
            if self.has_labels and not self.teaches_all:
                is_unlabelled = (labels == types.IGNORE).all(axis=(-2, -1)).astype(jnp.float32)
                images = is_unlabelled if images is None else images * is_unlabelled
            divergence = losses.distillation(logits, jnp.asarray(teacher)[first:stop], self.temperature, images)
            total += self.teacher_weight * divergence
        return total


def is_mixed(config: ml_collections.ConfigDict) -> bool:
    """Whether some training clips are stills, of which the target counts, and others true histories, of which all do.

    So it is where stills are the run's own data and further data (`data.extra`) is beside it.
    """
    section, is_refining = config.train, config.space.mode != "propagate"
    return bool(config.data.extra) and config.data.history == "stills" and section.frames == AUTO and is_refining


def has_teacher_map(config: ml_collections.ConfigDict) -> bool:
    """Whether there is a teacher that is not the static network itself."""
    return bool(config.train.teacher_weight > 0 and config.train.teacher != config_lib.NETWORK)


def make(config: ml_collections.ConfigDict, label_stride: int, class_weights: np.ndarray | None) -> CellLoss:
    """The loss that section `train` describes, at the label stride of a training.

    `class_weights`: f32 [K], of section `pretrain` (`pretrain.class_weights`); None where it asks for none.

    Raises:
      UserError: the only frame that counts is a key frame.
    """
    section, interval = config.train, 0
    if config.space.mode == "propagate":
        interval = config.schedule.interval
        last = config.data.num_frames - 1
        if section.frames == TARGET and not last % interval:
            raise errors.UserError(
                f"train.frames target: the last of data.num_frames ({last + 1}) frames is a key frame, as "
                f"schedule.interval is {interval}, and a cell learns nothing there; set train.frames to auto"
            )
    found = CellLoss(
        label_stride,
        frames=section.frames,
        is_still=config.data.history == "stills" and not is_mixed(config),
        is_taught_apart=has_teacher_map(config),
        is_mixed=is_mixed(config),
        num_ages=interval,
        has_labels=section.labels,
        teacher_weight=section.teacher_weight,
        temperature=section.temperature,
        teaches_all=section.teacher_frames == "all",
    )
    if section.loss == PLAIN:
        return found
    assert class_weights is not None or not config.pretrain.class_weights, "the class weights are missing"
    weights = None if class_weights is None else tuple(np.asarray(class_weights, float).tolist())
    of_pretrain = {"smoothing": config.pretrain.label_smoothing, "hardest": config.pretrain.hardest}
    return dataclasses.replace(found, class_weights=weights, **of_pretrain)
