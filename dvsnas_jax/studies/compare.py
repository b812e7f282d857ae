"""The command `compare`: hand-designed and given genotypes on one static network, one budget and several seeds.

One job is one genotype and one seed: its cell is trained from scratch on the features that all jobs share, then
evaluated. A finished job is one file in `jobs/` of the run folder and is not run again, whatever is compared with it.
The table holds all finished jobs of the folder: what a command adds stands beside what others have made.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, errors, progress, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import pipeline, whole_videos
from dvsnas_jax.evaluate import evaluation, timing
from dvsnas_jax.infer import jitted, programs
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, cost, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.studies import compare_report, compare_rows, study_report
from dvsnas_jax.train import cell_training, claims, folds, pretrain, require_labels, training_loop
from dvsnas_jax.train import features as features_lib

DIVERGED = "diverged"


class Entry(NamedTuple):
    """One genotype i32 [L, 5] of a comparison, by the name it was asked for, and the run with its own schedule."""

    name: str
    space: genotype_lib.Space
    genotype: np.ndarray
    config: ml_collections.ConfigDict

    @property
    def key(self) -> str:
        """Names the row: what the genotype is decides, not what it is called."""
        rule = f"_{self.config.schedule.kind}" if self.config.space.mode == zoo.PROPAGATE else ""
        rule += "_baseline" if self.config.space.end == cell_end.NONE else ""
        return f"{genotype_lib.digest(self.space, self.genotype)}{rule}"

    def job(self, seed: int) -> str:
        """Names the job of a seed."""
        return f"{self.key}_seed{seed:04d}"


ScoreFn = Callable[[Entry, ml_collections.ConfigDict], Mapping[str, Any]]
"""`(entry, config of the job) -> scores` of a cell that is trained from scratch and of the static network, and costs.

