"""The comparison: its jobs, what it refuses, how it goes on after a stop, and its table and picture."""

import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.nets import static_net
from dvsnas_jax.report import page as report
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo
from dvsnas_jax.studies import compare, compare_report, compare_rows, study_report
from dvsnas_jax.train import pretrain

ROOT = pathlib.Path(__file__).parents[1]
RESULT, MARKDOWN, PICTURE = "compare.json", "compare.md", "compare.png"
SMOKE = str(ROOT / "configs" / "smoke.py")
PROPAGATE = {
    "space.mode": "propagate", "space.inputs": "prev_state,prev_decoder,stage1,stage2", "data.num_frames": "6"
}  # fmt: skip


def load(**changes: str):
    return config_lib.load(SMOKE, {key.replace("__", "."): value for key, value in changes.items()})


def load_propagate():
    return config_lib.load(SMOKE, PROPAGATE)


def scores(miou: float) -> dict:
    return {
        **{name: 0.5 for name in compare_rows.SCORES},
        "miou": miou,
        "vc": {"8": 0.8, "16": None},
    }


def times(ms: float, **kinds: float) -> dict:
    return {"ms_per_frame": ms, "latency": {kind: {"median": median} for kind, median in kinds.items()}}


@dataclasses.dataclass
class Jobs:
    """Jobs without networks: the score of a cell is its number of layers and its seed; `done` is what ran, in order."""

    done: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    before_fn: Callable[[int, signals.StopFlag], None] = lambda seed, stop: None

    def run(self, config, folder, names, **options) -> dict:
        return self.report(config, folder, names, **options).content

    def report(self, config, folder, names, **options) -> study_report.Report:
        return compare.run(config, folder, names, make_score=self._make_score, **options)

    def _make_score(self, config, folder, stop, entries) -> compare.ScoreFn:
        assert entries

        def score(entry, config) -> dict:
            self.before_fn(config.seed, stop)
            self.done.append((genotype_lib.digest(entry.space, entry.genotype), config.seed, config.schedule.kind))
            costs = {"parameters": 100, "macs": 2000}
            return {
                "num_frames": 20,
                "static": scores(0.25),
                "cell": {**scores((len(entry.genotype) + config.seed) / 10), "key_share": 0.25},
                "times": {"static": times(4.0, all=4.0), "cell": times(5.0 + config.seed, key=4.5, cell=1.5)},
                "cost": {"static": costs, "cell": {**costs, "macs": 3000}},
            }

        return score


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


# --- which genotypes ----------------------------------------------------------------------------------------------


