"""Metrics against scikit-learn and hand-computed cases."""

import jax
import numpy as np
import pytest
import sklearn.metrics

from dvsnas_jax.core import types
from dvsnas_jax.evaluate import metrics

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
    assert result["class_accuracies"] == {"road": pytest.approx(4 / 5), "car": 1.0, "sky": None}
    assert total.pixel_counts() == {
        "confusion": [[4, 1, 0], [0, 1, 0], [0, 0, 0]],
        "counts": {"vc": {"2": [2, 3], "8": [0, 0]}, "flicker": [1, 3], "flow_consistency": [3, 4]},
    }
    assert metrics.SequenceScores(("road", "car", "sky")).result()["flow_consistency"] is None


def test_sequences_counted_apart_and_merged_are_those_counted_together(maps):
    labels, predictions = maps
    flow = np.zeros((*labels.shape, 2), np.float32)
    names = tuple("abcde")
    together, merged = metrics.SequenceScores(names, (2,)), metrics.SequenceScores(names, (2,))
    for rows in (slice(0, 2), slice(1, 3)):
        part = metrics.SequenceScores(names, (2,))
        for total in (together, part):
            total.add(labels[rows], predictions[rows], flow[rows])
        merged.merge(part)
    assert merged.pixel_counts() == together.pixel_counts() and merged.result() == together.result()
