"""What ran where: where jobs come from, and the texts of cells, for as long as they are kept. SQL.

Each text is one row, whatever number of jobs ran it; jobs refer to it by its SHA-256. Everything
is written after the jobs were sent, by the range of numbers that the jobs of one cell have.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from . import tables
from .databases import Sqlite
from .statements import RowsStatement

if TYPE_CHECKING:
    from .postgres_database import Postgres

_jobs, _texts = tables.jobs, tables.texts
_PER_STATEMENT: Final = 500  # SQLite accepts 32,766 parameters
#: A text that is run again gets a new time at most this often.
_RENEW_SECONDS: Final[Any] = sa.literal_column("3600")


class JobTextRow(NamedTuple):
    """Where the jobs of one cell come from, and what they run.

    Attributes:
        first: the number of the first of the jobs.
        last: that of the last one.
        token: the hash of the caller's token.
        about: JSON: ``kind``, ``notebook`` and the like, see ``jobs.job_texts``.
        text: what they run; None if that is not known.
        is_kept: whether the text is stored, and not only its SHA-256.
    """

    first: int
    last: int
    token: str
    about: str
    text: str | None
    is_kept: bool


class HistoryRow(NamedTuple):
    """One job in a board's history."""

    id: int
    board: str
    caller: str
    created: float
    ended: float | None
    status: str | None
    error: str | None
    text: str | None  # the SHA-256
    notebook: str | None  # JSON, as ``JobTextRow.about``
    token: str | None


class HistoryPage(NamedTuple):
    """Some jobs, the newest first.

    Attributes:
        rows: those of the boards.
        reached: the lowest number that was examined; None if there are no more jobs.
        newest: when the newest job that was examined was submitted, in seconds since 1970.
    """

    rows: list[HistoryRow]
    reached: int | None
    newest: float


class Forgotten(NamedTuple):
    """One batch of jobs whose texts are forgotten.

    Attributes:
        jobs: the numbers of the jobs of the batch that had something to forget.
        texts: the SHA-256s of their texts.
        reached: the highest number that was examined; None if there are no more jobs.
    """

    jobs: set[int]
    texts: set[str]
    reached: int | None


class TextsLeft(NamedTuple):
    """What a batch of texts has left.

    Attributes:
        reached: the last SHA-256 that was examined; None if there are no more.
        deleted: how many were deleted.
        chars: day (since 1970) in which a text was last run -> characters of such texts.
    """

    reached: str | None
    deleted: int
    chars: Counter[int]


