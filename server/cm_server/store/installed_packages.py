"""The store's table of installed packages, as boards confirmed them. SQL.

A board's own record has precedence. This copy is for boards that are offline, and for those that
lost their record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

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


class InstalledOnBoard(NamedTuple):
    """What is installed on one board.

    Attributes:
        confirmed: when the board last confirmed it, in seconds since 1970; None if it has nothing.
        packages: the packages, by name.
    """

    confirmed: float | None
    packages: Manifest


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

    def of_boards(self, board_ids: Sequence[str]) -> dict[str, InstalledOnBoard]:
        """Return what boards last confirmed, by board id."""
        found = {board_id: InstalledOnBoard(None, {}) for board_id in board_ids}
        query = sa.select(_packages).where(_packages.c.board.in_(board_ids))
        for row in self._connection.execute(query.order_by(_packages.c.name)).mappings():
            confirmed, packages = found[row["board"]]
            package = {**{name: row[name] for name in _COLUMNS}, **row["options"]}
            found[row["board"]] = InstalledOnBoard(
                max(row["confirmed"], confirmed or 0.0), {**packages, row["name"]: package}
            )
        self._connection.commit()
        return found

    def packages_of(self, board_id: str) -> Manifest:
        """Return the packages that a board last confirmed."""
        return self.of_boards([board_id])[board_id].packages

    def store_manifest(self, board_id: str, manifest: Manifest) -> None:
        """Replace a board's packages by those that it has confirmed.

        Raises:
            ServerError: they cannot be written.
        """
        rows = [_package_row(board_id, name, package) for name, package in manifest.items()]
        with self._rollback_on_error():
            self._connection.execute(sa.delete(_packages).where(_packages.c.board == board_id))
            if rows:
                self._connection.execute(sa.insert(_packages), rows)
            self._connection.commit()

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
