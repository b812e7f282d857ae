"""Cell, decoder and encoder trained together through time, on live augmented clips (`train.joint`).

It starts from the retrained cell and the static network of the run. The loss is the cell's, and that of the static
network's own logits on the same frames, as it was trained with. The batch normalisations of the static network keep
their running statistics and normalise by them (as with `net.freeze_norm`), so that a small batch changes nothing there;
those of the cell are estimated anew. The clips are of the run's own data, without `data.extra`, and a teacher of the
cell is the static network as it is then, whatever `train.teacher` says. Mode propagate: gradients of the frames between
key frames reach the encoder's first stages alone, which is all that the cell reads of them.

What scores best on the meta-validation clips is kept; where that is the start, the run stays as it was. Else the cell
of the folder has a static network of its own, under the digest of its genotype, beside that of the run.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dvsnas_jax.core import compilation, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals
from dvsnas_jax.data.loading import example_order, pipeline, prefetch
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import (
    averaging,
    cell_loss,
    clip_scores,
    features,
    losses,
    optim,
    pretrain,
    training_loop,
)

STAGE, CONTROL = "joint", "static_longer"
"""Stages of metrics.jsonl: `joint_DIGEST` of a cell and its network; the control, the static network by itself."""
_CELL = "cell"
"""The cell's weights beside the parts of the static network."""
Step = Callable[[optim.TrainState, Any, types.Clip], tuple[optim.TrainState, dict[str, jax.Array]]]


class Joint(NamedTuple):
    """A cell and the static network that it runs on.

    Attributes:
      variables: of the static network; None: that of the run, nothing was gained.
      params: the cell's, with running statistics.
      found: what they count on all meta-validation clips; None where nothing was gained.
    """

    variables: Any | None
    params: types.Params
    found: clip_scores.ClipScores | None = None


class _Parts(NamedTuple):
    """What is trained: a static network, with a cell or by itself.

    Attributes:
      config: of the run, section `train` as `_section` makes it.
      net: the static network.
      fixed: of its variables, what is not trained: running statistics, and the encoder at rate 0.
      names: maps that are needed.
      class_weights: f32 [K] of the losses, None: all alike.
      cell: None: there is none.
    """

    config: ml_collections.ConfigDict
    net: static_net.StaticNet
    fixed: Any
    names: tuple[str, ...]
    class_weights: np.ndarray | None
    cell: cell_lib.Cell | None


def run(
    config: ml_collections.ConfigDict,
    variables: Any,
    genotype: tuple[genotype_lib.Space, np.ndarray],
    params: types.Params,
    folder: workdir.Workdir,
    stop: signals.StopFlag,
) -> Joint:
    """Trains a retrained cell and the static network together for `train.joint` steps; 0: nothing is done.

    Args:
      config: of the run.
      variables: of its static network.
      genotype: of the cell, and its space.
      params: its weights, with running statistics.
      folder: the run folder, which keeps a static network that was gained.
      stop: asks to save and stop.
    """
    settings = features.settings_of(config)
    if not config.train.joint or not settings.has_output:
        return Joint(None, params)
    digest, cell = genotype_lib.digest(*genotype), cell_lib.make(*genotype, settings)
    parts = _parts(config, variables, features.needed_maps(genotype[0], config), folder, cell)
    start = {**_trained(parts, variables), _CELL: cell_lib.without_statistics(params)}
    validation = _validation(parts, variables, averaging.baseline(config, variables, folder))
    kept = _fit(parts, start, validation, f"{STAGE}_{digest}", (folder, stop))
    before = validation.count_fn(jax.device_get({**start, _CELL: params}))
    best = validation.calibrate_fn(kept.best)
    found = validation.count_fn(best)
    scores = [validation.score_fn(clip_scores.shares(each)) for each in (before, found)]
    if not int(kept.best_step) or not scores[1] > scores[0]:
        _note(f"train.joint: no gain over the retrained cell, which stays as it is (score {scores[0]:.4f})")
        return Joint(None, params)
    _note(f"train.joint: score {scores[1]:.4f} on meta-validation, {scores[0]:.4f} before")
    own = _variables(best, parts.fixed)
    _save(folder, _stage_of(digest), own)
    return Joint(own, best[_CELL], found)


def control(config: ml_collections.ConfigDict, variables: Any, folder: workdir.Workdir, stop: signals.StopFlag) -> Any:
    """The static network by itself trained on for `train.joint` steps, in the same way: what `run` is to be compared
    with. Its variables, the best on meta-validation, are kept in the run folder; the start is one of them."""
    parts = _parts(config, variables, features.needed_maps(features.space_of(config), config), folder, None)
    validation = _validation(parts, variables, averaging.baseline(config, variables, folder))
    kept = _fit(parts, _trained(parts, variables), validation, CONTROL, (folder, stop))
    own = _variables(kept.best, parts.fixed)
    _save(folder, f"{CONTROL}_best", own)
    return own


