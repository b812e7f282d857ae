"""`dvsnas compare-strategies`: real searches on equal budgets, their best cells retrained, rewards held against both.

All searches of a comparison share the static network, the features and the compiled steps. What is finished is in
`strategies.jsonl` of the run folder; each search has a folder of its own in `searches/`, with the cells derived from it
as `derived_0.json` and so on, best first, and goes on where it stopped.
The rewards that are held against stand-alone quality are those of the config's `search.mode`, share or scratch. All
searches take the same number of optimizer steps: in mode scratch a strategy whose candidates are stopped earlier, or
are answered from the log, draws more of them.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import compilation, cores, errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import derive, loop, pipeline, relaxed_steps, scratch
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import strategies_report, strategies_statistics, study_report, table_maker
from dvsnas_jax.train import claims, features, pretrain, require_labels

LOG = "strategies.jsonl"
FOLDER = "searches"
MAY_DIFFER = ("ablate", "evaluate", "report", "search.strategy")
SEARCH, RETRAIN, ALONE = strategies_statistics.WHATS


class Budget(NamedTuple):
    """Of a comparison.

    Attributes:
      num_seeds: searches of each strategy.
      num_top: derived cells of each search that are trained from scratch.
      num_correlated: uniformly drawn genotypes behind the rank correlation, trained alone; 0: none.
      num_trainings: of each cell that is trained from scratch or alone, with seeds of their own.
    """

    num_seeds: int = 3
    num_top: int = 5
    num_correlated: int = 30
    num_trainings: int = 2


class _Plan(NamedTuple):
    """What all parts of a comparison are told."""

    parts: pipeline.Parts
    folder: workdir.Workdir
    stop: signals.StopFlag
    budget: Budget
    probes: np.ndarray
    trainer_fn: Callable[[], table_maker.Trainer]


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    names: Sequence[str],
    budget: Budget,
    *,
    output: pathlib.Path | None = None,
) -> study_report.Report:
    """Runs the searches that the folder does not hold yet, and writes what they amount to.

    `config` is that of every search but for its strategy and its seed (config.seed, config.seed + 1, ...); `folder`
    holds the static network; the report goes to `output`, None: the run folder.

    Raises:
      UserError: the words make no sense, or the folder belongs to another run.
      Stopped: a signal arrived; what is finished was saved.
    """
    strategies.check_names(names)
    study_report.check_at_least(0, top=budget.num_top, correlate=budget.num_correlated)
    study_report.check_at_least(1, trainings=budget.num_trainings)
    with folder.hold(), compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
        config = claims.check(config, folder, ignore=MAY_DIFFER)
        space = features.space_of(config)
        made = {name: strategies.make(name, space, config.controller) for name in names}
        for strategy in made.values():
            relaxed_steps.check(config, space, strategy)
        features.require_ages(config)
        pretrain.check(config, folder)
        require_labels.check(config, folder, is_rewarded=True, is_evaluated=True)
        claims.claim(config, folder, ignore=MAY_DIFFER)
        probes = draw_probes(space, budget.num_correlated, config.seed, made[names[0]].op_mask)
        parts = table_maker.assemble(config, folder, stop)
        # Made when the first cell is to be trained: a comparison that is finished, or retrains nothing, needs none.
        trainer_fn = functools.cache(lambda: table_maker.make_trainer(parts, budget.num_trainings))
        plan = _Plan(parts, folder, stop, budget, probes, trainer_fn)
        for seed in range(budget.num_seeds):
            for name in names:
                _search(plan, made[name], name, seed)
        if budget.num_correlated:
            _train_alone(plan)
        # A shorter list of probes than that of an earlier start is its beginning.
        lines = [line for line in folder.read(LOG) if line["what"] != ALONE or line["index"] < len(probes)]
        lines = [line for line in lines if _marks(config, line["what"]).items() <= line.items()]
        content = strategies_statistics.summarize_searches(lines, names, num_seeds=budget.num_seeds)
        return strategies_report.write_searches(content, output or folder.path)


def draw_probes(space: genotype_lib.Space, num: int, seed: int, op_mask: np.ndarray) -> np.ndarray:
    """Uniformly drawn genotypes of distinct canonical forms, i32 [num, L, 5]; fewer where there are no more."""
    rng = np.random.default_rng((seed, 9))
    found: dict[canonical.Form, np.ndarray] = {}
    for genotype in genotype_lib.random(space, rng, 100 * num, op_mask=op_mask):
        found.setdefault(canonical.of(space, genotype), genotype)
        if len(found) == num:
            break
    return np.stack(list(found.values())) if found else _no_genotypes(space)


def _no_genotypes(space: genotype_lib.Space) -> np.ndarray:
    return np.zeros((0, space.num_layers, len(genotype_lib.FIELDS)), np.int32)


def _num_steps(config: ml_collections.ConfigDict) -> int | None:
    """Optimizer steps of a search in mode scratch: those of its iterations if no candidate is stopped."""
    section = config.search
    num_candidates = section.steps * section.genotypes_per_step
    return num_candidates * section.scratch_steps if section.mode == "scratch" else None


def _marks(config: ml_collections.ConfigDict, what: str) -> dict[str, Any]:
    """What a line says of how it came about; those of earlier versions that were made otherwise say nothing."""
    if what == SEARCH:
        return {} if _num_steps(config) is None else {"budget": _num_steps(config)}
    return {"unseen_split": config.evaluate.split}


def _search(plan: _Plan, strategy: strategy_lib.Strategy, name: str, seed: int) -> None:
    """One search, its derived cells, and what it says of the probes at its end."""
    key = {"strategy": name, "seed": seed}
    searches = study_report.Finished(plan.folder, LOG, _question(plan, SEARCH) | key, "num_probes")
    is_searched = len(plan.probes) in searches.lines
    if is_searched and len(_done(plan, RETRAIN, key)) >= plan.budget.num_top * plan.budget.num_trainings:
        return
    config = plan.parts.config.copy_and_resolve_references()
    config.seed += seed
    config.search.update({"strategy": name, "num_random": 0, "first": ()})  # all start from nothing
    folder = workdir.Workdir(plan.folder.path / FOLDER / f"{name}_{seed}")
    claims.claim(config, folder, ignore=MAY_DIFFER[:-1])
    is_fresh = folder.checkpointer(loop.STAGE).latest_step() is None
    parts = plan.parts._replace(config=config, strategy=strategy)
    started = time.perf_counter()
    state = pipeline.run_search(parts, folder, plan.stop, _num_steps(config))
    seconds = time.perf_counter() - started
    if not is_searched:
        scored = _score(parts, state.shared.params, plan.probes)
        line = {**_candidates(parts, folder), "probes": scored, "seconds": seconds if is_fresh else None}
        searches.append(len(plan.probes), line)
    genotypes, lines = [], []
    for rank, (genotype, shared) in enumerate(_derived(parts, state, folder, plan.budget.num_top)):
        digest = genotype_lib.digest(parts.space, genotype)
        folder.write_json(f"derived_{rank}.json", genotype_lib.to_dict(parts.space, genotype))
        genotypes.append(genotype)
        lines.append({**_question(plan, RETRAIN), **key, "rank": rank, "hash": digest, "shared_reward": shared})
    _train(plan, genotypes, lines, _done(plan, RETRAIN, key))
    folder.close()


def _candidates(parts: pipeline.Parts, folder: workdir.Workdir) -> dict[str, Any]:
    """What the log of a search says of its candidates, in order.

    `rewards`; `first_rewards`, those after the first part of a training, which every candidate has; `is_whole`, was
    trained to the end; and the `optimizer_steps` of the search.
    """
    records, metrics = folder.read(loop.LOG), folder.read("metrics.jsonl")
    return {
        "rewards": [record["reward"] for record in records],
        "first_rewards": [(record.get("partial") or [record["reward"]])[0] for record in records],
        "is_whole": [record["status"] != scratch.STOPPED for record in records],
        "optimizer_steps": [line.get("optimizer_steps") for line in metrics if line["stage"] == loop.STAGE][-1],
    }


def _question(plan: _Plan, what: str) -> dict[str, Any]:
    return {"what": what, **_marks(plan.parts.config, what)}


def _done(plan: _Plan, what: str, key: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Which cells were trained, by hash and seed of the training."""
    question = {**_question(plan, what), **key}
    return {(line["hash"], line["training"]) for line in plan.folder.read(LOG) if question.items() <= line.items()}


