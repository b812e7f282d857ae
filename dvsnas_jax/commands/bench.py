"""The command that measures the speed of the parts: bench."""

from __future__ import annotations

import argparse
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_text, output_files

_SEARCH_NUMBERS = (
    ("candidates", 1000, "of the search that is estimated"),
    ("devices-per-host", 8, "assumed: devices that share the fast links"),
    ("inside", 300.0, "assumed: GB/s of a device inside a host"),
    ("between", 40.0, "assumed: GB/s of a device between hosts"),
    ("latency", 10.0, "assumed: microseconds of a hop"),
    ("tflops", 494.0, "assumed, for counted work: TFLOP/s of matrix products"),
    ("tflops-share", 0.1, "assumed: share of them that is reached"),
    ("bandwidth", 4.8, "assumed, for counted work: TB/s of device memory"),
    ("bandwidth-share", 0.3, "assumed: share of it that is reached"),
)  # options of `bench search`: name, default, help


_OPTIONS = {
    "search": ("paper-size", "profile", *(name for name, _, _ in _SEARCH_NUMBERS)),
    "accelerator": ("tiny", "only", "minutes"),
    "cell": ("genotype",),
}
"""Options that only one part takes."""


def register(add: common.Add) -> None:
    """Adds the command."""
    bench = add("bench", _bench, "measure the speed of a part", "data --config.data.name=camvid --json=data.json")
    bench.add_argument("part", choices=tuple(_PARTS))
    common.add_config(bench, is_required=False)
    bench.add_argument("--json", "--output", metavar="FILE", help="write the figures there too")
    common.add_compile_cache(bench)
    search = bench.add_argument_group("of `search`")
    search.add_argument(
        "--paper-size", action="store_true",
        help="crops of 321 and 512, batch 32, C = 64, L = 7; on a CPU the work is counted, not timed",
    )  # fmt: skip
    for name, default, text in _SEARCH_NUMBERS:
        search.add_argument(f"--{name}", type=type(default), metavar="N", help=f"{text} (default {default:g})")
    search.add_argument("--profile", metavar="DIR", help="write a profile of three optimizer steps there")
    cell = bench.add_argument_group("of `cell`", "with a --config of mode propagate: kinds of frames and their parts")
    cell.add_argument("--genotype", metavar="FILE", help="genotype JSON, or zoo:NAME (default zoo:dff)")
    check = bench.add_argument_group("of `accelerator`", "parts that are in the file of --output are not done again")
    check.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    check.add_argument("--only", metavar="PART,..", help="these parts (default: all)")
    check.add_argument("--minutes", type=float, metavar="N", help="of all parts together (default 8)")


def _bench(arguments: argparse.Namespace) -> int | None:
    if arguments.part not in ("data", "nets", "search", "cell") and (arguments.config or arguments.overrides):
        raise errors.UserError(f"bench {arguments.part}: takes no config; leave --config out")
    for part, names in _OPTIONS.items():
        for name in names if part != arguments.part else ():
            given = getattr(arguments, name.replace("-", "_"))
            if given is not None and given is not False:  # 0 is given, too
                raise errors.UserError(f"--{name}: only `dvsnas bench {part}` takes it; leave it out")
    if arguments.part == "accelerator":
        return _accelerator(arguments)
    if arguments.json:
        _check_writable(arguments.json)
    if arguments.profile:
        output_files.check_folder(arguments.profile, flag="--profile")
    result = _PARTS[arguments.part](arguments)
    if arguments.part not in ("nets", "search", "cell"):  # they print tables
        common.print_summary(result)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json_text.dumps(result, indent=1) + "\n")
    return None


def _check_writable(path: str) -> None:
    """Before anything is measured: whether the figures can be written."""
    is_new = not os.path.lexists(path)
    try:
        with open(path, "a"):  # nothing that is there is lost
            pass
        if is_new:
            os.unlink(path)
    except OSError as error:
        raise errors.UserError(
            f"--json: cannot write {path}: {error.strerror}; give the name of a file in a folder that is there"
        ) from None


