"""Augmentation and stills: plans computed by hand, pixels against SciPy, both loaders bit by bit."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from dvsnas_jax.core import types
from dvsnas_jax.data.loading import augment, cutout, tf_loader, warp


def _rules(**changes):
    base = {
        "height": 24, "width": 32, "crop_height": 20, "crop_width": 28, "scale": (0.8, 1.5), "jitter": 0.0,
        "flip": True, "is_still": False,
    }  # fmt: skip
    return augment.Rules(**{**base, **changes})


def _smooth(rng, shape):
    """A frame without sharp edges, u8 [H, W, 3]."""
    return (255 * ndimage.gaussian_filter(rng.random((*shape, 3)), (2, 2, 0), mode="wrap")).astype(np.uint8)


def _level_labels(rng, num_rows=6, num_columns=8):
    """Labels in blocks of 8 pixels and an image whose grey level is 50 times the label."""
    labels = np.kron(rng.integers(0, 5, (num_rows, num_columns)), np.ones((8, 8))).astype(np.uint8)
    return np.repeat((labels * 50)[..., None], 3, -1), labels


def _apply(rules, frames, labels, rng, uniforms=None):
    """Augments one clip in memory; for stills only the last frame is looked at."""
    drawn, key = augment.draw(rng, len(frames), rules.num_tries)
    used = slice(-1, None) if rules.is_still else slice(None)
    packed = warp.pack(frames[used], labels[used])
    return augment.render(rules, packed, drawn if uniforms is None else uniforms, key, len(frames))


def _still_clip(frame, labels, num_frames, rules, rng):
    """The clip that evaluation makes of a still."""
    uniforms, key = augment.draw(rng, num_frames)
    history = augment.plain(*labels.shape, jitter=rules.jitter, is_still=True, motion=rules.motion)
    return augment.render(history, warp.pack(frame[None], labels[None]), augment.neutral(uniforms), key, num_frames)


# --- plans ----------------------------------------------------------------------------------------


def test_identity_of_the_plan():
    maps, color = augment.plan(augment.plain(24, 32), np.full(augment.num_uniforms(2), 0.3), 2)
    np.testing.assert_allclose(maps, [[[1, 0, 0, 0, 1, 0, 0, 0]] * 2], atol=1e-12)
    np.testing.assert_allclose(color.reshape(2, 3, 4), np.broadcast_to(np.eye(3, 4), (2, 3, 4)), atol=1e-12)


def test_a_crop_by_hand():
    rules = _rules(height=8, width=8, crop_height=4, crop_width=6, scale=(1.0, 3.0), jitter=0.4)
    uniforms = np.zeros(augment.num_uniforms(1))
    # scale 2: the image has 16 x 16 pixels, the crop begins in row floor(0.5 * 12 + 0.5), column floor(0.2 * 10 + 0.5)
    uniforms[:4] = 0.5, 0.5, 0.2, 0.4
    uniforms[4:7] = 1.0, 0.5, 0.5  # 1.4 times as bright
    maps, color = augment.plan(rules, uniforms, 1)
    np.testing.assert_allclose(maps, [[[0.5, 0, 1, 0, 0.5, 3, 0, 0]]], atol=1e-6)
    np.testing.assert_allclose(color.reshape(3, 4), 1.4 * np.eye(3, 4), atol=1e-6)
    uniforms[3] = 0.6  # mirrored: the last column of the crop comes first
    maps, _ = augment.plan(rules, uniforms, 1)
    np.testing.assert_allclose(maps, [[[-0.5, 0, 4, 0, 0.5, 3, 0, 0]]], atol=1e-6)


def test_contrast_and_saturation_by_hand():
    rules = _rules(jitter=0.5)
    uniforms = np.full(augment.num_uniforms(1), 0.5)
    uniforms[5] = 1.0  # contrast 1.5 about 128
    color = augment.plan(rules, uniforms, 1)[1].reshape(3, 4)
    np.testing.assert_allclose(color @ [100, 128, 200, 1], [128 - 42, 128, 128 + 108], atol=1e-4)
    uniforms[5:7] = 0.5, 0.0  # saturation 0.5: half-way to the grey of the same brightness
    color = augment.plan(rules, uniforms, 1)[1].reshape(3, 4)
    grey = 0.299 * 100 + 0.587 * 128 + 0.114 * 200
    np.testing.assert_allclose(color @ [100, 128, 200, 1], [(x + grey) / 2 for x in (100, 128, 200)], atol=1e-4)


def test_many_plans_at_once_are_the_single_ones():
    rules = _rules(is_still=True, jitter=0.3, max_ratio=0.75, tries=3)
    uniforms = np.random.default_rng(0).random((5, augment.num_uniforms(3, 3)))
    maps, color = augment.plan(rules, uniforms, 3)
    assert maps.shape == (5, 3, 3, 8) and color.shape == (5, 3, 12)
    for i in range(5):
        one_map, one_color = augment.plan(rules, uniforms[i], 3)
        np.testing.assert_array_equal(maps[i], one_map)
        np.testing.assert_array_equal(color[i], one_color)


def _matrix(values):
    return np.array([*values, 1.0]).reshape(3, 3)


def test_stills_are_homographies_that_add_up():
    rules = augment.plain(48, 64, is_still=True, motion="shake")
    uniforms = np.random.default_rng(1).random(augment.num_uniforms(4))
    maps = augment.plan(rules, uniforms, 4)[0][0]
    np.testing.assert_allclose(maps[3], [1, 0, 0, 0, 1, 0, 0, 0], atol=1e-7)
    assert (np.abs(maps[:3, 6:]) > 1e-6).any(1).all()  # perspective, not affine maps alone
    # the same motion composed of matrices: perspective about the middle of the image, then turn and zoom, then shift
    total, step = np.zeros(6), np.array([0.035, 0.02, 0.008, 0.012, 0.008, 0.008])
    for back in (1, 2, 3):
        first = augment.NUM_SHARED + augment.NUM_PER_FRAME * (3 - back)
        total += step * (0.75 * (2 * uniforms[7:13] - 1) + 0.25 * (2 * uniforms[first : first + 6] - 1))
        zoom, dx, dy, angle, px, py = total
        middle = np.array([[1, 0, 32], [0, 1, 24], [0, 0, 1.0]])
        tilt = np.array([[1, 0, 0], [0, 1, 0], [px / 64, py / 48, 1]])
        turn = np.exp(zoom) * np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
        turn = np.concatenate([turn, [[0, 0, 1.0]]])
        shift = np.array([[1, 0, dx * 64], [0, 1, dy * 48], [0, 0, 1.0]])
        wanted = shift @ middle @ turn @ tilt @ np.linalg.inv(middle)
        np.testing.assert_allclose(_matrix(maps[3 - back]), wanted / wanted[2, 2], rtol=1e-4, atol=1e-5)


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_still", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pixels_equal_those_of_scipy(is_still, seed):
    rng = np.random.default_rng(seed)
    rules = _rules(height=48, width=64, crop_height=40, crop_width=54, is_still=is_still, scale=(0.7, 1.6))
    frames = np.stack([_smooth(rng, (48, 64))] * 2)
    labels = np.stack([_level_labels(rng)[1]] * 2)
    uniforms, _ = augment.draw(rng, 2)
    got_frames, got_labels = _apply(rules, frames, labels, rng, uniforms)
    maps = augment.plan(rules, uniforms, 2)[0][0].astype(np.float64)
    y, x = np.mgrid[:40, :54] + 0.5
    for t in range(2):
        points = np.einsum("ij,jyx->iyx", _matrix(maps[t]), np.stack([x, y, np.ones_like(x)]))
        at = points[[1, 0]] / points[2] - 0.5
        inside = (at > -0.4).all(0) & (at[0] < 47.4) & (at[1] < 63.4)
        outside = (at < -0.6).any(0) | (at[0] > 47.6) | (at[1] > 63.6)
        for c in range(3):
            wanted = ndimage.map_coordinates(frames[t, ..., c].astype(float), at, order=1, mode="nearest")
            assert np.abs(wanted - got_frames[t, ..., c])[inside].max() <= 2  # two roundings to whole levels
        nearest = labels[t][tuple(np.clip(np.round(at), 0, [[[47]], [[63]]]).astype(int))]
        is_clear = inside & (np.abs(at - np.floor(at) - 0.5) > 0.01).all(0)
        np.testing.assert_array_equal(got_labels[t][is_clear], nearest[is_clear])
        assert (got_labels[t][outside] == 255).all() and (got_frames[t][outside] == 0).all()


@pytest.mark.parametrize("changes", [{}, {"crop_width": 27}, {"is_still": True}, {"scale": (1.0, 1.0), "flip": False}])
def test_both_loaders_agree_bit_by_bit(changes):
    tf = tf_loader.tensorflow()
    rng = np.random.default_rng(0)
    for jitter, most in ((0.0, 0), (0.3, 1)):
        rules = _rules(jitter=jitter, jitter_per_frame=True, **changes)
        words = rng.integers(1 << 32, size=(1 if rules.is_still else 3, 24, 32), dtype=np.uint32)
        uniforms, key = augment.draw(rng, 3)
        frames, labels = augment.render(rules, words, uniforms, key, 3)
        maps, color = augment.plan(rules, uniforms, 3)
        found = tf.constant(words)
        for stage in warp.stages(rules):
            found = tf_loader.compiled(tf, functools.partial(stage, tf))(found, maps[0], color, key)
        got_frames, got_labels = warp.unpack(found.numpy())
        # an edge that falls on a pixel may be rounded either way
        assert (got_labels == labels).mean() > 0.998
        same = (got_labels == labels)[..., None]
        difference = np.abs(got_frames.astype(int) - frames) * same
        assert (difference <= most).mean() > 0.998 and frames.shape == (3, 20, rules.crop_width, 3)


def _assert_level_tells_label(frame, labels):
    """The grey level is 50 times the label wherever the eight neighbours have that label too."""
    height, width = labels.shape
    shifted = [labels[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    inside = (np.min(shifted, 0) == np.max(shifted, 0)) & (shifted[4] != 255)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(frame[1:-1, 1:-1, 0][inside], shifted[4][inside] * 50.0, atol=1)


def test_augmentation_moves_frames_and_labels_together():
    # an image whose grey level tells its label must do so afterwards as well
    frame, labels = _level_labels(np.random.default_rng(0))
    rules = _rules(height=48, width=64, crop_height=40, crop_width=60, scale=(0.7, 1.6))
    mirrored = 0
    for seed in range(20):
        frames, out = _apply(rules, np.stack([frame, frame]), np.stack([labels, labels]), np.random.default_rng(seed))
        assert frames.shape == (2, 40, 60, 3) and out.shape == (2, 40, 60)
        np.testing.assert_array_equal(frames[0], frames[1])
        np.testing.assert_array_equal(out[0], out[1])
        _assert_level_tells_label(frames[0], out[0])
        mirrored += np.random.default_rng(seed).random(4, np.float32)[3] >= 0.5
    assert 0 < mirrored < 20


def test_jitter_keeps_grey_grey_and_is_the_same_over_a_clip_or_not():
    grey = np.full((3, 8, 8, 3), 128, np.uint8)
    for per_frame in (False, True):
        rules = _rules(
            height=8, width=8, crop_height=8, crop_width=8, scale=(1.0, 1.0), jitter=0.5, flip=False,
            jitter_per_frame=per_frame,
        )  # fmt: skip
        frames, _ = _apply(rules, grey, np.zeros((3, 8, 8), np.uint8), np.random.default_rng(1))
        levels = frames[:, 0, 0, 0]
        assert (frames == levels[:, None, None, None]).all() and levels[0] != 128
        assert len(set(levels.tolist())) == (3 if per_frame else 1)


@pytest.mark.parametrize("motion, fewest", [("shake", 8), ("drive", 6)])  # who drives stands at times
def test_stills_end_in_the_frame_and_warp_labels_with_it(motion, fewest):
    frame, labels = _level_labels(np.random.default_rng(0))
    moved = 0
    for seed in range(10):
        rules = augment.plain(48, 64, is_still=True, motion=motion)
        frames, out = _still_clip(frame, labels, 4, rules, np.random.default_rng(seed))
        np.testing.assert_array_equal(frames[3], frame)
        np.testing.assert_array_equal(out[3], labels)
        for t in range(3):
            assert (out[t] != 255).mean() > 0.7
            _assert_level_tells_label(frames[t], out[t])
        changed = [(out[t] != labels).mean() for t in range(4)]
        assert changed[3] == 0
        moved += changed[0] > changed[2] > 0
    assert moved >= fewest  # motions add up: the oldest frame differs most


def test_noise_is_on_the_history_alone_and_nearly_normal():
    rules = augment.plain(64, 64, jitter=0.4, is_still=True, noisy="history", motion="shake")
    words = warp.pack(np.full((1, 64, 64, 3), 128, np.uint8), np.zeros((1, 64, 64), np.uint8))
    uniforms = np.full(augment.num_uniforms(3), 0.5, np.float32)  # no motion, no change of colour
    frames, _ = augment.render(rules, words, uniforms, np.uint32(5), 3)
    assert (frames[2] == 128).all()
    noise = frames[:2].astype(float) - 128
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 15 * 0.4) < 0.15
    assert 0.64 < (np.abs(noise) < 6.5).mean() < 0.76  # normal: 0.72 within 1.08 deviations
    flat = noise.reshape(2, -1)
    assert abs(np.corrcoef(flat)[0, 1]) < 0.03
    for c in range(3):
        assert (
            abs(np.corrcoef(noise[0, ..., c].ravel(), np.roll(noise[0, ..., (c + 1) % 3], 1, 1).ravel())[0, 1]) < 0.05
        )
    again, _ = augment.render(rules, words, uniforms, np.uint32(5), 3)
    other, _ = augment.render(rules, words, uniforms, np.uint32(6), 3)
    assert (again == frames).all() and (other != frames).any()


# --- crops with a limit ---------------------------------------------------------------------------


def _shares(labels):
    known = labels[labels != 255]
    return np.bincount(known).max() / len(known) if len(known) else 1.0


def test_crops_avoid_one_class():
    tf = tf_loader.tensorflow()
    rng = np.random.default_rng(0)
    # the right third is mixed, the rest is class 0 and ignored pixels
    labels = np.zeros((48, 96), np.uint8)
    labels[:10], labels[:, 64:] = 255, np.kron(rng.integers(0, 5, (12, 8)), np.ones((4, 4)))
    rules = _rules(
        height=48, width=96, crop_height=24, crop_width=24, scale=(1.0, 1.0), flip=False, max_ratio=0.75, tries=6
    )
    words = warp.pack(np.zeros((1, 48, 96, 3), np.uint8), labels[None])
    kept = {"first": 0, "later": 0, "last": 0}
    for seed in range(40):
        uniforms, key = augment.draw(np.random.default_rng(seed), 1, 6)
        maps, _ = augment.plan(rules, uniforms, 1)
        # at scale 1 every pixel of the 24 x 24 crop is one of the points where labels are counted
        corners = [(int(m[0, 5]), int(m[0, 2])) for m in maps]
        fine = [_shares(labels[y : y + 24, x : x + 24]) < 0.75 for y, x in corners]
        wanted = fine.index(True) if any(fine) else 5
        kept["last" if not any(fine) else "later" if wanted else "first"] += 1
        np.testing.assert_array_equal(augment.choose_crop(rules, maps, labels), maps[wanted])
        np.testing.assert_array_equal(augment.choose_crop(rules, tf.constant(maps), labels, xp=tf), maps[wanted])
        _, got = augment.render(rules, words, uniforms, key, 1)
        y, x = corners[wanted]
        np.testing.assert_array_equal(got[0], labels[y : y + 24, x : x + 24])
    assert min(kept.values()) > 0


# --- stills as a camera that drives ---------------------------------------------------------------


def _driven(**numbers):
    """The maps of three frames of 100x200 pixels, f64 [3, 3, 3], from uniform numbers that are 0.5 but for these."""
    uniforms = np.full(augment.num_uniforms(3), 0.5)
    for name, value in numbers.items():
        uniforms[{"speed": 7, "turn": 8, "focus_x": 12, "focus_y": augment.NUM_SHARED + 2 * augment.NUM_PER_FRAME,
                  "lean": augment.NUM_SHARED + 2 * augment.NUM_PER_FRAME + 1}[name]] = value  # fmt: skip
    maps = augment.plan(augment.plain(100, 200, is_still=True), uniforms, 3)[0][0]
    return np.stack([_matrix(values) for values in maps.astype(np.float64)])


def _at(matrix, x, y):
    point = matrix @ [x, y, 1]
    return point[:2] / point[2]


def test_a_camera_that_stands_shows_the_same():
    for speed in (0.0, 0.05, 0.0999):
        np.testing.assert_allclose(_driven(speed=speed, turn=1.0), np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-7)


def test_the_focus_of_expansion_stays_and_all_else_comes_from_nearer_to_it():
    """Speed 1, upright plane: log zoom 0.06 a frame about (100 + 0.15 * 200, 50 - 0.08 * 100)."""
    maps = _driven(speed=1.0, focus_x=1.0, focus_y=0.0, lean=0.0)
    focus = np.array([130.0, 42.0])
    for point in ([130, 42], [20, 90], [190, 5]):
        # the map says where the still has what the frame shows: farther out, the older the frame
        found = [_at(maps[t], *point) - focus for t in (2, 1, 0)]
        np.testing.assert_allclose(found[0], point - focus, atol=1e-4)
        np.testing.assert_allclose(found[1], (point - focus) * np.exp(0.06), atol=0.15)
        np.testing.assert_allclose(found[2], (point - focus) * np.exp(0.12), atol=0.6)  # shifts are summed up


def test_the_speed_is_that_of_the_clip_and_the_ground_is_faster_than_the_sky():
    half, full = (_driven(speed=speed, lean=0.0)[1] for speed in (0.55, 1.0))
    np.testing.assert_allclose([half[0, 0], full[0, 0]], np.exp([0.03, 0.06]), rtol=1e-6)
    leaning = _driven(speed=1.0, lean=1.0)[1]
    upper, lower = _at(leaning, 100, 0)[1] - 0, _at(leaning, 100, 100)[1] - 100
    assert abs(upper) < 0.2 and lower == pytest.approx(50 * (np.exp(0.06) / (1 - 0.06) - 1), rel=1e-4)


def test_clips_turn_little_mostly():
    turned = np.array([_driven(speed=1.0, lean=0.0, turn=turn)[1, 0, 2] for turn in (0.5, 0.75, 1.0)])
    np.testing.assert_allclose(turned - turned[0], [0, 200 * 0.04 / 8, 200 * 0.04], atol=1e-4)


def test_the_speeds_span_what_driving_shows():
    """Pixels a frame at 240x320 between the last two frames; docs/data.md has those of a real camera."""
    rules = augment.plain(240, 320, is_still=True)
    uniforms = np.random.default_rng(0).random((400, augment.num_uniforms(2)))
    maps = augment.plan(rules, uniforms, 2)[0][:, 0, 0].astype(np.float64)
    matrices = np.concatenate([maps, np.ones((400, 1))], 1).reshape(400, 3, 3)
    y, x = np.mgrid[8:240:16, 8:320:16].reshape(2, -1)
    points = matrices @ np.stack([x, y, np.ones_like(x)])
    pixels = np.hypot(*(points[:, :2] / points[:, 2:] - np.stack([x, y])).transpose(1, 0, 2))
    median, most = np.percentile(pixels, [50, 90])
    assert 2 < median < 5 and 7 < most < 12
    of_clip = np.median(pixels, axis=1)
    assert of_clip.min() < 1e-3 and of_clip.max() > 9 and 0.05 < (of_clip < 0.05).mean() < 0.2


def test_noise_and_exposure_of_a_clip_are_on_all_its_frames_or_on_none():
    words = warp.pack(np.full((1, 64, 64, 3), 128, np.uint8), np.zeros((1, 64, 64), np.uint8))
    uniforms = np.full(augment.num_uniforms(3), 0.5, np.float32)  # no motion, no change of colour
    uniforms[7] = 0.0
    uniforms[augment.NUM_SHARED + 6] = 1.0  # the clip's exposure: 1 + 0.4 * 0.4
    for noisy, level, spread in (("none", 128, 0), ("clip", 128 * 1.16, 6)):
        rules = augment.plain(64, 64, jitter=0.4, is_still=True, noisy=noisy)
        frames, _ = augment.render(rules, words, uniforms, np.uint32(5), 3)
        for frame in frames.astype(float):
            assert abs(frame.mean() - level) < 0.3 and abs(frame.std() - spread) < 0.15
        if spread:
            assert (frames[0] != frames[2]).any()
        alone, _ = augment.render(rules, words, uniforms[: augment.num_uniforms(1)], np.uint32(5), 1)
        assert (alone == 128).all()  # a frame that is no clip has no history to be unlike


# --- objects with a motion of their own -----------------------------------------------------------


def test_an_object_is_one_connected_region_of_a_class_that_moves():
    labels = np.zeros((40, 50), np.uint8)
    labels[5:15, 5:15] = labels[20:25, 30:40] = 2
    labels[25:35, 20:30] = 3  # touches nothing of class 2
    first, second = (np.zeros_like(labels, bool) for _ in range(2))
    first[5:15, 5:15], second[20:25, 30:40] = True, True
    np.testing.assert_array_equal(cutout.find(labels, (2,), 0.0), first)
    np.testing.assert_array_equal(cutout.find(labels, (2,), 0.999), second)
    assert not cutout.find(labels, (2,), -1.0).any()  # asked for none
    for everywhere in (2, 0):  # too large; not there
        assert not cutout.find(np.full((40, 50), everywhere, np.uint8), (2,), 0.5).any()
    table = types.ClassTable(("road", "Car", "tree", "pedestrian"), np.zeros((4, 3), np.uint8))
    assert cutout.ids(table) == (1, 3)


def test_an_object_moves_with_its_labels_and_ends_where_it_is():
    labels = np.zeros((40, 60), np.uint8)
    labels[15:25, 20:30] = 2
    frame = np.repeat(np.where(labels == 2, 200, 50).astype(np.uint8)[..., None], 3, -1)
    rules = augment.plain(40, 60, is_still=True, objects=0.5, object_ids=(2,))
    uniforms = np.full(augment.num_uniforms(3), 0.5)
    last = augment.NUM_SHARED + 2 * augment.NUM_PER_FRAME
    uniforms[7] = 0.0  # the camera stands
    uniforms[last + 3] = 1.0  # the object comes from the left: 0.025 * 60 = 1.5 pixels a frame
    uniforms[last + 6] = 0.4  # below 0.5: there is one
    frames, out = augment.render(rules, warp.pack(frame[None], labels[None]), uniforms, np.uint32(0), 3)
    np.testing.assert_array_equal(out[2], labels)
    np.testing.assert_array_equal(frames[2], frame)
    moved = labels.copy()  # by 3 pixels; what it left is still painted there
    moved[15:25, 17:27] = 2
    np.testing.assert_array_equal(out[0], moved)
    assert (frames[0][moved == 2] == 200).all() and (frames[0][moved != 2] == 50).all()
    uniforms[last + 6] = 0.6
    frames, out = augment.render(rules, warp.pack(frame[None], labels[None]), uniforms, np.uint32(0), 3)
    assert (out == labels).all() and (frames == frame).all()
