"""Between a board and the server: every fault of rows.py, at every step of a job."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import pytest

from .conftest import WAIT, Bench, Desk, Rows, chosen, until
from .rows import (
    ALL,
    FRESH,
    GREETING,
    HANDSHAKE,
    NEVER,
    SPINS,
    TALKS,
    WORK,
    Row,
    guarded,
    guarded_greeting,
    in_records,
)

pytestmark = pytest.mark.timeout(240)  # the first one waits for its turn with all others


@pytest.fixture(scope="module")
def rows(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Rows]:
    """All rows that were chosen, begun."""
    rows = Rows(bench)
    for row in chosen(request, bench.kind):
        assert isinstance(row, Row)
        rows.begin(str(row), functools.partial(act, bench.kind, row))
    yield rows
    rows.end()


def act(kind: str, row: Row, desk: Desk) -> Row:
    """Let a row's fault strike while its cell is on the way; return what came of it."""
    board = desk.fleet[desk.name]
    board.submit("open('/runs', 'w').close()", wait=WAIT).results(WAIT).raise_for_error()
    if row in GREETING or row in HANDSHAKE:
        send_away(desk)
    desk.proxy.strike(in_records(row.strike) if kind == "tls" else row.strike)
    fresh, code = row.cell == FRESH, TALKS if row.cell == FRESH else row.cell
    late = row.strike.fault == "half-open" or kind != "plain"  # a silence has to be noticed first
    seconds = 15 if late and row.cell != SPINS else 2
    group = board.submit(code, timeout=seconds, wait=WAIT, fresh=fresh, listen=True)
    desk.proxy.shut = False
    kinds = []
    deadline = time.monotonic() + WAIT
    for event in group.events(tick=1):
        assert time.monotonic() < deadline, "somebody hangs"
        kinds.append(event.kind if event else "")
        if row.cell == SPINS and event and event.kind == "output":
            group.interrupt()
    assert kinds.count("ended") == 1
    assert desk.proxy.struck.wait(WAIT), "the fault had nothing to strike"
    (result,) = group.results().values()
    runs = counted(desk)
    status = desk.fleet.job(result.job)["status"]
    record = "" if status == result.status else status
    why = result.why or (result.traceback or "")
    return row._replace(status=result.status, runs=runs, why=why, said=result.stdout, record=record)


def counted(desk: Desk) -> int:
    """How often the cell ran; after a message that was dropped, the next one ends the link."""
    while True:
        group = desk.fleet[desk.name].submit("len(open('/runs').read())", wait=WAIT)
        (result,) = group.results(WAIT).values()
        if NEVER not in result.why:
            runs: int = result.value
            return runs


def send_away(desk: Desk) -> None:
    """Cut the board's link; it comes back once ``shut`` is over."""
    desk.proxy.shut = True
    desk.proxy.hang_up()
    until(lambda: not desk.fleet.boards(desk.name)[0]["connected_since"], "the board did not leave")


def check(found: object, row: Row) -> None:
    """Hold what came of a row against what should."""
    assert isinstance(found, Row)
    if row.said is None and found.said is not None and ALL.startswith(found.said):
        found = found._replace(said=None)
    told = (found.status, found.runs, found.said, found.record)
    assert told == (row.status, row.runs, row.said, row.record)
    assert row.why in found.why


@pytest.mark.parametrize("row", WORK, ids=str)
def test_fault_in_a_job(bench: Bench, rows: Rows, row: Row):
    row = row if bench.kind == "plain" else guarded(row, bench.kind)
    rows.hold(str(row), lambda found: check(found, row))


@pytest.mark.parametrize("row", GREETING, ids=str)
def test_fault_in_the_greeting(bench: Bench, rows: Rows, row: Row):
    row = row if bench.kind == "plain" else guarded_greeting(row)
    rows.hold(str(row), lambda found: check(found, row))


@pytest.mark.parametrize("bench", ["tls"], indirect=True)
@pytest.mark.parametrize("row", HANDSHAKE, ids=str)
def test_fault_in_the_tls_handshake(bench: Bench, rows: Rows, row: Row):
    rows.hold(str(row), lambda found: check(found, row))
