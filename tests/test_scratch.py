"""Mode scratch: candidates trained alone, poor ones stopped, equal ones answered from the log, exact restarts."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, errors, mesh, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import loop, pipeline, scratch, shared_weights, steps
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import ablate_variants
from dvsnas_jax.train import clip_scores, features


def make_config():
    config = config_lib.defaults()
    config.compile_effort = "quick"
    config.space.inputs = ("decoder", "logits")
    config.space.operations, config.space.aggregations = ("none", "skip", "conv_1x1"), ("sum",)
    config.space.num_layers, config.space.channels = 1, 8
    config.net.decoder_channels = 12
    config.controller.update({"population": 3, "tournament": 2})
    config.search.update(
        {
            "mode": "scratch", "strategy": "evolution", "steps": 5, "genotypes_per_step": 3, "scratch_steps": 4,
            "learning_rate": 0.03, "batch_size": 2, "reward_clips": 4, "num_random": 2, "checkpoint_every": 2,
        }
    )  # fmt: skip
    config_lib.validate(config)
    return config


CONFIG = make_config()
SPACE, SETTINGS = features.space_of(CONFIG), features.settings_of(CONFIG)


def make_store(num_clips: int, seed: int) -> types.FeatureStore:
    """Random features of 4x4 cells; the label of a cell is the strongest of the decoder's first channels."""
    rng = np.random.default_rng(seed)

    def draw(channels: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(num_clips, 2, 4, 4, channels)), jnp.bfloat16)

    maps = {name: draw(SETTINGS.feature_channels[name]) for name in ("decoder", "image")}
    labels = np.asarray(maps["decoder"][..., : SETTINGS.num_classes], np.float32).argmax(axis=-1).astype(np.uint8)
    labels = labels.repeat(4, axis=2).repeat(4, axis=3)
    found = types.Features(maps=maps, logits=draw(SETTINGS.num_classes))
    return types.FeatureStore(features=found, labels=jnp.asarray(labels))


@pytest.fixture(scope="module")
def parts():
    devices = mesh.make()
    with compilation.effort("quick"):
        strategy = strategies.make("evolution", SPACE, CONFIG.controller)
        made = steps.make(supernet_lib.make(SPACE, SETTINGS), CONFIG.search, devices)
    stores = [mesh.replicate(devices, make_store(num, seed)) for num, seed in ((6, 0), (4, 1))]
    return pipeline.Parts(CONFIG, SPACE, devices, made, strategy, *stores)


# --- with functions in place of networks --------------------------------------------------------------------------


def play(rewards, floors, num_parts=2, num_workers=1):
    """Candidates whose reward after each part is given; the state is the parts done."""
    trained = []

    def train(state, genotype, part):
        assert len(state) == part
        trained.append((int(genotype[0, 0]), part))
        return (*state, part)

    def evaluate(state, genotype):
        value = rewards[int(genotype[0, 0])][len(state) - 1]
        return {"reward": value, "status": "diverged" if value is None else "ok"}

    genotypes = np.zeros((len(rewards), 1, 5), np.int32)
    genotypes[:, 0, 0] = np.arange(len(rewards))
    training = scratch.Training((), train, evaluate, num_parts, part_steps=2)
    records = scratch.score(genotypes, training, floors=floors, num_workers=num_workers)
    return records, trained


def test_poor_candidates_stop_and_keep_what_they_have():
    records, trained = play([(0.2, 0.9), (0.5, 0.6), (None, 0.7), (0.4, None), (0.3, 0.8)], [0.3])
    assert records == [
        {"reward": 0.2, "status": "stopped", "partial": [0.2], "optimizer_steps": 2},
        {"reward": 0.6, "status": "ok", "partial": [0.5], "optimizer_steps": 4},
        {"reward": None, "status": "diverged", "partial": [], "optimizer_steps": 2},
        {"reward": None, "status": "diverged", "partial": [0.4], "optimizer_steps": 4},
        {"reward": 0.8, "status": "ok", "partial": [0.3], "optimizer_steps": 4},  # not below
    ]
    assert trained == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1)]
    rewards, valid = loop.to_arrays(records)
    assert valid.tolist() == [True, True, False, False, True] and rewards[0] == np.float32(0.2)
    first, _ = play([(0.2, 0.9)], [None])  # nothing to compare with
    assert first[0]["status"] == "ok" and first[0]["reward"] == 0.9
    whole, trained = play([(0.2, 0.9)], None)
    assert whole == [{"reward": 0.9, "status": "ok", "partial": [], "optimizer_steps": 4}] and len(trained) == 2


