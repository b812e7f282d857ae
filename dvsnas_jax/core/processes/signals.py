"""A run that is told to stop finishes its step, saves and ends; the same command goes on later."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from typing import Any

from dvsnas_jax.core.processes import distributed


@dataclasses.dataclass
class StopFlag:
    """Whether the run was told to stop: by SIGTERM or SIGINT, whose name is kept."""

    requested: bool = False
    name: str = ""

    def is_due(self, step: int, *, every: int = 1) -> bool:
        """Whether the run stops after this step: all of its processes after the same one; they ask each other every so
        often.
        """
        if distributed.num_processes() == 1:
            return self.requested
        return step % every == 0 and distributed.agree(self.requested)


_ACTIVE: list[StopFlag] = []


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Turns SIGTERM and SIGINT into a flag that loops look at. A second SIGINT raises KeyboardInterrupt.

    Inside another `stop_on_signal` it gives the outer one's flag, so that a request is seen by whichever loop runs. In
    a thread other than the main one no signal can be caught and the flag stays False.
    """
    if _ACTIVE:
        yield _ACTIVE[-1]
        return
    stop = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        stop.name = signal.Signals(number).name

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    _ACTIVE.append(stop)
    try:
        yield stop
    finally:
        _ACTIVE.remove(stop)
        for number, handler in previous.items():
            signal.signal(number, handler)
