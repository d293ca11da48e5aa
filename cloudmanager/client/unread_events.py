"""The events of a cell that its reader has not read yet: bounded, even in a flood."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

MAX_UNREAD_CHARS: Final = 16 * 1024 * 1024  # of output: twice what is kept of each job
_EVENT_CHARS: Final = 128  # that one event counts as, besides its text


class Event(Protocol):
    """What is used of an event; ``jobs.Event`` is one."""

    @property
    def kind(self) -> str:
        """What happened."""

    @property
    def job(self) -> Any:
        """The job, with its number."""

    @property
    def text(self) -> str:
        """The output."""


E = TypeVar("E", bound=Event)


class UnreadEvents(Generic[E]):
    """A queue of events, from the link's thread to the reader's.

    If the reader does not keep up, the oldest output is dropped, down to half of the limit; one
    event ``truncated`` of each job concerned takes its place. Other events are never dropped.

    Args:
        make_truncated: makes that event for a job.
        max_chars: how much output is kept.
    """

    def __init__(
        self, make_truncated: Callable[[Any], E], max_chars: int = MAX_UNREAD_CHARS
    ) -> None:
        self._make_truncated = make_truncated
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._events: collections.deque[E] = collections.deque()
        self._chars = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: E) -> None:
        """Add the next event."""
        with self._lock:
            self._events.append(event)
            self._chars += _cost(event)
            if self._chars > self._max_chars:
                self._drop_oldest_output()

    def take(self) -> E | None:
        """Remove and return the oldest event; None if there is none."""
        with self._lock:
            if not self._events:
                return None
            event = self._events.popleft()
            self._chars -= _cost(event)
            return event

    def _drop_oldest_output(self) -> None:
        kept: collections.deque[E] = collections.deque()
        truncated: set[int] = set()
        chars = self._chars
        for event in self._events:
            is_older = chars > self._max_chars // 2
            if event.kind == "truncated" or (event.kind == "output" and is_older):
                chars -= _cost(event)
                if event.job.number not in truncated:
                    truncated.add(event.job.number)
                    kept.append(self._make_truncated(event.job))
            else:
                kept.append(event)
        self._events = kept
        self._chars = sum(map(_cost, kept))


def _cost(event: Event) -> int:
    """Return how much an event counts: only output can be dropped, so only output counts."""
    return len(event.text) + _EVENT_CHARS if event.kind in ("output", "truncated") else 0
