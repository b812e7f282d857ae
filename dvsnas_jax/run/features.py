"""The frozen static network's features of many clips, computed once and kept in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, progress, types
from dvsnas_jax.data import pipeline
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import ports
from dvsnas_jax.space import schedule as schedule_lib

BATCH_FRAMES = 16
"""Frames that pass the trained static network at a time."""


def space_of(config: ml_collections.ConfigDict) -> genotype_lib.Space:
    """The cell space that a config describes.

    Raises:
      UserError: an unknown name, or an input that the mode does not provide.
    """
    settings_of(config).check(config.space.inputs)
    return genotype_lib.Space(
        inputs=tuple(config.space.inputs),
        num_layers=config.space.num_layers,
        operations=tuple(config.space.operations) or genotype_lib.OPERATIONS,
        aggregations=tuple(config.space.aggregations) or genotype_lib.AGGREGATIONS,
    )


def settings_of(config: ml_collections.ConfigDict) -> ports.CellSettings:
    """The sizes of the cell that a config describes."""
    num_classes = pipeline.class_table(config.data).num_classes
    return ports.CellSettings(
        channels=config.space.channels,
        feature_channels=static_net.feature_channels(config.net, num_classes),
        max_offset=config.space.max_offset,
        mode=config.space.mode,
        cut=config.space.cut,
        schedule=schedule_lib.Schedule(
            kind=config.schedule.kind,
            interval=config.schedule.interval,
            threshold=config.schedule.threshold,
            grid=tuple(config.schedule.grid),
        ),
        attention_window=config.space.attention_window,
        attention_heads=config.space.attention_heads,
    )


def needed_maps(space: genotype_lib.Space, config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of the feature maps that a cell of this space, in the mode of the config, may read or keep."""
    names = {"decoder", "image", *(name for name in space.inputs if name.startswith("stage"))}
    settings = settings_of(config)
    if settings.is_propagating and settings.schedule.is_learned:
        names.add(settings.cut)
    return tuple(sorted(names))


def make_forward(config: ml_collections.ConfigDict) -> Callable[[Any, np.ndarray], Iterator[types.Features]]:
    """Builds the function that every use of the trained static network shares, so that it is compiled once.

    Args:
      config: of the run.

    Returns:
      `(variables, frames u8 [n, H, W, 3]) -> Features` of `BATCH_FRAMES` frames at a time (the last ones
      repeated to fill the last batch), all maps at the grid, float32.
    """
    forward = _forward(static_net.make(config.net, pipeline.class_table(config.data).num_classes))

    def batches(variables: Any, frames: np.ndarray) -> Iterator[types.Features]:
        for start in range(0, len(frames), BATCH_FRAMES):
            rows = np.minimum(np.arange(start, start + BATCH_FRAMES), len(frames) - 1)
            yield forward(variables, frames[rows])

    return batches


@functools.cache
def _forward(net: static_net.StaticNet) -> Callable[..., types.Features]:
    """The jitted network; kept, because validation, features and evaluation each ask for it."""
    return compilation.jit(functools.partial(static_net.infer, net))


def build(
    config: ml_collections.ConfigDict, variables: Any, clip: types.Clip, names: tuple[str, ...]
) -> types.FeatureStore:
    """Features of every frame of every clip.

    Args:
      config: of the run.
      variables: of the static network.
      clip: frames u8 [M, T, H, W, 3] and labels, host arrays.
      names: the maps to keep.

    Returns:
      The store, bfloat16 maps on the default device.
    """
    num_clips, num_frames = clip.labels.shape[:2]
    frames = np.asarray(clip.frames).reshape(-1, *clip.frames.shape[2:])
    parts = []
    with progress.bar(len(frames), "features") as bar:
        for found in make_forward(config)(variables, frames):
            kept = types.Features(maps={name: found.maps[name] for name in names}, logits=found.logits)
            parts.append(jax.device_get(jax.tree.map(lambda x: x.astype(jnp.bfloat16), kept)))
            bar.update(min(BATCH_FRAMES, len(frames) - bar.count))
    merged = jax.tree.map(
        lambda *xs: np.concatenate(xs)[: len(frames)].reshape(num_clips, num_frames, *xs[0].shape[1:]), *parts
    )
    return jax.device_put(types.FeatureStore(features=merged, labels=np.asarray(clip.labels)))


def shapes(
    config: ml_collections.ConfigDict,
    names: tuple[str, ...],
    num_clips: int,
    sharding: jax.sharding.Sharding,
    *,
    is_augmented: bool = False,
) -> types.FeatureStore:
    """What `build` returns for so many clips, or `train_store` where `is_augmented`, as shapes."""
    data = config.data
    size = (data.crop_height, data.crop_width) if is_augmented else (data.height, data.width)
    net = static_net.make(config.net, pipeline.class_table(data).num_classes)
    frame = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
    found = jax.eval_shape(functools.partial(static_net.infer, net), static_net.shapes(net), frame)

    def stored(x: Any, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_clips, data.num_frames, *x.shape[1:]), dtype, sharding=sharding)

    kept = types.Features(maps={name: found.maps[name] for name in names}, logits=found.logits)
    features = jax.tree.map(lambda x: stored(x, jnp.bfloat16), kept)
    return types.FeatureStore(features=features, labels=stored(jax.ShapeDtypeStruct((1, *size), np.uint8), np.uint8))


def train_store(
    config: ml_collections.ConfigDict, variables: Any, clips: np.ndarray, names: tuple[str, ...]
) -> types.FeatureStore:
    """The store of the meta-training clips: each as it is, or `cache_clips` augmented draws of them."""
    if not config.search.cache_clips:
        return build(config, variables, select(config, clips), names)
    batches = pipeline.train_batches(
        config.data, batch_size=1, num_frames=config.data.num_frames, seed=config.seed + 1, indices=clips
    )
    drawn = [next(batches) for _ in range(config.search.cache_clips)]
    merged = jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *drawn)
    return build(config, variables, merged, names)


def select(config: ml_collections.ConfigDict, clips: np.ndarray) -> types.Clip:
    """Some clips of the train split, not augmented."""
    return pipeline.load_clips(config.data, split="train", num_frames=config.data.num_frames, indices=clips)
