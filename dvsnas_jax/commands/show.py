"""The command that shows genotypes: show."""

from __future__ import annotations

import argparse
import pathlib

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import output_files


def register(add: common.Add) -> None:
    """Adds the command."""
    example = "runs/smoke/best_genotype.json --output=cell.svg"
    show = add("show", _show, "print a genotype as a graph and draw it", example)
    show.add_argument("genotype", metavar="GENOTYPE.json", help="or zoo:NAME, a hand-designed cell; zoo lists them all")
    show.add_argument("--output", metavar="FILE", help="picture, .svg or .png; without it only text is printed")


def _show(arguments: argparse.Namespace) -> None:
    from dvsnas_jax.space import draw, genotype, zoo

    if arguments.genotype == zoo.ALL:
        if arguments.output:
            example = next(iter(zoo.TABLE.values())).title
            raise errors.UserError(f"--output: draws one genotype; choose one, for example {example}")
        print(zoo.listing())
        return
    member = None
    if arguments.genotype.startswith(zoo.PREFIX):
        member = zoo.get(arguments.genotype)
        space, tokens = zoo.genotype(member)
    else:
        space, tokens = zoo.read(arguments.genotype, name="GENOTYPE.json")
    output = common.picture(arguments.output) if arguments.output else None
    if member is not None:
        print(zoo.describe(member))
    print(f"genotype {genotype.digest(space, tokens)}, inputs {', '.join(space.inputs)}")
    print(draw.text(space, tokens))
    if output:
        output_files.make_folder(pathlib.Path(output).parent)
        draw.render(space, tokens, output, title=member.title if member else None)
        print(f"written: {output}")