def test_candidates_at_the_same_time_have_the_records_of_one_after_the_other():
    rewards = [(0.2, 0.9), (0.5, 0.6), (None, 0.7), (0.4, None), (0.3, 0.8)]
    one, trained = play(rewards, [0.3])
    several, together = play(rewards, [0.3], num_workers=3)
    assert several == one and sorted(together) == sorted(trained)
    meeting = threading.Barrier(2, timeout=30)  # passed by two at once, or never

    def train(state, genotype, part):
        meeting.wait()
        return state

    training = scratch.Training((), train, lambda state, genotype: {"reward": 0.5, "status": "ok"}, num_parts=1)
    scratch.score(np.zeros((4, 1, 5), np.int32), training, num_workers=2)


def test_as_many_at_the_same_time_as_there_are_cores(monkeypatch):
    section = CONFIG.copy_and_resolve_references().search
    monkeypatch.setattr(scratch.cores, "count", lambda: 6)
    assert scratch.num_workers(section) == 6
    section.scratch_workers = 2
    assert scratch.num_workers(section) == 2
    monkeypatch.setattr(scratch.jax, "device_count", lambda: 8)
    assert scratch.num_workers(section) == 1


def test_a_floor_is_the_mean_of_those_that_came_so_far():
    records = [{"partial": [0.2, 0.5]}, {"partial": [0.4]}, {"partial": []}, {}]
    assert scratch.floors_of(records, 3) == [pytest.approx(0.3), 0.5]
    assert scratch.floors_of([], 3) == [None, None] and scratch.floors_of(records, 1) == []


def test_equal_cells_are_answered_from_the_log(tmp_path):
    folder = workdir.Workdir(tmp_path)
    calls = []

    def score(genotypes, floors):
        calls.append((genotypes.tolist(), floors))
        return [{"reward": 0.1 * (1 + row), "status": "ok", "partial": [0.1 * row]} for row in range(len(genotypes))]

    def make(**changes):
        settings = {"num_parts": 2, "is_reusing": True, "part_steps": 3, **changes}
        return scratch.Answers(folder, loop.LOG, SPACE, **settings)

    a, b = [[0, 1, 1, 2, 0]], [[0, 1, 2, 2, 0]]
    swapped = [[1, 0, 2, 1, 0]]  # a with its branches exchanged: `sum` is symmetric
    rows, answers = np.array([a, b, a, swapped], np.int32), make()
    found = answers.evaluate(rows, score)
    assert calls == [([a, b], [None])]
    name = genotype_lib.digest(SPACE, np.array(a))
    answer = {**found[0], "same_as": name, "optimizer_steps": 0}
    assert found[2] == found[3] == answer and "same_as" not in found[1]
    assert answers.optimizer_steps == 2 * 6  # of an earlier version's records: two parts each
    for index, (row, record) in enumerate(zip(rows, found, strict=True)):
        folder.append(loop.LOG, {"step": 0, "index": index, **pipeline.describe(SPACE, "ppo", row), **record})
    for resumed in (answers, make()):  # the one that was there, and one that reads the log
        calls.clear()
        again = resumed.evaluate(np.array([swapped, [[0, 0, 1, 2, 0]]], np.int32), score)
        assert again[0] == found[2]
        assert calls == [([[[0, 0, 1, 2, 0]]], [pytest.approx(0.05)])]  # answers do not move the mean
    calls.clear()
    make(is_reusing=False).evaluate(rows, score)
    assert len(calls[0][0]) == 4


