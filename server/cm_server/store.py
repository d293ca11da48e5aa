"""What the server must not forget, in SQL; the only file that knows SQL.

Boards with their keys and labels, callers' tokens (hashed), one row per job, the audit log.
Jobs are committed before their first byte leaves (SQLite: WAL, synchronous NORMAL: survives
``kill -9``); how they ended is written in batches, and always before the same board's
next job, so that a board's memory of its last job covers what a crash can lose.
Identity, tokens and what is privileged are fsynced (synchronous FULL). What is done and its
row in the audit log are one transaction; triggers forbid to change or delete such a row.

Call from the server's one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from cloudmanager.errors import ServerError

from . import limits, schema
from .installed import META, Installed
from .rows import AuditRow, BoardRow, JobRow, TokenRow

log = logging.getLogger("cm_server")

_meta = META

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
    sa.Column("gen", sa.Integer, nullable=False),
    sa.Column("nonce", sa.LargeBinary),
    sa.Column("plain", sa.Boolean, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
)

_tokens = sa.Table(
    "tokens",
    _meta,
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),  # the boards that it reaches
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
    sa.Column("uses", sa.Integer),
    # A name is one token's at a time; the revoked ones stay, to be refused by name.
    sa.Index("tokens_name", "name", unique=True, sqlite_where=sa.text("revoked IS NULL")),
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

_audit = sa.Table(
    "audit",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.Text, nullable=False),  # a token's name; "" for nobody we know
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("verb", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("boards", sa.Integer),
    sa.Column("first_job", sa.Integer),
    sa.Column("last_job", sa.Integer),
    sa.Column("outcome", sa.Text, nullable=False),
)
#: Its rows stay as they are. What is a month old may go, the oldest first: see ``prune``.
_AUDIT_RULES = {  # of SQLite; PostgreSQL's come with it
    "update": "BEFORE UPDATE ON audit",
    "delete": "BEFORE DELETE ON audit "
    "WHEN OLD.at > CAST(strftime('%s', 'now') AS INTEGER) - 2592000 "
    "OR EXISTS (SELECT 1 FROM audit WHERE id < OLD.id)",
    "replace": "BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)",
}
for _name, _when in _AUDIT_RULES.items():
    _trigger = sa.DDL(  # type: ignore[no-untyped-call]
        f"CREATE TRIGGER audit_no_{_name} {_when} "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END".replace("%", "%%")
    )
    sa.event.listen(_audit, "after_create", _trigger.execute_if(dialect="sqlite"))
_version = schema.add_version_table(_meta)

_NEW_JOB = ("id", "board", "caller", "created")
_INSERT_JOB = sa.insert(_jobs).values({name: sa.bindparam(name) for name in _NEW_JOB})
_END_JOB = (
    sa.update(_jobs)
    .where(_jobs.c.id == sa.bindparam("job"))
    .values(ended=sa.bindparam("at"), status=sa.bindparam("how"), error=sa.bindparam("why"))
)
_SEE_BOARD = (
    sa.update(_boards)
    .where(_boards.c.id == sa.bindparam("board"))
    .values(facts=sa.bindparam("told", type_=sa.Text), last_seen=sa.bindparam("at"))
)
_INSERT_AUDIT = sa.insert(_audit).values(
    {column.name: sa.bindparam(column.name) for column in _audit.c if column.name != "id"}
)


class Store:
    """The database in ``path``; made when missing.

    Args:
        path: the SQLite file; None keeps all in memory (for tests).

    Raises:
        ServerError: the file cannot be opened, is something else, or of another version.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            schema.make_private(path)
        self._engine = sa.create_engine(
            f"sqlite:///{path}" if path else "sqlite://", poolclass=sa.StaticPool
        )
        try:
            self._db = self._engine.connect()
            self._pragma("busy_timeout=5000")
            schema.prepare(self._db, _meta)
            self._pragma("journal_mode=WAL")
            self._pragma("synchronous=NORMAL")
            self._pragma("recursive_triggers=ON")  # else INSERT OR REPLACE deletes unseen
        except (sa.exc.DBAPIError, ServerError) as error:
            self._engine.dispose()
            if isinstance(error, ServerError):
                raise
            raise ServerError(f"its store {path} cannot be opened: {error.orig}") from error
        self.failure = ""  # why the last write failed, if it did
        self._next_job = (self._db.scalar(sa.select(sa.func.max(_jobs.c.id))) or 0) + 1
        self._endings: list[tuple[float, str, str | None, int]] = []
        self._seen: dict[str, tuple[str, float, str]] = {}  # facts first, as in the table
        # Every cell waits for these: compiled once and given to the driver itself, they
        # cost a third.
        self._insert_job = str(_INSERT_JOB.compile(self._engine))
        self._end_job = str(_END_JOB.compile(self._engine))
        self._see_board = str(_SEE_BOARD.compile(self._engine))
        self._insert_audit = str(_INSERT_AUDIT.compile(self._engine))
        self._driver: Any = self._db.connection.driver_connection
        self._db.commit()
        self.installed = Installed(self._db, self._written)

    def close(self) -> None:
        """Write what is waiting and close."""
        self.flush()
        self._db.close()
        self._engine.dispose()

    def _pragma(self, text: str) -> None:
        self._db.exec_driver_sql(f"PRAGMA {text}")
        self._db.commit()

    @contextlib.contextmanager
    def _durably(self, note: AuditRow | None = None) -> Iterator[None]:
        """Commit what is done inside, and its row in the audit log, with an fsync."""
        self.flush()
        self._pragma("synchronous=FULL")
        try:
            with self._written():
                yield
                if note is not None:
                    self._driver.execute(self._insert_audit, note)
                self._db.commit()
                self._driver.commit()  # where nothing was done but the note
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
            why = f"its store cannot be written: {reason}"
            if not isinstance(reason, sqlite3.IntegrityError):  # else it is what was to be written
                self.failure = why
            log.error("the store cannot be written: %s", reason)
            raise ServerError(why) from error
        self.failure = ""

    def probe(self) -> None:
        """See whether it can be written by now."""
        with contextlib.suppress(ServerError), self._written():
            self._db.execute(sa.update(_version).values(version_num=_version.c.version_num))
            self._db.commit()

    # Boards

    def boards(self) -> list[BoardRow]:
        """Return every enrolled board."""
        self.flush()
        return [BoardRow(*row) for row in self._db.execute(sa.select(_boards))]

    def enrol(self, boards: Sequence[BoardRow], note: AuditRow | None = None) -> None:
        """Write the identity of each board; a known id gets the new key, and is numbered anew."""
        with self._durably(note):
            self._enrol(boards)

    def _enrol(self, boards: Sequence[BoardRow]) -> None:
        statement = sqlite_insert(_boards)
        given = ("key", "gen", "nonce", "plain", "token")
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={name: statement.excluded[name] for name in given}
        )
        self._db.execute(statement, [row._asdict() for row in boards])

    def enrol_by(self, token: TokenRow, board: BoardRow, note: AuditRow) -> None:
        """Write a board that enrolled itself, and that its token has one use less."""
        statement = sa.update(_tokens).where(_tokens.c.hash == token.hash)
        with self._durably(note):
            self._enrol([board])
            self._db.execute(statement.values(uses=_tokens.c.uses - 1))

    def set_board(self, board_id: str, note: AuditRow | None = None, **values: Any) -> None:
        """Change what a board is called, or its keys: ``name``, ``key``, ``gen``, ``nonce``."""
        statement = sa.update(_boards).where(_boards.c.id == board_id)
        with self._durably(note):
            self._db.execute(statement.values(**values))

    def open_rotation(self, nonces: Mapping[str, bytes], note: AuditRow) -> None:
        """Note what the next keys of the boards with these ids are derived with."""
        statement = sa.update(_boards).where(_boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": nonce} for board_id, nonce in nonces.items()]
        with self._durably(note):
            self._db.execute(statement.values(nonce=sa.bindparam("new")), rows)

    def forget(self, board_ids: Sequence[str], note: AuditRow | None = None) -> None:
        """Take boards out; their jobs' lines stay, under ids that never come again."""
        statement = sa.delete(_boards).where(_boards.c.id == sa.bindparam("board"))
        with self._durably(note):
            self._db.execute(statement, [{"board": board_id} for board_id in board_ids])
            for board_id in board_ids:
                self.installed.forget(board_id)

    def set_labels(
        self, labels: Mapping[str, dict[str, str]], note: AuditRow | None = None
    ) -> None:
        """Replace the labels of the boards with these ids."""
        statement = sa.update(_boards).where(_boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": new} for board_id, new in labels.items()]
        with self._durably(note):
            self._db.execute(statement.values(labels=sa.bindparam("new", type_=sa.JSON)), rows)

    def saw_board(self, board_id: str, facts: dict[str, Any]) -> None:
        """Note that a board was here just now, and what it said of itself.

        ``flush``, or the next ``begin``, writes it: when very many boards dial in at once, a
        commit for each would cost a quarter of it all.
        """
        self._seen[board_id] = (json.dumps(facts), time.time(), board_id)

    # Tokens

    def add_token(self, token: TokenRow, note: AuditRow | None = None) -> None:
        """Let the bearer of a token in; its name is nobody else's who is not revoked."""
        with self._durably(note):
            self._db.execute(sa.insert(_tokens), token._asdict())

    def revoke_token(self, token_hash: str, at: float, note: AuditRow | None = None) -> None:
        """Shut the bearer of a token out; its row stays."""
        statement = sa.update(_tokens).where(_tokens.c.hash == token_hash)
        with self._durably(note):
            self._db.execute(statement.values(revoked=at))

    def tokens(self) -> list[TokenRow]:
        """Return every token, in the order in which they were made."""
        query = sa.select(_tokens).order_by(_tokens.c.created)
        return [TokenRow(*row) for row in self._db.execute(query)]

    # The audit log

    def note(self, row: AuditRow, *, durable: bool = False) -> None:
        """Write a row of the audit log; ``durable`` waits for the disk.

        Raises:
            ServerError: it cannot be written.
        """
        if durable:
            with self._durably(row):
                pass
        else:
            self._write([], row)

    def audit(self, count: int) -> list[AuditRow]:
        """Return the newest rows of the audit log, the newest last."""
        query = sa.select(*list(_audit.c)[1:]).order_by(_audit.c.id.desc()).limit(count)
        rows = [AuditRow(*row) for row in self._db.execute(query)]
        self._db.commit()
        return rows[::-1]

    # Jobs

    def begin(
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
        first = self._next_job
        self._next_job += len(board_ids)
        numbers = range(first, self._next_job)
        now = time.time()
        rows = [
            (number, board_id, caller, now)
            for number, board_id in zip(numbers, board_ids, strict=True)
        ]
        cell = AuditRow(
            now, caller, address, verb, target, detail, len(rows), first, numbers[-1], "done"
        )
        self._write(rows, cell)
        return numbers

    def end(self, job: int, status: str, error: str | None = None) -> None:
        """Note how a job ended; ``flush`` or the next ``begin`` writes it."""
        self._endings.append((time.time(), status, error, job))

    def flush(self) -> None:
        """Write what waits, endings and boards; where it cannot be written it goes on waiting."""
        if self._endings or self._seen:
            with contextlib.suppress(ServerError):
                self._write([])

    def _write(self, jobs: list[tuple[int, str, str, float]], note: AuditRow | None = None) -> None:
        """Write what waits, then new jobs and who wants them, in one transaction."""
        with self._written():
            if self._seen:
                self._driver.executemany(self._see_board, self._seen.values())
            if self._endings:
                self._driver.executemany(self._end_job, self._endings)
            if jobs:
                self._driver.executemany(self._insert_job, jobs)
            if note is not None:
                self._driver.execute(self._insert_audit, note)
            self._driver.commit()
            self._endings, self._seen = [], {}

    def job(self, number: int) -> JobRow | None:
        """Return a job's line, None where there is none."""
        self.flush()
        row = self._db.execute(sa.select(_jobs).where(_jobs.c.id == number)).first()
        self._db.commit()
        return JobRow(*row) if row else None

    def prune_jobs(self, before: float, after: int) -> tuple[int, int]:
        """Take out some jobs that ended long ago; the newest stays: numbers go on behind it.

        Args:
            before: seconds since 1970; younger ones stay.
            after: the number behind which to look.

        Returns:
            How many went, and how far it has looked: ``after`` where there is no older one.
        """
        query = sa.select(_jobs.c.id, _jobs.c.created, _jobs.c.ended).where(_jobs.c.id > after)
        rows = self._db.execute(query.order_by(_jobs.c.id).limit(limits.PRUNE_ROWS)).all()
        old = [row for row in rows if row.created < before and row.id < self._next_job - 1]
        gone = [row.id for row in old if row.ended is not None]
        self._prune(sa.delete(_jobs).where(_jobs.c.id.in_(gone)), gone)
        return len(gone), old[-1].id if old else after

    def prune_audit(self, before: float) -> int:
        """Take out some of the oldest rows of the audit log; return how many."""
        query = sa.select(_audit.c.id, _audit.c.at).order_by(_audit.c.id).limit(limits.PRUNE_ROWS)
        old = itertools.takewhile(lambda row: row.at < before, self._db.execute(query).all())
        gone = [row.id for row in old]
        self._prune(sa.delete(_audit).where(_audit.c.id <= max(gone, default=0)), gone)
        return len(gone)

    def _prune(self, statement: sa.Delete, gone: list[int]) -> None:
        if gone:
            with contextlib.suppress(ServerError), self._written():
                self._db.execute(statement)
        self._db.commit()

    def open_jobs(self) -> list[JobRow]:
        """Return the jobs that have not ended, oldest first."""
        self.flush()
        query = sa.select(_jobs).where(_jobs.c.ended.is_(None)).order_by(_jobs.c.id)
        rows = [JobRow(*row) for row in self._db.execute(query)]
        self._db.commit()
        return rows