#: Returns whether what a job ran must be forgotten.
IsForgotten = Callable[[HistoryRow], bool]
_COLUMNS: Final = [_jobs.c[name] for name in HistoryRow._fields]


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text, as jobs refer to it."""
    return hashlib.sha256(text.encode()).hexdigest()


class TextRows:
    """The table of texts, and the columns of jobs that say where they come from.

    Args:
        database: the store's.
        rollback_on_error: a context that rolls back if a write inside fails.
    """

    def __init__(
        self,
        database: Sqlite | Postgres,
        rollback_on_error: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._database = database
        self._rollback_on_error = rollback_on_error
        types = {name: _jobs.c[name].type for name in ("text", "notebook", "token")}
        # Compiled once: there is one for each cell.
        self._update_jobs = database.prepare_rows(
            {**types, "first": _jobs.c.id.type, "last": _jobs.c.id.type}, _update_range
        )
        names = ("sha256", "text", "created")
        insert = database.insert(_texts).values({name: sa.bindparam(name) for name in names})
        later = insert.excluded.created > _texts.c.created + _RENEW_SECONDS
        renewed = insert.on_conflict_do_update(
            index_elements=["sha256"], set_={"created": insert.excluded.created}, where=later
        )
        self._insert_text = RowsStatement(database.compile(renewed))

    @property
    def _connection(self) -> sa.Connection:
        return self._database.connection

    def add(self, rows: Sequence[JobTextRow], now: float) -> None:
        """Write where jobs come from, and their texts, in one transaction.

        Args:
            rows: of jobs that are in the store.
            now: seconds since 1970.

        Raises:
            ServerError: it cannot be written.
        """
        digests = [None if row.text is None else text_digest(row.text) for row in rows]
        kept = {
            digest: row.text
            for digest, row in zip(digests, rows, strict=True)
            if digest is not None and row.is_kept
        }
        values = [
            (digest, row.about, row.token, row.first, row.last)
            for digest, row in zip(digests, rows, strict=True)
        ]
        with self._rollback_on_error(), self._database.pipeline():
            self._database.execute_rows(self._update_jobs, values)
            for digest in sorted(kept):  # in one order, so that servers do not block each other
                self._database.execute_rows(self._insert_text, [(digest, kept[digest], now)])
            self._database.commit_driver()

    # Reading

    def history(
        self, board_ids: Collection[str] | None, before: int, max_examined: int
    ) -> HistoryPage:
        """Return jobs of boards among the next older jobs of all boards.

        Args:
            board_ids: the boards' ids; None for all jobs, also of boards that were removed.
            before: only jobs with lower numbers.
            max_examined: how many jobs are examined; there is no index of boards, since each cell
                would pay for it.
        """
        page = sa.select(*_COLUMNS).where(_jobs.c.id < before)
        page = page.order_by(_jobs.c.id.desc()).limit(max_examined)
        examined = page.subquery()
        summary = sa.select(
            sa.func.count(), sa.func.min(examined.c.id), sa.func.max(examined.c.created)
        )
        count, lowest, newest = self._connection.execute(summary).one()
        query = sa.select(examined).order_by(examined.c.id.desc())
        if board_ids is not None and len(board_ids) <= _PER_STATEMENT:
            query = query.where(examined.c.board.in_(sorted(board_ids)))
        rows = [HistoryRow(*row) for row in self._connection.execute(query)]
        if board_ids is not None:
            rows = [row for row in rows if row.board in board_ids]
        return HistoryPage(rows, lowest if count == max_examined else None, newest or 0.0)

    def texts(self, digests: Collection[str]) -> dict[str, str]:
        """Return those of these texts that are kept, by their SHA-256."""
        found: dict[str, str] = {}
        for part in _parts(digests):
            query = sa.select(_texts.c.sha256, _texts.c.text).where(_texts.c.sha256.in_(part))
            found.update((row[0], row[1]) for row in self._connection.execute(query))
        return found

    # Deleting

    def expire(self, before: float, after: str, max_rows: int) -> TextsLeft:
        """Delete those of the next texts that were not run any more for long.

        Args:
            before: seconds since 1970.
            after: texts with a SHA-256 up to this one were examined before.
            max_rows: how many are examined.

        Raises:
            ServerError: they cannot be deleted.
        """
        columns = (_texts.c.sha256, _texts.c.created, sa.func.length(_texts.c.text))
        query = sa.select(*columns).where(_texts.c.sha256 > after)
        query = query.order_by(_texts.c.sha256).limit(max_rows)
        chars: Counter[int] = Counter()
        old = []
        with self._rollback_on_error(), self._database.erasing():
            rows = self._connection.execute(query).all()
            for digest, created, size in rows:
                if created < before:
                    old.append(digest)
                else:
                    chars[int(created // 86400)] += size
            for part in _parts(old):
                is_old = (_texts.c.sha256.in_(part), _texts.c.created < before)
                self._connection.execute(sa.delete(_texts).where(*is_old))
            self._database.commit()
        reached = rows[-1][0] if len(rows) == max_rows else None
        return TextsLeft(reached, len(old), chars)

    def forget(self, is_forgotten: IsForgotten, after: int, max_rows: int) -> Forgotten:
        """Forget what the next jobs ran and where they come from; the texts themselves stay.

        Args:
            is_forgotten: returns whether a job is one of them.
            after: jobs with numbers up to this one were examined before.
            max_rows: how many are examined.

        Raises:
            ServerError: it cannot be written.
        """
        query = sa.select(*_COLUMNS).where(_jobs.c.id > after)
        query = query.order_by(_jobs.c.id).limit(max_rows)
        nothing = {"text": None, "notebook": None}
        with self._rollback_on_error(), self._database.erasing():
            rows = [HistoryRow(*row) for row in self._connection.execute(query)]
            forgotten = [
                row for row in rows if (row.text or row.notebook is not None) and is_forgotten(row)
            ]
            for part in _parts([row.id for row in forgotten]):
                self._connection.execute(
                    sa.update(_jobs).where(_jobs.c.id.in_(part)).values(nothing)
                )
            self._database.commit()
        texts = {row.text for row in forgotten if row.text}
        reached = rows[-1].id if len(rows) == max_rows else None
        return Forgotten({row.id for row in forgotten}, texts, reached)

    def used_texts(
        self, digests: Collection[str], after: int, max_rows: int
    ) -> tuple[set[str], int | None]:
        """Return those of these texts that the next jobs refer to.

        Args:
            digests: their SHA-256s.
            after: jobs with numbers up to this one were examined before.
            max_rows: how many are examined.

        Returns:
            Their SHA-256s, and the highest number that was examined; None if no more jobs are left.
        """
        query = sa.select(_jobs.c.id, _jobs.c.text).where(_jobs.c.id > after)
        rows = self._connection.execute(query.order_by(_jobs.c.id).limit(max_rows)).all()
        used = {row[1] for row in rows if row[1] in digests}
        return used, rows[-1][0] if len(rows) == max_rows else None

    def delete_texts(self, digests: Collection[str], after: int) -> int:
        """Delete those of these texts to which no job refers; return how many.

        Args:
            digests: their SHA-256s.
            after: jobs with numbers up to this one do not refer to them.

        Raises:
            ServerError: they cannot be deleted.
        """
        count = 0
        with self._rollback_on_error(), self._database.erasing():
            for part in _parts(digests):
                used = sa.exists().where(_jobs.c.text == _texts.c.sha256, _jobs.c.id > after)
                statement = sa.delete(_texts).where(_texts.c.sha256.in_(part), ~used)
                count += self._connection.execute(statement).rowcount
            self._database.commit()
        return count


def _update_range(values: Mapping[str, Any]) -> Any:
    """Return the statement that writes where jobs come from."""
    is_of_cell = _jobs.c.id.between(values["first"], values["last"])
    changed = {name: values[name] for name in ("text", "notebook", "token")}
    return sa.update(_jobs).where(is_of_cell).values(changed)


def _parts(values: Collection[Any]) -> list[list[Any]]:
    """Return values in lists that one statement accepts."""
    ordered = sorted(values)
    return [ordered[at : at + _PER_STATEMENT] for at in range(0, len(ordered), _PER_STATEMENT)]


def read_about(row: HistoryRow) -> dict[str, Any]:
    """Return what is known of where a job comes from; {} of one that an older version wrote."""
    if row.notebook is None:
        return {}
    about: dict[str, Any] = json.loads(row.notebook)
    return about
