"""The end of a cell for the eye: how its output, the current logits and those of the frame before become the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dvsnas_jax.space import cell_end
from dvsnas_jax.space.drawing import layout as layout_lib
from dvsnas_jax.space.drawing import pen

CURRENT, PAST, OUTPUT = "current logits", "past logits", "output"
_NEW = "new logits"
_GAP = 0.55
_STEP_WIDTH, _STEP_HEIGHT = 0.95, 0.72
_FONT_OF_WORTH = 7.5


class Whole(NamedTuple):
    """What a drawing of a cell shows beside its layers.

    Attributes:
      end: one of `cell_end.ENDS`.
      is_propagating: whether the mode is propagate, which has no current logits.
      worth: name of an input, a layer (`layer0`), a part of the end or `past logits` -> a few words below it.
    """

    end: str = cell_end.HEADS
    is_propagating: bool = False
    worth: Mapping[str, str] = {}


class _Node(NamedTuple):
    """A box: its column, its height over the cell's output, its kind and its words."""

    column: int
    y: float
    kind: str
    words: str
    below: str = ""


class _Link(NamedTuple):
    """An arrow to a port, so high over the middle of its target."""

    source: str
    target: str
    port: float = 0.0


_HEAD, _SOURCE, _STEP, _LOGITS = "head", "source", "step", "logits"
_WIDTHS = {_HEAD: layout_lib.PILL_WIDTH, _SOURCE: layout_lib.NODE_WIDTH, _STEP: _STEP_WIDTH}


def formula(whole: Whole) -> str:
    """The end in a line of text."""
    moved = "past logits, moved by offsets(output)" if whole.end == cell_end.HEADS else "past logits"
    if whole.end == cell_end.CLASSIFIER:
        return "logits = classifier(output)" + ("" if whole.is_propagating else " + current logits")
    gate = "gate(output)" if whole.end == cell_end.HEADS else "share"
    mixed = moved if whole.is_propagating else f"{gate} * current logits + (1 - {gate}) * ({moved})"
    return f"logits = {mixed}" + (" + correction(output)" if whole.end == cell_end.HEADS else "")


def extent(whole: Whole) -> tuple[float, float, float]:
    """Lowest and highest place over the cell's output, and width, in inches."""
    nodes, _ = _graph(whole)
    ys = [node.y for node in nodes.values()]
    return min(ys) - 0.5, max(ys) + 0.4, max(_left(node, nodes) for node in nodes.values()) + layout_lib.NODE_WIDTH


def sources(whole: Whole) -> list[str]:
    """Those of `CURRENT` and `PAST` that the end has."""
    return [name for name in _graph(whole)[0] if name in (CURRENT, PAST)]


def draw(axes: Any, whole: Whole, x: float, y: float) -> None:
    """Draws the end to the right of the cell's output, whose box ends at (x, y)."""
    nodes, links = _graph(whole)
    for link in links:
        source, target = nodes.get(link.source), nodes[link.target]
        start = (x, y)
        if source is not None:
            start = (x + _left(source, nodes) + _WIDTHS[source.kind], y + source.y)
        end = (x + _left(target, nodes), y + target.y + link.port)
        colors = {CURRENT: pen.CURRENT_COLOR, PAST: pen.HISTORY_COLOR}
        pen.curve(axes, start, end, colors.get(link.source, pen.LAYER_COLOR), True, has_head=True)
    for name, node in nodes.items():
        _draw_node(axes, name, node, (x + _left(node, nodes), y + node.y), whole.worth.get(name, ""))


