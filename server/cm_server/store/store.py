"""The server's persistent data: boards, tokens, jobs, the audit log. SQL.

Boards are stored with their keys and labels, tokens as hashes, each job as one row.
Jobs are committed before their first byte is sent (SQLite: WAL, synchronous NORMAL, which survives
``kill -9`` of the server; PostgreSQL: durably, since it may crash alone). Their results are written
in batches, and always before the same board's next job, so that a crash loses no more than the last
job, which the board remembers. Changes of identities and tokens, and privileged operations, are
fsynced (databases.py). An operation and its row in the audit log are one transaction; triggers
prevent changes and deletions of such a row.

Call from one thread at a time; ``end_job`` and ``mark_board_seen`` from any, at any time. The
server uses it through a queue (store_queue.py).

This file has the jobs; boards and tokens are in board_store.py, deletions in pruning_store.py, and
what all of them use in store_base.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError

from . import tables
from .board_store import BoardStore
from .pruning_store import PruningStore
from .rows import NO_CELL_AUDIT, AuditRow, CellAudit, JobRow, NewCell
from .statements import NotExecuted
from .store_base import EndedJob
from .waiting_rows import JobOutput, TakenJob, WaitingUse, WaitingWork

JOB_COLUMNS = [tables.jobs.c[name] for name in JobRow._fields]

#: Why work cannot wait for boards: one of them was removed while it was submitted.
REMOVED_MEANWHILE = "one of the boards was removed from the fleet meanwhile; nothing waits"

#: Returns whether a job's result in the store was assumed, so that its board may correct it.
IsUncertain = Callable[[JobRow], bool]


class Store(BoardStore, PruningStore):
    """The store of one server: see ``StoreBase``."""

    # Jobs

    def insert_jobs(
        self,
        board_ids: Sequence[str],
        caller: str,
        *,
        audit: CellAudit = NO_CELL_AUDIT,
        epochs: Mapping[str, int] = MappingProxyType({}),
    ) -> range:
        """Insert the jobs of one cell; the arguments are those of ``NewCell``.

        Returns:
            Their numbers.

        Raises:
            ServerError: they cannot be written.
        """
        return self._insert_cells([NewCell(board_ids, caller, audit, epochs)])[0]

    def insert_cells(self, cells: Sequence[NewCell]) -> list[range | Exception]:
        """Insert one open job for each board of each cell, in one transaction.

        The results of earlier jobs are written before: see the module's docstring. All this and
        the rows in the audit log are one transaction. Where the database refuses the values of a
        cell, that does not affect the others.

        Returns:
            The numbers of each cell's jobs, or why they cannot be written.

        Raises:
            ServerError: nothing can be written.
        """
        try:
            return list(self._insert_cells(cells))
        except ServerError as error:
            cause = error.__cause__
            if len(cells) == 1 or cause is None or not self.database.is_data_error(cause):
                raise
        return [self._insert_cell_alone(cell) for cell in cells]

    def _insert_cell_alone(self, cell: NewCell) -> range | Exception:
        try:
            return self._insert_cells([cell])[0]
        except NotExecuted as error:  # cells before this one are written: all cannot be repeated
            return ServerError(str(error))
        except ServerError as error:
            return error

    def _insert_cells(self, cells: Sequence[NewCell]) -> list[range]:
        count = sum([len(cell.board_ids) for cell in cells])
        if not count:
            return [range(0) for _ in cells]
        numbers, now = self._allocate_job_ids(count), time.time()
        found, rows, audit_rows = [], [], []
        start = 0
        for cell in cells:
            own = numbers[start : start + len(cell.board_ids)]
            start += len(own)
            found.append(own)
            rows += [
                self._job_values(number, board_id, cell.caller, now, cell.epochs.get(board_id))
                for number, board_id in zip(own, cell.board_ids, strict=True)
            ]
            if own:
                audit_rows.append(_audit_row(cell, own, now))
        try:
            self._write_all(rows, audit_rows)
        except NotExecuted:
            self._return_job_ids(numbers)  # for the next attempt
            raise
        return found

    def _allocate_job_ids(self, count: int) -> range:
        """Return job numbers that were never used."""
        first = self._next_job_id
        self._next_job_id += count
        return range(first, self._next_job_id)

    def _return_job_ids(self, numbers: range) -> None:
        """Take back the numbers that were allocated last, and not used."""
        self._next_job_id = numbers.start

    def _job_values(
        self, number: int, board_id: str, caller: str, now: float, _epoch: int | None
    ) -> tuple[Any, ...]:
        return number, board_id, caller, now

    # Jobs that wait for their boards

    def insert_waiting_jobs(
        self,
        board_ids: Sequence[str],
        caller: str,
        work: WaitingWork,
        refusal_reason: Callable[[WaitingUse], str],
        audit: CellAudit = NO_CELL_AUDIT,
    ) -> range:
        """Insert one job per board that waits for it, and return their numbers.

        What they run and the row in the audit log are in the same transaction.

        Args:
            board_ids: where they run.
            caller: the name of the caller's token.
            work: what they run.
            refusal_reason: returns why there is too much already; "" if there is not.
            audit: for the audit log.

        Raises:
            ServerError: too much waits already, a board was removed meanwhile, or the jobs cannot
                be written.
        """
        numbers, now = self._allocate_job_ids(len(board_ids)), time.time()
        try:
            with self._rollback_on_error(), self.database.durable():
                self.blob_rows.lock()
                why = refusal_reason(self.waiting_rows.use(work.token))
                board = tables.boards.c
                found = sa.select(sa.func.count()).where(board.id.in_(board_ids))
                if not why and self._connection.execute(found).scalar_one() < len(board_ids):
                    why = REMOVED_MEANWHILE
                if why:
                    self.database.rollback()
                    raise ServerError(why)
                values = {"caller": caller, "created": now, "token": work.token}
                self._connection.execute(
                    sa.insert(tables.jobs),
                    [
                        {"id": number, "board": board_id, **values}
                        for number, board_id in zip(numbers, board_ids, strict=True)
                    ],
                )
                self.waiting_rows.add(numbers, board_ids, work)
                audit_row = _audit_row(NewCell(board_ids, caller, audit), numbers, now)
                self.database.execute_rows(self._insert_audit, [audit_row])
                self.database.commit()
        except NotExecuted:
            self._return_job_ids(numbers)  # for the next attempt
            raise
        return numbers

    def take_waiting_job(self, job: int) -> TakenJob | None:
        """Count a job that waits as sent, and return what it runs.

        The results of the board's earlier jobs are written before.

        Returns:
            None if it does not wait any more, or its board is connected to another server.

        Raises:
            ServerError: it cannot be written; the job still waits.
        """
        self._write_pending_first()
        with self._rollback_on_error():
            self._require_membership()
            taken = self.waiting_rows.take(job)
            if taken is None or not self._own_taken_job(taken):
                self.database.rollback()
                return None
            self.database.commit()
        return taken

    def _own_taken_job(self, _taken: TakenJob) -> bool:
        """Become the owner of a job that is taken; return whether that was possible."""
        return True

    def put_back_waiting_job(self, taken: TakenJob) -> bool:
        """Let a job wait again that was taken and never sent; return whether it does.

        Raises:
            ServerError: it cannot be written.
        """
        with self._rollback_on_error():
            is_open = self._disown_taken_job(taken)
            if is_open:
                self.waiting_rows.put_back(taken)
            self.database.commit()
        return is_open

    def _disown_taken_job(self, taken: TakenJob) -> bool:
        """Note that a job was not sent; return whether it is open, and this server's."""
        job = tables.jobs.c
        query = sa.select(job.id).where(job.id == taken.row.job, job.ended.is_(None))
        return self._connection.execute(query).first() is not None

    def end_waiting_jobs(self, jobs: Sequence[int], status: str, error: str) -> list[int]:
        """End those of these jobs that wait, and return their numbers; nothing of them was sent.

        Raises:
            ServerError: it cannot be written.
        """
        with self._rollback_on_error():
            ended = self._end_waiting(jobs, status, error)
            self.database.commit()
        return ended

    def add_output(self, job: int, output: JobOutput, max_chars: int) -> None:
        """Keep what a job printed, for callers who ask later: see ``WaitingRows.add_output``.

        Raises:
            ServerError: it cannot be written.
        """
        with self._rollback_on_error():
            self.waiting_rows.add_output(job, output, max_chars)
            self._connection.commit()

    def amend_job(self, reported: EndedJob, board_id: str, is_uncertain: IsUncertain) -> bool:
        """Write how a job really ended, if its board reports it after the job was given up.

        Args:
            reported: the result.
            board_id: the board that reports it; other boards' jobs are ignored.
            is_uncertain: returns whether the result in the store, or its absence, may be wrong.

        Returns:
            Whether it was written.
        """
        row = self.job(reported.job)
        if row is None or not _is_job_of(row, board_id) or not is_uncertain(row):
            return False
        self._amend_row(reported, board_id)
        return True

    def _amend_row(self, reported: EndedJob, _board_id: str) -> None:
        with contextlib.suppress(ServerError), self._rollback_on_error():
            self.database.execute_rows(self._end_job, [reported])
            self.database.commit_driver()

    def mark_sent(self, job: int) -> bool:
        """Write the results of earlier jobs before a job is sent; return whether it may be sent.

        Raises:
            ServerError: the store is unavailable, so the job may not be sent.
        """
        if self._pending_ended_jobs:
            self.flush()
        return True

    def is_marked_sent(self, _job: int) -> bool:
        """Return whether ``mark_sent`` has nothing to do for a job but to write results."""
        return True

    def job(self, number: int) -> JobRow | None:
        """Return a job's row; None if there is none."""
        self.flush()
        rows = self._fetch_rows(sa.select(*JOB_COLUMNS).where(tables.jobs.c.id == number))
        return JobRow(*rows[0]) if rows else None

    def open_jobs(self) -> list[JobRow]:
        """Return the jobs that were sent and have not ended, oldest first."""
        self.flush()
        job = tables.jobs.c
        query = sa.select(*JOB_COLUMNS).where(
            job.ended.is_(None), ~self.waiting_rows.is_waiting(job.id)
        )
        # Sorted here: for an ORDER BY id, SQLite reads all jobs instead of the index of open ones.
        return sorted(JobRow(*row) for row in self._fetch_rows(query))


def _audit_row(cell: NewCell, numbers: range, now: float) -> AuditRow:
    """Return the row of the audit log about a cell's jobs."""
    return AuditRow(
        at=now,
        who=cell.caller,
        address=cell.audit.address,
        verb=cell.audit.verb,
        target=cell.audit.target,
        detail=cell.audit.detail,
        boards=len(numbers),
        first_job=numbers[0],
        last_job=numbers[-1],
        outcome="done",
    )


def _is_job_of(row: JobRow, board_id: str) -> bool:
    """Return whether a job in the store is one of this board."""
    return row.board == board_id
