"""What `compare` shows: a table as text and Markdown, and the Pareto picture."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.core.files import workdir
from dvsnas_jax.evaluate import figures, score_tables, timing
from dvsnas_jax.studies import compare_rows, study_report

Row = Mapping[str, Any]
"""Of a result of `compare`: `name`, `num_ok`, `num_seeds`, and a column -> `{"mean", "std", "values"}` or None."""

COLUMNS = (
    # key, heading, factor, digits
    ("miou", "mIoU", 100, 1),
    ("fwiou", "fwIoU", 100, 1),
    ("vc_{n}", "VC_{n}", 100, 1),
    ("flicker", "flicker", 100, 2),
    ("changes_followed", "followed", 100, 1),
    ("parameters", "parameters k", 1e-3, 1),
    ("macs", "MMAC/frame", 1e-6, 1),
    ("ms", "ms/frame", 1, 1),
    ("time_ratio", "of static", 1, 2),
)
"""Of the tables; `{n}` stands for a column for each of `config.evaluate.vc_frames`. More is in `compare.json`."""
SPREAD = "Shares in percent, mean ± standard deviation over seeds; of a single seed times have their noise instead"


def write(folder: workdir.Workdir, result: dict[str, Any]) -> study_report.Report:
    """Writes `compare.json`, `compare.md` and `compare.png` into a run folder; the report's text is for a terminal."""
    name = compare_rows.NAME
    report = study_report.write(folder.path, name, result, markdown(result), lambda path: picture(result, path))
    return report._replace(text=table(result))


def _columns(result: Mapping[str, Any]) -> list[tuple[str, str, float, int]]:
    """Key, heading, factor, digits of each; in propagate mode the times of every kind of frame too."""
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
    """Headings, then a line for each row: see `SPREAD`. `by`, where known: the numbers of the commands that made it."""
    shown, commands = _columns(result), result.get("commands") or []
    has_ages = any(_ages(row) != "-" for row in result["rows"])
    more = ["mIoU by age"] if has_ages else []
    lines = [["", "seeds", *(["by"] if commands else []), *(heading for _, heading, _, _ in shown), *more]]
    for row in result["rows"]:
        numbers = [_number(row.get(key), factor, digits) for key, _, factor, digits in shown]
        made = [",".join(map(str, row.get("commands") or [])) or "-"] if commands else []
        lines.append([row["name"], _seeds(row), *made, *numbers, *([_ages(row)] if has_ages else [])])
    return lines


def _ages(row: Row) -> str:
    """Mean mIoU of the frames of each age, from the key frames on, in one cell; of many ages the first ones."""
    found = [row.get(f"age_{age}") for age in range(score_tables.MAX_AGES)]
    texts = [f"{100 * value['mean']:.1f}" if value else "-" for value in found]
    while texts and texts[-1] == "-":
        texts.pop()
    return " ".join(texts) or "-"


def _seeds(row: Row) -> str:
    """How many seeds a row has; of how many, where others have more."""
    failed = row["num_seeds"] - row["num_ok"]
    wanted = row.get("num_wanted", row["num_seeds"])
    text = f"{row['num_ok']} of {wanted}" if row["num_seeds"] < wanted else f"{row['num_ok']}"
    return text + (f" ({failed} diverged)" if failed else "")


