"""`dvsnas bench search`: its arithmetic by hand, its counts against the program's, its figures against each other."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dvsnas_jax import cli
from dvsnas_jax.bench import collectives, compile_sizes, nets_speed, search_speed
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.search import estimate, search_cost
from dvsnas_jax.space import cost
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import features

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
    "compile_effort": "quick", "data.height": "32", "data.width": "32", "data.crop_height": "32",
    "data.crop_width": "32", "data.num_frames": "2", "net.encoder": "resnet18", "net.width": "0.125",
    "net.decoder_channels": "8",
    "space.inputs": "decoder,logits", "space.num_layers": "1", "space.operations": "skip,conv_1x1",
    "space.aggregations": "sum", "space.channels": "8", "controller.hidden": "8", "controller.buffer": "4",
    "search.batch_size": "2", "search.reward_clips": "4", "search.genotypes_per_step": "2", "search.shared_steps": "3",
    "search.warmup_steps": "5", "search.num_random": "4",
}  # fmt: skip
# Modules that a machine without them must not need.
ABSENT = ("tensorflow", "tensorflow_datasets", "cityscapesscripts", "matplotlib", "tensorboardX", "orbax", "tqdm", "av")


def measured(**changes) -> estimate.Measured:
    known = {
        "devices": 1, "train": (0.2,), "evaluate": (0.5,), "sample": 0.01, "update": 0.03, "input": 0.0,
        "candidates": 4, "shared_steps": 2, "warmup_steps": 10, "num_random": 8, "train_bytes": 0, "evaluate_bytes": 0,
        "compile": 60.0,
    }  # fmt: skip
    return estimate.Measured(**{**known, **changes})


# --- the estimate -------------------------------------------------------------------------------------------------


def test_all_reduce_by_hand():
    links = estimate.Links(devices_per_host=8, inside=100.0, between=10.0, latency=0.5)
    assert estimate.all_reduce_seconds(800, 1, links) == 0
    assert estimate.all_reduce_seconds(800, 4, links) == pytest.approx(2 * 3 * (200 / 100 + 0.5))
    inside = 2 * 7 * (100 / 100 + 0.5)
    assert estimate.all_reduce_seconds(800, 8, links) == pytest.approx(inside)
    # Each device then reduces its eighth with its counterparts in the other 3 hosts.
    assert estimate.all_reduce_seconds(800, 32, links) == pytest.approx(inside + 2 * 3 * (25 / 10 + 0.5))


def test_expected_max_by_hand():
    assert estimate.expected_max([2.0, 1.0], 1) == pytest.approx(1.5)
    assert estimate.expected_max([2.0, 1.0], 2) == pytest.approx(0.25 * 1 + 0.75 * 2)
    assert estimate.expected_max([3.0, 1.0, 2.0], 500) == pytest.approx(3.0)


def test_whole_search_by_hand():
    row = estimate.scaling(measured(), estimate.Links(), num_candidates=10, devices=(1,))[0]
    iteration = 0.01 + 0.03 + 2 * 0.2 + 0.5
    assert row["iteration_s"] == pytest.approx(iteration)
    assert row["candidates_per_hour"] == pytest.approx(4 * 3600 / iteration)
    # 10 candidates need 3 iterations of 4; 8 random ones 2 more scorings.
    # The weights that these are scored with take as many steps as those of the search.
    seconds = 60 + 10 * 0.2 + 3 * iteration + 2 * 0.5 + 3 * 2 * 0.2
    assert row["hours"] * 3600 == pytest.approx(seconds)
    assert (row["iterations"], row["efficiency"], row["device_hours"]) == (3, 1.0, row["hours"])


def test_more_devices_wait_for_the_slowest_and_for_each_other():
    links = estimate.Links(devices_per_host=8, inside=1e9, between=1e8, latency=0.0)
    found = measured(train=(0.1, 0.3), train_bytes=10_000_000)
    rows = {row["devices"]: row for row in estimate.scaling(found, links, num_candidates=1000)}
    assert list(rows) == list(estimate.DEVICES)
    assert rows[1]["compute_s"] == pytest.approx(0.2) and rows[1]["collective_s"] == 0
    assert rows[2]["compute_s"] == pytest.approx(0.25)
    assert rows[2]["collective_s"] == pytest.approx(0.01)
    assert rows[2]["efficiency"] == pytest.approx(0.2 / 0.26)
    assert rows[256]["compute_s"] == pytest.approx(0.3)
    assert rows[256]["collective_s"] == pytest.approx(2 * 7 / 8 * 0.01 + 2 * 31 / 32 * 1.25e6 / 1e8)
    # The update of 256 times the candidates takes 256 times as long.
    assert rows[256]["iteration_s"] == pytest.approx(0.01 + 256 * 0.03 + 2 * rows[256]["step_s"] + 0.5)
    assert rows[256]["iterations"] == 1


def test_what_was_measured_on_several_devices_is_not_added_twice():
    links = estimate.Links(inside=1e9, latency=0.0)
    rows = estimate.scaling(measured(devices=4, train_bytes=8_000_000), links, num_candidates=100)
    assert [row["devices"] for row in rows] == [4, 8, 16, 32, 64, 128, 256]
    assert rows[0]["collective_s"] == 0
    assert rows[1]["collective_s"] == pytest.approx(2 * (7 / 8 - 3 / 4) * 8e-3)


def test_tables_say_what_is_assumed():
    text = estimate.table(estimate.scaling(measured(), estimate.Links(), num_candidates=10))
    lines = text.splitlines()
    assert len(lines) == 1 + len(estimate.DEVICES) and len({len(line) for line in lines}) == 1
    said = " ".join(estimate.assumptions(measured(train_bytes=2_500_000), estimate.Links(between=25e9), 10))
    for part in ("10 candidates", "25 GB/s a device between hosts", "2.50 MB", "not included", "slowest device"):
        assert part in said


# --- what is counted ----------------------------------------------------------------------------------------------

PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = bf16[2,8]{1,0} all-gather(%x), channel_id=3, dimensions={0}
}
ENTRY %main (p0: f32[10,3]) -> f32[10,3] {
  %all-reduce.7 = (f32[10,3]{1,0}, f32[]) all-reduce(%p0, %q), channel_id=1, to_apply=%add
  %s = u8[5]{0} all-reduce-start(%y), channel_id=2
  %d = u8[5]{0} all-reduce-done(%s)
  ROOT %t = f32[10,3]{1,0} get-tuple-element(%all-reduce.7), index=0
}
"""


