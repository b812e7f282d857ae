"""Training of one cell, a static graph, from scratch on the frozen static network's features."""

from __future__ import annotations

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, operations, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import (
    averaging,
    cell_loss,
    claims,
    clip_scores,
    due_share,
    feature_cache,
    feature_store,
    folds,
    joint,
    optim,
    pretrain,
    require_labels,
    teachers,
    training_loop,
    winners,
)
from dvsnas_jax.train import features as features_lib

StepFn = Callable[[optim.TrainState, types.FeatureStore, types.Array], tuple[optim.TrainState, dict[str, jax.Array]]]


class Material(NamedTuple):
    """What the cells of a run are trained with.

    Attributes:
      store: features of the meta-training clips.
      validation: of the meta-validation clips; None where nothing is validated (`train.eval_every` is 0).
      class_weights: of `class_weights`.
      share: of the static network in the average that a refining cell starts from; None: the default.
      final_fn: makes features of the meta-training clips that are all by the static network of the run; None: those of
        `store` are.
      baseline: of `averaging.baseline`.
    """

    store: feature_store.AnyStore
    validation: feature_store.AnyStore | None = None
    class_weights: np.ndarray | None = None
    share: float | None = None
    final_fn: Callable[[], feature_store.AnyStore] | None = None
    baseline: clip_scores.Baseline | None = None


class Trained(NamedTuple):
    """A trained cell.

    Attributes:
      params: the averaged weights that were kept, with running statistics in every normalisation.
      found: what they count on all meta-validation clips, N = 1; None where nothing was validated.
    """

    params: types.Params
    found: clip_scores.ClipScores | None = None


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir, genotype_path: str | None) -> dict[str, Any]:
    """The command `train`: the static network, then, if a genotype is given, its cell.

    Returns:
      What was made: `{"stages": [...], "genotype": path or None}`.

    Raises:
      UserError: the genotype's file is missing or broken, the config does not fit it, or the run folder is that of a
        search or of another genotype.
    """
    with folder.hold():
        config = claims.check(config, folder)
        given = _given(config, genotype_path) if genotype_path else None
        is_done = winners.is_trained(folder, *given) if given else pretrain.is_trained(config, folder)
        if given and not is_done:
            features_lib.require_ages(config)
            folds.split(config)
        pretrain.check(config, folder)
        require_labels.check(config, folder)
        claims.claim(config, folder)
        winners.unmark_search(folder)
        if is_done and distributed.is_main():
            what = "the static network" if given is None else f"genotype {genotype_lib.digest(*given)}"
            print(f"{folder.path}: {what} is trained already, nothing is trained again", file=sys.stderr)
        with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
            if given is None or is_done:
                pretrain.run(config, folder, stop)
            if given is None:
                return {"stages": [pretrain.STAGE], "genotype": None}
            space, genotype = given
            if not is_done:
                networks = folds.run(config, folder, stop)
                made = material(config, networks, features_lib.needed_maps(space, config), folder)
                name = f"retrain_{genotype_lib.digest(space, genotype)}"
                stage = training_loop.Stage.of(config.train, name, folder, stop)
                trained = train_cell(config, space, genotype, made, stage)
                made_jointly = joint.run(config, networks.final, given, trained.params, folder, stop)
                if config.train.joint_control:
                    joint.control(config, networks.final, folder, stop)
                winners.save(folder, space, genotype, made_jointly.params)
    return {"stages": [pretrain.STAGE, winners.STAGE], "genotype": str(folder.path / winners.BEST)}


def _given(config: ml_collections.ConfigDict, path: str) -> tuple[genotype_lib.Space, np.ndarray]:
    """The genotype to train.

    Raises:
      UserError: it is missing or broken, or the config does not fit it.
    """
    space, genotype = read_genotype(path, name="--genotype")
    if path.startswith(zoo.PREFIX):
        zoo.require(zoo.get(path), mode=config.space.mode, schedule=config.schedule.kind, end=config.space.end)
    try:
        features_lib.settings_of(config).check(space.inputs)
    except errors.UserError as error:
        raise errors.UserError(f"--genotype: {path}: {error}") from None
    return space, genotype


