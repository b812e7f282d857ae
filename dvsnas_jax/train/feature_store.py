"""Where the features of a search lie: on the devices, in the hosts' memory or on disk; spread over devices and hosts.

The clips of a split are dealt out to the `search.batch_parts` parts of a batch: clip c belongs to part c % P, and only
that part ever reads it. So a slice of the mesh's `data` axis holds the clips of its own parts and no others. Kept on
the devices, a store is one `types.FeatureStore` of global arrays; from memory or disk the rows of a step are fetched.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import PartitionSpec

from dvsnas_jax.core import errors, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data.loading import store as clips_store

DEVICE, HOST, DISK = "device", "host", "disk"
KINDS = ("auto", DEVICE, HOST, DISK)
"""What `config.search.store` may be."""
SHARE = 0.5
"""Of the free memory may hold features; the rest is for the steps."""


class Source(Protocol):
    """Features of clips on this host."""

    def take(self, clips: np.ndarray) -> types.FeatureStore:
        """Host arrays of some clips, i32 [n]."""


class Placement(NamedTuple):
    """Where the stores of a search lie.

    Attributes:
      mesh: the devices.
      num_parts: P, of each batch.
      kind: device, host or disk.
      reason: the arithmetic, in one line.
    """

    mesh: jax.sharding.Mesh
    num_parts: int
    kind: str
    reason: str

    @property
    def train_rows(self) -> PartitionSpec:
        """How the rows that `train_shared` is given lie on the mesh."""
        return mesh_lib.BY_DEVICE if self.kind != DEVICE else self.val_rows

    @property
    def val_rows(self) -> PartitionSpec:
        """How the rows that `evaluate_shared` is given lie on the mesh."""
        return mesh_lib.BY_DATA if mesh_lib.num_data(self.mesh) > 1 else mesh_lib.REPLICATED

    def train_row_count(self, num_clips: int, num_genotypes: int, batch_size: int) -> int:
        """Rows of what `train_shared` is given: of all clips, or those of one step."""
        slices = mesh_lib.num_arch(self.mesh)
        return self._row_count(num_clips, -(-num_genotypes // slices) * slices * batch_size)

    def val_row_count(self, num_clips: int, num_batches: int, batch_size: int) -> int:
        """Likewise of `evaluate_shared`."""
        return self._row_count(num_clips, num_batches * batch_size)

    def _row_count(self, num_clips: int, num_fetched: int) -> int:
        return -(-num_clips // self.num_parts) * self.num_parts if self.kind == DEVICE else num_fetched


def everywhere(section: ml_collections.ConfigDict) -> Placement:
    """Every device holds all clips; `section` is `search` of the configuration."""
    return Placement(mesh_lib.make(), section.batch_parts, DEVICE, "features: on every device")


def plan(
    section: ml_collections.ConfigDict,
    shapes: dict[str, types.FeatureStore],
    *,
    device_bytes: int | None = None,
    host_bytes: int | None = None,
) -> Placement:
    """Chooses the mesh and the place of stores of these shapes, by name; all processes choose the same.

    `section` is `search` of the configuration: `store` other than "auto" decides the place. `device_bytes` and
    `host_bytes` are free on a device and in this host's memory; None: they are asked for.
    """
    num_devices, parts = jax.device_count(), section.batch_parts
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    device_bytes = _device_bytes() if device_bytes is None else device_bytes
    host_bytes = clips_store.free_memory() if host_bytes is None else host_bytes
    best = mesh_lib.best_num_data(num_devices, parts, (section.shared_genotypes, section.genotypes_per_step))
    shared = math.gcd(num_devices, parts)
    options = [number for number in range(best, shared + 1) if shared % number == 0]
    fitting = [number for number in options if total / number <= SHARE * device_bytes]
    fits_device, fits_host = (not distributed.agree(not fits) for fits in (bool(fitting), total <= SHARE * host_bytes))
    kind = section.store
    if kind == "auto":
        kind = DEVICE if fits_device else HOST if fits_host else DISK
    num_data = min(fitting or options[-1:]) if kind == DEVICE else best
    clips = " + ".join(f"{store.num_clips} {name}" for name, store in shapes.items())
    per_clip = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in jax.tree.leaves(next(iter(shapes.values()))))
    reason = (
        f"features: {clips} clips x {_size(per_clip)} = {_size(total)}; on {num_devices} devices as "
        f"{num_devices // num_data} arch x {num_data} data: {_size(total / num_data)} a device, "
        f"{_size(device_bytes)} free there and {_size(host_bytes)} on the host, {SHARE:.0%} may be used -> {kind}"
    )
    return Placement(mesh_lib.connect(mesh_lib.make(num_data)), parts, kind, reason)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def _device_bytes() -> int:
    """Free memory of one device; virtual devices share the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return clips_store.free_memory() // jax.local_device_count()


