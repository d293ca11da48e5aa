"""What the server must not forget, in SQL; the only file that knows SQL.

Boards with their keys and labels, callers' tokens (hashed), one row per job. Jobs are
committed before their first byte leaves (SQLite: WAL, synchronous NORMAL: survives
``kill -9``); how they ended is written in batches, and always before the same board's
next job, so that a board's memory of its last job covers what a crash can lose.
Identity and tokens are fsynced (synchronous FULL).

Call from the server's one thread.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from cloudmanager.errors import ServerError

log = logging.getLogger("cm_server")

_meta = sa.MetaData()

_boards = sa.Table(
    "boards",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("enrolled", sa.Float, nullable=False),  # seconds since the epoch, as all times here
    sa.Column("last_seen", sa.Float),
)

_tokens = sa.Table(
    "tokens",
    _meta,
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)

_jobs = sa.Table(
    "jobs",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("board", sa.Text, nullable=False),  # the board's id: a name may change hands
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("status", sa.Text),
    sa.Column("error", sa.Text),
    sa.Index("jobs_open", "board", sqlite_where=sa.text("ended IS NULL")),
)

_NEW_JOB = ("id", "board", "caller", "created")
_INSERT_JOB = sa.insert(_jobs).values({name: sa.bindparam(name) for name in _NEW_JOB})
_END_JOB = (
    sa.update(_jobs)
    .where(_jobs.c.id == sa.bindparam("job"))
    .values(ended=sa.bindparam("at"), status=sa.bindparam("how"), error=sa.bindparam("why"))
)


class BoardRow(NamedTuple):
    """One enrolled board."""

    id: str
    name: str
    key: bytes
    labels: dict[str, str]
    facts: dict[str, Any]
    enrolled: float
    last_seen: float | None

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"BoardRow(id={self.id!r}, name={self.name!r})"


class JobRow(NamedTuple):
    """One job's line."""

    id: int
    board: str
    caller: str
    created: float
    ended: float | None
    status: str | None
    error: str | None


