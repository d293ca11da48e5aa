"""Decide whether this machine's clock is trusted for operations that cannot be undone.

The wall clock (seconds since 1970) can be set: by a person, by a wrong NTP server, and on a
machine without a battery-backed clock (Raspberry Pi) it starts in 1970, or at the time of the last
shutdown, and is corrected later. So it is compared with a clock that cannot be set, and at the
start with the time that the server stored before. A wall clock that does not agree is unconfirmed
until it has run evenly for a day. No sockets, no SQL.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .store.rows import AuditRow
from .times import DAY, EARLIEST

if TYPE_CHECKING:
    from .store.store import Store
    from .store.store_queue import StoreQueue

log = logging.getLogger("cm_server")

HOUR = 3600.0
#: A smaller difference is no step: clocks drift during a day, and NTP corrects them.
TOLERANCE = HOUR
#: For this time a server may have been off, or the machine suspended, without doubting the clock.
LONGEST_GAP = 7 * DAY
#: Running time after which a clock that was set is trusted again, if it runs evenly meanwhile.
CONFIRM_SECONDS = DAY
#: At most this much running time is counted between two checks, which are a minute apart: a
#: machine that was suspended, or whose steady clock jumped, did not run evenly in between.
COUNTED_SECONDS = 120.0
_NAME = "clock"  # of the stored state


def steady_seconds() -> float:
    """Return the seconds of a clock that cannot be set and that counts while suspended.

    Linux' CLOCK_BOOTTIME counts the time that a machine is suspended; its CLOCK_MONOTONIC does not.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class CheckedClock:
    """The wall clock, compared with a steady clock and with the time in the store.

    Args:
        store_queue: of the store, which keeps the last known time over restarts.
        name: distinguishes the clocks of several servers that share the store.
        wall: seconds since 1970; this clock can be set.
        steady: seconds from any starting point; this clock cannot be set.

    Attributes:
        wall: the wall clock, as given.
        problem: a sentence that says why the wall clock is unconfirmed; "" while it is confirmed.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        name: str = "",
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self._store_queue = store_queue
        self._name = f"{_NAME} {name}".strip()
        self.wall = wall
        self._steady = steady
        self.problem = ""
        self._audited_at: float | None = None  # uptime at the last row in the audit log
        self._checked_at = steady()
        self._uptime = 0.0  # seconds of the steady clock since the start, without jumps
        # The last confirmed time, and the uptime at that moment.
        self._known = 0.0
        self._known_at = 0.0
        # While the clock is unconfirmed: the time that it showed at first, the uptime at that
        # moment, and for how many seconds it has run evenly since.
        self._candidate = 0.0
        self._candidate_at = 0.0
        self._agreed = 0.0
        self._compare_with_store()

    def _compare_with_store(self) -> None:
        """Compare the clock with the time that was stored before this start."""
        now = self.wall()
        store = self._store_queue.store  # the server does not serve yet
        state = store.recall(self._name) or {}
        known = state.get("known")
        if known is None:
            known = store.newest_time()
        self._known = now if known is None else float(known)
        self._candidate = now
        if self._agrees_with_stored_time(now):
            self._known = now
            return
        if -TOLERANCE <= now - float(state.get("candidate", 0.0)) <= LONGEST_GAP:
            self._agreed = float(state.get("agreed", 0.0))  # continue where the last run ended
        self._mark_unconfirmed(now)

    def _agrees_with_stored_time(self, now: float) -> bool:
        """Return whether a wall clock that shows ``now`` at the start can be right."""
        if now < EARLIEST:
            return False
        return -TOLERANCE <= now - self._known <= LONGEST_GAP or self._known < EARLIEST

    def check(self) -> bool:
        """Compare both clocks; return whether the wall clock is confirmed.

        Call it at least once a minute, and before each operation that cannot be undone.
        """
        now, steady = self.wall(), self._steady()
        passed = max(steady - self._checked_at, 0.0)
        self._checked_at = steady
        self._uptime += passed if passed <= LONGEST_GAP else 0.0
        if self._known < EARLIEST <= now:  # the first plausible time of a new server
            self._confirm(now, new_reference=True)
            return True
        if self._agrees_with_steady_clock(now):
            self._confirm(now, new_reference=self._uptime - self._known_at >= DAY)
            return True
        since_step = self._candidate + self._uptime - self._candidate_at
        if self.problem and abs(now - since_step) <= TOLERANCE:
            self._agreed += min(passed, COUNTED_SECONDS)
        else:
            self._candidate, self._candidate_at, self._agreed = now, self._uptime, 0.0
            self._mark_unconfirmed(now)
        if self._agreed >= CONFIRM_SECONDS and now >= EARLIEST:
            self._confirm(now, new_reference=True)
        return not self.problem

    def _agrees_with_steady_clock(self, now: float) -> bool:
        """Return whether the wall clock shows the last confirmed time plus the time since."""
        return abs(now - self._expected()) <= TOLERANCE and now >= EARLIEST

    def _expected(self) -> float:
        return self._known + self._uptime - self._known_at

    def _confirm(self, now: float, *, new_reference: bool) -> None:
        """Trust the clock; with ``new_reference``, later steps are measured from this moment."""
        if new_reference:
            self._known, self._known_at = now, self._uptime
        if self.problem:
            self.problem = ""
            log.info("this machine's clock is confirmed: %s", _format_time(now))
            self._store_time()

    def _mark_unconfirmed(self, now: float) -> None:
        """Set ``problem``, and write it into the log and the audit log."""
        ahead = now - self._expected()
        direction = "ahead of" if ahead > 0 else "behind"
        difference = f"{_format_span(abs(ahead))} {direction} the time that the server expects"
        until = f"it has run evenly for {CONFIRM_SECONDS / HOUR:g} h"
        if now < EARLIEST:
            difference = "which is before this program was written"
            until = "it is set"
        self.problem = (
            f"this machine's clock may be wrong: it shows {_format_time(now)}, {difference}; "
            f"no old rows are deleted until {until}"
        )
        log.warning("%s", self.problem)
        if self._audited_at is None or self._uptime - self._audited_at >= HOUR:
            self._audited_at = self._uptime
            row = AuditRow(
                now, "", "this machine", "clock", "", self.problem, None, None, None, "done"
            )
            self._store_queue.run_later(lambda store: store.add_audit_row(row))
        self._store_time()

    def latest(self) -> float:
        """Return the later one of the wall clock and of the time that must have been reached.

        Tokens expire by this time: a clock that is set back, or that starts in 1970, does not
        make an expired token valid again.
        """
        passed = max(self._steady() - self._checked_at, 0.0)
        uptime = self._uptime + (passed if passed <= LONGEST_GAP else 0.0)
        return max(self.wall(), self._known + uptime - self._known_at)

    def save(self) -> None:
        """Store the time for the next start; call it regularly, and at the end."""
        self.check()  # a step since the last check must not be stored as confirmed
        self._store_time()

    def _store_time(self) -> None:
        now = self.wall()
        known = self._expected() if self.problem else now
        agreed = self._agreed if self.problem else CONFIRM_SECONDS
        values = {"known": known, "candidate": now, "agreed": agreed}
        # If the disk is full, the next start compares with an older time.
        self._store_queue.run_later(lambda store: store.remember(self._name, values))


def _format_time(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"


def _format_span(seconds: float) -> str:
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.0f} h"
    return f"{seconds / DAY:.0f} days"
