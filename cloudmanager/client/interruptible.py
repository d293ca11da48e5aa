"""Waits that Ctrl-C interrupts on every system.

On Windows, a thread that waits for a lock does not notice Ctrl-C. It waits in slices there, and is
interrupted between two of them.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

#: How long a thread waits in one piece, in seconds; None: for as long as it takes.
WAIT_SLICE: Final = 0.1 if sys.platform == "win32" else None


def acquire_lock(
    lock: threading.Lock, seconds: float, wait_slice: float | None = WAIT_SLICE
) -> bool:
    """Acquire a lock; return whether it was acquired in time.

    Args:
        lock: the lock.
        seconds: how long to wait at most; -1: for as long as it takes.
        wait_slice: how long to wait in one piece, in seconds; None: ``seconds``.
    """
    if wait_slice is None:
        return lock.acquire(timeout=seconds)
    deadline = math.inf if seconds < 0 else time.monotonic() + seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        if lock.acquire(timeout=min(left, wait_slice)):
            return True
        if left <= wait_slice:
            return False


def wait_for(
    condition: threading.Condition,
    predicate: Callable[[], Any],
    seconds: float | None,
    wait_slice: float | None = WAIT_SLICE,
) -> None:
    """Wait until a predicate is true, or the time is over; the condition's lock is held.

    Args:
        condition: notified when the predicate may have changed.
        predicate: what is waited for.
        seconds: how long to wait at most; None: for as long as it takes.
        wait_slice: how long to wait in one piece, in seconds; None: ``seconds``.
    """
    if wait_slice is None:
        condition.wait_for(predicate, seconds)
        return
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    while not predicate() and (left := deadline - time.monotonic()) > 0:
        condition.wait(min(left, wait_slice))
