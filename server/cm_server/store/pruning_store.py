"""Deletes old jobs and old rows of the audit log, a few at a time. SQL."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError
from cm_server.times import DAY, EARLIEST

from . import tables
from .rows import AuditRow
from .store_base import StoreBase


class PruningStore(StoreBase):
    """Deletions in the store, which are counted and audited."""

    # Old rows

    def begin_pruning(self, now: float) -> bool:
        """Return whether a round of deletions is due, once a day; if so, record its begin.

        The time is recorded in the store, so that restarts, or other servers on the same store,
        do not cause a second round on the same day.

        Args:
            now: seconds since 1970.
        """
        with self._rollback_on_error():
            state = self._lock_pruning_state()
            due = _is_round_due(state, now)
            if due:
                self._set_pruning_state({**state, "at": now})
            self._connection.commit()
        return due

    def oldest(self, now: float) -> tuple[float | None, float | None]:
        """Return the times of the first ended job and of the first audit row; None without one.

        Rows with an impossible time, written while the clock was wrong, are ignored.

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

    def prune_jobs(self, before: float, after: int, max_rows: int) -> tuple[int, int]:
        """Delete one batch of jobs that ended long ago; keep the newest job, for its number.

        Args:
            before: seconds since 1970; younger jobs stay.
            after: jobs with numbers up to this one were examined before.
            max_rows: of the batch.

        Returns:
            How many were deleted, and the last number examined: ``after`` if no older job is left.
        """
        job = tables.jobs.c
        query = sa.select(job.id, job.created, job.ended).where(job.id > after)
        rows = self._fetch_rows(query.order_by(job.id).limit(max_rows))
        old = [row for row in self._select_old(rows, before) if row.id < self._next_job_id - 1]
        deleted = [row for row in old if row.ended is not None]
        ids = [row.id for row in deleted]
        times = [row.created for row in deleted]
        with contextlib.suppress(ServerError), self._rollback_on_error():
            self.waiting_rows.delete_outputs(ids)
            self._connection.commit()
        count = self._delete_rows("jobs", sa.delete(tables.jobs).where(job.id.in_(ids)), times)
        return count, old[-1].id if old else after

    def _select_old(self, rows: Sequence[Any], before: float) -> list[Any]:
        """Return those of these jobs, ordered by number, that are old.

        Numbers are allocated in the order of time: so after a young job no other one is old, even
        if a clock that was slow gave it an old time.
        """
        times = _plausible_times([row.created for row in rows])
        count = sum(1 for _ in itertools.takewhile(lambda at: at < before, times))
        return list(rows[:count])

    def prune_audit(self, before: float, max_rows: int) -> int:
        """Delete one batch of the oldest rows of the audit log; return how many.

        Args:
            before: seconds since 1970; younger rows stay.
            max_rows: of the batch.
        """
        row = tables.audit.c
        rows = self._fetch_rows(sa.select(row.id, row.at).order_by(row.id).limit(max_rows))
        times = _plausible_times([each.at for each in rows])
        count = sum(1 for _ in itertools.takewhile(lambda at: at < before, times))
        deleted = rows[:count]
        newest = deleted[-1].id if deleted else 0
        statement = sa.delete(tables.audit).where(row.id <= newest)
        return self._delete_rows("audit", statement, [each.at for each in deleted])

    def _delete_rows(self, table: str, statement: sa.Delete, times: list[float]) -> int:
        """Delete rows, and count them in the same transaction for ``end_pruning``.

        Args:
            table: "jobs" or "audit".
            statement: deletes the rows.
            times: of the rows.

        Returns:
            How many were deleted; 0 if the store cannot be written.
        """
        if times:
            with contextlib.suppress(ServerError), self._rollback_on_error():
                state = self._lock_pruning_state()
                count, oldest, newest = state.get(table, (0, times[0], times[0]))
                deleted = (count + len(times), min(oldest, *times), max(newest, *times))
                self._set_pruning_state({**state, table: deleted})
                self._connection.execute(statement)
                self._connection.commit()
                return len(times)
        return 0

    def end_pruning(self, now: float) -> list[AuditRow]:
        """Write the deletions since the last call into the audit log, as one row for each table.

        Args:
            now: seconds since 1970.

        Returns:
            The rows; empty if nothing was deleted, or if they cannot be written: then the next
            call writes them.
        """
        rows: list[AuditRow] = []
        with contextlib.suppress(ServerError), self._rollback_on_error():
            state = self._lock_pruning_state()
            for table in ("jobs", "audit"):
                if table in state:
                    count, oldest, newest = state.pop(table)
                    span = f"{_format_time(oldest)} to {_format_time(newest)}"
                    detail = f"{count} rows of {span} were deleted"
                    row = (now, "", "this machine", "prune", table, detail, None, None, None)
                    rows.append(AuditRow(*row, "done"))
            if rows:
                self._set_pruning_state(state)
                self._audit_deletions(rows)
            self.database.commit()
            return rows
        return []

    def _audit_deletions(self, rows: list[AuditRow]) -> None:
        self.database.execute_rows(self._insert_audit, rows)

    def _lock_pruning_state(self) -> dict[str, Any]:
        """Return the state of deletions; other servers cannot change it before the commit."""
        shared = tables.shared
        first = self.database.insert(shared).values(name="pruning", value=b"{}")
        self._connection.execute(first.on_conflict_do_nothing())
        query = sa.select(shared.c.value).where(shared.c.name == "pruning").with_for_update()
        found: dict[str, Any] = json.loads(self._connection.execute(query).scalar_one())
        return found

    def _set_pruning_state(self, state: Mapping[str, Any]) -> None:
        shared = tables.shared
        change = sa.update(shared).where(shared.c.name == "pruning")
        self._connection.execute(change.values(value=json.dumps(state).encode()))


def _is_round_due(state: Mapping[str, Any], now: float) -> bool:
    """Return whether the last round of deletions began at least a day ago, or in the future."""
    return not 0 <= now - state.get("at", 0.0) < DAY


def _plausible_times(times: Sequence[float]) -> list[float]:
    """Return by which time each row was written at the latest, given their times in order.

    A row written while the clock was in 1970 gets the time of the next row that can be right.
    """
    latest = math.inf
    found = []
    for at in reversed(times):
        if at >= EARLIEST:
            latest = at
        found.append(latest)
    return found[::-1]


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
