"""A genotype for the eye: as text, and as a graph in SVG or PNG, from the inputs to the logits of the frame."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space import operations
from dvsnas_jax.space.drawing import end as end_lib
from dvsnas_jax.space.drawing import layout as layout_lib
from dvsnas_jax.space.drawing import pen

_REFINE = end_lib.Whole()


def readable(name: str) -> str:
    """The name of an operation or aggregation for people, for example `sep 3x3 dil 3`; any other name in words."""
    member = operations.OPERATIONS.get(name) or operations.AGGREGATIONS.get(name)
    return member.label if member else name.replace("_", " ")


def text(space: genotypes.Space, genotype: Any, whole: end_lib.Whole = _REFINE) -> str:
    """A line a layer, `layer0 = gate( sep_conv_3x3(prev_state), skip(decoder) )`, for the output and for the end."""
    lines: list[str] = []
    for layer in genotypes.to_dict(space, genotype)["layers"]:
        first, second = (f"{operation}({node})" for operation, node in zip(layer["ops"], layer["in"], strict=True))
        lines.append(f"layer{len(lines)} = {layer['agg']}( {first}, {second} )")
    ends = ", ".join(f"layer{layer}" for layer in genotypes.loose_ends(space, genotype))
    return "\n".join([*lines, f"{layout_lib.OUTPUT} = mean({ends})", end_lib.formula(whole)])


def render(
    space: genotypes.Space,
    genotype: Any,
    path: str | pathlib.Path,
    title: str | None = None,
    whole: end_lib.Whole = _REFINE,
) -> None:
    """Draws the cell of a genotype as a graph into a `.svg` or `.png`.

    Raises:
      UserError: the suffix is neither, the genotype is not of this space, or the file cannot be written.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise errors.UserError(f"{path}: cannot draw into {path.suffix or 'a file without suffix'!r}, use .svg or .png")
    tokens = genotypes.validate(space, genotype)
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dvsnas", "font.family": "DejaVu Sans"}):
        made = figure(space, tokens, title, whole)
        try:
            made.savefig(path, dpi=130, metadata={"Date": None} if suffix == ".svg" else None, facecolor="white")
        except OSError as error:
            raise errors.UserError(
                f"--output: cannot write {path}: {error.strerror or error}; choose another --output"
            ) from None


def figure(space: genotypes.Space, tokens: np.ndarray, title: str | None, whole: end_lib.Whole = _REFINE) -> Any:
    """The matplotlib figure of a cell, one data unit an inch."""
    from matplotlib import figure as figures

    layout = layout_lib.make(space, tokens)
    items, output = layout.items.values(), layout.items[layout_lib.OUTPUT]
    lowest, highest, more = end_lib.extent(whole)
    low = min(*(item.y - item.height / 2 for item in items), output.y + lowest) - 0.75
    high = max(*(item.y + item.height / 2 for item in items), output.y + highest) + (0.65 if title else 0.25)
    end = layout_lib.left(output) + layout_lib.NODE_WIDTH
    width = max(end + more, 0.13 * len(title or "")) + 0.5
    made = figures.Figure(figsize=(width, high - low))
    axes = made.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.25, width - 0.25), ylim=(low, high))
    axes.axis("off")
    for segment in sorted(layout.segments, key=lambda segment: segment.is_live):
        _draw_segment(axes, layout, segment)
    for item in items:
        if item.is_lane:
            line = [(layout_lib.left(item), item.y), (layout_lib.right(item), item.y)]
            pen.line(axes, line, _color(layout, item.source), layout.is_live(item))
        elif item.key.startswith("layer"):
            row = tokens[int(item.key.removeprefix("layer"))]
            _draw_layer(axes, space, row, layout, item, whole.worth.get(item.key, ""))
        else:
            ends = genotypes.loose_ends(space, tokens)
            _draw_node(axes, layout, item, ends, whole.worth.get(item.key, ""))
    end_lib.draw(axes, whole, end, output.y)
    if title:
        axes.text(0, high - 0.34, title, fontsize=13, fontweight="bold", color=pen.LAYER_COLOR, va="center")
    _draw_legend(axes, layout, low + 0.25, whole)
    return made


def _draw_segment(axes: Any, layout: layout_lib.Layout, segment: layout_lib.Segment) -> None:
    """The curve between two columns."""
    left, right = layout.items[segment.left], layout.items[segment.right]
    start, end = (layout_lib.right(left), left.y), (layout_lib.left(right), right.y + segment.offset)
    is_arrow = right.key == layout_lib.OUTPUT
    pen.curve(axes, start, end, _color(layout, left.source), segment.is_live, has_head=is_arrow)


