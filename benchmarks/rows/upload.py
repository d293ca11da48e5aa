"""Upload of 1 MB to one board, compared with mpremote over a pty; and over a slow link."""

from __future__ import annotations

import functools
import itertools
import os

from benchmarks import own_server
from benchmarks.peers import mpremote_put
from benchmarks.report import Row
from benchmarks.throttle import throttled_port
from benchmarks.timing import time_calls
from cloudmanager import Boards

_SIZE = 1_000_000  # bytes
_REPETITIONS = 5  # of Cloudmanager; mpremote takes seconds
_RATE = 100_000.0  # bytes a second
_DELAY = 0.05  # seconds


def rows() -> list[Row]:
    """Time complete uploads: hash, send, write, verify, rename."""
    data = os.urandom(_SIZE)
    with (
        own_server.running_boards(1, flash="4M") as boards,
        mpremote_put.running_mpremote_write(data) as theirs,
    ):
        mine = time_calls(
            functools.partial(_upload_new_content, boards, itertools.count()),
            _REPETITIONS,
            warm_up=1,
        )
        peer = time_calls(theirs, 2, warm_up=0)
    narrow = functools.partial(throttled_port, rate=_RATE, delay=_DELAY)
    with own_server.board_behind_proxy(narrow) as boards:
        slow = time_calls(
            functools.partial(_upload_new_content, boards, itertools.count()), 1, warm_up=0
        )
    return [
        Row("1 MB to one board, beside mpremote over a pty", mine, peer, budget=1 / 20),
        Row(
            "1 MB over 100 KB/s with 50 ms, beside the link alone",
            slow,
            [_SIZE / _RATE],
            budget=1 / 0.9,
            unit="s",
        ),
    ]


def _upload_new_content(boards: Boards, numbers: itertools.count[int]) -> None:
    """Upload new content to the same path."""
    data = next(numbers).to_bytes(4, "big") + os.urandom(_SIZE - 4)
    boards.put(data, ":/data.bin").raise_for_error()