def test_collectives_of_a_program():
    found = collectives.find(PROGRAM)
    assert found == [
        collectives.Collective("all-gather", 32, False),
        collectives.Collective("all-reduce", 124, True),
        collectives.Collective("all-reduce", 5, True),
    ]


def test_supernet_runs_what_a_cell_of_all_inputs_and_layers_runs():
    config = config_lib.load(None, {"space.inputs": "decoder,logits,stage1", "space.num_layers": "3"})
    space, settings = features.space_of(config), features.settings_of(config)
    operation, other, gate = (space.operations.index(name) for name in ("conv_3x3", "sep_conv_5x5", "skip"))
    genotype = np.array([[0, 1, operation, other, 0], [2, 3, other, other, 2], [4, 0, operation, gate, 1]], np.int32)
    whole = search_cost.supernet_cost(space, genotype, settings, (6, 8))
    alone = cost.of(space, genotype, settings, (6, 8), backend="gpu")
    assert whole.macs == alone.macs
    none = space.operations.index("none")
    genotype[2] = [4, 4, none, none, 0]  # nothing reads the layers before it: a cell leaves them out
    more = search_cost.supernet_cost(space, genotype, settings, (6, 8))
    assert more.macs > cost.of(space, genotype, settings, (6, 8), backend="gpu").macs


def test_work_of_a_search_by_hand():
    config = config_lib.load(None, TINY)
    space, settings = features.space_of(config), features.settings_of(config)
    genotypes = genotype_lib.random(space, np.random.default_rng(0), 3)
    macs = sum(search_cost.supernet_cost(space, genotype, settings, (8, 8)).macs for genotype in genotypes)
    found = search_cost.of_genotypes(config, genotypes)
    assert found["train_macs"] == 3 * 2 * 2 * macs  # passes, clips, frames
    assert found["evaluate_macs"] == 4 * 2 * macs
    whole = search_cost.of_search(config, 10)
    assert (whole["gradients"], whole["scorings"]) == (2 * 5 * 3 + 5, 14)  # the random line has weights of its own
    assert whole["flops"] == pytest.approx(2 * (35 * whole["train_macs"] + 14 * whole["evaluate_macs"]))
    device = search_cost.Device(flops=1e12, flops_share=0.5, bandwidth=1e12, bandwidth_share=0.5)
    assert search_cost.text({**whole, "flops": 1.8e15, "bytes": 3.6e15}, 10, device)[2].startswith(
        "at 50 % of 1 TFLOP/s: 1.00 h; at 50 % of 1 TB/s: 2.00 h; both after each other: 3.00 h"
    )


def test_counted_work_on_an_assumed_device_by_hand():
    config, device = config_lib.load(None, TINY), search_cost.Device(1e9, 0.5, 1e9, 0.25)
    found = search_speed.count(config, num_candidates=10, device=device)
    first, second = found["estimate"]["rows"][:2]
    counted = found["counted"]
    seconds = counted["flops"] / 5e8 + counted["bytes"] / 2.5e8
    assert first["hours"] * 3600 == pytest.approx(seconds)
    assert first["step_s"] == pytest.approx(2 * counted["train_macs"] / 5e8 + counted["train_bytes"] / 2.5e8)
    sum_s = estimate.all_reduce_seconds(4 * (found["num_params"] + 2), 2, estimate.Links())
    assert second["step_s"] == pytest.approx(first["step_s"] + sum_s) and sum_s > 0
    text = search_speed.table(found, device, 10)
    assert "nothing of it measured" in text and "device(s), random genotypes" not in text


