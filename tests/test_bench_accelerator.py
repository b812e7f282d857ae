"""`dvsnas bench accelerator`: parts are kept and done again, programs for CUDA are read right and hold nothing slow."""

import json
import os
import pathlib
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax import cli
from dvsnas_jax.bench import (
    accelerator,
    accelerator_parts,
    accelerator_table,
    compile_sizes,
    kernel_variants,
    lowered,
    profiles,
)  # fmt: skip
from dvsnas_jax.core import compilation, defaults, errors, overrides, plain_config
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import static_net

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A process with these words in place of the measuring one: by the name of its part.
CHILD = """
import json, pathlib, sys, time
name, sizes, file = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(name + " ")
found = {{"result": {{"sizes": sizes}}, "notes": [], "backend": "gpu", "device": "D", "git_commit": "c"}}
found["peak_bytes"] = 1
if name in {slow}: time.sleep(60)
if name in {broken}: found = {{"line": "ValueError: no such thing"}}
if name in {killed}: import os; os.kill(os.getpid(), 9)
pathlib.Path(file).write_text(json.dumps(found))
"""


# --- without ml_collections ---------------------------------------------------------------------------------------


def test_the_stand_in_holds_the_same_configuration(monkeypatch):
    def load() -> dict:
        config = config_lib.load(
            "configs/cityscapes_search.py", {"search.steps": "3", "space.inputs": "decoder,logits"}
        )
        return config_lib.to_json_dict(compile_sizes.without_data(compile_sizes.paper_size(config, 321)))

    monkeypatch.chdir(ROOT)
    expected = load()
    for module in (defaults, config_lib, overrides):
        monkeypatch.setattr(module, "ml_collections", types.SimpleNamespace(ConfigDict=plain_config.ConfigDict))
    assert isinstance(config_lib.defaults(), plain_config.ConfigDict)
    assert load() == expected
    with pytest.raises(errors.UserError, match="unknown config key 'search.step', did you mean 'search.steps'"):
        config_lib.load(None, {"search.step": "3"})


def test_the_stand_in_takes_no_new_keys():
    config = plain_config.ConfigDict({"a": 1, "b": {"c": 2}})
    copy = config.copy_and_resolve_references()
    copy.b.c, copy["a"] = 3, 4
    copy.update({"b": {"c": 5}})
    assert (config.a, config.b.c, copy.a, copy.b.c) == (1, 2, 4, 5)
    for change in (lambda: setattr(config, "d", 1), lambda: config.update({"d": 1}), lambda: config.b.update({"e": 1})):
        with pytest.raises(KeyError):
            change()
    with pytest.raises(AttributeError, match="'d'"):
        _ = config.d
    assert not plain_config.provide()  # the package is here


