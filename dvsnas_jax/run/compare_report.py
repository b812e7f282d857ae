"""What `compare` shows: a table as text and Markdown, and the Pareto picture."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.run import figures

Row = Mapping[str, Any]
"""Of a result of `compare`: `name`, `num_ok`, `num_seeds`, and a column -> `{"mean", "std", "values"}` or None."""

COLUMNS = (
    # key, heading, factor, digits
    ("miou", "mIoU", 100, 1),
    ("fwiou", "fwIoU", 100, 1),
    ("vc_{n}", "VC_{n}", 100, 1),
    ("flicker", "flicker", 100, 2),
    ("parameters", "parameters k", 1e-3, 1),
    ("macs", "MMAC/frame", 1e-6, 1),
    ("ms", "ms/frame", 1, 1),
    ("time_ratio", "of static", 1, 2),
)
"""Of the tables; `{n}` stands for a column for each of `config.evaluate.vc_frames`."""


def columns(result: Mapping[str, Any]) -> list[tuple[str, str, float, int]]:
    """The columns of a result: key, heading, factor, digits; in propagate mode the times of every kind of frame too."""
    found = []
    for key, heading, factor, digits in COLUMNS:
        counts = result["vc_frames"] if "{n}" in key else [None]
        found += [(key.format(n=n), heading.format(n=n), factor, digits) for n in counts]
    if result["mode"] == "propagate":
        taken = {key for row in result["rows"] for key in row}
        kinds = [(f"ms_{kind}", f"ms {kind}", 1, 1) for kind in ("key", "cell", "regions") if f"ms_{kind}" in taken]
        found += [*kinds, ("key_share", "key share", 100, 0)]
    return found


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """Headings, then a line for each row: shares in percent, mean ± standard deviation over the seeds."""
    shown = columns(result)
    lines = [["", "seeds", *(heading for _, heading, _, _ in shown)]]
    for row in result["rows"]:
        failed = row["num_seeds"] - row["num_ok"]
        seeds = f"{row['num_ok']}" + (f" ({failed} diverged)" if failed else "")
        lines.append([row["name"], seeds, *(_number(row.get(key), f, digits) for key, _, f, digits in shown)])
    return lines


def _number(value: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    if value is None:
        return "-"
    mean = f"{factor * value['mean']:.{digits}f}"
    return mean if not value["std"] else f"{mean} ± {factor * value['std']:.{digits}f}"


def table(result: Mapping[str, Any]) -> str:
    """The rows as aligned text."""
    lines = cells(result)
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    shown = []
    for first, *others in lines:
        rest = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        shown.append("  ".join([first.ljust(widths[0]), *rest]))
    return "\n".join([caption(result), *shown])


def caption(result: Mapping[str, Any]) -> str:
    """One line that says what was compared."""
    frames = f"{result['split']}, {result['num_frames']} frames" if result["num_frames"] else result["split"]
    rule = f", at most {result['interval']} frames from key frame to key frame" if result["mode"] == "propagate" else ""
    return f"{frames}; mode {result['mode']}{rule}; {result['train_steps']} training steps each"


def markdown(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, with the sources of the hand-designed cells below."""
    head, *lines = cells(result)
    rule = ["---", *("---:" for _ in head[1:])]
    table_lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *lines)]
    notes = [f"- `{row['name']}`: {row['source']}." for row in result["rows"] if row.get("source")]
    text = ["# Comparison", "", caption(result) + ".", "Shares in percent, mean ± standard deviation over seeds.", ""]
    return "\n".join([*text, *table_lines, *(["", *notes] if notes else []), ""])


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto front of (cost, score): indices of those that no other beats in one without losing in the other.

    Returns:
      By ascending cost; of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    kept: list[int] = []
    for index in order:
        if not kept or points[index][1] > points[kept[-1]][1]:
            kept.append(index)
    return kept


def picture(result: Mapping[str, Any], path: str | pathlib.Path) -> None:
    """mIoU against the cost of a frame: a marker with error bars for each row, and the Pareto front.

    Args:
      result: of `compare`.
      path: PNG to write.
    """
    scored = [row for row in result["rows"] if row["num_ok"]]
    key, factor, label = "ms", 1.0, "milliseconds per frame"
    if any(row.get("ms") is None for row in scored):  # times were not taken
        key, factor, label = "macs", 1e-9, "GMAC per frame"
    rows = [row for row in scored if row.get(key) and row["miou"]]
    points = [(factor * row[key]["mean"], 100 * row["miou"]["mean"]) for row in rows]
    with figures.canvas(path, 10, 5.4) as figure:
        axes = figure.add_subplot()
        best = front(points)
        if len(best) > 1:
            costs, scores = zip(*(points[index] for index in best), strict=True)
            axes.step(costs, scores, where="post", color=figures.GREY, lw=1.4, ls="--", label="Pareto front")
        for index in sorted(range(len(rows)), key=lambda index: -points[index][1]):
            row, (cost, score) = rows[index], points[index]
            bars = {"xerr": factor * (row[key]["std"] or 0) or None, "yerr": 100 * (row["miou"]["std"] or 0) or None}
            color, marker = _LOOKS[index % len(_LOOKS)]
            style: dict[str, Any] = {"elinewidth": 1.2, "capsize": 3, "ms": 9, "mec": "white", "zorder": 4}
            name = "/".join(row["name"].split("/")[-2:])
            star = " *" if index in best else ""
            axes.errorbar(cost, score, fmt=marker, color=color, label=f"{name}, {score:.1f}{star}", **bars, **style)
        axes.set(xlabel=label, ylabel="mIoU, %")
        axes.margins(0.1)
        axes.set_title("Accuracy against cost")
        figure.legend(loc="outside right upper", title="mIoU, best first; * on the front", alignment="left")


_COLORS = (figures.INK, figures.ORANGE, figures.BLUE, figures.GREEN, figures.RED, figures.SKY, "#CC79A7")
_MARKERS = "sovD^"
_LOOKS = tuple((_COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]) for index in range(35))
