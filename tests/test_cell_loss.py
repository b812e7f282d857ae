"""The loss of cells against NumPy: which frames count, what the teacher adds, where labels are not needed."""

import jax
import numpy as np
import pytest

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.train import cell_loss, losses, pretrain

RNG = np.random.default_rng(0)
T, B, SIZE, K = 6, 2, (3, 4), 4
LOGITS = RNG.normal(size=(T, B, *SIZE, K)).astype(np.float32)
TEACHER = RNG.normal(size=LOGITS.shape).astype(np.float32)
LABELS = RNG.integers(0, K, (T, B, *SIZE)).astype(np.uint8)
LABELS[:, 0, 0, 0] = types.IGNORE


def log_probs(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pixel_losses(smoothing: float = 0.0) -> np.ndarray:
    """[T, B, h, w], 0 where ignored."""
    one_hot = np.eye(K)[np.where(LABELS == types.IGNORE, 0, LABELS)]
    target = one_hot * (1 - smoothing) + smoothing / K
    return np.where(LABELS == types.IGNORE, 0.0, -(target * log_probs(LOGITS)).sum(-1))


def divergences(temperature: float = 1.0) -> np.ndarray:
    """[T, B]: mean over the pixels of a frame, in nats times temperature^2."""
    own, theirs = log_probs(LOGITS / temperature), log_probs(TEACHER / temperature)
    return temperature**2 * (np.exp(theirs) * (theirs - own)).sum(-1).mean(axis=(-2, -1))


def make(class_weights=None, **changes) -> cell_loss.CellLoss:
    config = config_lib.load(None, {"data.num_frames": str(T), **changes})
    return cell_loss.make(config, 1, class_weights)


def value(loss: cell_loss.CellLoss, logits: np.ndarray, labels: np.ndarray) -> float:
    return float(jax.jit(loss.__call__)(logits, labels, TEACHER))


PROPAGATE = {"space.mode": "propagate", "schedule.interval": "5"}


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, [1] * 6),  # a true history
        ({"data.history": "stills"}, [0, 0, 0, 0, 0, 1]),
        ({"data.history": "stills", "train.frames": "all"}, [1] * 6),
        ({"train.frames": "target"}, [0, 0, 0, 0, 0, 1]),
        (PROPAGATE, [0, 1, 1, 1, 1, 0]),
        ({**PROPAGATE, "data.history": "stills"}, [0, 1, 1, 1, 1, 0]),
        ({**PROPAGATE, "schedule.interval": "2"}, [0, 1, 0, 1, 0, 1]),
        ({**PROPAGATE, "schedule.interval": "1"}, [1] * 6),  # nothing but key frames
        ({**PROPAGATE, "train.frames": "all"}, [1] * 6),
        ({**PROPAGATE, "schedule.interval": "3", "train.frames": "target"}, [0, 0, 0, 0, 0, 1]),
    ],
)
def test_a_weight_a_frame(changes, weights):
    loss = make(**changes)
    assert list(loss.frame_weights(T)) == weights
    counted = (LABELS != types.IGNORE) * np.array(weights)[:, None, None, None]
    expected = (pixel_losses() * counted).sum() / counted.sum()
    assert value(loss, LOGITS, LABELS) == pytest.approx(expected, rel=1e-5)


def test_a_target_that_is_a_key_frame_is_refused():
    with pytest.raises(errors.UserError, match=r"the last of data.num_frames \(6\) frames is a key frame"):
        make(**PROPAGATE, **{"train.frames": "target"})


def test_a_cell_has_the_loss_of_the_static_network():
    weights = np.array([0.5, 2, 1, 0.25], np.float32)
    changes = {"pretrain.class_weights": "x", "pretrain.label_smoothing": "0.1", "pretrain.hardest": "0.4"}
    loss = make(weights, **changes, **{"data.history": "stills"})
    found, target = pixel_losses(0.1)[-1], LABELS[-1]
    is_valid = target != types.IGNORE
    last = np.sort(found[is_valid])[::-1][int(np.ceil(0.4 * is_valid.sum())) - 1]
    by_pixel = np.where(is_valid & (found >= last), weights[np.where(is_valid, target, 0)], 0)
    expected = (found * by_pixel).sum() / by_pixel.sum()
    assert value(loss, LOGITS, LABELS) == pytest.approx(expected, rel=1e-5)
    plain = make(weights, **changes, **{"data.history": "stills", "train.loss": "plain"})
    assert value(plain, LOGITS, LABELS) == pytest.approx(pixel_losses()[-1].sum() / is_valid.sum(), rel=1e-5)
    with pytest.raises(AssertionError, match="class weights are missing"):
        make(**changes)


