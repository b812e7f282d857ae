"""Features of networks that never saw the clip: who trains on what, who makes what, resume, the fit at the end."""

import dataclasses

import compilations
import jax
import numpy as np
import pytest
import tiny_net

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import mesh as mesh_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.data.loading import held_out, pipeline
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import cell_training, feature_store, features, folds, pretrain, training_loop

TINY = {
    **tiny_net.CONFIG,
    "compile_effort": "quick", "data.num_train_clips": "9", "data.num_frames": "2", "data.degrade": "0",
    "data.height": "16", "data.width": "32", "data.crop_height": "16", "data.crop_width": "32",
    "pretrain.steps": "3", "pretrain.batch_size": "4", "pretrain.eval_every": "2", "pretrain.checkpoint_every": "2",
    "pretrain.warmup_steps": "1", "pretrain.class_weights": "log", "features.folds": "3",
    "space.inputs": "decoder,logits", "space.num_layers": "1", "space.channels": "4",
    "space.operations": "skip,conv_1x1", "space.aggregations": "sum",
    "train.steps": "4", "train.batch_size": "2", "train.norm_batches": "1", "train.eval_every": "2",
    "train.warmup_steps": "1", "train.final_steps": "4", "train.final_rate": "0.5",
}  # fmt: skip
NAMES = ("decoder", "image")


# --- the parts ------------------------------------------------------------------------------------------------------


def test_parts_by_hand() -> None:
    """24 clips of one video in 2 folds: two blocks of 6 each, in turn; a clip beside a block shares a frame with it."""
    sequences, numbers = np.zeros(24, int), np.arange(24)
    (training, held), (other_training, other_held) = held_out.in_folds(sequences, numbers, numbers, 2, reach=2)
    assert held.tolist() == [*range(6), *range(12, 18)] and other_held.tolist() == [*range(6, 12), *range(18, 24)]
    assert training.tolist() == [7, 8, 9, 10, 19, 20, 21, 22, 23]
    assert other_training.tolist() == [0, 1, 2, 3, 4, 13, 14, 15, 16]


@pytest.mark.parametrize("seed", range(20))
def test_laws_of_the_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, step = rng.integers(20, 60, rng.integers(1, 5)), int(rng.integers(1, 4))
    sequences = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.concatenate([step * np.arange(size) for size in sizes])
    chosen = np.flatnonzero(rng.random(len(numbers)) < 0.9)  # the others are held out for meta-validation
    num, reach = int(rng.integers(2, 5)), int(rng.integers(0, 4))
    found = held_out.in_folds(sequences, numbers, chosen, num, reach=reach)
    assert len(found) == num
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in found])), chosen)  # each once
    sizes_of = [len(held) for _, held in found]
    assert max(sizes_of) - min(sizes_of) <= 2 * len(sizes)
    for training, held in found:
        assert set(training) <= set(chosen) and not set(training) & set(held)
        left_out = np.setdiff1d(chosen, np.concatenate([training, held]))
        near = (np.abs(numbers[:, None] - numbers[held]) < reach) & (sequences[:, None] == sequences[held])
        assert not near[training].any() and near[left_out].any(axis=1).all()
        # contiguous among the chosen clips: at most two blocks a sequence
        ranks = np.searchsorted(chosen, held)
        assert (np.diff(ranks) > 1).sum() + 1 <= 2 * len(sizes)


def test_too_many_folds_are_one_line() -> None:
    with pytest.raises(errors.UserError, match="features.folds: 4 folds of the 3 clips to train on"):
        held_out.in_folds(np.zeros(3, int), np.arange(3), np.arange(3), 4, reach=0)
    with pytest.raises(errors.UserError, match="lower features.folds"):
        held_out.in_folds(np.zeros(4, int), np.arange(4), np.arange(4), 2, reach=9)
    with pytest.raises(errors.UserError, match="'train.final_steps': must be 0 where features.folds is below 2"):
        config_lib.load(None, {"train.final_steps": "3"})


