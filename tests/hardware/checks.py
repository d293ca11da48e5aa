"""The checks of the hardware suite: how one is declared and run, and the table of their outcomes.

A check is a function that takes a `Bench` and returns a figure, such as "12 ms". It fails by an
exception. After each check the board must run a cell: a check that takes the board out of the fleet
fails, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Bench

Function = Callable[["Bench"], str]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        what: what the row of the table says.
        function: performs it.
        needs: a sentence about what is missing if it cannot run, or None.
    """

    what: str
    function: Function
    needs: Callable[[Bench], str | None]


@dataclass(frozen=True)
class Row:
    """The outcome of one check."""

    what: str
    figure: str
    outcome: str  # "passed", "failed" or "not run"
    seconds: float


class Checks(list[Check]):
    """Checks in the order in which they run; `add` is the decorator that declares one."""

    def add(
        self, what: str, needs: Callable[[Bench], str | None] = lambda bench: None
    ) -> Callable[[Function], Function]:
        """Declare a check."""

        def declare(function: Function) -> Function:
            self.append(Check(what, function, needs))
            return function

        return declare


def run_checks(checks: Iterable[Check], bench: Bench, report: Callable[[Row], None]) -> list[Row]:
    """Run checks one after the other; a board that cannot be recovered ends the run.

    Args:
        checks: the checks.
        bench: the board and its server.
        report: is called with each row as soon as it is known.
    """
    rows: list[Row] = []
    for check in checks:
        row = _run_check(check, bench)
        rows.append(row)
        report(row)
        if bench.is_lost:
            break
    return rows


def _run_check(check: Check, bench: Bench) -> Row:
    since = time.monotonic()
    if missing := check.needs(bench):
        return Row(check.what, missing, "not run", 0.0)
    figure, outcome = "", "passed"
    try:
        figure = check.function(bench)
    except Exception as error:  # whatever it is, the next checks run
        figure, outcome = _one_line(error), "failed"
    if lost := bench.recover():
        figure, outcome = f"{figure}; {lost}".removeprefix("; "), "failed"
    return Row(check.what, figure, outcome, time.monotonic() - since)


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def markdown_table(header: str, rows: Sequence[Row]) -> str:
    """Return the table that a contributor pastes into an issue."""
    lines = [header, "", "| what | figure | outcome | s |", "|---|---|---|---|"]
    for row in rows:
        figure = row.figure.replace("|", "\\|")
        lines.append(f"| {row.what} | {figure} | {row.outcome} | {row.seconds:.1f} |")
    count = {name: sum(row.outcome == name for row in rows) for name in _OUTCOMES}
    lines += ["", ", ".join(f"{number} {name}" for name, number in count.items() if number)]
    return "\n".join(lines)


_OUTCOMES = ("passed", "failed", "not run")
