"""Frame by frame in propagate mode: only what is due is computed, and it gives what the whole computation gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.evaluate import timing
from dvsnas_jax.infer import dispatch, jitted, programs
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.train import features

SPACE = genotype_lib.Space(inputs=("prev_state", "prev_decoder", "stage1", "image_diff"), num_layers=2)
GENOTYPE = genotype_lib.from_dict(
    {
        "version": 1,
        "inputs": list(SPACE.inputs),
        "layers": [
            {"in": ["prev_state", "stage1"], "ops": ["skip", "conv_1x1"], "agg": "sum"},
            {"in": ["layer0", "image_diff"], "ops": ["skip", "skip"], "agg": "max"},
        ],
    },
    SPACE,
)[1]
FRAMES = np.random.default_rng(0).integers(0, 255, (18, 34, 70, 3), np.uint8)  # no multiples of 4, two chunks of 16


NET = config_lib.defaults().net
NET.update({"encoder": "resnet18", "width": 0.125, "decoder_channels": 8})


@functools.cache
def _static() -> tuple:
    """Weights of the static network, and its first maps of the frames."""
    net = static_net.make(NET, 11)
    variables = static_net.init(net, jax.random.key(0))
    return variables, compilation.jit_once(lambda: static_net.infer(net, variables, FRAMES, "stage1").maps["stage1"])()


def _model(kind: str, threshold: float = 0.5, effort: str = "quick", grid_stride: int = 4) -> programs.Model:
    config = config_lib.defaults()
    config.data.update({"height": 34, "width": 70})
    config.net.update(NET)
    config.net.grid_stride = grid_stride
    config.space.update({"mode": "propagate", "cut": "stage1", "channels": 4, "inputs": SPACE.inputs})
    config.schedule.update({"kind": kind, "interval": 4, "threshold": threshold, "grid": (1, 2), "effort": effort})
    settings = features.settings_of(config)
    variables, cheap = _static()
    cell = cell_lib.make(SPACE, GENOTYPE, settings)
    params = compilation.jit_once(cell.init)(jax.random.key(1))
    sizes = {"logits": (9, 18)}
    drawn = {
        name: np.random.default_rng(1).normal(size=(2, 1, *sizes.get(name, grid), channels)).astype(np.float32)
        for grid in [(9, 18) if grid_stride == 4 else (5, 9)]
        for name, channels in settings.feature_channels.items()
    }
    logits = drawn.pop("logits")
    clip = features.types.Features(maps=drawn, logits=logits)
    params = cell_lib.freeze_norm(params, compilation.jit_once(cell.moments)(params, clip))
    head = params["ports"]["head"]  # it starts at zero: corrections that change labels
    head["kernel"] = 3 * jax.random.normal(jax.random.key(2), head["kernel"].shape)
    if settings.schedule.is_learned:  # predictions that vary from region to region and frame to frame
        head = params["ports"]["schedule"]
        head["output"] = head["output"] + 1.0
        log_odds = schedule_lib.predict_error(head, cheap[1:], jnp.broadcast_to(cheap[:1], cheap[1:].shape))
        head["output_bias"] = head["output_bias"] - jnp.median(log_odds)
    return programs.model_of(config, settings, variables, cell, params)


@pytest.mark.parametrize(("kind", "grid_stride"), [("fixed", 4), ("adaptive", 4), ("regions", 4), ("adaptive", 8)])
def test_streaming_equals_segmenting_whole_sequences(kind, grid_stride):
    with compilation.effort("quick"):
        model = jitted.Jitted(_model(kind, grid_stride=grid_stride))
        whole = model.segment(FRAMES)
        labels, shares = model.follow(FRAMES)
        assert labels.shape == whole.static.shape == FRAMES.shape[:3]
        np.testing.assert_allclose(shares, whole.key_share, atol=1e-6)
        assert (labels == whole.cell).mean() > 0.999  # arg-max ties may fall either way
        is_key = np.array(shares) == 1
        assert (whole.cell[is_key] == whole.static[is_key]).mean() > 0.999
        assert (whole.cell[~is_key] != whole.static[~is_key]).mean() > 0.05
        if kind == "fixed":
            assert is_key.tolist() == [index % 4 == 0 for index in range(18)]
            times = timing.measure(model, FRAMES, 9)
            counts = {name: row["count"] for name, row in times["cell"]["latency"].items()}
            assert counts == {"key": 3, "cell": 6} and times["static"]["latency"]["all"]["count"] == 9
            numbers = {name: row["frames"] for name, row in times["cell"]["latency"].items()}
            assert numbers == {"key": [0, 4, 8], "cell": [1, 2, 3, 5, 6, 7]}
            for row in times["cell"]["latency"].values():
                assert 0 < row["median"] <= row["p95"] <= row["worst"] and row["mean"] <= row["worst"]
            rows = times["cell"]["latency"]
            mean = (rows["key"]["median"] + 2 * rows["cell"]["median"]) / 3
            assert times["cell"]["ms_per_frame"] == pytest.approx(mean)
        if kind == "adaptive":
            assert is_key[0] and not is_key.all() and set(shares) == {0.0, 1.0}
        if kind == "regions":
            assert 0.5 in shares


def test_who_goes_first_pays_no_more_than_the_other(monkeypatch):
    """A clock on which the first one of every frame takes 1 ms more than the second, and both the same otherwise."""
    clock, calls = [0.0], []

    def step(name):
        calls.append(name)
        clock[0] += 0.005 + 0.001 * (len(calls) % 2)
        return np.zeros(1)

    made = {"static": lambda frame: step("static"), "step": lambda state, frame: (state, step("cell"))}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    model = dispatch.Dispatch({"schedule": None, "regions": [], "state": {}}, made)
    times = timing.measure(model, FRAMES, 30)
    assert [sorted(pair) for pair in zip(calls[::2], calls[1::2], strict=True)] == [["cell", "static"]] * 60
    assert calls[60::2].count("static") == 15
    found = timing.change(times["static"], times["cell"], is_refining=True)
    assert found.difference == pytest.approx(0.0, abs=1e-9) and not found.is_clear and found.is_measured
    # Not in step with key frames: whatever their interval, each goes first at some of them.
    for interval in range(2, 9):
        assert len({calls[60 + 2 * frame] for frame in range(0, 30, interval)}) == 2


def test_a_propagating_cell_that_costs_more_than_it_saves_is_told():
    def times(*medians):
        return {kind: {"count": 2, "median": ms} for kind, ms in zip(("key", "cell"), medians, strict=False)}

    static = {"ms_per_frame": 10.0, "latency": times(10.0)}
    fixed, learned = {"is_learned": False}, {"is_learned": True}
    cheap, dear = ({"ms_per_frame": ms, "latency": times(10.0, 2 * ms - 10)} for ms in (7.0, 12.0))
    said = (
        "warning: a frame takes 1.20 of the static network's 10.0 ms on the mean (2 key frames of 10.0 ms, 2 cell "
        "frames of 14.0 ms): the static network on every frame costs less; "
    )
    assert timing.slower(fixed, static, dear) == said + "take a smaller cell"
    assert timing.slower(learned, static, dear) == said + "raise schedule.threshold, or set schedule.kind=fixed"
    for case in ((fixed, static, cheap), (None, static, dear), (fixed, static, None), (fixed, {}, dear)):
        assert timing.slower(*case) == ""
    assert timing.share_of_static(static, cheap) == 0.7 and timing.share_of_static(static, {}) is None


def test_many_regions_are_a_key_frame_and_frames_that_are_due_anyway_are_not_looked_at():
    """By programs that say what they were asked for, a grid of 2x2 regions of which one is computed by itself."""
    calls, shares = [], np.zeros((1, 2, 2), np.float32)

    def program(name, result):
        return lambda *args: calls.append(f"{name} {args[1]}" if name == "paint0" else name) or result

    state = {"age": np.full((1, 2, 2), 1), "decoder": np.zeros(1), "logits": np.zeros(1)}
    made = {name: program(name, name) for name in ("key", "rest", "join")} | {"other": program("other", ({}, "labels"))}
    made |= {"look": lambda state, frame: calls.append("look") or ("maps", shares), "paint0": program("paint0", [0, 0])}
    row = [{"program": "paint0", "places": [0] * 6}] * 2
    schedule = {"interval": 4, "threshold": 0.5, "is_learned": True, "most_regions": 1, "cuts_maps": True}
    model = dispatch.Dispatch({"schedule": schedule, "regions": [row, row], "state": {}}, made)
    for due, age, expected in (
        ((0, 0, 0, 0), 1, "look other"), ((1, 0, 0, 0), 1, "look paint0 maps join"), ((1, 1, 0, 0), 1, "look rest"),
        ((0, 0, 0, 0), 3, "key"), ((0, 0, 0, 0), -1, "key"),
    ):  # fmt: skip
        calls.clear()
        shares[:] = np.reshape(due, (1, 2, 2))
        model.step({**state, "age": np.full((1, 2, 2), age)}, "frame")
        assert " ".join(calls) == expected
    older = {"schedule": {**schedule}, "regions": [row, row], "state": {}}
    del older["schedule"]["most_regions"], older["schedule"]["cuts_maps"], made["rest"]  # an exported folder of before
    calls.clear()
    shares[:] = np.reshape((1, 1, 0, 0), (1, 2, 2))
    dispatch.Dispatch(older, made).step(state, "frame")
    assert calls == ["look", "paint0 frame", "paint0 frame", "join"]


def test_a_region_is_computed_from_its_own_surroundings():
    """Its crop: the region with 16 or 32 pixels around it, in whole cells of the map that it goes on from."""
    assert programs.crop((0, 9), 70, 16, 4) == (0, 52, 0, 0, 9)
    assert programs.crop((9, 18), 70, 16, 4) == (20, 50, 4, 9, 9)
    assert programs.crop((9, 18), 70, 16, 8) == (16, 54, 5, 9, 9)
    assert programs.crop((0, 9), 34, 16, 16) == (0, 34, 0, 0, 9)
    assert programs.crop((9, 18), 70, 32, 4) == (4, 66, 8, 9, 9)


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_a_region_is_cut_out_of_the_maps_or_of_the_frame(effort):
    """The right one of two, with its 4 or 8 cells around it, beside slices made by hand; nothing else is touched."""
    model = _model("regions", effort=effort)
    made, ((_, region),) = programs.make(model), programs.describe(model)["regions"]
    weights, frame, left = made[region["program"]].weights, FRAMES[:1], {"quick": 20, "full": 4}[effort]
    blank = [jnp.full((1, 9, 18, channels), 7.0) for channels in (8, 11)]

    @compilation.jit_once
    def both():
        maps = static_net.first_stages(model.net, weights["static"], frame, "stage1")
        if effort == "quick":
            part = {"stage1": maps["stage1"][:, :, left // 4 :]}
            found = static_net.finish(model.net, weights["static"], part)
        else:
            found, maps = static_net.infer(model.net, weights["static"], frame[:, :, left:]), frame
        painted = made[region["program"]].fn(weights, blank, maps, np.array(region["places"], np.int32))
        return painted, (found.maps["decoder"], found.logits)

    for whole, part in zip(*both(), strict=True):
        np.testing.assert_allclose(whole[:, :, 9:], part[:, :, 9 - left // 4 :], atol=1e-4)
        np.testing.assert_array_equal(whole[:, :, :9], 7.0)


@pytest.mark.parametrize(
    ("inputs", "kind", "expected"),
    [
        (("prev_state", "stage2", "stage1"), "fixed", "stage2"),
        (("prev_decoder", "image_diff"), "fixed", "image"),
        (("prev_stage2", "stage1"), "fixed", "stage2"),  # the next frame reads it
        (("prev_decoder", "stage1"), "adaptive", "stage3"),
    ],
)
def test_a_frame_passes_the_encoder_as_far_as_the_cell_reads(inputs, kind, expected):
    config = config_lib.defaults()
    config.space.update({"mode": "propagate", "cut": "stage3"})
    config.schedule.kind = kind
    settings = features.settings_of(config)
    assert settings_lib.depth(inputs, settings) == expected


def test_the_encoder_costs_more_the_deeper_it_goes_and_its_first_maps_are_the_same():
    net = static_net.make(NET, 11)
    macs = [static_net.num_macs(net, (32, 48), last) for last in ("image", "stage1", "stage2", "stage3", "decoder")]
    assert macs[0] == 0 and macs == sorted(set(macs))
    variables, _ = _static()
    infer = jax.jit(functools.partial(static_net.infer, net), static_argnums=2)
    whole = infer(variables, FRAMES[:1], "decoder")
    for last, names in (("stage2", {"stage1", "stage2", "image", "patches"}), ("image", {"image", "patches"})):
        part = infer(variables, FRAMES[:1], last)
        assert set(part.maps) == names and part.logits.shape == (1, 9, 18, 0)
        for name in names:
            np.testing.assert_allclose(part.maps[name], whole.maps[name], atol=1e-6)
