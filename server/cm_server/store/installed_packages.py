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

METADATA: Final = sa.MetaData()

_packages = sa.Table(
    "packages",
    METADATA,
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
_OPTIONAL_KEYS: Final = ("wanted", "how", "local")

#: As in records.py; installed.py knows no more of it than its columns.
Manifest = dict[str, dict[str, Any]]


class InstalledPackages:
    """The table.

    Args:
        connection: the store's connection.
        rollback_on_error: undoes what is done inside of it where it cannot be written.
    """

    def __init__(
        self,
        connection: sa.Connection,
        rollback_on_error: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._connection = connection
        self._rollback_on_error = rollback_on_error

    def packages_of(self, board_id: str) -> Manifest:
        """Return what a board had when it last confirmed it."""
        query = sa.select(_packages).where(_packages.c.board == board_id)
        rows = self._connection.execute(query).mappings().all()
        self._connection.commit()
        return {
            row["name"]: {**{name: row[name] for name in _COLUMNS}, **row["options"]}
            for row in rows
        }

    def confirmed_at(self, board_id: str) -> float | None:
        """Return when a board last confirmed what it has, None where it has nothing."""
        column = sa.func.max(_packages.c.confirmed)
        found: float | None = self._connection.scalar(
            sa.select(column).where(_packages.c.board == board_id)
        )
        self._connection.commit()
        return found

    def confirmer_for(self, board_id: str) -> Callable[[Manifest], None]:
        """Return what takes a board's word on what it has."""

        def keep(record: Manifest) -> None:
            """Write it in place of what was there.

            Raises:
                ServerError: it cannot be written.
            """
            rows = [_package_row(board_id, name, told) for name, told in record.items()]
            with self._rollback_on_error():
                self._connection.execute(sa.delete(_packages).where(_packages.c.board == board_id))
                if rows:
                    self._connection.execute(sa.insert(_packages), rows)
                self._connection.commit()

        return keep

    def delete_board(self, board_id: str) -> None:
        """Take a board out, as part of a transaction that others commit."""
        self._connection.execute(sa.delete(_packages).where(_packages.c.board == board_id))


def _package_row(board_id: str, name: str, package: dict[str, Any]) -> dict[str, Any]:
    return {
        "board": board_id,
        "name": name,
        **{column: package.get(column, "") for column in _COLUMNS},
        "options": {option: package[option] for option in _OPTIONAL_KEYS if option in package},
        "confirmed": time.time(),
    }
