"""The cell whose genotype is static: operations that it does not use do not exist.

For any genotype it equals the supernet with the weights that `gather_params` cuts out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.space import cell_frame, operations, projections
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import schedule as schedule_lib

Params = dict[str, Any]
Output = TypeVar("Output")
_MEMBERS: dict[str, dict[str, Any]] = {
    "a": operations.OPERATIONS, "b": operations.OPERATIONS, "agg": operations.AGGREGATIONS,
}  # fmt: skip


class Cell:
    """Pure functions of one cell. `features` are of one frame, [B, ...], `frames` of a clip, [T, B, ...].

    Attributes:
      inputs: names of the inputs that it reads.
    """

    def __init__(self, space: genotype_lib.Space, rows: np.ndarray, settings: cell_frame.CellSettings) -> None:
        self._space, self._rows, self._settings = space, rows, settings
        self._loose = genotype_lib.loose_ends(space, rows)
        self.inputs = used_inputs(space, rows) if settings.has_output else ()
        settings.check(self.inputs)

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters."""
        space, settings = self._space, self._settings
        ports_rng, layers_rng = jax.random.split(rng)
        layer_rngs = jax.random.split(layers_rng, space.num_layers)
        layers = [operations.init_layer(each, space, settings.channels, settings.scope()) for each in layer_rngs]
        ports = cell_frame.init(ports_rng, settings, space.inputs)
        if not settings.has_output:
            return {"ports": {name: ports[name] for name in ("share", "schedule") if name in ports}, "layers": {}}
        return _select(space, self._rows, {"ports": ports, "layers": layers})

    def initial_state(self, features: types.Features, *, is_projected: bool = False) -> types.CellState:
        """The state before the first frame; `is_projected`: see `CellState`."""
        return cell_frame.initial_state(self._settings, features, self.inputs, is_projected=is_projected)

    def step(
        self, params: Params, state: types.CellState, features: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        """The state after a frame and its logits [B, h, w, K]."""
        state, _ = self._finish(params, state, features)
        return state, jnp.asarray(state.logits)

    def unroll(self, params: Params, frames: types.Features) -> jax.Array:
        """Logits [T, B, h, w, K] of a clip."""
        if not self._settings.has_known_key_frames:
            return self._scan(functools.partial(self.step, params), frames)
        # The cell computes nothing on key frames.
        state, interval = self.initial_state(jax.tree.map(lambda x: x[0], frames)), self._settings.schedule.interval
        follow_fn = functools.partial(self._from_key_frame, params)
        num_whole = len(frames.logits) // interval
        whole = jax.tree.map(lambda x: x[: num_whole * interval].reshape(num_whole, interval, *x.shape[1:]), frames)
        state, logits = jax.lax.scan(follow_fn, state, whole)
        logits = logits.reshape(-1, *logits.shape[2:])
        if len(frames.logits) == len(logits):
            return logits
        _, last = follow_fn(state, jax.tree.map(lambda x: x[num_whole * interval :], frames))
        return jnp.concatenate([logits, last])

    def unroll_training(self, params: Params, frames: types.Features) -> tuple[jax.Array, jax.Array]:
        """Logits [T, B, h, w, K], and the loss f32 [] of the schedule's predicted errors (0 where it predicts none).

        Key frames come at the schedule's interval.
        """
        if self._settings.has_known_key_frames:
            return self.unroll(params, frames), jnp.zeros(())

        def scored_step(
            state: types.CellState, features: types.Features
        ) -> tuple[types.CellState, tuple[jax.Array, jax.Array]]:
            state, loss = self._finish(params, state, features, is_training=True)
            return state, (jnp.asarray(state.logits), loss)

        logits, losses = self._scan(scored_step, frames)
        return logits, losses.mean()

    def predicted_errors(self, params: Params, frames: types.Features) -> jax.Array:
        """What a learned schedule predicts of each frame, log-odds f32 [T, B, h, w] of labels that differ, where key
        frames come at its interval; -inf on these."""

        def looking_step(state: types.CellState, features: types.Features) -> tuple[types.CellState, jax.Array]:
            log_odds = cell_frame.due(params["ports"], self._settings, state, features)[1]
            assert log_odds is not None, "the schedule is learned"
            is_key = schedule_lib.due(self._settings.schedule, jnp.asarray(state.age)[:, :1, :1], None)
            after, _ = self._finish(params, state, features, is_training=True)
            return after, jnp.where(is_key, -jnp.inf, log_odds)

        return self._scan(looking_step, frames)

    def moments(self, params: Params, frames: types.Features) -> operations.Moments:
        """`{path: (mean, var)}`, batch moments of every normalisation, averaged over the frames.

        Those of the cell's own path: key frames do not count.
        """

        def recording_step(
            state: types.CellState, features: types.Features
        ) -> tuple[types.CellState, tuple[operations.Moments, jax.Array]]:
            record: operations.Moments = {}
            state, _ = self._finish(params, state, features, record, is_training=True)
            share = (jnp.asarray(state.age) > 0).mean(dtype=jnp.float32) if state.is_propagating else 1.0
            return state, (record, jnp.asarray(share))

        record, shares = self._scan(recording_step, frames)
        weights = jnp.where(shares.sum() > 0, shares, 1.0)  # of every frame a key frame, the cell is never used
        weights /= weights.sum()
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), record)

    def due(self, params: Params, state: types.CellState, features: types.Features) -> jax.Array:
        """Propagate: bool [B, rows, columns], what the static network has to compute; the first stages are enough."""
        return cell_frame.due(params["ports"], self._settings, state, features)[0]

    def restart(self, params: Params, state: types.CellState, features: types.Features) -> types.CellState:
        """Propagate: the state after a key frame; its own map begins anew where the cell reads it."""
        start = None if "prev_state" in self.inputs else jnp.asarray(state.state)
        return self._ports(params).key_frame(state, features, start)

    def advance(
        self,
        params: Params,
        state: types.CellState,
        features: types.Features,
        record: operations.Moments | None = None,
    ) -> types.CellState:
        """The state after a frame by the cell alone; propagate: the maps of the first encoder stages are enough.

        `record` receives the batch moments.
        """
        ports = self._ports(params, record)
        if not self._settings.has_output:
            return ports.output(None, state, features)
        project_fn = projections.make_project(params["ports"], ports.scope)
        inputs = projections.cell_inputs(state, features, self.inputs, project_fn)
        outputs = self._run_layers(params["layers"], inputs, state.state, self._settings.scope(record))
        mean = functools.reduce(jnp.add, [outputs[layer] for layer in self._loose]) / len(self._loose)
        return ports.output(mean, state, features, inputs)

    def merge(self, restarted: types.CellState, advanced: types.CellState, is_key: jax.Array) -> types.CellState:
        """Propagate: one state of two, region by region, `is_key` bool [B, rows, columns]."""
        return cell_frame.merge(restarted, advanced, is_key)

    def _ports(self, params: Params, record: operations.Moments | None = None) -> cell_frame.Ports:
        return cell_frame.Ports(params["ports"], self._settings, self._settings.scope(record).child("ports"))

    def _finish(
        self,
        params: Params,
        before: types.CellState,
        features: types.Features,
        record: operations.Moments | None = None,
        *,
        is_training: bool = False,
    ) -> tuple[types.CellState, jax.Array]:
        after = self.advance(params, before, features, record)
        return self._ports(params, record).finish(before, after, features, is_training=is_training)

    def _from_key_frame(
        self, params: Params, state: types.CellState, frames: types.Features
    ) -> tuple[types.CellState, jax.Array]:
        """The state after frames of which the first is a key frame, and all their logits."""

        def step(state: types.CellState, features: types.Features) -> tuple[types.CellState, jax.Array]:
            after = self.advance(params, state, features)
            return after, jnp.asarray(after.logits)

        first, others = (jax.tree.map(lambda x, part=part: x[part], frames) for part in (0, slice(1, None)))
        state = self.restart(params, state, first)
        state, logits = jax.lax.scan(step, state, others)
        return state, jnp.concatenate([jnp.asarray(first.logits)[None], logits])

    def _scan(
        self,
        step_fn: Callable[[types.CellState, types.Features], tuple[types.CellState, Output]],
        frames: types.Features,
    ) -> Output:
        """What the steps of a clip give, with a leading axis T."""
        state = self.initial_state(jax.tree.map(lambda x: x[0], frames))
        return jax.lax.scan(step_fn, state, frames)[1]

    def _run_layers(
        self, params: Params, inputs: dict[str, jax.Array], like: types.Array, scope: operations.CellScope
    ) -> list[jax.Array]:
        """Outputs of the layers in order, each [B, h, w, C] like the state."""
        space = self._space
        nodes = {space.inputs.index(name): value for name, value in inputs.items()}
        for index, row in enumerate(self._rows):
            layer, layer_scope = params[f"layer{index}"], scope.child("layers", f"layer{index}")
            maps, chosen = [], _chosen(space, row)
            for slot, node in zip("ab", row[:2], strict=True):
                operation = operations.OPERATIONS[chosen[slot]]
                if operation.is_zero:
                    maps.append(jnp.zeros(like.shape, like.dtype))
                else:
                    maps.append(operation.apply(layer[slot], nodes[int(node)], layer_scope.child(slot)))
            aggregation = operations.AGGREGATIONS[chosen["agg"]]
            nodes[space.num_inputs + index] = aggregation.apply(layer["agg"], *maps, layer_scope.child("agg"))
        return [nodes[space.num_inputs + index] for index in range(space.num_layers)]


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
    return Cell(space, genotype_lib.validate(space, genotype), settings)


