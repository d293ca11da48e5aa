"""The audit log: who did what, to which boards, and whether it was allowed. No sockets, no SQL.

A verb that changes something, and a cell, leave one row in the same transaction as what they
change; so does each refusal. Verbs that only read leave one row a minute, since programs ask
again and again. Refusals are bounded too, so that no flood fills the disk: the next row tells
how many were left out. No secret and no cell's text ever stands in a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloudmanager.protocol.errors import CloudmanagerError, ServerError
from cm_server import limits
from cm_server.net.rate_limits import RateLimiter, address_group
from cm_server.store.rows import AuditRow

from . import credentials

if TYPE_CHECKING:
    from cm_server.store.store import Store


class AuditEntry:
    """What becomes one row of the audit log, while it becomes known.

    Attributes:
        target: which boards, jobs or tokens it is about, as the caller said it.
        detail: what was done with them.
        boards: how many boards that turned out to be, None where it is about none.
        written: whether it is in the store.
    """

    __slots__ = ("address", "boards", "detail", "target", "verb", "who", "written")

    def __init__(self, who: str, address: str, verb: str, target: str = "") -> None:
        self.who = who
        self.address = address
        self.verb = verb
        self.target = target
        self.detail = ""
        self.boards: int | None = None
        self.written = False

    def to_row(self, outcome: str = "done") -> AuditRow:
        """Return it as it is written."""
        return AuditRow(
            time.time(),
            self.who,
            self.address,
            shorten(self.verb, 64),
            shorten(self.target),
            shorten(self.detail),
            self.boards,
            None,
            None,
            outcome,
        )


class AuditLog:
    """Writes the audit log.

    Args:
        store: where its rows are.
        clock: seconds, from any beginning.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._read_rate = RateLimiter(limits.READ_ROWS_PER_MINUTE, clock)
        self._refusal_rate = RateLimiter(limits.REFUSAL_ROWS_PER_MINUTE, clock)
        self._address_rate = RateLimiter(limits.STRANGER_ROWS_PER_ADDRESS_PER_MINUTE, clock)
        self._stranger_rate = RateLimiter(limits.STRANGER_ROWS_TOTAL_PER_MINUTE, clock)

    def log_action(self, audit_entry: AuditEntry) -> None:
        """Write what was done, unless the store has it already.

        Raises:
            ServerError: it cannot be written.
        """
        if not audit_entry.written:
            self._store.add_audit_row(audit_entry.to_row(), durable=True)

    def log_read(self, audit_entry: AuditEntry) -> None:
        """Write that something was looked at."""
        if self._read_rate.allow(f"{audit_entry.who} {audit_entry.verb}") is not None:
            self._write(audit_entry.to_row())

    def log_refusal(self, audit_entry: AuditEntry, error: CloudmanagerError) -> None:
        """Write that a caller was refused something."""
        left_out = self._refusal_rate.allow(audit_entry.who)
        if left_out is not None:
            audit_entry.detail = _with_omitted_count(error.detail, left_out)
            self._write(audit_entry.to_row("refused"))

    def log_stranger(self, address: str, verb: str, target: str, why: str) -> str | None:
        """Write that somebody unknown was refused.

        Returns:
            What is to be logged; None where there were too many of them.
        """
        left_out = self._address_rate.allow(address_group(address))
        whole = self._stranger_rate.allow("") if left_out is not None else None
        if left_out is None or whole is None:
            return None
        note = AuditEntry("", address, verb, target)
        note.detail = _with_omitted_count(why, left_out + whole)
        self._write(note.to_row("refused"))
        return note.detail

    def _write(self, row: AuditRow) -> None:
        """Write what may be missing where the disk is full: it was refused all the same."""
        try:
            self._store.add_audit_row(row)
        except ServerError:
            return


def shorten(text: str, length: int = 0) -> str:
    """Return text in one line, at most ``AUDIT_CHARS`` of it, without what looks like a token."""
    clean = credentials.TOKEN_PATTERN.sub("cm_***", text[: 4 * limits.AUDIT_CHARS])
    line = " ".join(clean.encode("utf-8", "replace").decode().replace("\0", " ").split())
    return line[: length or limits.AUDIT_CHARS]


def _with_omitted_count(why: str, omitted: int) -> str:
    return f"{why} ({omitted} more before it are not listed)" if omitted else why
