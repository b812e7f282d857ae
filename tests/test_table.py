"""The tabular benchmark: its file, its rows, and its making with real (tiny) trainings."""

import dataclasses
import functools
import json
import pathlib
import types as types_lib

import jax
import jax.numpy as jnp
import made_up_table
import numpy as np
import optax
import pytest

from dvsnas_jax.core import compilation, errors, mesh, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import pipeline, steps
from dvsnas_jax.space import canonical, cell_frame
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import table, table_maker
from dvsnas_jax.train import cell_training, feature_store, features, losses, optim

SPACE = genotype_lib.Space(
    inputs=("prev_state", "decoder"), num_layers=1, operations=("none", "skip", "conv_1x1"), aggregations=("sum",)
)
SETTINGS = cell_frame.CellSettings(channels=4, feature_channels={"decoder": 5, "logits": 3, "image": 3})


def make_config():
    config = config_lib.defaults()
    config.compile_effort = "quick"
    config.space.inputs, config.space.num_layers = SPACE.inputs, SPACE.num_layers
    config.space.operations, config.space.aggregations = SPACE.operations, SPACE.aggregations
    config.train.update({"steps": 4, "batch_size": 2, "warmup_steps": 1, "polyak": 0.5, "label_stride": 4})
    config.search.update({"batch_size": 2, "reward_clips": 4})
    return config


def make_store(seed: int, num_clips: int = 4) -> types.FeatureStore:
    rng = np.random.default_rng(seed)
    draw = {name: rng.normal(size=(num_clips, 2, 4, 6, channels)) for name, channels in
            (("decoder", 5), ("image", 3), ("logits", 3))}  # fmt: skip
    maps = {name: jnp.asarray(value, jnp.bfloat16) for name, value in draw.items()}
    labels = np.asarray(maps["decoder"][..., :3], np.float32).argmax(axis=-1).astype(np.uint8)
    labels = jnp.asarray(labels.repeat(4, axis=2).repeat(4, axis=3))
    return types.FeatureStore(features=types.Features(logits=maps.pop("logits"), maps=maps), labels=labels)


@functools.cache
def _steps(devices: jax.sharding.Mesh) -> steps.Steps:
    """Compiled once for all tests."""
    with compilation.effort("quick"):
        return steps.make(supernet_lib.make(SPACE, SETTINGS), make_config().search, devices)


@pytest.fixture
def parts(monkeypatch) -> pipeline.Parts:
    """The parts of a search on features that no network made."""
    config = make_config()
    monkeypatch.setattr(features, "settings_of", lambda config: SETTINGS)
    here, strategy = mesh.make(), types_lib.SimpleNamespace(op_mask=np.ones(3, bool))
    return pipeline.Parts(config, SPACE, here, _steps(here), strategy, make_store(0), make_store(1))


def test_a_table_survives_its_file(tmp_path):
    made = made_up_table.make(SPACE, 3, num_seeds=2)
    made.parts["reward"][1, 0] = np.nan
    table.save(made, tmp_path / "a" / "table.json")
    read = table.load(tmp_path / "a" / "table.json")
    assert read.space == SPACE and read.head == made.head and read.num_cells == 15
    np.testing.assert_array_equal(read.cells, made.cells)
    np.testing.assert_array_equal(read.rewards, made.rewards)
    assert read.quality()[1] == made.rewards[1, 1] and read.quality((0,))[1] == -np.inf
    assert read.quality()[0] == pytest.approx(made.rewards[0].mean())


def made_uneven() -> table.Table:
    """Of three trainings, but for two cells of which the third, or all but the first, were not made."""
    made = made_up_table.make(SPACE, 3, num_seeds=3)
    made.num_trainings[:2] = 2, 1
    made.rewards[0, 2:] = made.rewards[1, 1:] = np.nan
    return made


