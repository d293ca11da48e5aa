"""The same cell on 200 and 500 boards, until the last result has arrived."""

from __future__ import annotations

from benchmarks import own_server
from benchmarks.peers import bare_forwarder, ipyparallel_exec
from benchmarks.report import Row
from benchmarks.timing import time_in_turns

_CELLS = 40
_BUDGETS = {200: 1.5, 500: 1.0}  # beside the forwarder, by the number of boards


def rows() -> list[Row]:
    """Time `print(1)` on all boards, and per target compared with ipyparallel's engines."""
    found = {boards: _time_boards(boards) for boards in _BUDGETS}
    engine = ipyparallel_exec.measure(_CELLS)
    most = max(_BUDGETS)
    target = [seconds / most for seconds in found[most][0]]
    return [
        *(
            Row(f"{boards} boards, beside a bare forwarder", mine, forwarded, _BUDGETS[boards])
            for boards, (mine, forwarded) in found.items()
        ),
        Row("per target, beside ipyparallel (20 engines)", target, engine, budget=0.1),
    ]


def _time_boards(boards: int) -> tuple[list[float], list[float]]:
    with (
        own_server.running_boards(boards) as mine,
        bare_forwarder.running_forwarder(boards) as forwarder,
    ):
        times = time_in_turns([lambda: mine.run("print(1)"), forwarder], _CELLS)
    return times[0], times[1]
