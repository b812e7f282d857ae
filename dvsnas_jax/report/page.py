"""The report: one page for one run folder or for several, which holds its figures and loads nothing from a network.

A part whose data is missing is left out; a grey line at the end says which command makes it.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import output_files
from dvsnas_jax.evaluate import figures
from dvsnas_jax.report import report_data, report_html, report_missing, report_parts, report_pictures
from dvsnas_jax.space import draw
from dvsnas_jax.space import genotype as genotypes

PAGE, COMPARISON = "report.html", "comparison.html"
_MAX_PANELS = 12


def write(*workdirs: str | pathlib.Path, output: str | pathlib.Path | None = None) -> list[str]:
    """Writes the page of a run, and its figures; or one page that sets several runs side by side.

    Args:
      *workdirs: run folders. Of a single one, `figures/` and `report.html` in it are written; of several only the page.
      output: of the page; None: `report.html` in the run folder, `comparison.html` in the first of several.

    Returns:
      The paths written, the page last.

    Raises:
      UserError: no folder, one that holds no run, one of its files that cannot be read, or a page that cannot be
        written.
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
        run = report_data.Run(folders[0], folders[0].resolve().name, folders[0] / report_data.FIGURES)
        parts, links = _parts(run)
        title, written = f"Dynamic cell search: {run.name}", run.written
    else:
        parts, links = _compare(folders)
        title, written = "Dynamic cell searches compared", []
    text = report_html.page(title, parts, links)
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise output_files.refusal(page, error) from None
    return [*written, str(page)]


def _parts(run: report_data.Run) -> tuple[list[str], list[tuple[str, str]]]:
    """The parts of one run, and the anchor and name of each."""
    makers: tuple[tuple[str, str, Callable[[report_data.Run], str]], ...] = (
        ("summary", "Summary", _summary),
        ("result", "Result", report_parts.result),
        ("looks", "What it looks like", _looks),
        ("classes", "Class by class", report_parts.classes),
        ("sequences", "Sequence by sequence", report_parts.sequences),
        ("times", "Time of a frame", report_parts.times),
        ("costs", "Costs", report_parts.costs),
        ("cell", "The cell", _cell),
        ("search", "The search", _search),
        ("chosen", "What the search chose", _chosen),
        ("comparison", "Comparison with other cells", report_parts.comparison),
        ("ablation", "Ablation", report_parts.ablation),
        ("training", "Training", _training),
        ("configuration", "Configuration", _settings),
        ("provenance", "Provenance", _provenance),
        ("missing", "Not in this report", report_missing.part),
    )
    parts, links = [], []
    for name, title, make_fn in makers:
        body = make_fn(run)
        if body:
            anchor = f"{run.prefix}{name}"
            parts.append(report_html.section(run.level, title, body, anchor))
            links.append((anchor, title))
    return parts, links


def _summary(run: report_data.Run) -> str:
    """The run in a few figures."""
    facts: list[tuple[str, str, str]] = []
    scores = run.scores()
    networks = [name for name in ("cell", "static") if name in scores]
    whose = "of the cell" if "cell" in scores else "of the network"
    shown = {"miou": (f"mIoU {whose}", 100, 1, " %"), "flicker": (f"flicker {whose}", 100, 1, " %")}
    shown["ms_per_frame"] = ("time of a frame", 1, 1, " ms")
    for key, (label, factor, decimals, unit) in shown.items():
        values = [scores[name].get(key) for name in networks]
        if values and figures.is_number(values[0]):
            texts = [f"{report_html.number(factor * value, decimals)}{unit}" for value in values if value is not None]
            facts.append((label, texts[0], f"static {texts[1]}" if len(texts) > 1 else ""))
    if run.searched:
        best = max(record["reward"] for record in run.searched)
        strategies = ", ".join(figures.by_source(run.searched))
        facts.append(("candidates scored", str(len(run.searched)), strategies))
        facts.append(("best reward", report_html.number(best, 3), ""))
    data, space = run.config.get("data", {}), run.config.get("space", {})
    if {"name", "height", "width"} <= set(data):
        facts.append(("data", str(data["name"]), f"{data['width']} x {data['height']}"))
    if "mode" in space:
        facts.append(("mode", str(space["mode"]), f"{space.get('num_layers')} layers"))
    tiles = "".join(
        f"<div><dt>{report_html.escape(label)}</dt><dd>{report_html.escape(value)}"
        f"{f' <small>{report_html.escape(more)}</small>' if more else ''}</dd></div>"
        for label, value, more in facts
    )
    return f"<dl class=facts>{tiles}</dl>" if facts else ""


