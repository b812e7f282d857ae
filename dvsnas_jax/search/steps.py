"""The jitted steps on the shared weights: training and scoring. Pure functions, one trace each.

On a mesh each slice of the `arch` axis runs other genotypes, each slice of `data` other parts of their batches
(`jax.shard_map`: a device executes only its own branches); the gradients of all are added up by one all-reduce.

A batch has `search.batch_parts` parts. Each part is normalised by its own statistics and has its own mean loss (ghost
batches, Hoffer et al. 2017, arXiv 1705.08741), so what a step computes does not depend on how parts and genotypes are
spread over devices, and no device waits for another inside a branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import PartitionSpec

from dvsnas_jax.core import compilation, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import losses, optim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedState:
    """What `train_shared` changes.

    Attributes:
      params: of the supernet.
      opt_state: of its optimizer.
      step: i32 [], optimizer steps taken.
    """

    params: types.Params
    opt_state: optax.OptState
    step: types.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedScores:
    """What `evaluate_shared` counts on the target frames.

    Attributes:
      counts: i32 [N, K, K], rows = truth.
      flicker: i32 [N, 2], changed and all pixels whose truth did not change since the frame before.
      is_finite: bool [N], all logits of the candidate were finite.
    """

    counts: types.Array
    flicker: types.Array
    is_finite: types.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AloneState:
    """What `train_alone` changes.

    Attributes:
      params: of the supernet; only those of one genotype matter.
      average: moving average of them.
      opt_state: of the optimizer.
      step: i32 [], optimizer steps taken.
    """

    params: types.Params
    average: types.Params
    opt_state: optax.OptState
    step: types.Array


class Steps(NamedTuple):
    """The steps of one search.

    Attributes:
      init: `rng -> SharedState`.
      state: its shapes.
      train_shared: `(state, genotypes i32 [G, L, 5], store, clips i32 [G, B]) -> (state, metrics)`;
        the state is donated. Clips are rows of the store. B is a multiple of `batch_parts`, which is one of the mesh's
        `data` slices; where G is no multiple of its `arch` slices, some of them idle.
      evaluate_shared: `(params, genotypes i32 [N, L, 5], store, clips i32 [R, B]) -> SharedScores`;
        clip -1 = padding. As above.
      start_alone: `params -> AloneState` of a candidate that is trained by itself.
      train_alone: `(state, genotype i32 [L, 5], store, clips i32 [S, B]) -> AloneState` after S optimizer steps. It
        is not mapped over the mesh: every device does the same.
    """

    init: Callable[[jax.Array], SharedState]
    state: SharedState
    train_shared: Callable[..., tuple[SharedState, dict[str, jax.Array]]]
    evaluate_shared: Callable[..., SharedScores]
    start_alone: Callable[[types.Params], AloneState]
    train_alone: Callable[..., AloneState]


def make(
    supernet: supernet_lib.Supernet,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    train_rows: PartitionSpec = mesh_lib.REPLICATED,
    val_rows: PartitionSpec = mesh_lib.REPLICATED,
) -> Steps:
    """Builds the steps.

    Args:
      supernet: the cell with a traced genotype.
      config: the `search` section.
      mesh: of `core.mesh`.
      train_rows: how the rows of the store of `train_shared` lie on the mesh: a device has those of its own clips.
      val_rows: likewise, of `evaluate_shared`.
    """
    optimizer = optim.make(config, is_constant=True)
    sharded_gradient = mesh_lib.map_shards(
        make_gradient(supernet.value_and_grad, config.label_stride, train_rows, supernet.buffers),
        mesh,
        in_specs=(mesh_lib.REPLICATED, mesh_lib.BY_ARCH, train_rows, mesh_lib.BY_ARCH_AND_DATA),
        out_specs=mesh_lib.REPLICATED,
    )

    def initial(rng: jax.Array) -> SharedState:
        params = supernet.init(rng)
        return SharedState(params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))

    def init(rng: jax.Array) -> SharedState:
        return mesh_lib.replicate(mesh, compilation.jit_once(initial)(rng))

    def train_shared(
        state: SharedState, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> tuple[SharedState, dict[str, jax.Array]]:
        chex.assert_rank([genotypes, clips], [3, 2])
        units = mesh_lib.split_units(mesh, genotypes, clips, config.batch_parts)
        gradient, loss, share_finite = jax.tree.map(
            lambda total: total / (clips.shape[0] * config.batch_parts),
            sharded_gradient(state.params, units[0], store, units[1]),
        )
        step_metrics = {"loss": loss / jnp.maximum(share_finite, 1e-6), "share_finite": share_finite}
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        step_metrics["gradient_norm"] = optax.tree.norm(gradient)
        params = optax.apply_updates(state.params, updates)
        return SharedState(params=params, opt_state=opt_state, step=state.step + 1), step_metrics

    replicated = mesh_lib.replicated(mesh)
    return Steps(
        init,
        jax.eval_shape(initial, jax.random.key(0)),
        compilation.jit(train_shared, donate_argnums=0, out_shardings=replicated),
        compilation.jit(_make_evaluate(supernet, config.batch_parts, mesh, val_rows), out_shardings=replicated),
        *_make_alone(supernet, config, mesh),
    )


def _make_alone(
    supernet: supernet_lib.Supernet, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[Callable[[types.Params], AloneState], Callable[..., AloneState]]:
    """`Steps.start_alone` and `Steps.train_alone`."""
    optimizer = optim.make(config, is_constant=True)

    def start(params: types.Params) -> AloneState:
        opt_state = optimizer.init(params)
        return AloneState(params=params, average=params, opt_state=opt_state, step=jnp.zeros((), jnp.int32))

    def train_alone(state: AloneState, genotype: jax.Array, store: types.FeatureStore, clips: jax.Array) -> AloneState:
        chex.assert_rank([genotype, clips], 2)

        def step(carry: tuple[AloneState, Any], batch: jax.Array) -> tuple[tuple[AloneState, Any], None]:
            (state, buffers), (features, labels) = carry, take(store, batch)
            loss_fn = _make_loss(labels, config.label_stride)
            _, grads, buffers = supernet.value_and_grad(state.params, genotype, features, loss_fn, buffers)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            average = optim.polyak(config.scratch_polyak, state.average, params, state.step)
            state = AloneState(params=params, average=average, opt_state=opt_state, step=state.step + 1)
            return (state, buffers), None

        buffers = supernet.buffers(take(store, clips[0])[0])
        return jax.lax.scan(step, (state, buffers), clips)[0][0]

    where = mesh_lib.replicated(mesh)
    return compilation.jit(start, out_shardings=where), compilation.jit(train_alone, out_shardings=where)


def _make_evaluate(
    supernet: supernet_lib.Supernet, num_parts: int, mesh: jax.sharding.Mesh, rows: PartitionSpec
) -> Callable[..., SharedScores]:
    """`Steps.evaluate_shared`, not jitted."""
    sharded_scores = mesh_lib.map_shards(
        _make_scores(supernet, rows),
        mesh,
        in_specs=(mesh_lib.REPLICATED, mesh_lib.BY_ARCH, rows, mesh_lib.BATCHES_BY_DATA),
        out_specs=mesh_lib.BY_ARCH,
    )

    def evaluate_shared(
        params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> SharedScores:
        batches = mesh_lib.split_batches(mesh, clips, num_parts)
        scores = sharded_scores(params, mesh_lib.pad_genotypes(mesh, genotypes), store, batches)
        return jax.tree.map(lambda x: mesh_lib.keep_whole(mesh, x)[: genotypes.shape[0]], scores)

    return evaluate_shared


def take(store: types.FeatureStore, clips: jax.Array) -> tuple[types.Features, jax.Array]:
    """Features (float32) and labels of some clips, i32 [B]."""

    def rows(x: jax.Array) -> jax.Array:
        # As integers: XLA's CPU backend gathers no bfloat16, and would keep the whole store as float32 instead.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x
        # Frame by frame, as a cell reads them: XLA has nothing to transpose.
        num_frames = x.shape[1]
        frames = bits.reshape(-1, *x.shape[2:])[clips[None] * num_frames + jnp.arange(num_frames)[:, None]]
        return jnp.moveaxis(jax.lax.bitcast_convert_type(frames, x.dtype).astype(jnp.float32), 0, 1)

    features = jax.tree.map(rows, store.features)
    return features, store.labels[clips]


def _make_loss(labels: jax.Array, label_stride: int) -> Callable[[jax.Array], jax.Array]:
    """`logits [T, B, h, w, K] -> loss`, the mean over the labelled pixels of all frames; labels [B, T, H, W]."""
    targets = losses.subsample_labels(jnp.moveaxis(labels, 1, 0), label_stride)
    return lambda logits: losses.cross_entropy(logits, targets)[0]


def autodiff(unroll_fn: Callable[..., jax.Array]) -> Callable[..., Any]:
    """`(params, genotype, features, loss_fn of the logits, buffers) -> (loss, gradient of params, buffers)`."""

    def value_and_grad(params: types.Params, genotype: jax.Array, features: types.Features, *args: Any) -> Any:
        loss_fn, buffers = args
        return *jax.value_and_grad(lambda params: loss_fn(unroll_fn(params, genotype, features)))(params), buffers

    return value_and_grad


def make_gradient(
    value_and_grad_fn: Callable[..., Any],
    label_stride: int,
    rows_spec: PartitionSpec,
    buffers_fn: Callable[[types.Features], Any] = lambda features: (),
) -> Callable[..., tuple[types.Params, jax.Array, jax.Array]]:
    """Sums of gradient, loss and "is finite" over the units of every device: a part of a batch of one genotype each.

    Args:
      value_and_grad_fn: of a supernet, or of `autodiff`.
      label_stride: pixels between the labels of the loss, per axis.
      rows_spec: how the rows of the store lie on the mesh.
      buffers_fn: makes the buffers that the units hand on.

    Returns:
      `(params, genotypes, store, clips i32 [G, P, B / P]) -> (gradient, loss, number of finite)`, for `map_shards`.
    """

    def gradient(
        params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> tuple[types.Params, jax.Array, jax.Array]:
        def one(carry: tuple[types.Params, Any], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            (total, buffers), (genotype, batch) = carry, xs
            features, labels = take(store, jnp.maximum(batch, 0))
            loss_fn = _make_loss(labels, label_stride)
            loss, grads, buffers = value_and_grad_fn(params, genotype, features, loss_fn, buffers)
            # A candidate that diverges must not poison the weights that all share.
            counts = jnp.isfinite(optax.tree.norm(grads)) & (batch[0] >= 0)
            total = jax.tree.map(lambda t, g: t + jnp.where(counts, g, 0.0), total, grads)
            return (total, buffers), (jnp.where(counts, loss, 0.0), counts.astype(jnp.float32))

        rows = mesh_lib.local_rows(clips, store.num_clips, rows_spec)
        units = jnp.repeat(genotypes, rows.shape[1], axis=0), rows.reshape(-1, rows.shape[2])
        carry = jax.tree.map(jnp.zeros_like, params), buffers_fn(take(store, units[1][0])[0])
        (total, _), (losses, finite) = jax.lax.scan(one, carry, units)
        return mesh_lib.sum_over_mesh((total, losses.sum(), finite.sum()))

    return gradient


def _batch_scores(
    unroll_fn: Callable[[types.Features], jax.Array], store: types.FeatureStore, clips: jax.Array
) -> SharedScores:
    """Counts of one candidate on the target frame of some clips (-1 = padding), at the labels' size."""
    features, labels = take(store, jnp.maximum(clips, 0))
    labels = jnp.where((clips >= 0)[:, None, None, None], labels[:, -2:], types.IGNORE)
    logits = unroll_fn(features)[-2:]
    flat = static_net.predict(logits.reshape(-1, *logits.shape[2:]), labels.shape[-2:])
    predictions = flat.reshape(*logits.shape[:2], *labels.shape[-2:])
    before, target = labels[:, 0], labels[:, -1]
    is_constant = (before == target) & (target != types.IGNORE)
    changed = is_constant & (predictions[0] != predictions[-1])
    return SharedScores(
        counts=metrics.confusion(target, predictions[-1], logits.shape[-1]),
        flicker=jnp.stack([changed.sum(), is_constant.sum()]).astype(jnp.int32),
        is_finite=jnp.isfinite(logits).all(),
    )


