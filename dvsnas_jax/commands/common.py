"""What all commands share: the parser, the options, the checks of paths, the printing."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_text, output_files

if TYPE_CHECKING:
    import ml_collections

PICTURES = (".svg", ".png")
RunFn = Callable[[argparse.Namespace], int | None]
"""A command; it returns an exit code, None where it is done."""
Add = Callable[[str, RunFn | None, str, str], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(f"{message} (see {self.prog} --help)")


def adder(commands: Any, parent: str = "") -> Add:
    """Gives the function that adds one command: (name, function, help text, example of its words).

    `commands` is what `add_subparsers` gave, `parent` the words before the command, with a blank at the end.
    """

    def add(name: str, run_fn: RunFn | None, text: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False,
            epilog=f"example: dvsnas {parent}{name} {example}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if run_fn is not None:
            command.set_defaults(run_fn=run_fn)
        return command

    return add


def add_config(command: argparse.ArgumentParser, *, is_required: bool = False, is_of_run: bool = False) -> None:
    """Adds `--config`; the overrides are taken out of the words before the parser sees them.

    `is_of_run`: where it is not given, it is the one that the folder `--workdir` holds.
    """
    default = " (default: that of the run in --workdir)" if is_of_run else ""
    command.add_argument(
        "--config", metavar="FILE", required=is_required,
        help=f"Python file with get_config(){default}; change a key by --config.search.steps=200",
    )  # fmt: skip
    command.set_defaults(is_config_of_run=is_of_run)


def add_compile_cache(command: argparse.ArgumentParser) -> None:
    """Adds `--no-compile-cache`; a command without it compiles nothing."""
    command.add_argument("--no-compile-cache", action="store_true", help="do not keep compiled programs on disk")


def programs_folder() -> pathlib.Path | None:
    """Where traced programs are kept: beside the compile cache on this machine, None where there is none."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    is_off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("false", "0")
    return None if is_off or not cache or "://" in cache else pathlib.Path(cache) / "programs"


def add_processes(command: argparse.ArgumentParser) -> None:
    """Adds the flags of a run of several processes; what a launcher may set: `core.processes.distributed.detect`."""
    group = command.add_argument_group("several processes", "each host starts the same command; see launch/")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 (or DVSNAS_COORDINATOR)")
    group.add_argument("--num-processes", metavar="N", type=int, help="of the run (or DVSNAS_NUM_PROCESSES)")
    group.add_argument("--process-id", metavar="I", type=int, help="of this one, from 0 (or DVSNAS_PROCESS_ID)")
    group.add_argument(
        "--start-timeout",
        metavar="SECONDS",
        type=float,
        help="to wait for the others when the run starts, 300 by default (or DVSNAS_START_TIMEOUT); "
        "who is missing is said after 10 s",
    )


def load_config(arguments: argparse.Namespace) -> ml_collections.ConfigDict:
    """The configuration that the words of a command describe: of a file, or that of the run folder, and changes to it.

    A UserError where it is bad, or there is none.
    """
    from dvsnas_jax.core import config

    if arguments.config or not arguments.is_config_of_run:
        return config.load(arguments.config, arguments.overrides)
    folder = open_workdir(arguments.workdir) if arguments.workdir else None
    if folder is None or not folder.is_claimed:
        reason = "" if folder is None else f", as {folder.path} holds no run (no config.json)"
        raise errors.UserError(
            f"--config: is needed{reason}; give a Python file with get_config(), for example --config=configs/smoke.py"
        )
    return config.changed(folder.config(), arguments.overrides)


def open_workdir(path: str) -> Any:
    """The run folder at a path, see `core.files.workdir`."""
    from dvsnas_jax.core.files import workdir

    return workdir.Workdir(path)


def existing(path: str, what: str) -> pathlib.Path:
    """A file or folder that has to be there, else a UserError."""
    try:
        os.stat(path)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "does not exist" if is_missing else f"cannot be read ({error.strerror})"
        raise errors.UserError(f"{what}: {path} {problem}; give one that is there") from None
    return pathlib.Path(path)


def picture(path: str, suffixes: Sequence[str] = PICTURES) -> str:
    """A path that a picture can be written to, once its folder is made; a UserError for another type or place."""
    output_files.check_file(path, suffixes=suffixes)
    return path


def print_summary(result: Any) -> None:
    """Prints what a command returned, one value a line."""
    if isinstance(result, dict):
        for key, value in result.items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{key}: {json_text.dumps(shown) if isinstance(shown, dict | list) else shown}")
