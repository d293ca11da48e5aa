"""The store's table of installed packages, as boards confirmed them. SQL.

A board's own record has precedence. This copy is for boards that are offline, and for those that
lost their record.
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
    sa.Column("options", sa.JSON, nullable=False),  # of the install request: see _OPTIONAL_KEYS
    sa.Column("files", sa.JSON, nullable=False),  # path -> SHA-256
    sa.Column("confirmed", sa.Float, nullable=False),  # seconds since 1970
)
_COLUMNS: Final = ("version", "source", "needs", "files")
_OPTIONAL_KEYS: Final = ("wanted", "how", "local")

#: Package name -> its record, as in install_manifest.py; only the columns matter here.
Manifest = dict[str, dict[str, Any]]


class InstalledPackages:
    """The table of installed packages.

    Args:
        connection: the store's connection.
        rollback_on_error: a context that rolls back if a write inside fails.
    """

    def __init__(
        self,
        connection: sa.Connection,
        rollback_on_error: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._connection = connection
        self._rollback_on_error = rollback_on_error

    def packages_of(self, board_id: str) -> Manifest:
        """Return the packages that a board last confirmed."""
        query = sa.select(_packages).where(_packages.c.board == board_id)
        rows = self._connection.execute(query).mappings().all()
        self._connection.commit()
        return {
            row["name"]: {**{name: row[name] for name in _COLUMNS}, **row["options"]}
            for row in rows
        }

    def confirmed_at(self, board_id: str) -> float | None:
        """Return when a board last confirmed its packages; None if it has none."""
        column = sa.func.max(_packages.c.confirmed)
        found: float | None = self._connection.scalar(
            sa.select(column).where(_packages.c.board == board_id)
        )
        self._connection.commit()
        return found

    def confirmer_for(self, board_id: str) -> Callable[[Manifest], None]:
        """Return a function that stores the packages that a board confirms."""

        def store_manifest(manifest: Manifest) -> None:
            """Replace the board's packages by these.

            Raises:
                ServerError: they cannot be written.
            """
            rows = [_package_row(board_id, name, package) for name, package in manifest.items()]
            with self._rollback_on_error():
                self._connection.execute(sa.delete(_packages).where(_packages.c.board == board_id))
                if rows:
                    self._connection.execute(sa.insert(_packages), rows)
                self._connection.commit()

        return store_manifest

    def delete_board(self, board_id: str) -> None:
        """Delete a board's packages, in a transaction that the calling code commits."""
        self._connection.execute(sa.delete(_packages).where(_packages.c.board == board_id))


def _package_row(board_id: str, name: str, package: dict[str, Any]) -> dict[str, Any]:
    return {
        "board": board_id,
        "name": name,
        **{column: package.get(column, "") for column in _COLUMNS},
        "options": {option: package[option] for option in _OPTIONAL_KEYS if option in package},
        "confirmed": time.time(),
    }
