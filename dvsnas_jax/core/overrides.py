"""Changes to a configuration: from a Python file and from `--config.a.b=value`, checked against the defaults."""

from __future__ import annotations

import ast
import difflib
import math
import pathlib
import runpy
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from dvsnas_jax.core import errors


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, in the order of definition."""
    for key in config:
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def apply_file(config: ml_collections.ConfigDict, path: str) -> None:
    """Changes `config` in place by what `get_config()` of a Python file returns.

    Args:
      config: the defaults.
      path: of the file, or the name of one in the folder `configs`.

    Raises:
      UserError: no such file, an error in it (with its line), an unknown key or a value of the wrong type.
    """
    found = find_file(path)
    result = _execute(found)
    if not isinstance(result, ml_collections.ConfigDict | dict):
        raise errors.UserError(f"{found}: get_config() must return a ConfigDict, it returned {type(result).__name__}")
    apply_values(config, result, str(found))


def apply_values(config: ml_collections.ConfigDict, values: Mapping[str, Any], where: str) -> None:
    """Changes `config` in place by the leaves of nested mappings.

    Raises:
      UserError: an unknown key or a value of the wrong type; `where` is named.
    """
    for key, value in leaves(values):
        _assign(config, key, value, where=where, is_text=False)


def apply_texts(config: ml_collections.ConfigDict, texts: Mapping[str, str]) -> None:
    """Changes `config` in place by values given as text, `{"search.steps": "200"}`.

    Raises:
      UserError: an unknown key (with the nearest known one) or a text that is no value of the default's type.
    """
    for key, text in texts.items():
        _assign(config, key, text, where=f"--config.{key}", is_text=True)


def find_file(path: str) -> pathlib.Path:
    """The file itself, or `configs/<path>.py`.

    Raises:
      UserError: neither exists.
    """
    given = pathlib.Path(path)
    if given.is_file():
        return given
    named = pathlib.Path("configs") / f"{path}.py"
    if named.is_file():
        return named
    hint = ", ".join(str(p) for p in sorted(pathlib.Path("configs").glob("*.py"))) or "none here"
    raise errors.UserError(f"--config: no such file: {path} (files in the folder configs: {hint})")


def _execute(path: pathlib.Path) -> Any:
    """Runs the file and its `get_config()`; any error in it becomes one line with the file's line."""
    try:
        names = runpy.run_path(str(path))
        if not callable(names.get("get_config")):
            raise errors.UserError(f"{path}: defines no function get_config(); see configs/smoke.py for an example")
        return names["get_config"]()
    except errors.UserError:
        raise
    except SyntaxError as error:
        raise errors.UserError(f"{path}, line {error.lineno}: syntax error: {error.msg}") from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        text = " ".join(str(error).split())
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise errors.UserError(f"{where}: {type(error).__name__}: {text}") from None


def _assign(config: ml_collections.ConfigDict, key: str, value: Any, *, where: str, is_text: bool) -> None:
    """Sets one dotted key after the checks."""
    known = dict(leaves(config))
    if key not in known:
        raise errors.UserError(f"{where}: {_unknown(key, list(known))}")
    convert = _from_text if is_text else _from_value
    try:
        converted = convert(value, known[key])
    except ValueError:
        place = where if is_text else f"{where}: {key}"
        raise errors.UserError(f"{place}: needs {describe(known[key])}, got {value!r}") from None
    *sections, leaf = key.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[leaf] = converted


def _unknown(key: str, known: list[str]) -> str:
    """Says that a key is not known, with the nearest that is."""
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"config key {key!r} is a section, set one of its keys, for example {below[0]!r}"
    by_leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    sections = sorted({name.rsplit(".", 1)[0] for name in known if "." in name})
    close = by_leaf[:1] or difflib.get_close_matches(key, [*known, *sections], n=1, cutoff=0.0)
    return f"unknown config key {key!r}, did you mean {close[0]!r}?"


def describe(default: Any) -> str:
    """The wanted type in words, with an example."""
    if isinstance(default, bool):
        return "a bool (true or false)"
    if isinstance(default, int):
        return f"an int (for example {default})"
    if isinstance(default, float):
        return f"a float (for example {default})"
    if isinstance(default, tuple):
        item = _item_type(default).__name__
        example = ",".join(map(str, default)) or "a,b"
        return f"a tuple of {item} (for example {example})"
    return "a str"


def _item_type(default: tuple[Any, ...]) -> type:
    """Type of a tuple's items; the tuples that are empty by default hold names."""
    return type(default[0]) if default else str


def _from_value(value: Any, default: Any) -> Any:
    """A Python value as the default's type; ValueError where it is none."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list):
            raise ValueError
        return tuple(_from_value(item, _item_type(default)()) for item in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    return value


def _from_text(text: str, default: Any) -> Any:
    """A text as the default's type; ValueError where it is none."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return _tuple_from_text(text, default)
    return _from_value(int(text) if isinstance(default, int) else float(text), default)


def _tuple_from_text(text: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """`1,2`, `(1, 2)`, `skip,none` or `("skip", "none")` as a tuple."""
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    items = [item.strip() for item in inner.strip().rstrip(",").split(",")] if inner.strip() else []
    if _item_type(default) is str:
        values: list[Any] = [item.strip("'\"") for item in items]
        if not all(values):
            raise ValueError
    else:
        try:
            values = [ast.literal_eval(item) for item in items]
        except (SyntaxError, TypeError):
            raise ValueError from None
    return _from_value(tuple(values), default)