Raises FloatingPointError where the training diverges, Stopped where a signal arrived; it was saved then.
"""
MakeScore = Callable[[ml_collections.ConfigDict, workdir.Workdir, signals.StopFlag, Sequence[Entry]], ScoreFn]
"""Makes, once, what the jobs of some entries share, and gives the function that runs one."""


def train_and_score(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag, entries: Sequence[Entry]
) -> ScoreFn:
    """The static network, and the features that the entries read, once for all jobs; see `MakeScore`."""
    networks = folds.run(config, folder, stop)
    names = tuple(sorted({name for entry in entries for name in features_lib.needed_maps(entry.space, entry.config)}))
    material = cell_training.material(config, networks, names, folder)
    is_file = config.evaluate.size == "file"
    sequences = whole_videos.find(config.data, config.evaluate.split, has_file_labels=is_file)
    table = pipeline.class_table(config.data)

    def score(entry: Entry, own: ml_collections.ConfigDict) -> dict[str, Any]:
        stage = training_loop.Stage.of(own.train, f"compare_{entry.job(own.seed)}", folder, stop)
        params = cell_training.train_cell(own, entry.space, entry.genotype, material, stage).params
        settings = features_lib.settings_of(own)
        cell = cell_lib.make(entry.space, entry.genotype, settings)
        model = jitted.Jitted(programs.model_of(own, settings, networks.final, cell, params))
        found = evaluation.score(model, _Degraded(sequences), table, own.evaluate)
        record = {name: found[name] for name in ("num_frames", "static", "cell")}
        if own.evaluate.latency_frames:
            times = timing.measure(model, sequences[0].frames, own.evaluate.latency_frames)
            if line := timing.slower(model.schedule, times["static"], times["cell"]):
                print(f"{entry.name}: {line}", file=sys.stderr)
            record["times"] = times
        return {**record, "cost": frame_cost(own, entry.space, entry.genotype, found["cell"]["key_share"])}

    return score


class _Degraded(Sequence[types.Sequence]):
    """Sequences without their undegraded frames, whose scores no job needs."""

    def __init__(self, sequences: Sequence[types.Sequence]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: Any) -> Any:
        return dataclasses.replace(self._sequences[index], clean=None)


def run(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, names: Sequence[str], *,
    num_seeds: int = 1, make_score: MakeScore = train_and_score,
) -> study_report.Report:  # fmt: skip
    """Trains and evaluates every genotype with every seed, and adds them to the comparison of the folder.

    Args:
      config: of the run; `config.train` is the budget of every job, seeds count from `config.seed`.
      folder: the run folder; the static network in it is used.
      names: each `zoo:NAME`, `zoo` (all members of the config's mode) or the path of a genotype's JSON.
      num_seeds: of each genotype.
      make_score: of a job.

    Returns:
      The comparison of all finished jobs in the folder (see `compare_rows.collect`), as it is written there.

    Raises:
      UserError: no, unknown or repeated names, a genotype that the mode cannot run, or an unusable run folder.
      Stopped: a signal arrived; finished jobs and the last checkpoint are kept.
    """
    study_report.check_at_least(1, seeds=num_seeds)
    if config.seed + num_seeds - 1 > config_lib.MAX_SEED:
        raise errors.UserError(
            f"--seeds: {num_seeds} seeds from {config.seed} on go above {config_lib.MAX_SEED}; lower seed or --seeds"
        )
    with folder.hold():
        config = claims.check(config, folder)
        entries = resolve(config, names)
        seeds = range(config.seed, config.seed + num_seeds)
        # Seed by seed: a first look at all genotypes after a share of the time.
        jobs = {entry.job(seed): (entry, seed) for seed in seeds for entry in entries}
        pending = [job for job in jobs.values() if not (folder.path / _file(*job)).is_file()]
        for entry, _ in pending:
            features_lib.require_ages(entry.config)
        pretrain.check(config, folder)
        evaluation.check(config)
        require_labels.check(config, folder, is_evaluated=True)
        claims.claim(config, folder)
        _note(folder, entries, list(seeds))
        with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
            if pending:
                score_fn = make_score(config, folder, stop, [entry for entry, _ in pending])
                with progress.bar(len(jobs), "compare", initial=len(jobs) - len(pending)) as bar:
                    for entry, seed in pending:
                        if stop.requested:
                            raise errors.Stopped(f"compare: {len(jobs) - bar.count} of {len(jobs)} jobs are left")
                        folder.write_json(_file(entry, seed), _job(score_fn, entry, seed))
                        bar.note(f"{entry.name} with seed {seed}")
                        bar.update()
        jobs_found = compare_rows.read_jobs(folder.path)
        return compare_report.write(folder, compare_rows.collect(config, jobs_found, folder.read(compare_rows.LOG)))


def _job(score_fn: ScoreFn, entry: Entry, seed: int) -> dict[str, Any]:
    """What the file of a job holds: `status` "ok" with scores or, with its reason, "diverged"."""
    config = entry.config.copy_and_resolve_references()
    with config.unlocked():
        config.seed = seed
    genotype = genotype_lib.to_dict(entry.space, entry.genotype)
    record = {"name": entry.name, "genotype": genotype, "seed": seed, "command": workdir.command()}
    try:
        return {**record, "status": "ok", **score_fn(entry, config)}
    except FloatingPointError as error:
        return {**record, "status": DIVERGED, "reason": str(error)}


def resolve(config: ml_collections.ConfigDict, names: Sequence[str]) -> list[Entry]:
    """The genotypes of a comparison in the order of their names; `zoo` are the members of the mode not named beside it.

    Raises:
      UserError: no, unknown or repeated names, or a genotype that the config's mode cannot run.
    """
    given = [name.strip() for name in names if name.strip()]
    if not given:
        raise errors.UserError("--genotypes: names no genotype; give zoo, zoo:NAME or files, separated by commas")
    repeated = sorted({name for name in given if given.count(name) > 1})
    if repeated:
        raise errors.UserError(f"--genotypes: named more than once: {', '.join(repeated)}; name each once")
    wanted: list[str] = []
    for name in given:
        members = [member.title for member in zoo.of_mode(config.space.mode)] if name == zoo.ALL else [name]
        wanted += [title for title in members if title == name or title not in given]
    return [_entry(config, name) for name in wanted]


def _entry(config: ml_collections.ConfigDict, name: str) -> Entry:
    """One genotype by its name, if its config provides the inputs that it reads."""
    own = config
    if name.startswith(zoo.PREFIX):
        member = zoo.get(name)
        zoo.require(member, mode=config.space.mode, schedule=member.schedule, end=member.end)
        name, (space, genotype) = member.title, zoo.genotype(member)
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.space.end = member.end if member.is_baseline else config.space.end
            own.schedule.kind = member.schedule
            own.schedule.interval = member.interval or config.schedule.interval
    else:
        space, genotype = cell_training.read_genotype(name, name="--genotypes")
    try:
        features_lib.settings_of(own).check(space.inputs)
    except errors.UserError as error:
        raise errors.UserError(f"{name}: {error}") from None
    return Entry(name, space, genotype, own)


def _file(entry: Entry, seed: int) -> str:
    return f"{compare_rows.JOBS}/{entry.job(seed)}.json"


def _note(folder: workdir.Workdir, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
    """Notes what this command calls the genotypes, once."""
    called = {entry.name: entry.key for entry in entries}
    line = {"command": workdir.command(), "genotypes": called, "seeds": list(seeds)}
    if line not in folder.read(compare_rows.LOG):
        folder.append(compare_rows.LOG, line)


def frame_cost(
    config: ml_collections.ConfigDict, space: genotype_lib.Space, genotype: np.ndarray, key_share: float
) -> dict[str, dict[str, float]]:
    """What a frame of a run costs on average, of the static network alone and with a cell i32 [L, 5].

    `key_share` is the mean share of a frame that the static network computes; 1 in refine mode. "static" and "cell" ->
    trained `parameters` of all there is and `macs`, multiply-adds; in propagate mode also `macs_key` and `macs_cell` of
    the two kinds of frames. Regions count by their area, without their halo.
    """
    settings = features_lib.settings_of(config)
    net = static_net.make(config.net, settings.num_classes)
    size = config.data.height, config.data.width
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = features_lib.shapes(config, (), 1, where).features.logits.shape
    grid = shape[2], shape[3]
    full = static_net.num_macs(net, size)
    cell = cell_lib.make(space, genotype, settings)
    trees = static_net.shapes(net)["params"], jax.eval_shape(cell.init, jax.random.key(0))
    static_size, cell_size = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    macs = cost.of(space, genotype, settings, grid).macs
    found: dict[str, float] = {"parameters": static_size + cell_size, "macs": full + macs}
    if settings.is_propagating:
        cheap = static_net.num_macs(net, size, settings_lib.depth(cell.inputs, settings))
        pixels = cost.sizes_of(settings, grid, is_sliced=False).pixels
        start = pixels * settings.input_channels("decoder") * settings.channels if settings.has_output else 0
        fixed = dataclasses.replace(settings, schedule=settings.schedule.without_head())
        head = macs - cost.of(space, genotype, fixed, grid).macs
        # A learned schedule looks at the cheap maps before it decides; a key frame goes on from them, or starts anew.
        look = (head if static_net.goes_on(net) else cheap + head) if settings.schedule.is_learned else 0
        found |= {"macs_key": full + start + look, "macs_cell": cheap + macs}
        found["macs"] = key_share * found["macs_key"] + (1 - key_share) * found["macs_cell"]
    return {"static": {"parameters": static_size, "macs": full}, "cell": found}
