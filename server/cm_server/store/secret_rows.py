"""The store's table of secrets: values for boards' settings, which no reply contains. SQL."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Reads the table of secrets; ``Store`` changes it, with a row in the audit log.

    Args:
        connection: the store's connection.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def infos(self) -> list[SecretInfo]:
        """Return what may be shown of all secrets, by name."""
        columns = [secrets_table.c[name] for name in SecretInfo._fields]
        query = sa.select(*columns).order_by(secrets_table.c.name)
        rows = [SecretInfo(*row) for row in self._connection.execute(query).all()]
        self._connection.commit()
        return rows

    def read(self, names: Sequence[str] | None = None) -> list[SecretRow]:
        """Return secrets with their values.

        Args:
            names: of the secrets; None for all.
        """
        query = sa.select(*[secrets_table.c[name] for name in SecretRow._fields])
        if names is not None:
            query = query.where(secrets_table.c.name.in_(names))
        rows = [SecretRow(*row) for row in self._connection.execute(query).all()]
        self._connection.commit()
        return rows