def test_images_of_weight_0_are_none_of_the_hardest():
    weights = np.broadcast_to(np.array([0, 2, 0, 1, 0, 0], np.float32)[:, None], (T, B))
    loss, count = losses.cross_entropy(LOGITS, LABELS, hardest=0.5, image_weights=weights)
    found, of = pixel_losses(), np.broadcast_to(weights[..., None, None], LABELS.shape)
    is_counted = (LABELS != types.IGNORE) & (of > 0)
    last = np.sort(found[is_counted])[::-1][int(np.ceil(is_counted.sum() / 2)) - 1]
    by_pixel = np.where(is_counted & (found >= last), of, 0)
    assert float(count) == (by_pixel > 0).sum() == 23
    assert float(loss) == pytest.approx((found * by_pixel).sum() / by_pixel.sum(), rel=1e-5)


def test_the_teacher_counts_where_there_are_no_labels():
    labels = LABELS.copy()
    labels[:-1] = types.IGNORE
    labels[-1, 1] = types.IGNORE
    taught = {"train.teacher_weight": "0.5", "train.temperature": "2"}
    of_labels = pixel_losses()[-1, 0].sum() / (LABELS[-1, 0] != types.IGNORE).sum()
    is_unlabelled = (labels == types.IGNORE).all(axis=(-2, -1))
    assert is_unlabelled.sum() == 11
    of_teacher = divergences(2.0)[is_unlabelled].mean()
    loss = make(**taught)
    assert value(loss, LOGITS, labels) == pytest.approx(of_labels + 0.5 * of_teacher, rel=1e-5)
    loss = make(**taught, **{"train.teacher_frames": "all"})
    assert value(loss, LOGITS, labels) == pytest.approx(of_labels + 0.5 * divergences(2.0).mean(), rel=1e-5)
    loss = make(**taught, **PROPAGATE)  # the labelled target is a key frame
    assert value(loss, LOGITS, labels) == pytest.approx(0.5 * divergences(2.0)[1:5].mean(), rel=1e-5)
    # with labels everywhere nothing is left to the teacher
    labels = np.where(LABELS == types.IGNORE, 0, LABELS)
    plain = value(make(), LOGITS, labels)
    assert value(make(**taught), LOGITS, labels) == plain


def test_without_labels_the_teacher_is_all_there_is():
    loss = make(**PROPAGATE, **{"train.labels": "false", "train.teacher_weight": "2"})
    assert value(loss, LOGITS, LABELS) == pytest.approx(2 * divergences()[1:5].mean(), rel=1e-5)
    assert value(loss, TEACHER, LABELS) == pytest.approx(0, abs=1e-6)
    with pytest.raises(errors.UserError, match="'train.teacher_weight': must be above 0 where train.labels is false"):
        make(**{"train.labels": "false"})


def test_class_weights_are_counted_once_and_kept_in_the_run_folder(tmp_path, monkeypatch):
    config = config_lib.load(
        None,
        {
            "pretrain.class_weights": "median", "data.num_train_clips": "3", "data.height": "16", "data.width": "32",
            "data.crop_height": "16", "data.crop_width": "32", "data.num_frames": "2",
        },
    )  # fmt: skip
    folder = workdir.Workdir(tmp_path)
    counted = pretrain.class_weights(config, folder)
    assert counted.shape == (11,) and counted.dtype == np.float32 and counted.max() > 1
    monkeypatch.setattr(pretrain.pretrain_loss, "class_weights", None)
    np.testing.assert_array_equal(pretrain.class_weights(config, folder), counted)
    config = config_lib.changed(config, {"pretrain.class_weights": ""})
    assert pretrain.class_weights(config, folder) is None


def test_in_a_mixture_each_clip_says_which_of_its_frames_count():
    """Clip 0 is made from a still, clip 1 a true history without labels but for its first frames."""
    mixed = {"data.history": "stills", "data.extra": "video:clip.mp4:0.5", "train.teacher_weight": "0.5"}
    loss = make(**mixed)
    counts = np.array([[0, 0, 0, 0, 0, 1], [1] * 6], np.float32).T
    labels = LABELS.copy()
    labels[2:, 1] = types.IGNORE
    chosen = [pixel_losses()[5, 0], pixel_losses()[0, 1], pixel_losses()[1, 1]]
    of_labels = sum(each.sum() for each in chosen) / sum(
        (LABELS[at] != types.IGNORE).sum() for at in ((5, 0), (0, 1), (1, 1))
    )
    of_teacher = divergences()[2:, 1].mean()  # never of the made-up frames of clip 0
    features = types.Features(maps={"decoder": LOGITS, cell_loss.COUNTS: counts[..., None, None, None]}, logits=TEACHER)
    loss_fn, own = loss.of_batch(features, labels)
    assert set(own.maps) == {"decoder"}
    assert float(loss_fn(LOGITS)) == pytest.approx(of_labels + 0.5 * of_teacher, rel=1e-5)
    with pytest.raises(AssertionError, match="which frames count"):
        loss(LOGITS, labels, TEACHER)
    # propagate, and where the config says which: the same for all clips
    for changes in (PROPAGATE, {"train.frames": "target"}, {"data.history": "frames"}):
        assert not make(**{**mixed, **changes}).is_mixed