def test_paper_size_is_counted_without_the_packages_of_data():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
        "import json\n"
        "from dvsnas_jax.core import config\n"
        "from dvsnas_jax.bench import compile_sizes, search_speed\n"
        "found = config.load('configs/cityscapes_search.py', {})\n"
        "print(json.dumps(search_speed.count(compile_sizes.paper_size(found, 512), num_candidates=1000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    wanted = {"train_size": [512, 512], "batch": 32, "channels": 64, "layers": 7, "evaluate_size": [512, 1024]}
    assert {key: found["sizes"][key] for key in wanted} == wanted
    # 16384 cells of the grid; a layer has at least its aggregation, and at most two 3x3 convolutions and attention.
    per_cell = found["counted"]["train_macs"] / (3 * 32 * 3 * 128 * 128)
    assert 334 * 64 < per_cell < 334 * 64 + 8 * 64 * 64 * 7 * 5


# --- a measurement ------------------------------------------------------------------------------------------------


@pytest.fixture(name="result", scope="module")
def _result(tmp_path_factory) -> dict:
    effort = search_speed.Effort(groups=2, repeats=1, profile=str(tmp_path_factory.mktemp("profile")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets_speed, "matrix_peak", functools.partial(nets_speed.matrix_peak, sizes=(128, 256)))
        return search_speed.run(config_lib.load(None, TINY), num_candidates=100, effort=effort)


def test_measured_figures_fit_each_other(result):
    assert json.loads(json.dumps(result)) == result
    phases = result["phases"]
    assert all(phases[name] > 0 for name in search_speed.PHASES)
    iteration = phases["sample"] + phases["update"] + 3 * (phases["input"] + phases["train"]) + phases["evaluate"]
    assert result["iteration_seconds"] == pytest.approx(iteration)
    assert result["candidates_per_hour"] == pytest.approx(2 * 3600 / iteration)
    config = config_lib.load(None, TINY)
    mean = search_cost.of_search(config, 100)["train_macs"]  # of one genotype; the timed ones are two others
    flops = 2 * mean / phases["train"] / (result["matrix_peak_gflops"] * 1e9)
    assert flops / 2 < result["shares"]["train"] < flops * 2
    assert 0 < result["shares"]["evaluate"] < 1
    assert len(result["largest"]) == 3 and sum(row["share"] for row in result["largest"]) <= 1


def test_collectives_are_one_sum_of_gradients_outside_of_branches(result):
    config = config_lib.load(None, TINY)
    programs = compile_sizes.make(config, compile_sizes.make_mesh(config.search), train_clips=4, val_clips=2)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(programs.train[0].params))
    part = result["programs"]["train"]
    assert part["compiled_for"] == "8 virtual CPU devices"
    (found,) = part["collectives"]
    assert found == ["all-reduce", 4 * (num_params + 2), True]  # and the loss, and how many were finite
    assert all(is_entry for _, _, is_entry in result["programs"]["evaluate"]["collectives"])
    arguments = 4 * 3 * num_params  # with both moments of Adam
    assert part["memory"]["argument"] > arguments and part["memory"]["total"] >= part["memory"]["temp"]


def test_measurement_as_text(result):
    text = search_speed.table(result)
    for part in (
        "estimated, not measured",
        "counted work",
        "assumed shares, not measured",
        "1 x cpu",
        "% of the peak",
        "largest in",
    ):
        assert part in text
    for name in search_speed.PHASES:
        assert f"{result['phases'][name]:.4f} s" in text


@pytest.mark.slow
def test_command_counts_at_paper_size_on_a_cpu(tmp_path, capsys):
    path = tmp_path / "search.json"
    words = ["bench", "search", f"--config={ROOT / 'configs' / 'camvid_search.py'}", "--paper-size", f"--output={path}"]
    assert cli.main([*words, "--candidates=500", "--tflops=100"]) == errors.EXIT_DONE
    searches = json.loads(path.read_text())["searches"]
    assert [found["sizes"]["train_size"] for found in searches] == [[321, 321], [512, 512]]
    assert all("phases" not in found for found in searches)
    assert searches[0]["counted"]["gradients"] == (63 * 8 + 200) * 8
    text = capsys.readouterr().out
    assert "500 candidates" in text and "of 100 TFLOP/s" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["controller", "--paper-size"], "--paper-size: only `dvsnas bench search` takes it"),
        (["nets", "--candidates=3"], "--candidates: only `dvsnas bench search` takes it"),
        (["search", "--inside=0"], "--inside: must be above 0, got 0"),
        (["search", "--candidates=many"], "invalid int value"),
        (["search", "--paper-size", "--config.search.mode=scratch"], "set search.mode to 'share'"),
    ],
)
def test_wrong_words_are_told(capsys, words, message):
    assert cli.main(["bench", *words]) == errors.EXIT_USER
    assert message in capsys.readouterr().err
