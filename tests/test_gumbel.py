"""The strategy `gumbel`: the relaxed cell, the distribution of the choices, and their training by gradients."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.bench import search_speed
from dvsnas_jax.controller import strategies
from dvsnas_jax.controller.strategies import gumbel
from dvsnas_jax.core import compilation, errors, mesh, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import loop, pipeline, relaxed_steps, steps
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import relaxed as relaxed_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.space import supernet_gradient
from dvsnas_jax.studies import compare_strategies, table
from dvsnas_jax.train import features


def make_config():
    config = config_lib.defaults()
    config.compile_effort = "quick"
    config.space.inputs = ("prev_state", "decoder", "logits")
    config.space.operations = ("none", "skip", "conv_1x1", "max_pool_3x3")
    config.space.aggregations = ("sum", "gate")
    config.space.num_layers, config.space.channels = 2, 8
    config.net.decoder_channels = 12
    config.data.num_frames = 2
    config.controller.logits_rate = 0.2
    config.search.update(
        {
            "strategy": "gumbel", "steps": 40, "genotypes_per_step": 2, "relaxed_steps": 2, "warmup_steps": 0,
            "learning_rate": 0.01, "batch_size": 4, "reward_clips": 4, "num_random": 0, "checkpoint_every": 10,
        }
    )  # fmt: skip
    config_lib.validate(config)
    return config


CONFIG = make_config()
SPACE, SETTINGS = features.space_of(CONFIG), features.settings_of(CONFIG)
TINY = genotype_lib.Space(
    inputs=("prev_state", "decoder"), num_layers=2, operations=("skip", "conv_1x1", "none"), aggregations=("sum",)
)
FULL = np.ones(3, bool)


def make_features(seed: int, num: int = 2) -> types.Features:
    rng = np.random.default_rng(seed)

    def draw(channels: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(num, 2, 4, 6, channels)), jnp.float32)

    maps = {name: draw(SETTINGS.feature_channels[name]) for name in ("decoder", "image")}
    return types.Features(maps=maps, logits=draw(SETTINGS.num_classes))


def make_store(num_clips: int, seed: int) -> types.FeatureStore:
    """The label of a place is the strongest of the decoder's first channels: a cell has to read `decoder`."""
    found = make_features(seed, num_clips)
    labels = np.asarray(found.maps["decoder"][..., : SETTINGS.num_classes]).argmax(axis=-1).astype(np.uint8)
    labels = labels.repeat(4, axis=2).repeat(4, axis=3)
    kept = jax.tree.map(lambda x: x.astype(jnp.bfloat16), found)
    return types.FeatureStore(features=kept, labels=jnp.asarray(labels))


# --- the relaxed cell ---------------------------------------------------------------------------------------------


def check_equal(space: genotype_lib.Space, settings, tolerance: float) -> None:
    """With the weights of a genotype: logits and gradient of the supernet."""
    supernet, relaxed = supernet_lib.make(space, settings), relaxed_lib.make(space, settings)
    rng, start = np.random.default_rng(1), jax.device_get(compilation.jit_once(supernet.init)(jax.random.key(0)))
    params = jax.tree.map(lambda x: (x + 0.2 * rng.normal(size=x.shape)).astype(x.dtype), start)
    inputs = jax.tree.map(lambda x: x.swapaxes(0, 1), make_features(2))
    if jax.config.jax_enable_x64:
        params, inputs = jax.tree.map(lambda x: x.astype(np.float64), (params, inputs))

    def scored(unroll_fn):
        def loss_fn(params, choice):
            logits = unroll_fn(params, choice, inputs)
            return (jnp.cos(jnp.arange(logits.size)).reshape(logits.shape) * jnp.tanh(logits)).mean(), logits

        return compilation.jit(jax.value_and_grad(loss_fn, has_aux=True))

    with compilation.effort("quick"):
        plain, mixed = scored(supernet.unroll), scored(relaxed.unroll)
    for genotype in genotype_lib.random(space, np.random.default_rng(0), 10):
        (_, expected), expected_grads = plain(params, genotype)
        (_, logits), grads = mixed(params, relaxed_lib.one_hot(space, genotype))
        np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=0), grads, expected_grads)


