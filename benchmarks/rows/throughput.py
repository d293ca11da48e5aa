"""Cells a second of 20 callers over 200 boards, and whether all callers get their share."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import own_server
from benchmarks.peers import bare_forwarder, floor
from benchmarks.report import Row
from cloudmanager import Fleet

_BOARDS = 200
_CALLERS = 20  # each with boards of its own, one after another
_TURNS = 4
_TURN_SECONDS = 1.5
_SHARE = 0.7  # of the forwarder's cells a second
#: Runs a cell on the board with a number.
_Call = Callable[[int], object]


def rows() -> list[Row]:
    """Let the callers run cells at once: ours, the forwarder's and the floor's in turns."""
    with (
        own_server.running_boards(_BOARDS),
        contextlib.ExitStack() as stack,
        bare_forwarder.running_callers(_BOARDS, _CALLERS) as forwarded,
        floor.running_callers(_BOARDS, _CALLERS) as least,
    ):
        fleets = [stack.enter_context(Fleet()) for _ in range(_CALLERS)]
        mine = [_cell_of(fleet) for fleet in fleets]
        rates, waits = _take_turns(mine, forwarded, least)
    ours, forwarder, needed = rates
    label = f"{_CALLERS} callers on {_BOARDS} boards"
    return [
        Row(f"{label}: a cell, beside a bare forwarder", ours, forwarder, 1 / _SHARE),
        Row(f"{label}: a cell, beside the floor of a server that commits", ours, needed, None),
        Row(f"{label}: who waits longest, beside the median", [max(waits)], waits, 3),
    ]


def _cell_of(fleet: Fleet) -> _Call:
    boards = [fleet[f"bench-{number}"] for number in range(1, _BOARDS + 1)]
    return lambda number: boards[number].run("print(1)").raise_for_error()


def _take_turns(
    mine: Sequence[_Call], *others: Sequence[_Call]
) -> tuple[list[list[float]], list[float]]:
    """Return seconds per cell in each turn, of each contender; and the median of each caller."""
    contenders = (mine, *others)
    rates: list[list[float]] = [[] for _ in contenders]
    waits: list[list[float]] = [[] for _ in mine]
    with ThreadPoolExecutor(_CALLERS) as pool:
        for _ in range(_TURNS):
            for calls, turns in zip(contenders, rates, strict=True):
                times = list(pool.map(_run_for_a_turn, calls, range(_CALLERS)))
                turns.append(_TURN_SECONDS / sum(map(len, times)))
                if calls is mine:
                    for kept, new in zip(waits, times, strict=True):
                        kept += new
    return rates, [statistics.median(kept) for kept in waits]


def _run_for_a_turn(call: _Call, number: int) -> list[float]:
    """Run cells until the turn is over, each on the caller's next board; return their seconds."""
    share = _BOARDS // _CALLERS
    ends, times = time.perf_counter() + _TURN_SECONDS, list[float]()
    while (begun := time.perf_counter()) < ends:
        call(number * share + len(times) % share)
        times.append(time.perf_counter() - begun)
    return times
