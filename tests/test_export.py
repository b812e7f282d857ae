"""The exported folder: the labels of the run with JAX alone, any batch, each platform, and what is refused."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax.export
import numpy as np
import pytest
import trained
from PIL import Image

import dvsnas_jax
from dvsnas_jax import cli
from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data.loading import whole_videos
from dvsnas_jax.deploy import export
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.infer import artifact, programs

ROOT = pathlib.Path(__file__).parents[1]
LEARNED = ("adaptive", "regions")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a kind: an evaluated run and what the command exports of it; made when it is asked for."""
    path, made = tmp_path_factory.mktemp("export"), {}

    def get(kind):
        if kind not in made:
            run = trained.evaluated(kind)
            assert cli.main(["export", f"--workdir={run.path}", f"--output={path / kind}"]) == 0
            made[kind] = run, path / kind
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["refine", "fixed", *(pytest.param(x, marks=pytest.mark.slow) for x in LEARNED)])
def test_artefact_and_evaluate_give_the_same_labels_and_scores(folders, kind):
    run, out = folders(kind)
    config, seen = workdir.Workdir(run.path).config(), []
    with compilation.effort("quick"):
        result = evaluation.run_exported(config, out, watch_fn=lambda *given: seen.append(np.stack(given[2:])))
    np.testing.assert_array_equal(seen, run.labels)
    for part in ("static", "cell"):
        assert result[part] == run.result[part]
    assert result["sequences"] == run.result["sequences"]
    assert json.loads((out / "evaluation_synthetic_val.json").read_text()) == result
    shares = [row["cell"]["key_share"] for row in result["sequences"]]
    if kind in LEARNED:
        assert all(1 / 6 < share < 1 for share in shares)
    else:
        assert shares == pytest.approx([1.0 if kind == "refine" else 1 / 3] * 2)
    theirs, ours = dvsnas_jax.load(out), dvsnas_jax.load(run.path)
    assert (theirs.size, theirs.classes, theirs.mode) == (ours.size, ours.classes, ours.mode)
    np.testing.assert_array_equal(theirs.colors, ours.colors)


def test_states_of_later_frames_compile_nothing_again(folders):
    with compilation.effort("quick"):
        model = artifact.open_folder(folders("fixed")[1])
        state = model.initial_state()
        for frame in trained.frames("fixed")[:5]:  # a key frame, two others, a key frame, another
            state, _ = model.step(state, frame[None])
        made = {name: model._programs[name]._fn._cache_size() for name in ("key", "other")}
    assert made == {"key": 1, "other": 1}


