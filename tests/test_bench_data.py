"""The benchmark of the input pipeline: what it runs, prints and refuses; the bar on real frames."""

import json
import os

import pytest

from dvsnas_jax import cli
from dvsnas_jax.bench import data_speed
from dvsnas_jax.core import config as config_lib

KEYS = {"frames", "workers", "bare_clips_per_s", "pipeline_clips_per_s", "ratio", "ratio_least", "ratio_greatest"}


def test_figures_of_a_short_run():
    data = config_lib.load(None, {"data.height": "48", "data.width": "64", "data.num_frames": "2"}).data
    result = data_speed.run(data, repeats=3, seconds=0.3, batch_size=2)
    assert set(result) == KEYS and result["frames"] == "camvid, 2 x 48 x 64" and result["workers"] >= 1
    assert result["ratio_least"] <= result["ratio"] <= result["ratio_greatest"]
    assert 0.02 < result["ratio"] < 1.5 and result["bare_clips_per_s"] > result["pipeline_clips_per_s"] * 0.6


def test_the_command_writes_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_speed, "run", lambda data: {"frames": f"{data.name} {data.height}", "ratio": 0.5})
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "data", f"--json={path}", "--config.data.width=320", "--no-compile-cache"]) == 0
    assert json.loads(path.read_text()) == {"frames": "synthetic 360", "ratio": 0.5}
    assert capsys.readouterr().out.splitlines() == ["frames: synthetic 360", "ratio: 0.5000"]


@pytest.mark.parametrize(
    "words, text",
    [
        (["data", "--config.data.loader=numpy"], "measures data.loader 'tf'"),
        (["controller", "--config.seed=1"], "takes no config"),
        (["data", "--config.data.name=camvid", "--config.data.dir=/nowhere"], "/nowhere: no such dataset folder"),
    ],
)
def test_what_is_refused(words, text, capsys):
    assert cli.main(["bench", *words]) == 2
    message = capsys.readouterr().err.strip()
    assert text in message and len(message.splitlines()) == 1


@pytest.mark.slow
def test_the_pipeline_keeps_up_with_decoding_on_real_frames():
    if not os.environ.get("DVSNAS_CAMVID"):
        pytest.skip("DVSNAS_CAMVID names no folder with the real CamVid")
    changes = {"data.name": "camvid", "data.frame_gap": "30"}
    result = data_speed.run(config_lib.load(None, {**data_speed.STANDARD, **changes}).data)
    assert result["ratio"] >= 0.8, result