def test_one_hot_weights_are_the_supernet() -> None:
    check_equal(SPACE, SETTINGS, 1e-4)  # offsets amplify rounding


@pytest.mark.slow
def test_one_hot_weights_are_the_supernet_with_the_whole_vocabulary() -> None:
    with jax.enable_x64(True):  # of so many operations rounding adds up to the tolerance
        check_equal(genotype_lib.Space(inputs=SPACE.inputs, num_layers=3), SETTINGS, 1e-4)


def test_loose_ends_are_weighed_by_the_chance_that_nothing_reads_them() -> None:
    weights = np.zeros((2, 5, relaxed_lib.num_tokens(SPACE)), np.float32)
    weights[1, 0, 3], weights[1, 1, 3] = 0.25, 0.6  # the two inputs of layer 1 from layer 0
    found = relaxed_lib.loose_end_weights(SPACE, jnp.asarray(weights))
    np.testing.assert_allclose(found, [0.3 / 1.3, 1 / 1.3], rtol=1e-6)
    for genotype in genotype_lib.random(SPACE, np.random.default_rng(0), 10):
        expected = supernet_gradient.loose_end_weights(SPACE, genotype)
        np.testing.assert_array_equal(
            relaxed_lib.loose_end_weights(SPACE, relaxed_lib.one_hot(SPACE, genotype)), expected
        )
    alone = genotype_lib.Space(inputs=SPACE.inputs, num_layers=1)
    assert relaxed_lib.loose_end_weights(alone, jnp.zeros((1, 5, 13))).tolist() == [1]


# --- the distribution ---------------------------------------------------------------------------------------------


def controller(**changes):
    config = config_lib.defaults().controller
    config.update({"clip_norm": 1e9, **changes})
    return config


@jax.jit
def entropy_of(logits: jax.Array) -> jax.Array:
    return gumbel.entropy_of(TINY, logits, FULL)


@functools.cache
def some_logits() -> jax.Array:
    return jax.random.normal(jax.random.key(5), (2, 5, 3))


def test_draws_follow_the_logits_and_say_their_probability() -> None:
    choices, mask = gumbel.make(TINY, controller()), np.array([True, False, True])
    samples = jax.jit(choices.sample, static_argnames="num")(some_logits(), jax.random.key(0), mask, num=8000)
    rows = np.asarray(samples.genotypes)
    for row in rows[:20]:
        genotype_lib.validate(TINY, row)
    assert rows[:, 1, :2].max() == 2 and not (rows[..., 2:4] == 1).any()
    expected_entropy, expected_log_prob = 0.0, np.zeros(8000)
    for layer, limits in enumerate(TINY.limits()):
        for field, limit in enumerate(limits):
            logits = np.asarray(some_logits()[layer, field, :limit], np.float64)
            odds = np.exp(logits) * (mask if field in (2, 3) else 1)
            probability = odds / odds.sum()
            share = np.bincount(rows[:, layer, field], minlength=limit) / 8000
            assert np.all(np.abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 8000))
            expected_log_prob += np.log(probability[rows[:, layer, field]])
            expected_entropy -= sum(p * np.log(p) for p in probability if p > 0)
    np.testing.assert_allclose(samples.log_prob, expected_log_prob, rtol=1e-4)
    np.testing.assert_allclose(samples.entropy, expected_entropy, rtol=1e-5)


def test_the_most_probable_genotypes_are_found() -> None:
    strategy = strategies.make("gumbel", TINY, controller())
    state = strategy.init(jax.random.key(0)).replace(params=2 * some_logits())
    limits = [np.arange(limit) for limit in TINY.limits().ravel()]
    rows = np.stack(np.meshgrid(*limits, indexing="ij"), axis=-1).reshape(-1, 2, 5).astype(np.int32)
    log_prob = np.asarray(jax.jit(gumbel.make(TINY, controller()).score)(state.params, rows, FULL)[0])
    assert np.exp(log_prob).sum() == pytest.approx(1, rel=1e-4)
    order = np.argsort(-log_prob)
    np.testing.assert_array_equal(strategy.probable(state, jax.random.key(4), 3), rows[order[:3]])


