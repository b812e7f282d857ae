"""The commands that need no run folder: show, bench."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors


def register(add: common.Add) -> None:
    """Adds the commands."""
    show = add(
        "show", _show, "print a genotype as a graph and draw it", "runs/smoke/best_genotype.json --output=cell.svg"
    )
    show.add_argument("genotype", metavar="GENOTYPE.json")
    show.add_argument("--output", metavar="FILE", help="picture, .svg or .png; without it only text is printed")
    bench = add("bench", _bench, "measure the speed of a part", "controller")
    bench.add_argument("part", choices=("controller", "cell"))
    common.add_compile_cache(bench)


def _show(arguments: argparse.Namespace) -> None:
    from dvsnas_jax.space import draw, genotype

    path = common.existing(arguments.genotype, "GENOTYPE.json")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{path}: cannot be read as text: {error}") from None
    space, tokens = genotype.from_json(text, where=str(path))
    print(f"genotype {genotype.digest(space, tokens)}, inputs {', '.join(space.inputs)}")
    print(draw.text(space, tokens))
    if arguments.output:
        output = common.picture(arguments.output)
        draw.render(space, tokens, output)
        print(f"written: {output}")


def _bench(arguments: argparse.Namespace) -> None:
    if arguments.part == "controller":
        from dvsnas_jax.controller import bandit

        common.print_summary(bandit.benchmark())
    else:
        from dvsnas_jax.search import bench

        common.print_summary(bench.cell())
