"""A static network without a cell: scored by `train`, and usable by every command that reads a run folder."""

import json
import shutil

import numpy as np
import pytest
import trained

import dvsnas_jax
from dvsnas_jax import cli
from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.deploy import segment, segment_outputs
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.report import page as report
from dvsnas_jax.report import run_files
from dvsnas_jax.train import cell_training, pretrain, winners


@pytest.fixture(scope="module", params=["fixed", pytest.param("refine", marks=pytest.mark.slow)])
def alone(request, tmp_path_factory):
    """The run folder of a kind without its cell, and the labels of its network on the first video."""
    path = tmp_path_factory.mktemp("alone") / "run"
    shutil.copytree(trained.evaluated(request.param).path, path)
    for name in (winners.BEST, evaluation.RESULT):
        (path / name).unlink()
    for stage in (path / "checkpoints").glob(f"{winners.STAGE}*"):
        shutil.rmtree(stage)
    return path, trained.evaluated(request.param).labels[0][0], trained.frames(request.param)


def _kind(config):
    return "refine" if config.space.mode == "refine" else "fixed"


def test_it_is_evaluated_without_a_row_that_repeats_it(alone, capsys):
    path, labels, _ = alone
    folder, seen = workdir.Workdir(path), []
    result = evaluation.run(folder.config(), folder, watch_fn=lambda *given: seen.append(given[2:]))
    np.testing.assert_array_equal(seen[0][0], labels)
    np.testing.assert_array_equal(seen[0][1], labels)
    beside_a_cell = trained.evaluated(_kind(folder.config())).result["static"]
    assert result["static"] == {**beside_a_cell, "by_age": None}  # ages are those of a cell's key frames
    assert result["cell"] is None and all(set(row) == {"name", "num_frames", "static"} for row in result["sequences"])
    assert json.loads((path / evaluation.RESULT).read_text()) == result
    page = report.write(path)[-1]
    text = open(page, encoding="utf-8").read()
    assert "mIoU of the network" in text and "mIoU of the cell" not in text and "With the cell" not in text


def test_loaded_and_exported_it_gives_the_labels_of_the_network_on_every_frame(alone, tmp_path):
    path, labels, frames = alone
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={path}", f"--output={out}"]) == 0
    config = workdir.Workdir(path).config()
    for where in (path, out):
        segmenter = dvsnas_jax.load(where)
        assert segmenter.mode == "refine" and not segmenter.has_cell
        with compilation.effort("quick"):
            state = segmenter.init()
            for frame, expected in zip(frames[:3], labels, strict=False):
                state, found = segmenter.step(state, frame)
                np.testing.assert_array_equal(found, expected)
                np.testing.assert_array_equal(segmenter.static_step(frame), expected)
                assert segmenter.key_share(state) == 1.0
        with pytest.raises(errors.UserError, match="mode refine has no key frames"):
            dvsnas_jax.load(where, key_interval=2)
    result = evaluation.run_exported(config, out)
    assert result["cell"] is None and result["static"]["miou"] == pytest.approx(
        trained.evaluated(_kind(config)).result["static"]["miou"], abs=1e-3
    )


def test_a_cell_that_is_made_later_in_the_folder_is_scored_and_shown_beside_the_network(alone, tmp_path):
    """By `train --genotype` or `search`; what was measured without it does not stand for it."""
    path = shutil.copytree(alone[0], tmp_path / "run")
    folder = workdir.Workdir(path)
    config = folder.config()
    trained_run = trained.evaluated(_kind(config))
    network_alone = evaluation.run(config, folder)
    assert network_alone["cell"] is None and network_alone[evaluation.GENOTYPE] is None
    _, params, space, genotype = winners.load(config, workdir.Workdir(trained_run.path))
    assert not winners.is_search_done(folder) and not winners.is_trained(folder, space, genotype)
    winners.save(folder, space, genotype, params)
    assert winners.is_trained(folder, space, genotype)
    data = run_files.Run(path, "run", tmp_path / "figures")
    assert data.scores() == {} and data.arrays(evaluation.STRIP) is None  # of the network alone
    assert "dvsnas evaluate" in open(report.write(path)[-1], encoding="utf-8").read()
    result = evaluation.run(config, folder)
    expected = trained_run.result
    assert (result["static"], result["cell"]) == (expected["static"], expected["cell"])
    assert {**result["static"], "by_age": None} == network_alone["static"]
    assert result[evaluation.GENOTYPE] == expected[evaluation.GENOTYPE]
    data = run_files.Run(path, "run", tmp_path / "figures")
    assert {"static", "cell"} <= data.scores().keys() and "cell" in data.arrays(evaluation.STRIP)
    page = open(report.write(path)[-1], encoding="utf-8").read()
    assert "mIoU of the cell" in page and "mIoU of the network" not in page
    assert dvsnas_jax.load(path).has_cell


def test_two_sides_of_the_same_network_are_refused(alone, tmp_path):
    options = segment_outputs.Options(output=str(tmp_path / "o.mp4"), is_side_by_side=True)
    with pytest.raises(errors.UserError, match="--side-by-side: there is no cell"):
        segment.run(dvsnas_jax.load(alone[0]), None, options)


def test_train_without_a_genotype_prints_the_score(alone, capsys, monkeypatch):
    path = alone[0]
    monkeypatch.setattr(cell_training, "run", lambda *given: {"stages": [pretrain.STAGE], "genotype": None})
    from dvsnas_jax.commands import common

    config = workdir.Workdir(path).config()
    monkeypatch.setattr(common, "load_config", lambda arguments: config)
    assert cli.main(["train", "--config=configs/smoke.py", f"--workdir={path}"]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown and "static network" in shown and "with the cell" not in shown


def test_a_folder_without_a_network_is_still_refused(tmp_path):
    folder = workdir.Workdir(tmp_path / "empty")
    folder.claim(trained.make_config("refine"))
    for call_fn in (
        lambda: dvsnas_jax.load(folder.path),
        lambda: evaluation.run(folder.config(), folder),
    ):
        with pytest.raises(errors.UserError, match="holds no trained static network"):
            call_fn()
