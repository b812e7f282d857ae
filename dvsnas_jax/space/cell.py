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
from dvsnas_jax.space import cell_frame, operations, projections
from dvsnas_jax.space import genotype as genotype_lib

Params = dict[str, Any]


class Cell(NamedTuple):
    """Pure functions of one cell.

    Attributes:
      inputs: names of the inputs that it reads.
      init: `rng -> params`.
      step: `(params, state, features of one frame) -> (state, logits [B, h, w, K])`.
      initial_state: `features of one frame -> state` before the first frame.
      unroll: `(params, features [B, T, ...]) -> logits [T, B, h, w, K]`.
      unroll_training: `(params, features [B, T, ...]) -> (logits [T, B, h, w, K], loss f32 [])`: key frames come at
        the schedule's interval; the loss is that of its predicted errors (0 where it predicts none).
      moments: `(params, features [B, T, ...]) -> {path: (mean, var)}`, batch moments of every
        normalisation, averaged over the frames (those of the cell's own path: key frames do not count).
      due: propagate: `(params, state, features) -> bool [B, rows, columns]`, what the static network has to compute
        of a frame; the maps of the first encoder stages are enough.
      restart: propagate: `(params, state, features) -> state` after a key frame.
      advance: `(params, state, features) -> state` after a frame by the cell alone; propagate: the maps of the first
        encoder stages are enough.
      merge: propagate: `(restarted, advanced, bool [B, rows, columns]) -> state`, region by region.
    """

    inputs: tuple[str, ...]
    init: Callable[[jax.Array], Params]
    step: types.StepFn
    initial_state: Callable[[types.Features], types.CellState]
    unroll: Callable[[Params, types.Features], jax.Array]
    unroll_training: Callable[[Params, types.Features], tuple[jax.Array, jax.Array]]
    moments: Callable[[Params, types.Features], operations.Moments]
    due: Callable[[Params, types.CellState, types.Features], jax.Array]
    restart: Callable[[Params, types.CellState, types.Features], types.CellState]
    advance: Callable[[Params, types.CellState, types.Features], types.CellState]
    merge: Callable[[types.CellState, types.CellState, jax.Array], types.CellState]


def nodes_read(space: genotype_lib.Space, row: np.ndarray) -> list[int]:
    """The nodes that a layer i32 [5] reads: those of its operations that are not `none`."""
    return [int(row[slot]) for slot in (0, 1) if not operations.OPERATIONS[space.operations[row[2 + slot]]].is_zero]


def used_inputs(space: genotype_lib.Space, genotype: np.ndarray) -> tuple[str, ...]:
    """The inputs that some layer reads, in index order."""
    read = {node for row in genotype for node in nodes_read(space, row) if node < space.num_inputs}
    return tuple(space.inputs[index] for index in sorted(read))


def make(space: genotype_lib.Space, genotype: Any, settings: cell_frame.CellSettings) -> Cell:
    """Builds the cell of one genotype, integers [L, 5].

    Raises:
      UserError: the genotype is not of the space, or reads an input that the mode does not provide.
    """
    rows = genotype_lib.validate(space, genotype)
    advance = _make_advance(space, rows, settings)

    def restart(
        params: Params, state: types.CellState, features: types.Features, record: operations.Moments | None = None
    ) -> types.CellState:
        scope = settings.scope(record).child("ports")
        return cell_frame.key_frame(params["ports"], settings, state, features, scope)

    def due(params: Params, state: types.CellState, features: types.Features) -> jax.Array:
        return cell_frame.due(params["ports"], settings, state, features)[0]

    def finish(
        params: Params,
        before: types.CellState,
        features: types.Features,
        record: operations.Moments | None,
        *,
        is_training: bool,
    ) -> tuple[types.CellState, jax.Array]:
        after, scope = advance(params, before, features, record), settings.scope(record).child("ports")
        return cell_frame.finish(params["ports"], settings, before, after, features, scope, is_training=is_training)

    def step(params: Params, state: types.CellState, features: types.Features) -> tuple[types.CellState, jax.Array]:
        state, _ = finish(params, state, features, None, is_training=False)
        return state, jnp.asarray(state.logits)

    def unroll(params: Params, features: types.Features) -> jax.Array:
        state = initial_state(jax.tree.map(lambda x: x[:, 0], features))
        return cell_frame.unroll(lambda s, f: step(params, s, f), state, features)[1]

    def initial_state(features: types.Features) -> types.CellState:
        return cell_frame.initial_state(settings, features)

    unroll_training, moments = _make_unrolls(initial_state, functools.partial(finish, is_training=True))
    return Cell(
        inputs=used_inputs(space, rows),
        init=_make_init(space, rows, settings),
        step=step,
        initial_state=initial_state,
        unroll=unroll,
        unroll_training=unroll_training,
        moments=moments,
        due=due,
        restart=restart,
        advance=advance,
        merge=cell_frame.merge,
    )


