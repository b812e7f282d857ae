"""The scores of an evaluation as tables for a terminal: shares in percent, times in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.evaluate import baselines, timing

ROWS = {
    "static": "static network",
    "joint_static": "static, trained with cell",
    "cell": "with the cell",
    "static_longer": "static, as many more steps",
    "hold": "hold: key frame’s labels",
    "ema": "ema: running average",
    "static_clean": "static, undegraded frames",
    "commonest_class": "always the commonest class",
}


MAX_AGES = 10
"""Ages of frames that a table shows."""


def summary(result: Mapping[str, Any]) -> str:
    """The scores over all sequences (of `evaluation.run`), and what may be said of the times.

    The first line says so where the cell does not beat the baseline of its mode.
    """
    where = ", labels at the size of their files" if result.get("size") == "file" else ""
    verdict = baselines.verdict(result)
    first = f"{result['split']}, {result['num_frames']} frames{where}" + (f"; the cell {verdict}" if verdict else "")
    lines = [first, _head(result["static"], ["ms/frame"])]
    for name, label in ROWS.items():
        scores = result.get(name)
        if scores is not None:
            time = f"{scores['ms_per_frame']:.1f}" if "ms_per_frame" in scores else "-"
            lines.append(_line(label, [*_cells(scores), time]))
    lines += _ages(result) + _vspw(result)
    cell = result.get("cell") or {}
    change = timing.change(result["static"], cell, is_refining=set(cell.get("latency") or {}) == {"all"})
    if change is not None:
        lines.append(timing.sentence(change, result["static"]["ms_per_frame"]))
    return "\n".join(lines)


def _ages(result: Mapping[str, Any]) -> list[str]:
    """mIoU of the frames of each age, in propagate mode: a head and a line for each network that has them."""
    known = {name: result[name]["by_age"] for name in ROWS if (result.get(name) or {}).get("by_age")}
    if "cell" not in known:
        return []
    shown = list(known["cell"])[:MAX_AGES]
    lines = [_line("mIoU, frames since key", shown)]
    for name, ages in known.items():
        lines.append(_line(f"  {ROWS[name]}", [_percent(ages[age]["miou"] if age in ages else None) for age in shown]))
    return lines


def _vspw(result: Mapping[str, Any]) -> list[str]:
    """VC_n as VSPW's evaluator counts it, a line for all networks."""
    parts = []
    for name in ("static", "cell", *baselines.NAMES):
        windows = (result.get(name) or {}).get("vspw_vc") or {}
        if any(share is not None for share in windows.values()):
            parts.append(f"{name} {' / '.join(_percent(share) for share in windows.values())}")
    lengths = " / ".join(f"VC_{num}" for num in result["static"].get("vspw_vc") or {})
    return [f"{lengths} by VSPW's evaluator (constant, right or wrong): {', '.join(parts)}"] if parts else []


def classes(result: Mapping[str, Any]) -> str:
    """IoU and accuracy of each class, and its share of the labelled pixels."""
    truth, networks = [sum(row) for row in result["static"]["confusion"]], _networks(result)
    widths = [9, *({"static": 13, "cell": 11}[name] for _ in ("IoU", "acc.") for name in networks)]
    heads = ["pixels", *(f"{name} {what}" for what in ("IoU", "acc.") for name in networks)]
    lines = [f"{'class':28}" + "".join(f"{text:>{width}}" for text, width in zip(heads, widths, strict=True))]
    for name, pixels in zip(result["classes"], truth, strict=True):
        scores = [result[part][key][name] for key in ("iou", "class_accuracies") for part in networks]
        columns = [_percent(share) for share in (pixels / sum(truth) if any(truth) else None, *scores)]
        lines.append(f"{name:28}" + "".join(f"{text:>{width}}" for text, width in zip(columns, widths, strict=True)))
    return "\n".join(lines)


def sequences(result: Mapping[str, Any]) -> str:
    """A line for each network and sequence."""
    lines = [_head(result["static"], ["frames", "key"])]
    for row in result["sequences"]:
        for name in _networks(row):
            share = _percent(row["cell"]["key_share"]) if name == "cell" else "-"
            lines.append(_line(f"{row['name']} {name}", [*_cells(row[name]), str(row["num_frames"]), share]))
    return "\n".join(lines)


def _networks(scores: Mapping[str, Any]) -> list[str]:
    """The static network, and the cell where there is one."""
    return [name for name in ("static", "cell") if scores.get(name) is not None]


def _head(scores: Mapping[str, Any], more: Sequence[str]) -> str:
    stability = [*(f"VC_{num}" for num in scores["vc"]), "flicker", "followed", "flow"]
    return _line("", ["mIoU", "fwIoU", "acc.", "cl.acc.", *stability, *more])


def _cells(scores: Mapping[str, Any]) -> list[str]:
    shares = [scores[name] for name in ("miou", "fwiou", "accuracy", "class_accuracy")]
    shares += [*scores["vc"].values(), scores["flicker"], scores.get("changes_followed"), scores["flow_consistency"]]
    return [_percent(share) for share in shares]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:28}" + "".join(f"{cell:>9}" for cell in cells)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
