"""Faults between a caller and the server, at each step of a job (rows.py)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from cloudmanager.client import cell_verbs, link
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import RunOptions

from .conftest import WAIT, Bench, Rows, Slot, selected_rows, until
from .proxy import Proxy, Strike
from .rows import ALL, CALLER, PRINTS, WAITS, CallerRow, guarded_caller, in_records

pytestmark = pytest.mark.timeout(240)  # the first test waits for a slot while all rows run
#: Message to the caller -> the board's message that is held until the fault is armed; and the
#: output that the caller has received by then.
HELD_MESSAGE = {"SUBMIT": "", "ACCEPTED": "OUTPUT", "OUTPUT": "OUTPUT", "RESULT": "RESULT"}
OUTPUT_BEFORE = {"OUTPUT": "", "RESULT": ALL}
SOME = 3.0  # seconds after which a caller counts as waiting


@pytest.fixture(scope="module")
def rows(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Rows]:
    """Start all selected rows."""
    rows = Rows(bench)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "HEARTBEAT_SECONDS", 1.5)
        for row in selected_rows(request, bench.kind):
            assert isinstance(row, CallerRow)
            rows.start(str(row), functools.partial(run_row, bench, row))
        yield rows
        rows.end()


def run_row(bench: Bench, row: CallerRow, slot: Slot) -> CallerRow:
    """Run a cell with a fault between the server and a new caller; return the outcome."""
    board = slot.fleet[slot.name]
    board.submit("open('/runs', 'w').close()", wait=WAIT).results(WAIT).raise_for_error()
    before = newest(slot)
    if bench.kind == "plain":
        proxy = bench.loop.proxy(bench.server.tcp_port)
        proxy.strike(row.strike)
        with Fleet(f"http://127.0.0.1:{proxy.tcp_port}", bench.token) as fleet:
            caller_result, output = run_from_caller(
                fleet, slot.name, SOME if row.caller_result == WAITS else WAIT
            )
    else:
        proxy = bench.loop.proxy(bench.server.tcp_port, tls=True)
        with Fleet(f"https://127.0.0.1:{proxy.tcp_port}", bench.token) as fleet:
            fleet.status()  # opens the link: the following messages belong to the cell
            caller_result, output = run_from_caller(
                fleet, slot.name, WAIT, Sequence(row, slot, proxy)
            )
    assert proxy.struck.wait(WAIT), "the fault did not happen"
    if row.record:
        until(lambda: newest(slot) != before, "the server did not receive the cell")
    until(lambda: not any(job["status"] is None for job in slot.fleet.jobs(slot.name)), "it runs")
    job = slot.fleet.jobs(slot.name)[0]
    record = "" if job["job"] == before else job["status"]
    counted = board.submit("len(open('/runs').read())", wait=WAIT).results(WAIT)
    return CallerRow(row.strike, caller_result, record, counted.value, output)


class Sequence:
    """Sends one TLS record after the other, so that the fault strikes the intended one.

    The board's message of that step is held until the caller has received everything before it.
    """

    def __init__(self, row: CallerRow, slot: Slot, proxy: Proxy) -> None:
        self._at, self._slot, self._proxy = row.strike.at, slot, proxy
        self._strike = row.strike._replace(nth=1, up=self._at == "SUBMIT")
        if self._at != "SUBMIT":
            slot.proxy.strike(in_records(Strike("hold", HELD_MESSAGE[self._at])))
        if self._at in ("SUBMIT", "ACCEPTED"):
            proxy.strike(self._strike)

    def release(self, group: JobGroup) -> None:
        """Arm the fault, then forward the held message."""
        if self._at == "SUBMIT":
            return
        assert self._slot.proxy.struck.wait(WAIT)
        if self._at != "ACCEPTED":
            until(lambda: group.jobs, "it was not accepted")
            (job,) = group.jobs.values()
            until(
                lambda: job.read_output()[0] == OUTPUT_BEFORE[self._at], "its output did not come"
            )
            self._proxy.strike(self._strike)
        self._slot.proxy.released.set()


def newest(slot: Slot) -> int:
    number: int = slot.fleet.jobs(slot.name)[0]["job"]
    return number


def run_from_caller(
    fleet: Fleet, board: str, seconds: float, sequence: Sequence | None = None
) -> tuple[str, str]:
    """Run the cell; return the caller's result and the output that it received."""
    group = JobGroup(cell_verbs.make_cell(PRINTS, None), RunOptions(timeout=5))
    try:
        fleet.exchange().submit(group, board)
        if sequence is not None:
            sequence.release(group)
        if not group.wait(seconds):
            fleet.close()  # closing the link ends the waiting
            assert group.finished.done
            return WAITS, "".join(job.read_output()[0] for job in group.jobs.values())
        (result,) = group.results(0).values()
    except CloudmanagerError as error:
        return type(error).__name__, ""
    return result.status, result.stdout


def check(found: object, row: CallerRow) -> None:
    assert found == row


@pytest.mark.parametrize("bench", ["plain"], indirect=True)
@pytest.mark.parametrize("row", CALLER, ids=str)
def test_fault_between_caller_and_server(bench: Bench, rows: Rows, row: CallerRow):
    rows.check(str(row), lambda found: check(found, row))


@pytest.mark.parametrize("bench", ["tls"], indirect=True)
@pytest.mark.parametrize("row", [row for row in CALLER if row.strike.at in HELD_MESSAGE], ids=str)
def test_fault_between_caller_and_server_over_tls(bench: Bench, rows: Rows, row: CallerRow):
    rows.check(str(row), lambda found: check(found, guarded_caller(row)))
