"""The cell space and the genotype: a value, not a network.

A genotype is `int32 [L, 5]`: input a, input b, operation a, operation b, aggregation. Layer l may
take any of the cell's inputs (indices 0 .. num_inputs - 1) or any earlier layer (num_inputs + l').
The outputs that no later layer uses ("loose ends") are averaged into the cell's output.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_files

VERSION = 1
_ADVICE = "correct it, or give a file as `dvsnas search` writes it (best_genotype.json)"
FIELDS = ("in_a", "in_b", "op_a", "op_b", "agg")
REFINE_INPUTS = (
    "prev_state", "prev_decoder", "prev_logits", "decoder", "logits",
    "stage1", "stage2", "stage3", "stage4", "image_diff",
    "prev_stage1", "prev_stage2", "prev_stage3", "prev_stage4", "patches", "prev_patches",
)  # fmt: skip
FIRST_OPERATIONS = (
    "none", "skip", "conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "conv_3x3_dil3", "conv_3x3_dil12",
    "sep_conv_3x3_dil3", "sep_conv_5x5_dil6", "max_pool_3x3", "global_average_pool", "deform_conv_3x3",
)  # fmt: skip
FIRST_AGGREGATIONS = ("sum", "concat", "gate", "warp", "max", "local_attention")
"""With `FIRST_OPERATIONS` the vocabulary of the runs that stored an empty list for all of it. It never changes."""


def vocabulary(field: str) -> tuple[str, ...]:
    """All names that `inputs`, `operations` or `aggregations` of a space may hold, in the order of their tables."""
    if field == "inputs":
        return REFINE_INPUTS
    # Here, as what handles only integers (the controller) needs no networks.
    from dvsnas_jax.space import operations

    return tuple(operations.OPERATIONS if field == "operations" else operations.AGGREGATIONS)


@dataclasses.dataclass(frozen=True)
class Space:
    """The cell space of one search: everything a genotype's integers refer to.

    Attributes:
      inputs: names of the cell's inputs, in index order.
      num_layers: L.
      operations: names, in index order; all that there are where none are given.
      aggregations: likewise.
    """

    inputs: tuple[str, ...]
    num_layers: int
    operations: tuple[str, ...] = dataclasses.field(default_factory=lambda: vocabulary("operations"))
    aggregations: tuple[str, ...] = dataclasses.field(default_factory=lambda: vocabulary("aggregations"))

    def __post_init__(self) -> None:
        for field in ("inputs", "operations", "aggregations"):
            names, known = getattr(self, field), vocabulary(field)
            if not names or len(set(names)) != len(names):
                raise errors.UserError(
                    f"space.{field}: needs distinct names, at least one, got {', '.join(names) or 'none'}"
                )
            for name in names:
                if name not in known:
                    raise errors.UserError(
                        f"space.{field}: unknown name {name!r}{_nearest(name, known)} allowed are {', '.join(known)}"
                    )
        if self.num_layers < 1:
            raise errors.UserError(f"space.num_layers: must be at least 1, got {self.num_layers}")

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_nodes(self) -> int:
        return self.num_inputs + self.num_layers

    @property
    def num_tokens(self) -> int:
        return self.num_layers * len(FIELDS)

    def limits(self) -> np.ndarray:
        """Exclusive upper bound of every token, i32 [L, 5]."""
        nodes = self.num_inputs + np.arange(self.num_layers)
        names = (self.operations, self.operations, self.aggregations)
        rows = [nodes, nodes, *(np.full_like(nodes, len(table)) for table in names)]
        return np.stack(rows, axis=1).astype(np.int32)

    def size(self) -> int:
        """Number of genotypes (not of distinct functions)."""
        return int(np.prod(self.limits().astype(object)))


def validate(space: Space, genotype: Any) -> np.ndarray:
    """A genotype, integers [L, 5], as i32.

    Raises:
      UserError: (a ValueError) it is not of the space; names the layer, the field and what is allowed.
    """
    tokens = np.asarray(genotype)
    expected = (space.num_layers, len(FIELDS))
    if tokens.shape != expected or not np.issubdtype(tokens.dtype, np.integer):
        raise errors.UserError(
            f"genotype: needs integers of shape {expected} (layers, fields), got {tokens.dtype} {tokens.shape}"
        )
    limits = space.limits()
    for layer, field in np.argwhere((tokens < 0) | (tokens >= limits)):
        raise errors.UserError(
            f"genotype: layer {layer}, field {FIELDS[field]}: "
            f"must be from 0 to {limits[layer, field] - 1}, got {tokens[layer, field]}"
        )
    return tokens.astype(np.int32)


def random(space: Space, rng: np.random.Generator, num: int, *, op_mask: np.ndarray | None = None) -> np.ndarray:
    """Draws genotypes uniformly, i32 [num, L, 5].

    `op_mask` is bool [num_ops]: operations that may be drawn, at least one. A full mask draws what None draws.
    """
    limits = space.limits()
    allowed = np.arange(len(space.operations)) if op_mask is None else np.flatnonzero(op_mask)
    limits[:, 2:4] = len(allowed)
    tokens = rng.integers(0, limits, size=(num, space.num_layers, len(FIELDS)), dtype=np.int32)
    tokens[..., 2:4] = allowed[tokens[..., 2:4]]
    return tokens


def loose_ends(space: Space, genotype: np.ndarray) -> tuple[int, ...]:
    """Layers whose output no later layer takes (never empty)."""
    used = {int(node) - space.num_inputs for node in np.asarray(genotype)[:, :2].ravel()}
    return tuple(layer for layer in range(space.num_layers) if layer not in used)


def node_name(space: Space, node: int) -> str:
    """Name of an input, or `layerN`."""
    return space.inputs[node] if node < space.num_inputs else f"layer{node - space.num_inputs}"


def to_dict(space: Space, genotype: Any) -> dict[str, Any]:
    """The genotype by name, ready for JSON."""
    layers = [
        {
            "in": [node_name(space, row[0]), node_name(space, row[1])],
            "ops": [space.operations[row[2]], space.operations[row[3]]],
            "agg": space.aggregations[row[4]],
        }
        for row in validate(space, genotype).tolist()
    ]
    return {"version": VERSION, "inputs": list(space.inputs), "layers": layers}


def read(path: str | os.PathLike[str], *, name: str = "") -> tuple[Space, np.ndarray]:
    """Reads a genotype file: the space of its own inputs and layers, and the genotype, i32 [L, 5].

    Raises:
      UserError: there is no such file, or no genotype in it; names what is wrong, and `name`, a flag for example.
    """
    where = f"{name}: {os.fspath(path)}" if name else os.fspath(path)
    if os.path.isdir(path):
        winner = pathlib.Path(path) / "best_genotype.json"
        hint = str(winner) if winner.is_file() else "the best_genotype.json of a run folder"
        raise errors.UserError(f"{where}: is a folder; give a genotype file, for example {hint}")
    return from_dict(json_files.read(pathlib.Path(path), name=name, advice=_ADVICE), where=where)


def from_dict(data: Any, space: Space | None = None, *, where: str = "genotype") -> tuple[Space, np.ndarray]:
    """Reads what `to_dict` gave.

    Args:
      data: of JSON.
      space: the space to express it in; None: its own inputs and layers, full vocabulary.
      where: what to call it in an error, for example its file.

    Returns:
      The space and the genotype, i32 [L, 5].

    Raises:
      UserError: (a ValueError) naming the layer, the field and what is allowed.
    """
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list) or not data["layers"]:
        raise errors.UserError(
            f'{where}: needs an object with "version", "inputs" and a list "layers" of one or more; {_ADVICE}'
        )
    version = data.get("version")
    if version != VERSION or isinstance(version, bool):
        raise errors.UserError(
            f'{where}: a genotype of version {version!r}, "version" must be {VERSION}; use the program that wrote it'
        )
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
        raise errors.UserError(f'{where}: "inputs" must be a list of names out of {", ".join(REFINE_INPUTS)}')
    if space is None:
        try:
            space = Space(inputs=tuple(inputs), num_layers=len(data["layers"]))
        except errors.UserError as error:
            raise errors.UserError(f"{where}: {error}") from None
    if len(data["layers"]) != space.num_layers:
        raise errors.UserError(
            f"{where}: {len(data['layers'])} layers, the space has {space.num_layers}; "
            f"set --config.space.num_layers={len(data['layers'])}"
        )
    rows = [_parse_layer(space, layer, index, where) for index, layer in enumerate(data["layers"])]
    return space, validate(space, np.asarray(rows, np.int32))


def _parse_layer(space: Space, layer: Any, index: int, where: str) -> list[int]:
    """One JSON layer as five tokens."""
    if not isinstance(layer, dict):
        raise errors.UserError(f'{where}: layer {index}: needs an object with "in", "ops", "agg", got {layer!r}')
    nodes = [node_name(space, node) for node in range(space.num_nodes)]
    allowed = nodes[: space.num_inputs + index]
    tokens = []
    for field, count, names in (("in", 2, allowed), ("ops", 2, space.operations), ("agg", 1, space.aggregations)):
        values = layer.get(field)
        values = [values] if count == 1 else values
        if not isinstance(values, list) or len(values) != count:
            raise errors.UserError(f"{where}: layer {index}, field {field}: needs {count} name(s), got {values!r}")
        for value in values:
            if field == "in" and value in nodes and value not in allowed:
                raise errors.UserError(
                    f"{where}: layer {index}, field in: forward reference to {value!r}, "
                    f"allowed are {', '.join(allowed)}"
                )
            if value not in names:
                raise errors.UserError(
                    f"{where}: layer {index}, field {field}: unknown name {value!r}{_nearest(value, names)} "
                    f"allowed are {', '.join(names)}"
                )
            tokens.append(list(names).index(value))
    return tokens


def digest(space: Space, genotype: Any) -> str:
    """A short name of the genotype, equal for equal JSON."""
    text = json.dumps(to_dict(space, genotype), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def edges(space: Space, genotype: Any) -> list[tuple[str, str, str]]:
    """The genotype as a graph: (source node, target layer, operation), loose ends to `output`."""
    rows = validate(space, genotype).tolist()
    graph = [
        (node_name(space, row[slot]), f"layer{layer}", space.operations[row[2 + slot]])
        for layer, row in enumerate(rows)
        for slot in (0, 1)
    ]
    return graph + [(f"layer{layer}", "output", "mean") for layer in loose_ends(space, np.asarray(rows))]


def _nearest(name: Any, known: Sequence[str]) -> str:
    """A hint for a misspelt name."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean {close[0]!r}?" if close else ","
