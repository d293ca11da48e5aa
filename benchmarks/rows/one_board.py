"""A cell's round trip on one board: Cloudmanager, the bare forwarder, the floor, mpremote."""

from __future__ import annotations

from benchmarks import own_server
from benchmarks.peers import bare_forwarder, floor, mpremote_exec
from benchmarks.report import Row
from benchmarks.timing import time_in_turns

_CELLS = 1000


def rows() -> list[Row]:
    """Time `print(1)`, the contenders in turns."""
    with (
        own_server.running_boards(1) as boards,
        bare_forwarder.running_forwarder() as forwarder,
        floor.running_floor() as least,
        mpremote_exec.running_mpremote() as mpremote,
    ):
        calls = [lambda: boards.run("print(1)"), forwarder, least, mpremote]
        mine, forwarded, needed, executed = time_in_turns(calls, _CELLS)
    return [
        Row("one board, beside a bare forwarder", mine, forwarded, budget=1.2),
        Row("one board, beside the floor of a server that commits", mine, needed, budget=None),
        Row("one board, beside mpremote's exec over a pty", mine, executed, budget=2.2),
    ]
