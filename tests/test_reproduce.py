"""`dvsnas reproduce`: it goes on after a kill to the same tables, its plan adds up, and it says which figures moved."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import trained
from test_compare import scores, times
from test_space import SETTINGS, make_features, randomised

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import pipeline
from dvsnas_jax.nets import static_net
from dvsnas_jax.nets.weights import weights_folder
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, neighbours, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import compare, strategies_search
from dvsnas_jax.studies.reproduce import command, plan, recipes, record, stages, tables
from dvsnas_jax.train import claims, pretrain

PROPAGATE = {
    "space.mode": "propagate",
    "space.inputs": "prev_state,prev_decoder,stage1",
    "schedule.interval": "2",
    "data.num_frames": "3",
}
RECIPE = recipes.Recipe(
    "synthetic",
    recipes.MINUTES,
    (recipes.Part("refine", "smoke"), recipes.Part("propagate", "smoke", PROPAGATE)),
    num_seeds=2,
    limit=4,
)
MEMBERS = ("zoo:ema", "zoo:grfp", "zoo:hold", "zoo:dff")
UNITS = 1 + 2 * 2 + 2 * (2 + 2) * 2 + 2 + 1 + 2 + 2
"""Static network; searches; two members and two found cells, two seeds, two modes; without history; static network
trained on; found cells; ablations."""


class Killed(BaseException):
    """What SIGKILL is to a process: nothing catches it."""


class Commands:
    """The commands without networks, a unit of work each; dies before the unit that is one too many.

    The mIoU of a cell is its number of layers and its seed; `refine` finds a cell of four layers, so it is above all.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.configs: dict[str, object] = {}
        self.left: int | None = None
        self.is_stopping = False

    def unit(self, name: str, stop: signals.StopFlag | None = None) -> None:
        if self.left == 0:
            if self.is_stopping and stop is not None:
                stop.requested = True
                self.left = None
            else:
                raise Killed
        elif self.left is not None:
            self.left -= 1
        self.done.append(name)

    def work(self) -> stages.Work:
        one = functools.partial(compare.run, make_score=self._make_score)
        return stages.Work(self.static, self.score, self.weights, self.search, one, self.ablate)

    def static(self, config, folder) -> None:
        claims.claim(config, folder)
        place = folder.path / "checkpoints" / pretrain.STAGE / str(config.pretrain.steps)
        if not place.is_dir():
            self.unit(f"static {config.space.mode}")
            place.mkdir(parents=True)
            (place / "weights").write_text(config.space.mode)

    def search(self, config, folder, names, budget) -> None:
        for name in names:
            own = workdir.Workdir(folder.path / strategies_search.FOLDER / f"{name}_0")
            if (own.path / "derived_0.json").is_file():
                continue
            self.unit(f"search {config.space.mode} {name}")
            changed = config_lib.changed(config, {"search.strategy": name})
            claims.claim(changed, own, ignore=strategies_search.MAY_DIFFER)
            found = _cell(config.space.mode, 4 if name == "ppo" else 2)
            line = {"what": strategies_search.RETRAIN, "strategy": name, "seed": 0, "rank": 0, "reward": 0.5}
            folder.append(strategies_search.LOG, line)
            own.write_json("derived_0.json", found)
        (folder.path / "strategies.md").write_text(f"searches: {', '.join(names)}\n")

    def _make_score(self, config, folder, stop, entries) -> compare.ScoreFn:
        self.configs[folder.path.name] = config

        def score(entry, own) -> dict:
            self.unit(f"{folder.path.name} {own.space.mode} {entry.name.rpartition('/run/')[2]} {own.seed}", stop)
            costs = {"parameters": 100, "macs": 2000}
            miou = 0.2 + len(entry.genotype) / 100 + own.seed / 1000
            return {
                "num_frames": 20,
                "static": scores(0.21),
                "cell": {**scores(miou), "key_share": 0.5},
                "times": {"static": times(4.0, all=4.0), "cell": times(5.0, key=4.5, cell=1.5)},
                "cost": {"static": costs, "cell": costs},
            }

        return score

    def score(self, config, folder, genotype) -> None:
        claims.claim(config, folder)
        self.configs[folder.path.name] = config
        if not (folder.path / "evaluation.json").is_file():
            self.unit(f"{folder.path.name} {config.space.mode}")
            more = {} if genotype is None else {"static_clean": scores(0.3), "commonest_class": scores(0.01)}
            folder.write_json("evaluation.json", {"static": scores(0.2), "cell": None, **more})

    def weights(self, config, folder, output) -> None:
        assert pretrain.is_trained(config, folder)
        output.mkdir()
        (output / weights_folder.MANIFEST).write_text("{}")

    def ablate(self, config, folder, *, what, genotype, limit) -> None:
        assert pretrain.is_trained(config, folder) and config.search.strategy == "ppo" and limit == RECIPE.limit
        if not (folder.path / f"ablation_{what}.md").is_file():
            self.unit(f"ablate {config.space.mode}")
            (folder.path / f"ablation_{what}.md").write_text(f"ablation of {pathlib.Path(genotype).name}\n")


