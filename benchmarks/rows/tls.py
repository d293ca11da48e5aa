"""One cell on one board and back: both links by TLS, with the certificates verified, and plain."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import ours
from benchmarks.report import Row
from benchmarks.timing import in_turns

_CELLS = 1000


def rows() -> list[Row]:
    """Times `print(1)` on two servers of ours, in turns."""
    with ours.running(1) as plain, ours.running(1, "0.0.0.0") as secure:
        calls: list[Callable[[], object]] = [
            lambda: secure.run("print(1)"),
            lambda: plain.run("print(1)"),
        ]
        mine, clear = in_turns(calls, _CELLS)
    return [Row("one board by TLS, beside plain", mine, clear, budget=1.3)]
