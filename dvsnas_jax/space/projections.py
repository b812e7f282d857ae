"""The inputs of a cell: maps of the static network and of the past, projected to its channels and normalised.

A cell of one genotype projects what it reads, frame by frame. The supernet, whose genotype is data, projects what does
not depend on its own past for all frames of a clip at once, and skips what the genotype does not read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.nets.kernels import layers
from dvsnas_jax.space import conditional, operations

Params = dict[str, Any]
Raw = tuple[Callable[..., types.Array], tuple[types.Array, ...]]
"""How an input is prepared for its projection, and from what."""
ProjectFn = Callable[[str, Callable[..., types.Array], tuple[types.Array, ...]], jax.Array]


def weights_of(name: str) -> str:
    """The input whose projection an input passes: `prev_stageN` that of `stageN`, and `prev_patches` that of `patches`,
    so that both can be compared; every other one its own."""
    return name.removeprefix("prev_") if name.startswith(("prev_stage", "prev_patches")) else name


def compared(inputs: Iterable[str]) -> tuple[str, ...]:
    """The maps of the frame before that these inputs are or are made of, in order: what `CellState.maps` keeps."""
    names = list(inputs)
    found = {weights_of(name) for name in names if weights_of(name) != name}
    return tuple(sorted(found | {"image"} if "image_diff" in names else found))


def project(params: Params, name: str, x: types.Array, scope: operations.CellScope) -> jax.Array:
    """1x1 convolution and normalisation of one input, [.., B, h, w, C]; `params` are those of `cell_frame.init`.

    Frames, on an axis before the batch, are each normalised by themselves.
    """
    name = weights_of(name)
    own = params["inputs"][name]
    images = jnp.asarray(x).reshape(-1, *x.shape[-3:])  # one product for all frames
    y = layers.conv(images, own["kernel"].astype(x.dtype)).reshape(*x.shape[:-1], -1)
    normalize_fn = functools.partial(scope.child("inputs", name, "norm").normalize, own["norm"])
    return normalize_fn(y) if y.ndim == 4 else jax.vmap(normalize_fn)(y)


def _own(params: Params, name: str) -> Params:
    """The part of the parameters of `cell_frame.init` that an input is projected with."""
    return {"inputs": {weights_of(name): params["inputs"][weights_of(name)]}}


def make_project(
    params: Params, scope: operations.CellScope, reads: Mapping[str, jax.Array] | None = None
) -> ProjectFn:
    """`(name, prepare, sources) -> map` of one frame.

    Where `reads`, bool [] each, says that nothing reads an input, its map is zero.
    """

    def project_fn(name: str, prepare: Callable[..., types.Array], sources: tuple[types.Array, ...]) -> jax.Array:
        if reads is None:
            return project(params, name, prepare(*sources), scope)
        own = _own(params, name)
        operands = own, *map(jnp.asarray, sources)
        return conditional.when(reads[name], lambda own, *x: project(own, name, prepare(*x), scope), operands)

    return project_fn


def cell_inputs(
    state: types.CellState,
    features: types.Features,
    names: Iterable[str],
    project_fn: ProjectFn,
    known: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The named inputs of a cell for a frame, each [B, h, w, C]; `known` ones were projected before (`of_clip`).

    At the first frame of a clip `prev_*` are the current frame's own values; the cell's own state
    is then the projected decoder map, and the difference of images is zero. Where the frame only passed the first
    encoder stages (propagate), it cannot be the first: its own values do not exist.
    """
    maps, wanted = dict(known or {}), list(names)
    if state.is_projected:
        kept = {"decoder": state.decoder, **state.maps}
        maps |= {f"prev_{name}": jnp.asarray(x) for name, x in kept.items()}
    for name in ["decoder"] * ("prev_state" in wanted and "decoder" in features.maps) + wanted:
        if name not in maps:
            maps[name] = project_fn(name, *_raw_input(name, state, features, maps))
    return {name: maps[name] for name in wanted}


def _raw_input(name: str, state: types.CellState, features: types.Features, maps: Mapping[str, types.Array]) -> Raw:
    """What an input of one frame is projected from; `maps`: those that are projected already."""
    first = state.is_first[:, None, None, None]

    def past(own_fn: Callable[[], types.Array], before: types.Array) -> Raw:
        if "decoder" not in features.maps:  # of the first encoder stages alone: no first frame
            return jnp.asarray, (before,)
        return lambda own, before: jnp.where(first, own, before), (own_fn(), before)

    if name == "prev_decoder":
        return past(lambda: features.maps["decoder"], state.decoder)
    if weights_of(name) != name:
        stage = weights_of(name)
        return past(lambda: features.maps[stage], state.maps[stage])
    if name == "prev_logits":
        fn, sources = past(lambda: features.logits, state.logits)
        return lambda *sources: _shares(fn(*sources), state), sources
    if name == "prev_state":
        return past(lambda: maps["decoder"], state.state)
    if name == "logits":
        return functools.partial(_shares, state=state), (features.logits,)
    if name == "image_diff":
        return lambda own, before: jnp.where(first, 0, own - before), (features.maps["image"], state.maps["image"])
    return jnp.asarray, (features.maps[name],)


