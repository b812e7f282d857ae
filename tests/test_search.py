"""The search with a world whose answer is known, and its steps on real (tiny) features."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dvsnas_jax.bench import cell_speed
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, mesh, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.search import derive, loop, reward, steps
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import clip_scores, feature_store, features, losses, optim

SPACE = genotype_lib.Space(
    inputs=("prev_state", "prev_logits", "decoder", "logits"),
    num_layers=2,
    operations=("none", "skip", "conv_1x1", "sep_conv_3x3", "max_pool_3x3"),
    aggregations=("sum", "gate"),
)  # few programs to compile; the whole vocabulary is tested where its gradient is
SETTINGS = cell_frame.CellSettings(channels=6, feature_channels={"decoder": 5, "logits": 3, "image": 3})


def make_store(num_clips: int = 6, num_frames: int = 2, size: tuple[int, int] = (4, 6)) -> types.FeatureStore:
    rng = np.random.default_rng(0)

    def draw(channels: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(num_clips, num_frames, *size, channels)), jnp.bfloat16)

    features = types.Features(maps={"decoder": draw(5), "image": draw(3)}, logits=draw(3))
    # What is to be learned: the strongest of the decoder's first three channels.
    labels = np.asarray(features.maps["decoder"][..., :3], np.float32).argmax(axis=-1).astype(np.uint8)
    labels = labels.repeat(4, axis=2).repeat(4, axis=3)
    labels[:, :, 0] = types.IGNORE
    return types.FeatureStore(features=features, labels=jnp.asarray(labels))


def score(step: steps.Steps, params: types.Params, genotypes: np.ndarray, *batches: tuple[int, ...]):
    """`evaluate_shared`, always of two genotypes and two batches of four clips: one program for all tests."""
    assert len(genotypes) <= 2 and len(batches) <= 2
    rows = np.array([*batches, (-1,) * 4][:2], np.int32)  # no clip of what is added counts
    found = step.evaluate_shared(params, np.resize(genotypes, (2, *genotypes.shape[1:])), make_store(), rows)
    return jax.tree.map(lambda x: np.asarray(x)[: len(genotypes)], found)


@functools.cache
def make_steps() -> tuple[supernet_lib.Supernet, steps.Steps]:
    supernet = supernet_lib.make(SPACE, SETTINGS)
    return supernet, steps.make(supernet, config_lib.defaults().search, mesh.make())


def test_a_store_is_never_float32_as_a_whole():
    """It may be as large as the memory allows; clips of it are, one batch at a time."""
    store = make_store()
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1000, *x.shape[1:]), x.dtype), store)

    def total(store: types.FeatureStore, batches: jax.Array) -> jax.Array:
        def step(total: jax.Array, clips: jax.Array) -> tuple[jax.Array, None]:
            features, _ = feature_store.take(store, clips)
            assert features.logits.dtype == jnp.float32
            return jnp.tanh(total + features.logits.sum()), None

        return jax.lax.scan(step, jnp.float32(0), batches)[0]

    compiled = jax.jit(total).lower(many, jax.ShapeDtypeStruct((3, 2), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < many.features.logits.size  # a fourth of it as float32
    found, _ = feature_store.take(store, jnp.array([4, 1]))
    for x, whole in zip(jax.tree.leaves(found), jax.tree.leaves(store.features), strict=True):
        np.testing.assert_array_equal(x, np.asarray(whole, np.float32)[[4, 1]].swapaxes(0, 1))


# --- the loop, with functions in place of networks ---------------------------------------------------------------


def run_loop(
    folder: pathlib.Path, *, stop_at: int | None = None, num_steps: int = 7, budget: int | None = None
) -> loop.LoopState:
    """A search whose reward is the first token, and whose 'policy' only counts updates; an iteration costs 10 steps."""
    stop = signals.StopFlag()
    folder.mkdir(exist_ok=True)

    def sample(strategy_state: chex.Array, step: int) -> types.Samples:
        rng = np.random.default_rng(step)
        genotypes = genotype_lib.random(SPACE, rng, 3)
        return types.Samples(genotypes=genotypes, log_prob=np.zeros(3), entropy=np.zeros(3))

    def train(state: loop.LoopState, step: int):
        if step == stop_at:
            stop.requested = True
        return dataclasses.replace(state, shared=state.shared + 1), {"loss": 1.0 / (step + 1)}

    def evaluate(shared: chex.Array, genotypes: np.ndarray):
        assert genotypes.shape == (3, 2, 5)
        rows = [{"reward": float(g[0, 0]) / 4 + float(shared) / 100, "status": "ok"} for g in genotypes]
        rows[1] = {"reward": None, "status": "diverged"}
        return rows

    def update(strategy_state: chex.Array, samples, records, step: int):
        rewards, valid = loop.to_arrays(records)
        assert valid.tolist() == [True, False, True] and rewards.dtype == np.float32
        return strategy_state + rewards[valid].sum(), {"baseline": float(rewards[valid].mean())}

    def describe(genotype: np.ndarray):
        return {"genotype": genotype.tolist(), "hash": genotype_lib.digest(SPACE, genotype)}

    return loop.search(
        loop.LoopState(strategy=jnp.zeros(()), shared=jnp.zeros(())),
        loop.Functions(sample, train, evaluate, update, describe, lambda done: 10 * done, budget),
        num_steps,
        folder=workdir.Workdir(folder),
        stop=stop,
        checkpoint_every=3,
    )


def test_loop_logs_every_candidate(tmp_path: pathlib.Path) -> None:
    state = run_loop(tmp_path)
    records = workdir.Workdir(tmp_path).read(loop.LOG)
    assert [(r["step"], r["index"]) for r in records] == [(s, i) for s in range(7) for i in range(3)]
    assert [r["status"] for r in records[:3]] == ["ok", "diverged", "ok"]
    assert float(state.shared) == 7
    total = sum(r["reward"] for r in records if r["reward"] is not None)
    assert float(state.strategy) == pytest.approx(total, rel=1e-5)
    metrics = [r for r in workdir.Workdir(tmp_path).read("metrics.jsonl") if r["stage"] == "search"]
    assert [r["optimizer_steps"] for r in metrics] == [10, 20, 30, 40, 50, 60, 70]
    assert metrics[0]["reward_mean"] == pytest.approx((records[0]["reward"] + records[2]["reward"]) / 2)


def test_stopped_loop_goes_on_to_the_same_end(tmp_path: pathlib.Path) -> None:
    whole = run_loop(tmp_path / "whole")
    with pytest.raises(errors.Stopped, match="after step 5 of 7"):
        run_loop(tmp_path / "parts", stop_at=4)
    # A line written after the last checkpoint, as a killed run leaves it, is dropped.
    with open(tmp_path / "parts" / loop.LOG, "a") as log:
        log.write('{"step": 5, "index": 0, "reward": 9, "hash": "x", "genotype": []}\n{"step": 5, "ind')
    parts = run_loop(tmp_path / "parts")
    assert float(parts.strategy) == float(whole.strategy)
    assert (tmp_path / "parts" / loop.LOG).read_bytes() == (tmp_path / "whole" / loop.LOG).read_bytes()


def test_a_budget_of_optimizer_steps_ends_the_search(tmp_path: pathlib.Path) -> None:
    whole = run_loop(tmp_path / "whole", budget=45)
    assert float(whole.shared) == 5 and len(workdir.Workdir(tmp_path / "whole").read(loop.LOG)) == 5 * 3
    with pytest.raises(errors.Stopped, match="after step 3"):
        run_loop(tmp_path / "parts", budget=45, stop_at=2)
    for _ in range(2):  # to the end, and once more: nothing is added
        resumed = run_loop(tmp_path / "parts", budget=45)
        assert float(resumed.strategy) == float(whole.strategy) and float(resumed.shared) == 5
        assert (tmp_path / "parts" / loop.LOG).read_bytes() == (tmp_path / "whole" / loop.LOG).read_bytes()


# --- rewards and derivation ---------------------------------------------------------------------------------------


def test_reward_is_the_geometric_mean_times_stability() -> None:
    counts = np.array([[[3, 1], [0, 4]], [[4, 0], [0, 4]], [[4, 0], [0, 4]]])
    flicker = np.array([[1, 4], [0, 0], [0, 4]])
    found = clip_scores.ClipScores(
        counts, flicker, np.array([[1, 8, 1], [0, 0, 0], [0, 0, 4]]), np.array([True, True, False])
    )
    records = reward.compute(found, clip_scores.Rule(2.0))
    miou, fwiou, accuracy = (3 / 4 + 4 / 5) / 2, (3 / 4 + 4 / 5) / 2, (3 / 4 + 4 / 4) / 2
    assert records[0]["reward"] == pytest.approx((miou * fwiou * accuracy) ** (1 / 3) * 0.75**2)
    assert records[0]["accuracy"] == 7 / 8
    assert records[0]["miou"] == pytest.approx(miou) and records[0]["flicker"] == 0.25
    assert records[0]["followed"] == 0.125 and "gain" not in records[0]
    assert records[1]["reward"] == pytest.approx(1.0) and "followed" not in records[1]
    assert records[2] == {"reward": None, "status": "diverged"}


def test_reward_with_all_factors_keeps_every_part() -> None:
    counts, flicker = np.array([[[3, 1], [0, 4]]]), np.array([[2, 8]])
    rule = clip_scores.Rule(stability=0.5, cost=0.25, cost_target=0.5)
    found = clip_scores.ClipScores(counts, flicker, np.array([[0, 0, 0]]), np.array([True]))
    record = reward.compute(found, rule, [8_000_000])[0]
    # Class IoU 3/4 and 4/5, frequencies 1/2 and 1/2, class accuracies 3/4 and 1; 1 - 2/8; (0.5 / 8)^(1/4) = 1/2.
    expected = (0.775 * 0.775 * 0.875) ** (1 / 3) * 0.75**0.5 * 0.5
    assert record.pop("reward") == pytest.approx(expected)
    parts = {"miou": 0.775, "fwiou": 0.775, "class_accuracy": 0.875, "accuracy": 0.875, "flicker": 0.25}
    assert record.pop("status") == "ok" and record.pop("macs") == 8_000_000
    assert record == pytest.approx(parts)
    found = dataclasses.replace(found, counts=np.array([[[1, 0], [1, 6]]]))
    unequal = reward.compute(found, clip_scores.Rule())[0]
    assert unequal["fwiou"] == pytest.approx(1 / 8 * 1 / 2 + 7 / 8 * 6 / 7)
    assert unequal["class_accuracy"] == pytest.approx((1 + 6 / 7) / 2) and unequal["accuracy"] == pytest.approx(7 / 8)


def gained(counts: list, *, flicker: tuple[int, int], changes: tuple[int, int], base: float) -> dict:
    """The record of a candidate whose reward is the gain over a baseline of this accuracy."""
    rows = counts, flicker, (*changes, flicker[0])
    found = clip_scores.ClipScores(*(np.array([x]) for x in rows), is_finite=np.array([True]))
    return reward.compute(found, clip_scores.Rule(base=base))[0]


def test_gain_is_the_error_taken_away_and_the_changes_followed_without_flicker() -> None:
    # Everything is right in 9 of 10 pixels of both classes: IoU 9/11, frequencies 1/2, class accuracy 9/10.
    counts, accuracy = [[9, 1], [1, 9]], (9 / 11 * 9 / 11 * 9 / 10) ** (1 / 3)
    record = gained(counts, flicker=(2, 15), changes=(3, 5), base=0.5)
    assert record["gain"] == pytest.approx((accuracy - 0.5) / 0.5) and record["followed"] == 0.6
    precision, recall = 3 / 5, 3 / 5  # three of the changes that were made are true, three of the true ones were made
    assert record["change_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert record["reward"] == pytest.approx(np.sqrt((record["gain"] + np.hypot(record["gain"], 0.01)) / 2 * 0.6))
    assert record["reward"] == pytest.approx(np.sqrt(record["gain"] * 0.6), rel=1e-3)
    # Equal gains: the one that flickers less, and the one that follows more, is worth more.
    assert gained(counts, flicker=(1, 15), changes=(3, 5), base=0.5)["reward"] > record["reward"]
    assert gained(counts, flicker=(2, 15), changes=(4, 5), base=0.5)["reward"] > record["reward"]


def test_who_holds_or_copies_earns_nothing_and_what_is_below_the_baseline_keeps_its_order() -> None:
    counts, base = [[9, 1], [1, 9]], (9 / 11 * 9 / 11 * 9 / 10) ** (1 / 3)

    def earned(lead: float, flicker: int = 50, followed: int = 10) -> float:
        """With an accuracy so far above the baseline's; of 1000 pixels 40 change."""
        return gained(counts, flicker=(flicker, 960), changes=(followed, 40), base=base - lead)["reward"]

    assert earned(0.05) > 0.17 and earned(0.0) < 0.04  # copies the baseline: as accurate, as steady
    assert earned(0.05, flicker=0, followed=0) == 0.0  # says nothing new, however accurate
    assert earned(0.05, flicker=140, followed=11) < 0.85 * earned(0.05)  # flickers: follows more by chance
    below = [earned(-lead) for lead in (0.0, 0.01, 0.02, 0.05, 0.1)]
    assert all(more > 1.3 * less > 0 for more, less in zip(below, below[1:], strict=False))


