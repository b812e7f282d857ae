"""The inputs `prev_stageN`: the encoder's maps of the frame before, seen as those of this frame are."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_propagate import CHANNELS, SETTINGS, _cheap, _features, _frame
from test_space import loss_and_logits, randomised

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, neighbours, operations, projections
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import features as features_lib

SPACE = genotype_lib.Space(
    inputs=("prev_stage1", "stage1", "prev_stage2", "prev_decoder"),
    num_layers=2,
    operations=("none", "skip", "conv_1x1"),
    aggregations=("correlation", "sum"),
)
GENOTYPES = {
    "a stage and the one before": [[0, 1, 1, 1, 0], [4, 2, 2, 1, 1]],
    "the one before alone": [[2, 3, 1, 2, 1], [4, 4, 1, 1, 0]],
    "twice in one layer": [[0, 0, 1, 2, 0], [4, 1, 1, 0, 1]],
}
WIDE = dataclasses.replace(SETTINGS, correlation_window=3)


@pytest.mark.parametrize("mode", ["propagate", "refine"])
def test_the_supernet_is_the_cell(mode: str) -> None:
    """Forward and gradient, with one trace; the gradient of a projection that two inputs share is that of both."""
    chex.clear_trace_counter()
    settings = dataclasses.replace(WIDE, mode=mode)
    supernet = supernet_lib.make(SPACE, settings)
    params, features = randomised(jax.jit(supernet.init)(jax.random.key(0)), 1), _features(4)
    assert set(params["ports"]["inputs"]) == {"stage1", "stage2", "decoder", "prev_decoder"}

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(params: types.Params, genotype: jax.Array):
        return jax.grad(lambda p: loss_and_logits(supernet.unroll(p, genotype, features)), has_aux=True)(params)

    for rows in GENOTYPES.values():
        genotype = np.array(rows, np.int32)
        cell = cell_lib.make(SPACE, genotype, settings)
        cut = cell_lib.gather_params(SPACE, genotype, params)
        loss = jax.grad(lambda p, cell=cell: loss_and_logits(cell.unroll(p, features)), has_aux=True)
        expected_grads, expected = jax.jit(loss)(cut)
        grads, logits = traced(params, jnp.asarray(genotype))
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        chex.assert_trees_all_close(cell_lib.gather_params(SPACE, genotype, grads), expected_grads, atol=1e-4)
        shared = expected_grads["ports"]["inputs"]["stage2" if rows[0][0] == 2 else "stage1"]["kernel"]
        assert np.abs(shared).max() > 1e-5


def test_the_map_of_the_frame_before_passes_the_same_projection() -> None:
    names = ("stage1", "prev_stage1")
    params = jax.jit(lambda rng: cell_frame.init(rng, WIDE, names))(jax.random.key(0))
    features = _features(2)
    assert set(params["inputs"]) == {"stage1", "decoder"}
    project_fn = projections.make_project(params, operations.CellScope())
    first, second = _frame(features, 0), _frame(features, 1)
    state = jax.jit(lambda frame: cell_frame.initial_state(WIDE, frame, names))(first)
    assert list(state.maps) == ["stage1"]
    inputs_of = jax.jit(lambda *args: projections.cell_inputs(*args, names, project_fn))
    own = inputs_of(state, first)
    np.testing.assert_array_equal(own["prev_stage1"], own["stage1"])  # a first frame is its own history
    after = jax.jit(cell_frame.Ports(params, WIDE, operations.CellScope()).key_frame)(state, first)
    later = inputs_of(after, _cheap(second))
    np.testing.assert_allclose(later["prev_stage1"], own["stage1"], atol=1e-6)
    assert np.abs(np.asarray(later["stage1"]) - own["stage1"]).max() > 0.1


@pytest.mark.parametrize("is_projected", [False, True])
def test_a_stream_keeps_what_the_cell_reads_and_equals_the_clip(is_projected: bool) -> None:
    """Frames between key frames have the cheap maps alone; a state crosses borders as a plain dict, with the network's
    maps or what the cell made of them."""
    genotype, features = np.array([[0, 1, 1, 1, 0], [2, 3, 1, 2, 1]], np.int32), _features(5)
    cell = cell_lib.make(SPACE, genotype, WIDE)
    params = randomised(jax.jit(cell.init)(jax.random.key(0)), 2)
    params = cell_lib.freeze_norm(params, jax.jit(cell.moments)(params, features))
    expected = jax.jit(cell.unroll)(params, features)
    restart, advance = jax.jit(cell.restart), jax.jit(cell.advance)
    state = jax.jit(functools.partial(cell.initial_state, is_projected=is_projected))(_frame(features, 0))
    for name, own in (("decoder", state.decoder), ("stage1", state.maps["stage1"]), ("stage2", state.maps["stage2"])):
        assert own.shape[-1] == (WIDE.channels if is_projected else CHANNELS[name])
    assert set(state.to_dict()) - {"state", "decoder", "logits", "is_first", "age"} == {"stage1", "stage2"}
    for index in range(5):
        frame = _frame(features, index)
        is_key = index % WIDE.schedule.interval == 0
        state = restart(params, state, frame) if is_key else advance(params, state, _cheap(frame))
        np.testing.assert_allclose(state.logits, expected[index], atol=1e-5)
        state = types.CellState.from_dict(state.to_dict(), is_projected=is_projected)
    plain = cell_lib.make(SPACE, np.array([[1, 3, 1, 1, 1], [1, 4, 1, 1, 1]], np.int32), WIDE)
    assert not jax.eval_shape(plain.initial_state, _frame(features, 0)).maps
    assert projections.compared(["image_diff", "prev_stage2", "stage1"]) == ("image", "stage2")


def test_patches_of_the_frame_before_are_compared_alike() -> None:
    """They are kept as stages are, pass the projection of this frame's, and need no encoder."""
    names = ("patches", "prev_patches")
    assert projections.compared(names) == ("patches",) and projections.weights_of("prev_patches") == "patches"
    assert settings_lib.depth(names, SETTINGS) == "image"
    config = config_lib.defaults()
    config.space.update({"mode": "propagate", "inputs": ("prev_patches", "prev_decoder")})
    assert features_lib.needed_maps(features_lib.space_of(config), config) == ("decoder", "image", "patches")
    assert features_lib.settings_of(config).input_channels("prev_patches") == 48
    settings = dataclasses.replace(WIDE, feature_channels={**CHANNELS, "patches": 12})
    params = jax.jit(lambda rng: cell_frame.init(rng, settings, names))(jax.random.key(0))
    assert params["inputs"]["patches"]["kernel"].shape == (1, 1, 12, 8) and "prev_patches" not in params["inputs"]
    space = dataclasses.replace(SPACE, inputs=names, num_layers=1)
    without = neighbours.without_history(space, np.array([[1, 0, 1, 1, 0]], np.int32))
    assert genotype_lib.to_dict(*without)["layers"][0]["in"] == ["patches", "patches"]


def test_what_they_need() -> None:
    """The maps that are kept, how deep a frame has to pass the encoder, and what a mode provides."""
    config = config_lib.defaults()
    config.space.update({"mode": "propagate", "inputs": ("prev_stage2", "prev_decoder")})
    assert features_lib.needed_maps(features_lib.space_of(config), config) == ("decoder", "image", "stage2")
    assert settings_lib.depth(config.space.inputs, SETTINGS) == "stage2"
    shallow = dataclasses.replace(SETTINGS, cut="stage1")
    assert "prev_stage1" in shallow.provided() and not {"prev_stage2", "prev_stage4"} & set(shallow.provided())
    assert WIDE.input_channels("prev_stage2") == CHANNELS["stage2"]
