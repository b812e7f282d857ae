"""What folders hold: images, folders, and the lines of lists; what cannot be listed is a problem of the scan."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.datasets import frames


def images(folder: pathlib.Path, scan: frames.Scan) -> list[pathlib.Path]:
    """The image files of a folder, by name; hidden files and other types are left out, one that is no file fails."""
    found = []
    for entry in _entries(folder, scan):
        if os.path.splitext(entry.name)[1].lower() not in image_files.SUFFIXES:
            continue
        path = folder / entry.name
        if _is(entry.is_file):
            found.append(path)
        elif entry.is_symlink():
            scan.fail(path, "the link leads to no file (or in a circle); repair or remove it")
        else:
            scan.fail(path, "a folder with the name of an image; rename or remove it")
    return found


def folders(folder: pathlib.Path, scan: frames.Scan) -> list[pathlib.Path]:
    """The folders in a folder, by name."""
    return [folder / entry.name for entry in _entries(folder, scan) if _is(entry.is_dir)]


def _entries(folder: pathlib.Path, scan: frames.Scan) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, without hidden entries."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        scan.fail(folder, f"the folder cannot be listed ({error.strerror}); correct its permissions")
        return []


def _is(test_fn: Callable[[], bool]) -> bool:
    try:
        return test_fn()
    except OSError:  # a link that leads in a circle
        return False


def lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file, without blanks at their ends, without empty ones; UserError where it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{path}: cannot be read as text ({error}); replace the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
