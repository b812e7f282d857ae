"""What devices tell each other in a program, read from the text of the compiled program."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from typing import Any

import jax
import ml_collections

from dvsnas_jax.bench import compile_sizes
from dvsnas_jax.core import config as config_lib

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
VIRTUAL_DEVICES = 8
_SMALL = 64
_BITS = {"pred": 8, "bf16": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
# The `-start` of an asynchronous pair is left out: its `-done` has the shape of the result.
_OPERATION = re.compile(rf"= (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})(?:-done)?\(")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?[\w.\-]+ .*\{\s*$")
_CHILD = "from dvsnas_jax.bench import collectives; collectives.print_all()"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation, of `KINDS`, of a program: the bytes of its result on one device.

    `is_entry`: it is in the program's entry, so that it runs exactly once, and not in a loop or a branch.
    """

    kind: str
    num_bytes: int
    is_entry: bool


def find(text: str) -> list[Collective]:
    """The collectives of a compiled program, given `compiled.as_text()`."""
    found = []
    is_entry = False
    for line in text.splitlines():
        if computation := _COMPUTATION.match(line):
            is_entry = bool(computation["entry"])
        elif operation := _OPERATION.search(line):
            found.append(Collective(operation["kind"], _num_bytes(operation["shape"]), is_entry))
    return found


def _num_bytes(shape: str) -> int:
    """Of an HLO shape, `f32[3,4]{1,0}`, or of a tuple of them."""
    total = 0
    for dtype, sizes in _SHAPE.findall(shape):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * (_BITS.get(dtype) or int(re.sub(r"\D", "", dtype))) // 8
    return total


def find_on_virtual_devices(config: ml_collections.ConfigDict) -> dict[str, list[Collective]]:
    """The collectives of a search's steps on more devices than there are: another process compiles for virtual ones.

    It compiles for small frames, as no map leaves its device: what devices tell each other are gradients and counts.
    The genotypes of a step are rounded up to a multiple of the devices. Found for the programs `train` and `evaluate`.
    """
    small = config.copy_and_resolve_references()
    for key in ("height", "width", "crop_height", "crop_width"):
        small.data[key] = _SMALL
    return _find_in_child(json.dumps(config_lib.to_json_dict(small)))


@functools.cache
def _find_in_child(text: str) -> dict[str, list[Collective]]:
    """What `print_all` prints for a configuration as JSON."""
    environment = dict(os.environ)
    environment["JAX_PLATFORMS"] = "cpu"
    flag = f"--xla_force_host_platform_device_count={VIRTUAL_DEVICES}"
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=text, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, list[list[Any]]] = json.loads(done.stdout.splitlines()[-1])
    return {name: [Collective(*item) for item in items] for name, items in found.items()}


def print_all() -> None:
    """Reads a config as JSON from stdin and prints the collectives of its steps on all devices, as JSON."""
    config = config_lib.from_json_dict(json.load(sys.stdin), "stdin")
    for key in ("shared_genotypes", "genotypes_per_step"):
        config.search[key] = -(-config.search[key] // jax.device_count()) * jax.device_count()
    config.compile_effort = "quick"
    size = config.search.batch_size
    programs = compile_sizes.make(config, compile_sizes.make_mesh(config.search), train_clips=size, val_clips=size)
    found = {name: find(str(programs.lower(name).compile().as_text())) for name in ("train", "evaluate")}
    print(json.dumps({name: [dataclasses.astuple(item) for item in items] for name, items in found.items()}))