def test_true_changes_are_counted_as_the_evaluation_counts_them() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 6, 8, 8)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = types.IGNORE
    labels[:, 2:4] = labels[:, 1:2]  # some last
    logits = rng.normal(size=(4, 6, 8, 8, 3)).astype(np.float32)
    own, store = (
        logits.argmax(axis=-1),
        types.FeatureStore(types.Features({}, jnp.asarray(logits)), jnp.asarray(labels)),
    )
    for ages, near, last in ((0, slice(0, 6), slice(4, 6)), (3, slice(0, 4), slice(0, 4))):
        count = functools.partial(clip_scores.make_count, lambda _, frames: frames.logits, ages)
        found = count(do_follow=True)({}, store, np.arange(4, dtype=np.int32)[None])
        pairs = [(truth[near], said[near]) for truth, said in zip(labels, own, strict=True)]
        followed = np.sum([metrics.changes_followed(*pair, 2) for pair in pairs], axis=0)
        false = sum(metrics.flicker(*pair)[0] for pair in pairs)
        assert found.changes.tolist() == [[*followed, false]] and followed[0] > 20
        expected = np.sum([metrics.flicker(a[last], b[last]) for a, b in zip(labels, own, strict=True)], axis=0)
        plain = count()({}, store, np.arange(4, dtype=np.int32)[None])
        assert found.flicker.tolist() == plain.flicker.tolist() == [expected.tolist()]
        np.testing.assert_array_equal(found.counts, plain.counts)
        assert plain.changes.tolist() == [[0, 0, 0]]


