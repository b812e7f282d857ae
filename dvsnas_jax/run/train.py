"""Training of one cell, a static graph, from scratch on the frozen static network's features."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dvsnas_jax.core import compilation, distributed, errors, signals, types, workdir
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.run import feature_store, fit, losses, optim, pretrain, require_labels
from dvsnas_jax.run import features as features_lib
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo

CELL_STAGE = "cell"
BEST = "best_genotype.json"


@chex.dataclass(frozen=True, mappable_dataclass=False)
class CellTrainState:
    """What the training of a cell changes.

    Attributes:
      params: of the cell.
      average: moving average of `params`.
      opt_state: of the optimizer.
      step: i32 [].
    """

    params: types.Params
    average: types.Params
    opt_state: optax.OptState
    step: types.Array


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir, genotype_path: str | None) -> dict[str, Any]:
    """The command `train`: the static network, then, if a genotype is given, its cell.

    Returns:
      What was made: `{"stages": [...], "genotype": path or None}`.

    Raises:
      UserError: the genotype's file is missing or broken, or the config does not fit the member of the zoo.
    """
    given = read_genotype(genotype_path) if genotype_path else None
    if genotype_path and genotype_path.startswith(zoo.PREFIX):
        zoo.require(zoo.get(genotype_path), mode=config.space.mode, schedule=config.schedule.kind)
    num_clips = require_labels.check(config)
    folder.claim(config)
    with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
        variables = pretrain.run(config, folder, stop)
        if given is None:
            return {"stages": [pretrain.STAGE], "genotype": None}
        space, genotype = given
        clips, _ = pretrain.split_clips(config, num_clips)
        store = features_lib.train_store(config, variables, clips, features_lib.needed_maps(space, config))
        params = train_cell(config, space, genotype, store, folder=folder, stop=stop, stage="retrain")
        save_winner(folder, space, genotype, params, {})
    return {"stages": [pretrain.STAGE, CELL_STAGE], "genotype": str(folder.path / BEST)}


def read_genotype(path: str | pathlib.Path) -> tuple[genotype_lib.Space, np.ndarray]:
    """Reads a genotype file, or `zoo:NAME`, in its own space (its inputs and layers).

    Raises:
      UserError: the file is missing or broken, or the zoo has no such member.
    """
    if str(path).startswith(zoo.PREFIX):
        return zoo.genotype(zoo.get(str(path)))
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.UserError(f"genotype {path}: no such file, give a JSON file as `search` writes it")
    return genotype_lib.from_json(path.read_text(errors="replace"), where=str(path))


def train_cell(
    config: ml_collections.ConfigDict,
    space: genotype_lib.Space,
    genotype: np.ndarray,
    store: feature_store.AnyStore,
    *,
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    stage: str,
) -> types.Params:
    """Trains one cell from scratch through time.

    Every device of every process does the same work: the cell's batch statistics are those of the whole batch, and a
    device would wait for the others in each normalisation.

    Args:
      config: of the run; section `train`.
      space: what the genotype refers to.
      genotype: i32 [L, 5].
      store: the features of the training clips.
      folder: the run folder.
      stop: a signal asks to save and stop.
      stage: names the checkpoints and the log lines.

    Returns:
      The averaged weights with running statistics in every normalisation.
    """
    section = config.train
    cell = cell_lib.make(space, genotype, features_lib.settings_of(config))
    optimizer = optim.make(section)
    # Where the store is: a state that is committed to no device would compile the step twice.
    where = feature_store.state_sharding(store)
    state = jax.tree.map(lambda x: mesh_lib.put(x, where), init(cell, optimizer, config.seed))
    step_fn = make_step(cell, optimizer, section)

    def batches(start: int) -> Iterator[np.ndarray]:
        step = start
        while True:
            yield draw_clips((config.seed, 2, step), store.num_clips, (section.batch_size,))
            step += 1

    state = fit.fit(
        state,
        stage=stage,
        num_steps=section.steps,
        step_fn=lambda state, clips: step_fn(state, *feature_store.anywhere(store, clips)),
        batches_fn=batches,
        folder=folder,
        stop=stop,
        checkpoint_every=section.checkpoint_every,
    )
    drawn = batches(section.steps)
    return calibrate(cell, state.average, store, [next(drawn) for _ in range(section.norm_batches)])


def init(cell: cell_lib.Cell, optimizer: optax.GradientTransformation, seed: int) -> CellTrainState:
    """The state before the first step."""
    params = compilation.jit_once(cell.init)(jax.random.key(seed))
    return CellTrainState(
        params=params,
        average=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
    )


def draw_clips(key: tuple[int, ...], num_clips: int, shape: tuple[int, ...]) -> np.ndarray:
    """Indices of clips, i32, a pure function of the key."""
    return np.random.default_rng(key).integers(0, num_clips, shape, dtype=np.int32)


def make_step(
    cell: cell_lib.Cell, optimizer: optax.GradientTransformation, section: ml_collections.ConfigDict
) -> Callable[..., tuple[CellTrainState, dict[str, jax.Array]]]:
    """The jitted step `(state, store, clips i32 [B]) -> (state, metrics)`; the state is donated."""

    def loss_fn(params: types.Params, features: types.Features, labels: jax.Array) -> jax.Array:
        logits, schedule_loss = cell.unroll_training(params, features)
        targets = losses.subsample_labels(jnp.moveaxis(labels, 1, 0), section.label_stride)
        return losses.cross_entropy(logits, targets)[0] + schedule_loss

    def step(
        state: CellTrainState, store: types.FeatureStore, clips: jax.Array
    ) -> tuple[CellTrainState, dict[str, jax.Array]]:
        features = jax.tree.map(lambda x: x[clips].astype(jnp.float32), store.features)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, features, store.labels[clips])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optim.polyak(section.polyak, state.average, params, state.step)
        new = CellTrainState(params=params, average=average, opt_state=opt_state, step=state.step + 1)
        return new, {"loss": loss, "gradient_norm": optax.tree.norm(grads)}

    return compilation.jit(step, donate_argnums=0)


def calibrate(
    cell: cell_lib.Cell, params: types.Params, store: feature_store.AnyStore, batches: list[np.ndarray]
) -> types.Params:
    """Running statistics: the mean of the batch moments of the final weights over some batches."""

    @jax.jit
    def moments(params: types.Params, store: types.FeatureStore, clips: jax.Array) -> Any:
        features = jax.tree.map(lambda x: x[clips].astype(jnp.float32), store.features)
        return cell.moments(params, features)

    drawn = [jax.device_get(moments(params, *feature_store.anywhere(store, clips))) for clips in batches]
    where = feature_store.state_sharding(store)
    mean = jax.tree.map(lambda *xs: mesh_lib.put(np.mean(xs, axis=0), where), *drawn)
    return cell_lib.freeze_norm(params, mean)


def save_winner(
    folder: workdir.Workdir,
    space: genotype_lib.Space,
    genotype: np.ndarray,
    params: types.Params,
    scores: dict[str, Any],
) -> None:
    """Writes the cell's weights and, after them, `best_genotype.json`."""
    checkpoints = folder.checkpointer(CELL_STAGE, keep=1)
    latest = checkpoints.latest_step()
    checkpoints.save(0 if latest is None else latest + 1, params)
    folder.write_json(BEST, {**genotype_lib.to_dict(space, genotype), "scores": scores})
    distributed.barrier("winner")  # written by one process, read by all


