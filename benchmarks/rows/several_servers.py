"""Cells with three servers, PostgreSQL and NATS, beside the same cells with one server and SQLite.

PostgreSQL commits durably (``fsync`` and ``synchronous_commit`` are on).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Row
from benchmarks.timing import time_in_turns
from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.engines import running_nats, running_postgres

_SERVERS = 3
_BOARDS = 200  # in all
_CELLS = 500
_CELLS_ON_ALL = 40
_CODE = "print(1)"


@contextlib.contextmanager
def _running_servers(folder: Path, *options: str, count: int = 1) -> Iterator[list[Fleet]]:
    """Run servers and 200 boards, distributed evenly; yield a caller of each server.

    The boards of server number 0 are board-0-1, board-0-2 and so on.
    """
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(folder / str(number), *options))
            for number in range(count)
        ]
        fleets = [stack.enter_context(_connect(server)) for server in servers]
        for number, (server, fleet) in enumerate(zip(servers, fleets, strict=True)):
            share = _BOARDS * (number + 1) // count - _BOARDS * number // count
            names = [f"board-{number}-{each}" for each in range(1, share + 1)]
            rows = fleet.enrol(names)
            identities = [BoardIdentity.from_enrolment(row, server.url) for row in rows]
            address = ("127.0.0.1", server.tcp_port)
            stack.enter_context(VirtualBoards(identities, address, folder / f"boards-{number}"))
            wait_online(fleet, names)
        for fleet in fleets:
            wait_online(fleet, [board["name"] for board in fleets[0].boards()])
        yield fleets


def _connect(server: RunningServer) -> Fleet:
    return Fleet(server.url, (server.home / "token").read_text().strip())


def rows() -> list[Row]:
    """Time `print(1)` on one board here, on one elsewhere, and on all, the contenders in turns."""
    with (
        tempfile.TemporaryDirectory(prefix="cm-bench-") as name,
        running_postgres(durable=True) as postgres,
        running_nats(Path(name)) as nats,
        _running_servers(Path(name) / "one") as (one,),
        _running_servers(
            Path(name) / "several", "--store", postgres.new(), "--bus", nats.url, count=_SERVERS
        ) as (here, *_),
    ):
        alone, near, far, alone_all, all_of_three = (
            one["board-0-1"],
            here["board-0-1"],
            here["board-1-1"],
            one["all"],
            here["all"],
        )
        single, local, remote = time_in_turns(
            [lambda: alone.run(_CODE), lambda: near.run(_CODE), lambda: far.run(_CODE)], _CELLS
        )
        single_all, distributed = time_in_turns(
            [lambda: alone_all.run(_CODE), lambda: all_of_three.run(_CODE)], _CELLS_ON_ALL
        )
    return [
        Row("three servers: a board of the caller's, beside one server", local, single, budget=4),
        Row("three servers: a board of another one, beside one server", remote, single, budget=8),
        Row(
            f"three servers: {_BOARDS} boards, beside one server",
            distributed,
            single_all,
            budget=2,
        ),
    ]
