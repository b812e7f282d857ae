"""The static networks equal their twins in PyTorch, whose weights come through the importer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import blocks, encoders, static_net
from dvsnas_jax.nets.decoders import deeplab
from dvsnas_jax.nets.encoders import resnet
from dvsnas_jax.nets.weights import pretrained, torch_import, weights_folder

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `parity`)")
twins = pytest.importorskip("torch_twins")

NUM_CLASSES = 11
TOLERANCE = 1e-4


def _imported(twin, net: str, folder, **changes):
    """The network with the twin's weights, by way of a .pth file and a folder."""
    torch.save(twin.state_dict(), folder / "weights.pth")
    torch_import.import_file(folder / "weights.pth", net, folder / "imported")
    config = config_lib.defaults().net
    config.update({**torch_import.sources()[net].settings, "weights": str(folder / "imported"), **changes})
    ours = static_net.make(config, NUM_CLASSES)
    return ours, static_net.start(config, ours, jax.random.key(0))


def _images(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)


def _from_torch(fn, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = fn(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return {name: value.numpy().transpose(0, 2, 3, 1) for name, value in found.items()}


def _assert_equal(found: dict, expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert np.abs(np.asarray(found[name]) - value).max() < TOLERANCE * np.abs(value).max(), name


def _compare(twin, net, variables, images: np.ndarray) -> None:
    found = compilation.jit_once(lambda v, x: net.apply(v, x, train=False))(variables, images)
    _assert_equal({**found.maps, "logits": found.logits}, _from_torch(twin, images))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("refinenet_mobilenet_v2", (96, 128)),
        ("refinenet_mobilenet_v2", (90, 120)),
        ("refinenet_resnet50", (90, 120)),
        pytest.param("refinenet_resnet50", (96, 128), marks=pytest.mark.slow),
    ],
)
def test_light_weight_refinenet(name, size, tmp_path):
    make = twins.MobileNetRefineNet if name == "refinenet_mobilenet_v2" else twins.ResNetRefineNet
    twin = twins.randomise(make()).eval()
    _compare(twin, *_imported(twin, name, tmp_path), _images(size))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 128), (90, 120)])
def test_light_weight_refinenet_on_resnet101(size, tmp_path):
    twin = twins.randomise(twins.ResNetRefineNet("resnet101")).eval()
    _compare(twin, *_imported(twin, "refinenet_resnet101", tmp_path), _images(size))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("mobilenet_v2", 32),
        ("resnet18", 16),
        pytest.param("mobilenet_v2", 16, marks=pytest.mark.slow),
        pytest.param("resnet18", 32, marks=pytest.mark.slow),
        pytest.param("resnet50", 16, marks=pytest.mark.slow),
        pytest.param("resnet101", 32, marks=pytest.mark.slow),
    ],
)
def test_torchvision_encoders(name, output_stride, tmp_path):
    if name == "mobilenet_v2":
        twin = twins.MobileNetClassifier(output_stride)
    else:
        twin = twins.ResNet(name, output_stride=output_stride)
    twins.randomise(twin).eval()
    changes = {"output_stride": output_stride, "decoder_channels": 4}
    _compare(twin, *_imported(twin, name, tmp_path, **changes), _images((90, 120)))


LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def _lite_frames(size: tuple[int, int]) -> np.ndarray:
    """Smooth frames u8, on which a trained network answers as on pictures, with a little noise."""
    rng = np.random.default_rng(0)
    coarse = jax.image.resize(jnp.asarray(rng.uniform(0, 255, (1, 5, 6, 3))), (1, *size, 3), "bicubic")
    return np.clip(np.asarray(coarse) + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def _compare_lite(twin, net, variables, sizes) -> None:
    """All maps of the encoder from the frame on, as trained and folded."""
    encoder = encoders.TABLE[net.encoder].make_fn(
        width=1.0, output_stride=32, is_frozen=False, dtype=jnp.float32, name=None
    )
    folded = static_net.fold(net, variables)
    assert set(folded) == {"params", blocks.FOLDED}
    own = [{kind: part["encoder"] for kind, part in tree.items()} for tree in (variables, folded)]
    for index, size in enumerate(sizes):
        frames = _lite_frames(size)
        expected = _from_torch(twin, frames.astype(np.float32))
        run = compilation.jit_once(lambda v, x: encoder.apply(v, static_net.normalise(net, x), train=False))
        for tree in own[: 1 if index else 2]:
            _assert_equal(run(tree, frames), expected)


def _lite(name: str, weights: str):
    config = config_lib.defaults().net
    config.update({"encoder": name, "width": 1.0, "decoder_channels": 4, "weights": weights})
    net = static_net.make(config, NUM_CLASSES)
    return net, static_net.start(config, net, jax.random.key(0))


# 45 rows are odd at the first stride, 70 columns at the second; 64x96 is even at all.
@pytest.mark.parametrize(("name", "sizes"), [(LITE[0], [(64, 96)]), (LITE[2], [(45, 70)])])
def test_efficientnet_lite_with_random_weights(name, sizes, tmp_path):
    twin = twins.randomise(twins.EfficientNetLite(name)).eval()
    torch.save(twin.state_dict(), tmp_path / "weights.pth")
    report = torch_import.import_file(tmp_path / "weights.pth", name, tmp_path / "imported")
    assert len(report.used) + len(report.unused) == len(twin.state_dict())
    _compare_lite(twin, *_lite(name, str(tmp_path / "imported")), sizes)


@pytest.mark.parametrize("name", [LITE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LITE[1:])])
def test_efficientnet_lite_with_the_weights_from_imagenet(name):
    try:
        path = pretrained.find(encoders.TABLE[name])
    except errors.UserError as error:
        pytest.skip(str(error))
    twin = twins.EfficientNetLite(name).eval()
    twin.load_state_dict(torch.load(path, weights_only=True))
    _compare_lite(twin, *_lite(name, "imagenet"), [(64, 96), (45, 70)])


def _parameters(twin) -> dict:
    """Variables of one ResNet block or ConvNorm with the weights of its twin."""
    values = {name: value.numpy() for name, value in twin.state_dict().items()}
    variables: dict = {"params": {}, "batch_stats": {}}
    for ours, conv, norm in (*((f"conv{i}", f"conv{i}", f"bn{i}") for i in (1, 2, 3)), ("downsample", *_DOWNSAMPLE)):
        if f"{conv}.weight" in values:
            kernel = values[f"{conv}.weight"].transpose(2, 3, 1, 0)
            scale, bias, mean, var = (values[f"{norm}.{part}"] for part in _NORM)
            variables["params"][ours] = {"kernel": kernel, "scale": scale, "bias": bias}
            variables["batch_stats"][ours] = {"mean": mean, "var": var}
    return variables


_DOWNSAMPLE = ("downsample.0", "downsample.1")
_NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_both_placements_of_a_bottlenecks_stride(stride_in_1x1):
    twin = twins.ResNetBlock(8, 8, is_bottleneck=True, stride=2, stride_in_1x1=stride_in_1x1)
    twins.randomise(twin).eval()
    images = np.random.default_rng(0).normal(size=(1, 9, 12, 8)).astype(np.float32)
    ours = resnet.Block(8, True, stride=2, stride_in_1x1=stride_in_1x1)
    found = ours.apply(_parameters(twin), images, False)
    _assert_equal({"y": found}, _from_torch(lambda x: {"y": twin(x)}, images))


