"""`dvsnas bench nets`: its figures are those of the network, its table and JSON hold them."""

import functools
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax
import pytest

from dvsnas_jax import cli
from dvsnas_jax.bench import nets_speed, propagate_speed
from dvsnas_jax.core import allocator, compilation, errors
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import static_net

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(name="result", scope="module")
def _result() -> dict:
    config = config_lib.defaults().net
    config.update({"encoder": "resnet18", "width": 0.125, "decoder_channels": 8, "dropout": 0.5})
    with compilation.effort("quick"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets_speed, "matrix_peak", functools.partial(nets_speed.matrix_peak, sizes=(128, 256)))
        return nets_speed.run({"tiny": config}, size=(40, 48), train_size=(32, 32), train_batch=2, repeats=2)


def test_figures(result):
    (row,) = result["nets"]
    assert 1e4 < row["parameters"] < 1e6
    stem = 20 * 24 * 7 * 7 * 3 * 8
    assert stem < row["macs"] < 100 * stem
    for part in ("forward", "train"):
        assert 0 < row[f"{part}_best_ms"] <= row[f"{part}_ms"]
        peak = result["matrix_peak_gflops"]["float32"]
        macs = {"forward": row["macs"], "train": row["train_macs"]}[part]
        assert row[f"{part}_share"] == pytest.approx(2 * macs / (row[f"{part}_ms"] * 1e6) / peak)
        assert row[f"{part}_bytes"] > 4 * row["parameters"]  # at least the parameters have to be there
    assert result["matrix_peak_gflops"]["float32"] > 1


def test_table_has_every_column_and_aligns(result):
    first, head, line = nets_speed.table(result).splitlines()
    assert result["backend"] in first and "1x40x48" in first and "2x32x32" in first
    for _, heading, _, _ in nets_speed.COLUMNS:
        assert heading in head
    assert line.startswith("tiny") and len(line) == len(head)
    assert f"{result['nets'][0]['forward_ms']:.1f}" in line


def test_the_command_measures_the_network_of_a_config(tmp_path, capsys, monkeypatch):
    seen = {}

    def run(nets=None, **sizes):
        seen.update(nets=nets, **sizes)
        row = {key: 1.0 for key, *_ in nets_speed.COLUMNS}
        return {
            "backend": "cpu", "device": "x", "matrix_peak_gflops": {"float32": 1.0}, "size": [1, 1],
            "train_size": [1, 1, 1], "nets": [{"net": "one", **row}],
        }  # fmt: skip

    monkeypatch.setattr(nets_speed, "run", run)
    path = tmp_path / "nets.json"
    words = ["bench", "nets", "--config.net.encoder=resnet50", "--config.data.height=64", f"--json={path}"]
    assert cli.main(words) == errors.EXIT_DONE
    assert json.loads(path.read_text())["nets"][0]["net"] == "one"
    assert "one" in capsys.readouterr().out
    assert seen["size"] == (64, 128) and next(iter(seen["nets"].values())).encoder == "resnet50"


