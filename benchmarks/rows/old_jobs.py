"""A server whose store has millions of jobs: its start, and a cell."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from benchmarks import own_server
from benchmarks.report import Row
from benchmarks.timing import time_in_turns
from cloudmanager import local_server
from cloudmanager.server_options import ServerOptions

_JOBS = 5_000_000
_STARTS = 5
_CELLS = 300


def rows() -> list[Row]:
    """Time the start and a cell beside those of a server without jobs, in turns."""
    with own_server.temporary_home() as empty, own_server.temporary_home() as full:
        for home in (empty, full):
            with own_server.home(home):
                local_server.start(ServerOptions(port=0))
                local_server.stop()
        _add_jobs(full / "server.db")
        starts, others = (
            list(times)
            for times in zip(
                *((_time_start(full), _time_start(empty)) for _ in range(_STARTS)), strict=True
            )
        )
        with (
            own_server.home(full),
            own_server.boards_of_home(1) as mine,
            own_server.running_boards(1) as peer,
        ):
            cells, peers = time_in_turns(
                [lambda: mine.run("print(1)"), lambda: peer.run("print(1)")], _CELLS
            )
    return [
        Row(f"a start with {_JOBS:,} jobs, beside one without", starts, others, 1.1),
        Row(f"a cell with {_JOBS:,} jobs, beside one without", cells, peers, 1.1),
    ]


def _time_start(folder: Path) -> float:
    with own_server.home(folder):
        begun = time.perf_counter()
        local_server.start(ServerOptions(port=0))
        took = time.perf_counter() - begun
        local_server.stop()
    return took


def _add_jobs(database: Path) -> None:
    """Insert jobs of the last weeks that have ended."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ?) "
            "INSERT INTO jobs (id, board, caller, created, ended, status) "
            "SELECT i, 'board-' || (i % 40), 'local', ? + i / 5.0, ? + i / 5.0 + 1, 'ok' FROM n",
            (_JOBS, time.time() - _JOBS / 5, time.time() - _JOBS / 5),
        )
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
