"""The neighbours of a genotype, every one that differs from it in one token; and what it is without history."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations, projections

_REPLACED_FIRST: dict[str, Callable[[str], Any]] = {
    "op": lambda name: (not operations.OPERATIONS[name].is_zero, not operations.OPERATIONS[name].is_identity),
    "agg": lambda name: name != "sum",
    "in": lambda name: 0,
}
"""What a token of each kind is replaced by before all else: nothing, the map as it is; the plain sum."""
_NOW = {
    "prev_state": "decoder", "prev_decoder": "decoder", "prev_logits": "logits",
    **{name: now for name in genotype_lib.REFINE_INPUTS if (now := projections.weights_of(name)) != name},
}  # fmt: skip
"""What a map of the frame before is replaced by in a cell without history: the current frame's."""

END = "end"
"""The field of a variant that has the same genotype, and a part of the end (`cell_end.PARTS`) switched off."""


class Variant(NamedTuple):
    """A genotype i32 [L, 5] in which the token of a layer and field (`genotype.FIELDS` or `END`) has another name."""

    genotype: np.ndarray
    layer: int
    field: str
    before: str
    after: str


def neighbours(space: genotype_lib.Space, genotype: np.ndarray) -> list[Variant]:
    """Every genotype that differs in one token, in rounds over the tokens, the most telling replacement first.

    Operations come first in a round, then aggregations, then inputs: a prefix of the list is a fair sample.
    """
    rows = genotype_lib.validate(space, genotype)
    order = [(layer, field) for kind in _REPLACED_FIRST for layer in range(len(rows)) for field in genotype_lib.FIELDS
             if field.startswith(kind)]  # fmt: skip
    rounds = itertools.zip_longest(*(list(_replacements(space, rows, *place)) for place in order))
    return [variant for row in rounds for variant in row if variant is not None]


def of_end(genotype: np.ndarray, parts: Iterable[str]) -> list[Variant]:
    """The genotype itself without each of some parts of its end; the layer is L, which comes after all."""
    return [Variant(genotype, len(genotype), END, part, "none") for part in parts]


def without_history(space: genotype_lib.Space, genotype: np.ndarray) -> tuple[genotype_lib.Space, np.ndarray]:
    """The same cell on the current frame alone, in the space of its own inputs: a control for cells with a memory.

    Every `prev_*` becomes the current frame's map, the cell's own state its decoder map, and what is done with the
    difference of the images becomes nothing (operation `none`). Mode refine; with the end `classifier` its logits do
    not depend on earlier frames at all.
    """
    layers = genotype_lib.to_dict(space, genotype)["layers"]
    for layer in layers:
        layer["ops"] = [
            "none" if node == "image_diff" else name for node, name in zip(layer["in"], layer["ops"], strict=True)
        ]
        layer["in"] = [_NOW.get(node, "decoder" if node == "image_diff" else node) for node in layer["in"]]
    read = {node for layer in layers for node in layer["in"]}
    inputs = [name for name in genotype_lib.REFINE_INPUTS if name in read]
    return genotype_lib.from_dict({"version": genotype_lib.VERSION, "inputs": inputs, "layers": layers})


def _replacements(space: genotype_lib.Space, rows: np.ndarray, layer: int, field: str) -> Iterator[Variant]:
    """All other values of one token."""
    column = genotype_lib.FIELDS.index(field)
    kind = field.split("_")[0]
    nodes = [genotype_lib.node_name(space, node) for node in range(space.num_inputs + layer)]
    names = {"op": space.operations, "agg": space.aggregations, "in": nodes}[kind]
    before = names[rows[layer, column]]
    for name in sorted(names, key=_REPLACED_FIRST[kind]):
        if name != before:
            tokens = rows.copy()
            tokens[layer, column] = names.index(name)
            yield Variant(tokens, layer, field, before, name)
