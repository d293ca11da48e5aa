"""The boards' clocks: their errors on 50 boards whose counters drift, and cells at one instant.

All boards and the server are on this machine, so its clock is the truth (``time.time_ns()`` on a
virtual board). The boards' counters are replaced by ones that are wrong by up to 50 ppm, and the
boards are looked at a minute after their last exchange with the server.

``python -m benchmarks.rows.clock`` writes what was measured as JSON, for ``clock_plot.py``.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from benchmarks import own_server
from benchmarks.report import Row
from cloudmanager import Boards

_BOARDS: Final = 50
_AT_ONCE: Final = 8  # boards that start a cell at one instant
_ROUNDS: Final = 10
_PAUSE_SECONDS: Final = 60.0  # between two exchanges, and until the clocks are looked at
_AGING: Final = 1 / 64_000  # by which the bound of an error grows, as in mpy_client/cm/clock.py
_BAR_CHARS: Final = 50

_DRIFTING_COUNTERS: Final = """
import sys, time as real, cm
class Time:
    def __init__(self, ppm):
        self.ppm, self.start = ppm, real.ticks_us()
    def ticks_us(self):
        us = real.ticks_diff(real.ticks_us(), self.start)
        return us + us * self.ppm // 1000000
    def ticks_ms(self):
        return self.ticks_us() // 1000
    def __getattr__(self, name):
        return getattr(real, name)
firmware, state, link = (sys.modules["cm." + name] for name in ("firmware", "state", "link"))
firmware.time = Time(ppm)
for part in ("clock", "now_ms"):
    link.drop(part)
state.clock = None
link.find("clock").set_clock(real.time_ns() // 1000000)
"""
_MEASURE: Final = "state.clock[3] = 1000000\nlink.find('clock').measure()"
#: The error of the clock, and the bound that the board gives for it (µs): of ten readings, the one
#: during which the least passed, since a board that is not scheduled in between would look wrong.
_ERROR: Final = """
found = []
for _ in range(10):
    before = real.time_ns()
    now = cm.now_ms(1)
    after = real.time_ns()
    found.append((after - before, now - (before + after) // 2000))
(min(found)[1], state.clock[3])
"""


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        drifts: by how much the counter of each board is wrong, in millionths.
        errors: by how many seconds the clock of each is ahead, a minute after it has asked.
        bounds: by how many seconds it may be wrong, as it says.
        starts: for each cell that started at one instant, by how many seconds each board was late.
    """

    drifts: list[int]
    errors: list[float]
    bounds: list[float]
    starts: list[list[float]]


def measure() -> Figures:
    """Measure; it takes three minutes."""
    with own_server.running_boards(_BOARDS) as boards:
        names = boards.names()
        drifts = [(n * 7) % 101 - 50 for n in range(len(names))]
        inputs = {name: {"ppm": drift} for name, drift in zip(names, drifts, strict=True)}
        boards.run(_DRIFTING_COUNTERS, inputs_by_board=inputs).raise_for_error()
        boards.run(_MEASURE).raise_for_error()
        time.sleep(_PAUSE_SECONDS)
        boards.run(_MEASURE).raise_for_error()
        time.sleep(_PAUSE_SECONDS)
        found = boards.run(_ERROR).to_dict()
    aging = _AGING * _PAUSE_SECONDS
    with own_server.running_boards(_AT_ONCE) as boards:
        starts = _start_at_once(boards)
    return Figures(
        drifts,
        [found[name][0] / 1e6 for name in names],
        [round(found[name][1] / 1e6 + aging, 6) for name in names],
        starts,
    )


def rows() -> list[Row]:
    """Measure, and print a plot of all errors."""
    figures = measure()
    errors = [abs(error) for error in figures.errors]
    pairs = zip(errors, figures.bounds, strict=True)
    beyond = [max(error - bound, 0.0) for error, bound in pairs]
    spreads = [max(starts) - min(starts) for starts in figures.starts]
    _print_histogram("error of a board's clock", errors)
    _print_histogram("start after its time", [late for starts in figures.starts for late in starts])
    return [
        Row(f"clock of {_BOARDS} boards, median error", [statistics.median(errors)], [], 2e-3),
        Row(f"clock of {_BOARDS} boards, 90th percentile", [_percentile(errors, 90)], [], 2e-3),
        Row(f"clock of {_BOARDS} boards, worst error", [max(errors)], [], 20e-3),
        Row(f"clock of {_BOARDS} boards, worst beyond its bound", [max(beyond)], [], 2e-3),
        Row(f"first to last start of a cell on {_AT_ONCE} boards", spreads, [], 5e-3),
        Row(f"first to last start on {_AT_ONCE} boards, worst", [max(spreads)], [], 10e-3),
    ]


def _start_at_once(boards: Boards) -> list[list[float]]:
    """Start cells at one instant; return for each by how many seconds each board was late."""
    found = []
    for _ in range(_ROUNDS):
        at = time.time() + 2
        results = boards.run("import time\ntime.time_ns()", at=at, late="run")
        found.append([round(ns / 1e9 - at, 6) for ns in results.to_dict().values()])
    return found


def _percentile(values: Iterable[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) * percent // 100]


def _print_histogram(title: str, values: list[float]) -> None:
    """Print how many values there are in each of the steps 0.1, 0.2, 0.5, 1, 2, 5 … ms."""
    print(f"{title}, {len(values)} values", file=sys.stderr)
    values = [abs(value) for value in values]
    low = 0.0
    steps = [10.0**power * digit for power in range(-4, 3) for digit in (1, 2, 5)]
    for high in [step for step in steps if step <= 2.5 * max(values) * 1000 or step <= 1]:
        count = sum(low <= value * 1000 < high for value in values)
        bar = "█" * round(_BAR_CHARS * count / len(values))
        if count:
            print(f"  {low:8g} to {high:g} ms  {count:4d} {bar}", file=sys.stderr)
        low = high


if __name__ == "__main__":
    json.dump(dataclasses.asdict(measure()), sys.stdout)
    sys.stdout.write("\n")
