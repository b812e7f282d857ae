"""What a cell owes to each of its tokens, and a search to each operation: the genotype and the mask are data.

`open` gives what a function of `make_ablate` takes, of any run with a cell. The command has four questions: `replace`
(one token changed, scored as in the search), `leave-one-out` (searches under masks, one compiled program for all),
`retrain` (one token changed, trained from scratch as a static graph), `worth` (parts of the trained cell switched off).
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import neighbours as variants_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import ablate_report, ablate_variants, study_report, why
from dvsnas_jax.train import (
    cell_training,
    claims,
    clip_scores,
    features,
    joint,
    losses,
    pretrain,
    require_labels,
    winners,
)

WHATS = (ablate_variants.REPLACE, ablate_variants.LEAVE_ONE_OUT, ablate_variants.RETRAIN, why.WORTH)


class Opened(NamedTuple):
    """A run, opened for functional ablation.

    `params` of `supernet` are the shared weights of the search (`weights` is "shared") or those of the run's cell
    ("cell"); `genotype` i32 [L, 5] is that cell's; `space` is that of the run, or of the cell's own file where the
    run's cannot express it; `batch` holds features [B, T, h, w, C] and labels u8 [B, T, H, W] of meta-validation clips;
    `cost.of(space, genotype, settings, grid)` counts a cell.
    """

    params: types.Params
    genotype: np.ndarray
    space: genotype_lib.Space
    supernet: supernet_lib.Supernet
    batch: types.FeatureStore
    settings: cell_frame.CellSettings
    grid: tuple[int, int]
    weights: str
    config: ml_collections.ConfigDict


def open(path: str | os.PathLike[str], *, num_clips: int | None = None) -> Opened:
    """Opens a run for functional ablation; nothing is written.

    >>> run = ablate.open("runs/quickstart")
    >>> ablate_fn = jax.jit(ablate.make_ablate(run.supernet, run.space))
    >>> masks = ~jnp.eye(len(run.space.operations), dtype=bool)  # row i switches operation i off
    >>> found = jax.lax.map(lambda mask: ablate_fn(run.params, run.genotype, mask, run.batch), masks)

    With the shared weights of a search (mode share) a cell normalises by the batch, and any genotype of the space can
    be scored; `dvsnas ablate --what=replace` scores so, batch by batch. Where there are none (mode scratch, a folder of
    `dvsnas train`) the cell's own weights stand in the supernet: only what the genotype has is trained then, and
    normalises by its running statistics.

    `num_clips`: the first so many meta-validation clips; None: one batch of a reward (`search.batch_size`, of several
    `search.batch_parts` the first part).

    Raises:
      UserError: the folder holds no run or no trained cell, its data is not there, or `num_clips` is below 1.
    """
    if num_clips is not None and num_clips < 1:
        raise errors.UserError(f"num_clips: must be at least 1, got {num_clips}")
    folder = workdir.Workdir(path)
    config = claims.config_of(folder)
    best = winners.require(folder)
    own_space, own_genotype = cell_training.read_genotype(best)
    settings, variables = features.settings_of(config), ablate_variants.static_network(config, folder)
    params, weights = None, "shared"
    with contextlib.suppress(errors.UserError):  # trained from a file of other inputs or layers
        space, genotype = genotype_lib.from_dict(_as_found(folder), features.space_of(config), where=str(best))
        params = ablate_variants.shared_weights(config, folder)
    if params is None:
        space, genotype = own_space, own_genotype
        with contextlib.suppress(errors.UserError):
            values = genotype_lib.to_dict(own_space, own_genotype)
            space, genotype = genotype_lib.from_dict(values, features.space_of(config))
    supernet = supernet_lib.make(space, settings)
    if params is None:
        _, cell_params, _, _ = winners.load(config, folder)
        own = joint.restore(config, folder, genotype_lib.digest(own_space, own_genotype))
        variables = variables if own is None else own
        start = compilation.jit_once(supernet.init)(jax.random.key(0))
        params, weights = cell_lib.scatter_params(space, genotype, cell_params, start), "cell"
    with compilation.effort(config.compile_effort):
        batch = ablate_variants.validation_features(config, space, variables, _places(config, num_clips))
    height, width = batch.features.logits.shape[2:4]
    return Opened(params, genotype, space, supernet, batch, settings, (height, width), weights, config)


def _as_found(folder: workdir.Workdir) -> dict[str, Any]:
    """The winner of a run folder by name, as the search found it: before anything of it was removed."""
    best = folder.read_json(winners.BEST)
    return best.get("found", best)


def _places(config: ml_collections.ConfigDict, num_clips: int | None) -> np.ndarray:
    """Places of clips in the order of the meta-validation split."""
    num_val = len(pretrain.split_clips(config)[1])
    if num_clips is not None:
        return np.arange(min(num_clips, num_val))
    section = config.search
    first = clip_scores.batches(num_val, section)[0, 0]
    part = first[: len(first) // section.batch_parts]
    return part[part >= 0]


def make_ablate(
    supernet: supernet_lib.Supernet, space: genotype_lib.Space, *, replacement: str = "none"
) -> Callable[..., dict[str, jax.Array]]:
    """A pure function that scores a genotype with some operations switched off; jit it, map it over masks.

    >>> ablate_fn = jax.jit(ablate.make_ablate(supernet, space))
    >>> masks = ~jnp.eye(len(space.operations), dtype=bool)  # row i switches operation i off
    >>> found = jax.lax.map(lambda mask: ablate_fn(params, genotype, mask, batch), masks)

    `replacement` takes the place of an operation that the mask switches off (even if it is off itself). A part of the
    cell's end (`cell_end.PARTS`) is switched off in the parameters: `cell_end.without(params["ports"], part)`.

    Returns:
      `(params, genotype i32 [L, 5], op_mask bool [num_ops], batch: types.FeatureStore) -> metrics` of the scored
      frames of every clip (`clip_scores.scored`): `loss` f32 [], `counts` i32 [K, K] (rows = truth), `miou` f32 [] (nan
      where nothing is labelled).

    Raises:
      UserError: the space has no such operation.
    """
    if replacement not in space.operations:
        raise errors.UserError(
            f"replacement: {replacement!r} is no operation of the space; give one of {', '.join(space.operations)}"
        )
    substitute = space.operations.index(replacement)

    def ablate(
        params: types.Params, genotype: types.Array, op_mask: types.Array, batch: types.FeatureStore
    ) -> dict[str, jax.Array]:
        chex.assert_shape([genotype, op_mask], [(space.num_layers, 5), (len(space.operations),)])
        tokens = jnp.asarray(genotype)
        chosen = tokens[:, 2:4]
        tokens = tokens.at[:, 2:4].set(jnp.where(jnp.asarray(op_mask)[chosen], chosen, substitute))
        clips = jax.tree.map(lambda x: jnp.moveaxis(x.astype(jnp.float32), 1, 0), batch.features)
        found = supernet.unroll(params, tokens, clips), jnp.moveaxis(jnp.asarray(batch.labels), 1, 0)
        counted = (clip_scores.scored(frames, supernet.settings.num_ages) for frames in found)
        logits, labels = (frames.reshape(-1, *frames.shape[2:]) for frames in counted)
        predictions = static_net.predict(logits, labels.shape[1:])
        counts = metrics.confusion(labels, predictions, logits.shape[-1])
        return {"loss": losses.cross_entropy(logits, labels)[0], "counts": counts, "miou": _miou(counts)}

    return ablate


def _miou(counts: jax.Array) -> jax.Array:
    """As `metrics.scores`, traced."""
    hits = jnp.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    is_present = union > 0
    iou = jnp.where(is_present, hits / jnp.maximum(union, 1), 0.0)
    return iou.sum() / is_present.sum()


def run(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, *, what: str = ablate_variants.REPLACE,
    genotype: str | None = None, num_steps: int | None = None, limit: int | None = None,
) -> study_report.Report:  # fmt: skip
    """The command `ablate`. What is finished is in `ablation.jsonl` of the run folder and is not done again.

    Args:
      config: of the run; section `ablate` may differ.
      folder: of a run with a trained static network; for `replace` with a finished search.
      what: one of `WHATS`.
      genotype: a file or `zoo:NAME`; None: the run's winner. Not for `leave-one-out`.
      num_steps: of each search (None: `config.ablate.steps`) or of each training (None: `config.train.steps`).
      limit: at most so many variants, or operations left out; None: all (`retrain`: one for each token).

    Raises:
      UserError: the input is not usable.
      Stopped: a signal arrived; what is finished was saved.
    """
    _check(folder, what, genotype, num_steps, limit)
    with folder.hold():
        config = claims.check(config, folder, ignore=ablate_variants.MAY_DIFFER)
        if what == why.WORTH:
            return why.measure(config, folder)
        rows = None if what == ablate_variants.LEAVE_ONE_OUT else read_genotype(config, folder, genotype)
        if what != ablate_variants.REPLACE:
            features.require_ages(config)
        require_labels.check(config, folder, is_rewarded=True)
        claims.claim(config, folder, ignore=ablate_variants.MAY_DIFFER)
        masked = tuple(config.controller.masked_operations)
        with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
            if rows is None:
                length = num_steps or config.ablate.steps
                searches = ablate_variants.leave_one_out(config, folder, stop, num_steps=length, limit=limit)
                return ablate_report.write_searches(folder, searches, masked)
            space = features.space_of(config)
            left_out = ablate_variants.untrained(config) if what == ablate_variants.REPLACE else ()
            chosen = [variant for variant in variants_lib.neighbours(space, rows) if variant.after not in left_out]
            if what == ablate_variants.REPLACE:
                # The parts of the end come first: they are few, and no limit takes them away.
                chosen = [*variants_lib.of_end(rows, ablate_variants.parts_of_end(config)), *chosen]
                records = ablate_variants.replace(config, folder, stop, rows, chosen[:limit])
            else:
                length = num_steps or config.train.steps
                chosen = chosen[: limit or space.num_tokens]
                records = ablate_variants.retrain(config, folder, stop, rows, chosen, num_steps=length)
        named = genotype_lib.to_dict(space, rows)
        return ablate_report.write_replacements(folder, what, named, records, masked=masked, left_out=left_out)


def _check(folder: workdir.Workdir, what: str, genotype: str | None, num_steps: int | None, limit: int | None) -> None:
    """Refuses words that make no sense together, and a folder without a run."""
    if what not in WHATS:
        close = difflib.get_close_matches(what, WHATS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ","
        raise errors.UserError(f"--what: unknown {what!r}{hint} allowed are {', '.join(WHATS)}")
    if what == why.WORTH and (genotype, num_steps, limit) != (None, None, None):
        raise errors.UserError("--what=worth: is of all parts of the run's own cell; leave out the other flags")
    if what == ablate_variants.LEAVE_ONE_OUT and genotype:
        raise errors.UserError("--genotype: leave-one-out searches for genotypes, it takes none")
    if what == ablate_variants.REPLACE and num_steps is not None:
        raise errors.UserError("--steps: replace scores as the search did, it takes no number of steps")
    study_report.check_at_least(1, steps=num_steps, limit=limit)
    folder.config()


def read_genotype(config: ml_collections.ConfigDict, folder: workdir.Workdir, given: str | None) -> np.ndarray:
    """The genotype to take apart, of a file, of the zoo or (None) of the run's winner, in the space of the run.

    Raises:
      UserError: it is not there, or the run's space cannot express it.
    """
    name, space = given or str(winners.require(folder)), features.space_of(config)
    values = genotype_lib.to_dict(*cell_training.read_genotype(name, name="--genotype"))
    values = values if given else _as_found(folder)
    try:
        if name.startswith(zoo.PREFIX):
            return _of_zoo(config, zoo.get(name))
        return genotype_lib.from_dict(values, space, where=name)[1]
    except errors.UserError:  # it advises another config, which this run's folder refuses
        pass
    fitting = []
    for member in zoo.TABLE.values():
        with contextlib.suppress(errors.UserError):
            _of_zoo(config, member)
            fitting.append(member.title)
    rule = f", key frames {config.schedule.kind}" if config.space.mode == zoo.PROPAGATE else ""
    hint = f", for example {', '.join(fitting)}" if fitting else " of that space"
    raise errors.UserError(
        f"--genotype: {name} does not fit the run in {folder.path}: mode {config.space.mode}{rule}, "
        f"{space.num_layers} layers, inputs {', '.join(space.inputs)}, operations {', '.join(space.operations)}, "
        f"aggregations {', '.join(space.aggregations)}; give another one{hint}"
    )


def _of_zoo(config: ml_collections.ConfigDict, member: zoo.Member) -> np.ndarray:
    """A hand-designed cell in the space of the run; a UserError where that cannot express it."""
    zoo.require(member, mode=config.space.mode, schedule=config.schedule.kind, end=config.space.end)
    return zoo.genotype(member, features.space_of(config))[1]