def test_a_baseline_is_counted_once_and_its_copy_gains_nothing() -> None:
    store, section, calls = make_store(), config_lib.defaults().search, []
    baseline = clip_scores.Baseline(lambda logits: calls.append(1) or logits, section, 0)
    still = dataclasses.replace(store, labels=jnp.zeros_like(store.labels))
    with pytest.raises(errors.UserError, match="search.reward: must be plain here, as no label changes"):
        baseline.accuracy(still)
    assert baseline.accuracy(store) == baseline.accuracy(store) != baseline.accuracy(store, 2) and len(calls) == 2
    count_fn = clip_scores.make_count(lambda _, frames: frames.logits, do_follow=True)
    found = clip_scores.of_store(count_fn, {}, store, section)
    record = reward.compute(found, clip_scores.rule(section, baseline.accuracy(store)))[0]
    assert record["gain"] == 0.0 and record["reward"] == pytest.approx(np.sqrt(0.005 * record["change_f1"]))


def test_where_a_cell_propagates_one_that_is_blind_to_the_frame_is_not_derived() -> None:
    space = genotype_lib.Space(inputs=("prev_logits", "stage1"), num_layers=1)
    skip, none = map(space.operations.index, ("skip", "none"))
    blind, unused, seeing = (
        np.array([[0, 0, skip, skip, 0]]),
        np.array([[0, 1, skip, none, 0]]),
        np.array([[0, 1, skip, skip, 0]]),
    )
    records = [
        {"step": i, "index": 0, "genotype": g.tolist(), "hash": genotype_lib.digest(space, g), "reward": 0.9 - 0.1 * i}
        for i, g in enumerate((blind, unused, seeing))
    ]
    derived = functools.partial(derive.candidates, space, num_rewarded=3)
    none_probable = np.zeros((0, 1, 5), np.int32)
    np.testing.assert_array_equal(derived(records, none_probable), [blind, unused, seeing])
    np.testing.assert_array_equal(derived(records, np.stack([blind, seeing]), is_propagating=True), [seeing])
    np.testing.assert_array_equal(derived(records[:2], blind[None], is_propagating=True), [blind, unused])


