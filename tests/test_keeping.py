"""Cells that are validated while they are trained: what is counted, what is kept, what a kill changes (nothing)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.search import pipeline
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, clip_scores, features, optim, training_loop

COMMON = {
    "data.num_frames": "3", "space.num_layers": "1", "space.channels": "4", "space.operations": "skip,conv_1x1",
    "space.aggregations": "sum", "net.encoder": "resnet18", "net.width": "0.125", "net.decoder_channels": "8",
    "train.steps": "40", "train.batch_size": "2", "train.norm_batches": "2", "train.eval_every": "15",
    "train.checkpoint_every": "100", "train.warmup_steps": "1", "train.polyak": "0.5", "train.label_stride": "4",
    "search.reward_clips": "2", "search.batch_size": "2",
}  # fmt: skip
REFINE = {**COMMON, "space.inputs": "logits,decoder", "train.learning_rate": "0.03"}
PROPAGATE = {
    **COMMON, "space.mode": "propagate", "space.cut": "stage1", "space.inputs": "prev_state,prev_logits,stage1",
    "schedule.interval": "2", "data.num_frames": "4", "train.labels": "false", "train.teacher_weight": "1",
    "train.learning_rate": "0.05", "train.steps": "80", "train.eval_every": "40",
}  # fmt: skip


def make_store(config, num_clips: int, *, accuracy: float, sharpness=1.0, is_slow=False, seed=0) -> types.FeatureStore:
    """Features of 4x4 cells; the first channels of decoder and stage1 tell the label, the logits do with this share."""
    rng, num = np.random.default_rng(seed), config.data.num_frames
    labels = rng.integers(0, 3, (num_clips, num, 4, 4)).astype(np.uint8)
    if is_slow:  # half of the pixels stay what they are, so that history says something
        labels = np.where(rng.random(labels.shape[2:]) < 0.5, labels[:, :1], labels)
    settings = features.settings_of(config)

    def draw(name: str) -> np.ndarray:
        found = rng.normal(size=(*labels.shape, settings.feature_channels[name])).astype(np.float32)
        found[..., :3] += 6 * np.eye(3, dtype=np.float32)[labels]
        return found

    told = np.where(rng.random(labels.shape) < accuracy, labels, (labels + 1) % 3)
    logits = sharpness * np.eye(settings.num_classes, dtype=np.float32)[told]
    maps = {name: jnp.asarray(draw(name), jnp.bfloat16) for name in ("decoder", "image", "stage1")}
    whole = labels.repeat(4, axis=2).repeat(4, axis=3)
    return types.FeatureStore(types.Features(maps=maps, logits=jnp.asarray(logits, jnp.bfloat16)), jnp.asarray(whole))


class StopAfter:
    """In place of a signal."""

    def __init__(self, step: int) -> None:
        self.step = step

    def is_due(self, done: int, every: int) -> bool:
        return done == self.step


def genotype_of(space: genotype_lib.Space) -> np.ndarray:
    """Two 1x1 convolutions of the last input."""
    last, conv = space.num_inputs - 1, space.operations.index("conv_1x1")
    return np.array([[last, last, conv, conv, 0]], np.int32)


def train(config, path, *, stop=None, change_fn=lambda store: store, **features_are):
    """A trained cell, its stage and its material."""
    features_are = {"accuracy": 0.5, **features_are}
    store, validation = make_store(config, 24, **features_are), make_store(config, 3, **features_are, seed=1)
    material = cell_training.Material(change_fn(store), validation)
    space = features.space_of(config)
    stage = training_loop.Stage.of(config.train, "cell", workdir.Workdir(path), stop or signals.StopFlag())
    with compilation.effort("quick"):
        return cell_training.train_cell(config, space, genotype_of(space), material, stage), stage, material


def validations(path) -> list[dict]:
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == "cell_val"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    config = config_lib.load(None, REFINE)
    return path, config, *train(config, path)


def test_the_best_of_all_validations_is_kept(whole):
    path, config, trained, _, material = whole
    lines = validations(path)
    assert [line["step"] for line in lines] == [0, 15, 30, 40]
    scores = [line["miou"] for line in lines]
    assert max(scores) > scores[0] + 0.1 and [line["score"] for line in lines] == scores  # stability is 0
    own = clip_scores.shares(trained.found)
    assert own["miou"] == max(scores)
    assert trained.found.counts.sum() == 3 * 256  # the targets of all meta-validation clips
    # what a search takes for the reward of the retrained cell is of the same counts
    parts = pipeline.Parts(config, features.space_of(config), None, None, None, material.store, material.validation)
    genotype = genotype_of(parts.space)
    again = pipeline.score_trained(parts, genotype, cell_training.Trained(trained.params))
    assert pipeline.score_trained(parts, genotype, trained) == again and again["miou"] == max(scores)


@pytest.mark.parametrize("stopped_after", [7, 33])
def test_a_stopped_training_ends_as_one_that_was_not(whole, tmp_path, stopped_after):
    path, config, expected, _, _ = whole
    with pytest.raises(errors.Stopped):
        train(config, tmp_path, stop=StopAfter(stopped_after))
    found, _, _ = train(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert validations(tmp_path) == validations(path)


def average(params, frames: types.Features) -> jax.Array:
    """What `zoo:ema` gives: 0.7 of the static network's logits and 0.3 of what was there before."""
    found = [frames.logits[0]]
    for now in frames.logits[1:]:
        found.append(0.7 * now + 0.3 * found[-1])
    return jnp.stack(found)


