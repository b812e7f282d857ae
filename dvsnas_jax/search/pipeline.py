"""The command `search`, from top to bottom: static network, features, search, derive, evaluate, report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, signals, types, workdir
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.data import pipeline as clips_lib
from dvsnas_jax.nets import static_net
from dvsnas_jax.run import evaluate, features, fit, pretrain, report, stream, train
from dvsnas_jax.search import derive, loop, reward, steps
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cost, ports
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib


class Parts(NamedTuple):
    """What a search is assembled from.

    Attributes:
      config: of the run.
      space: the cell space.
      mesh: the devices.
      steps: jitted steps on the shared weights.
      strategy: what proposes genotypes.
      train_store: features of the meta-training clips.
      val_store: features of the meta-validation clips.
    """

    config: ml_collections.ConfigDict
    space: genotype_lib.Space
    mesh: jax.sharding.Mesh
    steps: steps.Steps
    strategy: strategies.Strategy
    train_store: types.FeatureStore
    val_store: types.FeatureStore


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> dict[str, Any]:
    """Searches a cell and proves it; everything is kept in the run folder and resumed from it.

    Returns:
      The content of `evaluation.json`.

    Raises:
      UserError: the config, the data or the run folder is not usable.
      Stopped: a signal arrived; the state was saved.
    """
    space = features.space_of(config)
    with compilation.effort(config.compile_effort):
        strategy = strategies.make(config.search.strategy, space, config.controller)
    num_clips = clips_lib.num_clips(config.data, "train", config.data.num_frames)
    folder.claim(config)
    with compilation.effort(config.compile_effort), signals.stop_on_signal() as stop:
        is_searched = (folder.path / train.BEST).is_file()
        compiled = None if is_searched else compile_steps(config, space, num_clips)
        variables = pretrain.run(config, folder, stop)
        if compiled is not None:
            parts = assemble(config, space, strategy, variables, num_clips, compiled=compiled)
            state = run_search(parts, folder, stop)
            find_winner(parts, state, folder, stop)
    result = evaluate.run(config, folder)
    report.write(folder.path)
    return result


def compile_steps(config: ml_collections.ConfigDict, space: genotype_lib.Space, num_clips: int) -> steps.Steps:
    """The steps on the shared weights, compiled in threads while the static network trains."""
    section, mesh = config.search, mesh_lib.make()
    where = mesh_lib.replicated(mesh)
    made = steps.make(supernet_lib.make(space, features.settings_of(config)), section, mesh)
    names = features.needed_maps(space, config)
    num_train, num_val = map(len, pretrain.split_clips(config, num_clips))
    train_store = features.shapes(
        config, names, section.cache_clips or num_train, where, is_augmented=bool(section.cache_clips)
    )
    val_store = features.shapes(config, names, num_val, where)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), made.state)

    def tokens(num: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num, space.num_layers, len(genotype_lib.FIELDS)), np.int32)

    clips = jax.ShapeDtypeStruct(_batch_shape(section), np.int32)
    groups = evaluation_batches(1, section)
    return made._replace(
        train_shared=compilation.Ahead(made.train_shared, state, tokens(section.shared_genotypes), train_store, clips),
        evaluate_shared=compilation.Ahead(
            made.evaluate_shared, state.params, tokens(section.genotypes_per_step), val_store, groups[0]
        ),
    )


def assemble(
    config: ml_collections.ConfigDict,
    space: genotype_lib.Space,
    strategy: strategies.Strategy,
    variables: Any,
    num_clips: int,
    *,
    compiled: steps.Steps,
) -> Parts:
    """Computes the features; `compiled` is from `compile_steps`."""
    mesh = mesh_lib.make()
    names = features.needed_maps(space, config)
    meta_train, meta_val = pretrain.split_clips(config, num_clips)
    return Parts(
        config=config,
        space=space,
        mesh=mesh,
        steps=compiled,
        strategy=strategy,
        train_store=mesh_lib.replicate(mesh, features.train_store(config, variables, meta_train, names)),
        val_store=mesh_lib.replicate(mesh, features.build(config, variables, features.select(config, meta_val), names)),
    )


def run_search(parts: Parts, folder: workdir.Workdir, stop: signals.StopFlag) -> loop.LoopState:
    """Warm-up on uniform genotypes, the search itself, and the random line on its final weights."""
    config, section = parts.config, parts.config.search
    rng = jax.random.key(config.seed)
    shared = warm_up(parts, parts.steps.init(jax.random.fold_in(rng, 1)), folder, stop)
    state = loop.LoopState(strategy=parts.strategy.init(jax.random.fold_in(rng, 2)), shared=shared)
    sample_rng, train_rng, update_rng = (jax.random.fold_in(rng, use) for use in (3, 4, 5))
    num_shared = section.shared_steps * section.shared_genotypes

    def sample(strategy_state: Any, step: int) -> types.Samples:
        return parts.strategy.sample(strategy_state, jax.random.fold_in(sample_rng, step), section.genotypes_per_step)

    def train_fn(shared: Any, strategy_state: Any, step: int) -> tuple[Any, dict[str, float]]:
        drawn = parts.strategy.sample(strategy_state, jax.random.fold_in(train_rng, step), num_shared)
        batches = training_batches(parts, np.asarray(drawn.genotypes), (config.seed, 4, step))
        logged = []
        for genotypes, clips in batches:
            shared, metrics = parts.steps.train_shared(shared, genotypes, parts.train_store, clips)
            logged.append(metrics)
        values = jax.device_get(logged)
        return shared, {name: float(np.mean([value[name] for value in values])) for name in values[0]}

    def update(strategy_state: Any, samples: Any, rewards: Any, valid: Any, step: int) -> tuple[Any, dict[str, Any]]:
        return parts.strategy.update(strategy_state, samples, rewards, valid, jax.random.fold_in(update_rng, step))

    state = loop.search(
        state,
        num_steps=section.steps,
        sample=sample,
        train=train_fn,
        evaluate=lambda shared, genotypes: score(parts, shared.params, genotypes, section.reward_clips),
        update=update,
        describe=lambda genotype: describe(parts.space, genotype, section.strategy),
        folder=folder,
        stop=stop,
        checkpoint_every=section.checkpoint_every,
    )
    score_random(parts, state, folder)
    return state


def warm_up(parts: Parts, shared: steps.SharedState, folder: workdir.Workdir, stop: signals.StopFlag) -> Any:
    """Trains the shared weights on uniformly drawn genotypes before any reward is taken."""
    config, section = parts.config, parts.config.search

    def batches(start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = start
        while True:
            key = (config.seed, 3, step)
            genotypes = genotype_lib.random(
                parts.space, np.random.default_rng(key), section.shared_genotypes, op_mask=parts.strategy.op_mask
            )
            yield genotypes, train.draw_clips((*key, 1), parts.train_store.num_clips, _batch_shape(section))
            step += 1

    return fit.fit(
        shared,
        stage="warmup",
        num_steps=section.warmup_steps,
        step_fn=lambda state, batch: parts.steps.train_shared(state, batch[0], parts.train_store, batch[1]),
        batches_fn=batches,
        folder=folder,
        stop=stop,
        checkpoint_every=max(section.warmup_steps // 2, 1),
    )


def training_batches(parts: Parts, genotypes: np.ndarray, key: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Groups of genotypes [G, L, 5], each with the clips [G, B] of its step."""
    section = parts.config.search
    groups = genotypes.reshape(section.shared_steps, section.shared_genotypes, *genotypes.shape[1:])
    clips = train.draw_clips(key, parts.train_store.num_clips, (section.shared_steps, *_batch_shape(section)))
    return list(zip(groups, clips, strict=True))


