"""The cost of idle boards: memory of the server, CPU time of the server and the boards."""

from __future__ import annotations

import time

import psutil

from benchmarks import own_server
from benchmarks.report import Row

_BOARDS = 200
_SECONDS = 20.0  # for which CPU time is measured


def rows() -> list[Row]:
    """Measure 200 connected virtual boards and their server."""
    with own_server.running_boards(1):
        alone = _server().memory_info().rss
    with own_server.running_boards(_BOARDS):
        server = _server()
        together = server.memory_info().rss
        processes = [server, *_virtual_boards()]
        before = sum(map(_cpu_seconds, processes))
        time.sleep(_SECONDS)
        used = sum(map(_cpu_seconds, processes)) - before
    return [
        Row("server's memory per idle board", [(together - alone) / (_BOARDS - 1)], [], 20e3, "KB"),
        Row(
            f"one core's time, {_BOARDS} idle boards and server, a second",
            [used / _SECONDS],
            [],
            0.05,
        ),
    ]


def _server() -> psutil.Process:
    from cloudmanager import Fleet

    with Fleet() as fleet:
        return psutil.Process(fleet.status()["pid"])


def _virtual_boards() -> list[psutil.Process]:
    """Return this process's descendants: the supervisor and each board's process."""
    return psutil.Process().children(recursive=True)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