def test_derive_takes_the_best_distinct_and_keeps_the_winner() -> None:
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(0), 4)
    hashes = [genotype_lib.digest(SPACE, g) for g in genotypes]
    rewards = [(0, 0.2), (1, 0.5), (1, 0.4), (2, None), (3, 0.1)]
    records = [
        {"step": i, "index": 0, "genotype": genotypes[g].tolist(), "hash": hashes[g], "reward": r}
        for i, (g, r) in enumerate(rewards)
    ]
    # The same cell as the first, written otherwise.
    records.append({**records[1], "genotype": genotypes[2].tolist(), "hash": hashes[2], "same_as": hashes[1]})
    chosen = derive.candidates(SPACE, records, genotypes[[0, 3]], num_rewarded=2)
    np.testing.assert_array_equal(chosen, genotypes[[1, 0, 3]])
    idle = np.zeros_like(genotypes[0])  # reads nothing, however well it is rewarded
    idle[:, 2:4] = SPACE.operations.index("none")
    best = {**records[1], "genotype": idle.tolist(), "hash": genotype_lib.digest(SPACE, idle), "reward": 0.9}
    with_idle = derive.candidates(SPACE, [*records, best], np.stack([idle, *genotypes[[0, 3]]]), num_rewarded=2)
    np.testing.assert_array_equal(with_idle, chosen)
    np.testing.assert_array_equal(derive.candidates(SPACE, [best], idle[None], num_rewarded=2), idle[None])
    rescored = [{"reward": 0.3}, {"reward": None}, {"reward": 0.6}]
    alone = {hashes[1]: 0.9, hashes[3]: 0.8}
    winner, params, record = derive.choose(
        chosen,
        rescored,
        num_retrain=2,
        retrain=lambda g: (genotype_lib.digest(SPACE, g), {"reward": alone[genotype_lib.digest(SPACE, g)]}),
        name=functools.partial(genotype_lib.digest, SPACE),
    )
    np.testing.assert_array_equal(winner, genotypes[1])
    assert params == hashes[1] and record == {"reward": 0.9, "shared_reward": 0.3}


