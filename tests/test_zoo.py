"""The hand-designed cells: what each is, that each is a point of the space, and the words that show and train them."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax import cli
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, schedule, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.space.drawing import draw, end

ROOT = pathlib.Path(__file__).parents[1]
EXPECTED = {
    # name: mode, schedule, arXiv number, aggregations in order
    "ema": ("refine", "fixed", "", ["max"]),
    "hold": ("propagate", "fixed", "", ["max"]),
    "match": ("propagate", "fixed", "1504.06852", ["correlation", "concat", "concat"]),
    "previous": ("refine", "fixed", "", ["max"]),
    "static": ("refine", "fixed", "", ["max"]),
    "netwarp": ("refine", "fixed", "1708.03088", ["warp", "sum"]),
    "grfp": ("refine", "fixed", "1612.08871", ["warp", "concat", "gate"]),
    "clockwork": ("propagate", "fixed", "1608.03609", ["sum", "sum"]),
    "dff": ("propagate", "fixed", "1611.07715", ["warp"]),
    "low_latency": ("propagate", "adaptive", "1804.00389", ["local_attention", "concat"]),
    "accel": ("propagate", "fixed", "1807.06667", ["warp", "sum", "sum", "concat"]),
    "dvsnet": ("propagate", "regions", "1804.00931", ["warp"]),
}
CHANNELS = {"decoder": 6, "logits": 4, "stage1": 5, "stage2": 7, "image": 3}
SETTINGS = {
    "refine": cell_frame.CellSettings(channels=8, feature_channels=CHANNELS),
    "propagate": cell_frame.CellSettings(
        channels=8,
        feature_channels=CHANNELS,
        mode="propagate",
        cut="stage2",
        schedule=schedule.Schedule(kind="fixed", interval=3),
    ),
}
PROPAGATE_INPUTS = ("prev_state", "prev_decoder", "prev_logits", "stage1", "stage2", "image_diff", "prev_stage2")
INPUTS = {"refine": (*PROPAGATE_INPUTS, "decoder", "logits"), "propagate": PROPAGATE_INPUTS}
NAMES = list(EXPECTED)
each_member = pytest.mark.parametrize("name", NAMES)
each_cell = pytest.mark.parametrize("name", [name for name in NAMES if not zoo.get(name).is_baseline])


def make_features(num_frames: int = 3, size: tuple[int, int] = (6, 8), dtype: Any = np.float32) -> types.Features:
    rng = np.random.default_rng(0)
    maps = {
        name: rng.normal(size=(2, num_frames, *size, count)).swapaxes(0, 1).astype(dtype)
        for name, count in CHANNELS.items()
    }
    logits = maps.pop("logits")
    return types.Features(maps=maps, logits=logits)


def randomised(params: types.Params) -> types.Params:
    """Every weight away from its special start (some of them are zero)."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x + 0.2 * rng.normal(size=x.shape), x.dtype), jax.device_get(params))


def loss(logits: jax.Array) -> jax.Array:
    return (jnp.cos(jnp.arange(logits.size).reshape(logits.shape)) * jnp.tanh(logits)).mean()


def make_space(mode: str, *, is_full: bool) -> genotype_lib.Space:
    """Holds every member of a mode: with the full vocabulary, or `none` and what the members name."""
    space = genotype_lib.Space(inputs=INPUTS[mode], num_layers=4)
    if is_full:
        return space
    layers = [layer for member in zoo.of_mode(mode) for layer in member.genotype["layers"]]
    operations = dict.fromkeys(["none", "skip", *(name for layer in layers for name in layer["ops"])])
    aggregations = dict.fromkeys(["max", *(layer["agg"] for layer in layers)])
    return dataclasses.replace(space, operations=tuple(operations), aggregations=tuple(aggregations))


def outputs_of(unroll_fn: Callable[[types.Params], jax.Array], *, has_grads: bool) -> Callable:
    """`params -> (logits, gradients or None)`."""

    def scalar(params: types.Params) -> tuple[jax.Array, jax.Array]:
        logits = unroll_fn(params)
        return loss(logits), logits

    def run(params: types.Params):
        if not has_grads:
            return unroll_fn(params), None
        (_, logits), grads = jax.value_and_grad(scalar, has_aux=True)(params)
        return logits, grads

    return run


@functools.cache
def make_supernet(mode: str, *, is_full: bool):
    """A supernet: its space, weights, the jitted `(params, genotype) -> outputs_of`, and its traces."""
    space, traces = make_space(mode, is_full=is_full), []
    supernet = supernet_lib.make(space, SETTINGS[mode])
    params = randomised(compilation.jit_once(supernet.init)(jax.random.key(0)))
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    features = make_features(dtype=np.float64)

    def traced(params: types.Params, genotype: jax.Array):
        traces.append(None)
        return outputs_of(lambda params: supernet.unroll(params, genotype, features), has_grads=is_full)(params)

    return space, params, compilation.jit_once(traced), traces


