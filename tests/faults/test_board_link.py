"""Faults between a board and the server, at each step of a job (rows.py)."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import pytest

from .conftest import WAIT, Bench, Rows, Slot, selected_rows, until
from .rows import (
    ALL,
    CONNECTING,
    FRESH,
    HANDSHAKE,
    NEVER,
    PRINTS,
    SPINS,
    WORK,
    Row,
    guarded,
    guarded_connecting,
    in_records,
)

pytestmark = pytest.mark.timeout(240)  # the first test waits for a slot while all rows run


@pytest.fixture(scope="module")
def rows(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Rows]:
    """Start all selected rows."""
    rows = Rows(bench)
    for row in selected_rows(request, bench.kind):
        assert isinstance(row, Row)
        rows.start(str(row), functools.partial(run_row, bench.kind, row))
    yield rows
    rows.end()


def run_row(kind: str, row: Row, slot: Slot) -> Row:
    """Run a row's cell with its fault; return the row with the actual outcome."""
    board = slot.fleet[slot.name]
    board.submit("open('/runs', 'w').close()", wait=WAIT).results(WAIT).raise_for_error()
    if row in CONNECTING or row in HANDSHAKE:
        disconnect(slot)
    slot.proxy.strike(in_records(row.strike) if kind == "tls" else row.strike)
    fresh, code = row.cell == FRESH, PRINTS if row.cell == FRESH else row.cell
    late = row.strike.fault == "half-open" or kind != "plain"  # the timeout of the link comes first
    seconds = 15 if late and row.cell != SPINS else 2
    group = board.submit(code, timeout=seconds, wait=WAIT, fresh=fresh, listen=True)
    slot.proxy.refusing = False
    kinds = []
    deadline = time.monotonic() + WAIT
    for event in group.events(tick=1):
        assert time.monotonic() < deadline, "the job did not end"
        kinds.append(event.kind if event else "")
        if row.cell == SPINS and event and event.kind == "output":
            group.interrupt()
    assert kinds.count("ended") == 1
    assert slot.proxy.struck.wait(WAIT), "the fault did not happen"
    (result,) = group.results().values()
    runs = counted(slot)
    status = slot.fleet.job(result.job)["status"]
    record = "" if status == result.status else status
    why = result.why or (result.traceback or "")
    return row._replace(
        status=result.status, runs=runs, why=why, output=result.stdout, record=record
    )


def counted(slot: Slot) -> int:
    """Return how often the cell ran.

    After a dropped message, the next one may close the link: then ask again.
    """
    while True:
        group = slot.fleet[slot.name].submit("len(open('/runs').read())", wait=WAIT)
        (result,) = group.results(WAIT).values()
        if NEVER not in result.why:
            runs: int = result.value
            return runs


def disconnect(slot: Slot) -> None:
    """Close the board's link; the board reconnects when ``refusing`` is false again."""
    slot.proxy.refusing = True
    slot.proxy.close_links()
    until(
        lambda: not slot.fleet.boards(slot.name)[0]["connected_since"],
        "the board did not disconnect",
    )


def check(found: object, row: Row) -> None:
    """Compare the actual outcome with the expected one."""
    assert isinstance(found, Row)
    if row.output is None and found.output is not None and ALL.startswith(found.output):
        found = found._replace(output=None)
    outcome = (found.status, found.runs, found.output, found.record)
    assert outcome == (row.status, row.runs, row.output, row.record)
    assert row.why in found.why


@pytest.mark.parametrize("row", WORK, ids=str)
def test_fault_in_a_job(bench: Bench, rows: Rows, row: Row):
    row = row if bench.kind == "plain" else guarded(row, bench.kind)
    rows.check(str(row), lambda found: check(found, row))


@pytest.mark.parametrize("row", CONNECTING, ids=str)
def test_fault_while_connecting(bench: Bench, rows: Rows, row: Row):
    row = row if bench.kind == "plain" else guarded_connecting(row, bench.kind)
    rows.check(str(row), lambda found: check(found, row))


@pytest.mark.parametrize("bench", ["tls"], indirect=True)
@pytest.mark.parametrize("row", HANDSHAKE, ids=str)
def test_fault_in_the_tls_handshake(bench: Bench, rows: Rows, row: Row):
    rows.check(str(row), lambda found: check(found, row))
