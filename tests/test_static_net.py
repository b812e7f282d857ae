"""The static network: published sizes, strides, normalisation, types."""

import collections
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import blocks, encoders, static_net
from dvsnas_jax.nets.decoders import refinenet
from dvsnas_jax.nets.encoders import encoder as encoder_lib
from dvsnas_jax.nets.kernels import layers

GOLDEN = pathlib.Path(__file__).parent / "golden" / "refinenet_mobilenetv2_shapes.json"
KINDS = {"scale": "bn_weight", "mean": "bn_running_mean", "var": "bn_running_var"}


def _config(**changes):
    config = config_lib.defaults().net
    config.update(changes)
    return config


@functools.cache
def _shapes(net: static_net.StaticNet, size: tuple[int, int] = (32, 32)):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(lambda rng, x: net.init(rng, x, train=False), jax.random.key(0), images)


def _num_params(net: static_net.StaticNet) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(net)["params"]))


@pytest.fixture(name="smaller", scope="module")
def _smaller():
    """With the encoder that compiles fastest."""
    net = static_net.make(_config(encoder="resnet18", width=0.125, decoder_channels=8), 3)
    return net, static_net.init(net, jax.random.key(0))


@pytest.fixture(name="small", scope="module")
def _small():
    net = static_net.make(_config(width=0.25, decoder_channels=8), 3)
    return net, static_net.init(net, jax.random.key(0))


PUBLISHED = {"width": 1.0, "decoder_channels": 256}


@pytest.mark.parametrize(
    ("changes", "classes", "expected"),
    [
        (PUBLISHED, 11, 3_261_515),
        (PUBLISHED, 21, 3_284_565),
        ({**PUBLISHED, "encoder": "resnet50"}, 11, 27_334_475),
        ({**PUBLISHED, "encoder": "resnet50"}, 21, 27_357_525),
        ({}, 11, 587_307),  # the default, of configs/synthetic.py and configs/camvid_small.py
        ({"width": 0.35, "decoder_channels": 32}, 11, 281_067),  # configs/smoke.py
    ],
)
def test_number_of_parameters(changes, classes, expected):
    assert _num_params(static_net.make(_config(**changes), classes)) == expected


