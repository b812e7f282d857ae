"""A cell and its static network trained together: the loss by another path, what is kept where, who uses it."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_net
import trained

from dvsnas_jax import cli
from dvsnas_jax.core import compilation, errors, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import whole_videos
from dvsnas_jax.deploy import run_model
from dvsnas_jax.evaluate import evaluation, score_tables
from dvsnas_jax.infer import jitted, programs
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_loss, cell_training, features, joint, losses, optim, pretrain, training_loop, winners


def make_config(kind: str):
    """Of `trained`, smaller still, its cell trained for two steps and then jointly for four."""
    config = trained.make_config(kind)
    config.net.update({"encoder": "tiny", "decoder": "tiny", "width": 0.5})
    config.data.update({"height": 16, "width": 32, "crop_height": 16, "crop_width": 32, "num_train_clips": 6})
    config.data.update({"num_frames": 3, "num_val_clips": 1})
    config.pretrain.batch_size = 6
    config.schedule.interval = 2
    config.space.inputs = ("prev_state", "stage1", "image_diff", "decoder" if kind == "refine" else "prev_decoder")
    config.train.update({"steps": 2, "batch_size": 2, "norm_batches": 1, "eval_every": 2, "warmup_steps": 0})
    config.train.update({"joint": 4, "joint_rate": 1.0, "joint_encoder_rate": 0.0, "joint_control": True})
    config.train.checkpoint_every = 3
    return config


def always_better():
    """In place of the score: every one is above those before, so the last step is kept."""
    numbers = itertools.count()
    return lambda *_: lambda shares: float(next(numbers))


class StopAfter:
    """In place of a signal: it arrives after the n-th question."""

    def __init__(self, left: int) -> None:
        self.left = left

    def is_due(self, done: int, every: int) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(scope="module", autouse=True)
def _net():
    with tiny_net.added():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Config and folder of a run whose joint training was kept, by the function of the command."""
    path = trained.write(tmp_path_factory.mktemp("run") / "run", "refine", make_config("refine"))
    genotype = path.parent / "genotype.json"
    (path / winners.BEST).rename(genotype)  # the folder has a static network alone
    folder = workdir.Workdir(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "make_score", always_better())
        cell_training.run(folder.config(), folder, str(genotype))
    return folder.config(), folder


def own_of(config, folder):
    winner = winners.read(folder)
    return joint.restore(config, folder, winner.digest)


def test_what_is_trained_and_what_stays(run) -> None:
    config, folder = run
    before, own, longer = pretrain.restore(config, folder), own_of(config, folder), joint.restore(config, folder, None)
    for found in (own, longer):
        jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], before["batch_stats"])
        is_same = jax.tree.map(np.array_equal, found["params"], before["params"])
        assert all(jax.tree.leaves(is_same["encoder"]))  # at rate 0
        assert not any(jax.tree.leaves(is_same["classifier"]))
    assert not np.array_equal(own["params"]["classifier"]["bias"], longer["params"]["classifier"]["bias"])
    stages = {line["stage"]: line["step"] for line in folder.read("metrics.jsonl")}
    digest = winners.read(folder).digest
    assert stages[f"joint_{digest}"] == stages[f"joint_{digest}_val"] == stages["static_longer_val"] == 4
    _, params, _, _ = winners.load(config, folder)
    assert {"mean", "var"} <= set(params["ports"]["output"]["norm"])


def test_the_winner_runs_on_its_own_network_everywhere(run) -> None:
    config, folder = run
    model, _ = run_model.read(config, folder)
    own = own_of(config, folder)
    jax.tree.map(np.testing.assert_array_equal, model.variables, own)
    result = evaluation.run(config, folder)
    frames = whole_videos.find(config.data, "val")[0]
    cell, params, _, _ = winners.load(config, folder)
    settings, counts = features.settings_of(config), {}
    for name, variables in (
        ("static", pretrain.restore(config, folder)),
        ("joint_static", own),
        ("static_longer", joint.restore(config, folder, None)),
    ):
        alone = jitted.Jitted(programs.model_of(config, settings, variables))
        counts[name] = (alone.segment(frames.frames).static == frames.labels).sum()
    joined = jitted.Jitted(programs.model_of(config, settings, own, cell, params))
    counts["cell"] = (joined.segment(frames.frames).cell == frames.labels).sum()
    is_labelled = (frames.labels != types.IGNORE).sum()
    for name, count in counts.items():
        assert result[name]["accuracy"] == pytest.approx(count / is_labelled, abs=1e-3), name
    table = score_tables.summary(result)
    assert "static, trained with cell" in table and "static, as many more steps" in table
    exported = run_model.open_folder(folder.path)[1]
    np.testing.assert_array_equal(exported.segment(frames.frames).cell, joined.segment(frames.frames).cell)


