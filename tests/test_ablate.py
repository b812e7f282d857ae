"""Ablation: the pure function over masks, one-token neighbours, searches under masks, stops, the command."""

import doctest
import json
from collections.abc import Callable

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trained

from dvsnas_jax import cli
from dvsnas_jax.controller import strategies
from dvsnas_jax.core import compilation, errors, mesh, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.search import loop, pipeline, steps
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, cost
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import neighbours as variants
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.studies import ablate, ablate_report, ablate_variants
from dvsnas_jax.train import feature_store, features, winners

OPERATIONS = ("none", "skip", "conv_1x1", "max_pool_3x3")
GENOTYPE = np.array([[1, 2, 2, 1, 0], [3, 0, 3, 2, 1]], np.int32)


def make_config():
    config = config_lib.defaults()
    config.compile_effort = "quick"
    config.space.inputs = ("prev_state", "decoder", "logits")
    config.space.operations, config.space.aggregations = OPERATIONS, ("sum", "gate")
    config.space.num_layers, config.space.channels = 2, 8
    config.net.decoder_channels = 12
    config.controller.update({"hidden": 8, "buffer": 2, "minibatch": 2, "learning_rate": 0.01})
    config.search.update(
        {
            "steps": 4, "genotypes_per_step": 2, "shared_steps": 1, "warmup_steps": 2, "batch_size": 2,
            "reward_clips": 2, "num_random": 0, "checkpoint_every": 1,
        }
    )  # fmt: skip
    config.train.update({"steps": 3, "batch_size": 2, "warmup_steps": 1, "norm_batches": 1, "checkpoint_every": 1})
    config.ablate.update({"steps": 4, "warmup_steps": 2})
    return config


CONFIG = make_config()
SPACE, SETTINGS = features.space_of(CONFIG), features.settings_of(CONFIG)


def make_store(num_clips: int, seed: int = 0) -> types.FeatureStore:
    """Random features of 4x4 cells; the label of a cell is the strongest of the decoder's first channels."""
    rng = np.random.default_rng(seed)

    def draw(channels: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(num_clips, 2, 4, 4, channels)), jnp.bfloat16)

    maps = {name: draw(SETTINGS.feature_channels[name]) for name in ("decoder", "image")}
    labels = np.asarray(maps["decoder"][..., : SETTINGS.num_classes], np.float32).argmax(axis=-1).astype(np.uint8)
    labels = labels.repeat(4, axis=2).repeat(4, axis=3)
    labels[:, :, 0] = types.IGNORE
    return types.FeatureStore(
        features=types.Features(maps=maps, logits=draw(SETTINGS.num_classes)), labels=jnp.asarray(labels)
    )


def make_parts() -> pipeline.Parts:
    """A search on random features in place of a static network's."""
    devices = mesh.make()
    with compilation.effort(CONFIG.compile_effort):
        strategy = strategies.make("ppo", SPACE, CONFIG.controller)
        made = steps.make(supernet_lib.make(SPACE, SETTINGS), CONFIG.search, devices)
    stores = [mesh.replicate(devices, make_store(num, seed)) for num, seed in ((4, 0), (3, 1))]
    return pipeline.Parts(CONFIG, SPACE, devices, made, strategy, *stores)


@pytest.fixture(scope="module")
def parts():
    return make_parts()


@pytest.fixture(scope="module")
def searched(parts, tmp_path_factory):
    """The folder of a finished search, with a winner."""
    folder = workdir.Workdir(tmp_path_factory.mktemp("search"))
    folder.claim(CONFIG)
    pipeline.run_search(parts, folder, signals.StopFlag())
    folder.write_json(winners.BEST, genotype_lib.to_dict(SPACE, GENOTYPE))
    return folder


@pytest.fixture
def folder(searched, parts, monkeypatch, tmp_path):
    """A fresh run folder that shares the checkpoints of the finished search; nothing is computed by a network."""
    for name in ("config.json", winners.BEST):
        (tmp_path / name).write_bytes((searched.path / name).read_bytes())
    (tmp_path / "checkpoints").symlink_to(searched.path / "checkpoints")
    monkeypatch.setattr(ablate_variants, "assemble", lambda *_, is_training: parts)
    return workdir.Workdir(tmp_path)


