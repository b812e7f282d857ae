"""The commands that make and read a run folder: search, train, evaluate, report."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common


def register(add: common.Add) -> None:
    """Adds the commands."""
    search = add(
        "search",
        _search,
        "search a cell, retrain the best and report",
        "--config=configs/smoke.py --workdir=runs/smoke",
    )
    train = add(
        "train",
        _train,
        "retrain one genotype, or the static network only",
        "--config=configs/smoke.py --workdir=runs/cell --genotype=runs/smoke/best_genotype.json",
    )
    train.add_argument(
        "--genotype", metavar="FILE",
        help="genotype JSON, or zoo:NAME; without it only the static network is trained",
    )  # fmt: skip
    evaluate = add(
        "evaluate",
        _evaluate,
        "score the network and the cell of a run folder on config.evaluate.split",
        "--config=configs/smoke.py --workdir=runs/smoke --config.evaluate.split=test",
    )
    evaluate.add_argument(
        "--predictions", metavar="DIR",
        help="write the cell's predictions as PNG (Cityscapes: as for its evaluator, which scores them)",
    )  # fmt: skip
    for command in (search, train, evaluate):
        common.add_config(command, is_required=True)
        command.add_argument("--workdir", metavar="DIR", required=True, help="run folder; the same command resumes it")
        common.add_compile_cache(command)
    report = add("report", _report, "write the figures and report.html of a run folder", "--workdir=runs/smoke")
    report.add_argument("--workdir", metavar="DIR", required=True, help="run folder")


def _search(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    from dvsnas_jax.run import evaluate
    from dvsnas_jax.search import pipeline

    print(evaluate.summary(pipeline.run(config, common.open_workdir(arguments.workdir))))


def _train(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    if arguments.genotype and not arguments.genotype.startswith("zoo:"):
        common.existing(arguments.genotype, "--genotype")
    from dvsnas_jax.run import train

    common.print_summary(train.run(config, common.open_workdir(arguments.workdir), arguments.genotype))


def _evaluate(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    common.existing(arguments.workdir, "--workdir")
    from dvsnas_jax.run import evaluate, submission

    folder = common.open_workdir(arguments.workdir)
    if arguments.predictions:
        result, written = submission.run(config, folder, arguments.predictions)
        print(f"{evaluate.summary(result)}\n{written}")
    else:
        print(evaluate.summary(evaluate.run(config, folder)))


def _report(arguments: argparse.Namespace) -> None:
    common.existing(arguments.workdir, "--workdir")
    from dvsnas_jax.run import report

    for path in report.write(arguments.workdir):
        print(f"written: {path}")