def test_what_is_one_cell_when_it_is_trained_is_trained_once_and_others_take_its_place() -> None:
    genotypes = np.arange(4)
    trained = []

    def retrain(genotype):
        trained.append(int(genotype))
        return "params", {"reward": 0.1 * int(genotype)}

    rescored = [{"reward": reward} for reward in (0.5, 0.4, 0.3, 0.2)]
    winner, _, record = derive.choose(
        genotypes, rescored, num_retrain=2, retrain=retrain, name=lambda genotype: "one" if genotype < 3 else "other"
    )
    assert trained == [0, 3] and winner == 3 and record["shared_reward"] == 0.2


# --- the jitted steps ---------------------------------------------------------------------------------------------


def test_the_shared_weights_of_one_genotype_learn_what_the_decoder_shows() -> None:
    _, step = make_steps()
    store = make_store()
    state = step.init(jax.random.key(0))
    conv = SPACE.operations.index("conv_1x1")
    genotype = np.array([[[2, 3, conv, conv, 1], [4, 2, conv, conv, 1]]], np.int32)
    losses = []
    for _ in range(150):
        state, metrics = step.train_shared(state, genotype, store, np.array([[0, 2, 3, 5]], np.int32))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.75 * losses[0]


def test_one_trace_for_200_genotypes() -> None:
    _, step = make_steps()
    store = make_store()
    state = step.init(jax.random.key(0))
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(0), 200)
    train_sizes, score_sizes = set(), set()
    for index, genotype in enumerate(genotypes):
        clips = np.random.default_rng(index).integers(0, 6, (1, 4), dtype=np.int32)
        state, _ = step.train_shared(state, genotype[None], store, clips)
        train_sizes.add(step.train_shared._cache_size())
    for start in range(0, 200, 2):
        scores = score(step, state.params, genotypes[start : start + 2], (0, 1, 2, 3), (4, 5, -1, -1))
        assert scores.counts.sum(axis=(1, 2)).tolist() == [6 * 15 * 24] * 2
        assert scores.is_finite.all()
        score_sizes.add(step.evaluate_shared._cache_size())
    assert len(train_sizes) == len(score_sizes) == 1  # what the first call compiled, all others run
    assert int(state.step) == 200


