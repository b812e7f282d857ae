"""What cells are taught: the augmented teacher against a mean by hand, another network, what is kept with features."""

import jax
import numpy as np
import pytest
import tiny_net
import trained

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.deploy import run_model
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import cell_loss, features, pretrain, teachers, winners

TINY = {
    "data.height": "16", "data.width": "24", "data.crop_height": "16", "data.crop_width": "24", "data.num_frames": "3",
    "data.num_train_clips": "3", "pretrain.steps": "1", "train.teacher_weight": "1", **tiny_net.CONFIG,
}  # fmt: skip


def make_config(**changes):
    return config_lib.load(None, {**TINY, **changes})


@pytest.fixture(scope="module", autouse=True)
def _net():
    with tiny_net.added():
        yield


@pytest.fixture(scope="module")
def network():
    net = static_net.make(make_config().net, 11)
    variables = static_net.init(net, jax.random.key(0))
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 24, 3), np.uint8)
    return net, variables, frames


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_the_augmented_teacher_is_a_mean_by_hand(network):
    net, variables, frames = network
    apply_fn = jax.jit(lambda images: net.apply(variables, images, train=False).logits)

    def resized(x, size):
        return np.asarray(jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear", antialias=False))

    flat = (frames.reshape(-1, 16, 24, 3) / 255 - np.array(tiny_net.ENCODER.mean)) / np.array(tiny_net.ENCODER.std)
    views = []
    for images in (flat.astype(np.float32), resized(flat.astype(np.float32), (24, 36))):
        views.append(softmax(resized(np.asarray(apply_fn(images)), (4, 6))))
        views.append(softmax(resized(np.asarray(apply_fn(images[:, :, ::-1]))[:, :, ::-1], (4, 6))))
    found = np.mean(views, axis=0).reshape(2, 3, 4, 6, 11)
    second = 0.7 * found[:, 1] + 0.3 * found[:, 0]
    expected = np.log(np.stack([found[:, 0], second, 0.7 * found[:, 2] + 0.3 * second], axis=1))
    teacher = teachers.make(make_config(**{"train.teacher": "augmented"}))
    np.testing.assert_allclose(teacher.logits_fn(variables, frames), expected, atol=2e-4)
    assert np.abs(views[0] - views[2]).max() > 1e-3 and np.abs(views[0] - views[1]).max() > 1e-3
    kept = teacher.logits(variables, types.Clip(frames=frames, labels=np.zeros(frames.shape[:-1], np.uint8)))
    assert kept.dtype.name == "bfloat16"
    np.testing.assert_allclose(kept.astype(np.float32), expected, rtol=1e-2)


def test_the_network_of_another_run(network, tmp_path):
    net, variables, frames = network
    config = make_config()
    folder = workdir.Workdir(tmp_path / "large")
    path = str(folder.path)
    with pytest.raises(errors.UserError, match=r"^train.teacher: .*large holds no run .* or set train.teacher to netw"):
        teachers.make(make_config(**{"train.teacher": path}))
    folder.claim(config)
    folder.checkpointer(pretrain.STAGE).save(1, pretrain.init(variables, pretrain.make_optimizer(config.pretrain)))
    teacher = teachers.make(make_config(**{"train.teacher": path}))
    expected = jax.jit(static_net.infer, static_argnums=0)(net, variables, frames[0]).logits
    np.testing.assert_allclose(teacher.logits_fn(None, frames)[0], expected, rtol=1e-4, atol=1e-4)
    assert config_lib.with_absolute_paths(config_lib.to_json_dict(config))["train"]["teacher"] == "network"
    with pytest.raises(errors.UserError, match="'train.teacher': must be network, augmented or a run folder"):
        make_config(**{"train.teacher": ""})


@pytest.mark.parametrize("kind", ["refine", "fixed"])
def test_the_cell_of_another_run_says_what_it_says_frame_by_frame(kind, tmp_path):
    path = trained.write(tmp_path / "run", kind)
    config = trained.make_config("fixed")
    config.train.update({"teacher": str(path), "teacher_weight": 1.0})
    teacher, net = teachers.make(config), static_net.make(config.net, 11)
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, *trained.SIZE, 3), np.uint8)
    logits = teacher.logits_fn(None, frames)
    _, model = run_model.open_folder(path)
    wanted = []
    for clip in frames:
        state = model.initial_state()
        for frame in clip:
            state, labels = model.step(state, frame[None])
            wanted.append(np.asarray(labels))
    wanted = np.stack(wanted).reshape(frames.shape[:4])
    found = np.asarray(static_net.predict(logits.reshape(-1, *logits.shape[2:]), trained.SIZE)).reshape(wanted.shape)
    assert (found == wanted).mean() > 0.999
    folder = workdir.Workdir(path)
    alone = teachers._of_another(net, net, pretrain.restore(folder.config(), folder), None, frames)
    assert np.abs(alone[:, 1:] - logits[:, 1:]).mean() > 0.01  # the cell changes what its network says
    _, params, space, genotype = winners.load(folder.config(), folder)
    winners.save(folder, space, genotype, jax.tree.map(lambda x: x + 1, params))
    again = teachers.make(config)  # features of the one are not those of the other
    assert again.about[0] != teacher.about[0] and again.about[1] == teacher.about[1]


def test_features_for_training_keep_what_the_teacher_says(network):
    net, variables, _ = network
    for name, weight, is_kept in (("augmented", "1", True), ("augmented", "0", False), ("network", "1", False)):
        config = make_config(**{"train.teacher": name, "train.teacher_weight": weight})
        wanted = teachers.wanted(config, np.arange(2), ("decoder",))
        assert (wanted.teacher is not None) == is_kept == cell_loss.has_teacher_map(config)
        store = features.make(config, features.Networks(variables), wanted, 0, 2)
        shapes = features.shapes(config, ("decoder",), 2, None, is_training=True)
        assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), store) == jax.tree.map(
            lambda x: (x.shape, str(x.dtype)), shapes
        )
        batch = jax.tree.map(lambda x: np.asarray(x, np.float32).swapaxes(0, 1), store.features)
        labels = np.full((3, 2, 16, 24), types.IGNORE, np.uint8)
        loss = cell_loss.make(config, 1, None)
        loss_fn, own = loss.of_batch(batch, labels)
        assert set(own.maps) == {"decoder"}
        if is_kept:  # who says the same as the teacher has nothing to learn
            said = batch.maps[cell_loss.TEACHER]
            assert float(loss_fn(said)) == pytest.approx(0, abs=1e-6) and float(loss_fn(batch.logits)) > 1e-4
            with pytest.raises(AssertionError, match="the features lack what the teacher says"):
                loss.of_batch(own, labels)
        elif weight == "1":
            assert float(loss_fn(batch.logits)) == pytest.approx(0, abs=1e-6)