# --- the pure function --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """What the example in the docstring takes as given."""
    supernet = supernet_lib.make(SPACE, SETTINGS)
    params = jax.jit(supernet.init)(jax.random.key(0))
    head = params["ports"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)  # zero would hide every operation
    return {"supernet": supernet, "space": SPACE, "params": params, "genotype": GENOTYPE, "batch": make_store(3, 1)}


@pytest.fixture(scope="module")
def example(world) -> dict:
    """The names after the lines of the docstring were run."""
    names = {"jax": jax, "jnp": jnp, "ablate": ablate, **world}
    examples = doctest.DocTestParser().get_examples(ablate.make_ablate.__doc__)
    assert len(examples) == 3
    for example in examples:
        exec(example.source, names)  # noqa: S102
    return names


def test_the_three_lines_of_the_docstring_switch_off_each_operation(world, example):
    found, ablate_fn = example["found"], example["ablate_fn"]
    assert found["counts"].shape == (4, 11, 11) and found["loss"].shape == found["miou"].shape == (4,)
    for index, name in enumerate(OPERATIONS):
        by_hand = GENOTYPE.copy()
        by_hand[:, 2:4][by_hand[:, 2:4] == index] = OPERATIONS.index("none")
        alone = ablate_fn(world["params"], by_hand, np.ones(4, bool), world["batch"])
        np.testing.assert_array_equal(found["counts"][index], alone["counts"], err_msg=name)
        assert float(found["loss"][index]) == pytest.approx(float(alone["loss"]), rel=1e-5)
    losses = np.asarray(found["loss"])
    assert losses[0] != losses[1] != losses[2] != losses[3], "every operation but none is in the genotype"
    assert ablate_fn._cache_size() == 1


def test_vmap_over_masks_equals_map(world, example):
    mapped = jax.jit(jax.vmap(example["ablate_fn"], in_axes=(None, None, 0, None)))(
        world["params"], GENOTYPE, example["masks"], world["batch"]
    )
    np.testing.assert_array_equal(mapped["counts"], example["found"]["counts"])
    np.testing.assert_allclose(mapped["loss"], example["found"]["loss"], rtol=1e-5)


def test_with_all_operations_it_counts_what_the_reward_counts(world, example, parts):
    batch = jax.tree.map(lambda x: x[:2], world["batch"])  # one batch of the reward: its moments normalise
    found = example["ablate_fn"](world["params"], GENOTYPE, np.ones(4, bool), batch)
    params, store = (mesh.replicate(parts.mesh, world[name]) for name in ("params", "batch"))
    scores = parts.steps.evaluate_shared(params, np.stack([GENOTYPE] * 2), store, np.array([[0, 1]], np.int32))
    assert int(found["counts"].sum()) == 2 * 15 * 16
    np.testing.assert_array_equal(found["counts"], scores.counts[0])
    assert float(found["miou"]) == pytest.approx(metrics.scores(np.asarray(found["counts"]))["miou"], rel=1e-5)


def test_what_the_mask_leaves_untouched_stays(world):
    ablate_fn = jax.jit(ablate.make_ablate(world["supernet"], SPACE, replacement="skip"))
    whole = ablate_fn(world["params"], GENOTYPE, np.ones(4, bool), world["batch"])
    unused = ablate_fn(world["params"], GENOTYPE, np.array([False, True, True, True]), world["batch"])
    itself = ablate_fn(world["params"], GENOTYPE, np.array([True, False, True, True]), world["batch"])
    assert float(whole["loss"]) == float(unused["loss"]) == float(itself["loss"])
    with pytest.raises(errors.UserError, match="'conv_9x9' is no operation of the space"):
        ablate.make_ablate(world["supernet"], SPACE, replacement="conv_9x9")


# --- a run, opened ------------------------------------------------------------------------------------------------


@pytest.fixture
def features_of_batch(monkeypatch, world):
    """No network computes the features of the meta-validation clips: they are drawn."""

    def drawn(config, space, variables, places):
        store = make_store(3, 1)
        return store if places is None else jax.tree.map(lambda x: x[places], store)

    monkeypatch.setattr(ablate_variants, "static_network", lambda config, folder: None)
    monkeypatch.setattr(ablate_variants, "validation_features", drawn)