def _cell(mode: str, num_layers: int) -> dict:
    """A cell with a memory, by name."""
    own = ("decoder", "prev_logits", "image_diff") if mode == "refine" else ("stage1", "prev_decoder", "stage1")
    layers = [{"in": ["prev_state", own[0]], "ops": ["skip", "skip"], "agg": "gate"}]
    layers += [{"in": [f"layer{i}", own[1 + i % 2]], "ops": ["skip", "conv_1x1"], "agg": "sum"} for i in range(9)]
    inputs = list(dict.fromkeys(["prev_state", *own]))
    return {"version": 1, "inputs": inputs, "layers": layers[:num_layers]}


def run(commands: Commands, path: pathlib.Path) -> dict:
    options = command.Options("synthetic", against=_nothing_of_record(path))
    return command.run(
        options, path / "run", work=commands.work(), recipe=RECIPE, tell_fn=lambda text: None
    ).content  # fmt: skip


def _nothing_of_record(path: pathlib.Path) -> pathlib.Path:
    (path / "none.json").write_text("{}")
    return path / "none.json"


@pytest.fixture(autouse=True, scope="module")
def few():
    """Two members of each mode, in place of all of them, and no work to be counted."""
    kept = [zoo.get(name) for name in MEMBERS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "of_mode", lambda mode: tuple(member for member in kept if member.mode == mode))
        patch.setattr(plan, "_Counted", _Nothing)
        yield


class _Nothing:
    """In place of counted work: none."""

    is_there = True
    features = search = job = evaluation = plan.Load()

    def __init__(self, config) -> None:
        self.config = config

    def static(self, steps: int) -> plan.Load:
        return plan.Load(steps)

    def ablation(self, limit: int | None) -> plan.Load:
        return plan.Load(limit or 0)


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory) -> tuple[Commands, pathlib.Path, dict]:
    """A reproduction that nobody stops."""
    path, commands = tmp_path_factory.mktemp("whole"), Commands()
    return commands, path, run(commands, path)


# --- stages and their resumption ------------------------------------------------------------------------------------


def figures(content: dict) -> dict:
    """All that does not depend on when it was measured."""
    return {key: content[key] for key in ("verdict", "parts", "changes", "num_seeds")}


def test_killed_and_stopped_it_ends_in_the_same_tables(whole, tmp_path) -> None:
    expected, _, content = whole
    commands = Commands()
    for left, is_stopping in ((2, False), (5, True), (9, False)):
        commands.left, commands.is_stopping = left, is_stopping
        with pytest.raises(errors.Stopped if is_stopping else Killed):
            run(commands, tmp_path)
        commands.left = None
    found = run(commands, tmp_path)
    assert commands.done == expected.done and len(commands.done) == UNITS  # no unit was done twice
    assert json.dumps(figures(found)) == json.dumps(figures(content)).replace(str(whole[1]), str(tmp_path))
    assert run(commands, tmp_path)["parts"] == found["parts"] and len(commands.done) == UNITS


def test_controls_are_trained_as_they_are_called(whole) -> None:
    commands, path, _ = whole
    assert commands.configs["without_history"].space.end == cell_end.CLASSIFIER
    assert commands.configs["cells"].space.end == cell_end.HEADS
    on, config = commands.configs["static_on"], config_lib.load(str(recipes._file("smoke")))
    assert on.pretrain.steps == config.train.steps == 20 and on.pretrain.warmup_steps == 2
    assert pathlib.Path(on.net.weights) == path / "run" / "refine" / "start"
    space, genotype = genotype_lib.read(path / "run" / "refine" / "without_history_ppo_0.json")
    assert not [name for name in space.inputs if name.startswith("prev_") or name == "image_diff"]
    # The second part stands on the static network of the first.
    assert (path / "run/propagate/found/checkpoints/pretrain/20/weights").read_text() == "refine"


