"""What the server must not forget, in SQL.

Boards with their keys and labels, callers' tokens (hashed), one row per job, the audit log.
Jobs are committed before their first byte leaves (SQLite: WAL, synchronous NORMAL, which survives
``kill -9`` of the server; PostgreSQL: durably, since it may die alone); how they ended is written
in batches, and always before the same board's next job, so that a board's memory of its last job
covers what a crash can lose. Identity, tokens and what is privileged are fsynced (databases.py).
What is done and its row in the audit log are one transaction; triggers forbid to change or
delete such a row.

Call from the server's one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError
from cm_server import limits
from cm_server.clock import DAY, EARLIEST

from . import tables
from .databases import open_database
from .installed_packages import InstalledPackages
from .rows import AuditRow, BoardRow, JobRow, TokenRow

log = logging.getLogger("cm_server")

#: Errors, of SQLite and of PostgreSQL, that are about what was to be written.
_DATA_ERRORS = ("IntegrityError", "UniqueViolation")
_JOB_INSERT_COLUMNS = ("id", "board", "caller", "created")
INSERT_JOB = sa.insert(tables.jobs).values(
    {name: sa.bindparam(name) for name in _JOB_INSERT_COLUMNS}
)
JOB_END_VALUES: dict[str, Any] = {
    name: sa.bindparam(given)
    for name, given in (("ended", "at"), ("status", "how"), ("error", "why"))
}
END_JOB = sa.update(tables.jobs).where(tables.jobs.c.id == sa.bindparam("job"))
_UPDATE_BOARD_SEEN = (
    sa.update(tables.boards)
    .where(tables.boards.c.id == sa.bindparam("board"))
    .values(facts=sa.bindparam("told", type_=sa.Text), last_seen=sa.bindparam("at"))
)
BOARD_COLUMNS = [tables.boards.c[name] for name in BoardRow._fields]
JOB_COLUMNS = [tables.jobs.c[name] for name in JobRow._fields]
_INSERT_AUDIT = sa.insert(tables.audit).values(
    {column.name: sa.bindparam(column.name) for column in tables.audit.c if column.name != "id"}
)


class Store:
    """The database; made when missing.

    Args:
        location: SQLite's file, or ``postgresql://…``; None keeps all in memory (for tests).

    Raises:
        ServerError: it cannot be opened, is something else, or of another version.
    """

    def __init__(self, location: Path | str | None) -> None:
        self.database = open_database(location)
        self._connection = self.database.connection
        self.write_error = ""  # why the last write failed, if it did
        self._next_job_id = (self._fetch_value(sa.select(sa.func.max(tables.jobs.c.id))) or 0) + 1
        self._pending_ended_jobs: list[tuple[Any, ...]] = []  # as END_JOB takes them
        self._pending_seen_boards: dict[
            str, tuple[str, float, str]
        ] = {}  # facts first, as in the table
        # Every cell waits for these: compiled once and given to the driver itself, they
        # cost a third.
        self._insert_job = self.database.compile(INSERT_JOB)
        self._end_job = self.database.compile(END_JOB.values(JOB_END_VALUES))
        self._update_board_seen = self.database.compile(_UPDATE_BOARD_SEEN)
        self._insert_audit = self.database.compile(_INSERT_AUDIT)
        self.installed_packages = InstalledPackages(self._connection, self._rollback_on_error)

    def close(self) -> None:
        """Write what is waiting and close."""
        self.flush()
        self.database.close()

    @contextlib.contextmanager
    def _durable_transaction(self, audit_row: AuditRow | None = None) -> Iterator[None]:
        """Commit what is done inside, and its row in the audit log, with an fsync."""
        self.flush()
        with self._rollback_on_error(), self.database.durable():
            yield
            if audit_row is not None:
                self.database.execute_many(self._insert_audit, [audit_row])
            self.database.commit()

    @contextlib.contextmanager
    def _rollback_on_error(self) -> Iterator[None]:
        """Undo what is done inside where it cannot be written: a full disk, for example."""
        try:
            yield
        except self.database.errors as error:
            self.database.rollback()
            cause = getattr(error, "orig", error)
            reason = str(cause).strip()
            why = f"its store cannot be written: {reason}"
            if type(cause).__name__ not in _DATA_ERRORS:
                self.write_error = why
            log.error("the store cannot be written: %s", reason)
            raise ServerError(why) from error
        self.write_error = ""

    def probe_writable(self) -> None:
        """See whether it can be written by now."""
        version = tables.version
        with contextlib.suppress(ServerError), self._rollback_on_error():
            self._connection.execute(sa.update(version).values(version_num=version.c.version_num))
            self._connection.commit()

    def _fetch_rows(self, query: Any) -> Sequence[Any]:
        """Return what is there.

        Raises:
            ServerError: it cannot be read.
        """
        try:
            found = self._connection.execute(query).all()
            self._connection.commit()
        except self.database.errors as error:
            self.database.rollback()
            reason = str(getattr(error, "orig", error)).strip()
            raise ServerError(f"its store cannot be read: {reason}") from error
        return found

    def _fetch_value(self, query: Any) -> Any:
        return next((row[0] for row in self._fetch_rows(query)), None)

    # Boards

    def boards(self) -> list[BoardRow]:
        """Return every enrolled board."""
        self.flush()
        return [BoardRow(*row) for row in self._fetch_rows(sa.select(*BOARD_COLUMNS))]

    def enrol_boards(self, boards: Sequence[BoardRow], audit_row: AuditRow | None = None) -> None:
        """Write the identity of each board; a known id gets the new key, and is numbered anew."""
        with self._durable_transaction(audit_row):
            self._upsert_boards(boards)

    def _upsert_boards(self, boards: Sequence[BoardRow]) -> None:
        statement = self.database.insert(tables.boards)
        given = ("key", "gen", "nonce", "plain", "token")
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={name: statement.excluded[name] for name in given}
        )
        self._connection.execute(statement, [row._asdict() for row in boards])

    def enrol_with_token(self, token: TokenRow, board: BoardRow, audit_row: AuditRow) -> None:
        """Write a board that enrolled itself, and that its token has one use less.

        Raises:
            ServerError: another server used it up meanwhile.
        """
        left = tables.tokens.c.uses
        statement = sa.update(tables.tokens).where(tables.tokens.c.hash == token.hash, left > 0)
        with self._durable_transaction(audit_row):
            self._upsert_boards([board])
            if not self._connection.execute(statement.values(uses=left - 1)).rowcount:
                self.database.rollback()
                raise ServerError(f"the token {token.name!r} was used already")

    def update_board(self, board_id: str, audit_row: AuditRow | None = None, **values: Any) -> None:
        """Change what a board is called, or its keys: ``name``, ``key``, ``gen``, ``nonce``."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == board_id)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(**values))

    def start_key_rotation(self, nonces: Mapping[str, bytes], audit_row: AuditRow) -> None:
        """Note what the next keys of the boards with these ids are derived with."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": nonce} for board_id, nonce in nonces.items()]
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(nonce=sa.bindparam("new")), rows)

    def delete_boards(self, board_ids: Sequence[str], audit_row: AuditRow | None = None) -> None:
        """Take boards out; their jobs' lines stay, under ids that never come again."""
        statement = sa.delete(tables.boards).where(tables.boards.c.id == sa.bindparam("board"))
        with self._durable_transaction(audit_row):
            self._connection.execute(statement, [{"board": board_id} for board_id in board_ids])
            for board_id in board_ids:
                self.installed_packages.delete_board(board_id)

    def set_labels(
        self, labels: Mapping[str, dict[str, str]], audit_row: AuditRow | None = None
    ) -> None:
        """Replace the labels of the boards with these ids."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": new} for board_id, new in labels.items()]
        with self._durable_transaction(audit_row):
            self._connection.execute(
                statement.values(labels=sa.bindparam("new", type_=sa.JSON)), rows
            )

    def mark_board_seen(self, board_id: str, facts: dict[str, Any]) -> None:
        """Note that a board was here just now, and what it said of itself.

        ``flush``, or the next ``begin``, writes it: when very many boards dial in at once, a
        commit for each would cost a quarter of it all.
        """
        self._pending_seen_boards[board_id] = (json.dumps(facts), time.time(), board_id)

    # Tokens

    def add_token(self, token: TokenRow, audit_row: AuditRow | None = None) -> None:
        """Let the bearer of a token in; its name is nobody else's who is not revoked."""
        with self._durable_transaction(audit_row):
            self._connection.execute(sa.insert(tables.tokens), token._asdict())

    def revoke_token(self, token_hash: str, at: float, audit_row: AuditRow | None = None) -> None:
        """Shut the bearer of a token out; its row stays."""
        statement = sa.update(tables.tokens).where(tables.tokens.c.hash == token_hash)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(revoked=at))

    def tokens(self) -> list[TokenRow]:
        """Return every token, in the order in which they were made."""
        query = sa.select(tables.tokens).order_by(tables.tokens.c.created)
        return [TokenRow(*row) for row in self._fetch_rows(query)]

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
            self._write_all([], row)

    def audit_rows(self, count: int) -> list[AuditRow]:
        """Return the newest rows of the audit log, the newest last."""
        query = sa.select(*list(tables.audit.c)[1:]).order_by(tables.audit.c.id.desc()).limit(count)
        return [AuditRow(*row) for row in self._fetch_rows(query)][::-1]

    # Jobs

    def insert_jobs(
        self,
        board_ids: Sequence[str],
        caller: str,
        *,
        address: str = "",
        target: str = "",
        detail: str = "",
        verb: str = "submit",
    ) -> range:
        """Write one open job per board, in one transaction, and return their numbers.

        What ended before is written first: see the module's docstring. The cell's row in the
        audit log is part of the same transaction.

        Raises:
            ServerError: they cannot be written.
        """
        if not board_ids:
            return range(0)
        numbers, now = self._allocate_job_ids(len(board_ids)), time.time()
        rows = [
            self._job_values(number, board_id, caller, now)
            for number, board_id in zip(numbers, board_ids, strict=True)
        ]
        count, last = len(rows), numbers[-1]
        cell = AuditRow(now, caller, address, verb, target, detail, count, numbers[0], last, "done")
        self._write_all(rows, cell)
        return numbers

    def _allocate_job_ids(self, count: int) -> range:
        """Return numbers of jobs that nobody had."""
        first = self._next_job_id
        self._next_job_id += count
        return range(first, self._next_job_id)

    def _job_values(self, number: int, board_id: str, caller: str, now: float) -> tuple[Any, ...]:
        return number, board_id, caller, now

    def end_job(self, job: int, status: str, error: str | None = None) -> None:
        """Note how a job ended; ``flush`` or the next ``begin`` writes it."""
        self._pending_ended_jobs.append((time.time(), status, error, job))

    def amend_job(self, job: int, board_id: str, status: str, error: str | None) -> None:
        """Write how a job ended by the late word of its board."""
        self.end_job(job, status, error)
        self.flush()

    def mark_sent(self, job: int) -> bool:
        """Have all that ended before written: a job is sent now. Say whether it may be.

        Raises:
            ServerError: it may not be, since the store is away.
        """
        if self._pending_ended_jobs:
            self.flush()
        return True

    def flush(self) -> None:
        """Write what waits, endings and boards; where it cannot be written it goes on waiting."""
        if self._pending_ended_jobs or self._pending_seen_boards:
            with contextlib.suppress(ServerError):
                self._write_all([])

    def _write_all(self, jobs: list[tuple[Any, ...]], audit_row: AuditRow | None = None) -> None:
        """Write what waits, then new jobs and who wants them, in one transaction."""
        many = self.database.execute_many
        with self._rollback_on_error():
            if self._pending_seen_boards:
                many(self._update_board_seen, list(self._pending_seen_boards.values()))
            if self._pending_ended_jobs:
                self._write_ended_jobs()
            if jobs:
                self._check_membership()
                many(self._insert_job, jobs)
            if audit_row is not None:
                many(self._insert_audit, [audit_row])
            self.database.driver.commit()
            self._pending_ended_jobs, self._pending_seen_boards = [], {}

    def _check_membership(self) -> None:
        """Refuse to begin jobs where that is not this server's to do."""

    def _write_ended_jobs(self) -> None:
        self.database.execute_many(self._end_job, self._pending_ended_jobs)

    def job(self, number: int) -> JobRow | None:
        """Return a job's line, None where there is none."""
        self.flush()
        rows = self._fetch_rows(sa.select(*JOB_COLUMNS).where(tables.jobs.c.id == number))
        return JobRow(*rows[0]) if rows else None

    # Old rows

    def begin_pruning(self, now: float) -> bool:
        """Note that a round of deletions begins; return whether one is due: one in a day.

        The day is counted in the store, so that neither restarts nor other servers on the same
        store make it two.
        """
        with self._rollback_on_error():
            state = self._pruning()
            due = not 0 <= now - state.get("at", 0.0) < DAY
            if due:
                self._set_pruning({**state, "at": now})
            self._connection.commit()
        return due

    def oldest(self, now: float) -> tuple[float | None, float | None]:
        """Return the times of the first job that has ended and of the first audit row, if any.

        Those with a time that cannot be right, of a clock that was wrong, are passed over.

        Args:
            now: seconds since 1970.
        """
        job, row = tables.jobs.c, tables.audit.c
        ended = sa.select(job.created).where(
            job.ended.is_not(None), job.created.between(EARLIEST, now)
        )
        first = self._fetch_value(ended.order_by(job.id).limit(1))
        rows = sa.select(row.at).where(row.at >= EARLIEST)
        return first, self._fetch_value(rows.order_by(row.id).limit(1))

    def prune_jobs(self, before: float, after: int) -> tuple[int, int]:
        """Delete some jobs that ended long ago; the newest stays: numbers go on behind it.

        Args:
            before: seconds since 1970; younger ones stay.
            after: the number behind which to look.

        Returns:
            How many went, and how far it has looked: ``after`` where there is no older one.
        """
        job = tables.jobs.c
        query = sa.select(job.id, job.created, job.ended).where(job.id > after)
        rows = self._fetch_rows(query.order_by(job.id).limit(limits.PRUNE_ROWS))
        old = [row for row in self._old(rows, before) if row.id < self._next_job_id - 1]
        gone = [row for row in old if row.ended is not None]
        ids = [row.id for row in gone]
        times = [row.created for row in gone]
        count = self._delete_rows("jobs", sa.delete(tables.jobs).where(job.id.in_(ids)), times)
        return count, old[-1].id if old else after

    def _old(self, rows: Sequence[Any], before: float) -> list[Any]:
        """Return those of these jobs, in the order of their numbers, that are old.

        Numbers are given out in the order of time: so behind a young job no other is old, even
        if it was written by a clock that was behind.
        """
        times = _plausible([row.created for row in rows])
        count = sum(1 for _ in itertools.takewhile(lambda at: at < before, times))
        return list(rows[:count])

    def prune_audit(self, before: float) -> int:
        """Delete some of the oldest rows of the audit log; return how many."""
        row = tables.audit.c
        rows = self._fetch_rows(sa.select(row.id, row.at).order_by(row.id).limit(limits.PRUNE_ROWS))
        times = _plausible([each.at for each in rows])
        count = sum(1 for _ in itertools.takewhile(lambda at: at < before, times))
        gone = rows[:count]
        newest = gone[-1].id if gone else 0
        statement = sa.delete(tables.audit).where(row.id <= newest)
        return self._delete_rows("audit", statement, [each.at for each in gone])

    def _delete_rows(self, what: str, statement: sa.Delete, times: list[float]) -> int:
        """Delete rows, and count them in the same transaction for ``end_pruning``.

        Returns:
            How many went: none where it cannot be written.
        """
        if times:
            with contextlib.suppress(ServerError), self._rollback_on_error():
                state = self._pruning()
                count, oldest, newest = state.get(what, (0, times[0], times[0]))
                span = (count + len(times), min(oldest, *times), max(newest, *times))
                self._set_pruning({**state, what: span})
                self._connection.execute(statement)
                self._connection.commit()
                return len(times)
        return 0

    def end_pruning(self, now: float) -> list[AuditRow]:
        """Write what was deleted since the last call into the audit log: a row for each table.

        Returns:
            The rows. None where nothing was deleted, or where it cannot be written; then the
            next call writes them.
        """
        notes: list[AuditRow] = []
        with contextlib.suppress(ServerError), self._rollback_on_error():
            state = self._pruning()
            for what in ("jobs", "audit"):
                if what in state:
                    count, oldest, newest = state.pop(what)
                    detail = f"{count} rows of {_moment(oldest)} to {_moment(newest)} were deleted"
                    row = (now, "", "this machine", "prune", what, detail, None, None, None)
                    notes.append(AuditRow(*row, "done"))
            if notes:
                self._set_pruning(state)
                self.database.execute_many(self._insert_audit, notes)
            self.database.commit()
            return notes
        return []

    def _pruning(self) -> dict[str, Any]:
        """Return what is noted of deletions; no other server changes it before the commit."""
        shared = tables.shared
        first = self.database.insert(shared).values(name="pruning", value=b"{}")
        self._connection.execute(first.on_conflict_do_nothing())
        query = sa.select(shared.c.value).where(shared.c.name == "pruning").with_for_update()
        found: dict[str, Any] = json.loads(self._connection.execute(query).scalar_one())
        return found

    def _set_pruning(self, state: Mapping[str, Any]) -> None:
        shared = tables.shared
        change = sa.update(shared).where(shared.c.name == "pruning")
        self._connection.execute(change.values(value=json.dumps(state).encode()))

    # Time

    def newest_time(self) -> float | None:
        """Return when the newest row of the audit log or job was written; None in a new store."""
        job, row = tables.jobs.c, tables.audit.c
        newest = (
            self._fetch_value(sa.select(row.at).order_by(row.id.desc()).limit(1)),
            self._fetch_value(sa.select(job.created).order_by(job.id.desc()).limit(1)),
        )
        return max((at for at in newest if at is not None), default=None)

    def database_time(self) -> float | None:
        """Return the time by the database's own clock; None where it has no other than ours."""
        return None

    def remember(self, name: str, facts: Mapping[str, Any]) -> None:
        """Store facts under a name, in the place of those that were there.

        Raises:
            ServerError: they cannot be written.
        """
        shared = tables.shared
        row = self.database.insert(shared).values(name=name, value=json.dumps(facts).encode())
        change = {"value": row.excluded.value}
        with self._rollback_on_error():
            self._connection.execute(
                row.on_conflict_do_update(index_elements=["name"], set_=change)
            )
            self._connection.commit()

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return the facts stored under a name, if there are any."""
        query = sa.select(tables.shared.c.value).where(tables.shared.c.name == name)
        value = self._fetch_value(query)
        return None if value is None else dict(json.loads(value))

    def open_jobs(self) -> list[JobRow]:
        """Return the jobs that have not ended, oldest first."""
        self.flush()
        query = (
            sa.select(*JOB_COLUMNS).where(tables.jobs.c.ended.is_(None)).order_by(tables.jobs.c.id)
        )
        return [JobRow(*row) for row in self._fetch_rows(query)]


def _plausible(times: Sequence[float]) -> list[float]:
    """Return when rows were written at the latest, given their times in their order.

    A row of a clock that started in 1970 has the time of the next one that can be right.
    """
    following, found = math.inf, []
    for at in reversed(times):
        following = at if at >= EARLIEST else following
        found.append(following)
    return found[::-1]


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
