"""The command `dvsnas`. What a command needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dvsnas_jax.core import errors

if TYPE_CHECKING:
    import ml_collections

_PREFIX = "--config."
_PICTURES = (".svg", ".png")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `dvsnas`; None: those of the process.

    Returns:
      0 done; 2 the user's input is wrong; 75 stopped after saving; anything else raises (the process then ends with 1).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = _parser().parse_args(words)
        if overrides and not hasattr(arguments, "config"):
            raise errors.UserError(f"{_PREFIX}{next(iter(overrides))}: the command {arguments.command} takes no config")
        arguments.overrides = overrides
        _set_compile_cache(arguments)
        arguments.run_fn(arguments)
    except errors.UserError as error:
        print(f"dvsnas: error: {' '.join(str(error).split())}", file=sys.stderr)
        return errors.EXIT_USER
    except errors.Stopped as stopped:
        print(f"dvsnas: stopped ({stopped}), state saved; start the same command again to go on", file=sys.stderr)
        return errors.EXIT_STOPPED
    except KeyboardInterrupt:
        print("dvsnas: interrupted before the state was saved; the last checkpoint is kept", file=sys.stderr)
        return errors.EXIT_FAULT
    except BrokenPipeError:  # the reader of our output has gone, for example `dvsnas show x.json | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_FAULT
    return errors.EXIT_DONE


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the words.

    Returns:
      The other words, and dotted key -> text.

    Raises:
      UserError: a key without a value.
    """
    words: list[str] = []
    overrides: dict[str, str] = {}
    pending = list(argv)
    while pending:
        word = pending.pop(0)
        if not word.startswith(_PREFIX):
            words.append(word)
            continue
        key, separator, text = word[len(_PREFIX) :].partition("=")
        if not separator:
            if not pending or pending[0].startswith("--"):
                raise errors.UserError(f"{word}: needs a value, {word}=VALUE")
            text = pending.pop(0)
        overrides[key] = text
    return words, overrides


def _parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = _Parser(prog="dvsnas", description="Search for dynamic cells for video segmentation.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    add = _adder(commands)
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
        "--genotype", metavar="FILE", help="genotype JSON; without it only the static network is trained"
    )
    evaluate = add(
        "evaluate",
        _evaluate,
        "score the network and the cell of a run folder on config.evaluate.split",
        "--config=configs/smoke.py --workdir=runs/smoke --config.evaluate.split=test",
    )
    for command in (search, train, evaluate):
        _add_config(command, is_required=True)
        command.add_argument("--workdir", metavar="DIR", required=True, help="run folder; the same command resumes it")
        command.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs on disk")
    show = add(
        "show", _show, "print a genotype as a graph and draw it", "runs/smoke/best_genotype.json --output=cell.svg"
    )
    show.add_argument("genotype", metavar="GENOTYPE.json")
    show.add_argument("--output", metavar="FILE", help="picture, .svg or .png; without it only text is printed")
    data = add("data", None, "look at a dataset", "preview --config=configs/smoke.py --output=preview.png")
    preview = _adder(data.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser))(
        "preview", _preview, "draw frames and labels", "--config=configs/smoke.py --output=preview.png", parent="data "
    )
    _add_config(preview, is_required=False)
    preview.add_argument("--output", metavar="FILE", required=True, help="picture, .png")
    report = add("report", _report, "write the figures and report.html of a run folder", "--workdir=runs/smoke")
    report.add_argument("--workdir", metavar="DIR", required=True, help="run folder")
    bench = add("bench", _bench, "measure the speed of a part", "controller")
    bench.add_argument("part", choices=("controller", "cell"))
    bench.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs on disk")
    return parser


