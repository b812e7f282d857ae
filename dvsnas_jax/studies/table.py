"""The tabular benchmark: the rewards of all cells of a small space, so that a search can be replayed in no time.

A table is one JSON file: a head that says how it was made, and a line for each distinct cell with its reward and the
parts of the reward for each of its trainings, seed 0 first; some cells may have more of them than others. The rewards
that a replay draws and what a cell is worth come from different trainings of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors, overrides
from dvsnas_jax.core.files import json_files, json_text, workdir
from dvsnas_jax.space import canonical
from dvsnas_jax.space import genotype as genotype_lib

VERSION = 2
PARTS = ("reward", "miou", "fwiou", "class_accuracy", "accuracy", "flicker")
PACKAGED = pathlib.Path(__file__).with_name("table_synthetic.json")
UNSEEN = ("unseen_reward", "unseen_miou", "unseen_flicker")
"""The same on clips that nothing is chosen on; tables of earlier versions have no such columns."""
DIGITS = 5


@dataclasses.dataclass(frozen=True)
class Table:
    """The rewards of a space.

    Rewards are drawn from the first half of a cell's trainings, and its worth is the mean of the others: which cells
    are trained more often is decided by the first ones. Of a single training both are that one.

    Attributes:
      space: what the genotypes refer to.
      cells: i32 [M, L, 5], a genotype of each distinct cell.
      parts: name -> f64 [M, seeds]; `PARTS` and perhaps `UNSEEN`, nan where a training diverged and where there was
        none.
      num_trainings: i32 [M], of each cell: seeds 0, 1 and so on up to it were trained.
      index: i32 [space.size()], the row of every genotype in the order of `canonical.codes`.
      head: how it was made: `command`, `config`, `config_hash`, `environment`, `seconds` (of all trainings),
        `seconds_per_training` (median), `static` and so on.
    """

    space: genotype_lib.Space
    cells: np.ndarray
    parts: Mapping[str, np.ndarray]
    num_trainings: np.ndarray
    index: np.ndarray
    head: Mapping[str, Any]

    @property
    def num_cells(self) -> int:
        return len(self.cells)

    @property
    def rewards(self) -> np.ndarray:
        """f64 [M, seeds]."""
        return self.parts["reward"]

    def rows(self, genotypes: np.ndarray) -> np.ndarray:
        """The rows of genotypes i32 [N, L, 5], i32 [N]; equal for equal cells."""
        return self.index[canonical.codes(self.space, genotypes)]

    def quality(self, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Mean reward of every cell over training seeds (None: all), f64 [M]; -inf where none has a reward."""
        chosen = self.rewards if seeds is None else self.rewards[:, list(seeds)]
        counts = np.isfinite(chosen).sum(axis=1)
        return np.where(counts > 0, np.nansum(chosen, axis=1) / np.maximum(counts, 1), -np.inf)

    def draw(self, row: int, seeds: Sequence[int], share: float) -> float:
        """The reward of one training of a cell, nan where it diverged.

        Of the `seeds` that the cell was trained with (at least one), the first half, `share` in [0, 1) says which, as a
        share of their number.
        """
        drawn = self._halves(row, seeds)[0]
        return float(self.rewards[row, drawn[int(share * len(drawn))]])

    def worth(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What the cells are worth, f64 [M], -inf where that is not known; and how many trainings say so, i32 [M].

        On clips that nothing is chosen on, where the table has such scores; 0 trainings: it is the one that is drawn.
        """
        scores = self.parts.get(UNSEEN[0], self.rewards)
        halves = [self._halves(row, seeds) for row in range(self.num_cells)]
        means = [scores[row, others][np.isfinite(scores[row, others])] for row, (_, others) in enumerate(halves)]
        values = np.asarray([found.mean() if found.size else -np.inf for found in means])
        return values, np.asarray([len(others) * (drawn != others) for drawn, others in halves], np.int32)

    def _halves(self, row: int, seeds: Sequence[int]) -> tuple[list[int], list[int]]:
        """The trainings of a cell, of some seeds, that rewards are drawn from, and those that say what it is worth."""
        trained = [seed for seed in seeds if seed < self.num_trainings[row]]
        middle = len(trained) // 2
        return trained[:middle] or trained, trained[middle:]


def unseen_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a reward record on unseen clips that a table keeps, by the names of `UNSEEN`; {} of nothing."""
    return {name: record.get(name.removeprefix("unseen_")) for name in UNSEEN} if record else {}


def from_lines(
    space: genotype_lib.Space, cells: np.ndarray, lines: Sequence[Mapping[str, Any]], *,
    config: ml_collections.ConfigDict, static: Mapping[str, Any], command: str,
) -> Table:  # fmt: skip
    """Puts a table of all distinct cells i32 [M, L, 5] together from the lines of their trainings.

    A line has `cell`, `seed`, `seconds` and the parts of the reward; a cell may have fewer of them than another, but of
    the first seeds. `static` is the reward of the static network on the same clips. A UserError where a cell has no
    line, or none of a seed before its last.
    """
    num_seeds = 1 + max((line["seed"] for line in lines), default=0)
    columns = PARTS + (UNSEEN if any(UNSEEN[0] in line for line in lines) else ())
    parts = {name: np.full((len(cells), num_seeds), np.nan) for name in columns}
    is_there = np.zeros((len(cells), num_seeds), bool)
    for line in lines:
        place = line["cell"], line["seed"]
        is_there[place] = True
        for name in columns:
            value = line.get(name)
            parts[name][place] = np.nan if value is None else round(value, DIGITS)
    num_trainings = is_there.sum(axis=1).astype(np.int32)
    num_needed = np.maximum(1, (is_there * np.arange(1, num_seeds + 1)).max(axis=1))  # as far as the last one
    num_missing = int((num_needed - num_trainings).sum())
    if num_missing:
        raise errors.UserError(
            f"table: {num_missing} of {num_missing + len(lines)} trainings are missing; start the command with "
            "--make-table again"
        )
    values = config_lib.to_json_dict(config)
    names = {key: value for key, value in overrides.leaves(values) if key not in config_lib.PATHS}
    head = {
        "command": command,
        "config": values,
        "config_hash": hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:12],
        "environment": workdir.environment(),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "seconds_per_training": round(float(np.median([line["seconds"] for line in lines])), 2),
        "num_cells": len(cells),
        "num_seeds": int(num_trainings.min()),
        "num_best_seeds": num_seeds,
        "num_trainings": int(num_trainings.sum()),
        "static": {name: round(static[name], DIGITS) for name in columns},
    }
    return Table(space, cells, parts, num_trainings, canonical.enumerate_cells(space)[1], head)


