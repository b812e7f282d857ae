"""What a cell costs, in closed form: multiply-adds, parameters and bytes of any genotype, without building it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_end, cell_frame, operations, projections
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operation_cost as counts
from dvsnas_jax.space import schedule as schedule_lib


def sizes_of(settings: cell_frame.CellSettings, size: tuple[int, int], *, is_sliced: bool) -> counts.Sizes:
    """What the costs of the parts depend on, for logits of so many rows and columns."""
    rows, columns = (-(-length // settings.reduction) for length in size)
    return counts.Sizes(
        rows,
        columns,
        settings.channels,
        settings.attention_window,
        settings.attention_heads,
        settings.correlation_window,
        is_sliced,
    )


def of(
    space: genotype_lib.Space,
    genotype: Any,
    settings: cell_frame.CellSettings,
    size: tuple[int, int],
    *,
    backend: str | None = None,
) -> counts.Cost:
    """The cost of one cell for one frame, without the static network and its encoder.

    It is the sum over the input projections that are in use, the layers, the output and the end. In propagate mode it
    is a frame that is no key frame, the head that predicts errors included. A layer whose output is read through `none`
    only is not computed, so it costs nothing, but its parameters exist.

    Args:
      space: what the genotype refers to.
      genotype: integers [L, 5].
      settings: sizes of the cell.
      size: height and width of the logits.
      backend: "cpu", "gpu" or "tpu", None: the one in use; only `padding` and `elementwise` (so `flops`) depend on it.
    """
    rows = genotype_lib.validate(space, genotype)
    sizes = sizes_of(settings, size, is_sliced=(backend or jax.default_backend()) == "cpu")
    live = live_layers(space, rows)
    full = dataclasses.replace(sizes, height=size[0], width=size[1])
    total = _output(len(genotype_lib.loose_ends(space, rows)), settings, sizes, full)
    if not settings.has_output:
        return total
    total += _inputs(space, rows, live, settings, sizes, full)
    for layer in range(space.num_layers):
        for part in layer_parts(space, rows[layer], sizes):
            total += part if layer in live else counts.Cost(params=part.params)
    return total


def layer_parts(space: genotype_lib.Space, row: np.ndarray, sizes: counts.Sizes) -> list[counts.Cost]:
    """The costs of the two operations and of the aggregation of a layer i32 [5]."""
    parts = [operations.OPERATIONS[space.operations[token]].cost(sizes) for token in row[2:4]]
    return [*parts, operations.AGGREGATIONS[space.aggregations[row[4]]].cost(sizes)]


def live_layers(space: genotype_lib.Space, rows: np.ndarray) -> set[int]:
    """Layers that the cell's output depends on: loose ends, and what they read other than through `none`."""
    live = set(genotype_lib.loose_ends(space, rows))
    for layer in reversed(range(space.num_layers)):
        if layer in live:
            live.update(
                node - space.num_inputs for node in cell_lib.nodes_read(space, rows[layer]) if node >= space.num_inputs
            )
    return live


def _inputs(
    space: genotype_lib.Space,
    rows: np.ndarray,
    live: set[int],
    settings: cell_frame.CellSettings,
    sizes: counts.Sizes,
    full: counts.Sizes,
) -> counts.Cost:
    """The projections: parameters of all that the cell holds, the work of those that a live layer reads."""
    held = set(cell_lib.used_inputs(space, rows))
    nodes = {node for layer in live for node in cell_lib.nodes_read(space, rows[layer]) if node < space.num_inputs}
    used = {space.inputs[node] for node in nodes}
    if settings.is_propagating:  # a key frame starts the state with the projected decoder map
        held.add("decoder")
    else:
        for names in (held, used):
            names.update({"decoder"} if "prev_state" in names else ())
    total, has_weights = counts.Cost(), set()
    for name in sorted(held):
        channels = settings.input_channels(name)
        # A softmax; where their grid is finer, the mean over each cell.
        is_logits, is_finer = name in ("logits", "prev_logits"), full.pixels > sizes.pixels
        softmax = counts.each(full, 4 + is_finer, channels) if is_logits else counts.Cost()
        # The difference of two images, or the choice between what was and, at the first frame, what is.
        is_choice = name.startswith("prev_") and not settings.is_propagating
        prepared = softmax + counts.each(sizes, 2 if name == "image_diff" else int(is_choice), channels)
        part = counts.conv(sizes, channels, sizes.channels) + counts.norm(sizes) + prepared
        weights = projections.weights_of(name)
        part = dataclasses.replace(part, params=0 if weights in has_weights else part.params)
        has_weights.add(weights)
        total += part if name in used else counts.Cost(params=part.params)
    return total


def _output(num_loose: int, settings: cell_frame.CellSettings, sizes: counts.Sizes, full: counts.Sizes) -> counts.Cost:
    """The mean of the loose ends, its projection, the end, the prediction of errors."""
    total = cell_end.cost(settings.end, sizes, settings.num_classes, is_propagating=settings.is_propagating, full=full)
    if settings.has_output:
        total += counts.each(sizes, num_loose) + (counts.maps(sizes, num_loose + 1) if num_loose > 1 else counts.Cost())
        total += counts.conv(sizes, sizes.channels, sizes.channels) + counts.norm_relu(sizes)
    if settings.is_propagating:
        total += schedule_lib.head_cost(settings.schedule, sizes, settings.feature_channels[settings.cut])
    return total
