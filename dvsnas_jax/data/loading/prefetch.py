"""What the next step wants, made ahead in a thread: batches on the devices, frames on the host."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax


class Ahead(Iterator[Any]):
    """Iterates over what a thread makes of another iterator's items.

    The thread ends with the iterator, at an error (raised at the consumer, after the items before it), on `close`, and
    when the consumer drops this object, to which it holds no reference.
    """

    def __init__(self, iterator: Iterator[Any], make_fn: Callable[[Any], Any], depth: int) -> None:
        """At most `depth` items wait."""
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        arguments = iterator, make_fn, self._queue, self._stop
        thread = threading.Thread(target=_work, args=arguments, name="prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._stop, thread)
        thread.start()

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        item, ended_by = self._queue.get()
        if ended_by is not None:
            self.close()
            raise ended_by
        return item

    def close(self) -> None:
        """Ends the thread; no further items are made."""
        self._finalizer()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def to_device(iterator: Iterator[Any]) -> Ahead:
    """Puts trees of host arrays onto the default device in a background thread, in order; two wait there."""
    return Ahead(iterator, jax.device_put, 2)


def on_host(iterator: Iterator[Any], *, depth: int = 2) -> Ahead:
    """Runs an iterator in a background thread, its items as they are, of which `depth` wait."""
    return Ahead(iterator, lambda item: item, depth)


def _work(
    iterator: Iterator[Any], make_fn: Callable[[Any], Any], waiting: queue.Queue[Any], stop: threading.Event
) -> None:
    ended_by: BaseException = StopIteration()
    try:
        for item in iterator:
            _offer((make_fn(item), None), waiting, stop)
            if stop.is_set():
                break
    except BaseException as error:  # whatever it is, the consumer is told
        ended_by = error
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
    _offer((None, ended_by), waiting, stop)


def _offer(item: Any, waiting: queue.Queue[Any], stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            return waiting.put(item, timeout=0.1)


def _finish(waiting: queue.Queue[Any], stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
    if thread is not threading.current_thread():
        thread.join(timeout=10)
