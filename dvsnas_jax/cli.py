"""The command `dvsnas`. What a command needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from dvsnas_jax.commands import bench, common, data, doctor, export, nets, reproduce, runs, segment, show, studies
from dvsnas_jax.core import allocator, errors
from dvsnas_jax.core.processes import distributed

_PREFIX = "--config."
_NO_MEMORY = "RESOURCE_EXHAUSTED"
"""In what XLA raises, a RuntimeError, where a device lacks memory."""
_LESS_MEMORY = (
    "lower the sizes (data.height and data.width, --height and --width, net.width, the batches), or use another machine"
)

_OF_THE_SYSTEM = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path whose links end",
    errno.EACCES: "change its permissions, or give another path",
    errno.EROFS: "give a path that can be written",
    errno.ENOSPC: "free some space and start the same command again",
    errno.EDQUOT: "free some space and start the same command again",
}
"""What no check foresees, for example a disk that gets full: one line, wherever it is met."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, from the words after `dvsnas`; None: those of the process.

    Returns:
      0 done; 1 `doctor` found something broken; 2 the user's input is wrong; 75 stopped after saving, or another one of
      several processes is lost; anything else raises (the process then ends with 1).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return distributed.guard(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    """Runs one command and tells what went wrong."""
    try:
        words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = _parse(words)
        if overrides and not hasattr(arguments, "config"):
            given = f"{_PREFIX}{next(iter(overrides))}"
            raise errors.UserError(f"{given}: the command {arguments.command} takes no config; leave it out")
        arguments.overrides = overrides
        _prepare_jax(arguments, is_program=argv is None)
        _join(arguments)
        code = arguments.run_fn(arguments)
    except errors.UserError as error:
        print(f"dvsnas: error: {' '.join(str(error).split())}", file=sys.stderr)
        return errors.EXIT_USER
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _NO_MEMORY not in str(error):
            raise
        print(f"dvsnas: error: memory: {_shown(error)}; {_LESS_MEMORY}", file=sys.stderr)
        return errors.EXIT_USER
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM or error.filename is None:
            raise
        print(f"dvsnas: error: {error.filename}: {error.strerror}; {_OF_THE_SYSTEM[error.errno]}", file=sys.stderr)
        return errors.EXIT_USER
    except errors.Stopped as stopped:
        if distributed.is_main():
            print(f"dvsnas: stopped ({stopped}), {stopped.advice}", file=sys.stderr)
        return errors.EXIT_STOPPED
    except KeyboardInterrupt:
        print("dvsnas: interrupted before the state was saved; the last checkpoint is kept", file=sys.stderr)
        return errors.EXIT_FAULT
    except BrokenPipeError:  # the reader of our output has gone, for example `dvsnas show x.json | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_FAULT
    return errors.EXIT_DONE if code is None else code


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the words: the others, and dotted key -> text.

    A key without a value is a UserError.
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


def _parse(words: Sequence[str]) -> Namespace:
    """The words as arguments.

    Raises:
      UserError: a word that no option or argument takes (with the nearest option), or an empty one: what
        `--workdir=$UNSET` becomes would otherwise be the current folder.
    """
    for word in words:
        flag, separator, value = word.partition("=")
        if not word or (separator and not value and flag.startswith("--")):
            raise errors.UserError(f"{flag or 'arguments'}: an empty value; give one, or leave it out")
    parser = _parser()
    arguments, unknown = parser.parse_known_args([_at_home(word) for word in words])
    if unknown:
        path = [arguments.command, *([arguments.action] if hasattr(arguments, "action") else [])]
        flag = unknown[0].split("=")[0]
        if flag.lower().lstrip("-").startswith("config."):
            close = [_PREFIX + flag.split(".", 1)[1]]
        else:
            close = difflib.get_close_matches(flag, _options(parser, path), n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}? " if close else "leave them out "
        see = f"(see dvsnas {' '.join(path)} --help)"
        raise errors.UserError(f"unrecognized arguments: {' '.join(unknown)}; {hint}{see}")
    return arguments


def _options(parser: argparse.ArgumentParser, path: Sequence[str]) -> list[str]:
    """The options of a command."""
    for name in path:
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[name]
    return [option for action in parser._actions for option in action.option_strings]


def _at_home(word: str) -> str:
    """A word with the home folder in place of `~/`, which no shell replaces inside of `--workdir=~/runs`."""
    flag, separator, value = word.partition("=")
    if flag.startswith("--") and value.startswith("~/"):
        return flag + separator + os.path.expanduser(value)
    return word


def _shown(error: BaseException) -> str:
    """The first sentence of what is said: an accelerator goes on with a list of all it holds."""
    first = " ".join(str(error).removeprefix(f"{_NO_MEMORY}: ").partition("\n")[0].split())
    return first.rstrip(".")[:300] or "there is not enough"


def _parser() -> common.Parser:
    """All commands with their options."""
    parser = common.Parser(
        prog="dvsnas", description="Search for dynamic cells for video segmentation.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=common.Parser)
    for part in (runs, segment, export, studies, reproduce, show, bench, data, nets, doctor):
        part.register(common.adder(commands))
    return parser


def _prepare_jax(arguments: Namespace, is_program: bool) -> None:
    """Before JAX is imported, for a command that computes: memory is kept, and compiled programs between runs.
    `is_program`: the command is all that this process does, which may start once more for large pages.

    An existing JAX_COMPILATION_CACHE_DIR is respected.
    """
    if not hasattr(arguments, "no_compile_cache"):
        return
    if is_program:
        allocator.restart_with_large_pages()
    allocator.keep_freed_memory()
    if arguments.no_compile_cache:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "dvsnas_jax", "xla"))


def _join(arguments: Namespace) -> None:
    """Joins the other processes of a run, where the command can have several and a flag or a launcher says so."""
    if not hasattr(arguments, "coordinator"):
        return
    launch = distributed.detect(
        os.environ,
        coordinator=arguments.coordinator,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
    )
    if launch is not None:
        distributed.start(launch, distributed.start_seconds(os.environ, arguments.start_timeout))
        from dvsnas_jax.core import mesh

        mesh.connect(mesh.make())
        if not distributed.is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
