"""Changes to a configuration: from a Python file and from `--config.a.b=value`, checked against the defaults."""

from __future__ import annotations

import ast
import difflib
import math
import numbers
import os
import pathlib
import runpy
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_files


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, in the order of definition."""
    for key in config:
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def with_missing(values: Any, before: Mapping[str, Any]) -> Any:
    """A stored configuration with `before`, dotted key -> value, for the keys that its sections lack."""
    if not isinstance(values, Mapping):
        return values
    found = dict(values)
    for key, value in before.items():
        section, leaf = key.split(".")
        if isinstance(found.get(section), Mapping):
            found[section] = {leaf: value, **found[section]}
    return found


def apply_file(config: ml_collections.ConfigDict, path: str, before: Mapping[str, Any]) -> None:
    """Changes `config` in place by what `get_config()` of a Python file returns, or by a run folder's `config.json`.

    `before`: values of the keys that an older run folder lacks, see `with_missing`.

    A UserError where there is no such file, an error in it (with its line), an unknown key or a value of the wrong
    type.
    """
    found = find_file(path)
    if found.suffix == ".json":  # of a run folder
        apply_values(config, with_missing(json_files.read(found, name="--config"), before), str(found))
        return
    result = _execute(found)
    if not isinstance(result, ml_collections.ConfigDict | dict):
        raise errors.UserError(
            f"{found}: get_config() must return a ConfigDict, it returned {type(result).__name__}; "
            "end it with `return config`"
        )
    apply_values(config, result, str(found))


def apply_values(config: ml_collections.ConfigDict, values: Mapping[str, Any], where: str) -> None:
    """Changes `config` in place by the leaves of nested mappings; a bad one is a UserError that names `where`."""
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise errors.UserError(
            f"{where}: must hold a configuration, sections of keys, got {type(values).__name__}; correct the file, or "
            "use another one"
        )
    for key, value in leaves(values):
        _assign(config, key, value, where=where, is_text=False)


def apply_texts(config: ml_collections.ConfigDict, texts: Mapping[str, str]) -> None:
    """Changes `config` in place by values given as text, `{"search.steps": "200"}`.

    A UserError where a key is unknown (with the nearest known one) or a text is no value of the default's type.
    """
    for key, text in texts.items():
        _assign(config, key, text, where=f"--config.{key}", is_text=True)


def find_file(path: str) -> pathlib.Path:
    """The file itself, or `configs/<path>.py`; a UserError where neither exists."""
    given = pathlib.Path(path)
    named = pathlib.Path("configs") / f"{path}.py"
    try:
        if given.is_file():
            return given
        if named.is_file():
            return named
        if (given / "config.json").is_file():
            raise errors.UserError(f"--config: {path} is a run folder; give its config, {given / 'config.json'}")
    except OSError as error:
        raise errors.UserError(f"--config: {path} cannot be read ({error.strerror}); give another file") from None
    there = sorted(map(str, pathlib.Path("configs").glob("*.py")))
    hint = f"one of the folder configs ({', '.join(there)})" if there else "as those in the folder configs"
    raise errors.UserError(f"--config: no such file: {path}; give a Python file with get_config(), {hint}")


def _execute(path: pathlib.Path) -> Any:
    """Runs the file and its `get_config()`; any error in it becomes one line with the file's line."""
    try:
        names = runpy.run_path(str(path))
        if not callable(names.get("get_config")):
            raise errors.UserError(f"{path}: defines no function get_config(); write it as configs/smoke.py does")
        return names["get_config"]()
    except errors.UserError:
        raise
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else str(path)
        raise errors.UserError(f"{where}: syntax error: {error.msg}; correct it") from None
    except (Exception, SystemExit) as error:  # a file that ends the program would end it without a word
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        text = " ".join(str(error).replace("\\n", " ").split()) or "no reason is given"
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise errors.UserError(f"{where}: {type(error).__name__}: {text}; correct it") from None


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
        return f"config key {key!r} is a section; set one of its keys, for example {below[0]!r}"
    by_leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    nearest = difflib.get_close_matches(key, by_leaf, n=1, cutoff=0.6) if "." in key else []
    if len(by_leaf) > 1 and not nearest:
        return f"unknown config key {key!r}, did you mean {' or '.join(map(repr, by_leaf))}?"
    close = nearest or by_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"unknown config key {key!r}, did you mean {close[0]!r}?"
    sections = list(dict.fromkeys(name.split(".")[0] for name in known if "." in name))
    near = difflib.get_close_matches(key.split(".")[0], sections, n=1, cutoff=0.6) or sections
    below = [name for name in known if name.startswith(f"{near[0]}.")] if len(near) == 1 else sections
    return f"unknown config key {key!r}; the {'keys' if len(near) == 1 else 'sections'} are {', '.join(below)}"


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
    """A Python value as the default's type; ValueError where it is none. NumPy's numbers and paths are taken, too."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list):
            raise ValueError
        return tuple(_from_value(item, _item_type(default)()) for item in value)
    if isinstance(default, str) and isinstance(value, str | os.PathLike):
        return _home(os.fspath(value))
    if isinstance(default, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, int) and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    return value


def _home(text: str) -> str:
    """A text with the home folder in place of `~/`, which no shell replaces inside of `--config.data.dir=~/data`."""
    return os.path.expanduser(text) if text.startswith("~/") else text


def _from_text(text: str, default: Any) -> Any:
    """A text as the default's type; ValueError where it is none."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    if isinstance(default, str):
        return _home(text)
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
        names = [item.strip("'\"") for item in items]
        if not all(names):
            raise ValueError
        return tuple(names)
    try:
        return _from_value(tuple(map(ast.literal_eval, items)), default)
    except (SyntaxError, TypeError):
        raise ValueError from None
