"""A genotype for the eye: as text, and as a graph in SVG or PNG.

The layout is layered (Sugiyama, Tagawa and Toda 1981): a node's column is its longest path from the
inputs, an edge that passes a column gets a lane of its own there, the order inside a column is chosen
for few crossings, and heights by isotonic regression. Every label has a box and every lane a place in
its column, so that no label can be covered.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space import operations

OUTPUT = "output"
HISTORY_COLOR = "#E69F00"
CURRENT_COLOR = "#0072B2"
LAYER_COLOR = "#3B4252"
NONE_COLOR = "#A8ADB4"
_FILLS = {HISTORY_COLOR: "#FCEBC8", CURRENT_COLOR: "#D3E8F6", LAYER_COLOR: "#ECEEF2", NONE_COLOR: "#F6F7F8"}

# Sizes in inches.
_NODE_WIDTH, _NODE_HEIGHT = 1.3, 0.42
_PILL_WIDTH, _PILL_HEIGHT, _PORT = 1.3, 0.32, 0.21
_STUB, _LAYER_WIDTH, _LAYER_HEIGHT = 0.3, 0.95, 0.8
_GROUP_WIDTH = _PILL_WIDTH + _STUB + _LAYER_WIDTH
_OUTPUT_HEIGHT, _LANE_HEIGHT, _SPACE, _GAP = 0.62, 0.06, 0.2, 0.85


@dataclasses.dataclass
class _Item:
    """One place in a column: a node, or the lane of edges from `source` that pass the column."""

    key: str
    source: str
    column: int
    height: float
    y: float = 0.0

    @property
    def is_lane(self) -> bool:
        return self.key != self.source


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A piece of an edge between neighbouring columns; `offset` is the height of the port it enters."""

    left: str
    right: str
    offset: float
    is_live: bool


@dataclasses.dataclass
class _Layout:
    items: dict[str, _Item]
    segments: list[_Segment]

    def columns(self) -> list[list[_Item]]:
        """The items of every column, from top to bottom."""
        columns: list[list[_Item]] = [[] for _ in range(1 + max(item.column for item in self.items.values()))]
        for item in self.items.values():
            columns[item.column].append(item)
        return [sorted(column, key=lambda item: -item.y) for column in columns]


def readable(name: str) -> str:
    """The name of an operation or aggregation for people, for example `sep 3x3 dil 3`; any other name in words."""
    member = operations.OPERATIONS.get(name) or operations.AGGREGATIONS.get(name)
    return member.label if member else name.replace("_", " ")


def text(space: genotypes.Space, genotype: Any) -> str:
    """A line for each layer, `layer0 = gate( sep_conv_3x3(prev_state), skip(decoder) )`, and one for the output."""
    lines = []
    for layer in genotypes.to_dict(space, genotype)["layers"]:
        first, second = (f"{operation}({node})" for operation, node in zip(layer["ops"], layer["in"], strict=True))
        lines.append(f"layer{len(lines)} = {layer['agg']}( {first}, {second} )")
    ends = ", ".join(f"layer{layer}" for layer in genotypes.loose_ends(space, genotype))
    return "\n".join([*lines, f"{OUTPUT} = mean({ends})"])


