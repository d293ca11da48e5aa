"""A store that several servers share: it records which server holds a board and owns a job. SQL.

A board is held by the server to which it connected last; each time, its ``epoch`` grows by one. A
job has one owner at a time, the server that ends it: first the server of its caller, then the
holder of its board. When the board connects to another server, that one becomes the owner of the
jobs that were sent, under the new epoch. A server's writes about a job are effective only while it
owns the job, in the epoch that it knows: so a server that was suspended while its boards connected
elsewhere changes nothing when it resumes.

Only the database's clock decides whether a server is alive.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError
from cm_server.times import EARLIEST

from . import tables
from .board_store import BOARD_COLUMNS
from .change_notifier import NotifyingStore
from .rows import MAX_JOB_ID, AuditRow, BoardRow, ClaimedBoard, JobClaim, JobRow
from .statements import NotExecuted, PreparedStatement
from .store import JOB_COLUMNS
from .store_base import END_VALUES, JOB_VALUES, NOT_A_MEMBER, EndedJob, end_jobs, insert_rows
from .waiting_rows import TakenJob

log = logging.getLogger("cm_server")

JOB_ID_BLOCK = 1000  # job numbers that a server reserves in one transaction
UNCERTAIN_SECONDS = 10.0  # within which a failed write may turn out to be committed
NEVER_SENT_ERROR = "its server stopped working before it was sent; it did not run"
ORPHAN_ERROR = "it was stored but not sent; it did not run"

_boards, _jobs, _servers = tables.boards, tables.jobs, tables.servers
_OPEN = _jobs.c.ended.is_(None)
#: What claiming a board sets its epoch to; without parameters, since it is compiled once.
_NEXT_EPOCH = sa.func.coalesce(_boards.c.epoch, sa.literal_column("0")) + sa.literal_column("1")
#: Condition under which a server may release a board: it has not been claimed again since.
_IS_HELD_EPOCH = _boards.c.epoch == sa.bindparam("in_epoch")


class SharedStore(NotifyingStore):
    """The store that servers share, as one of them uses it.

    Args:
        location: see ``Store``.
        server_id: the server's id, 16 hex digits; new at each start.

    Attributes:
        refused_writes: how many writes had no effect, since another server owned the job or board.
    """

    is_shared = True

    def __init__(self, location: Any, server_id: str = "") -> None:
        super().__init__(location)
        self.server_id = server_id or secrets.token_hex(8)
        # Pruning may delete the newest job: the counter in the database allocates numbers.
        self._next_job_id = MAX_JOB_ID + 2
        self.refused_writes = 0
        self._own_jobs: dict[int, int | None] = {}  # open jobs -> in which epoch each was sent
        self._free_job_ids = range(0)
        #: How many results the current transaction writes, and the cursor that knows how many of
        #: them were those of this server's jobs.
        self._ended_update: tuple[int, Any] = (0, None)
        # Of the last heartbeat: the time of the database's clock and of the monotonic clock.
        self._heartbeat_at: tuple[float, float] | None = None
        # By the monotonic clock: when a step of the database's clock was noticed, when a write
        # failed, and when it was last uncertain whether a write was committed.
        self._clock_set_at = -math.inf
        self._failed_at = -math.inf
        self._uncertain_since: float | None = None
        prepare = self.database.prepare_rows
        owner = {"server": _jobs.c.server.type, "epoch": _jobs.c.epoch.type}
        insert = functools.partial(insert_rows, _jobs)
        self._insert_job = prepare({**JOB_VALUES, **owner}, insert)
        in_epoch = {"me": _jobs.c.server.type, "in_epoch": _jobs.c.epoch.type}
        self._end_job = prepare({**END_VALUES, **in_epoch}, _end_own_jobs)
        server = sa.select(_servers.c.id).where(_servers.c.id == sa.bindparam("me"))
        is_held = self._is_holder(_jobs.c.board, sa.bindparam("me"))
        sent = {"server": sa.bindparam("me"), "epoch": _boards.c.epoch}
        claim = sa.update(_jobs).where(*_unsent_jobs_of(sa.bindparam("owner")))
        claim = claim.returning(_jobs.c.id, _jobs.c.epoch)
        # PostgreSQL plans a statement with an array again each time: 70 µs, which one job can do
        # without.
        one = claim.where(_jobs.c.id == sa.bindparam("id"))
        many = claim.where(self.database.is_one_of(_jobs.c.id, "ids"))
        #: By whether the jobs are sent at once, and whether there is one.
        self._claims = {
            (is_sent, is_one): self.database.prepare(
                base.where(*is_held).values(sent)
                if is_sent
                else base.values(server=sa.bindparam("me"))
            )
            for is_sent in (True, False)
            for is_one, base in ((True, one), (False, many))
        }
        self._select_server = self.database.compile(server.with_for_update(read=True))
        board_id = sa.select(_jobs.c.board).where(_jobs.c.id == sa.bindparam("job"))
        is_held = self._is_holder(board_id.scalar_subquery(), sa.bindparam("me"))
        epoch = sa.select(_boards.c.epoch).where(*is_held)
        mark = sa.update(_jobs).where(*_unsent_jobs_of(sa.bindparam("me")))
        mark = mark.where(_jobs.c.id == sa.bindparam("job")).values(epoch=epoch.scalar_subquery())
        self._mark_sent = self.database.prepare(mark.returning(_jobs.c.epoch))
        claimed_columns = [*BOARD_COLUMNS, _boards.c.epoch]
        facts = sa.bindparam("found", type_=_boards.c.facts.type)
        held = {"holder": sa.bindparam("me"), "epoch": _NEXT_EPOCH, "facts": facts}
        take = sa.update(_boards).where(_boards.c.id == sa.bindparam("claimed"))
        take = take.values(last_seen=sa.bindparam("now"), **held).returning(*claimed_columns)
        self._claim_board = self.database.prepare(take)
        self._read_claimed = self.database.row_reader(claimed_columns)
        # The transaction has claimed the board before; one that is not enrolled has no holder.
        is_held = self._is_holder(_jobs.c.board, sa.bindparam("me"))
        is_sent = (_jobs.c.board == sa.bindparam("claimed"), _jobs.c.epoch.is_not(None), _OPEN)
        move = sa.update(_jobs).where(*is_held, *is_sent).values(sent)
        self._move_sent_jobs = self.database.prepare(move.returning(*JOB_COLUMNS))

    def change_server_id(self, server_id: str) -> None:
        """Continue under a new id, without the jobs of the old one."""
        self.flush()
        self.server_id = server_id
        self._own_jobs.clear()
        self.written_results += len(self._pending_ended_jobs)  # nothing waits for them any more
        self._pending_ended_jobs.clear()

    @contextlib.contextmanager
    def _rollback_on_error(self) -> Iterator[None]:
        """Roll back as ``Store`` does, and note the time of a failed write.

        After a broken connection it is uncertain whether the write was committed.
        """
        try:
            with super()._rollback_on_error():
                yield
        except ServerError as error:
            if error.reason == NOT_A_MEMBER:
                self.refused_writes += 1
            elif self.write_error:
                self._failed_at = self._uncertain_since = time.monotonic()
            raise

    # Jobs

    def _allocate_job_ids(self, count: int) -> range:
        if len(self._free_job_ids) < count:
            counter = tables.counters
            size = max(count, JOB_ID_BLOCK)
            reserve = sa.update(counter).where(counter.c.name == "jobs")
            reserve = reserve.values(next=counter.c.next + size)
            with self._rollback_on_error():
                first = self.database.insert(counter).values(name="jobs", next=1)
                self._connection.execute(first.on_conflict_do_nothing())
                end = self._connection.execute(reserve.returning(counter.c.next)).scalar_one()
                self._connection.commit()
            self._free_job_ids = range(end - size, end)
        allocated, self._free_job_ids = self._free_job_ids[:count], self._free_job_ids[count:]
        return allocated

    def _return_job_ids(self, numbers: range) -> None:
        self._free_job_ids = range(numbers.start, self._free_job_ids.stop)

    def _job_values(
        self, number: int, board_id: str, caller: str, now: float, epoch: int | None
    ) -> tuple[Any, ...]:
        self._own_jobs[number] = epoch
        return number, board_id, caller, now, self.server_id, epoch

    def _require_membership(self) -> None:
        """Let the transaction fail if other servers have removed this one; else lock its row."""
        self.database.require_row(self._select_server, (self.server_id,))

    def _write_all(
        self,
        jobs: list[tuple[Any, ...]],
        audit_rows: Sequence[AuditRow] = (),
        claims: Sequence[tuple[PreparedStatement, Any]] = (),
    ) -> list[list[Any]]:
        """Write as ``Store`` does; after an error, disown the jobs (see ``take_over_jobs``)."""
        try:
            return super()._write_all(jobs, audit_rows, claims)
        except (ServerError, NotExecuted):
            for number, *_ in jobs:
                self._own_jobs.pop(number, None)
            raise

    def _write_ended_jobs(self, ended_jobs: list[EndedJob]) -> None:
        """Write the results of jobs that this server owns; ignore those of other servers' jobs."""
        own = [
            (*ended, self.server_id, self._own_jobs[ended.job])
            for ended in ended_jobs
            if ended.job in self._own_jobs
        ]
        if not own:
            return
        self._ended_update = len(own), self.database.execute_rows(self._end_job, own)

    def _count_refused_results(self) -> None:
        """Count the results that were not written, once the transaction is committed."""
        count, cursor = self._ended_update
        refused = count - cursor.rowcount if cursor is not None else 0
        self._ended_update = 0, None
        if refused > 0:
            self.refused_writes += refused
            log.warning("%d results were not stored: other servers own the jobs", refused)

    def _on_written(self, ended_jobs: list[EndedJob]) -> None:
        """Note that results are in the database, and disown their jobs."""
        super()._on_written(ended_jobs)
        self._count_refused_results()
        for ended in ended_jobs:
            self._own_jobs.pop(ended.job, None)

    def _amend_row(self, reported: EndedJob, board_id: str) -> None:
        """Write a job's result, if this server holds the board that reports it."""
        held = sa.exists().where(*self._is_holder(board_id, self.server_id))
        statement = sa.update(_jobs).where(
            _jobs.c.id == reported.job, _jobs.c.board == board_id, held
        )
        values = {
            "ended": reported.at,
            "status": reported.status,
            "error": reported.error,
            "server": self.server_id,
        }
        with contextlib.suppress(ServerError), self._rollback_on_error():
            self._connection.execute(statement.values(values))
            self._connection.commit()

    def _is_holder(self, board_id: Any, server_id: Any) -> tuple[Any, ...]:
        """Return the conditions for rows of boards: this board, held by this server.

        Args:
            board_id: a string, or an SQL expression.
            server_id: the same.
        """
        return _boards.c.id == board_id, _boards.c.holder == server_id

    def mark_sent(self, job: int) -> bool:
        """Mark a job of this server as sent; return whether it may be sent: only once.

        Raises:
            ServerError: it cannot be written.
        """
        if self._own_jobs.get(job) is not None:
            self._write_pending_first()
            return True  # it was inserted as sent
        values = self._mark_sent.values({"me": self.server_id, "job": job})
        (marked,) = self._write_all([], claims=[(self._mark_sent, values)])
        new_epoch = marked[0][0] if marked else None
        if new_epoch is None:
            self.refused_writes += 1
            # Perhaps this server still owns the job, and only the board connected elsewhere.
            self._uncertain_since = time.monotonic()
            return False
        self._own_jobs[job] = int(new_epoch)
        return True

    def is_marked_sent(self, job: int) -> bool:
        """Return whether a job is stored as sent."""
        return self._own_jobs.get(job) is not None

    def claim_jobs(
        self, server: str, sent_now: Collection[int], queued: Collection[int]
    ) -> set[int]:
        """Become the owner of jobs that were not sent; the arguments are those of ``JobClaim``.

        Returns:
            The jobs that this server owns now.

        Raises:
            ServerError: the store is unavailable.
        """
        return self.claim_all([JobClaim(server, sent_now, queued)])[0]

    def claim_all(self, claims: Sequence[JobClaim]) -> list[set[int]]:
        """Become the owner of other servers' jobs that were not sent, in one transaction.

        Returns:
            The jobs of each claim that this server owns now.

        Raises:
            ServerError: the store is unavailable.
        """
        statements, places = [], []
        for place, claim in enumerate(claims):
            values = {"me": self.server_id, "owner": claim.server}
            for is_sent, jobs in ((True, claim.sent_now), (False, claim.queued)):
                if jobs:
                    statement = self._claims[is_sent, len(jobs) == 1]
                    which = {"id": next(iter(jobs)), "ids": self.database.numbers(jobs)}
                    statements.append((statement, statement.values({**values, **which})))
                    places.append(place)
        claimed: list[set[int]] = [set() for _ in claims]
        if statements:
            found = self._write_all([], claims=statements)
            for place, rows in zip(places, found, strict=True):
                claimed[place] |= {row[0] for row in rows}
                self._own_jobs.update(map(tuple, rows))
        return claimed

    def withdraw_jobs(self, jobs: Iterable[int], status: str, error: str) -> set[int]:
        """End those of these jobs that were not sent and that this server still owns.

        Returns:
            The jobs that were ended.

        Raises:
            ServerError: the store is unavailable.
        """
        unsent = _unsent_jobs_of(self.server_id)
        ended = {"ended": time.time(), "status": status, "error": error}
        statement = sa.update(_jobs).where(_jobs.c.id.in_(sorted(jobs)), *unsent).values(ended)
        with self._rollback_on_error():
            rows = self._connection.execute(statement.returning(_jobs.c.id)).all()
            self._connection.commit()
        return {row[0] for row in rows}

    def open_jobs(self) -> list[JobRow]:
        """Return the jobs of this server that have not ended, oldest first."""
        query = sa.select(*JOB_COLUMNS).where(_jobs.c.server == self.server_id, _OPEN)
        return sorted(JobRow(*row) for row in self._fetch_rows(query))

    def locate_jobs(self, jobs: Iterable[int]) -> list[tuple[int, str, str]]:
        """Return the number, board id and owner of those of these jobs that have not ended."""
        query = sa.select(_jobs.c.id, _jobs.c.board, _jobs.c.server)
        rows = self._fetch_rows(query.where(_jobs.c.id.in_(list(jobs)), _OPEN))
        return [(row[0], row[1], row[2]) for row in rows]

    def release_job(self, job: int) -> None:
        """Disown a job, which another server will end."""
        self._own_jobs.pop(job, None)

    def ended_jobs(self, jobs: Iterable[int]) -> list[JobRow]:
        """Return those of these jobs that have ended."""
        query = sa.select(*JOB_COLUMNS).where(
            _jobs.c.id.in_(list(jobs)), _jobs.c.ended.is_not(None)
        )
        return [JobRow(*row) for row in self._fetch_rows(query)]

    def _select_old(self, rows: Sequence[Any], before: float) -> list[Any]:
        """Return those of these jobs that are old.

        Servers reserve numbers by the thousand, so their order is not the order of time.
        """
        return [row for row in rows if EARLIEST <= row.created < before]

    def database_time(self) -> float | None:
        """Return the time of the database's clock."""
        return float(self._fetch_value(sa.select(self._database_time())))

    # Jobs that wait for their boards

    def take_waiting_job(self, job: int) -> TakenJob | None:
        """Take a job as ``Store`` does; after an error, disown it (see ``take_over_jobs``)."""
        try:
            return super().take_waiting_job(job)
        except (ServerError, NotExecuted):
            self._own_jobs.pop(job, None)
            raise

    def waiting_board_ids(self) -> set[str]:
        """Return the ids of those boards of this server for which jobs wait."""
        waiting = self.waiting_rows.waits_for(_boards.c.id)
        query = sa.select(_boards.c.id).where(_boards.c.holder == self.server_id, waiting)
        return {row[0] for row in self._fetch_rows(query)}

    def _own_taken_job(self, taken: TakenJob) -> bool:
        """Become the owner of a job that is taken, in the epoch of its board, if it is here."""
        is_held = self._is_holder(taken.row.board_id, self.server_id)
        epoch = sa.select(_boards.c.epoch).where(*is_held)
        own = sa.update(_jobs).where(_jobs.c.id == taken.row.job, _OPEN, epoch.exists())
        own = own.values(server=self.server_id, epoch=epoch.scalar_subquery())
        row = self._connection.execute(own.returning(_jobs.c.epoch)).first()
        if row is None:
            self.refused_writes += 1
            return False
        self._own_jobs[taken.row.job] = row[0]
        return True

    def _disown_taken_job(self, taken: TakenJob) -> bool:
        """Note that a job was not sent; return whether it is open, and this server's."""
        job = taken.row.job
        is_own = (_jobs.c.id == job, _OPEN, _jobs.c.server == self.server_id)
        disown = sa.update(_jobs).where(*is_own).values(server=None, epoch=None)
        self._own_jobs.pop(job, None)
        return self._connection.execute(disown).rowcount > 0

    # Boards

    def claim_board(self, board_id: str, facts: dict[str, Any]) -> ClaimedBoard | None:
        """Become the holder of a board that has just authenticated to this server.

        Args:
            board_id: the board's id.
            facts: the board's facts.

        Returns:
            The board, or None if it is no longer enrolled.

        Raises:
            ServerError: the store is unavailable.
        """
        self._write_pending_first()
        claim, move = self._claim_board, self._move_sent_jobs
        values = {"me": self.server_id, "claimed": board_id, "now": time.time()}
        values["found"] = json.dumps(facts)
        fetch_later = self.database.fetch_later
        with self._rollback_on_error(), self.database.pipeline():
            self._require_membership()
            fetch_board = fetch_later(claim, claim.values(values))
            fetch_jobs = fetch_later(move, move.values(values))
            self.database.commit_driver()
            boards, moved = fetch_board(), fetch_jobs()
        if not boards:
            return None
        *columns, epoch = self._read_claimed(boards[0])
        jobs = [JobRow(*job) for job in moved]
        for job in jobs:
            self._own_jobs[job.id] = epoch
        return ClaimedBoard(BoardRow(*columns), epoch, jobs)

    def release_boards(self, boards: Mapping[str, int]) -> int:
        """Record that the links of boards are closed.

        Args:
            boards: board id -> the epoch in which this server held it.

        Returns:
            How many of them this server still held.
        """
        board = (_boards.c.id == sa.bindparam("released_id"), _IS_HELD_EPOCH)
        statement = sa.update(_boards).where(*board, _boards.c.holder == self.server_id)
        statement = statement.values(holder=None, last_seen=time.time())
        rows = [{"released_id": board_id, "in_epoch": epoch} for board_id, epoch in boards.items()]
        with self._rollback_on_error():
            changed = self._connection.execute(statement, rows).rowcount
            self._connection.commit()
        self.refused_writes += len(rows) - changed
        return int(changed)

    def boards_by_id(self, ids: Sequence[str]) -> list[BoardRow]:
        """Return those of these boards that are enrolled."""
        found = self._fetch_rows(sa.select(*BOARD_COLUMNS).where(_boards.c.id.in_(ids)))
        return [BoardRow(*row) for row in found]

    def board_holders(self) -> dict[str, tuple[str, int]]:
        """Return the holder and the epoch of each board that is held, by the board's id."""
        query = sa.select(_boards.c.id, _boards.c.holder, _boards.c.epoch)
        query = query.where(_boards.c.holder.in_(sa.select(_servers.c.id)))
        return {row[0]: (row[1], row[2]) for row in self._fetch_rows(query)}

    # Servers

    def _database_time(self) -> Any:
        """Return an SQL expression for the seconds since 1970 by the database's clock."""
        if self.database.connection.dialect.name == "sqlite":
            return (sa.func.julianday("now") - 2440587.5) * 86400.0  # Julian day of 1970-01-01
        return sa.extract("epoch", sa.func.clock_timestamp())

    def register_server(self, address: str) -> None:
        """Insert this server's row, with its first heartbeat."""
        with self._rollback_on_error():
            row = {"id": self.server_id, "address": address, "seen": self._database_time()}
            self._connection.execute(sa.insert(_servers).values(row))
            self._connection.commit()

    def send_heartbeat(self, dead_after: float) -> dict[str, str]:
        """Renew this server's heartbeat, and remove servers without one for too long.

        None is removed within ``dead_after`` seconds of a failed write, since the others could
        not write either; nor after a step of the database's clock, in either direction.

        Args:
            dead_after: seconds without a heartbeat after which a server is removed.

        Returns:
            The address of each remaining server, by its id; without this server if others
            removed it.

        Raises:
            ServerError: the store is unavailable.
        """
        self.flush()
        with self._rollback_on_error():
            self.database.end_stalled_sessions()  # their locks are free at the next heartbeat
            renew = sa.update(_servers).where(_servers.c.id == self.server_id)
            renew = renew.values(seen=self._database_time())
            seen = self._connection.execute(renew.returning(_servers.c.seen)).scalar()
            self._compare_clocks(seen, dead_after)
            too_old = _servers.c.seen < self._database_time() - dead_after
            # Written before the database's clock was set back.
            in_future = _servers.c.seen > self._database_time() + dead_after
            dead = sa.select(_servers.c.id).where(
                too_old | in_future, _servers.c.id != self.server_id
            )
            # A server whose row is locked is alive, or its transaction will soon be rolled back.
            dead = dead.with_for_update(skip_locked=True)
            if time.monotonic() > max(self._failed_at, self._clock_set_at) + dead_after:
                self._connection.execute(sa.delete(_servers).where(_servers.c.id.in_(dead)))
            found = self._connection.execute(sa.select(_servers.c.id, _servers.c.address)).all()
            self._connection.commit()
        return {row[0]: row[1] for row in found}

    def _compare_clocks(self, now: float | None, dead_after: float) -> None:
        """Notice a step of the database's clock, after which other servers would seem dead.

        Args:
            now: the time of the database's clock; None if this server was removed.
            dead_after: a difference of more than half of these seconds is a step.
        """
        steady = time.monotonic()
        if now is None:
            return
        if self._heartbeat_at is not None:
            database_then, steady_then = self._heartbeat_at
            step = (now - database_then) - (steady - steady_then)
            if _is_clock_step(step, dead_after):
                self._clock_set_at = steady
                log.warning("the database's clock was set by %.0f s", step)
        self._heartbeat_at = now, steady

    def unregister_server(self) -> None:
        """Delete this server's row."""
        with self._rollback_on_error():
            self._connection.execute(sa.delete(_servers).where(_servers.c.id == self.server_id))
            self._connection.commit()

    def take_over_jobs(self) -> list[JobRow]:
        """End the jobs that dead servers never sent, and take over those that they sent.

        Their boards may still report how the latter ended. The same is done with orphans: jobs
        that this server owns without knowing it, since a write that seemed to fail was committed.

        Returns:
            The jobs that were sent, and that this server owns now.
        """
        orphans = self._orphan_jobs()
        with self._rollback_on_error():
            rows = self._take_over(
                _jobs.c.server.not_in(sa.select(_servers.c.id)), NEVER_SENT_ERROR
            )
            if orphans:
                rows += self._take_over(_jobs.c.id.in_(orphans), ORPHAN_ERROR)
            self._connection.commit()
        self._own_jobs.update((row[0], row[-1]) for row in rows)
        return [JobRow(*row[:-1]) for row in rows]

    def _orphan_jobs(self) -> list[int]:
        if self._uncertain_since is None or self._pending_ended_jobs:
            return []
        stored = self._fetch_rows(
            sa.select(_jobs.c.id).where(_jobs.c.server == self.server_id, _OPEN)
        )
        if time.monotonic() > self._uncertain_since + UNCERTAIN_SECONDS:
            self._uncertain_since = None
        return [row[0] for row in stored if row[0] not in self._own_jobs]

    def _take_over(self, condition: Any, error: str) -> list[Any]:
        """End the open jobs under a condition that were not sent; return the rows of the others."""
        ended = {"ended": time.time(), "status": "lost", "error": error}
        update = sa.update(_jobs).where(condition, _OPEN)
        never_sent = update.where(_jobs.c.epoch.is_(None))
        self._connection.execute(never_sent.values(server=self.server_id, **ended))
        sent = update.values(server=self.server_id).returning(*JOB_COLUMNS, _jobs.c.epoch)
        return list(self._connection.execute(sent).all())

    # Secrets

    def put_if_absent(self, name: str, value: bytes) -> bytes:
        """Store a value that all servers share, unless there is one; return the stored value."""
        shared = tables.shared
        first = self.database.insert(shared).values(name=name, value=value)
        with self._rollback_on_error():
            self._connection.execute(first.on_conflict_do_nothing())
            self._connection.commit()
        return bytes(self._fetch_value(sa.select(shared.c.value).where(shared.c.name == name)))


def _end_own_jobs(values: Mapping[str, Any]) -> Any:
    """Return the statement that ends jobs of a server, in the epochs that it knows."""
    return end_jobs(values, _is_owner(values), _is_same_epoch(values))


def _is_owner(values: Mapping[str, Any]) -> Any:
    """Return the condition that a server owns the job that it wants to end."""
    return _jobs.c.server == values["me"]


def _is_same_epoch(values: Mapping[str, Any]) -> Any:
    """Return the condition that a job was sent in the epoch that its server knows."""
    return _jobs.c.epoch.is_not_distinct_from(values["in_epoch"])


def _unsent_jobs_of(server_id: Any) -> tuple[Any, ...]:
    """Return the conditions for jobs that a server owns and has not sent."""
    return _jobs.c.server == server_id, _jobs.c.epoch.is_(None), _OPEN


def _is_clock_step(difference: float, dead_after: float) -> bool:
    """Return whether two clocks ran so differently that one of them was set."""
    return abs(difference) > dead_after / 2
