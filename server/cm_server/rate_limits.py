"""Rate limits, and the bounded set of unauthenticated connections. No sockets here.

No limit blocks an address, because boards and an attacker may share one (behind a router). If
there are too many unauthenticated connections, the oldest is closed, and a valid token or key is
accepted however many wrong ones came from the same address.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cm_server.limits import Limits

log = logging.getLogger("cm_server")

MINUTE = 60.0  # seconds
_CACHED_ADDRESSES = 1024  # whose groups need not be computed again


class RateLimiter:
    """Allows a number of events per minute for each key, and counts the others.

    Args:
        per_minute: events that are allowed per minute and key.
        clock: seconds since an arbitrary start.
        max_keys: keys whose events are counted at the same time; then the least recently used one
            is forgotten.
    """

    def __init__(
        self,
        per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_keys: int = Limits.rate_limit_keys,
    ) -> None:
        self.per_minute = per_minute
        self._max_keys = max_keys
        self._clock = clock
        self._windows: OrderedDict[str, _RateWindow] = OrderedDict()  # least recently used first

    def allow(self, key: str) -> int | None:
        """Count an event.

        Returns:
            None if the event exceeds the limit; else how many were suppressed since the last
            event that was allowed.
        """
        now = self._clock()
        window = self._windows.setdefault(key, _RateWindow(now))
        self._windows.move_to_end(key)
        if len(self._windows) > self._max_keys:
            self._windows.popitem(last=False)
        if now - window.started_at >= MINUTE:
            window.started_at = now
            window.events = 0
        window.events += 1
        if window.events > self.per_minute:
            window.suppressed += 1
            return None
        suppressed, window.suppressed = window.suppressed, 0
        return suppressed


class TokenBucket:
    """Allows a steady rate of events, and a burst of them after a pause.

    Args:
        per_second: the steady rate.
        burst: events that are allowed at once; up to twice as many after a long pause.
        clock: seconds since an arbitrary start.
    """

    __slots__ = ("_burst", "_clock", "_left", "_per_second", "_since")

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left = burst
        self._since = clock()

    def spend(self, events: float = 1) -> float:
        """Count events.

        Args:
            events: may be a fraction, or negative to take back events that were counted.

        Returns:
            The seconds to wait until the rate is kept; 0.0 if the events are allowed now.
        """
        # The clock is read only when the burst is used up: this runs for every message.
        self._left -= events
        if self._left >= 0:
            return 0.0
        now = self._clock()
        self._left = min(self._left + (now - self._since) * self._per_second, self._burst)
        self._since = now
        return max(-self._left / self._per_second, 0.0)


class _RateWindow:
    """The events of one key in the current minute."""

    __slots__ = ("events", "suppressed", "started_at")

    def __init__(self, now: float) -> None:
        self.started_at, self.events, self.suppressed = now, 0, 0


class UnauthenticatedEntry(NamedTuple):
    """Identifies one connection in ``UnauthenticatedConnections``."""

    group: str
    number: int


class UnauthenticatedConnections:
    """The connections that have not authenticated yet, bounded per address and in total.

    Args:
        limits: how many there may be, and their rate of reads.

    Attributes:
        count: how many there are.
        dropped: how many were closed because there were too many.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.count = 0
        self.dropped = 0
        self._numbers = itertools.count()
        self._failures = RateLimiter(
            limits.failure_lines_per_minute, max_keys=limits.rate_limit_keys
        )
        per_second = limits.unauthenticated_reads_per_second
        self._reads = TokenBucket(per_second, per_second / 5)
        self._groups: dict[str, dict[int, Callable[[], object]]] = {}  # oldest first

    def add(self, address: str, close: Callable[[], object]) -> UnauthenticatedEntry:
        """Add a connection; if there are too many then, close the oldest.

        Args:
            address: the peer's IP address.
            close: closes the connection.

        Returns:
            The entry for ``remove``.
        """
        entry = UnauthenticatedEntry(address_group(address), next(self._numbers))
        group = self._groups.setdefault(entry.group, {})
        group[entry.number] = close
        self.count += 1
        if self._is_over_address_limit(len(group)):
            self._drop_oldest(entry.group)
        elif self._is_over_total_limit():
            largest = max(self._groups, key=lambda name: len(self._groups[name]))
            self._drop_oldest(largest)
        return entry

    def _is_over_address_limit(self, count: int) -> bool:
        return count > self._limits.unauthenticated_per_address

    def _is_over_total_limit(self) -> bool:
        return self.count > self._limits.unauthenticated

    def read_pause(self, reads: int) -> float:
        """Return the seconds to wait before the next read from one of the connections.

        The first reads of each connection are free; all others share one rate. Bytes that arrive
        during the wait are collected in the socket and read together.

        Args:
            reads: the number of reads from this connection so far.
        """
        return self._reads.spend() if reads > self._limits.unauthenticated_reads_at_once else 0.0

    def remove(self, entry: UnauthenticatedEntry) -> None:
        """Remove a connection that has authenticated or closed; may be called more than once."""
        group = self._groups.get(entry.group, {})
        if group.pop(entry.number, None) is None:
            return
        self.count -= 1
        if not group:
            del self._groups[entry.group]

    def _drop_oldest(self, group: str) -> None:
        number, close = next(iter(self._groups[group].items()))
        self.remove(UnauthenticatedEntry(group, number))
        self.dropped += 1
        self._close_safely(close)

    def _close_safely(self, close: Callable[[], object]) -> None:
        """Close a connection; a failure must not affect the new one, which is being added."""
        try:
            close()
        except Exception:
            if self._failures.allow("") is not None:
                log.exception("one of too many unauthenticated connections could not be closed")


@functools.lru_cache(_CACHED_ADDRESSES)
def address_group(address: str) -> str:
    """Return the key under which an address is counted.

    For IPv6 it is the first 64 bits, because one host may use all addresses of such a network.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
