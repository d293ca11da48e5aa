"""Whoever has few rights can do no more through another server of the fleet."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two, three_servers, two_servers
from tests.cm_server.peers import FakeBoard, FakeCaller, Service
from tests.engines import Nats, Postgres

READS: list[dict[str, Any]] = [
    {"verb": "boards"},
    {"verb": "boards", "target": "all"},
    {"verb": "jobs"},
    {"verb": "samples", "target": "all"},
    {"verb": "installed", "target": "all"},
    {"verb": "health"},
    {"verb": "status"},
]
REFUSED: list[dict[str, Any]] = [
    {"verb": "interrupt", "jobs": [1]},
    {"verb": "stop", "target": "lab-2"},
    {"verb": "reserve", "target": "lab-2", "seconds": 60},
    {"verb": "release", "target": "lab-2"},
    {"verb": "stay", "target": "lab-2", "seconds": 60},
    {"verb": "label", "target": "lab-2", "labels": {"a": "b"}},
    {"verb": "offer", "sha256": "a" * 64, "size": 1},
    {"verb": "plan", "target": "lab-2", "wanted": ["x"]},
    {"verb": "enrol", "names": ["lab-2"]},
    {"verb": "rename", "target": "lab-2", "name": "lab-3"},
    {"verb": "import", "rows": [{"board": "lab-2", "note": "x"}]},
    {"verb": "rotate", "target": "lab-2"},
    {"verb": "revoke", "target": "lab-2"},
    {"verb": "token-create", "name": "t"},
    {"verb": "secret-set", "name": "s", "value": "hunter22"},
    {"verb": "secret-list"},
    {"verb": "secret-remove", "name": "s"},
    {"verb": "token-list"},
    {"verb": "audit"},
    {"verb": "logs", "target": "lab-2"},
    {"verb": "enrol-token", "target": "lab-*"},
    {"verb": "token-revoke", "name": "viewer"},
]


async def ask(service: Service, token: str, body: dict[str, Any]) -> Any:
    async with await FakeCaller.join(service, token) as caller:
        return await caller.ask(body["verb"], **{k: v for k, v in body.items() if k != "verb"})


@pytest.fixture(params=["two, one process", "three, postgresql, nats"])
async def servers(
    request: pytest.FixtureRequest, soon: None, tmp_path: Path
) -> AsyncIterator[list[Service]]:
    if request.param.startswith("two"):
        async with two_servers(tmp_path, tmp_path / "shared.db") as two:
            yield [two.a, two.b]
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        nats: Nats = request.getfixturevalue("nats")
        async with three_servers(tmp_path, postgres.new(), nats.url) as services:
            yield services


async def until_all(servers: list[Service], condition: Callable[[Service], object]) -> None:
    for service in servers:
        await service.until(functools.partial(condition, service))


async def test_viewer_of_one_board_is_a_viewer_of_it_at_each_server(servers: list[Service]):
    a, *_, last = servers
    first, second = a.enrol("lab-1", "lab-2")
    viewer = a.add_token("viewer", "lab-2")
    await until_all(servers, lambda each: len(each.server.registry.by_name) == 2)
    await until_all(servers, lambda each: len(each.server.tokens.describe()) == len(servers) + 1)
    async with (
        await FakeBoard.join(last, first) as one,
        await FakeBoard.join(a, second),
        await FakeCaller.join(a) as admin,
    ):
        await until_all(servers, lambda each: each.state("lab-1") == each.state("lab-2") == "idle")
        (job,) = await admin.submit("lab-1")
        assert (await one.next()).op == wire.EXEC
        await one.send(wire.OUTPUT, b"secret output", job=job)
        await one.send(wire.EMIT, struct.pack(">Q", 1) + b'{"secret": 1}')
        await one.send(wire.LOG, struct.pack(">I", 0) + b"secret log\n")
        for service in servers:
            for body in READS:
                reply = str((await ask(service, viewer, body))["reply"])
                assert "lab-1" not in reply, body
                assert "secret" not in reply, body
            assert "no job" in str(await ask(service, viewer, {"verb": "job", "job": job}))
            for body in REFUSED:
                assert (await ask(service, viewer, body)).get("error") == "NotAllowed", body
            async with await FakeCaller.join(service, viewer) as caller:
                await caller.socket.send(wire.pack_submit(1, {"target": "lab-2"}, b"1"))
                assert b"NotAllowed" in (await caller.next()).payload
                await caller.send(wire.WATCH, b'{"target":"lab-1"}', job=2)
                assert b"NoSuchBoard" in (await caller.next()).payload
                await caller.send(wire.WATCH, b'{"target":"lab-2","logs":true}', job=4)
                assert b"NotAllowed" in (await caller.next()).payload
                await caller.send(wire.ANSWER, b"hello", job=job)  # it is not theirs: no effect
                await caller.send(wire.WATCH, b'{"target":"all"}', job=3)
                changes = wire.read_json((await caller.next()).payload)
                assert [board["name"] for board in changes["boards"]] == ["lab-2"]
        await one.end(job, rest=b"1")
        assert await admin.ending(job) == ("ok", "1")


def _states(service: Service) -> set[str]:
    return {token["state"] for token in service.server.tokens.describe()}


async def test_operator_of_one_board_reaches_no_other_one_at_any_server(servers: list[Service]):
    a, *_, last = servers
    first, second = a.enrol("lab-1", "lab-2")
    operator = a.add_token("operator", "lab-2")
    await until_all(servers, lambda each: len(each.server.registry.by_name) == 2)
    await until_all(servers, lambda each: len(each.server.tokens.describe()) == len(servers) + 1)
    async with (
        await FakeBoard.join(last, first) as one,
        await FakeBoard.join(last, second) as two,
        await FakeCaller.join(a) as admin,
    ):
        await until_all(servers, lambda each: each.state("lab-1") == each.state("lab-2") == "idle")
        (job,) = await admin.submit("lab-1")
        assert (await one.next()).op == wire.EXEC
        for service in servers:
            async with await FakeCaller.join(service, operator) as caller:
                await caller.socket.send(wire.pack_submit(1, {"target": "lab-1,lab-2"}, b"1"))
                assert b"NoSuchBoard" in (await caller.next()).payload
            assert await ask(service, operator, {"verb": "interrupt", "jobs": [job]}) == {
                "reply": 0
            }
            for verb in ("stop", "label", "plan", "logs"):
                body = {"verb": verb, "target": "lab-1", "labels": {"a": "b"}, "wanted": ["x"]}
                assert "NoSuchBoard" in str(await ask(service, operator, body)), verb
            async with await FakeCaller.join(service, operator) as caller:
                (mine,) = await caller.submit("all")
                assert (await two.next()).op == wire.EXEC
                await two.end(mine, rest=b"2")
                assert await caller.ending(mine) == ("ok", "2")
        a.revoke_token("operator")
        await until_all(servers, lambda each: "revoked" in _states(each))
        for service in servers:
            with pytest.raises(InvalidStatus):
                await FakeCaller.join(service, operator)
        await one.end(job, rest=b"1")
        assert await admin.ending(job) == ("ok", "1")


async def test_board_at_another_server_that_ignores_the_window_is_refused(pair: Two):
    _, board = await pair.board_at_b(parts=["run", "files"], buf=65536)
    async with board, await FakeCaller.join(pair.a) as caller:
        (job,) = await caller.submit("lab-1", b"", acts=[["get", "/x"]])
        assert (await board.next()).op == wire.FILE
        caller.socket.transport.pause_reading()
        with contextlib.suppress(Exception):  # its link may be closed in the middle
            for _ in range(200):  # the sockets on the way take megabytes
                await board.send(wire.CHUNK, bytes(60_000), job=job)
        await pair.a.until(lambda: job not in pair.a.server.dispatch.jobs)
        caller.socket.transport.resume_reading()
        status, why = await caller.ending(job)
        assert status == "error"
        assert "more of a file than was acknowledged" in why
