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
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from cloudmanager.protocol.errors import ServerError
from cm_server.cleanup import ProblemLog
from cm_server.times import DAY, EARLIEST

from . import tables
from .blob_rows import BlobRows
from .databases import NotExecuted, PreparedStatement, open_database
from .health_rows import HealthRows
from .installed_packages import InstalledPackages
from .log_rows import LogRows
from .replaced_rows import ReplacedBoard, ReplacedRows
from .rollout_rows import (
    BoardReplacement,
    NewRollout,
    NextRollout,
    ReplacedInRollout,
    RolloutChange,
    RolloutPlace,
    RolloutRows,
)
from .rows import NO_CELL_AUDIT, AuditRow, BoardRow, CellAudit, JobRow, NewCell, TokenRow
from .secret_rows import SecretRow, SecretRows, secrets_table
from .text_rows import TextRows
from .waiting_rows import JobOutput, TakenJob, WaitingRows, WaitingUse, WaitingWork

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


BOARD_COLUMNS = [tables.boards.c[name] for name in BoardRow._fields]
JOB_COLUMNS = [tables.jobs.c[name] for name in JobRow._fields]
_AUDIT_VALUES = {name: tables.audit.c[name].type for name in AuditRow._fields}
#: Why a name cannot be given; a server checks before, so that another one must have been faster.
NAME_TAKEN = "the name was given meanwhile, at another server; choose another one"
#: Why a server may not start jobs that others have removed since they took it for dead.
NOT_A_MEMBER = "this server stopped responding and other servers took over its jobs; try again"
#: Why boards cannot be reserved; a server checks before, so that another one must have been faster.
RESERVED_MEANWHILE = "somebody else has just reserved one of them at another server"
#: Why a board cannot replace another one; a server checks before, as above.
REPLACED_MEANWHILE = "one of the two boards was renamed or removed meanwhile; nothing has changed"
#: Why work cannot wait for boards: one of them was removed while it was submitted.
REMOVED_MEANWHILE = "one of the boards was removed from the fleet meanwhile; nothing waits"
_REMOVED_BOARD = "it was removed from the fleet; it did not run"
#: Condition for using an enrolment token: of several servers, one gets the last use.
_HAS_USES_LEFT = tables.tokens.c.uses > 0


#: Returns whether a job's result in the store was assumed, so that its board may correct it.
IsUncertain = Callable[[JobRow], bool]


class ReplacedWith(NamedTuple):
    """What a board has that has replaced another one.

    Attributes:
        row: the new board's row.
        waiting: the numbers of the jobs that waited for the old board, and wait for it now.
        rollout: which rollout brings it to the old board's generation.
        old: the identity that is no longer valid.
        forgotten: ids that were replaced so long ago that they are not recognised any more.
    """

    row: BoardRow
    waiting: list[int]
    rollout: ReplacedInRollout
    old: ReplacedBoard
    forgotten: list[str]


class EndedJob(NamedTuple):
    """How a job ended, until it is written."""

    at: float
    status: str
    error: str | None
    job: int


class _Transaction:
    """See ``Store._rollback_on_error``: each cell needs two, and a generator takes 1 us longer.

    Args:
        store: whose.
    """

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
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


