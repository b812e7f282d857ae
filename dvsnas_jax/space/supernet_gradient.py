"""The supernet over the frames of a clip, its gradient written out.

Forward, a loop over the frames keeps the layers' buffers (`space.shared_layers`) and, of every frame, the state before
it. Backward, the loop runs in reverse and adds to one buffer of the gradients of all nodes. The rest of a frame (the
projections that depend on the state, output, head, key frames) is small and is computed once more for its gradient.

For example L = 2 layers, T = 2 frames, N = 2 inputs: `prev_state`, which depends on the frame before, and `decoder`.
Layer 0 reads both, layer 1 reads layer 0 and `decoder`.

    memory, row t * L + l             0, 1: layers 0, 1 of frame 0      2, 3: layers 0, 1 of frame 1
    gradients, row n * T + t          0, 1: `prev_state` of frames 0, 1    2, 3: `decoder` of frames 0, 1
    gradients, row N * T + l          4, 5: layers 0, 1 of the frame at hand, used anew by every frame

Frame 1: layer 1 is the loose end, its gradient comes from the output; it writes rows 4 (layer 0) and 3. Layer 0 takes
row 4, writes row 1 and adds to row 3. Row 1 makes the gradient of the state after frame 0, and frame 0 does the same
with rows 4, 2 and 0. At last rows 2 and 3 give the gradient of the projection of `decoder`, of both frames at once.
A row is written by the first that reads its node and added to by the others, so nothing is ever filled with zeros.
It equals autodiff of a plain loop: `by_autodiff` in tests/test_shared_layers.py.

In mode propagate with key frames at the interval alone, a whole clip is known to begin with one. The cell then computes
nothing on key frames: the loops go over the frames between them (`Plan`), T is the number of those, and each that
follows a key frame starts from the static network's maps of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.space import cell_frame, operations, projections, shared_layers
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import schedule as schedule_lib

Params = dict[str, Any]
Carried = tuple[types.Array, types.Array]
"""What of a state has a gradient: the cell's own map and its logits. All else are the static network's features."""


class Buffers(NamedTuple):
    """What the passes over a clip write to; of any contents before.

    Attributes:
      memory: of the layers, T * L rows.
      grads: gradients of nodes, [N * T + L, B, h, w, C]: a row for each input of each frame, and for each layer.
    """

    memory: shared_layers.Memory
    grads: jax.Array


class Plan(NamedTuple):
    """Which frames of a clip the cell computes.

    Attributes:
      frames: their places, in order.
      keys: those of the key frames that one of them follows; None: which are key frames is decided as they come.
    """

    frames: tuple[int, ...]
    keys: tuple[int, ...] | None = None

    def begins(self) -> np.ndarray:
        """Whether each of the frames follows a key frame, bool [T]."""
        return np.isin(np.array(self.frames) - 1, np.array(self.keys or (), int))

    def of(self, frames: types.Features) -> types.Features:
        """The features of the frames."""
        return frames if self.keys is None else jax.tree.map(lambda x: projections.some(x, self.frames), frames)

    def logits(self, frames: types.Features, found: jax.Array) -> jax.Array:
        """Of a whole clip: those found [T, B, h, w, K], and the static network's on key frames."""
        if self.keys is None:
            return found
        own = {frame: found[index] for index, frame in enumerate(self.frames)}
        return jnp.stack([own.get(frame, frames.logits[frame]) for frame in range(len(frames.logits))])


class Kept(NamedTuple):
    """Of a forward pass for the backward one.

    Attributes:
      known: inputs that were projected for all frames, each [T, B, h, w, C].
      start: the state before the clip.
      states: those that every frame was computed from, without what only whole clips are projected from.
    """

    known: dict[str, jax.Array]
    start: types.CellState
    states: types.CellState
    memory: shared_layers.Memory


