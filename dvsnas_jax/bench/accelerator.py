"""`dvsnas bench accelerator`, `launch/gpu_check.sh`: what this program does on the accelerator at hand, part by part.

Each part runs in a process of its own and is kept in the JSON file once it is done; the same command does the others.
Neither TensorFlow nor a data set is needed, and where `ml_collections` is missing a stand-in takes its place
(`core.plain_config`). This module imports neither JAX nor a configuration: the process that waits holds no device.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, NamedTuple

from dvsnas_jax.bench import accelerator_table
from dvsnas_jax.core import errors, plain_config
from dvsnas_jax.core.files import json_files, json_text

PARTS = ("device", "kernels", "search", "net_float32", "net_bfloat16", "export", "programs", "net_resnet50")
"""In the order of their worth; what they measure: `bench.accelerator_parts`."""
MINUTES = 8.0
_LARGEST_SHARE = 0.5
"""Of the time, that one part may take: a compilation that never ends leaves the other half."""
_LEAST_SECONDS = 10
"""Below this no part is begun."""
_VERSION = 1
_CHILD = "from dvsnas_jax.bench import accelerator; accelerator.child()"
_AGAIN = "start the same command again"


class Order(NamedTuple):
    """What is wanted: the JSON file, tiny sizes or those of a paper, parts (none: all), minutes for all of it."""

    output: pathlib.Path
    is_tiny: bool = False
    parts: tuple[str, ...] = ()
    minutes: float = MINUTES

    @property
    def sizes(self) -> str:
        """The name of the sizes."""
        return "tiny" if self.is_tiny else "paper"


def run(order: Order) -> tuple[dict[str, Any], int]:
    """Does what is missing of the parts: all that is known, as the file holds it, and an exit code.

    That is 0 where all wanted parts are done, 1 where one failed, else 75: the time was over.

    Raises:
      UserError: the file is none of this command, or of other sizes; an unknown part.
    """
    if unknown := [name for name in order.parts if name not in PARTS]:
        raise errors.UserError(f"--only: unknown part {unknown[0]!r}, allowed are {', '.join(PARTS)}")
    known, deadline = _read(order), time.monotonic() + 60 * order.minutes
    wanted = [name for name in order.parts or PARTS if name not in known["parts"]]
    # What was stopped before comes last: it must not take the time of the others again.
    for name in sorted(wanted, key=lambda name: known["missing"].get(name, {}).get("stops", 0)):
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            known["missing"].setdefault(name, {"stops": 0})["line"] = f"not begun, the time was over; {_AGAIN}"
            continue
        share = 1.0 if wanted == [name] else _LARGEST_SHARE
        _do(name, order.sizes, known, min(left, share * 60 * order.minutes))
        _write(order.output, known)
    _write(order.output, known)
    lines = [known["missing"][name] for name in order.parts or PARTS if name in known["missing"]]
    is_failed = any("failed" in each["line"] for each in lines)
    return known, errors.EXIT_FAULT if is_failed else errors.EXIT_STOPPED if lines else errors.EXIT_DONE


def table_file(output: pathlib.Path) -> pathlib.Path:
    """Where the table for people is written, beside the JSON."""
    return output.with_suffix(".md")


def _read(order: Order) -> dict[str, Any]:
    """What earlier calls left in the file."""
    if not order.output.exists():
        return {"version": _VERSION, "sizes": order.sizes, "parts": {}, "missing": {}}
    found = json_files.read(order.output, name="--output", advice="give another --output")
    is_ours = isinstance(found, dict) and found.get("version") == _VERSION and isinstance(found.get("parts"), dict)
    if not is_ours or found.get("sizes") != order.sizes:
        raise errors.UserError(
            f"--output: {order.output} holds no parts of `bench accelerator` with {order.sizes} sizes; "
            "give another --output, or remove the file"
        )
    return {**found, "missing": dict(found.get("missing", {}))}


def _do(name: str, sizes: str, known: dict[str, Any], seconds: float) -> None:
    """One part in a process of its own, for so many seconds at most: into `parts` or `missing`."""
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    started, stops = time.monotonic(), known["missing"].pop(name, {}).get("stops", 0)
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"
        words = [sys.executable, "-c", _CHILD, name, sizes, str(result)]
        try:
            code = subprocess.run(words, timeout=seconds, check=False).returncode
            found = json.loads(result.read_text()) if result.exists() else {}
        except subprocess.TimeoutExpired:
            line = f"stopped after {seconds:.0f} s; {_AGAIN}: what it compiled is kept"
            known["missing"][name] = {"line": line, "stops": stops + 1}
            return
    if "result" in found:
        known["parts"][name] = {"seconds": round(time.monotonic() - started, 1), **found}
    else:
        known["missing"][name] = {"line": f"failed: {found.get('line', _ended(code))}", "stops": stops}


def _ended(code: int) -> str:
    """How a process ended that left no word."""
    return f"its process ended by signal {-code}" if code < 0 else f"its process ended with code {code}"


def _write(output: pathlib.Path, known: dict[str, Any]) -> None:
    """The JSON, in one step, and the table."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name}.part")
    part.write_text(json_text.dumps(known, indent=1) + "\n")
    os.replace(part, output)
    table_file(output).write_text(accelerator_table.markdown(known, PARTS))


def child() -> None:
    """The process of one part; its words are the part, the sizes and the file for its result."""
    name, sizes, file = sys.argv[1:]
    has_stand_in = plain_config.provide()
    from dvsnas_jax.bench import accelerator_parts

    try:
        found = accelerator_parts.measure(name, is_tiny=sizes == "tiny")
        found["notes"] += [f"{plain_config.NAME} is not installed: a stand-in holds the configuration"] * has_stand_in
    except Exception as error:
        traceback.print_exc()
        found = {"line": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    pathlib.Path(file).write_text(json_text.dumps(found))
