"""Training of the static network on single frames; the best weights on held-out clips are kept.

It is data parallel over all devices; the batch statistics are those of the whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import example_order, extra, held_out, pipeline, prefetch, store
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import features, optim, pretrain_loss, training_loop

STAGE = "pretrain"
CLASS_WEIGHTS = "class_weights.json"
"""In a run folder: what `pretrain.class_weights` asked for, and the weights."""
_COPIES = 4
"""Of the variables while they are trained: they, their average, the best of it, gradients."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PretrainState:
    """What the training of a static network changes.

    Attributes:
      variables: params and batch statistics; `average`: their moving average.
      best: the `average` with the best held-out mIoU so far.
      best_miou: f32 [], its mIoU; -1 before the first validation.
    """

    variables: Any
    average: Any
    best: Any
    best_miou: types.Array
    opt_state: optax.OptState
    step: types.Array


Step = Callable[[PretrainState, types.Clip, Any], tuple[PretrainState, dict[str, jax.Array]]]


class Targets(NamedTuple):
    """What the clips of the train split are known by, in order, see `held_out.in_blocks`.

    Attributes:
      sequences: integers [N], of their targets; clips that are computed are of one.
      numbers: integers [N], of their target frames.
      reach: clips with targets less than so many frame numbers apart share frames; 0: none do.
    """

    sequences: np.ndarray
    numbers: np.ndarray
    reach: int


def targets(config: ml_collections.ConfigDict) -> Targets:
    """The clips of the train split; a UserError where it cannot be used."""
    data = config.data
    places = store.index(data, "train", data.num_frames).places[:, -1]
    if datasets.of(data).is_computed:
        return Targets(np.zeros(len(places), np.int64), np.arange(len(places)), 0)
    found = store.source(data, "train").frames
    _, sequences = np.unique([found[place].sequence for place in places], return_inverse=True)
    numbers = np.array([found[place].number for place in places], np.int64)
    farthest = data.frame_gap + max(data.frame_gap_tolerance, data.gap_jitter)
    reach = 0 if store.is_still(data) else int(data.num_frames * farthest)  # stills are single frames: none is shared
    return Targets(sequences, numbers, reach)


def split_clips(config: ml_collections.ConfigDict) -> held_out.Split:
    """Meta-training and meta-validation clips of the train split: indices, disjoint, from the seed.

    They are a function of the configuration and of which frames there are, see `held_out`. Rewards are measured on the
    first of the second. Clips that are computed are independent: any choice of them is honest.

    Raises:
      UserError: the train split cannot be used, or no clip is left to train on.
    """
    data, section = config.data, config.search
    num_clips = len(store.index(data, "train", data.num_frames).places)
    num_held = held_out.count(num_clips, section.meta_val_fraction)
    if section.meta_val == held_out.RANDOM or datasets.of(data).is_computed:
        return held_out.at_random(num_clips, num_held, config.seed)
    sequences, numbers, reach = targets(config)
    return held_out.in_blocks(sequences, numbers, num_held, reach=reach, seed=config.seed)


def num_done(folder: workdir.Workdir) -> int:
    """Optimizer steps after which the static network in a folder was saved last."""
    return folder.checkpointer(STAGE).latest_step() or 0


def is_trained(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> bool:
    """Whether the run folder holds the trained static network."""
    return num_done(folder) >= config.pretrain.steps


def check(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> None:
    """Whether `run` has all that it needs; what was trained already needs nothing. Nothing is written.

    Raises:
      UserError: a network that is too large, weights or a teacher of another one, bad class weights, or training clips
        that cannot be read.
    """
    if is_trained(config, folder):
        return
    section, num_classes = config.pretrain, pipeline.class_table(config.data).num_classes
    net = static_net.make(config.net, num_classes)
    _require_memory(net)
    if config.net.weights:
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), static_net.shapes(net))
        static_net.with_weights(config.net, empty)
    pretrain_loss.load_teacher(section.teacher, num_classes, restore)
    if section.class_weights not in pretrain_loss.COUNTED:
        pretrain_loss.class_weights(section.class_weights, num_classes, lambda: iter(()))
    batch_size, num_frames = _batch(config)
    clips, _ = split_clips(config)
    extra.train_batches(config.data, batch_size=batch_size, num_frames=num_frames, seed=config.seed, indices=clips)