def test_all_rows_stand_in_one_table(whole) -> None:
    *_, content = whole
    names = {mode: [row["name"] for row in part["rows"]] for mode, part in content["parts"].items()}
    found = ["searched by ppo, search 0", "searched by random, search 0"]
    clean = ["static network, undegraded frames", "always the commonest class"]
    assert names["refine"] == [
        "static network", "static network, trained on", *clean, "zoo:ema", "zoo:grfp", *found,
        "searched by ppo, search 0, without history",
    ]  # fmt: skip
    assert names["propagate"] == ["static network", *clean, "zoo:hold", "zoo:dff", *found]
    rows = {row["name"]: row for row in content["parts"]["refine"]["rows"]}
    assert rows["searched by ppo, search 0"]["miou"]["values"] == pytest.approx([0.24, 0.241])
    assert rows["static network, trained on"]["miou"]["values"] == [0.2]
    assert rows["static network, trained on"]["macs"] == rows["static network"]["macs"]


def test_report_says_what_is_gained_and_what_is_of_record(whole) -> None:
    _, path, content = whole
    text = (path / "run" / "reproduce.md").read_text()
    assert text.splitlines()[2].startswith("- refine: searched by ppo, search 0: mIoU 24.1 ± 0.1, flicker 50.0")
    assert "- +3.0 mIoU, above zoo:ema" in text and "- +3.1 mIoU, above static network" in text
    assert "ablation of derived_0.json" in text and "searches: ppo, random" in text
    assert "Nothing is of record for it yet" in text
    for name in ("reproduce.json", "reproduce.png", "refine.png", "propagate.png"):
        assert (path / "run" / name).stat().st_size > 1000
    assert content["seconds"]["refine/compare"]["count"] == 8


def row(name: str, miou: float, std: float | None = None, flicker: float = 0.1) -> dict:
    return {
        "name": name,
        "miou": {"mean": miou, "std": std, "values": [miou] * (1 if std is None else 2)},
        "flicker": {"mean": flicker, "std": std, "values": [flicker]},
        "vc_8": None,
        "macs": {"mean": 7, "std": None, "values": [7]},
    }


def test_what_does_not_beat_its_baseline_says_so_first() -> None:
    rows = [row("static network", 0.3), row("zoo:ema", 0.35, 0.002), row("zoo:grfp", 0.36, 0.001)]
    result = {"mode": "refine", "headline": "own", "rows": [*rows, row("own", 0.345, 0.01)]}
    first, own, *others = tables.verdict(result)
    assert first == "refine: does not beat zoo:ema, which needs no training"
    assert own == "own: mIoU 34.5 ± 1.0, flicker 10.0 ± 1.0"
    assert [line.split(":")[0] for line in others] == [
        "-0.5 mIoU, within the spread of zoo", "+4.5 mIoU, above static network", "-1.5 mIoU, below zoo"
    ]  # fmt: skip