def _looks(run: report_data.Run) -> str:
    """The looping clip, and frames with their labels, predictions and errors."""
    command = report_missing.evaluate(run)
    strip = run.arrays(report_data.STRIP)
    stretch = run.arrays(report_data.CLIP)
    if strip is None and stretch is None:
        return run.lacks("Frames", command) if run.evaluation else ""
    if stretch is None:
        run.lacks("A longer clip", command)
    arrays = stretch or strip
    assert arrays is not None
    moving, still = report_pictures.clip(arrays)
    words = "A short video: frame, label, prediction of the static network"
    words += " and of the cell" if "cell" in arrays else ", and its errors"
    loop = f"<div class=figure>{report_html.image(moving, words, kind='clip', still=still)}</div>"
    return loop + (_strip(run, strip) if strip else "") + _colors(run, arrays)


def _strip(run: report_data.Run, arrays: report_pictures.Arrays) -> str:
    """Consecutive frames, a picture for each row."""
    titles = {
        "frame": "Frames", "label": "Labels", "static": "Static network", "static errors": "Its errors, in orange",
        "cell": "With the cell", "cell errors": "Its errors, in orange",
    }  # fmt: skip
    rows = []
    for name, (picture, text) in report_pictures.rows(arrays).items():
        shown = f"<b>{titles[name]}</b>" + (f": {text}" if text else "")
        words = f"{name} of {len(arrays['frames'])} consecutive frames"
        rows.append(f"<p>{shown}</p>{report_html.image(picture, words, kind='pixels')}")
    report_pictures.strip(arrays, run.class_names(), run.figure("strip.png"), notes=_notes(run))
    words = "Consecutive frames of the evaluation split, their labels, and what the networks make of them"
    box = f'<div class=figure role=region tabindex=0 aria-label="{words}">'
    note = "A stretch chosen for a frame that is hard for the static network: an example, not an average."
    return f"{box}<div class=strip>{''.join(rows)}</div></div>{report_html.note(note)}"


def _notes(run: report_data.Run) -> dict[str, str]:
    """Row of the strip -> mIoU."""
    scores: dict[str, Any] = {name: score.get("miou") for name, score in run.scores().items()}
    return {name: f"mIoU {100 * value:.1f} %" for name, value in scores.items() if figures.is_number(value)}


def _colors(run: report_data.Run, arrays: report_pictures.Arrays) -> str:
    """Which colour is which class, of those in the pictures."""
    names, colors = run.class_names(), arrays["colors"]
    present = np.unique(np.stack([arrays[key] for key in ("labels", *report_pictures.networks(arrays))])).tolist()
    return report_html.legend(
        {
            names[index] if index < len(names) else f"class {index}": colors[index].tolist()
            for index in present
            if index < len(colors)
        }
    )


def _cell(run: report_data.Run) -> str:
    """The winner as a graph and as text."""
    best = run.winner()
    if best is None:
        return ""
    digest = genotypes.digest(*best)
    for suffix in (".png", ".svg"):
        path = run.figure(f"cell{suffix}")
        draw.render(*best, path, f"The cell that was found ({digest})")
    words = f"The dynamic cell that the search found, as a graph: {draw.text(*best)}"
    graph = report_html.svg(path.read_text(), words, f"{run.prefix}f-cell", is_wide=True)
    return f"{graph}<pre>{report_html.escape(draw.text(*best))}</pre>"


