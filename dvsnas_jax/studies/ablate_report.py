"""The results of an ablation as JSON, as a table in Markdown and as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core.files import workdir
from dvsnas_jax.evaluate import figures
from dvsnas_jax.space import neighbours
from dvsnas_jax.space.drawing import draw
from dvsnas_jax.studies import study_report

Records = Sequence[Mapping[str, Any]]
SLOTS = {
    "op_a": "operation a",
    "op_b": "operation b",
    "agg": "aggregation",
    "in_a": "input a",
    "in_b": "input b",
    neighbours.END: "end",
}


def write_replacements(
    folder: workdir.Workdir, what: str, genotype: Mapping[str, Any], records: Records, *,
    masked: Sequence[str] = (), left_out: Sequence[str] = (),
) -> study_report.Report:  # fmt: skip
    """Writes what replacing each token changes, by "replace" or "retrain": `ablation_<what>.json`, `.md`, a figure.

    `records` are of the genotype itself, then of the variants; `masked`: operations that the search must not choose;
    `left_out`: those of them that replace nothing, as their weights were never trained.
    """
    base, rows = records[0]["reward"], tokens(records)
    content = {"what": what, "genotype": genotype, "reward": base, "tokens": rows, "records": list(records)}
    content |= {"masked": list(masked), "left_out": list(left_out)}
    title = "retrained from scratch" if what == "retrain" else "scored as in the search"
    head = ["layer", "token", "now", "by none", "by skip", "by another, mean", "best", "variants"]
    cells = []
    for row in rows:
        best = f"{_points(row['best'])} ({_with_mask(row['best_name'], masked)})" if row["best_name"] else "-"
        changes = [_points(row[name]) for name in ("none", "skip", "others")]
        now = _with_mask(row["now"], masked)
        cells.append(
            [
                "" if row["field"] == neighbours.END else row["layer"],
                SLOTS[row["field"]],
                now,
                *changes,
                best,
                row["count"],
            ]
        )
    about = (
        f"Change of the reward x 100 when one token is replaced, {title}; "
        f"the genotype itself: {_points(base, is_signed=False)}"
    )
    text = "\n".join([about, *_about_masks(masked, left_out), "", *study_report.markdown(head, cells)])
    return _write(folder, content, text, lambda path: _draw_tokens(rows, title, path))


def place(row: Mapping[str, Any]) -> str:
    """Where a row's token stands, in words."""
    slot = SLOTS.get(row["field"], row["field"])
    return slot if row["field"] == neighbours.END else f"layer {row['layer']}, {slot}"


def _about_masks(masked: Sequence[str], left_out: Sequence[str] = ()) -> list[str]:
    """Lines about the operations that the search must not choose, none where it may choose all."""
    lines = [f"Masked in the search (controller.masked_operations): {', '.join(masked)}"] if masked else []
    if left_out:
        whose = "they replace" if len(left_out) > 1 else "it replaces"
        lines.append(f"The shared weights of {', '.join(left_out)} were never trained, so {whose} nothing here")
    return lines


def _with_mask(name: str, masked: Sequence[str]) -> str:
    return f"{name}, masked" if name in masked else name


def tokens(records: Records) -> list[dict[str, Any]]:
    """A row for each replaced token, in the order of the layers; None where there is nothing to compare.

    Each has `layer`, `field`, `now`, the change of the reward by `none`, by `skip` and by the `others` (mean), the
    `best` (largest) change with its `best_name`, the `count` of variants and of `diverged` ones.
    """
    base = records[0]["reward"]
    groups: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for record in records[1:]:  # a layer and field have one token, the end has several parts
        groups.setdefault((record["layer"], record["field"], record["before"]), []).append(record)
    rows = []
    for key in sorted(groups, key=lambda place: (place[0], list(SLOTS).index(place[1]))):
        (layer, field, now), group = key, groups[key]
        scored = [record for record in group if record["reward"] is not None and base is not None]
        changes = {record["after"]: record["reward"] - base for record in scored}
        others = [change for name, change in changes.items() if name not in ("none", "skip")]
        best = max(changes, key=lambda name: changes[name], default=None)
        row = {"layer": layer, "field": field, "now": now}
        row |= {name: changes.get(name) for name in ("none", "skip")}
        row |= {"others": float(np.mean(others)) if others else None}
        row |= {"best": None if best is None else changes[best], "best_name": best}
        rows.append(row | {"count": len(group), "diverged": sum(record["reward"] is None for record in group)})
    return rows