def test_relaxed_draws_go_from_all_tokens_to_one() -> None:
    choices, mask = gumbel.make(TINY, controller()), np.array([True, False, True])
    hard = gumbel.make(TINY, controller(straight_through=True))
    noise = jax.random.gumbel(jax.random.key(0), (2, 5, 3))
    relax = jax.jit(choices.relax)
    warm, cold = (np.asarray(relax(some_logits(), noise, mask, temperature)) for temperature in (5.0, 0.01))
    sums = np.asarray(some_logits()) + np.asarray(noise)
    drawn = np.where(gumbel.allowed_tokens(TINY, mask), sums, -np.inf).argmax(axis=-1)
    for weights in (warm, cold):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
        assert not weights[:, 2:4, 1].any()  # masked
        assert not weights[0, :2, 2].any() and not weights[:, 4, 1:].any()  # there are no such
    assert warm[1, :2].max() < 0.8
    np.testing.assert_allclose(cold, np.eye(3)[drawn], atol=1e-3)
    straight = jax.jit(hard.relax)(some_logits(), noise, mask, 5.0)
    np.testing.assert_array_equal(straight, np.eye(3)[drawn])
    factors = jax.random.normal(jax.random.key(2), (2, 5, 3))
    soft_gradient, hard_gradient = (
        jax.jit(jax.grad(lambda logits, made=made: (made.relax(logits, noise, mask, 5.0) * factors).sum()))(
            some_logits()
        )
        for made in (choices, hard)
    )
    np.testing.assert_allclose(soft_gradient, hard_gradient, atol=1e-6)
    assert np.abs(soft_gradient).max() > 0.01


def test_the_temperature_falls_exponentially() -> None:
    config = controller(temperature_start=1.0, temperature_end=0.01)
    assert [gumbel.temperature(config, x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.1, 0.01])