def names_of(entries: list[compare.Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_zoo_stands_for_the_members_of_the_mode_that_are_not_named() -> None:
    rest = ["zoo:ema", "zoo:previous"]
    assert names_of(compare.resolve(load(), ["zoo"])) == ["zoo:static", "zoo:netwarp", "zoo:grfp", *rest]
    assert names_of(compare.resolve(load(), ["zoo:grfp", "zoo"])) == ["zoo:grfp", "zoo:static", "zoo:netwarp", *rest]


def test_the_schedule_of_a_member_overrides_the_config_in_its_jobs_only() -> None:
    config = load_propagate()
    entries = compare.resolve(config, ["zoo"])
    kinds = {entry.name: entry.config.schedule.kind for entry in entries}
    assert kinds == {f"zoo:{member.name}": member.schedule for member in zoo.of_mode("propagate")}
    assert {entry.config.schedule.interval for entry in entries} == {config.schedule.interval}
    assert config.schedule.kind == "fixed"
    assert len({entry.job(0) for entry in entries}) == len(entries) == 7
    assert {entry.name for entry in entries if entry.config.space.end == "none"} == {"zoo:hold"}


def test_a_file_keeps_the_schedule_of_the_config(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(zoo.get("dff").genotype))
    (entry,) = compare.resolve(load_propagate(), [str(path)])
    assert entry.config.schedule.kind == "fixed" and entry.name == str(path)
    assert genotype_lib.to_dict(entry.space, entry.genotype) == zoo.get("dff").genotype


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--genotypes=", "--genotypes: an empty value; give one, or leave it out"),
        ("--genotypes=,", "--genotypes: names no genotype; give zoo"),
        ("--genotypes=zoo:static,zoo:grfp,zoo:static", "named more than once: zoo:static; name each once"),
        ("--genotypes=zoo,zoo", "named more than once: zoo"),
        ("--genotypes=zoo:statik", "did you mean 'zoo:static'"),
        ("--genotypes=zoo:dvsnet", "zoo:dvsnet: the config does not fit it; add --config.space.mode=propagate"),
        ("--genotypes=nowhere.json", "nowhere.json does not exist"),
        ("--genotypes=zoo --seeds=0", "--seeds: must be at least 1, got 0"),
        ("--genotypes=zoo --seeds=some", "invalid int value: 'some'"),
    ],
)
def test_wrong_words_are_one_line_and_leave_no_folder(words, message, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    assert cli.main(["compare", f"--config={SMOKE}", f"--workdir={folder}", *words.split()]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(rf"dvsnas: error: .*{re.escape(message)}.*\n", captured.err) and captured.out == ""
    assert not folder.exists()


def test_a_genotype_that_the_mode_does_not_feed_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "refine.json"
    path.write_text(json.dumps(zoo.get("netwarp").genotype))
    with pytest.raises(errors.UserError, match=r"refine.json: .*does not provide decoder"):
        compare.resolve(load_propagate(), [str(path)])
    shallow = config_lib.load(SMOKE, {**PROPAGATE, "space.cut": "stage1", "space.inputs": "prev_state,stage1"})
    with pytest.raises(errors.UserError, match=r"zoo:clockwork: .*does not provide stage2"):
        compare.resolve(shallow, ["zoo:clockwork"])


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_one_job_a_genotype_and_seed_and_one_row_a_genotype(jobs, tmp_path: pathlib.Path) -> None:
    folder = workdir.Workdir(tmp_path)
    result = jobs.run(load(seed="4"), folder, ["zoo:netwarp", "zoo:grfp"], num_seeds=3)
    assert [seed for _, seed, _ in jobs.done] == [4, 4, 5, 5, 6, 6] and len({digest for digest, _, _ in jobs.done}) == 2
    assert len(list((tmp_path / "jobs").iterdir())) == 6
    static, netwarp, grfp = result["rows"]
    assert [row["name"] for row in result["rows"]] == [compare_rows.STATIC, "zoo:netwarp", "zoo:grfp"]
    assert netwarp["miou"]["values"] == pytest.approx([0.6, 0.7, 0.8])
    assert netwarp["miou"]["mean"] == pytest.approx(0.7) and netwarp["miou"]["std"] == pytest.approx(0.1)
    assert grfp["miou"]["mean"] == pytest.approx(0.8) and grfp["ms"]["mean"] == pytest.approx(10.0)
    assert grfp["time_ratio"]["values"] == pytest.approx([9 / 4, 10 / 4, 11 / 4])
    assert grfp["vc_8"]["mean"] == pytest.approx(0.8) and grfp["vc_16"] is None
    assert static["miou"] == {"mean": 0.25, "std": None, "values": [0.25]}
    assert static["ms"]["mean"] == 4.0 and len(static["ms"]["values"]) == 6
    assert (static["macs"]["mean"], grfp["macs"]["mean"]) == (2000, 3000)
    assert json.loads((tmp_path / RESULT).read_text()) == result
    assert "arXiv 1708.03088" in (tmp_path / MARKDOWN).read_text()
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_finished_jobs_are_skipped_and_more_are_added(jobs, tmp_path: pathlib.Path) -> None:
    folder = workdir.Workdir(tmp_path)
    first = jobs.run(load(), folder, ["zoo:netwarp"], num_seeds=1)
    assert jobs.run(load(), folder, ["zoo:netwarp"], num_seeds=1) == first and len(jobs.done) == 1
    result = jobs.run(load(), folder, ["zoo:netwarp", "zoo:static"], num_seeds=2)
    assert [seed for _, seed, _ in jobs.done] == [0, 0, 1, 1]  # netwarp, then static, then both with the second seed
    assert [row["num_ok"] for row in result["rows"]] == [1, 2, 2]
    with pytest.raises(errors.UserError, match="these keys differ: train.steps"):
        jobs.run(load(train__steps="7"), folder, ["zoo:netwarp"])


def test_jobs_of_members_take_their_own_schedule(jobs, tmp_path: pathlib.Path) -> None:
    names = ["zoo:dvsnet", "zoo:low_latency", "zoo:dff"]
    result = jobs.run(load_propagate(), workdir.Workdir(tmp_path), names)
    head, static, *_, dff = compare_report.cells(result)
    assert head[-3:] == ["ms key", "ms cell", "key share"]
    assert static[-3:] == ["-", "-", "100"] and dff[-3:] == ["4.5", "1.5", "25"]
    assert [kind for _, _, kind in jobs.done] == ["regions", "adaptive", "fixed"]


def test_a_baseline_has_a_row_of_its_own(jobs, tmp_path: pathlib.Path) -> None:
    """Also beside the same genotype with a cell's end."""
    path = tmp_path / "nothing.json"
    path.write_text(json.dumps(zoo.get("hold").genotype))
    result = jobs.run(load_propagate(), workdir.Workdir(tmp_path / "run"), ["zoo:hold", str(path), "zoo:dff"])
    assert [row["name"] for row in result["rows"]] == [compare_rows.STATIC, "zoo:hold", str(path), "zoo:dff"]


def test_one_genotype_under_two_names_is_one_row(jobs, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(zoo.get("grfp").genotype))
    folder = workdir.Workdir(tmp_path / "run")
    result = jobs.run(load(), folder, [str(path), "zoo:grfp"])
    assert len(jobs.done) == 1
    assert [row["name"] for row in result["rows"]] == [compare_rows.STATIC, f"zoo:grfp = {path}"]
    # A name that comes later, another spelling of one that is known: the same row, without a job.
    again = tmp_path / "again.json"
    again.write_text(path.read_text())
    result = jobs.run(load(), folder, [str(again), f"{tmp_path}/../{tmp_path.name}/cell.json"])
    assert len(jobs.done) == 1 and result["rows"][1]["names"] == ["zoo:grfp", str(path), str(again)]
    assert result["rows"][1]["source"] == zoo.get("grfp").source and len(result["rows"]) == 2


def test_two_genotypes_under_one_name_are_two_rows_told_apart(jobs, tmp_path: pathlib.Path) -> None:
    path, folder = tmp_path / "cell.json", workdir.Workdir(tmp_path / "run")
    keys = []
    for name in ("grfp", "netwarp"):
        path.write_text(json.dumps(zoo.get(name).genotype))
        result = jobs.run(load(), folder, [str(path)])
        keys.append(genotype_lib.digest(*zoo.genotype(zoo.get(name))))
    assert [row["name"] for row in result["rows"][1:]] == [f"{path} ({key})" for key in keys]


def command(monkeypatch: pytest.MonkeyPatch, words: str) -> str:
    """Puts the words of a command in the place of those that started the tests."""
    monkeypatch.setattr(sys, "argv", ["/bin/dvsnas", *words.split()])
    return f"dvsnas {words}"


def test_what_a_command_adds_stands_beside_what_others_made(jobs, tmp_path, monkeypatch) -> None:
    folder = workdir.Workdir(tmp_path)
    first = command(monkeypatch, "compare --workdir=c --genotypes=zoo:static,zoo:netwarp --seeds=2")
    before = jobs.run(load(), folder, ["zoo:static", "zoo:netwarp"], num_seeds=2)
    second = command(monkeypatch, "compare --workdir=c --genotypes=zoo:grfp --seeds=1")
    result = jobs.run(load(), folder, ["zoo:grfp"], num_seeds=1)
    assert [row["name"] for row in result["rows"]] == [compare_rows.STATIC, "zoo:static", "zoo:netwarp", "zoo:grfp"]
    assert [row["miou"] for row in result["rows"][:3]] == [row["miou"] for row in before["rows"]]
    assert result["commands"] == [first, second] and [row["commands"] for row in result["rows"]] == [[], [1], [1], [2]]
    # It is in every output: JSON, text, Markdown, the picture and the report.
    assert json.loads((tmp_path / RESULT).read_text()) == result
    lines = compare_report.table(result).splitlines()
    assert lines[1].split()[:3] == ["seeds", "by", "mIoU"]
    assert lines[4].split()[:3] == ["zoo:netwarp", "2", "1"]
    assert lines[5].split()[:5] == ["zoo:grfp", "1", "of", "2", "2"]
    assert lines[6:] == [
        "seeds 0, 1; a row with fewer of them is the mean over those that it has", f"by 1: {first}", f"by 2: {second}",
    ]  # fmt: skip
    for text in ("| zoo:static | 2 | 1 |", "| zoo:grfp | 1 of 2 | 2 |", f"- by 2: {second}"):
        assert text in (tmp_path / MARKDOWN).read_text()
    report.write(tmp_path)
    page = (tmp_path / report.PAGE).read_text()
    assert "<th scope=row>zoo:static</th><td>2</td><td>1</td>" in page and f"<li>by 2: {second}</li>" in page
    assert "<th scope=row>zoo:grfp</th><td>1 of 2</td><td>2</td>" in page
    # The missing seed is added to the same row; the row then names both commands.
    third = command(monkeypatch, "compare --workdir=c --genotypes=zoo:grfp --seeds=2")
    result = jobs.run(load(), folder, ["zoo:grfp"], num_seeds=2)
    assert result["rows"][3]["commands"] == [2, 3] and result["commands"][2] == third
    assert result["rows"][3]["miou"]["values"] == pytest.approx([0.3, 0.4]) and result["rows"][3]["seeds"] == [0, 1]
    assert len(jobs.done) == 6 and "of 2" not in compare_report.table(result)


def test_jobs_of_earlier_versions_stand_in_the_table(jobs, tmp_path, monkeypatch) -> None:
    """As they were left: without commands and names' lines, and with a table that held the last command alone."""
    folder = workdir.Workdir(tmp_path)
    jobs.run(load(), folder, ["zoo:grfp", "zoo:static", "zoo:netwarp"])
    (tmp_path / compare_rows.LOG).unlink()
    for path in (tmp_path / "jobs").iterdir():
        record = json.loads(path.read_text())
        del record["command"]
        path.write_text(json.dumps(record))
    (tmp_path / RESULT).write_text(json.dumps(result_of(ROWS[:1])))
    (tmp_path / "jobs" / "notes.json").write_text("{")  # none of ours
    report.write(tmp_path)
    assert "<th scope=row>zoo:netwarp</th><td>1</td><td>20.0</td>" in (tmp_path / report.PAGE).read_text()
    made = command(monkeypatch, "compare --genotypes=zoo:static --seeds=2 --workdir=c")
    result = jobs.run(load(), folder, ["zoo:static"], num_seeds=2)
    assert [row["name"] for row in result["rows"][1:]] == ["zoo:netwarp", "zoo:grfp", "zoo:static"]
    assert [row["commands"] for row in result["rows"][1:]] == [[], [], [1]] and len(jobs.done) == 4
    unknown = "by -: an earlier version, which did not note its command"
    assert compare_report.notes(result)[1:] == [f"by 1: {made}", unknown]
    broken = next((tmp_path / "jobs").glob("*seed0001.json"))
    broken.write_text("{")
    with pytest.raises(errors.UserError, match="seed0001.json: is not the file of a finished job; delete it"):
        jobs.run(load(), folder, ["zoo:netwarp"])


def test_times_are_multiples_of_the_static_networks_taken_in_turns() -> None:
    """The second job ran while the machine was half as fast; the cell takes 1.5 times as long all along."""

    def record(seed: int, slowness: float, ratio: float = 1.5) -> dict:
        cost = {"parameters": 1, "macs": 1}
        own = {name: times(ms * slowness, all=ms * slowness) for name, ms in (("static", 4.0), ("cell", 4.0 * ratio))}
        return {"name": "a.json", "status": "ok", "num_frames": 1, "static": scores(0.2), "cell": scores(0.3),
                "times": own, "cost": {"static": cost, "cell": cost}}  # fmt: skip

    rows = {"0" * 12: {0: record(0, 1.0)}, "1" * 12: {0: record(0, 2.0)}, "2" * 12: {0: record(0, 1.0, 0.9)}}
    static, one, two, free = compare_rows.collect(load(), rows, [])["rows"]
    assert static["ms"]["mean"] == pytest.approx(16 / 3)
    for row in (one, two):
        assert row["time_ratio"]["mean"] == 1.5 and row["ms"]["mean"] == pytest.approx(8.0)
    # In mode refine a cell comes on top of the network.
    assert free["time_ratio"]["mean"] == 1.0 and free["ms"]["mean"] == pytest.approx(16 / 3)


def test_a_stop_keeps_finished_jobs_and_the_same_command_goes_on(jobs, tmp_path) -> None:
    calls = []

    def interrupted(seed: int, stop: signals.StopFlag) -> None:
        calls.append(seed)
        if len(calls) == 3:
            raise errors.Stopped("in the third job")
        if len(calls) == 4:
            stop.requested = True  # a signal that arrives at the end of the third job's second start

    jobs.before_fn = interrupted
    for message, num in (("in the third job", 2), ("compare: 7 of 10 jobs are left", 3)):
        with pytest.raises(errors.Stopped, match=message):
            jobs.run(load(), workdir.Workdir(tmp_path), ["zoo"], num_seeds=2)
        assert len(jobs.done) == num
    assert not (tmp_path / RESULT).exists()
    report = jobs.report(load(), workdir.Workdir(tmp_path), ["zoo"], num_seeds=2)
    assert len(jobs.done) == len(set(jobs.done)) == 10 and len(calls) == 11
    assert report.text.splitlines()[0].startswith("val, 20 frames; mode refine")
    assert report.paths == [str(tmp_path / name) for name in (RESULT, MARKDOWN, PICTURE)]


def test_a_diverged_job_is_told_and_left_out_of_the_mean(jobs, tmp_path) -> None:
    def diverging(seed: int, stop: signals.StopFlag) -> None:
        if seed == 1:
            raise FloatingPointError("the loss is nan at step 5")

    jobs.before_fn = diverging
    report = jobs.report(load(), workdir.Workdir(tmp_path), ["zoo:netwarp"], num_seeds=3)
    row = report.content["rows"][1]
    assert (row["num_ok"], row["num_seeds"]) == (2, 3) and row["miou"]["values"] == pytest.approx([0.2, 0.4])
    assert "2 (1 diverged)" in report.text
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "jobs").glob("*seed0001.json")]
    assert record["status"] == "diverged" and record["reason"] == "the loss is nan at step 5"