@dataclasses.dataclass(frozen=True)
class Store:
    """The features of one split, not as one array with a row for each clip.

    Attributes:
      source: where rows are fetched from; None: `held` has them.
      held: on the devices: the rows of part 0, then of part 1, and so on, each filled up to the same number.
    """

    placement: Placement
    num_clips: int
    grid: tuple[int, int]
    source: Source | None = None
    held: types.FeatureStore | None = None


AnyStore = types.FeatureStore | Store


def place(placement: Placement, source: Source, num_clips: int) -> AnyStore:
    """Puts the features where they belong: a plain store where every device holds all clips."""
    mesh, parts = placement.mesh, placement.num_parts
    first = source.take(np.zeros(1, np.int32))
    if placement.kind != DEVICE:
        return Store(placement, num_clips, first.grid, source=source)
    if parts == 1:
        return _fetch(source, np.arange(num_clips), mesh_lib.sharding(mesh, placement.val_rows))
    per_part = -(-num_clips // parts)
    clips = np.arange(per_part * parts).reshape(per_part, parts).T.reshape(-1)
    held = _fetch(source, np.where(clips < num_clips, clips, 0), mesh_lib.sharding(mesh, placement.val_rows))
    return Store(placement, num_clips, first.grid, held=held)


def _fetch(source: Source, clips: np.ndarray, where: jax.sharding.NamedSharding) -> types.FeatureStore:
    """Global arrays with a row for each of the clips; a process reads only the rows of its devices."""
    read: dict[tuple[int, int], types.FeatureStore] = {}

    def block(number: int, index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(len(clips))
        if (start, stop) not in read:
            read[start, stop] = source.take(clips[start:stop])
        return jax.tree.leaves(read[start, stop])[number]

    shapes, tree = jax.tree.flatten(source.take(clips[:1]))
    leaves = [
        jax.make_array_from_callback((len(clips), *leaf.shape[1:]), where, functools.partial(block, number))
        for number, leaf in enumerate(shapes)
    ]
    return jax.tree.unflatten(tree, leaves)


def training(store: AnyStore, clips: np.ndarray) -> tuple[types.FeatureStore, np.ndarray]:
    """What `train_shared` wants for the clips [G, B] of a step: rows and where among them the clips are."""
    if isinstance(store, types.FeatureStore) or store.held is not None:
        return _held(store, clips)
    mesh, parts = store.placement.mesh, store.placement.num_parts
    arch, data = mesh_lib.num_arch(mesh), mesh_lib.num_data(mesh)
    num, size = clips.shape
    padded = np.pad(clips, ((0, -num % arch), (0, 0)))
    # [arch slice, genotype in it, data slice, part in it, clip] -> a block of rows for each device.
    units = (arch, len(padded) // arch, data, parts // data, size // parts)
    order = np.arange(padded.size).reshape(units).transpose(0, 2, 1, 3, 4).reshape(-1)
    found, rows = _fetched(store, padded, order, store.placement.train_rows)
    return found, rows[:num]


def evaluation(store: AnyStore, clips: np.ndarray) -> tuple[types.FeatureStore, np.ndarray]:
    """Likewise what `evaluate_shared` wants for the clips [R, B] of `in_order`."""
    if isinstance(store, types.FeatureStore) or store.held is not None:
        return _held(store, clips)
    data, (num, size) = mesh_lib.num_data(store.placement.mesh), clips.shape
    order = np.arange(clips.size).reshape(num, data, size // data).transpose(1, 0, 2).reshape(-1)
    return _fetched(store, clips, order, store.placement.val_rows)


def anywhere(store: AnyStore, clips: np.ndarray) -> tuple[types.FeatureStore, np.ndarray]:
    """Likewise for a program that is not mapped over the mesh: any clips [...], on every device or spread."""
    if isinstance(store, types.FeatureStore) or store.held is not None:
        return _held(store, clips)
    return _fetched(store, clips, np.arange(clips.size), mesh_lib.REPLICATED)


def _held(store: AnyStore, clips: np.ndarray) -> tuple[types.FeatureStore, np.ndarray]:
    """The rows that the devices have."""
    if isinstance(store, types.FeatureStore):
        return store, clips
    assert store.held is not None
    return store.held, rows_of(store, clips)


def _fetched(
    store: Store, clips: np.ndarray, order: np.ndarray, spec: PartitionSpec
) -> tuple[types.FeatureStore, np.ndarray]:
    """A row for each clip, fetched in an order of the flat `clips`, and where among them the clips are."""
    assert store.source is not None
    flat = np.empty(clips.size, np.int32)
    flat[order] = np.arange(clips.size, dtype=np.int32)
    where = mesh_lib.sharding(store.placement.mesh, spec)
    found = _fetch(store.source, number(clips).reshape(-1)[order], where)
    rows = flat.reshape(clips.shape)
    return found, np.where(clips < 0, ~rows, rows).astype(np.int32)


def take(store: types.FeatureStore, clips: jax.Array) -> tuple[types.Features, jax.Array]:
    """Features f32 [T, B, h, w, C] and labels u8 [T, B, H, W] of some rows, i32 [B]; for traced code."""

    def frames_of(x: types.Array) -> jax.Array:
        # Frame by frame, as a cell reads them: XLA has nothing to transpose.
        num_frames = x.shape[1]
        return jnp.asarray(x).reshape(-1, *x.shape[2:])[clips[None] * num_frames + jnp.arange(num_frames)[:, None]]

    def as_f32(x: types.Array) -> jax.Array:
        # As integers: XLA's CPU backend gathers no bfloat16, and would keep the whole store as float32 instead.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x
        return jax.lax.bitcast_convert_type(frames_of(bits), x.dtype).astype(jnp.float32)

    return jax.tree.map(as_f32, store.features), frames_of(store.labels)


def state_sharding(store: AnyStore) -> jax.sharding.Sharding:
    """Where the state of such a program belongs."""
    if isinstance(store, Store):
        return mesh_lib.replicated(store.placement.mesh)
    return jnp.asarray(store.labels).sharding


def rows_of(store: Store, clips: np.ndarray) -> np.ndarray:
    """The rows of `held` where some clips are."""
    parts, numbers = store.placement.num_parts, number(clips)
    per_part = -(-store.num_clips // parts)
    rows = numbers % parts * per_part + numbers // parts
    return np.where(clips < 0, ~rows, rows).astype(np.int32)


def number(clips: Any) -> Any:
    """The clips i32 [...] themselves, of NumPy or JAX, where ~c (below 0) is clip c that only fills up a batch."""
    return clips ^ (clips >> 31)


def deal(clips: np.ndarray, num_clips: int, num_parts: int) -> np.ndarray:
    """Turns clips that were drawn from all into such of the parts: in [..., B], part p has clips c % P == p."""
    if num_parts == 1:
        return clips
    parts = np.arange(num_parts, dtype=np.int32)[:, None]
    own = (num_clips - parts + num_parts - 1) // num_parts
    if num_clips < num_parts:
        raise errors.UserError(
            f"config key 'search.batch_parts': must be at most the number of clips ({num_clips}), got {num_parts}"
        )
    split = clips.reshape(*clips.shape[:-1], num_parts, -1)
    own = own.reshape((1,) * (clips.ndim - 1) + own.shape)
    offsets = parts.reshape((1,) * (clips.ndim - 1) + parts.shape)
    return (np.minimum(split // num_parts, own - 1) * num_parts + offsets).reshape(clips.shape).astype(np.int32)


def in_order(num_clips: int, num_slots: int, batch_size: int, num_parts: int) -> np.ndarray:
    """Clips 0 .. num_clips - 1, each once, in batches i32 [num_slots / B, B] whose part p has clips c % P == p.

    What is left over is filled up with the first clips of the part again, as ~c: they are counted nowhere. A batch
    normalises by all that it holds: a clip with copies of itself, or with nothing, would be normalised as no other.
    So a batch holds different clips where there are as many as it wants.
    """
    dealt = np.arange(num_slots, dtype=np.int32).reshape(-1, batch_size // num_parts, num_parts)
    part, place = dealt % num_parts, dealt // num_parts
    own = np.maximum((num_clips - part + num_parts - 1) // num_parts, 1)
    clips = np.where(dealt < num_clips, dealt, ~(place % own * num_parts + part))
    return clips.swapaxes(1, 2).reshape(-1, batch_size).astype(np.int32)
