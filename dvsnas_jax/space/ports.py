"""What every cell has, whatever its genotype: input projections, output, head, recurrence over time.

Refine mode: the cell's logits are the static network's plus a correction that starts at zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.nets import layers
from dvsnas_jax.space import operations

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CellSettings:
    """Sizes of a cell.

    Attributes:
      channels: C, of every map inside the cell.
      feature_channels: channels of `decoder`, `logits`, `stage1` .. `stage4`, `image`.
      max_offset: largest displacement of `warp`, in grid cells.
    """

    channels: int
    feature_channels: Mapping[str, int]
    max_offset: float = 4.0

    @property
    def num_classes(self) -> int:
        return self.feature_channels["logits"]

    def input_channels(self, name: str) -> int:
        """Channels of a cell input before its projection."""
        if name == "prev_state":
            return self.channels
        if name == "image_diff":
            return self.feature_channels["image"]
        return self.feature_channels[name.removeprefix("prev_")]


def init(rng: jax.Array, settings: CellSettings, inputs: Iterable[str]) -> Params:
    """Parameters of the projections (`decoder` always: it starts the state), the output and the head."""
    names = dict.fromkeys([*inputs, "decoder"])
    projections = {}
    for index, name in enumerate(sorted(names)):
        kernel = operations.init_kernel(
            jax.random.fold_in(rng, index), 1, settings.input_channels(name), settings.channels
        )
        projections[name] = {"kernel": kernel, "norm": operations.init_norm(settings.channels)}
    output_rng = jax.random.fold_in(rng, len(names))
    return {
        "inputs": projections,
        "output": {
            "kernel": operations.init_kernel(output_rng, 1, settings.channels, settings.channels),
            "norm": operations.init_norm(settings.channels),
        },
        "head": {
            "kernel": jnp.zeros((1, 1, settings.channels, settings.num_classes)),
            "bias": jnp.zeros((settings.num_classes,)),
        },
    }


def initial_state(settings: CellSettings, features: types.Features) -> types.CellState:
    """The state before the first frame (all zeros, `is_first`), shaped after one frame's features."""
    logits = features.logits
    return types.CellState(
        state=jnp.zeros((*logits.shape[:3], settings.channels), logits.dtype),
        decoder=jnp.zeros_like(features.maps["decoder"]),
        logits=jnp.zeros_like(logits),
        image=jnp.zeros_like(features.maps["image"]),
        is_first=jnp.ones((logits.shape[0],), bool),
    )


def _project(params: Params, name: str, x: types.Array, scope: operations.NormScope) -> jax.Array:
    y = layers.conv(jnp.asarray(x), params["inputs"][name]["kernel"].astype(x.dtype))
    return scope.child("inputs", name, "norm").normalize(params["inputs"][name]["norm"], y)


def cell_inputs(
    params: Params,
    state: types.CellState,
    features: types.Features,
    names: Iterable[str],
    scope: operations.NormScope,
) -> dict[str, jax.Array]:
    """The named inputs of a cell, each [B, h, w, C].

    At the first frame of a clip `prev_*` are the current frame's own values; the cell's own state
    is then the projected decoder map, and the difference of images is zero.
    """
    first = state.is_first[:, None, None, None]
    raw = {
        "prev_decoder": lambda: jnp.where(first, features.maps["decoder"], state.decoder),
        "prev_logits": lambda: jax.nn.softmax(jnp.where(first, features.logits, state.logits)),
        "logits": lambda: jax.nn.softmax(features.logits),
        "image_diff": lambda: jnp.where(first, 0, features.maps["image"] - state.image),
    }
    names = list(names)
    maps = {}
    if "decoder" in names or "prev_state" in names:
        maps["decoder"] = _project(params, "decoder", features.maps["decoder"], scope)
    if "prev_state" in names:
        maps["prev_state"] = _project(params, "prev_state", jnp.where(first, maps["decoder"], state.state), scope)
    for name in names:
        if name not in maps:
            x = raw[name]() if name in raw else features.maps[name]
            maps[name] = _project(params, name, x, scope)
    return {name: maps[name] for name in names}


def cell_output(
    params: Params, mean: jax.Array, features: types.Features, scope: operations.NormScope
) -> tuple[types.CellState, jax.Array]:
    """Projects the mean of the loose ends to the new state, corrects the static network's logits."""
    y = layers.conv(mean, params["output"]["kernel"].astype(mean.dtype))
    new = jax.nn.relu(scope.child("output", "norm").normalize(params["output"]["norm"], y))
    correction = layers.conv(new, params["head"]["kernel"].astype(new.dtype))
    logits = features.logits + correction + params["head"]["bias"].astype(new.dtype)[None, None, None]
    state = types.CellState(
        state=new,
        decoder=features.maps["decoder"],
        logits=logits,
        image=features.maps["image"],
        is_first=jnp.zeros((mean.shape[0],), bool),
    )
    return state, logits


def unroll(
    step_fn: Callable[[types.CellState, types.Features], tuple[types.CellState, Any]],
    state: types.CellState,
    features: types.Features,
) -> tuple[types.CellState, Any]:
    """Scans a cell over time.

    Args:
      step_fn: `(state, features of one frame) -> (state, output)`.
      state: before the first frame.
      features: of the clip, maps and logits [B, T, h, w, C].

    Returns:
      The last state, and the outputs with a leading axis T.
    """
    chex.assert_rank(features.logits, 5)
    time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), features)
    return jax.lax.scan(step_fn, state, time_major)
