"""``mbm fleet-health`` and ``mbm board-info``, with real boards."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from tests.cloudmanager.conftest import WAIT
from tests.conftest import RunningServer, running_boards, wait_online

APP = """
def measure():
    raise ValueError("no sensor")

measure()
"""
NAMES = ["ill-1", "ill-2"]


def restart(fleet: Fleet, ill, name: str, times: int) -> None:
    """End the board's process and start it again, several times; wait for its program's end."""
    for _ in range(times):
        since = next(board["connected_since"] for board in fleet.boards(name))
        ill.kill(name)
        ill.restart(name)
        wait_online(fleet, [name], since=since)
        until(lambda: [each for each in fleet.boards(name) if has_ended(each)], 1)


def has_ended(board: dict[str, Any]) -> bool:
    return str(board["program"]).startswith(("app.py ended", "safe mode"))


@pytest.fixture
def ill(server: RunningServer, fleet: Fleet, own_token: None):
    """Two boards that only the token of the test reaches; their program raises an error."""
    with running_boards(server, fleet, NAMES) as boards:
        for name in NAMES:
            code = f"with open('/app.py', 'w') as f: f.write({APP!r})"
            assert fleet[name].run(code).ok
        yield boards
    fleet.revoke(",".join(NAMES))


@pytest.fixture
def own_token(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """Let `mbm` use a token that reaches boards of these tests alone."""
    made = fleet.request("token-create", name="nurse", role="admin", target="ill-*")
    monkeypatch.setenv("CM_TOKEN", made["token"])
    yield
    fleet.request("token-revoke", name="nurse")


def until(find, expected: int):
    """Return what is found, once it has as many items."""
    deadline = time.monotonic() + WAIT
    while len(found := find()) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_healthy_fleet_and_one_with_absent_boards(server, fleet, own_token, mbm):
    done = mbm("fleet-health")
    assert (done.status, done.out) == (0, "0 boards, 0 connected: nothing is wrong.\n")
    fleet.enrol(["ill-7"])
    try:
        done = mbm("fleet-health")
        assert (done.status, done.err) == (1, "")
        assert done.out.splitlines()[0] == "1 board, 0 connected, 1 finding:"
        assert "absent  ill-7: never connected since enrolment." in done.out
        (finding,) = mbm("fleet-health", "--json").json["findings"]
        assert (finding["kind"], finding["boards"]) == ("absent", ["ill-7"])
    finally:
        fleet.revoke("ill-7")


def test_crashed_program_is_found_and_then_its_safe_mode_and_restarts(ill, fleet, mbm):
    for name in NAMES:
        restart(fleet, ill, name, 1)

    def crashes():
        found = mbm("fleet-health", "--json").json["findings"]
        return [name for each in found if each["kind"] == "crashed" for name in each["boards"]]

    assert sorted(until(crashes, 2)) == NAMES
    shown = mbm("fleet-health")
    assert shown.status == 1
    assert "crashed  ill-[1-2]: ValueError: no sensor" in shown.out
    restart(fleet, ill, "ill-1", 3)
    found = {each.kind: each for each in fleet.health() if "ill-1" in each.boards}
    assert found["safe mode"].boards == ("ill-1",)
    assert "(ValueError: no sensor)" in found["safe mode"].text
    assert found["restarting"].text.startswith("restarted 4 times in 24 h, mostly: ")
    ill.kill("ill-2")

    def absent():
        gone = [each for each in fleet.health() if each.kind == "absent"]
        return [each for each in gone if "ill-2" in each.boards]

    until(absent, 1)


def test_board_info_shows_what_is_known(boards, fleet, mbm):
    fleet["demo-1"].label({"room": "lab"})
    try:
        lines = mbm("board-info", "demo-1").out.splitlines()
        assert lines[0].startswith("── demo-1 ─")
        rows = dict(line.split(maxsplit=1) for line in lines[1:])
        assert (rows["state"], rows["labels"]) == ("idle", "room=lab")
        known = mbm("board-info", "demo-1", "--json").json
        assert (known["name"], known["packages"], known["findings"]) == ("demo-1", {}, [])
        several = mbm("board-info", "demo-[1-2]", "--json").json
        assert [each["name"] for each in several] == ["demo-1", "demo-2"]
        assert mbm("board-info", "demo-7").status == 2
    finally:
        fleet["demo-1"].label({"room": ""})


async def test_async_fleet_has_health(boards, server):
    async with AsyncFleet(server.url) as fleet:
        health = await fleet.health()
        assert health.connected >= 3
