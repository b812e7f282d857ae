"""The running average of the static network's logits: its best share by values, and once for a run folder."""

import json

import jax
import numpy as np
import pytest
import trained

from dvsnas_jax.core import types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.deploy import run_model
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import averaging, features, pretrain


def _clips(before, now, labels):
    """Logits [2, B, 4, 4, 2] whose second class has these margins [B] in each frame, and labels [B, 4, 4]."""
    margins = np.array([before, now], np.float32)[:, :, None, None, None]
    logits = np.concatenate([np.zeros_like(margins), margins], axis=-1) + np.zeros((1, 1, 4, 4, 1), np.float32)
    return logits, np.array(labels, np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        # The truth is class 1. The average says so where share * now + (1 - share) * before > 0.
        (1.0, -0.7, 0.3),  # up to 0.588 all are right: the steadiest
        (-1.0, 1.0, 0.6),  # above 0.5
        (-1.0, 0.3, 0.8),  # above 0.769
        (-1.0, -1.0, 0.3),  # all alike: the steadiest
        (-7.5, 1.0, 0.9),  # above 0.882
    ],
)
def test_the_best_share_by_hand(before, now, expected):
    logits, labels = _clips([before, 2.0, -2.0], [now, 2.0, -2.0], [1, 1, 0])
    assert averaging.best_share(logits, labels) == expected
    many = [np.repeat(logits, 4, axis=1), np.repeat(labels, 4, axis=0)]  # more than are counted at a time
    assert averaging.best_share(*many) == expected


def test_nothing_that_speaks_for_an_average_is_no_average():
    logits, labels = _clips([1.0], [-1.0], [1])
    assert averaging.best_share(logits, labels) == 0.3
    assert averaging.best_share(logits[1:], labels) == 1.0
    assert averaging.best_share(logits, np.full_like(labels, types.IGNORE)) == 1.0


def test_the_share_of_a_run_is_that_of_its_meta_validation_clips_and_kept(tmp_path):
    path = trained.write(tmp_path / "run", "refine")
    folder = workdir.Workdir(path)
    config, model = folder.config(), run_model.read(folder.config(), folder)[0]
    (chosen,) = pretrain.split_clips(config)[1]
    clip = features.select(config, np.array([chosen]))
    infer, predict = jax.jit(static_net.infer, static_argnums=0), jax.jit(static_net.predict, static_argnums=1)
    logits = [np.asarray(infer(model.net, model.variables, frame[None]).logits) for frame in clip.frames[0]]
    mious = []
    for share in averaging.SHARES:
        found = predict(np.float32(share) * logits[1] + np.float32(1 - share) * logits[0], trained.SIZE)
        mious.append(metrics.scores(metrics.confusion(clip.labels[:, 1], found, 11))["miou"])
    assert averaging.known_share(folder) is None
    share = averaging.share_of_run(config, model.variables, folder)
    assert share == averaging.SHARES[int(np.argmax(mious))]
    kept = json.loads((path / averaging.FILE).read_text())
    assert kept["num_clips"] == 1 and list(kept["miou"].values()) == pytest.approx(mious, abs=2e-5)
    folder.write_json(averaging.FILE, {"share": 0.4})
    assert averaging.share_of_run(config, None, folder) == 0.4 == averaging.known_share(folder)
