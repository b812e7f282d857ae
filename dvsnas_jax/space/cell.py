"""The cell whose genotype is static: operations that it does not use do not exist.

For any genotype it equals the supernet with the weights that `gather_params` cuts out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import operations, ports

Params = dict[str, Any]


class Cell(NamedTuple):
    """Pure functions of one cell.

    Attributes:
      init: `rng -> params`.
      step: `(params, state, features of one frame) -> (state, logits [B, h, w, K])`.
      initial_state: `features of one frame -> state` before the first frame.
      unroll: `(params, features [B, T, ...]) -> logits [T, B, h, w, K]`.
      moments: `(params, features [B, T, ...]) -> {path: (mean, var)}`, batch moments of every
        normalisation, averaged over the frames.
    """

    init: Callable[[jax.Array], Params]
    step: types.StepFn
    initial_state: Callable[[types.Features], types.CellState]
    unroll: Callable[[Params, types.Features], jax.Array]
    moments: Callable[[Params, types.Features], operations.Moments]


def used_inputs(space: genotype_lib.Space, genotype: np.ndarray) -> tuple[str, ...]:
    """The inputs that some layer reads through an operation other than `none`, in index order."""
    read = {
        int(row[slot])
        for row in genotype
        for slot in (0, 1)
        if space.operations[row[2 + slot]] != "none" and row[slot] < space.num_inputs
    }
    return tuple(space.inputs[index] for index in sorted(read))


def make(space: genotype_lib.Space, genotype: Any, settings: ports.CellSettings) -> Cell:
    """Builds the cell of one genotype, integers [L, 5]."""
    rows = genotype_lib.validate(space, genotype)
    names = used_inputs(space, rows)

    def init(rng: jax.Array) -> Params:
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        layers = [operations.init_layer(layer_rng, space, settings.channels) for layer_rng in layer_rngs]
        return _select(space, rows, {"ports": ports.init(ports_rng, settings, space.inputs), "layers": layers})

    def scoped_step(
        params: Params, state: types.CellState, features: types.Features, record: operations.Moments | None
    ) -> tuple[types.CellState, jax.Array]:
        scope = operations.NormScope(record=record, max_offset=settings.max_offset)
        port_scope = scope.child("ports")
        inputs = ports.cell_inputs(params["ports"], state, features, names, port_scope)
        template = jax.ShapeDtypeStruct((*features.logits.shape[:3], settings.channels), features.logits.dtype)
        outputs = _run_layers(space, rows, params["layers"], inputs, template=template, scope=scope)
        loose = genotype_lib.loose_ends(space, rows)
        mean = functools.reduce(jnp.add, [outputs[layer] for layer in loose]) / len(loose)
        return ports.cell_output(params["ports"], mean, features, port_scope)

    def step(
        params: Params, state: types.CellState, features: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        return scoped_step(params, state, features, None)

    def initial_state(features: types.Features) -> types.CellState:
        return ports.initial_state(settings, features)

    def unroll(params: Params, features: types.Features) -> jax.Array:
        state = initial_state(jax.tree.map(lambda x: x[:, 0], features))
        return ports.unroll(lambda s, f: step(params, s, f), state, features)[1]

    def moments(params: Params, features: types.Features) -> operations.Moments:
        def recording_step(
            state: types.CellState, frame: types.Features
        ) -> tuple[types.CellState, operations.Moments]:
            record: operations.Moments = {}
            state, _ = scoped_step(params, state, frame, record)
            return state, record

        state = initial_state(jax.tree.map(lambda x: x[:, 0], features))
        _, record = ports.unroll(recording_step, state, features)
        return jax.tree.map(lambda x: x.mean(axis=0), record)

    return Cell(init, step, initial_state, unroll, moments)


def gather_params(space: genotype_lib.Space, genotype: Any, supernet_params: Params) -> Params:
    """Cuts the weights of one genotype out of a supernet's."""
    rows = genotype_lib.validate(space, genotype)
    layers = [
        jax.tree.map(lambda x, layer=layer: x[layer], supernet_params["layers"]) for layer in range(space.num_layers)
    ]
    return _select(space, rows, {"ports": supernet_params["ports"], "layers": layers})


def freeze_norm(params: Params, moments: operations.Moments) -> Params:
    """Adds running statistics to every normalisation: the cell then normalises by them, frame by frame."""

    def visit(tree: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(tree, dict):
            return tree
        if path in moments:
            mean, var = moments[path]
            return {**tree, "mean": mean, "var": var}
        return {key: visit(value, (*path, key)) for key, value in tree.items()}

    return visit(params, ())


def _select(space: genotype_lib.Space, rows: np.ndarray, params: Params) -> Params:
    """Keeps what the genotype uses. Layers become a dict `layerN`."""
    names = used_inputs(space, rows)
    kept = set(names) | ({"decoder"} if "prev_state" in names else set())
    inputs = {name: value for name, value in params["ports"]["inputs"].items() if name in kept}
    layers = {}
    for index, (row, layer) in enumerate(zip(rows, params["layers"], strict=True)):
        chosen = {"a": space.operations[row[2]], "b": space.operations[row[3]], "agg": space.aggregations[row[4]]}
        layers[f"layer{index}"] = {slot: layer[slot][name] for slot, name in chosen.items()}
    return {"ports": {**params["ports"], "inputs": inputs}, "layers": layers}


def _run_layers(
    space: genotype_lib.Space,
    rows: np.ndarray,
    params: Params,
    inputs: dict[str, jax.Array],
    *,
    template: jax.ShapeDtypeStruct,
    scope: operations.NormScope,
) -> list[jax.Array]:
    """Outputs of the layers in order, each [B, h, w, C]."""
    nodes = {space.inputs.index(name): value for name, value in inputs.items()}
    for index, row in enumerate(rows):
        layer, layer_scope = params[f"layer{index}"], scope.child("layers", f"layer{index}")
        maps = []
        for slot, node, token in (("a", row[0], row[2]), ("b", row[1], row[3])):
            name = space.operations[token]
            if name == "none":
                maps.append(jnp.zeros(template.shape, template.dtype))
            else:
                maps.append(operations.OPERATIONS[name].apply(layer[slot], nodes[int(node)], layer_scope.child(slot)))
        aggregation = operations.AGGREGATIONS[space.aggregations[row[4]]]
        nodes[space.num_inputs + index] = aggregation.apply(layer["agg"], *maps, layer_scope.child("agg"))
    return [nodes[space.num_inputs + index] for index in range(space.num_layers)]
