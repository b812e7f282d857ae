"""Work spread over threads: the order of its results, and how much of it is begun."""

import os
import threading

import pytest

from dvsnas_jax.core import cores


def test_the_count_is_what_this_process_may_use():
    assert cores.count() == len(os.sched_getaffinity(0))


def test_results_come_in_the_order_of_the_items():
    gate = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0:
            assert gate.wait(timeout=30)  # until a later one has begun: two run at the same time
        gate.set()
        return 10 * item

    assert list(cores.map_in_order(slow_first, range(1, 6), 1)) == [10, 20, 30, 40, 50]
    gate.clear()
    assert list(cores.map_in_order(slow_first, range(5), 2)) == [0, 10, 20, 30, 40]


def test_little_is_begun_before_it_is_asked_for():
    begun = []
    found = cores.map_in_order(lambda item: begun.append(item) or item, range(100), 3)
    assert begun == []
    assert next(found) == 0
    found.close()
    assert set(begun) <= {0, 1, 2, 3}


def test_a_fault_reaches_the_caller_in_its_turn():
    found = cores.map_in_order(lambda item: 1 / (item - 1), range(3), 2)
    assert next(found) == -1
    with pytest.raises(ZeroDivisionError):
        next(found)
