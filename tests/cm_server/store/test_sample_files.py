"""Files of samples: crashes, damage, a full disk, and what other programs read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cm_server.store import sample_folder, sample_parquet
from cm_server.store.sample_files import SampleFiles
from cm_server.store.sample_query import DAY, MICROSECONDS, HistoryError, SampleRetention

from .test_sample_stores import HUM, NOON, OTHER, TEMP, TODAY, batch, ramp, read, tidy

pytestmark = pytest.mark.timeout(120)

OPEN = "2026-11-30.1.duckdb"
#: Appends values one by one; prints each when it is kept. The argument is the folder.
APPENDING = """
import resource, signal, sys
from pathlib import Path
from cm_server.store.sample_files import SampleFiles
from cm_server.store.sample_query import HistoryError, SampleRetention
from tests.cm_server.store.test_sample_stores import NOON, TEMP, TODAY, batch

files = SampleFiles(Path(sys.argv[1]), SampleRetention())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "history"


def opened(folder: Path, **retention: int) -> SampleFiles:
    return SampleFiles(folder, SampleRetention(**retention))


def run(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", APPENDING + code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def test_values_that_were_kept_survive_a_kill(folder: Path):
    code = """
for n in range(10_000):
    files.append(batch(TODAY, [(TEMP, NOON + n * 1_000_000, n)]))
    print(n, flush=True)
"""
    with run(code, folder) as process:
        assert process.stdout is not None
        for _ in range(20):
            said = int(process.stdout.readline())
        process.kill()
    files = opened(folder)
    values = [row[3] for row in read(files)]
    files.close()
    assert values[: said + 1] == [float(n) for n in range(said + 1)]
    assert values == sorted(set(values))
    assert files.notes() == ()


def test_day_whose_end_was_interrupted_is_whole(folder: Path, tmp_path: Path):
    files = opened(folder)
    files.append(ramp(TEMP, 100, NOON - DAY))
    files.append(ramp(OTHER, 100, NOON - DAY))
    whole = read(files)
    copies = 0
    while True:
        copy = tmp_path / f"copy-{copies}"
        copy.mkdir()
        sample_folder.copy_files(folder, copy)
        for path in folder.glob("*.part"):
            shutil.copy(path, copy)
        copies += 1
        if not files.tidy(NOON, may_delete=True):
            break
    files.close()
    # A crash between a Parquet file's appearance and the end of the day's own file.
    both = tmp_path / "both"
    shutil.copytree(tmp_path / "copy-0", both)
    for path in folder.glob("*.parquet"):
        shutil.copy(path, both)
    assert copies > 3
    for copy in (*(tmp_path / f"copy-{n}" for n in range(copies)), both):
        again = opened(copy)
        assert read(again) == whole
        tidy(again, NOON)
        assert read(again) == whole
        assert [path.suffix for path in copy.iterdir() if path.suffix] == [".parquet"] * 2
        again.close()


@pytest.fixture
def slow_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What Parquet files wait for before they are written."""
    may_go_on = threading.Event()
    copy = sample_parquet.copy_to_parquet

    def copy_later(*arguments: Any) -> None:
        assert may_go_on.wait(60)
        copy(*arguments)

    monkeypatch.setattr(sample_parquet, "copy_to_parquet", copy_later)
    yield may_go_on
    may_go_on.set()


def test_values_are_kept_while_a_day_becomes_parquet(folder: Path, slow_copies: threading.Event):
    files = opened(folder)
    files.append(ramp(TEMP, 10, NOON - DAY))
    for n in range(20):
        assert files.tidy(NOON, may_delete=True)
        files.append(batch(TODAY, [(TEMP, NOON + n * MICROSECONDS, float(n))]))
    left = folder.with_name("killed")
    left.mkdir()
    sample_folder.copy_files(folder, left)
    again = opened(left)
    assert len(read(again)) == 30, "a server that is killed now has lost nothing"
    again.close()
    slow_copies.set()
    tidy(files, NOON)
    assert len(read(files)) == 30
    assert len(list(folder.glob("*.parquet"))) == 2
    assert [path.name for path in folder.glob("*.duckdb")] == [OPEN]
    files.close()


def test_values_are_kept_while_a_board_is_erased(folder: Path, slow_copies: threading.Event):
    files = opened(folder)
    slow_copies.set()
    files.append(ramp(TEMP, 10, NOON - DAY))
    files.append(ramp(OTHER, 10, NOON - DAY))
    tidy(files, NOON)
    slow_copies.clear()
    files.erase(["id1"])
    for n in range(5):
        assert files.tidy(NOON, may_delete=True)
        files.append(batch(TODAY, [(OTHER, NOON + n * MICROSECONDS, float(n))]))
    files.erase(["id3"])  # meanwhile: both are erased
    slow_copies.set()
    tidy(files, NOON)
    assert {row[0] for row in read(files)} == {"id2"}
    assert len(read(files)) == 15
    files.close()


def test_store_is_closed_while_a_day_becomes_parquet(folder: Path):
    files = opened(folder)
    for n in range(5):
        files.append(ramp(TEMP, 100_000, NOON - DAY + n * 100_000 * MICROSECONDS // 1000))
    while not files._working:
        files.tidy(NOON, may_delete=True)
    files.close()
    files = opened(folder)
    tidy(files, NOON)
    assert not list(folder.glob("*.part"))
    files.close()
    with duckdb.connect() as connection:
        connection.execute(f"SELECT count(*) FROM '{folder}/raw-*.parquet'")
        assert connection.fetchall() == [(500_000,)]


def killed(folder: Path) -> Path:
    """Return a folder as it is after a kill: values are in the journal of the day's file."""
    files = opened(folder)
    for n in range(3):
        files.append(batch(TODAY, [(TEMP, NOON + n * MICROSECONDS, float(n))]))
    left = folder.with_name("killed")
    left.mkdir()
    sample_folder.copy_files(folder, left)
    files.close()
    return left


def test_torn_journal_loses_its_end_alone(folder: Path):
    left = killed(folder)
    journal = left / f"{OPEN}.wal"
    data = journal.read_bytes()
    for size in range(len(data) - 1, 0, -len(data) // 7):
        torn = left.with_name(f"torn-{size}")
        shutil.copytree(left, torn)
        (torn / journal.name).write_bytes(data[:size])
        files = opened(torn)
        values = [row[3] for row in read(files)]
        assert values == [float(n) for n in range(len(values))]
        files.append(ramp(HUM, 3))
        assert len(read(files)) == len(values) + 3
        files.close()


def test_damaged_journal_costs_the_last_values_alone(folder: Path):
    left = killed(folder)
    journal = left / f"{OPEN}.wal"
    whole = journal.read_bytes()
    notes = 0
    for place in range(0, len(whole), len(whole) // 9):
        torn = left.with_name(f"torn-{place}")
        shutil.copytree(left, torn)
        data = bytearray(whole)
        data[place] ^= 0xFF
        (torn / journal.name).write_bytes(data)
        files = opened(torn)
        values = [row[3] for row in read(files)]
        assert values == [float(n) for n in range(len(values))]
        notes += len(files.notes())
        files.append(ramp(HUM, 3))
        assert len(read(files)) == len(values) + 3
        files.close()
    assert notes


@pytest.mark.parametrize("where", ["file", "header"])
def test_damaged_file_is_set_aside_with_a_sentence(folder: Path, where: str):
    files = opened(folder)
    files.append(ramp(TEMP, 50, NOON - DAY))
    tidy(files, NOON)
    files.append(ramp(TEMP, 50))
    files.close()
    path = folder / OPEN
    data = bytearray(path.read_bytes())
    if where == "header":
        path.write_bytes(b"x" * 100)
    else:
        data[4096:] = os.urandom(len(data) - 4096)
        path.write_bytes(data)
    files = opened(folder)
    kept = len(read(files))
    assert kept == 50
    (note,) = files.notes()
    assert "in the history of samples was damaged and is now 2026-11-30.1.duckdb" in note
    assert note.endswith(".damaged")
    files.append(ramp(HUM, 3))
    assert len(read(files)) == kept + 3
    files.close()


def test_damaged_parquet_file_is_set_aside(folder: Path):
    files = opened(folder)
    files.append(ramp(TEMP, 50, NOON - DAY))
    tidy(files, NOON)
    files.close()
    (path,) = folder.glob("raw-*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    files = opened(folder)
    assert [row[3] for row in read(files)] == [24.5]  # the minute is left
    assert len(files.notes()) == 1
    files.close()


def test_full_disk_is_an_error_and_then_goes_on(folder: Path):
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
files.append(batch(TODAY, [(TEMP, NOON, -1.0)]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
kept = failed = 0
for n in range(60):
    values = [(TEMP, NOON + n * 1_000_000 + k, 0.5 + k * n) for k in range(500)]
    try:
        files.append(batch(TODAY, values))
        kept += 500
    except HistoryError as error:
        failed += 1
        reason = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
files.append(batch(TODAY, [(TEMP, NOON - 1, -2.0)]))
files.close()
print(kept, failed, reason, flush=True)
"""
    with run(code, folder) as process:
        assert process.stdout is not None
        kept, failed, reason = process.stdout.read().split(maxsplit=2)
        assert process.wait() == 0
    assert int(failed) > 0
    assert "\n" not in reason.strip()
    files = opened(folder)
    values = [row[3] for row in read(files)]
    files.close()
    assert len(values) == int(kept) + 2
    assert values[:2] == [-2.0, -1.0]


def test_oldest_is_deleted_where_there_is_too_much(folder: Path):
    files = opened(folder)
    for day in range(3):
        files.append(ramp(TEMP, 600, NOON - (3 - day) * DAY))
    tidy(files, NOON)
    size = sum(path.stat().st_size for path in folder.iterdir())
    files.close()
    files = opened(folder, max_bytes=size - 1)
    tidy(files, NOON)
    names = sorted(path.name for path in folder.glob("*.parquet"))
    assert [name.partition("-2026")[0] for name in names] == ["minutes"] * 3 + ["raw"] * 2
    assert not (folder / "raw-2026-11-27.1-000.parquet").exists()
    files.append(ramp(TEMP, 1))
    files.close()
    files = opened(folder, max_bytes=1)
    tidy(files, NOON)
    with pytest.raises(HistoryError, match="--sample-disk MB"):
        files.append(ramp(TEMP, 1))
    files.close()
    assert not list(folder.glob("*.parquet"))


def test_other_programs_read_the_days_that_are_over(folder: Path):
    files = opened(folder)
    files.append(ramp(OTHER, 90, NOON - DAY))
    files.append(ramp(TEMP, 90, NOON - DAY))
    tidy(files, NOON)
    raw = duckdb.read_parquet(f"{folder}/raw-*.parquet")
    assert raw.columns == ["board_id", "board", "name", "time", "value"]
    assert [row[1] for row in raw.fetchall()] == ["lab-1"] * 90 + ["lab-2"] * 90
    minutes = duckdb.read_parquet(f"{folder}/minutes-*.parquet").project("board, count, last")
    assert minutes.fetchall() == [
        ("lab-1", 60, 59.0),
        ("lab-1", 30, 89.0),
        ("lab-2", 60, 59.0),
        ("lab-2", 30, 89.0),
    ]
    files.close()


def test_duckdb_touches_nothing_else(folder: Path):
    files = opened(folder)
    files.append(ramp(TEMP, 1))
    connection = files._connect()
    for statement in (
        "SELECT * FROM read_text('/etc/hostname')",
        f"COPY (SELECT 1) TO '{folder.parent}/x.csv'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        f"ATTACH '{folder.parent}/x.duckdb'",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(statement)
    files.close()
    assert [path.name for path in folder.parent.iterdir()] == ["history"]