def contents(path):
    """File -> its bytes, of a whole folder."""
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def run_example(path) -> dict:
    """The names after the lines of the docstring of `ablate.open` were run on a folder."""
    names = {"jax": jax, "jnp": jnp, "ablate": ablate}
    examples = doctest.DocTestParser().get_examples(ablate.open.__doc__)
    assert len(examples) == 4 and examples[0].source == 'run = ablate.open("runs/quickstart")\n'
    for example in examples:
        exec(example.source.replace("runs/quickstart", str(path)), names)  # noqa: S102
    return names


def test_an_opened_search_gives_the_numbers_of_the_command(folder, parts, features_of_batch):
    before = contents(folder.path)
    names = run_example(folder.path)
    run, found = names["run"], names["found"]
    assert contents(folder.path) == before, "it only reads"
    assert (run.weights, run.space, run.grid, run.settings) == ("shared", SPACE, (4, 4), SETTINGS)
    np.testing.assert_array_equal(run.genotype, GENOTYPE)
    params = ablate_variants.trained_weights(parts, folder)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    # The same genotypes as `--what=replace` scores them: a batch of two clips, normalised by itself.
    switched = [np.where(GENOTYPE == index, 0, GENOTYPE) for index in range(4)]
    rows = np.stack([np.concatenate([GENOTYPE[:, :2], rows[:, 2:4], GENOTYPE[:, 4:]], 1) for rows in switched])
    scored = pipeline.score(parts, params, rows, 2)
    np.testing.assert_allclose(found["miou"], [record["miou"] for record in scored], rtol=1e-5)
    assert cost.of(run.space, run.genotype, run.settings, run.grid) == cost.of(SPACE, GENOTYPE, SETTINGS, (4, 4))


def test_a_search_that_trains_each_alone_opens_with_the_cells_own_weights(folder, features_of_batch, monkeypatch):
    cell = cell_lib.make(SPACE, GENOTYPE, SETTINGS)
    params = jax.jit(cell.init)(jax.random.key(3))
    monkeypatch.setattr(winners, "load", lambda config, folder: (cell, params, SPACE, GENOTYPE))
    values = json.loads((folder.path / "config.json").read_text())
    values["search"]["mode"] = "scratch"
    (folder.path / "config.json").write_text(json.dumps(values))
    run = ablate.open(folder.path, num_clips=3)
    assert run.weights == "cell" and run.batch.num_clips == 3
    jax.tree.map(np.testing.assert_array_equal, cell_lib.gather_params(SPACE, GENOTYPE, run.params), params)


@pytest.mark.parametrize("kind", ["refine", "adaptive"])
def test_a_trained_cell_opens_with_its_own_weights(kind, tmp_path):
    """A folder of `train`: what the supernet computes is what the trained cell computes, running statistics and all."""
    made = trained.make_config(kind)
    made.space.operations = ("none", "skip", "conv_1x1", "conv_3x3", "sep_conv_3x3")
    path = trained.write(tmp_path / "run", kind, made)
    before = contents(path)
    names = run_example(path)
    run = names["run"]
    assert contents(path) == before and run.weights == "cell" and run.batch.num_clips == 1
    config, folder = workdir.Workdir(path).config(), workdir.Workdir(path)
    if kind != "refine":  # the supernet's key frames come at the interval
        config = config.copy_and_resolve_references().unlock()
        config.schedule.kind = "fixed"
    cell = cell_lib.make(run.space, run.genotype, features.settings_of(config))
    _, params, _, _ = winners.load(folder.config(), folder)
    clips, _ = feature_store.take(run.batch, jnp.arange(run.batch.num_clips))
    expected = jax.jit(cell.unroll)(params, clips)
    found = jax.jit(run.supernet.unroll)(run.params, run.genotype, clips)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    losses = dict(zip(run.space.operations, np.asarray(names["found"]["loss"]).tolist(), strict=True))
    assert losses["sep_conv_3x3"] != losses["none"] and losses["conv_3x3"] == losses["none"], "it has no conv_3x3"


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path):
    with pytest.raises(errors.UserError, match="nowhere: holds no run"):
        ablate.open(tmp_path / "nowhere")
    with pytest.raises(errors.UserError, match="num_clips: must be at least 1, got 0"):
        ablate.open(tmp_path, num_clips=0)
    workdir.Workdir(tmp_path / "run").claim(CONFIG)
    with pytest.raises(errors.UserError, match="holds no trained cell, run `dvsnas search`"):
        ablate.open(tmp_path / "run")