def test_cells_may_have_more_trainings_than_others(tmp_path):
    made = made_uneven()
    made.rewards[0, 1] = np.nan  # one that diverged
    table.save(made, tmp_path / "table.json")
    read = table.load(tmp_path / "table.json")
    np.testing.assert_array_equal(read.rewards, made.rewards)
    np.testing.assert_array_equal(read.num_trainings, [2, 1] + [3] * 13)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [len(row[1]) for row in rows[:3]] == [2, 1, 3] and rows[0][1][1] is None


def test_a_reward_and_the_worth_of_a_cell_are_of_different_trainings():
    """The first half is drawn, the others say what it is worth; one training alone is both."""
    made = made_up_table.make(SPACE, 3, num_seeds=5)
    made.num_trainings[:4] = 1, 2, 3, 4
    made.rewards[4, 3] = np.nan  # one that diverged
    shares = [0.0, 0.3, 0.6, 0.99]
    for row, drawn in enumerate([[0] * 4, [0] * 4, [0] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]):
        assert [made.draw(row, range(5), share) for share in shares] == made.rewards[row, drawn].tolist()
    worth, counts = made.worth(range(5))
    assert counts[:5].tolist() == [0, 1, 2, 2, 3]
    columns = [[0], [1], [1, 2], [2, 3], [2, 4]]
    expected = [made.rewards[row, column].mean() for row, column in enumerate(columns)]
    np.testing.assert_allclose(worth[:5], expected)
    some, counts = made.worth((1, 3))
    assert made.draw(2, (1, 3), 0.9) == some[2] == made.rewards[2, 1] and counts[2] == 0
    assert made.draw(3, (1, 3), 0.9) == made.rewards[3, 1] and some[3] == made.rewards[3, 3]
    made.rewards[1, 1] = np.nan
    assert made.worth(range(5))[0][1] == -np.inf


def test_what_a_cell_is_worth_is_of_unseen_clips_where_they_were_scored(tmp_path):
    made = made_up_table.make(SPACE, 3, num_seeds=4)
    unseen = {name: made.rewards + 1 + index for index, name in enumerate(table.UNSEEN)}
    made = dataclasses.replace(made, parts={**made.parts, **unseen})
    table.save(made, tmp_path / "table.json")
    read = table.load(tmp_path / "table.json")
    assert set(read.parts) == {*table.PARTS, *table.UNSEEN}
    np.testing.assert_allclose(read.worth(range(4))[0], 1 + made.rewards[:, 2:].mean(axis=1))
    assert read.draw(0, range(4), 0.0) == made.rewards[0, 0]


def test_equal_cells_share_a_row():
    made = made_up_table.make(SPACE, 0)
    none, skip, conv = range(3)
    same = [[0, 1, skip, conv, 0], [1, 0, conv, skip, 0], [0, 1, skip, none, 0], [1, 0, none, skip, 0]]
    same = np.asarray(same)[:, None]
    rows = made.rows(same)
    assert rows[0] == rows[1] and rows[2] == rows[3] and rows[0] != rows[2]
    for genotype, row in zip(same, rows, strict=True):
        assert canonical.of(SPACE, genotype) == canonical.of(SPACE, made.cells[row])


def damage(path: pathlib.Path, **changes) -> pathlib.Path:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": 1}, "no table of version 2"), ({"rows": []}, "is damaged"), (None, "not JSON")],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, changes, message):
    path = tmp_path / "table.json"
    table.save(made_up_table.make(SPACE, 0), path)
    if changes is None:
        path.write_text("{")
    else:
        damage(path, **changes)
    with pytest.raises(errors.UserError, match=message):
        table.load(path)
    with pytest.raises(errors.UserError, match="does not exist"):
        table.load(tmp_path / "none.json")


def test_a_table_of_other_cells_is_refused(tmp_path):
    path = tmp_path / "table.json"
    made = made_up_table.make(SPACE, 0)
    table.save(dataclasses.replace(made, cells=made.cells[::-1]), path)
    with pytest.raises(errors.UserError, match="lists other cells"):
        table.load(path)


