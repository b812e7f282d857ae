"""What all studies share: finished parts are kept, and what was found is written as JSON, table and picture."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir


class Report(NamedTuple):
    """What was found: the content of the JSON file, the table as text, and the files written."""

    content: dict[str, Any]
    text: str
    paths: list[str]


class Finished:
    """The lines of a log that answer one question, by one of their fields; what has a line is not done again.

    Args:
      folder: the run folder.
      log: the JSONL file in it.
      question: what such a line holds besides.
      field: that tells its parts apart.
    """

    def __init__(self, folder: workdir.Workdir, log: str, question: Mapping[str, Any], field: str) -> None:
        self._folder, self._log, self._question, self._field = folder, log, question, field
        self.lines = {line.get(field): line for line in folder.read(log) if question.items() <= line.items()}

    def append(self, part: Any, record: Mapping[str, Any]) -> None:
        """Writes the line of one part."""
        self.lines[part] = {**self._question, self._field: part, **record}
        self._folder.append(self._log, self.lines[part])


def check_at_least(least: int, **values: int | None) -> None:
    """A UserError for a number of a flag (`best_seeds` is that of `--best-seeds`) that is too small; None is none."""
    for name, value in values.items():
        if value is not None and value < least:
            raise errors.UserError(f"--{name.replace('_', '-')}: must be at least {least}, got {value}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def write(
    folder: pathlib.Path, name: str, content: dict[str, Any], text: str, draw_fn: Callable[[pathlib.Path], None],
    *, figures: str = "",
) -> Report:  # fmt: skip
    """Writes `<name>.json`, `<name>.md` and, in the folder `figures` of the same folder, `<name>.png`."""
    table, picture = folder / f"{name}.md", folder / figures / f"{name}.png"
    workdir.Workdir(folder).write_json(f"{name}.json", content)
    picture.parent.mkdir(exist_ok=True)
    table.write_text(text + "\n", encoding="utf-8")
    draw_fn(picture)
    return Report(content, text, [str(folder / f"{name}.json"), str(table), str(picture)])
