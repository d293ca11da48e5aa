"""What a queued job waits for, in words; no I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudmanager.protocol.spans import format_moment
from cloudmanager.results.rows import caller_text, reservation_text

_MAX_CALLERS = 3  # callers that a text names
_NOT_CONNECTED = "it is not connected"
_STOP_PROGRAM = "`mbm board TARGET stop` ends that"


class Wait(NamedTuple):
    """What a queued job waits for.

    Attributes:
        jobs_ahead: how many jobs its board runs first; 0 if it waits for the board to connect.
        callers: who submitted those jobs; empty if that is not known.
        running_since: when the first of them began, by ``time.perf_counter``; None if not known.
        program: the board's own program, if that keeps the board busy; else "".
        reserved_by: who has reserved the board; "" if that is not why the job waits.
        reserved_until: until when, in seconds since 1970.
        wakes_at: when the board wakes, or should have woken, in seconds since 1970; 0: it does not
            sleep.
    """

    jobs_ahead: int = 0
    callers: tuple[str, ...] = ()
    running_since: float | None = None
    program: str = ""
    reserved_by: str = ""
    reserved_until: float = 0.0
    wakes_at: float = 0.0

    @property
    def text(self) -> str:
        """The reason in a few words: "behind 2 jobs of anna"; "" if the board must connect."""
        if self.wakes_at:
            return f"until it wakes at {format_moment(self.wakes_at)}"
        if not self.jobs_ahead:
            return ""
        if self.reserved_by:
            return f"reserved by {reservation_text(self.reserved_by, self.reserved_until)}"
        if self.program and self.jobs_ahead == 1:
            return f"behind {self.program}"
        return f"behind {self._jobs_text()}"

    def sentence(self, now: float) -> str:
        """Return the reason as the part of a sentence that follows the board's name.

        Args:
            now: the time, by ``time.perf_counter``.
        """
        if self.wakes_at:
            # As it was when the job was submitted: the board may have woken since then.
            state = "is asleep until" if self.wakes_at > time.time() else "was expected at"
            return f"it {state} {format_moment(self.wakes_at)}"
        if not self.jobs_ahead:
            return _NOT_CONNECTED
        if self.reserved_by:
            return f"it is reserved by {reservation_text(self.reserved_by, self.reserved_until)}"
        if self.program:
            return f"its own program {self.program} keeps it busy; {_STOP_PROGRAM}"
        seconds = "" if self.running_since is None else f"{now - self.running_since:.0f} s"
        if self.jobs_ahead == 1:
            duration = f" for {seconds}" if seconds else ""
            return f"it has been running {self._jobs_text('a')}{duration}"
        duration = f"; the first has been running for {seconds}" if seconds else ""
        return f"it runs {self._jobs_text()} first{duration}"

    def _jobs_text(self, one: str = "1") -> str:
        count = f"{one} job" if self.jobs_ahead == 1 else f"{self.jobs_ahead:,} jobs"
        names = [caller_text(each) for each in self.callers][:_MAX_CALLERS]
        if len(names) < len(self.callers):
            names.append("others")
        if not names:
            return count
        people = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        return f"{count} of {people}"


def read_wait(jobs_ahead: int, known: Mapping[str, Any] | None = None) -> Wait:
    """Return what a job waits for, from its entry in ACCEPTED; older servers send the number only.

    Raises:
        TypeError, ValueError: the entry is malformed.
    """
    known = known or {}
    elapsed = known.get("elapsed")
    return Wait(
        int(jobs_ahead),
        tuple(str(caller) for caller in known.get("callers", ())),
        None if elapsed is None else time.perf_counter() - float(elapsed),
        str(known.get("program", "")),
        str(known.get("reserved_by", "")),
        float(known.get("reserved_until", 0.0)),
        float(known.get("wakes_at", 0.0)),
    )