# --- real networks ------------------------------------------------------------------------------------------------

TINY = {
    "data.height": "32", "data.width": "48", "data.crop_height": "32", "data.crop_width": "48",
    "data.num_train_clips": "6", "data.val_frames": "5", "data.num_val_clips": "1", "evaluate.latency_frames": "5",
    "net.encoder": "resnet18", "net.width": "0.125", "net.decoder_channels": "8", "space.channels": "4",
    "train.steps": "3", "train.norm_batches": "1",
}  # fmt: skip


def frame_cost(entry: compare.Entry, key_share: float) -> dict:
    return compare.frame_cost(entry.config, entry.space, entry.genotype, key_share)


def test_cost_of_a_frame() -> None:
    (entry,) = compare.resolve(config_lib.load(SMOKE, TINY), ["zoo:netwarp"])
    found = frame_cost(entry, 1.0)
    grid = 8 * 12
    # Two 1x1 projections of 8 channels to 4, offsets by 3x3 of 8 channels to 2, the output 4 to 4, the end
    # 4 to 11 and by 3x3 to 3.
    ended = 4 * 11 + 9 * 4 * 3
    assert found["cell"]["macs"] - found["static"]["macs"] == grid * (2 * 8 * 4 + 9 * 8 * 2 + 4 * 4 + ended)
    # Likewise; scale and bias of three normalisations, biases of the offsets, two weights a channel, the end's biases
    # and its share.
    assert found["cell"]["parameters"] - found["static"]["parameters"] == 224 + ended + 3 * 8 + 2 + 8 + 11 + 3 + 1


