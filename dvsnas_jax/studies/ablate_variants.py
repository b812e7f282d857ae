"""The work behind `dvsnas ablate`: variants scored or retrained, searches under masks; finished parts are kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import compilation, errors, progress, types
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import loop, pipeline, steps
from dvsnas_jax.space import cell_end, operations
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import neighbours as variants_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import study_report
from dvsnas_jax.train import (
    averaging,
    cell_loss,
    cell_training,
    claims,
    feature_store,
    features,
    folds,
    pretrain,
    training_loop,
)

REPLACE, LEAVE_ONE_OUT, RETRAIN = "replace", "leave-one-out", "retrain"
LOG = "ablation.jsonl"
FOLDER = "ablation"
MAY_DIFFER = ("ablate", "evaluate", "report", "why")


def assemble(config: ml_collections.ConfigDict, folder: workdir.Workdir, *, is_training: bool) -> pipeline.Parts:
    """The parts of a search on the run's trained static network, nothing compiled yet.

    Without training the clips of the meta-validation split stand in for those of the other one.
    """
    weights = cell_training.class_weights(config, folder) if is_training else None
    space, mesh, strategy, made = _steps(config, weights, is_training=is_training)
    variables = static_network(config, folder)
    baseline = averaging.baseline(config, variables, folder)
    if is_training:
        compiled = pipeline.Compiled(made, feature_store.everywhere(config.search), weights)
        with signals.stop_on_signal() as stop:  # the flag of the command
            networks = folds.run(config, folder, stop)
        share = averaging.starting_share(config, variables, folder)
        return pipeline.assemble(config, strategy, networks, compiled, share=share)._replace(baseline=baseline)
    store = mesh_lib.replicate(mesh, validation_features(config, space, variables, None))
    return pipeline.Parts(config, space, mesh, made, strategy, store, store, baseline=baseline)


def _steps(
    config: ml_collections.ConfigDict, class_weights: np.ndarray | None = None, *, is_training: bool = False
) -> tuple[genotype_lib.Space, jax.sharding.Mesh, strategy_lib.Strategy, steps.Steps]:
    """The space of a run, its devices, and what a search calls on them; without `is_training`, to score alone."""
    space, mesh = features.space_of(config), mesh_lib.make()
    strategy = strategies.make(config.search.strategy, space, config.controller)
    supernet = supernet_lib.make(space, features.settings_of(config))
    loss = cell_loss.make(config, config.search.label_stride, class_weights) if is_training else None
    return space, mesh, strategy, steps.make(supernet, config.search, mesh, loss=loss)


def static_network(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> Any:
    """The variables of the run's static network; a UserError where it is not trained."""
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(f"{folder.path}: holds no trained static network; run `dvsnas search` there first")
    return variables


def validation_features(
    config: ml_collections.ConfigDict, space: genotype_lib.Space, variables: Any, places: np.ndarray | None
) -> types.FeatureStore:
    """What cells of a space read of the meta-validation clips, and labels; `places` in their order, None: all."""
    numbers = pretrain.split_clips(config)[1]
    clips = features.select(config, numbers if places is None else numbers[places])
    return features.build(config, variables, clips, features.needed_maps(space, config))