def _accelerator(arguments: argparse.Namespace) -> int:
    """All parts that are missing in the file, which is written after each; the table at the end."""
    from dvsnas_jax.bench import accelerator, accelerator_table

    if not arguments.json:
        raise errors.UserError("bench accelerator: --output=FILE.json is needed: it keeps the parts that are done")
    minutes = accelerator.MINUTES if arguments.minutes is None else arguments.minutes
    if not (minutes > 0 and math.isfinite(minutes)):
        raise errors.UserError(f"--minutes: must be above 0, got {minutes:g}")
    output = output_files.check_file(arguments.json, suffixes=(".json",))
    parts = tuple(filter(None, (arguments.only or "").split(",")))
    known, code = accelerator.run(accelerator.Order(output, arguments.tiny, parts, minutes))
    print(accelerator_table.markdown(known, accelerator.PARTS))
    print(f"written: {output}, {accelerator.table_file(output)}")
    return code


def _controller(arguments: argparse.Namespace) -> dict[str, Any]:
    del arguments
    from dvsnas_jax.bench import controller_speed

    return controller_speed.run()


def _cell(arguments: argparse.Namespace) -> dict[str, Any]:
    """The training step of cells of the standard size, or the frames of one cell that propagates at a config's."""
    from dvsnas_jax.bench import cell_speed, propagate_speed

    if not (arguments.config or arguments.overrides or arguments.genotype):
        result = cell_speed.run()
        common.print_summary(result)
        return result
    result = propagate_speed.run(common.load_config(arguments), arguments.genotype or "zoo:dff")
    print(propagate_speed.table(result))
    return result


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    from dvsnas_jax.bench import data_speed

    if arguments.config is None:
        arguments.overrides = {**data_speed.STANDARD, **arguments.overrides}
    return data_speed.run(common.load_config(arguments).data)


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    """The search of a config on random features; `--paper-size`: at two crops."""
    config = common.load_config(arguments)
    import jax

    from dvsnas_jax.bench import compile_sizes, search_speed
    from dvsnas_jax.search import estimate, search_cost

    number = {name: _number(arguments, name, default) for name, default, _ in _SEARCH_NUMBERS}
    links = estimate.Links(
        number["devices-per-host"], number["inside"] * 1e9, number["between"] * 1e9, number["latency"] * 1e-6
    )
    device = search_cost.Device(
        number["tflops"] * 1e12, number["tflops-share"], number["bandwidth"] * 1e12, number["bandwidth-share"]
    )
    crops = search_speed.PAPER_CROPS if arguments.paper_size else ()
    configs = [compile_sizes.paper_size(config, crop) for crop in crops] or [config]
    results = []
    for changed in configs:
        if crops and jax.default_backend() == "cpu":
            found = search_speed.count(changed, links=links, num_candidates=number["candidates"], device=device)
        else:
            effort = search_speed.Effort(profile=arguments.profile or "")
            found = search_speed.run(changed, links=links, num_candidates=number["candidates"], effort=effort)
        results.append(found)
        print(search_speed.table(found, device, number["candidates"]), end="\n\n")
    return {"searches": results}


def _number(arguments: argparse.Namespace, name: str, default: float) -> Any:
    """What is assumed of a search, checked."""
    given = getattr(arguments, name.replace("-", "_"))
    is_share = name.endswith("-share")
    if given is not None and not (0 < given <= (1 if is_share else math.inf) and math.isfinite(given)):
        allowed = "above 0 and at most 1" if is_share else "above 0"
        raise errors.UserError(f"--{name}: must be {allowed}, got {given:g}")
    return default if given is None else given


def _nets(arguments: argparse.Namespace) -> dict[str, Any]:
    """The standard networks, or the one of a config at the size of its frames."""
    from dvsnas_jax.bench import nets_speed

    if arguments.config or arguments.overrides:
        config = common.load_config(arguments)
        frames, crops = (config.data.height, config.data.width), (config.data.crop_height, config.data.crop_width)
        result = nets_speed.run({"config.net": config.net}, size=frames, train_size=crops)
    else:
        result = nets_speed.run()
    print(nets_speed.table(result))
    return result


_PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "controller": _controller, "cell": _cell, "data": _data, "nets": _nets, "search": _search,
    "accelerator": _accelerator,
}  # fmt: skip