@pytest.mark.parametrize(
    ("encoder", "published", "head"),
    [
        # Heads: 1x1 to 1280 channels with normalisation, then or only the classifier of 1000.
        ("mobilenet_v2", 3_504_872, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ("resnet18", 11_689_512, 512 * 1000 + 1000),
        ("resnet50", 25_557_032, 2048 * 1000 + 1000),
        ("resnet101", 44_549_160, 2048 * 1000 + 1000),
        ("efficientnet_lite0", 4_652_008, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ("efficientnet_lite1", 5_416_680, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ("efficientnet_lite2", 6_092_072, 352 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    ],
)
def test_encoders_are_the_published_classifiers_without_their_heads(encoder, published, head):
    net = static_net.make(_config(encoder=encoder, width=1.0, expand_first=False), 11)
    found = _shapes(net)["params"]["encoder"]
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) + head == published


def test_multiply_adds_equal_the_published_ones():
    sizes = {"mobilenet_v2": 5_441_417_280, "resnet50": 21_139_169_280}
    for encoder, expected in sizes.items():
        net = static_net.make(_config(**PUBLISHED, encoder=encoder), 11)
        assert static_net.num_macs(net, (360, 480)) == expected


@pytest.mark.parametrize(
    ("variant", "size", "millions"), [(0, 224, 407), (1, 240, 631), (2, 260, 899)]
)  # the table of tensorflow/tpu, models/official/efficientnet/lite
def test_multiply_adds_of_efficientnet_lite_are_the_published_ones(variant, size, millions):
    config = _config(encoder=f"efficientnet_lite{variant}", width=1.0)
    deepest = static_net.feature_channels(config, 2)["stage4"]
    encoder = static_net.num_macs(static_net.make(config, 2), (size, size), "stage4")
    head = 1280 * (deepest * (-(-size // 32)) ** 2 + 1000)
    # The published counts take in normalisation and activations here and there: within 6 % of them.
    assert 0.94 * millions < (encoder + head) / 1e6 <= millions


def test_shapes_equal_the_published_table():
    variables = _shapes(static_net.make(_config(width=1.0, decoder_channels=256), 11))
    found: collections.Counter = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = path[-1].key
        if name == "kernel":  # [kh, kw, Cin, Cout] or [kh, kw, C], there [Cout, Cin, kh, kw]
            rows, cols, *rest = leaf.shape
            shape = (*(rest[::-1] if len(rest) == 2 else (*rest, 1)), rows, cols)
            found[shape, "conv_weight"] += 1
        elif name == "bias":
            found[leaf.shape, "conv_bias" if path[-2].key == "classifier" else "bn_bias"] += 1
        else:
            found[leaf.shape, KINDS[name]] += 1
    table = json.loads(GOLDEN.read_text())
    assert found == {(tuple(shape), kind): count for shape, kind, count in table["rows"]}


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((96, 128), {}),
        ((90, 120), {"encoder": "resnet18", "output_stride": 16}),
        ((33, 47), {"decoder": "deeplab", "output_stride": 16}),
        ((33, 47), {"encoder": "resnet50", "decoder": "deeplab", "width": 0.25}),
        ((360, 480), {"encoder": "resnet50"}),
        ((46, 65), {"encoder": "efficientnet_lite0", "output_stride": 16}),
        ((46, 65), {"encoder": "efficientnet_lite2", "width": 0.5}),
    ],
)
def test_maps_have_ceiled_strides_and_the_stated_channels(size, changes):
    config = _config(**changes)
    net = static_net.make(config, 11)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    features = jax.eval_shape(lambda v, x: net.apply(v, x, train=False), _shapes(net), images)
    channels = static_net.feature_channels(config, 11)
    strides = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": config.output_stride, "decoder": 4}
    for name, stride in strides.items():
        assert features.maps[name].shape == (2, *(-(-n // stride) for n in size), channels[name])
    assert features.logits.shape == (2, *(-(-n // 4) for n in size), 11)
    frames = jax.ShapeDtypeStruct(images.shape, jnp.uint8)
    gridded = jax.eval_shape(functools.partial(static_net.infer, net), _shapes(net), frames)
    assert gridded.maps.keys() == channels.keys() - {"logits"}
    for name, leaf in gridded.maps.items():
        assert leaf.shape == (*features.logits.shape[:3], channels[name])


def test_published_channels():
    assert encoders.TABLE["mobilenet_v2"].channels_fn(1.0) == (24, 32, 96, 320)
    assert encoders.TABLE["mobilenet_v2"].channels_fn(0.5) == (16, 16, 48, 160)
    assert encoders.TABLE["resnet50"].channels_fn(1.0) == (256, 512, 1024, 2048)
    assert encoders.TABLE["efficientnet_lite0"].channels_fn(1.0) == (24, 40, 112, 320)
    assert encoders.TABLE["efficientnet_lite1"].channels_fn(1.0) == (24, 40, 112, 320)
    assert encoders.TABLE["efficientnet_lite2"].channels_fn(1.0) == (24, 48, 120, 352)
    assert encoder_lib.scaled(32, 0.35) == 16 and encoder_lib.scaled(24, 0.75) == 24  # 18 -> 16 would lose over 10 %


def test_initial_values(small):
    net, variables = small
    reference = _shapes(net)
    assert jax.tree.structure(variables) == jax.tree.structure(reference)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(variables), jax.tree.leaves(reference), strict=True
    ):
        assert leaf.shape == other.shape and leaf.dtype == other.dtype
        if path[-1].key == "kernel":
            # Standardised, the weights' sum of squares is nearly chi-squared: six deviations around its mean.
            is_encoder = path[1].key == "encoder"  # He; the decoder is uniform in +-1/sqrt(fan-in)
            z = np.asarray(leaf) / layers.he_scale(leaf.shape) * (1 if is_encoder else 6**0.5)
            assert abs((z**2).mean() - 1) < 6 * (2 / leaf.size) ** 0.5
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1].key in ("scale", "var") else 0.0)


def _conv_norm() -> tuple[blocks.ConvNorm, dict, jax.Array]:
    module = blocks.ConvNorm(4, size=3, stride=2, activation_fn=None)
    x = jax.random.normal(jax.random.key(1), (3, 7, 6, 2)) * 2 + 1
    variables = jax.jit(lambda rng: module.init(rng, x, False))(jax.random.key(0))
    params = {**variables["params"], "scale": jnp.array([1.0, 2, 3, 4]), "bias": jnp.array([0.0, 1, 2, 3])}
    return module, {"params": params, "batch_stats": variables["batch_stats"]}, x


def test_training_normalises_by_the_batch_and_moves_the_statistics():
    module, variables, x = _conv_norm()
    y, updated = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), [0, 1, 2, 3], atol=1e-4)
    np.testing.assert_allclose(np.std(y, (0, 1, 2)), [1, 2, 3, 4], rtol=1e-3)
    plain = np.asarray(layers.conv(x, variables["params"]["kernel"], stride=2), np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * plain.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * plain.var((0, 1, 2)), rtol=1e-3)


def test_evaluation_uses_the_running_statistics():
    module, variables, x = _conv_norm()
    stats = {"mean": jnp.array([0.1, 0.2, 0.3, 0.4]), "var": jnp.array([1.0, 2, 3, 4])}
    y = module.apply({**variables, "batch_stats": stats}, x, False)
    params = variables["params"]
    plain = layers.conv(x, params["kernel"], stride=2)
    expected = layers.normalize(plain, params["scale"], params["bias"], stats["mean"], stats["var"])
    np.testing.assert_allclose(y, expected, atol=1e-4)
    one = module.apply({**variables, "batch_stats": stats}, x[:1], False)
    np.testing.assert_allclose(one, y[:1], atol=1e-5)  # no dependence on the rest of the batch


def test_chained_pooling_by_hand():
    x = jax.random.normal(jax.random.key(0), (1, 6, 7, 2))
    module = refinenet.ChainedPooling()
    identity = jnp.eye(2).reshape(1, 1, 2, 2)
    params = {f"pointwise{i}": {"kernel": identity * i} for i in (1, 2, 3, 4)}
    expected, top = np.asarray(x), np.asarray(x)
    for factor in (1, 2, 3, 4):
        padded = np.pad(top, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
        top = factor * np.max([padded[:, i : i + 6, j : j + 7] for i in range(5) for j in range(5)], axis=0)
        expected = expected + top
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-5)


def test_static_net_learns():
    # The encoder that compiles fastest; the slow test of the README's commands trains the default one.
    net = static_net.make(_config(encoder="resnet18", width=0.125, decoder_channels=8), 3)
    variables = static_net.init(net, jax.random.key(0))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (2, 3, 4)), 8, axis=1), 8, axis=2)
    frames = (labels[..., None] * 80 + rng.integers(0, 20, (*labels.shape, 3))).astype(np.uint8)
    images = static_net.normalise(net, frames)

    def step(variables):
        def loss_fn(params):
            inputs = {**variables, "params": params}
            out, updated = net.apply(inputs, images, train=True, mutable=["batch_stats"])
            logits = layers.resize_bilinear(out.logits, labels.shape[1:])
            return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 3)).sum(axis=-1).mean(), updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g) * jnp.abs(p).mean(), variables["params"], grads)
        return {"params": params, **updated}, loss, grads

    step_fn = compilation.jit_once(step)
    losses = []
    for index in range(20):
        variables, loss, grads = step_fn(variables)
        losses.append(float(loss))
        if index == 0:  # every parameter takes part
            assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))
    assert losses[-1] < 0.6 * losses[0]


