"""A trained network and cell over the frames of a video, and what a frame costs.

In propagate mode a frame is looked at first (the schedule), then computed by the static network, by the cell, or region
by region: the decision is taken on the host, so that what is not needed is not run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.core import compilation, types
from dvsnas_jax.nets import static_net
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import cell_frame
from dvsnas_jax.space import schedule as schedule_lib
from dvsnas_jax.train import features as features_lib

HALO = 32
"""Pixels around a region that the static network sees as well."""

CellStep = Callable[[types.CellState, np.ndarray], tuple[types.CellState, jax.Array]]


class Labels(NamedTuple):
    """The frames of a sequence, segmented.

    Attributes:
      static: u8 [T, H, W], of the static network alone.
      cell: u8 [T, H, W], with the cell.
      key_share: f32 [T], share of each frame that the static network computed for the cell (refine: 1).
    """

    static: np.ndarray
    cell: np.ndarray
    key_share: np.ndarray


class Segmenter(NamedTuple):
    """A trained network and cell as functions over the frames of one sequence.

    Attributes:
      segment: `frames u8 [T, H, W, 3] -> Labels`.
      static_step: `frame u8 [1, H, W, 3] -> labels u8 [1, H, W]`.
      cell_step: `(state, frame u8 [1, H, W, 3]) -> (state, labels u8 [1, H, W])`, as a video is segmented: the
        static network only where the schedule wants it.
      initial_state: `() -> state` of one sequence before its first frame.
    """

    segment: Callable[[np.ndarray], Labels]
    static_step: Callable[[np.ndarray], jax.Array]
    cell_step: CellStep
    initial_state: Callable[[], types.CellState]


def make_segmenter(
    config: ml_collections.ConfigDict, variables: Any, cell: cell_lib.Cell, params: types.Params
) -> Segmenter:
    """Jits the network and the cell.

    Args:
      config: of the run.
      variables: of the static network.
      cell: the static graph.
      params: its weights, with running statistics.
    """
    size = config.data.height, config.data.width
    settings = features_lib.settings_of(config)
    net = static_net.make(config.net, settings.num_classes)
    variables = static_net.fold(variables)

    def initial_state() -> types.CellState:
        return cell.initial_state(static_net.frame_shapes(net, size))

    def static_step(variables: Any, frame: jax.Array) -> jax.Array:
        return static_net.predict(static_net.infer(net, variables, frame).logits, size)

    static_fn = compilation.jit(static_step)
    make_step = _make_propagate_step if settings.is_propagating else _make_refine_step
    cell_step = make_step(net, size, cell, settings, variables=variables, params=params)
    follow = _make_follow(config, variables, cell, params)
    if settings.is_propagating and settings.schedule.kind == "regions":
        # Regions are cut out before they are computed: their borders differ from those of the whole frame.
        segment = _make_frame_by_frame(follow, cell_step, initial_state)
    else:
        segment = functools.partial(follow, initial_state=initial_state)
    return Segmenter(
        segment=segment,
        static_step=lambda frame: static_fn(variables, frame),
        cell_step=cell_step,
        initial_state=initial_state,
    )


def key_share(state: types.CellState) -> jax.Array:
    """Share of the last frame that the static network computed, f32 []; refine: 1."""
    return (jnp.asarray(state.age) == 0).mean(dtype=jnp.float32) if state.is_propagating else jnp.ones(())


def depth(inputs: Iterable[str], settings: cell_frame.CellSettings) -> str:
    """How far a frame passes the encoder where the cell segments it: the deepest stage that is read, else `image`.

    Args:
      inputs: that the cell reads.
      settings: of the cell, mode propagate.
    """
    if settings.schedule.is_learned:
        return settings.cut
    return max((name for name in inputs if name in cell_frame.STAGES), default="image")


def _make_follow(
    config: ml_collections.ConfigDict, variables: Any, cell: cell_lib.Cell, params: types.Params
) -> Callable[..., Labels]:
    """`(frames, initial_state=fn) -> Labels`: many frames at a time, the same labels as step by step."""
    size = config.data.height, config.data.width
    forward = features_lib.make_forward(config)

    def follow_part(
        params: types.Params, state: types.CellState, found: types.Features
    ) -> tuple[types.CellState, tuple[jax.Array, jax.Array, jax.Array]]:
        def step(state: types.CellState, frame: types.Features) -> tuple[types.CellState, tuple[jax.Array, jax.Array]]:
            state, logits = cell.step(params, state, frame)
            return state, (logits, key_share(state))

        frames = jax.tree.map(lambda x: x[:, None], found)  # of one clip, T first
        state, (logits, shares) = jax.lax.scan(step, state, frames)
        return state, (static_net.predict(found.logits, size), static_net.predict(logits[:, 0], size), shares)

    follow_fn = compilation.jit(follow_part)

    def follow(frames: np.ndarray, initial_state: Callable[[], types.CellState]) -> Labels:
        state, parts = initial_state(), []
        for found in forward(variables, frames):
            state, part = follow_fn(params, state, found)
            parts.append(part)
        columns = zip(*jax.device_get(parts), strict=True)
        return Labels(*(np.concatenate(column)[: len(frames)] for column in columns))

    return follow


def _make_frame_by_frame(
    follow: Callable[..., Labels], cell_step: CellStep, initial_state: Callable[[], types.CellState]
) -> Callable[[np.ndarray], Labels]:
    """`Segmenter.segment` by `cell_step`; the static network's labels come from `follow`."""

    def segment(frames: np.ndarray) -> Labels:
        state, labels, shares = initial_state(), [], []
        for frame in frames:
            state, found = cell_step(state, frame[None])
            labels.append(np.asarray(found)[0])
            shares.append(float(key_share(state)))
        whole = follow(frames, initial_state)
        return whole._replace(cell=np.stack(labels), key_share=np.array(shares, np.float32))

    return segment


