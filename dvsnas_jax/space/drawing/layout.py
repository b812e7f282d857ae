"""Where every node and edge of a genotype's graph goes.

The layout is layered (Sugiyama, Tagawa and Toda 1981): a node's column is its longest path from the
inputs, an edge that passes a column gets a lane of its own there, the order inside a column is chosen
for few crossings, and heights by isotonic regression. Every label has a box and every lane a place in
its column, so that no label can be covered.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space import operations

OUTPUT = "output"

# Sizes in inches.
NODE_WIDTH, NODE_HEIGHT = 1.3, 0.42
PILL_WIDTH, PILL_HEIGHT, PORT = 1.3, 0.32, 0.21
STUB, LAYER_WIDTH, LAYER_HEIGHT = 0.3, 0.95, 0.8
GROUP_WIDTH = PILL_WIDTH + STUB + LAYER_WIDTH
OUTPUT_HEIGHT, LANE_HEIGHT, SPACE, GAP = 0.62, 0.06, 0.2, 0.85


@dataclasses.dataclass
class Item:
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
class Segment:
    """A piece of an edge between neighbouring columns; `offset` is the height of the port it enters."""

    left: str
    right: str
    offset: float
    is_live: bool


@dataclasses.dataclass
class Layout:
    items: dict[str, Item]
    segments: list[Segment]

    def is_live(self, item: Item) -> bool:
        """Whether an edge that is not `none` leaves it."""
        return any(segment.is_live for segment in self.segments if segment.left == item.key)

    def heights(self) -> dict[str, float]:
        return {key: item.y for key, item in self.items.items()}

    def columns(self) -> list[list[Item]]:
        """The items of every column, from top to bottom."""
        columns: list[list[Item]] = [[] for _ in range(1 + max(item.column for item in self.items.values()))]
        for item in self.items.values():
            columns[item.column].append(item)
        return [sorted(column, key=lambda item: -item.y) for column in columns]


def edges(space: genotypes.Space, tokens: np.ndarray) -> list[tuple[str, str, float, bool]]:
    """(source, target, offset of the port, is live) of every edge; `none` is not live."""
    found = []
    for number, (source, target, operation) in enumerate(genotypes.edges(space, tokens)):
        offset = 0.0 if target == OUTPUT else (PORT, -PORT)[number % 2]
        found.append((source, target, offset, target == OUTPUT or not operations.OPERATIONS[operation].is_zero))
    return found


def _columns(graph: list[tuple[str, str, float, bool]]) -> dict[str, int]:
    """Column of every node that has an edge: 0 for inputs, else the longest path (its edges are in layer order)."""
    columns: dict[str, int] = {}
    for source, target, _, _ in graph:
        columns.setdefault(source, 0)
        columns[target] = max(columns.get(target, 1), columns[source] + 1)
    columns[OUTPUT] = max(column for node, column in columns.items() if node != OUTPUT) + 1
    return columns


def make(space: genotypes.Space, tokens: np.ndarray) -> Layout:
    """Places every node and lane; y in inches, up is positive."""
    found = edges(space, tokens)
    columns = _columns(found)
    order = {genotypes.node_name(space, node): node for node in range(space.num_nodes)} | {OUTPUT: space.num_nodes}
    items = {}
    for node in sorted(columns, key=lambda name: order[name]):
        height = OUTPUT_HEIGHT if node == OUTPUT else LAYER_HEIGHT if node.startswith("layer") else NODE_HEIGHT
        items[node] = Item(node, node, columns[node], height, y=-float(order[node]))
    live: dict[tuple[str, str, float], bool] = {}
    for source, target, offset, is_live in found:
        chain = [source]
        for column in range(columns[source] + 1, columns[target]):
            lane = Item(f"{source}@{column}", source, column, LANE_HEIGHT, y=items[source].y)
            items.setdefault(lane.key, lane)
            chain.append(lane.key)
        for left, right in itertools.pairwise([*chain, target]):
            key = (left, right, offset if right == target else 0.0)
            live[key] = live.get(key, False) or is_live
    layout = Layout(items, [Segment(*key, is_live) for key, is_live in live.items()])
    _choose_order(layout)
    _choose_heights(layout)
    return layout


def num_crossings(layout: Layout) -> float:
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


def _choose_order(layout: Layout) -> None:
    """Sets `y` to ranks with few crossings: barycentre sweeps, then swaps of neighbours while they help."""
    neighbours: dict[str, list[str]] = {key: [] for key in layout.items}
    for segment in layout.segments:
        neighbours[segment.left].append(segment.right)
        neighbours[segment.right].append(segment.left)
    best, best_cost = layout.heights(), num_crossings(layout)
    for sweep in range(6):
        columns = layout.columns()
        for column in columns[1:] if sweep % 2 == 0 else columns[-2::-1]:
            side = column[0].column + (-1 if sweep % 2 == 0 else 1)
            for item in column:
                ys = [layout.items[key].y for key in neighbours[item.key] if layout.items[key].column == side]
                item.y = float(np.mean(ys)) if ys else item.y
            for index, item in enumerate(sorted(column, key=lambda item: -item.y)):
                item.y = len(column) / 2 - index
        cost = num_crossings(layout)
        if cost < best_cost:
            best, best_cost = layout.heights(), cost
    for key, y in best.items():
        layout.items[key].y = y
    improved = True
    while improved:
        improved = False
        for column in layout.columns():
            for upper, lower in itertools.pairwise(column):
                upper.y, lower.y = lower.y, upper.y
                cost = num_crossings(layout)
                if cost < best_cost - 1e-9:
                    best_cost, improved = cost, True
                    break
                upper.y, lower.y = lower.y, upper.y


def _choose_heights(layout: Layout) -> None:
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


def _spread(column: list[Item], wishes: np.ndarray, weights: np.ndarray) -> None:
    """Moves a column's items to `wishes` as near as their order and heights allow (least squares)."""
    from scipy import optimize

    heights = np.array([item.height for item in column])
    distances = (heights[1:] + heights[:-1]) / 2 + SPACE
    shift = np.concatenate([[0.0], np.cumsum(distances)])
    fitted = optimize.isotonic_regression(wishes + shift, weights=weights, increasing=False).x
    for item, y in zip(column, fitted - shift, strict=True):
        item.y = float(y)


def left(item: Item) -> float:
    """Where the item's column begins, in inches."""
    return 0.0 if item.column == 0 else NODE_WIDTH + GAP + (item.column - 1) * (GROUP_WIDTH + GAP)


def right(item: Item) -> float:
    """Where edges leave the item."""
    return left(item) + (NODE_WIDTH if item.column == 0 else GROUP_WIDTH)