def _score(parts: pipeline.Parts, params: types.Params, genotypes: np.ndarray, attempt: int = 0) -> list[float | None]:
    """Rewards as the search gives them, on the whole meta-validation split."""
    if not len(genotypes):
        return []
    found = pipeline.score(parts, params, genotypes, parts.val_store.num_clips, attempt=attempt)
    return [record["reward"] for record in found]


def _derived(
    parts: pipeline.Parts, state: loop.LoopState, folder: workdir.Workdir, num: int
) -> list[tuple[np.ndarray, float]]:
    """The best cells of a search as `dvsnas search` would choose them, of distinct forms, with their rewards."""
    if not num:
        return []
    section, num_rewarded = parts.config.derive, max(parts.config.derive.num_rewarded, 2 * num)
    probable = _no_genotypes(parts.space)
    if section.num_probable:
        rng = jax.random.fold_in(jax.random.key(parts.config.seed), 6)
        probable = np.asarray(parts.strategy.probable(state.strategy, rng, section.num_probable))
    genotypes = derive.candidates(
        parts.space,
        folder.read(loop.LOG),
        probable,
        num_rewarded=num_rewarded,
        rank=section.rank,
        is_propagating=parts.config.space.mode == "propagate",
    )
    rewards = [reward or 0.0 for reward in _score(parts, state.shared.params, genotypes, attempt=1)]
    chosen: dict[canonical.Form, tuple[np.ndarray, float]] = {}
    for index in sorted(range(len(genotypes)), key=lambda index: (-rewards[index], index)):
        chosen.setdefault(canonical.of(parts.space, genotypes[index]), (genotypes[index], rewards[index]))
    return list(chosen.values())[:num]


