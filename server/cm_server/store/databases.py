"""The two databases that a store may be in: how each is opened, written and made durable. SQL.

SQLite is one server's: a file in its folder. PostgreSQL is shared by several. Either is used
over one connection, from the server's one thread, which waits for it: so a PostgreSQL that does not
answer is given up after seconds, and not asked again for a moment.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cloudmanager.protocol.errors import ServerError

from . import schema, tables

CONNECT_SECONDS = 3  # that PostgreSQL has to take a connection
ANSWER_SECONDS = 5.0  # that it has for a statement
IDLE_SECONDS = 3  # after which it undoes what a server that stands still had begun: others wait
RETRY_SECONDS = 1.0  # between two tries to reach one that is away
_SQLALCHEMY_ERRORS = (sa.exc.DBAPIError, sa.exc.ResourceClosedError)


class Sqlite:
    """A file, or memory.

    Args:
        path: the file; None keeps all in memory (for tests).
    """

    errors: tuple[type[Exception], ...] = (sqlite3.Error, *_SQLALCHEMY_ERRORS)
    insert: Any = staticmethod(sqlite.insert)  # which knows ON CONFLICT

    def __init__(self, path: Path | None) -> None:
        self.name = str(path)
        if path is not None:
            schema.make_private(path)
        self._engine = sa.create_engine(
            f"sqlite:///{path}" if path else "sqlite://", poolclass=sa.StaticPool
        )
        try:
            self.connection = self._engine.connect()
            self._pragma("busy_timeout=5000")
            schema.prepare_tables(self.connection, tables.metadata)
            self._pragma("journal_mode=WAL")
            self._pragma("synchronous=NORMAL")
            self._pragma("recursive_triggers=ON")  # else INSERT OR REPLACE deletes unseen
        except (sa.exc.DBAPIError, ServerError):
            self._engine.dispose()
            raise
        self.driver: Any = self.connection.connection.driver_connection
        self.connection.commit()

    def _pragma(self, text: str) -> None:
        self.connection.exec_driver_sql(f"PRAGMA {text}")
        self.connection.commit()

    def compile(self, statement: Any) -> str:
        """Return a statement as the driver takes it, with its values by their places."""
        return str(statement.compile(self._engine))

    def execute_many(self, text: str, rows: list[Any]) -> int:
        """Carry a compiled statement out for each row; return how many rows it changed."""
        return int(self.driver.executemany(text, rows).rowcount)

    @contextlib.contextmanager
    def durable(self) -> Iterator[None]:
        """Have what is committed inside on the disk."""
        self._pragma("synchronous=FULL")
        try:
            yield
        except BaseException:
            self.rollback()  # no PRAGMA inside a transaction
            raise
        finally:
            self._pragma("synchronous=NORMAL")

    def commit(self) -> None:
        """Commit what both the driver and SQLAlchemy began."""
        self.connection.commit()
        self.driver.commit()

    def rollback(self) -> None:
        """Undo it."""
        self.connection.rollback()
        self.driver.rollback()

    def close(self) -> None:
        """Let go of it."""
        self.connection.close()
        self._engine.dispose()


class Postgres:
    """A database of PostgreSQL's, which several servers may share.

    Args:
        url: such as ``postgresql://user:password@host/name?sslmode=verify-full``.
    """

    insert: Any = staticmethod(postgresql.insert)

    def __init__(self, url: str) -> None:
        import psycopg

        self.errors: tuple[type[Exception], ...] = (psycopg.Error, *_SQLALCHEMY_ERRORS)
        self.name = psycopg.conninfo.conninfo_to_dict(url).get("dbname") or "of PostgreSQL"
        self._url = url
        self._retry_at = 0.0
        self._engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=sa.StaticPool,
            paramstyle="format",
        )
        try:
            self.connection = self._engine.connect()
            # Of servers that start at once one makes the tables.
            self.connection.exec_driver_sql("SELECT pg_advisory_lock(18266)")
            schema.prepare_tables(self.connection, tables.metadata)
            self.connection.exec_driver_sql("SELECT pg_advisory_unlock(18266)")
            self.connection.commit()
        except (sa.exc.DBAPIError, ServerError):
            self._engine.dispose()
            raise

    def _connect(self) -> Any:
        """Connect anew, unless that failed a moment ago."""
        import psycopg

        if time.monotonic() < self._retry_at:
            raise psycopg.OperationalError("it is away; it is tried again every second")
        try:
            connection = _bounded_connection_class().connect(
                self._url,
                connect_timeout=CONNECT_SECONDS,
                options=f"-c statement_timeout={ANSWER_SECONDS:g}s "
                f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
            )
        except psycopg.Error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            raise
        connection.prepare_threshold = 1
        return connection

    @property
    def driver(self) -> Any:
        """Return psycopg's connection, which is another one after a break."""
        return self.connection.connection.driver_connection

    def compile(self, statement: Any) -> str:
        """Return a statement as the driver takes it, with its values by their places."""
        return str(statement.compile(self._engine))

    def execute_many(self, text: str, rows: list[Any]) -> int:
        """Carry a compiled statement out for each row; return how many rows it changed."""
        with self.driver.cursor() as cursor:
            cursor.executemany(text, rows)
            return int(cursor.rowcount)

    @contextlib.contextmanager
    def durable(self) -> Iterator[None]:
        """Have what is committed inside on the disk."""
        self.connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        yield

    def commit(self) -> None:
        """Commit what was begun."""
        self.connection.commit()
        self.driver.commit()

    def rollback(self) -> None:
        """Undo it; a connection that broke is let go of, and the next use makes another."""
        with contextlib.suppress(Exception):  # of many kinds: there is nothing left to undo
            if self.driver.closed:
                self.connection.invalidate()
                self.connection.rollback()
                return  # to look at it again would be to connect anew
        with contextlib.suppress(Exception):
            self.connection.rollback()
        with contextlib.suppress(Exception):
            self.driver.rollback()

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(*self.errors):
            self.connection.close()
        self._engine.dispose()


def _bounded_connection_class() -> Any:
    """Return a kind of connection that waits for answers, but not for ever."""
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, timeout or ANSWER_SECONDS + 1)
            except psycopg.OperationalError:
                if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    self.pgconn.finish()  # what it may say later is no answer to what is next
                raise

    return Bounded


def open_database(location: Path | str | None) -> Sqlite | Postgres:
    """Open the store's database, with the tables made or carried over.

    Raises:
        ServerError: it cannot be opened, is something else, or of another version.
    """
    if not isinstance(location, str):
        try:
            return Sqlite(location)
        except sa.exc.DBAPIError as error:
            raise ServerError(f"its store {location} cannot be opened: {error.orig}") from error
    try:
        import psycopg
    except ImportError as error:
        how = "`pip install 'cloudmanager[scale]'` brings it"
        raise ServerError(f"a store in PostgreSQL needs psycopg: {how}") from error
    try:
        return Postgres(location)
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        why = str(getattr(error, "orig", error)).strip().replace("\n", "; ")
        raise ServerError(f"its store in PostgreSQL cannot be opened: {why}") from error
