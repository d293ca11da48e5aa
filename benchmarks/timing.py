"""Repeated timing of calls; the results are lists of seconds, without averaging."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Calls before the first measured one, which fill caches, allocators and TCP windows.
WARM_UP_CALLS = 20

#: Consecutive calls of one contender in its turn: enough to warm up again.
CALLS_PER_TURN = 25


def time_calls(call: Callable[[], object], n: int, *, warm_up: int = WARM_UP_CALLS) -> list[float]:
    """Call a function `n` times after a warm-up, and return how long each call took.

    Args:
        call: the function.
        n: the number of measured calls.
        warm_up: the number of calls before those.

    Returns:
        `n` times in seconds, in the order of the calls.
    """
    for _ in range(warm_up):
        call()
    return [_time_call(call) for _ in range(n)]


def time_in_turns(calls: list[Callable[[], object]], n: int) -> list[list[float]]:
    """Time several functions in turns, so that a busy moment of the machine affects all of them.

    Args:
        calls: the functions.
        n: the number of measured calls of each.

    Returns:
        For each function its `n` times in seconds.
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
