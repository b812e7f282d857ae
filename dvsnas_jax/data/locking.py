"""A lock on a folder that dies with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from dvsnas_jax.core import errors, signals

_SECONDS_BETWEEN_TRIES = 0.2


@contextlib.contextmanager
def exclusive(folder: pathlib.Path, stop: signals.StopFlag) -> Iterator[bool]:
    """Waits for the lock on a folder, which is made if need be, and removed again where it was made and stays empty.

    Args:
      folder: to lock; nothing is written into it.
      stop: ends the waiting.

    Yields:
      Whether it is held: False where the system or the file system knows no such locks.

    Raises:
      UserError: the folder cannot be made.
      Stopped: while waiting.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        handle, is_held = _acquire(folder, stop)
    except OSError as error:
        raise errors.UserError(
            f"--output: cannot use the folder {folder}: {error.strerror or error}; choose another --output"
        ) from error
    try:
        yield is_held
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in missing:
                path.rmdir()
        os.close(handle)


def _acquire(folder: pathlib.Path, stop: signals.StopFlag) -> tuple[int, bool]:
    """A handle of the folder, and whether it is locked."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(os.devnull, os.O_RDONLY), False
    is_told = False
    while not stop.requested:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if not is_told:
                print(f"another process prepares {folder}, waiting for it", file=sys.stderr, flush=True)
                is_told = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
            continue
        except OSError:
            return handle, False
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                return handle, True
        os.close(handle)  # the one before has removed the folder; it is another one now, or none
    raise errors.Stopped(f"{stop.name}, nothing was written")