def _batch_shape(section: ml_collections.ConfigDict) -> tuple[int, int]:
    return section.shared_genotypes, section.batch_size


def describe(space: genotype_lib.Space, genotype: np.ndarray, source: str) -> dict[str, Any]:
    """The fields of a log line that name a genotype and who drew it."""
    digest = genotype_lib.digest(space, genotype)
    return {"source": source, "genotype": np.asarray(genotype).tolist(), "hash": digest}


def score(parts: Parts, params: types.Params, genotypes: np.ndarray, num_clips: int) -> list[dict[str, Any]]:
    """Rewards of genotypes with shared weights on the first `num_clips` meta-validation clips."""
    section = parts.config.search
    size = section.genotypes_per_step
    clips = evaluation_batches(min(num_clips, parts.val_store.num_clips), section)
    records: list[dict[str, Any]] = []
    for start in range(0, len(genotypes), size):
        # Padded to one shape: one trace for the rewards, the random line and the re-scoring.
        rows = np.minimum(np.arange(start, start + size), len(genotypes) - 1)
        found = steps.add_scores(
            [parts.steps.evaluate_shared(params, genotypes[rows], parts.val_store, group) for group in clips]
        )
        count = min(size, len(genotypes) - start)
        records += reward.compute(
            found.counts[:count],
            found.flicker[:count],
            found.is_finite[:count],
            **_factors(parts, genotypes[start : start + count]),
        )
    return records


