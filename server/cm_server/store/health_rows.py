"""The store's tables of boards' restarts and of the errors that ended their programs. SQL.

Restarts are counted by the hour and cause; errors are stored once for each board and text. Old rows
of a board are deleted when it gets new ones, so no other housekeeping is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from .installed_packages import METADATA

HOUR: Final = 3600.0
_KEPT_HOURS: Final = 7 * 24  # of restarts of a board
KEPT_CRASHES: Final = 8  # of a board: those that happened last

_restarts = sa.Table(
    "restarts",
    METADATA,
    sa.Column("board", sa.Text, primary_key=True),  # its id
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),  # hours since 1970
    sa.Column("cause", sa.Text, primary_key=True),  # as the fact `reset`; "" if unknown
    sa.Column("count", sa.Integer, nullable=False),
)
_crashes = sa.Table(
    "crashes",
    METADATA,
    sa.Column("board", sa.Text, primary_key=True),  # its id
    sa.Column("digest", sa.Text, primary_key=True),  # of the text
    sa.Column("text", sa.Text, nullable=False),  # a traceback, or its last line
    sa.Column("first", sa.Float, nullable=False),  # seconds since 1970
    sa.Column("last", sa.Float, nullable=False),
)


class Restart(NamedTuple):
    """Restarts of a board.

    Attributes:
        board_id: the board's.
        hour: in which hour since 1970.
        cause: why it started, as the fact ``reset``; "" if unknown.
        times: how often.
    """

    board_id: str
    hour: int
    cause: str
    times: int


class Crash(NamedTuple):
    """An error that ended a program of a board.

    Attributes:
        board_id: the board's.
        at: when the server heard of it, in seconds since 1970.
        digest: identifies the text.
        text: the traceback, or its last line if no more is known.
    """

    board_id: str
    at: float
    digest: str
    text: str


class CrashRow(NamedTuple):
    """When an error happened on a board.

    Attributes:
        digest: identifies its text.
        board_id: the board's.
        first: when it happened first, in seconds since 1970.
        last: when it happened last.
    """

    digest: str
    board_id: str
    first: float
    last: float


class HealthRows:
    """The tables of restarts and errors.

    Args:
        connection: the store's connection.
        insert: makes an INSERT of the database's dialect.
        rollback_on_error: a context that rolls back if a write inside fails.
    """

    def __init__(
        self,
        connection: sa.Connection,
        insert: Callable[[sa.Table], Any],
        rollback_on_error: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._connection = connection
        self._insert = insert
        self._rollback_on_error = rollback_on_error

    def add(self, restarts: Sequence[Restart], crashes: Sequence[Crash]) -> None:
        """Count restarts and store errors, and delete the oldest rows of these boards.

        Raises:
            ServerError: they cannot be written.
        """
        with self._rollback_on_error():
            for restart in restarts:
                self._add_restart(restart)
            for crash in crashes:
                self._add_crash(crash)
            for board_id in dict.fromkeys(crash.board_id for crash in crashes):
                self._trim_crashes(board_id)
            self._connection.commit()

    def _add_restart(self, restart: Restart) -> None:
        board_id, hour, cause, times = restart
        row = {"board": board_id, "hour": hour, "cause": cause, "count": times}
        statement = self._insert(_restarts).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=["board", "hour", "cause"],
            set_={"count": _restarts.c["count"] + times},
        )
        self._connection.execute(statement)
        is_old = (_restarts.c.board == board_id) & (_restarts.c.hour < hour - _KEPT_HOURS)
        self._connection.execute(sa.delete(_restarts).where(is_old))

    def _add_crash(self, crash: Crash) -> None:
        row = {
            "board": crash.board_id,
            "digest": crash.digest,
            "text": crash.text,
            "first": crash.at,
            "last": crash.at,
        }
        statement = self._insert(_crashes).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=["board", "digest"], set_={"last": statement.excluded.last}
        )
        self._connection.execute(statement)

    def _trim_crashes(self, board_id: str) -> None:
        """Delete the errors of a board that are longest ago, beyond those that are kept."""
        query = sa.select(_crashes.c.digest).where(_crashes.c.board == board_id)
        query = query.order_by(_crashes.c.last.desc()).offset(KEPT_CRASHES)
        old = [row[0] for row in self._connection.execute(query).all()]
        if old:
            is_old = (_crashes.c.board == board_id) & _crashes.c.digest.in_(old)
            self._connection.execute(sa.delete(_crashes).where(is_old))

    def restarts_since(self, since: float) -> dict[str, dict[str, int]]:
        """Return how often boards restarted: board id -> cause -> number.

        Args:
            since: seconds since 1970; the whole hour of it counts.
        """
        columns = (_restarts.c.board, _restarts.c.cause, sa.func.sum(_restarts.c["count"]))
        query = sa.select(*columns).where(_restarts.c.hour >= int(since // HOUR))
        query = query.group_by(_restarts.c.board, _restarts.c.cause)
        found: dict[str, dict[str, int]] = {}
        for board_id, cause, count in self._connection.execute(query).all():
            found.setdefault(board_id, {})[cause] = int(count)
        self._connection.commit()
        return found

    def crashes_since(self, since: float) -> list[CrashRow]:
        """Return the errors of boards that happened since a time, in seconds since 1970."""
        columns = (_crashes.c.digest, _crashes.c.board, _crashes.c.first, _crashes.c.last)
        query = sa.select(*columns).where(_crashes.c.last >= since)
        rows = [CrashRow(*row) for row in self._connection.execute(query).all()]
        self._connection.commit()
        return rows

    def crash_texts(self, digests: Sequence[str]) -> Mapping[str, str]:
        """Return the texts of errors, by their digests."""
        query = sa.select(_crashes.c.digest, sa.func.max(_crashes.c.text))
        query = query.where(_crashes.c.digest.in_(digests)).group_by(_crashes.c.digest)
        texts = {row[0]: row[1] for row in self._connection.execute(query).all()}
        self._connection.commit()
        return texts

    def delete_board(self, board_id: str) -> None:
        """Delete a board's rows, in a transaction that the calling code commits."""
        for table in (_restarts, _crashes):
            self._connection.execute(sa.delete(table).where(table.c.board == board_id))
