"""The programs that segment a video, as pure functions of weights and arrays.

Refine mode has one program a frame. In propagate mode `infer.dispatch` decides which of several a frame needs: jitted
in this process (`infer.jitted`), read from an exported folder (`infer.artifact`), or traced into one (`next_frame`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.infer import dispatch
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.space import settings as settings_lib

State = dispatch.State
HALO = 32
"""Pixels around a region that the static network sees as well."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network and cell.

    Attributes:
      net: the static network.
      variables: of it, as trained.
      cell: the static graph; None: the network is used alone.
      params: of it, with running statistics; None without one.
      settings: of the cell.
      size: height and width of the frames.
    """

    net: static_net.StaticNet
    variables: Any
    cell: cell_lib.Cell | None
    params: Any
    settings: cell_frame.CellSettings
    size: tuple[int, int]

    @functools.cached_property
    def folded(self) -> Any:
        """The variables for programs that train nothing, see `static_net.fold`."""
        return static_net.fold(self.variables)

    def infer(self, weights: Any, frame: Any, last: str = "decoder") -> types.Features:
        """The static network on frames u8 [B, H, W, 3], see `static_net.infer`."""
        return static_net.infer(self.net, weights["static"], frame, last)

    def predict(self, logits: types.Array) -> jax.Array:
        """Logits [B, h, w, K] -> labels u8 [B, H, W]."""
        return static_net.predict(logits, self.size)


def model_of(
    config: ml_collections.ConfigDict,
    settings: cell_frame.CellSettings,
    variables: Any,
    cell: cell_lib.Cell | None = None,
    params: Any = None,
) -> Model:
    """The network of a config, trained, with a cell or alone: then every frame passes it, whatever the mode."""
    net = static_net.make(config.net, settings.num_classes)
    if cell is None:
        settings = dataclasses.replace(settings, mode="refine")
    return Model(net, variables, cell, params, settings, (config.data.height, config.data.width))


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
        return [name for label, arg in zip(self.inputs, self.args, strict=True) for name in _leaf_names(label, arg)]

    def result_names(self) -> list[str]:
        """A name for each array among the results, as `input_names` names them."""
        found = jax.eval_shape(self.fn, self.weights, *self.args)
        parts = (found,) if len(self.outputs) == 1 else found
        return [name for label, part in zip(self.outputs, parts, strict=True) for name in _leaf_names(label, part)]

    def named_weights(self) -> dict[str, np.ndarray]:
        """The weights as {"static/params/encoder/...": array}, in the order of their leaves."""
        leaves = jax.tree_util.tree_leaves_with_path(self.weights)
        return {"/".join(str(entry.key) for entry in path): np.asarray(leaf) for path, leaf in leaves}

    def of_listed_weights(self) -> Callable[..., Any]:
        """`fn` with the weights as a list; a function of its own each time, since JAX keeps what it traced by it."""
        tree = jax.tree.structure(self.weights)
        return lambda weights, *args: self.fn(jax.tree.unflatten(tree, weights), *args)


class Region(NamedTuple):
    """How one region of a frame is computed by the static network.

    Attributes:
      program: its name, see `make`.
      places: first row and column of the crop (pixels), of the region in the crop and in the whole (grid cells).
      crop_size: height and width of the crop, pixels.
      shape: height and width of the region, grid cells.
    """

    program: str
    places: tuple[int, ...]
    crop_size: tuple[int, int]
    shape: tuple[int, int]


def _leaf_names(label: str, tree: Any) -> list[str]:
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
    return {name: value for name, value in vars(state).items() if value is not None}


def to_state(values: State) -> types.CellState:
    """The inverse of `to_dict`."""
    return types.CellState(**values)


def describe(model: Model) -> dict[str, Any]:
    """What `dispatch.Dispatch` has to know of the programs, ready for JSON."""
    schedule, plan = model.settings.schedule, None
    if model.settings.is_propagating:
        plan = {**dataclasses.asdict(schedule), "grid": list(schedule.grid), "is_learned": schedule.is_learned}
    regions = [[{"program": each.program, "places": each.places} for each in row] for row in _regions(model)]
    state = {name: _constant(value) for name, value in initial_state(model).items()}
    return {"schedule": plan, "state": state, "regions": regions}


def _constant(value: jax.Array) -> dict[str, Any]:
    """How an entry of the initial state is made: it has one value everywhere."""
    (fill,) = np.unique(np.asarray(value)).tolist()
    return {"shape": list(value.shape[1:]), "dtype": str(value.dtype), "fill": fill}


def make(model: Model) -> dict[str, Program]:
    """All programs of a model by name.

    `static`: `(frame) -> labels`, the network alone. Refine: `step`: `(state, frame) -> (state, labels)`. Propagate:
    `key` the same, for a key frame; `other`, for the others, where the schedule is fixed. Where it is learned:
    `look`: `(state, frame) -> (maps, shares)`, the cheap maps and the predicted share of differing labels f32
    [B, rows, columns], and `other`: `(state, maps) -> (state, labels)`. Regions, in addition: `paintN`:
    `(canvas, frame, places) -> canvas` and `join`: `(state, maps, canvas, is_due) -> (state, labels)`.
    """
    state, frame = initial_state(model), jax.ShapeDtypeStruct((1, *model.size, 3), jnp.uint8)
    alone, own = {"static": model.folded}, {"cell": model.params}
    bind = functools.partial
    made = {"static": Program(bind(_static, model), alone, (frame,), inputs=("frame",), outputs=("labels",))}
    if model.cell is None:
        return {**made, "step": Program(bind(_step_alone, model), alone, (state, frame))}
    if not model.settings.is_propagating:
        return {**made, "step": Program(bind(_step, model), alone | own, (state, frame))}
    made["key"] = Program(bind(_key, model), alone | own, (state, frame))
    last = settings_lib.depth(model.cell.inputs, model.settings)
    first_stages = {"static": static_net.needed(model.net, model.folded, last), **own}
    if not model.settings.schedule.is_learned:
        return {**made, "other": Program(bind(_other, model, last), first_stages, (state, frame))}
    look = Program(bind(_look, model, last), first_stages, (state, frame), outputs=("maps", "shares"))
    maps, shares = jax.eval_shape(look.fn, look.weights, *look.args)
    made |= {"look": look, "other": Program(bind(_other_seen, model), own, (state, maps), inputs=("state", "maps"))}
    regions = {region.program: region for row in _regions(model) for region in row}
    if regions:
        canvas = [jax.ShapeDtypeStruct(state[name].shape, jnp.float32) for name in ("decoder", "logits")]
        paint = bind(
            Program, weights=alone, args=(canvas, frame, jax.ShapeDtypeStruct((6,), np.int32)), is_batched=False,
            inputs=("canvas", "frame", "places"), outputs=("canvas",),
        )  # fmt: skip
        made |= {name: paint(bind(_paint, model, region)) for name, region in regions.items()}
        args = (state, maps, canvas, jax.ShapeDtypeStruct(shares.shape, bool))
        made["join"] = Program(bind(_join, model), own, args, inputs=("state", "maps", "canvas", "is_due"))
    return made


def next_frame(model: Model) -> Program:
    """`(state, frame) -> (state, labels)` as one program, which decides inside whether a frame is a key frame."""
    made, plan = make(model), describe(model)
    if "step" in made:
        return made["step"]

    def step(weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
        bound = {name: functools.partial(program.fn, weights) for name, program in made.items()}
        return dispatch.Dispatch(plan, bound, is_traced=True).step(state, frame)

    return made["key"]._replace(fn=step, is_batched=not plan["regions"])


def _static(model: Model, weights: Any, frame: jax.Array) -> jax.Array:
    return model.predict(model.infer(weights, frame).logits)


def _step_alone(model: Model, weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
    return state, _static(model, weights, frame)


def _cell(model: Model) -> cell_lib.Cell:
    assert model.cell is not None, "these are programs of a cell"
    return model.cell


def _step(model: Model, weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
    after, logits = _cell(model).step(weights["cell"], to_state(state), model.infer(weights, frame))
    return to_dict(after), model.predict(logits)


def _labelled(model: Model, state: types.CellState) -> tuple[State, jax.Array]:
    return to_dict(state), model.predict(state.logits)


def _key(model: Model, weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
    return _labelled(model, _cell(model).restart(weights["cell"], to_state(state), model.infer(weights, frame)))


def _other(model: Model, last: str, weights: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
    return _other_seen(model, weights, state, model.infer(weights, frame, last).maps)


def _look(model: Model, last: str, weights: Any, state: State, frame: jax.Array) -> tuple[Any, jax.Array]:
    cheap = model.infer(weights, frame, last)
    log_odds = cell_frame.due(weights["cell"]["ports"], model.settings, to_state(state), cheap)[1]
    assert log_odds is not None, "the schedule is learned"
    return dict(cheap.maps), model.settings.schedule.scores(log_odds)


def _advance(model: Model, weights: Any, state: State, maps: Any) -> types.CellState:
    """The state after a frame by the cell alone, of which there are the cheap maps."""
    cheap = types.Features(maps=maps, logits=jnp.zeros((*maps["image"].shape[:3], 0)))
    return _cell(model).advance(weights["cell"], to_state(state), cheap)


def _other_seen(model: Model, weights: Any, state: State, maps: Any) -> tuple[State, jax.Array]:
    return _labelled(model, _advance(model, weights, state, maps))


def _paint(
    model: Model, region: Region, weights: Any, canvas: Any, frame: jax.Array, places: types.Array
) -> tuple[jax.Array, ...]:
    """Decoder map and logits with one more region computed; `places` are those of `Region`, of any of its size."""
    pixels = jax.lax.dynamic_slice(frame, (0, places[0], places[1], 0), (1, *region.crop_size, 3))
    found = model.infer(weights, pixels)
    painted = []
    for whole, part in zip(canvas, (found.maps["decoder"], found.logits), strict=True):
        inner = jax.lax.dynamic_slice(part, (0, places[2], places[3], 0), (1, *region.shape, part.shape[-1]))
        painted.append(jax.lax.dynamic_update_slice(whole, inner, (0, places[4], places[5], 0)))
    return tuple(painted)


def _join(
    model: Model, weights: Any, state: State, maps: Any, canvas: Any, is_due: jax.Array
) -> tuple[State, jax.Array]:
    """The static network on the regions that are due, the cell on the whole frame, put together."""
    full = types.Features(maps={**maps, "decoder": canvas[0]}, logits=canvas[1])
    restarted = _cell(model).restart(weights["cell"], to_state(state), full)
    return _labelled(model, _cell(model).merge(restarted, _advance(model, weights, state, maps), is_due))


def _regions(model: Model) -> list[list[Region]]:
    """Of each row and column of regions, how it is computed; [] where the schedule has no regions."""
    if model.cell is None or not model.settings.schedule.has_regions:
        return []
    grid, names, found = initial_state(model)["logits"].shape[1:3], dict[Any, str](), []
    axes = [
        [crop(bounds, pixels) for bounds in schedule_lib.region_bounds(length, num)]
        for length, num, pixels in zip(grid, model.settings.schedule.regions, model.size, strict=True)
    ]
    for rows in axes[0]:
        line = []
        for cols in axes[1]:
            crop_size, shape = (rows[1], cols[1]), (rows[4], cols[4])
            name = names.setdefault((crop_size, shape), f"paint{len(names)}")
            places = (rows[0], cols[0], rows[2], cols[2], rows[3], cols[3])
            line.append(Region(name, places, crop_size, shape))
        found.append(line)
    return found


def crop(bounds: tuple[int, int], pixels: int) -> tuple[int, int, int, int, int]:
    """What is cut out along one axis for a region with its halo.

    Args:
      bounds: of the region, first and last + 1 grid cell.
      pixels: of the whole axis.

    Returns:
      First pixel and number of pixels of the crop; first grid cell of the region in the crop and in the whole; number
      of its grid cells.
    """
    first, last = bounds
    start = max(first * static_net.GRID_STRIDE - HALO, 0)
    stop = min(last * static_net.GRID_STRIDE + HALO, pixels)
    return start, stop - start, first - start // static_net.GRID_STRIDE, first, last - first
