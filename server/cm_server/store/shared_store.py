"""A store that several servers share: who holds which board, and which job is whose. SQL.

A board is held by the server that it dialled last: each time, its ``epoch`` goes up by one. A job
is one server's at a time, the one that ends it: first its caller's, then that of its board's
holder; with the board it goes to the next holder, once it was sent, under the new epoch. What a
server writes about a job counts only while the job is its own, in the epoch that it knows: so one
that stood still while its boards went elsewhere changes nothing when it wakes up.

Whether a server is there is judged by the database's clock alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError
from cm_server.clock import EARLIEST
from cm_server.jobs.jobs import MAX_JOB_ID

from . import tables
from .change_notifier import NotifyingStore
from .rows import AuditRow, BoardRow, ClaimedBoard, JobRow
from .store import BOARD_COLUMNS, END_JOB, INSERT_JOB, JOB_COLUMNS, JOB_END_VALUES

log = logging.getLogger("cm_server")

JOB_ID_BLOCK = 1000  # of jobs, that a server takes at once
UNCERTAIN_SECONDS = 10.0  # in which a write that failed may yet turn out to be done
NEVER_SENT_ERROR = "the server that had it is gone; it was not sent and did not run"
ORPHAN_ERROR = "it was written down, but not sent; it did not run"

_boards, _jobs, _servers = tables.boards, tables.jobs, tables.servers
_OPEN = _jobs.c.ended.is_(None)


class SharedStore(NotifyingStore):
    """One server's view of the store that it shares.

    Args:
        location: see ``Store``.
        server_id: its id, of 16 hex digits; each start has a new one.
    """

    def __init__(self, location: Any, server_id: str = "") -> None:
        super().__init__(location)
        self.server_id = server_id or secrets.token_hex(8)
        self.epoch_for: Callable[[str], int | None] = lambda _board_id: None
        self._next_job_id = MAX_JOB_ID + 2  # the newest numbers are a counter's to keep
        self.refused_writes = 0  # writes, since the job or the board was another server's
        self._own_jobs: dict[int, int | None] = {}  # my open jobs: in which epoch each was sent
        self._free_job_ids = range(0)
        self._beat_at: tuple[float, float] | None = None  # the database's time, and ours
        self._clock_set_at = -math.inf  # when a step of the database's clock was seen, by ours
        self._failed_at = -math.inf  # when a write did last, by the monotonic clock
        self._uncertain_since: float | None = None  # when something was last left open
        is_mine = (
            _jobs.c.server == sa.bindparam("me"),
            _jobs.c.epoch.is_not_distinct_from(sa.bindparam("in_epoch", type_=_jobs.c.epoch.type)),
        )
        more: dict[str, Any] = {"server": sa.bindparam("server"), "epoch": sa.bindparam("epoch")}
        self._insert_job = self.database.compile(INSERT_JOB.values(more))
        self._end_job = self.database.compile(END_JOB.where(*is_mine).values(JOB_END_VALUES))

    def change_server_id(self, server_id: str) -> None:
        """Be another server: what the one before had is not ours."""
        self.flush()
        self.server_id = server_id
        self._own_jobs.clear()
        self._pending_ended_jobs.clear()

    @contextlib.contextmanager
    def _rollback_on_error(self) -> Iterator[None]:
        """Remember that a write failed: a link that broke leaves open whether it was done."""
        try:
            with super()._rollback_on_error():
                yield
        except ServerError:
            if self.write_error:
                self._failed_at = self._uncertain_since = time.monotonic()
            raise

    # Jobs

    def _allocate_job_ids(self, count: int) -> range:
        if len(self._free_job_ids) < count:
            counter = tables.counters
            more = sa.update(counter).where(counter.c.name == "jobs")
            more = more.values(next=counter.c.next + max(count, JOB_ID_BLOCK))
            with self._rollback_on_error():
                begin = self.database.insert(counter).values(name="jobs", next=1)
                self._connection.execute(begin.on_conflict_do_nothing())
                end = self._connection.execute(more.returning(counter.c.next)).scalar_one()
                self._connection.commit()
            self._free_job_ids = range(end - max(count, JOB_ID_BLOCK), end)
        taken, self._free_job_ids = self._free_job_ids[:count], self._free_job_ids[count:]
        return taken

    def _job_values(self, number: int, board_id: str, caller: str, now: float) -> tuple[Any, ...]:
        epoch = self._own_jobs[number] = self.epoch_for(board_id)
        return number, board_id, caller, now, self.server_id, epoch

    def end_job(self, job: int, status: str, error: str | None = None) -> None:
        """Note how a job ended that is this server's own; of another's it is not written."""
        if job in self._own_jobs:
            ending = (time.time(), status, error, job, self.server_id, self._own_jobs.pop(job))
            self._pending_ended_jobs.append(ending)

    def _check_membership(self) -> None:
        """Refuse to send anything once others have taken this server for dead.

        Its row is locked until the commit: nobody takes it out meanwhile.
        """
        mine = sa.select(_servers.c.id).where(_servers.c.id == self.server_id)
        if self._connection.execute(mine.with_for_update(read=True)).first() is None:
            self.database.rollback()
            self.refused_writes += 1
            raise ServerError("this server stood still and was taken for dead; try again")

    def _write_all(self, jobs: list[tuple[Any, ...]], audit_row: AuditRow | None = None) -> None:
        """Write; jobs of which that is in doubt are nobody's (see ``inherit``)."""
        try:
            super()._write_all(jobs, audit_row)
        except ServerError:
            for number, *_ in jobs:
                self._own_jobs.pop(number, None)
            raise

    def _write_pending_first(self) -> None:
        """Write what ended before anything begins.

        Raises:
            ServerError: it cannot be written.
        """
        if self._pending_ended_jobs:
            self._write_all([])

    def _write_ended_jobs(self) -> None:
        changed = self.database.execute_many(self._end_job, self._pending_ended_jobs)
        if changed < len(self._pending_ended_jobs):
            self.refused_writes += len(self._pending_ended_jobs) - changed
            log.warning(
                "%d endings were refused: fenced off", len(self._pending_ended_jobs) - changed
            )

    def amend_job(self, job: int, board_id: str, status: str, error: str | None) -> None:
        """Write how a job ended by the word of its board, which this server holds."""
        held = sa.exists().where(_boards.c.id == board_id, _boards.c.holder == self.server_id)
        statement = sa.update(_jobs).where(_jobs.c.id == job, _jobs.c.board == board_id, held)
        values = {"ended": time.time(), "status": status, "error": error, "server": self.server_id}
        with contextlib.suppress(ServerError), self._rollback_on_error():
            self._connection.execute(statement.values(values))
            self._connection.commit()

    def mark_sent(self, job: int) -> bool:
        """Note that a job of this server's is sent now; say whether it may be: once in all.

        Raises:
            ServerError: it cannot be written.
        """
        if self._own_jobs.get(job) is not None:
            return True  # it was written as sent
        row = sa.select(_jobs.c.board).where(_jobs.c.id == job).scalar_subquery()
        held = (_boards.c.id == row, _boards.c.holder == self.server_id)
        epoch = sa.select(_boards.c.epoch).where(*held).scalar_subquery()
        own = (_jobs.c.server == self.server_id, _jobs.c.epoch.is_(None), _OPEN)
        statement = sa.update(_jobs).where(_jobs.c.id == job, *own).values(epoch=epoch)
        self._write_pending_first()
        with self._rollback_on_error():
            self._check_membership()
            found = self._connection.execute(statement.returning(_jobs.c.epoch)).scalar()
            self._connection.commit()
        if found is None:
            self.refused_writes += 1
            self._uncertain_since = time.monotonic()  # its board alone may have gone
            return False
        self._own_jobs[job] = int(found)
        return True

    def claim_jobs(self, server: str, sent_now: Iterable[int], queued: Iterable[int]) -> set[int]:
        """Make jobs of another server's, which were not sent, this one's.

        Args:
            server: whose they are.
            sent_now: those that are sent now: this server holds their boards.
            queued: those that wait here.

        Returns:
            Those that are this server's now.
        """
        theirs = (_jobs.c.server == server, _jobs.c.epoch.is_(None), _OPEN)
        held = (_boards.c.id == _jobs.c.board, _boards.c.holder == self.server_id)
        own = sa.update(_jobs).where(*theirs).values(server=self.server_id)
        taken: dict[int, int | None] = {}
        self._write_pending_first()
        with self._rollback_on_error():
            self._check_membership()
            sent = own.where(_jobs.c.id.in_(sorted(sent_now)), *held).values(epoch=_boards.c.epoch)
            for wanted in (sent, own.where(_jobs.c.id.in_(sorted(queued)))):
                rows = self._connection.execute(wanted.returning(_jobs.c.id, _jobs.c.epoch)).all()
                taken.update((row[0], row[1]) for row in rows)
            self._connection.commit()
        self._own_jobs.update(taken)
        return set(taken)

    def withdraw_jobs(self, jobs: Iterable[int], status: str, error: str) -> set[int]:
        """End those of these jobs that no other server has taken; return which.

        Raises:
            ServerError: the store is away.
        """
        own = (_jobs.c.server == self.server_id, _jobs.c.epoch.is_(None), _OPEN)
        ended = {"ended": time.time(), "status": status, "error": error}
        statement = sa.update(_jobs).where(_jobs.c.id.in_(sorted(jobs)), *own).values(ended)
        with self._rollback_on_error():
            rows = self._connection.execute(statement.returning(_jobs.c.id)).all()
            self._connection.commit()
        return {row[0] for row in rows}

    def open_jobs(self) -> list[JobRow]:
        """Return this server's own jobs that have not ended, oldest first."""
        query = sa.select(*JOB_COLUMNS).where(_jobs.c.server == self.server_id, _OPEN)
        return [JobRow(*row) for row in self._fetch_rows(query.order_by(_jobs.c.id))]

    def locate_jobs(self, jobs: Iterable[int]) -> list[tuple[int, str, str]]:
        """Return those of these jobs that are open: each with its board and its server."""
        query = sa.select(_jobs.c.id, _jobs.c.board, _jobs.c.server)
        rows = self._fetch_rows(query.where(_jobs.c.id.in_(list(jobs)), _OPEN))
        return [(row[0], row[1], row[2]) for row in rows]

    def release_job(self, job: int) -> None:
        """Leave a job's end to another server."""
        self._own_jobs.pop(job, None)

    def ended_jobs(self, jobs: Iterable[int]) -> list[JobRow]:
        """Return those of these jobs that have ended."""
        query = sa.select(*JOB_COLUMNS).where(
            _jobs.c.id.in_(list(jobs)), _jobs.c.ended.is_not(None)
        )
        return [JobRow(*row) for row in self._fetch_rows(query)]

    def _old(self, rows: Sequence[Any], before: float) -> list[Any]:
        """Return those of these jobs that are old: servers take numbers by the thousand.

        So a number may be used long after the ones behind it.
        """
        return [row for row in rows if EARLIEST <= row.created < before]

    def database_time(self) -> float | None:
        """Return the time by the database's own clock."""
        return float(self._fetch_value(sa.select(self._database_time())))

    # Boards

    def claim_board(self, board_id: str, facts: dict[str, Any]) -> ClaimedBoard | None:
        """Take a board that has just proven itself here, from whoever had it.

        Returns:
            None where it is enrolled no more.

        Raises:
            ServerError: the store is away.
        """
        self._write_pending_first()
        new: dict[str, Any] = {
            "holder": self.server_id,
            "epoch": sa.func.coalesce(_boards.c.epoch, 0) + 1,
        }
        new |= {"last_seen": time.time(), "facts": facts}
        raised = sa.update(_boards).where(_boards.c.id == board_id).values(new)
        with self._rollback_on_error():
            self._check_membership()
            row = self._connection.execute(
                raised.returning(*BOARD_COLUMNS, _boards.c.epoch)
            ).first()
            if row is None:
                self._connection.commit()
                return None
            *told, epoch = row
            its = (_jobs.c.board == board_id, _jobs.c.epoch.is_not(None), _OPEN)
            moved = sa.update(_jobs).where(*its).values(server=self.server_id, epoch=epoch)
            sent = self._connection.execute(moved.returning(*JOB_COLUMNS)).all()
            self._connection.commit()
        jobs = [JobRow(*each) for each in sent]
        self._own_jobs.update((job.id, epoch) for job in jobs)
        return ClaimedBoard(BoardRow(*told), epoch, jobs)

    def release_boards(self, boards: Mapping[str, int]) -> int:
        """Note that the links of boards, held in these epochs, are gone.

        Returns:
            How many of them were still this server's to note.
        """
        its = (_boards.c.id == sa.bindparam("its"), _boards.c.epoch == sa.bindparam("in_epoch"))
        statement = sa.update(_boards).where(*its, _boards.c.holder == self.server_id)
        statement = statement.values(holder=None, last_seen=time.time())
        rows = [{"its": board_id, "in_epoch": epoch} for board_id, epoch in boards.items()]
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
        """Return which boards are held: by which server, in which epoch."""
        query = sa.select(_boards.c.id, _boards.c.holder, _boards.c.epoch)
        query = query.where(_boards.c.holder.in_(sa.select(_servers.c.id)))
        return {row[0]: (row[1], row[2]) for row in self._fetch_rows(query)}

    # Servers

    def _database_time(self) -> Any:
        if self.database.connection.dialect.name == "sqlite":
            return (sa.func.julianday("now") - 2440587.5) * 86400.0  # seconds since 1970
        return sa.extract("epoch", sa.func.clock_timestamp())

    def register_server(self, address: str) -> None:
        """Be one of the servers."""
        with self._rollback_on_error():
            row = {"id": self.server_id, "address": address, "seen": self._database_time()}
            self._connection.execute(sa.insert(_servers).values(row))
            self._connection.commit()

    def send_heartbeat(self, dead_after: float) -> dict[str, str]:
        """Say that this server is there, and take out those that have not for so many seconds.

        After the store was away they have as long again: they could not say it either. So they
        have after the database's clock was set, in either direction.

        Returns:
            The servers that are there, each with its address; this one is not among them
            where others took it out.

        Raises:
            ServerError: the store is away.
        """
        self.flush()
        with self._rollback_on_error():
            mine = sa.update(_servers).where(_servers.c.id == self.server_id)
            seen = self._connection.execute(
                mine.values(seen=self._database_time()).returning(_servers.c.seen)
            )
            self._compare_clocks(seen.scalar(), dead_after)
            stale = (_servers.c.seen < self._database_time() - dead_after) | (
                _servers.c.seen
                > self._database_time() + dead_after  # from before the clock was set back
            )
            old = sa.select(_servers.c.id).where(stale, _servers.c.id != self.server_id)
            # Whoever writes is not dead, or soon undone.
            old = old.with_for_update(skip_locked=True)
            if time.monotonic() > max(self._failed_at, self._clock_set_at) + dead_after:
                self._connection.execute(sa.delete(_servers).where(_servers.c.id.in_(old)))
            found = self._connection.execute(sa.select(_servers.c.id, _servers.c.address)).all()
            self._connection.commit()
        return {row[0]: row[1] for row in found}

    def _compare_clocks(self, now: float | None, dead_after: float) -> None:
        """Note a step of the database's clock, by which the other servers would look dead.

        Args:
            now: the time by the database's clock; None if this server was taken out.
            dead_after: the seconds by which it is measured.
        """
        steady = time.monotonic()
        if now is None:
            return
        if self._beat_at is not None:
            passed, passed_there = steady - self._beat_at[1], now - self._beat_at[0]
            if abs(passed_there - passed) > dead_after / 2:
                self._clock_set_at = steady
                log.warning("the database's clock was set by %.0f s", passed_there - passed)
        self._beat_at = now, steady

    def unregister_server(self) -> None:
        """Be none of the servers any more."""
        with self._rollback_on_error():
            self._connection.execute(sa.delete(_servers).where(_servers.c.id == self.server_id))
            self._connection.commit()

    def take_over_jobs(self) -> list[JobRow]:
        """End what dead servers never sent, and take over what they sent: it may still be told.

        The same is done with this server's own jobs that it does not know: since a write failed
        that was done after all.
        """
        strays = self._orphan_jobs()
        rows = self._take_over(_jobs.c.server.not_in(sa.select(_servers.c.id)), NEVER_SENT_ERROR)
        if strays:
            rows += self._take_over(_jobs.c.id.in_(strays), ORPHAN_ERROR)
        return rows

    def _orphan_jobs(self) -> list[int]:
        if self._uncertain_since is None or self._pending_ended_jobs:
            return []
        mine = self._fetch_rows(
            sa.select(_jobs.c.id).where(_jobs.c.server == self.server_id, _OPEN)
        )
        if time.monotonic() > self._uncertain_since + UNCERTAIN_SECONDS:
            self._uncertain_since = None
        return [row[0] for row in mine if row[0] not in self._own_jobs]

    def _take_over(self, which: Any, why: str) -> list[JobRow]:
        ended = {"ended": time.time(), "status": "lost", "error": why}
        own = sa.update(_jobs).where(which, _OPEN)
        with self._rollback_on_error():
            never = own.where(_jobs.c.epoch.is_(None))
            self._connection.execute(never.values(server=self.server_id, **ended))
            sent = own.values(server=self.server_id).returning(*JOB_COLUMNS, _jobs.c.epoch)
            rows = self._connection.execute(sent).all()
            self._connection.commit()
        self._own_jobs.update((row[0], row[-1]) for row in rows)
        return [JobRow(*row[:-1]) for row in rows]

    # Secrets

    def put_if_absent(self, name: str, value: bytes) -> bytes:
        """Return what the servers have in common under a name: this value, if it is the first."""
        shared = tables.shared
        first = self.database.insert(shared).values(name=name, value=value)
        with self._rollback_on_error():
            self._connection.execute(first.on_conflict_do_nothing())
            self._connection.commit()
        return bytes(self._fetch_value(sa.select(shared.c.value).where(shared.c.name == name)))
