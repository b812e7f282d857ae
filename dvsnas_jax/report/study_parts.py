"""The parts of the report that tell what `dvsnas compare` and `dvsnas ablate` found in the folder."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.report import markup, run_files
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space.drawing import draw
from dvsnas_jax.studies import ablate_report, compare_report

_change = functools.partial(markup.percent, decimals=2, is_signed=True)
"""Of a reward, in hundredths."""


def comparison(run: run_files.Run) -> str:
    """Hand-designed and given cells side by side, where `dvsnas compare` has run in the folder."""
    if not run.compare:
        return ""
    head, *lines = compare_report.cells(run.compare)
    rows = [(markup.escape(name), [markup.escape(cell) for cell in cells]) for name, *cells in lines]
    draw_fn = functools.partial(compare_report.picture, run.compare)
    chart = run.chart("comparison", "Accuracy of the cells against their cost", draw_fn, is_wide=True)
    table = markup.table([markup.escape(text) for text in head], rows, "Comparison of cells")
    caption = markup.note(markup.escape(f"{compare_report.caption(run.compare)}. {compare_report.SPREAD}."))
    notes = "".join(f"<li>{markup.escape(line)}</li>" for line in compare_report.notes(run.compare))
    return table + caption + (f"<ul class=missing>{notes}</ul>" if notes else "") + chart


def ablation(run: run_files.Run) -> str:
    """What each token and each operation contributes, where `dvsnas ablate` has run in the folder."""
    replace, retrain = run.ablations["replace"], run.ablations["retrain"]
    parts = [
        _tokens(run, replace, "One token replaced, scored as in the search") if replace else "",
        _tokens(run, retrain, "One token replaced, retrained from scratch") if retrain else "",
        _searches(run.ablations["leave_one_out"], run.masked()) if run.ablations["leave_one_out"] else "",
    ]
    if not any(parts):
        return ""
    words = "Changes of the reward, in hundredths; – where a token is that already, or its space has no such member."
    return "".join(parts) + markup.note(words)


def _about_masks(content: Mapping[str, Any], masked: Sequence[str]) -> str:
    """What the search must not choose, and what of it replaces nothing as its weights were never trained."""
    left_out = content.get("left_out") or []
    lines = [f"Masked in the search (controller.masked_operations): {_names(masked)}."] if masked else []
    if left_out:
        lines.append(f"Never trained with shared weights, so that nothing is replaced by it: {_names(left_out)}.")
    return markup.note(markup.escape(" ".join(lines))) if lines else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(draw.readable, names))


def _tokens(run: run_files.Run, content: Mapping[str, Any], title: str) -> str:
    """A row for each replaced token."""
    masked = run.masked()

    def named(name: str) -> str:
        return draw.readable(name) + (", masked" if name in masked else "")

    rows = []
    for row in content["tokens"]:
        best = f"{_change(row['best'])} ({named(row['best_name'])})" if row["best_name"] else "–"
        name = f"{ablate_report.place(row)}: {named(row['now'])}"
        changes = [_change(row[key]) for key in ("none", "skip", "others")]
        rows.append((markup.escape(name), [*changes, markup.escape(best), str(row["count"])]))
    head = ["token", "by none", "by skip", "by another, mean", "best", "variants"]
    whose = "the cell itself"
    if content.get("genotype") and (winner := run.winner()) is not None:
        digest = genotypes.digest(*genotypes.from_dict(content["genotype"]))
        known = [genotypes.digest(*each) for each in (winner, run.found()) if each is not None]
        whose = whose if digest in known else f"not of this run’s cell but of {digest}, itself"
    title = f"{title}; {whose}: {markup.percent(content['reward'], 2)}"
    return markup.table(head, rows, "Ablation of tokens", title=title) + _about_masks(content, masked)


def _searches(content: Mapping[str, Any], masked: Sequence[str]) -> str:
    """A row for each search without an operation."""
    rows = []
    for row in content["searches"]:
        cells = []
        for key in ("best", "mean_last_quarter"):
            change = f" ({_change(row[f'{key}_change'])})" if row["without"] else ""
            cells.append(markup.percent(row[key], 2) + change)
        whole = "all other operations" if masked else "all operations"
        name = f"without {draw.readable(row['without'])}" if row["without"] else whole
        rows.append((markup.escape(name), [*cells, str(row["num_diverged"])]))
    head = ["search", "best", "mean of the last quarter", "diverged"]
    title = "Searches without one operation: it is masked, never drawn and never trained"
    table = markup.table(head, rows, "Searches without one operation", title=title)
    return table + _about_masks(content, masked)
