"""What boards confirmed to have of packages: the store's table of it; as store.py, the only SQL.

A board's own record is what counts. This one is for boards that are not there, and for those
that lost theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import sqlalchemy as sa

META: Final = sa.MetaData()

_packages = sa.Table(
    "packages",
    META,
    sa.Column("board", sa.Text, primary_key=True),  # its id
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("needs", sa.JSON, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),  # what it was asked for with
    sa.Column("files", sa.JSON, nullable=False),  # path -> SHA-256
    sa.Column("confirmed", sa.Float, nullable=False),  # seconds since 1970
)
_COLUMNS: Final = ("version", "source", "needs", "files")
_OPTIONS: Final = ("wanted", "how", "local")

#: As in records.py; installed.py knows no more of it than its columns.
Record = dict[str, dict[str, Any]]


class Installed:
    """The table.

    Args:
        db: the store's connection.
        written: undoes what is done inside of it where it cannot be written.
    """

    def __init__(
        self, db: sa.Connection, written: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._db = db
        self._written = written

    def of(self, board_id: str) -> Record:
        """Return what a board had when it last confirmed it."""
        query = sa.select(_packages).where(_packages.c.board == board_id)
        rows = self._db.execute(query).mappings().all()
        self._db.commit()
        return {
            row["name"]: {**{name: row[name] for name in _COLUMNS}, **row["options"]}
            for row in rows
        }

    def at(self, board_id: str) -> float | None:
        """Return when a board last confirmed what it has, None where it has nothing."""
        column = sa.func.max(_packages.c.confirmed)
        found: float | None = self._db.scalar(
            sa.select(column).where(_packages.c.board == board_id)
        )
        self._db.commit()
        return found

    def confirm(self, board_id: str) -> Callable[[Record], None]:
        """Return what takes a board's word on what it has."""

        def keep(record: Record) -> None:
            """Write it in place of what was there.

            Raises:
                ServerError: it cannot be written.
            """
            rows = [_row(board_id, name, told) for name, told in record.items()]
            with self._written():
                self._db.execute(sa.delete(_packages).where(_packages.c.board == board_id))
                if rows:
                    self._db.execute(sa.insert(_packages), rows)
                self._db.commit()

        return keep

    def forget(self, board_id: str) -> None:
        """Take a board out, as part of a transaction that others commit."""
        self._db.execute(sa.delete(_packages).where(_packages.c.board == board_id))


def _row(board_id: str, name: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "board": board_id,
        "name": name,
        **{column: told.get(column, "") for column in _COLUMNS},
        "options": {option: told[option] for option in _OPTIONS if option in told},
        "confirmed": time.time(),
    }
