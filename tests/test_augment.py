"""Augmentation and stills: frames and labels move together, both loaders share one plan."""

import numpy as np

from dvsnas_jax.data import augment, tf_loader


def test_both_loaders_agree_on_given_uniforms():
    tf = tf_loader.tensorflow()
    rules = augment.Rules(
        height=24, width=32, crop_height=20, crop_width=28, scale=(1.1, 1.5), jitter=0.3, flip=True, is_still=True
    )
    for seed in range(4):
        uniforms = np.random.default_rng(seed).random(augment.num_uniforms(3)).astype(np.float32)
        for ours, theirs in zip(
            augment.plan(rules, uniforms, 3), augment.plan(rules, tf.constant(uniforms), 3, xp=tf), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def _assert_level_tells_label(frame, labels):
    """The grey level is 50 times the label wherever the eight neighbours have that label too."""
    height, width = labels.shape
    shifted = [labels[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    inside = (np.min(shifted, 0) == np.max(shifted, 0)) & (shifted[4] != 255)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(frame[1:-1, 1:-1, 0][inside], shifted[4][inside] * 50.0, atol=1)


def test_augmentation_moves_frames_and_labels_together():
    # an image whose grey level tells its label must do so afterwards as well
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 5, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    frame = np.repeat((labels * 50)[..., None], 3, -1)
    rules = augment.Rules(
        height=48, width=64, crop_height=40, crop_width=60, scale=(0.7, 1.6), jitter=0.0, flip=True, is_still=False
    )
    mirrored = 0
    for seed in range(20):
        frames, out = augment.apply(
            rules, np.stack([frame, frame]), np.stack([labels, labels]), np.random.default_rng(seed)
        )
        assert frames.shape == (2, 40, 60, 3) and out.shape == (2, 40, 60)
        np.testing.assert_array_equal(frames[0], frames[1])
        np.testing.assert_array_equal(out[0], out[1])
        _assert_level_tells_label(frames[0], out[0])
        mirrored += np.random.default_rng(seed).random(4)[3] >= 0.5
    assert 0 < mirrored < 20


def test_identity_of_the_plan():
    affine, color = augment.plan(augment.plain(24, 32), np.full(augment.num_uniforms(2), 0.3), 2)
    np.testing.assert_allclose(affine, [[1, 0, 0, 0, 1, 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(color.reshape(2, 3, 4), np.broadcast_to(np.eye(3, 4), (2, 3, 4)), atol=1e-12)


def test_jitter_keeps_grey_grey_and_is_the_same_over_a_clip():
    rules = augment.Rules(
        height=8, width=8, crop_height=8, crop_width=8, scale=(1.0, 1.0), jitter=0.5, flip=False, is_still=False
    )
    grey = np.full((2, 8, 8, 3), 128, np.uint8)
    frames, _ = augment.apply(rules, grey, np.zeros((2, 8, 8), np.uint8), np.random.default_rng(1))
    assert len(np.unique(frames)) == 1 and frames[0, 0, 0, 0] != 128


def test_stills_end_in_the_frame_and_warp_labels_with_it():
    labels = np.kron(np.arange(48).reshape(6, 8) % 5, np.ones((8, 8))).astype(np.uint8)
    frame = np.repeat((labels * 50)[..., None], 3, -1)
    moved = 0
    for seed in range(10):
        rules = augment.plain(48, 64, is_still=True)
        frames, out = augment.still_clip(frame, labels, 4, rules, np.random.default_rng(seed))
        np.testing.assert_array_equal(frames[3], frame)
        np.testing.assert_array_equal(out[3], labels)
        for t in range(3):
            assert (out[t] != 255).mean() > 0.7
            _assert_level_tells_label(frames[t], out[t])
        changed = [(out[t] != labels).mean() for t in range(4)]
        assert changed[3] == 0
        moved += changed[0] > changed[2] > 0
    assert moved >= 8  # motions add up: the oldest frame differs most
