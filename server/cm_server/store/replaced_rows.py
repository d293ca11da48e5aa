"""The store's list of identities that other boards have replaced, which are recognised. SQL.

The board of such an identity may come back: its key proves that it is the one that was replaced.
Each is a value in the table ``shared``; the oldest are deleted beyond a limit. It also says which
board took its place, whose samples and jobs are then read with those of the old identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from cloudmanager.protocol import proofs

from .rows import BoardRow
from .tables import shared

_PREFIX: Final = "replaced "
_KEPT: Final = 1000  # identities


class ReplacedBoard(NamedTuple):
    """The identity of a board that another one has replaced.

    Attributes:
        id: its id, which is never used again.
        name: the name that it had, and that the other board has got.
        key: its key, by which it is recognised, and refused.
        gen: the number of that key.
        nonce: of a rotation of the key that was pending; None if none was.
        at: when it was replaced, in seconds since 1970.
        by: the id of the other board; "" in rows of version 0.1, which erased what it had.
    """

    id: str
    name: str
    key: bytes
    gen: int
    nonce: bytes | None
    at: float
    by: str = ""

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"ReplacedBoard(id={self.id!r}, name={self.name!r})"

    def key_for(self, gen: int) -> bytes | None:
        """Return the key with this number: the last one or that of the pending rotation."""
        if gen == self.gen:
            return self.key
        if gen == self.gen + 1 and self.nonce:
            return proofs.next_key(self.key, gen, self.nonce)
        return None


class BoardPeriod(NamedTuple):
    """From when on values of an identity belong to a board.

    Attributes:
        id: of the board itself, or an identity that it has replaced, also through others.
        since: the board's are what came at or after this time, in seconds since 1970.
    """

    id: str
    since: float


def find_periods(
    board_ids: Iterable[str], replaced: Iterable[ReplacedBoard]
) -> dict[str, list[BoardPeriod]]:
    """Return what belongs to boards: their own since they replaced another one, and that one's.

    Args:
        board_ids: the boards'.
        replaced: all identities that were replaced.

    Returns:
        For each board itself first, then what it has replaced; with nothing replaced, it alone.
    """
    in_order = sorted(replaced, key=lambda each: each.at)
    by_successor = {each.by: each for each in in_order if each.by}  # the last one that each took
    found: dict[str, list[BoardPeriod]] = {}
    for board_id in board_ids:
        periods = found[board_id] = []
        current = board_id
        while (before := by_successor.get(current)) is not None:
            periods.append(BoardPeriod(current, before.at))
            current = before.id
        periods.append(BoardPeriod(current, 0.0))
    return found


class ReplacedRows:
    """Reads and writes the identities that were replaced.

    Methods belong to a transaction of the calling code, which commits it.

    Args:
        connection: the store's connection.
        kept: how many are kept.
    """

    def __init__(self, connection: sa.Connection, kept: int = _KEPT) -> None:
        self._connection = connection
        self._max_rows = kept

    def all(self) -> list[ReplacedBoard]:
        """Return all of them, the oldest first."""
        query = sa.select(shared.c.name, shared.c.value)
        rows = self._connection.execute(query.where(shared.c.name.startswith(_PREFIX))).all()
        found = [_read(name.removeprefix(_PREFIX), value) for name, value in rows]
        return sorted(found, key=lambda each: each.at)

    def find(self, board_id: str) -> ReplacedBoard | None:
        """Return one of them; None if the board with this id was not replaced."""
        query = sa.select(shared.c.value).where(shared.c.name == _PREFIX + board_id)
        row = self._connection.execute(query).first()
        return None if row is None else _read(board_id, row[0])

    def predecessors(self, board_ids: Sequence[str]) -> list[str]:
        """Return the ids that boards have replaced, also through others."""
        replaced = self.all()
        found: list[str] = []
        new = set(board_ids)
        while new:
            new = {each.id for each in replaced if each.by in new}.difference(found)
            found += sorted(new)
        return found

    def add(self, row: BoardRow, at: float, by: str) -> list[str]:
        """Add the identity of a board; the oldest ones beyond the limit are deleted.

        Args:
            row: the board's.
            at: when it was replaced, in seconds since 1970.
            by: the id of the board that has replaced it.

        Returns:
            The ids that were deleted.
        """
        values: dict[str, Any] = {
            "name": row.name,
            "key": row.key.hex(),
            "gen": row.gen,
            "nonce": row.nonce.hex() if row.nonce else None,
            "at": at,
            "by": by,
        }
        self._connection.execute(
            sa.insert(shared).values(name=_PREFIX + row.id, value=json.dumps(values).encode())
        )
        gone = [each.id for each in self.all()[: -self._max_rows]]
        if gone:
            names = [_PREFIX + each for each in gone]
            self._connection.execute(sa.delete(shared).where(shared.c.name.in_(names)))
        return gone


def _read(board_id: str, value: bytes) -> ReplacedBoard:
    body = json.loads(value)
    nonce = bytes.fromhex(body["nonce"]) if body["nonce"] else None
    key = bytes.fromhex(body["key"])
    at, by = body["at"], body.get("by", "")
    return ReplacedBoard(board_id, body["name"], key, body["gen"], nonce, at, by)
