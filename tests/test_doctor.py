"""The command doctor: what works, what is broken, and what it says to do."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.bench import doctor
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.data import datasets


@pytest.fixture(autouse=True)
def _no_datasets(monkeypatch):
    for dataset in datasets.on_disk().values():
        monkeypatch.delenv(dataset.on_disk.variable, raising=False)


@pytest.fixture
def camvid(tmp_path):
    """Three training frames and a validation frame in the SegNet layout."""
    for split, numbers in (("train", (30, 60, 90)), ("val", (120,))):
        for folder, shape in ((split, (8, 12, 3)), (f"{split}annot", (8, 12))):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            for number in numbers:
                image = Image.fromarray(np.zeros(shape, np.uint8))
                image.save(tmp_path / "camvid" / folder / f"0001TP_{number:06d}.png")
    return tmp_path / "camvid"


def test_self_test_computes():
    found = doctor.self_test()
    assert found.status == doctor.OK
    assert np.log(11) - 1 < found.values["loss"] < np.log(11) + 2 and found.values["gradient_norm"] > 0
    assert 0 < found.values["step_s"] < found.values["first_s"]


def test_self_test_sees_wrong_numbers(monkeypatch):
    monkeypatch.setattr(doctor.losses, "cross_entropy", lambda logits, labels: (0 * logits.sum() / 0, 1))
    found = doctor.self_test()
    assert found.status == doctor.BROKEN and "nan" in found.found and "JAX_PLATFORMS=cpu" in found.advice


def test_versions_and_devices_are_those_of_the_process():
    found = doctor.versions()
    assert found.status == doctor.OK and found.values["jax"] == jax.__version__ and found.values["av"]
    found = doctor.devices()
    assert found.status == doctor.OK and found.values["backend"] == jax.default_backend()
    assert len(found.values["devices"]) == jax.device_count()


def test_a_missing_package_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("jax", "no-such-package"))
    found = doctor.versions()
    assert found.status == doctor.BROKEN and found.found.startswith("missing: no-such-package; jax ")
    assert "pip install" in found.advice


def test_little_memory_is_a_note(monkeypatch):
    assert doctor.memory().values["host_total"] > doctor.memory().values["host_available"] > 0
    monkeypatch.setattr(doctor, "_LOW_MEMORY", 1 << 60)
    assert doctor.memory().status == doctor.NOTE and "close other programs" in doctor.memory().advice


def test_missing_tensorflow_matters_where_it_is_needed(monkeypatch):
    doctor.tf_loader.tensorflow.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert doctor.tensorflow(is_needed=False).status == doctor.NOTE
    found = doctor.tensorflow(is_needed=True)
    assert found.status == doctor.BROKEN and "data.loader to 'numpy'" in found.advice


@pytest.fixture
def cache_setting():
    """The compile cache of the process, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda path: jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_compilation_cache_dir", before)


def test_compile_cache(cache_setting, tmp_path):
    cache_setting(str(tmp_path / "new"))
    assert doctor.compile_cache().values == {"path": str(tmp_path / "new"), "files": 0, "bytes": 0}
    (tmp_path / "new" / "a").write_bytes(bytes(3000))
    found = doctor.compile_cache()
    assert found.status == doctor.OK and found.values["bytes"] == 3000 and "1 files, 3 KiB, writable" in found.found
    cache_setting(str(tmp_path / "new" / "a"))
    found = doctor.compile_cache()
    assert found.status == doctor.BROKEN and "JAX_COMPILATION_CACHE_DIR" in found.advice
    cache_setting(None)
    assert doctor.compile_cache().status == doctor.NOTE


def test_dataset_of_the_environment(camvid, monkeypatch):
    assert doctor.dataset("camvid") == doctor.Check("camvid", doctor.NOTE, "DVSNAS_CAMVID is not set")
    monkeypatch.setenv("DVSNAS_CAMVID", str(camvid))
    found = doctor.dataset("camvid")
    assert found.status == doctor.OK and found.values["layout"] == "camvid_segnet"
    counts = {"train": {"frames": 3, "labelled": 3}, "val": {"frames": 1, "labelled": 1}}
    assert found.values["splits"] == counts
    (camvid / "val" / "0001TP_000120.png").unlink()
    (camvid / "valannot" / "0001TP_000120.png").unlink()
    found = doctor.dataset("camvid")
    assert found.status == doctor.BROKEN and f"dvsnas data check {camvid}" in found.advice
    monkeypatch.setenv("DVSNAS_CAMVID", str(camvid / "nowhere"))
    found = doctor.dataset("camvid")
    assert found.status == doctor.BROKEN and "nowhere" in found.found and "DVSNAS_CAMVID" in found.advice


def test_needs_of_a_config(camvid):
    fine = list(doctor.needs(config_lib.load(None, {})))
    assert [(check.name, check.status) for check in fine] == [("config: data", doctor.OK)]
    overrides = {"data.name": "camvid", "data.dir": str(camvid), "net.weights": str(camvid / "nothing")}
    data, weights = doctor.needs(config_lib.load(None, overrides))
    assert data.status == doctor.OK and data.found == "camvid: train 3 frames, val 1 frames"
    assert weights.status == doctor.BROKEN and "dvsnas weights import" in weights.advice
    overrides = {"net.weights": "imagenet", "net.encoder": "resnet18"}
    _, weights = doctor.needs(config_lib.load(None, overrides))
    assert weights.status == doctor.BROKEN and "net.encoder=resnet18" in weights.found
    assert "dvsnas weights import" in weights.advice
    (data,) = doctor.needs(config_lib.load(None, {"data.name": "camvid", "data.dir": str(camvid / "gone")}))
    assert data.status == doctor.BROKEN and "gone" in data.found


def test_exit_code_and_output(monkeypatch, capsys):
    checks = [doctor.Check("a", doctor.OK, "fine", values={"x": 1}), doctor.Check("long", doctor.NOTE, "hm", "look")]
    monkeypatch.setattr(doctor, "run", lambda config: checks)
    assert cli.main(["doctor"]) == errors.EXIT_DONE
    assert capsys.readouterr().out.splitlines() == [
        "ok      a     fine", "note    long  hm", "", "long: look", "everything needed works",
    ]  # fmt: skip
    checks.append(doctor.Check("b", doctor.BROKEN, "not there", "install it"))
    assert cli.main(["doctor", "--json"]) == errors.EXIT_FAULT
    found = json.loads(capsys.readouterr().out)
    assert found["is_fine"] is False and [check["status"] for check in found["checks"]] == ["ok", "note", "broken"]
    assert found["checks"][0]["values"] == {"x": 1} and found["checks"][2]["advice"] == "install it"


def test_the_command_on_this_machine(capsys):
    """Everything for real, with a config that is wanted."""
    root = pathlib.Path(__file__).resolve().parents[1]
    assert cli.main(["doctor", "--json", f"--config={root / 'configs' / 'smoke.py'}"]) == errors.EXIT_DONE
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    names = ["python", "versions", "devices", "memory", "tensorflow", "compile cache", "camvid", "cityscapes"]
    assert list(found) == [*names, "config: data", "self-test"]
    assert found["tensorflow"]["values"]["visible"] == []
