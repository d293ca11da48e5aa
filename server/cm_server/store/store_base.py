"""What all parts of the store have in common: its database, transactions, and what waits. SQL.

Call from one thread at a time; ``end_job`` and ``mark_board_seen`` from any, at any time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError
from cm_server.cleanup import ProblemLog

from . import tables
from .blob_rows import BlobRows
from .databases import open_database
from .health_rows import HealthRows
from .installed_packages import InstalledPackages
from .log_rows import LogRows
from .replaced_rows import ReplacedRows
from .rollout_replacements import RolloutReplacements
from .rollout_rows import RolloutRows
from .rows import AuditRow
from .secret_rows import SecretRows
from .statements import NotExecuted, PreparedStatement
from .text_rows import TextRows
from .waiting_rows import WaitingRows

T = TypeVar("T")

#: Errors of SQLite and PostgreSQL that are caused by the data; others mean a failing database.
_DATA_ERRORS = ("IntegrityError", "UniqueViolation")

#: The values of a row of jobs, of a job that ended, and of a board that was seen, with their types.
JOB_VALUES: dict[str, Any] = {
    name: tables.jobs.c[name].type for name in ("id", "board", "caller", "created")
}
END_VALUES: dict[str, Any] = {"at": sa.Float(), "how": sa.Text(), "why": sa.Text()}

END_VALUES["job"] = tables.jobs.c.id.type
_SEEN_VALUES: dict[str, Any] = {"json": tables.boards.c.facts.type, "at": sa.Float()}

_SEEN_VALUES["board"] = sa.Text()


def insert_rows(table: sa.Table, values: Mapping[str, Any]) -> Any:
    """Return the statement that inserts rows; the values are in the order of the columns."""
    columns = list(values.values())
    if all(isinstance(column, sa.BindParameter) for column in columns):
        # SQLite executes it faster than a SELECT.
        return sa.insert(table).values(dict(values)).inline()  # without RETURNING
    return sa.insert(table).from_select(list(values), sa.select(*columns))


def end_jobs(values: Mapping[str, Any], *conditions: Any) -> Any:
    """Return the statement that writes how jobs ended."""
    ended = {"ended": values["at"], "status": values["how"], "error": values["why"]}
    return (
        sa.update(tables.jobs).where(tables.jobs.c.id == values["job"], *conditions).values(ended)
    )


def _update_seen_boards(values: Mapping[str, Any]) -> Any:
    statement = sa.update(tables.boards).where(tables.boards.c.id == values["board"])
    return statement.values(facts=values["json"], last_seen=values["at"])


_AUDIT_VALUES = {name: tables.audit.c[name].type for name in AuditRow._fields}

#: Why a name cannot be given; a server checks before, so that another one must have been faster.
NAME_TAKEN = "the name was given meanwhile, at another server; choose another one"

#: Why a server may not start jobs that others have removed since they took it for dead.
NOT_A_MEMBER = "this server stopped responding and other servers took over its jobs; try again"


class EndedJob(NamedTuple):
    """How a job ended, until it is written."""

    at: float
    status: str
    error: str | None
    job: int


class _Transaction:
    """See ``StoreBase._rollback_on_error``: each cell needs two, and a generator takes 1 us longer.

    Args:
        store: whose.
    """

    __slots__ = ("_store",)

    def __init__(self, store: StoreBase) -> None:
        self._store = store

    def __enter__(self) -> None:
        self._store.database.start_transaction()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: object
    ) -> None:
        if error is None:
            self._store.note_written()
        elif isinstance(error, self._store.database.errors):
            self._store.roll_back(error)


class StoreBase:
    """The database of one server's store; its tables are created if they are missing.

    Args:
        location: SQLite's file, or ``postgresql://…``; None keeps all in memory (for tests).

    Raises:
        ServerError: the database cannot be opened, has another program's tables, or those of an
            unknown version.

    Attributes:
        is_shared: whether several servers may use it.
    """

    is_shared = False

    def __init__(self, location: Path | str | None) -> None:
        self.database = open_database(location)
        self._connection = self.database.connection
        self.write_error = ""  # why the last write failed; "" if it succeeded
        self._problems = ProblemLog()
        self._next_job_id = (self._fetch_value(sa.select(sa.func.max(tables.jobs.c.id))) or 0) + 1
        # What the next transaction writes. Another thread may write it while the event loop adds
        # to it: each step of either is atomic.
        self._pending_ended_jobs: deque[EndedJob] = deque()
        self._ended_count = 0
        self.written_results = 0  # how many results are in the database, in their order
        #: Board's id -> parameters of _UPDATE_BOARD_SEEN.
        self._pending_seen_boards: dict[str, tuple[str, float, str]] = {}
        # Each cell waits for these statements. Compiled once and executed by the driver, they
        # need a third of the time.
        prepare = self.database.prepare_rows
        self._insert_job = prepare(JOB_VALUES, functools.partial(insert_rows, tables.jobs))
        self._end_job = prepare(END_VALUES, end_jobs)
        self._update_board_seen = prepare(_SEEN_VALUES, _update_seen_boards)
        self._insert_audit = prepare(_AUDIT_VALUES, functools.partial(insert_rows, tables.audit))
        self.installed_packages = InstalledPackages(self._connection, self._rollback_on_error)
        self.log_rows = LogRows(self._connection, self._rollback_on_error)
        self.health_rows = HealthRows(
            self._connection, self.database.insert, self._rollback_on_error
        )
        self.secret_rows = SecretRows(self._connection, self._rollback_on_error)
        self.replaced_rows = ReplacedRows(self._connection)
        self.blob_rows = BlobRows(self._connection, self.database.insert)
        self.waiting_rows = WaitingRows(
            self._connection, self.blob_rows, tables.jobs, self.database.insert
        )
        self.text_rows = TextRows(self.database, self._rollback_on_error)
        self.rollout_rows = RolloutRows(
            self._connection, self.blob_rows, self._rollback_on_error, self.database.insert
        )
        self.rollout_replacements = RolloutReplacements(self._connection, self.rollout_rows)

    def close(self) -> None:
        """Write pending changes, and close the database."""
        self.flush()
        self.database.close()

    @contextlib.contextmanager
    def _durable_transaction(self, audit_row: AuditRow | None = None) -> Iterator[None]:
        """Commit the changes made inside, and their row in the audit log, with an fsync."""
        self.flush()
        with self._rollback_on_error(), self.database.durable():
            yield
            if audit_row is not None:
                self.database.execute_rows(self._insert_audit, [audit_row])
            self.database.commit()

    def _rollback_on_error(self) -> contextlib.AbstractContextManager[None]:
        """Roll back the changes made inside if they cannot be written.

        Raises:
            ServerError: they cannot be written: the disk is full, for example.
            NotExecuted: nothing was done, and it may be tried again (only in a queue).
        """
        return _Transaction(self)

    def roll_back(self, error: Exception) -> None:
        """Roll back a transaction that failed with one of the database's errors; then raise why.

        Raises:
            ServerError, NotExecuted: see ``_rollback_on_error``.
        """
        is_retryable = self.database.is_retryable(error)
        self.database.rollback()
        cause = getattr(error, "orig", error)
        reason = self.database.describe_error(error)
        if is_retryable:
            raise NotExecuted(f"{self.database.retry_reason}: {reason}") from error
        if self.database.is_row_missing(error):
            raise ServerError(NOT_A_MEMBER) from error
        if _is_name_taken(cause):
            raise ServerError(NAME_TAKEN) from error
        why = f"its store cannot be written: {reason}"
        if type(cause).__name__ not in _DATA_ERRORS:
            self.write_error = why
        text = str(cause).strip()
        kind = type(cause).__name__
        self._problems.write(logging.ERROR, kind, "the store cannot be written: %s", text)
        raise ServerError(why) from error

    def note_written(self) -> None:
        """Note that the database can be written, after an error, too."""
        if self.write_error:
            self.write_error = ""
            self._problems.write(logging.INFO, "recovery", "the store can be written again")

    def probe_writable(self) -> None:
        """Try to write, and update ``write_error``."""
        version = tables.version
        with contextlib.suppress(ServerError), self._rollback_on_error():
            self._connection.execute(sa.update(version).values(version_num=version.c.version_num))
            self._connection.commit()

    def read(self, query: Callable[[], T]) -> T:
        """Return what a function reads from the tables.

        Raises:
            ServerError: the database cannot be read.
        """
        self.database.start_transaction()
        try:
            found = query()
            self._connection.commit()
        except self.database.errors as error:
            is_retryable = self.database.is_retryable(error)
            self.database.rollback()
            reason = self.database.describe_error(error)
            if is_retryable:
                raise NotExecuted(f"{self.database.retry_reason}: {reason}") from error
            raise ServerError(f"its store cannot be read: {reason}") from error
        return found

    def _fetch_rows(self, query: Any) -> Sequence[Any]:
        """Return the rows of a query.

        Raises:
            ServerError: the database cannot be read.
        """
        return self.read(lambda: self._connection.execute(query).all())

    def _fetch_value(self, query: Any) -> Any:
        return next((row[0] for row in self._fetch_rows(query)), None)

    def mark_board_seen(self, board_id: str, facts: dict[str, Any]) -> None:
        """Record that a board is connected now, and its facts.

        ``flush`` or the next ``insert_jobs`` writes it: when very many boards connect at the same
        time, a commit for each would take a quarter of the server's time.
        """
        self._pending_seen_boards[board_id] = (json.dumps(facts), time.time(), board_id)

    # The audit log

    def add_audit_row(self, row: AuditRow, *, durable: bool = False) -> None:
        """Write a row of the audit log; ``durable`` waits for the disk.

        Raises:
            ServerError: it cannot be written.
        """
        if durable:
            with self._durable_transaction(row):
                pass
        else:
            self._write_all([], [row])

    def audit_rows(self, count: int) -> list[AuditRow]:
        """Return the newest ``count`` rows of the audit log, oldest first."""
        query = sa.select(*list(tables.audit.c)[1:]).order_by(tables.audit.c.id.desc()).limit(count)
        return [AuditRow(*row) for row in self._fetch_rows(query)][::-1]

    def _end_waiting(self, jobs: Sequence[int], status: str, error: str) -> list[int]:
        ended = self.waiting_rows.remove(jobs)
        values = {"at": time.time(), "how": status, "why": error}
        update = end_jobs({**values, "job": sa.bindparam("number")})
        if ended:
            self._connection.execute(update, [{"number": number} for number in ended])
        return ended

    def end_job(self, job: int, status: str, error: str | None = None) -> int:
        """Record how a job ended; ``flush`` or the next ``insert_jobs`` writes it.

        Call from one thread only.

        Returns:
            The number of results until now: once ``written_results`` is as large, this one is in
            the database.
        """
        self._pending_ended_jobs.append(EndedJob(time.time(), status, error, job))
        self._ended_count += 1
        return self._ended_count

    def _write_pending_first(self) -> None:
        """Write pending results before another job starts.

        Raises:
            ServerError: they cannot be written.
        """
        if self._pending_ended_jobs:
            self._write_all([])

    @property
    def has_pending(self) -> bool:
        """Whether results or facts wait to be written."""
        return bool(self._pending_ended_jobs or self._pending_seen_boards)

    def flush(self) -> None:
        """Write pending results and facts; what cannot be written stays pending."""
        if self.has_pending:
            with contextlib.suppress(ServerError):
                self._write_all([])

    def _write_all(
        self,
        jobs: list[tuple[Any, ...]],
        audit_rows: Sequence[AuditRow] = (),
        claims: Sequence[tuple[PreparedStatement, Any]] = (),
    ) -> list[list[Any]]:
        """Write pending changes, then new jobs and their audit rows, in one transaction.

        Args:
            jobs: their rows.
            audit_rows: for the audit log.
            claims: statements with their values, which change the owners of jobs.

        Returns:
            The rows that each of the claims returns.
        """
        execute_rows = self.database.execute_rows
        seen_boards, ended_jobs = self._take_pending()
        try:
            with self._rollback_on_error(), self.database.joined():
                if seen_boards:
                    execute_rows(self._update_board_seen, seen_boards)
                if ended_jobs:
                    self._write_ended_jobs(ended_jobs)
                if jobs:
                    execute_rows(self._insert_job, jobs)
                if audit_rows:
                    execute_rows(self._insert_audit, audit_rows)
                claimed = [self.database.fetch_later(*claim) for claim in claims] if claims else []
                if jobs or claims:
                    self._require_membership()
                # PostgreSQL gets all of it as one statement: each costs a cell 0.1 ms.
                self.database.commit_driver()
                rows = [list(fetch()) for fetch in claimed] if claimed else []
        except BaseException:
            for row in seen_boards:
                self._pending_seen_boards.setdefault(row[2], row)
            self._pending_ended_jobs.extendleft(reversed(ended_jobs))
            raise
        self._on_written(ended_jobs)
        return rows

    def _take_pending(self) -> tuple[list[tuple[str, float, str]], list[EndedJob]]:
        """Take the pending facts and results; another thread may add to them meanwhile."""
        seen_boards, ended_jobs = [], []
        while self._pending_seen_boards:
            seen_boards.append(self._pending_seen_boards.popitem()[1])
        while self._pending_ended_jobs:
            ended_jobs.append(self._pending_ended_jobs.popleft())
        return seen_boards, ended_jobs

    def _on_written(self, ended_jobs: list[EndedJob]) -> None:
        """Note that results are in the database."""
        self.written_results += len(ended_jobs)

    def _require_membership(self) -> None:
        """Let the transaction fail if this server may not start jobs; a single one always may."""

    def _write_ended_jobs(self, ended_jobs: list[EndedJob]) -> None:
        self.database.execute_rows(self._end_job, ended_jobs)

    # Time

    def newest_time(self) -> float | None:
        """Return the time of the newest job or audit row; None in a new store."""
        job, row = tables.jobs.c, tables.audit.c
        newest = (
            self._fetch_value(sa.select(row.at).order_by(row.id.desc()).limit(1)),
            self._fetch_value(sa.select(job.created).order_by(job.id.desc()).limit(1)),
        )
        return max((at for at in newest if at is not None), default=None)

    def database_time(self) -> float | None:
        """Return the time of the database's clock; None if it is this machine's."""
        return None

    def remember(self, name: str, values: Mapping[str, Any]) -> None:
        """Store values under a name; they replace earlier ones.

        Raises:
            ServerError: they cannot be written.
        """
        shared = tables.shared
        row = self.database.insert(shared).values(name=name, value=json.dumps(values).encode())
        change = {"value": row.excluded.value}
        with self._rollback_on_error():
            self._connection.execute(
                row.on_conflict_do_update(index_elements=["name"], set_=change)
            )
            self._connection.commit()

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return the values stored under a name; None if there are none."""
        query = sa.select(tables.shared.c.value).where(tables.shared.c.name == name)
        value = self._fetch_value(query)
        return None if value is None else dict(json.loads(value))


def _is_name_taken(error: BaseException) -> bool:
    """Return whether a row was not written because there is another one of its name."""
    return type(error).__name__ in _DATA_ERRORS and "unique" in str(error).lower()
