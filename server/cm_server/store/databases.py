"""Open the store's database, SQLite or PostgreSQL; write to it and make writes durable. SQL.

SQLite is for one server: a file in its folder. Several servers can share a PostgreSQL. Either is
used over one connection, by one thread at a time (store_queue.py). Statements to a PostgreSQL that
does not answer time out after seconds, and for a second no new one is tried.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import select
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from cloudmanager.protocol.errors import ServerError

from . import schema, tables

log = logging.getLogger("cm_server")

CONNECT_SECONDS = 3  # timeout of a connection to PostgreSQL
ANSWER_SECONDS = 10.0  # timeout of a statement
IDLE_SECONDS = 3  # then PostgreSQL rolls back a transaction of a stalled server: others wait for it
#: The name of the stores' sessions, by which servers find those that are stalled.
SESSION_NAME = "cm_server store"
#: Ends sessions that have waited in the middle of a pipeline: PostgreSQL has no timeout for these.
#: It calls them active until the message that ends the pipeline.
_END_STALLED = f"""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = '{SESSION_NAME}' AND pid <> pg_backend_pid()
AND datname = current_database() AND usename = current_user
AND state = 'active' AND wait_event = 'ClientRead'
AND state_change < clock_timestamp() - make_interval(secs => %s)
"""
RETRY_SECONDS = 1.0  # between two attempts to connect to an unavailable PostgreSQL
PAGE_BYTES = 4096  # of SQLite, by default
LOCK_SECONDS = 5.0  # that SQLite waits for another program's lock, outside of a queue
UNAVAILABLE = "it is unavailable; the server tries every second"
_NO_PIPELINE = contextlib.nullcontext()
_JOINED_TEXTS = 64  # different combinations of statements that are joined
_READS = 3  # of a connection until it is seen that it has ended, and a few notices before that
#: PostgreSQL's codes for connections that it ends: after ``IDLE_SECONDS``, and at its shutdown or
#: the crash of one of its processes (postgresql.org/docs/current/errcodes-appendix.html).
_IDLE_IN_TRANSACTION = "25P03"
_SHUTDOWN_STATES = frozenset(("57P01", "57P02"))
_SQLALCHEMY_ERRORS = (sa.exc.DBAPIError, sa.exc.ResourceClosedError)


class PreparedStatement(NamedTuple):
    """A compiled statement, for the driver.

    Attributes:
        text: of the statement.
        names: of its parameters, in their order.
    """

    text: str
    names: Sequence[str]

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the values of its parameters in their order."""
        return [parameters[name] for name in self.names]


class RowsStatement(NamedTuple):
    """A compiled statement that is executed for several rows of values.

    Attributes:
        single: the statement for one row; its parameters are the row's values in their order.
        many: the statement for any number of rows; each parameter is an array, one for each
            column. "" where the driver repeats the other one.
    """

    single: str
    many: str = ""


#: Returns a statement, given the SQL expressions of its values by their names.
BuildStatement = Callable[[Mapping[str, Any]], Any]


class NotExecuted(Exception):
    """Nothing was done, and it may be tried again.

    Another program holds a lock on SQLite's file, or PostgreSQL ended the transaction.
    """


class _RowMissingError(sqlite3.DatabaseError):
    """A row that has to exist does not: see ``require_row``."""


