"""Features as those of clips that the network never saw (`features.folds`), for cells to learn from.

A network's output on what it was trained on is better than on anything else, and a cell that learns from it expects too
much of it later. So several networks are trained from one start, each without one part of the meta-training clips, and
make the features of that part (cross-fitting; stacked generalization, Wolpert, Neural Networks 5, 1992). The run's own
network makes those of the meta-validation clips, on which it was not trained either.
"""

from __future__ import annotations

import sys
import time

import ml_collections
import numpy as np

from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed, signals
from dvsnas_jax.data.loading import held_out
from dvsnas_jax.train import features, pretrain

FOLDER = "folds"
"""Of a run folder: `folds/N` has the checkpoints and the metrics of the network of fold N, from 0 on."""


def is_on(config: ml_collections.ConfigDict) -> bool:
    """Whether cells learn from the features of such networks."""
    return bool(config.features.folds > 1)


def split(config: ml_collections.ConfigDict) -> list[held_out.Split]:
    """Of each fold, the clips to train its network on and those whose features it makes; [] where it is off.

    Raises:
      UserError: there are too few clips for so many folds.
    """
    if not is_on(config):
        return []
    training, _ = pretrain.split_clips(config)
    sequences, numbers, reach = pretrain.targets(config)
    return held_out.in_folds(sequences, numbers, training, config.features.folds, reach=reach)


def run(config: ml_collections.ConfigDict, folder: workdir.Workdir, stop: signals.StopFlag) -> features.Networks:
    """The static networks of a run: its own and those of the folds, trained, or restored where they are already.

    All start alike and have the same loss, class weights included. What those of the folds will cost is said before.

    Raises:
      UserError: as `split`.
    """
    splits = split(config)
    before, start = pretrain.num_done(folder), time.perf_counter()
    final = pretrain.run(config, folder, stop)
    seconds, num_steps = time.perf_counter() - start, config.pretrain.steps - before
    if not splits:
        return features.Networks(final)
    folders = [workdir.Workdir(folder.path / FOLDER / str(fold)) for fold in range(len(splits))]
    left = [config.pretrain.steps - min(pretrain.num_done(each), config.pretrain.steps) for each in folders]
    if sum(left):
        _note(_price(config, left, seconds / num_steps if num_steps > 0 else None))
    variables, fold_of = [], np.full(len(pretrain.targets(config).numbers), -1)
    for fold, (own, (training, held)) in enumerate(zip(folders, splits, strict=True)):
        fold_of[held] = fold
        if left[fold]:
            what = f"trained on {len(training)} clips, for the features of {len(held)} others"
            _note(f"features.folds: network {fold + 1} of {len(splits)}, {what}")
            own.path.mkdir(parents=True, exist_ok=True)
            if (folder.path / pretrain.CLASS_WEIGHTS).is_file():
                own.write_json(pretrain.CLASS_WEIGHTS, folder.read_json(pretrain.CLASS_WEIGHTS))
            distributed.barrier("class_weights")  # written by one process, read by all
        variables.append(pretrain.run(config, own, stop, training))
    return features.Networks(final, tuple(variables), fold_of)


def _price(config: ml_collections.ConfigDict, left: list[int], seconds: float | None) -> str:
    """What the networks cost that are not trained yet; `seconds` of a step of the run's own, None: not known."""
    time_text = "as much time again as the static network for each"
    if seconds is not None:
        minutes = sum(left) * seconds / 60
        time_text = f"about {minutes:.0f} minutes" if minutes >= 2 else f"about {60 * minutes:.0f} seconds"
        time_text += ", at the rate of the static network of this run"
    num_new = sum(steps > 0 for steps in left)
    return (
        f"features.folds: {num_new} of {len(left)} more static networks are trained now, {sum(left)} optimizer steps "
        f"in all ({config.pretrain.steps} for each network): {time_text}"
    )


def _note(text: str) -> None:
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)