def test_cost_of_a_frame_between_key_frames() -> None:
    config = config_lib.load(SMOKE, {**TINY, **PROPAGATE})
    entries = {entry.name: entry for entry in compare.resolve(config, ["zoo"])}
    net = static_net.make(config.net, 11)
    full, cheap = static_net.num_macs(net, (32, 48)), static_net.num_macs(net, (32, 48), "stage2")
    channels = static_net.feature_channels(config.net, 11)
    grid = 8 * 12
    key = full + grid * 8 * 4  # the decoder map is projected to start the state
    sums = cheap + grid * 4 * (8 + channels["stage1"] + channels["stage2"] + 4 + 11 + 9 * 2)
    for share in (0.0, 0.2, 1.0):
        found = frame_cost(entries["zoo:clockwork"], share)["cell"]
        assert (found["macs_key"], found["macs_cell"]) == (key, sums)
        assert found["macs"] == pytest.approx(share * key + (1 - share) * sums)
    # A cell that reads stage1 alone needs the encoder no further: two projections, 5x5 depthwise and 1x1, offsets,
    # output, end.
    first = static_net.num_macs(net, (32, 48), "stage1")
    warped = first + grid * (4 * (8 + channels["stage1"]) + 25 * 4 + 16 + 9 * 8 * 2 + 16 + 4 * (11 + 9 * 2))
    assert first < cheap
    assert frame_cost(entries["zoo:dff"], 0.0)["cell"]["macs"] == warped
    held = frame_cost(entries["zoo:hold"], 0.2)
    assert held["cell"]["macs"] == pytest.approx(0.2 * full)
    assert held["cell"]["parameters"] == held["static"]["parameters"]
    # A learned schedule looks at every frame, at every second row and column: 3x3 of twice stage2 to 16 channels, 16 to
    # 1. The cheap stages are those of the key frame, which goes on from them.
    look = grid // 4 * (9 * 2 * channels["stage2"] * 16 + 16)
    found = frame_cost(entries["zoo:dvsnet"], 1.0)["cell"]
    assert found["macs"] == found["macs_key"] == key + look


