"""The command that sets hand-designed and searched cells side by side: compare."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common


def register(add: common.Add) -> None:
    """Adds the command."""
    compare = add(
        "compare",
        _compare,
        "train and evaluate the hand-designed cells and given genotypes on one static network, with several seeds",
        "--config=configs/smoke.py --workdir=runs/zoo --genotypes=zoo,runs/smoke/best_genotype.json --seeds=3",
    )
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


def _compare(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    from dvsnas_jax.studies import compare, compare_report

    folder = common.open_workdir(arguments.workdir)
    result = compare.run(config, folder, arguments.genotypes.split(","), num_seeds=arguments.seeds)
    print(compare_report.table(result))
    for name in (compare.RESULT, compare.MARKDOWN, compare.PICTURE):
        print(f"written: {folder.path / name}")
