"""The cell with a traced genotype and the cell with a static one mean the same."""

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

from dvsnas_jax.core import errors, types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, operations, projections
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.space import supernet_gradient as unrolled

INPUTS = ("prev_state", "prev_decoder", "prev_logits", "decoder", "logits", "stage1", "image_diff")
SPACE = genotype_lib.Space(inputs=INPUTS, num_layers=3)
CHANNELS = {"decoder": 6, "logits": 4, "stage1": 5, "image": 3}
SETTINGS = cell_frame.CellSettings(channels=8, feature_channels=CHANNELS)


def make_features(seed: int, batch: int = 2, num_frames: int = 3, size: tuple[int, int] = (6, 8)) -> types.Features:
    rng = np.random.default_rng(seed)
    maps = {
        name: rng.normal(size=(batch, num_frames, *size, count)).swapaxes(0, 1).astype(np.float32)
        for name, count in CHANNELS.items()
    }
    logits = maps.pop("logits")
    return types.Features(maps=maps, logits=logits)


def randomised(params: types.Params, seed: int) -> types.Params:
    """Every weight away from its special start (the head and the warp start at zero)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + 0.2 * rng.normal(size=x.shape), x.dtype), jax.device_get(params))


@functools.cache
def supernet_and_params() -> tuple[supernet_lib.Supernet, types.Params]:
    supernet = supernet_lib.make(SPACE, SETTINGS)
    return supernet, randomised(jax.jit(supernet.init)(jax.random.key(0)), 1)


def loss_and_logits(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = jnp.cos(jnp.arange(logits.size).reshape(logits.shape))
    return (weights * jnp.tanh(logits)).mean(), logits


@functools.cache
def supernet_gradient(dtype: type):
    """`(params, genotype, features) -> (loss, logits), gradient`, one trace for all tests that compute in `dtype`."""
    supernet, _ = supernet_and_params()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(params: types.Params, genotype: jax.Array, features: types.Features):
        assert features.logits.dtype == dtype
        return jax.value_and_grad(lambda p: loss_and_logits(supernet.unroll(p, genotype, features)), has_aux=True)(
            params
        )

    return traced


def check_equal(genotypes: np.ndarray, *, tolerance: float, dtype: type) -> None:
    """Forward and gradient of both cells on every genotype, whole clips; one trace of the supernet in all."""
    _, params = supernet_and_params()
    params, features = jax.tree.map(lambda x: x.astype(dtype), (params, make_features(2)))
    traced = supernet_gradient(dtype)
    for genotype in genotypes:
        cell = cell_lib.make(SPACE, genotype, SETTINGS)
        cut = cell_lib.gather_params(SPACE, genotype, params)
        static = jax.value_and_grad(lambda p, cell=cell: loss_and_logits(cell.unroll(p, features)), has_aux=True)
        (_, expected), expected_grads = jax.jit(static)(cut)
        (_, logits), grads = traced(params, genotype, features)
        assert logits.dtype == dtype
        np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)
        assert_same_gradients(genotype, grads, expected_grads, tolerance)


def assert_same_gradients(genotype: np.ndarray, grads: types.Params, expected: types.Params, tolerance: float) -> None:
    """Of the supernet, cut, and of the cell."""
    cut_grads = cell_lib.gather_params(SPACE, genotype, grads)
    assert jax.tree.structure(cut_grads) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=0), cut_grads, expected)


def check_equal_frames(genotypes: np.ndarray, *, tolerance: float = 1e-4) -> None:
    """Forward and gradient of both cells on every genotype, each frame from the same state."""
    supernet, params = supernet_and_params()
    params, features = jax.tree.map(lambda x: x.astype(np.float64), (params, make_features(2)))
    frames = [jax.tree.map(lambda x, t=t: x[t], features) for t in range(3)]

    def scored(step: Callable):
        def loss_fn(params: types.Params, *args: Any):
            state, logits = step(params, *args)
            return loss_and_logits(logits)[0], (state, logits)

        return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

    traced = scored(supernet.step)
    for genotype in genotypes:
        cell = cell_lib.make(SPACE, genotype, SETTINGS)
        cut, step = cell_lib.gather_params(SPACE, genotype, params), scored(cell.step)
        state = cell_frame.initial_state(SETTINGS, frames[0], SPACE.inputs)  # with all that the supernet may read
        for frame in frames:
            (_, (_, logits)), grads = traced(params, genotype, state, frame)
            (_, (state, expected)), expected_grads = step(cut, state, frame)
            np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)
            assert_same_gradients(genotype, grads, expected_grads, tolerance)


def covering_genotypes() -> np.ndarray:
    """Random genotypes in which every operation and every aggregation appears."""
    slots = 2 * SPACE.num_layers
    num = max(-(-len(SPACE.operations) // slots), -(-len(SPACE.aggregations) // SPACE.num_layers))
    genotypes = genotype_lib.random(SPACE, np.random.default_rng(0), num)
    genotypes[..., 2:4] = np.resize(np.arange(len(SPACE.operations)), (num, SPACE.num_layers, 2))
    genotypes[..., 4] = np.resize(np.arange(len(SPACE.aggregations)), (num, SPACE.num_layers))
    return genotypes


def test_supernet_equals_cell() -> None:
    """In float64: in float32 rounding alone comes to 1.2e-4 on some processors, as offsets amplify it."""
    with jax.enable_x64(True):
        check_equal(covering_genotypes(), tolerance=1e-9, dtype=np.float64)


@pytest.mark.slow
def test_supernet_equals_cell_for_50_genotypes_frame_by_frame() -> None:
    """Each frame by itself: offsets that are predicted from offsets that were predicted amplify rounding, with these
    large random weights fifty-fold a frame."""
    with jax.enable_x64(True):
        check_equal_frames(genotype_lib.random(SPACE, np.random.default_rng(1), 50))


@pytest.mark.slow
def test_supernet_equals_cell_for_50_genotypes_over_clips() -> None:
    with jax.enable_x64(True):
        check_equal(genotype_lib.random(SPACE, np.random.default_rng(1), 50), tolerance=1e-9, dtype=np.float64)


def test_gradients_outside_the_genotype_are_zero() -> None:
    _, params = supernet_and_params()
    genotype = genotype_lib.random(SPACE, np.random.default_rng(2), 1)[0]
    with jax.enable_x64(True):
        params, features = jax.tree.map(lambda x: x.astype(np.float64), (params, make_features(3)))
        grads = jax.device_get(supernet_gradient(np.float64)(params, genotype, features)[1])
    cut = cell_lib.gather_params(SPACE, genotype, grads)
    total, kept = (sum(float(np.abs(x).sum()) for x in jax.tree.leaves(tree["layers"])) for tree in (grads, cut))
    assert kept == pytest.approx(total, rel=1e-5)
    assert kept > 0


def _calibrated_cell(seed: int) -> tuple[cell_lib.Cell, types.Params]:
    _, params = supernet_and_params()
    # Without the youngest members, whose predicted offsets amplify rounding beyond the tolerance of these tests.
    older = dataclasses.replace(
        SPACE,
        operations=genotype_lib.vocabulary("operations")[:12],
        aggregations=genotype_lib.vocabulary("aggregations")[:5],
    )
    genotype = genotype_lib.random(older, np.random.default_rng(seed), 1)[0]
    genotype[0, :2] = 0, 3  # reads its own state
    genotype[0, 2:] = 1, 3, 2
    cell = cell_lib.make(SPACE, genotype, SETTINGS)
    cut = cell_lib.gather_params(SPACE, genotype, params)
    return cell, cell_lib.freeze_norm(cut, jax.jit(cell.moments)(cut, make_features(5)))


def test_scan_over_time_equals_frame_by_frame() -> None:
    cell, params = _calibrated_cell(4)
    features = make_features(6, num_frames=5)
    scanned = jax.jit(cell.unroll)(params, features)
    frames = [jax.tree.map(lambda x, t=t: x[t], features) for t in range(5)]
    state, step = jax.jit(cell.initial_state)(frames[0]), jax.jit(cell.step)
    for t, frame in enumerate(frames):
        state, logits = step(params, state, frame)
        np.testing.assert_allclose(logits, scanned[t], atol=1e-4)


def test_calibrated_cell_does_not_mix_the_clips_of_a_batch() -> None:
    cell, params = _calibrated_cell(5)
    features = make_features(7, batch=2)
    both = jax.jit(cell.unroll)(params, features)
    alone = jax.jit(cell.unroll)(params, jax.tree.map(lambda x: x[:, :1], features))
    np.testing.assert_allclose(both[:, :1], alone, atol=1e-5)


def test_moments_cover_every_normalisation_and_make_batch_and_running_agree_on_one_frame() -> None:
    _, params = supernet_and_params()
    genotype = genotype_lib.random(SPACE, np.random.default_rng(6), 1)[0]
    cell = cell_lib.make(SPACE, genotype, SETTINGS)
    cut = cell_lib.gather_params(SPACE, genotype, params)
    one_frame = make_features(8, num_frames=1)
    frozen = cell_lib.freeze_norm(cut, jax.jit(cell.moments)(cut, one_frame))
    scales = [path for path, _ in jax.tree_util.tree_leaves_with_path(cut) if path[-1].key == "scale"]
    means = [path for path, _ in jax.tree_util.tree_leaves_with_path(frozen) if path[-1].key == "mean"]
    assert len(means) == len(scales) > 0
    np.testing.assert_allclose(jax.jit(cell.unroll)(cut, one_frame), jax.jit(cell.unroll)(frozen, one_frame), atol=1e-5)


def test_first_frame_is_its_own_history() -> None:
    """A still video: at the first frame `prev_logits` is `logits`, and afterwards it is the cell's answer."""
    features = jax.tree.map(lambda x: x[0], make_features(9))
    params = jax.jit(lambda rng: cell_frame.init(rng, SETTINGS, INPUTS))(jax.random.key(0))
    state = jax.jit(lambda features: cell_frame.initial_state(SETTINGS, features, INPUTS))(features)
    same = {**params, "inputs": {**params["inputs"], "prev_logits": params["inputs"]["logits"]}}

    @jax.jit
    def project(state: types.CellState) -> dict[str, jax.Array]:
        project_fn = projections.make_project(same, operations.CellScope())
        return projections.cell_inputs(state, features, INPUTS, project_fn)

    maps = jax.device_get(project(state))
    np.testing.assert_allclose(maps["prev_logits"], maps["logits"], atol=1e-6)
    raw = maps["image_diff"]
    np.testing.assert_allclose(raw, np.broadcast_to(raw[:1, :1, :1], raw.shape), atol=1e-6)
    later = dataclasses.replace(state, is_first=np.zeros(2, bool), logits=features.logits[:, ::-1])
    moved = project(later)
    np.testing.assert_allclose(moved["prev_logits"], maps["logits"][:, ::-1], atol=1e-5)


