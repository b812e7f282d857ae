"""Whose cell a run folder holds, and whether another one may be made in it."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.core.processes import distributed
from dvsnas_jax.space import genotype as genotype_lib

BEST = "best_genotype.json"
CANDIDATES = "genotypes.jsonl"
SEARCH, TRAIN = "search", "train"
"""The commands that make a cell."""
_STAGES = ("warmup", "search")


class Winner(NamedTuple):
    """The cell of a run folder, as `best_genotype.json` says: a genotype i32 [L, 5] in the space of its file.

    `made_by` is `SEARCH` or `TRAIN`; it `is_bound` where its weights are kept under its digest, as since early runs.
    """

    space: genotype_lib.Space
    genotype: np.ndarray
    digest: str
    made_by: str
    is_bound: bool


def read(folder: workdir.Workdir) -> Winner | None:
    """What `best_genotype.json` says, None where there is none.

    Raises:
      UserError: it cannot be read.
    """
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

    Raises:
      UserError: `train` made a cell in the folder, which the search would replace.
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

    Raises:
      UserError: it holds another one, or is the folder of a search: what is there would be replaced.
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
