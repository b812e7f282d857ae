"""The command that makes all tables of a data set: reproduce."""

from __future__ import annotations

import argparse
import pathlib

from dvsnas_jax.commands import common

PACKAGED = "packaged"


def register(add: common.Add) -> None:
    """Adds the command."""
    reproduce = add(
        "reproduce",
        _reproduce,
        "from data to all tables and pictures: static network, baselines, zoo, searches, controls, ablation",
        "synthetic --budget=minutes --workdir=runs/reproduce_synthetic",
    )
    reproduce.add_argument("name", metavar="NAME", help="synthetic, camvid or cityscapes")
    reproduce.add_argument("--workdir", metavar="DIR", help="folder of it all; the same command goes on in it")
    reproduce.add_argument(
        "--budget", metavar="BUDGET", default="minutes",
        help="minutes (default): an hour or so on two cores; paper: full sizes, see the plan",
    )  # fmt: skip
    reproduce.add_argument("--seeds", type=int, metavar="N", help="trainings of each cell; default: of the budget")
    reproduce.add_argument("--searches", type=int, metavar="N", help="of each strategy; default: of the budget")
    reproduce.add_argument("--plan", action="store_true", help="print the stages and their times, and stop")
    reproduce.add_argument(
        "--record", nargs="?", const=PACKAGED, metavar="FILE",
        help="in the end, make it the run of record; alone: in the package",
    )  # fmt: skip
    reproduce.add_argument(
        "--against", metavar="FILE", help="compare with the figures in it; default: those of the package"
    )
    reproduce.set_defaults(config=None)  # its keys are changed by --config.KEY=VALUE, in all of its configurations
    common.add_compile_cache(reproduce)


def _reproduce(arguments: argparse.Namespace) -> None:
    from dvsnas_jax.core import errors
    from dvsnas_jax.core.files import output_files
    from dvsnas_jax.studies.reproduce import command, record

    against = record.PACKAGED if arguments.against is None else common.existing(arguments.against, "--against")
    options = command.Options(
        arguments.name, arguments.budget, arguments.seeds, arguments.searches, arguments.overrides, against
    )
    path = pathlib.Path(arguments.workdir) if arguments.workdir else None
    if arguments.plan:
        print(command.show_plan(options, path))
        return
    options.recipe()
    if path is None:
        raise errors.UserError("--workdir: is needed, or --plan to see the stages only")
    target = record.PACKAGED if arguments.record == PACKAGED else arguments.record
    if target is not None:
        output_files.check_file(target, flag="--record", suffixes=(".json",))
    report = command.run(options, path)
    print(report.text)
    for written in [*report.paths, *_pages(path)]:
        print(f"written: {written}")
    if target is not None:
        record.write(pathlib.Path(target), options.recipe().key, report.content)
        print(f"written: {target}")


def _pages(path: pathlib.Path) -> list[str]:
    """Writes the page of every run folder that has something to show."""
    from dvsnas_jax.report import page

    found = sorted({file.parent for file in path.glob("*/found/config.json")})
    searched = sorted({file.parent for file in path.glob("*/search/searches/*/config.json")})
    return [str(written) for folder in (*found, *searched) for written in page.write(folder)]