def _make_init(
    space: genotype_lib.Space, rows: np.ndarray, settings: cell_frame.CellSettings
) -> Callable[[jax.Array], Params]:
    """`Cell.init`."""

    def init(rng: jax.Array) -> Params:
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        layers = [
            operations.init_layer(layer_rng, space, settings.channels, settings.scope()) for layer_rng in layer_rngs
        ]
        return _select(space, rows, {"ports": cell_frame.init(ports_rng, settings, space.inputs), "layers": layers})

    return init


def _make_advance(
    space: genotype_lib.Space, rows: np.ndarray, settings: cell_frame.CellSettings
) -> Callable[..., types.CellState]:
    """`Cell.advance`; a fourth argument receives the batch moments."""
    names = used_inputs(space, rows)
    settings.check(names)
    loose = genotype_lib.loose_ends(space, rows)

    def advance(
        params: Params, state: types.CellState, features: types.Features, record: operations.Moments | None = None
    ) -> types.CellState:
        scope = settings.scope(record)
        port_scope = scope.child("ports")
        inputs = projections.cell_inputs(params["ports"], state, features, names, port_scope)
        template = jax.ShapeDtypeStruct(state.state.shape, state.state.dtype)
        outputs = _run_layers(space, rows, params["layers"], inputs, template=template, scope=scope)
        mean = functools.reduce(jnp.add, [outputs[layer] for layer in loose]) / len(loose)
        return cell_frame.cell_output(params["ports"], mean, state, features, port_scope)

    return advance


def _make_unrolls(
    initial_state: Callable[[types.Features], types.CellState],
    step: Callable[..., tuple[types.CellState, jax.Array]],
) -> tuple[Callable[..., tuple[jax.Array, jax.Array]], Callable[..., operations.Moments]]:
    """`Cell.unroll_training` and `Cell.moments` from `(params, state, features, record) -> (state, loss)`."""

    def start(features: types.Features) -> types.CellState:
        return initial_state(jax.tree.map(lambda x: x[:, 0], features))

    def unroll_training(params: Params, features: types.Features) -> tuple[jax.Array, jax.Array]:
        def scored_step(
            state: types.CellState, frame: types.Features
        ) -> tuple[types.CellState, tuple[jax.Array, jax.Array]]:
            state, loss = step(params, state, frame, None)
            return state, (jnp.asarray(state.logits), loss)

        _, (logits, losses) = cell_frame.unroll(scored_step, start(features), features)
        return logits, losses.mean()

    def moments(params: Params, features: types.Features) -> operations.Moments:
        def recording_step(
            state: types.CellState, frame: types.Features
        ) -> tuple[types.CellState, tuple[operations.Moments, jax.Array]]:
            record: operations.Moments = {}
            state, _ = step(params, state, frame, record)
            share = (jnp.asarray(state.age) > 0).mean(dtype=jnp.float32) if state.is_propagating else 1.0
            return state, (record, jnp.asarray(share))

        _, (record, shares) = cell_frame.unroll(recording_step, start(features), features)
        weights = jnp.where(shares.sum() > 0, shares, 1.0)  # of every frame a key frame, the cell is never used
        weights /= weights.sum()
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), record)

    return unroll_training, moments


