"""Speed of the static networks: forward and training step against the device's own matrix product."""

from __future__ import annotations

import functools
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dvsnas_jax.bench import profiles
from dvsnas_jax.core import compilation, types
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.nets import static_net
from dvsnas_jax.train import losses

STANDARD: dict[str, dict[str, Any]] = {
    "mobilenet_v2 + refinenet": {"width": 1.0, "decoder_channels": 256},
    "mobilenet_v2 x 0.5 + refinenet 64": {"width": 0.5, "decoder_channels": 64},
    "mobilenet_v2 + deeplab": {"width": 1.0, "decoder_channels": 256, "decoder": "deeplab"},
    "resnet50 + refinenet": {"encoder": "resnet50", "width": 1.0, "decoder_channels": 256},
}
"""Changes to the default section `net`."""

NUM_CLASSES = 11
COLUMNS = (
    # key, heading, factor, digits
    ("parameters", "parameters", 1, 0),
    ("macs", "GMAC", 1e-9, 2),
    ("forward_ms", "forward ms", 1, 1),
    ("forward_share", "% of peak", 100, 0),
    ("train_ms", "train step ms", 1, 0),
    ("train_share", "% of peak", 100, 0),
    ("forward_bytes", "forward MB", 1e-6, 0),
    ("train_bytes", "train MB", 1e-6, 0),
)


def run(
    nets: Mapping[str, ml_collections.ConfigDict] | None = None,
    *,
    size: tuple[int, int] = (360, 480),
    train_size: tuple[int, int] = (240, 320),
    train_batch: int = 4,
    repeats: int = 10,
    has_profile: bool = False,
) -> dict[str, Any]:
    """Measures networks on the default device: the forward pass of one image, and the training step.

    Args:
      nets: name -> section `net`; None: `STANDARD`.
      size: height and width of the forward pass; `train_size` and `train_batch` are the training step's
        (0: none is made; XLA compiles one in bfloat16 for a CPU in minutes).
      repeats: timed calls of each; the median counts.
      has_profile: each row gets `forward_largest` and `train_largest`, too: `profiles.largest` of both programs.

    Returns:
      The device, its matrix-product peak (GFLOP/s) and a row for each network, see `COLUMNS`. Memory is what the
      compiled program needs for arguments, results and its own buffers.
    """
    if nets is None:
        nets = {name: config_lib.defaults().net for name in STANDARD}
        for name, changes in STANDARD.items():
            nets[name].update(changes)
    peaks: dict[str, float] = {}
    rows = []
    for name, config in nets.items():
        net = static_net.make(config, NUM_CLASSES)
        # Beside each network, and the best counts: on a shared machine one look may be too low.
        peaks[config.dtype] = max(peaks.get(config.dtype, 0.0), matrix_peak(config.dtype))
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(static_net.shapes(net)["params"]))
        row = {"net": name, "dtype": config.dtype, "parameters": num_parameters}
        row["macs"] = static_net.num_macs(net, size)
        row["train_macs"] = 3 * train_batch * static_net.num_macs(net, train_size)  # two more for the gradients
        row |= _measured("forward", *forward(net, size), repeats, has_profile=has_profile)
        if train_batch:
            train = training(net, (train_batch, *train_size))
            row |= _measured("train", *train, max(repeats // 2, 1), has_profile=has_profile)
        rows.append(row)
    for row in rows:
        for part, macs in (("forward", row["macs"]), ("train", row["train_macs"]))[: 1 + bool(train_batch)]:
            row[f"{part}_share"] = 2 * macs / (row[f"{part}_ms"] / 1e3) / 1e9 / peaks[row["dtype"]]
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
        "size": list(size),
        "train_size": [train_batch, *train_size],
        "matrix_peak_gflops": peaks,
        "nets": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """The rows of `run` as aligned text."""
    lines = [["network", *(heading for _, heading, _, _ in COLUMNS)]]
    for row in result["nets"]:
        lines.append([row["net"], *(f"{row[key] * factor:.{digits}f}" for key, _, factor, digits in COLUMNS)])
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    shown = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in lines
    ]
    peaks = ", ".join(f"{peak:.0f} GFLOP/s in {dtype}" for dtype, peak in result["matrix_peak_gflops"].items())
    sizes = f"forward 1x{result['size'][0]}x{result['size'][1]}, training {'x'.join(map(str, result['train_size']))}"
    return "\n".join([f"{result['backend']} ({result['device']}), matrix product {peaks}; {sizes}", *shown])


def matrix_peak(dtype: str, sizes: Sequence[int] | None = None) -> float:
    """GFLOP/s of the fastest of some square matrix products, best of five each."""
    if sizes is None:
        sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    best = 0.0
    for n in sizes:
        a = jnp.ones((n, n), dtype)
        fn = jax.jit(jnp.matmul).lower(a, a).compile()
        seconds = min(_seconds(functools.partial(fn, a, a)) for _ in range(6))
        best = max(best, 2 * n**3 / seconds / 1e9)
    return best


def forward(net: static_net.StaticNet, size: tuple[int, int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A forward pass of one random image of this height and width: the function, not jitted, and its arguments."""
    variables = static_net.init(net, jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, *size, 3)), jnp.float32)

    def infer(variables: types.Params, x: jax.Array) -> types.Array:
        return cast(types.Features, net.apply(variables, x, train=False)).logits

    return infer, (variables, images)


def training(net: static_net.StaticNet, shape: tuple[int, int, int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A training step of random images (number, height, width): cross-entropy at their size, gradient, plain gradient
    descent. The function `variables -> variables`, not jitted, and its arguments."""
    variables = static_net.init(net, jax.random.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, NUM_CLASSES, shape), jnp.uint8)

    def loss_fn(params: types.Params, rest: types.Params) -> tuple[jax.Array, types.Params]:
        rngs = {"dropout": jax.random.key(1)}
        found, updated = net.apply({"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return losses.cross_entropy(found.logits, labels)[0], updated

    def step(variables: types.Params) -> types.Params:
        rest = {"batch_stats": variables["batch_stats"]}
        grads, updated = jax.grad(loss_fn, has_aux=True)(variables["params"], rest)
        return {"params": jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], grads), **updated}

    return step, (variables,)


def _measured(
    name: str, fn: Callable[..., Any], arguments: tuple[Any, ...], repeats: int, *, has_profile: bool
) -> dict[str, Any]:
    """Milliseconds and bytes of one compiled function; `moved`: what XLA counts that passes the device's memory."""
    started = time.perf_counter()
    compiled = compilation.jit(fn).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    call_fn = functools.partial(compiled, *arguments)
    for _ in range(2):
        _seconds(call_fn)
    seconds = [_seconds(call_fn) for _ in range(repeats)]
    median = statistics.median(seconds)
    memory = compiled.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    cost = compiled.cost_analysis() or {}
    return {
        f"{name}_ms": median * 1e3,
        f"{name}_best_ms": min(seconds) * 1e3,
        f"{name}_bytes": sum(getattr(memory, part, 0) for part in parts),
        f"{name}_moved_bytes": float(cost.get("bytes accessed", 0)),
        f"{name}_compile_s": compile_seconds,
        **({f"{name}_largest": profiles.record(call_fn, compiled.as_text())} if has_profile else {}),
    }


def _seconds(fn: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - started