def test_keeping_memory_is_told():
    assert allocator.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_a_program_starts_once_more_for_large_pages(tmp_path):
    """The same process, with the system's large pages under what it allocates; a setting of the user's is kept."""
    pages = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    name, version = platform.libc_ver()
    if not pages.exists() or "[madvise]" not in pages.read_text() or name != "glibc" or version < "2.35":
        pytest.skip("the system gives no large pages on request")
    script = tmp_path / "program.py"
    script.write_text("""
import os, re, sys
sys.path.insert(0, os.getcwd())
from dvsnas_jax.core import allocator
print("started", os.getpid(), sys.argv[1:], flush=True)
allocator.restart_with_large_pages()
allocator.keep_freed_memory()
block = bytearray(os.urandom(1)) * (64 << 20)
held = int(re.search(r"AnonHugePages: *([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
print(os.environ["GLIBC_TUNABLES"], held >> 10)
""")
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}

    def run(**more: str) -> list[list[str]]:
        command = [sys.executable, str(script), "a b"]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True, cwd=ROOT)
        return [line.rsplit(" ", 1) for line in done.stdout.splitlines()]

    first, second, (setting, megabytes) = run()
    assert first == second and first[1].endswith("b']")
    assert setting == "glibc.malloc.hugetlb=1" and int(megabytes) >= 48
    (_, _, (setting, _)) = run(GLIBC_TUNABLES="glibc.malloc.check=0")
    assert setting == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    (_, (setting, _)) = run(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert setting == "glibc.malloc.hugetlb=0"


def test_standard_networks_are_the_published_and_the_default_one():
    default = config_lib.defaults().net
    assert nets_speed.STANDARD["mobilenet_v2 x 0.5 + refinenet 64"] == {
        "width": default.width,
        "decoder_channels": default.decoder_channels,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "limit"),
    [("mobilenet_v2", "forward", 1.0), ("mobilenet_v2", "training", 1.3), ("resnet50", "forward", 1.0)],
)
def test_speed_beside_pytorch(name, part, limit):
    """In turns in one process, both with 2 threads and kept memory, PyTorch channels-last; the best of each counts."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `parity`)")
    import torch_twins

    assert allocator.keep_freed_memory()
    torch.set_num_threads(2)
    twin = torch_twins.MobileNetRefineNet() if name == "mobilenet_v2" else torch_twins.ResNetRefineNet()
    twin = torch_twins.randomise(twin).to(memory_format=torch.channels_last).train(part == "training")
    config = config_lib.defaults().net
    config.update({"encoder": name, "width": 1.0, "decoder_channels": 256})
    net = static_net.make(config, nets_speed.NUM_CLASSES)
    if part == "forward":
        fn, arguments = nets_speed.forward(net, (360, 480))
        images = torch.randn(1, 3, 360, 480).to(memory_format=torch.channels_last)

        def theirs() -> None:
            with torch.no_grad():
                twin(images)
    else:
        fn, arguments = nets_speed.training(net, (4, 240, 320))
        images = torch.randn(4, 3, 240, 320).to(memory_format=torch.channels_last)
        labels = torch.randint(0, nets_speed.NUM_CLASSES, (4, 240, 320))
        optimizer = torch.optim.SGD(twin.parameters(), 1e-3)

        def theirs() -> None:
            optimizer.zero_grad()
            logits = torch.nn.functional.interpolate(twin(images)["logits"], (240, 320), mode="bilinear")
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

    compiled = jax.jit(fn).lower(*arguments).compile()
    seconds: dict = {"ours": [], "theirs": []}
    for turn in range(10):
        for key, call in (("ours", lambda: jax.block_until_ready(compiled(*arguments))), ("theirs", theirs)):
            started = time.perf_counter()
            call()
            if turn >= 3:
                seconds[key].append(time.perf_counter() - started)
    best = {key: min(values) * 1e3 for key, values in seconds.items()}
    ratio = best["ours"] / best["theirs"]
    print(f"{name} {part}: {best['ours']:.1f} ms, PyTorch {best['theirs']:.1f} ms, ratio {ratio:.2f}")
    assert ratio < limit


def test_a_stretch_is_a_key_frame_and_the_frames_to_the_next():
    seen = []
    kinds = {name: functools.partial(seen.append, name) for name in ("static network", "key frame", "other frame")}
    found = propagate_speed._stretches(kinds, 4)
    found["cell"]()
    assert seen == ["key frame", "other frame", "other frame", "other frame"]
    seen.clear()
    found["network"]()
    assert seen == ["static network"] * 4


@pytest.mark.parametrize("kind", ["fixed", "regions"])
def test_the_frames_of_a_propagating_cell_and_their_parts(kind, capsys, tmp_path):
    name = {"fixed": "zoo:dff", "regions": "zoo:dvsnet"}[kind]
    words = ["compile_effort=quick", "data.height=32", "data.width=96", "net.encoder=resnet18", "net.width=0.125",
             "net.decoder_channels=8", "space.mode=propagate", "space.channels=4", "schedule.interval=4",
             "schedule.grid=1,2"]  # fmt: skip
    overrides = [f"--config.{word}" for word in words]
    assert cli.main(["bench", "cell", f"--genotype={name}", *overrides, f"--json={tmp_path / 'x.json'}"]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    rows = {row["name"]: row for row in (*found["frames"], *found["parts"])}
    looks = [f"look, {what} due" for what in ("nothing", "one region", "all")]
    others, parts = ["other frame"] if kind == "fixed" else looks, {"encoder to stage1", "cell", "labels"}
    assert list(rows)[: 2 + len(others)] == ["static network", "key frame", *others] and set(rows) >= parts
    assert [mean["name"] for mean in found["means"]] == (
        ["mean"] if kind == "fixed" else ["mean, nothing due", "mean, all due"]
    )
    for mean, other in zip(found["means"], others[::2], strict=True):
        if kind == "fixed":  # measured in stretches of frames
            assert rows[other]["ms"] / 3 < mean["ms"] < 3 * rows["static network"]["p95"] and mean["of_static"] > 0
            continue
        assert mean["ms"] == pytest.approx((rows["key frame"]["ms"] + 3 * rows[other]["ms"]) / 4)
        assert mean["of_static"] == pytest.approx(mean["ms"] / rows["static network"]["ms"])
    assert all(0 < row["ms"] <= row["p95"] for row in rows.values())
    assert f"schedule {kind}, key frame every 4, 96x32" in capsys.readouterr().out
    assert cli.main(["bench", "cell", "--config.space.mode=refine"]) == 2
    assert "only propagate has parts" in capsys.readouterr().err
