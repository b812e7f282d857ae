"""Watches the other processes of a run, so that a lost one ends the others instead of letting them wait for ever."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

SILENCE_SECONDS = 30.0
BEAT_SECONDS = 2.0
_PREFIX = "dvsnas/alive"
_DONE = "done"
_keep: list[Any] = []


class Silence:
    """How long each process has given no sign of life, in seconds in which this process was running itself.

    Time in which this process was frozen does not count, for the others may have been frozen with it: one pass of time
    counts `longest` seconds at most.
    """

    def __init__(self, process_id: int, num_processes: int, longest: float = 2 * BEAT_SECONDS) -> None:
        self._signs: dict[int, str] = {}
        self._seconds = {other: 0.0 for other in range(num_processes) if other != process_id}
        self._longest = longest

    def hear(self, signs: Mapping[int, str]) -> None:
        """Takes in what the processes said last; a sign that changed is a sign of life."""
        for other in self._seconds:
            sign = signs.get(other)
            if sign is not None and (sign == _DONE or sign != self._signs.get(other)):
                self._signs[other] = sign
                self._seconds[other] = 0.0

    def wait(self, seconds: float) -> None:
        """Time has passed."""
        for other in self._seconds:
            self._seconds[other] += min(seconds, self._longest)

    def lost(self, limit: float) -> list[int]:
        """The processes that were silent for longer."""
        return [other for other, seconds in sorted(self._seconds.items()) if seconds > limit]


class Watchdog:
    """Two threads: one gives and takes signs of life through JAX's coordination service, one counts the silence.

    `client` is that of the service; `leave_fn` is told the reason, when a process was silent for `limit` seconds, and
    ends this one.
    """

    def __init__(
        self,
        client: Any,
        process_id: int,
        num_processes: int,
        *,
        leave_fn: Callable[[str], None],
        limit: float = SILENCE_SECONDS,
    ) -> None:
        self._client, self._process_id, self._num = client, process_id, num_processes
        self._leave_fn, self._limit = leave_fn, limit
        self._silence = Silence(process_id, num_processes)
        self._lock, self._stop = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Begins to watch."""
        for target in (self._beat, self._count):
            threading.Thread(target=target, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Says good-bye, and watches no longer."""
        self._stop.set()
        self._client.key_value_set(f"{_PREFIX}/{self._process_id}", _DONE, allow_overwrite=True)

    def has_doubts(self) -> bool:
        """Whether some process missed several beats."""
        with self._lock:
            return bool(self._silence.lost(4 * BEAT_SECONDS))

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(BEAT_SECONDS):
            count += 1
            try:
                self._client.key_value_set(f"{_PREFIX}/{self._process_id}", str(count), allow_overwrite=True)
                found = self._client.key_value_dir_get(_PREFIX)
            except (RuntimeError, ValueError):  # the coordinator does not answer: its silence is counted
                continue
            with self._lock:
                self._silence.hear({int(key.rpartition("/")[2]): sign for key, sign in found})

    def _count(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(BEAT_SECONDS / 2):
            now = time.monotonic()
            with self._lock:
                self._silence.wait(now - last)
                lost = self._silence.lost(self._limit)
            last = now
            if lost and not self._stop.is_set():
                names = ", ".join(map(str, lost))
                self._leave_fn(f"no sign of life from process {names} of {self._num} for {self._limit:.0f} s")


def on_abort(is_lost_fn: Callable[[], bool], leave_fn: Callable[[str], None]) -> None:
    """Takes over by `leave_fn` where JAX aborts the process and `is_lost_fn` says that another process is gone.

    JAX ends a process whose coordinator is gone by `abort`, from a thread of its own. JAX 0.10 has no public way to say
    otherwise (`jax.distributed.initialize` takes no callback), and Python's own `signal.signal` runs handlers in the
    main thread, after the abort; hence a handler of the C library. An abort for any other reason stays an abort.
    """

    def handle(number: int) -> None:
        if is_lost_fn():
            leave_fn("another process is gone")

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    _keep.append(handler)  # the C library holds no reference
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
