"""The end of a cell: it starts as the baseline of its mode, and its heads do what they say."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_space import SETTINGS, SPACE, make_features, randomised

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.evaluate import baselines
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, schedule, zoo
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import claims

REFINE = genotype_lib.random(SPACE, np.random.default_rng(5), 1)[0]
PROPAGATE = dataclasses.replace(SETTINGS, mode="propagate", cut="stage1", schedule=schedule.Schedule(interval=3))
PROPAGATE_SPACE = genotype_lib.Space(  # of few operations: here the end counts, not what is before it
    inputs=("prev_state", "prev_logits", "stage1"),
    num_layers=2,
    operations=("skip", "conv_1x1", "sep_conv_3x3"),
    aggregations=("sum", "gate"),
)
SHARE = 0.7


@functools.cache
def refine_cell(end: str):
    """A cell, its weights, and its jitted `unroll`."""
    cell = cell_lib.make(SPACE, REFINE, dataclasses.replace(SETTINGS, end=end))
    return cell, jax.jit(cell.init)(jax.random.key(0)), jax.jit(cell.unroll)


def running_average(logits: np.ndarray, share: float) -> np.ndarray:
    found = [logits[0]]
    for current in logits[1:]:
        found.append(share * current + (1 - share) * found[-1])
    return np.stack(found)


@pytest.mark.parametrize("end", [cell_end.HEADS, cell_end.NONE])
def test_untrained_refining_cell_is_a_running_average(end) -> None:
    (_, params, unroll), features = refine_cell(end), make_features(4)
    logits = unroll(params, features)
    np.testing.assert_allclose(logits, running_average(np.asarray(features.logits), SHARE), atol=1e-5)
    other = {**params, "ports": {**params["ports"], **cell_end.log_odds(0.4)}}
    np.testing.assert_allclose(unroll(other, features), running_average(np.asarray(features.logits), 0.4), atol=1e-5)


@pytest.mark.parametrize("end", [cell_end.HEADS, cell_end.NONE])
def test_untrained_propagating_cell_holds_the_key_frame(end) -> None:
    features = make_features(4, num_frames=5)
    genotype = genotype_lib.random(PROPAGATE_SPACE, np.random.default_rng(1), 1)[0]
    cell = cell_lib.make(PROPAGATE_SPACE, genotype, dataclasses.replace(PROPAGATE, end=end))
    logits = jax.jit(cell.unroll)(jax.jit(cell.init)(jax.random.key(0)), features)
    np.testing.assert_array_equal(logits, np.asarray(features.logits)[[0, 0, 0, 3, 3]])


def test_baseline_has_no_weights_beside_the_share() -> None:
    cell, params, _ = refine_cell(cell_end.NONE)
    assert params["layers"] == {}
    assert list(params["ports"]) == ["share"]
    assert cell.inputs == ()
    with pytest.raises(errors.UserError, match="nothing to search"):
        supernet_lib.make(SPACE, dataclasses.replace(SETTINGS, end=cell_end.NONE))


def heads(params, *, offset=(0.0, 0.0), gate=0.0, correction=0.0):
    """Parameters whose heads say the same everywhere: offsets in grid cells, log-odds, a value for each class."""
    own = params["ports"]
    bias = np.array([*np.arctanh(np.array(offset) / SETTINGS.max_offset), gate], np.float32)
    motion = {**own["motion"], "bias": jnp.asarray(bias)}
    head = {**own["head"], "bias": np.full_like(own["head"]["bias"], correction)}
    return {**params, "ports": {**own, "motion": motion, "head": head}}


def test_heads_move_mix_and_correct() -> None:
    """The sample of the frame before lies 2 cells to the right and 1 up, the border is repeated."""
    (_, params, unroll), features = refine_cell(cell_end.HEADS), make_features(6)
    first, second, _ = np.asarray(features.logits)
    rows, cols = np.clip(np.arange(6) - 1, 0, 5), np.clip(np.arange(8) + 2, 0, 7)
    odds = np.log(SHARE / (1 - SHARE)) + 0.5
    gate = 1 / (1 + np.exp(-odds))

    found = unroll(heads(params, offset=(2, -1), gate=0.5, correction=0.25), features)
    np.testing.assert_allclose(found[0], first + 0.25, atol=1e-5)
    moved = (first + 0.25)[:, rows][:, :, cols]
    np.testing.assert_allclose(found[1], gate * second + (1 - gate) * moved + 0.25, atol=1e-5)


@pytest.mark.parametrize("part", cell_end.PARTS)
def test_a_part_is_switched_off_as_data(part) -> None:
    (_, params, unroll), features = refine_cell(cell_end.HEADS), make_features(6)
    own = {"offsets": {"offset": (2, -1)}, "gate": {"gate": 0.5}, "correction": {}}
    said = {"offset": (2, -1), "gate": 0.5, "correction": 0.25}
    whole = heads(params, **said)
    cut = {**whole, "ports": cell_end.without(whole["ports"], part)}
    rest = {name: value for name, value in said.items() if name not in own[part] and name != part}
    np.testing.assert_allclose(unroll(cut, features), unroll(heads(params, **rest), features), atol=1e-6)
    assert np.abs(np.asarray(unroll(cut, features)) - unroll(whole, features)).max() > 0.1


def test_supernet_and_cell_have_the_same_end_in_propagate_mode() -> None:
    """Forward and gradient of one clip with two key frames, every weight away from its start."""
    features = make_features(7, num_frames=4)
    supernet = supernet_lib.make(PROPAGATE_SPACE, PROPAGATE)
    params = randomised(jax.jit(supernet.init)(jax.random.key(0)), 3)
    weights = jnp.cos(jnp.arange(features.logits.size).reshape(features.logits.shape))

    def scored(unroll):
        return jax.jit(jax.value_and_grad(lambda params, *args: (weights * jnp.tanh(unroll(params, *args))).mean()))

    whole = scored(supernet.unroll)
    for genotype in genotype_lib.random(PROPAGATE_SPACE, np.random.default_rng(4), 2):
        cell = cell_lib.make(PROPAGATE_SPACE, genotype, PROPAGATE)
        cut = cell_lib.gather_params(PROPAGATE_SPACE, genotype, params)
        loss, grads = whole(params, genotype, features)
        expected, expected_grads = scored(cell.unroll)(cut, features)
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)
        own = cell_lib.gather_params(PROPAGATE_SPACE, genotype, grads)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), own, expected_grads)
        for name in ("motion", "head"):
            assert np.abs(own["ports"][name]["kernel"]).max() > 0


def test_classifier_is_the_end_of_older_cells() -> None:
    """Refine: the static network's logits plus the head; the configuration of an older run means it."""
    (_, params, unroll), features = refine_cell(cell_end.CLASSIFIER), make_features(4)
    assert {"motion", "share"}.isdisjoint(params["ports"])
    np.testing.assert_allclose(unroll(params, features), features.logits, atol=1e-6)
    values = config_lib.to_json_dict(config_lib.defaults())
    assert config_lib.from_json_dict(values, "config.json").space.end == cell_end.HEADS
    del values["space"]["end"]
    assert config_lib.from_json_dict(values, "config.json").space.end == cell_end.CLASSIFIER