def _make_refine_step(
    net: static_net.StaticNet,
    size: tuple[int, int],
    cell: cell_lib.Cell,
    settings: cell_frame.CellSettings,
    *,
    variables: Any,
    params: types.Params,
) -> CellStep:
    """Network and cell on every frame, one program."""
    del settings

    def step(
        variables: Any, params: types.Params, state: types.CellState, frame: jax.Array
    ) -> tuple[types.CellState, jax.Array]:
        state, logits = cell.step(params, state, static_net.infer(net, variables, frame))
        return state, static_net.predict(logits, size)

    step_fn = compilation.jit(step)
    return lambda state, frame: step_fn(variables, params, state, frame)


def _make_propagate_step(
    net: static_net.StaticNet,
    size: tuple[int, int],
    cell: cell_lib.Cell,
    settings: cell_frame.CellSettings,
    *,
    variables: Any,
    params: types.Params,
) -> CellStep:
    """A program for key frames, one for the others, one for each shape of region."""
    schedule, last = settings.schedule, depth(cell.inputs, settings)
    first_stages = static_net.needed(net, variables, last)

    def labelled(state: types.CellState) -> tuple[types.CellState, jax.Array]:
        return state, static_net.predict(state.logits, size)

    @compilation.jit
    def key(variables: Any, params: types.Params, state: types.CellState, frame: jax.Array) -> Any:
        return labelled(cell.restart(params, state, static_net.infer(net, variables, frame)))

    @compilation.jit
    def other(variables: Any, params: types.Params, state: types.CellState, frame: jax.Array) -> Any:
        return labelled(cell.advance(params, state, static_net.infer(net, variables, frame, last)))

    @compilation.jit
    def look(variables: Any, params: types.Params, state: types.CellState, frame: jax.Array) -> Any:
        cheap = static_net.infer(net, variables, frame, last)
        return cheap, cell.due(params, state, cheap)

    @compilation.jit
    def other_seen(params: types.Params, state: types.CellState, cheap: types.Features) -> Any:
        return labelled(cell.advance(params, state, cheap))

    finish_regions = _make_regions(net, size, cell, labelled)

    def step(state: types.CellState, frame: np.ndarray) -> tuple[types.CellState, jax.Array]:
        if not schedule.is_learned:
            is_due = schedule_lib.due(schedule, np.asarray(state.age), None)
            if is_due.all():
                return key(variables, params, state, frame)
            return other(first_stages, params, state, frame)
        cheap, found = look(first_stages, params, state, frame)
        is_due = np.asarray(found)
        if is_due.all():
            return key(variables, params, state, frame)
        if not is_due.any():
            return other_seen(params, state, cheap)
        return finish_regions(variables, params, state, cheap, is_due, frame=frame)

    return step


def _make_regions(
    net: static_net.StaticNet,
    size: tuple[int, int],
    cell: cell_lib.Cell,
    labelled: Callable[[types.CellState], tuple[types.CellState, jax.Array]],
) -> Callable[..., tuple[types.CellState, jax.Array]]:
    """The static network on the regions that are due, the cell on the whole frame, put together."""

    paint_fn = compilation.jit(functools.partial(paint, net), static_argnames=("crop_size", "shape"))

    @compilation.jit
    def join(
        params: types.Params, state: types.CellState, cheap: types.Features, canvas: Any, is_due: jax.Array
    ) -> tuple[types.CellState, jax.Array]:
        full = types.Features(maps={**cheap.maps, "decoder": canvas[0]}, logits=canvas[1])
        return labelled(cell.merge(cell.restart(params, state, full), cell.advance(params, state, cheap), is_due))

    def finish(
        variables: Any, params: types.Params, state: types.CellState, cheap: types.Features, is_due: np.ndarray,
        *, frame: np.ndarray,
    ) -> tuple[types.CellState, jax.Array]:  # fmt: skip
        canvas = jnp.zeros_like(state.decoder), jnp.zeros_like(state.logits)
        grid = state.logits.shape[1:3]
        for row, column in np.argwhere(is_due[0]):
            rows, columns = (
                crop(schedule_lib.region_bounds(length, num)[index], pixels)
                for length, num, index, pixels in zip(grid, is_due.shape[1:], (row, column), size, strict=True)
            )
            places = np.array([rows[0], columns[0], rows[2], columns[2], rows[3], columns[3]], np.int32)
            crop_size, shape = (rows[1], columns[1]), (rows[4], columns[4])
            canvas = paint_fn(variables, canvas, frame, places, crop_size=crop_size, shape=shape)
        return join(params, state, cheap, canvas, is_due)

    return finish


