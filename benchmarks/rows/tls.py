"""One cell on one board and back: both links by TLS, with the certificates verified, and plain."""

from __future__ import annotations

from functools import partial

from benchmarks import ours
from benchmarks.report import Row
from benchmarks.timing import time_in_turns

_CELLS = 1000


def rows() -> list[Row]:
    """Times `print(1)` on two servers of ours, in turns."""
    with ours.running_boards(1) as plain, ours.running_boards(1, "0.0.0.0") as secure:
        mine, clear = time_in_turns([partial(at.run, "print(1)") for at in (secure, plain)], _CELLS)
    return [Row("one board by TLS, beside plain", mine, clear, budget=1.3)]
