"""docs/extend.md: its diffs, applied to a copy of the package as they are printed, add what they say."""

import os
import re
import shutil
import subprocess
import sys

import pages
import pytest

PAGE = "docs/extend.md"
DIFFS = pages.blocks(PAGE, "diff")
USED = """
import jax
import numpy as np

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.data import datasets
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell, cost
from dvsnas_jax.space.drawing import draw
from dvsnas_jax.train import features

config = config_lib.load(None, {
    "net.encoder": "plain", "net.decoder": "top_down", "net.decoder_channels": "8", "net.width": "0.125",
    "data.name": "toy", "search.strategy": "climb", "schedule.kind": "worst", "space.mode": "propagate",
    "space.inputs": "prev_state,stage1", "space.num_layers": "1", "space.channels": "4", "space.cut": "stage1",
    "space.operations": "skip,scale", "space.aggregations": "difference",
})
net = static_net.make(config.net, 2)
infer = jax.jit(static_net.infer, static_argnums=0)
found = infer(net, static_net.init(net, jax.random.key(0)), np.zeros((1, 32, 32, 3), np.uint8))
assert found.maps["stage4"].shape == (1, 8, 8, 8) and found.logits.shape == (1, 8, 8, 2)
assert datasets.class_table(config.data).names == ("in", "out")
space, settings = features.space_of(config), features.settings_of(config)
strategy = strategies.make("climb", space, config.controller)
drawn = strategy.sample(strategy.init(jax.random.key(0)), jax.random.key(1), 3).genotypes
assert np.shape(drawn) == (3, 1, 5)
genotype = np.array([[0, 1, 1, 0, 0]], np.int32)
assert draw.text(space, genotype).startswith("layer0 = difference( scale(prev_state), skip(stage1) )")
assert settings.schedule.is_learned and cost.of(space, genotype, settings, (8, 8)).params > 0
assert jax.jit(cell.make(space, genotype, settings).init)(jax.random.key(0))["layers"]
"""


def test_a_kind_is_a_diff_of_one_file_and_of_at_most_40_lines():
    for diff in DIFFS:
        assert len(re.findall(r"^\+\+\+ ", diff.text, re.MULTILINE)) == 1
        assert len(diff.text.splitlines()) <= 40, diff.text


@pytest.mark.skipif(shutil.which("git") is None, reason="no git: nothing to apply a diff with")
def test_the_diffs_add_what_they_say(tmp_path):
    for name in ("dvsnas_jax", "tests"):
        ignored = shutil.ignore_patterns("golden")
        shutil.copytree(pages.ROOT / name, tmp_path / name, ignore=ignored)
    for diff in DIFFS:
        done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff.text, capture_output=True, text=True)
        assert done.returncode == 0, f"{PAGE}:{diff.line}: {done.stderr}"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USED], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