def test_train_shared_is_one_optimizer_step_on_the_mean_gradient() -> None:
    supernet, step = make_steps()
    config = config_lib.defaults().search
    store = make_store()
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(3), 1)
    clips = np.array([[0, 2, 3, 5]], np.int32)
    state = step.init(jax.random.key(1))
    before = jax.device_get(state.params)
    new, metrics = step.train_shared(state, genotypes, store, clips)

    def loss_fn(params: types.Params) -> jax.Array:
        features, labels = feature_store.take(store, clips[0])
        logits = supernet.unroll(params, genotypes[0], features)
        targets = labels[:, :, 2::4, 2::4]
        logp = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(logp, jnp.where(targets == 255, 0, targets)[..., None].astype(int), -1)[..., 0]
        return -jnp.where(targets == 255, 0, picked).sum() / (targets != 255).sum()

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(before)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    optimizer = optim.make(config, is_constant=True)

    @jax.jit
    def descend(params: types.Params, grads: types.Params) -> types.Params:
        return optax.apply_updates(params, optimizer.update(grads, optimizer.init(params), params)[0])

    expected = descend(before, grads)
    # Adam's first step is the sign of the gradient: compare where it is not zero within rounding.
    for value, want, grad in zip(
        jax.tree.leaves(new.params), jax.tree.leaves(expected), jax.tree.leaves(grads), strict=True
    ):
        clear = np.abs(grad) > 1e-4
        np.testing.assert_allclose(np.asarray(value)[clear], np.asarray(want)[clear], atol=2e-5)


def test_a_diverging_genotype_does_not_poison_the_shared_weights() -> None:
    _, step = make_steps()
    store = make_store()
    state = step.init(jax.random.key(0))
    broken = jax.tree.map(np.array, state.params)
    broken["layers"]["a"]["conv_1x1"]["kernel"][0] = np.nan
    index = SPACE.operations.index("conv_1x1")
    bad = np.array([[2, 3, index, 1, 0], [4, 0, 1, 1, 0]], np.int32)
    good = np.array([[2, 3, 1, 1, 0], [4, 0, 1, 1, 0]], np.int32)
    clips = np.array([[0, 1, 2, 3]], np.int32)
    scores = score(step, broken, np.stack([bad, good]), (0, 1, 2, 3))
    assert scores.is_finite.tolist() == [False, True]
    poisoned = dataclasses.replace(state, params=jax.device_put(broken))
    head = np.asarray(broken["ports"]["head"]["kernel"])
    new, metrics = step.train_shared(poisoned, bad[None], store, clips)
    assert float(metrics["share_finite"]) == 0.0
    np.testing.assert_allclose(np.asarray(new.params["ports"]["head"]["kernel"]), head, atol=1e-6)


def test_evaluation_of_a_cell_equals_that_of_the_supernet() -> None:
    _, step = make_steps()
    store = make_store()
    params = step.init(jax.random.key(2)).params
    genotype = genotype_lib.random(SPACE, np.random.default_rng(5), 1)
    clips = np.array([[0, 1, 2, 3], [4, 5, 0, 1]], np.int32)
    shared = score(step, params, genotype, *map(tuple, clips))
    cell = cell_lib.make(SPACE, genotype[0], SETTINGS)
    cut = cell_lib.gather_params(SPACE, genotype[0], params)
    alone = clip_scores.make_count(cell.unroll)(cut, store, clips)
    np.testing.assert_array_equal(shared.counts, alone.counts)
    np.testing.assert_array_equal(shared.flicker, alone.flicker)