def test_the_clip_of_every_draw_is_known(monkeypatch) -> None:
    """Against the examples themselves, over several epochs."""
    data = config_lib.load(None, TINY).data
    seen: list[int] = []
    monkeypatch.setattr(
        pipeline, "made", lambda stored, rules, num_frames, batch: seen.extend(e.places[-1] // 2 for e in batch)
    )
    indices = np.array([7, 2, 5])
    batches = pipeline.train_batches(data, batch_size=2, num_frames=2, seed=4, indices=indices)
    for _ in range(5):
        next(batches)
    assert pipeline.clips_of_examples(indices, 4, np.arange(10)).tolist() == seen
    assert set(seen[:3]) == {7, 2, 5}


# --- the networks ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class StopAfter:
    """In place of a signal: it arrives in the n-th step from now on."""

    left: int

    def is_due(self, done: int, every: int) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(scope="module", autouse=True)
def _net():
    with tiny_net.added():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config, run folder, its networks, and the clips that each training was given."""
    folder, given = workdir.Workdir(tmp_path_factory.mktemp("run")), []
    config, load = config_lib.load(None, TINY), pipeline.train_batches

    def train_batches(data, **options):
        given.append(np.asarray(options["indices"]))
        return load(data, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train_batches", train_batches)
        with compilation.effort("quick"):
            networks = folds.run(config, folder, signals.StopFlag())
    return config, folder, networks, given


def test_no_network_saw_the_clips_whose_features_it_makes(trained, capsys) -> None:
    config, folder, networks, (counted, final, *given) = trained
    training, held = pretrain.split_clips(config)
    np.testing.assert_array_equal(final, training)
    np.testing.assert_array_equal(counted, training)  # of the class weights, which all networks share
    assert len(given) == len(networks.folds) == 3
    for fold, clips in enumerate(given):
        own = np.flatnonzero(networks.fold_of == fold)
        assert not set(own) & set(clips) and sorted([*own, *clips]) == training.tolist()
    assert (networks.makers(training) >= 0).all() and (networks.makers(held) == -1).all()
    weights = [workdir.Workdir(folder.path / place).read_json("class_weights.json") for place in (".", "folds/1")]
    assert weights[0] == weights[1]
    # trained already: nothing is trained again, nothing is said, the same come back
    again = folds.run(config, folder, signals.StopFlag())
    assert capsys.readouterr().err == ""
    jax.tree.map(np.testing.assert_array_equal, again, networks)
    first, second = (jax.tree.leaves(each)[0] for each in networks.folds[:2])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("drawn", [0, 8])
@pytest.mark.parametrize("kind", ["device", "disk"])
def test_stores_are_those_of_each_network_by_itself(trained, tmp_path, kind: str, drawn: int) -> None:
    config, _, networks, _ = trained
    training, held = pretrain.split_clips(config)
    place = feature_store.Placement(mesh_lib.make(1, jax.devices()[:1]), 1, kind, "")
    folder = workdir.Workdir(tmp_path)
    for clips in (training, held) if not drawn else (training,):
        wanted = features.Wanted(clips, NAMES, drawn)
        store = features.placed(config, networks, wanted, place, folder)
        found, _ = feature_store.anywhere(store, np.arange(store.num_clips))
        of_rows = pipeline.clips_of_examples(clips, config.seed + 1, np.arange(drawn)) if drawn else clips
        whole = features.draw(config, wanted, 0, len(of_rows))
        for row, clip in enumerate(of_rows):
            fold = networks.fold_of[clip]
            variables = networks.final if clip in held else networks.folds[fold]
            one = features.compute(config, variables, jax.tree.map(lambda x, row=row: x[row : row + 1], whole), NAMES)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
                np.testing.assert_array_equal(np.asarray(a)[row : row + 1], b)
    if kind == "disk":  # a cache of its own beside that of the final network
        before = len(list((tmp_path / "features").iterdir()))
        features.placed(config, networks.alone(), features.Wanted(training, NAMES, drawn), place, folder)
        assert len(list((tmp_path / "features").iterdir())) == before + 1


def test_a_stopped_run_ends_as_one_that_was_not(trained, tmp_path, capsys) -> None:
    config, _, networks, _ = trained
    folder = workdir.Workdir(tmp_path)
    with compilation.effort("quick"):
        with pytest.raises(errors.Stopped):
            folds.run(config, folder, StopAfter(3 + 2 + 2))  # in the network of fold 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("features.folds")]
        assert told[0].startswith("features.folds: 3 of 3 more static networks are trained now, 9 optimizer steps in")
        assert "3 for each network): about" in told[0] and "at the rate of the static network of this run" in told[0]
        assert told[2] == "features.folds: network 2 of 3, trained on 5 clips, for the features of 3 others"
        with compilations.count() as counts:
            found = folds.run(config, folder, signals.StopFlag())
    assert not counts["jit(step)"], "all networks, and one that goes on, take the steps of one program"
    told = capsys.readouterr().err
    assert "2 of 3 more static networks" in told and "5 optimizer steps" in told and "as much time again" in told
    jax.tree.map(np.testing.assert_array_equal, found, networks)


def test_off_is_as_it_was(trained, tmp_path) -> None:
    config, _, networks, _ = trained
    assert config_lib.defaults().features.folds == 0
    for folds_off in ("0", "1"):
        off = config_lib.changed(config, {"features.folds": folds_off, "train.final_steps": "0"})
        assert folds.split(off) == []
    with compilation.effort("quick"):
        alone = folds.run(off, workdir.Workdir(tmp_path), signals.StopFlag())
        direct = pretrain.run(off, workdir.Workdir(tmp_path), signals.StopFlag())
    assert alone.folds == () and not (tmp_path / folds.FOLDER).exists()
    jax.tree.map(np.testing.assert_array_equal, alone.final, direct)
    jax.tree.map(np.testing.assert_array_equal, alone.final, networks.final)  # folds change nothing of the final one
    training, _ = pretrain.split_clips(config)
    wanted = features.build(off, direct, features.select(off, training), NAMES)
    jax.tree.map(
        np.testing.assert_array_equal, features.train_store(off, alone, features.Wanted(training, NAMES)), wanted
    )


def test_the_last_steps_are_on_features_of_the_final_network(trained, tmp_path) -> None:
    config, folder, networks, _ = trained
    space = features.space_of(config)
    genotype = genotype_lib.random(space, np.random.default_rng(0), 1)[0]
    stage = training_loop.Stage.of(config.train, "cell", workdir.Workdir(tmp_path), signals.StopFlag())
    with compilation.effort("quick"):
        material = cell_training.material(config, networks, NAMES, folder)
        found = cell_training.train_cell(config, space, genotype, material, stage)
        without = config_lib.changed(config, {"train.final_steps": "0"})
        before = cell_training.train_cell(without, space, genotype, material, stage)
        # The same by hand: a training of 4 steps at half the rate, from what was kept, on the other features.
        rate = config.train.learning_rate * 0.5
        by_hand = config_lib.changed(without, {"train.learning_rate": str(rate)})
        alone = cell_training.material(by_hand, networks.alone(), NAMES, folder)
        start = cell_lib.without_statistics(before.params)
        other = stage._replace(name="by_hand", folder=workdir.Workdir(tmp_path / "by_hand"))
        other.folder.path.mkdir()
        wanted = cell_training._fit(by_hand, space, genotype, alone, other, start)
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    lines = [line for line in workdir.Workdir(tmp_path).read("metrics.jsonl") if line["stage"] == "cell_final_val"]
    assert [line["step"] for line in lines] == [0, 2, 4] and alone.final_fn is None
    is_same = jax.tree.map(np.array_equal, found.params, before.params)
    assert not all(jax.tree.leaves(is_same))