def _search(run: report_data.Run) -> str:
    """Rewards, entropy, and in words how the search compares with drawing at random."""
    searched, drawn = run.searched, run.drawn
    if not searched and not drawn:
        return ""
    best = run.winner()
    path = run.figure("reward.svg")
    figures.reward(searched, drawn, path, best_hash=genotypes.digest(*best) if best else None)
    rewards = report_html.svg(path.read_text(), "Reward of the candidates over the search", f"{run.prefix}f-reward")
    entropy = ""
    curve = figures.curves(run.metrics).get(("search", "policy_entropy"))
    if curve is not None:
        path = run.figure("entropy.svg")
        figures.entropy(*curve, path)
        entropy = report_html.svg(path.read_text(), "Entropy of the controller", f"{run.prefix}f-entropy")
    return report_html.grid(rewards, entropy) + f"<p>{' '.join(_sentences(run))}</p>"


def _sentences(run: report_data.Run) -> list[str]:
    """How the search compares with drawing at random."""
    sentences = []
    for source, records in figures.by_source(run.searched).items():
        last = max(record["step"] for record in records)
        late = [record["reward"] for record in records if record["step"] >= 0.75 * last]
        sentences.append(
            f"{report_html.escape(source)}: {len(records)} candidates were scored; mean reward in the last quarter: "
            f"{np.mean(late):.3f}."
        )
    num_stopped = sum(map(figures.is_stopped, run.searched))
    if num_stopped:
        sentences.append(f"Stopped early: {num_stopped}; such a candidate counts with the reward that it had then.")
    is_alone = run.config.get("search", {}).get("mode") == "scratch"
    how = "each trained alone and never stopped" if is_alone else "scored on the same final shared weights"
    if run.drawn:
        rewards = [record["reward"] for record in run.drawn]
        sentences.append(
            f"{len(run.drawn)} uniformly drawn genotypes, {how}: "
            f"{np.mean(rewards):.3f} ± {np.std(rewards):.3f} (standard deviation), the best of them {max(rewards):.3f}."
        )
    if run.searched and run.drawn and not is_alone:
        words = "Rewards also rise because the shared weights are trained on; the random line shows that part."
        sentences.append(words)
    num_lost = len(run.genotypes) - len(run.searched) - len(run.drawn)
    if run.masked():
        masked = ", ".join(draw.readable(name) for name in run.masked())
        sentences.append(f"Masked, so never drawn (controller.masked_operations): {report_html.escape(masked)}.")
    if num_lost:
        sentences.append(f"{num_lost} without a valid score are left out.")
    return sentences


def _chosen(run: report_data.Run) -> str:
    """How often each input, operation and aggregation was chosen, over the search."""
    space = run.space()
    if space is None or len(run.searched) < 4:
        return ""
    shares = figures.choices(run.searched, space)
    tables = []
    for kind in ("inputs", "operations", "aggregations"):
        masked = run.masked() if kind == "operations" else ()
        names = {name: draw.readable(name) if kind != "inputs" else name for name in shares[kind]}
        rows = [(names[name] + " (masked)" * (name in masked), row) for name, row in shares[kind].items()]
        top = max(max(row) for _, row in rows)
        num_allowed = sum(name not in masked for name in names)
        title = f"{kind.capitalize()}, % of the choices; uniform: {100 / num_allowed:.0f}"
        if kind == "inputs":
            title = "Inputs, % of the choices"
        heads = [str(step) for step in shares["bins"]]
        words = f"Share of the chosen {kind} over the search"
        tables.append(report_html.heat(rows, heads, words, title=title, corner="up to step", top=top))
    return report_html.grid(*tables)


def _training(run: report_data.Run) -> str:
    """Curves of every stage."""
    panels = {key: curve for key, curve in figures.curves(run.metrics).items() if key != ("search", "policy_entropy")}
    charts = []
    for index, ((stage, name), curve) in enumerate(list(panels.items())[:_MAX_PANELS]):
        path = run.figure(f"training_{index:02d}.svg")
        figures.training((stage, name), *curve, path)
        charts.append(report_html.svg(path.read_text(), f"{name} of stage {stage}", f"{run.prefix}f-training{index}"))
    if not charts:
        return ""
    left_out = len(panels) - len(charts)
    note = report_html.note(f"{left_out} more curves are in metrics.jsonl and TensorBoard.") if left_out else ""
    return f"<div class=panels>{report_html.grid(*charts)}</div>{note}"