def paint(
    net: static_net.StaticNet,
    variables: Any,
    canvas: Sequence[jax.Array],
    frame: jax.Array,
    places: types.Array,
    *,
    crop_size: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """The static network on one region of a frame.

    Args:
      net: the network.
      variables: of it.
      canvas: its decoder map [1, h, w, C] and logits [1, h, w, K], as far as they are painted.
      frame: u8 [1, H, W, 3].
      places: i32 [6], the first row and column of the crop (pixels), of the region in the crop and in the whole (grid
        cells).
      crop_size: height and width of the crop, pixels.
      shape: height and width of the region, grid cells.

    Returns:
      The canvas with the region.
    """
    pixels = jax.lax.dynamic_slice(frame, (0, places[0], places[1], 0), (1, *crop_size, 3))
    found = static_net.infer(net, variables, pixels)
    painted = []
    for whole, part in zip(canvas, (found.maps["decoder"], found.logits), strict=True):
        inner = jax.lax.dynamic_slice(part, (0, places[2], places[3], 0), (1, *shape, part.shape[-1]))
        painted.append(jax.lax.dynamic_update_slice(whole, inner, (0, places[4], places[5], 0)))
    return painted[0], painted[1]


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


def latency(segmenter: Segmenter, frames: np.ndarray, num_frames: int) -> dict[str, dict[str, Any]]:
    """Times of single frames, synchronised, of the static network alone and with the cell, in turns.

    Args:
      segmenter: network and cell.
      frames: u8 [T, H, W, 3], repeated as often as needed.
      num_frames: how many are timed, after as many to warm up.

    Returns:
      `static` and `cell`, each with `ms_per_frame` and `latency`: for every kind of frame (`key`, `cell`, `regions`;
      in refine mode and for the static network `all`) `count`, and `mean`, `median`, `p95`, `worst` and all the
      `samples` in milliseconds, with the numbers of their `frames` (what `timing.change` pairs them by).
      `ms_per_frame` is the median of each kind, weighted by how often it came.
    """
    state = segmenter.initial_state()
    times: dict[str, dict[str, list[tuple[int, float]]]] = {"static": {}, "cell": {}}
    # What the first one leaves in the caches serves the second. Each is the first as often, in an order without a
    # period, which would fall in with that of the key frames.
    is_cell_first = np.random.default_rng(0).permutation(num_frames) % 2
    for index in range(2 * num_frames):
        frame = frames[index % num_frames % len(frames)][None]
        if index == num_frames:
            state = segmenter.initial_state()
        seconds = {}
        for name in ("cell", "static") if is_cell_first[index % num_frames] else ("static", "cell"):
            started = time.perf_counter()
            if name == "static":
                labels = segmenter.static_step(frame)
            else:
                state, labels = segmenter.cell_step(state, frame)
            jax.block_until_ready(labels)
            seconds[name] = time.perf_counter() - started
        if index >= num_frames:
            for name, kind in (("static", "all"), ("cell", _kind(state))):
                times[name].setdefault(kind, []).append((index - num_frames, seconds[name]))
    return {name: _summary(kinds) for name, kinds in times.items()}


def _kind(state: types.CellState) -> str:
    """What kind of frame the last one was."""
    if not state.is_propagating:
        return "all"
    share = float(key_share(state))
    return {1.0: "key", 0.0: "cell"}.get(share, "regions")


def _summary(kinds: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """Statistics of each kind of frame, from the number and the seconds of every frame."""
    rows: dict[str, dict[str, Any]] = {}
    for kind, found in sorted(kinds.items()):
        ms = np.array([second for _, second in found]) * 1e3
        rows[kind] = {
            "count": len(ms),
            "mean": float(np.mean(ms)),
            "median": float(np.median(ms)),
            "p95": float(np.percentile(ms, 95)),
            "worst": float(np.max(ms)),
            "samples": ms.round(3).tolist(),
            "frames": [number for number, _ in found],
        }
    total = sum(row["count"] for row in rows.values())
    return {"ms_per_frame": sum(row["count"] * row["median"] for row in rows.values()) / total, "latency": rows}
