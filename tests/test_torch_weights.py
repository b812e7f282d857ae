"""Import of PyTorch weights: exact names, strict reports, clear refusals; nothing in a file is ever run."""

import collections
import functools
import hashlib
import json
import os
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.nets import static_net
from dvsnas_jax.nets.weights import torch_files, torch_import, weights_folder

# sha256 of the sorted lines "name shape" (counters left out) of the published files: torchvision's and those of the
# Python packages without their heads, the authors' with 11 classes. That of RefineNet on ResNet-101 follows from the
# two for its parts.
PUBLISHED = {
    "mobilenet_v2": "a41c6dfa5eaa5531",
    "resnet18": "804c0cdcc273681a",
    "resnet50": "6f8d71cd701134f7",
    "resnet101": "fa435ed251f75f52",
    "efficientnet_lite0": "f3cff1f9dc9e468f",
    "efficientnet_lite1": "72d63d38f83cbbac",
    "efficientnet_lite2": "9c90464a251fcc2e",
    "refinenet_mobilenet_v2": "14eaea6fa283968b",
    "refinenet_resnet50": "c29227050dc5bde7",
}
NET, WIDTH = "mobilenet_v2", 0.25


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 3:  # depthwise
        return (shape[2], 1, *shape[:2])
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


@functools.cache
def _published_shapes(net: str, width: float = 1.0, classes: int = 11) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file for a network."""
    source = torch_import.sources(width)[net]
    return {source.names[path]: _torch_shape(shape) for path, shape in source.shapes(classes).items()}


@pytest.mark.parametrize("net", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(net):
    lines = sorted(f"{name} {list(shape)}" for name, shape in _published_shapes(net).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == PUBLISHED[net]


@pytest.mark.parametrize("net", torch_import.sources())
def test_every_weight_has_one_name(net):
    shapes = _published_shapes(net)
    source = torch_import.sources()[net]
    names = source.names
    assert len(set(names.values())) == len(names) == len(shapes)
    config = config_lib.defaults().net
    config.update(source.settings)
    paths = weights_folder.flatten(static_net.shapes(static_net.make(config, 11)))
    if not source.is_whole:
        paths = {path: leaf for path, leaf in paths.items() if path.split("/")[1] == "encoder"}
    assert names.keys() == paths.keys()


@pytest.fixture(name="state", scope="module")
def _state() -> dict[str, np.ndarray]:
    """A classifier's state dict with its head and counters."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in _published_shapes(NET, WIDTH).items():
        values = rng.normal(size=shape).astype(np.float32)
        state[name] = np.abs(values) if name.endswith("running_var") else values
    state["features.0.1.num_batches_tracked"] = np.array(7)
    state["classifier.1.weight"] = np.full((3, 4), np.nan, np.float32)  # of no use here, so of no harm
    return state


def _save(path, state: dict[str, np.ndarray]):
    safetensors.numpy.save_file(state, path)
    return path


def _import(path, output, **options):
    return torch_import.import_file(path, NET, output, width=WIDTH, **options)


def _config(folder, **changes):
    config = config_lib.defaults().net
    config.update(
        {**torch_import.sources(WIDTH)[NET].settings, "weights": str(folder), "decoder_channels": 4, **changes}
    )
    return config