def test_bfloat16_is_close_to_float32(smaller):
    net, variables = smaller
    images = np.random.default_rng(1).normal(size=(1, 45, 64, 3)).astype(np.float32)
    exact, half = (
        compilation.jit_once(lambda v, net=net: net.apply(v, images, train=False).logits)(variables)
        for net in (net, net.clone(dtype=jnp.bfloat16))
    )
    assert half.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    difference = np.abs(np.asarray(half, np.float32) - np.asarray(exact)).mean()
    assert difference < 0.05 * np.abs(exact).mean()


def test_normalise_and_predict(small):
    frames = np.array([[[[0, 128, 255]]]], np.uint8)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(static_net.normalise(small[0], frames)[0, 0, 0], expected, rtol=1e-5)
    logits = jnp.zeros((1, 1, 2, 3)).at[0, 0, 0, 2].set(1.0).at[0, 0, 1, 1].set(1.0)
    labels = static_net.predict(logits, (2, 4))
    assert labels.dtype == jnp.uint8
    np.testing.assert_array_equal(labels, [[[2, 2, 1, 1]] * 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0.0}, "net.width"),
        ({"decoder_channels": 0}, "net.decoder_channels"),
        ({"dtype": "f8"}, "net.dtype"),
        ({"encoder": "vgg"}, "net.encoder"),
        ({"decoder": "fcn"}, "net.decoder"),
        ({"output_stride": 8}, "net.output_stride"),
        ({"dropout": 1.0, "encoder": "resnet50"}, "net.dropout"),
        ({"dropout": 0.5}, "net.dropout"),  # MobileNetV2 has none
    ],
)
def test_bad_values_are_told_in_one_line(change, words):
    with pytest.raises(errors.UserError, match=words) as caught:
        static_net.make(_config(**change), 3)
    assert "\n" not in str(caught.value)