def test_what_a_stopped_candidate_is_expected_to_end_with(tmp_path):
    """The gain of those that were trained on, 0.2 and 0.4, later 0.6, on top of what it had."""
    records = [
        {"reward": 0.7, "status": "ok", "partial": [0.5]},
        {"reward": 0.3, "status": "stopped", "partial": [0.3]},
        {"reward": 0.8, "status": "ok", "partial": [0.4]},
        {"reward": None, "status": "diverged", "partial": [0.4]},
        {"reward": 0.9, "status": "ok", "partial": [0.3]},
        {"reward": 0.1, "status": "stopped", "partial": [0.1]},
    ]
    rows = genotype_lib.random(SPACE, np.random.default_rng(0), 6)
    answers = scratch.Answers(workdir.Workdir(tmp_path), loop.LOG, SPACE, num_parts=2, is_reusing=False, part_steps=3)
    first = answers.evaluate(rows[:4], lambda genotypes, floors: records[:4])
    assert [scratch.expected(record) for record in first] == [0.7, pytest.approx(0.6), 0.8, None]
    second = answers.evaluate(rows[4:], lambda genotypes, floors: records[4:])
    assert scratch.expected(second[1]) == pytest.approx(0.5) and answers.optimizer_steps == 4 * 6 + 2 * 3
    rewards, valid = loop.to_arrays(first, scratch.expected)
    np.testing.assert_allclose(rewards, [0.7, 0.6, 0.8, 0], rtol=1e-6)
    assert valid.tolist() == [True, True, True, False] and loop.to_arrays(first)[0][1] == np.float32(0.3)
    old = {"reward": 0.3, "status": "stopped", "partial": [0.3]}  # in the log of an earlier version
    assert not loop.to_arrays([old], scratch.expected)[1].any()


# --- with a network -----------------------------------------------------------------------------------------------


def share_close(a, b) -> float:
    """Of the weights of two trees that Adam moved; where a gradient is rounding alone, its sign is a matter of luck."""
    same = jax.tree.leaves(jax.tree.map(lambda x, y: np.isclose(x, y, atol=1e-3), a, b))
    return float(np.concatenate([leaf.ravel() for leaf in same]).mean())


def test_training_alone_is_what_training_shared_is_for_one_genotype(parts):
    params = parts.steps.init(jax.random.key(3)).params
    conv = SPACE.operations.index("conv_1x1")
    genotype, clips = np.array([[0, 1, conv, conv, 0]], np.int32), np.array([[0, 2], [4, 5]], np.int32)
    alone = parts.steps.train_alone(parts.steps.start_alone(params), genotype, parts.train_store, clips)
    shared = parts.steps.init(jax.random.key(3))
    trail = []
    for batch in clips:
        shared, _ = parts.steps.train_shared(shared, genotype[None], parts.train_store, batch[None])
        trail.append(jax.tree.map(np.asarray, shared.params))
    assert int(alone.step) == 2
    kernel = lambda tree: np.asarray(tree["ports"]["inputs"]["decoder"]["kernel"])  # noqa: E731
    assert np.abs(kernel(alone.params) - kernel(params)).max() > 0.01
    assert share_close(alone.params, trail[1]) > 0.98 > share_close(alone.params, trail[0])
    # The average of step 0 is the first weights alone; that of step 1 has a decay of 1 / 11.
    expected = jax.tree.map(lambda x, y: x / 11 + y * 10 / 11, trail[0], trail[1])
    assert share_close(alone.average, expected) > 0.98