def test_import_reports_and_the_config_starts_from_it(state, tmp_path):
    report = _import(_save(tmp_path / "w.safetensors", state), tmp_path / "out")
    assert sorted((*report.used, *report.unused)) == sorted(state) and len(report.unused) == 2
    assert not (report.missing or report.left_over or report.other_shape)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    config = _config(tmp_path / "out")
    net = static_net.make(config, 5)
    variables = static_net.start(config, net, jax.random.key(0))
    drawn = static_net.init(net, jax.random.key(0))
    flat, first = weights_folder.flatten(variables), weights_folder.flatten(drawn)
    kernel = state["features.2.conv.1.0.weight"]  # depthwise of the second block
    np.testing.assert_array_equal(flat["params/encoder/layer3_0/depthwise/kernel"], kernel[:, 0].transpose(1, 2, 0))
    kernel = state["features.1.conv.1.weight"]  # the first block has no expansion: this is its projection
    np.testing.assert_array_equal(flat["params/encoder/layer2_0/project/kernel"][0, 0], kernel[:, :, 0, 0].T)
    np.testing.assert_array_equal(flat["batch_stats/encoder/layer1/var"], state["features.0.1.running_var"])
    for name in flat:
        is_same = np.array_equal(flat[name], first[name])
        assert is_same == (name.split("/")[1] != "encoder"), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("features.3.conv.2.weight"), "1 missing .features.3.conv.2.weight"),
        (lambda s: s.update(extra=np.zeros(3, np.float32)), "1 left over .extra"),
        (lambda s: s.update({"features.0.0.weight": s["features.0.0.weight"].T.copy()}), "1 of another shape"),
        (lambda s: s.update({"features.0.1.bias": s["features.0.1.bias"].astype(np.int32)}), "wrong type .*int32"),
        (lambda s: s["features.0.1.bias"].__setitem__(0, np.nan), "not all finite"),
        (lambda s: s.update({"features.0.1.bias": np.full(8, 1e300)}), "not all finite in float32"),
        (lambda s: s["features.0.1.running_var"].__setitem__(0, -1.0), "negative variance"),
        (lambda s: s.clear(), "missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, words, state, tmp_path):
    changed = {name: value.copy() for name, value in state.items()}
    change(changed)
    path = _save(tmp_path / "w.safetensors", changed)
    with pytest.raises(errors.UserError, match=words) as caught:
        _import(path, tmp_path / "out")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()
    if "finite" in words or "type" in words or "variance" in words:  # wrong numbers are wrong with --partial, too
        with pytest.raises(errors.UserError, match=words):
            _import(path, tmp_path / "out", is_partial=True)


def test_partial_takes_what_fits(state, tmp_path):
    changed = {**state, "extra": np.zeros(3, np.float32), "features.0.0.weight": state["features.0.0.weight"].T.copy()}
    del changed["features.3.conv.2.weight"]
    report = _import(_save(tmp_path / "w.safetensors", changed), tmp_path / "out", is_partial=True)
    assert report.missing == ("features.3.conv.2.weight",) and report.left_over == ("extra",)
    assert report.other_shape == {"features.0.0.weight": ((3, 3, 3, 8), (8, 3, 3, 3))}
    config = _config(tmp_path / "out")
    net = static_net.make(config, 5)
    flat = weights_folder.flatten(static_net.start(config, net, jax.random.key(0)))
    drawn = weights_folder.flatten(static_net.init(net, jax.random.key(0)))
    for path in ("params/encoder/layer1/kernel", "params/encoder/layer3_1/project/kernel"):
        np.testing.assert_array_equal(flat[path], drawn[path])
    with pytest.raises(errors.UserError, match="not one tensor"):
        _import(_save(tmp_path / "x.safetensors", {"a": np.zeros(2)}), tmp_path / "none", is_partial=True)


def test_another_network_does_not_take_the_folder(state, tmp_path):
    folder = tmp_path / "out"
    _import(_save(tmp_path / "w.safetensors", state), folder)

    def start(**changes):
        config = _config(folder, **changes)
        static_net.start(config, static_net.make(config, 5), jax.random.key(0))

    for changes in ({"width": 0.5}, {"encoder": "resnet18"}, {"expand_first": True}):
        with pytest.raises(errors.UserError, match=f"net.{next(iter(changes))}"):
            start(**changes)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "net": {}}))
    with pytest.raises(errors.UserError, match="encoder/layer.* is .* not"):  # found by the shapes, too
        start(width=0.5)
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-5])
    with pytest.raises(errors.UserError, match="not a whole safetensors file"):
        start()
    (folder / "manifest.json").unlink()
    with pytest.raises(errors.UserError, match="weights import"):
        start()