def test_what_fills_up_a_batch_is_normalised_with_it_and_counted_nowhere() -> None:
    """The counts of clips are those of the whole batches that they are in, whichever clips of these count."""
    _, step = make_steps()
    rng = np.random.default_rng(0)  # weights that matter: the head starts at zero
    start = jax.device_get(step.init(jax.random.key(0)).params)
    params = jax.tree.map(lambda x: x + (0.3 * rng.normal(size=x.shape)).astype(x.dtype), start)
    conv = SPACE.operations.index("conv_1x1")
    genotype = np.array([[[2, 3, conv, conv, 0], [4, 2, conv, conv, 0]]], np.int32)

    def counts(*batch: int) -> np.ndarray:
        scores = score(step, params, genotype, batch)
        return np.append(scores.counts[0].ravel(), scores.flicker[0])

    whole = counts(0, 1, 2, 3)
    np.testing.assert_array_equal(counts(0, 1, ~2, ~3) + counts(~0, ~1, 2, 3), whole)
    np.testing.assert_array_equal(counts(0, ~1, ~2, ~3) + counts(~0, 1, 2, 3), whole)
    assert not counts(~0, ~1, ~2, ~3).any()
    # Copies of one clip in their place would change the result.
    assert (counts(0, 1, ~0, ~0) != counts(0, 1, ~2, ~3)).any()


def test_every_batch_of_a_score_holds_different_clips() -> None:
    for num, reward_clips, batch_size, parts in ((37, 32, 8, 1), (37, 24, 4, 2), (5, 32, 8, 1), (7, 4, 4, 4)):
        words = {"reward_clips": reward_clips, "batch_size": batch_size, "batch_parts": parts}
        section = config_lib.load(None, {f"search.{key}": str(value) for key, value in words.items()}).search
        groups = clip_scores.batches(num, section)
        assert sorted(groups[groups >= 0].tolist()) == list(range(num))
        reward = clip_scores.batches(min(reward_clips, num), section)
        assert groups.shape[1:] == reward.shape[1:] and len(reward) == 1  # one compiled program
        for batch in feature_store.number(groups).reshape(-1, groups.shape[-1]):
            assert len(set(batch.tolist())) == len(batch) and batch.max() < num
    with pytest.raises(errors.UserError, match="at most the number of scored clips"):
        clip_scores.batches(3, section)


def test_in_propagate_mode_every_age_counts_alike() -> None:
    """Interval 3, six frames: counted are frames 0 to 2, flicker also from 2 to 3. Each frame has its own class."""
    labels = np.zeros((1, 6, 8, 8), np.uint8)
    labels[0, 1, :, :2] = types.IGNORE
    store = types.FeatureStore(
        features=types.Features(maps={}, logits=jnp.zeros((1, 6, 2, 2, 4), jnp.bfloat16)), labels=jnp.asarray(labels)
    )
    shown = jnp.array([0, 1, 2, 3, 3, 3])

    def unroll(params: types.Params, frames: types.Features) -> jax.Array:
        return jnp.broadcast_to(jax.nn.one_hot(shown, 4)[:, None, None, None], frames.logits.shape)

    clips = np.array([[0]], np.int32)
    found = clip_scores.make_count(unroll, 3)({}, store, clips)
    assert np.asarray(found.counts)[0, 0].tolist() == [64, 48, 64, 0] and np.asarray(found.counts).sum() == 176
    assert np.asarray(found.flicker).tolist() == [[48 + 48 + 64, 48 + 48 + 64]]
    found = clip_scores.make_count(unroll)({}, store, clips)  # refine: the target, and the change before it
    assert np.asarray(found.counts)[0, 0].tolist() == [0, 0, 0, 64] and np.asarray(found.flicker).tolist() == [[0, 64]]


