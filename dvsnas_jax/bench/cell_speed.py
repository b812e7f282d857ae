"""Timing of the cell: a training step of the supernet against the static graphs of the same genotypes."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.bench import stopwatch
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import features, losses


def run(num_genotypes: int = 20, repeats: int = 5, batch_size: int = 8, num_frames: int = 3) -> dict[str, Any]:
    """Loss and gradient of random genotypes on random features [B, T, ...], default sizes, one process.

    Milliseconds (median over repeats, then mean over genotypes) of both, their ratio, traces of the supernet, and
    compile seconds.
    """
    config = config_lib.defaults()
    space, settings = features.space_of(config), features.settings_of(config)
    size = config.data.height // 4, config.data.width // 4
    batch = _random_features(settings, (num_frames, batch_size, *size))
    labels = np.random.default_rng(1).integers(0, settings.num_classes, (num_frames, batch_size, *size), np.uint8)
    supernet = supernet_lib.make(space, settings)
    params = supernet.init(jax.random.key(0))
    traces = 0

    def supernet_loss(params: types.Params, genotype: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return losses.cross_entropy(supernet.unroll(params, genotype, batch), labels)[0]

    shared_fn = jax.jit(jax.value_and_grad(supernet_loss))
    rows = []
    for genotype in genotype_lib.random(space, np.random.default_rng(0), num_genotypes):
        static = cell_lib.make(space, genotype, settings)
        cut = cell_lib.gather_params(space, genotype, params)
        shared_call = functools.partial(shared_fn, params, genotype)
        static_call = functools.partial(jax.jit(jax.value_and_grad(_static_loss(static, batch, labels))), cut)
        compile_seconds = stopwatch.seconds(shared_call), stopwatch.seconds(static_call)
        times = (stopwatch.median_seconds(call, repeats) for call in (shared_call, static_call))
        rows.append((*times, *compile_seconds))
    shared_ms, static_ms, _, static_compile = (statistics.mean(column) for column in zip(*rows, strict=True))
    return {
        "genotypes": num_genotypes,
        "supernet_ms": shared_ms * 1e3,
        "static_ms": static_ms * 1e3,
        "ratio": shared_ms / static_ms,
        "traces": traces,
        "supernet_compile_s": rows[0][2],
        "static_compile_s_each": static_compile,
        "backend": jax.default_backend(),
    }


def _static_loss(
    static: cell_lib.Cell, batch: types.Features, labels: np.ndarray
) -> Callable[[types.Params], jax.Array]:
    return lambda params: losses.cross_entropy(static.unroll(params, batch), labels)[0]


def _random_features(settings: cell_frame.CellSettings, shape: tuple[int, ...]) -> types.Features:
    """Normal features f32 of shape [*shape, C], every map that a cell may read."""
    rng = np.random.default_rng(0)
    maps = {
        name: jnp.asarray(rng.normal(size=(*shape, channels)), jnp.float32)
        for name, channels in settings.feature_channels.items()
    }
    logits = maps.pop("logits")
    return types.Features(maps=maps, logits=logits)
