"""The command `reproduce`: from data to all tables and pictures, stage by stage; what is done is not done again.

The folder holds `settings.json` (whose reproduction it is), `stages.jsonl` (a line a start of a stage: its seconds, and
whether it ended), a folder for each part, and in the end `reproduce.json`, `.md`, `.png` and a picture a part.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import locking, output_files, workdir
from dvsnas_jax.core.processes import signals
from dvsnas_jax.evaluate import evaluation, figures
from dvsnas_jax.studies import compare_report, study_report
from dvsnas_jax.studies.reproduce import plan, recipes, record, stages, tables
from dvsnas_jax.train import features, require_labels

NAME, SETTINGS, LOG = "reproduce", "settings.json", "stages.jsonl"
_TELL = functools.partial(print, flush=True)


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a reproduction.

    Attributes:
      name: of the data.
      budget: one of `recipes.MINUTES`, `recipes.PAPER`.
      num_seeds: None: the recipe's.
      num_searches: of each strategy; None: the recipe's.
      overrides: of all its configurations.
      against: the figures of record.
    """

    name: str
    budget: str = recipes.MINUTES
    num_seeds: int | None = None
    num_searches: int | None = None
    overrides: recipes.Changes = dataclasses.field(default_factory=dict)
    against: pathlib.Path = record.PACKAGED

    def recipe(self) -> recipes.Recipe:
        """What is to be run; a UserError where there is no such recipe, or a number makes no sense."""
        study_report.check_at_least(1, seeds=self.num_seeds, searches=self.num_searches)
        found = recipes.get(self.name, self.budget)
        return dataclasses.replace(
            found,
            num_seeds=found.num_seeds if self.num_seeds is None else self.num_seeds,
            num_searches=found.num_searches if self.num_searches is None else self.num_searches,
        )


def show_plan(options: Options, path: pathlib.Path | None) -> str:
    """The plan as text; nothing is written. `path`: the folder, whose finished stages are told apart."""
    recipe = options.recipe()
    found = [recipes.configs(part, options.overrides) for part in recipe.parts]
    folder = None if path is None else workdir.Workdir(path)
    if folder is not None:
        _check(folder, options)
    return _plan(recipe, found, folder, options)[0]


def _plan(
    recipe: recipes.Recipe, found: Sequence[recipes.Configs], folder: workdir.Workdir | None, options: Options
) -> tuple[str, list[plan.Stage]]:
    """The plan as text, and its stages."""
    made, notes = plan.of(recipe, found)
    took = {} if folder is None else {key: line["seconds"] for key, line in _finished(folder, recipe).items()}
    of_record = record.read(options.against, recipe.key)
    text = plan.text(made, took, (of_record or {}).get("seconds", {}), notes)
    head = f"{recipe.name}, budget {recipe.budget}: {recipe.num_seeds} seeds, {recipe.num_searches} search(es) each"
    return f"{head}\n\n{text}", made


def run(
    options: Options,
    path: pathlib.Path,
    *,
    work: stages.Work = stages.COMMANDS,
    recipe: recipes.Recipe | None = None,
    tell_fn: Callable[[str], None] = _TELL,
) -> study_report.Report:
    """Runs what the folder at `path` does not hold yet, and writes what it all amounts to.

    `work` and `recipe` are put in the place of the commands and of the named recipe by tests; `tell_fn` receives the
    plan before anything starts.

    Raises:
      UserError: the words make no sense, the data is not there, or the folder holds another reproduction.
      Stopped: a signal arrived; what is finished was saved.
    """
    recipe = recipe or options.recipe()
    folder = workdir.Workdir(path)
    _check(folder, options)
    record.read(options.against, recipe.key)
    places = places_of(recipe, path, options.overrides)
    for place in places:
        for config in place.configs:
            features.space_of(config)
            evaluation.check(config)
            require_labels.check(config, is_rewarded=True, is_evaluated=True, do_note=False)
    text, made = _plan(recipe, [place.configs for place in places], folder, options)
    output_files.make_folder(path, "--workdir")
    give_back = locking.take(path, workdir.command())
    try:
        folder.write_json(SETTINGS, _settings(options))
        tell_fn(text)
        with signals.stop_on_signal() as stop:
            for number, stage in enumerate(made):
                if stage.key in _finished(folder, recipe):
                    continue
                if stop.requested:
                    raise errors.Stopped(f"reproduce: {len(made) - number} of {len(made)} stages are left")
                tell_fn(f"[{number + 1}/{len(made)}] {stage.key}: {stage.what}")
                place = next(place for place in places if place.part.mode == stage.mode)
                _timed(folder, recipe, stage, functools.partial(stages.do, stage.kind, place, work))
        return write(folder, recipe, places, made, options)
    finally:
        give_back()


def places_of(recipe: recipes.Recipe, path: pathlib.Path, overrides: recipes.Changes) -> list[stages.Place]:
    """Where the parts of a recipe are kept."""
    found: list[stages.Place] = []
    for part in recipe.parts:
        given = found[0] if found and recipe.is_static_shared else None
        configs = recipes.configs(part, overrides)
        found.append(stages.Place(recipe, part, configs, path / part.mode, given))
    return found


def _settings(options: Options) -> dict[str, Any]:
    return {"name": options.name, "budget": options.budget, "overrides": dict(options.overrides)}


