"""Whether this machine's clock may be believed before something irreversible is done by it.

The wall clock (seconds since 1970) can be set: by a person, by a wrong NTP server, and on a
machine without a battery-backed clock (Raspberry Pi) it starts in 1970, or at the time of the last
shutdown, and is corrected later. So it is compared with a clock that nobody can set, and at the
start with the time that the server had stored before. A clock that does not fit is unconfirmed
until it has gone evenly for a day. No sockets, no SQL.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloudmanager.protocol.errors import ServerError

from .store.rows import AuditRow

if TYPE_CHECKING:
    from .store.store import Store

log = logging.getLogger("cm_server")

HOUR = 3600.0
DAY = 86400.0
#: Difference that is no step: what a clock drifts in a day, and what NTP corrects now and then.
TOLERANCE = HOUR
#: Time that a server may have been off, or the machine asleep, without a doubt about the clock.
LONGEST_GAP = 7 * DAY
#: Running time after which a clock that was set is believed; it goes evenly meanwhile.
CONFIRM_SECONDS = DAY
#: At most so much counts between two looks, one of which is due each minute: a machine that
#: slept, or whose steady clock leapt, has not gone evenly meanwhile.
COUNTED_SECONDS = 120.0
#: 2024-01-01. This program is younger, so an earlier clock (1970, 2000) is wrong.
EARLIEST = 1_704_067_200.0
_NAME = "clock"  # of the stored state


def steady_seconds() -> float:
    """Return the seconds of a clock that nobody can set, and that goes on while the machine sleeps.

    Linux' CLOCK_BOOTTIME counts the time that a machine is suspended; its CLOCK_MONOTONIC does not.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class CheckedClock:
    """The wall clock, compared with a steady one and with the time that the store knows.

    Args:
        store: keeps the last known time over restarts.
        name: the clock's own among several servers that share the store.
        wall: seconds since 1970; this clock can be set.
        steady: seconds from any beginning; this clock cannot be set.

    Attributes:
        wall: the wall clock, as given.
        problem: why the wall clock is not confirmed, a sentence; "" where it is confirmed.
    """

    def __init__(
        self,
        store: Store,
        name: str = "",
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self._store = store
        self._name = f"{_NAME} {name}".strip()
        self.wall = wall
        self._steady = steady
        self.problem = ""
        self._noted_at: float | None = None  # running time of the last row in the audit log
        self._looked_at = steady()
        self._uptime = 0.0  # seconds that went by on the steady clock, leaps left out
        # The last confirmed time, and the uptime at which it was that.
        self._known, self._known_at = 0.0, 0.0
        # While the clock is unconfirmed: where it was first seen so, and how long it has fitted.
        self._candidate, self._candidate_at, self._agreed = 0.0, 0.0, 0.0
        self._begin()

    def _begin(self) -> None:
        """Compare the clock with what the store knows of the time before this start."""
        now = self.wall()
        state = self._store.recall(self._name) or {}
        known = state.get("known")
        if known is None:
            known = self._store.newest_time()
        self._known = now if known is None else float(known)
        self._candidate = now
        gap = now - self._known
        if now >= EARLIEST and (-TOLERANCE <= gap <= LONGEST_GAP or self._known < EARLIEST):
            self._known = now
            return
        if -TOLERANCE <= now - float(state.get("candidate", 0.0)) <= LONGEST_GAP:
            self._agreed = float(state.get("agreed", 0.0))  # it goes on where the last run ended
        self._doubt(now)

    def check(self) -> bool:
        """Look at both clocks; return whether the wall clock is confirmed.

        Call it at least once a minute, and before each act that cannot be undone.
        """
        now, steady = self.wall(), self._steady()
        passed = max(steady - self._looked_at, 0.0)
        self._looked_at = steady
        self._uptime += passed if passed <= LONGEST_GAP else 0.0
        expected = self._known + self._uptime - self._known_at
        if self._known < EARLIEST <= now:  # a new server's first certain time
            self._confirm(now, anew=True)
            return True
        if abs(now - expected) <= TOLERANCE and now >= EARLIEST:
            self._confirm(now, anew=self._uptime - self._known_at >= DAY)
            return True
        fits = self._candidate + self._uptime - self._candidate_at
        if self.problem and abs(now - fits) <= TOLERANCE:
            self._agreed += min(passed, COUNTED_SECONDS)
        else:
            self._candidate, self._candidate_at, self._agreed = now, self._uptime, 0.0
            self._doubt(now)
        if self._agreed >= CONFIRM_SECONDS and now >= EARLIEST:
            self._confirm(now, anew=True)
        return not self.problem

    def _confirm(self, now: float, *, anew: bool) -> None:
        """Believe the clock; ``anew`` measures the next steps from here."""
        if anew:
            self._known, self._known_at = now, self._uptime
        if self.problem:
            self.problem = ""
            log.info("this machine's clock is confirmed: %s", _moment(now))
            self._keep()

    def _doubt(self, now: float) -> None:
        """Take the clock for unconfirmed; say so in the log and in the audit log."""
        ahead = now - (self._known + self._uptime - self._known_at)
        where = f"{_span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the time that the"
        until = f"it has gone evenly for {CONFIRM_SECONDS / HOUR:g} h"
        if now < EARLIEST:
            where, until = (
                "which is before this program was written; it is behind the time the",
                "it is set",
            )
        self.problem = (
            f"this machine's clock may be wrong: it says {_moment(now)}, {where} server expects; "
            f"nothing old is deleted until {until}"
        )
        log.warning("%s", self.problem)
        if self._noted_at is None or self._uptime - self._noted_at >= HOUR:
            self._noted_at = self._uptime
            note = AuditRow(
                now, "", "this machine", "clock", "", self.problem, None, None, None, "done"
            )
            try:
                self._store.add_audit_row(note)
            except ServerError:
                return  # it is in the log
        self._keep()

    def latest(self) -> float:
        """Return the later one of the wall clock and of the time that is known to have passed.

        By this one tokens expire: a clock that is set back, or starts in 1970, does not make
        an expired token valid again.
        """
        passed = max(self._steady() - self._looked_at, 0.0)
        uptime = self._uptime + (passed if passed <= LONGEST_GAP else 0.0)
        return max(self.wall(), self._known + uptime - self._known_at)

    def save(self) -> None:
        """Store the time, for the next start; call it now and then, and at the end."""
        self.check()  # a step since the last look must not be stored as confirmed
        self._keep()

    def _keep(self) -> None:
        now = self.wall()
        known = self._known + self._uptime - self._known_at if self.problem else now
        agreed = self._agreed if self.problem else CONFIRM_SECONDS
        try:
            self._store.remember(self._name, {"known": known, "candidate": now, "agreed": agreed})
        except ServerError:
            return  # the disk is full: the next start compares with an older time


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"


def _span(seconds: float) -> str:
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.0f} h"
    return f"{seconds / DAY:.0f} days"
