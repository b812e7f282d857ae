"""Whose a run folder is: lock, configuration, data and cell; and what is refused before anything is written."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types as pytypes

import numpy as np
import pytest
import trained
import trees

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_text, locking, workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.data.loading import pipeline as clips_lib
from dvsnas_jax.deploy import load
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.report import page as report
from dvsnas_jax.report import run_files
from dvsnas_jax.search import pipeline
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations
from dvsnas_jax.studies import ablate_variants
from dvsnas_jax.train import cell_training, claims, feature_cache, features, pretrain, training_loop, winners

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = str(ROOT / "configs" / "smoke.py")
TINY = [f"--config.data.{key}" for key in ("height=32", "width=48", "crop_height=32", "crop_width=48")]


def begin(folder: workdir.Workdir) -> None:
    """Something that was computed."""
    folder.append("metrics.jsonl", {"stage": "pretrain", "step": 1})


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert cli.main(list(words)) == errors.EXIT_USER
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("dvsnas: error: ")]
    assert captured.err.endswith(f"{line}\n")
    return line


# --- JSON ---------------------------------------------------------------------------------------------------------


def not_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_what_is_written_is_json_whatever_the_numbers(tmp_path):
    folder = workdir.Workdir(tmp_path)
    value = {"a": float("nan"), "b": [np.float32("inf"), -np.inf, 1.5], "c": np.array([[np.nan, 2]]), 3: (True, None)}
    folder.write_json("a.json", value)
    folder.append("a.jsonl", value)
    folder.scalars("search", 1, {"reward": np.float32("nan"), "loss": 0.25})
    folder.truncate("metrics.jsonl", lambda record: True)
    folder.close()
    wanted = {"a": None, "b": [None, None, 1.5], "c": [[None, 2.0]], "3": [True, None]}
    for file in ("a.json", "a.jsonl"):
        assert json.loads((tmp_path / file).read_text(), parse_constant=not_json) == wanted
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=not_json)
    assert line == {"stage": "search", "step": 1, "reward": None, "loss": 0.25}
    with pytest.raises(TypeError, match="cannot write a object as JSON"):
        json_text.dumps({"x": object()})


# --- the lock -----------------------------------------------------------------------------------------------------

_HOLD = """
import pathlib, sys, time
from dvsnas_jax.core.files import locking
give_back = locking.take(pathlib.Path(sys.argv[1]), "dvsnas search --workdir=here")
print("held", flush=True)
time.sleep(600)
"""


def hold(folder: pathlib.Path) -> subprocess.Popen:
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_has_the_folder_and_a_killed_one_blocks_nobody(tmp_path, capsys):
    config = config_lib.load(SMOKE)
    folder = workdir.Workdir(tmp_path)
    folder.claim(config)
    before = sorted(path.name for path in tmp_path.iterdir())
    process = hold(tmp_path)
    try:
        line = refused(capsys, "search", f"--workdir={tmp_path}")
        assert re.search(
            rf"--workdir: {re.escape(str(tmp_path))} is in use by process {process.pid} on \S+ since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \(dvsnas search --workdir=here\); wait until that ends",
            line,
        )
        for words in (["train"], ["compare", "--genotypes=zoo:static"], ["ablate"], ["compare-strategies"]):
            assert f"is in use by process {process.pid}" in refused(capsys, *words, f"--workdir={tmp_path}")
        with pytest.raises(errors.UserError, match="is in use by process"):
            workdir.Workdir(tmp_path / "." / "").claim(config)
        assert workdir.Workdir(tmp_path).config() == folder.config()  # reading needs no lock
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with folder.hold(), workdir.Workdir(tmp_path).hold():
        folder.claim(config)


def test_a_process_may_take_its_lock_again_and_gives_it_back_at_the_end(tmp_path):
    folder = workdir.Workdir(tmp_path / "run")
    with folder.hold():
        assert not folder.path.exists()  # a folder is made by the claim alone
        folder.claim(config_lib.load(None))
        with workdir.Workdir(folder.path).hold():
            assert len(locking._held) == 1
        assert len(locking._held) == 1
    assert not locking._held
    with pytest.raises(RuntimeError, match="a fault"), folder.hold():
        raise RuntimeError("a fault")
    assert not locking._held


def test_of_several_processes_the_first_takes_the_lock_and_all_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "tell", lambda text: '""')
    folder = workdir.Workdir(tmp_path)
    with folder.hold():
        folder.claim(config_lib.load(None))
        assert not locking._held and not list(tmp_path.iterdir())
    monkeypatch.setattr(distributed, "tell", lambda text: '"it is in use"')
    with pytest.raises(errors.UserError, match="it is in use"), folder.hold():
        pass


def test_without_locks_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = workdir.Workdir(tmp_path)
    folder.claim(config_lib.load(None))
    with folder.hold():
        assert "cannot be locked (No locks available): start no second process in it" in capsys.readouterr().err


# --- the configuration --------------------------------------------------------------------------------------------


def test_a_start_that_computed_nothing_gives_the_folder_free(tmp_path):
    first, second = config_lib.load(None), config_lib.load(None, {"seed": "4"})
    folder = workdir.Workdir(tmp_path)
    claims.claim(first, folder)
    (tmp_path / "checkpoints" / "pretrain").mkdir(parents=True)
    claims.claim(second, folder)
    assert folder.config().seed == 4
    begin(folder)
    with pytest.raises(errors.UserError, match="these keys differ: seed; .*where --config is left out"):
        claims.claim(first, folder)
    assert folder.config().seed == 4


COMMANDS = {
    "search": ("dvsnas_jax.search.pipeline", []),
    "train": ("dvsnas_jax.train.cell_training", []),
    "evaluate": ("dvsnas_jax.evaluate.evaluation", []),
    "ablate": ("dvsnas_jax.studies.ablate", []),
    "compare": ("dvsnas_jax.studies.compare", ["--genotypes=zoo"]),
    "compare-strategies": ("dvsnas_jax.studies.strategies_search", []),
    "compare-signals": ("dvsnas_jax.studies.signals", []),
    "compare-strategies --make-table": ("dvsnas_jax.studies.table_maker", []),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_config_of_the_folder_is_the_default(command, tmp_path, monkeypatch):
    workdir.Workdir(tmp_path).claim(config_lib.load(SMOKE, {"search.steps": "3"}))
    seen = []

    def run(config, *rest, **options):
        seen.append((config.search.steps, config.seed, config.space.num_layers))
        raise errors.Stopped("seen")

    name, words = COMMANDS[command]
    module = sys.modules[name] if name in sys.modules else __import__(name, fromlist=["run"])
    monkeypatch.setattr(module, "run", run)
    for more in ([], ["--config.seed=7"], [f"--config={SMOKE}"]):
        assert cli.main([*command.split(), f"--workdir={tmp_path}", *words, *more]) == errors.EXIT_STOPPED
    assert seen == [(3, 0, 2), (3, 7, 2), (4, 0, 2)]


def test_a_changed_key_of_the_folders_config_is_refused_where_it_decides(tmp_path, capsys):
    folder = workdir.Workdir(tmp_path)
    folder.claim(config_lib.load(SMOKE))
    begin(folder)
    line = refused(capsys, "search", f"--workdir={tmp_path}", "--config.search.steps=9")
    assert "these keys differ: search.steps;" in line


def test_a_longer_vocabulary_leaves_runs_as_they_were(tmp_path, monkeypatch):
    config = config_lib.load(None)
    new, old = workdir.Workdir(tmp_path / "new"), workdir.Workdir(tmp_path / "old")
    claims.claim(config, new)
    old.claim(config)  # as before names were stored
    for folder in (new, old):
        begin(folder)
    before = genotype_lib.vocabulary("operations")
    assert new.read_json("config.json")["space"]["operations"] == list(before)
    assert old.read_json("config.json")["space"]["operations"] == []
    longer = {"conv_7x7": operations.OPERATIONS["conv_3x3"], **operations.OPERATIONS}
    monkeypatch.setattr(operations, "OPERATIONS", longer)
    monkeypatch.setitem(operations.AGGREGATIONS, "min", operations.AGGREGATIONS["max"])
    for folder in (new, old):
        for given in (config, folder.config(), config_lib.load(None, {"space.operations": ",".join(before)})):
            space = features.space_of(claims.check(given, folder, ignore=ablate_variants.MAY_DIFFER))
            assert space.operations == before and "min" not in space.aggregations
        assert claims.config_of(folder).space.operations == before
    assert "conv_7x7" in features.space_of(claims.check(config, workdir.Workdir(tmp_path / "later"))).operations


def test_an_empty_list_does_not_stand_for_a_chosen_one(tmp_path):
    folder = workdir.Workdir(tmp_path)
    claims.claim(config_lib.load(None, {"space.operations": "none,skip"}), folder)
    begin(folder)
    with pytest.raises(errors.UserError, match="these keys differ: space.operations;"):
        claims.check(config_lib.load(None), folder)


# --- the data -----------------------------------------------------------------------------------------------------


def camvid(path):
    return config_lib.load(None, {"data.name": "camvid", "data.dir": str(path), "data.history": "stills"})


@pytest.fixture
def run(tmp_path: pathlib.Path) -> workdir.Workdir:
    """A run on a small CamVid in `data`, that has begun."""
    trees.camvid_segnet(tmp_path / "data")
    folder = workdir.Workdir(tmp_path / "run")
    claims.claim(camvid(tmp_path / "data"), folder)
    begin(folder)
    return folder


def test_another_spelling_of_a_path_is_the_same_data(run, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVSNAS_CAMVID", "data")
    spellings = ("data", "./data/", "link", str(tmp_path / "run" / ".." / "data"), "")
    keys = set()
    for spelling in spellings:
        config = claims.claim(camvid(spelling), run)
        keys.add(feature_cache.key(config, {"w": np.zeros(2)}, np.arange(3), ("decoder",)))
    assert len(keys) == 1
    assert run.config().data.dir == str(tmp_path / "data")
    assert clips_lib.num_clips(run.config().data, "train", 1) == 7


def test_a_relative_path_is_kept_so_that_it_can_be_read_from_anywhere(tmp_path, monkeypatch):
    trees.camvid_segnet(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    claims.claim(camvid("data"), workdir.Workdir(tmp_path / "run"))
    monkeypatch.chdir("/")
    config = workdir.Workdir(tmp_path / "run").config()
    assert config.data.dir == str(tmp_path / "data")
    assert claims.check(config, workdir.Workdir(tmp_path / "run")).data.dir == config.data.dir


def test_moved_data_goes_on_at_its_new_place(run, tmp_path):
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(errors.UserError, match="data: no such dataset folder; set data.dir to where it is now"):
        clips_lib.num_clips(claims.check(run.config(), run).data, "train", 1)
    claims.claim(camvid(tmp_path / "moved"), run)
    assert run.config().data.dir == str(tmp_path / "moved")
    assert claims.check(run.config(), run).data.dir == str(tmp_path / "moved")
    assert run.read_json("identity.json")["data"]["root"] == str(tmp_path / "moved")


def test_other_data_at_another_place_is_refused(run, tmp_path):
    trees.camvid_segnet(tmp_path / "larger", size=(60, 40))  # the same names
    fewer = trees.camvid_segnet(tmp_path / "fewer")
    for path in (fewer / "train" / "0006R0_f00960.png", fewer / "trainannot" / "0006R0_f00960.png"):
        path.unlink()
    with pytest.raises(errors.UserError, match="is other data than .*train has 7 frames, it was 7 .*--other-data"):
        claims.check(camvid(tmp_path / "larger"), run)
    with pytest.raises(errors.UserError, match="is other data than .*train has 6 frames, it was 7"):
        claims.check(camvid(fewer), run)
    assert claims.check(camvid(fewer), run, ignore=("data",)).data.dir == str(fewer)  # --other-data
    assert run.config().data.dir == str(tmp_path / "data")


def test_the_folder_of_an_older_run_knows_its_data_while_it_is_there(run, tmp_path, capsys):
    (run.path / "identity.json").unlink()
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    trees.camvid_segnet(tmp_path / "larger", size=(60, 40))
    with pytest.raises(errors.UserError, match="is other data than"):
        claims.check(camvid(tmp_path / "larger"), run)
    claims.check(camvid(tmp_path / "copy"), run)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "data")
    claims.claim(camvid(tmp_path / "copy"), run)
    assert "copy is the data of the run is not known" in capsys.readouterr().err
    assert run.config().data.dir == str(tmp_path / "copy")


def test_a_link_that_leads_elsewhere_is_looked_at(tmp_path):
    trees.camvid_segnet(tmp_path / "data")
    trees.camvid_segnet(tmp_path / "larger", size=(60, 40))
    (tmp_path / "link").symlink_to("data")
    folder = workdir.Workdir(tmp_path / "run")
    claims.claim(camvid(tmp_path / "link"), folder)
    begin(folder)
    assert folder.config().data.dir == str(tmp_path / "link")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("larger")
    with pytest.raises(errors.UserError, match="is other data than"):
        claims.check(folder.config(), folder)


def test_what_was_trained_is_used_without_the_data(tmp_path):
    folder = workdir.Workdir(tmp_path / "run")
    names = {"data.name": "folder", "data.prepared": str(tmp_path / "gone")}
    folder.claim(config_lib.load(None, names), identity={"classes": {"classes": ["a", "b"], "colors": ["#010203"] * 2}})
    table = clips_lib.class_table(claims.config_of(folder).data)
    assert table.names == ("a", "b") and table.colors.tolist() == [[1, 2, 3]] * 2
    camvid_folder = workdir.Workdir(tmp_path / "camvid")
    camvid_folder.claim(config_lib.load(None, {**names, "data.name": "camvid"}))
    assert clips_lib.class_table(claims.config_of(camvid_folder).data).num_classes == 11


# --- the cell -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cell(tmp_path: pathlib.Path) -> workdir.Workdir:
    """A run folder in which `train` made a cell."""
    return workdir.Workdir(shutil.copytree(trained.evaluated("refine").path, tmp_path / "cell"))


@pytest.fixture
def other(cell: workdir.Workdir, tmp_path: pathlib.Path) -> pathlib.Path:
    """A genotype whose weights have the same shapes."""
    record = cell.read_json("best_genotype.json")
    record["layers"][0]["in"].reverse()
    path = tmp_path / "other.json"
    path.write_text(json.dumps({name: record[name] for name in ("version", "inputs", "layers")}))
    return path


def state_of(folder: workdir.Workdir) -> dict[str, bytes]:
    """The files of a folder but the lock."""
    files = (path for path in folder.path.rglob("*") if path.is_file() and path.name != locking.FILE)
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in files}


def never(*arguments, **options):
    raise AssertionError("something is trained")


def test_another_genotype_is_refused_before_anything_is_trained(cell, other, monkeypatch):
    monkeypatch.setattr(pretrain, "run", never)
    before = state_of(cell)
    own, given = winners.read(cell), genotype_lib.digest(*cell_training.read_genotype(other))
    with pytest.raises(
        errors.UserError, match=f"genotype {own.digest}, which would be replaced; train genotype {given} in another"
    ):
        cell_training.run(cell.config(), cell, str(other))
    with pytest.raises(errors.UserError, match=f"cell of genotype {own.digest} that `dvsnas train` made"):
        pipeline.run(cell.config(), cell)
    assert state_of(cell) == before


@pytest.mark.parametrize("marks", [["genotypes.jsonl"], ["checkpoints/warmup/1/x"], ["checkpoints/search/1/x"]])
@pytest.mark.parametrize("is_done", [True, False])
def test_train_leaves_the_folder_of_a_search_alone(cell, other, marks, is_done, monkeypatch):
    monkeypatch.setattr(pretrain, "run", never)
    for mark in marks:
        (cell.path / mark).parent.mkdir(parents=True, exist_ok=True)
        (cell.path / mark).touch()
    if is_done:
        cell.write_json("best_genotype.json", {**cell.read_json("best_genotype.json"), "made_by": "search"})
        assert winners.is_search_done(cell)
    else:
        (cell.path / "best_genotype.json").unlink()
        assert not winners.is_search_done(cell)
    before = state_of(cell)
    with pytest.raises(errors.UserError, match="is the folder of a search, whose cell would be replaced; train"):
        cell_training.run(cell.config(), cell, str(other))
    assert state_of(cell) == before


def test_the_same_genotype_again_is_done_and_says_so(cell, monkeypatch, capsys):
    monkeypatch.setattr(cell_training, "train_cell", never)
    before = {name: data for name, data in state_of(cell).items() if name.startswith(("checkpoints", "best"))}
    made = cell_training.run(cell.config(), cell, str(cell.path / "best_genotype.json"))
    assert made["genotype"] == str(cell.path / "best_genotype.json")
    assert f"genotype {winners.read(cell).digest} is trained already" in capsys.readouterr().err
    assert {name: data for name, data in state_of(cell).items() if name in before} == before


def test_an_older_folder_is_a_searchs_where_it_has_candidates(cell):
    record = cell.read_json("best_genotype.json")
    cell.write_json("best_genotype.json", {name: record[name] for name in ("version", "inputs", "layers", "scores")})
    assert winners.read(cell).made_by == "train"
    cell.append("genotypes.jsonl", {"step": 0})
    assert winners.read(cell).made_by == "search" and winners.is_search_done(cell)
    bound = cell.path / "checkpoints" / f"cell_{winners.read(cell).digest}"
    bound.rename(cell.path / "checkpoints" / "cell")
    assert load.load(cell.path).mode == "refine"


def test_weights_are_never_those_of_another_genotype(cell, other, monkeypatch):
    own = winners.read(cell)
    wanted = winners.load(cell.config(), cell)[1]
    space, genotype = cell_training.read_genotype(other)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # between the two writes of another cell
        patch.setattr(workdir.Workdir, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            winners.save(cell, space, genotype, {"x": np.zeros(3)})
    assert winners.read(cell).digest == own.digest
    found = winners.load(cell.config(), cell)[1]
    np.testing.assert_array_equal(found["ports"]["head"]["kernel"], wanted["ports"]["head"]["kernel"])
    shutil.rmtree(cell.path / "checkpoints" / f"cell_{genotype_lib.digest(space, genotype)}")
    shutil.copy(other, cell.path / "best_genotype.json")
    with pytest.raises(errors.UserError, match=f"whose weights are not in this folder .there are: {own.digest}.;"):
        load.load(cell.path)


def test_an_evaluation_is_shown_for_the_cell_that_was_scored(cell, other):
    assert cell.read_json("evaluation.json")[evaluation.GENOTYPE] == winners.read(cell).digest
    page = run_files.Run(cell.path, "run", cell.path)
    assert page.scores()["cell"] and page.arrays(run_files.STRIP) is not None
    shutil.copy(other, cell.path / "best_genotype.json")
    page = run_files.Run(cell.path, "run", cell.path)
    assert page.scores() == {} and page.arrays(run_files.STRIP) is None


def test_a_report_of_a_folder_that_cannot_be_written_goes_elsewhere(cell, tmp_path, monkeypatch):
    before = state_of(cell)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(cell.path)))
    page = tmp_path / "page.html"
    assert report.write(cell.path, output=page) == [str(page)]
    assert "The cell" in page.read_text() and state_of(cell) == before


def test_a_stage_that_starts_again_drops_its_own_lines_alone(tmp_path):
    folder = workdir.Workdir(tmp_path)
    stages = ("compare_a_seed1000", "compare_a_seed10000", "compare_a_seed1000_val", "retrain_a", "retrain")
    for stage in stages:
        folder.append("metrics.jsonl", {"stage": stage, "step": 1})
    with pytest.raises(StopIteration):
        stage = training_loop.Stage(stages[0], folder, pytypes.SimpleNamespace(), num_steps=2, checkpoint_every=1)
        training_loop.fit(np.zeros(2), stage, step_fn=never, batches_fn=lambda start: iter(()))
    assert [line["stage"] for line in folder.read("metrics.jsonl")] == [stages[1], stages[3], stages[4]]


def test_a_search_marks_its_folder_and_that_alone_is_no_result(tmp_path, other):
    folder = workdir.Workdir(tmp_path / "run")
    claims.claim(config_lib.load(None), folder)
    winners.mark_search(folder)
    claims.claim(config_lib.load(None, {"seed": "4"}), folder)  # nothing was computed yet
    assert not winners.is_trained(folder, *cell_training.read_genotype(other))
    begin(folder)
    winners.unmark_search(folder)
    assert winners.is_searched(folder) and not winners.is_search_done(folder)
    with pytest.raises(errors.UserError, match="is the folder of a search"):
        winners.is_trained(folder, *cell_training.read_genotype(other))


# --- nothing is written before all is checked ---------------------------------------------------------------------

REFUSALS = {
    "data.dir": (["--config.data.name=camvid", "--config.data.dir=nowhere"], "nowhere: no such dataset folder"),
    "weights": (["--config.net.weights=nowhere"], "net.weights: nowhere has no"),
    "teacher": (["--config.pretrain.teacher=nowhere"], "pretrain.teacher: nowhere holds no run"),
    "class weights": (["--config.pretrain.class_weights=1,2"], "must be median, log or 11 numbers"),
    "attention": (["--config.space.attention_heads=3"], "space.attention_heads"),
    "inputs": (["--config.space.mode=propagate"], "does not provide decoder"),
}
STARTS = {
    "search": ["search"],
    "train": ["train", "--genotype=zoo:grfp"],
    "compare": ["compare", "--genotypes=zoo:grfp"],
    "compare-strategies": ["compare-strategies"],
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_start_leaves_no_folder(case, start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags, message = REFUSALS[case]
    if case == "inputs" and start in ("train", "compare"):
        message = "config does not fit it"
    assert message in refused(capsys, *STARTS[start], f"--config={SMOKE}", "--workdir=run", *TINY, *flags)
    assert not list(tmp_path.iterdir())


def test_a_genotype_of_another_mode_is_refused_before_the_static_network_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.json").write_text(json.dumps(trained_genotype()))
    words = ["train", f"--config={SMOKE}", "--workdir=run", "--genotype=a.json", *TINY]
    more = ["--config.space.mode=propagate", "--config.space.inputs=prev_state,stage1"]
    assert "--genotype: a.json: space.inputs: mode propagate" in refused(capsys, *words, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def trained_genotype() -> dict:
    layer = {"in": ["prev_state", "decoder"], "ops": ["skip", "skip"], "agg": "sum"}
    return {"version": 1, "inputs": ["prev_state", "decoder"], "layers": [layer]}


def test_a_trained_network_needs_neither_its_weights_nor_its_teacher(cell, monkeypatch):
    config = cell.config().copy_and_resolve_references().unlock()
    config.net.weights = config.pretrain.teacher = "gone"
    pretrain.check(config, cell)
    assert pretrain.run(config, cell, pytypes.SimpleNamespace())["params"]


@pytest.mark.parametrize("start", ["search", "compare"])
def test_a_split_that_is_scored_at_the_end_is_looked_for_at_the_start(start, tmp_path, capsys):
    trees.camvid_segnet(tmp_path / "data", splits=("train",))
    flags = ["--config.data.name=camvid", f"--config.data.dir={tmp_path / 'data'}", "--config.data.history=stills"]
    message = refused(capsys, *STARTS[start], f"--config={SMOKE}", f"--workdir={tmp_path / 'run'}", *TINY, *flags)
    assert "val" in message and not (tmp_path / "run").exists()