def _train_once(changes: dict, *rngs: dict):
    """The first variables, and for each of `rngs` the maps and the new statistics of one program."""
    net = static_net.make(_config(encoder="resnet18", width=0.125, decoder_channels=8, **changes), 3)
    variables = static_net.init(net, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 33, 40, 3))

    @compilation.jit_once
    def run(variables, rngs):
        return net.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    return variables, [run(variables, one) for one in rngs]


def test_frozen_statistics_stay_and_normalise():
    variables, ((found, updated),) = _train_once({"freeze_norm": True}, {})
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    net = static_net.make(_config(encoder="resnet18", width=0.125, decoder_channels=8), 3)
    images = jax.random.normal(jax.random.key(1), (2, 33, 40, 3))
    evaluated = compilation.jit_once(lambda v: net.apply(v, images, train=False).logits)(variables)
    np.testing.assert_allclose(found.logits, evaluated, rtol=1e-4, atol=1e-5)


def test_dropout_and_auxiliary_classifier_are_of_training_only():
    changes = {"dropout": 0.5, "auxiliary": True}
    _, runs = _train_once(changes, *({"dropout": jax.random.key(seed)} for seed in (0, 0, 1)))
    runs = [found for found, _ in runs]
    assert runs[0].maps["auxiliary"].shape == (2, 3, 3, 3)  # ceil(33 / 16) x ceil(40 / 16), 3 classes
    np.testing.assert_array_equal(runs[0].logits, runs[1].logits)
    assert np.any(runs[0].logits != runs[2].logits)
    np.testing.assert_array_equal(runs[0].maps["stage4"], runs[2].maps["stage4"])  # before the dropout
    net = static_net.make(_config(encoder="resnet18", width=0.125, decoder_channels=8, **changes), 3)
    variables = static_net.init(net, jax.random.key(0))
    found = jax.eval_shape(lambda v: static_net.infer(net, v, np.zeros((1, 33, 40, 3), np.uint8)), variables)
    assert "auxiliary" not in found.maps


def test_frames_of_one_size_are_compiled_once(small):
    net, variables = small
    traces = 0

    @jax.jit
    def segment(variables, frames):
        nonlocal traces
        traces += 1
        return static_net.predict(static_net.infer(net, variables, frames).logits, frames.shape[1:3])

    rng = np.random.default_rng(0)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            frames = jax.device_put(rng.integers(0, 256, (1, 40, 48, 3)).astype(np.uint8))
            assert segment(variables, frames).shape == (1, 40, 48)
    assert traces == 1 and segment._cache_size() == 1


