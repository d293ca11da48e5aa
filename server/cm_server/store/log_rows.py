"""The store's table of boards' logs: what their programs printed outside of cells. SQL.

A board keeps its last 16 KB; all boards together have a bound, too. Rows are deleted when more is
written, so no other housekeeping is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import sqlalchemy as sa

from .installed_packages import METADATA

#: How many of the newest numbers are looked at once more: rows of several servers get their numbers
#: in another order than they are committed.
RECHECKED_IDS = 2000
#: After which no row with a skipped number is expected any more: a statement is abandoned earlier.
RECHECK_SECONDS = 15.0
_IDS_PER_QUERY = 10_000  # SQLite accepts 32,766 parameters

_BigInt = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite's INTEGER has 64 bits

_logs = sa.Table(
    "logs",
    METADATA,
    sa.Column("id", _BigInt, primary_key=True),
    sa.Column("board", sa.Text, nullable=False),  # its id
    sa.Column("at", sa.Float, nullable=False),  # seconds since 1970, by the server's clock
    sa.Column("lost", sa.Integer, nullable=False),  # bytes that were lost before this text
    sa.Column("size", sa.Integer, nullable=False),  # as how many characters it counts
    sa.Column("text", sa.Text, nullable=False),
)
sa.Index("logs_board", _logs.c.board, _logs.c.id, _logs.c.size)


class LogRow(NamedTuple):
    """A piece of a board's log.

    Attributes:
        board_id: the board's.
        at: when the server received it, in seconds since 1970.
        lost: how many bytes were lost before it.
        text: one or more lines; the last one may be unfinished.
    """

    board_id: str
    at: float
    lost: int
    text: str

    def cost(self, min_chars: int) -> int:
        """Return as how many characters the row counts: a short text needs a row, too."""
        return max(len(self.text), min_chars)


class LogTrims(NamedTuple):
    """What remains of logs.

    Attributes:
        board_ids: boards whose logs may have become too long.
        max_board_chars: characters that remain of each of those.
        min_chars: what each row counts for at least.
        max_chars: characters that remain of all boards; None to leave the others alone.
    """

    board_ids: Sequence[str]
    max_board_chars: int
    min_chars: int
    max_chars: int | None


class LogPage(NamedTuple):
    """Some rows, the oldest first.

    Attributes:
        rows: the rows.
        last_id: the number of the last row: the next page begins after it.
        complete: whether there are no more.
    """

    rows: list[LogRow]
    last_id: int
    complete: bool


class LogRows:
    """The table of boards' logs.

    Args:
        connection: the store's connection.
        rollback_on_error: a context that rolls back if a write inside fails.
    """

    def __init__(
        self,
        connection: sa.Connection,
        rollback_on_error: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._connection = connection
        self._rollback_on_error = rollback_on_error
        #: While rows of other servers are read: the greatest number that was seen; the smaller
        #: ones that were not, each with the time when it was missed first; and the rows that this
        #: server has written meanwhile.
        self._newest_id: int | None = None
        self._skipped_ids: dict[int, float] = {}
        self._own_ids: set[int] = set()

    def append(self, rows: Sequence[LogRow], trims: LogTrims) -> None:
        """Insert rows and delete the oldest ones, in one transaction.

        Args:
            rows: the rows.
            trims: what may remain.

        Raises:
            ServerError: they cannot be written.
        """
        values = [
            {"board": row.board_id, "at": row.at, "lost": row.lost, "text": row.text}
            | {"size": row.cost(trims.min_chars)}
            for row in rows
        ]
        with self._rollback_on_error():
            if self._newest_id is None:
                self._connection.execute(sa.insert(_logs), values)
            else:
                insert = sa.insert(_logs).returning(_logs.c.id)
                self._own_ids.update(self._connection.execute(insert, values).scalars())
            for board_id in trims.board_ids:
                self._trim_board(board_id, trims.max_board_chars)
            if trims.max_chars is not None:
                self._trim_all(trims.max_chars)
            self._connection.commit()

    def _trim_board(self, board_id: str, max_chars: int) -> None:
        """Delete the oldest rows of a board that has more than ``max_chars`` characters."""
        query = sa.select(_logs.c.id, _logs.c.size).where(_logs.c.board == board_id)
        total = 0
        for row_id, size in self._connection.execute(query.order_by(_logs.c.id.desc())).all():
            total += size
            if total > max_chars:
                is_older = (_logs.c.board == board_id) & (_logs.c.id <= row_id)
                self._connection.execute(sa.delete(_logs).where(is_older))
                return

    def _trim_all(self, max_chars: int) -> None:
        """Delete rows until all boards together have at most ``max_chars`` characters.

        The boards that printed least recently lose the older half of their rows first.
        """
        total = self._connection.execute(sa.select(sa.func.sum(_logs.c.size))).scalar() or 0
        while total > max_chars:
            removed = self._halve_quietest_boards()
            if not removed:
                return  # another server has deleted the rows meanwhile
            total -= removed

    def _halve_quietest_boards(self) -> int:
        """Delete the older half of the rows of some boards; return how many characters."""
        last_id = sa.func.max(_logs.c.id)
        query = sa.select(_logs.c.board).group_by(_logs.c.board).order_by(last_id).limit(100)
        removed = 0
        for (board_id,) in self._connection.execute(query).all():
            ids = sa.select(_logs.c.id, _logs.c.size).where(_logs.c.board == board_id)
            rows = self._connection.execute(ids.order_by(_logs.c.id)).all()
            older = rows[: len(rows) // 2 + 1]
            removed += sum(size for _id, size in older)
            is_older = (_logs.c.board == board_id) & (_logs.c.id <= older[-1][0])
            self._connection.execute(sa.delete(_logs).where(is_older))
        return removed

    def read(
        self, board_ids: Sequence[str], since: float, after_id: int, max_chars: int
    ) -> LogPage:
        """Return rows of boards, the oldest first.

        Args:
            board_ids: whose.
            since: only rows that were received at or after this time, in seconds since 1970.
            after_id: only rows with a greater number: ``LogPage.last_id`` of the page before.
            max_chars: about how many characters the page may have.
        """
        columns = (_logs.c.id, _logs.c.board, _logs.c.at, _logs.c.lost, _logs.c.text)
        query = sa.select(*columns).where(_logs.c.id > after_id, _logs.c.at >= since)
        query = query.where(_logs.c.board.in_(board_ids)).order_by(_logs.c.id)
        rows: list[LogRow] = []
        size, last_id = 0, after_id
        found: Any = self._connection.execute(query)
        complete = True
        for row_id, board_id, at, lost, text in found:
            if size > max_chars:
                complete = False
                break
            rows.append(LogRow(board_id, at, lost, text))
            size += len(text)
            last_id = row_id
        found.close()
        self._connection.commit()
        return LogPage(rows, last_id, complete)

    # What other servers write to the same store

    def read_others(self, max_chars: int) -> tuple[list[LogRow], int]:
        """Return the rows that other servers have written since the last call, the oldest first.

        The first call, and the first one after ``stop_reading_others``, returns none.

        Args:
            max_chars: about how many characters are returned at most; the oldest are left out.

        Returns:
            The rows, and how many were left out.
        """
        is_first = self._newest_id is None
        if is_first:
            newest = self._connection.execute(sa.select(sa.func.max(_logs.c.id))).scalar() or 0
            self._newest_id = max(newest - RECHECKED_IDS, 0)
        sizes = self._read_new_sizes()
        others = [] if is_first else sorted(sizes.keys() - self._own_ids)
        self._own_ids.clear()
        chosen: list[int] = []
        while others and max_chars > 0:
            chosen.append(others.pop())
            max_chars -= sizes[chosen[-1]]
        rows = self._read_rows(chosen[::-1])
        self._connection.commit()
        return rows, len(others)

    def stop_reading_others(self) -> None:
        """Forget what was read: nobody is interested any more."""
        self._newest_id = None
        self._skipped_ids.clear()
        self._own_ids.clear()

    def _read_new_sizes(self) -> dict[int, int]:
        """Return the sizes of rows that were not there the last time, by number."""
        assert self._newest_id is not None
        now = time.monotonic()
        self._skipped_ids = {
            row_id: since
            for row_id, since in self._skipped_ids.items()
            if now - since < RECHECK_SECONDS
        }
        columns = sa.select(_logs.c.id, _logs.c.size)
        newer = self._connection.execute(columns.where(_logs.c.id > self._newest_id)).all()
        found = {row_id: size for row_id, size in newer}  # noqa: C416 - rows are no pairs for mypy
        if self._skipped_ids:
            late = columns.where(_logs.c.id.in_(list(self._skipped_ids)))
            for row_id, size in self._connection.execute(late).all():
                found[row_id] = size
                del self._skipped_ids[row_id]
        newest = max(found, default=self._newest_id)
        for row_id in range(max(self._newest_id + 1, newest - RECHECKED_IDS), newest):
            if row_id not in found:
                self._skipped_ids[row_id] = now
        self._newest_id = max(newest, self._newest_id)
        return found

    def _read_rows(self, ids: Sequence[int]) -> list[LogRow]:
        """Return the rows with these numbers, in the order of the numbers."""
        columns = sa.select(_logs.c.board, _logs.c.at, _logs.c.lost, _logs.c.text)
        rows: list[LogRow] = []
        for start in range(0, len(ids), _IDS_PER_QUERY):
            part = columns.where(_logs.c.id.in_(ids[start : start + _IDS_PER_QUERY]))
            found = self._connection.execute(part.order_by(_logs.c.id)).all()
            rows += [LogRow(*row) for row in found]
        return rows

    def move(self, board_id: str, new_id: str) -> None:
        """Give a board's rows to another one, in a transaction that the calling code commits."""
        is_moved = _logs.c.board == board_id
        self._connection.execute(sa.update(_logs).where(is_moved).values(board=new_id))

    def delete_board(self, board_id: str) -> None:
        """Delete a board's rows, in a transaction that the calling code commits."""
        self._connection.execute(sa.delete(_logs).where(_logs.c.board == board_id))
