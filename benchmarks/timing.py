"""Timing of one call, over and over: plain lists of seconds, no averages hidden inside."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Calls before the first one that counts: caches, allocators and TCP windows settle in them.
WARM_UP_CALLS = 20

#: Calls in a row of one contender before the next one's turn: long enough that it is warm again.
CALLS_PER_TURN = 25


def time_calls(call: Callable[[], object], n: int, *, warm_up: int = WARM_UP_CALLS) -> list[float]:
    """Calls `n` times, after a warm-up, and returns how long each took.

    Args:
        call: what is timed.
        n: how many of them count.
        warm_up: how many go before.

    Returns:
        `n` times in seconds, in the order of the calls.
    """
    for _ in range(warm_up):
        call()
    return [_time_call(call) for _ in range(n)]


def time_in_turns(calls: list[Callable[[], object]], n: int) -> list[list[float]]:
    """Times several calls in turns, so that a busy moment of the machine hits all of them.

    Args:
        calls: the contenders.
        n: how many calls of each count.

    Returns:
        For each contender its `n` times in seconds.
    """
    times: list[list[float]] = [time_calls(call, 0) for call in calls]
    while len(times[-1]) < n:
        for call, mine in zip(calls, times, strict=True):
            mine += time_calls(call, min(CALLS_PER_TURN, n - len(mine)), warm_up=2)
    return times


def _time_call(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
