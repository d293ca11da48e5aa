"""The round trip of a cell on one board, with verified TLS on both links, and plain."""

from __future__ import annotations

from functools import partial

from benchmarks import own_server
from benchmarks.report import Row
from benchmarks.timing import time_in_turns

_CELLS = 1000


def rows() -> list[Row]:
    """Time `print(1)` on two servers, in turns."""
    with own_server.running_boards(1) as plain, own_server.running_boards(1, "0.0.0.0") as secure:
        mine, clear = time_in_turns([partial(at.run, "print(1)") for at in (secure, plain)], _CELLS)
    return [Row("one board by TLS, beside plain", mine, clear, budget=1.3)]
