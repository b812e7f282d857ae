"""The device mesh: axis names and shardings live only here.

Axes: `arch` (each slice runs other genotypes) x `data` (each slice holds other clips). With several processes every
function here is called by all of them, in the same order, with the same host arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dvsnas_jax.core.processes import distributed

ARCH = "arch"
DATA = "data"
_BATCH, _COPY = "batch", "copy"

REPLICATED = PartitionSpec()
BY_ARCH = PartitionSpec(ARCH)
BY_DATA = PartitionSpec(DATA)
BY_ARCH_AND_DATA = PartitionSpec(ARCH, DATA)
BY_DEVICE = PartitionSpec((ARCH, DATA))
BATCHES_BY_DATA = PartitionSpec(None, DATA)


def make(num_data: int = 1, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over all devices, or some: `num_data` slices of clips, the rest along the genotypes."""
    chosen = jax.devices() if devices is None else devices
    if num_data < 1 or len(chosen) % num_data:
        raise ValueError(f"mesh: {len(chosen)} devices do not divide into {num_data} data slices")
    shape, types = (len(chosen) // num_data, num_data), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (ARCH, DATA), axis_types=types, devices=chosen)


def best_num_data(num_devices: int, num_parts: int, group_sizes: Sequence[int]) -> int:
    """The smallest number of `data` slices with which the devices have least to do one after the other.

    It divides both `num_devices` and `num_parts`, the parts of a batch. `group_sizes`: numbers of genotypes of one call
    of each step; where the `arch` slices do not divide them, some devices idle.
    """
    shared = math.gcd(num_devices, num_parts)

    def turns(num_data: int) -> int:
        slices = num_devices // num_data
        return sum(-(-size // slices) for size in group_sizes) * (num_parts // num_data)

    return min((number for number in range(1, shared + 1) if shared % number == 0), key=lambda n: (turns(n), n))


def connect(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """Lets the processes open their connections for this mesh while they are close together.

    Gloo opens them at the first exchange of a group of devices and waits 30 s for the others, which may be compiling.
    """
    if distributed.num_processes() > 1:
        names = mesh.axis_names
        for axes in (names, *((name,) for name in names)):
            add = map_shards(lambda x, axes=axes: jax.lax.psum(x, axes), mesh, REPLICATED, REPLICATED)
            compiled = jax.jit(add).lower(np.float32(1)).compile()
            distributed.barrier("connect")
            jax.block_until_ready(compiled(np.float32(1)))
    return mesh


def num_arch(mesh: jax.sharding.Mesh) -> int:
    """Slices along the genotypes."""
    return mesh.shape[ARCH]


def num_data(mesh: jax.sharding.Mesh) -> int:
    """Slices along the clips."""
    return mesh.shape[DATA]


def sharding(mesh: jax.sharding.Mesh, spec: PartitionSpec) -> NamedSharding:
    """How an array lies on the mesh."""
    return NamedSharding(mesh, spec)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of what every device holds a copy of."""
    return NamedSharding(mesh, REPLICATED)


def put(array: Any, where: jax.sharding.Sharding) -> jax.Array:
    """An array that every process holds whole, onto the devices; no process talks to another."""
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])


def replicate(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Puts a copy of every array on every device."""
    return jax.tree.map(lambda x: put(x, replicated(mesh)), tree)


def map_shards(fn: Callable[..., Any], mesh: jax.sharding.Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` where each device executes only its own branches.

    Gradients inside stay local (`check_vma=False`): `fn` adds them up itself with `sum_over_mesh`.
    """
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def sum_over_mesh(tree: Any) -> Any:
    """Sum over every device, inside `map_shards`: one all-reduce of all leaves in one vector."""
    return _sum(tree, (ARCH, DATA))


def sum_over_data(tree: Any) -> Any:
    """Sum over the slices of clips, inside `map_shards`: one all-reduce of all leaves in one vector."""
    return _sum(tree, (DATA,))


def _sum(tree: Any, axes: tuple[str, ...]) -> Any:
    if jax.lax.axis_size(axes) == 1:  # XLA keeps an all-reduce of a device with itself
        return tree
    flat, restore = flatten_util.ravel_pytree(tree)
    return restore(jax.lax.psum(flat, axes))


def local_rows(rows: jax.Array, num_local: int, spec: PartitionSpec) -> jax.Array:
    """Inside `map_shards`: rows i32 [...] of an array whose leading axis lies by `spec`, as rows of this device's
    block, which has `num_local` of them.

    Row r that only fills up is ~r before and after; the -1 of `split_units` stays.
    """
    if spec == REPLICATED:
        return rows
    first = jax.lax.axis_index(spec[0]) * num_local
    return jnp.where(rows < 0, ~jnp.maximum(~rows - first, 0), rows - first)


def split_units(mesh: jax.sharding.Mesh, genotypes: Any, clips: Any, num_parts: int) -> tuple[jax.Array, jax.Array]:
    """Genotypes i32 [G, L, 5] and clips i32 [G, B] of one step as units that any device can take.

    Returns:
      i32 [G', L, 5] and i32 [G', P, B / P]: P parts, and G' the next multiple of the `arch` slices; clips of what was
      added are -1.
    """
    num, size = clips.shape
    if size % num_parts:
        raise ValueError(f"mesh: a batch of {size} clips does not divide into {num_parts} parts")
    split = jnp.asarray(clips).reshape(num, num_parts, size // num_parts)
    missing = -num % num_arch(mesh)
    padded = jnp.pad(split, ((0, missing), (0, 0), (0, 0)), constant_values=-1)
    return pad_genotypes(mesh, genotypes), keep_whole(mesh, padded)


def split_batches(mesh: jax.sharding.Mesh, clips: Any, num_parts: int) -> jax.Array:
    """Clips [R, B] as [R, P, B / P]."""
    return keep_whole(mesh, jnp.asarray(clips).reshape(clips.shape[0], num_parts, -1))


def pad_genotypes(mesh: jax.sharding.Mesh, genotypes: Any) -> jax.Array:
    """The last genotype repeated up to a multiple of the `arch` slices, i32 [G', L, 5]."""
    missing = -len(genotypes) % num_arch(mesh)
    return keep_whole(mesh, jnp.pad(jnp.asarray(genotypes), ((0, missing), (0, 0), (0, 0)), mode="edge"))


def keep_whole(mesh: jax.sharding.Mesh, x: jax.Array) -> jax.Array:
    """Every device has all of x: otherwise XLA spreads even its padding, and the devices exchange the parts."""
    return jax.lax.with_sharding_constraint(x, replicated(mesh))


# --- data parallel training of one network ------------------------------------------------------------------------


def batch_sharding(size: int) -> NamedSharding:
    """A batch of `size` rows over as many devices as divide it; the other devices repeat what those do.

    Neighbouring shards belong to different processes, so that process p of n holds the rows r with r % n == p.
    """
    return NamedSharding(_batch_mesh(size), PartitionSpec(_BATCH))


def replicate_for_batch(tree: Any, size: int) -> Any:
    """A copy of every array on every device, where the batches of `put_batch` are; see `connect`."""
    where = NamedSharding(connect(_batch_mesh(size)), REPLICATED)
    return jax.tree.map(lambda x: put(x, where), tree)


def _batch_mesh(size: int) -> jax.sharding.Mesh:
    devices = sorted(jax.devices(), key=lambda device: (_rank(device), device.process_index))
    grid = np.array(devices).reshape(-1, math.gcd(size, len(devices))).T
    return jax.sharding.Mesh(grid, (_BATCH, _COPY), axis_types=(AxisType.Auto, AxisType.Auto))


def _rank(device: jax.Device) -> int:
    """The place of a device among those of its process."""
    mine = [other.id for other in jax.devices() if other.process_index == device.process_index]
    return sorted(mine).index(device.id)


def host_shard(size: int) -> tuple[int, int]:
    """Which share of the rows of a batch this process has to load: (number, of how many); (0, 1): all of them."""
    num = jax.process_count()
    shards = math.gcd(size, jax.device_count())
    return (jax.process_index(), num) if shards % num == 0 else (0, 1)


def put_batch(tree: Any, size: int) -> Any:
    """A batch of `size` rows onto the devices, by `batch_sharding`: shard s of S holds the rows r with r % S == s.

    So each shard has the same rows whether one process has all devices or each has some. `tree`: of host arrays with
    the rows of `host_shard`.
    """
    where, (_, num_hosts) = batch_sharding(size), host_shard(size)
    shards = where.mesh.shape[_BATCH]

    def place(x: Any) -> jax.Array:
        rows = np.asarray(x)

        def block(index: Any) -> np.ndarray:
            shard = (index[0].start or 0) // (size // shards)
            return rows[shard // num_hosts :: shards // num_hosts]

        return jax.make_array_from_callback((size, *rows.shape[1:]), where, block)

    return jax.tree.map(place, tree)
