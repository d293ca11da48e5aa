"""Which version a database's tables are, and how those of an older one are carried over.

Versions are whole numbers; each has one script in ``migrations/versions``, by which Alembic
makes it from the one before. Alembic is imported only where there is something to carry over,
since a start must not wait for it. The version stands in Alembic's own table; before there was
one, up to version 2, it stood in SQLite's ``user_version``.

CONTRIBUTING.md explains how to add a version.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cloudmanager.config import sync_folder
from cloudmanager.protocol.errors import ServerError

log = logging.getLogger("cm_server")

#: The version that the store knows: the number of the newest script.
SCHEMA_VERSION = 5

_VERSION_0_TABLES = {"boards", "jobs", "tokens"}  # of version 0, which said nowhere what it is


def add_version_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the table that Alembic keeps the version in, as Alembic makes it."""
    column = sa.Column("version_num", sa.String(32), nullable=False)
    key = sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc")
    return sa.Table("alembic_version", metadata, column, key)


def make_private(path: Path) -> None:
    """See that nobody else reads it: it holds the boards' keys. What fails is told later."""
    with contextlib.suppress(OSError):
        path.touch(mode=0o600)
        path.chmod(0o600)


def prepare_tables(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """Make the tables in an empty database, or carry older ones over: all, or none.

    Args:
        connection: a connection that is in no transaction.
        metadata: the tables that are wanted.

    Raises:
        ServerError: they were made by a newer version, or by somebody else, or cannot be
            carried over; then the database is as it was.
    """
    version = read_version(connection)
    connection.commit()
    if version is None:
        _create_tables(connection, metadata)
    elif version != SCHEMA_VERSION:
        _refuse_unknown(version, connection.engine.url.database)
        _migrate(connection, version)


def read_version(connection: sa.Connection) -> int | None:
    """Return which version the tables are: None where there are none, -1 if they are not ours."""
    known = set(sa.inspect(connection).get_table_names())
    if "alembic_version" in known:
        return int(
            connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        )
    if connection.dialect.name != "sqlite":
        return -1 if known else None
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if version or not known:
        return version or None
    return 0 if known >= _VERSION_0_TABLES else -1


def _refuse_unknown(version: int, location: str | None) -> None:
    if version > SCHEMA_VERSION:
        schemas = f"schema {version}, this one knows {SCHEMA_VERSION}"
        what = f"was written by a newer Cloudmanager ({schemas})"
        raise ServerError(
            f"its store {location} {what}; "
            f"update this one with `pip install --upgrade cloudmanager`"
        )
    if version < 0:
        raise ServerError(f"its store {location} holds another program's tables; move it away")


def _begin_transaction(connection: sa.Connection) -> None:
    """Begin a transaction that holds tables too: SQLite's driver does not by itself."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create_tables(connection: sa.Connection, metadata: sa.MetaData) -> None:
    _begin_transaction(connection)
    metadata.create_all(connection)
    connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{SCHEMA_VERSION}')")
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA user_version=3")  # what knows no more than 2 reads this
    connection.commit()


def _migrate(connection: sa.Connection, version: int) -> None:
    copy: Path | None = None
    try:
        if connection.dialect.name == "sqlite":
            copy = _copy_file(connection, version)
        _begin_transaction(connection)
        _run_scripts(connection, version)
        connection.commit()
    except Exception as error:  # whatever a script does, the database is to be as it was
        connection.rollback()
        if copy is not None:
            copy.unlink(missing_ok=True)  # else each try would leave another one
        raise ServerError(
            f"its store {connection.engine.url.database} is of schema {version} "
            f"and cannot be carried "
            f"over to {SCHEMA_VERSION}; it is as it was: {error}"
        ) from error
    log.info(
        "store carried over from schema %d to %d; the copy of before: %s",
        version,
        SCHEMA_VERSION,
        copy or "yours",
    )


def _copy_file(connection: sa.Connection, version: int) -> Path:
    """Copy SQLite's file to a new one beside it; return which. It is whole once it has its name."""
    path = Path(str(connection.engine.url.database))
    stem = f"{path.stem}-schema-{version}"
    copy = path.with_stem(stem)
    for number in itertools.count(2):
        if not copy.exists():
            break
        copy = path.with_stem(f"{stem}-{number}")  # one of an earlier time is not overwritten
    draft = copy.with_name(f"{copy.name}.part")
    draft.unlink(missing_ok=True)
    make_private(draft)
    driver: Any = connection.connection.driver_connection
    with contextlib.closing(sqlite3.connect(draft)) as other:
        driver.backup(other)
    connection.rollback()
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(copy)
    sync_folder(copy.parent)
    return copy


def _run_scripts(connection: sa.Connection, version: int) -> None:
    """Run the scripts from one version to ours, inside the transaction that was begun."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.stamp(config, str(version))
    command.upgrade(config, str(SCHEMA_VERSION))
