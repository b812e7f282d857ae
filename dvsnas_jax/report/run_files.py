"""What the report reads: the files of a run folder, finished or not. Nothing in the folder is repaired or changed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shlex
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_files
from dvsnas_jax.evaluate import figures, score_tables
from dvsnas_jax.report import markup
from dvsnas_jax.space import cell_end
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space.drawing import end as end_lib
from dvsnas_jax.studies import compare_rows, why

FIGURES, BEST = "figures", "best_genotype.json"
JSON_FILES = ("config.json", "environment.json", BEST, "evaluation.json", "compare.json")
ABLATIONS = ("replace", "leave_one_out", "retrain", "worth")
LINE_FILES = ("genotypes.jsonl", "metrics.jsonl")
STRIP, CLIP = f"{FIGURES}/strip.npz", f"{FIGURES}/clip.npz"
KNOWN = (*JSON_FILES, *(f"ablation_{what}.json" for what in ABLATIONS), *LINE_FILES, STRIP, CLIP)
NETWORKS = {**score_tables.ROWS, "cell": "dynamic cell"}
"""What was evaluated, and what the page calls it."""
_ARRAYS = ("frames", "labels", "static", "colors")


class Run:
    """What a run folder holds, what the page calls it, where its figures go; `level` and `prefix` are of its headings.

    A UserError where it is no run folder, or one of its files cannot be read.
    """

    def __init__(
        self, path: pathlib.Path, name: str, figures_dir: pathlib.Path, *, level: int = 2, prefix: str = ""
    ) -> None:
        if not path.is_dir() or not any((path / file).is_file() for file in KNOWN):
            raise errors.UserError(
                f"report: {path} is not the folder of a run (none of {', '.join(KNOWN)} is in it); give that of one"
            )
        self.path, self.name, self.level, self.prefix = path, name, level, prefix
        self._figures_dir = figures_dir
        self.config, self.environment, self.best, self.evaluation, compared = (
            read_json(path / file) for file in JSON_FILES
        )
        self.compare = self._compare() or compared
        if not self._is_of_winner(self.evaluation):
            self.evaluation = {}
        self.ablations = {what: read_json(path / f"ablation_{what}.json") for what in ABLATIONS}
        self.genotypes, self.metrics = (read_lines(path / file) for file in LINE_FILES)
        num_steps = self.config.get("search", {}).get("steps")
        self.searched, self.drawn = figures.split_sources(self.genotypes, num_steps)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.written: list[str] = []
        self.missing: list[tuple[str, str, str]] = []

    def figure(self, file: str) -> pathlib.Path:
        """The path of a figure to write: in the run folder, or where that cannot be, for the page alone."""
        if self._scratch is None and not _is_writable(self._figures_dir):
            self._scratch = tempfile.TemporaryDirectory()
        path = (self._figures_dir if self._scratch is None else pathlib.Path(self._scratch.name)) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._scratch is None:
            self.written.append(str(path))
        return path

    def chart(
        self, name: str, words: str, draw_fn: Callable[[pathlib.Path], None], anchor: str = "", *, is_wide: bool = False
    ) -> str:
        """A figure of matplotlib, drawn into `<name>.svg`, as a piece of the page; `words` say what it shows."""
        path = self.figure(f"{name}.svg")
        draw_fn(path)
        return markup.svg(path.read_text(), words, f"{self.prefix}f-{anchor or name}", is_wide=is_wide)

    def _compare(self) -> dict[str, Any]:
        """The comparison of all finished jobs, whatever command wrote `compare.json` last; {} where there are none."""
        jobs = compare_rows.read_jobs(self.path)
        try:
            config = config_lib.from_json_dict(self.config, str(self.path / "config.json")) if jobs else None
        except errors.UserError:  # of another version: what that one wrote is shown
            return {}
        return compare_rows.collect(config, jobs, read_lines(self.path / compare_rows.LOG)) if config else {}

    def lacks(self, part: str, command: str, reason: str = "") -> str:
        """Notes that a part is left out, and the command that makes its data, or why none does; gives "", the part."""
        self.missing.append((part, command, reason))
        return ""

    def command(self, name: str, *words: str) -> str:
        """A command on this run, as it can be copied; "" without a `config.json`, which every command reads."""
        return shlex.join(["dvsnas", name, f"--workdir={self.path}", *words]) if self.config else ""

    def is_refining(self) -> bool:
        """Whether the cell runs on top of the static network on every frame."""
        if "mode" in self.config.get("space", {}):
            return self.config["space"]["mode"] == "refine"
        return set((self.scores().get("cell") or {}).get("latency") or {}) == {"all"}

    def masked(self) -> tuple[str, ...]:
        """Names of the operations that the search must not choose."""
        return tuple(self.config.get("controller", {}).get("masked_operations") or ())

    def arrays(self, file: str) -> dict[str, np.ndarray] | None:
        """A stretch of video, see `frame_pictures.Arrays`; None where there is no such file."""
        path = self.path / file
        if not path.is_file() or not self._is_of_winner(read_json(self.path / "evaluation.json")):
            return None
        try:
            with np.load(path) as data:
                return {name: data[name] for name in (*_ARRAYS, *(["cell"] if "cell" in data else []))}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise errors.UserError(f"{path}: cannot be read: {error}; delete it to have a report without it") from None

    def scores(self) -> dict[str, dict[str, Any]]:
        """Network -> its scores, for those that were evaluated."""
        return {name: self.evaluation[name] for name in NETWORKS if isinstance(self.evaluation.get(name), dict)}

    def _is_of_winner(self, evaluation: Mapping[str, Any]) -> bool:
        """Whether an evaluation is of the cell that the folder holds; an older one does not say."""
        winner = self.winner()
        if winner is None or "genotype" not in evaluation:
            return True
        return bool(evaluation["genotype"] == genotypes.digest(*winner))

    def class_names(self) -> list[str]:
        """The names of the classes that were evaluated."""
        return [str(name) for name in self.evaluation.get("classes") or []]

    def winner(self) -> tuple[genotypes.Space, np.ndarray] | None:
        """The winner, in the space of its own file."""
        return genotypes.from_dict(self.best, where=str(self.path / BEST)) if self.best else None

    def found(self) -> tuple[genotypes.Space, np.ndarray] | None:
        """As the search found the winner: before anything of it was removed."""
        return genotypes.from_dict(self.best.get("found", self.best)) if self.best else None

    def whole(self, digest: str) -> end_lib.Whole:
        """How cells of the run end, and what the parts of the cell of this genotype are worth, where that is known."""
        section, content = self.config.get("space", {}), self.ablations["worth"]
        end = section.get("end", cell_end.CLASSIFIER if section else cell_end.HEADS)
        worth = why.labels(content) if content.get("digest") == digest else {}
        return end_lib.Whole(end, section.get("mode") == "propagate", worth)

    def space(self) -> genotypes.Space | None:
        """The space of the run, None without a config."""
        section = self.config.get("space")
        if not isinstance(section, dict) or not {"inputs", "num_layers"} <= set(section):
            return None
        kinds = {"operations": genotypes.FIRST_OPERATIONS, "aggregations": genotypes.FIRST_AGGREGATIONS}
        named = {kind: tuple(section.get(kind) or first) for kind, first in kinds.items()}
        return genotypes.Space(inputs=tuple(section["inputs"]), num_layers=int(section["num_layers"]), **named)


def _is_writable(folder: pathlib.Path) -> bool:
    """Whether files can be written into a folder, which may have to be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file; a UserError where it holds something else."""
    if not path.is_file():
        return {}
    value = json_files.read(path, advice="delete the file to have a report without it")
    if not isinstance(value, dict):
        raise errors.UserError(f"{path}: needs a JSON object, got {type(value).__name__}; delete the file")
    return value


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a torn line is passed over, since the run may still be writing."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value) or "[]"
        else:
            yield f"{prefix}{key}", "–" if value is None else str(value)


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Dotted keys whose values are not the same in all configs, each with its value in every one ("–": no such key)."""
    tables = [dict(flat(config)) for config in configs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
