"""The command `compare`: hand-designed and given genotypes on one static network, one budget and several seeds.

One job is one genotype and one seed: its cell is trained from scratch on the features that all jobs share, then
evaluated. A finished job is one file in `jobs/` of the run folder and is not run again, whatever is compared with it.
The table holds all finished jobs of the folder: what a command adds stands beside what others have made.

Example:
  result = compare.run(config, workdir.Workdir("runs/zoo"), ["zoo", "runs/a/best_genotype.json"], num_seeds=3)
  print(compare_report.table(result))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
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
from dvsnas_jax.space import cost, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.studies import compare_report, compare_rows
from dvsnas_jax.train import cell_training, claims, pretrain, require_labels, training_loop
from dvsnas_jax.train import features as features_lib

RESULT, MARKDOWN, PICTURE = "compare.json", "compare.md", "compare.png"
STATIC, SCORES = compare_rows.STATIC, compare_rows.SCORES
DIVERGED = "diverged"


class Entry(NamedTuple):
    """One genotype of a comparison.

    Attributes:
      name: as it was asked for, `zoo:NAME` or the path of a file.
      space: what the genotype refers to.
      genotype: i32 [L, 5].
      config: of the run, with the entry's own schedule.
      source: where a hand-designed cell comes from; empty for others.
    """

    name: str
    space: genotype_lib.Space
    genotype: np.ndarray
    config: ml_collections.ConfigDict
    source: str

    @property
    def key(self) -> str:
        """Names the row: what the genotype is decides, not what it is called."""
        rule = f"_{self.config.schedule.kind}" if self.config.space.mode == zoo.PROPAGATE else ""
        return f"{genotype_lib.digest(self.space, self.genotype)}{rule}"

    def job(self, seed: int) -> str:
        """Names the job of a seed."""
        return f"{self.key}_seed{seed:04d}"


class Shared(NamedTuple):
    """What all jobs share.

    Attributes:
      variables: of the static network.
      store: features of the training clips.
      sequences: to evaluate on.
      table: the classes.
      folder: the run folder.
      stop: a signal asks to save and stop.
    """

    variables: Any
    store: types.FeatureStore
    sequences: Sequence[types.Sequence]
    table: types.ClassTable
    folder: workdir.Workdir
    stop: signals.StopFlag


def run(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, names: Sequence[str], *, num_seeds: int = 1
) -> dict[str, Any]:
    """Trains and evaluates every genotype with every seed, and adds them to the comparison of the folder.

    Writes `compare.json`, `compare.md` and `compare.png`, of all finished jobs in the folder.

    Args:
      config: of the run; `config.train` is the budget of every job, seeds count from `config.seed`.
      folder: the run folder; the static network in it is used.
      names: each `zoo:NAME`, `zoo` (all members of the config's mode) or the path of a genotype's JSON.
      num_seeds: of each genotype.

    Returns:
      The content of `compare.json`, see `compare_rows.collect`.

    Raises:
      UserError: no, unknown or repeated names, a genotype that the mode cannot run, or an unusable run folder.
      Stopped: a signal arrived; finished jobs and the last checkpoint are kept.
    """
    if num_seeds < 1:
        raise errors.UserError(f"--seeds: must be at least 1, got {num_seeds}")
    if config.seed + num_seeds - 1 > config_lib.MAX_SEED:
        raise errors.UserError(
            f"--seeds: {num_seeds} seeds from {config.seed} on go above {config_lib.MAX_SEED}; lower seed or --seeds"
        )
    with folder.hold():
        config = claims.check(config, folder)
        entries = resolve(config, names)
        pretrain.check(config, folder)
        evaluation.check(config)
        num_clips = require_labels.check(config, is_evaluated=True)
        claims.claim(config, folder)
        seeds = range(config.seed, config.seed + num_seeds)
        # Seed by seed: a first look at all genotypes after a share of the time.
        jobs = {entry.job(seed): (entry, seed) for seed in seeds for entry in entries}
        _note(folder, entries, list(seeds))
        with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
            pending = [job for job in jobs.values() if not (folder.path / _file(*job)).is_file()]
            if pending:
                shared = _prepare(config, folder, stop, entries=[entry for entry, _ in pending], num_clips=num_clips)
                with progress.bar(len(jobs), "compare", initial=len(jobs) - len(pending)) as bar:
                    for entry, seed in pending:
                        if stop.requested:
                            raise errors.Stopped(f"compare: {len(jobs) - bar.count} of {len(jobs)} jobs are left")
                        run_job(shared, entry, seed)
                        bar.note(f"{entry.name} with seed {seed}")
                        bar.update()
        result = collect(config, folder)
        write(folder, result)
    return result


def resolve(config: ml_collections.ConfigDict, names: Sequence[str]) -> list[Entry]:
    """The genotypes of a comparison, in the order of their names.

    `zoo` stands for the members of the config's mode that are not named beside it.

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
    """One genotype by its name."""
    if not name.startswith(zoo.PREFIX):
        space, genotype = cell_training.read_genotype(name, name="--genotypes")
        return _checked(Entry(name, space, genotype, config, ""))
    member = zoo.get(name)
    zoo.require(member, mode=config.space.mode, schedule=member.schedule)
    space, genotype = zoo.genotype(member)
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.schedule.kind = member.schedule
        own.schedule.interval = member.interval or config.schedule.interval
    return _checked(Entry(member.title, space, genotype, own, member.source))


def _checked(entry: Entry) -> Entry:
    """The entry, if its config provides the inputs that it reads."""
    try:
        features_lib.settings_of(entry.config).check(entry.space.inputs)
    except errors.UserError as error:
        raise errors.UserError(f"{entry.name}: {error}") from None
    return entry


def _file(entry: Entry, seed: int) -> str:
    return f"{compare_rows.JOBS}/{entry.job(seed)}.json"


def _note(folder: workdir.Workdir, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
    """Notes what this command calls the genotypes, once."""
    line = {
        "command": workdir.command(),
        "genotypes": {entry.name: entry.key for entry in entries},
        "seeds": list(seeds),
    }
    if line not in folder.read(compare_rows.LOG):
        folder.append(compare_rows.LOG, line)


def _prepare(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    *,
    entries: Sequence[Entry],
    num_clips: int,
) -> Shared:
    """The static network, and the features that the genotypes read, once for all jobs."""
    variables = pretrain.run(config, folder, stop)
    clips, _ = pretrain.split_clips(config, num_clips)
    names = tuple(sorted({name for entry in entries for name in features_lib.needed_maps(entry.space, entry.config)}))
    return Shared(
        variables=variables,
        store=features_lib.train_store(config, variables, clips, names),
        sequences=whole_videos.find(config.data, config.evaluate.split),
        table=pipeline.class_table(config.data),
        folder=folder,
        stop=stop,
    )


def run_job(shared: Shared, entry: Entry, seed: int) -> dict[str, Any]:
    """Trains one cell with one seed, evaluates it and writes the job's file.

    Returns:
      The content of the file: `status` "ok" or, with its reason, "diverged"; scores of the cell and of the static
      network, and the cost of a frame.

    Raises:
      Stopped: a signal arrived during the training; it was saved.
    """
    config = entry.config.copy_and_resolve_references()
    with config.unlocked():
        config.seed = seed
    record: dict[str, Any] = {
        "name": entry.name,
        "genotype": genotype_lib.to_dict(entry.space, entry.genotype),
        "seed": seed,
        "command": workdir.command(),
    }
    try:
        stage = training_loop.Stage.of(config.train, f"compare_{entry.job(seed)}", shared.folder, shared.stop)
        params = cell_training.train_cell(config, entry.space, entry.genotype, shared.store, stage)
        record |= {"status": "ok", **_evaluate(config, shared, entry, params)}
    except FloatingPointError as error:
        record |= {"status": DIVERGED, "reason": str(error)}
    shared.folder.write_json(_file(entry, seed), record)
    return record


class _Degraded(Sequence[types.Sequence]):
    """Sequences without their undegraded frames, whose scores no job needs."""

    def __init__(self, sequences: Sequence[types.Sequence]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: Any) -> Any:
        return dataclasses.replace(self._sequences[index], clean=None)


def _evaluate(config: ml_collections.ConfigDict, shared: Shared, entry: Entry, params: types.Params) -> dict[str, Any]:
    """Scores, times and cost of a trained cell."""
    settings = features_lib.settings_of(config)
    cell = cell_lib.make(entry.space, entry.genotype, settings)
    model = jitted.Jitted(programs.model_of(config, settings, shared.variables, cell, params))
    found = evaluation.score(model, _Degraded(shared.sequences), shared.table, config.evaluate, commonest=0)
    record = {name: found[name] for name in ("num_frames", "static", "cell")}
    if config.evaluate.latency_frames:
        record["times"] = timing.measure(model, shared.sequences[0].frames, config.evaluate.latency_frames)
    return {**record, "cost": frame_cost(config, entry, found["cell"]["key_share"])}


def frame_cost(config: ml_collections.ConfigDict, entry: Entry, key_share: float) -> dict[str, dict[str, float]]:
    """What a frame costs on average, of the static network alone and with the cell.

    Args:
      config: of the job.
      entry: its genotype.
      key_share: mean share of a frame that the static network computes; 1 in refine mode.

    Returns:
      "static" and "cell" -> trained `parameters` of all there is and `macs`, multiply-adds; in propagate mode also
      `macs_key` and `macs_cell` of the two kinds of frames. Regions count by their area, without their halo.
    """
    settings = features_lib.settings_of(config)
    net = static_net.make(config.net, settings.num_classes)
    size = config.data.height, config.data.width
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = features_lib.shapes(config, (), 1, where).features.logits.shape
    grid = shape[2], shape[3]
    full = static_net.num_macs(net, size)
    cell = cell_lib.make(entry.space, entry.genotype, settings)
    trees = static_net.shapes(net)["params"], jax.eval_shape(cell.init, jax.random.key(0))
    static_size, cell_size = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    macs = cost.of(entry.space, entry.genotype, settings, grid).macs
    found: dict[str, float] = {"parameters": static_size + cell_size, "macs": full + macs}
    if settings.is_propagating:
        cheap = static_net.num_macs(net, size, settings_lib.depth(cell.inputs, settings))
        start = math.prod(grid) * settings.input_channels("decoder") * settings.channels
        fixed = dataclasses.replace(settings, schedule=settings.schedule.without_head())
        head = macs - cost.of(entry.space, entry.genotype, fixed, grid).macs
        # A learned schedule looks at the cheap maps before it decides; a key frame then starts from the pixels again.
        look = cheap + head if settings.schedule.is_learned else 0
        found |= {"macs_key": full + start + look, "macs_cell": cheap + macs}
        found["macs"] = key_share * found["macs_key"] + (1 - key_share) * found["macs_cell"]
    return {"static": {"parameters": static_size, "macs": full}, "cell": found}


def collect(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> dict[str, Any]:
    """The comparison from the files of all finished jobs of the folder."""
    return compare_rows.collect(config, compare_rows.read_jobs(folder.path), folder.read(compare_rows.LOG))


def write(folder: workdir.Workdir, result: Mapping[str, Any]) -> None:
    """Writes the comparison as JSON, Markdown and a picture."""
    folder.write_json(RESULT, result)
    (folder.path / MARKDOWN).write_text(compare_report.markdown(result))
    compare_report.picture(result, folder.path / PICTURE)
