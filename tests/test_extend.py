"""A member of each kind that can be added, added at run time: one record in one table, and everything knows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.controller import strategies, strategy
from dvsnas_jax.core import compilation, errors, mesh, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import loop, pipeline, steps
from dvsnas_jax.space import canonical, cell_frame, cost, operation_cost, operations, schedule
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.space.drawing import draw
from dvsnas_jax.train import features

# --- operations and aggregations ----------------------------------------------------------------------------------


def scale(params: types.Params, x: jax.Array, scope: operations.CellScope) -> jax.Array:
    """Every channel times a weight: `{weight [C]}`."""
    return x * params["weight"].astype(x.dtype)[None, None, None]


SCALE = operations.Operation(
    init=lambda rng, channels, scope: {"weight": jnp.ones((channels,))},
    apply=scale,
    cost=lambda s: operation_cost.Cost(params=s.channels) + operation_cost.each(s, 1) + operation_cost.maps(s, 2),
    label="channel scale",
    is_weightless=False,
    ends_in_activation=False,
)
DIFFERENCE = operations.Aggregation(
    apply=lambda params, a, b, scope: a - b,
    cost=lambda s: operation_cost.each(s, 1) + operation_cost.maps(s, 3),
    label="difference",
    is_weightless=True,
    of_zeros="zeros",
)


TINY = {
    "compile_effort": "quick", "net.decoder_channels": "8",
    "space.inputs": "prev_state,decoder", "space.num_layers": "1", "space.channels": "4",
    "search.strategy": "random", "search.steps": "2", "search.genotypes_per_step": "2", "search.shared_steps": "1",
    "search.warmup_steps": "0", "search.num_random": "4", "search.batch_size": "2", "search.reward_clips": "2",
    "search.checkpoint_every": "2",
}  # fmt: skip


def make_store(settings: cell_frame.CellSettings, num_clips: int, seed: int) -> types.FeatureStore:
    """Random features of 4x4 cells, with labels of 16x16 pixels."""
    rng = np.random.default_rng(seed)
    maps = {
        name: jnp.asarray(rng.normal(size=(num_clips, 2, 4, 4, channels)), jnp.bfloat16)
        for name, channels in settings.feature_channels.items()
        if name in ("decoder", "image", "logits")
    }
    labels = rng.integers(0, settings.num_classes, (num_clips, 2, 16, 16), np.uint8)
    return types.FeatureStore(features=types.Features(logits=maps.pop("logits"), maps=maps), labels=jnp.asarray(labels))


def search(config, folder: workdir.Workdir) -> list[dict]:
    """The lines of the log of a search on random features."""
    space, settings, devices = features.space_of(config), features.settings_of(config), mesh.make()
    with compilation.effort(config.compile_effort):
        strategy = strategies.make(config.search.strategy, space, config.controller)
        made = steps.make(supernet_lib.make(space, settings), config.search, devices)
    stores = [mesh.replicate(devices, make_store(settings, num, seed)) for num, seed in ((4, 0), (2, 1))]
    pipeline.run_search(pipeline.Parts(config, space, devices, made, strategy, *stores), folder, signals.StopFlag())
    return folder.read(loop.LOG)


def test_an_operation_and_an_aggregation(monkeypatch, tmp_path):
    """They are found by the config, sampled, trained, scored, costed, drawn, and taken as what their records say."""
    monkeypatch.setitem(operations.OPERATIONS, "scale", SCALE)
    monkeypatch.setitem(operations.AGGREGATIONS, "difference", DIFFERENCE)
    config = config_lib.load(None, {**TINY, "space.operations": "skip,scale", "space.aggregations": "difference"})
    lines = search(config, workdir.Workdir(tmp_path))
    assert len(lines) >= 4 and {line["status"] for line in lines} == {"ok"}
    assert all(0 <= line["reward"] <= 1 and line["source"] == "random" for line in lines)
    space, settings = features.space_of(config), features.settings_of(config)
    assert any(1 in row[2:4] for line in lines for row in line["genotype"])

    scaled, skipped = ([[0, 1, token, 0, 0]] for token in (1, 0))
    more, less = (cost.of(space, genotype, settings, (4, 4)) for genotype in (scaled, skipped))
    assert more.params - less.params == settings.channels and more.bytes - less.bytes == 4 * 4 * 4 * 2 * 4
    draw.render(space, scaled, tmp_path / "cell.svg")
    picture = (tmp_path / "cell.svg").read_text()
    assert "channel scale" in picture and "difference" in picture
    assert draw.text(space, scaled).startswith("layer0 = difference( scale(prev_state), skip(decoder) )")
    exchanged = [[1, 0, 0, 1, 0]]
    assert len({canonical.of(space, genotype) for genotype in (scaled, skipped, exchanged)}) == 3
    whole = features.space_of(config_lib.defaults())
    assert (whole.operations[-1], whole.aggregations[-1]) == ("scale", "difference")


# --- schedules ----------------------------------------------------------------------------------------------------


def test_a_schedule(monkeypatch):
    """A kind that looks at the worst place, not at the mean, has a head, a state and a cost, and decides by itself."""
    monkeypatch.setitem(
        schedule.TABLE, "worst", schedule.Kind(score_fn=lambda x, regions: x.max((1, 2), keepdims=True))
    )
    config = config_lib.defaults()
    config.schedule.kind = "worst"
    config.space.update({"mode": "propagate", "inputs": ("prev_state", "stage1"), "num_layers": 1, "cut": "stage1"})
    settings, space = features.settings_of(config), features.space_of(config)
    assert "stage1" in features.needed_maps(space, config) and settings.schedule.is_learned
    genotype = [[0, 1, 1, 1, 0]]
    interval = dataclasses.replace(settings, schedule=settings.schedule.without_head())
    assert cost.of(space, genotype, settings, (4, 4)).macs > cost.of(space, genotype, interval, (4, 4)).macs
    cell = cell_lib.make(space, np.asarray(genotype), settings)
    maps = {name: jnp.zeros((1, 4, 4, settings.feature_channels[name])) for name in ("decoder", "image", "stage1")}
    frame = types.Features(maps=maps, logits=jnp.zeros((1, 4, 4, settings.num_classes)))
    assert cell.initial_state(frame).reference is not None
    log_odds = jnp.full((1, 4, 4), -9.0).at[0, 1, 2].set(9.0)
    for kind, expected in (("worst", True), ("adaptive", False)):
        rule = dataclasses.replace(settings.schedule, kind=kind, interval=100)
        assert schedule.due(rule, jnp.ones((1, 1, 1), jnp.int32), log_odds).tolist() == [[[expected]]]


# --- strategies ---------------------------------------------------------------------------------------------------


def climb(space: genotype_lib.Space, controller_config) -> strategy.Functions:
    """Hill climbing: the best genotype so far, with a fifth of its tokens drawn anew."""

    def init(rng):
        return {"genotype": np.zeros((space.num_layers, len(genotype_lib.FIELDS)), np.int32), "reward": np.float32(-1)}

    def sample(state, rng, op_mask, num):
        generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)))
        drawn = genotype_lib.random(space, generator, num, op_mask=op_mask)
        is_drawn = (generator.random(drawn.shape) < 0.2) | (state["reward"] < 0)
        unknown = np.full(num, np.nan, np.float32)
        genotypes = np.where(is_drawn, drawn, state["genotype"])
        return types.Samples(genotypes=genotypes, log_prob=unknown, entropy=unknown)

    def update(state, samples, rewards, valid, rng, op_mask):
        best = int(np.argmax(np.where(valid, rewards, -1)))
        if rewards[best] > state["reward"]:
            state = {"genotype": np.asarray(samples.genotypes[best], np.int32), "reward": rewards[best]}
        return state, {"num_updates": 1.0}

    return strategy.Functions(init, sample, update)


def test_a_strategy(monkeypatch, tmp_path):
    """The config knows it, a search asks it, saves its state, and takes from it what it believes in."""
    monkeypatch.setitem(strategies.TABLE, "climb", strategy.Record("climb", climb))
    operations_of = {"space.operations": "skip,none", "space.aggregations": "sum", "search.num_random": "0"}
    config = config_lib.load(None, {**TINY, **operations_of, "search.strategy": "climb"})
    lines = search(config, workdir.Workdir(tmp_path))
    assert [line["source"] for line in lines] == ["climb"] * 4 and (tmp_path / "checkpoints" / "search").is_dir()
    made = strategies.make("climb", features.space_of(config), config.controller)
    state = made.init(jax.random.key(0))
    samples = made.sample(state, jax.random.key(1), 3)
    state, metrics = made.update(state, samples, [0.1, 0.5, np.nan], [True, True, False], jax.random.key(2))
    assert metrics == {"num_updates": 1.0} and state["reward"] == np.float32(0.5)
    believed = made.probable(state, jax.random.key(3), 3)
    assert len({row.tobytes() for row in believed}) == 3
    masked = made.with_mask(np.array([True, False]))
    assert not masked.probable(masked.init(jax.random.key(0)), jax.random.key(3), 3)[..., 2:4].any()
    with pytest.raises(errors.UserError, match="unknown name 'clim', did you mean 'climb'"):
        strategies.check_names(["clim"])