@pytest.mark.parametrize("is_straight", [False, True])
def test_a_loss_that_prefers_a_token_makes_it_probable_and_leaves_the_others_alone(is_straight: bool) -> None:
    """The loss is the weight of all but `conv_1x1` in one slot; temperature 0.2."""
    choices = gumbel.make(TINY, controller(straight_through=is_straight, logits_rate=0.1))

    @jax.jit
    def step(state, rng):
        noise = jax.random.gumbel(rng, state.params.shape)
        gradient = jax.grad(lambda logits: -choices.relax(logits, noise, FULL, 0.2)[1, 2, 1])(state.params)
        return choices.descend(state, gradient, FULL)

    start = state = choices.init(jax.random.key(0))
    for index in range(150):
        state, metrics = step(state, jax.random.key(index))
    probability = jax.nn.softmax(gumbel.masked_logits(TINY, state.params, FULL))
    assert probability[1, 2, 1] > 0.9
    np.testing.assert_allclose(probability[1, 3], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(probability[0, 0], [0.5, 0.5, 0], rtol=1e-5)
    assert int(state.num_updates) == 150
    assert metrics["choice_entropy"] < entropy_of(start.params) - 0.5


def test_an_entropy_bonus_spreads_the_choices() -> None:
    choices = gumbel.make(TINY, controller(entropy=0.1))
    state = choices.init(jax.random.key(0)).replace(params=some_logits())
    new, _ = jax.jit(choices.descend)(state, np.zeros((2, 5, 3), np.float32), FULL)
    before, after = (float(entropy_of(each.params)) for each in (state, new))
    assert after > before + 0.05


# --- the training and the search ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts() -> pipeline.Parts:
    devices = mesh.make()
    with compilation.effort("quick"):
        strategy = strategies.make("gumbel", SPACE, CONFIG.controller)
        made = steps.make(supernet_lib.make(SPACE, SETTINGS), CONFIG.search, devices)
        trainer = relaxed_steps.make(CONFIG, SPACE, devices, mesh.REPLICATED)
    stores = [mesh.replicate(devices, make_store(num, seed)) for num, seed in ((24, 0), (8, 1))]
    return pipeline.Parts(CONFIG, SPACE, devices, made, strategy, *stores, relaxed=trainer)


def play(parts: pipeline.Parts, path: pathlib.Path, stop=None) -> tuple[loop.LoopState, workdir.Workdir]:
    folder = workdir.Workdir(path)
    path.mkdir(exist_ok=True)
    return pipeline.run_search(parts, folder, stop or signals.StopFlag()), folder


@pytest.fixture(scope="module")
def searched(parts, tmp_path_factory) -> tuple[loop.LoopState, workdir.Workdir]:
    return play(parts, tmp_path_factory.mktemp("gumbel"))


def test_a_search_learns_what_to_read(parts, searched) -> None:
    state, folder = searched
    lines = folder.read(loop.LOG)
    assert [(line["step"], line["index"]) for line in lines[:80]] == [(s, i) for s in range(40) for i in range(2)]
    assert {line["source"] for line in lines} == {"gumbel"} and len(lines) == 80
    drawn = genotype_lib.random(SPACE, np.random.default_rng(0), 8, op_mask=parts.strategy.op_mask)
    uniform = [record["reward"] for record in pipeline.score(parts, state.shared.params, drawn, 4)]
    late = [line["reward"] for line in lines[60:]]
    assert np.mean(late) > 1.5 * np.mean(uniform)
    probability = jax.nn.softmax(gumbel.masked_logits(SPACE, state.strategy.params, parts.strategy.op_mask))
    best = parts.strategy.probable(state.strategy, jax.random.key(0), 1)[0]
    reads = {name for name, layer, _ in genotype_lib.edges(SPACE, best)}
    assert "decoder" in reads and float(probability.max(axis=-1).mean()) > 0.8
    # One program for all steps; 2 relaxed steps an iteration, each as dear as 10/3 of the 8 ordinary ones.
    assert parts.relaxed.step._cache_size() == 1 and int(state.strategy.num_updates) == int(state.shared.step) == 80
    metrics = [line for line in folder.read("metrics.jsonl") if line["stage"] == loop.STAGE]
    assert [metrics[index]["temperature"] for index in (0, -1)] == pytest.approx([1.0, 0.1])
    assert metrics[0]["relaxed_work"] == pytest.approx(2 * 10 / 3 / 8) and metrics[-1]["share_finite"] == 1
    assert metrics[-1]["choice_entropy"] < 0.5 * metrics[0]["choice_entropy"]
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


def test_a_stopped_search_goes_on_to_the_same_end(parts, searched, tmp_path) -> None:
    class StopAt(signals.StopFlag):
        def is_due(self, step: int) -> bool:
            return step == 23

    with pytest.raises(errors.Stopped):
        play(parts, tmp_path, StopAt())
    resumed, folder = play(parts, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, searched[0])
    assert (tmp_path / loop.LOG).read_bytes() == (searched[1].path / loop.LOG).read_bytes()


def test_masks_and_warm_up_are_data(parts) -> None:
    """Neither compiles anything; what is masked gets no gradient, and before the warm-up ends the choices rest."""
    masked = parts.strategy.with_mask(np.array([True, True, False, True]))
    shared = parts.steps.init(jax.random.key(3))
    moved = jax.tree.map(lambda x: x + 0.1, shared.params)
    config = CONFIG.copy_and_resolve_references()
    config.search.controller_warmup = 1
    state = loop.LoopState(strategy=masked.init(jax.random.key(0)), shared=dataclasses.replace(shared, params=moved))
    before = jax.tree.map(np.asarray, state)
    for step in range(2):
        state, _ = relaxed_steps.train(parts.relaxed, config, masked, parts.train_store, state, step)
        assert int(state.strategy.num_updates) == 2 * step
    logits = np.asarray(state.strategy.params)
    assert not logits[:, 2:4, 2].any() and np.abs(logits[:, 2:4, 1]).min() > 0
    assert parts.relaxed.step._cache_size() == 1
    kernel = before.shared.params["layers"]["a"]["conv_1x1"]["kernel"]
    # What remains is the decay of the weights.
    np.testing.assert_allclose(state.shared.params["layers"]["a"]["conv_1x1"]["kernel"], kernel, atol=1e-5)
    gate = [x["layers"]["agg"]["gate"]["kernel"] for x in (before.shared.params, state.shared.params)]
    assert np.abs(gate[0] - gate[1]).max() > 1e-3
    rows = np.asarray(masked.sample(state.strategy, jax.random.key(1), 200).genotypes)
    assert not (rows[..., 2:4] == 2).any()


def test_a_relaxed_iteration_costs_what_an_ordinary_one_costs() -> None:
    section = config_lib.defaults().search
    whole = genotype_lib.Space(inputs=SPACE.inputs, num_layers=4)
    assert relaxed_lib.num_branches(whole) == 4 * (2 * 13 + 7)
    assert relaxed_steps.branch_ratio(whole) == pytest.approx(33 / 3)
    section.shared_steps = 33
    assert relaxed_steps.steps_per_iteration(section, whole) == 3
    section.shared_steps = 1
    assert relaxed_steps.steps_per_iteration(section, whole) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "scratch"}, "set search.mode to 'share', it is 'scratch'"),
        # 2 layers of 10 branches, 4 clips of 2 frames, 24 x 32 places, 8 channels
        ({"relaxed_limit": 0.9}, "computes all 20 branches of the space, 0.983 million values, more than .*0.9"),
    ],
)
def test_what_it_cannot_do_is_told_in_one_line(changes, message) -> None:
    config = CONFIG.copy_and_resolve_references()
    made = {name: strategies.make(name, SPACE, config.controller) for name in ("gumbel", "random")}
    relaxed_steps.check(config, SPACE, made["gumbel"])
    config.search.update(changes)
    relaxed_steps.check(config, SPACE, made["random"])
    with pytest.raises(errors.UserError, match=message) as error:
        relaxed_steps.check(config, SPACE, made["gumbel"])
    assert "\n" not in str(error.value)