def test_the_first_batch_of_a_reward_is_opened():
    config = make_config()
    config.data.num_train_clips, config.search.meta_val_fraction = 10, 0.6
    config.search.update({"batch_size": 4, "reward_clips": 4})
    assert ablate._places(config, None).tolist() == [0, 1, 2, 3]
    assert ablate._places(config, 9).tolist() == [0, 1, 2, 3, 4, 5]
    config.search.batch_parts = 2  # normalised part by part
    assert ablate._places(config, None).tolist() == [0, 2]


# --- variants and masks -------------------------------------------------------------------------------------------


def test_neighbours_are_all_genotypes_that_differ_in_one_token():
    found = variants.neighbours(SPACE, GENOTYPE)
    assert len(found) == (SPACE.limits() - 1).sum()
    assert len({variant.genotype.tobytes() for variant in found}) == len(found)
    for variant in found:
        ((layer, column),) = np.argwhere(variant.genotype != GENOTYPE)
        assert (layer, genotype_lib.FIELDS[column]) == (variant.layer, variant.field)
        genotype_lib.validate(SPACE, variant.genotype)
    first = [(variant.field, variant.after) for variant in found[:6]]
    assert first == [("op_a", "none"), ("op_b", "none")] * 2 + [("agg", "gate"), ("agg", "sum")]
    assert [variant.before for variant in found[:6]] == ["conv_1x1", "skip", "max_pool_3x3", "conv_1x1", "sum", "gate"]


def test_uniform_draws_respect_a_mask_and_a_full_mask_changes_nothing():
    mask = np.array([False, True, False, True])
    rows = genotype_lib.random(SPACE, np.random.default_rng(0), 200, op_mask=mask)
    assert set(rows[..., 2:4].ravel().tolist()) == {1, 3}
    assert set(rows[..., 4].ravel().tolist()) == {0, 1} and rows[..., :2].max() == 3 and rows.dtype == np.int32
    plain, full = (
        genotype_lib.random(SPACE, np.random.default_rng(5), 50, op_mask=m) for m in (None, np.ones(4, bool))
    )
    np.testing.assert_array_equal(plain, full)


@pytest.mark.parametrize("name", sorted(strategies.TABLE))
def test_another_mask_compiles_nothing(name):
    with compilation.effort(CONFIG.compile_effort):
        whole = strategies.make(name, SPACE, CONFIG.controller)

    def play(strategy):
        state = strategy.init(jax.random.key(0))
        for step in range(2):
            samples = strategy.sample(state, jax.random.key(step), 2)
            state, _ = strategy.update(state, samples, np.ones(2, np.float32), np.ones(2, bool), jax.random.key(step))
        return np.asarray(strategy.sample(state, jax.random.key(9), 2).genotypes), strategy.probable(
            state, jax.random.key(8), 4
        )

    play(whole)
    with compilations.count() as counts:
        for index in range(4):
            mask = np.arange(4) != index
            masked = whole.with_mask(mask)
            np.testing.assert_array_equal(masked.op_mask, mask)
            for rows in play(masked):
                assert not (rows[..., 2:4] == index).any()
    assert not counts, counts


# --- the command's work -------------------------------------------------------------------------------------------


def test_replace_scores_every_neighbour_on_one_program(folder, parts):
    base_before = parts.steps.evaluate_shared._cache_size()
    report = ablate.run(CONFIG, folder, what="replace")
    assert parts.steps.evaluate_shared._cache_size() == max(base_before, 1)
    lines = folder.read(ablate_variants.LOG)
    found = variants.neighbours(SPACE, GENOTYPE)
    assert len(lines) == 1 + len(found) + len(cell_end.PARTS)
    assert lines[0]["hash"] == lines[0]["base"] == genotype_lib.digest(SPACE, GENOTYPE)
    params = ablate_variants.trained_weights(parts, folder)
    expected = pipeline.score(parts, params, np.stack([GENOTYPE, found[3].genotype]), 3)
    assert lines[0]["reward"] == pytest.approx(expected[0]["reward"])
    assert lines[7]["reward"] == pytest.approx(expected[1]["reward"])
    for line, part in zip(lines[1:4], cell_end.PARTS, strict=True):
        own = {**params, "ports": cell_end.without(params["ports"], part)}
        assert (line["hash"], line["before"]) == (f"{lines[0]['base']}_without_{part}", part)
        assert line["reward"] == pytest.approx(pipeline.score(parts, own, GENOTYPE[None], 3)[0]["reward"])
    assert [line["macs"] for line in (lines[0], lines[4])] == [
        cost.of(SPACE, genotype, SETTINGS, (4, 4)).macs for genotype in (GENOTYPE, found[0].genotype)
    ]
    assert json.loads((folder.path / "ablation_replace.json").read_text()) == report.content
    assert len(report.content["tokens"]) == SPACE.num_tokens + 3
    assert report.text.count("\n") == 3 + SPACE.num_tokens + 3
    assert "| end | correction |" in report.text
    assert (folder.path / "figures" / "ablation_replace.png").stat().st_size > 10_000
    ablate.run(CONFIG, folder, what="replace")
    assert len(folder.read(ablate_variants.LOG)) == len(lines), "nothing is done twice"