def test_a_baseline_has_no_baseline_beside_it() -> None:
    for end, expected in ((cell_end.NONE, baselines.NOTHING), (cell_end.HEADS, baselines.Controls(interval=3))):
        model = types.SimpleNamespace(cell=object(), settings=dataclasses.replace(PROPAGATE, end=end))
        assert baselines.of_run(config_lib.defaults(), model, None) == expected


def test_baselines_are_members_of_the_zoo() -> None:
    for name, mode in (("ema", "refine"), ("hold", "propagate")):
        member = zoo.get(name)
        assert (member.mode, member.end) == (mode, cell_end.NONE)
        zoo.require(member, mode=mode, schedule="fixed", end=cell_end.NONE)
        with pytest.raises(errors.UserError, match=rf"zoo:{name}: .* add --config.space.end=none"):
            zoo.require(member, mode=mode, schedule="fixed", end=cell_end.HEADS)
    with pytest.raises(errors.UserError, match=r"zoo:previous: .* add --config.space.end=heads"):
        zoo.require(zoo.get("previous"), mode="refine", schedule="fixed", end=cell_end.NONE)


def test_an_older_run_goes_on_with_its_config_file(tmp_path) -> None:
    """Keys that it lacks mean what they meant then, whatever the file's defaults are now; others are compared."""
    config = config_lib.load("smoke")
    values = config_lib.to_json_dict(config)
    for key in config_lib.BEFORE:
        section, leaf = key.split(".")
        del values[section][leaf]
    folder = workdir.Workdir(tmp_path)
    folder.claim(config_lib.from_json_dict(values, "x"))
    folder.append("metrics.jsonl", {"stage": "pretrain", "step": 1})
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = claims.check(config, folder)
    assert found.space.end == cell_end.CLASSIFIER and found.train.eval_every == 0
    with pytest.raises(errors.UserError, match="train.eval_every"):
        claims.check(config_lib.changed(config, {"train.eval_every": "7"}), folder)
