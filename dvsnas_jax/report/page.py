"""The report: one page for one run folder or for several, which holds its figures and loads nothing from a network.

A part whose data is missing is left out; a grey line at the end says which command makes it.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import output_files
from dvsnas_jax.evaluate import figures
from dvsnas_jax.report import evaluation_parts, markup, missing_parts, run_files, search_parts, study_parts, why_parts

PAGE, COMPARISON = "report.html", "comparison.html"
_PARTS: tuple[tuple[str, str, Callable[[run_files.Run], str]], ...] = (
    ("summary", "Summary", evaluation_parts.summary),
    ("result", "Result", evaluation_parts.result),
    ("looks", "What it looks like", evaluation_parts.looks),
    ("classes", "Class by class", evaluation_parts.classes),
    ("sequences", "Sequence by sequence", evaluation_parts.sequences),
    ("times", "Time of a frame", evaluation_parts.times),
    ("costs", "Costs", evaluation_parts.costs),
    ("cell", "The cell", search_parts.cell),
    ("why", "Why", why_parts.why),
    ("search", "The search", search_parts.search),
    ("chosen", "What the search chose", search_parts.chosen),
    ("comparison", "Comparison with other cells", study_parts.comparison),
    ("ablation", "Ablation", study_parts.ablation),
    ("training", "Training", search_parts.training),
    ("configuration", "Configuration", search_parts.configuration),
    ("provenance", "Provenance", search_parts.provenance),
    ("missing", "Not in this report", missing_parts.part),
)
"""Of a run, in order: anchor, title, and what makes the HTML; "" where the run has none."""


def write(*workdirs: str | pathlib.Path, output: str | pathlib.Path | None = None) -> list[str]:
    """Writes the page of a run, and its figures; or one page that sets several runs side by side.

    Args:
      *workdirs: run folders. Of a single one, `figures/` and `report.html` in it are written; of several only the page.
      output: of the page; None: `report.html` in the run folder, `comparison.html` in the first of several.

    Returns:
      The paths written, the page last.

    Raises:
      UserError: no folder or no run in it, a file of it that cannot be read, or a page that cannot be written.
    """
    folders = [pathlib.Path(workdir) for workdir in workdirs]
    if not folders:
        raise errors.UserError("report: give a run folder")
    page = pathlib.Path(output) if output else folders[0] / (PAGE if len(folders) == 1 else COMPARISON)
    if output and not page.parent.is_dir():
        raise output_files.refusal(page, f"{page.parent} is no folder")
    if page.parent.is_dir():
        output_files.check_file(page, suffixes=(".html",))
    if len(folders) == 1:
        run = run_files.Run(folders[0], folders[0].resolve().name, folders[0] / run_files.FIGURES)
        parts, links = _parts(run)
        title, written = f"Dynamic cell search: {run.name}", run.written
    else:
        parts, links = _compare(folders)
        title, written = "Dynamic cell searches compared", []
    text = markup.page(title, parts, links)
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise output_files.refusal(page, error) from None
    return [*written, str(page)]


def _parts(run: run_files.Run) -> tuple[list[str], list[tuple[str, str]]]:
    """The parts of one run, and the anchor and name of each."""
    made = [(f"{run.prefix}{name}", title, body) for name, title, make_fn in _PARTS if (body := make_fn(run))]
    parts = [markup.section(run.level, title, body, anchor) for anchor, title, body in made]
    return parts, [(anchor, title) for anchor, title, _ in made]


def _compare(folders: Sequence[pathlib.Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Several runs: side by side first, then one after the other."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            run_files.Run(folder, name, pathlib.Path(scratch) / str(index), level=3, prefix=f"run{index}-")
            for index, (folder, name) in enumerate(zip(folders, _names(folders), strict=True), start=1)
        ]
        parts = [markup.section(2, "Side by side", _side_by_side(runs, pathlib.Path(scratch)), "compared")]
        links = [("compared", "Side by side")]
        for index, run in enumerate(runs, start=1):
            inner, _ = _parts(run)
            head = f"<h2>{markup.escape(run.name)}</h2>{markup.note(markup.escape(run.path))}"
            parts.append(f'<section class=run id="run{index}">{head}{"".join(inner)}</section>')
            links.append((f"run{index}", run.name))
    return parts, links


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The last part of each path, or as many as it takes to tell them apart; a UserError for a folder given twice."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise errors.UserError("report: a run folder is given twice; give each once")
    for count in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _side_by_side(runs: Sequence[run_files.Run], scratch: pathlib.Path) -> str:
    """Scores, reward curves and the keys of the configuration that differ."""
    parts = [_score_table(runs)]
    series = {run.name: (run.searched, run.drawn) for run in runs if run.searched}
    if series:
        figures.rewards(series, scratch / "rewards.svg")
        text = (scratch / "rewards.svg").read_text()
        parts.append(markup.grid(markup.svg(text, "Rewards of the runs over their searches", "f-rewards")))
    rows = run_files.differences([run.config for run in runs])
    if rows:
        body = [(markup.escape(key), [markup.escape(value) for value in values]) for key, values in rows]
        head = ["key", *(markup.escape(run.name) for run in runs)]
        title = "Keys of the configuration that differ"
        parts.append(markup.table(head, body, title, kind="keys", title=title))
    return "".join(parts)


def _score_table(runs: Sequence[run_files.Run]) -> str:
    """A row for each metric, the static network and the cell of every run."""
    scores = {
        f"{run.name}, {name}": score
        for run in runs
        for name, score in run.scores().items()
        if name in ("static", "cell")
    }
    rows = [
        (row.label, [markup.number(row.values.get(name), row.decimals) for name in scores])
        for row in evaluation_parts.score_rows(scores)
    ]
    parts = []
    if rows:
        parts.append(markup.table(["", *map(markup.escape, scores)], rows, "Scores of the runs", title="Scores"))
    rewards = {run.name: [record["reward"] for record in run.searched] for run in runs if run.searched}
    searched = [
        (markup.escape(name), [str(len(values)), f"{max(values):.3f}", f"{np.mean(values):.3f}"])
        for name, values in rewards.items()
    ]
    if searched:
        head = ["run", "candidates", "best reward", "mean reward"]
        parts.append(markup.table(head, searched, "Searches of the runs", title="Searches"))
    return markup.grid(*parts) if len(scores) <= 2 else "".join(parts)