def test_masked_operations_replace_nothing_and_are_named(folder):
    config = make_config()
    config.controller.masked_operations = ("skip", "conv_1x1")
    masked = workdir.Workdir(folder.path / "masked")
    masked.claim(config)
    masked.write_json(winners.BEST, genotype_lib.to_dict(SPACE, GENOTYPE))
    (masked.path / "checkpoints").symlink_to(folder.path / "checkpoints")
    folder = masked
    report = ablate.run(config, folder, what="replace", limit=15)  # the parts of the end come first
    after = [line["after"] for line in folder.read(ablate_variants.LOG)]
    # skip has no weights, those of conv_1x1 were never trained.
    assert "skip" in after and "conv_1x1" not in after and len(after) == 16
    assert (report.content["masked"], report.content["left_out"]) == (["skip", "conv_1x1"], ["conv_1x1"])
    assert report.text.splitlines()[1:3] == [
        "Masked in the search (controller.masked_operations): skip, conv_1x1",
        "The shared weights of conv_1x1 were never trained, so it replaces nothing here",
    ]
    assert "| 0 | operation a | conv_1x1, masked |" in report.text
    config.search.mode = "scratch"  # each variant is trained alone, with all of its weights
    assert ablate_variants.untrained(config) == ()


def test_a_search_that_counts_the_cost_pays_a_cell_above_its_target_less(parts):
    params = parts.steps.init(jax.random.key(0)).params
    rows = np.stack([GENOTYPE, GENOTYPE])
    free = pipeline.score(parts, params, rows, 2)[0]
    config = make_config()
    config.search.update({"cost": 0.5, "cost_target": free["macs"] / 4e6})
    paid = pipeline.score(parts._replace(config=config), params, rows, 2)[0]
    assert paid["reward"] == pytest.approx(free["reward"] / 2)
    assert paid["miou"] == free["miou"]


class StopWhen:
    """A signal that arrives as soon as something is the case."""

    name = "SIGTERM"

    def __init__(self, is_so_fn: Callable[[], bool]) -> None:
        self._is_so_fn = is_so_fn

    @property
    def requested(self) -> bool:
        return self._is_so_fn()

    def is_due(self, step: int, *, every: int = 1) -> bool:
        return self.requested


def test_a_stopped_replace_goes_on(folder):
    chosen = variants.neighbours(SPACE, GENOTYPE)[:6]
    stop = StopWhen(lambda: len(folder.read(ablate_variants.LOG)) >= 4)
    with pytest.raises(errors.Stopped, match="4 of 7 were finished"):
        ablate_variants.replace(CONFIG, folder, stop, GENOTYPE, chosen)
    before = folder.read(ablate_variants.LOG)
    with (folder.path / ablate_variants.LOG).open("a") as log:
        log.write('{"what": "repl')  # a torn line, as a killed run leaves it
    again = workdir.Workdir(folder.path)
    records = ablate_variants.replace(CONFIG, again, signals.StopFlag(), GENOTYPE, chosen)
    assert [record["after"] for record in records] == ["", *(variant.after for variant in chosen)]
    lines = again.read(ablate_variants.LOG)
    assert len(before) == 4 and lines[:4] == before and len(lines) == 7, "nothing is done twice"