def render(space: genotypes.Space, genotype: Any, path: str | pathlib.Path, title: str | None = None) -> None:
    """Draws the genotype as a graph into a `.svg` or `.png`.

    Raises:
      UserError: the suffix is neither, the genotype is not of this space, or the file cannot be written.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise errors.UserError(f"{path}: cannot draw into {path.suffix or 'a file without suffix'!r}, use .svg or .png")
    tokens = genotypes.validate(space, genotype)
    layout = _layout(space, tokens)
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dvsnas", "font.family": "DejaVu Sans"}):
        figure = _draw(space, tokens, layout, title)
        try:
            figure.savefig(path, dpi=130, metadata={"Date": None} if suffix == ".svg" else None, facecolor="white")
        except OSError as error:
            raise errors.UserError(
                f"--output: cannot write {path}: {error.strerror or error}; choose another --output"
            ) from None


def _edges(space: genotypes.Space, tokens: np.ndarray) -> list[tuple[str, str, float, bool]]:
    """(source, target, offset of the port, is live) of every edge; `none` is not live."""
    found = []
    for number, (source, target, operation) in enumerate(genotypes.edges(space, tokens)):
        offset = 0.0 if target == OUTPUT else (_PORT, -_PORT)[number % 2]
        found.append((source, target, offset, target == OUTPUT or not operations.OPERATIONS[operation].is_zero))
    return found


def _columns(edges: list[tuple[str, str, float, bool]]) -> dict[str, int]:
    """Column of every node that has an edge: 0 for inputs, else the longest path (edges are in layer order)."""
    columns: dict[str, int] = {}
    for source, target, _, _ in edges:
        columns.setdefault(source, 0)
        columns[target] = max(columns.get(target, 1), columns[source] + 1)
    columns[OUTPUT] = max(column for node, column in columns.items() if node != OUTPUT) + 1
    return columns


def _layout(space: genotypes.Space, tokens: np.ndarray) -> _Layout:
    """Places every node and lane; y in inches, up is positive."""
    edges = _edges(space, tokens)
    columns = _columns(edges)
    order = {genotypes.node_name(space, node): node for node in range(space.num_nodes)} | {OUTPUT: space.num_nodes}
    items = {}
    for node in sorted(columns, key=lambda name: order[name]):
        height = _OUTPUT_HEIGHT if node == OUTPUT else _LAYER_HEIGHT if node.startswith("layer") else _NODE_HEIGHT
        items[node] = _Item(node, node, columns[node], height, y=-float(order[node]))
    live: dict[tuple[str, str, float], bool] = {}
    for source, target, offset, is_live in edges:
        chain = [source]
        for column in range(columns[source] + 1, columns[target]):
            lane = _Item(f"{source}@{column}", source, column, _LANE_HEIGHT, y=items[source].y)
            items.setdefault(lane.key, lane)
            chain.append(lane.key)
        for left, right in itertools.pairwise([*chain, target]):
            key = (left, right, offset if right == target else 0.0)
            live[key] = live.get(key, False) or is_live
    layout = _Layout(items, [_Segment(*key, is_live) for key, is_live in live.items()])
    _choose_order(layout)
    _choose_heights(layout)
    return layout


def _num_crossings(layout: _Layout) -> float:
    """Crossings between columns, plus a little for long edges so that equal orders prefer short ones."""
    rank = {item.key: -index for column in layout.columns() for index, item in enumerate(column)}
    total = 0.0
    for gap in range(len(layout.columns()) - 1):
        inside = [segment for segment in layout.segments if layout.items[segment.left].column == gap]
        left = np.array([rank[segment.left] for segment in inside], np.float64)
        right = np.array([rank[segment.right] + segment.offset for segment in inside])
        crossed = np.subtract.outer(left, left) * np.subtract.outer(right, right) < 0
        total += crossed.sum() / 2 + 0.01 * np.abs(left - right).sum()
    return total


def _choose_order(layout: _Layout) -> None:
    """Sets `y` to ranks with few crossings: barycentre sweeps, then swaps of neighbours while they help."""
    neighbours: dict[str, list[str]] = {key: [] for key in layout.items}
    for segment in layout.segments:
        neighbours[segment.left].append(segment.right)
        neighbours[segment.right].append(segment.left)
    best, best_cost = {key: item.y for key, item in layout.items.items()}, _num_crossings(layout)
    for sweep in range(6):
        columns = layout.columns()
        for column in columns[1:] if sweep % 2 == 0 else columns[-2::-1]:
            side = column[0].column + (-1 if sweep % 2 == 0 else 1)
            for item in column:
                ys = [layout.items[key].y for key in neighbours[item.key] if layout.items[key].column == side]
                item.y = float(np.mean(ys)) if ys else item.y
            for index, item in enumerate(sorted(column, key=lambda item: -item.y)):
                item.y = len(column) / 2 - index
        cost = _num_crossings(layout)
        if cost < best_cost:
            best, best_cost = {key: item.y for key, item in layout.items.items()}, cost
    for key, y in best.items():
        layout.items[key].y = y
    improved = True
    while improved:
        improved = False
        for column in layout.columns():
            for upper, lower in itertools.pairwise(column):
                upper.y, lower.y = lower.y, upper.y
                cost = _num_crossings(layout)
                if cost < best_cost - 1e-9:
                    best_cost, improved = cost, True
                    break
                upper.y, lower.y = lower.y, upper.y


def _choose_heights(layout: _Layout) -> None:
    """Sets `y` in inches: every item near its neighbours, in the order found, without overlap."""
    columns = layout.columns()
    for column in columns:
        _spread(column, np.zeros(len(column)), np.ones(len(column)))
    for sweep in range(40):
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            wishes = np.array([item.y for item in column])
            weights = np.ones(len(column))
            for index, item in enumerate(column):
                pulls = [layout.items[s.left].y - s.offset for s in layout.segments if s.right == item.key]
                pulls += [layout.items[s.right].y + s.offset for s in layout.segments if s.left == item.key]
                wishes[index] = np.mean(pulls)
                weights[index] = 4.0 if item.is_lane else 1.0
            _spread(column, wishes, weights)


def _spread(column: list[_Item], wishes: np.ndarray, weights: np.ndarray) -> None:
    """Moves a column's items to `wishes` as near as their order and heights allow (least squares)."""
    heights = np.array([item.height for item in column])
    distances = (heights[1:] + heights[:-1]) / 2 + _SPACE
    shift = np.concatenate([[0.0], np.cumsum(distances)])
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(-(wishes + shift), weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (low, low_weight, low_size), (high, high_weight, high_size) = blocks[-2:]
            total = low_weight + high_weight
            blocks[-2:] = [((low * low_weight + high * high_weight) / total, total, low_size + high_size)]
    values = -np.concatenate([np.full(size, value) for value, _, size in blocks])
    for item, y in zip(column, values - shift, strict=True):
        item.y = float(y)


def _color(layout: _Layout, source: str) -> str:
    """The colour of a node and of the edges that leave it."""
    if layout.items[source].column > 0:
        return LAYER_COLOR
    return HISTORY_COLOR if source.startswith("prev_") else CURRENT_COLOR


def _left(item: _Item) -> float:
    """Where the item's column begins, in inches."""
    return 0.0 if item.column == 0 else _NODE_WIDTH + _GAP + (item.column - 1) * (_GROUP_WIDTH + _GAP)


def _right(item: _Item) -> float:
    """Where edges leave the item."""
    return _left(item) + (_NODE_WIDTH if item.column == 0 else _GROUP_WIDTH)


def _draw(space: genotypes.Space, tokens: np.ndarray, layout: _Layout, title: str | None) -> Any:
    """The matplotlib figure of a placed graph, one data unit an inch."""
    from matplotlib import figure as figures

    items = layout.items.values()
    low = min(item.y - item.height / 2 for item in items) - 0.75
    high = max(item.y + item.height / 2 for item in items) + (0.65 if title else 0.25)
    width = max(_left(layout.items[OUTPUT]) + _NODE_WIDTH, 0.13 * len(title or "")) + 0.5
    figure = figures.Figure(figsize=(width, high - low))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.25, width - 0.25), ylim=(low, high))
    axes.axis("off")
    for segment in sorted(layout.segments, key=lambda segment: segment.is_live):
        _draw_segment(axes, layout, segment)
    for item in items:
        if item.is_lane:
            is_live = any(segment.is_live for segment in layout.segments if segment.left == item.key)
            _line(axes, [(_left(item), item.y), (_right(item), item.y)], _color(layout, item.source), is_live)
        elif item.key.startswith("layer"):
            _draw_layer(axes, space, tokens, layout, int(item.key[len("layer") :]))
        else:
            _draw_node(axes, space, tokens, layout, item)
    if title:
        axes.text(0, high - 0.34, title, fontsize=13, fontweight="bold", color=LAYER_COLOR, va="center")
    _draw_legend(axes, layout, low + 0.25)
    return figure