class Sqlite:
    """An SQLite database in a file or in memory.

    Args:
        path: the file; None keeps everything in memory (for tests).
    """

    errors: tuple[type[Exception], ...] = (sqlite3.Error, *_SQLALCHEMY_ERRORS)
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

    def compile(self, statement: Any) -> str:
        """Return a statement as the driver accepts it, with positional parameters."""
        return str(statement.compile(self._engine))

    def prepare(self, statement: Any) -> PreparedStatement:
        """Return a statement as the driver accepts it, with the order of its parameters."""
        compiled = statement.compile(self._engine)
        return PreparedStatement(str(compiled), compiled.positiontup)

    def row_reader(self, columns: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
        """Return a function that converts a row of the driver as SQLAlchemy does.

        Args:
            columns: of the row.
        """
        return _row_reader(self._engine.dialect, columns)

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
        return RowsStatement(_compile_row(self.prepare(build(_parameters(columns))), columns))

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


@dataclass
class _Joined:
    """A statement that is executed together with others.

    Attributes:
        text: of the statement.
        values: of its parameters.
        returns: "rows", "count" (of the rows that it has changed), or "none".
        rows: what it has returned.
    """

    text: str
    values: Sequence[Any]
    returns: str
    rows: list[Any] = field(default_factory=list)

    @property
    def rowcount(self) -> int:
        """The number of rows that it has changed."""
        return int(self.rows[0][0])


def _join_statements(statements: Sequence[tuple[str, str]]) -> str:
    """Return one statement that executes several, and returns the rows of all as JSON.

    Args:
        statements: each with what it returns, see ``_Joined``.
    """
    parts, results = [], []
    for number, (text, returns) in enumerate(statements):
        name = f"part_{number}"
        more = " RETURNING 1" if returns == "count" else ""
        parts.append(f"{name} AS ({text}{more})")
        if returns == "count":
            results.append(f"SELECT {number}, to_json(c) FROM (SELECT count(*) FROM {name}) AS c")
        elif returns == "rows":
            results.append(f"SELECT {number}, to_json({name}) FROM {name}")
    return f"WITH {', '.join(parts)} {' UNION ALL '.join(results) or 'SELECT 0, NULL WHERE false'}"


def _check_alive(driver: Any) -> None:
    """Read what PostgreSQL has sent to a connection that nothing was asked on.

    Raises:
        psycopg.OperationalError: it has ended the connection, or was restarted.
    """
    poll = select.poll()
    poll.register(driver.pgconn.socket, select.POLLIN)
    for _ in range(_READS):
        if not poll.poll(0):
            return
        driver.pgconn.consume_input()


class Postgres:
    """A PostgreSQL database, which several servers may share.

    Args:
        url: such as ``postgresql://user:password@host/name?sslmode=verify-full``.
    """

    #: Whether statements are so fast that they may be executed in the event loop.
    answers_at_once = False
    changed_rows = 0  # PostgreSQL makes its checkpoints itself
    max_retries = 3  # of an operation: one that always ends its connection must not block others
    retry_reason = "its store ended the connection several times"

    def __init__(self, url: str) -> None:
        import psycopg
        from sqlalchemy.dialects import postgresql  # here: it delays the start of other servers

        self.insert: Any = postgresql.insert
        self._array: Any = postgresql.ARRAY
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, *_SQLALCHEMY_ERRORS)
        self.name = psycopg.conninfo.conninfo_to_dict(url).get("dbname") or "of PostgreSQL"
        self._url = url
        self._retry_at = 0.0
        self._in_queue = False
        self._commit_sent = False  # whether the current transaction may be committed
        self._joined: list[_Joined] | None = None  # in ``joined``: what its commit executes
        self._join = functools.lru_cache(_JOINED_TEXTS)(_join_statements)
        self._engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=sa.StaticPool,
            paramstyle="format",
        )
        try:
            self.connection = self._engine.connect()
            # If several servers start at the same time, only one of them creates the tables.
            self.connection.exec_driver_sql("SELECT pg_advisory_lock(18266)")
            schema.prepare_tables(self.connection, tables.metadata)
            self.connection.exec_driver_sql("SELECT pg_advisory_unlock(18266)")
            self.connection.commit()
        except (sa.exc.DBAPIError, ServerError):
            self._engine.dispose()
            raise

    def _connect(self) -> Any:
        """Open a new connection, unless an attempt failed less than a second ago."""
        import psycopg

        if time.monotonic() < self._retry_at:
            raise psycopg.OperationalError(UNAVAILABLE)
        self._commit_sent = True  # a failed attempt to connect is not repeated
        try:
            connection: Any = _bounded_connection_class().connect(
                self._url,
                connect_timeout=CONNECT_SECONDS,
                application_name=SESSION_NAME,
                options=f"-c statement_timeout={ANSWER_SECONDS:g}s "
                f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
            )
        except psycopg.Error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            raise
        connection.prepare_threshold = 1
        connection.before_commit = self._note_commit
        self._commit_sent = False
        return connection

    def _note_commit(self) -> None:
        self._commit_sent = True

    def enter_queue(self) -> None:
        """Raise NotExecuted where a transaction may be tried again."""
        self._in_queue = True

    def end_stalled_sessions(self) -> None:
        """End sessions of servers that stand still in the middle of a transaction (``pipeline``).

        Between two statements that are not in a pipeline, PostgreSQL does it itself.
        """
        self.connection.exec_driver_sql(_END_STALLED, (IDLE_SECONDS,))

    def start_transaction(self) -> None:
        """Note that nothing of the next transaction is committed yet."""
        self._commit_sent = False

    def is_retryable(self, error: BaseException) -> bool:
        """Return whether PostgreSQL ended the connection, and certainly before the commit.

        It does if it stood still in the middle of the transaction, or was restarted. A statement
        that took too long is not repeated, nor is an attempt to connect.
        """
        cause = getattr(error, "orig", error)
        code = getattr(cause, "sqlstate", None)
        if code == _IDLE_IN_TRANSACTION:
            return self._in_queue  # it is ended while it waits for the next statement or the commit
        is_ended = code in _SHUTDOWN_STATES if code else _is_broken_connection(cause)
        return self._in_queue and is_ended and not self._commit_sent

    def is_data_error(self, error: BaseException) -> bool:
        """Return whether values were refused: nothing was written, and others would be."""
        import psycopg

        cause = getattr(error, "orig", error)
        is_refused = isinstance(cause, (psycopg.IntegrityError, psycopg.DataError))
        return is_refused and not self.is_row_missing(error)

    def describe_error(self, error: BaseException) -> str:
        """Return why a statement failed; without the address and the names in libpq's words.

        Its readers need no credentials (``/healthz``).
        """
        cause = getattr(error, "orig", error)
        message = cause.diag.message_primary if hasattr(cause, "diag") else None
        if message and getattr(cause, "sqlstate", None):
            return str(message)
        text = str(cause)
        if text == UNAVAILABLE:
            return text
        if "refused" in text:
            return "the connection was refused"
        if "timeout" in text:
            return "it does not answer"
        return "the connection to it broke or cannot be opened"

    def checkpoint(self, *, restart: bool = False) -> int:
        """Return 0: PostgreSQL makes its checkpoints itself."""
        return 0

    def erasing(self) -> contextlib.AbstractContextManager[object]:
        """Do nothing: deleted rows stay in PostgreSQL's files until its VACUUM."""
        return contextlib.nullcontext()

    def erase_log(self) -> bool:
        """Return False: PostgreSQL's own log and files have what was deleted for a while."""
        return False

    @property
    def driver(self) -> Any:
        """Return psycopg's connection; after a broken connection it is a new object."""
        return self.connection.connection.driver_connection

    def compile(self, statement: Any) -> str:
        """Return a statement as the driver accepts it, with positional parameters."""
        return str(statement.compile(self._engine))

    def prepare(self, statement: Any) -> PreparedStatement:
        """Return a statement as the driver accepts it, with the order of its parameters."""
        compiled = statement.compile(self._engine)
        return PreparedStatement(str(compiled), compiled.positiontup)

    def row_reader(self, columns: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
        """Return a function that converts a row of the driver as SQLAlchemy does.

        Args:
            columns: of the row.
        """
        return _row_reader(self._engine.dialect, columns)

    def is_one_of(self, column: Any, name: str) -> Any:
        """Return the condition that a column is one of the numbers of a parameter."""
        return column == sa.any_(sa.bindparam(name, type_=self._array(sa.BigInteger)))

    @staticmethod
    def numbers(numbers: Iterable[int]) -> Any:
        """Return numbers as the value of a parameter of ``is_one_of``."""
        return sorted(numbers)

    def prepare_rows(self, columns: Mapping[str, Any], build: BuildStatement) -> RowsStatement:
        """Return a statement for rows of values, with an array for each column: see ``Sqlite``."""
        arrays = [sa.bindparam(name, type_=self._array(type_)) for name, type_ in columns.items()]
        names = [sa.column(name, type_) for name, type_ in columns.items()]
        rows = sa.func.unnest(*arrays).table_valued(*names, name="new").render_derived()
        many = build({name: rows.c[name] for name in columns})
        single = _compile_row(self.prepare(build(_parameters(columns))), columns)
        return RowsStatement(single, self.compile(many))

    def execute_rows(self, statement: RowsStatement, rows: Sequence[Any]) -> Any:
        """Execute a statement for each row; ``rowcount`` of the cursor says how many.

        In a pipeline, and where statements are joined, it says so after the commit.
        """
        if len(rows) == 1:
            return self._execute_or_join(statement.single, rows[0])
        columns = [list(column) for column in zip(*rows, strict=True)]
        return self._execute_or_join(statement.many, columns)

    def _execute_or_join(self, text: str, values: Sequence[Any]) -> Any:
        """Execute a statement that returns no rows, now or with others at the commit."""
        if self._joined is None:
            return self.driver.execute(text, values)
        joined = _Joined(text, values, "count" if text.startswith("UPDATE ") else "none")
        self._joined.append(joined)
        return joined

    def fetch_later(self, statement: PreparedStatement, values: Any) -> Callable[[], list[Any]]:
        """Execute a statement; return a function that returns its rows, after the commit, too.

        In a pipeline, and where statements are joined, nothing waits for them but the commit.
        """
        if self._joined is not None:
            joined = _Joined(statement.text, values, "rows")
            self._joined.append(joined)
            return lambda: joined.rows
        fetch: Callable[[], list[Any]] = self.driver.execute(statement.text, values).fetchall
        return fetch

    def require_row(self, text: str, values: Any) -> None:
        """Let the transaction fail, now or at its commit, if a query returns no row.

        The error is one of ``errors``, see ``is_row_missing``. In a pipeline, and where statements
        are joined, nothing waits for the answer but the commit.
        """
        text = f"SELECT 1 / count(*) FROM ({text}) AS required"
        if self._joined is not None:
            self._joined.append(_Joined(text, values, "rows"))
        else:
            self.driver.execute(text, values)

    def is_row_missing(self, error: BaseException) -> bool:
        """Return whether a transaction failed since a row does not exist (``require_row``)."""
        return getattr(getattr(error, "orig", error), "sqlstate", None) == "22012"  # division by 0

    def pipeline(self) -> contextlib.AbstractContextManager[object]:
        """Send the statements of the ``with`` block without waiting for each one's result.

        Their errors are raised by the next statement that needs a result, or by the commit.
        """
        return self.driver.pipeline()  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Execute the statements of the ``with`` block as one, with its commit.

        That takes half as long as a pipeline, where each statement is a message with an answer. The
        statements must not depend on each other: none sees what another one writes. What executes
        them must be of this class, and the last one is ``commit_driver``.
        """
        self._joined = []
        try:
            yield
        finally:
            self._joined = None

    @contextlib.contextmanager
    def durable(self) -> Iterator[None]:
        """Make commits inside wait until the data is on the disk."""
        self.connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        yield

    def commit_driver(self) -> None:
        """Commit the transaction that the driver began, or the statements that are joined."""
        if self._joined is None:
            self.driver.commit()
        elif self._joined:
            self._execute_joined(self._joined)

    def _execute_joined(self, statements: Sequence[_Joined]) -> None:
        """Execute statements as one, which PostgreSQL commits at its end."""
        text = self._join(tuple((each.text, each.returns) for each in statements))
        values = [value for each in statements for value in each.values]
        driver = self.driver
        _check_alive(driver)  # else it is not known whether it was executed
        self._note_commit()
        driver.autocommit = True  # a transaction would be two more messages
        try:
            rows = driver.execute(text, values).fetchall()
        finally:
            with contextlib.suppress(*self.errors):  # a broken connection is not used again
                driver.autocommit = False
        for number, row in rows:
            statements[number].rows.append(list(row.values()))

    def commit(self) -> None:
        """Commit the transactions that the driver and SQLAlchemy began."""
        self.connection.commit()
        self.driver.commit()

    def rollback(self) -> None:
        """Roll back; discard a broken connection, so that the next use opens another one."""
        # Errors of many kinds are possible; after any of them PostgreSQL has rolled back.
        with contextlib.suppress(Exception):
            if self.driver.closed:
                self.connection.invalidate()
                self.connection.rollback()
                return  # reading self.driver now would open a new connection
        with contextlib.suppress(Exception):
            self.connection.rollback()
        with contextlib.suppress(Exception):
            self.driver.rollback()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(*self.errors):
            self.connection.close()
        self._engine.dispose()


def _is_broken_connection(error: BaseException) -> bool:
    """Return whether the other side ended a connection without a last word."""
    import psycopg

    if isinstance(error, psycopg.errors.PipelineAborted) or getattr(error, "timed_out", False):
        return False
    return isinstance(error, psycopg.OperationalError)


def _row_reader(
    dialect: sa.Dialect, columns: Sequence[Any]
) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that converts a row of the driver: see ``Sqlite.row_reader``."""
    convert = [
        # The drivers return floats as they are; SQLAlchemy asks for PostgreSQL's type of them.
        None
        if isinstance(column.type, sa.Float)
        else column.type.dialect_impl(dialect).result_processor(dialect, None)
        for column in columns
    ]

    def read(row: Sequence[Any]) -> list[Any]:
        pairs = zip(convert, row, strict=True)
        return [value if act is None else act(value) for act, value in pairs]

    return read


def _compile_row(statement: PreparedStatement, columns: Mapping[str, Any]) -> str:
    """Return a statement for one row, whose parameters are in the order of the row's values."""
    assert list(statement.names) == list(columns), statement
    return statement.text


def _parameters(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter for each value of a row, by its name."""
    return {name: sa.bindparam(name, type_=type_) for name, type_ in columns.items()}


def _bounded_connection_class() -> Any:
    """Return a class of psycopg connections whose wait for an answer has a timeout."""
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        before_commit: Callable[[], None] | None = None

        def commit(self) -> None:
            if self.before_commit is not None:
                self.before_commit()
            super().commit()

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, timeout or ANSWER_SECONDS + 1)
            except psycopg.OperationalError as error:
                if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    # Close it: a late answer must not be read as the next statement's.
                    self.pgconn.finish()
                    error.timed_out = True  # type: ignore[attr-defined]
                raise

    return Bounded


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
    try:
        return Postgres(location)
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        why = str(getattr(error, "orig", error)).strip().replace("\n", "; ")
        raise ServerError(f"its store in PostgreSQL cannot be opened: {why}") from error
