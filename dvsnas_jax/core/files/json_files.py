"""JSON that somebody else may have written: whatever is wrong with a file is told in one line."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dvsnas_jax.core import errors


def read(path: str | os.PathLike[str], *, name: str = "", advice: str = "correct the file, or give another one") -> Any:
    """The value in a file; a byte-order mark before it, as some editors write one, is skipped.

    A UserError where there is none, it is no text, no JSON, or names a key twice: it says `name`, what the user calls
    the file, for example a flag, and `advice`, what to do.
    """
    where = f"{name}: {os.fspath(path)}" if name else os.fspath(path)
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise errors.UserError(f"{where} does not exist; {advice}") from None
    except UnicodeDecodeError:
        raise errors.UserError(f"{where}: no text in UTF-8; {advice}") from None
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        raise errors.UserError(f"{where}: cannot be read ({reason(error)}); {advice}") from None
    return loads(text, where=where, advice=advice)


def loads(text: str, *, where: str, advice: str = "correct it") -> Any:
    """The value in a JSON text; a UserError (`where`, `advice`) where it is none, or names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error})" if text.strip("\0 \r\n\t") else "empty, not JSON"
        raise errors.UserError(f"{where}: {problem}; {advice}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets, a key twice
        raise errors.UserError(f"{where}: not usable JSON ({' '.join(str(error).split())}); {advice}") from None


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys must differ: of two values with one name nobody knows which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} twice in one object")
    return found


def reason(error: Exception) -> str:
    """What the system says of a file, without its path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
