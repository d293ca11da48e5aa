"""A cell in the kernel, compared with another kernel's over a pty; and the kernel's start."""

from __future__ import annotations

from benchmarks import own_server
from benchmarks.peers import jupyter_kernel
from benchmarks.report import Row
from benchmarks.timing import time_in_turns

_CELLS = 300
_STARTS = 7


def rows() -> list[Row]:
    """Time `print(1)` and the start, the contenders in turns."""
    choose = "%board_use bench-1"
    with (
        own_server.running_boards(1),
        jupyter_kernel.running_kernel("cm_kernel", choose) as mine,
        jupyter_kernel.running_kernel_over_pty() as other,
    ):
        cells, others = time_in_turns([mine, other], _CELLS)
    starts = [
        (jupyter_kernel.time_start("cm_kernel"), jupyter_kernel.time_start("ipykernel_launcher"))
        for _ in range(_STARTS)
    ]
    started, peers = map(list, zip(*starts, strict=True))
    return [
        Row("a cell in the kernel, beside jupyter_micropython_kernel", cells, others, budget=1.15),
        Row("the kernel's start, beside ipykernel's", started, peers, budget=1.2),
    ]
