"""The commands that make and read a run folder: search, train, evaluate, report."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors


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
        help="genotype JSON, or zoo:NAME, the one cell of the folder; without it only the static network is trained, "
        "and scored",
    )  # fmt: skip
    evaluate = add(
        "evaluate",
        _evaluate,
        "score the network and the cell of a run folder on config.evaluate.split",
        "--workdir=runs/smoke --config.evaluate.split=test",
    )
    evaluate.add_argument(
        "--predictions", metavar="DIR",
        help="write the cell's predictions as PNG, with the ids that the config reads (Cityscapes: as for its "
        "evaluator, which scores them)",
    )  # fmt: skip
    evaluate.add_argument("--colors", action="store_true", help="--predictions in the colours of the classes")
    evaluate.add_argument("--model", metavar="DIR", help="score an exported folder, in place of --workdir")
    evaluate.add_argument(
        "--other-data", action="store_true",
        help="the config's data is not what the run was trained on, but has the same classes",
    )  # fmt: skip
    evaluate.add_argument("--per-sequence", action="store_true", help="print the scores of each sequence, too")
    for command in (search, train, evaluate):
        is_needed = command is not evaluate
        common.add_config(command, is_of_run=True)
        command.add_argument(
            "--workdir", metavar="DIR", required=is_needed, help="run folder; the same command resumes it"
        )
        common.add_compile_cache(command)
    for command in (search, train):
        common.add_processes(command)
    report = add("report", _report, "write one page about a run folder, or one that compares several", "runs/smoke")
    report.add_argument("runs", metavar="RUN", nargs="*", help="run folders, finished or not")
    report.add_argument("--workdir", metavar="DIR", help="run folder, the same as a RUN")
    report.add_argument(
        "--output", metavar="FILE.html",
        help="default: report.html in the folder, comparison.html in the first of several",
    )  # fmt: skip


def _search(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    from dvsnas_jax.core.processes import distributed
    from dvsnas_jax.evaluate import score_tables
    from dvsnas_jax.report import page
    from dvsnas_jax.search import pipeline
    from dvsnas_jax.studies import why

    folder = common.open_workdir(arguments.workdir)
    result = pipeline.run(config, folder)
    why.run(config, folder)
    if distributed.is_main():
        page.write(folder.path)
    print(score_tables.summary(result))


def _train(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    from dvsnas_jax.evaluate import evaluation, score_tables
    from dvsnas_jax.train import cell_training, require_labels, winners

    folder = common.open_workdir(arguments.workdir)
    is_scored = not arguments.genotype and not winners.has_cell(folder) and require_labels.is_scorable(config)
    made = cell_training.run(config, folder, arguments.genotype)
    share = evaluation.trained_time(config, folder) if arguments.genotype else None
    common.print_summary(made if share is None else {**made, "time_share": share})
    if is_scored:
        print(score_tables.summary(evaluation.run(config, folder)))


def _evaluate(arguments: argparse.Namespace) -> None:
    if (arguments.workdir is None) == (arguments.model is None):
        raise errors.UserError("evaluate: give one of --workdir (a run folder) and --model (an exported folder)")
    if arguments.predictions and (arguments.model or arguments.other_data):
        raise errors.UserError("--predictions: goes neither with --model nor with --other-data, leave these out")
    if arguments.colors and not arguments.predictions:
        raise errors.UserError("--colors: is a kind of predictions, give --predictions as well")
    common.existing(arguments.model or arguments.workdir, "--model" if arguments.model else "--workdir")
    config = common.load_config(arguments)
    from dvsnas_jax.evaluate import evaluation, score_tables, submission

    written = ""
    if arguments.model:
        result = evaluation.run_exported(config, arguments.model)
    elif arguments.predictions:
        folder = common.open_workdir(arguments.workdir)
        result, written = submission.run(config, folder, arguments.predictions, is_color=arguments.colors)
    else:
        folder = common.open_workdir(arguments.workdir)
        result = evaluation.run(config, folder, is_other_data=arguments.other_data)
    tables = [score_tables.summary(result), score_tables.classes(result)]
    if arguments.per_sequence:
        tables.append(score_tables.sequences(result))
    print("\n\n".join(tables) + (f"\n{written}" if written else ""))


def _report(arguments: argparse.Namespace) -> None:
    named = [("--workdir", arguments.workdir)] if arguments.workdir else []
    named += [("RUN", folder) for folder in arguments.runs]
    if not named:
        raise errors.UserError("report: needs a run folder, for example dvsnas report runs/smoke")
    folders = [common.existing(folder, name) for name, folder in named]
    from dvsnas_jax.report import page

    for path in page.write(*folders, output=arguments.output):
        print(f"written: {path}")