def shared_weights(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> types.Params | None:
    """The shared weights of a finished search; None where they are not there, or were never trained (mode scratch)."""
    if config.search.mode == "scratch" or _num_done(folder) < config.search.steps:
        return None
    with compilation.effort(config.compile_effort):
        _, mesh, strategy, made = _steps(config)
    return _restore(folder, strategy, made, mesh)


def _num_done(folder: workdir.Workdir) -> int:
    """Steps of the search in a folder."""
    return folder.checkpointer(loop.STAGE).latest_step() or 0


def untrained(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Operations with weights that no search step has trained: the masked ones of mode share."""
    masked = tuple(config.controller.masked_operations) if config.search.mode == "share" else ()
    return tuple(name for name in masked if not operations.OPERATIONS[name].is_weightless)


def trained_weights(parts: pipeline.Parts, folder: workdir.Workdir) -> types.Params:
    """The shared weights at the end of a search; a UserError where the folder holds no finished one."""
    done, num_steps = _num_done(folder), parts.config.search.steps
    if done < num_steps:
        raise errors.UserError(
            f"{folder.path}: holds no finished search ({done} of {num_steps} steps); run `dvsnas search` there first"
        )
    return _restore(folder, parts.strategy, parts.steps, parts.mesh)


def _restore(
    folder: workdir.Workdir, strategy: strategy_lib.Strategy, made: steps.Steps, mesh: jax.sharding.Mesh
) -> types.Params:
    """The shared weights of the last checkpoint of a search."""
    template = loop.LoopState(strategy=jax.eval_shape(strategy.init, jax.random.key(0)), shared=made.state)
    return mesh_lib.replicate(mesh, folder.checkpointer(loop.STAGE).restore(template).shared.params)


def replace(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag,
    rows: np.ndarray, chosen: Sequence[variants_lib.Variant],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rewards as in the search, of the genotype first; all of them run the same compiled program."""
    log = _Variants(config, folder, {"what": REPLACE}, rows, chosen)
    if log.pending:
        parts = assemble(config, folder, is_training=config.search.mode == "scratch")
        params = trained_weights(parts, folder)
        with progress.bar(len(log.pending), REPLACE) as bar:
            for group in _groups(log.pending, config.search.genotypes_per_step):
                _raise_if(stop, REPLACE, bar.count, len(log.pending))
                genotypes = np.stack([variant.genotype for variant in group])
                own = _without_part(params, group[0])
                scored = pipeline.score(parts, own, genotypes, parts.val_store.num_clips)
                for variant, record in zip(group, scored, strict=True):
                    log.append(variant, record)
                bar.update(len(group))
    return log.records()


def parts_of_end(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The parts of a cell's end that can be switched off in the weights that score it: in mode share."""
    if config.space.end != cell_end.HEADS or config.search.mode == "scratch":
        return ()
    return cell_end.parts(is_propagating=config.space.mode == "propagate")


def _groups(variants: Sequence[variants_lib.Variant], size: int) -> Iterator[list[variants_lib.Variant]]:
    """Variants in their order, at most so many at a time that are scored with the same weights."""
    for _, same in itertools.groupby(variants, key=lambda variant: variant.before if _has_part(variant) else ""):
        group = list(same)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _has_part(variant: variants_lib.Variant) -> bool:
    return variant.field == variants_lib.END


def _without_part(params: types.Params, variant: variants_lib.Variant) -> types.Params:
    """The weights that score a variant."""
    return {**params, "ports": cell_end.without(params["ports"], variant.before)} if _has_part(variant) else params


def retrain(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag,
    rows: np.ndarray, chosen: Sequence[variants_lib.Variant], *, num_steps: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rewards of static graphs that are trained from scratch, each `num_steps` steps, the genotype's first."""
    log = _Variants(config, folder, {"what": RETRAIN, "steps": num_steps}, rows, chosen)
    if log.pending:
        changed = config.copy_and_resolve_references()
        changed.train.steps = num_steps
        parts = assemble(config, folder, is_training=True)
        trained = workdir.Workdir(folder.path / FOLDER / f"retrain_{num_steps}_steps")
        claims.claim(changed, trained, ignore=MAY_DIFFER)
        for done, variant in enumerate(log.pending):
            _raise_if(stop, RETRAIN, done, len(log.pending))
            name = f"cell_{genotype_lib.digest(parts.space, variant.genotype)}"
            stage = training_loop.Stage.of(changed.train, name, trained, stop)
            found = cell_training.train_cell(changed, parts.space, variant.genotype, parts.material, stage)
            log.append(variant, pipeline.score_trained(parts, variant.genotype, found))
    return log.records()


def leave_one_out(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag, *,
    num_steps: int, limit: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A search with every operation, then one without each, at most `limit`: same seeds and functions, other masks.

    Each search has a folder of its own in `ablation/` of the run folder. Its record has `without` (None: with all),
    `best`, `mean_last_quarter`, `num_scored`, `num_diverged`. A UserError where the mask of the config leaves one
    operation.
    """
    space = features.space_of(config)
    full = strategies.operation_mask(space, tuple(config.controller.masked_operations))
    if full.sum() < 2:
        raise errors.UserError(
            "controller.masked_operations: leaves one operation; without it nothing is left, allow at least two"
        )
    changed = config.copy_and_resolve_references()
    changed.search.update({"steps": num_steps, "warmup_steps": config.ablate.warmup_steps, "num_random": 0})
    key = {"what": LEAVE_ONE_OUT, "steps": num_steps, "warmup_steps": config.ablate.warmup_steps}
    finished = study_report.Finished(folder, LOG, key, "without")
    wanted: list[str | None] = [None, *np.asarray(space.operations)[full].tolist()[:limit]]
    parts: pipeline.Parts | None = None
    place = f"search_{num_steps}_steps_{changed.search.warmup_steps}_warmup"
    for done, name in enumerate(wanted):
        if name in finished.lines:
            continue
        _raise_if(stop, LEAVE_ONE_OUT, done, len(wanted))
        parts = parts or assemble(config, folder, is_training=True)
        mask = full & np.array([other != name for other in space.operations])
        searched = workdir.Workdir(folder.path / FOLDER / place / (f"without_{name}" if name else "all"))
        named = changed.copy_and_resolve_references()
        named.controller.masked_operations = (*named.controller.masked_operations, *([name] if name else []))
        # Folders of earlier versions do not name the operation that was left out of their search.
        claims.claim(named, searched, ignore=(*MAY_DIFFER, "controller.masked_operations"))
        pipeline.run_search(parts._replace(config=changed, strategy=parts.strategy.with_mask(mask)), searched, stop)
        searched.close()
        finished.append(name, _summary(searched.read(loop.LOG), num_steps))
    return [finished.lines[name] for name in wanted]


def _summary(records: Sequence[dict[str, Any]], num_steps: int) -> dict[str, Any]:
    """Best reward of a search and the mean of the candidates of its last quarter."""
    scored = [record for record in records if record["reward"] is not None]
    rewards = [record["reward"] for record in scored]
    late = [record["reward"] for record in scored if record["step"] >= num_steps - max(num_steps // 4, 1)]
    return {
        "best": max(rewards, default=None),
        "mean_last_quarter": float(np.mean(late)) if late else None,
        "num_scored": len(rewards),
        "num_diverged": len(records) - len(rewards),
    }


def _raise_if(stop: signals.StopFlag, what: str, done: int, total: int) -> None:
    """Stops between two variants."""
    if stop.requested:
        raise errors.Stopped(f"ablate {what}: stopped, {done} of {total} were finished")


class _Variants:
    """A genotype and what it becomes by one token; those that have a line in `ablation.jsonl` are not scored again."""

    def __init__(
        self, config: ml_collections.ConfigDict, folder: workdir.Workdir, question: dict[str, Any],
        rows: np.ndarray, chosen: Sequence[variants_lib.Variant],
    ) -> None:  # fmt: skip
        self._space = features.space_of(config)
        what, *rest = question.items()
        key = dict([what, ("base", self._hash(rows)), *rest])
        self._finished = study_report.Finished(folder, LOG, key, "hash")
        self._all = [variants_lib.Variant(rows, -1, "", "", ""), *chosen]
        self.pending = [variant for variant in self._all if self._name(variant) not in self._finished.lines]

    def _hash(self, genotype: np.ndarray) -> str:
        return genotype_lib.digest(self._space, genotype)

    def _name(self, variant: variants_lib.Variant) -> str:
        return self._hash(variant.genotype) + (f"_without_{variant.before}" if _has_part(variant) else "")

    def append(self, variant: variants_lib.Variant, record: dict[str, Any]) -> None:
        """Writes the line of one variant."""
        names = {name: value for name, value in variant._asdict().items() if name != "genotype"}
        self._finished.append(self._name(variant), {**names, **record})

    def records(self) -> list[dict[str, Any]]:
        """All lines, the genotype's first."""
        return [self._finished.lines[self._name(variant)] for variant in self._all]
