"""Cells that work at a coarser grid than the logits that they move and correct (`net.grid_stride`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_earlier_stages import GENOTYPES, SPACE, WIDE
from test_propagate import _cheap, _features, _frame
from test_space import loss_and_logits, randomised

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, cell_frame, cost, projections
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.space import settings as settings_lib
from dvsnas_jax.space import supernet as supernet_lib

COARSE = dataclasses.replace(WIDE, reduction=2)


def _coarse(num_frames: int) -> types.Features:
    """Maps of 4 x 6 cells, logits of 8 x 12."""
    fine = _features(num_frames, size=(8, 12))
    return types.Features(maps=_features(num_frames).maps, logits=fine.logits)


@pytest.mark.parametrize("size", [(32, 48), (36, 44)])
def test_maps_come_at_the_grid_and_logits_do_not(size: tuple[int, int]) -> None:
    config = config_lib.defaults().net
    config.update({"width": 0.25, "decoder_channels": 8})
    net = static_net.make(config, 5)
    coarse = net.clone(grid_stride=8)
    variables = static_net.init(net, jax.random.key(0))
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    grid = tuple(-(-length // 8) for length in size)

    @jax.jit
    def infer(variables):
        found = [static_net.infer(coarse, variables, frames, last) for last in ("decoder", "stage2", "image")]
        return *found, net.apply(variables, static_net.normalise(net, frames), train=False)

    whole, cheap, image, own = infer(variables)
    assert cheap.maps.keys() == {"stage1", "stage2", "image", "patches"}
    assert image.maps.keys() == {"image", "patches"}
    for name, leaf in whole.maps.items():
        assert leaf.shape[1:3] == grid
        for other in (cheap, image):
            if name in other.maps:
                np.testing.assert_allclose(other.maps[name], leaf, atol=1e-5)
    if size == (32, 48):  # whole cells of 2 x 2
        for name in ("stage1", "decoder"):
            mean = np.asarray(own.maps[name]).reshape(2, grid[0], 2, grid[1], 2, -1).mean((2, 4))
            np.testing.assert_allclose(whole.maps[name], mean, atol=1e-5)
        np.testing.assert_allclose(whole.maps["stage2"], own.maps["stage2"], atol=1e-6)
    images = np.asarray(static_net.normalise(net, frames))
    inner = images[:, 8:16, 16:24].reshape(2, -1)  # the pixels of cell (1, 2), row by row
    np.testing.assert_allclose(whole.maps["patches"][:, 1, 2], inner, atol=1e-6)
    corner = whole.maps["patches"][:, -1, 0].reshape(2, 8, 8, 3)  # where it ends, its last row goes on
    rows = np.minimum(np.arange(8 * (grid[0] - 1), 8 * grid[0]), size[0] - 1)
    np.testing.assert_allclose(corner, images[:, rows, :8], atol=1e-6)
    np.testing.assert_allclose(whole.logits, own.logits, atol=1e-6)
    assert cheap.logits.shape == image.logits.shape == (2, *whole.logits.shape[1:3], 0)
    shapes = static_net.frame_shapes(coarse, size)
    assert {name: leaf.shape[1:] for name, leaf in shapes.maps.items()} == {
        name: leaf.shape[1:] for name, leaf in whole.maps.items()
    }
    assert shapes.logits.shape[1:] == whole.logits.shape[1:]


def test_heads_are_interpolated_to_the_logits() -> None:
    """A motion of one cell of the coarse grid moves the logits by two of theirs; a correction is spread linearly."""
    features = _coarse(2)
    state = dataclasses.replace(
        cell_frame.initial_state(COARSE, _frame(features, 0), ()),
        logits=features.logits[0],
        is_first=jnp.zeros(2, bool),
    )
    assert state.state.shape == (2, 4, 6, 8) and state.logits.shape == (2, 8, 12, 5)
    params = cell_end.init(jax.random.key(0), "heads", 8, 5, is_propagating=True)
    output = jnp.zeros((2, 4, 6, 8)).at[:, :, :, 0].set(jnp.arange(6.0))
    scope = COARSE.scope()
    still = cell_end.logits(params, output, state, _cheap(_frame(features, 1)), scope)
    np.testing.assert_array_equal(still, features.logits[0])
    params["motion"]["bias"] = jnp.array([np.arctanh(1 / scope.max_offset), 0.0])  # one cell to the right
    params["head"]["kernel"] = params["head"]["kernel"].at[0, 0, 0, 3].set(1.0)
    found = cell_end.logits(params, output, state, _cheap(_frame(features, 1)), scope)
    moved = features.logits[0][:, :, np.minimum(np.arange(12) + 2, 11)]
    ramp = np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5)
    np.testing.assert_allclose(found, moved + ramp[:, None] * np.eye(5)[3], atol=1e-5)


def test_a_gate_is_interpolated_too() -> None:
    settings = dataclasses.replace(COARSE, mode="refine")
    features = _coarse(2)
    before, current = features.logits
    first = cell_frame.initial_state(settings, _frame(features, 0), ())
    state = dataclasses.replace(first, logits=before, is_first=jnp.zeros(2, bool))
    params = cell_end.init(jax.random.key(0), "heads", 8, 5, is_propagating=False)
    output = jnp.zeros((2, 4, 6, 8)).at[:, :, :, 0].set(jnp.arange(6.0))
    params["motion"]["kernel"] = params["motion"]["kernel"].at[1, 1, 0, 2].set(1.0)
    found = cell_end.logits(params, output, state, _frame(features, 1), settings.scope())
    odds = params["share"] + np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5)[:, None]
    np.testing.assert_allclose(found, before + (current - before) / (1 + np.exp(-odds)), atol=1e-5)


def test_the_supernet_is_the_cell_and_a_stream_is_the_clip() -> None:
    features = _coarse(4)
    supernet = supernet_lib.make(SPACE, COARSE)
    params = randomised(jax.jit(supernet.init)(jax.random.key(0)), 1)
    genotype = np.array(GENOTYPES["a stage and the one before"], np.int32)
    cell = cell_lib.make(SPACE, genotype, COARSE)
    cut = cell_lib.gather_params(SPACE, genotype, params)

    def both(run_fn, params):
        return jax.grad(lambda p: loss_and_logits(run_fn(p)), has_aux=True)(params)

    grads, logits = jax.jit(lambda p: both(lambda p: supernet.unroll(p, jnp.asarray(genotype), features), p))(params)
    expected_grads, expected = jax.jit(lambda p: both(lambda p: cell.unroll(p, features), p))(cut)
    assert logits.shape == (4, 2, 8, 12, 5)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    mine = cell_lib.gather_params(SPACE, genotype, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), mine, expected_grads)
    assert np.abs(expected_grads["ports"]["motion"]["kernel"]).max() > 1e-4
    state, advance = jax.jit(cell.initial_state)(_frame(features, 0)), jax.jit(cell.advance)
    frozen = cell_lib.freeze_norm(cut, jax.jit(cell.moments)(cut, features))
    clip = jax.jit(cell.unroll)(frozen, features)
    for index in range(4):
        frame = _frame(features, index)
        state = advance(frozen, state, _cheap(frame)) if index % 3 else jax.jit(cell.restart)(frozen, state, frame)
        np.testing.assert_allclose(state.logits, clip[index], atol=1e-5)


def test_what_the_past_says_is_averaged_to_the_grid() -> None:
    features = _coarse(1)
    state = dataclasses.replace(
        cell_frame.initial_state(COARSE, _frame(features, 0), ()),
        logits=features.logits[0],
        is_first=jnp.zeros(2, bool),
    )
    seen = projections.cell_inputs(
        state, _cheap(_frame(features, 0)), ["prev_logits"], lambda name, fn, sources: fn(*sources)
    )
    shares = np.asarray(jax.nn.softmax(features.logits[0])).reshape(2, 4, 2, 6, 2, 5).mean((2, 4))
    np.testing.assert_allclose(seen["prev_logits"], shares, atol=1e-6)


def test_a_learned_schedule_predicts_the_share_of_a_cell_that_differs() -> None:
    log_odds, shares = jnp.array([[[0.0, 2.0]]]), jnp.array([[[0.25, 1.0]]])
    expected = np.mean([np.log(2), np.log1p(np.exp(2.0)) - 2.0])
    np.testing.assert_allclose(schedule_lib.error_loss(log_odds, shares, jnp.ones(1, bool)), expected, rtol=1e-6)
    settings = dataclasses.replace(COARSE, schedule=schedule_lib.Schedule("adaptive", interval=3))
    cell = cell_lib.make(SPACE, np.array(GENOTYPES["twice in one layer"], np.int32), settings)
    features = _coarse(3)
    _, loss = jax.jit(lambda rng: cell.unroll_training(cell.init(rng), features))(jax.random.key(0))
    np.testing.assert_allclose(loss, np.log(2) * 2 / 3, rtol=1e-5)  # its head is zero; a first frame does not count


def test_a_coarser_cell_costs_a_quarter_but_for_its_end() -> None:
    """The layers are at its grid, what happens to the logits at theirs; multiply-adds are all in the former."""
    genotype = np.array(GENOTYPES["a stage and the one before"], np.int32)
    fine, coarse, small = (
        cost.of(SPACE, genotype, *args) for args in ((WIDE, (8, 12)), (COARSE, (8, 12)), (WIDE, (4, 6)))
    )
    assert coarse.params == fine.params
    assert coarse.macs == small.macs < fine.macs / 3 and coarse.flops > small.flops


def test_regions_are_refused() -> None:
    config = config_lib.defaults()
    config.net.grid_stride = 8
    assert settings_lib.of(config, 5).reduction == 2
    config.space.update({"mode": "propagate", "inputs": ("prev_logits", "stage1")})
    config.schedule.kind = "regions"
    with pytest.raises(errors.UserError, match="net.grid_stride: regions"):
        settings_lib.of(config, 5)
