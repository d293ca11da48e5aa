"""Reserving and releasing boards: who may, for how long, at which server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cm_server.limits import Limits
from tests.cm_server.pairs import Two
from tests.cm_server.peers import FakeBoard, FakeCaller, Service, running_service


async def caller_named(service: Service, name: str, role: str = "operator") -> FakeCaller:
    return await FakeCaller.join(service, service.add_token(role, name=name))


def reserved(service: Service, name: str = "lab-1") -> Any:
    return service.server.registry.by_name[name].describe()["reserved"]


async def test_reserved_board_keeps_jobs_of_others_waiting(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await caller_named(service, "anna") as anna,
        await caller_named(service, "bob") as bob,
    ):
        before = time.time()
        reply = (await anna.ask("reserve", target="lab-1", seconds=3600))["reply"]
        assert reply["boards"] == ["lab-1"]
        assert before + 3600 <= reply["until"] <= time.time() + 3600
        await bob.socket.send(wire.pack_submit(9, {"target": "lab-1"}, b"1"))
        (number, ahead, known) = wire.read_json((await bob.event()).payload)["queued"][0]
        assert ahead == 1
        assert (known["reserved_by"], known["reserved_until"]) == ("anna", reply["until"])
        (own,) = await anna.submit("lab-1")
        assert (await board.next()).job == own
        await board.end(own)
        assert (await anna.ending(own))[0] == "ok"
        assert await anna.ask("release", target="lab-1") == {"reply": ["lab-1"]}
        assert (await board.next()).job == number


async def test_board_that_somebody_has_reserved_is_refused_as_a_whole(service: Service):
    service.enrol("lab-1", "lab-2")
    async with (
        await caller_named(service, "anna") as anna,
        await caller_named(service, "bob") as bob,
    ):
        await anna.ask("reserve", target="lab-2", seconds=60)
        refused = await bob.ask("reserve", target="lab-[1-2]", seconds=60)
        assert refused["error"] == "ServerError"
        assert refused["args"][0].startswith("lab-2: reserved by anna until 20")
        assert reserved(service, "lab-1") is None
        stopped = await bob.ask("stop", target="lab-2")
        assert "reserved by anna" in stopped["args"][0]
        longer = (await anna.ask("reserve", target="lab-2", seconds=600))["reply"]
        assert reserved(service, "lab-2")["until"] == longer["until"]


async def test_only_administrators_release_what_others_have_reserved(service: Service):
    service.enrol("lab-1")
    async with (
        await caller_named(service, "anna") as anna,
        await caller_named(service, "bob") as bob,
        await caller_named(service, "root", "admin") as root,
    ):
        await anna.ask("reserve", target="lab-1", seconds=60)
        refused = await bob.ask("release", target="lab-1")
        assert (refused["error"], "(lab-1)" in refused["args"][0]) == ("NotAllowed", True)
        assert reserved(service)["caller"] == "anna"
        assert await root.ask("release", target="lab-1") == {"reply": ["lab-1"]}
        assert await bob.ask("release", target="lab-1") == {"reply": []}
        assert reserved(service) is None


@pytest.mark.limits(reservation_seconds=100.0)
@pytest.mark.parametrize("seconds", [0, -1, 101, True, "1h", None, float("inf"), float("nan")])
async def test_time_is_checked(service: Service, seconds: Any):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        refused = await caller.ask("reserve", target="lab-1", seconds=seconds)
        assert "can be reserved for up to" in refused["args"][0]
        assert reserved(service) is None


async def test_idle_cell_leaves_out_boards_that_others_have_reserved(service: Service):
    first, second = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, first),
        await FakeBoard.join(service, second),
        await caller_named(service, "anna") as anna,
        await caller_named(service, "bob") as bob,
    ):
        await anna.ask("reserve", target="lab-1", seconds=60)
        assert len(await bob.submit("all", idle=True)) == 1
        assert len(await anna.submit("lab-1", idle=True)) == 1


async def test_reservation_survives_a_restart_of_the_server(tmp_path: Path, limits: Limits):
    async with running_service(tmp_path) as service:
        service.enrol("lab-1")
        async with await caller_named(service, "anna") as anna:
            until = (await anna.ask("reserve", target="lab-1", seconds=60))["reply"]["until"]
    async with running_service(tmp_path) as service:
        assert reserved(service) == {"caller": "anna", "until": until}


async def test_reservation_holds_at_all_servers(two: Two):
    identity, board = await two.board_at_b()
    anna = await caller_named(two.a, "anna")
    bob = await caller_named(two.a, "bob")
    at_b = await caller_named(two.b, "carl")
    async with board, anna, bob, at_b:
        await two.b.until(lambda: len(two.b.server.tokens.describe()) == 5)
        await anna.ask("reserve", target="lab-1", seconds=60)
        await two.b.until(lambda: reserved(two.b) is not None)
        refused = await at_b.ask("reserve", target="lab-1", seconds=60)
        assert "reserved by anna" in refused["args"][0]
        (waiting,) = await bob.submit("lab-1")
        (also,) = await at_b.submit("lab-1")
        (own,) = await anna.submit("lab-1")
        assert (await board.next()).job == own
        await board.end(own)
        assert (await anna.ending(own))[0] == "ok"
        await anna.ask("release", target="lab-1")
        first = (await board.next()).job
        await board.end(first)
        assert {first, (await board.next()).job} == {waiting, also}


async def test_of_two_servers_that_hear_nothing_of_each_other_one_reserves(pair: Two):
    await pair.enrol("lab-1")
    assert pair.hub is not None
    pair.hub.set_connected(False)
    anna, bob = await caller_named(pair.a, "anna"), await caller_named(pair.b, "bob")
    async with anna, bob:
        assert "reply" in await anna.ask("reserve", target="lab-1", seconds=60)
        refused = await bob.ask("reserve", target="lab-1", seconds=60)
        assert refused["args"][0] == (
            "somebody else has just reserved one of them at another server"
        )
