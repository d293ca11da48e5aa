"""Keep the values that boards emit in files, with DuckDB: one for each day. SQL.

The day in which values come has a DuckDB file with tables of raw values and of minutes. When it is
over, both become Parquet files, sorted by board, name and time, which other programs can read; what
is too old is deleted with its file. A file belongs to the day in which values *came*: what a board
kept while it had no link is older, and lies in the file of the day in which it connected again.

    2026-11-30.1.duckdb                 the day that is not over
    raw-2026-11-29.1-000.parquet        board_id, board, name, time, value
    minutes-2026-11-29.1-000.parquet    … time, count, sum, min, max, last, last_time
    erase.json                          ids of boards whose values are still to be deleted

The number after the date differs if a day begins again, because the clock was set. Three
connections use the files: one thread writes, another one reads, and a third one does what takes
seconds, such as to write Parquet files, so that values are written meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudmanager.config import sync_folder
from cloudmanager.protocol.sample_columns import SampleColumns, make_array, pack_stream

from .sample_query import (
    AGGREGATES,
    DAY,
    MAX_PAGE_VALUES,
    MINUTE,
    TOO_LONG,
    HistoryError,
    SampleBatch,
    SamplePage,
    SampleQuery,
    SampleRetention,
    Series,
)

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger("cm_server")

FOLDER: Final = "history"  # beside the server's database
LOCK: Final = "lock"  # held while a file changes; a backup holds it while it copies
ERASE: Final = "erase.json"
DAMAGED: Final = ".damaged"
MEMORY_LIMIT: Final = "256MB"
ROLL_UP_SECONDS: Final = 60.0  # until values are in the minutes, too
#: Values that are sorted and written to one Parquet file at a time: about 3 s of one core.
PART_VALUES: Final = 4_000_000
#: For how long the writing thread waits for the one that writes Parquet files.
WAIT_SECONDS: Final = 0.1
_OPEN_NAME: Final = re.compile(r"(\d{4}-\d\d-\d\d)\.(\d+)\.duckdb")
_CLOSED_NAME: Final = re.compile(r"(raw|minutes)-((\d{4}-\d\d-\d\d)\.\d+)-\d+\.parquet")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS {0}.series (
    series INTEGER, board_id VARCHAR, board VARCHAR, name VARCHAR);
CREATE TABLE IF NOT EXISTS {0}.raw (batch INTEGER, time BIGINT, series INTEGER, value DOUBLE);
CREATE TABLE IF NOT EXISTS {0}.minutes (
    series INTEGER, time BIGINT, count BIGINT, sum DOUBLE, min DOUBLE, max DOUBLE, last DOUBLE,
    last_time BIGINT);
CREATE TABLE IF NOT EXISTS {0}.state (rolled INTEGER);
"""
#: The minutes of all values that came after the batch ``rolled``.
_ROLL_UP: Final = f"""
INSERT INTO {{0}}.minutes
SELECT series, time - time % {MINUTE}, count(*), sum(value), min(value), max(value),
    arg_max(value, time), max(time)
FROM {{0}}.raw WHERE batch > ? GROUP BY 1, 2
"""
#: Names the values of replaced boards as those of the boards that have taken their places.
_JOIN_SUCCESSIONS: Final = """
LEFT JOIN (SELECT unnest(?::VARCHAR[]) AS board_id, unnest(?::VARCHAR[]) AS current_id,
    unnest(?::BIGINT[]) AS since) successions USING (board_id)
WHERE since IS NULL OR time >= since
"""
_RAW_COLUMNS: Final = "1 AS count, value AS sum, value AS min, value AS max, value AS last"
_MINUTE_COLUMNS: Final = "count, sum, min, max, last"
_TO_TIME: Final = "make_timestamp({})::TIMESTAMPTZ"


class _OpenDay:
    """The file of a day that has not become Parquet.

    Args:
        stem: date and number.
    """

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.alias = "day_" + re.sub(r"\W", "_", stem)
        self.day = _day_of(stem)
        self.series: dict[tuple[str, str], int] = {}  # board id and name -> number in the file
        self.next_series = 0
        self.batch = 0  # number of the last one
        self.rolled = 0  # and of the last one that is in the minutes
        self.rolled_at = time.monotonic()
        self.indexes: tuple[object, array[int]] = (None, array("i"))  # of a batch's series


