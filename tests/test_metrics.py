"""Metrics against scikit-learn and hand-computed cases."""

import jax
import numpy as np
import pytest
import sklearn.metrics

from dvsnas_jax.core import types
from dvsnas_jax.evaluate import baselines, metrics

CLASSES = 5


@pytest.fixture(name="maps")
def _maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES - 1, (3, 7, 9)).astype(np.uint8)  # the last class is never true
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, CLASSES, labels.shape))
    labels[rng.random(labels.shape) < 0.2] = types.IGNORE
    return labels, predictions.astype(np.uint8)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_confusion_equals_scikit_learn(maps, backend):
    labels, predictions = maps
    counts = jax.jit(lambda a, b: metrics.confusion(a, b, CLASSES, backend=backend))(labels, predictions)
    valid = labels != types.IGNORE
    expected = sklearn.metrics.confusion_matrix(labels[valid], predictions[valid], labels=range(CLASSES))
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_confusion_of_more_pixels_than_one_chunk(backend):
    labels = np.zeros((1 << 10, (1 << 10) + 3), np.uint8)
    labels[0] = types.IGNORE
    counts = metrics.confusion(labels, labels * 0 + np.uint8(1), 2, backend=backend)
    np.testing.assert_array_equal(counts, [[0, 1023 * 1027], [0, 0]])


def test_confusion_of_ignored_pixels_is_empty():
    labels = np.full((4, 4), types.IGNORE, np.uint8)
    assert not np.asarray(metrics.confusion(labels, np.zeros_like(labels), CLASSES)).any()


def test_scores_equal_scikit_learn(maps):
    labels, predictions = maps
    valid = labels != types.IGNORE
    truth, found = labels[valid], predictions[valid]
    result = metrics.scores(np.asarray(metrics.confusion(labels, predictions, CLASSES)))
    iou = sklearn.metrics.jaccard_score(truth, found, average=None, labels=range(CLASSES))
    assert result["iou"] == pytest.approx(list(iou))
    assert result["miou"] == pytest.approx(iou.mean())
    assert result["fwiou"] == pytest.approx(sklearn.metrics.jaccard_score(truth, found, average="weighted"))
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, found))
    recall = sklearn.metrics.recall_score(truth, found, average=None, labels=range(CLASSES - 1), zero_division=0)
    assert result["class_accuracy"] == pytest.approx(recall.mean())
    assert result["class_accuracies"] == [*(pytest.approx(value) for value in recall), None]