def test_a_killed_search_ends_in_the_same_log_and_compiles_once(parts, tmp_path, monkeypatch):
    programs = parts.steps.train_alone, parts.steps.evaluate_shared
    before = [program._cache_size() for program in programs]
    whole, halves = workdir.Workdir(tmp_path / "whole"), workdir.Workdir(tmp_path / "halves")
    whole.claim(CONFIG)
    halves.claim(CONFIG)
    state = pipeline.run_search(parts, whole, signals.StopFlag())
    assert all(program._cache_size() <= size + 1 for program, size in zip(programs, before, strict=True))
    records = whole.read(loop.LOG)
    assert [(r["step"], r["index"]) for r in records] == [(s, i) for s in range(5) for i in range(3)] + [(5, 0), (5, 1)]
    searched = records[:15]
    assert {r["status"] for r in searched} == {"ok", "stopped"} and any("same_as" in r for r in searched)
    for record in searched:
        assert record["reward"] == record["partial"][0] or record["status"] == "ok"
        assert {"miou", "fwiou", "class_accuracy", "accuracy", "flicker", "macs", "hash", "genotype"} <= record.keys()
    trained = [r for r in searched if "same_as" not in r]
    for record in trained:
        earlier = [r["partial"][0] for r in trained if r["step"] < record["step"]]
        is_below = bool(earlier) and record["partial"][0] < np.mean(earlier)
        assert record["status"] == ("stopped" if is_below else "ok")
    # The same genotype scored again is the same number, wherever it stands.
    best = max(searched, key=lambda r: r["reward"])
    again = pipeline.score(parts, state.shared.params, np.array([best["genotype"]], np.int32), 4)
    assert again[0]["reward"] == best["reward"] and again[0]["partial"] == []
    anew = [pipeline.score(parts, state.shared.params, np.array([best["genotype"]]), 4, attempt=1) for _ in range(2)]
    assert anew[0] == anew[1] and anew[0][0]["reward"] != best["reward"]  # other weights and batches, but these
    metrics = [line for line in whole.read("metrics.jsonl") if line["stage"] == loop.STAGE]
    assert len(metrics) == 5 and all(line["seconds_per_candidate"] > 0 for line in metrics)
    costs = {"ok": 4, "stopped": 2}
    assert [r["optimizer_steps"] for r in searched] == [0 if "same_as" in r else costs[r["status"]] for r in searched]
    assert metrics[-1]["optimizer_steps"] == sum(record["optimizer_steps"] for record in searched)
    assert all(("expected" in r) == (r["status"] == "stopped") for r in searched)

    stop, calls, real_score = signals.StopFlag(), [], pipeline.score

    def score(*args, **kwargs):
        calls.append(1)
        stop.requested = len(calls) == 3
        return real_score(*args, **kwargs)

    monkeypatch.setattr(pipeline, "score", score)
    with pytest.raises(errors.Stopped):
        pipeline.run_search(parts, halves, stop)
    with (halves.path / loop.LOG).open("a") as log:
        log.write('{"step": 4, "index": 0, "reward": 9.0, "hash": "x", "genotype": []}\n{"step": 4, "ind')
    resumed = pipeline.run_search(parts, workdir.Workdir(halves.path), signals.StopFlag())
    assert (halves.path / loop.LOG).read_bytes() == (whole.path / loop.LOG).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_gains_are_over_a_baseline_on_the_clips_of_the_reward(parts):
    config = CONFIG.copy_and_resolve_references()
    config.search.reward = "gain"
    with compilation.effort("quick"):
        made = steps.make(supernet_lib.make(SPACE, SETTINGS), config.search, parts.mesh)
    made = parts.steps._replace(evaluate_shared=made.evaluate_shared)
    baseline = clip_scores.Baseline(lambda logits: logits, config.search, 0)
    own = parts._replace(
        config=config, steps=made, baseline=baseline, val_store=mesh.replicate(parts.mesh, make_store(6, 1))
    )
    params = parts.steps.init(jax.random.key(3)).params
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(1), 2)
    for record in pipeline.score(own, params, genotypes, 4, floors=[None]):  # four of six clips
        accuracy = clip_scores.accuracy(record)
        base = clip_scores.accuracy(pipeline.score_static(own._replace(val_store=first_clips(own.val_store, 4))))
        assert record["gain"] == pytest.approx((accuracy - base) / (1 - base))
        assert record["reward"] == clip_scores.reward(record, clip_scores.rule(config.search, base))
        assert len(record["partial"]) == 1
    plain = pipeline.score(own._replace(baseline=None), params, genotypes[:1], 4)[0]
    assert plain["reward"] == clip_scores.accuracy(plain) and "gain" not in plain


def first_clips(store: types.FeatureStore, num: int) -> types.FeatureStore:
    return jax.tree.map(lambda x: x[:num], store)


def test_strategies_on_a_budget_take_as_many_optimizer_steps(parts, tmp_path):
    """However many are stopped: within one iteration, of which every candidate takes 4 at most."""
    config, spent = CONFIG.copy_and_resolve_references(), {}
    config.search.reuse = "never"  # the space has few cells: a search would end at its limit of iterations
    for name in ("evolution", "random"):
        config.search.strategy = name
        own = parts._replace(config=config, strategy=strategies.make(name, SPACE, config.controller))
        folder = workdir.Workdir(tmp_path / name)
        folder.path.mkdir()
        pipeline.run_search(own, folder, signals.StopFlag(), 5 * 3 * 4)
        log = folder.read(loop.LOG)
        spent[name] = sum(record["optimizer_steps"] for record in log)
        assert len(log) > 5 * 3 and {record["source"] for record in log} == {name}
    assert all(60 <= number < 60 + 3 * 4 for number in spent.values()), spent


