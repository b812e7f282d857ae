"""What cells are taught where the labels say nothing (`train.teacher`), computed when features are made, and kept.

`network` is the static network itself, whose logits the features hold anyway. `augmented` is the same network with
more work: the mean of its probabilities on mirror images and larger images, averaged over time. Any other value is a
run folder: of another static network, or of one with a trained cell, which then says what it says frame by frame of
each clip. A refining cell knows more than its network, and can so teach a propagating one without any label.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, progress, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data.loading import pipeline
from dvsnas_jax.nets import forward, static_net
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_loss, claims, features, joint, pretrain, pretrain_loss, winners

SCALES = (1.0, 1.5)
"""Of the images that `augmented` looks at, each with its mirror image."""
SHARE = 0.7
"""Of a frame in the running average of `augmented`; the rest is of what was before it in the clip."""
_LEAST = 1e-8


class Teacher(NamedTuple):
    """A teacher whose output is kept beside the features.

    Attributes:
      logits_fn: `(variables of the static network, frames u8 [M, T, H, W, 3]) -> logits [M, T, h, w, K]`, at the grid.
      about: what its output follows from besides those, for JSON.
    """

    logits_fn: Callable[[Any, np.ndarray], np.ndarray]
    about: list[str]

    def logits(self, variables: Any, clip: types.Clip) -> np.ndarray:
        """What the features of clips keep as `cell_loss.TEACHER`, bf16 [M, T, h, w, K]."""
        return self.logits_fn(variables, np.asarray(clip.frames)).astype(jnp.bfloat16)


def make(config: ml_collections.ConfigDict) -> Teacher | None:
    """The teacher of a config, None where there is none, or the features hold its logits anyway.

    Raises:
      UserError: a run folder without a trained static network of as many classes.
    """
    if not cell_loss.has_teacher_map(config):
        return None
    num_classes, name = pipeline.class_table(config.data).num_classes, config.train.teacher
    net = static_net.make(config.net, num_classes)
    if name == config_lib.AUGMENTED:
        return Teacher(functools.partial(_augmented, net), [name])
    other = pretrain_loss.load_teacher(name, num_classes, pretrain.restore, key="train.teacher")
    assert other.net is not None
    folder, variables = workdir.Workdir(name), other.variables
    if not winners.has_cell(folder):
        return Teacher(functools.partial(_of_another, net, other.net, variables), [_digest(variables)])
    theirs = claims.config_of(folder)
    cell, params, space, genotype = winners.load(theirs, folder)
    digest = genotype_lib.digest(space, genotype)
    weights = joint.network_of(theirs, folder, digest, variables), params
    return Teacher(functools.partial(_of_cell, net, other.net, cell, weights), [_digest(weights), digest])


def wanted(config: ml_collections.ConfigDict, clips: np.ndarray, names: tuple[str, ...]) -> features.Wanted:
    """The features that cells are trained on: of meta-training clips as they are, or `cache_clips` draws of them."""
    return features.Wanted(clips, names, config.search.cache_clips, is_training=True, teacher=make(config))


def running_average(probabilities: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Averages over the frames of clips [M, T, ...], each with this share, from the first frame on."""
    found = [probabilities[:, 0]]
    for frame in range(1, probabilities.shape[1]):
        found.append(share * probabilities[:, frame] + (1 - share) * found[-1])
    return np.stack(found, axis=1)


def _augmented(net: static_net.StaticNet, variables: Any, frames: np.ndarray) -> np.ndarray:
    found = _over_frames(functools.partial(_mean_of_views(net), variables), frames)
    return np.log(np.maximum(running_average(found), _LEAST))


def _of_another(
    net: static_net.StaticNet, other: static_net.StaticNet, others: Any, variables: Any, frames: np.ndarray
) -> np.ndarray:
    """The logits of the network `other` with the variables `others`, at the grid of those of `net`."""
    del variables
    return _over_frames(functools.partial(_at_size(other, _grid(net, frames)), others), frames)


