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
SCHEMA = 5

_OLDEST_TABLES = {"boards", "jobs", "tokens"}  # of version 0, which said nowhere what it is


def add_version_table(meta: sa.MetaData) -> sa.Table:
    """Declare the table that Alembic keeps the version in, as Alembic makes it."""
    column = sa.Column("version_num", sa.String(32), nullable=False)
    key = sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc")
    return sa.Table("alembic_version", meta, column, key)


def make_private(path: Path) -> None:
    """See that nobody else reads it: it holds the boards' keys. What fails is told later."""
    with contextlib.suppress(OSError):
        path.touch(mode=0o600)
        path.chmod(0o600)


def prepare(db: sa.Connection, meta: sa.MetaData) -> None:
    """Make the tables in an empty database, or carry older ones over: all, or none.

    Args:
        db: a connection that is in no transaction.
        meta: the tables that are wanted.

    Raises:
        ServerError: they were made by a newer version, or by somebody else, or cannot be
            carried over; then the database is as it was.
    """
    version = version_of(db)
    db.commit()
    if version is None:
        _make(db, meta)
    elif version != SCHEMA:
        _refuse_unknown(version, db.engine.url.database)
        _carry_over(db, version)


def version_of(db: sa.Connection) -> int | None:
    """Return which version the tables are: None where there are none, -1 if they are not ours."""
    known = set(sa.inspect(db).get_table_names())
    if "alembic_version" in known:
        return int(db.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())
    if db.dialect.name != "sqlite":
        return -1 if known else None
    version = int(db.exec_driver_sql("PRAGMA user_version").scalar_one())
    if version or not known:
        return version or None
    return 0 if known >= _OLDEST_TABLES else -1


def _refuse_unknown(version: int, where: str | None) -> None:
    if version > SCHEMA:
        what = f"was written by a newer Cloudmanager (schema {version}, this one knows {SCHEMA})"
        raise ServerError(
            f"its store {where} {what}; update this one with `pip install --upgrade cloudmanager`"
        )
    if version < 0:
        raise ServerError(f"its store {where} holds another program's tables; move it away")


def _begin(db: sa.Connection) -> None:
    """Begin a transaction that holds tables too: SQLite's driver does not by itself."""
    if db.dialect.name == "sqlite":
        db.exec_driver_sql("BEGIN IMMEDIATE")


def _make(db: sa.Connection, meta: sa.MetaData) -> None:
    _begin(db)
    meta.create_all(db)
    db.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{SCHEMA}')")
    if db.dialect.name == "sqlite":
        db.exec_driver_sql("PRAGMA user_version=3")  # what knows no more than 2 reads this
    db.commit()


def _carry_over(db: sa.Connection, version: int) -> None:
    copy: Path | None = None
    try:
        if db.dialect.name == "sqlite":
            copy = _copy(db, version)
        _begin(db)
        _run_scripts(db, version)
        db.commit()
    except Exception as error:  # whatever a script does, the database is to be as it was
        db.rollback()
        if copy is not None:
            copy.unlink(missing_ok=True)  # else each try would leave another one
        raise ServerError(
            f"its store {db.engine.url.database} is of schema {version} and cannot be carried "
            f"over to {SCHEMA}; it is as it was: {error}"
        ) from error
    log.info(
        "store carried over from schema %d to %d; the copy of before: %s",
        version,
        SCHEMA,
        copy or "yours",
    )


def _copy(db: sa.Connection, version: int) -> Path:
    """Copy SQLite's file to a new one beside it; return which. It is whole once it has its name."""
    path = Path(str(db.engine.url.database))
    stem = f"{path.stem}-schema-{version}"
    copy = path.with_stem(stem)
    for number in itertools.count(2):
        if not copy.exists():
            break
        copy = path.with_stem(f"{stem}-{number}")  # one of an earlier time is not overwritten
    draft = copy.with_name(f"{copy.name}.part")
    draft.unlink(missing_ok=True)
    make_private(draft)
    driver: Any = db.connection.driver_connection
    with contextlib.closing(sqlite3.connect(draft)) as other:
        driver.backup(other)
    db.rollback()
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(copy)
    sync_folder(copy.parent)
    return copy


def _run_scripts(db: sa.Connection, version: int) -> None:
    """Run the scripts from one version to ours, inside the transaction that was begun."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = db
    command.stamp(config, str(version))
    command.upgrade(config, str(SCHEMA))