class Store:
    """The store of one server; its tables are created if they are missing.

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

    # Boards

    def boards(self) -> list[BoardRow]:
        """Return every enrolled board."""
        self.flush()
        return [BoardRow(*row) for row in self._fetch_rows(sa.select(*BOARD_COLUMNS))]

    def enrol_boards(self, boards: Sequence[BoardRow], audit_row: AuditRow | None = None) -> None:
        """Insert the identity of each board; a known id gets the new key and its generation."""
        with self._durable_transaction(audit_row):
            self._upsert_boards(boards)

    def _upsert_boards(self, boards: Sequence[BoardRow]) -> None:
        statement = self.database.insert(tables.boards)
        updated = ("key", "gen", "nonce", "plain", "token")
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={name: statement.excluded[name] for name in updated}
        )
        self._connection.execute(statement, [row._asdict() for row in boards])

    def enrol_with_token(self, token: TokenRow, board: BoardRow, audit_row: AuditRow) -> None:
        """Insert a board that enrolled itself, and count one use of its token.

        Raises:
            ServerError: another server used the token up meanwhile.
        """
        same_token = tables.tokens.c.hash == token.hash
        statement = sa.update(tables.tokens).where(same_token, _HAS_USES_LEFT)
        statement = statement.values(uses=tables.tokens.c.uses - 1)
        with self._durable_transaction(audit_row):
            self._upsert_boards([board])
            if not self._connection.execute(statement).rowcount:
                self.database.rollback()
                raise ServerError(f"the token {token.name!r} was used already")

    def update_board(self, board_id: str, audit_row: AuditRow | None = None, **values: Any) -> None:
        """Change values of a board: ``name``, ``key``, ``gen``, ``nonce``."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == board_id)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(**values))

    def start_key_rotation(self, nonces: Mapping[str, bytes], audit_row: AuditRow) -> None:
        """Store the nonces, by board id, from which the boards' next keys are derived."""
        statement = sa.update(tables.boards).where(tables.boards.c.id == sa.bindparam("board"))
        rows = [{"board": board_id, "new": nonce} for board_id, nonce in nonces.items()]
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(nonce=sa.bindparam("new")), rows)

    def delete_boards(
        self, board_ids: Sequence[str], audit_row: AuditRow | None = None
    ) -> list[str]:
        """Delete boards; the rows of their jobs stay, and their ids are never used again.

        Returns:
            All ids whose samples are to be erased: of the boards, and those that they replaced.
        """
        with self._durable_transaction(audit_row):
            for board_id in board_ids:
                waiting = self.waiting_rows.jobs_of_board(board_id)
                self._end_waiting(waiting, "offline", _REMOVED_BOARD)
                self._delete_board(board_id)
            return [*board_ids, *self.replaced_rows.predecessors(board_ids)]

    def _delete_board(self, board_id: str) -> None:
        self._connection.execute(sa.delete(tables.boards).where(tables.boards.c.id == board_id))
        self.installed_packages.delete_board(board_id)
        self.log_rows.delete_board(board_id)
        self.health_rows.delete_board(board_id)
        self.secret_rows.delete_board(board_id)

    def replace_board(
        self, request: BoardReplacement, place: RolloutPlace, audit_row: AuditRow | None = None
    ) -> ReplacedWith:
        """Let a board become what another one was, and delete that one, in one transaction.

        Args:
            request: which boards.
            place: of the rollout that brings the new board to the old one's generation.
            audit_row: for the audit log.

        Returns:
            What the new board has now.

        Raises:
            ServerError: one of them was changed meanwhile, or the new one is being switched by a
                rollout; nothing has changed.
        """
        with self._durable_transaction(audit_row):
            try:
                return self._replace_board(request, place)
            except ServerError:
                self.database.rollback()
                raise

    def _replace_board(self, request: BoardReplacement, place: RolloutPlace) -> ReplacedWith:
        board = tables.boards.c
        query = sa.select(*BOARD_COLUMNS).where(board.id.in_((request.old, request.new)))
        found = self._connection.execute(query.order_by(board.id).with_for_update()).all()
        rows = {row.id: BoardRow(*row) for row in found}
        names = [rows[each].name for each in (request.old, request.new) if each in rows]
        if names != [request.old_name, request.new_name]:
            raise ServerError(REPLACED_MEANWHILE)
        old = rows[request.old]
        waiting = self.waiting_rows.move(old.id, request.new)
        outcome = self.rollout_rows.replace_board(request, place)
        self.log_rows.move(old.id, request.new)
        self._delete_board(old.id)
        now = time.time()
        forgotten = self.replaced_rows.add(old, now, request.new)
        replaced = ReplacedBoard(old.id, old.name, old.key, old.gen, old.nonce, now, request.new)
        inherited = ("name", "labels", "reserved_by", "reserved_until")
        values = {name: getattr(old, name) for name in (*inherited, "stay_seconds", "stay_until")}
        if old.note:
            values["note"] = old.note
        update = sa.update(tables.boards).where(board.id == request.new)
        self._connection.execute(update.values(**values))
        new = rows[request.new]._replace(**values)
        return ReplacedWith(new, waiting, outcome, replaced, forgotten)

    def set_labels(
        self,
        board_ids: Sequence[str],
        changes: Mapping[str, str],
        audit_row: AuditRow | None = None,
    ) -> dict[str, dict[str, str]]:
        """Change labels of boards, whatever other servers changed meanwhile.

        Args:
            board_ids: the boards.
            changes: new values of labels; an empty one removes the label.
            audit_row: for the audit log.

        Returns:
            All labels of each board, by its id.
        """
        board = tables.boards.c
        query = sa.select(board.id, board.labels).where(board.id.in_(board_ids)).order_by(board.id)
        statement = sa.update(tables.boards).where(board.id == sa.bindparam("board"))
        statement = statement.values(labels=sa.bindparam("new", type_=sa.JSON))
        with self._durable_transaction(audit_row):
            found = self._connection.execute(query.with_for_update()).all()
            labels = {row.id: _merge_labels(row.labels, changes) for row in found}
            rows = [{"board": board_id, "new": new} for board_id, new in labels.items()]
            if rows:
                self._connection.execute(statement, rows)
        return labels

    def update_boards(
        self, changes: Mapping[str, Mapping[str, Any]], audit_row: AuditRow | None = None
    ) -> dict[str, dict[str, str]]:
        """Change values of many boards: all of them or, if one cannot be written, none.

        Args:
            changes: board id -> new ``name``, ``serial``, ``note``, and ``labels``, of which an
                empty value removes a label; boards may exchange their names.
            audit_row: for the audit log.

        Returns:
            All labels of each board whose labels were changed, by its id.
        """
        board, new_labels = tables.boards.c, {}
        with self._durable_transaction(audit_row):
            for board_id in (each for each, values in changes.items() if "name" in values):
                # No board has such a name; so each name is free when its new board gets it.
                unused = sa.update(tables.boards).where(board.id == board_id)
                self._connection.execute(unused.values(name=f"~{board_id}"))
            for board_id, given in changes.items():
                values = dict(given)
                if "labels" in values:
                    query = sa.select(board.labels).where(board.id == board_id)
                    old = self._connection.execute(query.with_for_update()).scalar() or {}
                    values["labels"] = new_labels[board_id] = _merge_labels(old, values["labels"])
                statement = sa.update(tables.boards).where(board.id == board_id)
                self._connection.execute(statement.values(**values))
        return new_labels

    def reserve_boards(
        self,
        board_ids: Sequence[str],
        caller: str,
        until: float,
        audit_row: AuditRow | None = None,
    ) -> None:
        """Reserve boards for a caller, all of them or none, whatever other servers do meanwhile.

        Args:
            board_ids: the boards.
            caller: the name of the caller's token.
            until: seconds since 1970.
            audit_row: for the audit log.

        Raises:
            ServerError: somebody else has reserved one of them meanwhile, at another server.
        """
        board = tables.boards.c
        is_free = board.reserved_by.is_(None) | (board.reserved_until <= time.time())
        statement = sa.update(tables.boards).where(
            board.id.in_(board_ids), is_free | (board.reserved_by == caller)
        )
        statement = statement.values(reserved_by=caller, reserved_until=until)
        with self._durable_transaction(audit_row):
            if self._connection.execute(statement).rowcount < len(board_ids):
                self.database.rollback()
                raise ServerError(RESERVED_MEANWHILE)

    def release_boards_of(
        self, board_ids: Sequence[str], caller: str | None, audit_row: AuditRow | None = None
    ) -> None:
        """End the reservations of boards.

        Args:
            board_ids: the boards.
            caller: only those of the token with this name; None for anybody's.
            audit_row: for the audit log.
        """
        board = tables.boards.c
        statement = sa.update(tables.boards).where(board.id.in_(board_ids))
        if caller is not None:
            statement = statement.where(board.reserved_by == caller)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(reserved_by=None, reserved_until=None))

    # Secrets

    def set_secret(self, row: SecretRow, audit_row: AuditRow | None = None) -> None:
        """Store a secret; it replaces one of the same name."""
        statement = self.database.insert(secrets_table).values(row._asdict())
        changed = {name: statement.excluded[name] for name in ("value", "target", "changed")}
        with self._durable_transaction(audit_row):
            self._connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_=changed)
            )

    def remove_secret(self, name: str, audit_row: AuditRow | None = None) -> None:
        """Delete a secret, if there is one of this name."""
        with self._durable_transaction(audit_row):
            self._connection.execute(sa.delete(secrets_table).where(secrets_table.c.name == name))

    # Rollouts

    def add_rollouts(
        self, new: Sequence[NewRollout], place: RolloutPlace, audit_row: AuditRow | None = None
    ) -> list[int]:
        """Add rollouts; return their numbers.

        Raises:
            ServerError: there is no room for their files.
        """
        with self._durable_transaction(audit_row):
            try:
                return [self.rollout_rows.add(each, *place) for each in new]
            except ServerError:
                self.database.rollback()
                raise

    def end_rollout(
        self, number: int, epoch: int, values: Mapping[str, Any], next_one: NextRollout | None
    ) -> bool:
        """End a rollout that this server carries out, and begin the one that follows from it.

        Args:
            number: of the rollout.
            epoch: in which this server carries it out.
            values: of its columns.
            next_one: what follows, in the same transaction; None: nothing.

        Returns:
            Whether this server still carried it out.
        """
        with self._durable_transaction():
            if not self.rollout_rows.change(number, epoch, **values):
                return False
            if next_one is not None:
                self.rollout_rows.add(next_one.new, *next_one.place)
        return True

    def add_joined_boards(self, new: NewRollout, place: RolloutPlace, proven: int) -> bool:
        """Begin a rollout for boards that have joined a group, unless the group has changed.

        Args:
            new: the rollout.
            place: where it is carried out and stored.
            proven: the number of the group's newest rollout that is done.

        Returns:
            Whether it begins.
        """
        with self._durable_transaction():
            may_join = self.rollout_rows.may_join(new, proven)
            if may_join:
                self.rollout_rows.add(new, *place)
        return may_join

    def set_rollout_states(
        self,
        numbers: Sequence[int],
        change: RolloutChange,
        audit_row: AuditRow | None = None,
    ) -> list[int]:
        """Change the states of rollouts; return those that were in a state that permits it."""
        with self._durable_transaction(audit_row):
            return [number for number in numbers if self.rollout_rows.set_state(number, change)]

    def mark_board_seen(self, board_id: str, facts: dict[str, Any]) -> None:
        """Record that a board is connected now, and its facts.

        ``flush`` or the next ``insert_jobs`` writes it: when very many boards connect at the same
        time, a commit for each would take a quarter of the server's time.
        """
        self._pending_seen_boards[board_id] = (json.dumps(facts), time.time(), board_id)

    # Tokens

    def add_token(
        self, token: TokenRow, audit_row: AuditRow | None = None, replaced: str = ""
    ) -> None:
        """Insert a token.

        Args:
            token: its row.
            audit_row: for the audit log.
            replaced: the hash of an expired token of the same name, which is revoked by that.

        Raises:
            ServerError: another valid token has its name, or it cannot be written.
        """
        revoke = sa.update(tables.tokens).where(tables.tokens.c.hash == replaced)
        with self._durable_transaction(audit_row):
            if replaced:
                self._connection.execute(revoke.values(revoked=token.created))
            self._connection.execute(sa.insert(tables.tokens), token._asdict())

    def revoke_token(self, token_hash: str, at: float, audit_row: AuditRow | None = None) -> None:
        """Mark a token as revoked; its row stays."""
        statement = sa.update(tables.tokens).where(tables.tokens.c.hash == token_hash)
        with self._durable_transaction(audit_row):
            self._connection.execute(statement.values(revoked=at))

    def tokens(self) -> list[TokenRow]:
        """Return all tokens, oldest first."""
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
            self._write_all([], [row])

    def audit_rows(self, count: int) -> list[AuditRow]:
        """Return the newest ``count`` rows of the audit log, oldest first."""
        query = sa.select(*list(tables.audit.c)[1:]).order_by(tables.audit.c.id.desc()).limit(count)
        return [AuditRow(*row) for row in self._fetch_rows(query)][::-1]

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
        count = sum(len(cell.board_ids) for cell in cells)
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

    def _write_pending_first(self) -> None:
        """Write pending results before another job starts.

        Raises:
            ServerError: they cannot be written.
        """
        if self._pending_ended_jobs:
            self._write_all([])

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
                claimed = [self.database.fetch_later(*claim) for claim in claims]
                if jobs or claims:
                    self._require_membership()
                # PostgreSQL gets all of it as one statement: each costs a cell 0.1 ms.
                self.database.commit_driver()
                rows = [list(fetch()) for fetch in claimed]
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

    def job(self, number: int) -> JobRow | None:
        """Return a job's row; None if there is none."""
        self.flush()
        rows = self._fetch_rows(sa.select(*JOB_COLUMNS).where(tables.jobs.c.id == number))
        return JobRow(*rows[0]) if rows else None

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


def _is_name_taken(error: BaseException) -> bool:
    """Return whether a row was not written because there is another one of its name."""
    return type(error).__name__ in _DATA_ERRORS and "unique" in str(error).lower()


def _merge_labels(labels: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Return changed labels; an empty value removes a label."""
    return {key: value for key, value in {**labels, **changes}.items() if value}


def _is_job_of(row: JobRow, board_id: str) -> bool:
    """Return whether a job in the store is one of this board."""
    return row.board == board_id


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
