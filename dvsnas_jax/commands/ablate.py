"""The command that takes a cell or a search apart: ablate."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common


def register(add: common.Add) -> None:
    """Adds the command."""
    ablate = add(
        "ablate",
        _ablate,
        "measure what each token of a cell, or each operation of a search, contributes",
        "--workdir=runs/smoke --what=replace",
    )
    common.add_config(ablate, is_of_run=True)
    ablate.add_argument(
        "--workdir", metavar="DIR", required=True, help="folder of a finished search; retrain: of a trained cell"
    )
    ablate.add_argument(
        "--what", metavar="WHAT", default="replace",
        help="replace (default): one token changed, scored as in the search (its shared weights; mode scratch: each "
        "trained alone); leave-one-out: a search without each operation; retrain: one token changed, trained from "
        "scratch as a static graph",
    )  # fmt: skip
    ablate.add_argument("--genotype", metavar="FILE", help="genotype JSON, or zoo:NAME; default: the run's winner")
    ablate.add_argument(
        "--steps", type=int, metavar="N",
        help="iterations of each search of leave-one-out (default: config.ablate.steps), or training steps of each "
        "cell of retrain (default: config.train.steps)",
    )  # fmt: skip
    ablate.add_argument(
        "--limit", type=int, metavar="N",
        help="at most so many variants, or operations left out; default: all, retrain: one for each token",
    )  # fmt: skip
    common.add_compile_cache(ablate)


def _ablate(arguments: argparse.Namespace) -> None:
    common.existing(arguments.workdir, "--workdir")
    config = common.load_config(arguments)
    from dvsnas_jax.studies import ablate

    report = ablate.run(
        config,
        common.open_workdir(arguments.workdir),
        what=arguments.what,
        genotype=arguments.genotype,
        num_steps=arguments.steps,
        limit=arguments.limit,
    )
    print(report.text)
    for path in report.paths:
        print(f"written: {path}")
