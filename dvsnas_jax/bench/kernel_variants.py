"""The variants of each costly kernel side by side on the device at hand: equal values, and what each of them takes.

`lax` is what an accelerator gets, `slices` what a CPU gets (`nets.kernels.layers`): here both run on the same device.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvsnas_jax.bench import stopwatch
from dvsnas_jax.core import compilation
from dvsnas_jax.nets.kernels import layers, local_attention, sampling

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of a result or a gradient, relative to its largest value; in bfloat16 sums of hundreds of products are rounded."""
_BACKENDS = {"lax": "gpu", "slices": "cpu"}


class Sizes(NamedTuple):
    """Of the maps: images, height, width and channels of a cell's, and channels of a decoder's; calls of a timing."""

    batch: int = 32
    height: int = 81
    width: int = 81
    channels: int = 64
    wide: int = 256
    calls: int = 10


class Case(NamedTuple):
    """One kernel: its function, traced once for each of its variants (others by name), and shapes of its arguments."""

    name: str
    fn: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"
    other: tuple[str, Callable[..., jax.Array]] | None = None

    def variants(self) -> dict[str, Callable[..., jax.Array]]:
        """What is compared: the accelerator's first."""
        if self.other is not None:
            return {"ours": self.fn, self.other[0]: self.other[1]}
        return {name: _targeted(self.fn, backend) for name, backend in _BACKENDS.items()}


def cases(sizes: Sizes) -> list[Case]:
    """The kernels of cells and networks."""
    batch, height, width, channels, wide, _ = sizes
    cell, few = (batch, height, width, channels), (max(batch // 8, 1), height, width, wide)
    dense, depth, taps = (3, 3, channels, channels), (3, 3, channels), 9

    def of(fn: Callable[..., jax.Array], **options: Any) -> Callable[..., jax.Array]:
        return functools.partial(fn, **options)

    return [
        Case("conv 3x3", layers.conv, (cell, dense)),
        Case("conv 3x3 dilation 12", of(layers.conv, dilation=12), (cell, dense)),
        Case("conv 3x3", layers.conv, (few, (3, 3, wide, wide)), "bfloat16"),
        Case("depthwise 3x3", layers.depthwise_conv, (cell, depth)),
        Case("depthwise 5x5 dilation 6", of(layers.depthwise_conv, dilation=6), (cell, (5, 5, channels))),
        Case("depthwise 3x3 stride 2", of(layers.depthwise_conv, stride=2), (few, (3, 3, wide)), "bfloat16"),
        Case("max pool 3x3", of(layers.max_pool, window=3), (cell,)),
        Case("max pool 5x5", of(layers.max_pool, window=5), (few,)),  # in bfloat16 there would be ties
        Case("resize x2", of(layers.resize_bilinear, size=(2 * height, 2 * width)), (cell,)),
        Case("local attention 3x3", local_attention.attend, (cell, cell, cell, (3, 3, 1))),
        Case("deform_conv 3x3", _deform_conv, (cell, dense, (*cell[:3], taps, 2), (*cell[:3], taps))),
        Case("warp", sampling.warp_bilinear, (cell, (*cell[:3], 2)), other=("map_coordinates", _map_coordinates)),
    ]


def run(sizes: Sizes, chosen: list[Case] | None = None) -> list[dict[str, Any]]:
    """Compares and times all of them, or some.

    Returns:
      A row for each: `kernel`, `shape`, `dtype`, `difference` (the largest of results and gradients in products of
      full precision, each relative to its largest value), `is_equal`, `variants` (milliseconds of each, `forward` and
      with the `gradient`, in the precision that JAX takes), `fastest` (its name, by the gradient).
    """
    return [_row(case, sizes.calls) for case in (cases(sizes) if chosen is None else chosen)]


def _row(case: Case, calls: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arguments = [jnp.asarray(rng.normal(size=shape), case.dtype) for shape in case.shapes]
    shape = jax.eval_shape(lambda *args: case.fn(*args), *arguments)
    weights = jnp.asarray(rng.normal(size=shape.shape), shape.dtype)
    found, times = {}, {}
    for name, fn in case.variants().items():
        gradient = functools.partial(_with_gradient, fn)
        with jax.default_matmul_precision("highest"):
            # A function of its own: JAX keeps what it traced.
            found[name] = jax.device_get(compilation.jit(functools.partial(_with_gradient, fn))(weights, *arguments))
        forward_ms = _milliseconds(fn, arguments, calls)
        times[name] = {"forward": forward_ms, "gradient": _milliseconds(gradient, [weights, *arguments], calls)}
    first, second = found.values()
    difference = max(map(_difference, jax.tree.leaves(first), jax.tree.leaves(second)))
    return {
        "kernel": case.name,
        "shape": list(case.shapes[0]),
        "dtype": case.dtype,
        "difference": difference,
        "is_equal": bool(difference <= TOLERANCE[case.dtype]),
        "variants": times,
        "fastest": min(times, key=lambda name: times[name]["gradient"]),
    }


def _targeted(fn: Callable[..., jax.Array], backend: str) -> Callable[..., jax.Array]:
    """A function of its own, whose layers are those of a backend."""
    return compilation.target(backend)(lambda *args: fn(*args))


def _with_gradient(fn: Callable[..., jax.Array], weights: jax.Array, *args: jax.Array) -> Any:
    """The result, and the gradients of its sum with these weights."""
    out, pull = jax.vjp(fn, *args)
    return out, pull(weights)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))


def _milliseconds(fn: Callable[..., Any], arguments: list[jax.Array], calls: int) -> float:
    """Of a call among several in a row, the median of five such rows: a launch is short beside none of them."""
    compiled = compilation.jit(fn).lower(*arguments).compile()
    stopwatch.seconds(lambda: compiled(*arguments))
    rows = [
        stopwatch.seconds(lambda: [compiled(*arguments) for _ in range(calls)]) for _ in range(5 if calls > 1 else 1)
    ]
    return 1e3 * statistics.median(rows) / calls


def _deform_conv(x: jax.Array, kernel: jax.Array, offsets: jax.Array, masks: jax.Array) -> jax.Array:
    return sampling.deform_conv(x, kernel, offsets, jax.nn.sigmoid(masks))


def _map_coordinates(x: jax.Array, offsets: jax.Array) -> jax.Array:
    """`sampling.warp_bilinear` by JAX's own interpolation, map by map."""
    rows, cols = jnp.meshgrid(*(jnp.arange(size, dtype=jnp.float32) for size in x.shape[1:3]), indexing="ij")

    def one(image: jax.Array, offsets: jax.Array) -> jax.Array:
        places = [jnp.clip(at + offsets[..., axis], 0, size - 1)
                  for at, axis, size in ((rows, 1, x.shape[1]), (cols, 0, x.shape[2]))]  # fmt: skip
        return jax.scipy.ndimage.map_coordinates(image, places, order=1, mode="nearest")

    over_channels = jax.vmap(one, (2, None), 2)
    return jax.vmap(over_channels)(x, offsets)