def test_searches_of_a_strategy_have_a_mean() -> None:
    rows = [{**row(name, miou, 0.01), "strategies": ["ppo"]} for name, miou in (("a", 0.3), ("b", 0.4))]
    (mean,) = tables._mean("ppo", rows)
    assert mean["name"] == "searched by ppo, mean of 2 searches" and mean["macs"]["mean"] == 7
    assert mean["miou"]["mean"] == pytest.approx(0.35) and mean["miou"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert tables._mean("random", rows) == [] == tables._mean("ppo", rows[:1])


# --- the figures of record ------------------------------------------------------------------------------------------


def statuses(now: list[dict], before: list[dict]) -> dict[tuple[str, str], str]:
    changes = record.compare({"refine": record.figures_of(now)}, {"refine": record.figures_of(before)})
    return {(each["row"], each["metric"]): each["status"] for each in changes}


def test_what_differs_by_more_than_the_spread_has_moved() -> None:
    before = [row("static", 0.30), row("a", 0.40, 0.01), row("gone", 0.1)]
    now = [row("static", 0.305), row("a", 0.411, 0.005, flicker=0.105), row("new", 0.1)]
    found = statuses(now, before)
    assert found["a", "miou"] == record.MOVED  # by 0.011, the larger deviation is 0.01
    assert found["a", "flicker"] == record.SAME
    assert found["static", "miou"] == record.SAME  # one seed: what the column varies by, 0.01
    assert found["new", "miou"] == record.NEW and found["gone", "miou"] == record.GONE
    assert ("a", "macs") not in found
    assert statuses([row("static", 0.33), now[1]], before[:2])["static", "miou"] == record.MOVED
    assert statuses([row("static", 0.33)], before[:1])["static", "miou"] == record.UNKNOWN


def test_a_run_of_record_is_compared_with_the_next(whole, tmp_path) -> None:
    *_, content = whole
    path = tmp_path / "record.json"
    path.write_text('{"other/paper": {"figures": {}}}')
    record.write(path, RECIPE.key, content)
    assert sorted(json.loads(path.read_text())) == ["other/paper", RECIPE.key]
    entry = record.read(path, RECIPE.key)
    assert entry["commit"] == content["commit"] and entry["machine"] == content["machine"]
    assert entry["seconds"] == content["seconds"]
    now = {mode: record.figures_of(part["rows"]) for mode, part in content["parts"].items()}
    assert {each["status"] for each in record.compare(now, entry["figures"])} == {record.SAME}
    now["refine"]["zoo:grfp"]["miou"]["mean"] += 0.1
    text = "\n".join(record.markdown(record.compare(now, entry["figures"]), entry))
    assert "| refine | zoo:grfp | miou | 23.05 | 33.05 | 0.07 | moved |" in text and "1 moved" in text


# --- the plan -------------------------------------------------------------------------------------------------------


def test_time_of_a_stage_is_of_record_or_counted() -> None:
    stage = plan.Stage("refine", plan.COMPARE, "cells", 4, plan.Load(2e9, 3e9) + plan.Load(1e9) * 2, 2)
    machine = plan.Machine("slow", 1e9, 1.5e9, 5.0)
    assert plan.seconds(stage, machine, {}) == 4 + 2 + 10
    assert plan.seconds(stage, machine, {"refine/compare": {"seconds": 30.0, "count": 3}}) == 40.0


def test_plan_has_every_stage_once_and_counts_its_pieces() -> None:
    made, notes = plan.of(RECIPE, [recipes.configs(part, {}) for part in RECIPE.parts])
    kinds = [kind for kind in plan.KINDS if kind != plan.CELLS_STATIC]
    assert [stage.key for stage in made] == [f"refine/{kind}" for kind in kinds] + [
        f"propagate/{kind}" for kind in kinds if kind not in (plan.WITHOUT, plan.STATIC_ON)
    ]
    counts = {stage.key: stage.count for stage in made}
    assert counts["refine/compare"] == (2 + 2) * 2 and counts["refine/without_history"] == 2
    loads = {stage.key: stage.load.macs for stage in made}
    assert loads["refine/static"] == 20 and loads["propagate/static"] == 0  # the second part is given the first's
    assert loads["refine/static_on"] == 20 and loads["refine/ablate"] == 4 and notes == []
    text = plan.text(made, {"refine/static": 90.0}, {"refine/compare": {"seconds": 120.0, "count": 8}})
    assert re.search(r"refine/static \| .* \| counted \| 1.5 min \|", text)
    assert re.search(r"refine/compare \| .* \| 2.0 min \| record \|", text)


def test_cells_of_another_size_have_a_static_network_of_their_own() -> None:
    part = recipes.Part("refine", "smoke", cells="smoke", cells_changes={"pretrain.steps": "30"})
    recipe = dataclasses.replace(RECIPE, parts=(part,))
    made, _ = plan.of(recipe, [recipes.configs(part, {"seed": "3"})])
    assert [stage.load.macs for stage in made if stage.kind in (plan.STATIC, plan.CELLS_STATIC)] == [20, 30]
    assert [config.seed for config in recipes.configs(part, {"seed": "3"})] == [3, 3]


@pytest.mark.parametrize("recipe", recipes.TABLE, ids=lambda recipe: recipe.key)
def test_every_recipe_has_configurations_that_can_be_read(recipe) -> None:
    assert [part.mode for part in recipe.parts] == ["refine", "propagate"]
    for part in recipe.parts:
        for config in recipes.configs(part, {}):
            assert config.space.mode == part.mode and config.data.name == recipe.name
            assert part.mode == "refine" or config.data.num_frames > config.schedule.interval
            if recipe.is_static_shared:
                first = recipes.configs(recipe.parts[0], {})
                of_net = ("net", "pretrain", "seed")
                assert any(all(config[key] == one[key] for key in of_net) for one in first)


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("synthetik --workdir=x", "NAME: unknown 'synthetik', did you mean 'synthetic'? allowed are synthetic, camvid"),
        ("camvid --budget=hours --workdir=x", "--budget: unknown 'hours', allowed are minutes, paper"),
        ("camvid --seeds=0 --plan", "--seeds: must be at least 1, got 0"),
        ("camvid", "--workdir: is needed, or --plan"),
        ("camvid --against=nowhere.json --plan", "--against: nowhere.json does not exist"),
        ("camvid --workdir=x --record=x.txt", "--record: x.txt must end in .json"),
        ("synthetic --workdir=x --config.search.stepz=1", "did you mean 'search.steps'"),
    ],
)
def test_wrong_words_are_one_line_and_leave_no_folder(words, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *words.split()]) == 2
    assert re.fullmatch(rf"dvsnas: error: .*{re.escape(message)}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_another_reproduction_is_refused(whole, capsys) -> None:
    path = whole[1] / "run"
    assert cli.main(["reproduce", "synthetic", f"--workdir={path}", "--config.seed=1", "--plan"]) == 2
    assert "holds another reproduction, these differ: overrides (it was {})" in capsys.readouterr().err
    assert cli.main(["reproduce", "synthetic", f"--workdir={path / 'refine' / 'cells'}"]) == 2
    assert "is a run folder; choose another --workdir" in capsys.readouterr().err


def test_plan_of_a_command_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "synthetic", "--plan", "--seeds=5", "--workdir=x"]) == 0
    assert "synthetic, budget minutes: 5 seeds" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


