"""The audit log: who did what, to which boards, and whether it was allowed. No sockets, no SQL.

Each cell and each verb that changes something writes one row, in the same transaction as the
change. Verbs that only read write a limited number of rows per minute, because programs repeat
them. Refusals are limited too, so that a flood of them cannot fill the disk; the next row states
how many were left out. A row never contains secrets or the text of a cell.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloudmanager.protocol.errors import CloudmanagerError, ServerError
from cloudmanager.protocol.text import sanitize_text
from cm_server.limits import Limits
from cm_server.rate_limits import RateLimiter, address_group
from cm_server.store.rows import AuditRow

from . import credentials

if TYPE_CHECKING:
    from cm_server.store.store import Store
    from cm_server.store.store_queue import Operation, StoreQueue

_VERB_CHARS = 64  # of a verb in a row


class AuditEntry:
    """A future row of the audit log, whose fields are filled in while a request is handled.

    Args:
        who: the name of the caller's token; "" for an unauthenticated peer.
        address: the peer's address.
        verb: what was requested.
        target: the boards, jobs or tokens that it concerns, as the caller wrote them.
        max_chars: of the target and of the detail in the row.

    Attributes:
        detail: what was done with them.
        boards: how many boards it concerned; None if it is not about boards.
        written: whether the row is in the store.
    """

    __slots__ = ("_max_chars", "address", "boards", "detail", "target", "verb", "who", "written")

    def __init__(
        self,
        who: str,
        address: str,
        verb: str,
        target: str = "",
        max_chars: int = Limits.audit_chars,
    ) -> None:
        self._max_chars = max_chars
        self.who = who
        self.address = address
        self.verb = verb
        self.target = target
        self.detail = ""
        self.boards: int | None = None
        self.written = False

    def to_row(self, outcome: str = "done") -> AuditRow:
        """Return the row for the store, with its texts shortened."""
        return AuditRow(
            time.time(),
            self.who,
            self.address,
            shorten(self.verb, self._max_chars)[:_VERB_CHARS],
            shorten(self.target, self._max_chars),
            shorten(self.detail, self._max_chars),
            self.boards,
            None,
            None,
            outcome,
        )


class AuditLog:
    """Writes the audit log.

    Args:
        store_queue: of the store, where the rows are kept.
        limits: how many rows a minute, and how long their texts are.
        clock: seconds since an arbitrary start, for the rate limits.
    """

    def __init__(
        self,
        store_queue: StoreQueue[Store],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store_queue = store_queue
        self.max_chars = limits.audit_chars
        rate = functools.partial(RateLimiter, clock=clock, max_keys=limits.rate_limit_keys)
        self._read_rate = rate(limits.read_rows_per_minute)
        self._refusal_rate = rate(limits.refusal_rows_per_minute)
        self._address_rate = rate(limits.stranger_rows_per_address_per_minute)
        self._unauthenticated_rate = rate(limits.stranger_rows_total_per_minute)

    def new_entry(self, who: str, address: str, verb: str, target: str = "") -> AuditEntry:
        """Return an entry that is written later; its arguments are those of ``AuditEntry``."""
        return AuditEntry(who, address, verb, target, self.max_chars)

    def log_action(self, audit_entry: AuditEntry) -> Operation[None]:
        """Write what was done, which is on the disk when the operation is done.

        Its result is a ServerError if the row cannot be written.
        """
        row = audit_entry.to_row()
        return self._store_queue.run(
            lambda store: store.add_audit_row(row, durable=True), durable=True
        )

    def log_read(self, audit_entry: AuditEntry) -> None:
        """Write that a caller has read something, unless it did so too often in this minute."""
        if self._read_rate.allow(f"{audit_entry.who} {audit_entry.verb}") is not None:
            self._write(audit_entry.to_row())

    def log_refusal(self, audit_entry: AuditEntry, error: CloudmanagerError) -> None:
        """Write that a caller's request was refused, unless it had too many refusals."""
        omitted = self._refusal_rate.allow(audit_entry.who)
        if omitted is not None:
            # The words before the reason of a ServerError are for its caller.
            reason = error.detail
            if isinstance(error, ServerError):
                reason = sanitize_text(error.reason)
            audit_entry.detail = _with_omitted_count(reason, omitted)
            self._write(audit_entry.to_row("refused"))

    def log_unauthenticated(self, address: str, verb: str, target: str, reason: str) -> str | None:
        """Write that an unauthenticated peer was refused, unless there were too many.

        Args:
            address: the peer's address.
            verb: what it tried.
            target: the identity that it claimed, if any.
            reason: why it was refused.

        Returns:
            The text for the server's log; None if there were too many refusals.
        """
        omitted = self._address_rate.allow(address_group(address))
        if omitted is None:
            return None
        omitted_in_total = self._unauthenticated_rate.allow("")
        if omitted_in_total is None:
            return None
        entry = self.new_entry("", address, verb, target)
        entry.detail = _with_omitted_count(reason, omitted + omitted_in_total)
        self._write(entry.to_row("refused"))
        return entry.detail

    def _write(self, row: AuditRow) -> None:
        """Write a row that may be lost if the disk is full: nothing was changed."""
        self._store_queue.run_later(lambda store: store.add_audit_row(row))


def shorten(text: str, length: int) -> str:
    """Return text as one line without tokens.

    Args:
        text: any text, also from a peer.
        length: the maximum number of characters.
    """
    if not text:
        return ""  # of nearly every cell
    masked = _mask_tokens(text[: 4 * length])
    line = " ".join(masked.encode("utf-8", "replace").decode().replace("\0", " ").split())
    return line[:length]


def _mask_tokens(text: str) -> str:
    """Replace everything that looks like a token."""
    return credentials.TOKEN_PATTERN.sub("cm_***", text)


def _with_omitted_count(reason: str, omitted: int) -> str:
    return f"{reason} ({omitted} more before it are not listed)" if omitted else reason
