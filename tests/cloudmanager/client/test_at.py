"""Cells that start at one instant on all boards (`at`), and the clocks of boards."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import pytest

from cloudmanager import Fleet
from cloudmanager.protocol.errors import BoardError, ServerError

pytestmark = pytest.mark.usefixtures("boards")


def test_cell_starts_at_the_same_instant_on_all_boards(fleet: Fleet):
    at = time.time() + 1.5
    results = fleet["demo-[1-3]"].run("import cm\ncm.now_ms()", at=at)
    for board, started in results.to_dict().items():
        result = results[board]
        assert result.late is not None
        assert result.clock_error is not None
        assert 0 <= result.late < 0.1
        assert abs(started / 1000 - at - result.late) < 0.1
        assert result.to_json()["late"] == result.late
    assert time.time() >= at


@pytest.mark.parametrize("how", ["+1s", "+0.8", "datetime"])
def test_time_can_be_from_now(fleet: Fleet, how: str):
    at = datetime.now() + timedelta(seconds=1) if how == "datetime" else how
    before = time.time()
    result = fleet["demo-1"].run("6 * 7", at=at)["demo-1"]
    assert result.value == 42
    assert time.time() - before > 0.7
    assert result.late is not None


def test_waiting_cell_can_be_interrupted(fleet: Fleet):
    group = fleet["demo-[1-2]"].submit("ran = 1", at="+200s")
    assert group.accepted.wait(30)
    group.interrupt()
    results = group.results(30)
    assert {result.status for result in results.values()} == {"interrupted"}
    assert [result.late for result in results.values()] == [None, None]


def test_timeout_counts_from_the_start(fleet: Fleet):
    before = time.time()
    result = fleet["demo-1"].run("while True: pass", at="+1s", timeout=0.5)["demo-1"]
    assert result.status == "timeout"
    assert time.time() - before > 1.4


def test_busy_board_says_that_it_does_not_run_the_cell(fleet: Fleet):
    group = fleet["demo-1"].submit("import time\nwhile True: time.sleep(0.01)")
    assert group.accepted.wait(30)
    results = fleet["demo-[1-2]"].run("6 * 7", at="+1s")
    assert results["demo-2"].value == 42
    with pytest.raises(BoardError, match="it was busy at that time; it did not run"):
        _ = results["demo-1"].value
    late = fleet["demo-1"].submit("6 * 7", at="+0.5", late="run")
    assert late.accepted.wait(30)
    time.sleep(0.7)
    group.interrupt()
    result = late.results(30)["demo-1"]
    assert result.value == 42
    assert result.late is not None
    assert result.late > 0.1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"at": "+301s"}, "at is 5 minutes ahead at most"),
        ({"at": 1000.0}, "at was .* ago, by the server's clock; nothing ran"),
        ({"at": "+1s", "when_online": True}, "at is for boards that are there"),
        ({"late": "run"}, "late is about cells that start at a time"),
    ],
)
def test_unsuitable_time_is_refused(fleet: Fleet, options, why):
    with pytest.raises(ServerError, match=why):
        fleet["demo-1"].run("ran = 1", **options)