def test_leave_one_out_is_one_compilation_for_all_searches(folder):
    ablate_variants.leave_one_out(CONFIG, folder, signals.StopFlag(), num_steps=4, limit=0)
    with compilations.count() as counts:
        jax.jit(lambda x: x + 1)(np.ones(3, np.float32))
    assert counts.total() == 1, "it counts"
    with compilations.count() as counts:  # the searches that are masked run what the whole one compiled
        records = ablate_variants.leave_one_out(CONFIG, folder, signals.StopFlag(), num_steps=4)
    assert not counts, counts
    assert [record["without"] for record in records] == [None, *OPERATIONS]
    place = folder.path / ablate_variants.FOLDER / "search_4_steps_2_warmup"
    for record in records:
        name = record["without"]
        log = workdir.Workdir(place / (f"without_{name}" if name else "all")).read(loop.LOG)
        chosen = {OPERATIONS[token] for line in log for row in line["genotype"] for token in row[2:4]}
        assert name not in chosen and len(log) == 8
        masked = workdir.Workdir(place / (f"without_{name}" if name else "all")).config().controller.masked_operations
        assert masked == ((name,) if name else ()), "its own report says so"
        rewards = [line["reward"] for line in log]
        assert record["best"] == max(rewards)
        assert record["mean_last_quarter"] == pytest.approx(np.mean(rewards[6:]))


def test_the_search_with_all_operations_is_the_plain_search(folder, searched):
    (record,) = ablate_variants.leave_one_out(CONFIG, folder, signals.StopFlag(), num_steps=4, limit=0)
    assert record["best"] == max(line["reward"] for line in searched.read(loop.LOG))


def test_a_stopped_leave_one_out_ends_in_the_same_searches(folder, tmp_path_factory):
    whole = workdir.Workdir(tmp_path_factory.mktemp("whole"))
    options = {"num_steps": 4, "limit": 2}
    expected = ablate_variants.leave_one_out(CONFIG, whole, signals.StopFlag(), **options)
    second = workdir.Workdir(
        folder.path / ablate_variants.FOLDER / "search_4_steps_2_warmup" / f"without_{OPERATIONS[0]}"
    )
    stop = StopWhen(lambda: len(second.read(loop.LOG)) >= 4)  # two steps of two candidates
    with pytest.raises(errors.Stopped, match="after step 2 of 4"):
        ablate_variants.leave_one_out(CONFIG, folder, stop, **options)
    assert len(folder.read(ablate_variants.LOG)) == 1
    found = ablate_variants.leave_one_out(CONFIG, workdir.Workdir(folder.path), signals.StopFlag(), **options)
    assert found == expected and len(folder.read(ablate_variants.LOG)) == 3


def test_retrain_trains_the_genotype_and_the_first_variants(folder):
    report = ablate.run(CONFIG, folder, what="retrain", num_steps=2, limit=1)
    lines = folder.read(ablate_variants.LOG)
    assert [line["after"] for line in lines] == ["", "none"]
    assert all(line["steps"] == 2 and 0 <= line["reward"] <= 1 for line in lines)
    cells = folder.path / ablate_variants.FOLDER / "retrain_2_steps" / "checkpoints"
    assert sorted(path.name for path in cells.iterdir()) == sorted(f"cell_{line['hash']}" for line in lines)
    row = report.content["tokens"][0]
    assert row["none"] == pytest.approx(lines[1]["reward"] - lines[0]["reward"])
    before = contents(folder.path / ablate_variants.FOLDER)
    assert ablate.run(CONFIG, workdir.Workdir(folder.path), what="retrain", num_steps=2, limit=1).text == report.text
    assert contents(folder.path / ablate_variants.FOLDER) == before, "a second time nothing is trained"


def test_the_rows_of_the_table_are_differences_to_the_genotype():
    def record(field, after, reward, before="conv_1x1"):
        return {"layer": 0, "field": field, "before": before, "after": after, "reward": reward}

    records = [
        record("", "", 0.5),
        record("op_a", "none", 0.4),
        record("op_a", "skip", 0.45),
        record("op_a", "conv_3x3", 0.52),
        record("op_a", "max_pool_3x3", 0.44),
        record("agg", "gate", None, before="sum"),
    ]
    operation, aggregation = ablate_report.tokens(records)
    assert operation["none"] == pytest.approx(-0.1) and operation["skip"] == pytest.approx(-0.05)
    assert operation["others"] == pytest.approx((0.02 - 0.06) / 2)
    assert operation["best_name"] == "conv_3x3" and operation["best"] == pytest.approx(0.02)
    assert aggregation["others"] is None and aggregation["best_name"] is None and aggregation["diverged"] == 1


