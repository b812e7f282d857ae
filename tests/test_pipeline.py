"""The whole path on tiny clips: every stage, the run folder, resuming, and what is refused."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import pipeline as clips_lib
from dvsnas_jax.evaluate import metrics
from dvsnas_jax.infer import jitted, programs
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import clip_scores, features, pretrain, winners

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = str(ROOT / "configs" / "smoke.py")
TINY = [
    "--config.data.height=32",
    "--config.data.width=48",
    "--config.data.crop_height=32",
    "--config.data.crop_width=48",
    "--config.net.encoder=resnet18",
    "--config.net.width=0.125",
    "--config.net.decoder_channels=8",
    "--config.space.channels=4",
    "--config.derive.num_rewarded=1",
    "--config.derive.num_probable=1",
    "--config.search.reward=gain",
    "--config.train.keep_by=reward",
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run") / "smoke"
    assert cli.main(["search", f"--config={SMOKE}", f"--workdir={folder}", *TINY]) == 0
    return folder


def load(folder: pathlib.Path):
    overrides = dict(word.removeprefix("--config.").split("=") for word in TINY)
    return config_lib.load(SMOKE, overrides), workdir.Workdir(folder)


def test_run_folder_is_complete(run_folder: pathlib.Path) -> None:
    names = ["config.json", "environment.json", "genotypes.jsonl", "metrics.jsonl", "best_genotype.json"]
    for name in [*names, "evaluation.json", "report.html", "figures/reward.svg", "figures/cell.png"]:
        assert (run_folder / name).stat().st_size > 0, name
    config, folder = load(run_folder)
    records = folder.read("genotypes.jsonl")
    num_searched = config.search.steps * config.search.genotypes_per_step
    assert [r["source"] for r in records] == ["ppo"] * num_searched + ["random"] * config.search.num_random
    assert all(r["status"] == "ok" and 0 <= r["reward"] < 1 for r in records)  # 0: no change followed
    bases = set()
    for each in records:  # of the same clips, so of the same baseline
        accuracy = (each["miou"] * each["fwiou"] * each["class_accuracy"]) ** (1 / 3)
        bases.add(round((accuracy - each["gain"]) / (1 - each["gain"]), 9))
        soft = (each["gain"] + np.hypot(each["gain"], 0.01)) / 2
        assert each["reward"] == pytest.approx(np.sqrt(soft * each["change_f1"])) and 0 <= each["followed"] < 1
    assert len(bases) == 1
    stages = {r["stage"] for r in folder.read("metrics.jsonl")}
    assert {"pretrain", "pretrain_val", "warmup", "search"} <= stages


def test_the_report_counts_the_parameters(run_folder: pathlib.Path) -> None:
    config, folder = load(run_folder)
    _, cell, _, _ = winners.load(config, folder)
    trees = pretrain.restore(config, folder)["params"], cell
    is_trained = [[path[-1].key not in ("mean", "var") for path, _ in jax.tree.leaves_with_path(t)] for t in trees]
    sizes = [[np.size(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees]
    static, more = (np.dot(*pair) for pair in zip(sizes, is_trained, strict=True))
    row = f"<td>{static / 1e3:.1f}</td><td>{(static + more) / 1e3:.1f}</td>"
    assert f"<th scope=row>parameters, thousands</th>{row}" in (run_folder / "report.html").read_text()


def test_the_winner_is_one_of_the_candidates_and_has_its_numbers(run_folder: pathlib.Path) -> None:
    config, folder = load(run_folder)
    best = json.loads((run_folder / "best_genotype.json").read_text())
    assert all(0 <= best["scores"][name] < 1 for name in ("reward", "shared_reward", "static_reward"))
    cell, params, space, genotype = winners.load(config, folder)
    space_of_run = features.space_of(config)
    found = genotype_lib.from_dict(best["found"], space_of_run)[1]
    assert canonical.of(space, genotype) == canonical.of(space_of_run, found)  # what was dead is not in it
    assert all("mean" in node for node in _norms(params)) and len(_norms(params)) > 0


def _norms(tree) -> list[dict]:
    if not isinstance(tree, dict):
        return []
    return [tree] if "scale" in tree else [norm for value in tree.values() for norm in _norms(value)]


def test_segmenting_by_chunks_equals_frame_by_frame(run_folder: pathlib.Path) -> None:
    config, folder = load(run_folder)
    variables = pretrain.restore(config, folder)
    cell, params, _, _ = winners.load(config, folder)
    model = jitted.Jitted(programs.model_of(config, features.settings_of(config), variables, cell, params))
    frames = np.random.default_rng(0).integers(0, 255, (19, 32, 48, 3), np.uint8)  # more than one chunk of 16
    static, labels, _ = model.segment(frames)
    assert static.shape == labels.shape == (19, 32, 48)
    state = model.initial_state()
    equal = []
    for index, frame in enumerate(frames):
        assert (np.asarray(model.static_step(frame[None]))[0] == static[index]).mean() > 0.999
        state, one = model.step(state, frame[None])
        equal.append((np.asarray(one)[0] == labels[index]).mean())
    assert min(equal) > 0.999  # arg-max ties may fall either way


def test_validation_by_batches_equals_counting_all_frames_at_once(run_folder: pathlib.Path) -> None:
    config, folder = load(run_folder)
    variables = pretrain.restore(config, folder)
    clips = np.arange(20)  # more than one batch of 16
    whole = clips_lib.load_clips(config.data, split="train", num_frames=config.data.num_frames, indices=clips)
    parts = [np.asarray(part.logits) for part in features.make_forward(config)(variables, whole.frames[:, -1])]
    found = jax.jit(static_net.predict, static_argnums=1)(np.concatenate(parts)[:20], whole.labels.shape[-2:])
    counts = jax.jit(metrics.confusion, static_argnums=2)(whole.labels[:, -1], found, 11)
    expected = metrics.scores(np.asarray(counts))["miou"]
    assert pretrain.make_validate(config, clips)(variables) == pytest.approx(expected, abs=1e-9)


def test_evaluate_repeats_the_numbers_and_static_on_clean_is_beside_them(run_folder: pathlib.Path) -> None:
    first = json.loads((run_folder / "evaluation.json").read_text())
    assert first["static_clean"]["miou"] > 0 and first["commonest_class"]["flicker"] == 0
    assert cli.main(["evaluate", f"--config={SMOKE}", f"--workdir={run_folder}", *TINY]) == 0
    again = json.loads((run_folder / "evaluation.json").read_text())
    assert again == first


def test_a_finished_run_is_left_as_it_is(run_folder: pathlib.Path) -> None:
    before = (run_folder / "genotypes.jsonl").read_bytes()
    assert cli.main(["search", f"--config={SMOKE}", f"--workdir={run_folder}", *TINY]) == 0
    assert (run_folder / "genotypes.jsonl").read_bytes() == before


def test_train_takes_the_genotype_of_another_run(run_folder: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(run_folder / "checkpoints" / "pretrain", folder / "checkpoints" / "pretrain")
    genotype = run_folder / "best_genotype.json"
    words = ["train", f"--config={SMOKE}", f"--workdir={folder}", f"--genotype={genotype}", *TINY]
    assert cli.main(words) == 0
    layers = [json.loads(path.read_text())["layers"] for path in (folder / "best_genotype.json", genotype)]
    assert layers[0] == layers[1]
    words = ["evaluate", f"--config={SMOKE}", f"--workdir={folder}", *TINY, "--config.evaluate.split=test"]
    capsys.readouterr()
    assert cli.main(words) == 0
    result = json.loads((folder / "evaluation_test.json").read_text())
    table = capsys.readouterr().out.splitlines()
    assert table[0].split(";")[0] == "test, 20 frames" and f"{100 * result['cell']['miou']:.1f}" in table[3].split()


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    messages = [line for line in lines if line.startswith("dvsnas: error:")]
    assert len(messages) == 1 and lines[-1] == messages[0]
    return messages[0]


def test_another_config_does_not_touch_the_folder(run_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", f"--config={SMOKE}", f"--workdir={run_folder}", *TINY, "--config.search.steps=9"]
    assert "search.steps" in refused(capsys, words)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda text: text[:-20], "not JSON"),
        (lambda text: text.replace('"layers"', '"layer"'), "layers"),
        (lambda text: text.replace('"agg": "', '"agg": "x', 1), "field agg: unknown name"),
        (lambda text: text.replace('"in": ["', '"in": ["layer1", "', 1), "needs 2"),
    ],
)
def test_broken_genotype_files(run_folder, tmp_path, capsys, edit, expected) -> None:
    text = json.dumps(json.loads((run_folder / "best_genotype.json").read_text()))
    path = tmp_path / "broken.json"
    path.write_text(edit(text))
    for words in (
        ["show", str(path)],
        ["train", f"--config={SMOKE}", f"--workdir={tmp_path / 'new'}", f"--genotype={path}", *TINY],
    ):
        message = refused(capsys, words)
        assert "broken.json" in message and expected in message
    assert not (tmp_path / "new").exists()


def test_missing_dataset_says_the_layout(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", f"--config={ROOT / 'configs' / 'camvid_small.py'}", f"--workdir={tmp_path / 'run'}"]
    message = refused(capsys, [*words, f"--config.data.dir={tmp_path / 'nowhere'}"])
    assert "nowhere" in message and "{train,val,test}annot" in message
    assert not (tmp_path / "run").exists()


def test_evaluate_of_a_folder_without_a_cell(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, ["evaluate", f"--config={SMOKE}", f"--workdir={tmp_path}", *TINY])
    assert "holds no run (no config.json); give the --workdir of one" in message and not list(tmp_path.iterdir())


def test_evaluation_batches_cover_every_clip_once() -> None:
    section = config_lib.load(None, {"search.reward_clips": "6", "search.batch_size": "4"}).search
    groups = clip_scores.batches(10, section)
    assert groups.shape == (2, 2, 4)
    assert sorted(groups[groups >= 0].tolist()) == list(range(10)) and (groups < 0).sum() == 6


def test_split_is_disjoint_and_whole() -> None:
    meta_train, meta_val = pretrain.split_clips(config_lib.load(None, {"data.num_train_clips": "50"}))
    assert len(meta_val) == 5
    assert sorted([*meta_train.tolist(), *meta_val.tolist()]) == list(range(50))


def start(folder: pathlib.Path, command: str = "search") -> subprocess.Popen:
    words = [sys.executable, "-m", "dvsnas_jax", command, f"--config={SMOKE}", f"--workdir={folder}", *TINY]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(words, cwd=ROOT, env=os.environ.copy(), **quiet)


def wait_for(folder: pathlib.Path, process: subprocess.Popen, stage: str) -> None:
    """Until a stage has begun, or the process has ended."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        log = folder / "metrics.jsonl"
        if any((folder / "checkpoints").glob(f"{stage}*")) or (log.is_file() and f'"{stage}"' in log.read_text()):
            return
        time.sleep(0.05)


def test_sigterm_saves_and_exits_with_75_and_goes_on(run_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stopped"
    process = start(path, "train")
    wait_for(path, process, "pretrain")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 75
    config, whole = load(run_folder)
    with workdir.Workdir(path).hold():
        found = pretrain.run(config, workdir.Workdir(path), signals.StopFlag())
    jax.tree.map(np.testing.assert_array_equal, found, pretrain.restore(config, whole))


@pytest.mark.slow
def test_killed_at_random_moments_ends_in_the_same_result(run_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "killed"
    rng = random.Random(0)
    for stage in ("pretrain", "warmup", "search", "retrain", "cell"):
        process = start(folder)
        if stage != "retrain":
            wait_for(folder, process, stage)
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.wait()
    assert start(folder).wait(timeout=400) == 0
    for name in ("genotypes.jsonl", "best_genotype.json"):
        assert (folder / name).read_bytes() == (run_folder / name).read_bytes(), name
    config, whole = load(run_folder)
    _, expected, _, _ = winners.load(config, whole)
    _, params, _, _ = winners.load(config, workdir.Workdir(folder))
    for want, got in zip(_leaves(expected), _leaves(params), strict=True):
        np.testing.assert_array_equal(want, got)


def _leaves(tree) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
