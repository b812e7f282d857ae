"""Traced programs kept for the next start: the same labels, no run is read again, made anew when one changes."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trained
from PIL import Image

import dvsnas_jax
from dvsnas_jax import cli
from dvsnas_jax.commands import common
from dvsnas_jax.core.files import workdir
from dvsnas_jax.deploy import kept_programs, run_model
from dvsnas_jax.train import winners

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", name="keep_in")
def _keep_in(tmp_path_factory):
    """Where the programs of the run folder `fixed` are kept."""
    keep_in = tmp_path_factory.mktemp("kept") / "programs"
    dvsnas_jax.load(trained.evaluated("fixed").path, keep_in=keep_in)
    return keep_in


def _places(keep_in):
    return sorted(place.name for place in keep_in.iterdir())


def test_the_next_start_has_the_same_labels_and_imports_neither_flax_nor_orbax(keep_in, tmp_path):
    run = trained.evaluated("fixed")
    np.save(tmp_path / "frames.npy", trained.frames("fixed"))
    code = (
        "import sys, numpy as np\n"
        "for name in ('flax', 'orbax', 'optax', 'ml_collections', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"  # an import of these raises
        "import dvsnas_jax\n"
        f"segmenter = dvsnas_jax.load({str(run.path)!r}, keep_in={str(keep_in)!r})\n"
        f"labels = list(segmenter.segment(np.load({str(tmp_path / 'frames.npy')!r})))\n"
        f"np.save({str(tmp_path / 'labels.npy')!r}, np.stack(labels))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), run.labels[0][1])


def test_they_take_another_interval(keep_in):
    segmenter = dvsnas_jax.load(trained.evaluated("fixed").path, keep_in=keep_in, key_interval=2)
    state, shares = segmenter.init(), []
    for frame in trained.frames("fixed")[:4]:
        state, _ = segmenter.step(state, frame)
        shares.append(segmenter.key_share(state))
    assert shares == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("file", ["weights.safetensors", "compile_effort"])
def test_a_damaged_file_is_made_again(file, keep_in, monkeypatch):
    path, (name,) = trained.evaluated("fixed").path, _places(keep_in)
    place = keep_in / name / file
    whole = place.read_bytes()
    place.unlink()
    if file != "compile_effort":
        place.write_bytes(b"torn")
    dvsnas_jax.load(path, keep_in=keep_in)
    assert place.read_bytes() == whole
    monkeypatch.setattr(run_model, "read", None)  # and then it is whole
    dvsnas_jax.load(path, keep_in=keep_in)


def test_other_weights_and_another_genotype_have_programs_of_their_own(tmp_path):
    path, keep_in = trained.write(tmp_path / "run", "refine"), tmp_path / "kept"
    names, frames = [], trained.frames("refine")
    labels = []
    for change in (lambda: None, lambda: _retrain(path), lambda: (path / winners.BEST).unlink()):
        change()
        segmenter = dvsnas_jax.load(path, keep_in=keep_in)
        names.append(set(_places(keep_in)))
        labels.append(np.stack(list(segmenter.segment(frames))))
        np.testing.assert_array_equal(labels[-1], np.stack(list(dvsnas_jax.load(path).segment(frames))))
    assert [len(found) for found in names] == [1, 2, 3]
    assert (labels[0] != labels[1]).any() and not segmenter.has_cell


def _retrain(path):
    """Corrections of the other sign: other labels, from files of the same names."""
    folder = workdir.Workdir(path)
    config = folder.config()
    _, params, space, genotype = winners.load(config, folder)
    params["ports"]["head"]["kernel"] = -params["ports"]["head"]["kernel"]
    winners.save(folder, space, genotype, params)
    folder.close()


def test_what_was_used_longest_ago_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_programs, "MOST", 2)
    keep_in, runs = tmp_path / "kept", [trained.write(tmp_path / str(number), "refine") for number in range(3)]
    dvsnas_jax.load(runs[0], keep_in=keep_in)
    (first,) = _places(keep_in)
    dvsnas_jax.load(runs[1], keep_in=keep_in)
    for number, name in enumerate([first, *(set(_places(keep_in)) - {first})]):
        os.utime(keep_in / name, (number, number))
    dvsnas_jax.load(runs[2], keep_in=keep_in)
    assert len(_places(keep_in)) == 2 and first not in _places(keep_in)


def test_without_a_place_for_them_it_starts_all_the_same(tmp_path):
    run, place = trained.evaluated("refine"), tmp_path / "file"
    place.write_text("")
    segmenter = dvsnas_jax.load(run.path, keep_in=place)
    np.testing.assert_array_equal(np.stack(list(segmenter.segment(trained.frames("refine")))), run.labels[0][1])
    assert place.read_text() == ""


def test_the_command_keeps_them_beside_the_compile_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
    path = tmp_path / "frames"
    path.mkdir()
    for number, frame in enumerate(trained.frames("fixed")[:2]):
        Image.fromarray(frame).save(path / f"{number}.png")

    def masks(name, *words):
        words = ["segment", path, f"--workdir={trained.evaluated('fixed').path}", f"--masks={tmp_path / name}", *words]
        assert cli.main([str(word) for word in words]) == 0
        return [(tmp_path / name / f"{number}.png").read_bytes() for number in range(2)]

    first = masks("first")
    assert len(_places(tmp_path / "cache" / "programs")) == 1
    read = run_model.read
    monkeypatch.setattr(run_model, "read", None)
    assert masks("second") == first
    monkeypatch.setattr(run_model, "read", read)
    monkeypatch.setenv(
        "JAX_ENABLE_COMPILATION_CACHE", "true"
    )  # which the flag changes, and the end of the test restores
    monkeypatch.setattr(kept_programs, "open_folder", None)
    assert masks("third", "--no-compile-cache") == first


@pytest.mark.parametrize(
    "cache, is_on, expected",
    [("/c", "true", "/c/programs"), ("/c", "False", None), ("/c", "0", None), ("", "true", None),
     ("gs://bucket/c", "true", None)],
)  # fmt: skip
def test_they_lie_where_compiled_programs_do_on_this_machine(cache, is_on, expected, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", is_on)
    assert common.programs_folder() == (expected and pathlib.Path(expected))
