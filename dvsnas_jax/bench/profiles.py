"""What takes the time of a compiled program: the profiler's events, added up by the operation that they come from."""

from __future__ import annotations

import collections
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax

_ORIGIN = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{op_name="([^"]*)"', re.MULTILINE)
_AROUND = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) (?:while|conditional|call)\(", re.MULTILINE)
"""Operations whose time is that of others inside of them."""


def record(call_fn: Callable[[], object], text: str, *, calls: int = 3) -> list[dict[str, Any]]:
    """`largest` of some calls, which are profiled; what they run must be compiled already."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call_fn())
        return largest(folder, text, calls=calls)


def largest(folder: str | os.PathLike[str], text: str, *, calls: int, num: int = 3) -> list[dict[str, Any]]:
    """The kinds of operations that took most of the device's time.

    Args:
      folder: that `jax.profiler.trace` wrote.
      text: of the compiled program, `compiled.as_text()`: from which of JAX's operations each of its own came.
      calls: how often it ran.
      num: how many kinds; [] where the profiler gave no event of an operation.

    Returns:
      The largest first: `kind` (the name of a JAX primitive, or of XLA's operation where it came from none), `ms` a
      call and `share` of all operations, and of its dearest single operation `op`, `op_ms`.
    """
    origins, around = dict(_ORIGIN.findall(text)), set(_AROUND.findall(text))
    spent = {op: seconds for op, seconds in _spent(folder).items() if op not in around}
    kinds: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for op, seconds in spent.items():
        kinds[origins.get(op, re.sub(r"[.\d]+$", "", op)).rsplit("/", 1)[-1]][op] = seconds
    total, rows = sum(spent.values()), list[dict[str, Any]]()
    for kind, ops in kinds.items():
        op = max(ops, key=lambda name: ops[name])
        part = sum(ops.values())
        times = {"ms": part * 1e3 / calls, "share": part / total, "op": op, "op_ms": ops[op] * 1e3 / calls}
        rows.append({"kind": kind, **times})
    return sorted(rows, key=lambda row: -row["ms"])[:num]


def text_of(rows: Iterable[dict[str, Any]]) -> str:
    """What `largest` returned in one line."""
    shown = [f"{row['kind']} {row['ms']:.3g} ms ({100 * row['share']:.0f} %)" for row in rows]
    return ", ".join(shown) or "the profiler gave no events of operations"


def _spent(folder: str | os.PathLike[str]) -> dict[str, float]:
    """Seconds of each operation of the compiled program, in all calls together."""
    found: dict[str, float] = collections.defaultdict(float)
    for file in pathlib.Path(folder).rglob("*.xplane.pb"):
        for line in _lines(jax.profiler.ProfileData.from_file(str(file))):
            for event in line.events:
                stats = {key: value for key, value in event.stats if key == "hlo_op"}
                name = str(stats["hlo_op"]) if stats else ""
                if name:
                    found[name] += event.duration_ns / 1e9
    return dict(found)


def _lines(data: Any) -> list[Any]:
    """The lines with the operations: of accelerators, where there are any, and there the streams (the other lines of a
    device repeat them); else of the host's threads."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices or planes for line in plane.lines]
    return [line for line in lines if line.name.startswith("Stream")] or lines
