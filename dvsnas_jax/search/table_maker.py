"""Makes the tabular benchmark: every distinct cell of a small space trained alone, with one compiled program.

A cell starts from the initial weights of its seed (the same for all cells), takes `config.train.steps` steps on the
training clips' features, and earns its reward on the meta-validation clips, which no training sees. What is finished is
in `table.jsonl` of the run folder, a line for each cell and seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, errors, progress, signals, types, workdir
from dvsnas_jax.data import pipeline as clips_lib
from dvsnas_jax.run import feature_store, features, losses, optim, pretrain, train
from dvsnas_jax.search import pipeline, reward, steps, table
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib

LOG = "table.jsonl"
STATIC = "table_static.json"
MAX_GENOTYPES = 20000
MAY_DIFFER = ("controller", "derive", "evaluate", "ablate", "report")
Carry = tuple[types.Params, types.Params, optax.OptState, jax.Array]


class Trainer(NamedTuple):
    """How the cells are trained.

    Attributes:
      initial: weights of the supernet, a leading axis S for the seeds.
      clips: i32 [S, steps, B], the batches of each seed.
      train: `(initial, genotype i32 [L, 5], store, clips) -> averaged weights [S, ...]`.
    """

    initial: types.Params
    clips: np.ndarray
    train: Callable[..., types.Params]


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir, *, num_seeds: int, command: str) -> table.Table:
    """Trains every cell, or those that the folder does not hold yet.

    Args:
      config: of the run; section `train` says how a cell is trained.
      folder: the run folder.
      num_seeds: trainings of each cell.
      command: the words that started this, kept in the table.

    Returns:
      The table, not written yet.

    Raises:
      UserError: the space is too large, or the folder belongs to another run.
      Stopped: a signal arrived; what is finished was saved.
    """
    space = features.space_of(config)
    num_genotypes = space.size()
    if num_genotypes > MAX_GENOTYPES:
        raise errors.UserError(
            f"--make-table: the space has {num_genotypes} genotypes, a table at most {MAX_GENOTYPES}; shorten "
            "space.inputs, space.operations, space.aggregations or space.num_layers, as configs/table.py does"
        )
    folder.claim(config, ignore=MAY_DIFFER)
    cells, _ = canonical.enumerate_cells(space)
    with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
        done = {(line["cell"], line["seed"]) for line in folder.read(LOG)}
        pending = [cell for cell in range(len(cells)) if any((cell, seed) not in done for seed in range(num_seeds))]
        if pending:
            waiting = set(pending)
            folder.truncate(LOG, lambda line: line["cell"] not in waiting)
            parts = assemble(config, folder, stop)
            _train_all(parts, cells, pending, folder, stop, num_seeds=num_seeds)
    lines = [line for line in folder.read(LOG) if line["seed"] < num_seeds]
    static = folder.read_json(STATIC)
    return table.from_lines(space, cells, lines, config=config, static=static, command=command)


def assemble(config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag) -> pipeline.Parts:
    """The static network, trained or restored, its features, and the jitted steps of the space."""
    space = features.space_of(config)
    num_clips = clips_lib.num_clips(config.data, "train", config.data.num_frames)
    variables = pretrain.run(config, folder, stop)
    strategy = strategies.make("random", space, config.controller)
    supernet = supernet_lib.make(space, features.settings_of(config))
    made = steps.make(supernet, config.search, feature_store.everywhere(config.search).mesh)
    return pipeline.assemble(config, space, strategy, variables, num_clips, compiled=made)


def make_trainer(parts: pipeline.Parts, num_seeds: int) -> Trainer:
    """The one compiled training of all cells, all seeds of a cell at once."""
    config, section = parts.config, parts.config.train
    supernet = supernet_lib.make(parts.space, features.settings_of(config))
    optimizer = optim.make(section)

    def loss_fn(params: types.Params, genotype: jax.Array, store: types.FeatureStore, clips: jax.Array) -> jax.Array:
        batch, labels = steps.take(store, clips)
        logits = supernet.unroll(params, genotype, batch)
        targets = losses.subsample_labels(jnp.moveaxis(labels, 1, 0), section.label_stride)
        return losses.cross_entropy(logits, targets)[0]

    def train_one(
        params: types.Params, genotype: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> types.Params:
        def step(carry: Carry, batch: jax.Array) -> tuple[Carry, None]:
            params, average, opt_state, index = carry
            grads = jax.grad(loss_fn)(params, genotype, store, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, optim.polyak(section.polyak, average, params, index), opt_state, index + 1), None

        start = (params, params, optimizer.init(params), jnp.zeros((), jnp.int32))
        return jax.lax.scan(step, start, clips)[0][1]

    def train_seeds(
        initial: types.Params, genotype: jax.Array, store: types.FeatureStore, clips: jax.Array
    ) -> types.Params:
        chex.assert_rank([genotype, clips], [2, 3])
        # The seeds share the genotype: mapped over them, a switch still runs one branch.
        return jax.vmap(train_one, in_axes=(0, None, None, 0))(initial, genotype, store, clips)

    rng = jax.random.key(config.seed)
    rngs = jax.vmap(lambda seed: jax.random.fold_in(jax.random.fold_in(rng, 8), seed))(jnp.arange(num_seeds))
    shape = (section.steps, section.batch_size)
    drawn = [train.draw_clips((config.seed, 8, seed), parts.train_store.num_clips, shape) for seed in range(num_seeds)]
    initial = compilation.jit_once(jax.vmap(supernet.init))(rngs)
    return Trainer(initial, np.stack(drawn), compilation.jit(train_seeds))


def train_and_score(parts: pipeline.Parts, trainer: Trainer, genotype: np.ndarray) -> list[dict[str, Any]]:
    """Trains one cell with every seed; a reward record for each."""
    params = trainer.train(trainer.initial, genotype, *feature_store.anywhere(parts.train_store, trainer.clips))
    clips = pipeline.evaluation_batches(parts.val_store.num_clips, parts.config.search)
    keywords = reward.factors(parts.config, parts.space, genotype[None], feature_store.grid(parts.val_store))
    records = []
    for seed in range(len(trainer.clips)):
        weights = jax.tree.map(lambda x, seed=seed: x[seed], params)
        found = steps.add_scores(
            [
                parts.steps.evaluate_shared(weights, genotype[None], *feature_store.evaluation(parts.val_store, group))
                for group in clips
            ]
        )
        records += reward.compute(found.counts, found.flicker, found.is_finite, **keywords)
    return records


def _train_all(
    parts: pipeline.Parts,
    cells: np.ndarray,
    pending: list[int],
    folder: workdir.Workdir,
    stop: signals.StopFlag,
    *,
    num_seeds: int,
) -> None:
    """Appends the lines of all pending cells."""
    trainer = make_trainer(parts, num_seeds)
    folder.write_json(STATIC, pipeline.score_static(parts))
    # Shuffled, so that what is finished at any time is a fair sample of the space.
    pending = np.random.default_rng(parts.config.seed).permutation(pending).tolist()
    with progress.bar(len(cells), "cells", initial=len(cells) - len(pending)) as bar:
        for cell in pending:
            if stop.requested:
                raise errors.Stopped(f"table: stopped, {bar.count} of {len(cells)} cells were finished")
            started = time.perf_counter()
            for seed, record in enumerate(train_and_score(parts, trainer, cells[cell])):
                seconds = round((time.perf_counter() - started) / num_seeds, 3)
                name = genotype_lib.digest(parts.space, cells[cell])
                folder.append(LOG, {"cell": cell, "seed": seed, "hash": name, **record, "seconds": seconds})
            bar.update()