def hold(params, frames: types.Features) -> jax.Array:
    """What `zoo:hold` gives with key frames at every second frame."""
    return frames.logits[jnp.arange(len(frames.logits)) // 2 * 2]


@pytest.mark.parametrize(("changes", "baseline_fn", "ages"), [(REFINE, average, 0), (PROPAGATE, hold, 2)])
def test_where_training_makes_it_worse_the_baseline_is_kept(changes, baseline_fn, ages, tmp_path, capsys):
    quick = {"train.learning_rate": "100", "train.steps": "8", "train.eval_every": "4"}
    config = config_lib.load(None, {**changes, **quick})
    trained, _, material = train(config, tmp_path, accuracy=0.9, is_slow=True)
    lines = validations(tmp_path)
    assert lines[0]["miou"] > max(line["miou"] for line in lines[1:])
    assert "cell: training did not improve on the start, which is kept" in capsys.readouterr().err
    count_fn = clip_scores.make_count(baseline_fn, ages)
    baseline = clip_scores.of_store(count_fn, (), material.validation, config.search)
    np.testing.assert_array_equal(trained.found.counts, baseline.counts)
    np.testing.assert_array_equal(trained.found.flicker, baseline.flicker)


def test_without_validation_the_last_is_kept_and_its_checkpoints_are_those_of_older_runs(whole, tmp_path):
    config = config_lib.changed(whole[1], {"train.eval_every": "0"})
    trained, stage, _ = train(config, tmp_path)
    assert trained.found is None and not validations(tmp_path)
    wanted = training_loop.start_kept(_state(config))
    last = stage.folder.checkpointer("cell").restore(wanted.training)
    kept = whole[3].folder.checkpointer("cell").restore(wanted)
    jax.tree.map(np.testing.assert_array_equal, last, kept.training)  # validation changes nothing of the training
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), _weights(trained.params), last.average)
    assert all(jax.tree.leaves(same))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), _weights(whole[2].params), kept.best)
    assert all(jax.tree.leaves(same)) and int(kept.best_step) > 0


def _state(config):
    space = features.space_of(config)
    cell = cell_lib.make(space, genotype_of(space), features.settings_of(config))
    return cell_training.init(cell, optim.make(config.train), 0)


def _weights(params):
    """Without running statistics."""
    if not isinstance(params, dict):
        return params
    return {key: _weights(value) for key, value in params.items() if key not in ("mean", "var")}


def test_between_key_frames_no_label_is_needed(tmp_path):
    config = config_lib.load(None, PROPAGATE)

    def without_labels(store):
        return types.FeatureStore(store.features, jnp.full_like(store.labels, types.IGNORE))

    trained, _, material = train(config, tmp_path, accuracy=1.0, sharpness=2.0, change_fn=without_labels)
    lines = validations(tmp_path)
    assert max(line["miou"] for line in lines) > lines[0]["miou"] + 0.05
    assert trained.found.counts.sum() == 2 * 3 * 256  # one frame of each age
    unlabelled = cell_training.Material(material.store, material.store)
    space, stage = features.space_of(config), training_loop.Stage.of(
        config.train, "none", workdir.Workdir(tmp_path), signals.StopFlag()
    )  # fmt: skip
    with compilation.effort("quick"), pytest.raises(errors.UserError, match="no pixel of the meta-validation clips"):
        cell_training.train_cell(config, space, genotype_of(space), unlabelled, stage)


def test_a_score_is_miou_or_the_accuracy_of_rewards_times_stability():
    shares = {"miou": 0.5, "fwiou": 0.8, "class_accuracy": 0.6, "accuracy": 0.9, "flicker": 0.1}
    config = config_lib.load(None, {"search.stability": "2"})
    assert training_loop.make_score(config)(shares) == pytest.approx(0.5 * 0.9**2)
    config = config_lib.load(None, {"search.stability": "2", "train.keep_by": "reward"})
    accuracy = (0.5 * 0.8 * 0.6) ** (1 / 3)
    assert training_loop.make_score(config)(shares) == pytest.approx(accuracy * 0.9**2)
    shares |= {"followed": 0.2, "change_f1": 0.16}
    gain = (accuracy - 0.4) / 0.6
    expected = np.sqrt((gain + np.hypot(gain, 0.01)) / 2 * 0.16) * 0.9**2
    assert training_loop.make_score(config, 0.4)(shares) == pytest.approx(expected)


def test_older_run_folders_are_trained_as_they_were():
    values = config_lib.to_json_dict(config_lib.defaults())
    assert config_lib.from_json_dict(values, "x").train.eval_every == 100
    for key in ("loss", "frames", "eval_every", "labels", "teacher_weight"):
        del values["train"][key]
    train = config_lib.from_json_dict(values, "x").train
    assert (train.loss, train.frames, train.eval_every, train.labels) == ("plain", "all", 0, True)
