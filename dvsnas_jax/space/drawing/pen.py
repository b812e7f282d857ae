"""The strokes of a drawing, one data unit an inch: lines, arrows, boxes, labels, and their colours."""

from __future__ import annotations

from typing import Any

HISTORY_COLOR = "#E69F00"
CURRENT_COLOR = "#0072B2"
LAYER_COLOR = "#3B4252"
NONE_COLOR = "#A8ADB4"
WORTH_COLOR = "#009E73"
_FILLS = {HISTORY_COLOR: "#FCEBC8", CURRENT_COLOR: "#D3E8F6", LAYER_COLOR: "#ECEEF2", NONE_COLOR: "#F6F7F8"}


def line(axes: Any, points: list[tuple[float, float]], color: str, is_live: bool) -> None:
    """A straight line of two points or a cubic Bezier curve of four."""
    from matplotlib import patches
    from matplotlib import path as paths

    codes = [paths.Path.MOVETO] + [paths.Path.LINETO if len(points) == 2 else paths.Path.CURVE4] * (len(points) - 1)
    style = {"lw": 1.8, "ec": color} if is_live else {"lw": 1.2, "ec": NONE_COLOR, "ls": (0, (4, 3))}
    # Without `snap`, straight pieces would be rounded to whole pixels and stand off from the curves they continue.
    curve = patches.PathPatch(paths.Path(points, codes), fc="none", zorder=2 if is_live else 1, snap=False, **style)
    axes.add_patch(curve)


def arrow(axes: Any, tail: tuple[float, float], head: tuple[float, float], color: str, is_live: bool) -> None:
    """A straight line with a head."""
    line(axes, [tail, (head[0] - 0.06, head[1])], color, is_live)
    x, y = head
    axes.fill([x, x - 0.12, x - 0.12], [y, y + 0.06, y - 0.06], color=color if is_live else NONE_COLOR, lw=0, zorder=3)


def curve(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    is_live: bool,
    *,
    has_head: bool = False,
) -> None:
    """A line from left to right that leaves and arrives level; with a head it ends as an arrow."""
    if has_head:
        arrow(axes, (end[0] - 0.16, end[1]), end, color, is_live)
        end = (end[0] - 0.16, end[1])
    middle = (start[0] + end[0]) / 2
    line(axes, [start, (middle, start[1]), (middle, end[1]), end], color, is_live)


def box(axes: Any, x: float, y: float, size: tuple[float, float], color: str, **changes: Any) -> None:
    """A rounded box with its left edge at x and its centre at height y."""
    from matplotlib import patches

    width, height = size
    radius = min(0.16, height / 2)
    rounded = f"round,pad=0,rounding_size={radius}"
    corner = (x, y - height / 2)
    style: dict[str, Any] = {"fc": _FILLS[color], "ec": color, "lw": 1.5, "zorder": 4, **changes}
    axes.add_patch(patches.FancyBboxPatch(corner, width, height, boxstyle=rounded, **style))


def label(axes: Any, x: float, y: float, words: str, **style: Any) -> None:
    """Centred text; empty is none."""
    if not words:
        return
    style = {"fontsize": 10, "color": "#1C2026", "ha": "center", "va": "center", "zorder": 5} | style
    axes.text(x, y, words, **style)
