"""The frozen static network's features of many clips, computed once and kept in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, progress, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data.loading import example_order, mixture, pipeline
from dvsnas_jax.nets import forward, static_net
from dvsnas_jax.space import cell_frame, projections
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.train import cell_loss, feature_cache, feature_store

BATCH_FRAMES = forward.BATCH_FRAMES
_ALIGNMENT = 64  # bytes


class Wanted(NamedTuple):
    """Features that are wanted.

    Attributes:
      clips: numbers of clips of the train split.
      names: the maps to keep.
      num_drawn: augmented draws of the clips; 0 = each as it is.
      is_training: to train cells on: with clips of further data (`data.extra`) and what their loss needs.
      teacher: of these cells, `teachers.make(config)`; its logits are kept, too.
    """

    clips: np.ndarray
    names: tuple[str, ...]
    num_drawn: int = 0
    is_training: bool = False
    teacher: Any = None

    def rows(self, config: ml_collections.ConfigDict) -> mixture.Rows:
        """How many clips the features are of."""
        num_own = self.num_drawn or len(self.clips)
        return mixture.rows(config, num_own) if self.is_training else mixture.Rows(num_own)


class Networks(NamedTuple):
    """The static networks that make features.

    Attributes:
      final: variables of the static network of the run.
      folds: those of the networks of `train.folds`; none: the final one makes all features.
      fold_of: integers [number of clips of the train split], whose features which of them makes; -1: the final one.
    """

    final: Any
    folds: tuple[Any, ...] = ()
    fold_of: np.ndarray | None = None

    def makers(self, clips: np.ndarray) -> np.ndarray:
        """Which network makes the features of some clips of the train split, integers [n]: of `folds`, or -1. Clips
        below 0 are of further data, which all of them saw."""
        return np.full(len(clips), -1) if self.fold_of is None else np.where(clips < 0, -1, self.fold_of[clips])

    def alone(self) -> Networks:
        """The final one for all clips."""
        return Networks(self.final)


def space_of(config: ml_collections.ConfigDict) -> genotype_lib.Space:
    """The cell space that a config describes.

    Raises:
      UserError: an unknown name, or an input that the mode does not provide.
    """
    settings_of(config).check(config.space.inputs)
    return genotype_lib.Space(
        inputs=tuple(config.space.inputs),
        num_layers=config.space.num_layers,
        operations=tuple(config.space.operations) or genotype_lib.vocabulary("operations"),
        aggregations=tuple(config.space.aggregations) or genotype_lib.vocabulary("aggregations"),
    )


def settings_of(config: ml_collections.ConfigDict) -> cell_frame.CellSettings:
    """The sizes of the cell that a config describes."""
    return settings_lib.of(config, pipeline.class_table(config.data).num_classes)


def needed_maps(space: genotype_lib.Space, config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of the feature maps that a cell of this space, in the mode of the config, may read or keep."""
    names = {
        "decoder",
        "image",
        *(name for name in map(projections.weights_of, space.inputs) if name.startswith(("stage", "patches"))),
    }
    settings = settings_of(config)
    if settings.is_propagating and settings.schedule.is_learned:
        names.add(settings.cut)
    return tuple(sorted(names))


def make_forward(config: ml_collections.ConfigDict) -> Callable[[Any, np.ndarray], Iterator[types.Features]]:
    """The trained static network of a config over many frames, see `forward.batches`."""
    return forward.batches(static_net.make(config.net, pipeline.class_table(config.data).num_classes))


def build(
    config: ml_collections.ConfigDict, variables: Any, clip: types.Clip, names: tuple[str, ...]
) -> types.FeatureStore:
    """Features of every frame of M clips, host arrays, on the default device; `names` are the maps to keep."""
    return jax.device_put(compute(config, variables, clip, names))


def compute(
    config: ml_collections.ConfigDict, variables: Any, clip: types.Clip, names: tuple[str, ...]
) -> types.FeatureStore:
    """What `build` returns, as host arrays."""
    num_clips, num_frames = clip.labels.shape[:2]
    frames = np.asarray(clip.frames).reshape(-1, *clip.frames.shape[2:])
    merged: Any = None  # in place from the first batch on: parts that are joined later would need twice the memory
    with progress.bar(len(frames), "features") as bar:
        for found in make_forward(config)(variables, frames):
            kept = types.Features(maps={name: found.maps[name] for name in names}, logits=found.logits)
            part = jax.device_get(jax.tree.map(lambda x: x.astype(jnp.bfloat16), kept))
            if merged is None:
                merged = jax.tree.map(lambda x: _empty((len(frames), *x.shape[1:]), x.dtype), part)
            rows = slice(bar.count, min(bar.count + BATCH_FRAMES, len(frames)))
            for whole, new in zip(jax.tree.leaves(merged), jax.tree.leaves(part), strict=True):
                whole[rows] = new[: rows.stop - rows.start]
            bar.update(rows.stop - rows.start)
    merged = jax.tree.map(lambda x: x.reshape(num_clips, num_frames, *x.shape[1:]), merged)
    return types.FeatureStore(features=merged, labels=np.asarray(clip.labels))


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A host array that begins where XLA's CPU backend wants its own to: what is put on that device is not copied."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + num_bytes].view(dtype).reshape(shape)