def write_searches(folder: workdir.Workdir, records: Records, masked: Sequence[str] = ()) -> study_report.Report:
    """Writes what leaving each operation out of the search changes; the first record is of the search with all."""
    names = ("best", "mean_last_quarter")
    rows = [{**record, **{f"{name}_change": _minus(record[name], records[0][name]) for name in names}}
            for record in records]  # fmt: skip
    content = {"what": "leave-one-out", "searches": rows, "masked": list(masked)}
    cells = []
    for row in rows:
        line = [row["without"] or "nothing"]
        for name in names:
            line += [_points(row[name], is_signed=False), _points(row[f"{name}_change"]) if row["without"] else ""]
        cells.append([*line, str(row["num_diverged"])])
    about = (
        f"Reward x 100 of searches of {rows[0]['num_scored'] + rows[0]['num_diverged']} candidates, same seeds; "
        "what is left out is masked: never drawn, its weights never trained"
    )
    head = ["left out", "best", "change", "mean of the last quarter", "change", "diverged"]
    text = "\n".join([about, *_about_masks(masked), "", *study_report.markdown(head, cells)])
    return _write(folder, content, text, lambda path: _draw_searches(rows[1:], path))


def _write(
    folder: workdir.Workdir, content: dict[str, Any], text: str, draw_fn: Callable[[pathlib.Path], None]
) -> study_report.Report:
    name = f"ablation_{content['what'].replace('-', '_')}"
    return study_report.write(folder.path, name, content, text, draw_fn, figures="figures")


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _points(value: float | None, *, is_signed: bool = True) -> str:
    """A reward, or a change of one, in hundredths."""
    return "-" if value is None else f"{100 * value:+.2f}" if is_signed else f"{100 * value:.2f}"


def _draw_tokens(rows: Records, title: str, path: pathlib.Path) -> None:
    labels = [f"{place(row)}: {draw.readable(row['now'])}" for row in rows]
    bars = [("by none", "none", figures.BLUE), ("by skip", "skip", figures.ORANGE)]
    bars.append(("by another, mean", "others", figures.GREY))
    _bars(rows, labels, bars, f"One token replaced, {title}", path)


def _draw_searches(rows: Records, path: pathlib.Path) -> None:
    labels = [f"without {draw.readable(row['without'])}" for row in rows]
    bars = [("best candidate", "best_change", figures.BLUE)]
    bars.append(("mean of the last quarter", "mean_last_quarter_change", figures.GREY))
    _bars(rows, labels, bars, "Searches without one operation", path)


def _bars(
    rows: Records, labels: Sequence[str], bars: Sequence[tuple[str, str, str]], title: str, path: pathlib.Path
) -> None:
    """Horizontal bars around zero, changes of the reward in hundredths; a missing value has no bar.

    For each row, by their name, key of the row and colour.
    """
    with figures.canvas(path, 9, 1.6 + 0.5 * max(len(labels), 1)) as figure:
        axes = figure.add_subplot()
        height = 0.8 / len(bars)
        for index, (name, key, color) in enumerate(bars):
            place = np.arange(len(labels)) + (index - (len(bars) - 1) / 2) * height
            widths = [100 * (row[key] or 0.0) for row in rows]
            axes.barh(place, widths, height * 0.92, color=color, label=name)
        axes.axvline(0, color=figures.INK, lw=1.0)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="change of the reward, hundredths", ylim=(len(labels) - 0.45, -0.55))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(bars), borderpad=0)