def save(table: Table, path: pathlib.Path) -> None:
    """Writes a table, one line a cell, with a checksum over all of it."""
    content = _content(table)
    content["checksum"] = _checksum(content)
    rows = content.pop("rows")
    head = json_text.dumps(content, indent=1).removesuffix("\n}")
    body = ",\n".join(json_text.dumps(row, separators=(",", ":")) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{body}\n]}}\n', encoding="utf-8")


def load(path: pathlib.Path = PACKAGED) -> Table:
    """Reads a table; a UserError where there is none, a damaged one, or one of another version of this program."""
    advice = "give --table alone for the table of the package, or make one with --make-table"
    content = json_files.read(path, name="--table", advice=advice)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise errors.UserError(f"--table: {path} is no table of version {VERSION}; {advice}")
    if content.pop("checksum", None) != _checksum(content):
        raise errors.UserError(f"--table: {path} is damaged, its checksum is another; make it again with --make-table")
    names = content["space"]
    inputs, operations, aggregations = (tuple(names[kind]) for kind in ("inputs", "operations", "aggregations"))
    space = genotype_lib.Space(inputs, names["num_layers"], operations, aggregations)
    rows, columns = content["rows"], content["columns"]
    cells = np.asarray([row[0] for row in rows], np.int32).reshape(-1, space.num_layers, len(genotype_lib.FIELDS))
    expected, index = canonical.enumerate_cells(space)
    if not np.array_equal(cells, expected):
        raise errors.UserError(f"--table: {path} lists other cells than this program; make it again with --make-table")
    num_trainings = np.asarray([len(row[1]) for row in rows], np.int32)
    parts = {name: np.full((len(rows), num_trainings.max(initial=0)), np.nan) for name in columns}
    for place, name in enumerate(columns, start=1):
        for row, values in enumerate(rows):
            parts[name][row, : num_trainings[row]] = np.asarray(values[place], np.float64)
    return Table(space, cells, parts, num_trainings, index, content["head"])


def _content(table: Table) -> dict[str, Any]:
    """All that a file holds but the checksum."""
    return {
        "version": VERSION,
        "space": dataclasses.asdict(table.space),
        "head": dict(table.head),
        "columns": list(table.parts),
        "rows": [
            [cell.ravel().tolist(), *(values[row, :num].tolist() for values in table.parts.values())]
            for row, (cell, num) in enumerate(zip(table.cells, table.num_trainings.tolist(), strict=True))
        ],
    }


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_text.dumps(content, sort_keys=True).encode()).hexdigest()
