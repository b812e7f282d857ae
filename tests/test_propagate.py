"""Propagate mode: key frames by the static network, the cell between them, and the schedules that decide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import errors, types
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.space import supernet as supernet_lib
from dvsnas_jax.train import due_share

INPUTS = ("prev_state", "prev_decoder", "prev_logits", "stage1", "stage2", "image_diff")
CHANNELS = {"decoder": 6, "logits": 5, "stage1": 4, "stage2": 6, "stage3": 8, "stage4": 8, "image": 3}
SETTINGS = cell_frame.CellSettings(
    channels=8, feature_channels=CHANNELS, mode="propagate", schedule=schedule_lib.Schedule(interval=3)
)
SPACE = genotype_lib.Space(
    inputs=INPUTS, num_layers=2, operations=("none", "skip", "conv_1x1"), aggregations=("sum", "warp", "max")
)
GENOTYPE = np.array([[0, 1, 2, 1, 1], [6, 4, 1, 2, 0]], np.int32)


def _features(num_frames: int = 7, num_clips: int = 2, size: tuple[int, int] = (4, 6)) -> types.Features:
    rng = np.random.default_rng(0)
    maps = {
        name: rng.normal(size=(num_clips, num_frames, *size, num)).swapaxes(0, 1).astype(np.float32)
        for name, num in CHANNELS.items()
    }
    logits = maps.pop("logits")
    return types.Features(maps=maps, logits=logits)


def _frame(features: types.Features, index: int) -> types.Features:
    return jax.tree.map(lambda x: x[index], features)


def _cheap(frame: types.Features) -> types.Features:
    """What a frame has that only passed the encoder as far as stage2."""
    maps = {name: frame.maps[name] for name in ("stage1", "stage2", "image")}
    return types.Features(maps=maps, logits=frame.logits[..., :0])


def _make(kind: str = "fixed", **changes):
    schedule = schedule_lib.Schedule(kind=kind, **{"interval": 3, **changes})
    cell = cell_lib.make(SPACE, GENOTYPE, dataclasses.replace(SETTINGS, schedule=schedule))

    @jax.jit
    def make(features: types.Features) -> types.Params:
        params = cell.init(jax.random.key(0))
        return cell_lib.freeze_norm(params, cell.moments(params, features))

    return cell, make(_features())


def test_key_frames_are_the_static_network_and_nothing_else_sees_it():
    cell, params = _make()
    features, unroll = _features(), jax.jit(cell.unroll)
    logits = np.asarray(unroll(params, features))
    for frame in range(7):
        is_same = np.array_equal(logits[frame], features.logits[frame])
        assert is_same == (frame % 3 == 0), frame
    between = np.isin(np.arange(7), (1, 2)).astype(np.float32).reshape(7, 1, 1, 1, 1)
    other = types.Features(
        maps={**features.maps, "decoder": features.maps["decoder"] + between}, logits=features.logits + between
    )
    np.testing.assert_array_equal(unroll(params, other), logits)


@pytest.mark.parametrize("kind", ["fixed", "adaptive", "regions"])
def test_frame_by_frame_with_cheap_maps_equals_the_scan(kind):
    """What streaming does: the static network where it is due, only the first stages elsewhere."""
    cell, params = _make(kind, threshold=0.5, grid=(2, 3), interval=4)
    features = _features()
    scanned = np.asarray(jax.jit(cell.unroll)(params, features))
    short = jax.jit(cell.unroll)(params, jax.tree.map(lambda x: x[:2], features))  # ends before a second key frame
    np.testing.assert_allclose(short, scanned[:2], atol=1e-5)
    due, restart, advance, merge = map(jax.jit, (cell.due, cell.restart, cell.advance, cell.merge))
    state = jax.jit(cell.initial_state)(_frame(features, 0))
    shares = []
    for index in range(7):
        frame = _frame(features, index)
        is_due = np.asarray(due(params, state, _cheap(frame)))
        shares.append(float(is_due.mean()))
        if is_due.all():
            state = restart(params, state, frame)
        elif not is_due.any():
            state = advance(params, state, _cheap(frame))
        else:
            state = merge(restart(params, state, frame), advance(params, state, _cheap(frame)), is_due)
        np.testing.assert_allclose(state.logits, scanned[index], atol=1e-5)
    assert shares[0] == 1.0 and shares[1] < 1.0


@pytest.mark.parametrize("kind", ["adaptive", "regions"])
def test_predicted_errors_are_learned_and_decide(kind):
    """Where the cheap map differs from that of the key frame, the labels do: the head finds that, and it is due."""
    schedule = schedule_lib.Schedule(kind=kind, interval=100, threshold=0.5, grid=(1, 2))
    params = schedule_lib.init(jax.random.key(1), schedule, 4)
    rng = np.random.default_rng(0)
    reference = jnp.asarray(rng.normal(size=(16, 4, 6, 4)), jnp.float32)
    is_moved = jnp.asarray(rng.random((16, 1, 2)) < 0.5)
    spread = schedule_lib.spread(is_moved, (4, 6))
    current = reference + 2.0 * spread

    @jax.jit
    def descend(params):
        def loss_fn(params):
            log_odds = schedule_lib.predict_error(params, current, reference)
            return schedule_lib.error_loss(log_odds, spread[..., 0], jnp.ones(16, bool))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), loss

    losses = []
    for _ in range(150):
        params, loss = descend(params)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5) and losses[-1] < 0.15
    age = jnp.ones((16, *schedule.regions), jnp.int32)
    whole = schedule_lib.predict_error(params, current, reference)
    log_odds = schedule_lib.predict_error(params, current, reference, 2)
    np.testing.assert_allclose(log_odds, whole[:, ::2, ::2], atol=1e-5)  # what decides is every second row and column
    found = schedule_lib.due(schedule, age, log_odds)
    if kind == "regions":
        np.testing.assert_array_equal(found, is_moved)  # one of two by itself, or both
    else:
        share = np.asarray(is_moved).mean(axis=(1, 2))
        np.testing.assert_array_equal(np.asarray(found)[share != 0.5, 0, 0], share[share != 0.5] == 1)


@pytest.mark.parametrize("kind", ["adaptive", "regions"])
def test_a_schedule_finds_something_due_in_no_more_frames_than_it_may(kind):
    """One number of its head is changed, by no more than it takes; what looks at few frames anyway stays as it is."""
    cell, params = _make(kind, threshold=0.3, grid=(2, 3), interval=10, most_due=0.25, effort="full")
    schedule = schedule_lib.Schedule(kind, threshold=0.3, grid=(2, 3), interval=10, most_due=0.25, effort="full")
    head = params["ports"]["schedule"]
    head = {**head, "output": jax.random.normal(jax.random.key(2), head["output"].shape)}
    params = {**params, "ports": {**params["ports"], "schedule": head}}
    features = _features(num_clips=5)
    own = jax.tree.map(lambda x: x.swapaxes(0, 1), features)
    store = types.FeatureStore(features=own, labels=np.zeros((5, 7, 8, 12), np.uint8))

    def due_frames(params: types.Params) -> np.ndarray:
        log_odds = cell.predicted_errors(params, features)
        assert np.isneginf(log_odds[0]).all() and np.isfinite(log_odds[1:]).all()
        shares = schedule.scores(log_odds[1:].reshape(-1, *log_odds.shape[2:]))
        return np.asarray((shares > schedule.threshold).any(axis=(1, 2)))

    def bias(params: types.Params) -> float:
        return float(params["ports"]["schedule"]["output_bias"][0])

    assert due_frames(params).mean() > 0.5
    limit = due_share.limited(dict, cell, schedule, store, batch_size=2)
    found = limit(params)
    assert due_frames(found).sum() == 7, "of 30 frames"
    assert bias(found) < bias(params)
    ports = {**found["ports"], "schedule": {**found["ports"]["schedule"], "output_bias": head["output_bias"]}}
    jax.tree.map(np.testing.assert_array_equal, {**found, "ports": ports}, params)
    jax.tree.map(np.testing.assert_array_equal, limit(found), found)
    open_end = dataclasses.replace(schedule, most_due=1.0)
    assert due_share.limited(dict, cell, open_end, store, batch_size=2) is dict
    assert due_share.limited(dict, cell, schedule.without_head(), store, batch_size=2) is dict


def test_due_by_age():
    age = jnp.array([-1, 0, 1, 2, 3]).reshape(5, 1, 1)
    for interval, expected in ((1, [1, 1, 1, 1, 1]), (3, [1, 0, 0, 1, 1]), (4, [1, 0, 0, 0, 1])):
        found = schedule_lib.due(schedule_lib.Schedule(interval=interval), age, None)
        np.testing.assert_array_equal(found[:, 0, 0], np.array(expected, bool))


@pytest.mark.parametrize(
    ("effort", "expected"),
    [("quick", ([0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1])), ("full", ([0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]))],
)
def test_so_many_regions_are_due_that_the_frame_is(effort, expected):
    """None, one and two of 2x2 that are predicted to differ everywhere; and of a rule for frames the mean decides."""
    log_odds = np.full((3, 4, 6), -9.0, np.float32)
    log_odds[1:, :2, 3:] = 9.0
    log_odds[2, 2:, :3] = 9.0
    schedule = schedule_lib.Schedule(kind="regions", threshold=0.5, effort=effort)
    found = schedule_lib.due(schedule, jnp.ones((3, 2, 2), jnp.int32), log_odds)
    np.testing.assert_array_equal(np.asarray(found).reshape(3, 4), expected)
    assert schedule.most_regions == {"quick": 1, "full": 3}[effort]
    frames = schedule_lib.Schedule(kind="adaptive", threshold=0.3, effort=effort)
    found = schedule_lib.due(frames, jnp.ones((3, 1, 1), jnp.int32), log_odds)
    assert np.asarray(found).ravel().tolist() == [False, False, True] and frames.most_regions == 0


def test_regions_share_the_grid_evenly():
    assert schedule_lib.region_bounds(45, 2) == [(0, 23), (23, 45)]
    assert schedule_lib.region_bounds(6, 4) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    x = jnp.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_allclose(schedule_lib.region_means(x, (1, 2)), [[[4.5, 6.5]]])
    mask = jnp.array([[[True, False]]])
    np.testing.assert_array_equal(schedule_lib.spread(mask, (3, 4))[0, :, :, 0], [[1, 1, 0, 0]] * 3)


def test_statistics_come_from_frames_of_the_cell_alone():
    """Of the normalisation of its output: the key frames, whose output is not used, leave no trace in it."""
    cell = cell_lib.make(SPACE, GENOTYPE, SETTINGS)
    params = jax.jit(cell.init)(jax.random.key(0))
    features = _features(num_frames=3)
    moments, step = jax.jit(cell.moments)(params, features), jax.jit(cell.step)

    @jax.jit
    def moments_of(params, state, frame):
        record: dict = {}
        cell.advance(params, state, frame, record)
        return record[("ports", "output", "norm")][0]

    state = jax.jit(cell.initial_state)(_frame(features, 0))
    per_frame = []
    for index in range(3):
        per_frame.append(moments_of(params, state, _frame(features, index)))
        state, _ = step(params, state, _frame(features, index))
    expected = (per_frame[1] + per_frame[2]) / 2
    np.testing.assert_allclose(moments[("ports", "output", "norm")][0], expected, atol=1e-5)
    assert np.abs(per_frame[0] - expected).max() > 1e-3


def test_supernet_equals_cell():
    supernet = supernet_lib.make(SPACE, SETTINGS)
    shared = jax.jit(supernet.init)(jax.random.key(3))
    features = _features(num_frames=4)
    traces = []

    def loss(params, genotype):
        traces.append(0)
        return (supernet.unroll(params, genotype, features) ** 2).mean()

    shared_fn = jax.jit(jax.value_and_grad(loss))
    genotypes = np.array([[[0, 4, 1, 2, 1], [6, 2, 2, 1, 0]], [[3, 1, 2, 0, 2], [5, 0, 1, 2, 1]]], np.int32)
    for column, names in ((slice(2, 4), SPACE.operations), (4, SPACE.aggregations)):
        assert set(genotypes[..., column].ravel().tolist()) == set(range(len(names)))
    assert set(genotypes[..., :2].ravel().tolist()) == set(range(SPACE.num_inputs + 1))
    for genotype in genotypes:
        cell = cell_lib.make(SPACE, genotype, SETTINGS)
        cut = cell_lib.gather_params(SPACE, genotype, shared)
        alone_fn = jax.jit(jax.value_and_grad(lambda p, cell=cell: (cell.unroll(p, features) ** 2).mean()))
        expected, grads = alone_fn(cut)
        found, shared_grads = shared_fn(shared, genotype)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
            cell_lib.gather_params(SPACE, genotype, shared_grads),
            grads,
        )
    assert len(traces) == 1


def test_training_ignores_what_is_not_learned_yet():
    """The head's first predictions (one half) exceed the threshold: they decide streaming, not training."""
    cell, params = _make("adaptive", threshold=0.1)
    features = _features()
    np.testing.assert_array_equal(jax.jit(cell.unroll)(params, features), features.logits)

    def schedule_loss(params: types.Params) -> tuple[jax.Array, jax.Array]:
        logits, loss = cell.unroll_training(params, features)
        return loss, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(schedule_loss, has_aux=True))(params)
    logits = np.asarray(logits)
    is_key = [bool((logits[t] == features.logits[t]).all()) for t in range(7)]
    assert is_key == [t % 3 == 0 for t in range(7)]
    assert float(loss) == pytest.approx(6 / 7 * np.log(2), rel=1e-5)
    assert np.abs(grads["ports"]["schedule"]["output"]).max() > 0
    assert np.abs(grads["ports"]["output"]["kernel"]).max() == 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: schedule_lib.Schedule(kind="adaptve"), "schedule.kind: unknown 'adaptve', allowed are fixed"),
        (lambda: schedule_lib.Schedule(effort="fast"), "schedule.effort: unknown 'fast', allowed are quick, full"),
        (lambda: schedule_lib.Schedule(interval=0), "schedule.interval: a schedule needs key frames"),
        (lambda: schedule_lib.Schedule(threshold=1.0), "schedule.threshold: must lie between 0 and 1"),
        (lambda: schedule_lib.Schedule(grid=(0, 2)), "schedule.grid: needs two numbers"),
        (lambda: dataclasses.replace(SETTINGS, cut="stage5"), "space.cut: unknown 'stage5'"),
        (lambda: dataclasses.replace(SETTINGS, mode="both"), "space.mode: unknown 'both'"),
        (
            lambda: supernet_lib.make(genotype_lib.Space(inputs=("prev_state", "decoder"), num_layers=1), SETTINGS),
            "mode propagate with cut stage2 does not provide decoder; allowed are prev_state, prev_decoder",
        ),
        (
            lambda: cell_lib.make(
                genotype_lib.Space(inputs=("stage3",), num_layers=1), np.array([[0, 0, 1, 1, 0]]), SETTINGS
            ),
            "does not provide stage3",
        ),
    ],
)
def test_bad_settings_are_named(make, text):
    with pytest.raises(errors.UserError, match=text.replace("(", r"\(")):
        make()
