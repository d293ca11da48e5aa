"""Upgrade of the client over the network: a real server, and chips that run real MicroPython."""

from __future__ import annotations

import time

import pytest

from cloudmanager.board_client import client_files
from cloudmanager.client import client_upgrade as upgrading
from cloudmanager.client.fleet import Fleet
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer

SIZE = sum(map(len, client_files().values()))


@pytest.fixture(autouse=True)
def _home(server: RunningServer):
    """Set CM_HOME to the shared server's folder."""


@pytest.fixture
def chip(tmp_path, mbm, fleet: Fleet):
    """A board on a chip, hung-1."""
    with Chip(tmp_path) as chip:
        chip.flash[0] = 0xE9
        chip.press_reset()
        done = mbm("flash", "--port", chip.port, "--no-flash", "--name", "hung-1")
        assert done.status == 0, done.err
        yield chip


def test_board_gets_and_keeps_the_new_client(chip, mbm, fleet: Fleet):
    done = mbm("board-upgrade-client", "hung-1")
    assert (done.status, done.out) == (0, "hung-1: the new client is running\n")
    states: list[tuple[int, int]] = []
    fleet["hung-1"].upgrade_client(
        progress=lambda _, *state: states.append(state)
    ).raise_for_error()
    assert states == sorted(states)
    assert states[-1] == (SIZE, SIZE)
    listed = fleet["hung-1"].run(
        "import os\nsorted(os.listdir('/lib')), 'trial' in os.listdir('/lib/cm')"
    )
    assert listed.value == (["cm", "cm_start.mpy"], False)
    fleet["hung-1"].submit("import machine\nmachine.reset()")
    assert fleet["hung-1"].run("6 * 7", wait=20, timeout=10).value == 42


def wait_for_ends(fleet: Fleet, numbers: list[int]) -> list[tuple[str, str]]:
    """Return the statuses and the errors of jobs, once they have ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        jobs = [fleet.job(number) for number in numbers]
        if all(job["status"] is not None for job in jobs):
            return [(job["status"], job["error"]) for job in jobs]
        time.sleep(0.1)
    raise AssertionError(f"they have not ended: {jobs}")


@pytest.mark.timeout(90)
def test_upgrade_that_waits_is_four_jobs_of_which_the_last_confirms_it(chip, mbm, fleet: Fleet):
    done = mbm("board-upgrade-client", "hung-1", "--when-online", "--json")
    assert done.status == 0, done.err
    last = done.json["hung-1"]["job"]
    assert wait_for_ends(fleet, list(range(last - 3, last + 1))) == [("ok", "")] * 4
    listed = fleet["hung-1"].run(
        "import os\nsorted(os.listdir('/lib')), 'trial' in os.listdir('/lib/cm')"
    )
    assert listed.value == (["cm", "cm_start.mpy"], False)


@pytest.mark.timeout(90)
def test_upgrade_that_waits_and_does_not_start_says_so(chip, fleet: Fleet, monkeypatch):
    broken = {**client_files(), "/lib/cm/link.py": b"1 / 0"}
    monkeypatch.setattr(upgrading, "client_files", lambda: broken)
    last = fleet["hung-1"].upgrade_client(when_online=True)["hung-1"].job
    ends = wait_for_ends(fleet, list(range(last - 3, last + 1)))
    assert [status for status, _ in ends] == ["ok", "ok", "ok", "error"]
    assert "the new client did not start; the old one was restored" in ends[-1][1]
    assert fleet["hung-1"].run("6 * 7", timeout=10).value == 42


def test_upgrade_that_waits_touches_no_board_without_a_client_of_its_own(boards, fleet: Fleet):
    last = fleet["demo-1"].upgrade_client(when_online=True)["demo-1"].job
    ends = wait_for_ends(fleet, list(range(last - 3, last + 1)))
    assert [status for status, _ in ends] == ["error"] * 4
    assert "its client was not installed by mbm flash" in ends[0][1]


def test_client_that_does_not_start_is_rolled_back(chip, mbm, fleet: Fleet, monkeypatch):
    broken = {**client_files(), "/lib/cm/link.py": b"1 / 0"}  # it is found before link.mpy
    monkeypatch.setattr(upgrading, "client_files", lambda: broken)
    done = mbm("board-upgrade-client", "hung-1", "--json")
    assert done.status == 1
    assert done.json == {
        "hung-1": {
            "status": "error",
            "error": "the new client did not start; the old one was restored",
        }
    }
    assert fleet["hung-1"].run("6 * 7", timeout=10).value == 42


def test_client_with_wrong_bytes_is_not_started(chip, fleet: Fleet, monkeypatch):
    monkeypatch.setattr(
        upgrading, "_WRITE_CODE", upgrading._WRITE_CODE.replace("(data)", "(data[:-1])")
    )
    results = fleet["hung-1"].upgrade_client()
    assert results["hung-1"].why == "the files on the board differ from those that were sent"
    assert fleet["hung-1"].run("import os\n'ok' in os.listdir('/lib/cm.new')").value is False


def test_virtual_and_offline_boards_are_not_upgraded(boards, fleet: Fleet, mbm):
    fleet.enrol(["absent-1"])
    try:
        done = mbm("board-upgrade-client", "demo-1,absent-1")
        assert done.status == 1
        assert "mbm: absent-1: it is offline." in done.err
        assert "mbm: demo-1: its client was not installed by mbm flash." in done.err

        def progress(board: str, done: int, total: int) -> None:
            pytest.fail(f"{done} of {total} bytes were written to {board}")

        assert not fleet["demo-1,absent-1"].upgrade_client(progress=progress).ok
    finally:
        fleet.revoke("absent-1")