def test_loose_ends() -> None:
    genotype = np.array([[0, 1, 1, 1, 0], [2, 2, 1, 1, 0], [7, 0, 1, 1, 0]], np.int32)
    assert genotype_lib.loose_ends(SPACE, genotype) == (1, 2)
    np.testing.assert_allclose(unrolled.loose_end_weights(SPACE, jnp.asarray(genotype)), [0, 0.5, 0.5])


def test_json_round_trip_and_digest() -> None:
    for genotype in genotype_lib.random(SPACE, np.random.default_rng(0), 50):
        space, back = genotype_lib.from_dict(json.loads(json.dumps(genotype_lib.to_dict(SPACE, genotype))))
        assert space == SPACE
        np.testing.assert_array_equal(back, genotype)
        assert genotype_lib.digest(SPACE, back) == genotype_lib.digest(SPACE, genotype)


def test_json_survives_a_longer_vocabulary() -> None:
    genotype = genotype_lib.random(SPACE, np.random.default_rng(1), 1)[0]
    longer = genotype_lib.Space(
        inputs=INPUTS[::-1],
        num_layers=3,
        operations=genotype_lib.vocabulary("operations")[::-1],
        aggregations=("max", "sum", "local_attention", "warp", "gate", "concat"),
    )
    _, moved = genotype_lib.from_dict(genotype_lib.to_dict(SPACE, genotype), longer)
    assert genotype_lib.edges(longer, moved) == genotype_lib.edges(SPACE, genotype)