def shapes(
    config: ml_collections.ConfigDict,
    names: tuple[str, ...],
    num_clips: int,
    sharding: jax.sharding.Sharding | None,
    *,
    is_augmented: bool = False,
    is_training: bool = False,
) -> types.FeatureStore:
    """What `build` returns for so many clips, as shapes; `is_augmented`, `is_training`: of `Wanted`."""
    data = config.data
    size = (data.crop_height, data.crop_width) if is_augmented else (data.height, data.width)
    net = static_net.make(config.net, pipeline.class_table(data).num_classes)
    found = static_net.frame_shapes(net, size)

    def stored(x: Any, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((num_clips, data.num_frames, *x.shape[1:]), dtype, sharding=sharding)

    maps = {name: found.maps[name] for name in names}
    if is_training and cell_loss.is_mixed(config):
        maps[cell_loss.COUNTS] = np.zeros((1, 1, 1, 1), np.float32)
    if is_training and cell_loss.has_teacher_map(config):
        maps[cell_loss.TEACHER] = found.logits
    features = jax.tree.map(lambda x: stored(x, jnp.bfloat16), types.Features(maps=maps, logits=found.logits))
    return types.FeatureStore(features=features, labels=stored(jax.ShapeDtypeStruct((1, *size), np.uint8), np.uint8))


def train_store(config: ml_collections.ConfigDict, networks: Networks, wanted: Wanted) -> types.FeatureStore:
    """The store of the meta-training clips, on the default device."""
    return jax.device_put(make(config, networks, wanted, 0, wanted.rows(config).total))


def make(
    config: ml_collections.ConfigDict, networks: Networks, wanted: Wanted, first: int, last: int
) -> types.FeatureStore:
    """Features of number `first` to before `last` of what is wanted, host arrays, each clip by its network."""
    clip, makers = draw(config, wanted, first, last), networks.makers(_drawn_clips(config, wanted, first, last))
    found, order = [], np.argsort(makers, kind="stable")
    for maker in np.unique(makers).tolist():
        rows = np.flatnonzero(makers == maker)
        variables = networks.final if maker < 0 else networks.folds[maker]
        found.append(_by_network(config, variables, wanted, jax.tree.map(lambda x, rows=rows: x[rows], clip)))
    whole = found[0]
    if len(found) > 1:
        whole = jax.tree.map(lambda *xs: np.concatenate(xs)[np.argsort(order)], *found)
    if not wanted.is_training or not cell_loss.is_mixed(config):
        return whole
    counts = mixture.frame_weights(wanted.rows(config), first, last, config.data.num_frames)
    maps = {**whole.features.maps, cell_loss.COUNTS: counts[..., None, None, None].astype(jnp.bfloat16)}
    return types.FeatureStore(types.Features(maps=maps, logits=whole.features.logits), whole.labels)


def _by_network(
    config: ml_collections.ConfigDict, variables: Any, wanted: Wanted, clip: types.Clip
) -> types.FeatureStore:
    """The features of clips by one network, with the teacher's logits where they are wanted."""
    found = compute(config, variables, clip, wanted.names)
    if not wanted.is_training or wanted.teacher is None:
        return found
    maps = {**found.features.maps, cell_loss.TEACHER: wanted.teacher.logits(variables, clip)}
    return types.FeatureStore(types.Features(maps=maps, logits=found.features.logits), found.labels)


def draw(config: ml_collections.ConfigDict, wanted: Wanted, first: int, last: int) -> types.Clip:
    """Number `first` to before `last` of what is wanted: clips as they are, or augmented draws, then further data."""
    parts, rows = [], wanted.rows(config)
    if first < rows.own:
        parts.append(_draw_own(config, wanted, first, min(last, rows.own)))
    for each, start, stop in mixture.pieces(config, rows, first, last):
        numbers, num_frames = np.arange(start, stop), config.data.num_frames
        clip = each.clips(numbers, num_frames, config.seed, is_augmented=bool(wanted.num_drawn))
        ages = settings_of(config).num_ages if each.is_labelled else 0
        parts.append(spread_ages(clip, numbers, ages))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def _draw_own(config: ml_collections.ConfigDict, wanted: Wanted, first: int, last: int) -> types.Clip:
    """Likewise of the run's own data alone."""
    if not wanted.num_drawn:
        return select(config, wanted.clips[first:last])
    numbers, data = np.arange(first, last), config.data
    batches = pipeline.train_batches(
        data, batch_size=1, num_frames=data.num_frames, seed=_seed_of_draws(config), part=example_order.Part(first),
        indices=wanted.clips,
    )  # fmt: skip
    drawn = [next(batches) for _ in numbers]
    clip = jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *drawn)
    return spread_ages(clip, numbers, settings_of(config).num_ages)


