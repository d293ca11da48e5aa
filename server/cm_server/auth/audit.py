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
from cm_server.net.rate_limits import Rate, group_of
from cm_server.store.rows import AuditRow

from . import credentials

if TYPE_CHECKING:
    from cm_server.store.store import Store


class Note:
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

    def row(self, outcome: str = "done") -> AuditRow:
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


class Audit:
    """Writes the audit log.

    Args:
        store: where its rows are.
        clock: seconds, from any beginning.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._reads = Rate(limits.READ_ROWS_PER_MINUTE, clock)
        self._refusals = Rate(limits.REFUSAL_ROWS_PER_MINUTE, clock)
        self._address = Rate(limits.STRANGER_ROWS_PER_MINUTE, clock)
        self._strangers = Rate(limits.STRANGERS_ROWS_PER_MINUTE, clock)

    def done(self, note: Note) -> None:
        """Write what was done, unless the store has it already.

        Raises:
            ServerError: it cannot be written.
        """
        if not note.written:
            self._store.note(note.row(), durable=True)

    def read(self, note: Note) -> None:
        """Write that something was looked at."""
        if self._reads.allow(f"{note.who} {note.verb}") is not None:
            self._write(note.row())

    def refused(self, note: Note, error: CloudmanagerError) -> None:
        """Write that a caller was refused something."""
        left_out = self._refusals.allow(note.who)
        if left_out is not None:
            note.detail = _counted(error.detail, left_out)
            self._write(note.row("refused"))

    def stranger(self, address: str, verb: str, target: str, why: str) -> str | None:
        """Write that somebody unknown was refused.

        Returns:
            What is to be logged; None where there were too many of them.
        """
        left_out = self._address.allow(group_of(address))
        whole = self._strangers.allow("") if left_out is not None else None
        if left_out is None or whole is None:
            return None
        note = Note("", address, verb, target)
        note.detail = _counted(why, left_out + whole)
        self._write(note.row("refused"))
        return note.detail

    def _write(self, row: AuditRow) -> None:
        """Write what may be missing where the disk is full: it was refused all the same."""
        try:
            self._store.note(row)
        except ServerError:
            return


def shorten(text: str, length: int = 0) -> str:
    """Return text in one line, at most ``AUDIT_CHARS`` of it, without what looks like a token."""
    clean = credentials.TOKEN.sub("cm_***", text[: 4 * limits.AUDIT_CHARS])
    line = " ".join(clean.encode("utf-8", "replace").decode().replace("\0", " ").split())
    return line[: length or limits.AUDIT_CHARS]


def _counted(why: str, left_out: int) -> str:
    return f"{why} ({left_out} more before it are not listed)" if left_out else why
