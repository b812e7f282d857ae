"""What each stage of a reproduction does: a command's own function on a run folder of its own, which resumes by itself.

Below the folder of a part, named by its mode:

    search/            static network, searches; their ablation in search/searches/STRATEGY_SEED
    cells/             the comparison of the found cells with the zoo
    without_history/   that of the found cells without history
    static_on/         the static network trained on
    found/             a run folder of the found cell, as `dvsnas train` leaves it

One static network, trained once, is copied to where it is needed.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.evaluate import evaluation
from dvsnas_jax.nets.weights import weights_folder
from dvsnas_jax.space import cell_end, neighbours
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import ablate, ablate_variants, compare, strategies_search
from dvsnas_jax.studies.reproduce import plan, recipes
from dvsnas_jax.train import cell_training, pretrain

SEARCH, CELLS, WITHOUT, STATIC_ON, FOUND = "search", "cells", "without_history", "static_on", "found"
"""Folders of a part."""
_START = "start"


class Work(NamedTuple):
    """The commands that a reproduction consists of; tests put others in their place."""

    static: Callable[[ml_collections.ConfigDict, workdir.Workdir], Any]
    score: Callable[[ml_collections.ConfigDict, workdir.Workdir, str | None], Any]
    weights: Callable[[ml_collections.ConfigDict, workdir.Workdir, pathlib.Path], Any]
    search: Callable[..., Any] = strategies_search.run
    compare: Callable[..., Any] = compare.run
    ablate: Callable[..., Any] = ablate.run


@dataclasses.dataclass(frozen=True)
class Place:
    """A part of a reproduction and where it is kept; `given`: the part before it, whose static networks it takes."""

    recipe: recipes.Recipe
    part: recipes.Part
    configs: recipes.Configs
    path: pathlib.Path
    given: Place | None = None

    def folder(self, name: str) -> workdir.Workdir:
        """One of its run folders."""
        return workdir.Workdir(self.path / name)

    def searched(self, strategy: str, number: int) -> workdir.Workdir:
        """The folder of one search."""
        return workdir.Workdir(self.path / SEARCH / strategies_search.FOLDER / f"{strategy}_{number}")

    def found(self, strategies: Sequence[str]) -> dict[tuple[str, int], pathlib.Path]:
        """(strategy, number of the search) -> the file of the cell that it found, absolute.

        Of the derived cells of a search that were trained from scratch, the one with the highest reward; where all of
        them diverged, the first.
        """
        log = self.folder(SEARCH).read(strategies_search.LOG)
        found = {}
        for strategy in strategies:
            for number in range(self.recipe.num_searches):
                mine = {"what": strategies_search.RETRAIN, "strategy": strategy, "seed": number}
                lines = [line for line in log if mine.items() <= line.items() and line["rank"] < self.recipe.num_top]
                best = max(lines, key=lambda line: (line["reward"] is not None, line["reward"] or 0, -line["rank"]))
                path = self.searched(strategy, number).path / f"derived_{best['rank']}.json"
                found[strategy, number] = pathlib.Path(os.path.abspath(path))
        return found

    def first(self) -> dict[tuple[str, int], pathlib.Path]:
        """What the first strategy found."""
        return self.found(self.recipe.strategies[:1])

    def without_history(self) -> dict[tuple[str, int], pathlib.Path]:
        """The files of the same cells without history, as `_without` writes them."""
        names = {key: f"{WITHOUT}_{key[0]}_{key[1]}.json" for key in self.first()}
        return {key: pathlib.Path(os.path.abspath(self.path / name)) for key, name in names.items()}


def do(kind: str, place: Place, work: Work) -> None:
    """One stage of a part; what its folders hold already is not done again."""
    _DO[kind](place, work)


def _static(place: Place, work: Work) -> None:
    folder = place.folder(SEARCH)
    if place.given is not None:
        share_static(place.given.folder(SEARCH), folder)
    work.static(place.configs.search, folder)


def _search(place: Place, work: Work) -> None:
    recipe = place.recipe
    budget = strategies_search.Budget(recipe.num_searches, recipe.num_top, recipe.num_correlated)
    work.search(place.configs.search, place.folder(SEARCH), recipe.strategies, budget)


def _static_of_cells(place: Place, work: Work) -> None:
    if place.given is not None:
        share_static(place.given.folder(CELLS), place.folder(CELLS))
    work.static(place.configs.cells, place.folder(CELLS))


def _compare(place: Place, work: Work) -> None:
    folder = _with_static(place, CELLS)
    found = dict.fromkeys(map(str, place.found(place.recipe.strategies).values()))
    work.compare(place.configs.cells, folder, [*place.recipe.members, *found], num_seeds=place.recipe.num_seeds)


def _without(place: Place, work: Work) -> None:
    folder = _with_static(place, WITHOUT)
    changed = config_lib.changed(place.configs.cells, {"space.end": cell_end.CLASSIFIER})
    paths = place.without_history()
    for key, path in place.first().items():
        space, genotype = neighbours.without_history(*genotype_lib.read(path))
        workdir.Workdir(place.path).write_json(paths[key].name, genotype_lib.to_dict(space, genotype))
    work.compare(changed, folder, list(map(str, paths.values())), num_seeds=place.recipe.num_seeds)


def _static_on(place: Place, work: Work) -> None:
    """From the trained weights with a schedule of its own, as many steps as a cell is trained."""
    config, folder = place.configs.cells, place.folder(STATIC_ON)
    start = pathlib.Path(os.path.abspath(place.path)) / _START
    if not (start / weights_folder.MANIFEST).is_file():
        work.weights(config, _with_static(place, CELLS), start)
    steps = config.train.steps
    every = {f"pretrain.{key}": str(min(config.pretrain[key], steps)) for key in ("eval_every", "checkpoint_every")}
    warmup = str(min(config.pretrain.warmup_steps, steps // 10))
    own = {"net.weights": str(start), "pretrain.steps": str(steps), "pretrain.warmup_steps": warmup, **every}
    work.score(config_lib.changed(config, own), folder, None)


def _found(place: Place, work: Work) -> None:
    path = next(iter(place.first().values()))
    work.score(place.configs.cells, _with_static(place, FOUND), str(path))


def _ablate(place: Place, work: Work) -> None:
    """Of the first found cell, with the shared weights of its search."""
    (strategy, number), path = next(iter(place.first().items()))
    folder = place.searched(strategy, number)
    share_static(place.folder(SEARCH), folder)
    work.ablate(folder.config(), folder, what=ablate_variants.REPLACE, genotype=str(path), limit=place.recipe.limit)


def _with_static(place: Place, name: str) -> workdir.Workdir:
    """A folder of the part with the static network of its cells."""
    folder = place.folder(name)
    share_static(place.folder(CELLS if place.part.cells else SEARCH), folder)
    return folder


def share_static(source: workdir.Workdir, target: workdir.Workdir) -> None:
    """Copies the trained static network of a run folder to another one that has none; never half of it."""
    if source.path == target.path:
        return
    for path in sorted((source.path / "checkpoints").glob(f"{pretrain.STAGE}*")):
        place = target.path / "checkpoints" / path.name
        if place.exists():
            continue
        temporary = place.with_name(f".{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(path, temporary)
        os.replace(temporary, place)


def train_static(config: ml_collections.ConfigDict, folder: workdir.Workdir) -> None:
    """`dvsnas train` without a genotype."""
    cell_training.run(config, folder, None)


def train_and_score(config: ml_collections.ConfigDict, folder: workdir.Workdir, genotype: str | None) -> None:
    """`dvsnas train`, then `dvsnas evaluate`."""
    cell_training.run(config, folder, genotype)
    evaluation.run(config, folder)


def save_weights(config: ml_collections.ConfigDict, folder: workdir.Workdir, output: pathlib.Path) -> None:
    """Writes the trained static network of a run folder as `net.weights` takes it."""
    variables = pretrain.restore(config, folder)
    if variables is None:
        raise errors.UserError(f"{folder.path}: holds no trained static network; start the same command again")
    tensors = weights_folder.flatten(jax.device_get(variables))
    manifest = {"source": "the static network of the same reproduction", "net": {}, "missing": []}
    weights_folder.save(output, {name: np.asarray(leaf, np.float32) for name, leaf in tensors.items()}, manifest)


COMMANDS = Work(static=train_static, score=train_and_score, weights=save_weights)
"""As the command `reproduce` runs them."""
_DO: dict[str, Callable[[Place, Work], None]] = {
    plan.STATIC: _static,
    plan.SEARCH: _search,
    plan.CELLS_STATIC: _static_of_cells,
    plan.COMPARE: _compare,
    plan.WITHOUT: _without,
    plan.STATIC_ON: _static_on,
    plan.FOUND: _found,
    plan.ABLATE: _ablate,
}