def _shares(logits: types.Array, state: types.CellState) -> jax.Array:
    """The probabilities of logits [B, h, w, K], averaged to the grid of the cell."""
    return layers.average_to_grid(jax.nn.softmax(logits), (state.state.shape[1], state.state.shape[2]))


def dependent(*, is_propagating: bool) -> set[str]:
    """The inputs that depend on what a cell itself did before."""
    return {"prev_state", "prev_logits", *(["prev_decoder"] if is_propagating else [])}


class ClipInput(NamedTuple):
    """An input that is known for all frames of a clip.

    Attributes:
      project: `(own, sources) -> [T, B, h, w, C]`; each frame is normalised by itself.
      own: the parameters that it has to itself, a part of the tree of `cell_frame.init`.
      sources: what it is made of.
    """

    project: Callable[[Params, Any], jax.Array]
    own: Params
    sources: tuple[types.Array, ...]


def of_clip(
    params: Params,
    state: types.CellState,
    features: types.Features,
    names: Iterable[str],
    scope: operations.CellScope,
    places: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, ClipInput]:
    """The inputs of a clip, [T, B, ...], that are not `dependent` on what the cell did; `state`: before the clip.

    `places`: of the frames that an input is wanted of, by its name, else those of ""; None: of all.
    """
    first = state.is_first[:, None, None, None]

    def before(own: types.Array, earlier: types.Array) -> jax.Array:
        """The map of the frame before each frame, for the first one of a video its own."""
        return jnp.concatenate([jnp.where(first, own[0], earlier)[None], own[:-1]])

    raw: dict[str, Raw] = {
        "logits": (jax.vmap(functools.partial(_shares, state=state)), (features.logits,)),
        "prev_decoder": (before, (features.maps["decoder"], state.decoder)),
        **{f"prev_{name}": (before, (features.maps[name], earlier)) for name, earlier in state.maps.items()},
    }
    if "prev_image" in raw:
        raw["image_diff"] = lambda own, earlier: own - before(own, earlier), raw["prev_image"][1]

    def make(name: str) -> ClipInput:
        prepare, sources = raw[name] if name in raw else (lambda x: x, (features.maps[name],))

        def run(own: Params, sources: tuple[types.Array, ...]) -> jax.Array:
            found = prepare(*sources)
            if places is not None:
                found = some(found, places.get(name, places[""]))
            return project(own, name, found, scope)

        return ClipInput(run, _own(params, name), sources)

    own = dependent(is_propagating=state.is_propagating)
    return {name: make(name) for name in names if name not in own}


def some(x: types.Array, places: tuple[int, ...]) -> jax.Array:
    """The rows of these places, in order; a run of them as one piece."""
    first, num = places[0], len(places)
    if places == tuple(range(first, first + num)):
        return jax.lax.slice_in_dim(jnp.asarray(x), first, first + num)
    return jnp.stack([x[place] for place in places])


def project_clip(inputs: Mapping[str, ClipInput], reads: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The maps of a clip, each [T, B, h, w, C]; zeros where `reads`, bool [] each, says that nothing reads them."""

    return {
        name: conditional.when(reads[name], item.project, (item.own, item.sources)) for name, item in inputs.items()
    }


def pull_clip(
    inputs: Mapping[str, ClipInput],
    reads: Mapping[str, jax.Array],
    grads: jax.Array,
    rows: Mapping[str, int],
    more: Mapping[str, tuple[jax.Array, jax.Array]],
) -> dict[str, Params]:
    """Gradients of the parameters of `project_clip`, by input, from those of maps, [.., B, h, w, C].

    `rows` are the first of the T rows of each input, read only where the input is; `more`, of inputs that are read
    outside the layers: those gradients, and whether the rows have any, bool [].
    """

    def find(name: str, item: ClipInput) -> Params:
        def pull(own: Params, sources: tuple[types.Array, ...], grads: jax.Array, *added: jax.Array) -> Params:
            _, pull_fn = jax.vjp(lambda own: item.project(own, sources), own)
            num_frames = jax.eval_shape(item.project, own, sources).shape[0]
            found = grads[rows[name] : rows[name] + num_frames]
            if name in more:
                found = jnp.where(more[name][1], found, 0) + added[0]
            return pull_fn(found)[0]

        operands = item.own, item.sources, grads, *([more[name][0]] if name in more else [])
        return conditional.when(reads[name], pull, operands)["inputs"][weights_of(name)]

    return {name: find(name, item) for name, item in inputs.items()}