def test_scores_by_hand():
    counts = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    result = metrics.scores(counts)
    assert result["iou"] == [pytest.approx(3 / 6), pytest.approx(4 / 7), None]
    assert result["miou"] == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert result["fwiou"] == pytest.approx(0.4 * 3 / 6 + 0.6 * 4 / 7)
    assert result["accuracy"] == pytest.approx(0.7)
    assert result["class_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)


def test_scores_of_nothing_are_nan():
    result = metrics.scores(np.zeros((2, 2), np.int32))
    assert np.isnan(result["miou"]) and result["iou"] == [None, None]
    assert metrics.SequenceScores(("a", "b")).result()["miou"] is None


def _column(*values: int) -> np.ndarray:
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def test_video_consistency_by_hand():
    labels = _column(1, 1, 1, 2, 2, 2)
    predictions = _column(1, 1, 1, 2, 0, 2)
    # Windows of 2: 11 11 (12) 22 22: four with a constant label, the first two right throughout.
    assert metrics.video_consistency(labels, predictions, 2) == (2, 4)
    assert metrics.video_consistency(labels, predictions, 3) == (1, 2)
    assert metrics.video_consistency(labels, predictions, 4) == (0, 0)
    assert metrics.video_consistency(labels, predictions, 1) == (5, 6)


def test_video_consistency_leaves_out_ignored_pixels():
    labels = _column(1, types.IGNORE, 1, 1)
    assert metrics.video_consistency(labels, _column(1, 1, 1, 1), 2) == (1, 1)
    nothing = np.full((4, 2, 2), types.IGNORE, np.uint8)
    assert metrics.video_consistency(nothing, nothing, 2) == (0, 0)


def test_video_consistency_equals_windows():
    rng = np.random.default_rng(2)
    labels = rng.choice(np.array([0, 0, 0, 1, types.IGNORE], np.uint8), (9, 6, 5))
    predictions = np.where(rng.random(labels.shape) < 0.8, labels, 1).astype(np.uint8)
    for size in (2, 3):
        kept = total = 0
        for start in range(len(labels) - size + 1):
            truth, found = labels[start : start + size], predictions[start : start + size]
            constant = (truth == truth[0]).all(axis=0) & (truth[0] != types.IGNORE)
            kept += (constant & (truth == found).all(axis=0)).sum()
            total += constant.sum()
        assert metrics.video_consistency(labels, predictions, size) == (kept, total)


def test_vspw_consistency_by_hand():
    labels = _column(1, 1, 1, 2, 2, 2)
    # Windows of 2 that begin at 0 .. 3: 11 11 (12) 22; the last one, 22 again, is dropped, as is the one that changes.
    assert metrics.vspw_consistency(labels, _column(1, 1, 1, 2, 0, 2), 2) == (2.0, 3)
    assert metrics.vspw_consistency(labels, _column(0, 0, 0, 0, 0, 0), 2) == (3.0, 3)  # constant, however wrong
    assert metrics.vspw_consistency(labels, labels, 5) == (0.0, 0) == metrics.vspw_consistency(labels, labels, 6)
    # 255 is a label like others, but frames without any label are not scored: the windows of frames 0, 1 and 1, 2.
    void, one = np.array([1, types.IGNORE], np.uint8), np.array([0, 0], np.uint8)
    mixed = np.stack([void, void, void, np.full(2, types.IGNORE, np.uint8), void, void])[:, None]
    predictions = np.stack([one, one, one + np.array([0, 1], np.uint8), one, one, one])[:, None]
    assert metrics.vspw_consistency(mixed, predictions, 2) == (1.5, 2)


def test_vspw_consistency_equals_the_published_definition():
    """Written from its definition: of every window but the last, shares of pixels; the mean over the windows."""
    rng = np.random.default_rng(4)
    total, shares = metrics.SequenceScores(("a", "b"), (3,)), []
    for length in (3, 4, 9):
        labels = rng.choice(np.array([0, 0, 0, 0, 1], np.uint8), (length, 4, 5))
        predictions = rng.choice(np.array([0, 0, 0, 1], np.uint8), labels.shape)
        total.add(labels, predictions)
        for start in range(length - 3):
            truth, found = labels[start : start + 3], predictions[start : start + 3]
            is_constant = (truth == truth[:1]).all(axis=0)
            shares.append((is_constant & (found == found[:1]).all(axis=0)).sum() / is_constant.sum())
    assert len(shares) == 7 and total.result()["vspw_vc"] == {"3": pytest.approx(np.mean(shares))}


def test_changes_followed_by_hand():
    nothing, void = (0, 0), types.IGNORE
    labels = _column(1, 1, 2, 2, 2, 3, void, 1)  # 1 -> 2 at frame 2, 2 -> 3 at frame 5; what follows 255 is no change
    follow = metrics.changes_followed
    assert follow(labels, labels, 0) == (2, 2)
    assert follow(labels, _column(1, 1, 1, 2, 2, 2, 3, 1), 0) == (0, 2)
    # One frame late: the first is followed; the second is at frame 6, where the label is no more known.
    assert follow(labels, _column(1, 1, 1, 2, 2, 2, 3, 1), 1) == (1, 2)
    assert follow(labels, _column(1, 1, 1, 1, 2, 3, 3, 1), 1) == (1, 2)  # the first is two frames late
    assert follow(labels, _column(1, 1, 1, 1, 2, 3, 3, 1), 2) == (2, 2)
    assert follow(labels, _column(2, 2, 2, 2, 2, 2, 2, 2), 2) == (0, 2)  # the new label all along is no change to it
    assert follow(labels, _column(1, 2, 2, 2, 2, 2, 2, 2), 2) == (0, 2)  # nor is one before it was true
    assert follow(labels, _column(0, 0, 2, 2, 2, 3, 3, 1), 0) == (1, 2)  # the first is not from the old label
    assert follow(labels, _column(1, 1, 1, 1, 1, 1, 1, 1), 2) == (0, 2)  # no flicker, and nothing is followed
    # The new label lasts for two frames, and the video ends: later is too late.
    assert follow(_column(1, 2, 2, 1), _column(1, 1, 1, 2), 2) == (0, 2)
    assert follow(_column(1, 1, 2), _column(1, 1, 1), 5) == (0, 1)
    assert follow(labels[:1], labels[:1], 2) == nothing == follow(np.full((3, 1, 1), void, np.uint8), labels[:3], 2)


def test_who_changes_late_has_less_flicker_and_follows_less():
    """An edge that moves by a pixel a frame: labels held for 5 frames, and an average with a share of 0.3."""
    labels = (np.arange(30)[None, None] < np.arange(21)[:, None, None]).astype(np.uint8)
    held = baselines.hold(labels, 5)
    average = labels[0].astype(float)
    averaged = []
    for truth in labels:
        average = 0.3 * truth + 0.7 * average
        averaged.append(average > 0.5)
    averaged = np.array(averaged).astype(np.uint8)
    # Each frame one pixel changes. Held: of 5 changes the 3 that lie at most 2 frames before a key frame, or on it.
    assert [metrics.changes_followed(labels, held, n) for n in (0, 2, 4)] == [(4, 20), (12, 20), (20, 20)]
    # 0.3 + 0.7 * 0.3 > 0.5: one frame late; the last change comes too late for that.
    assert [metrics.changes_followed(labels, averaged, n) for n in (0, 1)] == [(0, 20), (19, 20)]
    assert metrics.changes_followed(labels, labels, 0) == (20, 20)


def test_ages_and_held_labels():
    shares = np.array([1, 0, 0, 1, 1, 0], np.float32)
    np.testing.assert_array_equal(baselines.ages(shares), [0, 1, 2, 0, 0, 1])
    assert baselines.ages(np.array([1, 0.25, 0], np.float32)) is None
    np.testing.assert_array_equal(baselines.hold(np.arange(7), 3), [0, 0, 0, 3, 3, 3, 6])
    np.testing.assert_array_equal(baselines.hold(np.arange(3), 1), [0, 1, 2])


def test_scores_by_age_are_those_of_the_frames_of_that_age():
    labels, predictions = _column(0, 0, 1, 1, 255), _column(0, 1, 1, 1, 0)
    total = metrics.SequenceScores(("a", "b"))
    total.add(labels, predictions, ages=np.array([0, 1, 0, 1, 2]))
    other = metrics.SequenceScores(("a", "b"))
    other.add(_column(1), _column(1), ages=np.array([1]))
    total.merge(other)
    # Age 1: truth 0, 1, 1; found 1, 1, 1: IoU 0 and 2/3. The frame of age 2 has no label.
    expected = {"0": {"miou": 1.0, "num_frames": 2}, "1": {"miou": pytest.approx(1 / 3), "num_frames": 3}}
    assert total.result()["by_age"] == expected
    total.add(labels, predictions)
    assert total.result()["by_age"] == expected and metrics.SequenceScores(("a",)).result()["by_age"] is None


@pytest.mark.parametrize("name", baselines.NAMES)
def test_the_verdict_names_the_baseline_that_is_not_beaten(name):
    scores = {"cell": {"miou": 0.5034}, "hold": None, "ema": None}
    text = f"does not beat {name}, which needs no training: mIoU 50.34, {name} 57.60"
    assert baselines.verdict({**scores, name: {"miou": 0.576}}) == text
    assert baselines.verdict({**scores, name: {"miou": 0.5034}}) and baselines.verdict(scores) == ""
    assert baselines.verdict({**scores, name: {"miou": 0.5}}) == baselines.verdict({"static": {"miou": 1.0}}) == ""


def test_flicker_by_hand():
    labels = _column(1, 1, 1, 2, types.IGNORE, types.IGNORE)
    # Truth is constant twice; the second time the prediction changes, be it to the right class.
    assert metrics.flicker(labels, _column(0, 0, 1, 2, 0, 1)) == (1, 2)


def test_flow_consistency_follows_a_moving_object():
    predictions = np.zeros((2, 1, 5), np.uint8)
    predictions[0, 0, 1] = predictions[1, 0, 2] = 3  # moves to the right by one pixel
    flow = np.zeros((2, 1, 5, 2), np.float32)
    flow[1, 0, :, 0] = (np.nan, 0.0, -1.2, 0.3, 4.0)  # 4.0 leaves the picture
    assert metrics.flow_consistency(predictions, flow) == (2, 3)  # pixel 1 stood on the object before


def test_sequence_scores():
    labels = _column(0, 0, 0, 1, types.IGNORE)
    predictions = _column(0, 0, 1, 1, 1)
    total = metrics.SequenceScores(("road", "car", "sky"), (2, 8))
    total.add(labels, predictions, np.zeros((5, 1, 1, 2), np.float32))
    total.add(labels[:2], predictions[:2])
    result = total.result()
    assert result["miou"] == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert result["iou"] == {"road": pytest.approx(4 / 5), "car": pytest.approx(1 / 2), "sky": None}
    assert result["accuracy"] == pytest.approx(5 / 6)
    assert result["vc"] == {"2": pytest.approx(2 / 3), "8": None}
    assert result["flicker"] == pytest.approx(1 / 3)
    assert result["flow_consistency"] == pytest.approx(3 / 4)
    assert result["changes_followed"] == 0.0  # the prediction was there a frame before
    assert result["vspw_vc"] == {"2": pytest.approx(1 / 2), "8": None}  # of windows 00 (kept), 00 (0 1); 01 is none
    assert result["class_accuracies"] == {"road": pytest.approx(4 / 5), "car": 1.0, "sky": None}
    assert total.pixel_counts() == {
        "confusion": [[4, 1, 0], [0, 1, 0], [0, 0, 0]],
        "counts": {
            "vc": {"2": [2, 3], "8": [0, 0]}, "flicker": [1, 3], "changes_followed": [0, 1], "flow_consistency": [3, 4],
        },
    }  # fmt: skip
    assert metrics.SequenceScores(("road", "car", "sky")).result()["flow_consistency"] is None


def test_sequences_counted_apart_and_merged_are_those_counted_together(maps):
    labels, predictions = maps
    flow = np.zeros((*labels.shape, 2), np.float32)
    names = tuple("abcde")
    together, merged = metrics.SequenceScores(names, (2,)), metrics.SequenceScores(names, (2,))
    for rows in (slice(0, 2), slice(1, 3)):
        part = metrics.SequenceScores(names, (2,))
        for total in (together, part):
            total.add(labels[rows], predictions[rows], flow[rows], np.arange(2))
        merged.merge(part)
    assert merged.pixel_counts() == together.pixel_counts() and merged.result() == together.result()
