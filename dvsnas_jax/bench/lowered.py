"""Programs as they are handed to CUDA, made and read on any machine: their text shows what would slow a GPU down."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dvsnas_jax.core import compilation

ALIGNED = 8
"""Tensor cores take bfloat16 in products whose channels are multiples of this."""
_FLOAT64 = re.compile(r"[<x]f64>")
# Python functions called back (`pure_callback`, `io_callback`, `debug.print`), and what else crosses to the host.
_HOST = re.compile(r"custom_call @(\w*callback\w*)|stablehlo\.(send|recv|infeed|outfeed)\b")
_TYPES = re.compile(r": \(tensor<(\S+?)>, tensor<(\S+?)>\) -> tensor<(\S+?)>")
_CONVOLUTION = re.compile(
    r"stablehlo\.convolution.*dim_numbers = \[(.*?)\]x\[(.*?)\]->\[(.*?)\].*feature_group_count = (\d+)"
)
_PRODUCT = re.compile(r"stablehlo\.dot_general.*contracting_dims = \[(.*?)\] x \[(.*?)\]")


class Product(NamedTuple):
    """A convolution or a matrix product of a program.

    Attributes:
      kind: `convolution`, `depthwise` (one channel a group, which no tensor core computes) or `product`.
      dtype: of what goes in.
      channels: what is summed over beside the taps, and what comes out.
      is_channels_last: convolutions: whether pixels lie apart and channels together, going in and coming out.
      macs: multiply-adds of one run.
    """

    kind: str
    dtype: str
    channels: tuple[int, int]
    is_channels_last: bool
    macs: int

    @property
    def is_aligned(self) -> bool:
        """Whether its channels are multiples of `ALIGNED`."""
        return not any(number % ALIGNED for number in self.channels)


class Findings(NamedTuple):
    """What a program holds: lines with float64, calls of the host, and its products."""

    float64: list[str]
    host: list[str]
    products: list[Product]

    def share(self, fits_fn: Callable[[Product], bool]) -> float:
        """Of the multiply-adds of all that is not depthwise; each operation counts once, also in loops."""
        dense = [each for each in self.products if each.kind != "depthwise"]
        return sum(each.macs for each in dense if fits_fn(each)) / max(sum(each.macs for each in dense), 1)

    def problems(self) -> list[str]:
        """What no program should have, in words."""
        turned = [each for each in self.products if not each.is_channels_last]
        found = [f"float64: {line}" for line in self.float64[:3]] + [f"calls the host: {name}" for name in self.host]
        return found + [f"a convolution with channels before pixels: {each.dtype}" for each in turned[:3]]


def cuda_text(fn: Any, *args: Any) -> str:
    """A jitted function (from `compilation.jit`, traced nowhere else) lowered for CUDA: StableHLO, whatever runs it.

    `args`: arrays or shapes.
    """
    with compilation.target("gpu"):
        return str(fn.trace(*args).lower(lowering_platforms=("cuda",)).as_text())


def inspect(text: str) -> Findings:
    """Reads a program in StableHLO."""
    float64, host, products = [], [], []
    for line in map(str.strip, text.splitlines()):
        if _FLOAT64.search(line):
            float64.append(line[:200])
        if call := _HOST.search(line):
            host.append(call[1] or call[2])
        if found := _CONVOLUTION.search(line):
            products.append(_convolution(line, *found.groups()))
        elif found := _PRODUCT.search(line):
            (shape, dtype), _, (result, _) = _tensors(line)
            axes = [int(axis) for axis in found[1].split(",") if axis.strip()]
            depth = math.prod(shape[axis] for axis in axes)
            products.append(Product("product", dtype, (depth, result[-1]), True, math.prod(result) * depth))
    return Findings(float64, host, products)


def _convolution(line: str, image: str, kernel: str, result: str, groups: str) -> Product:
    """Of its dimensions as letters: b, f and i, o are the others than the pixels."""
    (shape, dtype), (taps, _), (out, _) = _tensors(line)
    is_last = not any(letters.split(", ")[-1].isdigit() for letters in (image, result))
    kind = "depthwise" if int(groups) > 1 else "convolution"
    output = taps[kernel.split(", ").index("o")]
    macs = math.prod(out) * math.prod(taps) // output
    return Product(kind, dtype, (shape[-1], out[-1]), is_last, macs)


def _tensors(line: str) -> list[tuple[list[int], str]]:
    """Shape and type of the two operands and of the result."""
    types = _TYPES.search(line)
    assert types is not None, line[:200]
    split = [each.split("x") for each in types.groups()]
    return [([int(size) for size in sizes], dtype) for *sizes, dtype in split]