def _factors(parts: Parts, genotypes: np.ndarray) -> dict[str, Any]:
    """The keywords of `reward.compute` for the cells of some genotypes."""
    section, settings = parts.config.search, features.settings_of(parts.config)
    height, width = parts.val_store.features.logits.shape[2:4]
    macs = [
        cost.of(parts.space, genotype, settings, (height, width)).macs + _encoder_macs(parts, settings, genotype)
        for genotype in genotypes
    ]
    return {
        "stability": section.stability,
        "cost": section.cost,
        "cost_target": section.cost_target,
        "macs": macs,
    }


def _encoder_macs(parts: Parts, settings: ports.CellSettings, genotype: np.ndarray) -> int:
    """Multiply-adds of the encoder stages that a cell makes necessary: in propagate mode, as far as it reads."""
    if not settings.is_propagating:
        return 0
    last = stream.depth(cell_lib.used_inputs(parts.space, genotype), settings)
    net = static_net.make(parts.config.net, settings.num_classes)
    return static_net.num_macs(net, (parts.config.data.height, parts.config.data.width), last)


def evaluation_batches(num_clips: int, section: ml_collections.ConfigDict) -> np.ndarray:
    """Clips 0 .. num_clips - 1 as groups of batches, i32 [groups, R, B], padded with -1.

    R is that of one reward, so that rewards and re-scoring share one compiled program.
    """
    num_batches = -(-section.reward_clips // section.batch_size)
    num_groups = -(-num_clips // (num_batches * section.batch_size))
    padded = np.full(num_groups * num_batches * section.batch_size, -1, np.int32)
    padded[:num_clips] = np.arange(num_clips)
    return padded.reshape(num_groups, num_batches, section.batch_size)


def score_random(parts: Parts, state: loop.LoopState, folder: workdir.Workdir) -> None:
    """The random line: uniformly drawn genotypes scored on the same final shared weights."""
    section = parts.config.search
    folder.truncate(loop.LOG, lambda record: record["step"] < section.steps)
    if not section.num_random:
        return
    rng = np.random.default_rng((parts.config.seed, 5))
    genotypes = genotype_lib.random(parts.space, rng, section.num_random, op_mask=parts.strategy.op_mask)
    records = score(parts, state.shared.params, genotypes, section.reward_clips)
    loop.log(folder, lambda genotype: describe(parts.space, genotype, "random"), genotypes, records, step=section.steps)


def find_winner(parts: Parts, state: loop.LoopState, folder: workdir.Workdir, stop: signals.StopFlag) -> None:
    """Derives the winner and writes its weights and its genotype."""
    config, section = parts.config, parts.config.derive
    log = [record for record in folder.read(loop.LOG) if record["step"] < config.search.steps]
    probable_rng = jax.random.fold_in(jax.random.key(config.seed), 6)
    probable = np.zeros((0, parts.space.num_layers, len(genotype_lib.FIELDS)), np.int32)
    if section.num_probable:
        probable = np.asarray(parts.strategy.probable(state.strategy, probable_rng, section.num_probable))
    genotypes = derive.candidates(parts.space, log, probable, num_rewarded=section.num_rewarded)
    rescored = score(parts, state.shared.params, genotypes, parts.val_store.num_clips)

    def retrain(genotype: np.ndarray) -> tuple[Any, dict[str, Any]]:
        stage = f"retrain_{genotype_lib.digest(parts.space, genotype)}"
        params = train.train_cell(
            config, parts.space, genotype, parts.train_store, folder=folder, stop=stop, stage=stage
        )
        return params, score_cell(parts, genotype, params)

    genotype, params, record = derive.choose(genotypes, rescored, num_retrain=section.num_retrain, retrain=retrain)
    static = score_static(parts)
    train.save_winner(folder, parts.space, genotype, params, {**record, "static_reward": static["reward"]})


def score_static(parts: Parts) -> dict[str, Any]:
    """Reward of the static network alone on the whole meta-validation split."""
    evaluate_static = steps.make_evaluate_static()
    clips = evaluation_batches(parts.val_store.num_clips, parts.config.search)
    found = steps.add_scores([evaluate_static(parts.val_store, group) for group in clips])
    return reward.compute(found.counts, found.flicker, found.is_finite, stability=parts.config.search.stability)[0]


def score_cell(parts: Parts, genotype: np.ndarray, params: types.Params) -> dict[str, Any]:
    """Reward of a retrained cell on the whole meta-validation split, with running statistics."""
    cell = cell_lib.make(parts.space, genotype, features.settings_of(parts.config))
    evaluate_cell = steps.make_evaluate_cell(cell)
    clips = evaluation_batches(parts.val_store.num_clips, parts.config.search)
    found = steps.add_scores([evaluate_cell(params, parts.val_store, group) for group in clips])
    return reward.compute(found.counts, found.flicker, found.is_finite, **_factors(parts, genotype[None]))[0]
