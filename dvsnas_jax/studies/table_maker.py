"""Makes the tabular benchmark: every distinct cell of a small space trained alone, with one compiled program.

A cell starts from the initial weights of its seed (the same for all cells), takes `config.train.steps` steps on the
training clips' features, gets running statistics and earns its reward on the meta-validation clips, which no training
sees. What it is worth is its score on the clips of `config.evaluate.split`: nothing is chosen on them. What is finished
is in `table.jsonl` of the run folder, a line for each cell and seed. The better cells may be trained more often than
the others: regret is measured from the best of them all, which after two trainings would partly be the luckiest one.
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, cores, errors, progress, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import pipeline as clips_lib
from dvsnas_jax.search import pipeline, scratch, steps
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import table
from dvsnas_jax.train import (
    averaging,
    cell_loss,
    cell_training,
    claims,
    clip_scores,
    feature_store,
    features,
    folds,
    optim,
    pretrain,
    require_labels,
)

LOG = "table.jsonl"
STATIC = "table_static.json"
MAX_GENOTYPES = 20000
BEST_SHARE = 0.5
"""Of the cells, those of the highest mean rewards: they may be trained more often."""
MAY_DIFFER = ("controller", "derive", "evaluate", "ablate", "report")
CALIBRATION = 10
"""Names the random numbers of the batches behind the running statistics."""


class Trainer(NamedTuple):
    """How the cells are trained, with S seeds.

    Attributes:
      initial: weights of the supernet, a leading axis S.
      clips: i32 [S, steps, B].
      train: `(initial, genotype i32 [L, 5], store, clips i32 [steps, B]) -> averaged weights`, of one seed.
      calibrate: `(weights, genotype) -> weights` with running statistics, as `cell_training.train_cell` ends.
      unseen: features of the clips of `config.evaluate.split`; None: cells are not scored there.
    """

    initial: types.Params
    clips: np.ndarray
    train: Callable[[types.Params, np.ndarray, types.FeatureStore, np.ndarray], types.Params]
    calibrate: Callable[[types.Params, np.ndarray], types.Params]
    unseen: feature_store.AnyStore | None = None


def run(
    config: ml_collections.ConfigDict,
    folder: workdir.Workdir,
    *,
    num_seeds: int,
    command: str,
    num_best_seeds: int | None = None,
) -> table.Table:
    """Trains every cell, or those that the folder does not hold yet, as many at a time as `scratch.num_workers` says.

    Args:
      config: of the run; section `train` says how a cell is trained.
      folder: the run folder.
      num_seeds: trainings of each cell.
      command: the words that started this, kept in the table.
      num_best_seeds: trainings of each of the better cells (`BEST_SHARE` of all, by their first `num_seeds` trainings);
        None: no more than of the others.

    Raises:
      UserError: the space is too large, the best cells have fewer trainings than the others, or the folder belongs to
        another run.
      Stopped: a signal arrived; what is finished was saved.
    """
    space = features.space_of(config)
    num_genotypes = space.size()
    if num_genotypes > MAX_GENOTYPES:
        raise errors.UserError(
            f"--make-table: the space has {num_genotypes} genotypes, a table at most {MAX_GENOTYPES}; shorten "
            "space.inputs, space.operations, space.aggregations or space.num_layers, as configs/table.py does"
        )
    num_best_seeds = num_seeds if num_best_seeds is None else num_best_seeds
    if num_best_seeds < num_seeds:
        raise errors.UserError(
            f"--best-seeds: must be at least --seeds, {num_seeds} trainings of each cell, got {num_best_seeds}"
        )
    with folder.hold():
        config = claims.check(config, folder, ignore=MAY_DIFFER)
        features.require_ages(config)
        pretrain.check(config, folder)
        require_labels.check(config, folder, is_rewarded=True, is_evaluated=True)
        claims.claim(config, folder, ignore=MAY_DIFFER)
        lines = _train_all(config, folder, num_seeds, num_best_seeds)
        static = folder.read_json(STATIC)
    space = features.space_of(config)
    cells, _ = canonical.enumerate_cells(space)
    return table.from_lines(space, cells, lines, config=config, static=static, command=command)


def _train_all(
    config: ml_collections.ConfigDict, folder: workdir.Workdir, num_seeds: int, num_best_seeds: int
) -> list[dict[str, Any]]:
    """The lines of all trainings; those that the log does not hold are done."""
    with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
        trainings = _Trainings(config, folder, stop, num_best_seeds)
        cells = _shuffled(config, range(trainings.num_cells))
        wanted = [(cell, seed) for cell in cells for seed in range(num_seeds)]
        trainings.do(wanted)
        if num_best_seeds > num_seeds:
            best = best_cells(trainings.lines(), num_seeds)
            more = [(cell, seed) for cell in _shuffled(config, best) for seed in range(num_seeds, num_best_seeds)]
            trainings.do(more)
            wanted += more
    is_wanted = set(wanted)
    return [line for line in trainings.lines() if (line["cell"], line["seed"]) in is_wanted]


def assemble(config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag) -> pipeline.Parts:
    """The static network, trained or restored, its features, and the jitted steps of the space."""
    space = features.space_of(config)
    networks = folds.run(config, folder, stop)
    strategy = strategies.make(strategies.BASELINE, space, config.controller)
    supernet = supernet_lib.make(space, features.settings_of(config))
    placement = feature_store.everywhere(config.search)
    weights = cell_training.class_weights(config, folder)
    loss = cell_loss.make(config, config.search.label_stride, weights)
    compiled = pipeline.Compiled(steps.make(supernet, config.search, placement.mesh, loss=loss), placement, weights)
    share = averaging.starting_share(config, networks.final, folder)
    parts = pipeline.assemble(config, strategy, networks, compiled, share=share)
    unseen_fn = functools.partial(_unseen, config, networks.final, space)
    return parts._replace(unseen_fn=unseen_fn, baseline=averaging.baseline(config, networks.final, folder))


def _unseen(config: ml_collections.ConfigDict, variables: Any, space: genotype_lib.Space) -> feature_store.AnyStore:
    """Features of the clips of `config.evaluate.split`, each as it is."""
    split = config.evaluate.split
    numbers = np.arange(clips_lib.num_clips(config.data, split, config.data.num_frames))
    clips = features.select(config, numbers, split)
    return features.build(config, variables, clips, features.needed_maps(space, config))


def make_trainer(parts: pipeline.Parts, num_seeds: int) -> Trainer:
    """The one compiled training of all cells and seeds."""
    config, section = parts.config, parts.config.train
    supernet = supernet_lib.make(parts.space, features.settings_of(config))
    optimizer = optim.make(section)
    loss = cell_loss.make(config, section.label_stride, parts.class_weights)
    train_alone = steps.make_alone(supernet, optimizer, loss, section.polyak)

    def train(
        params: types.Params, genotype: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> types.Params | None:
        return train_alone(optim.start(optimizer, params, is_averaged=True), genotype, store, clips).average

    rng = jax.random.key(config.seed)
    rngs = jax.vmap(lambda seed: jax.random.fold_in(jax.random.fold_in(rng, 8), seed))(jnp.arange(num_seeds))
    shape = (section.steps, section.batch_size)
    drawn = [
        cell_training.draw_clips((config.seed, 8, seed), parts.train_store.num_clips, shape)
        for seed in range(num_seeds)
    ]
    initial = compilation.jit_once(jax.vmap(supernet.init))(rngs)
    shape = (section.norm_batches, section.batch_size)
    batches = cell_training.draw_clips((config.seed, CALIBRATION), parts.train_store.num_clips, shape)
    calibrate = cell_training.make_calibrate(supernet.moments, parts.train_store, list(batches))
    unseen = parts.unseen_fn() if parts.unseen_fn is not None else None
    return Trainer(initial, np.stack(drawn), compilation.jit(train), calibrate, unseen)


def train_and_score(parts: pipeline.Parts, trainer: Trainer, genotype: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Trains one cell with one of the trainer's seeds; its reward record, with that of `table.UNSEEN` beside it."""
    initial = jax.tree.map(lambda x: x[seed], trainer.initial)
    params = trainer.train(initial, genotype, *feature_store.anywhere(parts.train_store, trainer.clips[seed]))
    params = trainer.calibrate(params, genotype)

    def score(store: feature_store.AnyStore) -> dict[str, Any]:
        clips = clip_scores.batches(store.num_clips, parts.config.search)
        return pipeline.score_shared(parts._replace(val_store=store), params, genotype[None], clips)[0]

    unseen = {} if trainer.unseen is None else score(trainer.unseen)
    return score(parts.val_store) | table.unseen_of(unseen)