def require_winner(folder: workdir.Workdir) -> pathlib.Path:
    """The path of `best_genotype.json`.

    Raises:
      UserError: the run folder holds no trained cell.
    """
    path = folder.path / BEST
    if not path.is_file():
        raise errors.UserError(f"{folder.path}: holds no trained cell, run `dvsnas search` or `dvsnas train` first")
    return path


def load_winner(
    config: ml_collections.ConfigDict, folder: workdir.Workdir
) -> tuple[cell_lib.Cell, types.Params, genotype_lib.Space, np.ndarray]:
    """Reads what `save_winner` wrote.

    Raises:
      UserError: the run folder holds no trained cell.
    """
    path = require_winner(folder)
    space, genotype = genotype_lib.from_dict(json.loads(path.read_text()), where=str(path))
    cell = cell_lib.make(space, genotype, features_lib.settings_of(config))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    template = cell_lib.freeze_norm(params, _moment_shapes(params))
    return cell, folder.checkpointer(CELL_STAGE, keep=1).restore(template), space, genotype


def _moment_shapes(params: types.Params) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """A moment for every normalisation of a cell, as its scale."""
    leaves = [(tuple(entry.key for entry in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    return {keys[:-1]: (leaf, leaf) for keys, leaf in leaves if keys[-1] == "scale"}
