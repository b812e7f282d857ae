"""`dvsnas compare-signals`: how well the rewards that a search may use order cells, and what they cost.

What a cell is worth is the mean of several trainings with `config.train`, on clips that nothing is chosen on. Uniformly
drawn cells of distinct forms are ordered by that, and by every signal:

- weights that all cells share, scored as they are (`shared`); trained with every token equally often (`fair`, as in
  FairNAS: Chu, Zhang and Xu, ICCV 2021, arXiv 1907.01845); trained three times as long (`longer`); scored with running
  statistics of the cell's own (`recalibrated`); trained on, each cell alone, for some steps;
- cells trained alone from the same start, for so many steps, or halved at each rung (successive halving: Jamieson and
  Talwalkar, AISTATS 2016, arXiv 1502.07943).

All with one compiled step for each kind of training. What is finished is in `signals.jsonl` of the run folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, cores, errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals as process_signals
from dvsnas_jax.search import ahead, pipeline, scratch, shared_weights
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import signals_report, strategies_search, study_report, table_maker
from dvsnas_jax.train import (
    cell_training,
    claims,
    clip_scores,
    feature_store,
    features,
    optim,
    pretrain,
    require_labels,
    training_loop,
)

LOG = "signals.jsonl"
MAY_DIFFER = ("ablate", "controller", "derive", "evaluate", "report")
SIGNAL, ALONE = "signal", "alone"
"""Lines of the log: a cell's rewards by one kind of weights, a cell trained to the end. `ALONE` also names the weights
that no cell shares."""
_CALIBRATION = 11  # names the random numbers of the batches behind a cell's own statistics
_TIMED_STEPS = 5


class Budget(NamedTuple):
    """Of a comparison.

    Attributes:
      num_genotypes: cells that are ordered.
      num_trainings: of each cell to the end.
      shared_rungs: optimizer steps of a cell alone, from the shared weights, after which it is scored.
      alone_rungs: likewise from the same start; each is a rung of the halving, too.
    """

    num_genotypes: int = 40
    num_trainings: int = 3
    shared_rungs: tuple[int, ...] = (10, 30, 100)
    alone_rungs: tuple[int, ...] = (30, 100, 200)

    def check(self) -> None:
        """A UserError where a number makes no sense."""
        study_report.check_at_least(2, genotypes=self.num_genotypes, trainings=self.num_trainings)
        for flag, rungs in (("--shared-rungs", self.shared_rungs), ("--alone-rungs", self.alone_rungs)):
            if not rungs or min(rungs) < 1 or list(rungs) != sorted(set(rungs)):
                raise errors.UserError(
                    f"{flag}: needs rising numbers of steps, such as 10,30,100, got {','.join(map(str, rungs))}"
                )

    @property
    def step(self) -> int:
        """Steps of one call: all rungs are reached by one program."""
        return math.gcd(*self.shared_rungs, *self.alone_rungs)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that cells are scored with.

    Attributes:
      name: of the signal.
      factor: of the optimizer steps of a whole search that uniformly drawn cells have trained them for; 0: none.
      is_fair: every token equally often, see `fair`.
      goes_on: cells are trained on from them, alone, and scored with statistics of their own, too.
    """

    name: str
    factor: int = 1
    is_fair: bool = False
    goes_on: bool = False


KINDS = (
    Weights("shared", goes_on=True),
    Weights("fair", is_fair=True),
    Weights("longer", factor=3),
    Weights(ALONE, factor=0, goes_on=True),
)


class _Plan(NamedTuple):
    """What all parts of a comparison are told."""

    parts: pipeline.Parts
    folder: workdir.Workdir
    stop: process_signals.StopFlag
    budget: Budget
    genotypes: np.ndarray

    @property
    def section(self) -> ml_collections.ConfigDict:
        return self.parts.config.search


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    budget: Budget,
    *,
    output: pathlib.Path | None = None,
) -> study_report.Report:
    """Takes the rewards and trainings that the folder does not hold yet, and writes what they amount to.

    `folder` holds the static network, or gets one; the report goes to `output`, None: the run folder.

    Raises:
      UserError: the words make no sense, or the folder belongs to another run.
      Stopped: a signal of the system arrived; what is finished was saved.
    """
    budget.check()
    with folder.hold(), compilation.effort(config.compile_effort), process_signals.stop_on_signal() as stop:
        config = claims.check(config, folder, ignore=MAY_DIFFER)
        features.require_ages(config)
        pretrain.check(config, folder)
        require_labels.check(config, folder, is_rewarded=True, is_evaluated=True)
        claims.claim(config, folder, ignore=MAY_DIFFER)
        parts = table_maker.assemble(config, folder, stop)
        op_mask = parts.strategy.op_mask
        genotypes = strategies_search.draw_probes(parts.space, budget.num_genotypes, config.seed, op_mask)
        plan = _Plan(parts, folder, stop, budget, genotypes)
        found = {weights.name: _rewards(plan, weights) for weights in KINDS}
        trained = _train_to_the_end(plan)
        content = signals_report.summarize(found, trained, budget.alone_rungs)
        content |= {"num_trainings": budget.num_trainings, "split": config.evaluate.split}
        return signals_report.write(content, output or folder.path)


