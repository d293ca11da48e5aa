"""Resets of the chip, and the boot loader, on virtual boards and on a stand-in of `machine`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cloudmanager import AsyncFleet, Boards, Fleet
from cloudmanager.client import restarts
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer, running_boards

WAIT = 30.0  # seconds that anything here may take on a busy machine
#: Counts its starts, then keeps the board busy.
BUSY_PROGRAM = b"""
import os
with open("/starts", "a") as file:
    file.write("x")
while True:
    pass
"""


@pytest.fixture
def two(fleet: Fleet, boards: VirtualBoards) -> Boards:
    return fleet["demo-[1-2]"]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_hard_reset_ends_when_the_boards_are_back(two: Boards):
    two.run("variable = 1").raise_for_error()
    links = {board["name"]: board["connected_since"] for board in two.info()}
    states: list[tuple[str, int, int]] = []
    assert two.reset(hard=True, progress=lambda *state: states.append(state)).ok
    assert ("demo-1", 0, 1) in states
    assert set(states[-2:]) == {("demo-1", 1, 1), ("demo-2", 1, 1)}
    for board in two.info():
        assert board["state"] == "idle"
        assert board["connected_since"] > links[board["name"]]
    assert "NameError" in two.run("variable")["demo-2"].traceback


def test_hard_reset_of_a_board_whose_program_sleeps_ends_when_it_is_asleep(
    server: RunningServer, fleet: Fleet
):
    with running_boards(server, fleet, ["sleeper-1"]):
        one = fleet["sleeper-1"]
        one.put(b"import cm\ncm.sleep(60)\n", ":app.py").raise_for_error()
        assert one.reset(hard=True).ok
        until(lambda: one.info()[0]["state"] == "asleep")
    fleet.revoke("sleeper-1")


def test_hard_reset_starts_the_program_again_though_it_keeps_the_board_busy(
    fleet: Fleet, boards: VirtualBoards
):
    one = fleet["demo-1"]

    def is_busy() -> bool:
        return bool(one.info()[0]["program"] == "app.py")

    try:
        one.put(BUSY_PROGRAM, ":app.py").raise_for_error()
        assert one.reset().ok
        assert not is_busy()
        for _ in range(2):
            assert one.reset(hard=True).ok
            until(is_busy)
    finally:
        assert one.reset().ok
    assert one.read(":starts").value == b"xx"
    one.rm([":app.py", ":starts"]).raise_for_error()


def test_hard_resets_in_a_row_neither_end_a_good_program_nor_count_as_faults(
    server: RunningServer, fleet: Fleet
):
    with running_boards(server, fleet, ["again-1"]):
        one = fleet["again-1"]
        app = b"import asyncio\nasync def main():\n    await asyncio.sleep(100)\n"
        one.put(app, ":app.py").raise_for_error()
        for _ in range(5):  # with three, safe mode would be next
            assert one.reset(hard=True).ok
            until(lambda: one.info()[0]["program"] == "app.py")
        assert fleet.health().of_board("again-1") == []
    fleet.revoke("again-1")


async def test_hard_reset_in_asyncio(fleet: Fleet, boards: VirtualBoards):
    async with AsyncFleet() as others:
        assert (await others["demo-1"].reset(hard=True)).ok


def test_board_that_does_not_come_back_is_reported(
    fleet: Fleet, boards: VirtualBoards, monkeypatch
):
    monkeypatch.setattr(restarts, "RESTART_SECONDS", 0.3)
    monkeypatch.setattr(restarts, "_RESET_CODE", "1")
    error = fleet["demo-1"].reset(hard=True)["demo-1"].error
    assert isinstance(error, TimeoutError)
    assert "did not come back from its reset within 0.3 s" in str(error)


def test_offline_board_is_reported(fleet: Fleet, boards: VirtualBoards):
    fleet.enrol(["demo-away"])
    results = fleet["demo-2,demo-away"].reset(hard=True)
    assert (results["demo-2"].status, results["demo-away"].status) == ("ok", "offline")
    fleet.revoke("demo-away")


def test_bridged_board_is_reset(bridged_unix: Boards):
    bridged_unix.run("variable = 1").raise_for_error()
    since = bridged_unix.info()[0]["connected_since"]
    assert bridged_unix.reset(hard=True).ok
    assert bridged_unix.info()[0]["connected_since"] > since
    assert "NameError" in bridged_unix.run("variable")["unix-1"].traceback


#: A chip with a boot loader, which notes that it was started.
MACHINE = """
import sys
class machine:
    @staticmethod
    def bootloader():
        with open("/booted", "w") as file:
            file.write("yes")
sys.modules["machine"] = machine
"""


def test_boot_loader_is_started_after_the_result_was_sent(
    fleet: Fleet, boards: VirtualBoards, monkeypatch
):
    monkeypatch.setattr(restarts, "_BOOTLOADER_CODE", MACHINE + restarts._BOOTLOADER_CODE)
    one = fleet["demo-1"]
    assert one.bootloader().ok
    until(lambda: one.stat(":booted").ok)
    one.rm(":booted").raise_for_error()
    assert one.reset().ok


def test_board_without_a_boot_loader_says_so(two: Boards):
    for result in two.bootloader().values():
        assert "this board's MicroPython cannot start a boot loader" in str(result.error)
