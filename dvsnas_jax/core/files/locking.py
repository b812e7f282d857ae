"""Locks on folders that die with the process that holds them: one to wait for, and the one of a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import pathlib
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator

from dvsnas_jax.core import errors
from dvsnas_jax.core.processes import signals

FILE = ".lock"
"""In a run folder: the file that is locked. It says who holds it, or held it last; it stays when it is given back."""
_SECONDS_BETWEEN_TRIES = 0.2
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)


@dataclasses.dataclass
class _Held:
    """A run folder's lock that this process has.

    Attributes:
      handle: of the locked file; None: the system or the file system knows no locks.
      count: how often it was taken.
    """

    handle: int | None
    count: int = 0


_held: dict[tuple[int, int], _Held] = {}
_guard = threading.Lock()


def take(folder: pathlib.Path, command: str) -> Callable[[], None]:
    """Takes the lock of a run folder; nobody waits. A process that has it may take it again.

    Args:
      folder: that exists.
      command: for the others, who are told who has it.

    Returns:
      Gives it back; where it was taken several times, the last one does.

    Raises:
      UserError: another process has it.
      OSError: the folder cannot be written.
    """
    with _guard:
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        held = _held.get(key) or _held.setdefault(key, _Held(_lock_file(folder, command)))
        held.count += 1

    def give_back() -> None:
        with _guard:
            held.count -= 1
            if not held.count:
                del _held[key]
                if held.handle is not None:
                    os.close(held.handle)

    return give_back


def _lock_file(folder: pathlib.Path, command: str) -> int | None:
    """The handle of the locked file, None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        _warn(folder, "this system has no such locks")
        return None
    path = folder / FILE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found = _holder(handle)
            os.close(handle)
            if error.errno in _TAKEN:
                raise errors.UserError(
                    f"--workdir: {folder} is in use {found}; wait until that ends or stop it, or use another --workdir"
                ) from None
            _warn(folder, error.strerror or str(error))
            return None
        if _is_file(handle, path):
            break
        os.close(handle)  # somebody has removed the file since it was opened
    about = {"process": os.getpid(), "host": platform.node(), "since": _now(), "command": command}
    os.ftruncate(handle, 0)
    os.pwrite(handle, (json.dumps(about) + "\n").encode(), 0)
    return handle


def _is_file(handle: int, path: pathlib.Path) -> bool:
    """Whether an open file is what is found at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _holder(handle: int) -> str:
    """By whom and since when, as the holder wrote it."""
    try:
        about = json.loads(os.pread(handle, 65536, 0))
        return f"by process {about['process']} on {about['host']} since {about['since']} ({about['command']})"
    except (OSError, ValueError, TypeError, KeyError):  # it has just been taken
        return "by another process"


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _warn(folder: pathlib.Path, reason: str) -> None:
    print(
        f"warning: {folder} cannot be locked ({reason}): start no second process in it", file=sys.stderr, flush=True
    )


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