def _require_memory(net: static_net.StaticNet) -> None:
    """Refuses a network that no machine of this size holds: on a CPU, XLA would end the process with a stack.

    Raises:
      UserError: its variables, their averages and gradients alone need more than the machine has.
    """
    num = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(static_net.shapes(net)))
    needed, has = _COPIES * 4 * num, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > has:
        raise errors.UserError(
            f"net: a network of {num:.3g} variables needs {needed / 2**30:,.0f} GiB to be trained, this machine has "
            f"{has / 2**30:,.0f}; lower net.width or net.decoder_channels"
        )


def _batch(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Clips of a batch, and frames of each."""
    num_frames = 1 if config.data.history == "stills" else config.data.num_frames
    return max(config.pretrain.batch_size // num_frames, 1), num_frames


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    clips: np.ndarray | None = None,
) -> Any:
    """The variables of the static network, which is trained, or restored where it is trained already.

    `clips` are those to train on, None: all meta-training clips.
    """
    section, (batch_size, num_frames) = config.pretrain, _batch(config)
    trained = restore(config, folder)
    if trained is not None:
        return mesh_lib.replicate_for_batch(trained, batch_size) if jax.device_count() > 1 else trained
    num_classes = pipeline.class_table(config.data).num_classes
    net = static_net.make(config.net, num_classes)
    state = init(static_net.start(config.net, net, jax.random.key(config.seed), _note), make_optimizer(section))
    teacher = pretrain_loss.load_teacher(section.teacher, num_classes, restore)
    meta_train, meta_val = split_clips(config)
    sizes = {"batch_size": batch_size, "num_frames": num_frames, "seed": config.seed}
    chosen = meta_train if clips is None else clips
    batches = functools.partial(extra.train_batches, config.data, indices=chosen, **sizes)
    if jax.device_count() > 1:
        state = mesh_lib.replicate_for_batch(state, batch_size)

    weights = class_weights(config, folder)
    of_classes = None if weights is None else tuple(weights.tolist())
    step_fn = _step(ml_collections.FrozenConfigDict(section), config.seed, net, teacher.net, of_classes)
    validate = make_validate(config, meta_val)

    def after(done: int, state: PretrainState) -> PretrainState:
        if done % section.eval_every and done != section.steps:
            return state
        miou = validate(state.average)
        folder.scalars(f"{STAGE}{training_loop.VALIDATION}", done, {"miou": miou})
        if miou <= float(state.best_miou):
            return state
        best = optim.copied(state.average)  # a copy: the step donates the state
        return dataclasses.replace(state, best=best, best_miou=jnp.float32(miou))

    state = training_loop.fit(
        state,
        training_loop.Stage.of(section, STAGE, folder, stop),
        step_fn=lambda state, clip: step_fn(state, clip, teacher.variables),
        batches_fn=lambda start: _on_devices(batches, batch_size, start),
        after_fn=after,
    )
    return state.best


def class_weights(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> np.ndarray | None:
    """The class weights f32 [K] of the static network of a run, None where all classes are alike.

    Those that follow from the labels of training batches are counted once and kept in the run folder, for the cells.
    """
    text, kept = config.pretrain.class_weights, folder.path / CLASS_WEIGHTS
    if not text:
        return None
    if kept.is_file():
        stored = folder.read_json(CLASS_WEIGHTS)
        if stored["asked"] == text:
            return np.array(stored["weights"], np.float32)
    batch_size, num_frames = _batch(config)
    clips, _ = split_clips(config)
    sizes = {"batch_size": batch_size, "num_frames": num_frames, "seed": config.seed}
    batches = functools.partial(extra.train_batches, config.data, indices=clips, **sizes)
    found = pretrain_loss.class_weights(text, pipeline.class_table(config.data).num_classes, batches)
    assert found is not None
    folder.write_json(CLASS_WEIGHTS, {"asked": text, "weights": found.tolist()})
    return found


def _note(text: str) -> None:
    if distributed.is_main():
        print(f"note: {text}", file=sys.stderr, flush=True)


def _on_devices(batches: Callable[..., Iterator[types.Clip]], batch_size: int, start: int) -> Iterator[types.Clip]:
    """The batches from a step on, each process loads its share, ahead of the steps on the devices."""
    if jax.device_count() == 1:
        return prefetch.to_device(batches(part=example_order.Part(start)))
    own = batches(part=example_order.Part(start, *mesh_lib.host_shard(batch_size)))
    return prefetch.on_host(mesh_lib.put_batch(clip, batch_size) for clip in own)


def restore(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> Any | None:
    """Variables of the trained static network of a run folder, None where there are none."""
    if not is_trained(config, folder):
        return None
    net = static_net.make(config.net, pipeline.class_table(config.data).num_classes)
    return folder.checkpointer(STAGE).restore(static_net.shapes(net), part=".best")


def init(variables: Any, optimizer: optax.GradientTransformation) -> PretrainState:
    """The state before the first step, from freshly drawn variables."""
    average, best = optim.copied((variables, variables))  # buffers of their own: the state is donated
    opt_state = optimizer.init(variables["params"])
    return PretrainState(variables, average, best, jnp.float32(-1.0), opt_state, jnp.zeros((), jnp.int32))


def make_optimizer(section: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """AdamW with the encoder's own learning rate."""
    if section.encoder_rate == 1.0:
        return optim.make(section)
    return optax.chain(optim.make(section), optim.scale_part("encoder", section.encoder_rate))


@functools.lru_cache(maxsize=1)
def _step(
    section: ml_collections.FrozenConfigDict,
    seed: int,
    net: static_net.StaticNet,
    teacher_net: static_net.StaticNet | None,
    class_weights: tuple[float, ...] | None,
) -> Step:
    """The step of a run. It is kept: the networks of all folds are trained by one program."""
    weights = None if class_weights is None else np.array(class_weights, np.float32)
    loss_fn = pretrain_loss.make(section, net, teacher_net, weights)
    return make_step(loss_fn, make_optimizer(section), section.polyak, jax.random.key(seed))


def make_step(
    loss_fn: pretrain_loss.Loss, optimizer: optax.GradientTransformation, decay: float, rng: jax.Array
) -> Step:
    """The jitted training step `(state, clip, teacher variables) -> (state, metrics)`; the state is donated.

    `decay` is that of the averaged weights; `rng`, with the step folded in, is for dropout.
    """

    def step(state: PretrainState, clip: types.Clip, teacher: Any) -> tuple[PretrainState, dict[str, jax.Array]]:
        variables = state.variables
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, parts)), grads = gradient_fn(
            variables["params"], variables["batch_stats"], clip, teacher, jax.random.fold_in(rng, state.step)
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        variables = {"params": params, "batch_stats": batch_stats}
        state = dataclasses.replace(
            state,
            variables=variables,
            average=optim.polyak(decay, state.average, variables, state.step),
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, {"loss": loss, **parts, "gradient_norm": optax.tree.norm(grads)}

    return compilation.jit(step, donate_argnums=0)


def make_validate(config: ml_collections.ConfigDict, clips: np.ndarray) -> Callable[[Any], float]:
    """`variables -> mIoU` on the target frames of some training clips, read anew each time, a batch in memory."""
    data, num_frames = config.data, config.data.num_frames
    size = data.height, data.width
    # The targets alone where every frame has the history that a clip needs: the clips are then the same.
    num_clips = (pipeline.num_clips(data, "train", num) for num in (1, num_frames))
    num_read = 1 if len(set(num_clips)) == 1 else num_frames
    num_classes = pipeline.class_table(data).num_classes
    forward = features.make_forward(config)
    predict = compilation.jit(lambda logits: static_net.predict(logits, size))

    def validate(variables: Any) -> float:
        counts = np.zeros((num_classes, num_classes), np.int64)
        for start in range(0, len(clips), features.BATCH_FRAMES):
            chosen = clips[start : start + features.BATCH_FRAMES]
            clip = pipeline.load_clips(data, split="train", num_frames=num_read, indices=chosen)
            frames, labels = np.asarray(clip.frames)[:, -1], np.asarray(clip.labels)[:, -1]
            (found,) = forward(variables, frames)
            predictions = np.asarray(predict(found.logits))[: len(labels)]
            counts += np.asarray(metrics.confusion(labels, predictions, num_classes))
        return float(metrics.scores(counts)["miou"])

    return validate
