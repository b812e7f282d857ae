"""Files and folders that a command will write: whether they can be is asked before the work, and nothing is made."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import json_files


def check_file(path: str | os.PathLike[str], *, flag: str = "--output", suffixes: Sequence[str] = ()) -> pathlib.Path:
    """Whether a file can be written, its folder being made before; what is there would be replaced.

    Its name has to end in one of the `suffixes`, in any case. A UserError names `flag`: another file type, a folder of
    that name, or a place that cannot be written.
    """
    target = pathlib.Path(path)
    if suffixes and target.suffix.lower() not in suffixes:
        raise errors.UserError(f"{flag}: {path} must end in {' or '.join(suffixes)}")
    if os.path.isdir(target):
        raise errors.UserError(f"{flag}: {path} is a folder; give the name of a file, or choose another {flag}")
    _check_place(target, flag)
    return target


def check_folder(path: str | os.PathLike[str], *, flag: str = "--output") -> pathlib.Path:
    """Whether files can be written into a folder, which may have to be made; a UserError where they cannot."""
    target = pathlib.Path(path)
    if os.path.exists(target) and not os.path.isdir(target):
        raise refusal(target, "it is a file", flag=flag)
    _check_place(target, flag)
    return target


def make_folder(path: str | os.PathLike[str], flag: str = "--output") -> None:
    """Makes a folder and those above it; a UserError where it cannot be made."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error, flag=flag) from None


def refusal(path: str | os.PathLike[str], reason: Exception | str, *, flag: str = "--output") -> errors.UserError:
    """What to raise where a path cannot be written."""
    why = reason if isinstance(reason, str) else json_files.reason(reason)
    return errors.UserError(f"{flag}: cannot write {os.fspath(path)}: {why}; choose another {flag}")


def _check_place(target: pathlib.Path, flag: str) -> None:
    """Whether what is at a path, or the nearest folder above it, can be written."""
    place = pathlib.Path(os.path.abspath(target))
    while True:
        try:
            place.lstat()
            break
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
        except OSError as error:  # a name that is too long, a folder that cannot be entered
            raise refusal(target, error, flag=flag) from None
    if place != pathlib.Path(os.path.abspath(target)) and not place.is_dir():
        raise refusal(target, f"{place} is no folder", flag=flag)
    if not os.access(place, os.W_OK):
        raise refusal(target, f"{place} cannot be written", flag=flag)
