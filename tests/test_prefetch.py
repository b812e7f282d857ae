"""Batches put onto devices in the background: order, errors, and no thread left behind."""

import gc
import threading
import time

import jax
import numpy as np
import pytest

from dvsnas_jax.core import errors, types
from dvsnas_jax.data.loading import prefetch


def _threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def _wait_for_no_thread():
    deadline = time.monotonic() + 10
    while _threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _threads()


def _clips(count, made=None):
    for i in range(count):
        if made is not None:
            made.append(i)
        yield types.Clip(frames=np.full((4, 2, 3, 3, 3), i, np.uint8), labels=np.full((4, 2, 3, 3), i, np.uint8))


def test_batches_arrive_in_order_on_the_device():
    seen = list(prefetch.to_device(_clips(5)))
    assert [int(clip.frames[0, 0, 0, 0, 0]) for clip in seen] == list(range(5))
    for i, clip in enumerate(seen):
        assert isinstance(clip.frames, jax.Array) and clip.frames.dtype == np.uint8
        np.testing.assert_array_equal(clip.labels, np.full((4, 2, 3, 3), i))
    _wait_for_no_thread()


def test_it_runs_no_further_ahead_than_asked():
    made = []
    with prefetch.on_host(_clips(100, made), depth=3) as batches:
        next(batches)
        time.sleep(0.5)
        assert len(made) == 1 + 3 + 1  # taken, waiting, in the thread's hand
    _wait_for_no_thread()


def test_an_error_comes_after_the_batches_before_it():
    def broken():
        yield from _clips(2)
        raise errors.UserError("frame.png: not a readable image; replace the file")

    batches = prefetch.to_device(broken())
    assert [int(next(batches).frames[0, 0, 0, 0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(errors.UserError, match="frame.png"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    _wait_for_no_thread()


def test_the_thread_ends_with_its_consumer():
    closed = []

    def endless():
        try:
            while True:
                yield from _clips(10)
        finally:
            closed.append(True)

    batches = prefetch.to_device(endless())
    next(batches)
    batches.close()
    assert not _threads() and closed == [True]
    batches = prefetch.to_device(endless())
    next(batches)
    del batches  # dropped without a word, as when a step raises
    gc.collect()
    _wait_for_no_thread()
    assert closed == [True, True]