def fair(parts: pipeline.Parts, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Genotypes i32 [L, 5] without end: in every run of as many as the longest list of tokens is long, each place of
    the genotype takes each of its tokens once (or equally often, where it has fewer)."""
    space, mask = parts.space, np.asarray(parts.strategy.op_mask)
    num_inputs, shape = len(space.inputs), (space.num_layers, len(genotype_lib.FIELDS))
    allowed = np.flatnonzero(mask)
    choices: list[np.ndarray] = []
    for layer in range(space.num_layers):
        nodes = np.arange(num_inputs + layer)
        choices += [nodes, nodes, allowed, allowed, np.arange(len(space.aggregations))]
    length = max(map(len, choices))
    while True:
        columns = [rng.permutation(np.resize(rng.permutation(tokens), length)) for tokens in choices]
        yield from np.stack(columns, axis=1).reshape(length, *shape).astype(np.int32)


def _num_steps(plan: _Plan, weights: Weights) -> int:
    """Optimizer steps behind some weights: `factor` times those of a search."""
    section = plan.section
    return weights.factor * (section.warmup_steps + section.steps * section.shared_steps)


def _trained(plan: _Plan, weights: Weights) -> tuple[optim.TrainState, float]:
    """The weights, and what an optimizer step on them takes in seconds."""
    parts, num_steps = plan.parts, _num_steps(plan, weights)
    state = shared_weights.start(parts)
    if not num_steps:
        return state, 0.0

    def drawn(first: int) -> Iterator[shared_weights.Batch]:
        key = (parts.config.seed, 13)
        fair_genotypes = fair(parts, np.random.default_rng(key))
        num = plan.section.shared_genotypes
        for _ in range(first * num if weights.is_fair else 0):
            next(fair_genotypes)
        for step in itertools.count(first):
            rng = np.random.default_rng((*key, step))
            uniform = shared_weights.uniform(parts, rng, num)
            genotypes = np.stack(list(itertools.islice(fair_genotypes, num))) if weights.is_fair else uniform
            yield genotypes, shared_weights.draw_clips(parts, (*key, step, 1), ahead.batch_shape(plan.section))

    stage = training_loop.Stage(f"signal_{weights.name}", plan.folder, plan.stop, num_steps, max(num_steps // 4, 1))
    step_fn = shared_weights.train
    state = training_loop.fit(state, stage, step_fn=lambda state, batch: step_fn(parts, state, batch), batches_fn=drawn)
    copy, seconds = jax.tree.map(lambda x: x + 0, state), list[float]()  # a step takes its state
    for batch in itertools.islice(drawn(num_steps), _TIMED_STEPS + 1):
        started = time.perf_counter()
        copy, _ = jax.block_until_ready(step_fn(parts, copy, batch))
        seconds.append(time.perf_counter() - started)
    return state, statistics.median(seconds[1:])


def _rewards(plan: _Plan, weights: Weights) -> dict[str, dict[str, list[Any]]]:
    """By signal, `rewards` and `seconds` of every cell; what the log holds is not taken again."""
    digests = [genotype_lib.digest(plan.parts.space, genotype) for genotype in plan.genotypes]
    rungs = {"shared": plan.budget.shared_rungs, ALONE: plan.budget.alone_rungs}.get(weights.name, ())
    question = {"what": SIGNAL, "weights": weights.name, "rungs": list(rungs), "steps": _num_steps(plan, weights)}
    finished = study_report.Finished(plan.folder, LOG, question, "hash")
    missing = [row for row, digest in enumerate(digests) if digest not in finished.lines]
    if missing:
        state, step_seconds = _trained(plan, weights)
        num_candidates = plan.section.steps * plan.section.genotypes_per_step
        own = step_seconds * _num_steps(plan, weights) / num_candidates  # a candidate's part of the shared training
        score_fn = _make_scores(plan, weights, state, rungs)
        num_workers = scratch.num_workers(plan.section)
        score_fn(plan.genotypes[0], num_calls=min(rungs, default=0) // plan.budget.step)  # compiles all that it calls
        records = cores.map_in_order(lambda row: score_fn(plan.genotypes[row]), missing, num_workers)
        for number, row in enumerate(missing):
            if plan.stop.requested:
                raise errors.Stopped(f"{weights.name}: stopped, {number} of {len(missing)} cells were scored")
            found = {
                name: {"reward": each["reward"], "seconds": own + each["seconds"] / num_workers}
                for name, each in next(records).items()
            }
            finished.append(digests[row], {"index": row, "signals": found})
    lines = [finished.lines[digest]["signals"] for digest in digests]
    return {name: {key: [line[name][key] for line in lines] for key in ("reward", "seconds")} for name in lines[0]}


def _make_scores(
    plan: _Plan, weights: Weights, state: optim.TrainState, rungs: Sequence[int]
) -> Callable[..., dict[str, dict[str, Any]]]:
    """`(genotype, num_calls = all) -> {signal: reward and seconds}` of all signals that begin with these weights, as
    far as so many calls of the training reach: all of its programs are used from the first rung on."""
    parts, section, step = plan.parts, plan.section, plan.budget.step
    num_clips = min(section.reward_clips, parts.val_store.num_clips)
    clips = clip_scores.batches(num_clips, section)
    all_calls = max(rungs, default=0) // step
    key, shape = (parts.config.seed, 7), (all_calls, step, section.batch_size)
    batches = cell_training.draw_clips(key, parts.train_store.num_clips, shape)
    start = parts.steps.start_alone(state.params)
    calibrate = None
    if weights.goes_on and weights.factor:
        size = (parts.config.train.norm_batches, section.batch_size)
        drawn = cell_training.draw_clips((parts.config.seed, _CALIBRATION), parts.train_store.num_clips, size)
        supernet = supernet_lib.make(parts.space, features.settings_of(parts.config))
        calibrate = cell_training.make_calibrate(supernet.moments, parts.train_store, list(drawn))

    def score(genotype: np.ndarray, num_calls: int = all_calls) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}

        def add(name: str, spent: float, params: types.Params) -> None:
            started = time.perf_counter()
            reward = pipeline.score_shared(parts, params, genotype[None], clips)[0]["reward"]
            found[name] = {"reward": reward, "seconds": spent + time.perf_counter() - started}

        if weights.factor:
            add(weights.name, 0.0, state.params)
        started = time.perf_counter()
        if calibrate is not None:
            own_norm = jax.block_until_ready(calibrate(state.params, genotype))
            add("recalibrated", time.perf_counter() - started, own_norm)
        own, spent = start, 0.0
        for call in range(num_calls):
            started = time.perf_counter()
            rows = feature_store.anywhere(parts.train_store, batches[call])
            own = jax.block_until_ready(parts.steps.train_alone(own, genotype, *rows))
            spent += time.perf_counter() - started
            done = (call + 1) * step
            if done in rungs:
                add(f"{weights.name} {done}", spent, own.average)
        return found

    return score


def _train_to_the_end(plan: _Plan) -> dict[str, np.ndarray]:
    """`rewards`, on the clips that a search chooses on, and `worth`, on others, f64 [N, trainings], nan where a
    training diverged; `seconds` of each."""
    budget, config = plan.budget, plan.parts.config
    question = {"what": ALONE, "unseen_split": config.evaluate.split}
    digests = [genotype_lib.digest(plan.parts.space, genotype) for genotype in plan.genotypes]
    finished = study_report.Finished(plan.folder, LOG, question, "key")
    # A whole training of every cell before the next: what a stop leaves is of all cells.
    wanted = [(row, seed) for seed in range(budget.num_trainings) for row in range(len(digests))]
    missing = [(row, seed) for row, seed in wanted if f"{digests[row]}/{seed}" not in finished.lines]
    if missing:
        trainer = table_maker.make_trainer(plan.parts, budget.num_trainings)
        num_workers = scratch.num_workers(plan.section)

        def train(job: tuple[int, int]) -> dict[str, Any]:
            started = time.perf_counter()
            record = table_maker.train_and_score(plan.parts, trainer, plan.genotypes[job[0]], job[1])
            return {**record, "seconds": (time.perf_counter() - started) / num_workers}

        records = cores.map_in_order(train, missing, num_workers)
        for number, (row, seed) in enumerate(missing):
            if plan.stop.requested:
                raise errors.Stopped(f"alone: stopped, {number} of {len(missing)} trainings were finished")
            finished.append(f"{digests[row]}/{seed}", next(records))

    def column(key: str) -> np.ndarray:
        lines: list[list[Mapping[str, Any]]] = [
            [finished.lines[f"{digest}/{seed}"] for seed in range(budget.num_trainings)] for digest in digests
        ]
        return np.array([[math.nan if line[key] is None else line[key] for line in row] for row in lines])

    return {"rewards": column("reward"), "worth": column("unseen_reward"), "seconds": column("seconds")}