class Store:
    """The database in ``path``; made when missing.

    Args:
        path: the SQLite file; None keeps all in memory (for tests).

    Raises:
        ServerError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._engine = sa.create_engine(
            f"sqlite:///{path}" if path else "sqlite://", poolclass=sa.StaticPool
        )
        try:
            self._db = self._engine.connect()
            self._pragma("journal_mode=WAL")
            self._pragma("synchronous=NORMAL")
            self._pragma("busy_timeout=5000")
            _meta.create_all(self._db)
            self._db.commit()
        except sa.exc.DBAPIError as error:
            self._engine.dispose()
            raise ServerError(f"its store {path} cannot be opened: {error.orig}") from error
        self._next_job = (self._db.scalar(sa.select(sa.func.max(_jobs.c.id))) or 0) + 1
        self._endings: list[tuple[float, str, str | None, int]] = []
        # Every cell waits for these two: compiled once and given to the driver itself, they
        # cost a third.
        self._insert_job = str(_INSERT_JOB.compile(self._engine))
        self._end_job = str(_END_JOB.compile(self._engine))
        self._driver: Any = self._db.connection.driver_connection
        self._db.commit()

    def close(self) -> None:
        """Write what is waiting and close."""
        self.flush()
        self._db.close()
        self._engine.dispose()

    def _pragma(self, text: str) -> None:
        self._db.exec_driver_sql(f"PRAGMA {text}")
        self._db.commit()

    @contextlib.contextmanager
    def _durably(self) -> Iterator[None]:
        """Commit what is done inside with an fsync."""
        self.flush()
        self._pragma("synchronous=FULL")
        try:
            with self._written():
                yield
                self._db.commit()
        finally:
            self._pragma("synchronous=NORMAL")

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Undo what is done inside where it cannot be written: a full disk, for example."""
        try:
            yield
        except (sqlite3.Error, sa.exc.DBAPIError) as error:
            self._db.rollback()
            self._driver.rollback()
            reason = getattr(error, "orig", error)
            log.error("the store cannot be written: %s", reason)
            raise ServerError(f"its store cannot be written: {reason}") from error

    # Boards

    def boards(self) -> list[BoardRow]:
        """Return every enrolled board."""
        return [BoardRow(*row) for row in self._db.execute(sa.select(_boards))]

    def enrol(self, boards: Sequence[tuple[str, str, bytes]]) -> list[BoardRow]:
        """Write (id, name, key) of each board; a known id gets the new key."""
        rows = [BoardRow(*board, {}, {}, time.time(), None) for board in boards]
        statement = sqlite_insert(_boards)
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={"key": statement.excluded.key}
        )
        with self._durably():
            self._db.execute(statement, [row._asdict() for row in rows])
        return rows

    def forget(self, board_ids: Sequence[str]) -> None:
        """Take boards out; their jobs' lines stay, under ids that never come again."""
        statement = sa.delete(_boards).where(_boards.c.id == sa.bindparam("board"))
        with self._durably():
            self._db.execute(statement, [{"board": board_id} for board_id in board_ids])

    def set_labels(self, labels: Mapping[str, dict[str, str]]) -> None:
        """Replace the labels of the boards with these ids."""
        statement = sa.update(_boards).where(_boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": new} for board_id, new in labels.items()]
        with self._durably():
            self._db.execute(statement.values(labels=sa.bindparam("new", type_=sa.JSON)), rows)

    def saw_board(self, board_id: str, facts: dict[str, Any] | None = None) -> None:
        """Note that a board was here just now, and what it said of itself; it may be left out."""
        values: dict[str, Any] = {"last_seen": time.time()}
        if facts is not None:
            values["facts"] = facts
        with contextlib.suppress(ServerError), self._written():
            self._db.execute(sa.update(_boards).where(_boards.c.id == board_id).values(**values))
            self._db.commit()

    # Tokens

    def add_token(self, token_hash: str, name: str, role: str) -> None:
        """Let the bearer of the token with ``token_hash`` act as ``role``."""
        values = {"hash": token_hash, "name": name, "role": role, "created": time.time()}
        with self._durably():
            self._db.execute(sa.insert(_tokens), values)

    def tokens(self) -> dict[str, tuple[str, str]]:
        """Return (name, role) by hash, for every token."""
        rows = self._db.execute(sa.select(_tokens.c.hash, _tokens.c.name, _tokens.c.role))
        return {row.hash: (row.name, row.role) for row in rows}

    # Jobs

    def begin(self, board_ids: Sequence[str], caller: str) -> range:
        """Write one open job per board, in one transaction, and return their numbers.

        What ended before is written first: see the module's docstring.

        Raises:
            ServerError: they cannot be written.
        """
        first = self._next_job
        self._next_job += len(board_ids)
        numbers = range(first, self._next_job)
        now = time.time()
        rows = [
            (number, board_id, caller, now)
            for number, board_id in zip(numbers, board_ids, strict=True)
        ]
        self._write(rows)
        return numbers

    def end(self, job: int, status: str, error: str | None = None) -> None:
        """Note how a job ended; ``flush`` or the next ``begin`` writes it."""
        self._endings.append((time.time(), status, error, job))

    def flush(self) -> None:
        """Write the endings that wait; where they cannot be written they go on waiting."""
        if self._endings:
            with contextlib.suppress(ServerError):
                self._write([])

    def _write(self, jobs: list[tuple[int, str, str, float]]) -> None:
        """Write the endings that wait, then new jobs, in one transaction."""
        with self._written():
            if self._endings:
                self._driver.executemany(self._end_job, self._endings)
            if jobs:
                self._driver.executemany(self._insert_job, jobs)
            self._driver.commit()
            self._endings = []

    def job(self, number: int) -> JobRow | None:
        """Return a job's line, None where there is none."""
        self.flush()
        row = self._db.execute(sa.select(_jobs).where(_jobs.c.id == number)).first()
        self._db.commit()
        return JobRow(*row) if row else None

    def open_jobs(self) -> list[JobRow]:
        """Return the jobs that have not ended, oldest first."""
        self.flush()
        query = sa.select(_jobs).where(_jobs.c.ended.is_(None)).order_by(_jobs.c.id)
        rows = [JobRow(*row) for row in self._db.execute(query)]
        self._db.commit()
        return rows