def _conv_norm_in_torch(x, variables: dict, path: str, *, dilation: int = 1):
    """A `blocks.ConvNorm` with ReLU by PyTorch's functions."""
    params, stats = variables["params"], variables["batch_stats"]
    for part in path.split("/"):
        params, stats = params[part], stats[part]
    kernel = np.asarray(params["kernel"])
    is_depthwise = kernel.ndim == 3
    kernel = kernel[:, :, None].transpose(3, 2, 0, 1) if is_depthwise else kernel.transpose(3, 2, 0, 1)
    kernel, scale, bias, mean, var = (
        torch.from_numpy(np.array(value))
        for value in (kernel, params["scale"], params["bias"], stats["mean"], stats["var"])
    )
    padding = dilation * (kernel.shape[-1] // 2)
    groups = kernel.shape[0] if is_depthwise else 1
    y = torch.nn.functional.conv2d(x, kernel, padding=padding, dilation=dilation, groups=groups)
    return torch.relu(torch.nn.functional.batch_norm(y, mean, var, scale, bias, eps=1e-5))


@pytest.mark.parametrize("output_stride", [16, 32])
def test_deeplab_decoder(output_stride):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(2, 23, 30, 6)).astype(np.float32)
    deep = rng.normal(size=(2, *(-(-n * 4 // output_stride) for n in (23, 30)), 10)).astype(np.float32)
    decoder = deeplab.DeepLab(channels=16, output_stride=output_stride)
    maps = {"stage1": jnp.asarray(low), "stage4": jnp.asarray(deep)}
    drawn = compilation.jit_once(lambda key: decoder.init(key, maps, False))(jax.random.key(0))
    variables = jax.tree.map(lambda x: x + 0.3 * np.abs(rng.normal(size=x.shape)).astype(np.float32), drawn)
    found = compilation.jit_once(lambda v: decoder.apply(v, maps, False))(variables)

    def layer(x, path: str, dilation: int = 1):
        return _conv_norm_in_torch(x, variables, path, dilation=dilation)

    def separable(x, path: str, dilation: int = 1):
        return layer(layer(x, f"{path}/depthwise", dilation), f"{path}/pointwise")

    def reference(deep_map):
        functional = torch.nn.functional
        low_map = torch.from_numpy(low.transpose(0, 3, 1, 2).copy())
        rates = [separable(deep_map, f"aspp_rate{rate}", rate * 16 // output_stride) for rate in (6, 12, 18)]
        pooled = layer(functional.adaptive_avg_pool2d(deep_map, 1), "aspp_pool").expand(-1, -1, *deep_map.shape[2:])
        y = layer(torch.cat([layer(deep_map, "aspp_1x1"), *rates, pooled], 1), "project")
        y = functional.interpolate(y, low_map.shape[2:], mode="bilinear", align_corners=False)
        y = torch.cat([y, layer(low_map, "low_level")], 1)
        return {"decoder": separable(separable(y, "refine1"), "refine2")}

    _assert_equal({"decoder": found}, _from_torch(reference, deep))


def test_training_normalises_as_pytorch_does():
    module = blocks.ConvNorm(5, size=3, stride=2)
    x = np.random.default_rng(0).normal(size=(3, 9, 7, 4)).astype(np.float32)
    twin = twins.randomise(twins.conv_norm(4, 5, 3, 2)).train()
    state = {name: value.numpy().copy() for name, value in twin.state_dict().items()}
    params = {"kernel": state["0.weight"].transpose(2, 3, 1, 0), "scale": state["1.weight"], "bias": state["1.bias"]}
    stats = {"mean": state["1.running_mean"], "var": state["1.running_var"]}
    found, updated = module.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
    _assert_equal({"y": found}, _from_torch(lambda images: {"y": twin(images)}, x))
    np.testing.assert_allclose(updated["batch_stats"]["mean"], twin[1].running_mean.numpy(), atol=1e-5)
    unbiased = 60 / 59  # PyTorch keeps the unbiased variance of the 3 x 5 x 4 values
    moved = (twin[1].running_var.numpy() - 0.9 * stats["var"]) / unbiased + 0.9 * stats["var"]
    np.testing.assert_allclose(updated["batch_stats"]["var"], moved, rtol=1e-4)


def test_imported_weights_are_in_the_files_of_the_folder(tmp_path):
    twin = twins.randomise(twins.ResNet("resnet18")).eval()
    _, variables = _imported(twin, "resnet18", tmp_path, decoder_channels=4)
    flat = weights_folder.flatten(variables)
    kernel = twin.layer3[1].conv2.weight.detach().numpy()
    np.testing.assert_array_equal(flat["params/encoder/layer3_1/conv2/kernel"][2, 0, 5, 7], kernel[7, 5, 2, 0])
    np.testing.assert_array_equal(flat["batch_stats/encoder/conv1/var"], twin.bn1.running_var.numpy())
