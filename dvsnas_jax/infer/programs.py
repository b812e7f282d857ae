"""The programs that segment a video, as pure functions of weights and arrays: what `dvsnas export` writes.

Refine mode has one program a frame. Propagate mode decides on the host which of several a frame needs; `infer.stream`
does so with the same network and cell in this process, `infer.artifact` with what was exported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.infer import stream
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import schedule as schedule_lib

State = dict[str, Any]
"""`types.CellState` without what is None: all that crosses the border of a program is a plain container."""


class Program(NamedTuple):
    """One program.

    Attributes:
      fn: `(weights, *args) -> results`.
      weights: a tree of arrays.
      args: shapes of the other arguments, for a batch of one.
      is_batched: whether it takes any number of videos at a time (the first axis of every argument).
      inputs: names of the arguments.
      outputs: names of the results; one: the result itself.
    """

    fn: Callable[..., Any]
    weights: Any
    args: tuple[Any, ...]
    is_batched: bool = True
    inputs: tuple[str, ...] = ("state", "frame")
    outputs: tuple[str, ...] = ("state", "labels")

    def input_names(self) -> list[str]:
        """A name for each array among the arguments, such as `frame` and `state_logits`."""
        return [name for label, arg in zip(self.inputs, self.args, strict=True) for name in leaf_names(label, arg)]

    def result_names(self) -> list[str]:
        """A name for each array among the results, as `input_names` names them."""
        found = jax.eval_shape(self.fn, self.weights, *self.args)
        parts = (found,) if len(self.outputs) == 1 else found
        return [name for label, part in zip(self.outputs, parts, strict=True) for name in leaf_names(label, part)]


class Model(NamedTuple):
    """A trained network and cell.

    Attributes:
      net: the static network.
      variables: of it, folded (`static_net.fold`).
      cell: the static graph; None: the network is used alone.
      params: of it, None without one.
      settings: of the cell.
      size: height and width of the frames.
    """

    net: static_net.StaticNet
    variables: Any
    cell: cell_lib.Cell | None
    params: Any
    settings: cell_frame.CellSettings
    size: tuple[int, int]


class Region(NamedTuple):
    """How one region of a frame is computed by the static network.

    Attributes:
      program: its name, see `make`.
      places: first row and column of the crop (pixels), of the region in the crop and in the whole (grid cells).
    """

    program: str
    places: tuple[int, ...]


def leaf_names(label: str, tree: Any) -> list[str]:
    """Names of the arrays of a tree in their order: the label alone, or with the keys that lead to the array."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ["_".join([label, *(str(getattr(entry, "key", getattr(entry, "idx", ""))) for entry in p)]) for p in paths]


def initial_state(model: Model) -> State:
    """The state of one video before its first frame; without a cell there is none."""
    if model.cell is None:
        return {}
    return to_dict(model.cell.initial_state(static_net.frame_shapes(model.net, model.size)))


def to_dict(state: types.CellState) -> State:
    """A state as a plain dictionary."""
    return state.to_dict()