def _train_alone(plan: _Plan) -> None:
    """Trains every probe."""
    digests = [genotype_lib.digest(plan.parts.space, genotype) for genotype in plan.probes]
    lines = [{**_question(plan, ALONE), "index": index, "hash": digest} for index, digest in enumerate(digests)]
    _train(plan, list(plan.probes), lines, _done(plan, ALONE, {}))


def _train(
    plan: _Plan, genotypes: Sequence[np.ndarray], lines: Sequence[dict[str, Any]], done: set[tuple[str, int]]
) -> None:
    """Trains cells from scratch with `config.train`, with every seed of the trainings, but for what is `done`.

    Appends a line for each, its record added. All with one compiled program; a seed has the same initial weights and
    batches for derived cells and for probes, of every search: what differs is the cell.
    """
    wanted = [(row, training) for row in range(len(lines)) for training in range(plan.budget.num_trainings)]
    wanted = [(row, training) for row, training in wanted if (lines[row]["hash"], training) not in done]
    if not wanted:
        return
    trainer = plan.trainer_fn()

    def train_one(job: tuple[int, int]) -> dict[str, Any]:
        return table_maker.train_and_score(plan.parts, trainer, genotypes[job[0]], job[1])

    records = cores.map_in_order(train_one, wanted, scratch.num_workers(plan.parts.config.search))
    for index, (row, training) in enumerate(wanted):
        if plan.stop.requested:
            what = lines[row]["what"]
            raise errors.Stopped(f"{what}: stopped, {index} of {len(wanted)} trainings were finished")
        plan.folder.append(LOG, {**lines[row], "training": training, **next(records)})