def best_cells(lines: Iterable[Mapping[str, Any]], num_seeds: int) -> list[int]:
    """The cells that are trained more often: `BEST_SHARE` of all, at least one, by mean reward of the first seeds."""
    rewards = collections.defaultdict(list)
    for line in lines:
        if line["seed"] < num_seeds:
            rewards[line["cell"]].append(line["reward"])
    # One that ever diverged is none of the best.
    quality = {cell: -np.inf if None in values else float(np.mean(values)) for cell, values in rewards.items()}
    order = sorted(quality, key=lambda cell: (-quality[cell], cell))
    return sorted(order[: max(1, round(BEST_SHARE * len(order)))])


def _shuffled(config: ml_collections.ConfigDict, cells: Sequence[int]) -> list[int]:
    """In a random order: what is finished at any time is a fair sample of the space."""
    return np.random.default_rng(config.seed).permutation(cells).tolist()


class _Trainings:
    """Trains cells, of all i32 [M, L, 5], into the log of a run folder; what it holds already is not trained again."""

    def __init__(
        self, config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag, num_seeds: int
    ) -> None:
        self._config, self._folder, self._stop, self._num_seeds = config, folder, stop, num_seeds
        self._cells, _ = canonical.enumerate_cells(features.space_of(config))
        self._made: tuple[pipeline.Parts, Trainer] | None = None

    @property
    def num_cells(self) -> int:
        """M."""
        return len(self._cells)

    def lines(self) -> list[dict[str, Any]]:
        """Of the trainings that were scored as they are now; those of earlier versions had no running statistics."""
        split = self._config.evaluate.split
        return [line for line in self._folder.read(LOG) if line.get("unseen_split") == split]

    def do(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Appends the lines of all trainings that are wanted, cells and seeds, in their order.

        Raises:
          Stopped: a signal arrived.
        """
        done = {(line["cell"], line["seed"]) for line in self.lines()}
        pending = [training for training in wanted if training not in done]
        if not pending:
            return
        parts, trainer = self._assembled()

        def train(training: tuple[int, int]) -> dict[str, Any]:
            cell, seed = training
            started = time.perf_counter()
            record = train_and_score(parts, trainer, self._cells[cell], seed)
            name = genotype_lib.digest(parts.space, self._cells[cell])
            seconds = round(time.perf_counter() - started, 3)
            split = self._config.evaluate.split
            return {"cell": cell, "seed": seed, "hash": name, **record, "unseen_split": split, "seconds": seconds}

        with progress.bar(len(wanted), "trainings", initial=len(wanted) - len(pending)) as bar:
            lines = cores.map_in_order(train, pending, scratch.num_workers(self._config.search))
            for _ in pending:
                if self._stop.requested:
                    raise errors.Stopped(f"table: stopped, {bar.count} of {len(wanted)} trainings were finished")
                self._folder.append(LOG, next(lines))
                bar.update()

    def _assembled(self) -> tuple[pipeline.Parts, Trainer]:
        """The parts of the trainings, made when the first is needed."""
        if self._made is None:
            parts = assemble(self._config, self._folder, self._stop)
            trainer = make_trainer(parts, self._num_seeds)
            unseen = {} if trainer.unseen is None else pipeline.score_static(parts, trainer.unseen)
            self._folder.write_json(STATIC, pipeline.score_static(parts) | table.unseen_of(unseen))
            self._made = parts, trainer
        return self._made
