"""Cells that start at a time: what is sent to boards, and those that cannot be in time."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two, run
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service

PARTS: dict[str, Any] = {"parts": ["run", "files", "clock", "now_ms"]}


@pytest.fixture
def lab(service: Service) -> Identity:
    """Return the identity of lab-1, which is not connected yet."""
    (identity,) = service.enrol("lab-1")
    return identity


def head_of(message: wire.Message) -> tuple[int, int, int, bytes, float]:
    """Return flags, timeout in ms, size, code and time of the EXEC of a short cell."""
    timeout_ms, size = struct.unpack_from(">II", message.payload)
    code, _, digits = message.payload[8:].rpartition(b"\n#")
    assert len(digits) == 16
    return message.flags, timeout_ms, size, code, int(digits) / 1e6


async def test_cell_is_sent_before_its_time_with_the_wait_in_its_timeout(
    service: Service, lab: Identity
):
    async with (
        await FakeBoard.join(service, lab, **PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        before = time.time()
        (job,) = await caller.submit("lab-1", b"1", at="+20", timeout=3, late="run", awaits=True)
        flags, timeout_ms, size, code, at = head_of(await run(board))
        assert flags == wire.AT_TIME | wire.RUN_LATE | wire.TOP_LEVEL_AWAIT
        assert (code, size) == (b"1", len(b"1\n#") + 16)
        assert before + 20 <= at <= time.time() + 20
        assert 3000 < timeout_ms <= 23_000
        lateness = struct.pack(">iI", 250, 900)
        for _ in range(3):
            await board.send(wire.LATENESS, lateness, job=job)
        await board.end(job)
        message = await caller.event()
        assert wire.read_lateness(message) == (0.00025, 0.0009)
        assert (await caller.event()).op == wire.RESULT, "it is forwarded once"


async def test_lateness_of_a_cell_without_a_time_is_not_forwarded(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab, **PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1")
        assert (await run(board)).flags == 0
        await board.send(wire.LATENESS, bytes(8), job=job)
        await board.end(job)
        assert (await caller.event()).op == wire.RESULT


async def test_board_with_an_older_client_does_not_run_the_cell(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab, parts=["run", "clock"]),
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1", at="+20")
        status, why = await caller.ending(job)
        assert status == "error"
        assert why.startswith("its client cannot start a cell at a time; mbm board-upgrade-client")


async def test_busy_board_is_given_up_at_the_time_and_not_before(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab, **PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        (first,) = await caller.submit("lab-1")
        await run(board)
        began = time.monotonic()
        (second,) = await caller.submit("lab-1", at="+0.4")
        (third,) = await caller.submit("lab-1", b"3", at="+0.4", late="run")
        assert await caller.ending(second) == (
            "error",
            "it was busy at that time; it did not run",
        )
        assert time.monotonic() - began >= 0.39
        await board.end(first)
        flags, _, _, code, _ = head_of(await run(board))
        assert (flags, code) == (wire.AT_TIME | wire.RUN_LATE, b"3")
        await board.end(third)
        assert (await caller.ending(third))[0] == "ok"


async def test_board_that_is_free_before_the_time_gets_the_cell(service: Service, lab: Identity):
    async with (
        await FakeBoard.join(service, lab, **PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        (first,) = await caller.submit("lab-1")
        await run(board)
        (second,) = await caller.submit("lab-1", b"2", at="+30")
        await board.end(first)
        assert head_of(await run(board))[3] == b"2"
        await board.end(second)
        assert (await caller.ending(second))[0] == "ok"


async def test_timeout_begins_at_the_time(service: Service, lab: Identity):
    """The server gives up a board that does not confirm its timeout, and no sooner."""
    async with (
        await FakeBoard.join(service, lab, **PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        began = time.monotonic()
        (job,) = await caller.submit("lab-1", at="+1", timeout=0.1)
        await run(board)
        assert (await caller.ending(job))[0] == "timeout"
        assert time.monotonic() - began >= 1.9


@pytest.mark.parametrize(
    "head",
    [{"acts": [["stat", "/"]]}, {"fresh": True, "code": b""}, {"settings": {}}],
)
async def test_only_cells_have_a_time(service: Service, lab: Identity, head):
    async with (
        await FakeBoard.join(service, lab, **PARTS),
        await FakeCaller.join(service) as caller,
    ):
        code = head.pop("code", b"")
        packed = wire.pack_submit(5, {"target": "lab-1", "at": "+2", **head}, code)
        await caller.socket.send(packed)
        reply = await caller.next()
        assert reply.op == wire.REPLY
        assert wire.read_json(reply.payload)["args"] == ["only a cell can start at a time"]


async def test_time_is_the_same_on_a_board_of_another_server(pair: Two):
    _, board = await pair.board_at_b(**PARTS)
    async with board, await FakeCaller.join(pair.a) as caller:
        at = time.time() + 20
        (job,) = await caller.submit("lab-1", at=at)
        message = await run(board)
        assert head_of(message)[4] == pytest.approx(at, abs=1e-5)
        await board.send(wire.LATENESS, struct.pack(">iI", 1, 2), job=message.job)
        await board.end(message.job)
        seen: list[int] = []
        while not seen or seen[-1] != wire.RESULT:
            seen.append((await caller.event()).op)
        assert seen[-2:] == [wire.LATENESS, wire.RESULT]
        assert message.job == job


async def test_time_from_now_is_new_for_each_cell_with_the_same_text(
    service: Service, lab: Identity
):
    """The server remembers the head of the last SUBMIT, but not when it was."""
    async with (
        await FakeBoard.join(service, lab, **PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        times = []
        for _ in range(3):
            (job,) = await caller.submit("lab-1", at="+20")
            times.append(head_of(await run(board))[4])
            await board.end(job)
            await caller.ending(job)
        assert times[0] < times[1] < times[2]