def make(model: Model) -> dict[str, Program]:
    """All programs of a model by name.

    `static`: `(frame) -> labels`, the network alone. Refine: `step`: `(state, frame) -> (state, labels)`. Propagate:
    `key` the same, for a key frame; `other`, for the others, where the schedule is fixed. Where it is learned:
    `look`: `(state, frame) -> (maps, shares)`, the cheap maps and the predicted share of differing labels f32
    [B, rows, columns], and `other`: `(state, maps) -> (state, labels)`. Regions, in addition: `paintN`:
    `(canvas, frame, places) -> canvas` and `join`: `(state, maps, canvas, is_due) -> (state, labels)`.
    """
    state, frame = initial_state(model), jax.ShapeDtypeStruct((1, *model.size, 3), jnp.uint8)
    weights = {"static": model.variables, "cell": model.params}
    predict = functools.partial(static_net.predict, size=model.size)
    infer = functools.partial(static_net.infer, model.net)

    def static(weights: Any, frame: jax.Array) -> jax.Array:
        return predict(infer(weights["static"], frame).logits)

    alone = {"static": model.variables}
    found = {"static": Program(static, alone, (frame,), inputs=("frame",), outputs=("labels",))}
    if model.cell is None:
        return {
            **found,
            "step": Program(lambda weights, state, frame: (state, static(weights, frame)), alone, (state, frame)),
        }
    cell = model.cell
    if model.settings.is_propagating:

        def key(weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
            restarted = cell.restart(weights["cell"], _state(state), infer(weights["static"], frame))
            return _labelled(model, restarted)

        found["key"] = Program(key, weights, (state, frame))
        add = _learned if model.settings.schedule.is_learned else _fixed
        return {**found, **add(model, state, frame)}

    def step(weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
        after, logits = cell.step(weights["cell"], _state(state), infer(weights["static"], frame))
        return to_dict(after), predict(logits)

    return {**found, "step": Program(step, weights, (state, frame))}


def next_frame(model: Model) -> Program:
    """`(state, frame) -> (state, labels)` as one program, which decides inside whether a frame is a key frame."""
    made = make(model)
    if "step" in made:
        return made["step"]
    schedule, places = model.settings.schedule, regions(model)

    def step(weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
        def run(name: str, *args: Any) -> Any:
            return made[name].fn(weights, *args)

        is_due = (state["age"] < 0) | (state["age"] + 1 >= schedule.interval)
        if not schedule.is_learned:
            return jax.lax.cond(is_due.any(), lambda: run("key", state, frame), lambda: run("other", state, frame))
        maps, shares = run("look", state, frame)
        is_due |= shares > schedule.threshold

        def computed() -> tuple[State, jax.Array]:
            if not places:
                return run("key", state, frame)
            canvas = [jnp.zeros_like(state[name]) for name in ("decoder", "logits")]
            for row, line in enumerate(places):
                for column, region in enumerate(line):
                    where = jnp.array(region.places, jnp.int32)
                    paint = functools.partial(made[region.program].fn, weights, canvas, frame, where)
                    canvas = jax.lax.cond(is_due[0, row, column], lambda p=paint: list(p()), lambda c=canvas: c)
            joined = functools.partial(run, "join", state, maps, canvas, is_due)
            return jax.lax.cond(is_due.all(), lambda: run("key", state, frame), joined)

        return jax.lax.cond(is_due.any(), computed, lambda: run("other", state, maps))

    return made["key"]._replace(fn=step, is_batched=not places)


def _cell(model: Model) -> cell_lib.Cell:
    assert model.cell is not None, "these are programs of a cell"
    return model.cell


def _state(values: State) -> types.CellState:
    return types.CellState.from_dict(values)


def _labelled(model: Model, state: types.CellState) -> tuple[State, jax.Array]:
    return to_dict(state), static_net.predict(state.logits, model.size)


def _cheap_weights(model: Model, last: str) -> Any:
    return {"static": static_net.needed(model.net, model.variables, last), "cell": model.params}


def _fixed(model: Model, state: State, frame: Any) -> dict[str, Program]:
    """The program of a frame that is no key frame."""
    cell = _cell(model)
    last = stream.depth(cell.inputs, model.settings)

    def other(weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
        cheap = static_net.infer(model.net, weights["static"], frame, last)
        return _labelled(model, cell.advance(weights["cell"], _state(state), cheap))

    return {"other": Program(other, _cheap_weights(model, last), (state, frame))}


def _learned(model: Model, state: State, frame: Any) -> dict[str, Program]:
    """The programs of a schedule that looks at a frame first."""
    settings, cell = model.settings, _cell(model)
    last = stream.depth(cell.inputs, settings)

    def look(weights: Any, state: State, frame: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        cheap = static_net.infer(model.net, weights["static"], frame, last)
        log_odds = cell_frame.due(weights["cell"]["ports"], settings, _state(state), cheap)[1]
        assert log_odds is not None, "the schedule is learned"
        return dict(cheap.maps), schedule_lib.region_means(jax.nn.sigmoid(log_odds), settings.schedule.regions)

    def other(weights: Any, state: State, maps: dict[str, Any]) -> tuple[State, jax.Array]:
        return _labelled(model, cell.advance(weights["cell"], _state(state), _features(maps)))

    weights = _cheap_weights(model, last)
    maps, shares = jax.eval_shape(look, weights, state, frame)
    found = {
        "look": Program(look, weights, (state, frame), outputs=("maps", "shares")),
        "other": Program(other, {"cell": model.params}, (state, maps), inputs=("state", "maps")),
    }
    if settings.schedule.kind == "regions":
        found |= _regions(model, state, frame, maps, jax.ShapeDtypeStruct(shares.shape, bool))
    return found


def _features(maps: dict[str, Any]) -> types.Features:
    shape = maps["image"].shape[:3]
    return types.Features(maps=maps, logits=jnp.zeros((*shape, 0)))


def regions(model: Model) -> list[list[Region]]:
    """Of each row and column of regions, how it is computed; [] where the schedule has no regions."""
    return [[region for region, _, _ in row] for row in _crops(model)]


def _crops(model: Model) -> list[list[tuple[Region, tuple[int, int], tuple[int, int]]]]:
    """Each region with the size of its crop (pixels) and its own (grid cells)."""
    if model.settings.schedule.kind != "regions":
        return []
    grid = initial_state(model)["logits"].shape[1:3]
    axes = [
        [stream.crop(bounds, pixels) for bounds in schedule_lib.region_bounds(length, num)]
        for length, num, pixels in zip(grid, model.settings.schedule.regions, model.size, strict=True)
    ]
    names: dict[Any, str] = {}
    found = []
    for rows in axes[0]:
        line = []
        for cols in axes[1]:
            crop, shape = (rows[1], cols[1]), (rows[4], cols[4])
            name = names.setdefault((crop, shape), f"paint{len(names)}")
            places = (rows[0], cols[0], rows[2], cols[2], rows[3], cols[3])
            line.append((Region(name, places), crop, shape))
        found.append(line)
    return found


def _regions(model: Model, state: State, frame: Any, maps: Any, is_due: Any) -> dict[str, Program]:
    """The static network on one region, for each shape of region, and what puts the frame together."""
    canvas = [jax.ShapeDtypeStruct(state[name].shape, jnp.float32) for name in ("decoder", "logits")]
    places = jax.ShapeDtypeStruct((6,), np.int32)

    def make_paint(crop: tuple[int, int], shape: tuple[int, int]) -> Callable[..., Any]:
        def paint(weights: Any, canvas: Any, frame: jax.Array, places: jax.Array) -> Any:
            return stream.paint(model.net, weights["static"], canvas, frame, places, crop_size=crop, shape=shape)

        return paint

    def join(
        weights: Any, state: State, maps: dict[str, Any], canvas: Any, is_due: jax.Array
    ) -> tuple[State, jax.Array]:
        full = types.Features(maps={**maps, "decoder": canvas[0]}, logits=canvas[1])
        before, cell, params = _state(state), _cell(model), weights["cell"]
        advanced = cell.advance(params, before, _features(maps))
        return _labelled(model, cell.merge(cell.restart(params, before, full), advanced, is_due))

    found = {
        region.program: Program(
            make_paint(crop, shape),
            {"static": model.variables},
            (canvas, frame, places),
            is_batched=False,
            inputs=("canvas", "frame", "places"),
            outputs=("canvas",),
        )  # fmt: skip
        for row in _crops(model)
        for region, crop, shape in row
    }
    inputs = ("state", "maps", "canvas", "is_due")
    return {**found, "join": Program(join, {"cell": model.params}, (state, maps, canvas, is_due), inputs=inputs)}
