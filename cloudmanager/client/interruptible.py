"""Waits that Ctrl-C interrupts on every system, and work that it does not interrupt halfway.

On Windows, a thread that waits for a lock does not notice Ctrl-C. It waits in slices there, and is
interrupted between two of them.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

MAX_POSTPONED_SECONDS: Final = 1.0  # for which Ctrl-C can be postponed
#: Sets the handler of a signal, and returns the one before. signal.signal() calls the same function
#: of C, but converts numbers to enums, which takes ten times as long; each cell needs it twice.
_set_handler: Final[Callable[[int, Any], Any]] = getattr(
    sys.modules.get("_signal"), "signal", signal.signal
)
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


class PostponedInterrupt:
    """A context in which Ctrl-C is postponed until its end, for a few milliseconds.

    Only the main thread is interrupted, and only where Ctrl-C has a handler in Python; elsewhere
    the context does nothing.
    """

    __slots__ = ("_before", "_postponed", "_until")

    def __init__(self) -> None:
        self._before: Callable[[int, FrameType | None], object] | None = None
        self._postponed = False
        self._until = 0.0  # by time.monotonic()

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        self._until = time.monotonic() + MAX_POSTPONED_SECONDS  # first: the handler needs it
        before = _set_handler(signal.SIGINT, self._on_interrupt)
        if callable(before):
            self._before = before
        else:  # Ctrl-C is ignored, or ends the process, or is handled in C
            _set_handler(signal.SIGINT, before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Note Ctrl-C.

        If this handler is still there later, since another signal's handler has raised an exception
        while it was set, it leaves Ctrl-C to the one before it.
        """
        if time.monotonic() < self._until:
            self._postponed = True
        else:
            (self._before or signal.default_int_handler)(number, frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        self._until = 0.0
        _set_handler(signal.SIGINT, self._before)
        if self._postponed:
            self._before(signal.SIGINT, None)