class Clip:
    """Both passes over a clip of T frames, features [T, B, h, w, C]; N inputs, L layers.

    `run(params, genotype i32 [L, 5], state before the clip, frames) -> (state, logits [T, B, h, w, K])` has gradients
    with respect to the parameters and to what a state carries of the cell's own: features have none. `is_whole`: clips
    are whole, from the first frame of a video on; the state is then that after the last frame that the cell computed.
    """

    def __init__(
        self,
        space: genotype_lib.Space,
        settings: cell_frame.CellSettings,
        scope: operations.CellScope,
        *,
        is_whole: bool = False,
    ) -> None:
        self._has_known_keys = is_whole and settings.has_known_key_frames
        self._space, self._settings, self._scope = space, settings, scope
        self._layers = shared_layers.Layers(space, scope)
        self._names = list(dict.fromkeys([*space.inputs, "decoder"]))  # of the inputs that have rows in the gradients
        dependent = projections.dependent(is_propagating=settings.is_propagating)
        self._dependent = [name for name in space.inputs if name in dependent]
        self.run = jax.custom_vjp(lambda *args: self.forward(*args)[:2])
        self.run.defvjp(self._keep, self._pull)

    def _keep(self, params: Params, genotype: jax.Array, state: types.CellState, frames: types.Features) -> Any:
        state, logits, kept = self.forward(params, genotype, state, frames, self.buffers(frames).memory)
        return (state, logits), (params, genotype, frames, kept)

    def _pull(self, residuals: Any, grads: tuple[types.CellState, jax.Array]) -> tuple[Any, ...]:
        params, genotype, frames, kept = residuals
        of_state, of_logits = grads
        new = self.buffers(frames).grads
        grad_params, carried, _ = self.backward(params, genotype, frames, kept, (_carried(of_state), of_logits), new)
        return grad_params, None, _with(jax.tree.map(_no_gradient, kept.start), carried), None

    def value_and_grad(
        self,
        params: Params,
        genotype: jax.Array,
        state: types.CellState,
        frames: types.Features,
        loss_fn: Callable[[jax.Array], jax.Array],
        buffers: Buffers,
    ) -> tuple[jax.Array, Params, Buffers]:
        """As autodiff of `run`, which fills new buffers with zeros every time."""
        _, logits, kept = self.forward(params, genotype, state, frames, buffers.memory)
        loss, grad_logits = jax.value_and_grad(loss_fn)(logits)
        grads = jax.tree.map(jnp.zeros_like, _carried(state)), grad_logits
        grad_params, _, written = self.backward(params, genotype, frames, kept, grads, buffers.grads)
        return loss, grad_params, Buffers(kept.memory, written)

    def buffers(self, frames: types.Features) -> Buffers:
        """New ones, for clips of this shape."""
        like = frames.maps["decoder"][..., :1]
        num_frames, num_names = len(self._plan(len(like)).frames), len(self._names)

        def make(num_rows: int) -> jax.Array:
            return jnp.zeros((num_rows, *like.shape[1:-1], self._settings.channels), like.dtype)

        num_layers = self._space.num_layers
        memory = shared_layers.Memory(*[make(num_layers * num_frames) for _ in range(3)])
        return Buffers(memory, make(num_names * num_frames + num_layers))

    def _plan(self, num_frames: int) -> Plan:
        interval = self._settings.schedule.interval
        between = schedule_lib.between_key_frames(num_frames, interval) if self._has_known_keys else ()
        if not between:
            return Plan(tuple(range(num_frames)))
        return Plan(between, tuple(frame - 1 for frame in between if frame % interval == 1))

    def forward(
        self,
        params: Params,
        genotype: jax.Array,
        state: types.CellState,
        frames: types.Features,
        memory: shared_layers.Memory | None = None,
    ) -> tuple[types.CellState, jax.Array, Kept]:
        """The state after the clip, logits [T, B, h, w, K] and, with a memory to write to, what `backward` needs."""
        reads, plan = self._reads(genotype), self._plan(len(frames.logits))
        known = projections.project_clip(self._clip_inputs(params, state, frames, plan), reads)
        num_layers, keep = self._space.num_layers, memory is not None
        weights = loose_end_weights(self._space, genotype).astype(known["decoder"].dtype)
        if memory is None:
            empty = jnp.zeros((num_layers, *known["decoder"].shape[1:]), known["decoder"].dtype)
            memory = shared_layers.Memory(empty, empty[:0], empty[:0])

        def step(carry: Any, xs: tuple[jax.Array, types.Features]) -> tuple[Any, Any]:
            state, memory = carry
            index, features = xs
            first = index * num_layers if keep else 0
            state, start = self._begin(plan, index, state, frames, known["decoder"], params["ports"])
            own = self._own(reads, state, features, params["ports"], _carried(state), start)
            frame = shared_layers.Frame(self._pick(known, own, index, first), memory, first)
            memory = self._layers.forward(params["layers"], genotype, frame)
            mean = _weighted_sum(weights, memory.outputs, first)
            after = self._after(plan, state, features, mean, (params["ports"], _carried(state), start))
            return (after, memory), (after.logits, self._slim(state) if keep else None)

        xs = jnp.arange(len(plan.frames)), plan.of(frames)
        (after, memory), (logits, states) = jax.lax.scan(step, (state, memory), xs)
        return after, plan.logits(frames, logits), Kept(known, state, states, memory)

    def backward(
        self,
        params: Params,
        genotype: jax.Array,
        frames: types.Features,
        kept: Kept,
        grads: tuple[Carried, jax.Array],
        buffer: jax.Array,
    ) -> tuple[Params, Carried, jax.Array]:
        """From gradients of the state after the clip and of the logits, those of the parameters and of the state before
        the clip, and the buffer that was written to."""
        (grad_carried, grad_logits), reads, memory = grads, self._reads(genotype), kept.memory
        plan = self._plan(len(grad_logits))
        num_frames, num_layers, num_names = len(plan.frames), self._space.num_layers, len(self._names)
        rows_of_layers = num_names * num_frames + jnp.arange(num_layers)
        weights = loose_end_weights(self._space, genotype).astype(memory.outputs.dtype)

        def step(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
            (grad_state, grad_logits_after), grad_params, grads = carry
            index, features, state, grad_logits, begins = xs
            first, start = index * num_layers, kept.known["decoder"][0 if plan.keys else index]
            mean = _weighted_sum(weights, memory.outputs, first)
            inputs = params["ports"], _carried(state), start
            own, own_pull = jax.vjp(functools.partial(self._own, reads, state, features), *inputs)

            def after_fn(mean: jax.Array, *args: Any) -> Carried:
                return _carried(self._after(plan, state, features, mean, args))

            after_pull = jax.vjp(after_fn, mean, *inputs)[1]
            grad_mean, *from_after = after_pull((grad_state, grad_logits_after + grad_logits))
            rows = jnp.concatenate([jnp.arange(self._space.num_inputs) * num_frames + index, rows_of_layers])
            frame = shared_layers.Frame(self._pick(kept.known, own, index, first), memory, first)
            grads, grad_layers = self._layers.backward(
                params["layers"], genotype, frame, grads, rows, (weights, grad_mean)
            )
            own_grads = {name: shared_layers.take(grads, rows[self._names.index(name)]) for name in own}
            grad_ports, grad_carried, grad_start = _add(from_after, list(own_pull(own_grads)))
            grad_params = _add(grad_params, {"ports": grad_ports, "layers": grad_layers})
            if plan.keys is not None:  # what the cell carried into a key frame ends there
                grad_start = grad_carried[0]
                grad_carried = jax.tree.map(lambda x: jnp.where(begins, 0, x), grad_carried)
            return (grad_carried, grad_params, grads), grad_start

        carry = grad_carried, jax.tree.map(jnp.zeros_like, params), buffer
        grad_logits = projections.some(grad_logits, plan.frames)
        xs = jnp.arange(num_frames), plan.of(frames), kept.states, grad_logits, jnp.array(plan.begins())
        (grad_carried, grad_params, buffer), grad_start = jax.lax.scan(step, carry, xs, reverse=True)
        if plan.keys is not None:
            grad_start = projections.some(grad_start, tuple(np.flatnonzero(plan.begins())))
        rows = {name: self._names.index(name) * num_frames for name in kept.known}
        inputs = self._clip_inputs(params, kept.start, frames, plan)
        starts = {"decoder": (grad_start, self._layer_reads(genotype).get("decoder", jnp.array(False)))}
        for name, found in projections.pull_clip(inputs, reads, buffer, rows, starts).items():
            own = projections.weights_of(name)
            grad_params["ports"]["inputs"][own] = _add(grad_params["ports"]["inputs"][own], found)
        return grad_params, grad_carried, buffer

    def _clip_inputs(
        self, params: Params, state: types.CellState, frames: types.Features, plan: Plan
    ) -> dict[str, projections.ClipInput]:
        places = None if plan.keys is None else {"decoder": plan.keys, "": plan.frames}
        return projections.of_clip(params["ports"], state, frames, self._names, self._scope, places)

    def _begin(
        self,
        plan: Plan,
        index: jax.Array,
        state: types.CellState,
        frames: types.Features,
        starts: jax.Array,
        params: Params,
    ) -> tuple[types.CellState, jax.Array]:
        """The state that a frame is computed from, and the projected decoder map that may start it: of the frame, or of
        the key frame before it, whose own state it is where the frame follows it."""
        if plan.keys is None:
            return state, starts[index]
        begins = plan.begins()
        number = jnp.array(begins.cumsum() - 1)[index]
        key = jax.tree.map(lambda x: shared_layers.take(jnp.asarray(x), jnp.array(plan.keys)[number]), frames)
        ports = cell_frame.Ports(params, self._settings, self._scope)
        begun = ports.key_frame(state, key, starts[number])
        return jax.tree.map(lambda a, b: jnp.where(jnp.array(begins)[index], a, b), begun, state), starts[number]

    def _layer_reads(self, genotype: jax.Array) -> dict[str, jax.Array]:
        """Whether a layer reads each input, bool []."""
        return dict(zip(self._space.inputs, read_inputs(self._space, genotype), strict=True))

    def _reads(self, genotype: jax.Array) -> dict[str, jax.Array]:
        """Whether each input, and the decoder map that starts the state, has to be projected, bool []."""
        found = self._layer_reads(genotype)
        always = jnp.array(self._settings.is_propagating)
        starts = always | found.get("prev_state", jnp.array(False))
        return {**found, "decoder": starts | found.get("decoder", False)}

    def _slim(self, state: types.CellState) -> types.CellState:
        """A state without the maps that `_own` and `_after` do not read: less to keep of every frame."""
        nothing = state.logits[..., :0]
        decoder = state.decoder if state.is_propagating else nothing
        return dataclasses.replace(state, decoder=decoder, maps=dict.fromkeys(state.maps, nothing))

    def _own(
        self,
        reads: dict[str, jax.Array],
        state: types.CellState,
        features: types.Features,
        params: Params,
        carried: Carried,
        start: jax.Array,
    ) -> dict[str, jax.Array]:
        """The inputs that depend on what the cell did before."""
        project_fn = projections.make_project(params, self._scope, reads)
        return projections.cell_inputs(_with(state, carried), features, self._dependent, project_fn, {"decoder": start})

    def _after(
        self,
        plan: Plan,
        state: types.CellState,
        features: types.Features,
        mean: jax.Array,
        inputs: tuple[Params, Carried, jax.Array],
    ) -> types.CellState:
        """The state after a frame, from the mean of its loose ends; `inputs`: the last three of `_own`."""
        params, carried, start = inputs
        before, ports = _with(state, carried), cell_frame.Ports(params, self._settings, self._scope)
        after = ports.output(mean, before, features)
        return ports.finish(before, after, features, start=start)[0] if plan.keys is None else after

    def _pick(
        self, known: dict[str, jax.Array], own: dict[str, jax.Array], index: jax.Array, first: jax.Array | int
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """`(token, outputs) -> node` of one frame, whose layers' rows begin at `first`."""
        num_inputs = self._space.num_inputs

        def pick(token: jax.Array, outputs: jax.Array) -> jax.Array:
            def branch(name: str) -> Callable[..., jax.Array]:
                return lambda known, own, outputs: own[name] if name in own else shared_layers.take(known[name], index)

            def layer(known: Any, own: Any, outputs: jax.Array) -> jax.Array:
                return shared_layers.take(outputs, first + token - num_inputs)

            branches = [*map(branch, self._space.inputs), layer]
            return jax.lax.switch(jnp.minimum(token, num_inputs), branches, known, own, outputs)

        return pick


def read_inputs(space: genotype_lib.Space, genotype: jax.Array) -> jax.Array:
    """Which inputs some layer reads through an operation other than `none`, bool [num_inputs]."""
    tokens, names = genotype[:, :2].ravel(), genotype[:, 2:4].ravel()
    for index, name in enumerate(space.operations):
        if operations.OPERATIONS[name].is_zero:
            tokens = jnp.where(names == index, space.num_inputs, tokens)
    return (tokens[None] == jnp.arange(space.num_inputs)[:, None]).any(axis=1)


def loose_end_weights(space: genotype_lib.Space, genotype: jax.Array) -> jax.Array:
    """Weight of each layer's output in the cell's output: 1 / count for loose ends, else 0; f32 [L]."""
    layers = jnp.arange(space.num_layers)[:, None] + space.num_inputs
    used = (genotype[:, :2].reshape(1, -1) == layers).any(axis=1)
    loose = 1.0 - used.astype(jnp.float32)
    return loose / loose.sum()


def _weighted_sum(weights: jax.Array, outputs: jax.Array, first: jax.Array | int) -> jax.Array:
    """Of the outputs of the layers of one frame, whose rows begin at `first`."""
    parts = [weights[layer] * shared_layers.take(outputs, first + layer) for layer in range(len(weights))]
    return functools.reduce(jnp.add, parts)


def _carried(state: types.CellState) -> Carried:
    return state.state, state.logits


def _with(state: types.CellState, carried: Carried) -> types.CellState:
    return dataclasses.replace(state, state=carried[0], logits=carried[1])


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _no_gradient(x: jax.Array) -> Any:
    """The cotangent of a value that nothing depends on."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)