def test_the_trainer_takes_the_steps_of_a_plain_loop(parts):
    section = parts.config.train
    with compilation.effort("quick"):
        trainer = table_maker.make_trainer(parts, 2)
    assert trainer.clips.shape == (2, 4, 2)
    supernet, optimizer = supernet_lib.make(SPACE, SETTINGS), optim.make(section)

    def loss_fn(params, genotype, clips):
        batch, labels = feature_store.take(parts.train_store, clips)
        targets = losses.subsample_labels(labels, 4)
        return losses.cross_entropy(supernet.unroll(params, genotype, batch), targets)[0]

    @compilation.jit_once
    def step(params, state, average, genotype, clips, index):
        updates, state = optimizer.update(jax.grad(loss_fn)(params, genotype, clips), state, params)
        params = optax.apply_updates(params, updates)
        return params, state, optim.polyak(0.5, average, params, index)

    for genotype in (np.asarray([[0, 1, 1, 2, 0]], np.int32), np.asarray([[1, 1, 2, 0, 0]], np.int32)):
        params = jax.tree.map(lambda x: x[1], trainer.initial)
        found = trainer.train(params, genotype, parts.train_store, trainer.clips[1])
        average, state = params, optimizer.init(params)
        for index, clips in enumerate(trainer.clips[1]):
            params, state, average = step(params, state, average, genotype, clips, index)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)  # Adam enlarges the rounding of tiny gradients
    assert trainer.train._cache_size() == 1  # one program for all genotypes


@pytest.mark.parametrize("mode", ["refine", "propagate"])
def test_the_moments_of_a_supernet_are_those_of_the_cell(mode):
    """And with them as running statistics both give the same, whatever else is in the batch."""
    space = genotype_lib.Space(("prev_state", "prev_logits", "prev_decoder"), 2, ("none", "conv_1x1"), ("sum", "gate"))
    features_of = {"decoder": 5, "logits": 3, "image": 3, "stage1": 4, "stage2": 4}
    settings = cell_frame.CellSettings(channels=4, feature_channels=features_of, mode=mode)
    if mode == "propagate":
        settings = cell_frame.with_fixed_interval(settings)
    supernet = supernet_lib.make(space, settings)
    params = compilation.jit_once(supernet.init)(jax.random.key(0))
    frames, _ = feature_store.take(make_store(0), np.array([0, 3], np.int32))
    find = compilation.jit_once(supernet.moments)
    genotypes = [[[0, 2, 1, 0, 1], [3, 1, 1, 1, 0]], [[1, 0, 1, 1, 0], [0, 2, 0, 1, 1]]]
    for genotype in genotypes if mode == "refine" else genotypes[:1]:
        rows = np.asarray(genotype, np.int32)
        cell = cell_lib.make(space, rows, settings)
        own = cell_lib.gather_params(space, rows, params)
        expected = compilation.jit_once(cell.moments)(own, frames)
        found = cell_lib.gather_params(space, rows, cell_lib.freeze_norm(params, find(params, rows, frames)))
        frozen = cell_lib.freeze_norm(own, expected)
        assert jax.tree.structure(found) == jax.tree.structure(frozen) and expected
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, frozen)
    assert find._cache_size() == 1


