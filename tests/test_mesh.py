"""The mesh: a step gives the same on any spread of genotypes and parts over devices; what devices tell each other."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core import mesh as mesh_lib

TESTS = pathlib.Path(__file__).resolve().parent


def on_eight_devices(case: str, folder: pathlib.Path) -> dict:
    """Runs `mesh_worker.py` where there are 8 virtual devices."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(TESTS.parent),
    }
    output = folder / "found.json"
    command = [sys.executable, str(TESTS / "mesh_worker.py"), case, str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


def assert_same(one: dict, other: dict) -> None:
    """Integers exactly; sums of floats in another order within 1e-5 of the largest, later losses within 1e-4."""
    assert [one[key] for key in ("counts", "flicker", "changes", "is_finite")] == [
        other[key] for key in ("counts", "flicker", "changes", "is_finite")
    ]
    assert other["losses"][0] == pytest.approx(one["losses"][0], rel=1e-6)
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert other["norm"] == pytest.approx(one["norm"], rel=1e-5)
    largest = np.abs(one["gradient"]).max()
    assert largest > 0
    np.testing.assert_allclose(other["gradient"], one["gradient"], atol=1e-5 * largest)


def check_collectives(found: dict, *, has_arch: bool, has_data: bool) -> None:
    """One all-reduce adds up all gradients; none of anything in a loop or a branch."""
    assert found["train"] == [["all-reduce", True]]
    kinds = {kind for kind, _ in found["evaluate"]}
    assert kinds == ({"all-gather"} if has_arch else set()) | ({"all-reduce"} if has_data else set())
    assert all(is_entry for _, is_entry in found["evaluate"])
    assert sum(kind == "all-reduce" for kind, _ in found["evaluate"]) == has_data


def check_spreads(spreads: list[tuple[int, int, str]], parts: int, genotypes: int, folder: pathlib.Path) -> None:
    cases = [[1, 1, parts, genotypes, "replicated"], *([arch, data, parts, genotypes, s] for arch, data, s in spreads)]
    one, *others = on_eight_devices(json.dumps(cases), folder).values()
    assert len(others) == len(spreads)
    assert one["losses"][2] < one["losses"][0]
    for (arch, data, _), other in zip(spreads, others, strict=True):
        assert_same(one, other)
        check_collectives(other, has_arch=arch > 1, has_data=data > 1)


def test_a_step_does_not_depend_on_the_spread(tmp_path: pathlib.Path) -> None:
    """Both axes at once, a store that is spread, too, and genotypes that do not divide."""
    check_spreads([(4, 2, "by_data")], 2, 3, tmp_path)


@pytest.mark.slow
def test_a_step_does_not_depend_on_the_spread_of_8_genotypes_on_8_devices(tmp_path: pathlib.Path) -> None:
    spreads = [(8, 1, "replicated"), (4, 2, "replicated"), (2, 4, "by_data"), (1, 8, "by_data"), (1, 4, "replicated")]
    check_spreads(spreads, 8, 8, tmp_path)


@pytest.mark.slow
def test_whole_batches_on_2_4_and_8_devices(tmp_path: pathlib.Path) -> None:
    check_spreads([(2, 1, "replicated"), (4, 1, "replicated"), (8, 1, "by_data")], 1, 5, tmp_path)


@pytest.mark.slow
def test_the_static_network_trains_the_same_on_all_devices(tmp_path: pathlib.Path) -> None:
    """Its batch statistics are those of the whole batch."""
    found = on_eight_devices("pretraining", tmp_path)
    for size in (8, 6):
        np.testing.assert_allclose(found[f"{size} 8"], found[f"{size} 1"], rtol=2e-4)
        assert found[f"sharding {size}"] == "True"
    assert found["places"] == {"8": list(range(8)), "6": [0, 3]}


@pytest.mark.parametrize(
    "num_devices, num_parts, sizes, expected",
    [
        (8, 1, (8, 8), 1),  # nothing to share
        (8, 8, (8, 8), 1),  # every device has a genotype
        (8, 8, (1, 8), 8),  # training has one genotype: 8 devices share its batch
        (8, 4, (2, 4), 4),
        (8, 8, (2, 4), 4),  # either way one device has all, 4 slices leave 2 for genotypes
        (6, 4, (1, 1), 2),
        (1, 4, (1, 1), 1),
    ],
)
def test_the_mesh_leaves_least_to_do_one_after_the_other(num_devices, num_parts, sizes, expected) -> None:
    assert mesh_lib.best_num_data(num_devices, num_parts, sizes) == expected


def test_a_mesh_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="1 devices do not divide into 2 data slices"):
        mesh_lib.make(2, jax.devices()[:1])
    mesh = mesh_lib.make(1, jax.devices()[:1])
    with pytest.raises(ValueError, match="a batch of 5 clips does not divide into 2 parts"):
        mesh_lib.split_units(mesh, np.zeros((1, 2, 5), np.int32), np.zeros((1, 5), np.int32), 2)


def test_parts_must_divide_the_batch() -> None:
    with pytest.raises(errors.UserError, match=r"search.batch_parts': must divide search.batch_size \(8\), got 3"):
        config_lib.load(None, {"search.batch_parts": "3"})


def test_local_rows_without_a_spread_are_the_rows() -> None:
    rows = np.array([[3, -1]], np.int32)
    assert mesh_lib.local_rows(rows, 2, mesh_lib.REPLICATED) is rows