def _number(value: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    if value is None:
        return "-"
    mean = f"{factor * value['mean']:.{digits}f}"
    spread = value["std"] or (value.get("noise") if value["std"] is None else None)
    return f"{mean} ± {factor * spread:.{digits}f}" if spread else mean


def table(result: Mapping[str, Any]) -> str:
    """The rows as aligned text."""
    lines = cells(result)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for first, *others in lines:
        rest = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        shown.append("  ".join([first.ljust(widths[0]), *rest]))
    return "\n".join([caption(result), *shown, *notes(result)])


def caption(result: Mapping[str, Any]) -> str:
    """One line that says what was compared."""
    frames = f"{result['split']}, {result['num_frames']} frames" if result["num_frames"] else result["split"]
    rule = f", at most {result['interval']} frames from key frame to key frame" if result["mode"] == "propagate" else ""
    size = "; scores at the size of the label files" if result.get("size") == "file" else ""
    return f"{frames}; mode {result['mode']}{rule}; {result['train_steps']} training steps each{size}"


def notes(result: Mapping[str, Any]) -> list[str]:
    """What stands below the rows: the seeds where a row lacks some, and the commands that made them."""
    wanted = ", ".join(map(str, result.get("seeds") or []))
    is_lacking = any(row["num_seeds"] < row.get("num_wanted", row["num_seeds"]) for row in result["rows"])
    lines = [f"seeds {wanted}; a row with fewer of them is the mean over those that it has"] if is_lacking else []
    if any(_ages(row) != "-" for row in result["rows"]):
        lines.append("mIoU by age: of the frames 0 (key frames), 1, 2, .. frames after their key frame")
    commands = result.get("commands") or []
    lines += [f"by {number}: {command}" for number, command in enumerate(commands, start=1)]
    if commands and any(not row.get("commands") for row in result["rows"][1:]):
        lines.append("by -: an earlier version, which did not note its command")
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, with the sources of the hand-designed cells below."""
    head, *lines = cells(result)
    rule = ["---", *("---:" for _ in head[1:])]
    parts = [
        ["# Comparison", "", caption(result) + ".", f"{SPREAD}."],
        ["| " + " | ".join(line) + " |" for line in (head, rule, *lines)],
        [f"- {line}" for line in notes(result)],
        [f"- `{row['name']}`: {row['source']}." for row in result["rows"] if row.get("source")],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def front(points: Sequence[tuple[float, float]], noises: Sequence[tuple[float, float]] | None = None) -> list[int]:
    """The Pareto front of (cost, score): indices of those that no other beats in one without losing in the other.

    By ascending cost; of equal exact points the first. `noises` are standard errors of the points; a difference within
    twice that of the two together is none. None: all are exact.
    """
    errors = noises or [(0.0, 0.0)] * len(points)

    def gain(index: int, other: int, axis: int) -> int:
        """1 where a point is clearly better than another on an axis, -1 where it is clearly worse, 0 between."""
        difference = points[index][axis] - points[other][axis]
        noise = 2 * math.hypot(errors[index][axis], errors[other][axis])
        sign = 0 if abs(difference) <= noise else 1 if difference > 0 else -1
        return -sign if axis == 0 else sign

    def beats(index: int, other: int) -> bool:
        gains = gain(index, other, 0), gain(index, other, 1)
        is_same = points[index] == points[other] and not any(errors[index] + errors[other]) and index < other
        return min(gains) >= 0 and (max(gains) > 0 or is_same)

    kept = [one for one in range(len(points)) if not any(beats(other, one) for other in range(len(points)))]
    return sorted(kept, key=lambda index: (points[index][0], -points[index][1], index))


def _errors(rows: Sequence[Row], key: str) -> list[float]:
    """Standard errors of a column's means; a cell of one seed has the deviation of those with several.

    The static network is the same in all jobs, and its time is what the others' are multiples of: it has none.
    """
    spreads = [row[key]["std"] for row in rows if row["name"] != compare_rows.STATIC and row[key]["std"]]
    usual = math.sqrt(sum(spread**2 for spread in spreads) / len(spreads)) if spreads else 0.0
    found = []
    for row in rows:
        own = row[key]["std"] if row[key]["std"] is not None else row[key].get("noise", 0.0) / timing.ERRORS or usual
        if key == "macs" or row["name"] == compare_rows.STATIC:
            own = 0.0
        found.append(own / math.sqrt(len(row[key]["values"])))
    return found


def picture(result: Mapping[str, Any], path: str | pathlib.Path) -> None:
    """mIoU against the cost of a frame: a marker with error bars for each row, and the Pareto front."""
    scored = [row for row in result["rows"] if row["num_ok"]]
    key, factor, label = "ms", 1.0, "milliseconds per frame"
    if any(row.get("ms") is None for row in scored):  # times were not taken
        key, factor, label = "macs", 1e-9, "GMAC per frame"
    rows = [row for row in scored if row.get(key) and row["miou"]]
    points = [(factor * row[key]["mean"], 100 * row["miou"]["mean"]) for row in rows]
    with figures.canvas(path, 10, 5.4) as figure:
        axes = figure.add_subplot()
        noises = zip(_errors(rows, key), _errors(rows, "miou"), strict=True)
        best = front(points, [(factor * cost, 100 * score) for cost, score in noises])
        if len(best) > 1:
            costs, scores = zip(*(points[index] for index in best), strict=True)
            scores = tuple(itertools.accumulate(scores, max))
            axes.step(costs, scores, where="post", color=figures.GREY, lw=1.4, ls="--", label="Pareto front")
        for index in sorted(range(len(rows)), key=lambda index: -points[index][1]):
            row, (cost, score) = rows[index], points[index]
            bars = {"xerr": factor * (row[key]["std"] or 0) or None, "yerr": 100 * (row["miou"]["std"] or 0) or None}
            color, marker = _LOOKS[index % len(_LOOKS)]
            style: dict[str, Any] = {"elinewidth": 1.2, "capsize": 3, "ms": 9, "mec": "white", "zorder": 4}
            name = "/".join(row.get("names", [row["name"]])[0].split("/")[-2:])
            star = " *" if index in best else ""
            axes.errorbar(cost, score, fmt=marker, color=color, label=f"{name}, {score:.1f}{star}", **bars, **style)
        axes.set(xlabel=label, ylabel="mIoU, %")
        axes.margins(0.1)
        axes.set_title("Accuracy against cost")
        words = "mIoU, best first; * on the front,\nor within the noise of it"
        figure.legend(loc="outside right upper", title=words, alignment="left")


_COLORS = (figures.INK, figures.ORANGE, figures.BLUE, figures.GREEN, figures.RED, figures.SKY, "#CC79A7")
_MARKERS = "sovD^"
_LOOKS = tuple((_COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]) for index in range(35))
