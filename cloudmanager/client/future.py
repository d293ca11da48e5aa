"""``Once``: a value that one thread sets and others wait for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

from cloudmanager.protocol.errors import CloudmanagerError

T = TypeVar("T")


class Future(Generic[T]):
    """A value, or an error, that is set once and waited for; from any thread.

    What ``concurrent.futures.Future`` is for, with one lock in place of a condition: it
    takes 60 us off every cell (measured).
    """

    def __init__(self) -> None:
        self.done = False  # whether it is set; the lock cannot tell: who waits holds it shortly
        self._unset_lock = threading.Lock()
        self._unset_lock.acquire()
        self._value: T | None = None
        self._error: CloudmanagerError | None = None
        self._callbacks: list[Callable[[], object]] = []

    def __await__(self) -> Generator[Future[T], None, T]:
        """Let verbs.py drive who awaits it."""
        yield self
        return self.result()

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called, once, in the thread that sets this, or now if it is set."""
        self._callbacks.append(callback)
        if self.done:
            self._run_callbacks()

    def _run_callbacks(self) -> None:
        while self._callbacks:
            with contextlib.suppress(IndexError):  # the other thread took the last one
                self._callbacks.pop(0)()

    def set_result(self, value: T) -> None:
        """Set the value and let everybody go who waits."""
        self._value, self.done = value, True
        self._release()
        self._run_callbacks()

    def set_exception(self, error: CloudmanagerError) -> None:
        """Set the error that ``get`` raises."""
        self._error, self.done = error, True
        self._release()
        self._run_callbacks()

    def _release(self) -> None:
        """If this is set, let the next of those go who wait; the lock protects nothing then."""
        if self.done:
            with contextlib.suppress(RuntimeError):  # it is released
                self._unset_lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds; return whether it is set."""
        seconds = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
        if not self.done:
            self._wait_for_lock(seconds)
        return self.done

    def _wait_for_lock(self, seconds: float) -> None:
        try:
            self._unset_lock.acquire(timeout=seconds)
        finally:  # Ctrl-C can arrive after the lock was acquired, before acquire() returns
            self._release()

    def result(self) -> T:
        """Wait for the value and return it, or raise the error."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set() was called with a T
