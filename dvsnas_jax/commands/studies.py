"""The commands that set cells, tokens, strategies and rewards side by side: compare, ablate, compare-strategies,
compare-signals."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import output_files

PACKAGED = "packaged"
SEARCHED = "ppo,random"


def register(add: common.Add) -> None:
    """Adds the commands."""
    _add_compare(add)
    _add_ablate(add)
    _add_simplify(add)
    _add_strategies(add)
    _add_signals(add)


def _add_simplify(add: common.Add) -> None:
    text = "remove from a run's cell what changes none of its outputs, or is worth nothing within its noise"
    simplify = add("simplify", _simplify, text, "--workdir=runs/smoke --within-noise")
    simplify.add_argument("--workdir", metavar="DIR", required=True, help="folder of a run with a trained cell")
    simplify.add_argument(
        "--within-noise", action="store_true",
        help="remove as well what loses no more than its noise on the meta-validation clips, and say what it loses",
    )  # fmt: skip
    common.add_compile_cache(simplify)


def _simplify(arguments: argparse.Namespace) -> None:
    common.existing(arguments.workdir, "--workdir")
    from dvsnas_jax.studies import why
    from dvsnas_jax.train import claims

    folder = common.open_workdir(arguments.workdir)
    with folder.hold():
        config = claims.config_of(folder)
        record, is_other = why.simplify(config, folder, is_measured=arguments.within_noise)
    print("\n".join(why.told(record)))
    if is_other:
        print(f"written: {folder.path / 'best_genotype.json'}; evaluate it: dvsnas evaluate --workdir={folder.path}")


def _add_compare(add: common.Add) -> None:
    compare = add(
        "compare", _compare,
        "train and evaluate the hand-designed cells and given genotypes on one static network, with several seeds",
        "--config=configs/smoke.py --workdir=runs/zoo --genotypes=zoo,runs/smoke/best_genotype.json --seeds=3",
    )  # fmt: skip
    common.add_config(compare, is_of_run=True)
    compare.add_argument(
        "--workdir", metavar="DIR", required=True,
        help="run folder; the same command resumes it, more genotypes or seeds are added to its table",
    )  # fmt: skip
    compare.add_argument(
        "--genotypes", metavar="A,B", required=True,
        help="zoo:NAME, genotype JSON files, or zoo for all hand-designed cells of config.space.mode",
    )  # fmt: skip
    compare.add_argument("--seeds", type=int, metavar="N", default=3, help="cells trained of each genotype; default: 3")
    common.add_compile_cache(compare)


def _add_ablate(add: common.Add) -> None:
    text = "measure what each token of a cell, or each operation of a search, contributes"
    ablate = add("ablate", _ablate, text, "--workdir=runs/smoke --what=replace")
    common.add_config(ablate, is_of_run=True)
    ablate.add_argument(
        "--workdir", metavar="DIR", required=True, help="folder of a finished search; retrain: of a trained cell"
    )
    ablate.add_argument(
        "--what", metavar="WHAT", default="replace",
        help="replace (default): one token changed, scored as in the search (its shared weights; mode scratch: each "
        "trained alone); leave-one-out: a search without each operation; retrain: one token changed, trained from "
        "scratch as a static graph; worth: each input, layer and part of the end of the trained cell switched off",
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


def _add_strategies(add: common.Add) -> None:
    compare = add(
        "compare-strategies",
        _compare_strategies,
        "compare search strategies on equal budgets, on a table of rewards or by real searches",
        "--table --strategies=ppo,random --seeds=200 --budget=0.05 --output=runs/strategies",
    )
    common.add_config(compare, is_of_run=True)
    compare.add_argument(
        "--table", nargs="?", const=PACKAGED, metavar="FILE",
        help="replay against a table of rewards; alone: the table of the package",
    )  # fmt: skip
    text = "replay against made-up rewards in the config's space, to choose settings on"
    compare.add_argument("--made-up", action="store_true", help=text)
    compare.add_argument(
        "--tau", type=float, metavar="X", default=0.4,
        help="of made-up rewards: Kendall's rank correlation with the quality of a cell (default: 0.4)",
    )  # fmt: skip
    compare.add_argument("--make-table", action="store_true", help="train all cells of the config's space into a table")
    compare.add_argument("--workdir", metavar="DIR", help="run folder of real searches and of --make-table")
    compare.add_argument(
        "--strategies", metavar="NAMES",
        help=f"separated by commas (default: all that learn from rewards on a table, else {SEARCHED})",
    )  # fmt: skip
    compare.add_argument(
        "--seeds", type=int, metavar="N",
        help="runs of each strategy (default: 200 on a table, 24 on made-up rewards, else 3); with --make-table: "
        "trainings of each cell (2)",
    )  # fmt: skip
    compare.add_argument(
        "--best-seeds", type=int, metavar="N",
        help="with --make-table: trainings of each cell of the better half; default: as of the others",
    )  # fmt: skip
    compare.add_argument(
        "--budget", type=float, metavar="X",
        help="evaluations of a replay (default on made-up rewards: those of the config's search); on a table, below 1: "
        "as a share of its cells (default: 0.05)",
    )  # fmt: skip
    compare.add_argument(
        "--per-step", type=int, metavar="N",
        help="of a replay: genotypes between updates (default: 3; on made-up rewards: those of the config's search)",
    )  # fmt: skip
    compare.add_argument(
        "--training-seeds", metavar="N,...", help="trainings of the table to use, separated by commas; default: all"
    )
    compare.add_argument(
        "--cached", action="store_true", help="a cell evaluated before is answered from the log and costs nothing"
    )
    compare.add_argument("--top", type=int, metavar="N", default=5, help="derived cells of each search to retrain")
    compare.add_argument(
        "--correlate", type=int, metavar="N", default=30,
        help="genotypes behind the rank correlation of rewards with stand-alone quality, 0 = none",
    )  # fmt: skip
    compare.add_argument(
        "--trainings", type=int, metavar="N", default=2, help="of each cell that is retrained or trained alone"
    )
    compare.add_argument("--output", metavar="DIR", help="folder of the report; default: the run folder, or none")
    common.add_compile_cache(compare)


def _add_signals(add: common.Add) -> None:
    compare = add(
        "compare-signals", _compare_signals,
        "how well the rewards that a search may use order cells (Kendall's tau), and what they cost in seconds",
        "--config=configs/scratch.py --workdir=runs/signals",
    )  # fmt: skip
    common.add_config(compare, is_of_run=True)
    text = "run folder; the same command resumes it"
    compare.add_argument("--workdir", metavar="DIR", required=True, help=text)
    text = "uniformly drawn cells of distinct forms"
    compare.add_argument("--genotypes", type=int, metavar="N", default=40, help=text)
    text = "of each cell to the end, behind what it is worth"
    compare.add_argument("--trainings", type=int, metavar="N", default=3, help=text)
    text = "steps of a cell alone from the weights that all share, after which it is scored"
    compare.add_argument("--shared-rungs", type=_rungs, metavar="N,...", default=(10, 30, 100), help=text)
    text = "likewise from the same start; rungs of the halving"
    compare.add_argument("--alone-rungs", type=_rungs, metavar="N,...", default=(30, 100, 200), help=text)
    compare.add_argument("--output", metavar="DIR", help="folder of the report; default: the run folder")
    common.add_compile_cache(compare)


def _rungs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs numbers of steps such as 10,30,100, got {text!r}") from None


def _compare_signals(arguments: argparse.Namespace) -> None:
    if arguments.output:
        output_files.check_folder(arguments.output)
    config = common.load_config(arguments)
    from dvsnas_jax.studies import signals

    folder, output = common.open_workdir(arguments.workdir), _output(arguments)
    rungs = {"shared_rungs": arguments.shared_rungs, "alone_rungs": arguments.alone_rungs}
    budget = signals.Budget(arguments.genotypes, arguments.trainings, **rungs)
    _print(signals.run(config, folder, budget, output=output))


def _print(report: Any) -> None:
    print(report.text)
    for path in report.paths:
        print(f"written: {path}")


def _compare(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    from dvsnas_jax.studies import compare

    folder = common.open_workdir(arguments.workdir)
    _print(compare.run(config, folder, arguments.genotypes.split(","), num_seeds=arguments.seeds))


def _ablate(arguments: argparse.Namespace) -> None:
    common.existing(arguments.workdir, "--workdir")
    config = common.load_config(arguments)
    from dvsnas_jax.studies import ablate

    folder, words = common.open_workdir(arguments.workdir), ("what", "genotype", "limit")
    options = {name: getattr(arguments, name) for name in words}
    _print(ablate.run(config, folder, **options, num_steps=arguments.steps))


def _compare_strategies(arguments: argparse.Namespace) -> None:
    if arguments.output:
        output_files.check_folder(arguments.output)
    if arguments.seeds is not None and arguments.seeds < 1:
        raise errors.UserError(f"--seeds: must be at least 1, got {arguments.seeds}")
    if arguments.table and arguments.make_table:
        raise errors.UserError("--make-table: makes a table, --table reads one; leave out one of them")
    if arguments.made_up and (arguments.table or arguments.make_table):
        raise errors.UserError("--made-up: replays without a table; leave out --table and --make-table")
    if arguments.table or arguments.made_up:
        _print(_replay(arguments))
        return
    if not arguments.workdir:
        raise errors.UserError("--workdir: is needed, or --table to replay against the table of the package")
    if arguments.make_table:
        _make_table(arguments)
    else:
        _print(_search(arguments))


def _names(arguments: argparse.Namespace) -> tuple[str, ...]:
    words = arguments.strategies
    if words is None:
        words = SEARCHED
        if arguments.table:
            from dvsnas_jax.controller import strategies

            words = ",".join(name for name, record in strategies.TABLE.items() if not record.is_relaxed)
    return tuple(name for name in words.split(",") if name)


def _output(arguments: argparse.Namespace) -> pathlib.Path | None:
    return pathlib.Path(arguments.output) if arguments.output else None


def _replay(arguments: argparse.Namespace) -> Any:
    from dvsnas_jax.studies import compare_strategies, table

    options = compare_strategies.Options(
        config_path=arguments.config, overrides=arguments.overrides, budget=arguments.budget,
        num_runs=arguments.seeds, per_step=arguments.per_step, is_cached=arguments.cached,
    )  # fmt: skip
    names, output = _names(arguments), _output(arguments)
    if arguments.made_up:
        return compare_strategies.on_made_up(names, options, tau=arguments.tau, output=output)
    rewards = table.load(table.PACKAGED if arguments.table == PACKAGED else pathlib.Path(arguments.table))
    seeds = arguments.training_seeds
    return compare_strategies.on_table(rewards, names, options, training_seeds=seeds, output=output)


def _make_table(arguments: argparse.Namespace) -> None:
    from dvsnas_jax.studies import table, table_maker

    num_seeds, num_best_seeds = arguments.seeds or 2, arguments.best_seeds
    words = [f"--config={arguments.config}"] if arguments.config else []
    words += [f"--workdir={arguments.workdir}", f"--seeds={num_seeds}"]
    words += [f"--best-seeds={num_best_seeds}"] if num_best_seeds else []
    command = f"dvsnas compare-strategies --make-table {' '.join(words)}"
    folder = common.open_workdir(arguments.workdir)
    config = common.load_config(arguments)
    made = table_maker.run(config, folder, num_seeds=num_seeds, num_best_seeds=num_best_seeds, command=command)
    path = _output(arguments) or folder.path
    table.save(made, path / "table.json")
    print(f"{made.num_cells} cells, {made.num_trainings.sum()} trainings")
    print(f"written: {path / 'table.json'}")


def _search(arguments: argparse.Namespace) -> Any:
    from dvsnas_jax.studies import strategies_search

    config, folder = common.load_config(arguments), common.open_workdir(arguments.workdir)
    num_seeds = 3 if arguments.seeds is None else arguments.seeds
    budget = strategies_search.Budget(num_seeds, arguments.top, arguments.correlate, arguments.trainings)
    return strategies_search.run(config, folder, _names(arguments), budget, output=_output(arguments))