def test_a_cell_is_trained_and_evaluated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member in propagate mode, on a static network with its first weights."""

    def first_weights(config, folder, stop):
        return static_net.init(static_net.make(config.net, 11), jax.random.key(0))

    monkeypatch.setattr(pretrain, "run", first_weights)
    config = config_lib.load(SMOKE, {**TINY, **PROPAGATE, "schedule.interval": "2", "data.num_frames": "3"})
    result = compare.run(config, workdir.Workdir(tmp_path), ["zoo:clockwork"], num_seeds=1).content
    static, row = result["rows"]
    assert result["num_frames"] == 5 and (static["num_ok"], row["num_ok"]) == (1, 1)
    assert row["key_share"]["mean"] == pytest.approx(0.6) and static["key_share"]["mean"] == 1
    kinds = 0.6 * row["ms_key"]["mean"] + 0.4 * row["ms_cell"]["mean"]
    assert row["ms"]["mean"] == pytest.approx(kinds) and row["ms_cell"]["mean"] > 0
    for name in ("miou", "fwiou", "flicker"):
        assert 0 <= row[name]["mean"] <= 1 and 0 <= static[name]["mean"] <= 1
    assert row["miou"] != static["miou"] and row["vc_8"] is None  # five frames hold no window of eight
    # Frames 0, 2 and 4 are key frames: the cell is the static network there.
    assert row["age_0"]["mean"] == static["age_0"]["mean"] and row["age_1"]["mean"] != static["age_1"]["mean"]
    assert "age_2" not in row and 0 <= row["changes_followed"]["mean"] <= 1
    lines = workdir.Workdir(tmp_path).read("metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [line["step"] for line in lines if line["stage"].endswith("_val")] == [0, 3]
    assert len(losses) == 1 and 0 < losses[0] < 10


@pytest.mark.slow
def test_a_killed_comparison_ends_in_the_same_table(tmp_path: pathlib.Path) -> None:
    changes = [f"--config.{key}={value}" for key, value in {**TINY, "evaluate.latency_frames": "0"}.items()]
    words = ["compare", f"--config={SMOKE}", "--genotypes=zoo:static,zoo:netwarp", "--seeds=2", *changes]

    def start(folder: pathlib.Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "dvsnas_jax", *words, f"--workdir={folder}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(timeout=500) == 0
    process = start(tmp_path / "parts")
    deadline = time.monotonic() + 400
    while not list((tmp_path / "parts").glob("jobs/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=400) == errors.EXIT_STOPPED
    assert len(list((tmp_path / "parts").glob("jobs/*.json"))) < 4
    assert start(tmp_path / "parts").wait(timeout=500) == 0
    whole, parts = (json.loads((tmp_path / name / RESULT).read_text()) for name in ("whole", "parts"))
    assert {**whole, "commands": None} == {**parts, "commands": None} and len(parts["commands"]) == 1


# --- what is shown ------------------------------------------------------------------------------------------------


def test_front_keeps_what_no_other_beats() -> None:
    points = [(4.0, 60.0), (5.0, 65.0), (5.0, 64.0), (3.0, 60.0), (6.0, 65.0), (7.0, 70.0)]
    assert compare_report.front(points) == [3, 1, 5]
    assert compare_report.front([(1.0, 1.0), (1.0, 1.0)]) == [0]
    rng = np.random.default_rng(0)
    drawn = [tuple(point) for point in rng.integers(0, 9, (40, 2)).tolist()]
    kept = compare_report.front(drawn)
    beaten = {
        index
        for index, (cost, score) in enumerate(drawn)
        if any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in drawn)
    }
    assert beaten.isdisjoint(kept) and {drawn[i] for i in kept} == {p for i, p in enumerate(drawn) if i not in beaten}


def test_the_front_keeps_what_is_beaten_by_less_than_the_noise() -> None:
    points = [(4.0, 60.0), (3.9, 60.4), (6.0, 63.0)]
    assert compare_report.front(points) == [1, 2]
    assert compare_report.front(points, [(0.0, 0.0), (0.2, 0.3), (0.2, 0.3)]) == [1, 0, 2]
    # Clearly more accurate, at a cost that is no more within the noise.
    assert compare_report.front(points, [(0.0, 0.0), (0.2, 0.1), (0.2, 0.3)]) == [1, 2]


def result_of(rows: list[dict]) -> dict:
    return {
        "mode": "refine", "interval": 5, "split": "val", "num_frames": 288, "train_steps": 600, "seeds": [0, 1, 2],
        "vc_frames": [8, 16], "rows": rows,
    }  # fmt: skip


def number(mean: float, std: float | None = None) -> dict:
    return {"mean": mean, "std": std, "values": [mean]}


ROWS = [
    {
        "name": compare_rows.STATIC, "source": "", "num_ok": 1, "num_seeds": 1, "miou": number(0.614),
        "fwiou": number(0.8),
        "vc_8": number(0.9), "vc_16": None, "flicker": number(0.0123), "parameters": number(250_000),
        "macs": number(300e6), "ms": number(4.0, 0.2), "time_ratio": number(1.0),
    },
    {
        "name": "zoo:grfp", "source": "Nilsson", "num_ok": 3, "num_seeds": 3, "miou": number(0.65, 0.011),
        "fwiou": number(0.81, 0.002), "vc_8": number(0.93, 0.01), "vc_16": None, "flicker": number(0.01, 0.001),
        "parameters": number(260_000), "macs": number(340e6), "ms": number(5.25, 0.3),
        "time_ratio": number(1.31, 0.02),
    },
    {"name": "runs/a/best.json", "source": "", "num_ok": 0, "num_seeds": 3},
]  # fmt: skip


def test_table_and_markdown_show_percent_mean_and_deviation() -> None:
    lines = compare_report.table(result_of(ROWS)).splitlines()
    assert lines[0] == "val, 288 frames; mode refine; 600 training steps each"
    assert lines[1].split() == [
        "seeds", "mIoU", "fwIoU", "VC_8", "VC_16", "flicker", "followed", "parameters", "k", "MMAC/frame", "ms/frame",
        "of", "static",
    ]  # fmt: skip
    assert lines[2].split() == [
        "static", "network", "1", "61.4", "80.0", "90.0", "-", "1.23", "-", "250.0", "300.0", "4.0", "±", "0.2", "1.00"
    ]  # fmt: skip
    assert lines[3].startswith("zoo:grfp") and "65.0 ± 1.1" in lines[3] and lines[3].endswith("5.2 ± 0.3  1.31 ± 0.02")
    assert lines[4].split() == ["runs/a/best.json", "0", "(3", "diverged)", *"-" * 10]
    text = compare_report.markdown(result_of(ROWS))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 5
    assert "- `zoo:grfp`: Nilsson." in text and "static network`:" not in text


def test_ages_changes_and_the_size_of_the_scores_are_shown_and_older_jobs_have_a_dash() -> None:
    cost = {"static": {"parameters": 1, "macs": 2}, "cell": {"parameters": 3, "macs": 4}}
    new = {"status": "ok", "name": "zoo:dff", "num_frames": 8, "cost": cost, "static": scores(0.6)}
    by_age = {"0": {"miou": 0.6, "num_frames": 2}, "1": {"miou": 0.55, "num_frames": 2}}
    new["cell"] = {**scores(0.5), "changes_followed": 0.123, "vspw_vc": {"8": 0.9}, "by_age": by_age}
    other = {**new, "cell": {**new["cell"], "by_age": {**by_age, "1": {"miou": 0.45, "num_frames": 2}}}}
    old = {key: value for key, value in scores(0.4).items() if key != "changes_followed"}
    older = {**new, "name": "zoo:clockwork", "cell": old}
    config = config_lib.to_json_dict(load_propagate())
    jobs = {"a": {0: new, 1: other}, "b": {0: older}}
    result = compare_rows.collect({**config, "evaluate": {**config["evaluate"], "size": "file"}}, jobs, [])
    lines = compare_report.table(result).splitlines()
    assert lines[0].endswith("; scores at the size of the label files") and result["size"] == "file"
    assert lines[1].endswith("mIoU by age") and "followed" in lines[1].split()
    rows = {line.split()[0]: line for line in lines[2:5]}
    assert rows["zoo:dff"].endswith("  60.0 50.0") and "12.3" in rows["zoo:dff"].split()
    assert rows["zoo:clockwork"].endswith("  -") and rows["static"].endswith("  -")
    assert any(line.startswith("mIoU by age: of the frames 0 (key frames)") for line in lines)
    row = {row["name"]: row for row in result["rows"]}["zoo:dff"]
    assert row["vspw_vc_8"]["mean"] == 0.9 and row["age_1"]["values"] == [0.55, 0.45]
    del config["evaluate"]["size"]  # of an earlier version
    assert compare_rows.collect(config, jobs, [])["size"] == "frame"


def test_the_picture_takes_macs_where_no_time_was_measured(tmp_path: pathlib.Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(compare_report, "front", lambda points, noises: seen.append(points) or [0])
    compare_report.picture(result_of(ROWS), tmp_path / "a.png")
    compare_report.picture(result_of([{**row, "ms": None} for row in ROWS]), tmp_path / "b.png")
    assert seen[0] == [(4.0, pytest.approx(61.4)), (5.25, pytest.approx(65.0))]
    assert [cost for cost, _ in seen[1]] == pytest.approx([0.3, 0.34])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
