"""The jitted steps on the shared weights: training and scoring. Pure functions, one trace each.

On a mesh each slice of the `arch` axis runs other genotypes, each slice of `data` other parts of their batches
(`jax.shard_map`: a device executes only its own branches); the gradients of all are added up by one all-reduce.

A batch has `search.batch_parts` parts. Each part is normalised by its own statistics and has its own mean loss (ghost
batches, Hoffer et al. 2017, arXiv 1705.08741), so what a step computes does not depend on how parts and genotypes are
spread over devices, and no device waits for another inside a branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import PartitionSpec

from dvsnas_jax.core import compilation, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import cell_loss, clip_scores, feature_store, optim

Metrics = dict[str, jax.Array]
Gradient = tuple[types.Params, jax.Array, jax.Array]
"""Sums over the units of a step: gradient, loss, number of finite ones."""
LossFn = Callable[[jax.Array], jax.Array]
"""Of the logits [T, B, h, w, K] of a clip."""
ValueAndGradFn = Callable[[types.Params, jax.Array, types.Features, LossFn, Any], tuple[jax.Array, types.Params, Any]]
"""`(params, genotype, frames [T, B, ...], loss_fn, buffers) -> (loss, gradient of params, buffers)`."""
TrainAloneFn = Callable[[optim.TrainState, jax.Array, types.FeatureStore, jax.Array], optim.TrainState]


ScoresFn = Callable[[types.Params, jax.Array, types.FeatureStore, jax.Array], clip_scores.ClipScores]


class Steps(NamedTuple):
    """The steps of one search. Genotypes are i32 [L, 5] each, clips rows of the store.

    Attributes:
      init: `rng -> state`.
      state: its shapes.
      train_shared: `(state, genotypes [G, L, 5], store, clips i32 [G, B]) -> (state, metrics)`; the state is donated.
        B is a multiple of `batch_parts`, which is one of the mesh's `data` slices; where G is no multiple of its
        `arch` slices, some of them idle.
      evaluate_shared: `(params, genotypes [N, L, 5], store, clips i32 [R, B]) -> ClipScores`; clip ~c (below 0) =
        clip c, which fills up its batch and counts nowhere.
      start_alone: `params -> state` of a candidate that is trained by itself, with an average.
      train_alone: `(state, genotype, store, clips i32 [S, B]) -> state` after S optimizer steps. It is not mapped over
        the mesh: every device does the same.
    """

    init: Callable[[jax.Array], optim.TrainState]
    state: optim.TrainState
    train_shared: Callable[
        [optim.TrainState, types.Array, types.FeatureStore, types.Array], tuple[optim.TrainState, Metrics]
    ]
    evaluate_shared: Callable[[types.Params, types.Array, types.FeatureStore, types.Array], clip_scores.ClipScores]
    start_alone: Callable[[types.Params], optim.TrainState]
    train_alone: Callable[[optim.TrainState, types.Array, types.FeatureStore, types.Array], optim.TrainState]


def make(
    supernet: supernet_lib.Supernet,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    train_rows: PartitionSpec = mesh_lib.REPLICATED,
    val_rows: PartitionSpec = mesh_lib.REPLICATED,
    loss: cell_loss.CellLoss | None = None,
) -> Steps:
    """Builds the steps from a section `search`.

    `train_rows` says how the rows of the store of `train_shared` lie on the mesh (a device has those of its own clips),
    `val_rows` likewise of `evaluate_shared`. `loss` is what training minimises, None: the mean over all frames.
    """
    loss = cell_loss.CellLoss(config.label_stride) if loss is None else loss
    optimizer = optim.make(config, is_constant=True)
    gradient_fn = make_gradient(supernet.value_and_grad, config, mesh, train_rows, loss, supernet.buffers)

    def initial(rng: jax.Array) -> optim.TrainState:
        return optim.start(optimizer, supernet.init(rng))

    def init(rng: jax.Array) -> optim.TrainState:
        return mesh_lib.replicate(mesh, compilation.jit_once(initial)(rng))

    def train_shared(
        state: optim.TrainState, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> tuple[optim.TrainState, Metrics]:
        chex.assert_rank([genotypes, clips], [3, 2])
        gradient, step_metrics = gradient_fn(state.params, genotypes, store, clips)
        step_metrics["gradient_norm"] = optax.tree.norm(gradient)
        return optim.descend(optimizer, state, gradient), step_metrics

    def start_alone(params: types.Params) -> optim.TrainState:
        return optim.start(optimizer, params, is_averaged=True)

    train_alone = make_alone(supernet, optimizer, loss, config.scratch_polyak)
    where = mesh_lib.replicated(mesh)
    return Steps(
        init,
        jax.eval_shape(initial, jax.random.key(0)),
        compilation.jit(train_shared, donate_argnums=0, out_shardings=where),
        compilation.jit(_make_evaluate(supernet, config, mesh, val_rows), out_shardings=where),
        compilation.jit(start_alone, out_shardings=where),
        compilation.jit(train_alone, out_shardings=where),
    )


def make_alone(
    supernet: supernet_lib.Supernet, optimizer: optax.GradientTransformation, loss: cell_loss.CellLoss, decay: float
) -> TrainAloneFn:
    """`Steps.train_alone`, not jitted; `decay` of the averaged weights."""

    def train_alone(
        state: optim.TrainState, genotype: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> optim.TrainState:
        chex.assert_rank([genotype, clips], 2)

        def step(carry: tuple[optim.TrainState, Any], batch: jax.Array) -> tuple[tuple[optim.TrainState, Any], None]:
            (state, buffers), (features, labels) = carry, feature_store.take(store, batch)
            loss_fn, features = loss.of_batch(features, labels)
            _, grads, buffers = supernet.value_and_grad(state.params, genotype, features, loss_fn, buffers)
            return (optim.descend(optimizer, state, grads, decay), buffers), None

        buffers = supernet.buffers(loss.of_batch(*feature_store.take(store, clips[0]))[1])
        return jax.lax.scan(step, (state, buffers), clips)[0][0]

    return train_alone


def autodiff(unroll_fn: Callable[[types.Params, jax.Array, types.Features], jax.Array]) -> ValueAndGradFn:
    """The gradient of logits by autodiff; it needs no buffers."""

    def value_and_grad(
        params: types.Params, genotype: jax.Array, features: types.Features, loss_fn: LossFn, buffers: Any
    ) -> Any:
        return *jax.value_and_grad(lambda params: loss_fn(unroll_fn(params, genotype, features)))(params), buffers

    return value_and_grad


def make_gradient(
    value_and_grad_fn: ValueAndGradFn,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    rows_spec: PartitionSpec,
    loss: cell_loss.CellLoss,
    buffers_fn: Callable[[types.Features], Any] = lambda features: (),
) -> Callable[[types.Params, jax.Array, types.FeatureStore, jax.Array], tuple[types.Params, Metrics]]:
    """The mean gradient of a step over its units on all devices: a part of a batch of one genotype each.

    Args:
      value_and_grad_fn: of a supernet, or of `autodiff`.
      config: the `search` section.
      mesh: the devices.
      rows_spec: how the rows of the store lie on them.
      loss: what is minimised.
      buffers_fn: makes the buffers that the units hand on.

    Returns:
      `(params, genotypes [G, ...], store, clips i32 [G, B]) -> (gradient, metrics)`; those that diverge count nowhere.
    """

    def local(params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array) -> Gradient:
        def one(carry: tuple[types.Params, Any], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            (total, buffers), (genotype, batch) = carry, xs
            features, labels = feature_store.take(store, jnp.maximum(batch, 0))
            loss_fn, features = loss.of_batch(features, labels)
            value, grads, buffers = value_and_grad_fn(params, genotype, features, loss_fn, buffers)
            # A candidate that diverges must not poison the weights that all share.
            counts = jnp.isfinite(optax.tree.norm(grads)) & (batch[0] >= 0)
            total = jax.tree.map(lambda t, g: t + jnp.where(counts, g, 0.0), total, grads)
            return (total, buffers), (jnp.where(counts, value, 0.0), counts.astype(jnp.float32))

        rows = mesh_lib.local_rows(clips, store.num_clips, rows_spec)
        units = jnp.repeat(genotypes, rows.shape[1], axis=0), rows.reshape(-1, rows.shape[2])
        first = loss.of_batch(*feature_store.take(store, units[1][0]))[1]
        carry = jax.tree.map(jnp.zeros_like, params), buffers_fn(first)
        (total, _), (values, finite) = jax.lax.scan(one, carry, units)
        return mesh_lib.sum_over_mesh((total, values.sum(), finite.sum()))

    sharded = mesh_lib.map_shards(
        local,
        mesh,
        in_specs=(mesh_lib.REPLICATED, mesh_lib.BY_ARCH, rows_spec, mesh_lib.BY_ARCH_AND_DATA),
        out_specs=mesh_lib.REPLICATED,
    )

    def gradient(
        params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> tuple[types.Params, Metrics]:
        units = mesh_lib.split_units(mesh, genotypes, clips, config.batch_parts)
        found, mean, share_finite = jax.tree.map(
            lambda total: total / (clips.shape[0] * config.batch_parts), sharded(params, units[0], store, units[1])
        )
        return found, {"loss": mean / jnp.maximum(share_finite, 1e-6), "share_finite": share_finite}

    return gradient


def _make_evaluate(
    supernet: supernet_lib.Supernet,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    rows_spec: PartitionSpec,
) -> ScoresFn:
    """`Steps.evaluate_shared`, not jitted; `config` is the `search` section."""
    ages, do_follow = supernet.settings.num_ages, config.reward == clip_scores.GAIN

    def local(
        params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> clip_scores.ClipScores:
        """Counts of the genotypes on the clips of a device."""
        rows = mesh_lib.local_rows(clips, store.num_clips, rows_spec)
        batches = rows.reshape(-1, rows.shape[2])

        def one(genotype: jax.Array) -> clip_scores.ClipScores:
            unroll_fn = functools.partial(supernet.unroll, params, genotype)
            return clip_scores.sum_batches(unroll_fn, store, batches, ages, do_follow)

        found = jax.lax.map(one, genotypes)
        counts, flicker, changes, num_lost = mesh_lib.sum_over_data(
            (found.counts, found.flicker, found.changes, (~found.is_finite).astype(jnp.int32))
        )
        return clip_scores.ClipScores(counts, flicker, changes, num_lost == 0)

    sharded = mesh_lib.map_shards(
        local,
        mesh,
        in_specs=(mesh_lib.REPLICATED, mesh_lib.BY_ARCH, rows_spec, mesh_lib.BATCHES_BY_DATA),
        out_specs=mesh_lib.BY_ARCH,
    )

    def evaluate_shared(
        params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> clip_scores.ClipScores:
        batches = mesh_lib.split_batches(mesh, clips, config.batch_parts)
        scores = sharded(params, mesh_lib.pad_genotypes(mesh, genotypes), store, batches)
        return jax.tree.map(lambda x: mesh_lib.keep_whole(mesh, x)[: genotypes.shape[0]], scores)

    return evaluate_shared
