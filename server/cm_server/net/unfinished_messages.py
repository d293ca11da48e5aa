"""The bytes of messages that have begun to arrive and are not complete: bounded, and in time.

What counts is what a peer has sent, not the length that it has announced. No sockets here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cloudmanager.protocol import frames
from cm_server.limits import Limits
from cm_server.quotas import Quota, Shares
from cm_server.store.rows import TokenRow


class Link(Protocol):
    """A caller's link."""

    @property
    def token(self) -> TokenRow:
        """The token with which it was opened."""

    def close(self, code: int, reason: str) -> None:
        """Close the link with a WebSocket close code."""

    def continue_message(self) -> None:
        """Try again to read more of the message."""


@dataclass
class _Unfinished:
    """A message that is not complete.

    Attributes:
        counted: its bytes that count.
        progress_at: when it last became longer, by the clock.
        waits: whether no more of it is read now.
    """

    counted: int
    progress_at: float
    waits: bool = False


class UnfinishedMessages:
    """The unfinished messages of all callers.

    If there are too many bytes, the message that began first may still be completed, and the links
    of the others have to wait: so each of them is completed in the end. A peer that sends nothing
    while others wait for it loses its link.

    Args:
        limits: how many bytes there may be.
        call_later: calls a function after a number of seconds.
        clock: seconds since an arbitrary start.
    """

    def __init__(
        self,
        limits: Limits,
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = limits.free_unfinished_bytes
        self._stall_seconds = limits.message_stall_seconds
        self._call_later = call_later
        self._clock = clock
        self._timer_runs = False
        self._shares = Shares(
            Quota(
                "bytes of unfinished messages",
                total=limits.unfinished_bytes,
                per_token=limits.unfinished_token_bytes,
                reserved=limits.reserved_unfinished_bytes,
            )
        )
        self._messages: dict[Link, _Unfinished] = {}  # in the order in which they began

    @property
    def total_bytes(self) -> int:
        """The bytes that count."""
        return self._shares.total

    def update(self, link: Link, size: int) -> bool:
        """Count the bytes of a link's message that is not complete.

        Args:
            link: the link.
            size: how many bytes there are now; 0 if the message is complete, or the link closed.

        Returns:
            Whether more may be read from the link; if not, it is called when it may try again.
        """
        counted = max(size - self._free_bytes, 0)
        message = self._messages.get(link)
        before = message.counted if message is not None else 0
        if counted != before:
            self._shares.add(link.token.hash, counted - before)
        if not counted:
            self._messages.pop(link, None)
        elif message is None:
            message = self._messages[link] = _Unfinished(counted, self._clock())
        elif counted != before:
            message.counted, message.progress_at = counted, self._clock()
        if counted < before:
            self._wake()
        if not counted or message is None:
            return True
        message.waits = not self._may_continue(link)
        if message.waits:
            self._start_timer()
        return not message.waits

    def _may_continue(self, link: Link) -> bool:
        """Return whether there are few enough bytes, or the link's message was the first."""
        if not self._shares.refusal_reason(link.token, 0):
            return True
        is_own_share = self._shares.exceeds_share(link.token)
        first = next(
            other
            for other in self._messages
            if not is_own_share or other.token.hash == link.token.hash
        )
        return first is link

    def _wake(self) -> None:
        for link, message in list(self._messages.items()):
            if message.waits:
                link.continue_message()

    def _start_timer(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            self._call_later(self._stall_seconds / 2, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_runs = False
        if any(message.waits for message in self._messages.values()):
            self._close_stalled()
            self._start_timer()

    def _close_stalled(self) -> None:
        """Close the links that have sent nothing for a while, but for those that have to wait."""
        latest = self._clock() - self._stall_seconds
        for link, message in list(self._messages.items()):
            if not message.waits and message.progress_at <= latest:
                link.close(frames.CLOSE_POLICY, "a message made no progress while others waited")
