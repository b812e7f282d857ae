"""A search from top to bottom: static network, features, search, derive, evaluate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.controller import strategy as strategy_lib
from dvsnas_jax.core import compilation, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals
from dvsnas_jax.evaluate import evaluation as evaluate
from dvsnas_jax.search import (
    ahead,
    derive,
    first_candidates,
    loop,
    relaxed_steps,
    reward,
    scratch,
    shared_weights,
    simplify,
    steps,
    worth,
)
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import (
    averaging,
    cell_training,
    claims,
    clip_scores,
    feature_store,
    features,
    folds,
    joint,
    pretrain,
    require_labels,
    teachers,
    training_loop,
    winners,
)

MAX_ITERATIONS = 4
"""Times `search.steps`, of a search that ends by its budget."""


class Parts(NamedTuple):
    """What a search is assembled from: the jitted steps on the shared weights, what proposes genotypes, the features
    of the meta-training and meta-validation clips, the step of a strategy that learns from gradients, the class weights
    of the loss, and the share of the average that refining cells start from."""

    config: ml_collections.ConfigDict
    space: genotype_lib.Space
    mesh: jax.sharding.Mesh
    steps: steps.Steps
    strategy: strategy_lib.Strategy
    train_store: feature_store.AnyStore
    val_store: feature_store.AnyStore
    relaxed: relaxed_steps.Trainer | None = None
    class_weights: np.ndarray | None = None
    share: float | None = None
    final_fn: Callable[[], feature_store.AnyStore] | None = None  # as that of `cell_training.Material`
    unseen_fn: Callable[[], feature_store.AnyStore] | None = None  # makes features of clips that nothing is chosen on
    baseline: clip_scores.Baseline | None = None  # that of `averaging.baseline`

    @property
    def material(self) -> cell_training.Material:
        """What a cell is trained with."""
        return cell_training.Material(
            self.train_store, self.val_store, self.class_weights, self.share, self.final_fn, self.baseline
        )


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> dict[str, Any]:
    """Searches a cell and proves it; everything is kept in the run folder and resumed from it.

    Returns:
      The content of `evaluation.json`. A UserError where the config, the data or the run folder is not usable; Stopped
        by a
      signal, after the state was saved.
    """
    with folder.hold():
        config = claims.check(config, folder)
        is_done = winners.is_search_done(folder)
        space = features.space_of(config)
        with compilation.effort(config.compile_effort):
            strategy = strategies.make(config.search.strategy, space, config.controller)
        relaxed_steps.check(config, space, strategy)
        first_candidates.of(config, space, strategy)
        supernet_lib.make(space, features.settings_of(config))
        if not is_done:
            features.require_ages(config)
            folds.split(config)
        require_labels.check(config, folder, is_rewarded=True, is_evaluated=True)
        pretrain.check(config, folder)
        evaluate.check(config)
        claims.claim(config, folder)
        winners.is_search_done(folder)  # again: the folder may have been another's until now
        winners.mark_search(folder)
        with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
            compiled = None
            if not is_done:
                placement, weights = ahead.place(config, space), cell_training.class_weights(config, folder)
                num_val = len(pretrain.split_clips(config)[1])
                groups = clip_scores.batches(min(config.search.reward_clips, num_val), config.search)
                made = ahead.compile_steps(config, space, placement, groups=groups, class_weights=weights)
                compiled = Compiled(made, placement, weights)
            if compiled is None:
                pretrain.run(config, folder, stop)
            else:
                networks = folds.run(config, folder, stop)
                share = averaging.starting_share(config, networks.final, folder)
                parts = assemble(config, strategy, networks, compiled, folder=folder, share=share)
                parts = parts._replace(baseline=averaging.baseline(config, networks.final, folder))
                state = run_search(parts, folder, stop)
                find_winner(parts, networks.final, state, folder, stop)
        return evaluate.run(config, folder)


class Compiled(NamedTuple):
    """The steps of a search, where the features lie that they are compiled for, and the class weights of their loss."""

    steps: steps.Steps
    placement: feature_store.Placement
    class_weights: np.ndarray | None = None


def assemble(
    config: ml_collections.ConfigDict,
    strategy: strategy_lib.Strategy,
    networks: features.Networks,
    compiled: Compiled,
    *,
    folder: workdir.Workdir | None = None,
    share: float | None = None,
) -> Parts:
    """Computes the features; those that are kept on disk, or made by several processes, go to the run folder."""
    space, placement = strategy.space, compiled.placement
    names = features.needed_maps(space, config)

    meta_train, meta_val = pretrain.split_clips(config)
    training = teachers.wanted(config, meta_train, names)

    def placed(networks: features.Networks, wanted: features.Wanted = training) -> feature_store.AnyStore:
        return features.placed(config, networks, wanted, placement, folder)

    stores = placed(networks), placed(networks, features.Wanted(meta_val, names))
    final_fn = functools.cache(lambda: placed(networks.alone())) if networks.folds else None
    weights = compiled.class_weights
    relaxed = relaxed_steps.make(config, space, placement.mesh, placement.train_rows, weights)
    return Parts(config, space, placement.mesh, compiled.steps, strategy, *stores, relaxed, weights, share, final_fn)


def run_search(
    parts: Parts, folder: workdir.Workdir, stop: signals.StopFlag, budget: int | None = None
) -> loop.LoopState:
    """Warm-up on uniform genotypes, the search itself, and the random line.

    `budget`: optimizer steps of candidates in mode scratch, after which the search ends in place of `search.steps`
    iterations, at the latest after `MAX_ITERATIONS` times as many: a strategy may repeat what costs nothing.
    """
    config, section, strategy = parts.config, parts.config.search, parts.strategy
    rng = jax.random.key(config.seed)
    shared = shared_weights.warm_up(parts, folder, stop)
    state = loop.LoopState(strategy=strategy.init(jax.random.fold_in(rng, 2)), shared=shared)
    sample_rng, train_rng, update_rng = (jax.random.fold_in(rng, use) for use in (3, 4, 5))
    num_shared = section.shared_steps * section.shared_genotypes
    answers = scratch.make_answers(section, folder, loop.LOG, parts.space)
    first = first_candidates.of(config, parts.space, strategy)

    def sample(strategy_state: Any, step: int) -> types.Samples:
        drawn = strategy.sample(strategy_state, jax.random.fold_in(sample_rng, step), section.genotypes_per_step)
        return first_candidates.put_first(drawn, first, step)

    def train(state: loop.LoopState, step: int) -> tuple[loop.LoopState, dict[str, float]]:
        if section.mode == "scratch":
            return state, {}
        if strategy.record.is_relaxed:
            return relaxed_steps.train(parts.relaxed, config, strategy, parts.train_store, state, step)
        drawn = strategy.sample(state.strategy, jax.random.fold_in(train_rng, step), num_shared)
        shared, logged = state.shared, []
        for batch in shared_weights.batches(parts, np.asarray(drawn.genotypes), (config.seed, 4, step)):
            shared, metrics = shared_weights.train(parts, shared, batch)
            logged.append(metrics)
        return loop.LoopState(strategy=state.strategy, shared=shared), loop.means(logged)

    def evaluate(shared: Any, genotypes: np.ndarray) -> list[dict[str, Any]]:
        score_fn = functools.partial(score, parts, shared.params, num_clips=section.reward_clips)
        return answers.evaluate(genotypes, score_fn)

    def update(
        strategy_state: Any, samples: types.Samples, records: Sequence[dict[str, Any]], step: int
    ) -> tuple[Any, dict[str, float]]:
        if step < section.controller_warmup:
            return strategy_state, {"num_updates": 0.0}
        scored = loop.to_arrays(records, scratch.expected) if strategy.record.is_model else loop.to_arrays(records)
        return strategy.update(strategy_state, samples, *scored, jax.random.fold_in(update_rng, step))

    def count_steps(num_iterations: int) -> int:
        return answers.optimizer_steps if section.mode == "scratch" else shared_weights.num_steps(parts, num_iterations)

    describe_fn = functools.partial(describe, parts.space, section.strategy)
    functions = loop.Functions(sample, train, evaluate, update, describe_fn, count_steps, budget)
    num_steps = section.steps * (1 if budget is None else MAX_ITERATIONS)
    state = loop.search(
        state, functions, num_steps, folder=folder, stop=stop, checkpoint_every=section.checkpoint_every
    )
    if budget is None:
        score_random(parts, folder, stop)
    return state


def describe(space: genotype_lib.Space, source: str, genotype: np.ndarray) -> dict[str, Any]:
    """The fields of a log line that name a genotype and who drew it."""
    digest = genotype_lib.digest(space, genotype)
    return {"source": source, "genotype": np.asarray(genotype).tolist(), "hash": digest}


def score(
    parts: Parts,
    params: types.Params,
    genotypes: np.ndarray,
    num_clips: int,
    floors: list[float | None] | None = None,
    attempt: int = 0,
) -> list[dict[str, Any]]:
    """Rewards of genotypes [N, L, 5] on the first `num_clips` meta-validation clips.

    With the shared weights `params`; in mode scratch each is trained from them, with the `floors` of `scratch.score`.
    Another attempt than 0, that of the search's own rewards, deals the clips into other batches and trains from other
    weights on other batches: what was luck in a reward is not in the next.
    """
    section = parts.config.search
    clips = _deal(clip_scores.batches(min(num_clips, parts.val_store.num_clips), section), parts.config, attempt)
    if section.mode == "scratch":
        training = scratch.Training(
            start=parts.steps.start_alone(shared_weights.start(parts, attempt).params if attempt else params),
            train_fn=scratch.make_train(parts.config, parts.steps, parts.train_store, attempt),
            evaluate_fn=lambda state, genotype: score_shared(parts, state.average, genotype[None], clips)[0],
            num_parts=section.scratch_parts,
            part_steps=section.scratch_steps // section.scratch_parts,
        )
        return scratch.score(genotypes, training, floors=floors, num_workers=scratch.num_workers(section))
    size, records = section.genotypes_per_step, []
    for start in range(0, len(genotypes), size):
        # Padded to one shape: one trace for the rewards, the random line and the re-scoring.
        rows = np.minimum(np.arange(start, start + size), len(genotypes) - 1)
        records += score_shared(parts, params, genotypes[rows], clips)[: len(genotypes) - start]
    return records


def _deal(clips: np.ndarray, config: ml_collections.ConfigDict, attempt: int) -> np.ndarray:
    """Batches of `clip_scores.batches` with the clips in other places, each in its own part, for each attempt."""
    if not attempt:
        return clips
    order, rng = np.arange(clips.max() + 1), np.random.default_rng((config.seed, 12, attempt))
    for part in range(config.search.batch_parts):
        order[part :: config.search.batch_parts] = rng.permutation(order[part :: config.search.batch_parts])
    return np.where(clips >= 0, order[clips], ~order[np.maximum(~clips, 0)]).astype(clips.dtype)


def score_shared(parts: Parts, params: types.Params, genotypes: np.ndarray, clips: np.ndarray) -> list[dict[str, Any]]:
    """Rewards of genotypes [N, L, 5] with the same weights on groups of batches, i32 [groups, R, B]."""

    def evaluate_fn(group: np.ndarray) -> clip_scores.ClipScores:
        return parts.steps.evaluate_shared(params, genotypes, *feature_store.evaluation(parts.val_store, group))

    return _rewards(parts, clip_scores.add([evaluate_fn(group) for group in clips]), genotypes, int(clips.max()) + 1)


def _rewards(
    parts: Parts,
    found: clip_scores.ClipScores,
    genotypes: np.ndarray | None = None,
    num_clips: int | None = None,
) -> list[dict[str, Any]]:
    """Rewards of what was counted on the first meta-validation clips (None: all); without genotypes nothing has a
    price."""
    grid = parts.val_store.grid
    macs = None if genotypes is None else reward.cell_macs(parts.config, parts.space, genotypes, grid)
    base = None if parts.baseline is None else parts.baseline.accuracy(parts.val_store, num_clips)
    return reward.compute(found, clip_scores.rule(parts.config.search, base), macs)


def score_random(parts: Parts, folder: workdir.Workdir, stop: signals.StopFlag) -> None:
    """The random line: uniformly drawn genotypes, and shared weights that were trained on nothing else.

    From the end of the warm-up they take as many steps as those of the search, which are adapted to what its strategy
    drew. In mode scratch each is trained alone.
    """
    section = parts.config.search
    folder.truncate(loop.LOG, lambda record: record["step"] < section.steps)
    if not section.num_random:
        return
    genotypes = shared_weights.uniform(parts, np.random.default_rng((parts.config.seed, 5)), section.num_random)
    shared = shared_weights.warm_up(parts, folder, stop)
    if section.mode == "share":
        shared = shared_weights.train_on(parts, shared, folder, stop)
    records = score(parts, shared.params, genotypes, section.reward_clips)
    describe_fn = functools.partial(describe, parts.space, strategies.BASELINE)
    loop.log(folder, describe_fn, genotypes, records, step=section.steps)


def find_winner(
    parts: Parts, variables: Any, state: loop.LoopState, folder: workdir.Workdir, stop: signals.StopFlag
) -> None:
    """Derives the winner and writes its weights and its genotype; `variables` are those of the static network."""
    config, section = parts.config, parts.config.derive
    distributed.barrier("log")  # written by one process, read by all
    log = [record for record in folder.read(loop.LOG) if record["step"] < config.search.steps]
    probable_rng = jax.random.fold_in(jax.random.key(config.seed), 6)
    probable = np.zeros((0, parts.space.num_layers, len(genotype_lib.FIELDS)), np.int32)
    if section.num_probable:
        probable = np.asarray(parts.strategy.probable(state.strategy, probable_rng, section.num_probable))
    genotypes = derive.candidates(
        parts.space,
        log,
        probable,
        num_rewarded=section.num_rewarded,
        rank=section.rank,
        is_propagating=config.space.mode == "propagate",
    )
    rescored = score(parts, state.shared.params, genotypes, parts.val_store.num_clips, attempt=1)

    def name(genotype: np.ndarray) -> str:
        return genotype_lib.digest(*simplify.genotype_of(config, parts.space, genotype))

    def retrain(genotype: np.ndarray) -> tuple[Any, dict[str, Any]]:
        space, rows = simplify.genotype_of(config, parts.space, genotype)
        stage = training_loop.Stage.of(config.train, f"retrain_{genotype_lib.digest(space, rows)}", folder, stop)
        trained = cell_training.train_cell(config, space, rows, parts.material, stage)
        return trained.params, score_trained(parts._replace(space=space), rows, trained)

    genotype, params, record = derive.choose(
        genotypes, rescored, num_retrain=section.num_retrain, retrain=retrain, name=name
    )
    scores = {**record, "static_reward": score_static(parts)["reward"]}
    cell = worth.Trained(*simplify.genotype_of(config, parts.space, genotype), params)
    about: dict[str, Any] = {"found": genotype_lib.to_dict(parts.space, genotype)}
    if section.simplify == simplify.NOISE:
        cell, about["simplified"] = simplify.run(
            config, cell, parts.val_store, is_measured=True, baseline=parts.baseline
        )
    found = joint.run(config, variables, (cell.space, cell.genotype), cell.params, folder, stop)
    if config.train.joint_control:
        joint.control(config, variables, folder, stop)
    if found.found is not None:
        own = parts._replace(space=cell.space)
        scores["joint_reward"] = _rewards(own, found.found, cell.genotype[None])[0]["reward"]
    about |= {"made_by": winners.SEARCH, "scores": scores}
    winners.save(folder, cell.space, cell.genotype, found.params, about)


def score_static(parts: Parts, store: feature_store.AnyStore | None = None) -> dict[str, Any]:
    """Reward of the static network alone on the whole meta-validation split, or on the clips of a store."""
    parts = parts if store is None else parts._replace(val_store=store)
    return _score_alone(parts, lambda params, frames: jax.numpy.asarray(frames.logits), {}, None)


def score_trained(parts: Parts, genotype: np.ndarray, trained: cell_training.Trained) -> dict[str, Any]:
    """Reward of a retrained cell on the whole meta-validation split, with running statistics.

    Where its training was validated, of the very counts that its weights were kept for.
    """
    if trained.found is not None:
        return _rewards(parts, trained.found, genotype[None])[0]
    cell = cell_lib.make(parts.space, genotype, features.settings_of(parts.config))
    return _score_alone(parts, cell.unroll, trained.params, genotype[None])


def _score_alone(
    parts: Parts,
    unroll_fn: Callable[[types.Params, types.Features], jax.Array],
    params: types.Params,
    genotypes: np.ndarray | None,
) -> dict[str, Any]:
    do_follow = parts.baseline is not None
    count_fn = clip_scores.make_count(unroll_fn, features.settings_of(parts.config).num_ages, do_follow)
    found = clip_scores.of_store(count_fn, params, parts.val_store, parts.config.search)
    return _rewards(parts, found, genotypes)[0]