def _draw_node(
    axes: Any, layout: layout_lib.Layout, item: layout_lib.Item, loose_ends: tuple[int, ...], worth: str
) -> None:
    """An input or the output."""
    width = layout_lib.NODE_WIDTH
    x, middle = layout_lib.left(item), layout_lib.left(item) + width / 2
    if item.key == layout_lib.OUTPUT:
        pen.box(axes, x, item.y, (width, layout_lib.OUTPUT_HEIGHT), pen.LAYER_COLOR, fc=pen.LAYER_COLOR)
        pen.label(axes, middle, item.y + 0.11, layout_lib.OUTPUT, color="white", fontweight="bold", fontsize=11)
        words = f"layer {loose_ends[0]}" if len(loose_ends) == 1 else f"mean of {len(loose_ends)} layers"
        pen.label(axes, middle, item.y - 0.13, words, color="white", fontsize=8)
        return
    is_live = layout.is_live(item)
    color = _color(layout, item.key) if is_live else pen.NONE_COLOR
    pen.box(axes, x, item.y, (width, layout_lib.NODE_HEIGHT), color)
    up = 0.08 if worth else 0.0
    pen.label(axes, middle, item.y + up, item.key, color="#1C2026" if is_live else "#7A8088")
    pen.label(axes, middle, item.y - 0.11, worth, fontsize=7.5, color=pen.WORTH_COLOR)


def _draw_layer(
    axes: Any, space: genotypes.Space, row: np.ndarray, layout: layout_lib.Layout, item: layout_lib.Item, worth: str
) -> None:
    """A layer i32 [5]: the two operations as pills on the arrows that enter it, the aggregation in its box."""
    x = layout_lib.left(item)
    pill = (layout_lib.PILL_WIDTH, layout_lib.PILL_HEIGHT)
    box_x = x + pill[0] + layout_lib.STUB
    for slot, offset in ((0, layout_lib.PORT), (1, -layout_lib.PORT)):
        operation = operations.OPERATIONS[space.operations[row[2 + slot]]]
        color = _color(layout, genotypes.node_name(space, row[slot]))
        y, is_live = item.y + offset, not operation.is_zero
        style: dict[str, Any] = {"fc": "white", "lw": 1.2} if is_live else {"fc": "white", "lw": 1.0, "ls": (0, (4, 3))}
        pen.box(axes, x, y, pill, color if is_live else pen.NONE_COLOR, **style)
        pen.label(axes, x + pill[0] / 2, y, operation.label, color="#1C2026" if is_live else "#7A8088")
        pen.arrow(axes, (x + pill[0], y), (box_x, y), color, is_live)
        pen.label(axes, box_x + 0.1, y, "ab"[slot], fontsize=7.5, color="#6B7280")
    pen.box(axes, box_x, item.y, (layout_lib.LAYER_WIDTH, layout_lib.LAYER_HEIGHT), pen.LAYER_COLOR)
    middle = box_x + layout_lib.LAYER_WIDTH / 2 + 0.04
    words = operations.AGGREGATIONS[space.aggregations[row[4]]].label
    pen.label(axes, middle, item.y + 0.1, words, fontweight="bold", fontsize=11.5 if len(words) < 7 else 10)
    pen.label(axes, middle, item.y - 0.16, item.key.replace("layer", "layer "), fontsize=8, color="#5A616B")
    below = item.y - layout_lib.LAYER_HEIGHT / 2 - 0.1
    pen.label(axes, middle - 0.04, below, worth, fontsize=7.5, color=pen.WORTH_COLOR)


def _draw_legend(axes: Any, layout: layout_lib.Layout, y: float, whole: end_lib.Whole) -> None:
    """What the colours mean, only for those in use."""
    names = [item.key for item in layout.items.values() if item.column == 0] + end_lib.sources(whole)
    is_past = [name.startswith(("prev_", end_lib.PAST)) for name in names]
    entries = [(pen.HISTORY_COLOR, "from the past", any(is_past))]
    entries.append((pen.CURRENT_COLOR, "from this frame", not all(is_past)))
    entries.append((pen.NONE_COLOR, "none: cut off", not all(segment.is_live for segment in layout.segments)))
    used = [(color, words) for color, words, is_used in entries if is_used]
    for number, (color, words) in enumerate(used):
        x = 1.55 * number
        pen.box(axes, x, y, (0.2, 0.2), color)
        pen.label(axes, x + 0.28, y, words, ha="left", fontsize=9, color="#4A505A")
    if whole.worth:
        words = "± : worth in reward, hundredths, where it is switched off"
        pen.label(axes, 1.55 * len(used), y, words, ha="left", fontsize=9, color=pen.WORTH_COLOR)


def _color(layout: layout_lib.Layout, source: str) -> str:
    """The colour of a node and of the edges that leave it."""
    if layout.items[source].column > 0:
        return pen.LAYER_COLOR
    return pen.HISTORY_COLOR if source.startswith("prev_") else pen.CURRENT_COLOR