def read_genotype(path: str | pathlib.Path, *, name: str = "genotype") -> tuple[genotype_lib.Space, np.ndarray]:
    """Reads a genotype file, or `zoo:NAME`, in its own space (its inputs and layers), see `zoo.read`."""
    return zoo.read(path, name=name)


def class_weights(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> np.ndarray | None:
    """The class weights f32 [K] of the cells of a run: those of its static network, None where all classes are alike.

    They are counted where the run folder does not hold them yet.
    """
    return None if config.train.loss == cell_loss.PLAIN else pretrain.class_weights(config, folder)


def material(
    config: ml_collections.ConfigDict,
    networks: features_lib.Networks,
    names: tuple[str, ...],
    folder: workdir.Workdir,
) -> Material:
    """Computes the features of the train split, with the maps of these names; the folder is the run's."""
    training, held_out = pretrain.split_clips(config)
    wanted = teachers.wanted(config, training, names)
    store, final_fn = features_lib.train_store(config, networks, wanted), None
    if networks.folds:
        final_fn = functools.cache(lambda: features_lib.train_store(config, networks.alone(), wanted))
    validation = None
    if config.train.eval_every:
        found = features_lib.compute(config, networks.final, features_lib.select(config, held_out), names)
        # In the memory of this host: clips of the whole size are several times as large as those of the training.
        mesh = mesh_lib.make(devices=list(feature_store.state_sharding(store).device_set))
        placement = feature_store.Placement(mesh, 1, feature_store.HOST, "features for validation: on the host")
        validation = feature_store.place(placement, feature_cache.Memory(found), len(held_out))
    share = averaging.starting_share(config, networks.final, folder)
    baseline = averaging.baseline(config, networks.final, folder)
    return Material(store, validation, class_weights(config, folder), share, final_fn, baseline)


def train_cell(
    config: ml_collections.ConfigDict,
    space: genotype_lib.Space,
    genotype: np.ndarray,
    material: Material,
    stage: training_loop.Stage,
) -> Trained:
    """Trains the cell of a genotype, i32 [L, 5], from scratch through time, as section `train` says.

    Where the features are those of folds (`train.folds`), `train.final_steps` more on those of the static network
    follow, as a stage of its own, from the weights that were kept.
    """
    trained = _fit(config, space, genotype, material, stage)
    if not config.train.final_steps or material.final_fn is None or not features_lib.settings_of(config).has_output:
        return trained
    own = config.copy_and_resolve_references()
    section = own.train
    section.update({"steps": section.final_steps, "learning_rate": section.learning_rate * section.final_rate})
    after = stage._replace(name=f"{stage.name}_final", num_steps=section.steps)
    material = material._replace(store=material.final_fn())
    return _fit(own, space, genotype, material, after, cell_lib.without_statistics(trained.params))


def _fit(
    config: ml_collections.ConfigDict,
    space: genotype_lib.Space,
    genotype: np.ndarray,
    material: Material,
    stage: training_loop.Stage,
    start: types.Params | None = None,
) -> Trained:
    """One training of a cell, from the weights `start`, or from drawn ones.

    Every `train.eval_every` steps the averaged weights, with running statistics, are scored on all meta-validation
    clips; the best are kept, those before the first step included. Where it is 0, the last are.

    Every device of every process does the same work: the cell's batch statistics are those of the whole batch, and a
    device would wait for the others in each normalisation.
    """
    section, store, settings = config.train, material.store, features_lib.settings_of(config)
    cell = cell_lib.make(space, genotype, settings)
    optimizer = optim.make(section)
    # Where the store is: a state that is committed to no device would compile the step twice.
    where = feature_store.state_sharding(store)
    if start is None:
        state = init(cell, optimizer, config.seed, material.share)
    else:
        state = optim.start(optimizer, optim.copied(start), is_averaged=True)  # a copy: steps donate the state
    state = jax.tree.map(lambda x: mesh_lib.put(x, where), state)
    loss = cell_loss.make(config, section.label_stride, material.class_weights)
    jitted_step = make_step(cell, optimizer, loss, section.polyak)

    def step(state: optim.TrainState, clips: np.ndarray) -> tuple[optim.TrainState, dict[str, jax.Array]]:
        return jitted_step(state, *feature_store.anywhere(store, clips))

    def batches(start: int) -> Iterator[np.ndarray]:
        for step in itertools.count(start):
            yield draw_clips((config.seed, 2, step), store.num_clips, (section.batch_size,))

    drawn = batches(section.steps)
    calibrate = make_calibrate(cell.moments, store, [next(drawn) for _ in range(section.norm_batches)])
    seen = store if material.validation is None else material.validation
    finish = due_share.limited(calibrate, cell, settings.schedule, seen, config.search.batch_size)
    if not settings.has_output:  # a baseline: nothing of it is trained
        return Trained(state.params)
    if not section.eval_every:
        state = training_loop.fit(state, stage, step_fn=step, batches_fn=batches)
        return Trained(finish(state.average))
    assert material.validation is not None, "no meta-validation clips to choose the best on"
    count_fn = clip_scores.make_count(cell.unroll, settings.num_ages, material.baseline is not None)
    count = functools.partial(clip_scores.of_store, count_fn, store=material.validation, section=config.search)
    base = material.baseline.accuracy(material.validation) if material.baseline is not None else None
    validation = training_loop.Validation(finish, count, training_loop.make_score(config, base))
    kept = training_loop.fit_kept(
        training_loop.start_kept(state), stage, section.eval_every, validation, step_fn=step, batches_fn=batches
    )
    params = finish(kept.best)
    return Trained(params, count(params))


def init(
    cell: cell_lib.Cell, optimizer: optax.GradientTransformation, seed: int, share: float | None = None
) -> optim.TrainState:
    """The state before the first step; `share`: as `Material.share`."""
    params = compilation.jit_once(cell.init)(jax.random.key(seed))
    return optim.start(optimizer, cell_end.with_share(params, share), is_averaged=True)


def draw_clips(key: tuple[int, ...], num_clips: int, shape: tuple[int, ...]) -> np.ndarray:
    """Indices of clips, i32, a pure function of the key."""
    return np.random.default_rng(key).integers(0, num_clips, shape, dtype=np.int32)


def make_step(
    cell: cell_lib.Cell, optimizer: optax.GradientTransformation, loss: cell_loss.CellLoss, decay: float
) -> StepFn:
    """The jitted step `(state, store, clips i32 [B]) -> (state, metrics)`; the state is donated.

    `decay` is that of the averaged weights.
    """

    def loss_fn(params: types.Params, features: types.Features, labels: jax.Array) -> jax.Array:
        of_logits, features = loss.of_batch(features, labels)
        logits, schedule_loss = cell.unroll_training(params, features)
        return of_logits(logits) + schedule_loss

    def step(
        state: optim.TrainState, store: types.FeatureStore, clips: jax.Array
    ) -> tuple[optim.TrainState, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, *feature_store.take(store, clips))
        after = optim.descend(optimizer, state, grads, decay)
        return after, {"loss": loss, "gradient_norm": optax.tree.norm(grads)}

    return compilation.jit(step, donate_argnums=0)


def make_calibrate(
    moments_fn: Callable[..., operations.Moments], store: feature_store.AnyStore, batches: Sequence[np.ndarray]
) -> Callable[..., types.Params]:
    """`(weights, ...) -> weights` with running statistics: the mean of their batch moments over some batches.

    `moments_fn`: `(weights, ..., frames) -> moments`, of a cell, or of a supernet with the genotype between them.
    """

    @jax.jit
    def moments(store: types.FeatureStore, clips: jax.Array, *args: Any) -> operations.Moments:
        return moments_fn(*args, feature_store.take(store, clips)[0])

    def calibrate(params: types.Params, *args: Any) -> types.Params:
        drawn = [jax.device_get(moments(*feature_store.anywhere(store, clips), params, *args)) for clips in batches]
        where = feature_store.state_sharding(store)
        mean = jax.tree.map(lambda *xs: mesh_lib.put(np.mean(xs, axis=0), where), *drawn)
        return cell_lib.freeze_norm(params, mean)

    return calibrate
