"""Metrics of segmentation and of its stability over time, from integer counts; 255 = ignore counts nowhere.

But for `vspw_consistency`, which counts as another's published program does.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import types


def confusion(
    labels: types.Array, predictions: types.Array, num_classes: int, *, backend: str | None = None
) -> jax.Array:
    """Counts pixels by true and predicted class (jittable): i32 [K, K], rows = truth.

    Args:
      labels: integers [...], train ids or 255 = ignore.
      predictions: integers [...], in 0 .. K - 1; the same shape.
      num_classes: K.
      backend: "cpu", "gpu" or "tpu"; None: the one in use. A CPU adds up one by one, the others multiply one-hot
        matrices.
    """
    chex.assert_equal_shape([labels, predictions])
    truth = jnp.asarray(labels).reshape(-1).astype(jnp.int32)
    found = jnp.asarray(predictions).reshape(-1).astype(jnp.int32)
    is_counted = (truth != types.IGNORE) & (truth < num_classes)
    if (backend or jax.default_backend()) == "cpu":
        cell = jnp.where(is_counted, truth * num_classes + found, num_classes**2)
        counts = jnp.bincount(cell, length=num_classes**2 + 1)[:-1]
        return counts.reshape(num_classes, num_classes).astype(jnp.int32)
    # float32 counts exactly up to 2^24, so in chunks; rows of zeros where the truth is to be ignored.
    chunk = min(truth.size, 1 << 20)
    padding = (0, -truth.size % chunk)
    truth = jnp.pad(jnp.where(is_counted, truth, num_classes), padding, constant_values=num_classes)
    classes = jnp.arange(num_classes).reshape(1, 1, -1)
    rows = (truth.reshape(-1, chunk, 1) == classes).astype(jnp.float32)
    cols = (jnp.pad(found, padding).reshape(-1, chunk, 1) == classes).astype(jnp.float32)
    return jnp.einsum("npk,npl->nkl", rows, cols).astype(jnp.int32).sum(axis=0)


def scores(counts: types.Array) -> dict[str, Any]:
    """Scores of one confusion matrix, integers [K, K], rows = truth.

    `miou` (mean over the classes in the union of truth and prediction), `fwiou` (weighted by the class's share of the
    truth), `accuracy` (of pixels), `class_accuracy` (mean over the classes in the truth): shares in 0..1, nan where no
    pixel is labelled; `iou` and `class_accuracies`: K shares, None for a class that is absent (from the union; from
    the truth).
    """
    counts = np.asarray(counts, np.float64)
    hits, truth, found = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    union, total = truth + found - hits, counts.sum()
    if not total:
        nothing = dict.fromkeys(("miou", "fwiou", "accuracy", "class_accuracy"), float("nan"))
        return {**nothing, "iou": [None] * len(counts), "class_accuracies": [None] * len(counts)}
    iou, recall = hits / np.maximum(union, 1), hits / np.maximum(truth, 1)
    return {
        "miou": float(iou[union > 0].mean()),
        "fwiou": float((iou * truth).sum() / total),
        "accuracy": float(hits.sum() / total),
        "class_accuracy": float(recall[truth > 0].mean()),
        "iou": _where(iou, union > 0),
        "class_accuracies": _where(recall, truth > 0),
    }


def _where(shares: np.ndarray, is_known: np.ndarray) -> list[float | None]:
    return [float(share) if known else None for share, known in zip(shares, is_known, strict=True)]


def video_consistency(labels: np.ndarray, predictions: np.ndarray, num_frames: int) -> tuple[int, int]:
    """VC_n of one sequence (after Miao et al., VSPW, CVPR 2021), as counts over all windows of n consecutive frames.

    Pixels, of labels and predictions u8 [T, H, W], whose prediction is correct throughout a window in which their label
    is constant, and all pixels whose label is constant over a window; (0, 0) where the sequence is shorter than n.
    """
    kept = total = 0
    constant = np.zeros(labels.shape[1:], np.int32)  # for how many frames the label is the same
    correct = np.zeros(labels.shape[1:], np.int32)  # for how many frames the prediction is right
    previous = np.full(labels.shape[1:], types.IGNORE, labels.dtype)
    for truth, found in zip(labels, predictions, strict=True):
        is_labelled = truth != types.IGNORE
        constant = np.where(is_labelled, np.where(truth == previous, constant, 0) + 1, 0)
        correct = np.where(is_labelled & (truth == found), correct + 1, 0)
        is_window = constant >= num_frames
        total += int(is_window.sum())
        kept += int((is_window & (correct >= num_frames)).sum())
        previous = truth
    return kept, total


def vspw_consistency(labels: np.ndarray, predictions: np.ndarray, num_frames: int) -> tuple[float, int]:
    """VC_n of one sequence as VSPW's published evaluator counts it (`VC_perclip.py` of VSPW-dataset/VSPW_code on
    GitHub, of Miao et al., CVPR 2021), which is not quite the VC_n of `video_consistency`.

    Of a window of n frames it takes the share of the pixels of constant label whose prediction is constant, be it right
    or wrong; 255 is a label like others. The windows of all videos weigh alike, those without a pixel of constant label
    are left out, and so is the last window of each video (the published loop ends one early). Ours: a window that holds
    a frame without labels is left out, which VSPW has none of.

    Args:
      labels: u8 [T, H, W].
      predictions: u8 [T, H, W].
      num_frames: n.

    Returns:
      The sum of the shares of the windows, and their number; (0, 0) where there is none.
    """
    truth_run, found_run = (np.ones(labels.shape[1:], np.int32) for _ in range(2))
    total, num_windows, num_labelled = 0.0, 0, 0
    for frame in range(len(labels) - 1):  # the last frame ends the last window alone
        if frame:
            truth_run = np.where(labels[frame] == labels[frame - 1], truth_run, 0) + 1
            found_run = np.where(predictions[frame] == predictions[frame - 1], found_run, 0) + 1
        num_labelled = num_labelled + 1 if (labels[frame] != types.IGNORE).any() else 0
        is_constant = truth_run >= num_frames
        if num_labelled >= num_frames and is_constant.any():
            total += float((is_constant & (found_run >= num_frames)).sum() / is_constant.sum())
            num_windows += 1
    return total, num_windows


def flicker(labels: np.ndarray, predictions: np.ndarray) -> tuple[int, int]:
    """Pixels of consecutive frames, u8 [T, H, W], whose prediction changes though the truth does not, and all such."""
    is_constant = (labels[1:] == labels[:-1]) & (labels[1:] != types.IGNORE)
    is_changed = is_constant & (predictions[1:] != predictions[:-1])
    return int(is_changed.sum()), int(is_constant.sum())


def changes_followed(labels: np.ndarray, predictions: np.ndarray, num_frames: int) -> tuple[int, int]:
    """True changes of a pixel's label, and how many of them the prediction follows within n frames: flicker's opposite.

    A true change at frame t: the labels of t - 1 and t, u8 [T, H, W], differ, and neither is 255. It is followed where
    the prediction at t - 1 is the old label and that at one of the frames t .. t + n is the new one. It has to be so
    while the new label lasts: the first frame with another one (or with 255), and the end of the video, end the time as
    well. So whoever says nothing new follows nothing, nor does who said the new label all along. That the old label
    comes first keeps noise from being rewarded: were any other class enough, random errors would "follow" more.

    Returns:
      Changes that are followed, and all of them.
    """
    followed = total = 0
    left = np.zeros(labels.shape[1:], np.int32)  # frames in which a change may still be followed, this one included
    for frame in range(1, len(labels)):
        before, truth, found = labels[frame - 1], labels[frame], predictions[frame]
        is_change = (truth != before) & (truth != types.IGNORE) & (before != types.IGNORE)
        total += int(is_change.sum())
        left = np.where(truth == before, left, 0)
        left[is_change & (predictions[frame - 1] == before)] = num_frames + 1
        is_followed = (left > 0) & (found == truth)
        followed += int(is_followed.sum())
        left = np.where(is_followed, 0, np.maximum(left - 1, 0))
    return followed, total


def flow_consistency(predictions: np.ndarray, flow: np.ndarray) -> tuple[int, int]:
    """Pixels whose surface point was visible, inside the picture, in the frame before.

    Args:
      predictions: u8 [T, H, W].
      flow: f32 [T, H, W, 2], as `types.Sequence.flow`: (x, y) to the point's position in frame t - 1, rounded to the
        nearest pixel here; nan where it was not visible.

    Returns:
      Those with the same prediction in both frames, and all of them.
    """
    height, width = predictions.shape[1:]
    rows, cols = np.indices((height, width))
    equal = total = 0
    for frame in range(1, len(predictions)):
        is_valid = np.isfinite(flow[frame]).all(axis=-1)
        y, x = rows[is_valid], cols[is_valid]
        from_x = np.floor(x + flow[frame, y, x, 0] + 0.5).astype(np.int64)
        from_y = np.floor(y + flow[frame, y, x, 1] + 0.5).astype(np.int64)
        is_inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        now = predictions[frame, y[is_inside], x[is_inside]]
        before = predictions[frame - 1, from_y[is_inside], from_x[is_inside]]
        equal += int((now == before).sum())
        total += int(is_inside.sum())
    return equal, total


class SequenceScores:
    """Adds up the counts of sequences; `result` turns them into shares.

    Attributes:
      counts: i64 [K, K], the confusion counts so far.
    """

    def __init__(self, names: Sequence[str], vc_frames: Sequence[int] = (8, 16), follow_frames: int = 2) -> None:
        """For classes of these names, VC_n of these n and changes that are followed within `follow_frames`."""
        self.counts = np.zeros((len(names), len(names)), np.int64)
        self._names = tuple(names)
        self._vc_frames, self._follow_frames = tuple(vc_frames), follow_frames
        self._pairs = np.zeros((len(self._vc_frames) + 3, 2), np.int64)  # of each VC_n, of flicker, changes, flow
        self._windows = np.zeros((len(self._vc_frames), 2))  # of `vspw_consistency` of each n
        self._by_age: dict[int, np.ndarray] = {}  # confusion counts of the frames of an age
        self._num_of_age = collections.Counter[int]()

    def add(
        self,
        labels: np.ndarray,
        predictions: np.ndarray,
        flow: np.ndarray | None = None,
        ages: np.ndarray | None = None,
    ) -> None:
        """Adds one sequence u8 [T, H, W].

        Where they are known: its true flow f32 [T, H, W, 2] (nan = not visible), and the ages of the frames, integers
        [T]: 0 = key frame, 1 = the next one, and so on.
        """
        labels, predictions = np.asarray(labels), np.asarray(predictions)
        num_classes = len(self._names)
        for frame, (truth, found) in enumerate(zip(labels, predictions, strict=True)):
            is_counted = truth < num_classes  # so not 255 either
            cells = truth[is_counted].astype(np.int64) * num_classes + found[is_counted]
            counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
            self.counts += counts
            if ages is not None and len(cells):
                self._add_age(int(ages[frame]), counts, 1)
        pairs = [video_consistency(labels, predictions, num_frames) for num_frames in self._vc_frames]
        pairs.append(flicker(labels, predictions))
        pairs.append(changes_followed(labels, predictions, self._follow_frames))
        pairs.append((0, 0) if flow is None else flow_consistency(predictions, flow))
        self._pairs += pairs
        for row, num_frames in zip(self._windows, self._vc_frames, strict=True):
            row += vspw_consistency(labels, predictions, num_frames)

    def _add_age(self, age: int, counts: np.ndarray, num_frames: int) -> None:
        self._by_age[age] = self._by_age.get(age, 0) + counts
        self._num_of_age[age] += num_frames

    def merge(self, other: SequenceScores) -> None:
        """Adds what another one counted, of the same classes, VC_n and `follow_frames`."""
        self.counts += other.counts
        self._pairs += other._pairs
        self._windows += other._windows
        for age, counts in other._by_age.items():
            self._add_age(age, counts, other._num_of_age[age])

    def result(self) -> dict[str, Any]:
        """The shares of all sequences together, ready for JSON: 0..1, None where there was nothing to count.

        `miou`, `fwiou`, `accuracy`, `class_accuracy`, `iou` and `class_accuracies` (by class name), `vc` (by n, as
        text), `vspw_vc` (likewise), `flicker`, `changes_followed`, `flow_consistency`, and `by_age` (by age, as text:
        `miou`, and `num_frames`, those with labels; None where no ages were given).
        """
        found = scores(self.counts)
        is_empty = not self.counts.any()
        by_class = {name: dict(zip(self._names, found.pop(name), strict=True)) for name in ("iou", "class_accuracies")}
        shares = {name: None if is_empty else value for name, value in found.items()}
        windows = zip(map(str, self._vc_frames), map(_share, self._windows), strict=True)
        by_age = {
            str(age): {"miou": scores(self._by_age[age])["miou"], "num_frames": self._num_of_age[age]}
            for age in sorted(self._by_age)
        }
        more = {"vspw_vc": dict(windows), "by_age": by_age or None}
        return {**shares, **by_class, **self._stability(_share), **more}

    def pixel_counts(self) -> dict[str, Any]:
        """What the shares are made of, ready for JSON.

        `confusion` (K rows = truth, K columns), and `counts`: of `vc` (by n, as text), `flicker`, `changes_followed`
        and `flow_consistency`, [pixels counted for it, all pixels].
        """
        return {"confusion": self.counts.tolist(), "counts": self._stability(np.ndarray.tolist)}

    def _stability(self, value_fn: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        """A value for each pair of counts, by name."""
        *vc, flicker, changes, flow = [value_fn(pair) for pair in self._pairs]
        by_frames = dict(zip(map(str, self._vc_frames), vc, strict=True))
        return {"vc": by_frames, "flicker": flicker, "changes_followed": changes, "flow_consistency": flow}


def _share(pair: np.ndarray) -> float | None:
    """First count over second, None where the second is 0."""
    return float(pair[0] / pair[1]) if pair[1] else None
