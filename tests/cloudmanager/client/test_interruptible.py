"""Waits that Ctrl-C interrupts where locks do not notice it, as on Windows."""

import threading
import time
from typing import cast

import pytest

from cloudmanager.client.interruptible import acquire_lock, wait_for

WAIT = 20.0  # seconds; a wait that is not interrupted would last that long
SLICE = 0.05  # seconds


class CountedLock:
    """A lock that is free at the fifth attempt; it keeps the timeouts of all of them."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def acquire(self, *, timeout: float) -> bool:
        self.timeouts.append(timeout)
        return len(self.timeouts) == 5


def test_wait_for_a_lock_is_in_slices_between_which_ctrl_c_is_noticed():
    lock = CountedLock()
    assert acquire_lock(cast("threading.Lock", lock), -1, SLICE)
    assert lock.timeouts == [SLICE] * 5


def test_wait_for_a_lock_is_in_one_piece_elsewhere():
    lock = CountedLock()
    assert not acquire_lock(cast("threading.Lock", lock), -1, None)
    assert lock.timeouts == [-1]


def test_wait_for_a_condition_is_in_slices():
    timeouts = []

    class CountedCondition(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            timeouts.append(timeout)
            return False

    condition = CountedCondition()
    with condition:
        wait_for(condition, lambda: len(timeouts) == 5, None, SLICE)
    assert timeouts == [SLICE] * 5


@pytest.mark.parametrize("wait_slice", [None, SLICE])
def test_lock_is_acquired_or_the_time_is_over(wait_slice: float | None):
    lock = threading.Lock()
    assert acquire_lock(lock, -1, wait_slice)
    began = time.monotonic()
    assert not acquire_lock(lock, 3 * SLICE, wait_slice)
    assert time.monotonic() - began >= 3 * SLICE
    threading.Timer(2 * SLICE, lock.release).start()
    assert acquire_lock(lock, WAIT, wait_slice)


@pytest.mark.parametrize("wait_slice", [None, SLICE])
def test_condition_is_waited_for_until_it_is_true_or_the_time_is_over(wait_slice: float | None):
    condition = threading.Condition()
    is_set = threading.Event()

    def set_it() -> None:
        with condition:
            is_set.set()
            condition.notify()

    with condition:
        wait_for(condition, is_set.is_set, SLICE, wait_slice)
        assert not is_set.is_set()
        threading.Timer(SLICE, set_it).start()
        wait_for(condition, is_set.is_set, None, wait_slice)
    assert is_set.is_set()
