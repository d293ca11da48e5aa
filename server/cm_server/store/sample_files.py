"""Keep the values that boards emit in files, with DuckDB: one for each day. SQL.

The day in which values come has a DuckDB file with tables of raw values and of minutes. When it is
over, both become Parquet files, sorted by board, name and time, which other programs can read; what
is too old is deleted with its file. A file belongs to the day in which values *came*: what a board
kept while it had no link is older, and lies in the file of the day in which it connected again.

The names of files are in sample_folder.py, the tables in sample_day_tables.py; sample_pages.py
reads both. Three connections use the files: one thread writes, another one reads, and a third one
does what takes seconds, such as to write Parquet files, so that values are written meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudmanager.config import sync_folder
from cloudmanager.protocol.sample_columns import SampleColumns, make_array

from . import sample_parquet
from .sample_day_tables import (
    ROLL_UP,
    TABLES,
    OpenDay,
    fetch_one,
    first_line,
    marks,
    quote,
    series_array,
)
from .sample_folder import (
    CLOSED_NAME,
    DAMAGED,
    ERASE,
    LOCK,
    OPEN_NAME,
    ClosedFile,
    add_ids_to_erase,
    date_text,
    read_ids_to_erase,
)
from .sample_pages import PageReader, empty_page
from .sample_parquet import DayPart, Rewritten
from .sample_query import (
    DAY,
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

MEMORY_LIMIT: Final = "256MB"
ROLL_UP_SECONDS: Final = 60.0  # until values are in the minutes, too
#: For how long the writing thread waits for the one that writes Parquet files.
WAIT_SECONDS: Final = 0.1


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
        self._open_days: dict[str, OpenDay] = {}  # by stem
        self._closed: list[ClosedFile] = []
        #: What is left of days that are being closed; None: they are not divided yet.
        self._parts: dict[str, list[DayPart] | None] = {}
        self._rewritten: Rewritten | None = None
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
        connection.execute(f"SET allowed_directories = [{quote(f'{self._folder}/')}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        self._open_days.clear()
        self._parts.clear()
        for path in sorted(self._folder.iterdir()):
            if found := OPEN_NAME.fullmatch(path.name):
                self._attach(connection, f"{found[1]}.{found[2]}")
        self._find_closed(connection)
        self._reader = connection.cursor()
        self._worker_connection = connection.cursor()
        return connection

    def _find_closed(self, connection: duckdb.DuckDBPyConnection) -> None:
        """List the Parquet files; those of a day that was not closed completely are removed."""
        found: list[tuple[Path, str, str]] = []
        for path in sorted(self._folder.iterdir()):
            if match := CLOSED_NAME.fullmatch(path.name):
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
    ) -> ClosedFile | None:
        """Return a Parquet file with its times; set it aside if it cannot be read."""
        import duckdb

        try:
            first, last = sample_parquet.read_first_and_last(connection, path)
        except duckdb.Error as error:
            self._set_aside(path, error)
            return None
        return ClosedFile(path, kind, stem, first, last)

    def _attach(self, connection: duckdb.DuckDBPyConnection, stem: str) -> OpenDay:
        """Open the file of a day; set it aside if it is damaged, and begin another one."""
        import duckdb

        path = self._folder / f"{stem}.duckdb"
        journal = self._folder / f"{stem}.duckdb.wal"
        try:
            day = self._try_attach(connection, stem)
        except duckdb.Error as error:
            is_locked = re.search(r"\block\b", str(error)) is not None
            if is_locked or not os.access(path, os.R_OK | os.W_OK):
                raise HistoryError(f"{path} cannot be opened: {first_line(error)}") from error
            if journal.exists():  # without it, only the last values are lost
                self._set_aside(journal, error)
                with contextlib.suppress(duckdb.Error):
                    return self._try_attach(connection, stem)
            self._set_aside(path, error)
            day = self._try_attach(connection, stem)
        return day

    def _try_attach(self, connection: duckdb.DuckDBPyConnection, stem: str) -> OpenDay:
        import duckdb

        day = OpenDay(stem)
        path = self._folder / f"{stem}.duckdb"
        connection.execute(f"ATTACH {quote(str(path))} AS {day.alias}")
        try:
            connection.execute(TABLES.format(day.alias))
            rows = connection.execute(f"SELECT board_id, name, series FROM {day.alias}.series")
            day.series = {(board_id, name): series for board_id, name, series in rows.fetchall()}
            day.next_series = max(day.series.values(), default=-1) + 1
            (day.batch,) = fetch_one(connection, f"SELECT max(batch) FROM {day.alias}.raw")
            (day.rolled,) = fetch_one(connection, f"SELECT max(rolled) FROM {day.alias}.state")
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
        log.warning("%s: %s", text, first_line(error))

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
            raise HistoryError(first_line(error)) from error

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

    def _day_for(self, number: int) -> OpenDay:
        """Return the newest open file of a day; begin one if there is none."""
        days = [day for day in self._open_days.values() if day.day == number]
        days = [day for day in days if day.stem not in self._parts]
        if days:
            return days[-1]
        date = date_text(number)
        stems = [*self._open_days, *(file.stem for file in self._closed)]
        used = [int(stem.rpartition(".")[2]) for stem in stems if stem.startswith(f"{date}.")]
        with self._files_lock:
            return self._attach(self._connect(), f"{date}.{max(used, default=0) + 1}")

    def _number_series(self, day: OpenDay, batch: SampleBatch) -> list[Series]:
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
        day: OpenDay,
        batch: SampleBatch,
        new: Sequence[Series],
    ) -> None:
        import nanoarrow

        if new:  # as arrays: each single INSERT takes half a millisecond
            connection.register("incoming", nanoarrow.ArrayStream(series_array(day, new)))
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

    def _roll_up(self, connection: duckdb.DuckDBPyConnection, day: OpenDay) -> None:
        connection.execute(ROLL_UP.format(day.alias), [day.rolled])
        connection.execute(f"DELETE FROM {day.alias}.state")
        connection.execute(f"INSERT INTO {day.alias}.state VALUES (?)", [day.batch])
        day.rolled, day.rolled_at = day.batch, time.monotonic()

    # Closing days, deleting

    def tidy(self, now: int, *, may_delete: bool) -> bool:
        """Do a part of what is due; return whether there is more.

        Raises:
            HistoryError: it was not possible.
        """
        if self._connection is None and not any(self._folder.glob("*")):
            return False
        import duckdb

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
            raise HistoryError(first_line(error)) from error

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

    def _close_step(self, connection: duckdb.DuckDBPyConnection, day: OpenDay) -> bool:
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

    def _divide(self, connection: duckdb.DuckDBPyConnection, day: OpenDay) -> None:
        self._parts[day.stem] = sample_parquet.divide_day(connection, day)

    def _write_part(
        self, connection: duckdb.DuckDBPyConnection, day: OpenDay, parts: list[DayPart]
    ) -> None:
        """Write the first of these parts, and remove it from the list."""
        sample_parquet.write_part(connection, self._folder, day, parts[0])
        del parts[0]

    def _replace_day(self, connection: duckdb.DuckDBPyConnection, day: OpenDay) -> None:
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
            add_ids_to_erase(self._folder, board_ids)
        except OSError as error:
            raise HistoryError(first_line(error)) from error

    def _erase_step(self) -> bool:
        """Delete values of boards from one file; return whether there was anything to do."""
        ids = read_ids_to_erase(self._folder)
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

    def _erase_from_open(self, day: OpenDay, numbers: Sequence[int]) -> None:
        with self._transaction() as connection:
            for table in ("raw", "minutes", "series"):
                connection.execute(
                    f"DELETE FROM {day.alias}.{table} WHERE series IN ({marks(numbers)})", numbers
                )
        kept = {key: number for key, number in day.series.items() if number not in numbers}
        day.series = kept  # numbers are not used again, also not those of series that are gone
        day.indexes = (None, array("i"))
        self._parts.pop(day.stem, None)  # what is written of the day is written again

    def _rewrite_without(self, connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> None:
        self._rewritten = sample_parquet.rewrite_without(connection, self._closed, ids)

    # Reading

    def read(self, query: SampleQuery) -> SamplePage:
        """Return the first page of what a query is about.

        Raises:
            HistoryError: it cannot be read.
        """
        import duckdb

        if self._connection is None and not self._folder.exists():
            return empty_page()
        with self._files_lock:
            self._connect()
            assert self._reader is not None
            try:
                return PageReader(self._reader, self._open_days.values(), self._closed).read(query)
            except duckdb.InterruptException:
                raise HistoryError(TOO_LONG) from None
            except duckdb.Error as error:
                raise HistoryError(first_line(error)) from error

    def interrupt(self) -> None:
        """Let a ``read`` in another thread fail."""
        if self._reader is not None:
            self._reader.interrupt()

    # Ending

    def close(self) -> None:
        """Write what is in memory, and close the files."""
        if self._connection is None:
            return
        import duckdb  # here: a server that has kept nothing would stop 80 ms later

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
