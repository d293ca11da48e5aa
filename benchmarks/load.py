"""Measure one server under the load of many boards: `python -m benchmarks.load [--tls] BOARDS…`.

The boards are simulated (simulated_boards.py), the server and its store are real, and the caller is
a `Fleet` in this process. For each number of boards: memory, heartbeats, a cell on all of them,
cells on single boards, and the server killed and started again. Boards, server and caller share
this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks import own_server
from benchmarks.simulated_boards import simulated_boards
from cloudmanager import Fleet, local_server
from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.server_options import ServerOptions

#: Figures for the plot in docs/; see benchmarks/README.md.
FIGURES_PATH = Path(__file__).with_name("load.jsonl")

_ENROLLED_AT_ONCE = 5000  # boards; a request may have 10,000
_IDLE_SECONDS = 30.0  # for which heartbeats are measured
_SETTLE_SECONDS = 3.0  # after all boards have connected
_FAN_OUT_CELLS = 5  # on all boards
_CONCURRENT_CELLS = 50  # at the same time, each on one board
_SINGLE_CELLS_SECONDS = 5.0  # for which cells run on single boards
_BOARDS_TRIED = 10  # boards on which cells run repeatedly while the server restarts
_MAX_WAIT_SECONDS = 200.0  # for all boards to connect, and for a cell's board


@dataclass
class Figures:
    """Results of one measurement, in seconds and bytes.

    Attributes:
        boards: number of boards.
        tls: whether all links use TLS.
        joined: time until all boards were connected, 50 of each process at the same time.
        rss: memory of the server per board, from no board enrolled to all connected and idle.
        link: the part of it that the link needs, from all enrolled to all connected.
        beats: the server's CPU time with all boards idle, as a fraction of one core.
        fan_out: time of one cell on all boards, until the last result; the median.
        fan_out_cpu: the server's CPU time of such a cell, per board.
        rate: cells per second on single boards, 50 at the same time.
        back: time from the restarted server's first answer until all boards were connected.
        refused: cells that failed meanwhile.
        cells: number of cells meanwhile.
    """

    boards: int
    tls: bool
    joined: float = 0.0
    rss: float = 0.0
    link: float = 0.0
    beats: float = 0.0
    fan_out: float = 0.0
    fan_out_cpu: float = 0.0
    rate: float = 0.0
    back: float = 0.0
    refused: list[str] = field(default_factory=list)
    cells: int = 0


class ServerUnderLoad:
    """A server with simulated boards, and a caller."""

    def __init__(self, fleet: Fleet, host: str, tcp_port: int, home: Path) -> None:
        self.fleet = fleet
        self.host = host
        self.tcp_port = tcp_port
        self.home = home

    @property
    def server(self) -> psutil.Process:
        """The server's present process."""
        return psutil.Process(self.fleet.status()["pid"])

    def wait_online(self, boards: int) -> float:
        """Wait until this number of boards is connected; return how long that took."""
        begun = time.perf_counter()
        while (online := self.fleet.status()["online"]) < boards:
            if time.perf_counter() - begun > _MAX_WAIT_SECONDS:
                raise TimeoutError(f"{online} of {boards} boards are connected")
            time.sleep(0.05)
        return time.perf_counter() - begun


@contextlib.contextmanager
def server_under_load(*, tls: bool) -> Iterator[ServerUnderLoad]:
    """Run a server with a temporary CM_HOME during a `with` block."""
    host, tcp_port = "0.0.0.0" if tls else "127.0.0.1", _free_port()
    with own_server.temporary_home() as home, Fleet() as fleet:
        local_server.start(ServerOptions(listen=host, port=tcp_port))
        try:
            yield ServerUnderLoad(fleet, host, tcp_port, home)
        finally:
            local_server.stop()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def print_progress(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr, flush=True)