def test_the_random_line_has_weights_that_no_strategy_has_touched(parts, tmp_path):
    """In mode share: after a warm-up as long as the search, the same whatever was searched, and after a restart."""
    config, lines = CONFIG.copy_and_resolve_references(), []
    config.search.update({"mode": "share", "steps": 2, "shared_steps": 3, "warmup_steps": 2, "num_random": 3})
    for name in ("evolution", "random", "random"):
        config.search.strategy = name
        own = parts._replace(config=config, strategy=strategies.make(name, SPACE, config.controller))
        folder = workdir.Workdir(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        state = pipeline.run_search(own, folder, signals.StopFlag())
        log = folder.read(loop.LOG)
        lines.append([record for record in log if record["step"] == 2])
        assert len(log) == 2 * 3 + 3 and len(lines[-1]) == 3
        metrics = [line for line in folder.read("metrics.jsonl") if line["stage"] == loop.STAGE]
        assert [line["optimizer_steps"] for line in metrics] == [5, 8]
    assert lines[0] == lines[1] == lines[2]
    weights = shared_weights.start(own)
    for step in range(2 + 2 * 3):
        genotypes = shared_weights.uniform(own, np.random.default_rng((config.seed, 3, step)), 1)
        clips = np.random.default_rng((config.seed, 3, step, 1)).integers(0, 6, (1, 2), dtype=np.int32)
        weights, _ = shared_weights.train(own, weights, (genotypes, clips))
    drawn = np.asarray([record["genotype"] for record in lines[0]], np.int32)
    expected = [record["reward"] for record in pipeline.score(own, weights.params, drawn, 4)]
    assert [record["reward"] for record in lines[0]] == expected
    assert expected != [record["reward"] for record in pipeline.score(own, state.shared.params, drawn, 4)]


def test_clips_are_dealt_into_other_batches_of_their_own_parts():
    config = CONFIG.copy_and_resolve_references()
    config.search.update({"batch_size": 4, "batch_parts": 2})
    clips = clip_scores.batches(10, config.search)
    assert (clips < 0).any()  # it is filled up
    dealt = pipeline._deal(clips, config, 1)
    np.testing.assert_array_equal(pipeline._deal(clips, config, 0), clips)
    assert (dealt != clips).any() and ((dealt < 0) == (clips < 0)).all()
    assert sorted(dealt[dealt >= 0]) == list(range(10))
    index, own = (np.where(x < 0, ~x, x) for x in (dealt, clips))
    np.testing.assert_array_equal(index % 2, own % 2)
    assert all(len(set(batch)) == 4 for batch in index.reshape(-1, 4).tolist())


def test_the_strategy_learns_after_its_warm_up(parts, tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.search.update({"steps": 3, "controller_warmup": 2, "num_random": 0})
    state = pipeline.run_search(parts._replace(config=config), workdir.Workdir(tmp_path), signals.StopFlag())
    assert int(state.strategy.num_added) == 3  # those of the last of three steps


def test_an_ablation_trains_each_variant_as_the_search_did(parts, tmp_path, monkeypatch):
    folder, needs_training_clips = workdir.Workdir(tmp_path), []
    folder.claim(CONFIG)
    pipeline.run_search(parts, folder, signals.StopFlag())
    best = max(folder.read(loop.LOG), key=lambda record: record["reward"])
    assert best["status"] == "ok"

    def assemble(*_, is_training):
        needs_training_clips.append(is_training)
        return parts

    monkeypatch.setattr(ablate_variants, "assemble", assemble)
    records = ablate_variants.replace(CONFIG, folder, signals.StopFlag(), np.array(best["genotype"], np.int32), [])
    assert needs_training_clips == [True]
    assert [record["reward"] for record in records] == [best["reward"]]  # the four clips are all there are


def test_parts_must_divide_the_steps():
    config = CONFIG.copy_and_resolve_references()
    config.search.scratch_parts = 3
    with pytest.raises(errors.UserError, match="'search.scratch_parts': must divide search.scratch_steps .4., got 3"):
        config_lib.validate(config)
