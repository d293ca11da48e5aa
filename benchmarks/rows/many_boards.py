"""The same cell on 200 and 500 boards, until the last result is here."""

from __future__ import annotations

from benchmarks.peers import bare_forwarder, ipyparallel_exec
from benchmarks.report import Row
from benchmarks.timing import timed

_CELLS = 30
_BOARDS = (200, 500)


def rows() -> list[Row]:
    """Times `print(1)` on all boards, and per target beside ipyparallel's engines."""
    found = [_beside_forwarder(boards) for boards in _BOARDS]
    engine = ipyparallel_exec.measure(_CELLS)
    return [*found, Row("per target, beside ipyparallel (20 engines)", [], engine, budget=0.1)]


def _beside_forwarder(boards: int) -> Row:
    with bare_forwarder.running(boards) as forwarder:
        forwarded = timed(forwarder, _CELLS, warm_up=5)
    return Row(f"{boards} boards, beside a bare forwarder", [], forwarded, budget=1.5)
