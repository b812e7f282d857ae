"""An encoder and a decoder added at run time: one record each in its table, and everything knows them."""

import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_net

from dvsnas_jax.core import compilation, errors, records, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import static_net
from dvsnas_jax.nets.weights import torch_import, torch_match
from dvsnas_jax.train import features, pretrain_loss


@pytest.fixture(name="config")
def _config():
    with tiny_net.added():
        yield config_lib.load(None, tiny_net.CONFIG)


def test_an_encoder_and_a_decoder(config):
    """A network of them is made, normalises its frames, learns in a training step, and gives the maps it states."""
    net = static_net.make(config.net, 3)
    variables = static_net.init(net, jax.random.key(0))
    rng = np.random.default_rng(0)
    clip = types.Clip(
        frames=rng.integers(0, 256, (2, 1, 32, 40, 3), np.uint8), labels=rng.integers(0, 3, (2, 1, 32, 40), np.uint8)
    )
    loss_fn = pretrain_loss.make(config.pretrain, net)

    @compilation.jit_once
    def step(variables):
        grads, (stats, _) = jax.grad(loss_fn, has_aux=True)(
            variables["params"], variables["batch_stats"], clip, None, jax.random.key(1)
        )
        moved = jax.tree.map(lambda p, g: p - 1e-2 * g, variables["params"], grads)
        return {"params": moved, "batch_stats": stats}

    trained = step(variables)
    assert jax.tree.structure(trained) == jax.tree.structure(variables)
    for before, after in zip(jax.tree.leaves(variables), jax.tree.leaves(trained), strict=True):
        assert np.isfinite(after).all() and np.any(before != after)
    white = static_net.normalise(net, np.full((1, 1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(white[0, 0, 0], [1, 1, 1], rtol=1e-6)
    found = jax.jit(static_net.infer, static_argnums=0)(net, static_net.fold(net, trained), clip.frames[:, 0])
    channels = features.settings_of(config).feature_channels
    assert {name: x.shape[-1] for name, x in found.maps.items()} == {k: v for k, v in channels.items() if k != "logits"}
    first = static_net.needed(net, trained, "stage2")
    assert set(first["params"]["encoder"]) == {"stage1", "stage2"} and set(first["params"]) == {"encoder"}
    assert 0 < static_net.num_macs(net, (32, 40), "stage2") < static_net.num_macs(net, (32, 40))


def test_what_their_records_allow(config, tmp_path):
    for change, words in (({"output_stride": 16}, "allowed are 32"), ({"dropout": 0.5}, "net.dropout")):
        changed = config.net.copy_and_resolve_references()
        changed.update(change)
        with pytest.raises(errors.UserError, match=words):
            static_net.make(changed, 3)
    shapes = {
        dict(tiny_net.NAMES)[path]: torch_match.torch_shape(shape)
        for path, shape in torch_import.sources(0.5)["tiny"].shapes(1).items()
    }
    tensors = {name: np.full(shape, 0.5, np.float32) for name, shape in {**shapes, "fc.weight": (3, 4)}.items()}
    path = tmp_path / "tiny.safetensors"
    safetensors.numpy.save_file(tensors, path)
    assert torch_import.inspect(path)["fits"] == ["tiny"]
    report = torch_import.import_file(path, "tiny", tmp_path / "weights", width=0.5)
    assert len(report.used) == 20 and report.unused == ("fc.weight",)
    config.net.weights = str(tmp_path / "weights")
    started = static_net.start(config.net, static_net.make(config.net, 3), jax.random.key(0))
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(started["params"]["encoder"]))


def test_records_are_found_in_their_order_and_have_names_of_their_own(tmp_path, monkeypatch):
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").touch()
    (room / "helper.py").write_text("NOTHING = 1\n")
    record = "import types\ndef make(name, order): return types.SimpleNamespace(name=name, order=order)\n"
    (room / "first.py").write_text(record + "RECORD = make('z', 0)\n")
    (room / "others.py").write_text(record + "RECORDS = (make('b', 1), make('a', 1))\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(records.find("room")) == ["z", "a", "b"]
    (room / "twice.py").write_text(record + "RECORD = make('a', 2)\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "room"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="room: several records are named a"):
        records.find("room")