@pytest.mark.parametrize("last", ["image", "stage1", "stage3", "decoder"])
def test_needed_variables_give_the_same_maps(smaller, last):
    net, variables = smaller
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 40, 3), np.uint8)
    part = static_net.needed(net, variables, last)
    infer = compilation.jit_once(lambda trees: [static_net.infer(net, tree, frames, last) for tree in trees])
    whole, found = infer([variables, part])
    jax.tree.map(np.testing.assert_array_equal, whole, found)
    counts = [len(jax.tree.leaves(tree)) for tree in (part, variables)]
    assert counts[0] == counts[1] if last == "decoder" else counts[0] < counts[1]


@pytest.mark.parametrize(
    "encoder",
    ["efficientnet_lite0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "resnet18"))],
)
def test_folded_variables_give_the_same_maps(encoder):
    net = static_net.make(_config(encoder=encoder, width=0.125, decoder_channels=8), 3)
    variables = static_net.init(net, jax.random.key(0))
    rng = np.random.default_rng(0)
    # Means of both signs: large positive ones leave maps of next to nothing, which are the rounding of what was cut.
    limits = {"mean": (-0.5, 0.5), "var": (0.1, 1)}
    stats = jax.tree.map_with_path(
        lambda path, x: x + rng.uniform(*limits[path[-1].key], x.shape).astype(np.float32),
        variables["batch_stats"],
    )
    variables = {**variables, "batch_stats": stats}
    folded = static_net.fold(net, variables)
    num_norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    assert len(jax.tree.leaves(variables)) - len(jax.tree.leaves(folded)) == 3 * num_norms > 0
    frames = rng.integers(0, 256, (1, 40, 48, 3), np.uint8)

    @compilation.jit_once
    def run(variables, folded, first):
        return [static_net.infer(net, found, frames) for found in (variables, folded)], static_net.infer(
            net, first, frames, "stage2"
        )

    first = static_net.needed(net, folded, "stage2")
    (plain, other), cheap = run(variables, folded, first)
    for name, x in plain.maps.items():
        np.testing.assert_allclose(other.maps[name], x, atol=1e-4 * float(jnp.abs(x).max()))
    np.testing.assert_allclose(other.logits, plain.logits, atol=1e-4 * float(jnp.abs(plain.logits).max()))
    np.testing.assert_array_equal(cheap.maps["stage2"].shape, plain.maps["stage2"].shape)
    np.testing.assert_allclose(cheap.maps["stage2"], plain.maps["stage2"], atol=1e-5)
    assert len(jax.tree.leaves(first)) < len(jax.tree.leaves(folded))


@pytest.mark.parametrize(
    ("encoder", "last", "stride"),
    [("mobilenet_v2", "stage2", 32), ("efficientnet_lite0", "stage4", 16), ("resnet18", "stage3", 16)],
)
def test_an_encoder_goes_on_from_its_first_stages(encoder, last, stride):
    """As if it had run at once, without the images; and the shapes of what the network gives are known without it."""
    config = config_lib.defaults().net
    config.update({"encoder": encoder, "width": 0.125, "decoder_channels": 8, "output_stride": stride})
    net, frames = static_net.make(config, 5), np.random.default_rng(0).integers(0, 255, (1, 34, 70, 3), np.uint8)
    variables = static_net.init(net, jax.random.key(0))

    @compilation.jit_once
    def both(variables):
        maps = static_net.first_stages(net, variables, frames, last)
        stages = {name: x for name, x in maps.items() if name not in static_net.PLAIN}
        found = net.apply(variables, jnp.zeros((1, 1, 1, 3)), train=False, last="stage4", found=stages)
        return static_net.infer(net, variables, frames, "stage4").maps, static_net.on_grid(maps), found.maps

    with compilation.effort("quick"):
        whole, cheap, found = both(variables)
    assert set(cheap) == {*static_net.PLAIN, *static_net.STAGES[: static_net.STAGES.index(last) + 1]}
    for name, map_ in {**static_net.on_grid({**found, "image": whole["image"]}), **cheap}.items():
        np.testing.assert_allclose(map_, whole[name], atol=1e-5)
    traced = jax.eval_shape(lambda: static_net.infer(net, variables, frames))
    expected = static_net.frame_shapes(net, (34, 70))
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), traced, expected)