def _broken(**changes):
    data = genotype_lib.to_dict(SPACE, np.array([[0, 1, 1, 1, 0]] * 3, np.int32))
    layer = changes.pop("layer", None)
    if layer is not None:
        data["layers"][1] = {**data["layers"][1], **layer}
    return json.dumps({**data, **changes})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "needs an object"),
        (_broken(layers=[]), "layers"),
        (_broken(version=2), "version 2"),
        (_broken(inputs=["prev_stat"]), "did you mean 'prev_state'"),
        (_broken(layer={"ops": ["sep_conv_3x4", "skip"]}), "layer 1, field ops: unknown name 'sep_conv_3x4', did you"),
        (_broken(layer={"ops": ["skip"]}), "layer 1, field ops: needs 2"),
        (_broken(layer={"in": ["layer2", "decoder"]}), "layer 1, field in: forward reference to 'layer2'"),
        (_broken(layer={"in": ["layer1", "decoder"]}), "forward reference"),
        (_broken(layer={"agg": "mul"}), "layer 1, field agg: unknown name 'mul'"),
        (_broken(layer={"agg": None}), "layer 1, field agg"),
        (_broken(layers=["x", 2, 3]), "layer 0: needs an object"),
    ],
)
def test_broken_genotypes_are_named(text: str, expected: str, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file.json").write_text(text)
    with pytest.raises(errors.UserError) as caught:
        genotype_lib.read("file.json")
    message = str(caught.value)
    assert message.startswith("file.json") and expected in message and "\n" not in message


def test_integer_genotypes_are_checked() -> None:
    good = np.zeros((3, 5), np.int32)
    with pytest.raises(errors.UserError, match="layer 1, field in_b: must be from 0 to 7, got 8"):
        bad = good.copy()
        bad[1, 1] = 8
        genotype_lib.validate(SPACE, bad)
    with pytest.raises(errors.UserError, match="shape"):
        genotype_lib.validate(SPACE, good[:2])