def _graph(whole: Whole) -> tuple[dict[str, _Node], list[_Link]]:
    """Boxes by name, and arrows."""
    if whole.end == cell_end.CLASSIFIER:
        nodes = {"correction": _Node(0, 0.0, _HEAD, "classifier")}
        if not whole.is_propagating:
            nodes |= {CURRENT: _Node(0, 0.8, _SOURCE, CURRENT), "add": _Node(1, 0.4, _STEP, "add")}
            links = [_Link(CURRENT, "add", 0.2), _Link("correction", "add", -0.2), _Link("add", _NEW)]
        else:
            links = [_Link("correction", _NEW)]
        nodes[_NEW] = _Node(2, 0.4 if "add" in nodes else 0.0, _LOGITS, _NEW, "of this frame")
        return nodes, [_Link(OUTPUT, "correction"), *links]
    nodes, links = {PAST: _Node(0, 0.2, _SOURCE, PAST, "of the frame before")}, list[_Link]()
    last = PAST
    if whole.end == cell_end.HEADS:
        nodes |= {
            "offsets": _Node(0, -0.55, _HEAD, "offsets"),
            "move": _Node(1, -0.17, _STEP, "move", "by the offsets"),
        }
        links += [_Link(OUTPUT, "offsets"), _Link(PAST, "move", 0.2), _Link("offsets", "move", -0.2)]
        last = "move"
    if not whole.is_propagating:
        below = "by the gate" if whole.end == cell_end.HEADS else "by a share"
        nodes |= {CURRENT: _Node(0, 1.65, _SOURCE, CURRENT), "mix": _Node(2, 0.6, _STEP, "mix", below)}
        links += [_Link(CURRENT, "mix", 0.25), _Link(last, "mix", -0.25)]
        last = "mix"
        if whole.end == cell_end.HEADS:
            nodes["gate"] = _Node(0, 0.95, _HEAD, "gate")
            links += [_Link(OUTPUT, "gate"), _Link("gate", "mix")]
    if whole.end == cell_end.HEADS:
        nodes |= {
            "correction": _Node(0, -1.25, _HEAD, "correction"),
            "add": _Node(3, -0.75 if whole.is_propagating else 0.0, _STEP, "add"),
        }
        links += [_Link(OUTPUT, "correction"), _Link(last, "add", 0.2), _Link("correction", "add", -0.2)]
        last = "add"
    nodes[_NEW] = _Node(4, nodes[last].y, _LOGITS, _NEW, "of this frame")
    return nodes, [*links, _Link(last, _NEW)]


def _left(node: _Node, nodes: Mapping[str, _Node]) -> float:
    """Where a box begins, from the end of the cell's output on; columns without a box take no room."""
    columns = sorted({other.column for other in nodes.values()})
    steps = columns.index(node.column)
    return layout_lib.GAP + (steps > 0) * (layout_lib.NODE_WIDTH + _GAP) + max(steps - 1, 0) * (_STEP_WIDTH + _GAP)


def _draw_node(axes: Any, name: str, node: _Node, place: tuple[float, float], worth: str) -> None:
    x, y = place
    if node.kind == _HEAD:
        pen.box(axes, x, y, (layout_lib.PILL_WIDTH, layout_lib.PILL_HEIGHT), pen.LAYER_COLOR, fc="white", lw=1.2)
        pen.label(axes, x + layout_lib.PILL_WIDTH / 2, y, node.words)
    elif node.kind == _SOURCE:
        color = pen.CURRENT_COLOR if name == CURRENT else pen.HISTORY_COLOR
        pen.box(axes, x, y, (layout_lib.NODE_WIDTH, layout_lib.NODE_HEIGHT), color)
        pen.label(axes, x + layout_lib.NODE_WIDTH / 2, y + (0.08 if node.below else 0), node.words)
        pen.label(axes, x + layout_lib.NODE_WIDTH / 2, y - 0.11, node.below, fontsize=7.5, color="#5A616B")
    elif node.kind == _STEP:
        pen.box(axes, x, y, (_STEP_WIDTH, _STEP_HEIGHT), pen.LAYER_COLOR)
        pen.label(axes, x + _STEP_WIDTH / 2, y + 0.09 * bool(node.below), node.words, fontweight="bold", fontsize=11.5)
        pen.label(axes, x + _STEP_WIDTH / 2, y - 0.16, node.below, fontsize=8, color="#5A616B")
    else:
        size = (layout_lib.NODE_WIDTH, layout_lib.OUTPUT_HEIGHT)
        pen.box(axes, x, y, size, pen.LAYER_COLOR, fc=pen.LAYER_COLOR)
        pen.label(axes, x + size[0] / 2, y + 0.11, node.words, color="white", fontweight="bold", fontsize=11)
        pen.label(axes, x + size[0] / 2, y - 0.13, node.below, color="white", fontsize=8)
    if worth:
        low = {_HEAD: layout_lib.PILL_HEIGHT, _SOURCE: layout_lib.NODE_HEIGHT}.get(node.kind, _STEP_HEIGHT) / 2
        pen.label(
            axes, x + _WIDTHS[node.kind] / 2, y - low - 0.1, worth, fontsize=_FONT_OF_WORTH, color=pen.WORTH_COLOR
        )