def measure(
    boards: int, *, tls: bool = False, on_progress: Callable[[str], None] = print_progress
) -> Figures:
    """Measure everything with this number of boards.

    Args:
        boards: the number of simulated boards.
        tls: whether all links use TLS.
        on_progress: is called with a message at each step.
    """
    figures = Figures(boards, tls)
    with server_under_load(tls=tls) as load:
        empty = load.server.memory_info().rss
        names = [f"sim-{number}" for number in range(1, boards + 1)]
        enrolments = [
            row
            for start in range(0, boards, _ENROLLED_AT_ONCE)
            for row in load.fleet.enrol(names[start : start + _ENROLLED_AT_ONCE])
        ]
        enrolled = load.server.memory_info().rss
        ca = load.home / "ca.pem" if tls else None
        with simulated_boards("127.0.0.1", load.tcp_port, enrolments, ca):
            on_progress(f"{boards} simulated boards connect")
            figures.joined = load.wait_online(boards)
            time.sleep(_SETTLE_SECONDS)
            connected = load.server.memory_info().rss
            figures.rss = (connected - empty) / boards
            figures.link = (connected - enrolled) / boards
            on_progress("they are idle")
            figures.beats = _cpu_share(load.server, _IDLE_SECONDS)
            on_progress("a cell on all boards, cells on single boards")
            _measure_fan_out(load, figures)
            figures.rate = asyncio.run(_measure_single_cells(boards))
            on_progress("the server is killed")
            _measure_restart(load, figures)
    return figures


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _cpu_share(process: psutil.Process, seconds: float) -> float:
    before = _cpu(process)
    time.sleep(seconds)
    return (_cpu(process) - before) / seconds


def _measure_fan_out(load: ServerUnderLoad, figures: Figures) -> None:
    """Run `print(1)` on all boards, several times."""
    server = load.server
    times = []
    before = _cpu(server)
    for _ in range(_FAN_OUT_CELLS):
        begun = time.perf_counter()
        results = load.fleet["all"].run("print(1)")
        times.append(time.perf_counter() - begun)
        assert results.ok, results
        assert len(results) == figures.boards
    figures.fan_out = statistics.median(times)
    figures.fan_out_cpu = (_cpu(server) - before) / _FAN_OUT_CELLS / figures.boards


async def _measure_single_cells(boards: int) -> float:
    """Run cells on single boards, many at the same time; return cells per second."""
    done = 0
    ends = time.perf_counter() + _SINGLE_CELLS_SECONDS
    async with AsyncFleet() as fleet:

        async def call(number: int) -> None:
            nonlocal done
            while time.perf_counter() < ends:
                number = number % boards + 1
                (await fleet[f"sim-{number}"].run("print(1)")).raise_for_error()
                done += 1

        begun = time.perf_counter()
        await asyncio.gather(
            *(call(number) for number in range(0, boards, boards // _CONCURRENT_CELLS))
        )
        return done / (time.perf_counter() - begun)


def _measure_restart(load: ServerUnderLoad, figures: Figures) -> None:
    """Kill the server and start it again, while cells are submitted that wait for their board."""
    killed = load.server
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(10)
    local_server.start(ServerOptions(listen=load.host, port=load.tcp_port))
    back = threading.Event()
    callers = [
        threading.Thread(target=_run_cells_until, args=(n, back, figures))
        for n in range(_BOARDS_TRIED)
    ]
    for caller in callers:
        caller.start()
    try:
        figures.back = load.wait_online(figures.boards)
    finally:
        back.set()
        for caller in callers:
            caller.join()


def _run_cells_until(number: int, all_back: threading.Event, figures: Figures) -> None:
    """Run cells on one board until all boards are connected; each waits for its board."""
    name = f"sim-{number * (figures.boards // _BOARDS_TRIED) + 1}"
    with Fleet() as fleet:
        while not all_back.is_set():
            figures.cells += 1
            try:
                result = fleet[name].run("print(1)", wait=_MAX_WAIT_SECONDS)[name]
            except CloudmanagerError as error:
                figures.refused.append(f"{name}: {error}")
            else:
                if result.status != "ok":
                    figures.refused.append(f"{name}: {result.status} {result.error}")
            all_back.wait(0.2)


def main() -> None:
    """Print a line of JSON for each number of boards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("boards", type=int, nargs="+")
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    for boards in options.boards:
        print(json.dumps(asdict(measure(boards, tls=options.tls))), flush=True)


if __name__ == "__main__":
    main()
