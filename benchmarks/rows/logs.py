"""The round trip of a cell on one board while 50 others print 100 lines a second to their logs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks import own_server
from benchmarks.report import Row
from benchmarks.timing import time_calls
from cloudmanager import Boards, Fleet

_BOARDS = 50
_ROUNDS = 10
_CELLS = 50  # of one round
#: The same task runs with logs off, so that only the logs differ.
_PRINTING = """
import asyncio
async def work():
    n = 0
    while True:
        if on:
            print("line", n, "of the log of a board")
        n += 1
        await asyncio.sleep_ms(10)
on = False
task = asyncio.create_task(work())
"""
_FOLLOWER = [sys.executable, "-m", "cloudmanager", "board-logs", "-f", "all"]


def rows() -> list[Row]:
    """Time `print(1)` on a quiet board, in turns with and without logs, which a caller follows."""
    with own_server.running_boards(_BOARDS + 1), Fleet() as fleet:
        printing = fleet[f"bench-[1-{_BOARDS}]"]
        quiet = fleet[f"bench-{_BOARDS + 1}"]
        printing.run(_PRINTING).raise_for_error()
        with subprocess.Popen(_FOLLOWER, stdout=subprocess.DEVNULL) as follower:
            try:
                times = _time_in_rounds(printing, lambda: quiet.run("print(1)"))
            finally:
                follower.terminate()
    with_logs, without = times[True], times[False]
    return [Row(f"a cell beside {_BOARDS} boards that log", with_logs, without, budget=1.2)]


def _time_in_rounds(printing: Boards, call: Callable[[], object]) -> dict[bool, list[float]]:
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * _ROUNDS):
        on = number % 2 == 1
        printing.run(f"on = {on}").raise_for_error()
        times[on] += time_calls(call, _CELLS)
    return times