def run_cell(cell: cell_lib.Cell, params: types.Params, *, has_grads: bool):
    features = make_features(dtype=jax.tree.leaves(params)[0].dtype)
    return compilation.jit_once(outputs_of(lambda p: cell.unroll(p, features), has_grads=has_grads))(params)


# --- what each is -------------------------------------------------------------------------------------------------


@each_member
def test_members_are_as_published(name: str) -> None:
    member = zoo.get(name)
    mode, kind, number, aggregations = EXPECTED[name]
    assert (member.name, member.mode, member.schedule, member.interval) == (name, mode, kind, None)
    assert number in member.source and len(member.differs) > (100 if number else 50) and len(member.idea) > 30
    space, tokens = zoo.genotype(member)
    assert [space.aggregations[token] for token in tokens[:, 4]] == aggregations
    SETTINGS[mode].check(space.inputs)


def test_the_table_holds_these_and_no_other() -> None:
    assert set(zoo.TABLE) == set(EXPECTED)
    assert [member.name for member in zoo.of_mode("refine")] == ["static", "netwarp", "grfp", "ema", "previous"]
    assert len(zoo.of_mode("propagate")) == 7


@each_cell
def test_json_round_trip_is_exact_and_reads_only_what_it_uses(name: str) -> None:
    member = zoo.get(name)
    space, tokens = zoo.genotype(member)
    again, same = genotype_lib.from_dict(json.loads(json.dumps(genotype_lib.to_dict(space, tokens))))
    assert again == space and same.tolist() == tokens.tolist()
    assert genotype_lib.to_dict(space, tokens) == member.genotype
    assert set(cell_lib.used_inputs(space, tokens)) == set(space.inputs)


@each_cell
def test_members_are_drawn(name: str, tmp_path: pathlib.Path) -> None:
    space, tokens = zoo.genotype(zoo.get(name))
    whole = end.Whole(zoo.get(name).end, is_propagating=zoo.get(name).mode == "propagate")
    text = draw.text(space, tokens, whole)
    assert text.count("\n") == space.num_layers + 1  # the output, and what becomes of it
    draw.render(space, tokens, tmp_path / "cell.svg", whole=whole)
    picture = (tmp_path / "cell.svg").read_text()
    for word in [*space.inputs, *EXPECTED[name][3]]:
        assert word in text and (word in picture or draw.readable(word) in picture), word


def test_static_has_no_operation() -> None:
    space, tokens = zoo.genotype(zoo.get("static"))
    assert {space.operations[token] for token in tokens[:, 2:4].ravel()} <= {"none", "skip"}
    assert cell_lib.used_inputs(space, tokens) == ("decoder",)


# --- points of one space ------------------------------------------------------------------------------------------


def check_embedded(name: str, *, is_full: bool) -> None:
    """The supernet of a larger space, one trace for all members of a mode, equals the member's own static cell.

    In float64: over a clip, offsets that are predicted from what was warped before amplify rounding.
    """
    member = zoo.get(name)
    space, params, traced, traces = make_supernet(member.mode, is_full=is_full)
    _, tokens = zoo.genotype(member, space)
    logits, grads = traced(params, tokens)
    assert len(traces) == 1
    own_space, own_tokens = zoo.genotype(member)
    own = cell_lib.make(own_space, own_tokens, SETTINGS[member.mode])
    cut = without_padding(cell_lib.gather_params(space, tokens, params), own_space.num_layers)
    expected, expected_grads = run_cell(own, cut, has_grads=is_full)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    if is_full:
        cut_grads = without_padding(cell_lib.gather_params(space, tokens, grads), own_space.num_layers)
        chex.assert_trees_all_close(cut_grads, expected_grads, atol=1e-4, rtol=0)


@each_member
def test_embedded_in_a_larger_space_it_is_the_same_function(name: str) -> None:
    with jax.enable_x64(True):
        check_embedded(name, is_full=False)


@pytest.mark.slow
@each_member
def test_embedded_in_the_full_space_it_is_the_same_function_and_its_gradient(name: str) -> None:
    with jax.enable_x64(True):
        check_embedded(name, is_full=True)


def without_padding(params: types.Params, num_layers: int) -> types.Params:
    """Weights of the first layers; those that fill the space have none."""
    layers = {f"layer{index}": params["layers"][f"layer{index}"] for index in range(len(params["layers"]))}
    kept = {name: layers.pop(name) for name in list(layers)[:num_layers]}
    assert all(not jax.tree.leaves(layer) for layer in layers.values())
    return {**params, "layers": kept}


