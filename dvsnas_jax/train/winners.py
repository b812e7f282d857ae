"""The trained cell of a run folder: whose it is, its weights, and whether another one may be made there."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dvsnas_jax.core import errors, types
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.train import features

BEST = "best_genotype.json"
CANDIDATES = "genotypes.jsonl"
SEARCH, TRAIN = "search", "train"
"""The commands that make a cell."""
STAGE = "cell"
"""Of its weights, with the digest of its genotype."""
_STAGES = ("warmup", "search")


class Winner(NamedTuple):
    """The cell of a run folder, as `best_genotype.json` says."""

    space: genotype_lib.Space  # of its file: its inputs and layers
    genotype: np.ndarray  # i32 [L, 5]
    digest: str  # of the genotype
    made_by: str  # `SEARCH` or `TRAIN`
    is_bound: bool  # whether its weights are kept under its digest; those of an older run are not


def read(folder: workdir.Workdir) -> Winner | None:
    """What `best_genotype.json` says, None where there is none; a UserError where it cannot be read."""
    path = folder.path / BEST
    if not os.path.isfile(path):
        return None
    record = folder.read_json(BEST)
    space, genotype = genotype_lib.from_dict(record, where=str(path))
    # An older run does not say who made its cell: only a search has candidates.
    made_by = record.get("made_by") or (SEARCH if (folder.path / CANDIDATES).is_file() else TRAIN)
    return Winner(space, genotype, genotype_lib.digest(space, genotype), made_by, "digest" in record)


def is_searched(folder: workdir.Workdir) -> bool:
    """Whether a search was begun in the run folder."""
    stages = (folder.path / "checkpoints" / stage for stage in _STAGES)
    return (os.path.isfile(folder.path / CANDIDATES) and folder.is_begun()) or any(map(os.path.isdir, stages))


def mark_search(folder: workdir.Workdir) -> None:
    """Makes the folder that of a search from its start on: as soon as anything is computed."""
    if distributed.is_main():
        (folder.path / CANDIDATES).touch()


def unmark_search(folder: workdir.Workdir) -> None:
    """Takes the mark off a folder in which a search computed nothing."""
    if distributed.is_main() and not is_searched(folder):
        (folder.path / CANDIDATES).unlink(missing_ok=True)


def is_search_done(folder: workdir.Workdir) -> bool:
    """Whether the search of a run folder has ended with its winner.

    A UserError where `train` made a cell in the folder, which the search would replace.
    """
    winner = read(folder)
    if winner is not None and winner.made_by != SEARCH:
        raise errors.UserError(
            f"--workdir: {folder.path} holds the cell of genotype {winner.digest} that `dvsnas train` made, which a "
            "search would replace; search in another --workdir"
        )
    return winner is not None


def is_trained(folder: workdir.Workdir, space: genotype_lib.Space, genotype: np.ndarray) -> bool:
    """Whether the folder holds the cell of this genotype.

    A UserError where it holds another one, or is the folder of a search: what is there would be replaced.
    """
    digest, winner = genotype_lib.digest(space, genotype), read(folder)
    if winner is not None and winner.digest == digest:
        return True
    if winner is None and not is_searched(folder):
        return False
    what = "is the folder of a search, whose cell"
    if winner is not None and not is_searched(folder):
        what = f"holds the trained cell of genotype {winner.digest}, which"
    raise errors.UserError(
        f"--workdir: {folder.path} {what} would be replaced; train genotype {digest} in another --workdir"
    )


def save(
    folder: workdir.Workdir,
    space: genotype_lib.Space,
    genotype: np.ndarray,
    params: types.Params,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes the cell's weights and, after them, `best_genotype.json`, with what else is to be said `about` the cell.

    The weights are kept under the genotype's digest: they cannot be taken for those of another one, wherever this is
    interrupted and whatever is put in the place of the file.
    """
    digest = genotype_lib.digest(space, genotype)
    checkpoints = folder.checkpointer(_stage_of(digest), keep=1)
    latest = checkpoints.latest_step()
    checkpoints.save(0 if latest is None else latest + 1, params)
    about = {"digest": digest, "made_by": TRAIN, "scores": {}} | (about or {})
    folder.write_json(BEST, {**genotype_lib.to_dict(space, genotype), **about})
    distributed.barrier("winner")  # written by one process, read by all


def has_cell(folder: workdir.Workdir) -> bool:
    """Whether a run folder holds a trained cell; without one, its static network is used alone."""
    return os.path.isfile(folder.path / BEST)


def _stage_of(digest: str) -> str:
    return f"{STAGE}_{digest}"


def require(folder: workdir.Workdir) -> pathlib.Path:
    """The path of `best_genotype.json`.

    Raises:
      UserError: the run folder holds no trained cell.
    """
    path = folder.path / BEST
    if not has_cell(folder):
        raise errors.UserError(f"{folder.path}: holds no trained cell, run `dvsnas search` or `dvsnas train` first")
    return path


def load(
    config: ml_collections.ConfigDict, folder: workdir.Workdir
) -> tuple[cell_lib.Cell, types.Params, genotype_lib.Space, np.ndarray]:
    """Reads what `save` wrote.

    Raises:
      UserError: the run folder holds no trained cell, or none of the genotype that its file names.
    """
    require(folder)
    winner = read(folder)
    assert winner is not None
    cell = cell_lib.make(winner.space, winner.genotype, features.settings_of(config))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    template = cell_lib.freeze_norm(params, moment_shapes(params))
    stage, places = _stage_of(winner.digest), folder.path / "checkpoints"
    if not winner.is_bound and not (places / stage).is_dir() and (places / STAGE).is_dir():
        stage = STAGE  # of an older run
    elif not (places / stage).is_dir():
        there = ", ".join(sorted(path.name.removeprefix("cell_") for path in places.glob(_stage_of("*")))) or "none"
        raise errors.UserError(
            f"{folder.path / BEST}: names genotype {winner.digest}, whose weights are not in this folder (there are: "
            f"{there}); put the file back, or train the genotype in a folder of its own with `dvsnas train --genotype`"
        )
    return cell, folder.checkpointer(stage, keep=1).restore(template), winner.space, winner.genotype


def moment_shapes(params: types.Params) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """A moment for every normalisation of a cell, as its scale."""
    leaves = [(tuple(entry.key for entry in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    return {keys[:-1]: (leaf, leaf) for keys, leaf in leaves if keys[-1] == "scale"}
