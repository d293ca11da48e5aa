"""What the store gives and takes, row by row; no SQL."""

from __future__ import annotations

import time
from typing import Any, NamedTuple


class BoardRow(NamedTuple):
    """One enrolled board."""

    id: str
    name: str
    key: bytes
    labels: dict[str, str]
    facts: dict[str, Any]
    enrolled: float
    last_seen: float | None
    gen: int = 0  # the key's number: each rotation counts one
    nonce: bytes | None = None  # what the next key is derived with, while a rotation is open
    plain: bool = False  # whether it cannot verify a certificate, and may dial with MACs
    token: str = ""  # the hash of the token that it enrolled itself with

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"BoardRow(id={self.id!r}, name={self.name!r})"


def new_board_row(
    board_id: str, name: str, key: bytes, *, gen: int = 0, plain: bool = False, token: str = ""
) -> BoardRow:
    """Return the row of a board that is enrolled now."""
    return BoardRow(board_id, name, key, {}, {}, time.time(), None, gen, None, plain, token)


class TokenRow(NamedTuple):
    """One caller's token; of the token itself only its hash is known."""

    hash: str
    name: str
    role: str
    target: str = "all"  # the boards that it reaches
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    uses: int | None = None  # boards that it may still enrol; None: it is a caller's


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


class JobRow(NamedTuple):
    """One job's line."""

    id: int
    board: str
    caller: str
    created: float
    ended: float | None
    status: str | None
    error: str | None


class ClaimedBoard(NamedTuple):
    """A board that was taken.

    Attributes:
        row: what there is to know of it.
        epoch: its new one.
        sent_jobs: its jobs that were sent and have not ended; they go with it.
    """

    row: BoardRow
    epoch: int
    sent_jobs: list[JobRow]
