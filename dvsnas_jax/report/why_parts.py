"""The part of the report that tells why: what each part of the cell is worth, and what the budget gives without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.report import markup, run_files
from dvsnas_jax.space import cell_end
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.studies import why as why_lib

_COLUMNS = (("miou", "mIoU", 1), ("fwiou", "fwIoU", 1), ("flicker", "flicker", 2), ("changes_followed", "followed", 1))
"""Key, heading and decimals of what is set beside the cell."""


def why(run: run_files.Run) -> str:
    """Both, where they were measured."""
    winner = run.winner()
    if winner is None:
        return ""
    content = run.ablations["worth"]
    digest = genotypes.digest(*winner)
    is_known = content.get("digest") == digest
    if not is_known and run.whole(digest).end != cell_end.NONE:
        run.lacks("What each part of the cell is worth", run.command("ablate", "--what=worth"))
    return (_worth(run, content) if is_known else "") + _rivals(run)


def _worth(run: run_files.Run, content: Mapping[str, Any]) -> str:
    """The parts of the cell, with the noise of each."""
    sentences = [markup.escape(line.replace("`", "")) for line in why_lib.verdicts(content)]
    rows = [(markup.escape(name), [markup.escape(cell) for cell in cells]) for name, *cells in why_lib.cells(content)]
    table = markup.table(list(why_lib.HEAD), rows, "What each part of the cell is worth")
    chart = run.chart("worth", "What each part of the cell is worth", lambda path: why_lib.draw(content, path))
    return f"<p>{' '.join(sentences)}</p>{table}{markup.note(markup.escape(why_lib.caption(content) + '.'))}{chart}"


def _rivals(run: run_files.Run) -> str:
    """The cell beside what needs no training, drawn cells and hand-designed ones, as evaluated."""
    scores, found = run.scores(), why_lib.rivals(run.compare)
    if not found or "cell" not in scores:
        return ""
    rows = [
        (markup.escape(run_files.NETWORKS[name]), _scores(scores[name]))
        for name in ("cell", "static")
        if scores.get(name)
    ]
    rows += [
        (markup.escape(run_files.NETWORKS[name]), _scores(scores[name])) for name in ("ema", "hold") if scores.get(name)
    ]
    drawn, designed = found[: found[0].name == why_lib.RANDOM], found[found[0].name == why_lib.RANDOM :]
    rows += [(f"{rival.num} drawn uniformly", _spread(rival.scores)) for rival in drawn]
    rows += [
        (markup.escape(rival.name) + (", the best hand-designed" if rival is designed[0] and len(designed) > 1 else ""),
         _spread(rival.scores))
        for rival in designed
    ]  # fmt: skip
    head = ["", *(heading for _, heading, _ in _COLUMNS)]
    split = markup.escape(str(run.evaluation.get("split", "val")))
    title = f"What the same training gives other cells, on {split}"
    words = "Of several cells: mean ± standard deviation over cells (smallest to largest)."
    return (
        markup.table(head, rows, title, title=title) + f"<p>{_verdict(scores['cell'], drawn)}</p>" + markup.note(words)
    )


def _scores(scores: Mapping[str, Any]) -> list[str]:
    return [markup.percent(scores.get(key), decimals) for key, _, decimals in _COLUMNS]


def _spread(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Mean and deviation of each score of some cells."""
    texts = []
    for key, _, decimals in _COLUMNS:
        values = scores.get(key) or []
        text = markup.percent(float(np.mean(values)) if values else None, decimals)
        if len(values) > 1:
            low, high = (markup.percent(each, decimals) for each in (min(values), max(values)))
            text += f" ± {markup.percent(float(np.std(values, ddof=1)), decimals)} ({low} to {high})"
        texts.append(text)
    return texts


def _verdict(cell: Mapping[str, Any], drawn: Sequence[why_lib.Rival]) -> str:
    """How many of the drawn cells are better."""
    if not drawn:
        return ""
    values = drawn[0].scores["miou"]
    num = sum(value >= cell["miou"] for value in values)
    return f"{num} of {len(values)} uniformly drawn cells have at least the mIoU of the cell that was found."
