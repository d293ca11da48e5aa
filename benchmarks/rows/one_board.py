"""One cell on one board and back: ours, the bare forwarder, mpremote over a pty."""

from __future__ import annotations

from benchmarks.peers import bare_forwarder, mpremote_exec
from benchmarks.report import Row
from benchmarks.timing import in_turns

_CELLS = 500


def rows() -> list[Row]:
    """Times `print(1)`, the contenders in turns."""
    with bare_forwarder.running() as forwarder, mpremote_exec.running() as mpremote:
        forwarded, executed = in_turns([forwarder, mpremote], _CELLS)
    return [
        Row("one board, beside a bare forwarder", [], forwarded, budget=1.5),
        Row("one board, beside mpremote's exec over a pty", [], executed, budget=2.5),
    ]