def test_a_trained_cell_is_scored_with_running_statistics(parts):
    """As the static graph of the same weights; the batches of a score, filled up or not, change nothing then."""
    genotype = np.asarray([[0, 1, 2, 1, 0]], np.int32)
    with compilation.effort("quick"):
        trainer = table_maker.make_trainer(parts._replace(unseen_fn=lambda: make_store(2, 3)), 1)
    record = table_maker.train_and_score(parts, trainer, genotype)
    initial = jax.tree.map(lambda x: x[0], trainer.initial)
    trained = trainer.train(initial, genotype, parts.train_store, trainer.clips[0])
    cell = cell_lib.make(SPACE, genotype, SETTINGS)
    shape = (parts.config.train.norm_batches, parts.config.train.batch_size)
    drawn = cell_training.draw_clips((parts.config.seed, table_maker.CALIBRATION), 4, shape)
    calibrate = cell_training.make_calibrate(cell.moments, parts.train_store, drawn)
    own = calibrate(cell_lib.gather_params(SPACE, genotype, trained))
    expected = pipeline.score_trained(parts, genotype, cell_training.Trained(own))
    assert record["reward"] == pytest.approx(expected["reward"], abs=1e-6) and record["miou"] == expected["miou"]
    unseen = pipeline.score_trained(parts._replace(val_store=trainer.unseen), genotype, cell_training.Trained(own))
    assert record["unseen_reward"] == pytest.approx(unseen["reward"], abs=1e-6) != record["reward"]
    parts.config.search.batch_size = 3  # four clips in two batches, one of them filled up with clips of the other
    again = table_maker.train_and_score(parts, trainer, genotype)
    assert again["reward"] == pytest.approx(record["reward"], abs=1e-6)


def test_making_a_table_goes_on_where_it_stopped(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(table_maker, "assemble", lambda config, folder, stop: parts)
    folder = workdir.Workdir(tmp_path / "run")
    whole = table_maker.run(parts.config, folder, num_seeds=2, command="make it")
    lines = folder.read(table_maker.LOG)
    assert len(lines) == 30 and {line["status"] for line in lines} == {"ok"}
    assert whole.head["command"] == "make it" and whole.head["config"]["train"]["steps"] == 4
    assert len({line["cell"] for line in lines[:9]}) == 5  # of the last one a training will be missing
    log = folder.path / table_maker.LOG
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:9]) + '{"cell": 3, "se')
    again = table_maker.run(parts.config, workdir.Workdir(tmp_path / "run"), num_seeds=2, command="make it")
    for name in table.PARTS:
        np.testing.assert_array_equal(again.parts[name], whole.parts[name])
    rewritten = workdir.Workdir(tmp_path / "run").read(table_maker.LOG)
    assert rewritten[:9] == lines[:9] and len(rewritten) == 30
    older = [{key: value for key, value in line.items() if key != "unseen_split"} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in older))  # scored otherwise: none of it counts
    with signals.stop_on_signal() as stop:
        stop.requested = True
        with pytest.raises(errors.Stopped, match="0 of 30 trainings"):
            table_maker.run(parts.config, workdir.Workdir(tmp_path / "run"), num_seeds=2, command="")
    assert np.unique(whole.rewards).size > 5


