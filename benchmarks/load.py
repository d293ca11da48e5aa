"""What one server does with many boards: `python -m benchmarks.load [--tls] BOARDS…`.

The boards are simulated (crowd.py), the server and its store are ours, and the caller is a `Fleet`
in this process. For each number of boards: memory, beats, a cell on all of them, cells one by one,
and the server killed and started again. All of it shares this machine with the crowd.
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

from benchmarks import ours
from benchmarks.crowd import simulated_boards
from cloudmanager import Fleet, local_server
from cloudmanager.client.async_fleet import AsyncFleet

#: What was measured once, for the picture in docs/; see benchmarks/README.md.
FIGURES_PATH = Path(__file__).with_name("load.jsonl")

_IDLE_SECONDS = 30.0  # seconds: the server's own
_SETTLE_SECONDS = 3.0  # seconds after all are there
_FAN_OUT_CELLS = 5  # on all boards
_CONCURRENT_CELLS = 50  # cells at the same time, each on one board
_SINGLE_CELLS_SECONDS = 5.0  # seconds of them
_BOARDS_TRIED = 10  # boards on which a cell is run again and again while the server is gone
_MAX_WAIT_SECONDS = 200.0  # seconds that anything may take


@dataclass
class Figures:
    """What was measured; seconds and bytes.

    Attributes:
        boards: how many.
        tls: whether by TLS.
        joined: until all were there for the first time, 50 at once of each process.
        rss: memory for each board, from no board enrolled to all connected and idle.
        link: of that, what the link costs: from all enrolled to all connected.
        beats: of a core's time, with all boards idle.
        fan_out: one cell on all boards, until the last result is here; the median.
        fan_out_cpu: the server's own time for each board of it.
        rate: cells a second, each on one board, 50 at once.
        back: from the server's answer after a kill until all boards were there again.
        refused: cells that failed meanwhile; and how many there were.
        cells: how many there were.
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
        """The server's process, of the moment."""
        return psutil.Process(self.fleet.status()["pid"])

    def wait_online(self, boards: int) -> float:
        """Wait until so many boards are there; return how long that took."""
        begun = time.perf_counter()
        while (online := self.fleet.status()["online"]) < boards:
            if time.perf_counter() - begun > _MAX_WAIT_SECONDS:
                raise TimeoutError(f"{online} of {boards} boards are there")
            time.sleep(0.05)
        return time.perf_counter() - begun


@contextlib.contextmanager
def server_under_load(*, tls: bool) -> Iterator[ServerUnderLoad]:
    """Start a server, and end it."""
    host, tcp_port = "0.0.0.0" if tls else "127.0.0.1", _free_port()
    with ours.temporary_home() as home, Fleet() as fleet:
        local_server.start(host, tcp_port)
        try:
            yield ServerUnderLoad(fleet, host, tcp_port, home)
        finally:
            local_server.stop()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def print_progress(text: str) -> None:
    """Tell a person what is being done."""
    print(text, file=sys.stderr, flush=True)


def measure(
    boards: int, *, tls: bool = False, on_progress: Callable[[str], None] = print_progress
) -> Figures:
    """Measure everything with so many boards.

    Args:
        boards: how many, simulated.
        tls: whether all links are TLS.
        on_progress: told what is being done.
    """
    figures = Figures(boards, tls)
    with server_under_load(tls=tls) as it:
        nobody = it.server.memory_info().rss
        told = it.fleet.enrol([f"sim-{number}" for number in range(1, boards + 1)])
        enrolled = it.server.memory_info().rss
        with simulated_boards("127.0.0.1", it.tcp_port, told, it.home / "ca.pem" if tls else None):
            on_progress(f"{boards} simulated boards dial")
            figures.joined = it.wait_online(boards)
            time.sleep(_SETTLE_SECONDS)
            rss = it.server.memory_info().rss
            figures.rss, figures.link = (rss - nobody) / boards, (rss - enrolled) / boards
            on_progress("they idle")
            figures.beats = _cpu_share(it.server, _IDLE_SECONDS)
            on_progress("a cell on all, cells one by one")
            _measure_fan_out(it, figures)
            figures.rate = asyncio.run(_measure_single_cells(boards))
            on_progress("the server is killed")
            _measure_restart(it, figures)
    return figures


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _cpu_share(process: psutil.Process, seconds: float) -> float:
    before = _cpu(process)
    time.sleep(seconds)
    return (_cpu(process) - before) / seconds


def _measure_fan_out(load: ServerUnderLoad, figures: Figures) -> None:
    """Run `print(1)` on all boards, some times over."""
    server, took = load.server, []
    before = _cpu(server)
    for _ in range(_FAN_OUT_CELLS):
        begun = time.perf_counter()
        results = load.fleet["all"].run("print(1)")
        took.append(time.perf_counter() - begun)
        assert results.ok, results
        assert len(results) == figures.boards
    figures.fan_out = statistics.median(took)
    figures.fan_out_cpu = (_cpu(server) - before) / _FAN_OUT_CELLS / figures.boards


async def _measure_single_cells(boards: int) -> float:
    """Run cells on one board each, many at a time; return how many a second."""
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
    """Kill the server and start it again; cells that may wait go on meanwhile."""
    killed = load.server
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(10)
    local_server.start(load.host, load.tcp_port)
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
    """Run cells on one board until all are back; the first may wait for it to dial in."""
    name = f"sim-{number * (figures.boards // _BOARDS_TRIED) + 1}"
    with Fleet() as fleet:
        while not all_back.is_set():
            result = fleet[name].run("print(1)", wait=_MAX_WAIT_SECONDS)[name]
            figures.cells += 1
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
