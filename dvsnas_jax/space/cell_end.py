"""The end of a cell: how its output becomes the logits of a frame.

It starts from what costs nothing and learns what is better:

    logits = gate * current + (1 - gate) * sample(logits of the frame before, offsets) + correction

Offsets, gate and correction come from the cell's output by small heads that are zero at the start. Refine: `current`
are the static network's logits, and the gate starts at a share that is the same everywhere, so the untrained cell is a
running average of them (`zoo:ema`). Propagate: there are no current logits and no gate, so the untrained cell repeats
the key frame (`zoo:hold`). Whatever is trained is gain over a baseline without parameters.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from dvsnas_jax.core import types
from dvsnas_jax.nets.kernels import layers, precision, sampling
from dvsnas_jax.space import operation_cost as counts
from dvsnas_jax.space import operations

Params = dict[str, Any]

HEADS, NONE, CLASSIFIER = "heads", "none", "classifier"
ENDS = (HEADS, NONE, CLASSIFIER)
"""What `config.space.end` may be: as above; the baseline alone, which learns nothing; as cells ended before: a
classifier of the cell's output, whose result is, in refine mode, added to the static network's logits."""
PARTS = ("offsets", "gate", "correction")
DEFAULT_SHARE = 0.7
"""Of the static network's logits in the running average, where none was chosen."""
_MAX_SHARE = 0.98
_KERNEL = 3


def parts(*, is_propagating: bool) -> tuple[str, ...]:
    """The parts of `PARTS` that the end `HEADS` has in a mode."""
    return tuple(part for part in PARTS if part != "gate" or not is_propagating)


def init(rng: jax.Array, end: str, channels: int, num_classes: int, *, is_propagating: bool) -> Params:
    """Parameters of an end.

    `head: {kernel [1, 1, C, K], bias [K]}`, the correction or the classifier; `motion: {kernel [3, 3, C, n], bias [n]}`
    of `HEADS`, offsets (x, y) and, in refine mode, the gate; `share []` in refine mode, the log-odds of the share.
    """
    params: Params = {}
    if end != NONE:
        params["head"] = {"kernel": jnp.zeros((1, 1, channels, num_classes)), "bias": jnp.zeros((num_classes,))}
    if end == CLASSIFIER:
        if is_propagating:  # nothing to correct: the head makes the logits
            params["head"]["kernel"] = operations.init_kernel(rng, 1, channels, num_classes)
        return params
    if end == HEADS:
        num = 2 if is_propagating else 3
        params["motion"] = {"kernel": jnp.zeros((_KERNEL, _KERNEL, channels, num)), "bias": jnp.zeros((num,))}
    return params if is_propagating else params | log_odds(DEFAULT_SHARE)


def log_odds(share: float) -> Params:
    """The parameter of a running average in which the static network's logits have this share, above 0.

    It is kept below 1, where nothing of the past would be left to learn from.
    """
    share = min(share, _MAX_SHARE)
    return {"share": jnp.float32(math.log(share / (1 - share)))}


def with_share(params: types.Params, share: float | None) -> types.Params:
    """Parameters of a cell or supernet whose running average has this share; None, or no such average: as they are."""
    if share is None or "share" not in params["ports"]:
        return params
    old, new = params["ports"]["share"], log_odds(share)["share"]
    return {**params, "ports": {**params["ports"], "share": old * 0 + new}}  # where the old one lies


def without(params: Params, part: str) -> Params:
    """Parameters of a cell's ports with one part of the end switched off, as data: nothing is compiled anew.

    Without `offsets` nothing moves, without `gate` the share is the same everywhere, without `correction` nothing is
    added.
    """
    if part == "correction":
        return {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}
    places = slice(0, 2) if part == "offsets" else slice(2, 3)
    return {**params, "motion": jax.tree.map(lambda x: x.at[..., places].set(0), params["motion"])}


