"""What the next step wants, made ahead in a thread: batches on the devices, frames on the host."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class DeviceIterator(Iterator[Any]):
    """Iterates over what a thread makes of another iterator's items; see `to_device` and `on_host`."""

    def __init__(self, iterator: Iterator[Any], put_fn: Callable[[Any], Any], depth: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_work, args=(iterator, put_fn, self._queue, self._stop), name="prefetch", daemon=True
        )
        # The thread holds no reference to this object, so that it ends when the consumer forgets the iterator.
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._stop, self._thread)
        self._thread.start()

    def __iter__(self) -> DeviceIterator:
        return self

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if item is _END or isinstance(item, _Failure):
            self.close()
        if item is _END:
            raise StopIteration
        if isinstance(item, _Failure):
            raise item.error
        return item

    def close(self) -> None:
        """Ends the thread; further batches are not made."""
        self._finalizer()

    def __enter__(self) -> DeviceIterator:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def to_device(
    iterator: Iterator[Any], sharding: jax.sharding.Sharding | None = None, *, depth: int = 2
) -> DeviceIterator:
    """Puts batches onto the devices in a background thread, in order.

    The thread ends with the iterator, at an error (raised at the consumer, after the batches before it), on `close`,
    and when the consumer drops what is returned.

    Args:
      iterator: of trees of host arrays; with several processes, each yields its share of every global batch.
      sharding: of every leaf, for example `NamedSharding(mesh, PartitionSpec("data"))`; None: the default device.
      depth: batches that wait on the devices.

    Returns:
      An iterator of trees of `jax.Array`, global ones where the sharding spans several processes.

    Raises:
      ValueError: no room for a batch.
    """
    if depth < 1:
        raise ValueError(f"prefetch: depth must be at least 1, got {depth}")
    return DeviceIterator(iterator, lambda batch: put(batch, sharding), depth)


def on_host(iterator: Iterator[Any], *, depth: int = 2) -> DeviceIterator:
    """Runs an iterator in a background thread, its items as they are; it ends as that of `to_device`.

    Args:
      iterator: of anything.
      depth: items that wait.
    """
    return DeviceIterator(iterator, lambda item: item, depth)


def put(batch: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """One tree of host arrays onto the devices; leading sizes are those of this process."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def _offer(item: Any, waiting: queue.Queue[Any], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return waiting.put(item, timeout=0.1)
        except queue.Full:
            continue


def _work(
    iterator: Iterator[Any],
    put_fn: Callable[[Any], Any],
    waiting: queue.Queue[Any],
    stop: threading.Event,
) -> None:
    last: Any = _END
    try:
        while not stop.is_set():
            try:
                batch = next(iterator)
            except StopIteration:
                break
            _offer(put_fn(batch), waiting, stop)
    except BaseException as error:  # whatever it is, the consumer is told
        last = _Failure(error)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
    _offer(last, waiting, stop)


def _finish(waiting: queue.Queue[Any], stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            break
    if thread is not threading.current_thread():
        thread.join(timeout=10)
