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
    """A run folder's lock that this process has, taken so many times; handle None: there are no locks."""

    handle: int | None
    count: int = 0


class _NoLocksError(Exception):
    """The system or the file system knows no locks."""


_held: dict[tuple[int, int], _Held] = {}
_guard = threading.Lock()


def _lock(path: pathlib.Path, flags: int) -> int | None:
    """The handle of a file or folder, opened and locked; None where somebody has removed it in between.

    A BlockingIOError where another process has it, a _NoLocksError where it cannot be locked, else an OSError.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        raise _NoLocksError("this system has no such locks") from None
    handle = os.open(path, flags, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in _TAKEN:
            raise BlockingIOError from None
        raise _NoLocksError(error.strerror or str(error)) from None
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    os.close(handle)
    return None


def take(folder: pathlib.Path, command: str) -> Callable[[], None]:
    """Takes the lock of a run folder; nobody waits. A process that has it may take it again.

    `command` is for the others, who are told who has it: a UserError. An OSError where the folder cannot be written.

    Returns:
      Gives it back; where it was taken several times, the last one does.
    """
    with _guard:
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        held = _held.get(key) or _held.setdefault(key, _Held(_lock_run(folder, command)))
        held.count += 1

    def give_back() -> None:
        with _guard:
            held.count -= 1
            if not held.count:
                del _held[key]
                if held.handle is not None:
                    os.close(held.handle)

    return give_back


def _lock_run(folder: pathlib.Path, command: str) -> int | None:
    """The handle of a run folder's locked file, None where there are no locks."""
    path, handle = folder / FILE, None
    try:
        while handle is None:
            handle = _lock(path, os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        raise errors.UserError(
            f"--workdir: {folder} is in use {_holder(path)}; wait until that ends or stop it, or use another --workdir"
        ) from None
    except _NoLocksError as error:
        text = f"warning: {folder} cannot be locked ({error}): start no second process in it"
        print(text, file=sys.stderr, flush=True)
        return None
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    about = {"process": os.getpid(), "host": platform.node(), "since": now, "command": command}
    os.ftruncate(handle, 0)
    os.pwrite(handle, (json.dumps(about) + "\n").encode(), 0)
    return handle


def _holder(path: pathlib.Path) -> str:
    """By whom and since when, as the holder wrote it."""
    try:
        about = json.loads(path.read_bytes())
        return f"by process {about['process']} on {about['host']} since {about['since']} ({about['command']})"
    except (OSError, ValueError, TypeError, KeyError):  # it has just been taken
        return "by another process"


@contextlib.contextmanager
def exclusive(folder: pathlib.Path, stop: signals.StopFlag) -> Iterator[bool]:
    """Waits for the lock on a folder, which is made if need be, and removed again where it was made and stays empty.

    Yields whether it is held: False where the system or the file system knows no such locks. `stop` ends the waiting
    (Stopped); a UserError where the folder cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        handle = _wait(folder, stop)
    except OSError as error:
        raise errors.UserError(
            f"--output: cannot use the folder {folder}: {error.strerror or error}; choose another --output"
        ) from error
    try:
        yield handle is not None
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in missing:
                path.rmdir()
        if handle is not None:
            os.close(handle)


def _wait(folder: pathlib.Path, stop: signals.StopFlag) -> int | None:
    """The handle of the locked folder, None where there are no locks."""
    is_told = False
    while not stop.requested:
        folder.mkdir(parents=True, exist_ok=True)  # again and again: the process before may have removed it
        try:
            handle = _lock(folder, os.O_RDONLY)
        except BlockingIOError:
            if not is_told:
                print(f"another process prepares {folder}, waiting for it", file=sys.stderr, flush=True)
                is_told = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
            continue
        except _NoLocksError:
            return None
        if handle is not None:
            return handle
    raise errors.Stopped(f"{stop.name}, nothing was written")