# Files of torch.save, written here by hand: the tests of the reader need no PyTorch.


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _tensor(key: str, value: np.ndarray, *, size: int | None = None, strides: tuple[int, ...] | None = None) -> bytes:
    """The opcodes of a float tensor."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu")
    storage += _number(value.size if size is None else size) + b"tQ"
    steps = tuple(step // value.itemsize for step in value.strides) if strides is None else strides
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + _number(0)
        + _numbers(value.shape)
        + _numbers(steps)
        + hooks
        + b"tR"
    )


def _dict(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(_text(name) + item for name, item in items.items()) + b"u"


def _pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def _zip(path, body: bytes, storages: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", _pickled(body))
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def _legacy(path, body: bytes, storages: dict[str, bytes]):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}]
    with open(path, "wb") as out:
        for item in head:
            pickle.dump(item, out, protocol=2)
        out.write(_pickled(body))
        pickle.dump(list(storages), out, protocol=2)
        for data in storages.values():
            out.write(struct.pack("<q", len(data) // 4) + data)
    return path


VALUE = np.arange(6, dtype=np.float32).reshape(2, 3)
WRITERS = {"zip": _zip, "legacy": _legacy}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_torch_save_are_read(kind, tmp_path):
    transposed = _tensor("0", VALUE.T)
    body = _dict({"module.a": _tensor("0", VALUE), "module.b": transposed})
    _, found = torch_files.read(WRITERS[kind](tmp_path / "w.pth", body, {"0": VALUE.tobytes()}))
    np.testing.assert_array_equal(found["a"], VALUE)
    np.testing.assert_array_equal(found["b"], VALUE.T)
    checkpoint = _dict({"epoch": _number(3), "state_dict": body, "best": b"G" + struct.pack(">d", 0.5)})
    _, found = torch_files.read(WRITERS[kind](tmp_path / "c.pth", checkpoint, {"0": VALUE.tobytes()}))
    np.testing.assert_array_equal(found["a"], VALUE)


ATTACKS = {
    "reduce": b"cos\nsystem\n(" + _text("touch {}") + b"tR",
    "builtins": b"cbuiltins\neval\n(" + _text("open({!r}, 'w')") + b"tR",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + _text("touch {}") + b"tR",
    "inst": b"(" + _text("touch {}") + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + _text("touch {}") + b"o",
    "newobj": b"cos\nsystem\n" + _text("touch {}") + b"\x85\x81",
    "getattr": b"c__builtin__\ngetattr\n(ctorch._utils\n_rebuild_tensor_v2\n" + _text("__globals__") + b"tR",
    "torch_itself": b"ctorch.hub\nload\n(" + _text("touch {}") + b"tR",
    "build": b"ctorch._utils\n_rebuild_tensor_v2\n}(" + _text("__code__") + b"Nub",
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_tries_to_run_code_is_refused_and_nothing_runs(kind, attack, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    witness = tmp_path / "ran"
    body = ATTACKS[attack]
    for text in ("touch {}", "open({!r}, 'w')"):
        body = body.replace(_text(text), _text(text.format(str(witness))))
    body = _dict({"a": _tensor("0", VALUE), "b": body})
    path = WRITERS[kind](tmp_path / "w.pth", body, {"0": VALUE.tobytes()})
    with pytest.raises(errors.UserError, match="refused") as caught:
        torch_files.read(path)
    assert "\n" not in str(caught.value)
    assert not ran and not witness.exists()


def test_attacks_are_real(tmp_path):
    """The plain unpickler does run one of them: the files above are no duds."""
    witness = tmp_path / "ran"
    pickle.loads(_pickled(ATTACKS["reduce"].replace(_text("touch {}"), _text(f"touch {witness}"))))
    assert witness.exists()


BROKEN = {
    "a missing storage": (_tensor("1", VALUE), "missing|storages"),
    "too long a view": (_tensor("0", VALUE, strides=(3, 9)), "reaches out"),
    "a negative stride": (_tensor("0", VALUE, strides=(3, -1)), "count"),
    "a huge tensor of few numbers": (_tensor("0", np.broadcast_to(np.float32(1), (2000, 2000)), size=6), "larger than"),
    "another size": (_tensor("0", VALUE, size=5), "cut off|another size"),
    "no tensor": (_text("hello"), "no state dict"),
    "two sizes of a storage": (_dict({"a": _tensor("0", VALUE), "b": _tensor("0", VALUE, size=5)}), "two types"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("fault", BROKEN)
def test_inconsistent_files_are_refused(kind, fault, tmp_path):
    body, words = BROKEN[fault]
    path = WRITERS[kind](tmp_path / "w.pth", _dict({"a": body}), {"0": VALUE.tobytes()})
    with pytest.raises(errors.UserError, match=words):
        torch_files.read(path)


@pytest.mark.parametrize("kind", [*WRITERS, "safetensors"])
def test_files_cut_off_anywhere_are_refused(kind, tmp_path):
    path = tmp_path / "w"
    if kind == "safetensors":
        _save(path, {"a": VALUE})
    else:
        WRITERS[kind](path, _dict({"a": _tensor("0", VALUE)}), {"0": VALUE.tobytes()})
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(errors.UserError):
            torch_files.read(path)


def test_flipped_bytes_never_raise_anything_but_a_refusal(tmp_path):
    rng = np.random.default_rng(0)
    for kind, write in WRITERS.items():
        data = write(tmp_path / "w", _dict({"a": _tensor("0", VALUE)}), {"0": VALUE.tobytes()}).read_bytes()
        for trial in range(300):
            changed = bytearray(data)
            for position in rng.integers(0, len(data), 1 + trial % 4):
                changed[position] = rng.integers(256)
            (tmp_path / "x").write_bytes(changed)
            try:
                _, found = torch_files.read(tmp_path / "x")
            except errors.UserError:
                continue
            assert all(isinstance(value, np.ndarray) for value in found.values()), kind


def test_other_files_are_refused(tmp_path):
    compressed = _zip(
        tmp_path / "z", _dict({"a": _tensor("0", VALUE)}), {"0": VALUE.tobytes()}, compression=zipfile.ZIP_DEFLATED
    )
    (tmp_path / "text").write_text("hello, this is no file of weights")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "program", "w") as archive:
        archive.writestr("m/data.pkl", _pickled(b"}"))
        archive.writestr("m/constants.pkl", _pickled(b"}"))
    expected = {"z": "compressed", "text": "neither", "pickle": "not one of torch.save", "program": "TorchScript"}
    for name, words in expected.items():
        with pytest.raises(errors.UserError, match=words):
            torch_files.read(tmp_path / name)
    with pytest.raises(errors.UserError, match="cannot be read"):
        torch_files.read(tmp_path / "absent")
    assert compressed.exists()


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `parity`)")
    base = torch.arange(24.0).reshape(4, 6)
    state = collections.OrderedDict(
        a=base, view=base[1:3, ::2], half=base.half(), brain=base.bfloat16(), double=base.double(),
        scalar=torch.tensor(5), empty=torch.zeros(0, 3), parameter=torch.nn.Parameter(base.t().contiguous()),
    )  # fmt: skip
    state._metadata = {"": {"version": 1}}
    for is_zip in (True, False):
        torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
        _, found = torch_files.read(tmp_path / "w.pth")
        assert found.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(found[name].astype(np.float64), value.detach().double().numpy(), err_msg=name)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        record = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
        torch.save(record, tmp_path / "c.pth", _use_new_zipfile_serialization=is_zip)
        _, found = torch_files.read(tmp_path / "c.pth")
        np.testing.assert_array_equal(found["weight"], model.weight.detach().numpy())
        torch.save(model, tmp_path / "m.pth", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(errors.UserError, match="torch.nn.modules.linear.Linear"):
            torch_files.read(tmp_path / "m.pth")


def test_commands(state, tmp_path, capsys):
    path = str(_save(tmp_path / "w.safetensors", state))
    words = ["weights", "import", path, f"--net={NET}", f"--width={WIDTH}", f"--output={tmp_path / 'out'}"]
    assert cli.main(words) == errors.EXIT_DONE
    shown = capsys.readouterr().out
    assert f"used: {len(state) - 2} tensors" in shown and "--config.net.expand_first=False" in shown
    assert cli.main(["weights", "inspect", path]) == errors.EXIT_DONE
    shown = capsys.readouterr().out
    assert "features.0.0.weight  [8, 3, 3, 3]  float32" in shown and "fits --net: mobilenet_v2" in shown
    assert "not finite: classifier.1.weight" in shown
    assert cli.main(["weights", "inspect", path, "--json"]) == errors.EXIT_DONE
    assert json.loads(capsys.readouterr().out)["fits"] == ["mobilenet_v2"]
    for wrong in ([*words[:3], "--net=vgg", words[-1]], [*words[:3], "--net=resnet18", words[-1]]):
        assert cli.main(wrong) == errors.EXIT_USER
        assert len(capsys.readouterr().err.splitlines()) == 1