def test_it_runs_with_jax_alone(folders, tmp_path):
    run, out = folders("refine")
    np.save(tmp_path / "frames.npy", trained.frames("refine"))
    blocked = ("flax", "optax", "orbax", "chex", "ml_collections", "tensorflow", "tensorflow_datasets", "tensorboardX")
    code = (
        "import sys, numpy as np\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"  # an import of these raises
        "import dvsnas_jax\n"
        f"segmenter = dvsnas_jax.load({str(out)!r})\n"
        f"labels = list(segmenter.segment(np.load({str(tmp_path / 'frames.npy')!r})))\n"
        f"np.save({str(tmp_path / 'labels.npy')!r}, np.stack(labels))\n"
        "ours = {name for name in sys.modules if name.startswith('dvsnas_jax.')}\n"
        "assert not {name for name in ours if name.split('.')[1] not in ('core', 'run')}, ours\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), run.labels[0][1])


def test_any_number_of_videos_at_a_time(folders):
    run, out = folders("refine")
    videos = whole_videos.find(trained.make_config("refine").data, "val")
    model = artifact.open_folder(out)
    state = model.initial_state(2)
    for index in range(3):
        with compilation.effort("quick"):
            state, labels = model.step(state, np.stack([video.frames[index] for video in videos]))
        expected = np.stack([video[1][index] for video in run.labels])
        assert (np.asarray(labels) == expected).mean() > 0.999  # another shape, another order of sums


def test_the_interval_can_be_changed(folders):
    out = folders("fixed")[1]
    segmenter = dvsnas_jax.load(out, key_interval=1)
    state = segmenter.init()
    for frame in trained.frames("fixed")[:2]:
        with compilation.effort("quick"):
            state, _ = segmenter.step(state, frame)
        assert segmenter.key_share(state) == 1.0
    with pytest.raises(errors.UserError, match="must be at least 1"):
        dvsnas_jax.load(out, key_interval=0)
    with pytest.raises(errors.UserError, match="mode refine has no key frames"):
        dvsnas_jax.load(folders("refine")[1], key_interval=2)


def test_accelerators_have_their_own_variant_of_the_same_program(folders):
    run, out = folders("refine")
    stored = {}
    for target, platforms in artifact.TARGETS.items():
        data = (out / artifact.program_file("static", target)).read_bytes()
        stored[target] = jax.export.deserialize(bytearray(data))
        assert stored[target].platforms == platforms and str(stored[target].in_avals[-1].shape[0]) == "b"
    texts = [stored[target].mlir_module() for target in ("cpu", "accelerator")]
    assert texts[0].count("stablehlo.convolution") != texts[1].count("stablehlo.convolution")
    folder = workdir.Workdir(run.path)
    program = programs.make(export.open_run(folder.config(), folder)[0])["static"]
    weights = [np.asarray(value) for value in export.flatten(program.weights).values()]
    made = export.exported(program, "accelerator", ("cpu",))
    with compilation.effort("quick"):
        labels = compilation.jit(made.call)(weights, trained.frames("refine"))
    assert (np.asarray(labels) == run.labels[0][0]).mean() > 0.999


@pytest.mark.slow
def test_weights_can_be_baked_in_where_another_export_was_interrupted(folders, tmp_path):
    run, earlier = folders("fixed")
    out = shutil.copytree(earlier, tmp_path / "baked")
    (out / artifact.MANIFEST).unlink()
    assert cli.main(["export", f"--workdir={run.path}", f"--output={out}", "--bake"]) == 0
    assert not (out / artifact.TENSORS).exists()
    labels = list(dvsnas_jax.load(out).segment(trained.frames("fixed")))
    assert (np.stack(labels) == run.labels[0][1]).mean() > 0.999  # constants are folded


def test_the_manifest_says_what_there_is(folders):
    run, out = folders("fixed")
    manifest = json.loads((out / artifact.MANIFEST).read_text())
    assert manifest["genotype"]["layers"] == json.loads((run.path / "best_genotype.json").read_text())["layers"]
    assert manifest["schedule"]["kind"] == "fixed" and manifest["schedule"]["interval"] == 4
    assert manifest["size"] == [34, 70] and len(manifest["classes"]) == len(manifest["colors"]) == 11
    assert manifest["ids"] == list(range(11)) and manifest["trained_on"] == "synthetic"
    assert manifest["normalisation"]["mean"] == [0.485, 0.456, 0.406] and manifest["net"]["encoder"] == "resnet18"
    assert set(manifest["files"]) == {path.name for path in out.iterdir() if path.suffix != ".json"}
    assert set(manifest["programs"]) == {"static", "key", "other"}
    # A frame that is no key frame reads the weights of the first stage alone.
    assert len(manifest["programs"]["other"]["weights"]) < len(manifest["programs"]["key"]["weights"]) / 2


def test_an_exported_folder_knows_the_ids_of_its_masks_and_an_old_one_has_the_plain_ones(folders, tmp_path):
    _, out = folders("fixed")
    shutil.copytree(out, tmp_path / "new")
    where = tmp_path / "new" / artifact.MANIFEST
    manifest = json.loads(where.read_text())
    where.write_text(json.dumps({**manifest, "ids": list(range(20, 31)), "trained_on": "folder d"}))
    found = dvsnas_jax.load(tmp_path / "new")
    assert found.ids.tolist() == list(range(20, 31)) and found.trained_on == "folder d"
    where.write_text(json.dumps({key: manifest[key] for key in manifest if key not in ("ids", "trained_on")}))
    found = dvsnas_jax.load(tmp_path / "new")
    assert found.ids.tolist() == list(range(11)) and found.trained_on == ""


def _damage(out, kind):
    program, manifest = out / "static.accelerator.jax", out / artifact.MANIFEST
    values = json.loads(manifest.read_text())
    if kind == "tampered":
        program.write_bytes(program.read_bytes()[:-1] + b"x")
        return
    if kind == "missing":
        program.unlink()
        return
    if kind == "weights":
        (out / artifact.TENSORS).write_bytes(b"")
        return
    changes = {
        "version": {"version": 99},
        "format": {"format": "other"},
        "type": {"state": []},
        "outside": {"files": {"../x": ""}},
    }
    text = json.dumps(values | changes[kind]) if kind in changes else manifest.read_text()[:-20]
    manifest.write_text(text)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("tampered", "static.accelerator.jax: is not what was exported"),
        ("missing", "static.accelerator.jax: cannot be read"),
        ("weights", "weights.safetensors: is not what was exported"),
        ("version", "format version 99, this program reads 1"),
        ("format", "is no manifest"),
        ("type", "state is missing or of the wrong type"),
        ("outside", "names '../x', which is no file of this folder"),
        ("torn", "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folders, tmp_path, kind, text):
    out = shutil.copytree(folders("refine")[1], tmp_path / "out")
    _damage(out, kind)
    with pytest.raises(errors.UserError) as caught:
        dvsnas_jax.load(out)
    assert text in str(caught.value) and str(out) in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_exported_is_refused(folders, tmp_path, capsys):
    run, _ = folders("refine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own.txt").write_text("mine")
    for words, text in (
        ([f"--workdir={tmp_path}", f"--output={tmp_path / 'x'}"], "holds no run"),
        ([f"--workdir={run.path}", f"--output={tmp_path / 'full'}"], "not empty"),
    ):
        assert cli.main(["export", *words]) == 2
        assert text in capsys.readouterr().err
    assert (tmp_path / "full" / "own.txt").read_text() == "mine" and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refine", "fixed", "adaptive"])
def test_tensorflow_and_tensorflow_lite_give_the_labels_of_the_run(folders, tmp_path, kind):
    run, _ = folders(kind)
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={run.path}", f"--output={out}", "--savedmodel", "--tflite"]) == 0
    np.save(tmp_path / "frames.npy", trained.frames(kind))
    script = ROOT / "tests" / "tensorflow_labels.py"
    command = [sys.executable, script, out, tmp_path / "frames.npy", tmp_path / "labels.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = json.loads((out / artifact.MANIFEST).read_text())["programs"].keys() | {export.SERVING}
    assert set(json.loads(done.stdout.splitlines()[-1])) == names
    found = np.load(tmp_path / "labels.npz")
    assert set(found) >= {"signature", "converted", "own"} and ("function" in found or kind == "adaptive")
    for way, labels in found.items():  # another version of XLA, another order of sums
        assert (labels == run.labels[0][1]).mean() > 0.999, way


def _onnx_labels(out, frames):
    """Labels of the ONNX files as the manifest describes them, the state fed back."""
    runtime = pytest.importorskip("onnxruntime")
    manifest = json.loads((out / artifact.MANIFEST).read_text())
    sessions = {
        file: runtime.InferenceSession(str(out / "onnx" / file), providers=["CPUExecutionProvider"])
        for file in manifest["onnx"]
    }
    state, labels = {}, []
    for name, spec in manifest["state"].items():
        state[f"state_{name}"] = np.full((1, *spec["shape"]), spec["fill"], spec["dtype"])
    for frame in frames:
        file = "step.onnx"
        if manifest["schedule"] is not None:
            age = state["state_age"]
            is_key = (age < 0).any() or (age + 1 >= manifest["schedule"]["interval"]).any()
            file = "key.onnx" if is_key else "other.onnx"
        names = [entry["name"] for entry in manifest["onnx"][file]["outputs"]]
        found = dict(zip(names, sessions[file].run(names, {**state, "frame": frame[None]}), strict=True))
        state = {name: found[f"next_{name}"] for name in state}
        labels.append(found["labels"][0])
    return np.stack(labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refine", "fixed"])
def test_onnx_files_give_the_labels_of_the_run_on_real_frames_too(folders, tmp_path, kind):
    pytest.importorskip("jax2onnx")
    run, out = folders(kind)[0], tmp_path / "out"
    assert cli.main(["export", f"--workdir={run.path}", f"--output={out}", "--onnx"]) == 0
    assert (_onnx_labels(out, trained.frames(kind)) == run.labels[0][1]).mean() > 0.999  # another order of sums
    camvid = os.environ.get("DVSNAS_CAMVID")
    if not camvid:
        pytest.skip("the rest needs CamVid in DVSNAS_CAMVID")
    paths = sorted(pathlib.Path(camvid, "val").glob("*.png"))[:6]
    height, width = trained.SIZE
    frames = np.stack([np.asarray(Image.open(path).convert("RGB").resize((width, height))) for path in paths])
    expected = np.stack(list(dvsnas_jax.load(run.path).segment(frames)))
    assert (_onnx_labels(out, frames) == expected).mean() > 0.999


@pytest.mark.parametrize(
    "flag, package", [("--onnx", "jax2onnx"), ("--savedmodel", "tensorflow"), ("--tflite", "tensorflow")]
)
def test_a_failed_export_leaves_the_earlier_one_and_no_other(folders, tmp_path, capsys, monkeypatch, flag, package):
    run, earlier = folders("refine")
    out = shutil.copytree(earlier, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    monkeypatch.setitem(sys.modules, package, None)  # an import of it raises
    monkeypatch.setattr(export, "exported", lambda *given, **named: _Serialised())
    assert cli.main(["export", f"--workdir={run.path}", f"--output={out}", flag]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert flag in told and f"pip install {package}" in told
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


class _Serialised:
    """In place of a program that nobody reads."""

    def serialize(self):
        return b""

    def call(self, *args):
        raise AssertionError


@pytest.mark.slow
def test_from_the_start_to_the_first_labels(folders, tmp_path, capsys):
    """Of fresh processes, the second with JAX's compile cache, which has to help."""
    run, out = folders("refine")
    code = (
        "import time\n"
        "start = time.perf_counter()\n"
        "import sys, numpy as np, dvsnas_jax\n"
        "segmenter = dvsnas_jax.load(sys.argv[1])\n"
        "np.asarray(segmenter.step(segmenter.init(), np.zeros((*segmenter.size, 3), np.uint8))[1])\n"
        "print(time.perf_counter() - start, time.process_time())\n"
    )
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    for name, path in (("run folder", run.path), ("exported folder", out)):
        command, times = [sys.executable, "-c", code, str(path)], []
        for _ in range(2):
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, **cache}, stdout=subprocess.PIPE, check=True)
            times.append([float(text) for text in done.stdout.split()])
        with capsys.disabled():
            print(f"\nstart to first labels, {name}: {times[0][0]:.1f} s, then {times[1][0]:.1f} s")
        assert times[1][1] < times[0][1]  # of the processor, which others may keep waiting