def _of_cell(
    net: static_net.StaticNet,
    other: static_net.StaticNet,
    cell: cell_lib.Cell,
    weights: Any,
    variables: Any,
    frames: np.ndarray,
) -> np.ndarray:
    """Those of a cell on the network `other`, which follows each clip; `weights`: variables, parameters of the cell."""
    del variables
    unroll_fn = functools.partial(_unrolled(other, cell, _grid(net, frames)), *weights)
    return _in_parts(unroll_fn, frames, max(1, forward.BATCH_FRAMES // frames.shape[1]))


def _grid(net: static_net.StaticNet, frames: np.ndarray) -> tuple[int, int]:
    """Height and width of the logits of a network for frames [M, T, H, W, 3]."""
    height, width = static_net.frame_shapes(net, frames.shape[2:4]).logits.shape[1:3]
    return height, width


def _digest(weights: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(weights)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _over_frames(infer_fn: Callable[[np.ndarray], jax.Array], frames: np.ndarray) -> np.ndarray:
    """What a function gives for frames u8 [M, T, H, W, 3], some at a time, f32 [M, T, ...]."""
    whole = _in_parts(infer_fn, frames.reshape(-1, *frames.shape[2:]), forward.BATCH_FRAMES)
    return whole.reshape(*frames.shape[:2], *whole.shape[1:])


def _in_parts(fn: Callable[[np.ndarray], jax.Array], values: np.ndarray, size: int) -> np.ndarray:
    """What a function gives for values [N, ...], always `size` at a time, f32 [N, ...]."""
    found = []
    with progress.bar(len(values), "teacher") as bar:
        for start in range(0, len(values), size):
            rows = np.minimum(np.arange(start, start + size), len(values) - 1)
            found.append(np.asarray(fn(values[rows]), np.float32))
            bar.update(min(size, len(values) - start))
    return np.concatenate(found)[: len(values)]


@functools.cache
def _mean_of_views(net: static_net.StaticNet) -> Callable[[Any, np.ndarray], jax.Array]:
    """`(variables, frames u8 [B, H, W, 3]) -> probabilities [B, h, w, K]`."""

    def mean(variables: Any, frames: jax.Array) -> jax.Array:
        images, parts = static_net.normalise(net, frames), list[jax.Array]()
        for scale in SCALES:
            size = tuple(round(scale * length) for length in frames.shape[1:3])
            scaled = layers.resize_bilinear(images, (size[0], size[1])) if scale != 1 else images
            for view_fn in (lambda x: x, lambda x: jnp.flip(x, axis=2)):
                found: Any = net.apply(variables, view_fn(scaled), train=False)
                logits = view_fn(found.logits.astype(jnp.float32))
                grid = parts[0].shape[1:3] if parts else logits.shape[1:3]
                parts.append(jax.nn.softmax(layers.resize_bilinear(logits, (grid[0], grid[1]))))
        return sum(parts[1:], parts[0]) / len(parts)

    return compilation.jit(mean)


@functools.cache
def _at_size(net: static_net.StaticNet, size: tuple[int, int]) -> Callable[[Any, np.ndarray], jax.Array]:
    """`(variables, frames) -> logits` of a network, resized to a grid."""

    def resized(variables: Any, frames: jax.Array) -> jax.Array:
        return layers.resize_bilinear(jnp.asarray(static_net.infer(net, variables, frames).logits), size)

    return compilation.jit(resized)


def _unrolled(
    net: static_net.StaticNet, cell: cell_lib.Cell, size: tuple[int, int]
) -> Callable[[Any, Any, np.ndarray], jax.Array]:
    """`(variables, parameters of the cell, frames u8 [B, T, H, W, 3]) -> logits [B, T, *size, K]`."""

    def resized(variables: Any, params: types.Params, frames: jax.Array) -> jax.Array:
        num_clips, num_frames = frames.shape[:2]
        flat = static_net.infer(net, variables, frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:]))
        found = jax.tree.map(lambda x: x.reshape(num_frames, num_clips, *x.shape[1:]), flat)
        logits = cell.unroll(params, found).swapaxes(0, 1)
        return layers.resize_bilinear(logits.reshape(-1, *logits.shape[2:]), size).reshape(
            num_clips, num_frames, *size, logits.shape[-1]
        )

    return compilation.jit(resized)