def is_idle(params: Params) -> bool:
    """Whether no head of these weights of a cell's ports reads the cell's output: its layers then change nothing."""
    kernels = [params[name]["kernel"] for name in ("head", "motion") if name in params]
    return not any(bool(jnp.any(kernel != 0)) for kernel in kernels)


def logits(
    params: Params,
    output: jax.Array | None,
    state: types.CellState,
    features: types.Features,
    scope: operations.CellScope,
) -> jax.Array:
    """The logits [B, h, w, K] of a frame.

    Args:
      params: of `init`; which of them there are says how the cell ends.
      output: the cell's, [B, h, w, C], or at a coarser grid, from which the heads are interpolated; None: it has none,
        only the baseline is left.
      state: before the frame.
      features: of the frame; propagate: without logits.
      scope: the cell's, with its largest displacement.
    """
    before, current = jnp.asarray(state.logits), jnp.asarray(features.logits)
    size = before.shape[1], before.shape[2]
    if output is not None and "motion" not in params:
        found = _head(params, output, size)
        return found if state.is_propagating else current + found
    motion = None
    if output is not None:
        motion = layers.conv(output, params["motion"]["kernel"].astype(output.dtype))
        motion += layers.per_channel(params["motion"]["bias"].astype(output.dtype), 4)
        before = sampling.warp_bilinear(before, _offsets(motion[..., :2], size, scope))
    if state.is_propagating:
        return before if output is None else before + _head(params, output, size)
    more = 0 if motion is None else layers.resize_bilinear(motion[..., 2:], size)
    odds = precision.at_least_float32(params["share"] + more)
    gate = jnp.where(state.is_first[:, None, None, None], 1, jax.nn.sigmoid(odds)).astype(current.dtype)
    mixed = before + gate * (current - before)
    return mixed if output is None else mixed + _head(params, output, size)


def cost(
    end: str, sizes: counts.Sizes, num_classes: int, *, is_propagating: bool, full: counts.Sizes | None = None
) -> counts.Cost:
    """What the end of a cell costs for a frame; propagate: one that is no key frame. `full`: of the logits, where their
    grid is finer than the cell's."""
    head = counts.conv(sizes, sizes.channels, num_classes) + counts.Cost(params=num_classes)
    full = full or sizes
    is_finer, interpolation = full.pixels > sizes.pixels, 8  # of a value: two of the other axis, each of two
    if end == CLASSIFIER:  # a bias, and refine: the static network's logits
        return head + counts.each(full, (1 if is_propagating else 2) + interpolation * is_finer, num_classes)
    total, num = counts.Cost(), 2 if is_propagating else 3
    if end == HEADS:
        total += (
            counts.conv(sizes, sizes.channels, num, _KERNEL) + counts.Cost(params=num) + counts.each(sizes, num + 2, 1)
        )
        total += counts.samples(full, channels=num_classes) + counts.moved(full, num_classes, 2, num_classes)
        total += head + counts.each(full, 2, num_classes) + counts.moved(full, num_classes)
        total += counts.each(full, interpolation * is_finer, num_classes + num)
    if not is_propagating:  # the sigmoid and the mean of both
        total += counts.Cost(params=1) + counts.each(full, 4 if end == HEADS else 0, 1)
        total += counts.each(full, 3, num_classes) + counts.moved(full, *[num_classes] * (1 if end == HEADS else 3))
    return total


def _offsets(motion: jax.Array, size: tuple[int, int], scope: operations.CellScope) -> jax.Array:
    """Displacements [B, *size, 2] of logits, in cells of their grid; the bound is in those of the grid of `motion`."""
    scale = -(-size[0] // motion.shape[1])
    return layers.resize_bilinear(scale * scope.max_offset * jnp.tanh(motion), size)


def _head(params: Params, output: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A value for each class [B, *size, K]."""
    found = layers.resize_bilinear(layers.conv(output, params["head"]["kernel"].astype(output.dtype)), size)
    return found + layers.per_channel(params["head"]["bias"].astype(output.dtype), 4)