FOUR_DEVICES = """
import sys, jax, numpy as np
sys.path[:0] = [{root!r}, {tests!r}]
import test_search as t
assert jax.device_count() == 4
supernet, step = t.make_steps()
store = t.mesh.replicate(t.mesh.make(), t.make_store())
genotypes = t.genotype_lib.random(t.SPACE, np.random.default_rng(1), 4)
clips = np.random.default_rng(2).integers(0, 6, (4, 2), dtype=np.int32)
state, metrics = step.train_shared(step.init(jax.random.key(0)), genotypes, store, clips)
batches = np.arange(6, dtype=np.int32).reshape(3, 2)
scores = step.evaluate_shared(step.init(jax.random.key(0)).params, genotypes, store, batches)
np.savez({out!r}, loss=metrics["loss"], norm=metrics["gradient_norm"], counts=scores.counts)
text = step.train_shared.lower(step.init(jax.random.key(0)), genotypes, store, clips).compile().as_text()
print("all-reduce", text.count(" all-reduce(") + text.count(" all-reduce-start("))
"""


@pytest.mark.slow
def test_four_devices_give_what_one_gives(tmp_path: pathlib.Path) -> None:
    tests = pathlib.Path(__file__).parent
    out = tmp_path / "four.npz"
    script = FOUR_DEVICES.format(root=str(tests.parent), tests=str(tests), out=str(out))
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    _, step = make_steps()
    store = make_store()
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(1), 4)
    clips = np.random.default_rng(2).integers(0, 6, (4, 2), dtype=np.int32)
    _, metrics = step.train_shared(step.init(jax.random.key(0)), genotypes, store, clips)
    scores = step.evaluate_shared(
        step.init(jax.random.key(0)).params, genotypes, store, np.arange(6, dtype=np.int32).reshape(3, 2)
    )
    four = np.load(out)
    assert float(metrics["loss"]) == pytest.approx(float(four["loss"]), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(four["norm"]), rel=1e-4)
    np.testing.assert_array_equal(scores.counts, four["counts"])


def test_loss_ignores_unlabelled_pixels_and_means_over_the_rest() -> None:
    logits = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0, 1].set(2.0)
    labels = jnp.array([[[1, 255], [255, 0]]], jnp.uint8)
    loss, count = losses.cross_entropy(logits, labels)
    expected = (-(2 - np.log(np.exp(2) + 2)) + np.log(3)) / 2
    assert float(count) == 2 and float(loss) == pytest.approx(expected, rel=1e-5)
    nothing, count = losses.cross_entropy(logits, jnp.full((1, 2, 2), 255, jnp.uint8))
    assert float(nothing) == 0 and float(count) == 0


def test_schedules_start_at_zero_and_end_at_zero() -> None:
    section = config_lib.defaults().train
    for name in ("cosine", "polynomial"):
        section.schedule = name
        rate = optim.schedule(section)
        assert float(rate(0)) == 0 and float(rate(section.steps)) == pytest.approx(0, abs=1e-7)
        assert float(rate(section.warmup_steps)) == pytest.approx(section.learning_rate)


@pytest.mark.slow
def test_a_supernet_step_costs_at_most_three_static_steps() -> None:
    """The bar of the design, in one process on 20 genotypes, compile time apart."""
    found = cell_speed.run(num_genotypes=20, repeats=3)
    assert found["traces"] == 1
    assert found["ratio"] <= 3.0, found


def test_in_propagate_mode_a_cell_pays_for_the_encoder_stages_that_it_reads() -> None:
    config = config_lib.defaults()
    config.space.update({"mode": "propagate", "inputs": ("prev_state", "stage1", "stage2")})
    space = genotype_lib.Space(inputs=config.space.inputs, num_layers=1, operations=("none", "skip"))
    settings = features.settings_of(config)
    net = static_net.make(config.net, settings.num_classes)
    size = config.data.height, config.data.width
    for inputs, ops, last in (([0, 2], [1, 1], "stage2"), ([0, 2], [1, 0], "image"), ([1, 0], [1, 1], "stage1")):
        genotype = np.array([[*inputs, *ops, 0]], np.int32)
        expected = static_net.num_macs(net, size, last)
        assert reward.encoder_macs(config, space, genotype) == expected
    config.space.mode = "refine"
    assert reward.encoder_macs(config, space, genotype) == 0
