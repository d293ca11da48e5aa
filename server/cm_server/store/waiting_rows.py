"""The store's tables of jobs that wait for their boards, and of what they printed in the end. SQL.

A job has a row in ``waiting`` as long as it waits, and no longer. To take it out and to count it as
sent is one transaction, so it is never sent twice, whenever the server is killed. What it runs is
kept as blobs, which the jobs of one submission share; they are deleted with its last row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa

from .blob_rows import BlobRows, blob_hash
from .installed_packages import METADATA

T = TypeVar("T")

_BigInt = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite's INTEGER has 64 bits

_waiting = sa.Table(
    "waiting",
    METADATA,
    sa.Column("id", _BigInt, primary_key=True),  # the order in which a board's jobs run
    sa.Column("job", _BigInt, nullable=False),
    sa.Column("board", sa.Text, nullable=False),  # its id
    sa.Column("token", sa.Text, nullable=False),  # the hash of the caller's token
    sa.Column("request", sa.Text, nullable=False),  # the SHA-256 of the blob that says what runs
    sa.Column("submission", _BigInt, nullable=False),  # the number of its first job
    sa.Column("size", _BigInt, nullable=False),  # of the submission's blobs, in bytes
    sa.Column("fresh", sa.Boolean, nullable=False),  # whether the board restarts first
    sa.Column("expires", sa.Float, nullable=False),  # seconds since 1970
)
sa.Index("waiting_job", _waiting.c.job, unique=True)
sa.Index("waiting_board", _waiting.c.board, _waiting.c.id)
sa.Index("waiting_token", _waiting.c.token)
sa.Index("waiting_submission", _waiting.c.submission)
sa.Index("waiting_expires", _waiting.c.expires)

_outputs = sa.Table(
    "outputs",
    METADATA,
    sa.Column("job", _BigInt, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),  # seconds since 1970
    sa.Column("size", sa.Integer, nullable=False),  # characters of all texts
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("truncated", sa.Boolean, nullable=False),  # whether it begins later
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)

_JOBS_PER_STATEMENT: Final = 500  # SQLite accepts 32,766 parameters
_BOARD_ROWS: Final = 100  # of one board, that are read at a time
_FIRST_LINE_BYTES: Final = 4096  # of a request, at most
_TRIM_CHARS: Final = 1024 * 1024  # of outputs that are written until their sum is looked at


class WaitingRow(NamedTuple):
    """A job that waits for its board.

    Attributes:
        id: the order in which a board's jobs run.
        job: its number.
        board_id: the board's.
        caller: the name of the caller's token.
        token: the hash of that token.
        created: seconds since 1970.
        expires: when it ends if it has not been sent, in seconds since 1970.
        fresh: whether the board restarts first.
        submission: the number of the first job that was submitted together with it.
        request: the SHA-256 of the blob that says what runs.
        size: of the submission's blobs, in bytes.
    """

    id: int
    job: int
    board_id: str
    caller: str
    token: str
    created: float
    expires: float
    fresh: bool
    submission: int
    request: str
    size: int


class WaitingWork(NamedTuple):
    """What a caller submits to run when its boards are there.

    Attributes:
        token: the hash of the caller's token.
        request: what runs, as the server will read it; its first line says what it is, in JSON.
        contents: SHA-256 -> a function that returns the bytes; called in any thread.
        size: of the request and the contents, in bytes.
        expires: when the jobs end that have not been sent, in seconds since 1970.
        fresh: whether boards restart first.
    """

    token: str
    request: bytes
    contents: Mapping[str, Callable[[], bytes]]
    size: int
    expires: float
    fresh: bool


class WaitingUse(NamedTuple):
    """How much waits already, of one token and in all."""

    own_jobs: int
    own_bytes: int
    all_jobs: int
    all_bytes: int


class TakenJob(NamedTuple):
    """A job that waits no longer: it counts as sent.

    Attributes:
        row: as it was.
        request: what runs.
        contents: the files that it needs, by SHA-256.
    """

    row: WaitingRow
    request: bytes
    contents: Mapping[str, bytes]


class JobOutput(NamedTuple):
    """What is kept of a job for callers who ask later.

    Attributes:
        output: the end of what it printed.
        truncated: whether there was more before.
        value: the end of the text of its value.
        error: its traceback, or why it ended.
    """

    output: str
    truncated: bool
    value: str
    error: str


def _user(submission: int) -> str:
    """Return the name of a submission as a user of blobs."""
    return f"submission {submission}"


class WaitingRows:
    """The table of jobs that wait, and that of their outputs.

    Unless stated otherwise, methods belong to a transaction of the calling code, which commits it.

    Args:
        connection: the store's connection.
        blob_rows: where what runs is kept.
        jobs: the table of jobs.
        insert: SQLAlchemy's ``insert`` of the database, with ON CONFLICT.
    """

    def __init__(
        self,
        connection: sa.Connection,
        blob_rows: BlobRows,
        jobs: sa.Table,
        insert: Callable[[sa.Table], Any],
    ) -> None:
        self._connection = connection
        self._blob_rows = blob_rows
        self._jobs = jobs
        self._insert = insert
        self._unchecked_chars = _TRIM_CHARS  # of outputs since their sum was looked at
        columns = {
            **{name: _waiting.c[name] for name in WaitingRow._fields if name in _waiting.c},
            "board_id": _waiting.c.board,
            "caller": jobs.c.caller,
            "created": jobs.c.created,
        }
        self._select = sa.select(*[columns[name] for name in WaitingRow._fields]).join_from(
            _waiting, jobs, jobs.c.id == _waiting.c.job
        )

    def _read(self, query: Any) -> list[WaitingRow]:
        return [WaitingRow(*row) for row in self._connection.execute(query).all()]

    # Jobs that begin to wait

    def use(self, token: str) -> WaitingUse:
        """Return how much waits."""
        own = sa.select(_waiting.c.submission, _waiting.c.size).where(_waiting.c.token == token)
        submissions = own.distinct().subquery()
        count = sa.select(sa.func.count()).select_from(_waiting)
        execute = self._connection.execute
        return WaitingUse(
            execute(count.where(_waiting.c.token == token)).scalar_one(),
            int(execute(sa.select(sa.func.sum(submissions.c.size))).scalar() or 0),
            execute(count).scalar_one(),
            self._blob_rows.total_bytes(),
        )

    def add(self, numbers: range, board_ids: Sequence[str], work: WaitingWork) -> None:
        """Insert a row for each job of a submission, and what runs."""
        digest = blob_hash(work.request)
        blobs = {each: read() for each, read in work.contents.items()}
        self._blob_rows.pin(_user(numbers[0]), {**blobs, digest: work.request})
        rows = [
            {
                "job": number,
                "board": board_id,
                "token": work.token,
                "request": digest,
                "submission": numbers[0],
                "size": work.size,
                "fresh": work.fresh,
                "expires": work.expires,
            }
            for number, board_id in zip(numbers, board_ids, strict=True)
        ]
        self._connection.execute(sa.insert(_waiting), rows)

    # Jobs that wait

    def board_ids(self) -> set[str]:
        """Return the ids of the boards for which jobs wait."""
        query = sa.select(_waiting.c.board).distinct()
        return {row[0] for row in self._connection.execute(query).all()}

    def of_board(self, board_id: str) -> list[WaitingRow]:
        """Return the jobs that wait for a board, in their order: the first 100 of them."""
        query = self._select.where(_waiting.c.board == board_id).order_by(_waiting.c.id)
        return self._read(query.limit(_BOARD_ROWS))

    def of_jobs(self, numbers: Sequence[int]) -> list[WaitingRow]:
        """Return those of these jobs that wait."""
        found: list[WaitingRow] = []
        for part in _parts(numbers):
            found += self._read(self._select.where(_waiting.c.job.in_(part)))
        return found

    def page(self, after_id: int, max_rows: int) -> list[WaitingRow]:
        """Return the rows after one with this ``id``, in their order."""
        query = self._select.where(_waiting.c.id > after_id).order_by(_waiting.c.id)
        return self._read(query.limit(max_rows))

    def first_lines(self, requests: Collection[str]) -> dict[str, bytes]:
        """Return the first line of what runs, which says what it is, by the SHA-256 of it."""
        starts: dict[str, bytes] = {}
        for part in _parts(requests):
            starts |= self._blob_rows.starts_of(part, _FIRST_LINE_BYTES)
        return {digest: start.partition(b"\n")[0] for digest, start in starts.items()}

    def expired(self, now: float) -> list[int]:
        """Return the numbers of jobs whose time to wait has ended, a bounded number of them."""
        query = sa.select(_waiting.c.job).where(_waiting.c.expires <= now)
        rows = self._connection.execute(query.limit(_JOBS_PER_STATEMENT)).all()
        return [row[0] for row in rows]

    def next_expiry(self) -> float | None:
        """Return when the next job's time to wait ends; None if none waits."""
        query = sa.select(sa.func.min(_waiting.c.expires))
        return self._connection.execute(query).scalar()

    # Jobs that wait no longer

    def take(self, job: int) -> TakenJob | None:
        """Remove a job's row, and return what it runs; None if it does not wait."""
        self._blob_rows.lock()
        rows = self._read(self._select.where(_waiting.c.job == job))
        if not rows:
            return None
        (row,) = rows
        blobs = self._blob_rows.read_of(_user(row.submission))
        if not self._remove_taken(job):
            return None
        request = blobs.pop(row.request)
        return TakenJob(row, request, blobs)

    def _remove_taken(self, job: int) -> bool:
        """Remove the row of a job, so that nobody takes it again; return whether it waited."""
        return self.remove([job]) == [job]

    def put_back(self, taken: TakenJob) -> None:
        """Let a job wait again that was taken and not sent: it has its old place."""
        self._blob_rows.lock()
        row = taken.row
        blobs = {**taken.contents, row.request: taken.request}
        self._blob_rows.pin(_user(row.submission), blobs)
        values = {name: getattr(row, name) for name in WaitingRow._fields if name in _waiting.c}
        self._connection.execute(sa.insert(_waiting).values(board=row.board_id, **values))

    def remove(self, jobs: Sequence[int]) -> list[int]:
        """Remove the rows of jobs; return the numbers of those that waited.

        What runs is removed with the last job of its submission.
        """
        self._blob_rows.lock()
        removed: list[int] = []
        submissions: set[int] = set()
        for part in _parts(jobs):
            delete = sa.delete(_waiting).where(_waiting.c.job.in_(part))
            rows = self._connection.execute(
                delete.returning(_waiting.c.job, _waiting.c.submission)
            ).all()
            removed += [row[0] for row in rows]
            submissions.update(row[1] for row in rows)
        for part in _parts(sorted(submissions)):
            query = sa.select(_waiting.c.submission).where(_waiting.c.submission.in_(part))
            left = {row[0] for row in self._connection.execute(query.distinct()).all()}
            self._blob_rows.unpin([_user(each) for each in part if each not in left])
        return removed

    def move(self, board_id: str, to_id: str) -> list[int]:
        """Let all jobs that wait for a board wait for another one; return their numbers."""
        jobs = self.jobs_of_board(board_id)
        moved = sa.update(_waiting).where(_waiting.c.board == board_id).values(board=to_id)
        self._connection.execute(moved)
        for part in _parts(jobs):
            rows = sa.update(self._jobs).where(self._jobs.c.id.in_(part))
            self._connection.execute(rows.values(board=to_id))
        return jobs

    def jobs_of_board(self, board_id: str) -> list[int]:
        """Return the numbers of all jobs that wait for a board."""
        query = sa.select(_waiting.c.job).where(_waiting.c.board == board_id)
        return [row[0] for row in self._connection.execute(query).all()]

    def all_jobs(self) -> list[int]:
        """Return the numbers of all jobs that wait."""
        return [row[0] for row in self._connection.execute(sa.select(_waiting.c.job)).all()]

    @staticmethod
    def is_waiting(job: Any) -> Any:
        """Return the SQL condition that a job waits.

        Args:
            job: the SQL expression of its number.
        """
        return sa.exists().where(_waiting.c.job == job)

    @staticmethod
    def waits_for(board_id: Any) -> Any:
        """Return the SQL condition that a job waits for a board.

        Args:
            board_id: the SQL expression of its id.
        """
        return sa.exists().where(_waiting.c.board == board_id)

    # What jobs printed

    def add_output(self, job: int, output: JobOutput, max_chars: int) -> None:
        """Keep what a job printed; it replaces what was kept of it.

        Args:
            job: its number.
            output: what is kept.
            max_chars: that are kept of all jobs; the oldest outputs are deleted.
        """
        values = {name: _storable(value) for name, value in output._asdict().items()}
        size = sum(len(value) for value in values.values() if isinstance(value, str))
        row = self._insert(_outputs).values(job=job, at=time.time(), size=size, **values)
        changed = {name: row.excluded[name] for name in ("at", "size", *values)}
        self._connection.execute(row.on_conflict_do_update(index_elements=["job"], set_=changed))
        self._unchecked_chars += size
        if self._unchecked_chars >= _TRIM_CHARS:
            self._unchecked_chars = 0
            self._trim_outputs(max_chars)

    def _trim_outputs(self, max_chars: int) -> None:
        query = sa.select(_outputs.c.job, _outputs.c.size).order_by(_outputs.c.at.desc())
        total, dropped = 0, []
        for job, size in self._connection.execute(query).all():
            total += size
            if total > max_chars:
                dropped.append(job)
        self.delete_outputs(dropped)

    def output(self, job: int) -> JobOutput | None:
        """Return what is kept of a job; None if nothing is."""
        columns = [_outputs.c[name] for name in JobOutput._fields]
        row = self._connection.execute(sa.select(*columns).where(_outputs.c.job == job)).first()
        return None if row is None else JobOutput(*row)

    def delete_outputs(self, jobs: Sequence[int]) -> None:
        """Delete what is kept of jobs."""
        for part in _parts(jobs):
            self._connection.execute(sa.delete(_outputs).where(_outputs.c.job.in_(part)))


def _parts(values: Collection[T]) -> list[list[T]]:
    """Return numbers, or other values, in lists that one statement accepts."""
    all_values = list(values)
    step = _JOBS_PER_STATEMENT
    return [all_values[start : start + step] for start in range(0, len(all_values), step)]


def _storable(value: Any) -> Any:
    """Return a text as every store accepts it: without lone surrogates and NUL characters."""
    if not isinstance(value, str):
        return value
    clean = value.encode("utf-8", "replace").decode()
    return clean.replace("\0", "\N{REPLACEMENT CHARACTER}")