# --- controls -------------------------------------------------------------------------------------------------------


def test_without_history_names_the_current_frame() -> None:
    space, genotype = genotype_lib.from_dict(_cell("refine", 3))
    own, rows = neighbours.without_history(space, genotype)
    assert genotype_lib.to_dict(own, rows) == {
        "version": 1,
        "inputs": ["decoder", "logits"],
        "layers": [
            {"in": ["decoder", "decoder"], "ops": ["skip", "skip"], "agg": "gate"},
            {"in": ["layer0", "logits"], "ops": ["skip", "conv_1x1"], "agg": "sum"},
            {"in": ["layer1", "decoder"], "ops": ["skip", "none"], "agg": "sum"},
        ],
    }


def test_without_history_earlier_frames_change_nothing() -> None:
    space, genotype = genotype_lib.from_dict(_cell("refine", 3))
    features = make_features(7)

    def logits(space, genotype) -> tuple[np.ndarray, np.ndarray]:
        cell = cell_lib.make(space, genotype, dataclasses.replace(SETTINGS, end=cell_end.CLASSIFIER))
        params = randomised(jax.jit(cell.init)(jax.random.key(0)), 1)
        unroll = jax.jit(cell.unroll)
        alone = [unroll(params, jax.tree.map(lambda x, t=t: x[t : t + 1], features))[0] for t in range(3)]
        return np.asarray(unroll(params, features)), np.stack(alone)

    np.testing.assert_allclose(*logits(*neighbours.without_history(space, genotype)), atol=1e-5)
    together, alone = logits(space, genotype)
    assert np.abs(together - alone)[1:].max() > 0.1


def test_weights_to_train_on_are_those_of_the_static_network(tmp_path) -> None:
    folder = workdir.Workdir(trained.write(tmp_path / "run", "refine"))
    config = folder.config()
    stages.save_weights(config, folder, tmp_path / "start")
    net = static_net.make(config.net, pipeline.class_table(config.data).num_classes)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), static_net.shapes(net))
    found = weights_folder.load(tmp_path / "start", empty, config.net)
    jax.tree.map(np.testing.assert_array_equal, found, pretrain.restore(config, folder))


def test_static_network_is_copied_whole_or_not_at_all(tmp_path) -> None:
    source, target = workdir.Workdir(tmp_path / "a"), workdir.Workdir(tmp_path / "b")
    for name in ("pretrain", "pretrain_0", "warmup"):
        (source.path / "checkpoints" / name / "20").mkdir(parents=True)
        (source.path / "checkpoints" / name / "20" / "x").write_text(name)
    half = target.path / "checkpoints" / ".pretrain.tmp"
    half.mkdir(parents=True)
    (half / "half").write_text("")
    stages.share_static(source, target)
    copied = sorted(path.relative_to(target.path).as_posix() for path in target.path.rglob("x"))
    assert copied == ["checkpoints/pretrain/20/x", "checkpoints/pretrain_0/20/x"]
    assert not list(target.path.rglob("half"))
    (target.path / copied[0]).write_text("own")
    stages.share_static(source, target)
    assert (target.path / copied[0]).read_text() == "own"
