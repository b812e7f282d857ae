"""The procedural street video: pure, true to its labels and its motion, fast."""

import time

import numpy as np
import pytest

from dvsnas_jax.core import errors
from dvsnas_jax.data.datasets import classes
from dvsnas_jax.data.street import degradations, projection, props, scene, synthetic

SIZE = {"height": 96, "width": 128}


def _clip(index=0, split="val", num_frames=6, degrade=1.0, height=SIZE["height"], width=SIZE["width"], **kwargs):
    return synthetic.Street(3, split, height, width, degrade).clip(index, num_frames, **kwargs)


def test_frame_is_the_same_whatever_range_is_asked_for():
    whole = _clip(index=4, num_frames=9)
    synthetic._world.cache_clear()
    part = _clip(index=4, num_frames=3, start=5)
    for name in ("frames", "labels", "clean", "flow"):
        np.testing.assert_array_equal(getattr(whole, name)[5:8], getattr(part, name))
    np.testing.assert_array_equal(whole.frames[2], _clip(index=4, num_frames=1, start=2, with_flow=False).frames[0])


def test_shapes_and_types():
    video = _clip(num_frames=2, height=48, width=80)
    assert video.frames.shape == video.clean.shape == (2, 48, 80, 3) and video.frames.dtype == np.uint8
    assert video.labels.shape == (2, 48, 80) and video.labels.dtype == np.uint8
    assert video.flow.shape == (2, 48, 80, 2) and video.flow.dtype == np.float32
    assert not video.flow[0].any()


def test_splits_seeds_and_indices_are_different_streets():
    seen = set()
    for seed in (0, 1):
        for split in synthetic.SPLITS:
            for index in range(4):
                video = synthetic.Street(seed, split, **SIZE).clip(index, 1, with_flow=False)
                seen.add(video.labels.tobytes())
    assert len(seen) == 2 * 3 * 4


def test_no_degradation_gives_the_clean_frames():
    video = _clip(degrade=0.0)
    np.testing.assert_array_equal(video.frames, video.clean)
    np.testing.assert_array_equal(video.clean, _clip(degrade=1.0).clean)
    assert (_clip(degrade=1.0).frames != video.clean).any()


def test_all_classes_are_common():
    labels = np.stack([_clip(index=i, split="train", num_frames=1, with_flow=False).labels for i in range(40)])
    share = np.bincount(labels.ravel(), minlength=11) / labels.size
    assert len(share) == 11
    assert (share > 0.003).all(), dict(zip(classes.CAMVID.names, share.round(4), strict=True))
    assert share.max() < 0.5
    present = np.array([[(frame == c).any() for c in range(11)] for frame in labels]).mean(0)
    assert (present > 0.5).all(), present


@pytest.mark.parametrize("index", range(5))
def test_warping_by_the_flow_reproduces_the_labels(index):
    video = _clip(index=index, num_frames=6)
    rows, cols = np.mgrid[: SIZE["height"], : SIZE["width"]]
    agree, seen, colour, still = [], [], [], []
    for t in range(1, 6):
        visible = ~np.isnan(video.flow[t]).any(-1)
        x = (cols + np.nan_to_num(video.flow[t, :, :, 0])).round().astype(int)
        y = (rows + np.nan_to_num(video.flow[t, :, :, 1])).round().astype(int)
        assert (x[visible] >= 0).all() and (x[visible] < SIZE["width"]).all()
        assert (y[visible] >= 0).all() and (y[visible] < SIZE["height"]).all()
        warped = video.labels[t - 1][y[visible], x[visible]]
        agree.append((warped == video.labels[t][visible]).mean())
        seen.append(visible.mean())
        before, now = (video.clean[s].astype(int) for s in (t - 1, t))
        colour.append(np.abs(before[y[visible], x[visible]] - now[visible]).mean())
        still.append(np.abs(before - now)[visible].mean())
    assert np.mean(agree) >= 0.97
    assert np.mean(seen) > 0.8
    # the colours, which the visibility test never looks at, move with the flow too
    assert np.mean(colour) < 0.75 * np.mean(still) or np.mean(still) < 2.0


def test_flow_of_the_ground_is_that_of_a_pinhole_camera():
    camera = scene.Camera(
        focal=1.0,
        horizon=0.5,
        height=1.5,
        x=0.0,
        speed=0.3,
        reach=1e9,
        sway=(0, 0, 0),
        yaw=(0, 0, 0, 0),
        pitch=(0, 0, 0),
    )
    before, now = (projection.view_at(camera, frame, 96, 128) for frame in (0, 1))
    assert now.z - before.z == pytest.approx(0.3, rel=1e-6)
    world = synthetic._world((3, 1, 0))
    depth = np.full((96, 128), projection.FAR, np.float32)
    depth[48:] = (1.5 * 128 / now.row[48:])[:, None]
    entry = np.full((96, 128), props.ROAD, np.int16)
    drawings = [
        projection.Drawing(view=view, color=np.zeros((3, 96, 128), np.float32), entry=entry, depth=depth)
        for view in (now, before)
    ]
    flow = projection.flow(drawings[0], drawings[1], world)
    # a ground point `z` ahead appears 1.5 * 128 / z below the horizon; one frame earlier it was z + 0.3 ahead
    row, col = 80, 100
    below, right = row + 0.5 - 48, col + 0.5 - 64
    z = 1.5 * 128 / below
    assert flow[row, col, 1] == pytest.approx(1.5 * 128 / (z + 0.3) - below, abs=1e-3)
    assert flow[row, col, 0] == pytest.approx(right * z / (z + 0.3) - right, abs=1e-3)


def test_patches_hide_a_part_and_move_on():
    shares = []
    for clip in range(8):
        key = (0, 1, clip)
        for frame in range(24):
            ages = [age for _, age in degradations._patches(key, frame)]
            assert len(ages) <= 6 and all(0 <= age < 3 for age in ages)
            for rng, age in degradations._patches(key, frame):
                kind = int(rng.integers(4))
                rng.uniform(-1, 1, 3)
                shares.append((degradations._patch_alpha(rng, kind, age, (96, 128)) > 0.5).mean())
    # several per sequence of 24 frames; each about 5 to 15 % of the image (those at the border less)
    assert 12 * 8 < len(shares) < 30 * 8
    assert 0.04 < np.mean(shares) < 0.15 and np.max(shares) < 0.25


def test_degradations_are_visible_but_leave_the_street():
    error = np.mean(
        [np.abs(v.frames.astype(int) - v.clean).mean() for v in (_clip(index=i, num_frames=4) for i in range(8))]
    )
    assert 10 < error < 40


def test_bad_arguments():
    with pytest.raises(errors.UserError, match="unknown name 'valid'; use one of train, val, test"):
        _clip(split="valid")
    with pytest.raises(errors.UserError, match="must be at least 0, the sizes at least 1"):
        _clip(index=-1)


@pytest.mark.slow
def test_speed_of_one_core():
    """A bound on time: for an idle machine."""
    _clip(num_frames=2)
    best = np.full(6, np.inf)  # of each clip by itself: other work on the machine disturbs some
    for _ in range(4):
        for index in range(6):
            begin = time.process_time()
            synthetic._world.cache_clear()
            _clip(index=index, num_frames=12)
            best[index] = min(best[index], time.process_time() - begin)
    rate = 6 * 12 / best.sum()
    assert rate >= 150, f"{rate:.0f} frames of 96x128 per second and core"