def test_a_table_has_no_gradients() -> None:
    with pytest.raises(errors.UserError, match="gumbel learns from gradients, a replay has rewards only"):
        compare_strategies.on_table(
            table.load(table.PACKAGED), ("random", "gumbel"), compare_strategies.Options(num_runs=1)
        )


def test_the_benchmark_of_ordinary_steps_refuses_it() -> None:
    with pytest.raises(errors.UserError, match="does not measure relaxed steps"):
        search_speed.count(CONFIG)


MESH_CODE = """
import sys
sys.path.insert(0, "tests")
import dataclasses, jax, numpy as np
import test_gumbel as t
assert jax.device_count() == 4
found = []
config = t.CONFIG.copy_and_resolve_references()
config.search.update({"shared_genotypes": 3, "batch_parts": 2, "relaxed_steps": 1})
strategy = t.strategies.make("gumbel", t.SPACE, config.controller)
for devices in (jax.devices()[:1], jax.devices()):
    mesh = t.mesh.make(min(2, len(devices)), devices)
    with t.compilation.effort("quick"):
        made = t.steps.make(t.supernet_lib.make(t.SPACE, t.SETTINGS), config.search, mesh)
        trainer = t.relaxed_steps.make(config, t.SPACE, mesh, t.mesh.REPLICATED)
    shared = made.init(jax.random.key(0))
    shared = dataclasses.replace(shared, params=jax.tree.map(lambda x: x + 0.1, shared.params))
    state = t.loop.LoopState(strategy=strategy.init(jax.random.key(1)), shared=shared)
    store = t.mesh.replicate(mesh, t.make_store(24, 0))
    state, metrics = t.relaxed_steps.train(trainer, config, strategy, store, state, 0)
    strategy.sample(state.strategy, jax.random.key(0), 2)
    moment = np.asarray(state.strategy.opt_state[1][0].mu) / metrics["logits_gradient_norm"]
    found.append((metrics["loss"], metrics["gradient_norm"], metrics["logits_gradient_norm"], moment))
for one, many in zip(*found):
    np.testing.assert_allclose(many, one, rtol=1e-3, atol=1e-4)
assert np.abs(found[0][-1]).max() > 0.01
print("equal")
"""


def test_a_mesh_of_devices_computes_the_same() -> None:
    root = pathlib.Path(__file__).resolve().parents[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", MESH_CODE], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr
