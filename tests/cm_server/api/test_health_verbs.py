"""The verb ``health``: of which boards, for whom, at which server."""

from __future__ import annotations

import time
from typing import Any

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two
from tests.cm_server.peers import FACTS, FakeBoard, FakeCaller, Identity, Service
from tests.cm_server.test_board_health import TRACEBACK


async def crash(board: FakeBoard, text: str = TRACEBACK, error: str = "") -> None:
    """Print a traceback, and report that an error has ended the program."""
    await board.send(wire.LOG, bytes(4) + text.encode())
    if error:
        await board.send(wire.PROGRAM, f"app.py ended: {error}".encode())


async def restart(service: Service, identity: Identity, times: int, cause: str = "wdt") -> None:
    for number in range(times + 1):
        facts = {**FACTS, "reset": cause}
        async with await FakeBoard.join(service, identity, boot=f"b{number}", facts=facts):
            pass


async def health(caller: FakeCaller) -> dict[str, Any]:
    reply: dict[str, Any] = (await caller.ask("health"))["reply"]
    return reply


async def until_crashes(service: Service, caller: FakeCaller, boards: int) -> list[dict[str, Any]]:
    """Return the errors, once so many boards have one."""
    while True:
        crashes: list[dict[str, Any]] = (await health(caller))["crashes"]
        if sum(len(each["boards"]) for each in crashes) >= boards:
            return crashes


async def test_equal_errors_are_grouped_and_restarts_counted(service: Service):
    first, second, third = service.enrol("lab-1", "lab-2", "lab-3")
    await restart(service, third, 4)
    before = time.time()
    async with (
        await FakeBoard.join(service, first) as one,
        await FakeBoard.join(service, second) as two,
        await FakeCaller.join(service) as caller,
    ):
        await crash(one, error="ValueError: no sensor")
        await crash(two, error="ValueError: no sen")  # a board cuts what it reports
        (group,) = await until_crashes(service, caller, 2)
        assert sorted(group["boards"]) == ["lab-1", "lab-2"]
        assert group["text"] == TRACEBACK.rstrip("\n")
        assert before <= group["first"] <= group["last"] <= time.time()
        reply = await health(caller)
        assert (reply["hours"], reply["restarts"]) == (24, {"lab-3": {"wdt": 4}})
        assert reply["parts"] == [[["run"], ["lab-1", "lab-2"]]]


async def test_error_without_a_traceback_is_its_last_line(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await FakeCaller.join(service) as caller,
    ):
        await crash(board, "", "OSError: 5")
        (group,) = await until_crashes(service, caller, 1)
        assert (group["text"], group["boards"]) == ("OSError: 5", ["lab-1"])


async def test_viewers_get_no_text_of_logs(service: Service):
    first, second = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, first) as one,
        await FakeBoard.join(service, second) as two,
        await FakeCaller.join(service, service.add_token("viewer")) as viewer,
    ):
        await crash(one)
        await crash(two, "", "OSError: 5")
        groups = await until_crashes(service, viewer, 2)
        assert {each["boards"][0]: each["text"] for each in groups} == {
            "lab-1": None,
            "lab-2": "OSError: 5",
        }


async def test_other_boards_are_not_mentioned(service: Service):
    first, second = service.enrol("lab-1", "vault-1")
    await restart(service, second, 3)
    async with (
        await FakeBoard.join(service, first) as one,
        await FakeBoard.join(service, second, boot="b3") as two,
        await FakeCaller.join(service) as owner,
        await FakeCaller.join(service, service.add_token("admin", "lab-*")) as caller,
    ):
        await crash(two)
        (group,) = await until_crashes(service, owner, 1)
        await crash(one)
        await until_crashes(service, owner, 2)
        reply = await health(caller)
        assert "vault" not in str(reply)
        assert reply["crashes"][0]["first"] > group["first"]


async def test_all_servers_know_what_went_wrong_at_each(two: Two):
    first, second = await two.enrol("lab-1", "lab-2")
    await restart(two.a, first, 2)
    async with (
        await FakeBoard.join(two.a, first, boot="b2") as one,
        await FakeBoard.join(two.b, second) as other,
        await FakeCaller.join(two.b) as caller,
    ):
        await crash(one)
        await crash(other)
        (group,) = await until_crashes(two.b, caller, 2)
        assert sorted(group["boards"]) == ["lab-1", "lab-2"]
        assert (await health(caller))["restarts"] == {"lab-1": {"wdt": 2}}