def _check(folder: workdir.Workdir, options: Options) -> None:
    """A UserError where the folder holds another reproduction, or something else."""
    if folder.is_claimed:
        raise errors.UserError(f"--workdir: {folder.path} is a run folder; choose another --workdir")
    output_files.check_folder(folder.path, flag="--workdir")
    if not (folder.path / SETTINGS).is_file():
        return
    stored, now = folder.read_json(SETTINGS), _settings(options)
    other = [key for key in now if not isinstance(stored, dict) or stored.get(key) != now[key]]
    if other:
        shown = ", ".join(f"{key} (it was {stored.get(key)!r})" for key in other) if isinstance(stored, dict) else ""
        raise errors.UserError(
            f"--workdir: {folder.path} holds another reproduction, these differ: {shown}; use the same words, or "
            "another --workdir"
        )


def _question(recipe: recipes.Recipe) -> dict[str, int]:
    """What a stage has to be done again for."""
    return {key: getattr(recipe, key) for key in ("num_seeds", "num_searches", "num_top")}


def _finished(folder: workdir.Workdir, recipe: recipes.Recipe) -> dict[str, Mapping[str, Any]]:
    """Key of each finished stage -> its line, with the seconds of all its starts and its count."""
    question = _question(recipe)
    lines = folder.read(LOG)
    done = {line["stage"]: line for line in lines if line["is_done"] and question.items() <= line.items()}
    seconds = {key: sum(line["seconds"] for line in lines if line["stage"] == key) for key in done}
    return {key: {**line, "seconds": seconds[key]} for key, line in done.items()}


def _timed(folder: workdir.Workdir, recipe: recipes.Recipe, stage: plan.Stage, do_fn: Callable[[], None]) -> None:
    """Runs a stage and notes what it took, whether it ends or is stopped."""
    started, is_done = time.perf_counter(), False
    try:
        do_fn()
        is_done = True
    finally:
        line = {"stage": stage.key, "count": stage.count, "seconds": round(time.perf_counter() - started, 1)}
        folder.append(LOG, {**_question(recipe), **line, "is_done": is_done})


def write(
    folder: workdir.Workdir,
    recipe: recipes.Recipe,
    places: Sequence[stages.Place],
    made: Sequence[plan.Stage],
    options: Options,
) -> study_report.Report:
    """Collects what the parts hold into JSON, Markdown and pictures."""
    parts = {place.part.mode: {**tables.of(place), "texts": tables.read_texts(place)} for place in places}
    finished = _finished(folder, recipe)
    of_record = record.read(options.against, recipe.key)
    now = {mode: record.figures_of(part["rows"]) for mode, part in parts.items()}
    content: dict[str, Any] = {
        **_settings(options),
        "num_seeds": recipe.num_seeds,
        "num_searches": recipe.num_searches,
        "command": workdir.command(),
        **record.about_run([place.folder(stages.SEARCH) for place in places]),
        "verdict": [line for part in parts.values() for line in tables.verdict(part)],
        "seconds": {key: {name: line[name] for name in ("seconds", "count")} for key, line in finished.items()},
        "parts": parts,
        "changes": [] if of_record is None else record.compare(now, of_record["figures"]),
    }
    lines = _markdown(content, made, of_record)
    report = study_report.write(folder.path, NAME, content, "\n".join(lines), lambda path: picture(parts, path))
    paths = []
    for mode, part in parts.items():
        paths.append(str(folder.path / f"{mode}.png"))
        compare_report.picture(part, paths[-1])
    return report._replace(paths=[*report.paths, *paths])


def _markdown(content: Mapping[str, Any], made: Sequence[plan.Stage], of_record: Mapping[str, Any] | None) -> list[str]:
    """The whole report; its first lines are the verdict."""
    lines = [f"# {content['name']}, budget {content['budget']}", ""]
    lines += [f"- {line}" for line in content["verdict"]]
    lines += ["", f"Commit {content['commit']}, {content['machine']}, `{content['command']}`."]
    for mode, part in content["parts"].items():
        head, *rows = compare_report.cells(part)
        lines += ["", f"## {mode}", "", f"{compare_report.caption(part)}. {compare_report.SPREAD}.", ""]
        lines += [*study_report.markdown(head, rows), "", *(f"- {note}" for note in compare_report.notes(part))]
        lines += ["", f"### Searches, {mode}", "", part["texts"]["searches"]]
        lines += ["", f"### Ablation of the found cell, {mode}", "", part["texts"]["ablation"]]
    lines += ["", "## Against the figures of record", "", *record.markdown(content["changes"], of_record)]
    took = {key: value["seconds"] for key, value in content["seconds"].items()}
    return [*lines, "", "## Time", "", plan.text(made, took, (of_record or {}).get("seconds", {}))]


def picture(parts: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
    """mIoU and flicker of every row, a line of panels for each part, with the spread over seeds."""
    heights = [max(len(part["rows"]), 1) for part in parts.values()]
    with figures.canvas(path, 11, 1.4 * len(heights) + 0.32 * sum(heights)) as figure:
        grid = figure.subplots(len(parts), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
        for panels, (mode, part) in zip(grid, parts.items(), strict=True):
            rows = part["rows"]
            for axes, (key, label) in zip(panels, (("miou", "mIoU, %"), ("flicker", "flicker, %")), strict=True):
                for index, row in enumerate(rows):
                    value = row.get(key)
                    if not value:
                        continue
                    is_own = row["name"] == part["headline"]
                    color = figures.BLUE if is_own else figures.ORANGE if row.get("strategies") else figures.GREY
                    error = 100 * (value["std"] or 0.0) or None
                    axes.errorbar(100 * value["mean"], index, xerr=error, fmt="o", color=color, capsize=3)
                axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5), title=mode)
            panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
            panels[1].set_yticks(range(len(rows)), [""] * len(rows))
