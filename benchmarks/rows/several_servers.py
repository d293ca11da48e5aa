"""Cells with three servers, PostgreSQL and NATS, beside the same cells with one server and SQLite.

PostgreSQL commits durably (``fsync`` and ``synchronous_commit`` are on). Cells on one board are
also compared with the bare cluster: no server can be faster that commits them before it sends them.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import bare_cluster
from benchmarks.report import Row
from benchmarks.timing import time_in_turns
from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Boards, Fleet
from cloudmanager.testing.board_fixtures import wait_online
from cloudmanager.testing.plugin import RunningServer, running_server
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.engines import running_nats, running_postgres

_SERVERS = 3
_BOARDS = 200  # in all
_CELLS = 500
_CELLS_ON_ALL = 40
_CALLERS = 20  # at once, each with a board of its own
_TURNS = 3  # of these callers
_TURN_SECONDS = 1.0
_CODE = "print(1)"


class _Site(NamedTuple):
    """A server, and a caller of it."""

    server: RunningServer
    fleet: Fleet


@contextlib.contextmanager
def _running_servers(folder: Path, *options: str, count: int = 1) -> Iterator[list[_Site]]:
    """Run servers and 200 boards, distributed evenly; yield each server with a caller.

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
        yield [_Site(*pair) for pair in zip(servers, fleets, strict=True)]


def _connect(server: RunningServer) -> Fleet:
    return Fleet(server.url, (server.home / "token").read_text().strip())


def _run_for_a_turn(boards: Boards) -> int:
    """Run cells until the turn is over; return how many."""
    end, count = time.monotonic() + _TURN_SECONDS, 0
    while time.monotonic() < end:
        boards.run(_CODE)
        count += 1
    return count


def _time_callers(contenders: Sequence[tuple[RunningServer, int]]) -> list[list[float]]:
    """Let several callers run cells at once, each on a board of its own, contenders in turns.

    Args:
        contenders: of each, the callers' server, and the number of the boards' server.

    Returns:
        For each contender, its seconds per cell in each turn.
    """
    times: list[list[float]] = [[] for _ in contenders]
    with contextlib.ExitStack() as stack:
        callers = [
            [
                stack.enter_context(_connect(server))[f"board-{number}-{each}"]
                for each in range(1, _CALLERS + 1)
            ]
            for server, number in contenders
        ]
        pool = stack.enter_context(ThreadPoolExecutor(_CALLERS))
        for _ in range(_TURNS):
            for boards, mine in zip(callers, times, strict=True):
                mine.append(_TURN_SECONDS / sum(pool.map(_run_for_a_turn, boards)))
    return times


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
        bare_cluster.running_cluster(postgres.new(), nats.tcp_port) as (bare_near, bare_far),
    ):
        alone, near, far, alone_all, all_of_three = (
            one.fleet["board-0-1"],
            here.fleet["board-0-1"],
            here.fleet["board-1-1"],
            one.fleet["all"],
            here.fleet["all"],
        )
        cells = [lambda: alone.run(_CODE), lambda: near.run(_CODE), lambda: far.run(_CODE)]
        single, local, remote, bare_local, bare_remote = time_in_turns(
            [*cells, bare_near, bare_far], _CELLS
        )
        single_all, distributed = time_in_turns(
            [lambda: alone_all.run(_CODE), lambda: all_of_three.run(_CODE)], _CELLS_ON_ALL
        )
        callers = _time_callers([(one.server, 0), (here.server, 0), (here.server, 1)])
    return [
        Row("three servers: a board of the caller's, beside one server", local, single, budget=4),
        Row("three servers: a board of another one, beside one server", remote, single, budget=8),
        Row(
            "three servers: a board of the caller's, beside the bare cluster", local, bare_local, 2
        ),
        Row(
            "three servers: a board of another one, beside the bare cluster",
            remote,
            bare_remote,
            2.2,
        ),
        Row(
            f"three servers: {_BOARDS} boards, beside one server",
            distributed,
            single_all,
            budget=2,
        ),
        Row(f"three servers: {_CALLERS} callers, boards of theirs", callers[1], callers[0], 2.5),
        Row(f"three servers: {_CALLERS} callers, boards of another", callers[2], callers[0], 5),
    ]