def _line(axes: Any, points: list[tuple[float, float]], color: str, is_live: bool) -> None:
    """A straight line of two points or a cubic Bezier curve of four."""
    from matplotlib import patches
    from matplotlib import path as paths

    codes = [paths.Path.MOVETO] + [paths.Path.LINETO if len(points) == 2 else paths.Path.CURVE4] * (len(points) - 1)
    style = {"lw": 1.8, "ec": color} if is_live else {"lw": 1.2, "ec": NONE_COLOR, "ls": (0, (4, 3))}
    # Without `snap`, straight pieces would be rounded to whole pixels and stand off from the curves they continue.
    curve = patches.PathPatch(paths.Path(points, codes), fc="none", zorder=2 if is_live else 1, snap=False, **style)
    axes.add_patch(curve)


def _arrow(axes: Any, tail: tuple[float, float], head: tuple[float, float], color: str, is_live: bool) -> None:
    """A straight line with a head."""
    _line(axes, [tail, (head[0] - 0.06, head[1])], color, is_live)
    x, y = head
    axes.fill([x, x - 0.12, x - 0.12], [y, y + 0.06, y - 0.06], color=color if is_live else NONE_COLOR, lw=0, zorder=3)


def _draw_segment(axes: Any, layout: _Layout, segment: _Segment) -> None:
    """The curve between two columns."""
    left, right = layout.items[segment.left], layout.items[segment.right]
    start, end = (_right(left), left.y), (_left(right), right.y + segment.offset)
    color = _color(layout, left.source)
    if right.key == OUTPUT:
        _arrow(axes, (end[0] - 0.16, end[1]), end, color, segment.is_live)
        end = (end[0] - 0.16, end[1])
    middle = (start[0] + end[0]) / 2
    _line(axes, [start, (middle, start[1]), (middle, end[1]), end], color, segment.is_live)


