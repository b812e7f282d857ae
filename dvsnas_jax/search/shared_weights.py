"""The weights that the candidates of a search share: their warm-up, their training, and those of the random line."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import ahead, relaxed_steps
from dvsnas_jax.space import cell_end
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, feature_store, optim, training_loop

if TYPE_CHECKING:  # the pipeline, which puts the parts together, calls this module
    from dvsnas_jax.search import pipeline

WARM_UP, RANDOM_LINE = "warmup", "random_line"
"""Stages: before any reward is taken, and behind the random line."""
Batch = tuple[np.ndarray, np.ndarray]
"""Genotypes i32 [G, L, 5] of an optimizer step on the shared weights, and its clips i32 [G, B]."""


def num_steps(parts: pipeline.Parts, num_iterations: int) -> int:
    """Optimizer steps on the shared weights after so many iterations, those of the warm-up included."""
    section = parts.config.search
    is_relaxed = parts.strategy.record.is_relaxed
    own = relaxed_steps.steps_per_iteration(section, parts.space) if is_relaxed else section.shared_steps
    return section.warmup_steps + num_iterations * own


def start(parts: pipeline.Parts, attempt: int = 0) -> optim.TrainState:
    """The weights before any step, other ones in each attempt."""
    rng = jax.random.fold_in(jax.random.key(parts.config.seed), 1)
    state = parts.steps.init(jax.random.fold_in(rng, attempt) if attempt else rng)
    return dataclasses.replace(state, params=cell_end.with_share(state.params, parts.share))


def warm_up(parts: pipeline.Parts, folder: workdir.Workdir, stop: signals.StopFlag) -> optim.TrainState:
    """The weights after the training on uniformly drawn genotypes before any reward is taken; in mode scratch none."""
    section = parts.config.search
    num_wanted = section.warmup_steps if section.mode == "share" else 0
    return _train_uniform(parts, start(parts), _stage(parts, WARM_UP, folder, stop, num_wanted))


def train_on(
    parts: pipeline.Parts, shared: optim.TrainState, folder: workdir.Workdir, stop: signals.StopFlag
) -> optim.TrainState:
    """From the end of the warm-up as many steps as those of the search, on uniformly drawn genotypes as before."""
    section = parts.config.search
    stage = _stage(parts, RANDOM_LINE, folder, stop, section.steps * section.shared_steps)
    return _train_uniform(parts, shared, stage, num_before=section.warmup_steps)


def _stage(
    parts: pipeline.Parts, name: str, folder: workdir.Workdir, stop: signals.StopFlag, num_wanted: int
) -> training_loop.Stage:
    return training_loop.Stage(name, folder, stop, num_wanted, max(parts.config.search.warmup_steps // 2, 1))


def _train_uniform(
    parts: pipeline.Parts, shared: optim.TrainState, stage: training_loop.Stage, num_before: int = 0
) -> optim.TrainState:
    """Trains on uniformly drawn genotypes, after so many steps before; a step is a function of its number."""
    config, section = parts.config, parts.config.search

    def drawn(first: int) -> Iterator[Batch]:
        for step in itertools.count(num_before + first):
            key = (config.seed, 3, step)
            genotypes = uniform(parts, np.random.default_rng(key), section.shared_genotypes)
            yield genotypes, draw_clips(parts, (*key, 1), ahead.batch_shape(section))

    return training_loop.fit(shared, stage, step_fn=functools.partial(train, parts), batches_fn=drawn)


def train(parts: pipeline.Parts, shared: optim.TrainState, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
    """One optimizer step; the state is donated."""
    genotypes, clips = batch
    return parts.steps.train_shared(shared, genotypes, *feature_store.training(parts.train_store, clips))


def uniform(parts: pipeline.Parts, rng: np.random.Generator, num: int) -> np.ndarray:
    """Uniformly drawn genotypes i32 [num, L, 5] of the operations that the strategy may choose."""
    return genotype_lib.random(parts.space, rng, num, op_mask=parts.strategy.op_mask)


def batches(parts: pipeline.Parts, genotypes: np.ndarray, key: tuple[int, ...]) -> list[Batch]:
    """The batches of an iteration for so many drawn genotypes."""
    section = parts.config.search
    groups = genotypes.reshape(section.shared_steps, section.shared_genotypes, *genotypes.shape[1:])
    clips = draw_clips(parts, key, (section.shared_steps, *ahead.batch_shape(section)))
    return list(zip(groups, clips, strict=True))


def draw_clips(parts: pipeline.Parts, key: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Training clips i32 [..., B], a pure function of the key; each part of a batch has clips of its own."""
    num_clips = parts.train_store.num_clips
    drawn = cell_training.draw_clips(key, num_clips, shape)
    return feature_store.deal(drawn, num_clips, parts.config.search.batch_parts)