def restore(config: ml_collections.ConfigDict, folder: workdir.Workdir, digest: str | None) -> Any | None:
    """The static network of its own that the cell of this genotype has in a run folder; None: it has none.

    `digest` None: that of `control`.
    """
    stage = f"{CONTROL}_best" if digest is None else _stage_of(digest)
    if not (folder.path / "checkpoints" / stage).is_dir() or folder.checkpointer(stage).latest_step() is None:
        return None
    net = static_net.make(config.net, pipeline.class_table(config.data).num_classes)
    return folder.checkpointer(stage).restore(static_net.shapes(net))


def network_of(config: ml_collections.ConfigDict, folder: workdir.Workdir, digest: str, variables: Any) -> Any:
    """The variables of the static network that the cell of a genotype runs on: its own, else those of the run."""
    own = restore(config, folder, digest)
    return variables if own is None else own


def keep(folder: workdir.Workdir, digest: str, variables: Any) -> None:
    """Writes the static network of its own that the cell of this genotype has."""
    _save(folder, _stage_of(digest), variables)


def _stage_of(digest: str) -> str:
    return f"static_{digest}"


def _save(folder: workdir.Workdir, stage: str, variables: Any) -> None:
    """A stopped run that ends once more has the same to save."""
    checkpoints = folder.checkpointer(stage, keep=1)
    if checkpoints.latest_step() is None:
        checkpoints.save(0, variables)


def _note(text: str) -> None:
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)


def _section(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration whose section `train` is that of the joint training."""
    own = config.copy_and_resolve_references()
    section = own.train
    section.update({"steps": section.joint, "learning_rate": section.learning_rate * section.joint_rate})
    # As many frames at a time as the static network was trained on.
    section.batch_size = max(config.pretrain.batch_size // config.data.num_frames, 1)
    return own


def _parts(
    config: ml_collections.ConfigDict,
    variables: Any,
    names: tuple[str, ...],
    folder: workdir.Workdir,
    cell: cell_lib.Cell | None,
) -> _Parts:
    own, weights = _section(config), pretrain.class_weights(config, folder)
    net = static_net.make(config.net, pipeline.class_table(config.data).num_classes)
    is_fixed = {"encoder"} if not own.train.joint_encoder_rate else set()
    still = {name: value for name, value in variables["params"].items() if name in is_fixed}
    fixed = jax.device_get({"params": still, "batch_stats": variables["batch_stats"]})
    return _Parts(own, net, fixed, names, weights, cell)


def _trained(parts: _Parts, variables: Any) -> Any:
    """The parts of a static network that are trained."""
    return {name: value for name, value in variables["params"].items() if name not in parts.fixed["params"]}


def _variables(params: Any, fixed: Any) -> Any:
    """The variables of the static network, of what is trained and what is not."""
    trained = {name: value for name, value in params.items() if name != _CELL}
    return {**fixed, "params": {**fixed["params"], **trained}}


def _fit(
    parts: _Parts,
    start: types.Params,
    validation: training_loop.Validation,
    name: str,
    run_of: tuple[workdir.Workdir, signals.StopFlag],
) -> training_loop.KeptState:
    """Every process does the same work, on its first device; what it starts from is copied, as steps donate it."""
    section = parts.config.train
    optimizer = optim.make(section)
    if section.joint_encoder_rate:
        optimizer = optax.chain(optimizer, optim.scale_part("encoder", section.joint_encoder_rate))
    state = optim.start(optimizer, optim.copied(jax.device_get(start)), is_averaged=True)
    step_fn, fixed = _make_step(parts, optimizer), jax.device_put(parts.fixed)
    return training_loop.fit_kept(
        training_loop.start_kept(state),
        training_loop.Stage.of(section, name, *run_of),
        section.eval_every,
        validation,
        step_fn=lambda state, clip: step_fn(state, fixed, clip),
        batches_fn=lambda first: prefetch.to_device(_clips(parts.config, first)),
    )


def _clips(config: ml_collections.ConfigDict, first: int) -> Iterator[types.Clip]:
    """The batches of augmented meta-training clips from a step on, u8 [B, T, ...]."""
    data, size, ages = config.data, config.train.batch_size, features.settings_of(config).num_ages
    batches = pipeline.train_batches(
        data, batch_size=size, num_frames=data.num_frames, seed=config.seed + 3,
        indices=pretrain.split_clips(config)[0], part=example_order.Part(first),
    )  # fmt: skip
    for step, clip in enumerate(batches, first):
        yield features.spread_ages(clip, size * step + np.arange(size), ages)


def _live(parts: _Parts, params: types.Params, fixed: Any, clip: types.Clip) -> types.Features:
    """The static network's features of clips [B, T, ...], frame by frame: [T, B, h, w, C]; for traced code."""
    frames = jnp.asarray(clip.frames).swapaxes(0, 1)
    found = static_net.infer(parts.net, _variables(params, fixed), frames.reshape(-1, *frames.shape[2:]))
    kept = types.Features(maps={name: found.maps[name] for name in parts.names}, logits=found.logits)
    return jax.tree.map(lambda x: x.reshape(*frames.shape[:2], *x.shape[1:]), kept)


def _make_loss(parts: _Parts) -> Callable[[types.Params, Any, types.Clip], tuple[jax.Array, dict[str, jax.Array]]]:
    """`(params, fixed, clip) -> (loss, its parts)`: the cell's, and `train.joint_static` times that of the static
    logits; without a cell the latter alone."""
    section, pretraining, cell = parts.config.train, parts.config.pretrain, parts.cell
    cell_loss_fn = dataclasses.replace(
        cell_loss.make(parts.config, section.label_stride, parts.class_weights),
        is_still=parts.config.data.history == "stills", is_mixed=False, is_taught_apart=False,
    )  # fmt: skip

    def loss_fn(params: types.Params, fixed: Any, clip: types.Clip) -> tuple[jax.Array, dict[str, jax.Array]]:
        found, labels = _live(parts, params, fixed, clip), jnp.asarray(clip.labels).swapaxes(0, 1)
        static, _ = losses.cross_entropy(
            found.logits,
            losses.subsample_labels(labels, section.label_stride),
            class_weights=parts.class_weights,
            smoothing=pretraining.label_smoothing,
            hardest=pretraining.hardest,
        )
        if cell is None:
            return static, {}
        logits, schedule_loss = cell.unroll_training(params[_CELL], found)
        own = cell_loss_fn(logits, labels, jax.lax.stop_gradient(found.logits)) + schedule_loss
        return own + section.joint_static * static, {"cell_loss": own, "static_loss": static}

    return loss_fn


def _make_step(parts: _Parts, optimizer: optax.GradientTransformation) -> Step:
    """The jitted `(state, fixed, clip) -> (state, metrics)`; the state is donated."""
    loss_fn, decay = _make_loss(parts), parts.config.train.polyak

    def step(state: optim.TrainState, fixed: Any, clip: types.Clip) -> tuple[optim.TrainState, dict[str, jax.Array]]:
        (loss, found), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, fixed, clip)
        after = optim.descend(optimizer, state, grads, decay)
        return after, {"loss": loss, **found, "gradient_norm": optax.tree.norm(grads)}

    return compilation.jit(step, donate_argnums=0)