def _box(axes: Any, x: float, y: float, size: tuple[float, float], color: str, **changes: Any) -> None:
    """A rounded box with its left edge at x and its centre at height y."""
    from matplotlib import patches

    width, height = size
    radius = min(0.16, height / 2)
    rounded = f"round,pad=0,rounding_size={radius}"
    corner = (x, y - height / 2)
    style: dict[str, Any] = {"fc": _FILLS[color], "ec": color, "lw": 1.5, "zorder": 4, **changes}
    axes.add_patch(patches.FancyBboxPatch(corner, width, height, boxstyle=rounded, **style))


def _label(axes: Any, x: float, y: float, words: str, **style: Any) -> None:
    """Centred text."""
    style = {"fontsize": 10, "color": "#1C2026", "ha": "center", "va": "center", "zorder": 5} | style
    axes.text(x, y, words, **style)


def _draw_node(axes: Any, space: genotypes.Space, tokens: np.ndarray, layout: _Layout, item: _Item) -> None:
    """An input or the output."""
    x, middle = _left(item), _left(item) + _NODE_WIDTH / 2
    if item.key == OUTPUT:
        ends = genotypes.loose_ends(space, tokens)
        _box(axes, x, item.y, (_NODE_WIDTH, _OUTPUT_HEIGHT), LAYER_COLOR, fc=LAYER_COLOR)
        _label(axes, middle, item.y + 0.11, OUTPUT, color="white", fontweight="bold", fontsize=11)
        words = f"layer {ends[0]}" if len(ends) == 1 else f"mean of {len(ends)} layers"
        _label(axes, middle, item.y - 0.13, words, color="white", fontsize=8)
        return
    is_live = any(segment.is_live for segment in layout.segments if segment.left == item.key)
    _box(axes, x, item.y, (_NODE_WIDTH, _NODE_HEIGHT), _color(layout, item.key) if is_live else NONE_COLOR)
    _label(axes, middle, item.y, item.key, color="#1C2026" if is_live else "#7A8088")


def _draw_layer(axes: Any, space: genotypes.Space, tokens: np.ndarray, layout: _Layout, layer: int) -> None:
    """A layer: the two operations as pills on the arrows that enter it, the aggregation in its box."""
    item = layout.items[f"layer{layer}"]
    x = _left(item)
    box_x = x + _PILL_WIDTH + _STUB
    for slot, offset in ((0, _PORT), (1, -_PORT)):
        operation = operations.OPERATIONS[space.operations[tokens[layer, 2 + slot]]]
        color = _color(layout, genotypes.node_name(space, tokens[layer, slot]))
        y, is_live = item.y + offset, not operation.is_zero
        style: dict[str, Any] = {"fc": "white", "lw": 1.2} if is_live else {"fc": "white", "lw": 1.0, "ls": (0, (4, 3))}
        _box(axes, x, y, (_PILL_WIDTH, _PILL_HEIGHT), color if is_live else NONE_COLOR, **style)
        _label(axes, x + _PILL_WIDTH / 2, y, operation.label, color="#1C2026" if is_live else "#7A8088")
        _arrow(axes, (x + _PILL_WIDTH, y), (box_x, y), color, is_live)
        _label(axes, box_x + 0.1, y, "ab"[slot], fontsize=7.5, color="#6B7280")
    _box(axes, box_x, item.y, (_LAYER_WIDTH, _LAYER_HEIGHT), LAYER_COLOR)
    middle = box_x + _LAYER_WIDTH / 2 + 0.04
    words = operations.AGGREGATIONS[space.aggregations[tokens[layer, 4]]].label
    _label(axes, middle, item.y + 0.1, words, fontweight="bold", fontsize=11.5 if len(words) < 7 else 10)
    _label(axes, middle, item.y - 0.16, f"layer {layer}", fontsize=8, color="#5A616B")


def _draw_legend(axes: Any, layout: _Layout, y: float) -> None:
    """What the colours mean, only for those in use."""
    inputs = [item.key for item in layout.items.values() if item.column == 0]
    entries = [(HISTORY_COLOR, "from the past", any(name.startswith("prev_") for name in inputs))]
    entries.append((CURRENT_COLOR, "from this frame", any(not name.startswith("prev_") for name in inputs)))
    entries.append((NONE_COLOR, "none: cut off", not all(segment.is_live for segment in layout.segments)))
    used = [(color, words) for color, words, is_used in entries if is_used]
    for number, (color, words) in enumerate(used):
        x = 1.55 * number
        _box(axes, x, y, (0.2, 0.2), color)
        _label(axes, x + 0.28, y, words, ha="left", fontsize=9, color="#4A505A")