def _sum_batches(
    unroll_fn: Callable[[types.Features], jax.Array], store: types.FeatureStore, clips: jax.Array
) -> SharedScores:
    """Counts of one candidate over batches of clips, i32 [R, B]."""
    parts = jax.lax.map(lambda batch: _batch_scores(unroll_fn, store, batch), clips)
    return SharedScores(
        counts=parts.counts.sum(axis=0), flicker=parts.flicker.sum(axis=0), is_finite=parts.is_finite.all()
    )


def add_scores(parts: Sequence[SharedScores]) -> SharedScores:
    """The counts of groups of clips added up, on the host."""
    found = jax.device_get(list(parts))
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *found)
    return SharedScores(
        counts=stacked.counts.sum(axis=0), flicker=stacked.flicker.sum(axis=0), is_finite=stacked.is_finite.all(axis=0)
    )


def make_evaluate_static() -> Callable[..., SharedScores]:
    """`(store, clips i32 [R, B]) -> SharedScores` of the static network alone, N = 1."""

    def evaluate_static(store: types.FeatureStore, clips: jax.Array) -> SharedScores:
        scores = _sum_batches(lambda features: jnp.moveaxis(features.logits, 1, 0), store, clips)
        return jax.tree.map(lambda x: x[None], scores)

    return compilation.jit(evaluate_static)


