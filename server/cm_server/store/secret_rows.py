"""The store's tables of secrets: values for boards' settings, which no reply contains. SQL.

A second table knows where in the settings of which board a secret was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import sqlalchemy as sa

from .installed_packages import METADATA

secrets_table = sa.Table(
    "secrets",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),  # the boards that may get it
    sa.Column("changed", sa.Float, nullable=False),  # seconds since 1970
)
_uses = sa.Table(
    "secret_uses",
    METADATA,
    sa.Column("board", sa.Text, primary_key=True),  # its id
    sa.Column("path", sa.Text, primary_key=True),  # keys on the way to the value, as a JSON list
    sa.Column("secret", sa.Text, nullable=False),  # its name
)


class SecretInfo(NamedTuple):
    """What may be shown of a secret.

    Attributes:
        name: its name.
        target: the boards that may get it.
        changed: when its value was set, in seconds since 1970.
    """

    name: str
    target: str
    changed: float


class SecretRow(NamedTuple):
    """A secret.

    Attributes:
        name: its name.
        value: what is written to boards.
        target: the boards that may get it.
        changed: when the value was set, in seconds since 1970.
    """

    name: str
    value: str
    target: str
    changed: float

    def __repr__(self) -> str:
        """Leave the value out."""
        return f"SecretRow(name={self.name!r})"

    @property
    def info(self) -> SecretInfo:
        """What may be shown of it."""
        return SecretInfo(self.name, self.target, self.changed)


class SecretRows:
    """Reads the tables of secrets; ``Store`` changes the first, with a row in the audit log.

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

    def infos(self) -> list[SecretInfo]:
        """Return what may be shown of all secrets, by name."""
        return [row.info for row in self.read()]

    def read(self) -> list[SecretRow]:
        """Return all secrets with their values, by name."""
        query = sa.select(*[secrets_table.c[name] for name in SecretRow._fields])
        query = query.order_by(secrets_table.c.name)
        rows = [SecretRow(*row) for row in self._connection.execute(query).all()]
        self._connection.commit()
        return rows

    def uses_of(self, board_id: str) -> dict[tuple[str, ...], str]:
        """Return where a board's settings have secrets: keys on the way -> name of the secret."""
        query = sa.select(_uses.c.path, _uses.c.secret).where(_uses.c.board == board_id)
        rows = self._connection.execute(query).all()
        self._connection.commit()
        return {tuple(json.loads(path)): secret for path, secret in rows}

    def set_uses(self, board_id: str, uses: Mapping[tuple[str, ...], str]) -> None:
        """Store where a board's settings have secrets; it replaces what was known.

        Raises:
            ServerError: it cannot be written.
        """
        rows = [
            {"board": board_id, "path": json.dumps(path), "secret": secret}
            for path, secret in uses.items()
        ]
        with self._rollback_on_error():
            self.delete_board(board_id)
            if rows:
                self._connection.execute(sa.insert(_uses), rows)
            self._connection.commit()

    def delete_board(self, board_id: str) -> None:
        """Delete a board's rows, in a transaction that the calling code commits."""
        self._connection.execute(sa.delete(_uses).where(_uses.c.board == board_id))