def _settings(run: report_data.Run) -> str:
    """The configuration, folded."""
    if not run.config:
        return ""
    table = report_html.listing(list(report_data.flat(run.config)), "Configuration")
    return f"<details><summary>every key</summary>{table}</details>"


def _provenance(run: report_data.Run) -> str:
    """Versions, devices, commit, command; of a resumed run also what was different from then on."""
    known = {key: value for key, value in run.environment.items() if key != "resumed_with"}
    rows = list(report_data.flat(known))
    for now in run.environment.get("resumed_with", []):
        changes = report_data.differences([known | {"command": None}, now | {"command": None}])
        rows += [(f"resumed with {key}", value) for key, (_, value) in changes]
        known = now
    return report_html.listing(rows, "Provenance") if rows else ""


def _compare(folders: Sequence[pathlib.Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Several runs: side by side first, then one after the other."""
    names = _names(folders)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            report_data.Run(folder, name, pathlib.Path(scratch) / str(index), level=3, prefix=f"run{index}-")
            for index, (folder, name) in enumerate(zip(folders, names, strict=True), start=1)
        ]
        parts = [report_html.section(2, "Side by side", _side_by_side(runs, pathlib.Path(scratch)), "compared")]
        links = [("compared", "Side by side")]
        for index, run in enumerate(runs, start=1):
            inner, _ = _parts(run)
            anchor = f"run{index}"
            head = f'<h2>{report_html.escape(run.name)}</h2>{report_html.note(report_html.escape(run.path))}'
            parts.append(f'<section class=run id="{anchor}">{head}{"".join(inner)}</section>')
            links.append((anchor, run.name))
    return parts, links


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The last part of each path, or as many as it takes to tell them apart.

    Raises:
      UserError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise errors.UserError("report: a run folder is given twice; give each once")
    for count in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _side_by_side(runs: Sequence[report_data.Run], scratch: pathlib.Path) -> str:
    """Scores, reward curves and the keys of the configuration that differ."""
    parts = [_score_table(runs)]
    series = {run.name: (run.searched, run.drawn) for run in runs if run.searched}
    if series:
        figures.rewards(series, scratch / "rewards.svg")
        text = (scratch / "rewards.svg").read_text()
        parts.append(report_html.grid(report_html.svg(text, "Rewards of the runs over their searches", "f-rewards")))
    rows = report_data.differences([run.config for run in runs])
    if rows:
        body = [(report_html.escape(key), [report_html.escape(value) for value in values]) for key, values in rows]
        head = ["key", *(report_html.escape(run.name) for run in runs)]
        title = "Keys of the configuration that differ"
        parts.append(report_html.table(head, body, title, kind="keys", title=title))
    return "".join(parts)


def _score_table(runs: Sequence[report_data.Run]) -> str:
    """A row for each metric, the static network and the cell of every run."""
    columns = {
        (run.name, name): score for run in runs for name, score in run.scores().items() if name in ("static", "cell")
    }
    rewards = {run.name: [record["reward"] for record in run.searched] for run in runs}
    flat = {f"{run}, {'cell' if name == 'cell' else 'static'}": score for (run, name), score in columns.items()}
    rows = []
    for row in report_parts.score_rows(flat):
        rows.append((row.label, [report_html.number(row.values.get(name), row.decimals) for name in flat]))
    parts = []
    if rows:
        head = ["", *map(report_html.escape, flat)]
        parts.append(report_html.table(head, rows, "Scores of the runs", title="Scores"))
    searched = [
        (report_html.escape(name), [str(len(values)), f"{max(values):.3f}", f"{np.mean(values):.3f}"])
        for name, values in rewards.items()
        if values
    ]
    if searched:
        head = ["run", "candidates", "best reward", "mean reward"]
        parts.append(report_html.table(head, searched, "Searches of the runs", title="Searches"))
    return report_html.grid(*parts) if len(flat) <= 2 else "".join(parts)