@pytest.fixture(name="bare", scope="module")
def _bare(tmp_path_factory) -> dict[str, str]:
    """An environment without the packages that a machine for measuring need not have."""
    folder = tmp_path_factory.mktemp("absent")
    names = "tensorflow tensorflow_datasets ml_collections PIL safetensors matplotlib tqdm av tensorboardX psutil"
    for name in [*names.split(), "cityscapesscripts"]:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r}, name={name!r})\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def check(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    words = ["bash", str(ROOT / "launch" / "gpu_check.sh"), "--tiny", *words]
    return subprocess.run(words, env=environ, capture_output=True, text=True)


def test_the_script_runs_on_a_machine_with_jax_alone(bare, tmp_path):
    path = tmp_path / "found.json"
    done = check(bare, "--only=device", f"--output={path}")
    assert done.returncode == errors.EXIT_DONE, done.stderr
    part = json.loads(path.read_text())["parts"]["device"]
    assert part["notes"] == [
        "safetensors is not installed: weights are constants of the exported programs",
        "JAX computes on cpu here: these figures say nothing about a GPU",
        "cpu keeps no count of memory: peaks are missing",
        "ml_collections is not installed: a stand-in holds the configuration",
    ]
    assert min(*part["result"]["matrix_peak_gflops"].values(), part["result"]["copy_gb_per_s"]) > 0
    page = path.with_suffix(".md").read_text()
    assert page in done.stdout and all(f"- {note}\n" in page for note in part["notes"])
    assert "| kernels | variants of the kernels | not asked for |  |" in page


@pytest.mark.slow
def test_all_parts_at_tiny_sizes(bare, tmp_path):
    path = tmp_path / "found.json"
    done = check(bare, "--minutes=30", f"--output={path}")
    assert done.returncode == errors.EXIT_DONE, done.stderr
    results = {name: part["result"] for name, part in json.loads(path.read_text())["parts"].items()}
    assert results.keys() == set(accelerator.PARTS)
    assert all(row["is_equal"] for row in results["kernels"]["kernels"])
    assert results["search"]["candidates_per_hour"] > 0 and results["search"]["largest"]
    assert results["net_bfloat16"]["equal_labels"] > 0.9 and results["net_bfloat16"]["logits_difference"] < 0.1
    assert results["export"]["equal_labels"] > 0.999 and results["export"]["labels_found"] > 1
    assert {"cuda"} <= set(results["export"]["platforms"]["key"])
    assert all(not each["problems"] for each in results["programs"]["programs"].values())


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.fixture(name="order")
def _order(tmp_path) -> accelerator.Order:
    return accelerator.Order(tmp_path / "found.json", parts=("device", "kernels", "search", "export"))


def play(monkeypatch, order: accelerator.Order, slow=(), broken=(), killed=()) -> tuple[dict, int, list[str]]:
    """Runs the parts as played by `CHILD`: what is known, the code, and which parts were begun."""
    log = order.output.with_suffix(".log")
    log.write_text("")
    monkeypatch.setattr(accelerator_table, "_SECTIONS", ())  # these parts found nothing to show
    monkeypatch.setattr(accelerator, "_CHILD", CHILD.format(log=str(log), slow=slow, broken=broken, killed=killed))
    known, code = accelerator.run(order)
    assert json.loads(order.output.read_text()) == known
    return known, code, log.read_text().split()


def test_what_is_done_is_kept_and_what_was_stopped_is_done_again_last(monkeypatch, order):
    monkeypatch.setattr(accelerator, "_LARGEST_SHARE", 5 / (60 * order.minutes))
    known, code, begun = play(monkeypatch, order, slow=("device",), broken=("kernels",), killed=("search",))
    assert code == errors.EXIT_FAULT and begun == ["device", "kernels", "search", "export"]
    assert list(known["parts"]) == ["export"] and known["parts"]["export"]["result"] == {"sizes": "paper"}
    lines = {name: each["line"] for name, each in known["missing"].items()}
    assert lines == {
        "device": "stopped after 5 s; start the same command again: what it compiled is kept",
        "kernels": "failed: ValueError: no such thing",
        "search": "failed: its process ended by signal 9",
    }
    page = accelerator.table_file(order.output).read_text()
    assert all(line in page for line in lines.values()) and "gpu (D); paper sizes; commit c" in page
    known, code, begun = play(monkeypatch, order)
    assert code == errors.EXIT_DONE and begun == ["kernels", "search", "device"]
    assert set(known["parts"]) == set(order.parts) and known["missing"] == {}
    assert play(monkeypatch, order)[1:] == (errors.EXIT_DONE, [])


def test_no_part_is_begun_without_time(monkeypatch, order):
    known, code, begun = play(monkeypatch, order._replace(minutes=0.1))
    assert (code, begun, known["parts"]) == (errors.EXIT_STOPPED, [], {})
    assert {each["line"] for each in known["missing"].values()} == {
        "not begun, the time was over; start the same command again"
    }


@pytest.mark.parametrize(
    "words, message",
    [
        (["accelerator"], "--output=FILE.json is needed"),
        (["accelerator", "--output=x.txt"], "x.txt must end in .json"),
        (["accelerator", "--output=x.json", "--minutes=0"], "--minutes: must be above 0, got 0"),
        (["accelerator", "--output=x.json", "--only=kernel"], "unknown part 'kernel', allowed are device, kernels"),
        (["accelerator", "--output=other.json"], "holds no parts of `bench accelerator` with paper sizes"),
        (["nets", "--tiny"], "--tiny: only `dvsnas bench accelerator` takes it"),
        (["accelerator", "--output=x.json", "--profile=d"], "--profile: only `dvsnas bench search` takes it"),
    ],
)
def test_wrong_words_are_told(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("other.json").write_text('{"version": 1, "sizes": "tiny", "parts": {}}')
    assert cli.main(["bench", *words]) == errors.EXIT_USER
    assert message in capsys.readouterr().err


# --- kernels, costs -----------------------------------------------------------------------------------------------


def test_kernels_are_compared_by_values():
    sizes = kernel_variants.Sizes(2, 6, 7, 8, 8, 1)
    known = {case.name: case for case in kernel_variants.cases(sizes)}
    wrong = known["warp"]._replace(other=("half", lambda x, offsets: 0.5 * known["warp"].fn(x, offsets)))
    with compilation.effort("quick"):
        rows = kernel_variants.run(sizes, [known["conv 3x3 dilation 12"], known["warp"], wrong])
    assert [row["is_equal"] for row in rows] == [True, True, False]
    assert max(row["difference"] for row in rows[:2]) < 1e-5 and rows[2]["difference"] == pytest.approx(1.0)
    assert [list(row["variants"]) for row in rows] == [["lax", "slices"], ["ours", "map_coordinates"], ["ours", "half"]]
    for row in rows:
        times = {name: part["gradient"] for name, part in row["variants"].items()}
        assert times[row["fastest"]] == min(times.values()) > 0


def test_the_largest_cost_is_the_dear_product():
    def fn(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 4, lambda _, y: jnp.maximum(y @ x, 0) / 600, x)

    x = jnp.ones((600, 600))  # its product takes a hundred times as long as all else: a busy machine changes no order
    compiled = jax.jit(fn).lower(x).compile()
    compiled(x).block_until_ready()
    first, *others = profiles.record(lambda: compiled(x), compiled.as_text(), calls=2)
    assert first["kind"] in ("dot_general", "max", "div")  # where XLA joins them
    assert first["share"] > 0.5 and 0 < first["op_ms"] <= first["ms"]
    assert all(other["kind"] not in ("while", "call") and other["ms"] <= first["ms"] for other in others)


def test_of_a_gpu_the_streams_count(monkeypatch, tmp_path):
    def event(seconds: float, **stats) -> types.SimpleNamespace:
        return types.SimpleNamespace(name="kernel", duration_ns=seconds * 1e9, stats=list(stats.items()))

    def line(name: str, *events) -> types.SimpleNamespace:
        return types.SimpleNamespace(name=name, events=events)

    gpu = [
        line("XLA Ops", event(9, hlo_op="conv.1")),
        line("Stream #7(Compute)", event(2, hlo_op="conv.1"), event(1, hlo_op="conv.2", hlo_module="m"), event(5)),
        line("Stream #8(Compute)", event(1, hlo_op="fusion.3"), event(4, hlo_op="while.2")),
    ]
    planes = [types.SimpleNamespace(name="/host:CPU", lines=[line("python", event(7, hlo_op="conv.1"))]),
              types.SimpleNamespace(name="/device:GPU:0", lines=gpu)]  # fmt: skip
    data = types.SimpleNamespace(from_file=lambda path: types.SimpleNamespace(planes=planes))
    monkeypatch.setattr(jax.profiler, "ProfileData", data)
    (tmp_path / "host.xplane.pb").touch()
    text = """
      %conv.1 = f32[2,3]{1,0} custom-call(%a), metadata={op_name="jit(f)/branch_1_fun/conv_general_dilated" id=3}
      ROOT %conv.2 = (f32[2]{0}, u8[0]{0}) custom-call(%b), metadata={op_name="jit(f)/conv_general_dilated"}
      %while.2 = (s32[], f32[2]{0}) while(%t), condition=%c, body=%b, metadata={op_name="jit(f)/while"}
    """
    found = profiles.largest(tmp_path, text, calls=2)
    assert found == [
        {"kind": "conv_general_dilated", "ms": 1500.0, "share": 0.75, "op": "conv.1", "op_ms": 1000.0},
        {"kind": "fusion", "ms": 500.0, "share": 0.25, "op": "fusion.3", "op_ms": 500.0},
    ]
    assert profiles.text_of(found).startswith("conv_general_dilated 1.5e+03 ms (75 %), fusion")
    assert "no events" in profiles.text_of([])


# --- programs for CUDA --------------------------------------------------------------------------------------------

PROGRAM = """
  %1 = stablehlo.convolution(%0, %k) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {pad = [[1, 1]]} \
{batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<2x8x6x3xbf16>, tensor<3x3x3x32xbf16>) \
-> tensor<2x8x6x32xbf16>
  %2 = stablehlo.convolution(%1, %d) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {pad = [[1, 1]]} \
{batch_group_count = 1 : i64, feature_group_count = 32 : i64} : (tensor<2x8x6x32xbf16>, tensor<3x3x1x32xbf16>) \
-> tensor<2x8x6x32xbf16>
  %3 = stablehlo.convolution(%1, %2) dim_numbers = [f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f], window = {pad = [[1, 1]]} \
{batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<2x8x6x32xf32>, tensor<2x8x6x16xf32>) \
-> tensor<3x3x32x16xf32>
  %4 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : \
(tensor<96x32xbf16>, tensor<32x8xbf16>) -> tensor<96x8xbf16>
""".replace("\\\n", "")
SLOW = """
  %5 = stablehlo.convert %4 : (tensor<96x8xbf16>) -> tensor<96x8xf64>
  %6 = stablehlo.custom_call @xla_ffi_python_gpu_callback(%5) : (tensor<96x8xf64>) -> tensor<f64>
  %7 = stablehlo.convolution(%0, %k) dim_numbers = [b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1], window = {} \
{feature_group_count = 1 : i64} : (tensor<2x8x6x8xf32>, tensor<16x8x1x1xf32>) -> tensor<2x16x6x8xf32>
""".replace("\\\n", "")


def test_a_program_is_read_as_by_hand():
    found = lowered.inspect(PROGRAM)
    assert found.products == [
        lowered.Product("convolution", "bf16", (3, 32), True, 2 * 8 * 6 * 32 * 9 * 3),
        lowered.Product("depthwise", "bf16", (32, 32), True, 2 * 8 * 6 * 32 * 9),
        lowered.Product("convolution", "f32", (32, 16), True, 3 * 3 * 32 * 16 * 2 * 8 * 6),
        lowered.Product("product", "bf16", (32, 8), True, 96 * 8 * 32),
    ]
    assert found.problems() == [] and [each.is_aligned for each in found.products] == [False, True, True, True]
    stem, gradient, product = (found.products[place].macs for place in (0, 2, 3))
    assert found.share(lambda each: each.is_aligned) == (gradient + product) / (stem + gradient + product)
    assert found.share(lambda each: each.dtype == "bf16") == (stem + product) / (stem + gradient + product)
    slow = lowered.inspect(PROGRAM + SLOW)
    assert [line[:2] for line in slow.float64] == ["%5", "%6"] and slow.host == ["xla_ffi_python_gpu_callback"]
    assert slow.problems()[-1] == "a convolution with channels before pixels: f32" and len(slow.problems()) == 4


def test_what_is_slow_is_seen_in_a_program_of_jax():
    def fn(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    # For another backend than the one in use JAX refuses to lower it at all.
    found = lowered.inspect(jax.jit(fn).lower(jnp.ones(3)).as_text())
    assert len(found.host) == 1 and "callback" in found.host[0]


def test_the_programs_for_cuda_hold_nothing_slow():
    """The steps of a search and the training of a network in bfloat16, with `lax`'s convolutions."""
    texts = accelerator_parts.cuda_texts(is_tiny=True)
    found = {name: lowered.inspect(text) for name, text in texts.items()}
    assert {name: each.problems() for name, each in found.items()} == dict.fromkeys(texts, [])
    for name, each in found.items():
        kinds = [product.kind for product in each.products]
        assert "convolution" in kinds and all(product.macs > 0 for product in each.products), name
    wide = [each for each in found["net_forward"].products if each.kind != "depthwise"]
    assert {each.dtype for each in wide} == {"bf16"}
    # The loss interpolates logits in float32; all else of the training is in bfloat16.
    wider = [each for each in found["net_training"].products if each.dtype != "bf16"]
    assert {each.kind for each in wider} == {"product"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0", "resnet50"])
def test_channels_of_the_networks_suit_tensor_cores(name):
    """All kernels but that of the image's three channels and those of the classes: multiples of 8."""
    config = config_lib.defaults().net
    config.update({"encoder": name, "width": 1.0, "decoder_channels": 256})
    leaves = jax.tree_util.tree_leaves_with_path(static_net.shapes(static_net.make(config, 11))["params"])
    kernels = [leaf.shape[-2:] for path, leaf in leaves if path[-1].key == "kernel" and leaf.ndim == 4]
    odd = {sizes for sizes in kernels if any(size % lowered.ALIGNED for size in sizes) and sizes[0] != 1}
    assert len(kernels) > 20 and {3 in sizes or 11 in sizes for sizes in odd} == {True}
