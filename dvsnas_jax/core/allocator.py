"""Memory of the C library: freed blocks are kept for the next step instead of going back to the system."""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

# Parameters of mallopt(3): no memory mapped for single blocks, nothing given back, grown in large pieces. Not one heap
# for all threads (-8, 1): they wait for each other, and a step of the supernet takes 1.4 times as long.
_SETTINGS = ((-4, 0), (-1, 2**31 - 1), (-2, 512 << 20))

_TUNABLES, _LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SYSTEM_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_large_pages() -> None:
    """Starts the program of this process once more, with large pages (2 MiB on x86) for all that it allocates.

    The C library reads that setting (`glibc.malloc.hugetlb=1` of GLIBC_TUNABLES, from glibc 2.35 on) only when a
    process starts. XLA's CPU backend works on maps of megabytes: with pages of 4 KiB a training step takes 1.3 times as
    long. Nothing happens where the variable already names the setting, whatever its value, and where the system gives
    no large pages on request. Process, files and folder stay the same; to be called before anything else runs.
    """
    present = os.environ.get(_TUNABLES, "")
    if not sys.platform.startswith("linux") or _LARGE_PAGES in present:
        return
    try:
        gives_on_request = "[madvise]" in _SYSTEM_PAGES.read_text()
        name, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
    except (OSError, ValueError):
        return
    if gives_on_request and name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35):
        setting = f"{_LARGE_PAGES}=1"
        os.execve(sys.executable, sys.orig_argv, {**os.environ, _TUNABLES: ":".join(filter(None, (present, setting)))})


def keep_freed_memory() -> bool:
    """Makes the process keep the memory that it once used; to be called before JAX starts its threads.

    XLA's CPU backend allocates the buffers of a program at every call, and the system clears each page of them anew: a
    third of the time of a training step. The peak of memory stays as it is. True where the C library took the settings
    (glibc; elsewhere nothing changes).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(key, value) == 1 for key, value in _SETTINGS])