def _validation(parts: _Parts, variables: Any, baseline: clip_scores.Baseline | None) -> training_loop.Validation:
    """Scores on all meta-validation clips by features of the network as it is then; gains are over the baseline of the
    network as it was, of `variables`."""
    config, cell, settings = parts.config, parts.cell, features.settings_of(parts.config)
    _, held_out = pretrain.split_clips(config)
    clips = features.select(config, held_out)

    def alone(params: types.Params, frames: types.Features) -> jax.Array:
        del params
        return jnp.asarray(frames.logits)

    unroll_fn = alone if cell is None else cell.unroll
    count_fn = clip_scores.make_count(unroll_fn, settings.num_ages, baseline is not None)

    @compilation.jit
    def moments(params: types.Params, fixed: Any, clip: types.Clip) -> Any:
        assert cell is not None
        return cell.moments(params[_CELL], _live(parts, params, fixed, clip))

    @functools.cache
    def drawn() -> list[types.Clip]:
        batches = _clips(config, config.train.steps)
        return [next(batches) for _ in range(config.train.norm_batches)]

    def calibrate(params: types.Params) -> types.Params:
        if cell is None:
            return params
        found = [jax.device_get(moments(params, parts.fixed, clip)) for clip in drawn()]
        mean = jax.tree.map(lambda *xs: jnp.asarray(np.mean(xs, axis=0)), *found)
        return {**params, _CELL: cell_lib.freeze_norm(params[_CELL], mean)}

    def count(params: types.Params) -> clip_scores.ClipScores:
        store = features.build(config, _variables(params, parts.fixed), clips, parts.names)
        return clip_scores.of_store(count_fn, params.get(_CELL, {}), store, config.search)

    base = None if baseline is None else baseline.accuracy(features.build(config, variables, clips, parts.names))
    return training_loop.Validation(calibrate, count, training_loop.make_score(config, base))