def test_the_best_cells_are_trained_more_often(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(table_maker, "assemble", lambda config, folder, stop: parts)
    folder = workdir.Workdir(tmp_path / "run")
    first = table_maker.run(parts.config, folder, num_seeds=1, command="")
    made = table_maker.run(parts.config, folder, num_seeds=1, num_best_seeds=4, command="")
    order = np.argsort(-first.rewards[:, 0], kind="stable")
    expected = np.ones(15, int)
    expected[order[:8]] = 4  # half of 15, rounded
    np.testing.assert_array_equal(made.num_trainings, expected)
    np.testing.assert_array_equal(made.rewards[:, :1], first.rewards)
    assert np.unique(made.rewards[order[0]]).size == 4 and np.isnan(made.rewards[order[8:], 1:]).all()
    assert (made.head["num_seeds"], made.head["num_best_seeds"], made.head["num_trainings"]) == (1, 4, 15 + 8 * 3)
    # A training does not depend on how many there are of its cell.
    trainer = table_maker.make_trainer(parts, 2)
    record = table_maker.train_and_score(parts, trainer, made.cells[order[0]], 1)
    assert record["reward"] == pytest.approx(made.rewards[order[0], 1], abs=1e-5)


def test_cells_trained_at_the_same_time_are_trained_as_one_after_the_other(parts, tmp_path, monkeypatch):
    """Bit for bit, and their lines are in the same order."""
    monkeypatch.setattr(table_maker, "assemble", lambda config, folder, stop: parts)
    logs = []
    for num_workers in (1, 4):
        parts.config.search.scratch_workers = num_workers
        folder = workdir.Workdir(tmp_path / str(num_workers))
        table_maker.run(parts.config, folder, num_seeds=2, command="")
        logs.append([{**line, "seconds": 0} for line in folder.read(table_maker.LOG)])
    assert logs[0] == logs[1] and len(logs[0]) == 30


def test_cells_that_diverged_are_none_of_the_best():
    rewards = [[0.3, 0.5], [None, 0.9], [0.6, 0.05], [0.1, 0.6]]
    lines = [{"cell": cell, "seed": seed, "reward": rewards[cell][seed]} for cell in range(4) for seed in range(2)]
    lines.append({"cell": 2, "seed": 2, "reward": 0.9})  # no first training
    assert table_maker.best_cells(lines, 2) == [0, 3] and table_maker.best_cells(lines, 1) == [0, 2]


def test_making_a_table_stops_between_cells(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(table_maker, "assemble", lambda config, folder, stop: parts)
    with signals.stop_on_signal() as stop:
        stop.requested = True
        with pytest.raises(errors.Stopped, match="0 of 15 trainings"):
            table_maker.run(parts.config, workdir.Workdir(tmp_path / "run"), num_seeds=1, command="")


def test_missing_trainings_and_large_spaces_are_refused(tmp_path):
    config = make_config()
    cells, _ = canonical.enumerate_cells(SPACE)
    line = {"cell": 0, "seed": 0, "seconds": 1.0, **dict.fromkeys(table.PARTS, 0.5)}
    with pytest.raises(errors.UserError, match="14 of 15 trainings are missing"):
        table.from_lines(SPACE, cells, [line], config=config, static=line, command="")
    lines = [{**line, "cell": cell, "seed": seed} for cell in range(15) for seed in ((0, 3) if cell == 3 else (0,))]
    with pytest.raises(errors.UserError, match="2 of 18 trainings are missing"):
        table.from_lines(SPACE, cells, lines, config=config, static=line, command="")
    with pytest.raises(
        errors.UserError, match="--best-seeds: must be at least --seeds, 2 trainings of each cell, got 1"
    ):
        table_maker.run(config, workdir.Workdir(tmp_path), num_seeds=2, num_best_seeds=1, command="")
    config.space.num_layers, config.space.operations = 4, ()
    with pytest.raises(errors.UserError, match="a table at most 20000"):
        table_maker.run(config, workdir.Workdir(tmp_path), num_seeds=1, command="")


def test_the_packaged_table():
    packaged = table.load()
    assert packaged.num_cells == 1371 and packaged.rewards.shape == (1371, 6)
    assert sorted(set(packaged.num_trainings.tolist())) == [2, 6]
    assert table.PACKAGED.stat().st_size < 1 << 20
    assert np.isfinite(packaged.rewards[:, :2]).mean() > 0.99
    is_best = packaged.num_trainings == 6
    assert is_best.sum() == 137 and packaged.quality((0, 1))[is_best].min() >= packaged.quality((0, 1))[~is_best].max()
    assert int(packaged.quality().argmax()) in np.flatnonzero(is_best)
    quality = packaged.quality()
    assert 0 < quality.min() < packaged.head["static"]["reward"] < quality.max() < 1
    # The trainings agree, among the better half, too: what a search can find is not luck.
    first = packaged.rewards[:, :2]
    better = first[first[:, 0] > np.median(first[:, 0])]
    assert np.corrcoef(first.T)[0, 1] > 0.8 and np.corrcoef(better.T)[0, 1] > 0.5
    for name in ("command", "config", "config_hash", "environment", "seconds", "static"):
        assert packaged.head[name]
