"""Read the version of a database's tables, and migrate older ones.

Versions are whole numbers; each has one script in ``migrations/versions``, by which Alembic
migrates tables of the version before. Alembic is imported only if a migration is needed, since it
would delay every start. The version is in Alembic's own table; up to version 2 it was in SQLite's
``user_version``.

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

#: The version that this program uses: the number of the newest script.
SCHEMA_VERSION = 9

_VERSION_0_TABLES = {"boards", "jobs", "tokens"}  # version 0 had no version number


def add_version_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the table in which Alembic keeps the version, as Alembic itself creates it."""
    column = sa.Column("version_num", sa.String(32), nullable=False)
    key = sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc")
    return sa.Table("alembic_version", metadata, column, key)


def make_private(path: Path) -> None:
    """Create a file if needed and let only its owner read it: it contains the boards' keys."""
    with contextlib.suppress(OSError):  # opening the file reports the same error
        path.touch(mode=0o600)
        path.chmod(0o600)


def prepare_tables(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """Create the tables in an empty database, or migrate older ones, in one transaction.

    Args:
        connection: a connection without an open transaction.
        metadata: the tables to create.

    Raises:
        ServerError: the tables were made by a newer version or by another program, or the
            migration failed; then the database is unchanged.
    """
    version = read_version(connection)
    connection.commit()
    if version is None:
        _create_tables(connection, metadata)
    elif version != SCHEMA_VERSION:
        _refuse_unknown(version, connection.engine.url.database)
        _migrate(connection, version)


def read_version(connection: sa.Connection) -> int | None:
    """Return the version of the tables: None without tables, -1 for another program's."""
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
            "update this one with `pip install --upgrade cloudmanager`, or with `pip install .` in "
            "an updated clone"
        )
    if version < 0:
        raise ServerError(f"its store {location} holds another program's tables; move it away")


def _begin_transaction(connection: sa.Connection) -> None:
    """Begin a transaction that includes changes of tables.

    SQLite's driver begins one only for changes of rows.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create_tables(connection: sa.Connection, metadata: sa.MetaData) -> None:
    _begin_transaction(connection)
    metadata.create_all(connection)
    connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{SCHEMA_VERSION}')")
    if connection.dialect.name == "sqlite":
        # Programs up to version 2 read this number, and refuse the database.
        connection.exec_driver_sql("PRAGMA user_version=3")
    connection.commit()


def _migrate(connection: sa.Connection, version: int) -> None:
    copy: Path | None = None
    try:
        if connection.dialect.name == "sqlite":
            copy = _copy_file(connection, version)
        _begin_transaction(connection)
        _run_scripts(connection, version)
        connection.commit()
    except Exception as error:  # for any error of a script, the database must stay unchanged
        connection.rollback()
        if copy is not None:
            copy.unlink(missing_ok=True)  # else each attempt would leave another one
        raise ServerError(
            f"its store {connection.engine.url.database} is of schema {version} and cannot be "
            f"migrated to {SCHEMA_VERSION}; it is unchanged: {error}"
        ) from error
    log.info(
        "store migrated from schema %d to %d; copy of the old one: %s",
        version,
        SCHEMA_VERSION,
        copy or "none, see your backups of PostgreSQL",
    )


def _copy_file(connection: sa.Connection, version: int) -> Path:
    """Copy SQLite's file to a new one beside it, and return the copy's path.

    The copy is renamed to that path when it is complete and on the disk.
    """
    copy = _unused_copy_path(Path(str(connection.engine.url.database)), version)
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


def _unused_copy_path(path: Path, version: int) -> Path:
    """Return a path for the copy at which there is no earlier copy."""
    stem = f"{path.stem}-schema-{version}"
    copy = path.with_stem(stem)
    for number in itertools.count(2):
        if not copy.exists():
            break
        copy = path.with_stem(f"{stem}-{number}")
    return copy


def _run_scripts(connection: sa.Connection, version: int) -> None:
    """Run the scripts from a version to the newest, inside the open transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.stamp(config, str(version))
    command.upgrade(config, str(SCHEMA_VERSION))