def _adder(commands: Any) -> Callable[..., argparse.ArgumentParser]:
    """Gives the function that adds one command with its example."""

    def add(
        name: str, run_fn: Callable[..., None] | None, text: str, example: str, parent: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False,
            epilog=f"example: dvsnas {parent}{name} {example}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if run_fn is not None:
            command.set_defaults(run_fn=run_fn)
        return command

    return add


def _add_config(command: argparse.ArgumentParser, *, is_required: bool) -> None:
    """Adds `--config`; the overrides are taken out of the words before the parser sees them."""
    command.add_argument(
        "--config", metavar="FILE", required=is_required,
        help="Python file with get_config(); change a key by --config.search.steps=200",
    )  # fmt: skip


def _set_compile_cache(arguments: argparse.Namespace) -> None:
    """Lets JAX keep compiled programs between runs; an existing JAX_COMPILATION_CACHE_DIR is respected."""
    if not hasattr(arguments, "no_compile_cache"):
        return
    if arguments.no_compile_cache:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "dvsnas_jax", "xla"))


def _load(arguments: argparse.Namespace) -> ml_collections.ConfigDict:
    from dvsnas_jax.core import config

    return config.load(arguments.config, arguments.overrides)


def _workdir(path: str) -> Any:
    from dvsnas_jax.core import workdir

    return workdir.Workdir(path)


def _existing(path: str, what: str) -> pathlib.Path:
    """A file or folder that has to be there.

    Raises:
      UserError: it is not.
    """
    found = pathlib.Path(path)
    if not found.exists():
        raise errors.UserError(f"{what}: {path} does not exist")
    return found


def _picture(path: str, suffixes: Sequence[str] = _PICTURES) -> str:
    """A path that a picture can be written to; its folder is made.

    Raises:
      UserError: another file type, or the folder cannot be made.
    """
    target = pathlib.Path(path)
    if target.suffix.lower() not in suffixes:
        raise errors.UserError(f"--output: {path} must end in {' or '.join(suffixes)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(f"--output: cannot make the folder {target.parent}: {error.strerror}") from None
    return path


def _print_summary(result: Any) -> None:
    """Prints what a command returned, one value a line."""
    if isinstance(result, dict):
        for key, value in result.items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{key}: {json.dumps(shown) if isinstance(shown, dict | list) else shown}")


def _search(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    from dvsnas_jax.run import evaluate
    from dvsnas_jax.search import pipeline

    print(evaluate.summary(pipeline.run(config, _workdir(arguments.workdir))))


def _train(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    if arguments.genotype:
        _existing(arguments.genotype, "--genotype")
    from dvsnas_jax.run import train

    _print_summary(train.run(config, _workdir(arguments.workdir), arguments.genotype))


def _evaluate(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    _existing(arguments.workdir, "--workdir")
    from dvsnas_jax.run import evaluate

    print(evaluate.summary(evaluate.run(config, _workdir(arguments.workdir))))


def _show(arguments: argparse.Namespace) -> None:
    from dvsnas_jax.space import draw, genotype

    path = _existing(arguments.genotype, "GENOTYPE.json")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{path}: cannot be read as text: {error}") from None
    space, tokens = genotype.from_json(text, where=str(path))
    print(f"genotype {genotype.digest(space, tokens)}, inputs {', '.join(space.inputs)}")
    print(draw.text(space, tokens))
    if arguments.output:
        output = _picture(arguments.output)
        draw.render(space, tokens, output)
        print(f"written: {output}")


def _preview(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    output = _picture(arguments.output, (".png",))
    from dvsnas_jax.data import preview

    preview.save(config.data, output)
    print(f"written: {output}")


def _report(arguments: argparse.Namespace) -> None:
    _existing(arguments.workdir, "--workdir")
    from dvsnas_jax.run import report

    for path in report.write(arguments.workdir):
        print(f"written: {path}")


def _bench(arguments: argparse.Namespace) -> None:
    if arguments.part == "controller":
        from dvsnas_jax.controller import bandit

        _print_summary(bandit.benchmark())
    else:
        from dvsnas_jax.search import bench

        _print_summary(bench.cell())
