"""The store's list of identities that other boards have replaced, which are recognised. SQL.

The board of such an identity may come back: its key proves that it is the one that was replaced.
Each is a value in the table ``shared``; the oldest are deleted beyond a limit.
"""

from __future__ import annotations

import json
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
    """

    id: str
    name: str
    key: bytes
    gen: int
    nonce: bytes | None
    at: float

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

    def add(self, row: BoardRow, at: float) -> None:
        """Add the identity of a board; the oldest ones beyond the limit are deleted."""
        values: dict[str, Any] = {
            "name": row.name,
            "key": row.key.hex(),
            "gen": row.gen,
            "nonce": row.nonce.hex() if row.nonce else None,
            "at": at,
        }
        self._connection.execute(
            sa.insert(shared).values(name=_PREFIX + row.id, value=json.dumps(values).encode())
        )
        gone = [_PREFIX + each.id for each in self.all()[: -self._max_rows]]
        if gone:
            self._connection.execute(sa.delete(shared).where(shared.c.name.in_(gone)))


def _read(board_id: str, value: bytes) -> ReplacedBoard:
    body = json.loads(value)
    nonce = bytes.fromhex(body["nonce"]) if body["nonce"] else None
    return ReplacedBoard(
        board_id, body["name"], bytes.fromhex(body["key"]), body["gen"], nonce, body["at"]
    )