def gather_params(space: genotype_lib.Space, genotype: Any, supernet_params: Params) -> Params:
    """Cuts the weights of one genotype out of a supernet's."""
    rows = genotype_lib.validate(space, genotype)
    layers = [
        jax.tree.map(lambda x, layer=layer: x[layer], supernet_params["layers"]) for layer in range(space.num_layers)
    ]
    return _select(space, rows, {"ports": supernet_params["ports"], "layers": layers})


def carry_params(space: genotype_lib.Space, genotype: Any, layers: Sequence[int | None], params: Params) -> Params:
    """The weights, trained or not, of a larger cell for a smaller one, i32 [L, 5], whose layers are some of its own.

    `layers`: of each layer, that of the larger cell whose weights it has, None: it has none, as
    `canonical.simplified` says. Slots that hold other operations than there must be without weights.
    """
    rows = genotype_lib.validate(space, genotype)
    held = {
        f"layer{index}": {
            slot: {} if _MEMBERS[slot][name].is_weightless or layer is None else params["layers"][f"layer{layer}"][slot]
            for slot, name in _chosen(space, row).items()
        }
        for index, (row, layer) in enumerate(zip(rows, layers, strict=True))
    }
    ports = params["ports"]
    inputs = {name: ports["inputs"][name] for name in _held_inputs(space, rows, ports)}
    return {"ports": {**ports, "inputs": inputs}, "layers": held}


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


