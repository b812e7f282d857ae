"""What the package says to its users, read from its source: the messages of `errors.UserError` and all other texts."""

import argparse
import ast
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import overrides

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dvsnas_jax"
ANY = "\N{HORIZONTAL ELLIPSIS}"
"""Stands for a part that only a run knows."""


class Message(NamedTuple):
    """A text in the source."""

    place: str
    text: str


@functools.cache
def _trees() -> dict[pathlib.Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _constants(tree: ast.Module) -> dict[str, str]:
    """Texts that a module gives a name, at its top level or in a function."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            text = _text(node.value, {})
            if text.strip(ANY):
                found[node.targets[0].id] = text
    return found


def _text(node: ast.AST, names: dict[str, str]) -> str:
    """An expression as the text that it makes, `ANY` for what is not in the source; of alternatives, all of them."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, names)
    if isinstance(node, ast.Name):
        return names.get(node.id, ANY)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body, names)}{ANY}{_text(node.orelse, names)}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, names) + _text(node.right, names)
    return ANY


@functools.cache
def refusals() -> tuple[Message, ...]:
    """Every message of `errors.UserError`."""
    return tuple(_refusals())


def _refusals() -> Iterator[Message]:
    for path, tree in _trees().items():
        names = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "UserError" and node.args:
                yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", _text(node.args[0], names))


@functools.cache
def texts() -> tuple[Message, ...]:
    """Every text of the package but its docstrings."""
    return tuple(_texts())


def _texts() -> Iterator[Message]:
    for path, tree in _trees().items():
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            if isinstance(node.body[0], ast.Expr)
        }
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        bare |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        left_out, name = docstrings | bare, path.relative_to(ROOT)
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield Message(f"{name}:{node.lineno}", _text(node, {}))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
                yield Message(f"{name}:{node.lineno}", node.value)


@functools.cache
def commands() -> dict[str, tuple[str, ...]]:
    """Every command, `data check` too, with its options."""

    def walk(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield words, tuple(option for action in parser._actions for option in action.option_strings)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    yield from walk(inner, f"{words} {name}".strip())

    return dict(walk(cli._parser(), ""))


@functools.cache
def keys() -> frozenset[str]:
    """Every config key."""
    return frozenset(key for key, _ in overrides.leaves(config_lib.defaults()))


@functools.cache
def sections() -> frozenset[str]:
    """Every section of the config."""
    return frozenset(key.rsplit(".", depth)[0] for key in keys() for depth in (1, 2) if "." in key)


@functools.cache
def options() -> frozenset[str]:
    """The options of all commands."""
    return frozenset(option for names in commands().values() for option in names)


@functools.cache
def _key_pattern() -> re.Pattern[str]:
    first = "|".join(sorted({key.split(".")[0] for key in keys() if "." in key}))
    return re.compile(rf"(?<![\w./\\-])(?:--config\.|config\.)?((?:{first})\.[a-z][\w.]*+)(?![({ANY}])")


def named_keys(text: str) -> list[str]:
    """The config keys that a text names."""
    found = [name.rstrip(".") for name in _key_pattern().findall(text)]
    files = r"\.(json|jsonl|pkl|html|txt|md|png|npz|svg|py|jax|gif|mp4)$"
    return [name for name in found if not re.search(files, name)]


def named_flags(text: str) -> list[str]:
    """The options that a text names."""
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w_.])", text)


def named_commands(text: str) -> list[str]:
    """The commands that a text names in backquotes or after the word `run` or `example`."""
    return re.findall(r"(?:`|run |example |start )dvsnas ([a-z][a-z-]+(?: [a-z][a-z-]+)?)", text)
