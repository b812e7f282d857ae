"""The losses against hand-computed cases and PyTorch-style definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import losses, optim, pretrain_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, (2, 3, 4)).astype(np.uint8)
LABELS[0, 0, :2] = 255


def pixel_losses(smoothing: float = 0.0) -> np.ndarray:
    """f64 [2, 3, 4], 0 where ignored: written from the definition, target distribution first."""
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    target = np.eye(5)[np.where(LABELS == 255, 0, LABELS)] * (1 - smoothing) + smoothing / 5
    return np.where(LABELS == 255, 0.0, -(target * log_probs).sum(-1))


def test_smoothing_is_cross_entropy_with_a_smoothed_target():
    loss, count = losses.cross_entropy(LOGITS, LABELS, smoothing=0.2)
    assert float(count) == 22 and float(loss) == pytest.approx(pixel_losses(0.2).sum() / 22, rel=1e-5)


def test_class_weights_are_a_weighted_mean():
    weights = np.array([0.0, 1.0, 2.0, 0.5, 3.0])
    loss, _ = losses.cross_entropy(LOGITS, LABELS, class_weights=weights)
    by_pixel = np.where(LABELS == 255, 0.0, weights[np.where(LABELS == 255, 0, LABELS)])
    assert float(loss) == pytest.approx((pixel_losses() * by_pixel).sum() / by_pixel.sum(), rel=1e-5)


def test_the_hardest_pixels_alone_count():
    loss, count = losses.cross_entropy(LOGITS, LABELS, hardest=0.25)
    hardest = np.sort(pixel_losses()[LABELS != 255])[::-1][:6]  # ceil(22 / 4)
    assert float(count) == 6 and float(loss) == pytest.approx(hardest.mean(), rel=1e-5)
    nothing, count = losses.cross_entropy(LOGITS, np.full_like(LABELS, 255), hardest=0.25)
    assert float(nothing) == 0 and float(count) == 0


def test_distillation_is_zero_for_equals_and_keeps_its_gradient_at_high_temperature():
    teacher = RNG.normal(size=LOGITS.shape).astype(np.float32)
    assert float(losses.distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    probs = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
    own = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True))
    expected = (probs * (np.log(probs) - own)).sum(-1).mean()
    assert float(losses.distillation(LOGITS, teacher, 1.0)) == pytest.approx(expected, rel=1e-4)
    # Hinton 2015, section 2.1: at high temperatures the gradient is that of half the squared distance of the
    # centred logits, over K
    gradient = jax.grad(lambda x: losses.distillation(x, teacher, 1e3))(LOGITS)
    centred = [x - x.mean(-1, keepdims=True) for x in (LOGITS, teacher)]
    np.testing.assert_allclose(gradient, (centred[0] - centred[1]) / 5 / 24, atol=2e-4)


def test_median_weights():
    # class 0 in both images (60 + 20 of 100 + 100), 1 in one (40 of 100), 2 in one (80 of 100), 3 nowhere
    counts = np.array([[60, 40, 0, 0], [20, 0, 80, 0]])
    np.testing.assert_allclose(losses.median_weights(counts), [1.0, 1.0, 0.5, 0.0])


def test_log_weights():
    # shares of the 200 labelled pixels: 0.4, 0.2, 0.4 and none
    counts = np.array([[60, 40, 0, 0], [20, 0, 80, 0]])
    expected = [1 / np.log(1.5), 1 / np.log(1.3), 1 / np.log(1.5), 1 / np.log(1.1)]
    np.testing.assert_allclose(losses.log_weights(counts), expected, rtol=1e-6)
    assert expected[3] == pytest.approx(10.49, abs=0.01)  # the largest there is, also where nothing is labelled
    np.testing.assert_allclose(losses.log_weights(np.zeros((1, 2), int)), [expected[3]] * 2, rtol=1e-6)


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,-1,1", "0,0,0", "nan,1,1"])
def test_bad_class_weights_are_refused(text):
    with pytest.raises(errors.UserError, match="must be median, log or 3 numbers"):
        pretrain_loss.class_weights(text, 3, lambda: iter(()))


def test_class_weights_by_text():
    assert pretrain_loss.class_weights("", 3, lambda: iter(())) is None
    np.testing.assert_array_equal(pretrain_loss.class_weights("1,0.5,2", 3, lambda: iter(())), [1, 0.5, 2])
    clip = types.Clip(frames=np.zeros((1, 1, 2, 2, 3), np.uint8), labels=np.array([[[[0, 0], [1, 255]]]], np.uint8))
    np.testing.assert_allclose(
        pretrain_loss.class_weights("median", 3, lambda: iter([clip])), [0.75, 1.5, 0], rtol=1e-6
    )
    logarithms = np.log([1.1 + 2 / 3, 1.1 + 1 / 3, 1.1])  # the ignored pixel has no share
    np.testing.assert_allclose(pretrain_loss.class_weights("log", 3, lambda: iter([clip])), 1 / logarithms, rtol=1e-6)


def test_vectors_change_nothing_of_an_optimizer():
    params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "encoder": {"kernel": jnp.full((4, 1), 2.0)}}
    grads = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape) - 1, params)
    mask = jax.tree.map(lambda x: x.ndim >= 2, params)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.3, mask=mask))
    section = config_lib.defaults().search
    section.update({"clip_norm": 1.0, "learning_rate": 0.1, "weight_decay": 0.3})
    ours = optax.chain(optim.make(section, is_constant=True), optim.scale_part("encoder", 0.1))
    states = plain.init(params), ours.init(params)
    updates = jax.jit(plain.update), jax.jit(ours.update)
    for _ in range(3):
        expected, first = updates[0](grads, states[0], params)
        found, second = updates[1](grads, states[1], params)
        states = first, second
        expected = {**expected, "encoder": jax.tree.map(lambda x: 0.1 * x, expected["encoder"])}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_the_objective_adds_its_parts():
    config = config_lib.load(
        None,
        {
            "net.encoder": "resnet18", "net.width": "0.125", "net.decoder_channels": "8", "net.auxiliary": "true",
            "pretrain.distillation": "0.7",
        },
    )  # fmt: skip
    net = static_net.make(config.net, 3)
    variables = static_net.init(net, jax.random.key(0))
    teacher = static_net.init(net, jax.random.key(1))
    clip = types.Clip(
        frames=RNG.integers(0, 255, (1, 2, 32, 32, 3)).astype(np.uint8),
        labels=RNG.integers(0, 3, (1, 2, 32, 32)).astype(np.uint8),
    )
    arguments = (variables["params"], variables["batch_stats"], clip, teacher, jax.random.key(2))
    total, (_, parts) = jax.jit(pretrain_loss.make(config.pretrain, net, net))(*arguments)
    config.unlock()
    config.net.auxiliary = False
    plain, _ = jax.jit(pretrain_loss.make(config.pretrain, static_net.make(config.net, 3)))(*arguments)
    assert set(parts) == {"auxiliary", "distillation"} and min(map(float, parts.values())) > 0
    added = float(plain) + 0.4 * float(parts["auxiliary"]) + 0.7 * float(parts["distillation"])
    assert float(total) == pytest.approx(added, rel=1e-4)


def test_a_teacher_must_be_a_trained_run(tmp_path):
    with pytest.raises(errors.UserError, match="holds no run"):
        pretrain_loss.load_teacher(str(tmp_path), 11, lambda config, folder: None)
    config = config_lib.load(None, {"net.width": "0.1"})
    workdir.Workdir(tmp_path / "run").claim(config)
    with pytest.raises(errors.UserError, match="no trained static network"):
        pretrain_loss.load_teacher(str(tmp_path / "run"), 11, lambda config, folder: None)
    variables = {"params": {"classifier": {"bias": np.zeros(19)}}}
    with pytest.raises(errors.UserError, match="has 19 classes, not 11"):
        pretrain_loss.load_teacher(str(tmp_path / "run"), 11, lambda config, folder: variables)
    found = pretrain_loss.load_teacher(str(tmp_path / "run"), 19, lambda config, folder: variables)
    assert found.net.width == 0.1 and found.net.num_classes == 19