def _seed_of_draws(config: ml_collections.ConfigDict) -> int:
    return int(config.seed) + 1


def _drawn_clips(config: ml_collections.ConfigDict, wanted: Wanted, first: int, last: int) -> np.ndarray:
    """Of which clips of the train split those that `draw` returns are, integers [n]; -1: of further data."""
    stop = max(min(last, wanted.rows(config).own), first)
    if wanted.num_drawn:
        own = pipeline.clips_of_examples(wanted.clips, _seed_of_draws(config), np.arange(first, stop))
    else:
        own = np.asarray(wanted.clips)[first:stop]
    return np.append(own, np.full(last - stop, -1)).astype(np.int64)


def placed(
    config: ml_collections.ConfigDict,
    networks: Networks,
    wanted: Wanted,
    placement: feature_store.Placement,
    folder: workdir.Workdir | None,
) -> feature_store.AnyStore:
    """Features of clips of the train split, where `placement` wants them.

    Several processes share the work by way of the cache on disk, below `features/` of the run folder; only they, and
    the disk, need one.
    """
    num_clips, networks = wanted.rows(config).total, jax.device_get(networks)
    make_fn = functools.partial(make, config, networks, wanted)
    source: feature_store.Source
    if placement.kind == feature_store.DISK or distributed.num_processes() > 1:
        assert folder is not None, "no folder for the cache on disk"
        more = mixture.describe(config) if wanted.is_training else []
        more += [wanted.teacher.about] if wanted.teacher is not None else []
        is_by_folds = (networks.makers(wanted.clips) >= 0).any()
        key = feature_cache.key(config, networks if is_by_folds else networks.final, *wanted[:3], more=more)
        source = feature_cache.build(folder.path / "features" / key, num_clips, make_fn)
        if placement.kind == feature_store.HOST:
            source = feature_cache.Memory(source.take(np.arange(num_clips)))
    else:
        source = feature_cache.Memory(make_fn(0, num_clips))
    return feature_store.place(placement, source, num_clips)


def select(config: ml_collections.ConfigDict, clips: np.ndarray, split: str = "train") -> types.Clip:
    """Some clips of a split, not augmented."""
    found = pipeline.load_clips(config.data, split=split, num_frames=config.data.num_frames, indices=clips)
    return spread_ages(found, clips, settings_of(config).num_ages)


def spread_ages(clip: types.Clip, numbers: np.ndarray, ages: int) -> types.Clip:
    """Propagate: clips whose only label is that of the last frame, each with that frame at another age.

    A clip starts with a key frame, so its last frame would have the same age in all of them, and no other age would be
    learned or scored. Frame number % `ages` of a clip becomes the labelled one; before it is what was before it, after
    it the same backwards, as if the camera turned round. Clips with labels on other frames, too, stay as they are.

    Args:
      clip: u8 [N, T, ...].
      numbers: integers [N], of the clips.
      ages: `CellSettings.num_ages`; 0: all stay.
    """
    labels = np.asarray(clip.labels)
    is_alone = (labels[:, :-1] == types.IGNORE).all(axis=(1, 2, 3))
    if not ages or not is_alone.any():
        return clip
    last = labels.shape[1] - 1
    target = np.where(is_alone, np.minimum(numbers % ages, last), last)
    rows, places = np.arange(len(labels))[:, None], last - np.abs(target[:, None] - np.arange(last + 1))
    return types.Clip(frames=np.asarray(clip.frames)[rows, places], labels=labels[rows, places])


def require_ages(config: ml_collections.ConfigDict) -> None:
    """Whether clips are long enough to train a cell on.

    Raises:
      UserError: in propagate mode they end before the second key frame, so some change from frame to frame is in none.
    """
    ages, num_frames = settings_of(config).num_ages, config.data.num_frames
    if ages and num_frames <= ages:
        raise errors.UserError(
            f"data.num_frames: a clip of {num_frames} frames does not reach from one key frame to the next, which is "
            f"schedule.interval = {ages} frames later; set data.num_frames to {ages + 1} or more, or lower the interval"
        )
