"""PostgreSQL as a store's database, which several servers can share. SQL.

It is used over one connection, by one thread at a time (store_queue.py). Statements to a PostgreSQL
that does not answer time out after seconds, and for a second no new one is tried.
"""

from __future__ import annotations

import contextlib
import functools
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

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
UNAVAILABLE = "it is unavailable; the server tries every second"
_JOINED_TEXTS = 64  # different combinations of statements that are joined
_READS = 3  # of a connection until it is seen that it has ended, and a few notices before that
#: PostgreSQL's codes for connections that it ends: after ``IDLE_SECONDS``, and at its shutdown or
#: the crash of one of its processes (postgresql.org/docs/current/errcodes-appendix.html).
_IDLE_IN_TRANSACTION = "25P03"
_SHUTDOWN_STATES = frozenset(("57P01", "57P02"))


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


class Postgres(StatementCompiler):
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
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, *SQLALCHEMY_ERRORS)
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
        single = compile_row(self.prepare(build(parameters(columns))), columns)
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
