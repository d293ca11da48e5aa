"""Between a caller and the server: every fault of rows.py, at every step of a job."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from cloudmanager.client import link, verbs
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.protocol.errors import CloudmanagerError

from .conftest import WAIT, Bench, Desk, Rows, chosen, until
from .proxy import Proxy, Strike
from .rows import ALL, CALLER, TALKS, WAITS, CallerRow, guarded_caller, in_records

pytestmark = pytest.mark.timeout(240)  # the first one waits for its turn with all others
#: Before which of the board's messages the caller's is, and what he has of the output by then.
BEHIND = {"SUBMIT": "", "ACCEPTED": "OUTPUT", "OUTPUT": "OUTPUT", "RESULT": "RESULT"}
HAS = {"OUTPUT": "", "RESULT": ALL}
SOME = 3.0  # seconds after which a caller that waits is believed to wait


@pytest.fixture(scope="module")
def rows(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Rows]:
    """All rows that were chosen, begun."""
    rows = Rows(bench)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "HEARTBEAT_SECONDS", 1.5)
        for row in chosen(request, bench.kind):
            assert isinstance(row, CallerRow)
            rows.begin(str(row), functools.partial(act, bench, row))
        yield rows
        rows.end()


def act(bench: Bench, row: CallerRow, desk: Desk) -> CallerRow:
    """Let a fault strike between the server and a caller of one's own."""
    board = desk.fleet[desk.name]
    board.submit("open('/runs', 'w').close()", wait=WAIT).results(WAIT).raise_for_error()
    before = newest(desk)
    if bench.kind == "plain":
        proxy = bench.loop.proxy(bench.server.tcp_port)
        proxy.strike(row.strike)
        with Fleet(f"http://127.0.0.1:{proxy.tcp_port}", bench.token) as fleet:
            told, said = what_is_told(fleet, desk.name, SOME if row.told == WAITS else WAIT)
    else:
        proxy = bench.loop.proxy(bench.server.tcp_port, tls=True)
        with Fleet(f"https://127.0.0.1:{proxy.tcp_port}", bench.token) as fleet:
            fleet.status()  # the link is open: what comes next is the row's
            told, said = what_is_told(fleet, desk.name, WAIT, ByTurns(row, desk, proxy))
    assert proxy.struck.wait(WAIT), "the fault had nothing to strike"
    if row.record:
        until(lambda: newest(desk) != before, "the cell never came")
    until(lambda: not any(job["status"] is None for job in desk.fleet.jobs(desk.name)), "it runs")
    job = desk.fleet.jobs(desk.name)[0]
    record = "" if job["job"] == before else job["status"]
    counted = board.submit("len(open('/runs').read())", wait=WAIT).results(WAIT)
    return CallerRow(row.strike, told, record, counted.value, said)


class ByTurns:
    """Lets one record pass after the other, so that it is known which one the fault strikes.

    What the board says at that step is held until the caller has all that comes before.
    """

    def __init__(self, row: CallerRow, desk: Desk, proxy: Proxy) -> None:
        self._at, self._desk, self._proxy = row.strike.at, desk, proxy
        self._strike = row.strike._replace(nth=1, up=self._at == "SUBMIT")
        if self._at != "SUBMIT":
            desk.proxy.strike(in_records(Strike("hold", BEHIND[self._at])))
        if self._at in ("SUBMIT", "ACCEPTED"):
            proxy.strike(self._strike)

    def release(self, group: JobGroup) -> None:
        """Have the fault strike what comes next."""
        if self._at == "SUBMIT":
            return
        assert self._desk.proxy.struck.wait(WAIT)
        if self._at != "ACCEPTED":
            until(lambda: group.jobs, "it was not accepted")
            (job,) = group.jobs.values()
            until(lambda: job.read_output()[0] == HAS[self._at], "its output did not come")
            self._proxy.strike(self._strike)
        self._desk.proxy.go.set()


def newest(desk: Desk) -> int:
    number: int = desk.fleet.jobs(desk.name)[0]["job"]
    return number


def what_is_told(
    fleet: Fleet, board: str, seconds: float, turns: ByTurns | None = None
) -> tuple[str, str]:
    """Run the cell: how it ended for the caller, and what he has of its output."""
    group = JobGroup(verbs.make_cell(TALKS, None))
    try:
        verbs.submit_group(fleet[board], group, {"timeout": 5})
        if turns is not None:
            turns.release(group)
        if not group.wait(seconds):
            fleet.close()  # nobody waits for ever: the link's end ends it
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
    rows.hold(str(row), lambda found: check(found, row))


@pytest.mark.parametrize("bench", ["tls"], indirect=True)
@pytest.mark.parametrize("row", [row for row in CALLER if row.strike.at in BEHIND], ids=str)
def test_fault_between_caller_and_server_over_tls(bench: Bench, rows: Rows, row: CallerRow):
    rows.hold(str(row), lambda found: check(found, guarded_caller(row)))