def without_statistics(params: Params) -> Params:
    """Weights as `freeze_norm` was given them: normalisations have no running statistics."""

    def visit(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        is_norm = {"scale", "mean", "var"} <= set(tree)
        return {key: visit(value) for key, value in tree.items() if not (is_norm and key in ("mean", "var"))}

    return visit(params)


def _select(space: genotype_lib.Space, rows: np.ndarray, params: Params) -> Params:
    """Keeps what the genotype uses. Layers become a dict `layerN`."""
    kept = _held_inputs(space, rows, params["ports"])
    inputs = {name: value for name, value in params["ports"]["inputs"].items() if name in kept}
    layers = {}
    for index, (row, layer) in enumerate(zip(rows, params["layers"], strict=True)):
        layers[f"layer{index}"] = {slot: layer[slot][name] for slot, name in _chosen(space, row).items()}
    return {"ports": {**params["ports"], "inputs": inputs}, "layers": layers}


def _held_inputs(space: genotype_lib.Space, rows: np.ndarray, ports: Params) -> list[str]:
    """The inputs whose projections a cell has weights for."""
    names = used_inputs(space, rows)
    # It starts the state: of a clip where that is read, of every key frame in propagate mode.
    is_started = "prev_state" in names or "schedule" in ports
    return sorted({*map(projections.weights_of, names), *(["decoder"] if is_started else [])})


def _chosen(space: genotype_lib.Space, row: np.ndarray) -> dict[str, str]:
    """Slot of a layer -> name of the member that its tokens choose."""
    return {"a": space.operations[row[2]], "b": space.operations[row[3]], "agg": space.aggregations[row[4]]}
