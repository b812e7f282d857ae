"""The device mesh: axis names and shardings live only here.

Axes: `arch` (each slice runs other genotypes) x `data` (each slice holds other clips).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

ARCH = "arch"
DATA = "data"

REPLICATED = PartitionSpec()
BY_ARCH = PartitionSpec(ARCH)
BY_ARCH_AND_DATA = PartitionSpec(ARCH, DATA)
BATCHES_BY_DATA = PartitionSpec(None, DATA)


def make(num_data: int = 1) -> jax.sharding.Mesh:
    """A mesh over all devices: `num_data` slices of clips, the rest along the genotypes."""
    num_devices = jax.device_count()
    if num_data < 1 or num_devices % num_data:
        raise ValueError(f"mesh: {num_devices} devices do not divide into {num_data} data slices")
    return jax.make_mesh((num_devices // num_data, num_data), (ARCH, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def num_arch(mesh: jax.sharding.Mesh) -> int:
    """Slices along the genotypes: their number per step must be a multiple of it."""
    return mesh.shape[ARCH]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of what every device holds a copy of."""
    return NamedSharding(mesh, REPLICATED)


def replicate(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Puts a copy of every array on every device."""
    return jax.device_put(tree, replicated(mesh))


def map_shards(fn: Callable[..., Any], mesh: jax.sharding.Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` where each device executes only its own branches.

    Gradients inside stay local (`check_vma=False`): `fn` averages them itself with `mean_over_mesh`.
    """
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def mean_over_mesh(tree: Any) -> Any:
    """Mean over every device, inside `map_shards`."""
    return jax.lax.pmean(tree, (ARCH, DATA))


def sum_over_data(tree: Any) -> Any:
    """Sum over the slices of clips, inside `map_shards`."""
    return jax.lax.psum(tree, DATA)
