"""Who stands at the door: connections that have proven nothing yet, and who failed to.

No sockets here: what ends a connection is handed in. Nothing locks an address out, since
healthy boards and an attacker may share one (a building's router): where there are too many
connections the oldest is cut, and a right token or key opens however many wrong ones came.
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

from cm_server import limits

log = logging.getLogger("cm_server")

MINUTE = 60.0  # seconds


class RateLimiter:
    """So many events a minute for each key; of the rest, only how many there were.

    Args:
        per_minute: how many.
        clock: seconds, from any beginning.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._counts: OrderedDict[str, _RateWindow] = OrderedDict()  # the longest unused first

    def allow(self, key: str) -> int | None:
        """Count an event; return how many were left out before it, None to leave it out, too."""
        now = self._clock()
        count = self._counts.setdefault(key, _RateWindow(now))
        self._counts.move_to_end(key)
        if len(self._counts) > limits.RATE_LIMIT_KEYS:
            self._counts.popitem(last=False)
        if now - count.started_at >= MINUTE:
            count.started_at, count.events = now, 0
        count.events += 1
        if count.events > self.per_minute:
            count.suppressed += 1
            return None
        left_out, count.suppressed = count.suppressed, 0
        return left_out


class TokenBucket:
    """Allows a steady rate of events, and a burst of them after a pause.

    Args:
        per_second: the steady rate.
        burst: how many may come at once; twice as many after a pause that is long enough.
        clock: seconds, from any beginning.
    """

    __slots__ = ("_burst", "_clock", "_left", "_per_second", "_since")

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left = burst
        self._since = clock()

    def spend(self, events: float = 1) -> float:
        """Count events; return the seconds to wait until no more than allowed have come.

        Returns:
            0.0 where they were allowed. The clock is read only where the burst is used up.
        """
        self._left -= events
        if self._left >= 0:
            return 0.0
        now = self._clock()
        self._left = min(self._left + (now - self._since) * self._per_second, self._burst)
        self._since = now
        return max(-self._left / self._per_second, 0.0)


class _RateWindow:
    __slots__ = ("events", "suppressed", "started_at")

    def __init__(self, now: float) -> None:
        self.started_at, self.events, self.suppressed = now, 0, 0


class UnauthenticatedEntry(NamedTuple):
    """One connection in ``Unproven``."""

    group: str
    number: int


class UnauthenticatedConnections:
    """The connections that have proven nothing yet, bounded for each address and as a whole.

    Attributes:
        count: how many there are.
        dropped: how many were cut because there were too many.
    """

    def __init__(self) -> None:
        self.count = 0
        self.dropped = 0
        self._numbers = itertools.count()
        self._failures = RateLimiter(limits.FAILURE_LINES_PER_MINUTE)
        per_second = limits.UNPROVEN_READS_PER_SECOND
        self._reads = TokenBucket(per_second, per_second / 5)
        self._groups: dict[str, dict[int, Callable[[], object]]] = {}  # the oldest first

    def add(self, address: str, close: Callable[[], object]) -> UnauthenticatedEntry:
        """Take in a connection; the oldest is cut (``close``) where there are too many."""
        entry = UnauthenticatedEntry(address_group(address), next(self._numbers))
        group = self._groups.setdefault(entry.group, {})
        group[entry.number] = close
        self.count += 1
        if len(group) > limits.UNAUTHENTICATED_PER_ADDRESS:
            self._drop_oldest(entry.group)
        elif self.count > limits.UNAUTHENTICATED:
            self._drop_oldest(max(self._groups, key=lambda name: len(self._groups[name])))
        return entry

    def read_pause(self, reads: int) -> float:
        """Return the seconds to wait before the next read of one of them.

        The first reads of each are free. All others share a rate: who sends byte by byte on
        very many connections waits longer and longer, and his bytes are gathered meanwhile.

        Args:
            reads: how many there were of this connection.
        """
        return self._reads.spend() if reads > limits.UNPROVEN_READS_AT_ONCE else 0.0

    def remove(self, entry: UnauthenticatedEntry) -> None:
        """Let a connection go: it is proven, or gone; it may be gone already."""
        group = self._groups.get(entry.group, {})
        if group.pop(entry.number, None) is None:
            return
        self.count -= 1
        if not group:
            del self._groups[entry.group]

    def _drop_oldest(self, name: str) -> None:
        number, end = next(iter(self._groups[name].items()))
        self.remove(UnauthenticatedEntry(name, number))
        self.dropped += 1
        try:
            end()
        except Exception:  # it is another connection's: the newcomer must not pay for it
            if self._failures.allow("") is not None:
                log.exception("a connection of which there were too many could not be ended")


@functools.lru_cache(limits.RATE_LIMIT_KEYS)
def address_group(address: str) -> str:
    """Return what counts as one address: of IPv6 the first 64 bits, which one host may fill."""
    try:
        read = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(read, ipaddress.IPv6Address):
        if read.ipv4_mapped:
            return str(read.ipv4_mapped)
        return str(ipaddress.ip_network((read, 64), strict=False))
    return str(read)
