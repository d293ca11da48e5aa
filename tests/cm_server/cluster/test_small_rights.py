"""Whoever has few rights can do no more through another server of the fleet."""

from __future__ import annotations

import contextlib
from typing import Any

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two
from tests.cm_server.peers import FakeBoard, FakeCaller, Service

READS: list[dict[str, Any]] = [
    {"verb": "boards"},
    {"verb": "boards", "target": "all"},
    {"verb": "jobs"},
    {"verb": "samples", "target": "all"},
    {"verb": "installed", "target": "all"},
    {"verb": "health"},
]
REFUSED: list[dict[str, Any]] = [
    {"verb": "interrupt", "jobs": [1]},
    {"verb": "stop", "target": "lab-2"},
    {"verb": "reserve", "target": "lab-2", "seconds": 60},
    {"verb": "release", "target": "lab-2"},
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
]


async def ask(service: Service, token: str, body: dict[str, Any]) -> Any:
    async with await FakeCaller.join(service, token) as caller:
        return await caller.ask(body["verb"], **{k: v for k, v in body.items() if k != "verb"})


async def test_viewer_of_one_board_is_a_viewer_of_it_at_each_server(pair: Two):
    first, second = await pair.enrol("lab-1", "lab-2")
    viewer = pair.a.add_token("viewer", "lab-2")
    await pair.b.until(lambda: len(pair.b.server.tokens.describe()) == 3)
    async with (
        await FakeBoard.join(pair.b, first) as one,
        await FakeBoard.join(pair.a, second),
        await FakeCaller.join(pair.a) as admin,
    ):
        await pair.seen("lab-1")
        await pair.seen("lab-2")
        (job,) = await admin.submit("lab-1")
        assert (await one.next()).op == wire.EXEC
        for service in (pair.a, pair.b):
            for body in READS:
                reply = str((await ask(service, viewer, body))["reply"])
                assert "lab-1" not in reply, body
            assert "no job" in str(await ask(service, viewer, {"verb": "job", "job": job}))
            for body in REFUSED:
                assert (await ask(service, viewer, body)).get("error") == "NotAllowed", body
            async with await FakeCaller.join(service, viewer) as caller:
                await caller.socket.send(wire.pack_submit(1, {"target": "lab-2"}, b"1"))
                assert b"NotAllowed" in (await caller.next()).payload
                await caller.send(wire.WATCH, b'{"target":"lab-1"}', job=2)
                assert b"NoSuchBoard" in (await caller.next()).payload
                await caller.send(wire.WATCH, b'{"target":"all"}', job=3)
                changes = wire.read_json((await caller.next()).payload)
                assert [board["name"] for board in changes["boards"]] == ["lab-2"]


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
