"""The rows that the store returns and accepts. No SQL."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_JOB_ID = 2**32 - 1  # a job's number has four bytes on the wire


class BoardRow(NamedTuple):
    """One enrolled board."""

    id: str
    name: str
    key: bytes
    labels: dict[str, str]
    facts: dict[str, Any]
    enrolled: float
    last_seen: float | None
    gen: int = 0  # generation of the key: each rotation adds one
    nonce: bytes | None = None  # the next key is derived with it, during a rotation
    plain: bool = False  # it cannot verify a certificate, and may connect with MACs instead
    token: str = ""  # the hash of the token by which it enrolled itself
    serial: str | None = None  # serial number, by which people know it
    note: str | None = None  # what people wrote about it
    reserved_by: str | None = None  # the name of a token; others' jobs wait
    reserved_until: float | None = None
    stay_seconds: float | None = None  # for how long it stays awake when it wakes, if it sleeps
    stay_until: float | None = None  # by when it must have woken, or until when it stays awake

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"BoardRow(id={self.id!r}, name={self.name!r})"


def new_board_row(board_id: str, name: str, key: bytes) -> BoardRow:
    """Return the row of a board that is enrolled now."""
    return BoardRow(board_id, name, key, labels={}, facts={}, enrolled=time.time(), last_seen=None)


class TokenRow(NamedTuple):
    """One token, of a caller or for enrolment; only its hash is stored."""

    hash: str
    name: str
    role: str
    target: str = "all"  # the boards on which it may be used
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    uses: int | None = None  # how many boards it may still enrol; None for a caller's token


class AuditRow(NamedTuple):
    """One row of the audit log."""

    at: float
    who: str
    address: str
    verb: str
    target: str
    detail: str
    boards: int | None
    first_job: int | None
    last_job: int | None
    outcome: str


class CellAudit(NamedTuple):
    """What the audit log records about a cell, besides its caller and its jobs.

    Attributes:
        address: the caller's.
        target: as the caller wrote it.
        detail: what runs.
        verb: what the caller requested.
    """

    address: str = ""
    target: str = ""
    detail: str = ""
    verb: str = "submit"


NO_CELL_AUDIT = CellAudit()


class NewCell(NamedTuple):
    """A cell of which one job for each board is stored.

    Attributes:
        board_ids: where it runs.
        caller: the name of the caller's token.
        audit: for the audit log.
        epochs: with several servers, the epochs of those boards to which this server will send
            the job at once.
    """

    board_ids: Sequence[str]
    caller: str
    audit: CellAudit = NO_CELL_AUDIT
    epochs: Mapping[str, int] = MappingProxyType({})


class JobClaim(NamedTuple):
    """Jobs of another server that this one wants to own.

    Attributes:
        server: the id of their owner.
        sent_now: jobs that this server will send now, if it holds their boards.
        queued: jobs that this server will queue.
    """

    server: str
    sent_now: Collection[int]
    queued: Collection[int]


class JobRow(NamedTuple):
    """One row of the table of jobs."""

    id: int
    board: str
    caller: str
    created: float
    ended: float | None
    status: str | None
    error: str | None


class ClaimedBoard(NamedTuple):
    """A board that this server has just claimed.

    Attributes:
        row: the board's row.
        epoch: its new epoch.
        sent_jobs: its jobs that were sent and have not ended; they are this server's now.
    """

    row: BoardRow
    epoch: int
    sent_jobs: list[JobRow]