def gather_params(space: genotype_lib.Space, genotype: Any, supernet_params: Params) -> Params:
    """Cuts the weights of one genotype out of a supernet's."""
    rows = genotype_lib.validate(space, genotype)
    layers = [
        jax.tree.map(lambda x, layer=layer: x[layer], supernet_params["layers"]) for layer in range(space.num_layers)
    ]
    return _select(space, rows, {"ports": supernet_params["ports"], "layers": layers})


def scatter_params(space: genotype_lib.Space, genotype: Any, params: Params, supernet_params: Params) -> Params:
    """Puts the weights of one genotype's cell into a supernet's: the inverse of `gather_params`.

    What the genotype does not use stays as it is. A cell with running statistics gives every normalisation some, mean
    0 and variance 1 where it has none: the layers of a supernet are one tree.
    """
    rows = genotype_lib.validate(space, genotype)
    is_frozen = "mean" in params["ports"]["output"]["norm"]
    whole = _with_statistics(supernet_params) if is_frozen else supernet_params
    layers = {slot: dict(members) for slot, members in whole["layers"].items()}
    for index, row in enumerate(rows):
        for slot, name in _chosen(space, row).items():
            own = params["layers"][f"layer{index}"][slot]
            layers[slot][name] = jax.tree.map(
                lambda stack, leaf, index=index: stack.at[index].set(leaf), layers[slot][name], own
            )
    ports_params = {name: params["ports"].get(name, value) for name, value in whole["ports"].items()}
    return {"ports": {**ports_params, "inputs": {**whole["ports"]["inputs"], **params["ports"]["inputs"]}},
            "layers": layers}  # fmt: skip


def _with_statistics(tree: Any) -> Any:
    """A tree of parameters whose normalisations have running statistics, which change nothing."""
    if not isinstance(tree, dict):
        return tree
    if {"scale", "bias"} <= set(tree):
        return {**tree, "mean": jnp.zeros_like(tree["bias"]), "var": jnp.ones_like(tree["scale"])}
    return {key: _with_statistics(value) for key, value in tree.items()}


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
    # It starts the state: of a clip where that is read, of every key frame in propagate mode.
    is_started = "prev_state" in names or "schedule" in params["ports"]
    kept = set(names) | ({"decoder"} if is_started else set())
    inputs = {name: value for name, value in params["ports"]["inputs"].items() if name in kept}
    layers = {}
    for index, (row, layer) in enumerate(zip(rows, params["layers"], strict=True)):
        layers[f"layer{index}"] = {slot: layer[slot][name] for slot, name in _chosen(space, row).items()}
    return {"ports": {**params["ports"], "inputs": inputs}, "layers": layers}


def _chosen(space: genotype_lib.Space, row: np.ndarray) -> dict[str, str]:
    """Slot of a layer -> name of the member that its tokens choose."""
    return {"a": space.operations[row[2]], "b": space.operations[row[3]], "agg": space.aggregations[row[4]]}


def _run_layers(
    space: genotype_lib.Space,
    rows: np.ndarray,
    params: Params,
    inputs: dict[str, jax.Array],
    *,
    template: jax.ShapeDtypeStruct,
    scope: operations.CellScope,
) -> list[jax.Array]:
    """Outputs of the layers in order, each [B, h, w, C]."""
    nodes = {space.inputs.index(name): value for name, value in inputs.items()}
    for index, row in enumerate(rows):
        layer, layer_scope = params[f"layer{index}"], scope.child("layers", f"layer{index}")
        maps = []
        for slot, node, token in (("a", row[0], row[2]), ("b", row[1], row[3])):
            operation = operations.OPERATIONS[space.operations[token]]
            if operation.is_zero:
                maps.append(jnp.zeros(template.shape, template.dtype))
            else:
                maps.append(operation.apply(layer[slot], nodes[int(node)], layer_scope.child(slot)))
        aggregation = operations.AGGREGATIONS[space.aggregations[row[4]]]
        nodes[space.num_inputs + index] = aggregation.apply(layer["agg"], *maps, layer_scope.child("agg"))
    return [nodes[space.num_inputs + index] for index in range(space.num_layers)]
