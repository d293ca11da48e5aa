"""Open the store's database, SQLite or PostgreSQL; SQLite writes and makes writes durable. SQL.

SQLite is for one server: a file in its folder. Several servers can share a PostgreSQL
(postgres_database.py). Either is used over one connection, by one thread at a time
(store_queue.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from cloudmanager.protocol.errors import ServerError

from . import schema, tables
from .statements import (
    SQLALCHEMY_ERRORS,
    BuildStatement,
    PreparedStatement,
    RowsStatement,
    StatementCompiler,
    compile_row,
    parameters,
)

if TYPE_CHECKING:
    from .postgres_database import Postgres

log = logging.getLogger("cm_server")

PAGE_BYTES = 4096  # of SQLite, by default
LOCK_SECONDS = 5.0  # that SQLite waits for another program's lock, outside of a queue
_NO_PIPELINE = contextlib.nullcontext()


class _RowMissingError(sqlite3.DatabaseError):
    """A row that has to exist does not: see ``require_row``."""


class Sqlite(StatementCompiler):
    """An SQLite database in a file or in memory.

    Args:
        path: the file; None keeps everything in memory (for tests).
    """

    errors: tuple[type[Exception], ...] = (sqlite3.Error, *SQLALCHEMY_ERRORS)
    insert: Any = staticmethod(sqlite.insert)  # SQLAlchemy's own insert lacks ON CONFLICT
    #: Whether statements are so fast that they may be executed in the event loop.
    answers_at_once = True
    max_retries = math.inf  # of an operation: the lock of another program has an end
    retry_reason = "its store is locked by another program"

    def __init__(self, path: Path | None) -> None:
        self.name = str(path)
        self._path = path
        self._waits_for_locks = True
        if path is not None:
            schema.make_private(path)
        self._engine = sa.create_engine(
            f"sqlite:///{path}" if path else "sqlite://",
            poolclass=sa.StaticPool,
            connect_args={"check_same_thread": False},  # but only one at a time uses it
        )
        try:
            self.connection = self._engine.connect()
            self._pragma(f"busy_timeout={LOCK_SECONDS * 1000:.0f}")
            schema.prepare_tables(self.connection, tables.metadata)
            self._pragma("journal_mode=WAL")
            self._pragma("synchronous=NORMAL")
            # Without it, INSERT OR REPLACE deletes rows without firing their DELETE triggers.
            self._pragma("recursive_triggers=ON")
        except (sa.exc.DBAPIError, ServerError):
            self._engine.dispose()
            raise
        self.driver: Any = self.connection.connection.driver_connection
        self.connection.commit()

    def _pragma(self, text: str) -> None:
        self.connection.exec_driver_sql(f"PRAGMA {text}")
        self.connection.commit()

    def end_stalled_sessions(self) -> None:
        """Do nothing: SQLite has no sessions that others could end."""

    def enter_queue(self) -> None:
        """Raise NotExecuted instead of waiting for locks, and leave checkpoints to others."""
        self._waits_for_locks = False
        self._pragma("busy_timeout=0")
        if self._path is not None:
            self._pragma("wal_autocheckpoint=0")

    def start_transaction(self) -> None:
        """Do nothing: whether SQLite may try again depends on the error alone."""

    def is_retryable(self, error: BaseException) -> bool:
        """Return whether a statement failed since the file is locked: nothing was done."""
        cause = getattr(error, "orig", error)
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        return not self._waits_for_locks and code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_data_error(self, error: BaseException) -> bool:
        """Return whether values were refused: nothing was written, and others would be."""
        cause = getattr(error, "orig", error)
        return isinstance(cause, (sqlite3.IntegrityError, sqlite3.DataError))

    def describe_error(self, error: BaseException) -> str:
        """Return why a statement failed, in SQLite's words."""
        return str(getattr(error, "orig", error)).strip()

    @property
    def changed_rows(self) -> int:
        """The number of rows that this connection has changed."""
        return int(self.driver.total_changes)

    def checkpoint(self, *, restart: bool = False) -> int:
        """Move the write-ahead log into the file, as far as nobody reads it (any thread).

        It waits for the disk, over a connection of its own: the writer goes on meanwhile.

        Args:
            restart: whether the next write begins the log again; nobody may write meanwhile.

        Returns:
            How many bytes of the log's file are in use.
        """
        if self._path is None:
            return 0
        mode = "RESTART" if restart else "PASSIVE"  # https://sqlite.org/pragma.html
        with contextlib.closing(sqlite3.connect(self._path, timeout=0)) as connection:
            try:
                row = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            except sqlite3.Error as error:
                log.warning("the store's log could not be moved into its file: %s", error)
                return 0
        _, pages, moved = row
        return 0 if restart and pages == moved else int(pages) * PAGE_BYTES

    @contextlib.contextmanager
    def erasing(self) -> Iterator[None]:
        """Overwrite what is deleted inside with zeros: https://sqlite.org/pragma.html.

        Its log has it until ``erase_log``.
        """
        (before,) = self.driver.execute("PRAGMA secure_delete").fetchone()  # as SQLite was built
        self.driver.execute("PRAGMA secure_delete=ON")
        try:
            yield
        finally:
            self.driver.execute(f"PRAGMA secure_delete={before}")

    def erase_log(self) -> bool:
        """Move the write-ahead log into the file and cut it; nobody may write meanwhile.

        Returns:
            Whether that was possible: another program may be reading.
        """
        if self._path is None:
            return True
        with contextlib.closing(sqlite3.connect(self._path, timeout=1)) as connection:
            try:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                log.warning("the store's log could not be moved into its file: %s", error)
                return False
        return not busy

    @staticmethod
    def is_one_of(column: Any, name: str) -> Any:
        """Return the condition that a column is one of the numbers of a parameter."""
        numbers = sa.func.json_each(sa.bindparam(name)).table_valued("value")
        return column.in_(sa.select(numbers.c.value))

    @staticmethod
    def numbers(numbers: Iterable[int]) -> Any:
        """Return numbers as the value of a parameter of ``is_one_of``."""
        return json.dumps(sorted(numbers))

    def prepare_rows(self, columns: Mapping[str, Any], build: BuildStatement) -> RowsStatement:
        """Return a statement for rows of values.

        Args:
            columns: the types of a row's values, by their names, in the order in which the
                statement uses them.
            build: returns the statement.
        """
        return RowsStatement(compile_row(self.prepare(build(parameters(columns))), columns))

    def execute_rows(self, statement: RowsStatement, rows: Sequence[Any]) -> Any:
        """Execute a statement for each row; ``rowcount`` of the cursor says how many."""
        return self.driver.executemany(statement.single, rows)

    def fetch_later(self, statement: PreparedStatement, values: Any) -> Callable[[], list[Any]]:
        """Execute a statement; return a function that returns its rows, after the commit, too."""
        rows: list[Any] = self.driver.execute(statement.text, values).fetchall()
        return lambda: rows

    def require_row(self, text: str, values: Any) -> None:
        """Let the transaction fail, now or at its commit, if a query returns no row.

        The error is one of ``errors``, see ``is_row_missing``.
        """
        if self.driver.execute(text, values).fetchone() is None:
            raise _RowMissingError

    def is_row_missing(self, error: BaseException) -> bool:
        """Return whether a transaction failed since a row does not exist (``require_row``)."""
        return isinstance(error, _RowMissingError)

    def pipeline(self) -> contextlib.AbstractContextManager[object]:
        """Do nothing: there is no network between statements."""
        return _NO_PIPELINE

    def joined(self) -> contextlib.AbstractContextManager[object]:
        """Do nothing: there is no network between statements."""
        return _NO_PIPELINE

    @contextlib.contextmanager
    def durable(self) -> Iterator[None]:
        """Make commits inside wait until the data is on the disk."""
        self._pragma("synchronous=FULL")
        try:
            yield
        except BaseException:
            self.rollback()  # SQLite ignores this PRAGMA inside a transaction
            raise
        finally:
            self._pragma("synchronous=NORMAL")

    def commit_driver(self) -> None:
        """Commit the transaction that the driver began."""
        self.driver.commit()

    def commit(self) -> None:
        """Commit the transactions that the driver and SQLAlchemy began."""
        self.connection.commit()
        self.driver.commit()

    def rollback(self) -> None:
        """Roll back the transactions that the driver and SQLAlchemy began."""
        self.connection.rollback()
        self.driver.rollback()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        self._engine.dispose()


def open_database(location: Path | str | None) -> Sqlite | Postgres:
    """Open the store's database; create its tables, or migrate older ones.

    Raises:
        ServerError: it cannot be opened, has another program's tables, or those of an unknown
            version.
    """
    if not isinstance(location, str):
        try:
            return Sqlite(location)
        except sa.exc.DBAPIError as error:
            raise ServerError(f"its store {location} cannot be opened: {error.orig}") from error
    try:
        import psycopg
    except ImportError as error:
        how = "`pip install 'cloudmanager[scale]'` installs it"
        raise ServerError(f"a store in PostgreSQL needs psycopg: {how}") from error
    from .postgres_database import Postgres  # here: a server with SQLite does not need it

    try:
        return Postgres(location)
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        why = str(getattr(error, "orig", error)).strip().replace("\n", "; ")
        raise ServerError(f"its store in PostgreSQL cannot be opened: {why}") from error