def test_the_table_of_searches_compares_with_the_whole(tmp_path):
    rows = [
        {"without": name, "best": best, "mean_last_quarter": mean, "num_scored": 8, "num_diverged": 0}
        for name, best, mean in ((None, 0.5, 0.4), ("skip", 0.45, None), ("conv_1x1", 0.51, 0.39))
    ]
    report = ablate_report.write_searches(workdir.Workdir(tmp_path), rows)
    lines = report.text.splitlines()
    assert lines[4] == "| nothing | 50.00 |  | 40.00 |  | 0 |"
    assert lines[5] == "| skip | 45.00 | -5.00 | - | - | 0 |"
    assert lines[6] == "| conv_1x1 | 51.00 | +1.00 | 39.00 | -1.00 | 0 |"
    assert [path.rsplit("/", 1)[1] for path in report.paths] == [
        "ablation_leave_one_out.json", "ablation_leave_one_out.md", "ablation_leave_one_out.png",
    ]  # fmt: skip


# --- wrong input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "leave_one_out"}, "unknown 'leave_one_out', did you mean 'leave-one-out'"),
        ({"what": "leave-one-out", "genotype": "x.json"}, "takes none"),
        ({"what": "replace", "num_steps": 3}, "replace scores as the search did"),
        ({"what": "retrain", "num_steps": 0}, "--steps: must be at least 1"),
        ({"what": "retrain", "limit": 0}, "--limit: must be at least 1"),
        ({"genotype": "missing.json"}, "missing.json does not exist"),
        ({"genotype": "zoo:grfpp"}, "did you mean 'zoo:grfp'"),
    ],
)
def test_words_that_make_no_sense_are_told(folder, options, message):
    with pytest.raises(errors.UserError, match=message) as error:
        ablate.run(CONFIG, folder, **options)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_search_and_a_mask_that_leaves_nothing_are_told(parts, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UserError, match="holds no run"):
        ablate.run(CONFIG, workdir.Workdir(tmp_path / "empty"))
    started = workdir.Workdir(tmp_path / "started")
    started.claim(CONFIG)
    with pytest.raises(errors.UserError, match="holds no trained cell"):
        ablate.run(CONFIG, started)
    with pytest.raises(errors.UserError, match="holds no trained static network"):
        ablate_variants.assemble(CONFIG, started, is_training=True)
    with pytest.raises(errors.UserError, match="holds no finished search .0 of 4 steps."):
        ablate_variants.trained_weights(parts, started)
    config = make_config()
    config.controller.masked_operations = ("none", "skip", "conv_1x1")
    with pytest.raises(errors.UserError, match="leaves one operation"):
        ablate_variants.leave_one_out(config, started, signals.StopFlag(), num_steps=1)


def test_the_command_gives_exit_codes(monkeypatch, tmp_path, capsys):
    words = ["ablate", "--config=configs/smoke.py", f"--workdir={tmp_path}"]
    assert cli.main([*words, "--what=nothing"]) == errors.EXIT_USER
    assert cli.main([*words[:2], f"--workdir={tmp_path / 'no'}"]) == errors.EXIT_USER
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "--what: unknown 'nothing'" in told[0] and "does not exist" in told[1]

    def stopped(config, folder, **options):
        assert options == {"what": "retrain", "genotype": "zoo:dff", "num_steps": 5, "limit": 2}
        raise errors.Stopped("ablate retrain: stopped, 1 of 3 were finished")

    monkeypatch.setattr(ablate, "run", stopped)
    words += ["--what=retrain", "--genotype=zoo:dff", "--steps=5", "--limit=2"]
    assert cli.main(words) == errors.EXIT_STOPPED


@pytest.mark.slow
def test_the_command_takes_a_real_run_apart(tmp_path, capsys):
    words = ["--config=configs/smoke.py", f"--workdir={tmp_path}"]
    assert cli.main(["search", *words]) == errors.EXIT_DONE
    for what, options in (("replace", []), ("leave-one-out", ["--steps=1", "--limit=2"]), ("retrain", ["--limit=2"])):
        capsys.readouterr()
        assert cli.main(["ablate", *words, f"--what={what}", *options]) == errors.EXIT_DONE
        shown = capsys.readouterr().out
        table = (tmp_path / f"ablation_{what.replace('-', '_')}.md").read_text()
        assert table in shown + "\n" and table.count("| ") > 10
    (base, *_) = workdir.Workdir(tmp_path).read(ablate_variants.LOG)
    assert base["hash"] == base["base"] and base["macs"] > 0
