"""The scores of an evaluation as tables for a terminal: shares in percent, times in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROWS = {
    "static": "static network",
    "cell": "with the cell",
    "static_clean": "static, undegraded frames",
    "commonest_class": "always the commonest class",
}


def summary(result: Mapping[str, Any]) -> str:
    """The scores over all sequences.

    Args:
      result: of `evaluate.run`.
    """
    lines = [f"{result['split']}, {result['num_frames']} frames", _head(result["static"], ["ms/frame"])]
    for name, label in ROWS.items():
        scores = result.get(name)
        if scores is not None:
            time = f"{scores['ms_per_frame']:.1f}" if "ms_per_frame" in scores else "-"
            lines.append(_line(label, [*_cells(scores), time]))
    return "\n".join(lines)


def classes(result: Mapping[str, Any]) -> str:
    """IoU and accuracy of each class, and its share of the labelled pixels."""
    truth = [sum(row) for row in result["static"]["confusion"]]
    parts = [part for part in ("static", "cell") if result.get(part) is not None]
    heads = [(f"{part} {kind}", width) for kind, widths in (("IoU", (13, 11)), ("acc.", (13, 11)))
             for part, width in zip(parts, widths, strict=False)]  # fmt: skip
    lines = [f"{'class':28}{'pixels':>9}" + "".join(f"{head:>{width}}" for head, width in heads)]
    for name, pixels in zip(result["classes"], truth, strict=True):
        scores = [result[part][key][name] for key in ("iou", "class_accuracies") for part in parts]
        share = pixels / sum(truth) if any(truth) else None
        cells = [f"{_percent(score):>{width}}" for score, (_, width) in zip(scores, heads, strict=True)]
        lines.append(f"{name:28}{_percent(share):>9}" + "".join(cells))
    return "\n".join(lines)


def sequences(result: Mapping[str, Any]) -> str:
    """Two lines for each sequence: the static network and the cell, if there is one."""
    lines = [_head(result["static"], ["frames", "key"])]
    for row in result["sequences"]:
        for name in [name for name in ("static", "cell") if name in row]:
            share = _percent(row["cell"]["key_share"]) if name == "cell" else "-"
            lines.append(_line(f"{row['name']} {name}", [*_cells(row[name]), str(row["num_frames"]), share]))
    return "\n".join(lines)


def _head(scores: Mapping[str, Any], more: Sequence[str]) -> str:
    stability = [*(f"VC_{num}" for num in scores["vc"]), "flicker", "flow"]
    return _line("", ["mIoU", "fwIoU", "acc.", "cl.acc.", *stability, *more])


def _cells(scores: Mapping[str, Any]) -> list[str]:
    shares = [scores[name] for name in ("miou", "fwiou", "accuracy", "class_accuracy")]
    shares += [*scores["vc"].values(), scores["flicker"], scores["flow_consistency"]]
    return [_percent(share) for share in shares]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:28}" + "".join(f"{cell:>9}" for cell in cells)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
