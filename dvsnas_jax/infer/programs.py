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

from dvsnas_jax.core import compilation, types
from dvsnas_jax.infer import dispatch
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame, projections
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.space import settings as settings_lib

State = dispatch.State
Stepped = tuple[State, jax.Array]
"""A state, and labels u8 [B, H, W]."""
_OF_KEY_FRAMES = ("decoder", "reference")
"""Entries of a state that other frames leave as they are: to return them would copy them."""
HALO = {True: 16, False: 32}
"""Pixels around a region that the static network sees as well; its first stages see all where their maps are cut."""


class Region(NamedTuple):
    """How one region of a frame is computed by the static network: by the program of this name.

    `places` are first row and column of the crop (pixels), of the region in the crop and in the whole (grid cells);
    `crop_size` is height and width of the crop, pixels, `shape` that of the region, grid cells.
    """

    program: str
    places: tuple[int, ...]
    crop_size: tuple[int, int]
    shape: tuple[int, int]


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
        return [name for label, arg in zip(self.inputs, self.args, strict=True) for name in _named({label: arg}, "_")]

    def result_names(self) -> list[str]:
        """A name for each array among the results, as `input_names` names them."""
        found = jax.eval_shape(self.fn, self.weights, *self.args)
        parts = (found,) if len(self.outputs) == 1 else found
        return [name for label, part in zip(self.outputs, parts, strict=True) for name in _named({label: part}, "_")]

    def named_weights(self) -> dict[str, np.ndarray]:
        """The weights as {"static/params/encoder/...": array}, in the order of their leaves."""
        return {name: np.asarray(leaf) for name, leaf in _named(self.weights, "/").items()}

    def of_listed_weights(self) -> Callable[..., Any]:
        """`fn` with the weights as a list; a function of its own each time, since JAX keeps what it traced by it."""
        tree = jax.tree.structure(self.weights)
        return lambda weights, *args: self.fn(jax.tree.unflatten(tree, weights), *args)


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network and cell. Its methods from `static` on are the programs; `make` says what they are for.

    `variables` are those of the static network as trained, `params` those of the cell with running statistics; both
    cell and params are None where the network is used alone. `size` is height and width of the frames, and of the
    labels unless these have a `label_size` of their own.
    """

    net: static_net.StaticNet
    variables: Any
    cell: cell_lib.Cell | None
    params: Any
    settings: cell_frame.CellSettings
    size: tuple[int, int]
    label_size: tuple[int, int] | None = None

    @functools.cached_property
    def folded(self) -> Any:
        """The variables for programs that train nothing, see `static_net.fold`, on one device."""
        return jax.device_put(static_net.fold(self.net, self.variables), dispatch.device())

    @functools.cached_property
    def depth(self) -> str:
        """How far the frames that are no key frames pass the encoder."""
        return settings_lib.depth(self._cell.inputs, self.settings)

    @property
    def cuts_maps(self) -> bool:
        """Whether regions are cut out of the first stages' maps, not out of the frame."""
        return self.settings.schedule.look.cuts_maps and static_net.goes_on(self.net)

    @property
    def _cell(self) -> cell_lib.Cell:
        assert self.cell is not None, "the network is used alone"
        return self.cell

    @functools.cached_property
    def _is_projected(self) -> bool:
        """Regions are joined from the network's own maps."""
        return self.settings.is_propagating and not self.settings.schedule.has_regions

    @functools.cached_property
    def _start(self) -> State:
        if self.cell is None:
            return {}
        shapes = static_net.frame_shapes(self.net, self.size)
        start_fn = functools.partial(self.cell.initial_state, is_projected=self._is_projected)
        return compilation.jit_once(lambda: start_fn(shapes).to_dict())()  # one program instead of one an array

    def initial_state(self) -> State:
        """The state of one video before its first frame; without a cell there is none."""
        return dict(self._start)

    def predict(self, logits: types.Array) -> jax.Array:
        """Logits [B, h, w, K] -> labels u8 [B, H, W]."""
        return static_net.predict(logits, self.label_size or self.size)

    def _infer(self, weights: Any, frame: Any, last: str = "decoder") -> types.Features:
        return static_net.infer(self.net, weights["static"], frame, last)

    def _labelled(self, state: types.CellState) -> Stepped:
        return state.to_dict(), self.predict(state.logits)

    def _advanced(self, weights: Any, state: State, maps: Any) -> types.CellState:
        """The state after a frame by the cell alone, from its cheap maps."""
        cheap = types.Features(maps=maps, logits=jnp.zeros((*maps["image"].shape[:3], 0)))
        return self._cell.advance(weights["cell"], self.cell_state(state), cheap)

    def _restarted(self, weights: Any, state: State, found: types.Features) -> types.CellState:
        """The state after a frame by the static network."""
        return self._cell.restart(weights["cell"], self.cell_state(state), found)

    def cell_state(self, state: State) -> types.CellState:
        """A state as the cell takes it."""
        return types.CellState.from_dict(state, is_projected=self._is_projected)

    def static(self, weights: Any, frame: jax.Array) -> jax.Array:
        return self.predict(self._infer(weights, frame).logits)

    def step(self, weights: Any, state: State, frame: jax.Array) -> Stepped:
        if self.cell is None:
            return state, self.static(weights, frame)
        after, logits = self.cell.step(weights["cell"], types.CellState.from_dict(state), self._infer(weights, frame))
        return after.to_dict(), self.predict(logits)

    def key(self, weights: Any, state: State, frame: jax.Array) -> Stepped:
        return self._labelled(self._restarted(weights, state, self._infer(weights, frame)))

    def other(self, weights: Any, state: State, frame: jax.Array) -> Stepped:
        return self._unchanged(self._advanced(weights, state, self._infer(weights, frame, self.depth).maps))

    def _unchanged(self, after: types.CellState) -> Stepped:
        """Of a frame that is no key frame."""
        found, labels = self._labelled(after)
        return {name: value for name, value in found.items() if name not in _OF_KEY_FRAMES}, labels

    def look(self, weights: Any, state: State, frame: jax.Array) -> tuple[Any, jax.Array]:
        maps = static_net.first_stages(self.net, weights["static"], frame, self.depth)
        if "patches" not in map(projections.weights_of, self._cell.inputs):
            del maps["patches"]
        cheap = types.Features(maps=static_net.on_grid(maps), logits=jnp.zeros((*maps["image"].shape[:3], 0)))
        log_odds = cell_frame.due(weights["cell"]["ports"], self.settings, self.cell_state(state), cheap)[1]
        assert log_odds is not None, "the schedule is learned"
        return maps, self.settings.schedule.scores(log_odds)

    def other_looked(self, weights: Any, state: State, maps: Any) -> Stepped:
        return self._unchanged(self._advanced(weights, state, static_net.on_grid(maps)))

    def rest(self, weights: Any, state: State, maps: Any) -> Stepped:
        found = static_net.finish(self.net, weights["static"], maps)
        whole = types.Features(maps={**static_net.on_grid(maps), **found.maps}, logits=found.logits)
        return self._labelled(self._restarted(weights, state, whole))

    def paint(self, region: Region, weights: Any, canvas: Any, seen: Any, places: types.Array) -> Any:
        def cut(x: jax.Array) -> jax.Array:
            stride = next(s for s in (1, 4, 8, 16, 32) if _cells(self.size, s) == x.shape[1:3])
            first = (0, places[0] // stride, places[1] // stride, 0)
            return jax.lax.dynamic_slice(x, first, (1, *_cells(region.crop_size, stride), x.shape[-1]))

        if self.cuts_maps:
            stages = {name: cut(x) for name, x in seen.items() if name not in static_net.PLAIN}
            found = static_net.finish(self.net, weights["static"], stages)
        else:
            found = self._infer(weights, cut(seen))
        painted = []
        for whole, part in zip(canvas, (found.maps["decoder"], found.logits), strict=True):
            inner = jax.lax.dynamic_slice(part, (0, places[2], places[3], 0), (1, *region.shape, part.shape[-1]))
            painted.append(jax.lax.dynamic_update_slice(whole, inner, (0, places[4], places[5], 0)))
        return tuple(painted)

    def join(self, weights: Any, state: State, maps: Any, canvas: Any, is_due: jax.Array) -> Stepped:
        cheap = static_net.on_grid(maps)
        full = types.Features(maps={**cheap, "decoder": canvas[0]}, logits=canvas[1])
        restarted, advanced = self._restarted(weights, state, full), self._advanced(weights, state, cheap)
        return self._labelled(self._cell.merge(restarted, advanced, is_due))


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


def _named(tree: Any, separator: str) -> dict[str, Any]:
    """The arrays of a tree in their order, named by the keys that lead to them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=separator): leaf for path, leaf in leaves}


def describe(model: Model) -> dict[str, Any]:
    """What `dispatch.Dispatch` has to know of the programs, ready for JSON."""
    schedule, plan = model.settings.schedule, None
    if model.settings.is_propagating:
        plan = {**dataclasses.asdict(schedule), "grid": list(schedule.grid), "is_learned": schedule.is_learned}
        plan |= {"most_regions": schedule.most_regions, "cuts_maps": model.cuts_maps}
    regions = [[{"program": each.program, "places": each.places} for each in row] for row in _regions(model)]
    state = {name: _constant(value) for name, value in model.initial_state().items()}
    return {"schedule": plan, "state": state, "regions": regions}


def _constant(value: jax.Array) -> dict[str, Any]:
    """How an entry of the initial state is made: it has one value everywhere."""
    (fill,) = np.unique(np.asarray(value)).tolist()
    return {"shape": list(value.shape[1:]), "dtype": str(value.dtype), "fill": fill}


def make(model: Model) -> dict[str, Program]:
    """All programs of a model by name.

    `static`: `(frame) -> labels`, the network alone. Refine: `step`: `(state, frame) -> (state, labels)`. Propagate:
    `key` the same, for a key frame; `other`, for the others, where the schedule is fixed: of the state only what these
    change. Where it is learned:
    `look`: `(state, frame) -> (maps, shares)`, the cheap maps and the predicted share of differing labels f32
    [B, rows, columns], `other`: `(state, maps) -> (state, labels)`, and where the encoder can go on from these maps
    `rest`, the same for a key frame. Regions, in addition: `paintN`: `(canvas, seen, places) -> canvas`, decoder map
    and logits with one more region computed (`Region.places`) from the maps or the frame (`Model.cuts_maps`), and
    `join`: `(state, maps, canvas, is_due) -> (state, labels)`.
    """
    state, frame = model.initial_state(), jax.ShapeDtypeStruct((1, *model.size, 3), jnp.uint8)
    alone, own = {"static": model.folded}, {"cell": model.params}
    made = {"static": Program(model.static, alone, (frame,), inputs=("frame",), outputs=("labels",))}
    if not model.settings.is_propagating:
        return {**made, "step": Program(model.step, alone | own if model.cell else alone, (state, frame))}
    made["key"] = Program(model.key, alone | own, (state, frame))
    first_stages = {"static": static_net.needed(model.net, model.folded, model.depth), **own}
    if not model.settings.schedule.is_learned:
        return {**made, "other": Program(model.other, first_stages, (state, frame))}
    look = Program(model.look, first_stages, (state, frame), outputs=("maps", "shares"))
    maps, shares = jax.eval_shape(look.fn, look.weights, *look.args)
    looked = functools.partial(Program, args=(state, maps), inputs=("state", "maps"))
    made |= {"look": look, "other": looked(model.other_looked, own)}
    if static_net.goes_on(model.net):
        made["rest"] = looked(model.rest, alone | own)
    regions = {region.program: region for row in _regions(model) for region in row}
    if regions:
        canvas = [jax.ShapeDtypeStruct(state[name].shape, jnp.float32) for name in ("decoder", "logits")]
        seen = ("maps", maps) if model.cuts_maps else ("frame", frame)
        paint = functools.partial(
            Program, weights=alone, args=(canvas, seen[1], jax.ShapeDtypeStruct((6,), np.int32)), is_batched=False,
            inputs=("canvas", seen[0], "places"), outputs=("canvas",),
        )  # fmt: skip
        made |= {name: paint(functools.partial(model.paint, region)) for name, region in regions.items()}
        args = (state, maps, canvas, jax.ShapeDtypeStruct(shares.shape, bool))
        made["join"] = Program(model.join, own, args, inputs=("state", "maps", "canvas", "is_due"))
    return made


def next_frame(model: Model) -> Program:
    """`(state, frame) -> (state, labels)` as one program, which decides inside whether a frame is a key frame."""
    made, plan = make(model), describe(model)
    if "step" in made:
        return made["step"]

    def step(weights: Any, state: State, frame: jax.Array) -> Stepped:
        bound = {name: functools.partial(program.fn, weights) for name, program in made.items()}
        return dispatch.Dispatch(plan, bound, is_traced=True).step(state, frame)

    return made["key"]._replace(fn=step, is_batched=not plan["regions"])


def _cells(pixels: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of a map of so many pixels."""
    return -(-pixels[0] // stride), -(-pixels[1] // stride)


def _regions(model: Model) -> list[list[Region]]:
    """Of each row and column of regions, how it is computed; [] where the schedule has no regions."""
    schedule, names = model.settings.schedule, dict[Any, str]()
    if model.cell is None or not schedule.most_regions:
        return []

    def region(rows: tuple[int, ...], cols: tuple[int, ...]) -> Region:
        crop_size, shape = (rows[1], cols[1]), (rows[4], cols[4])
        name = names.setdefault((crop_size, shape), f"paint{len(names)}")
        return Region(name, (rows[0], cols[0], rows[2], cols[2], rows[3], cols[3]), crop_size, shape)

    depth = static_net.STAGES.index(model.depth) if model.cuts_maps else 0
    cut = functools.partial(crop, halo=HALO[model.cuts_maps], stride=static_net.LOGITS_STRIDE * 2**depth)
    all_rows, all_cols = (
        [cut(bounds, pixels) for bounds in schedule_lib.region_bounds(length, num)]
        for length, num, pixels in zip(
            model.initial_state()["logits"].shape[1:3], schedule.regions, model.size, strict=True
        )
    )
    return [[region(rows, cols) for cols in all_cols] for rows in all_rows]


def crop(bounds: tuple[int, int], pixels: int, halo: int, stride: int) -> tuple[int, int, int, int, int]:
    """What is cut out along an axis of so many pixels for a region (first and last + 1 grid cell) with its halo
    (pixels), in whole cells of a map of that stride.

    First pixel and number of pixels of the crop; first cell of the region in the crop and in the whole; its cells.
    """
    first, last = bounds
    start = max(first * static_net.LOGITS_STRIDE - halo, 0) // stride * stride
    stop = min(-(-(last * static_net.LOGITS_STRIDE + halo) // stride) * stride, pixels)
    return start, stop - start, first - start // static_net.LOGITS_STRIDE, first, last - first