def make_evaluate_cell(cell: cell_lib.Cell) -> Callable[..., SharedScores]:
    """`(params, store, clips i32 [R, B]) -> SharedScores` of one static cell, N = 1."""

    def evaluate_cell(params: types.Params, store: types.FeatureStore, clips: jax.Array) -> SharedScores:
        scores = _sum_batches(lambda features: cell.unroll(params, features), store, clips)
        return jax.tree.map(lambda x: x[None], scores)

    return compilation.jit(evaluate_cell)


def _make_scores(supernet: supernet_lib.Supernet, rows_spec: PartitionSpec) -> Callable[..., SharedScores]:
    """Counts of every genotype on every clip of every device."""

    def scores(params: types.Params, genotypes: jax.Array, store: types.FeatureStore, clips: jax.Array) -> SharedScores:
        rows = mesh_lib.local_rows(clips, store.num_clips, rows_spec)
        batches = rows.reshape(-1, rows.shape[2])

        def one(genotype: jax.Array) -> SharedScores:
            return _sum_batches(lambda features: supernet.unroll(params, genotype, features), store, batches)

        local = jax.lax.map(one, genotypes)
        total = mesh_lib.sum_over_data((local.counts, local.flicker, (~local.is_finite).astype(jnp.int32)))
        return SharedScores(counts=total[0], flicker=total[1], is_finite=total[2] == 0)

    return scores