class _ClosedFile(NamedTuple):
    """A Parquet file."""

    path: Path
    kind: str
    stem: str
    first: int
    last: int

    @property
    def day(self) -> int:
        """The day in which its values came."""
        return _day_of(self.stem)


class _Part(NamedTuple):
    """The series whose values become one Parquet file of each kind."""

    number: int
    first: tuple[str, str]
    last: tuple[str, str]


class _Rewritten(NamedTuple):
    """A Parquet file that was written again, without some boards.

    Attributes:
        ids: the boards'.
        file: the one whose place it takes; None: no file has any of them.
        draft: the new one.
    """

    ids: Sequence[str]
    file: _ClosedFile | None
    draft: Path


class SampleFiles:
    """Files in a folder of the server; opened at the first use.

    Args:
        folder: of the files; made if it does not exist.
        retention: how much is kept.

    Raises:
        HistoryError: DuckDB is not installed (at the first use).
    """

    def __init__(self, folder: Path, retention: SampleRetention) -> None:
        self._folder = folder
        self._retention = retention
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._reader: duckdb.DuckDBPyConnection | None = None
        #: Held while files appear or disappear, and while one page is read.
        self._files_lock = threading.Lock()
        self._open_lock = threading.Lock()
        self._open_days: dict[str, _OpenDay] = {}  # by stem
        self._closed: list[_ClosedFile] = []
        #: What is left of days that are being closed; None: they are not divided yet.
        self._parts: dict[str, list[_Part] | None] = {}
        self._rewritten: _Rewritten | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._working: Future[None] | None = None
        self._worker_connection: duckdb.DuckDBPyConnection | None = None
        self._notes: list[str] = []
        self._full = ""

    # Opening

    def _connect(self) -> duckdb.DuckDBPyConnection:
        """Return the writing connection; open the files at the first call."""
        with self._open_lock:
            if self._connection is None:
                self._connection = self._open()
            return self._connection

    def _open(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for path in self._folder.glob("*.part"):
                path.unlink()
            shutil.rmtree(self._folder / "tmp", ignore_errors=True)
        except OSError as error:
            raise HistoryError(f"{self._folder} cannot be used: {error.strerror}") from error
        connection = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(self._folder / "tmp"),
                # DuckDB must not fetch anything, nor touch other files.
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
            },
        )
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET allowed_directories = [{_quote(f'{self._folder}/')}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        self._open_days.clear()
        self._parts.clear()
        for path in sorted(self._folder.iterdir()):
            if found := _OPEN_NAME.fullmatch(path.name):
                self._attach(connection, f"{found[1]}.{found[2]}")
        self._find_closed(connection)
        self._reader = connection.cursor()
        self._worker_connection = connection.cursor()
        return connection

    def _find_closed(self, connection: duckdb.DuckDBPyConnection) -> None:
        """List the Parquet files; those of a day that was not closed completely are removed."""
        found: list[tuple[Path, str, str]] = []
        for path in sorted(self._folder.iterdir()):
            if match := _CLOSED_NAME.fullmatch(path.name):
                if match[2] in self._open_days:
                    path.unlink()
                else:
                    found.append((path, match[1], match[2]))
        self._closed = []
        for path, kind, stem in found:
            if (file := self._read_times(connection, path, kind, stem)) is not None:
                self._closed.append(file)

    def _read_times(
        self, connection: duckdb.DuckDBPyConnection, path: Path, kind: str, stem: str
    ) -> _ClosedFile | None:
        """Return a Parquet file with its times; set it aside if it cannot be read."""
        import duckdb

        query = (
            "SELECT epoch_us(min(stats_min_value::TIMESTAMPTZ)), "
            "epoch_us(max(stats_max_value::TIMESTAMPTZ)) "
            "FROM parquet_metadata(?) WHERE path_in_schema = 'time'"
        )
        try:
            row = connection.execute(query, [str(path)]).fetchone()
        except duckdb.Error as error:
            self._set_aside(path, error)
            return None
        first, last = row or (None, None)
        return _ClosedFile(path, kind, stem, first or 0, last or 0)

    def _attach(self, connection: duckdb.DuckDBPyConnection, stem: str) -> _OpenDay:
        """Open the file of a day; set it aside if it is damaged, and begin another one."""
        import duckdb

        path = self._folder / f"{stem}.duckdb"
        journal = self._folder / f"{stem}.duckdb.wal"
        try:
            day = self._try_attach(connection, stem)
        except duckdb.Error as error:
            is_locked = re.search(r"\block\b", str(error)) is not None
            if is_locked or not os.access(path, os.R_OK | os.W_OK):
                raise HistoryError(f"{path} cannot be opened: {_first_line(error)}") from error
            if journal.exists():  # without it, only the last values are lost
                self._set_aside(journal, error)
                with contextlib.suppress(duckdb.Error):
                    return self._try_attach(connection, stem)
            self._set_aside(path, error)
            day = self._try_attach(connection, stem)
        return day

    def _try_attach(self, connection: duckdb.DuckDBPyConnection, stem: str) -> _OpenDay:
        import duckdb

        day = _OpenDay(stem)
        path = self._folder / f"{stem}.duckdb"
        connection.execute(f"ATTACH {_quote(str(path))} AS {day.alias}")
        try:
            connection.execute(_TABLES.format(day.alias))
            rows = connection.execute(f"SELECT board_id, name, series FROM {day.alias}.series")
            day.series = {(board_id, name): series for board_id, name, series in rows.fetchall()}
            day.next_series = max(day.series.values(), default=-1) + 1
            (day.batch,) = _one(connection, f"SELECT max(batch) FROM {day.alias}.raw")
            (day.rolled,) = _one(connection, f"SELECT max(rolled) FROM {day.alias}.state")
        except duckdb.Error:
            with contextlib.suppress(duckdb.Error):
                connection.execute(f"DETACH {day.alias}")
            raise
        self._open_days[stem] = day
        return day

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Rename a file that cannot be read, and say so."""
        kept = path.with_name(f"{path.name}{DAMAGED}")
        number = 1
        while kept.exists():
            number += 1
            kept = path.with_name(f"{path.name}{DAMAGED}-{number}")
        try:
            path.replace(kept)
        except OSError as failure:
            raise HistoryError(f"{path} is damaged and cannot be renamed") from failure
        text = f"{path.name} in the history of samples was damaged and is now {kept.name}"
        self._notes.append(text)
        log.warning("%s: %s", text, _first_line(error))

    def notes(self) -> Sequence[str]:
        """Return a sentence for each file that was set aside."""
        return tuple(self._notes)

    # Writing

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock that a backup holds while it copies files."""
        with (self._folder / LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Begin a transaction; commit it, or roll it back and raise HistoryError."""
        import duckdb

        connection = self._connect()
        try:
            with self._exclusive():
                connection.begin()
                yield connection
                connection.commit()
        except (duckdb.Error, OSError) as error:
            try:
                connection.rollback()
            except duckdb.Error:
                self._reset()
            raise HistoryError(_first_line(error)) from error

    def _reset(self) -> None:
        """Close everything after an error from which DuckDB does not recover."""
        import duckdb

        self._stop_work()
        with self._files_lock, self._open_lock, contextlib.suppress(duckdb.Error):
            if self._reader is not None:
                self._reader.close()
            self._reader = None
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def append(self, batch: SampleBatch) -> None:
        """Keep values; they are on the disk when this returns.

        Raises:
            HistoryError: they are not kept.
        """
        if self._full:
            raise HistoryError(self._full)
        self._check_free_space()
        self._connect()
        day = self._day_for(batch.day)
        new = self._number_series(day, batch)
        before = day.batch, day.rolled
        try:
            with self._transaction() as connection:
                self._insert(connection, day, batch, new)
                day.batch += 1
                if time.monotonic() - day.rolled_at > ROLL_UP_SECONDS:
                    self._roll_up(connection, day)
        except HistoryError:
            day.batch, day.rolled = before
            day.indexes = (None, array("i"))
            for series in new:
                del day.series[series.board_id, series.name]
            raise

    def _check_free_space(self) -> None:
        place = self._folder if self._folder.exists() else self._folder.parent
        if shutil.disk_usage(place).free < self._retention.free_bytes:
            megabytes = self._retention.free_bytes // 1_000_000
            raise HistoryError(f"less than {megabytes:,} MB of the disk are free")

    def _day_for(self, number: int) -> _OpenDay:
        """Return the newest open file of a day; begin one if there is none."""
        days = [day for day in self._open_days.values() if day.day == number]
        days = [day for day in days if day.stem not in self._parts]
        if days:
            return days[-1]
        date = _date_text(number)
        stems = [*self._open_days, *(file.stem for file in self._closed)]
        used = [int(stem.rpartition(".")[2]) for stem in stems if stem.startswith(f"{date}.")]
        with self._files_lock:
            return self._attach(self._connect(), f"{date}.{max(used, default=0) + 1}")

    def _number_series(self, day: _OpenDay, batch: SampleBatch) -> list[Series]:
        """Give the series of a batch their numbers in the day's file; return the new ones."""
        owner, indexes = day.indexes
        if owner is not batch.series:
            indexes = array("i")
            day.indexes = (batch.series, indexes)
        new: list[Series] = []
        for index in range(len(indexes), len(batch.series)):
            series = batch.series[index]
            key = (series.board_id, series.name)
            if key not in day.series:
                day.series[key] = day.next_series
                day.next_series += 1
                new.append(series)
            indexes.append(day.series[key])
        return new

    def _insert(
        self,
        connection: duckdb.DuckDBPyConnection,
        day: _OpenDay,
        batch: SampleBatch,
        new: Sequence[Series],
    ) -> None:
        import nanoarrow

        if new:  # as arrays: each single INSERT takes half a millisecond
            connection.register("incoming", nanoarrow.ArrayStream(_series_array(day, new)))
            try:
                connection.execute(f"INSERT INTO {day.alias}.series SELECT * FROM incoming")
            finally:
                connection.unregister("incoming")
        numbers = day.indexes[1]
        indexes = array("i", [numbers[index] for index in batch.indexes])
        columns = make_array(SampleColumns(batch.times, indexes, batch.values))
        connection.register("incoming", nanoarrow.ArrayStream(columns))
        try:
            insert = f"INSERT INTO {day.alias}.raw SELECT ?, time, series, value FROM incoming"
            connection.execute(insert, [day.batch + 1])
        finally:
            connection.unregister("incoming")

    def _roll_up(self, connection: duckdb.DuckDBPyConnection, day: _OpenDay) -> None:
        connection.execute(_ROLL_UP.format(day.alias), [day.rolled])
        connection.execute(f"DELETE FROM {day.alias}.state")
        connection.execute(f"INSERT INTO {day.alias}.state VALUES (?)", [day.batch])
        day.rolled, day.rolled_at = day.batch, time.monotonic()

    # Closing days, deleting

    def tidy(self, now: int, *, may_delete: bool) -> bool:
        """Do a part of what is due; return whether there is more.

        Raises:
            HistoryError: it was not possible.
        """
        import duckdb

        if self._connection is None and not any(self._folder.glob("*")):
            return False
        connection = self._connect()
        today = now // DAY
        try:
            if self._is_working():
                return True
            if self._erase_step():
                return True
            for day in list(self._open_days.values()):
                if day.day != today and (day.day < today or may_delete):
                    return self._close_step(connection, day)
            return self._delete_old(today) if may_delete else False
        except (duckdb.Error, OSError) as error:
            raise HistoryError(_first_line(error)) from error

    def _start_work(self, use: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Let another thread do something that takes seconds; ``tidy`` does nothing meanwhile."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "sample-days")
        connection = self._worker_connection
        assert connection is not None
        self._working = self._worker.submit(use, connection)

    def _is_working(self) -> bool:
        """Return whether the other thread is still busy, after a moment; raise its error."""
        if self._working is None:
            return False
        wait([self._working], WAIT_SECONDS)
        if not self._working.done():
            return True
        done, self._working = self._working, None
        done.result()
        return False

    def _stop_work(self) -> None:
        """End what the other thread does; it is done again later."""
        worker, working, connection = self._worker, self._working, self._worker_connection
        self._worker = self._working = self._worker_connection = None
        if worker is not None:
            while working is not None and connection is not None and not working.done():
                connection.interrupt()  # more than once: between two statements it does nothing
                wait([working], WAIT_SECONDS)
            worker.shutdown()
        if connection is not None:
            connection.close()

    def _close_step(self, connection: duckdb.DuckDBPyConnection, day: _OpenDay) -> bool:
        """Write the next Parquet files of a day that is over; at the end, replace its file."""
        parts = self._parts.get(day.stem)
        if parts is None:
            with self._transaction():
                self._roll_up(connection, day)
            self._parts[day.stem] = None  # nothing is added to the day any more
            self._start_work(lambda worker: self._divide(worker, day))
        elif parts:
            self._start_work(lambda worker: self._write_part(worker, day, parts))
        elif self._files_lock.acquire(blocking=False):  # else somebody reads: later
            try:
                with self._exclusive():
                    self._replace_day(connection, day)
            finally:
                self._files_lock.release()
        return True

    def _divide(self, connection: duckdb.DuckDBPyConnection, day: _OpenDay) -> None:
        """Divide the series of a day into parts that fit into the memory."""
        query = (
            f"SELECT s.board, s.name, count(*) FROM {day.alias}.raw JOIN {day.alias}.series s "
            "USING (series) GROUP BY 1, 2 ORDER BY 1, 2"
        )
        parts: list[_Part] = []
        size = 0
        for board, name, count in connection.execute(query).fetchall():
            if not parts or size + count > PART_VALUES:
                parts.append(_Part(len(parts), (board, name), (board, name)))
                size = 0
            size += count
            parts[-1] = parts[-1]._replace(last=(board, name))
        self._parts[day.stem] = parts

    def _write_part(
        self, connection: duckdb.DuckDBPyConnection, day: _OpenDay, parts: list[_Part]
    ) -> None:
        """Write the first of these parts, and remove it from the list."""
        part = parts[0]
        of_part = "(s.board, s.name) >= (?, ?) AND (s.board, s.name) <= (?, ?)"
        for kind, columns in (
            ("raw", "value"),
            ("minutes", f"{_MINUTE_COLUMNS}, {_TO_TIME.format('last_time')} AS last_time"),
        ):
            path = self._folder / f"{kind}-{day.stem}-{part.number:03}.parquet.part"
            query = (
                f"SELECT s.board_id, s.board, s.name, {_TO_TIME.format('time')} AS time, {columns} "
                f"FROM {day.alias}.{kind} JOIN {day.alias}.series s USING (series) "
                f"WHERE {of_part} ORDER BY s.board, s.name, time"
            )
            _copy(connection, query, [*part.first, *part.last], path)
        del parts[0]

    def _replace_day(self, connection: duckdb.DuckDBPyConnection, day: _OpenDay) -> None:
        """Let the Parquet files take the place of a day's file.

        After a crash in the middle the day's file is still there, and all is done again.
        """
        for draft in sorted(self._folder.glob(f"*-{day.stem}-*.parquet.part")):
            path = draft.with_suffix("")
            draft.replace(path)
            kind = path.name.partition("-")[0]
            if (file := self._read_times(connection, path, kind, day.stem)) is not None:
                self._closed.append(file)
        sync_folder(self._folder)
        connection.execute(f"DETACH {day.alias}")
        del self._open_days[day.stem], self._parts[day.stem]
        for end in ("", ".wal"):
            (self._folder / f"{day.stem}.duckdb{end}").unlink(missing_ok=True)

    def _delete_old(self, today: int) -> bool:
        """Delete the files of one day that is too old, or of the oldest if there is too much."""
        limits = {"raw": self._retention.raw_days, "minutes": self._retention.minute_days}
        old = [file for file in self._closed if today - file.day > limits[file.kind]]
        size = self._size()
        if not old and size > self._retention.max_bytes:
            by_age = sorted(self._closed, key=lambda file: (file.kind == "minutes", file.day))
            old = by_age[:1]
            if not old:
                self._full = f"the values of one day need {size:,} bytes; more are allowed with "
                self._full += "`mbm server-start --sample-disk MB`"
                return False
        else:
            self._full = ""
        if not old or not self._files_lock.acquire(blocking=False):
            return False
        try:
            for file in old:
                self._closed.remove(file)
                file.path.unlink(missing_ok=True)
        finally:
            self._files_lock.release()
        return True

    def _size(self) -> int:
        """Return the bytes of all files."""
        return sum(path.stat().st_size for path in self._folder.iterdir() if path.is_file())

    def erase(self, board_ids: Sequence[str]) -> None:
        """Write down which boards are to be erased; ``tidy`` does it, also after a restart.

        Raises:
            HistoryError: it was not possible.
        """
        if not self._folder.exists():
            return
        try:
            ids = sorted({*self._ids_to_erase(), *board_ids})
            draft = self._folder / f"{ERASE}.part"
            draft.write_text(json.dumps(ids), encoding="utf-8")
            draft.replace(self._folder / ERASE)
            sync_folder(self._folder)
        except OSError as error:
            raise HistoryError(_first_line(error)) from error

    def _ids_to_erase(self) -> list[str]:
        path = self._folder / ERASE
        try:
            return [str(each) for each in json.loads(path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise HistoryError(f"{path} cannot be read") from error

    def _erase_step(self) -> bool:
        """Delete values of boards from one file; return whether there was anything to do."""
        ids = self._ids_to_erase()
        if not ids:
            return False
        for day in self._open_days.values():
            mine = [number for (board_id, _), number in day.series.items() if board_id in ids]
            if mine:
                self._erase_from_open(day, mine)
                return True
        done = self._rewritten
        if done is None or done.ids != ids:
            self._rewritten = None
            self._start_work(lambda worker: self._rewrite_without(worker, ids))
        elif done.file is None:
            self._rewritten = None
            (self._folder / ERASE).unlink()
            return False
        elif self._files_lock.acquire(blocking=False):  # else somebody reads: later
            try:
                with self._exclusive():
                    done.draft.replace(done.file.path)
                    sync_folder(self._folder)
            finally:
                self._files_lock.release()
            self._rewritten = None
        return True

    def _erase_from_open(self, day: _OpenDay, numbers: Sequence[int]) -> None:
        with self._transaction() as connection:
            for table in ("raw", "minutes", "series"):
                connection.execute(
                    f"DELETE FROM {day.alias}.{table} WHERE series IN ({_marks(numbers)})", numbers
                )
        kept = {key: number for key, number in day.series.items() if number not in numbers}
        day.series = kept  # numbers are not used again, also not those of series that are gone
        day.indexes = (None, array("i"))
        self._parts.pop(day.stem, None)  # what is written of the day is written again

    def _rewrite_without(self, connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> None:
        """Write the first Parquet file that has values of some boards again, without them."""
        for file in self._closed:
            query = f"SELECT count(*) FROM read_parquet(?) WHERE board_id IN ({_marks(ids)})"
            (count,) = _one(connection, query, [str(file.path), *ids])
            if not count:
                continue
            draft = file.path.with_name(f"{file.path.name}.part")
            query = (
                f"SELECT * FROM read_parquet({_quote(str(file.path))}) "
                f"WHERE board_id NOT IN ({_marks(ids)}) ORDER BY board, name, time"
            )
            _copy(connection, query, ids, draft)
            self._rewritten = _Rewritten(ids, file, draft)
            return
        self._rewritten = _Rewritten(ids, None, Path())

    # Reading

    def read(self, query: SampleQuery) -> SamplePage:
        """Return the first page of what a query is about.

        Raises:
            HistoryError: it cannot be read.
        """
        import duckdb

        if self._connection is None and not self._folder.exists():
            return _empty_page()
        with self._files_lock:
            self._connect()
            assert self._reader is not None
            try:
                return self._read(self._reader, query)
            except duckdb.InterruptException:
                raise HistoryError(TOO_LONG) from None
            except duckdb.Error as error:
                raise HistoryError(_first_line(error)) from error

    def interrupt(self) -> None:
        """Let a ``read`` in another thread fail."""
        if self._reader is not None:
            self._reader.interrupt()

    def _read(self, reader: duckdb.DuckDBPyConnection, query: SampleQuery) -> SamplePage:
        for span in query.spans():
            if count := self._fill_page(reader, query, span, query.limit + 1):
                return self._cut_page(reader, query, span[1], count)
        return _empty_page()

    def _fill_page(
        self,
        reader: duckdb.DuckDBPyConnection,
        query: SampleQuery,
        span: tuple[int, int],
        limit: int,
    ) -> int:
        """Write the first values of a span into the table ``page``; return how many."""
        selects, values = self._sources(query, span)
        if not selects:
            return 0
        value = "arg_max(last, last_time)" if query.how == "last" else AGGREGATES[query.how]
        time, group = "time", ""
        board, joined = "board_id", ""
        if query.successions:
            board, joined = "coalesce(current_id, board_id)", _JOIN_SUCCESSIONS
            values += [list(column) for column in zip(*query.successions, strict=True)]
        if query.every is None:
            value = "sum / count" if query.how == "mean" else query.how
        else:
            time, group = f"time - time % {query.every}", "GROUP BY 1, 2, 3"
        (count,) = _one(
            reader,
            "CREATE OR REPLACE TEMP TABLE page AS "
            f"SELECT {board} AS board_id, name, {time} AS time, {value} AS value "
            f"FROM ({' UNION ALL '.join(selects)}) {joined} {group} ORDER BY 3, 1, 2 LIMIT {limit}",
            values,
        )
        return int(count)

    def _cut_page(
        self, reader: duckdb.DuckDBPyConnection, query: SampleQuery, end: int, count: int
    ) -> SamplePage:
        """Return what is in the table ``page``, up to a moment at which it is complete."""
        next_time: int | None = end if end < query.until else None
        if count > query.limit:
            first, last = _one(reader, "SELECT min(time), max(time) FROM page")
            step = query.every or 1
            if first == last:  # more values at one moment than a page has
                span = (max(first, query.since), min(first + step, query.until))
                self._fill_page(reader, query, span, MAX_PAGE_VALUES)
                next_time = first + step if first + step < query.until else None
            else:
                reader.execute("DELETE FROM page WHERE time = ?", [last])
                next_time = last
        ids = list(query.boards)
        reader.execute(
            "CREATE OR REPLACE TEMP TABLE page_series AS SELECT board_id, name, "
            "(row_number() OVER (ORDER BY place, name) - 1)::INTEGER AS series "
            "FROM (SELECT DISTINCT board_id, name FROM page) JOIN "
            "(SELECT unnest(?::VARCHAR[]) AS board_id, unnest(range(?)) AS place) USING (board_id)",
            [ids, len(ids)],
        )
        series = reader.execute("SELECT board_id, name FROM page_series ORDER BY series").fetchall()
        values = reader.sql(
            "SELECT time, series, value FROM page JOIN page_series USING (board_id, name) "
            "ORDER BY time, series"
        )
        return SamplePage(series, pack_stream(values), next_time)

    def _sources(self, query: SampleQuery, span: tuple[int, int]) -> tuple[list[str], list[Any]]:
        """Return the SELECTs whose union has the values, and their parameters."""
        sources = _Sources(query, span)
        for day in self._open_days.values():
            if query.uses_minutes:
                sources.add_table(day.alias, "minutes", _MINUTE_COLUMNS, "last_time")
                sources.add_table(
                    day.alias, "raw", _RAW_COLUMNS, "time", f"AND batch > {day.rolled}"
                )
            else:
                sources.add_table(day.alias, "raw", _RAW_COLUMNS, "time")
        kinds = {(file.stem, file.kind) for file in self._closed}
        for kind, columns, last_time in (
            ("raw", _RAW_COLUMNS, "time"),
            ("minutes", _MINUTE_COLUMNS, "last_time"),
        ):
            paths = []
            for file in self._closed:
                prefers_minutes = query.uses_minutes and (file.stem, "minutes") in kinds
                has_raw = (file.stem, "raw") in kinds
                chosen = "minutes" if prefers_minutes or not has_raw else "raw"
                touches = file.first < span[1] and file.last >= span[0]
                if file.kind == kind == chosen and touches:
                    paths.append(str(file.path))
            if paths:
                sources.add_files(paths, columns, last_time)
        return sources.selects, sources.values

    # Ending

    def close(self) -> None:
        """Write what is in memory, and close the files."""
        import duckdb

        if self._connection is None:
            return
        self._stop_work()
        for day in self._open_days.values():
            with contextlib.suppress(HistoryError), self._transaction() as connection:
                self._roll_up(connection, day)
        if self._connection is not None:
            with contextlib.suppress(duckdb.Error), self._exclusive():
                if self._reader is not None:
                    self._reader.close()
                self._connection.close()
        self._connection = self._reader = None


class _Sources:
    """SELECTs with the same columns, one for each table or group of files."""

    def __init__(self, query: SampleQuery, span: tuple[int, int]) -> None:
        self._query = query
        self._span = span
        self.selects: list[str] = []
        self.values: list[Any] = []

    def add_table(
        self, alias: str, table: str, columns: str, last_time: str, condition: str = ""
    ) -> None:
        """Add a table of a day's file."""
        self.selects.append(
            f"SELECT board_id, name, time, {columns}, {last_time} AS last_time "
            f"FROM {alias}.{table} JOIN {alias}.series USING (series) "
            f"WHERE time >= ? AND time < ? {condition} AND {self._conditions()}"
        )
        self.values += [*self._span, *self._condition_values()]

    def add_files(self, paths: Sequence[str], columns: str, last_time: str) -> None:
        """Add Parquet files of one kind."""
        bound = _TO_TIME.format("?")
        self.selects.append(
            f"SELECT board_id, name, epoch_us(time) AS time, {columns}, "
            f"epoch_us({last_time}) AS last_time FROM read_parquet(?) "
            f"WHERE time >= {bound} AND time < {bound} AND {self._conditions()}"
        )
        self.values += [list(paths), *self._span, *self._condition_values()]

    def _conditions(self) -> str:
        text = "board_id IN (SELECT unnest(?::VARCHAR[]))"
        if self._query.names is not None:
            text += " AND name IN (SELECT unnest(?::VARCHAR[]))"
        return text

    def _condition_values(self) -> list[Any]:
        values: list[Any] = [self._query.board_ids]
        if self._query.names is not None:
            values.append(list(self._query.names))
        return values


def is_file_name(name: str) -> bool:
    """Return whether a file of a folder of samples has this name."""
    names = (_OPEN_NAME, _CLOSED_NAME)
    is_day = any(pattern.fullmatch(name.removesuffix(".wal")) for pattern in names)
    return is_day or name == ERASE


def copy_files(folder: Path, target: Path) -> list[str]:
    """Copy the files of samples as they are at one moment; a server may use them meanwhile.

    Args:
        folder: of the samples; it may not exist.
        target: an empty folder, on the same file system.

    Returns:
        The names of the copies.

    Raises:
        OSError: they cannot be copied.
    """
    if not (folder / LOCK).exists():
        return []
    names: list[str] = []
    with (folder / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(folder.iterdir()):
            if not is_file_name(path.name):
                continue
            copy = target / path.name
            try:
                if path.suffix != ".parquet":  # those of the day that is not over change
                    raise OSError
                copy.hardlink_to(path)
            except OSError:  # also where the file system has no hard links
                shutil.copyfile(path, copy)
            names.append(path.name)
    return names


def _series_array(day: _OpenDay, new: Sequence[Series]) -> Any:
    """Return rows of the table ``series`` as an Arrow array of structs."""
    import nanoarrow

    numbers = array("i", [day.series[each.board_id, each.name] for each in new])
    texts = ([each.board_id for each in new], [each.board for each in new])
    columns = (*texts, [each.name for each in new])
    children = [nanoarrow.c_array_from_buffers(nanoarrow.int32(), len(new), [None, numbers])]
    children += [nanoarrow.c_array(column, nanoarrow.string()) for column in columns]
    kinds = (nanoarrow.int32(), *[nanoarrow.string()] * 3)
    names = ("series", "board_id", "board", "name")
    schema = nanoarrow.struct(dict(zip(names, kinds, strict=True)), nullable=False)
    return nanoarrow.c_array_from_buffers(schema, len(new), [None], children=children)


def _empty_page() -> SamplePage:
    empty = SampleColumns(array("q"), array("i"), array("d"))
    return SamplePage((), pack_stream(empty), None)


def _copy(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], path: Path
) -> None:
    """Write the result of a query to a Parquet file, which is on the disk then."""
    connection.execute(
        f"COPY ({query}) TO {_quote(str(path))} (FORMAT parquet, COMPRESSION zstd)", values
    )
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _one(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """Return the only row of a query, with 0 in the place of NULL."""
    row = connection.execute(query, list(values)).fetchone()
    return tuple(0 if value is None else value for value in row or ())


def _quote(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _day_of(stem: str) -> int:
    """Return the day of a file, in days since 1970."""
    date = datetime.strptime(stem.partition(".")[0], "%Y-%m-%d").replace(tzinfo=UTC)
    return (date - _EPOCH).days


def _date_text(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")


def _first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return str(error).partition("\n")[0].strip() or type(error).__name__
