"""Samples that last: what keeping costs, a cell meanwhile, and a month thinned to 1,000 points.

A server that keeps samples is compared with one that does not, each with as many simulated boards
that emit a value a second.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import duckdb
import psutil

from benchmarks.emitting_boards import emitting_boards
from benchmarks.report import Row
from benchmarks.timing import time_calls, time_in_turns
from cloudmanager import Boards, Fleet, local_server
from cloudmanager.server_options import ServerOptions
from cloudmanager.virtual.simulate import simulate
from cm_server.store.sample_folder import FOLDER

_BOARDS: Final = int(os.environ.get("CM_BENCH_BOARDS", "10000"))
_SECONDS: Final = 30.0  # for which CPU time is measured
_CELLS: Final = 200
_MONTH_BOARDS: Final = 40
_DAYS: Final = 30
_POINTS: Final = 1000
_QUERIES: Final = 15


def rows() -> list[Row]:
    """Measure both."""
    return [*_keeping_rows(), *_month_rows()]


class _Emitting(NamedTuple):
    """A server with boards that emit."""

    quiet: Boards
    process: psutil.Process


@contextlib.contextmanager
def _emitting(options: ServerOptions, count: int) -> Iterator[_Emitting]:
    """Run a server with simulated boards that emit, and one virtual board that does not."""
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder:
        os.environ["CM_HOME"] = folder
        try:
            local_server.start(options)
            with Fleet() as fleet:
                names = [f"emit-{number}" for number in range(count)]
                made = [
                    board
                    for start in range(0, count, 1000)
                    for board in fleet.enrol(names[start : start + 1000])
                ]
                virtual = simulate(fleet, ["quiet-1"])
                with emitting_boards(fleet.address.url, made, 1.0):
                    while fleet.status()["online"] < count + 1:
                        time.sleep(0.5)
                    process = psutil.Process(fleet.status()["pid"])
                    yield _Emitting(fleet["quiet-1"], process)
                virtual.stop()
        finally:
            local_server.stop()


def _keeping_rows() -> list[Row]:
    """Compare a server that keeps samples with one that does not, one after the other."""
    used: dict[int, float] = {}
    cells: dict[int, list[float]] = {}
    for days in (0, 7):
        with _emitting(ServerOptions(port=0, keep_samples=days), _BOARDS) as made:
            time.sleep(5.0)  # until the first values are written
            before = _cpu_seconds(made.process)
            time.sleep(_SECONDS)
            used[days] = (_cpu_seconds(made.process) - before) / _SECONDS
            cells[days] = time_calls(lambda: made.quiet.run("print(1)"), _CELLS)
    label = f"{_BOARDS:,} boards emit a value a second"
    return [
        Row(f"{label}: keeping them, of a core", [max(used[7] - used[0], 0.0)], [], 0.15, "%"),
        Row(f"{label}: a cell, beside the same without keeping", cells[7], cells[0], 1.2),
    ]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _month_rows() -> list[Row]:
    """Thin a month of 40 boards at 1 Hz to 1,000 points of each, as a caller receives them."""
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder:
        os.environ["CM_HOME"] = folder
        try:
            local_server.start(ServerOptions(port=0))
            with Fleet() as fleet:
                made = fleet.enrol([f"month-{number}" for number in range(_MONTH_BOARDS)])
                write_month(Path(folder) / FOLDER, [(row["id"], row["name"]) for row in made])
                every = 86400 * _DAYS // _POINTS // 60 * 60

                def query() -> None:
                    found = fleet.request(
                        "sample-history",
                        target="all",
                        since=time.time() - 86400 * _DAYS,
                        every=every,
                    )
                    assert len(found[0]["series"]) == _MONTH_BOARDS

                query()
                (times,) = time_in_turns([query], _QUERIES)
        finally:
            local_server.stop()
    name = f"a month of {_MONTH_BOARDS} boards at 1 Hz, {_POINTS:,} points of each"
    return [Row(name, times, [], 0.3)]


def write_month(folder: Path, boards: list[tuple[str, str]], days: int = _DAYS) -> None:
    """Write the minutes of some days, as the server has them when they are over.

    Args:
        folder: of the server's samples; made if it does not exist.
        boards: ids and names.
        days: how many, the last one is yesterday.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    today = int(time.time()) // 86400
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("CREATE TABLE boards (board_id TEXT, board TEXT, n INTEGER)")
        rows = [[board_id, name, n] for n, (board_id, name) in enumerate(boards)]
        connection.executemany("INSERT INTO boards VALUES (?, ?, ?)", rows)
        for day in range(today - days, today):
            date = datetime.fromtimestamp(day * 86400, UTC).strftime("%Y-%m-%d")
            place = str(folder / f"minutes-{date}.1-000.parquet").replace("'", "''")
            connection.execute(
                "COPY (SELECT board_id, board, 'temp' AS name, to_timestamp(moment) AS time, "
                "60 AS count, mean * 60 AS sum, mean - 1 AS min, mean + 1 AS max, mean AS last, "
                "to_timestamp(moment + 59) AS last_time FROM (SELECT *, "
                "20 + 5 * sin(moment / 13750.0) + 2 * sin(moment / 97.0 + n) AS mean FROM boards, "
                f"(SELECT unnest(range({day * 86400}, {(day + 1) * 86400}, 60)) AS moment)) "
                f"ORDER BY board, name, time) TO '{place}' (FORMAT parquet, COMPRESSION zstd)"
            )
