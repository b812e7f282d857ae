"""JSON as every reader takes it: a number that is not finite is null, arrays are lists, paths are text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """A value as JSON (`options` of `json.dumps`); NaN and Infinity, which only Python knows, become null.

    It may hold dictionaries, sequences, numbers, texts, NumPy and JAX arrays and paths; anything else is a TypeError.
    """
    return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _key(key: Any) -> Any:
    return key.item() if hasattr(key, "item") else key
