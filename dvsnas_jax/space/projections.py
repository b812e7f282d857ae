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


def project(params: Params, name: str, x: types.Array, scope: operations.CellScope) -> jax.Array:
    """1x1 convolution and normalisation of one input, [.., B, h, w, C]; `params` are those of `ports.init`.

    Frames, on an axis before the batch, are each normalised by themselves.
    """
    own = params["inputs"][name]
    images = jnp.asarray(x).reshape(-1, *x.shape[-3:])  # one product for all frames
    y = layers.conv(images, own["kernel"].astype(x.dtype)).reshape(*x.shape[:-1], -1)
    normalize_fn = functools.partial(scope.child("inputs", name, "norm").normalize, own["norm"])
    return normalize_fn(y) if y.ndim == 4 else jax.vmap(normalize_fn)(y)


def cell_inputs(
    params: Params,
    state: types.CellState,
    features: types.Features,
    names: Iterable[str],
    scope: operations.CellScope,
    *,
    known: Mapping[str, jax.Array] | None = None,
    reads: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The named inputs of a cell, each [B, h, w, C].

    At the first frame of a clip `prev_*` are the current frame's own values; the cell's own state
    is then the projected decoder map, and the difference of images is zero. Where the frame only passed the first
    encoder stages (propagate), it cannot be the first: its own values do not exist.

    Args:
      params: of `ports.init`.
      state: before the frame.
      features: of the frame.
      names: of the inputs.
      scope: normalisation.
      known: inputs that were projected before, of `of_clip`.
      reads: whether an input is read, bool []; one that is not is zero. None: all are.
    """
    maps = dict(known or {})

    def find(name: str) -> jax.Array:
        prepare, sources = _raw_input(name, state, features, maps)
        if reads is None:
            return project(params, name, prepare(*sources), scope)
        own = {"inputs": {name: params["inputs"][name]}}
        operands = own, *map(jnp.asarray, sources)
        return conditional.when(reads[name], lambda own, *x: project(own, name, prepare(*x), scope), operands)

    wanted = list(names)
    for name in ["decoder"] * ("prev_state" in wanted and "decoder" in features.maps) + wanted:
        if name not in maps:
            maps[name] = find(name)
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
    if name == "prev_logits":
        fn, sources = past(lambda: features.logits, state.logits)
        return lambda *sources: jax.nn.softmax(fn(*sources)), sources
    if name == "prev_state":
        return past(lambda: maps["decoder"], state.state)
    if name == "logits":
        return jax.nn.softmax, (features.logits,)
    if name == "image_diff":
        return lambda own, before: jnp.where(first, 0, own - before), (features.maps["image"], state.image)
    return jnp.asarray, (features.maps[name],)


def dependent(*, is_propagating: bool) -> set[str]:
    """The inputs that depend on what a cell itself did before."""
    return {"prev_state", "prev_logits", *(["prev_decoder"] if is_propagating else [])}


class ClipInput(NamedTuple):
    """An input that is known for all frames of a clip.

    Attributes:
      project: `(own, sources) -> [T, B, h, w, C]`; each frame is normalised by itself.
      own: the parameters that it has to itself, a part of the tree of `ports.init`.
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
    is_propagating: bool,
) -> dict[str, ClipInput]:
    """The inputs that do not depend on what the cell itself did.

    Args:
      params: of `ports.init`.
      state: before the clip.
      features: of the clip, [T, B, h, w, C] each.
      names: of the inputs, those that are `dependent` are left out.
      scope: normalisation.
      is_propagating: the previous decoder map depends on the key frames.
    """
    first = state.is_first[:, None, None, None]

    def before(own: types.Array, earlier: types.Array) -> jax.Array:
        """The map of the frame before each frame, for the first one of a video its own."""
        return jnp.concatenate([jnp.where(first, own[0], earlier)[None], own[:-1]])

    raw: dict[str, Raw] = {
        "logits": (jax.nn.softmax, (features.logits,)),
        "image_diff": (lambda own, earlier: own - before(own, earlier), (features.maps["image"], state.image)),
        "prev_decoder": (before, (features.maps["decoder"], state.decoder)),
    }

    def make(name: str) -> ClipInput:
        prepare, sources = raw[name] if name in raw else (lambda x: x, (features.maps[name],))

        def run(own: Params, sources: tuple[types.Array, ...]) -> jax.Array:
            return project(own, name, prepare(*sources), scope)

        return ClipInput(run, {"inputs": {name: params["inputs"][name]}}, sources)

    return {name: make(name) for name in names if name not in dependent(is_propagating=is_propagating)}


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
    """Gradients of the parameters of `project_clip`, by name.

    Args:
      inputs: of `of_clip`.
      reads: as there.
      grads: [.., B, h, w, C], gradients of maps.
      rows: the first of the T rows of each input; they are read only where the input is.
      more: of inputs that something else reads, too: the gradients from there, [T, B, h, w, C], and whether the rows
        have any of their own, bool [].
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
        return conditional.when(reads[name], pull, operands)["inputs"][name]

    return {name: find(name, item) for name, item in inputs.items()}
