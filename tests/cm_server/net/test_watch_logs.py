"""WATCH with logs: who may follow what boards print outside of cells, and what waits for it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import frames, wire
from tests.cm_server.peers import FakeBoard, FakeCaller, RawPeer, Service, running_service, within


async def watch(caller: FakeCaller, target: str = "all", **more: Any) -> dict[str, Any]:
    """Subscribe with logs; return the first message."""
    body = {"target": target, "logs": True, **more}
    await caller.send(wire.WATCH, json.dumps(body).encode(), job=1)
    return wire.read_json((await caller.next()).payload)


async def print_log(board: FakeBoard, text: bytes, lost: int = 0) -> None:
    await board.send(wire.LOG, struct.pack(">I", lost) + text)


async def next_logs(caller: FakeCaller) -> list[tuple[str, str]]:
    """Return the next texts with their boards."""
    while True:
        body = wire.read_json((await caller.next()).payload)
        if body["logs"]:
            return [(board, text) for board, _at, _lost, text in body["logs"]]


async def test_viewer_may_not_follow_logs(service: Service):
    (lab,) = service.enrol("lab-1")
    viewer = service.add_token("viewer")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service, viewer) as caller,
        await FakeCaller.join(service) as admin,
    ):
        assert await watch(caller) == {"error": "NotAllowed", "args": ["operator", ""]}
        refused = [row for row in service.audited() if row.outcome == "refused"]
        assert [(row.who, row.verb) for row in refused] == [("viewer", "watch")]
        assert "NotAllowed" in str(await caller.ask("logs"))
        await watch(admin)
        first = await watch(caller, logs=False)
        assert first["logs"] == []
        await print_log(board, b"secret\n")
        assert await next_logs(admin) == [("lab-1", "secret\n")]
        await board.send(wire.EMIT, struct.pack(">Q", 1) + b'{"t":1}')
        body = wire.read_json((await caller.next()).payload)
        while not body["samples"]:
            assert body["logs"] == []
            body = wire.read_json((await caller.next()).payload)
        assert body["logs"] == []


async def test_viewer_follows_logs_where_the_server_lets_viewers_read_them(tmp_path: Path):
    async with running_service(tmp_path, viewers_read_logs=True) as service:
        lab, other = service.enrol("lab-1", "lab-2")
        viewer = service.add_token("viewer", "lab-1")
        async with (
            await FakeBoard.join(service, lab) as board,
            await FakeBoard.join(service, other) as unreachable,
            await FakeCaller.join(service, viewer) as caller,
        ):
            await watch(caller)
            await print_log(unreachable, b"of another board\n")
            await print_log(board, b"hello\n")
            assert await next_logs(caller) == [("lab-1", "hello\n")]


async def test_operator_follows_only_logs_of_its_boards(service: Service):
    lab, other = service.enrol("lab-1", "lab-2")
    operator = service.add_token("operator", "lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeBoard.join(service, other) as unreachable,
        await FakeCaller.join(service, operator) as caller,
    ):
        await watch(caller)
        await print_log(unreachable, b"of another board\n")
        await print_log(board, b"hello\n")
        assert await next_logs(caller) == [("lab-1", "hello\n")]
        reply = (await caller.ask("logs"))["reply"]
        assert [(name, text) for name, _, _, text in reply["logs"]] == [("lab-1", "hello\n")]


@pytest.mark.limits(
    subscription_pending_log_chars=60_000,
    subscription_update_seconds=0.01,
    log_bytes_per_second=10**9,
    log_burst_bytes=10**9,
)
async def test_logs_that_wait_for_a_slow_reader_are_bounded(service: Service):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as caller,
        await FakeCaller.join(service) as reader,
    ):
        body = json.dumps({"target": "all", "logs": True}).encode()
        caller.say(frames.encode_frame(wire.pack(wire.WATCH, body, job=1), mask=True))
        assert await caller.frame()
        (subscription,) = (each for one in service.callers for each in one._subscriptions.values())
        await watch(reader)
        for number in range(400):
            await print_log(board, b"%d" % number + b"x" * 30_000)
            await next_logs(reader)
            if subscription._dropped_logs:
                break
        assert subscription._dropped_logs
        assert subscription._log_chars <= 60_000
        for _ in range(3000):
            await print_log(board, b"", lost=1)
        await print_log(board, b"end\n")
        while ("lab-1", "end\n") not in await next_logs(reader):
            pass
        assert len(subscription._logs) <= 60_000 / 32


@pytest.mark.limits(log_bytes_per_second=1000, log_burst_bytes=5000)
async def test_board_that_floods_its_log_loses_the_excess_and_delays_nobody(service: Service):
    flooding, good = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, flooding) as board,
        await FakeBoard.join(service, good) as other,
        await FakeCaller.join(service) as caller,
    ):
        for _ in range(200):
            await print_log(board, b"x" * 1000)
        (number,) = await caller.submit("lab-2")
        assert (await other.next()).job == number
        await other.end(number, rest=b"1")
        assert await caller.ending(number) == ("ok", "1")
        await within(await board.socket.ping())
        logs = (await caller.ask("logs"))["reply"]["logs"]
        assert sum(len(text) for *_, text in logs) < 8000
        await service.until(lambda: service.state("lab-1") == "idle")
