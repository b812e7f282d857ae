"""The command that shows genotypes: show."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

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
    from dvsnas_jax.space import genotype, zoo
    from dvsnas_jax.space.drawing import draw, end

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
        whole, lines = end.Whole(member.end, is_propagating=member.mode == zoo.PROPAGATE), list[str]()
    else:
        whole, lines = _of_folder(pathlib.Path(arguments.genotype), genotype.digest(space, tokens))
    print(f"genotype {genotype.digest(space, tokens)}, inputs {', '.join(space.inputs)}")
    print("\n".join([draw.text(space, tokens, whole), *lines]))
    if output:
        output_files.make_folder(pathlib.Path(output).parent)
        draw.render(space, tokens, output, title=member.title if member else None, whole=whole)
        print(f"written: {output}")


def _of_folder(path: pathlib.Path, digest: str) -> tuple[Any, list[str]]:
    """What the run folder that a genotype's file lies in says of it: how the cell ends, and what its parts are worth.

    Elsewhere it is drawn as a cell of mode refine that ends as by default.
    """
    from dvsnas_jax.space.drawing import end

    whole, lines = end.Whole(), list[str]()
    if (path.parent / "config.json").is_file():
        from dvsnas_jax.report import run_files

        run = run_files.Run(path.parent, path.parent.name, path.parent)
        whole = run.whole(digest)
        if whole.worth:
            from dvsnas_jax.studies import why

            return whole, ["", why.text(run.ablations["worth"])]
        lines = ["", f"what each part is worth: dvsnas ablate --workdir={path.parent} --what=worth"]
    return whole, lines