def test_padding_is_exact_also_for_a_genotype_with_several_loose_ends() -> None:
    layer = {"in": ["decoder", "prev_state"], "ops": ["conv_1x1", "skip"], "agg": "gate"}
    data = {"version": 1, "inputs": ["decoder", "prev_state"], "layers": [layer, {**layer, "agg": "sum"}]}
    space, tokens = genotype_lib.from_dict(data)
    larger = genotype_lib.Space(inputs=("logits", "prev_state", "decoder"), num_layers=5)
    padded = zoo.embed(data, larger)
    assert genotype_lib.loose_ends(larger, padded) == (0, 4)
    own = cell_lib.make(space, tokens, SETTINGS["refine"])
    params = randomised(compilation.jit_once(own.init)(jax.random.key(0)))
    own_logits, own_grads = run_cell(own, params, has_grads=True)
    filling = {f"layer{index}": {"a": {}, "b": {}, "agg": {}} for index in (2, 3, 4)}
    params = {**params, "layers": {**params["layers"], **filling}}
    logits, grads = run_cell(cell_lib.make(larger, padded, SETTINGS["refine"]), params, has_grads=True)
    np.testing.assert_array_equal(logits, own_logits)
    chex.assert_trees_all_close(without_padding(grads, 2), own_grads, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 2}, "zoo:grfp: has 3 layers, the space only 2; set --config.space.num_layers=3"),
        ({"inputs": ("prev_logits", "logits", "decoder")}, "layer 1, field in: unknown name 'image_diff'"),
        ({"operations": ("none", "conv_1x1"), "num_layers": 3}, "unknown name 'skip'"),
        ({"operations": ("none", "conv_1x1")}, "1 layers fewer than the space, and the space lacks"),
        ({"aggregations": ("sum", "concat", "gate", "warp")}, "set --config.space.num_layers=3"),
    ],
)
def test_a_space_that_cannot_hold_a_member_is_refused(change: dict, message: str) -> None:
    space = genotype_lib.Space(**{"inputs": ("prev_logits", "logits", "image_diff"), "num_layers": 4, **change})
    with pytest.raises(errors.UserError) as caught:
        zoo.genotype(zoo.get("zoo:grfp"), space)
    assert message in str(caught.value) and "zoo:grfp" in str(caught.value)


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "nearest"), [("zoo:netwrap", "netwarp"), ("zoo:lowlatency", "low_latency")])
def test_an_unknown_member_suggests_the_nearest(given: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", given]) == 2
    message = capsys.readouterr().err
    assert f"{given}: no such member of the zoo, did you mean 'zoo:{nearest}'?" in message
    assert message.count("\n") == 1 and "dvsnet" in message


def test_show_zoo_lists_all_members(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"zoo:{name}" for name in zoo.TABLE]
    rules = {line.split()[0]: line.split()[1:3] for line in lines}
    assert (rules["zoo:dvsnet"], rules["zoo:static"]) == (["propagate", "regions"], ["refine", "-"])
    assert cli.main(["show", "zoo", "--output=x.svg"]) == 2
    assert "draws one genotype" in capsys.readouterr().err


@each_member
def test_show_prints_source_schedule_and_differences(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", f"zoo:{name}"]) == 0
    out = capsys.readouterr().out
    member = zoo.get(name)
    assert member.source in out and f"differs: {member.differs}" in out
    assert ("key frames: " + member.schedule in out) == (member.mode == "propagate")
    whole = end.Whole(member.end, is_propagating=member.mode == "propagate")
    assert draw.text(*zoo.genotype(member), whole) in out


def test_show_draws_a_member_under_its_name(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "accel.svg"
    assert cli.main(["show", "zoo:accel", f"--output={output}"]) == 0
    assert "zoo:accel" in output.read_text() and f"written: {output}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "missing"),
    [
        ("dvsnet", [], "--config.space.mode=propagate --config.schedule.kind=regions"),
        ("dff", [], "--config.space.mode=propagate"),
        ("low_latency", ["--config.space.mode=propagate"], "--config.schedule.kind=adaptive"),
        ("grfp", ["--config.space.mode=propagate"], "--config.space.mode=refine"),
    ],
)
def test_train_says_which_words_are_missing(name, words, missing, tmp_path, capsys) -> None:
    inputs = "--config.space.inputs=prev_decoder,stage1"
    command = ["train", f"--config={ROOT / 'configs' / 'smoke.py'}", f"--workdir={tmp_path / 'run'}", inputs]
    assert cli.main([*command, f"--genotype=zoo:{name}", *words]) == 2
    message = capsys.readouterr().err
    assert message.strip().endswith(f"zoo:{name}: the config does not fit it; add {missing}")
    assert not (tmp_path / "run").exists()


def test_a_saved_member_is_read_as_any_genotype(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "netwarp.json"
    path.write_text(json.dumps(zoo.get("netwarp").genotype))
    assert cli.main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["show", "zoo:netwarp"]) == 0
    assert capsys.readouterr().out.endswith(shown)