@pytest.mark.parametrize("kind", ["refine", "fixed"])
def test_the_loss_and_its_gradients_are_those_of_running_the_video(tmp_path, kind: str) -> None:
    """Propagate: key frames by the whole network, the others by the first stage and the cell alone, as later."""
    config = config_lib.changed(make_config(kind), {"train.joint_encoder_rate": "0.5", "train.joint_static": "0.7"})
    space, settings = features.space_of(config), features.settings_of(config)
    genotype = genotype_lib.random(space, np.random.default_rng(1), 1)[0]
    cell = cell_lib.make(space, genotype, settings)
    net = static_net.make(config.net, settings.num_classes)
    variables = static_net.init(net, jax.random.key(0))
    cell_params = compilation.jit_once(cell.init)(jax.random.key(1))
    for name in ("head", "motion"):  # they start at zero
        kernel = cell_params["ports"][name]["kernel"]
        drawn = np.random.default_rng(2).normal(size=kernel.shape).astype(np.float32)
        cell_params["ports"][name]["kernel"] = 0.1 * drawn
    folder = workdir.Workdir(tmp_path)
    parts = joint._parts(config, variables, features.needed_maps(space, config), folder, cell)
    clip = next(joint._clips(parts.config, 0))
    assert clip.frames.shape == (2, 3, 16, 32, 3)
    stats, labels = variables["batch_stats"], np.asarray(clip.labels).swapaxes(0, 1)
    params = {**variables["params"], "cell": cell_params}
    loss = cell_loss.make(config, config.train.label_stride, None)

    def by_hand(params):
        static = {"params": {k: v for k, v in params.items() if k != "cell"}, "batch_stats": stats}
        every = static_net.infer(net, static, clip.frames.swapaxes(0, 1).reshape(-1, *clip.frames.shape[2:]))
        whole = [jax.tree.map(lambda x, t=t: x[2 * t : 2 * t + 2], every) for t in range(3)]
        state, logits = cell.initial_state(whole[0]), []
        for t in range(3):
            if kind == "refine":
                state, found = cell.step(params["cell"], state, whole[t])
            elif t % 2 == 0:
                state = cell.restart(params["cell"], state, whole[t])
                found = state.logits
            else:
                cheap = static_net.infer(net, static, clip.frames[:, t], "stage1")
                state = cell.advance(params["cell"], state, cheap)
                found = state.logits
            logits.append(found)
        own = loss(jnp.stack(logits), jnp.asarray(labels), jnp.stack([each.logits for each in whole]))
        thin = jnp.asarray(labels.reshape(-1, *labels.shape[2:])[:, 1::2, 1::2])
        assert config.train.label_stride == 2
        return own + 0.7 * losses.cross_entropy(every.logits, thin)[0]

    with compilation.effort("quick"):
        wanted, wanted_grads = jax.jit(jax.value_and_grad(by_hand))(params)
        loss_fn = joint._make_loss(parts)
        found, grads = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, parts.fixed, clip)[0]))(params)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    norm = np.sqrt(sum((np.asarray(each) ** 2).sum() for each in jax.tree.leaves(wanted_grads)))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5 * norm)
    assert all(np.abs(each).sum() > 0 for each in jax.tree.leaves(grads["encoder"])[:3])


def test_a_stopped_training_ends_as_one_that_was_not(run, tmp_path, monkeypatch) -> None:
    config, folder = run
    again = workdir.Workdir(trained.write(tmp_path / "run", "refine", make_config("refine")))
    _, _, space, genotype = winners.load(config, again)
    digest = genotype_lib.digest(space, genotype)
    stage = f"retrain_{digest}"  # the cell before: from the checkpoint of its training
    cell = cell_lib.make(space, genotype, features.settings_of(config))
    state = training_loop.start_kept(cell_training.init(cell, optim.make(config.train), 0))
    kept = folder.checkpointer(stage).restore(state)
    params = cell_lib.freeze_norm(kept.best, winners.moment_shapes(kept.best))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, params)
    variables = pretrain.restore(config, again)
    monkeypatch.setattr(training_loop, "make_score", always_better())
    with compilation.effort("quick"):
        with pytest.raises(errors.Stopped):
            joint.run(config, variables, (space, genotype), params, again, StopAfter(3))
        assert joint.restore(config, again, digest) is None
        found = joint.run(config, variables, (space, genotype), params, again, signals.StopFlag())
    jax.tree.map(np.testing.assert_array_equal, found.variables, own_of(config, folder))
    _, wanted, _, _ = winners.load(config, folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted)


def test_without_a_gain_everything_stays(run, tmp_path, monkeypatch, capsys) -> None:
    config, _ = run
    folder = workdir.Workdir(trained.write(tmp_path / "run", "refine", make_config("refine")))
    _, params, space, genotype = winners.load(config, folder)
    variables = pretrain.restore(config, folder)
    monkeypatch.setattr(training_loop, "make_score", lambda *_: lambda shares: 0.5)
    with compilation.effort("quick"):
        found = joint.run(config, variables, (space, genotype), params, folder, signals.StopFlag())
    assert found.variables is None and found.params is params
    assert "train.joint: no gain over the retrained cell, which stays as it is" in capsys.readouterr().err
    assert own_of(config, folder) is None and run_model.others(config, folder) == {}
    off = config_lib.changed(config, {"train.joint": "0", "train.joint_control": "false"})
    assert joint.run(off, variables, (space, genotype), params, folder, signals.StopFlag()).params is params


def test_keys_that_do_not_go_together_are_one_line() -> None:
    with pytest.raises(errors.UserError, match="'train.eval_every': must be above 0 where train.joint is"):
        config_lib.load(None, {"train.joint": "3", "train.eval_every": "0"})
    with pytest.raises(errors.UserError, match="'train.joint': must be above 0 where train.joint_control is true"):
        config_lib.load(None, {"train.joint_control": "true"})


@pytest.mark.slow
def test_a_search_with_folds_and_joint_training(tmp_path) -> None:
    words = ["search", "--config=configs/smoke.py", f"--workdir={tmp_path}", "--config.features.folds=2"]
    words += ["--config.train.final_steps=4", "--config.train.joint=4", "--config.train.joint_control=true"]
    assert cli.main(words) == 0
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["static_longer"]["miou"] > 0
    stages = {json.loads(line)["stage"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()}
    assert {"static_longer", "static_longer_val"} <= stages and any(stage.startswith("joint_") for stage in stages)
    assert any(stage.endswith("_final") for stage in stages) and (tmp_path / "folds" / "1" / "checkpoints").is_dir()
