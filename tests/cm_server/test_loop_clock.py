"""Deadlines of peers do not pass while the server itself stands still."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudmanager import config
from cloudmanager.protocol import frames, wire
from cm_server.jobs.scheduler import CONFIRM_SECONDS
from cm_server.limits import Limits
from cm_server.loop_clock import MAX_STEP_SECONDS, TICK_SECONDS, LoopClock

from .dispatching import RecordedTimer
from .pairs import run
from .peers import FakeBoard, FakeCaller, RawPeer, running_service, within


class Loop:
    """An event loop whose time tests set; it can stand still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[RecordedTimer] = []

    def later(self, seconds: float, act: Callable[[], None]) -> RecordedTimer:
        self.timers.append(RecordedTimer(self.now + seconds, act))
        return self.timers[-1]

    def run(self, seconds: float) -> None:
        """Run for some seconds; calls that are overdue are made first."""
        until = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.at <= until]:
            timer = min(due, key=lambda t: t.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.act()
        self.now = until

    def stand_still(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("before", [0.0, 0.1, 5.0])
def test_time_in_which_the_loop_stands_still_does_not_count(before: float):
    loop, called = Loop(), []
    clock = LoopClock(loop.later, lambda: loop.now)
    clock.call_later(10, lambda: called.append(loop.now))
    loop.run(before)
    loop.stand_still(60)
    loop.run(10 - before - MAX_STEP_SECONDS - TICK_SECONDS)
    assert not called
    loop.run(MAX_STEP_SECONDS + 2 * TICK_SECONDS)
    assert len(called) == 1
    assert clock.time() == pytest.approx(10, abs=MAX_STEP_SECONDS + 2 * TICK_SECONDS)


def test_time_of_a_loop_that_is_late_but_runs_counts():
    loop, called = Loop(), []
    clock = LoopClock(loop.later, lambda: loop.now)
    clock.call_later(10, lambda: called.append(loop.now))
    for _ in range(25):
        loop.stand_still(TICK_SECONDS)
        loop.run(0.2)
    assert len(called) == 1


def test_call_of_the_loop_clock_can_be_cancelled():
    loop, called = Loop(), []
    clock = LoopClock(loop.later, lambda: loop.now)
    timer = clock.call_later(1, lambda: called.append(1))
    loop.stand_still(60)
    loop.run(0)
    timer.cancel()
    loop.run(60)
    assert not called
    clock.stop()
    assert all(timer.cancelled for timer in loop.timers)


async def test_idle_boards_stay_connected_when_the_server_stood_still(tmp_path: Path):
    async with running_service(tmp_path, beat=0.2) as service:
        identities = service.enrol("lab-1", "lab-2", "lab-3")
        boards = [await FakeBoard.join(service, identity) for identity in identities]
        for board in boards:
            board.socket.transport.pause_reading()  # their answers are still on the way
        await asyncio.sleep(0.25)
        time.sleep(0.5)  # noqa: ASYNC251 - more than two heartbeats
        for board in boards:
            board.socket.transport.resume_reading()
        await asyncio.sleep(0.25)
        assert [service.state(identity.name) for identity in identities] == ["idle"] * 3
        assert service.server.dispatch.counters.silent_links == 0
        for board in boards:
            await board.socket.close()


async def test_job_is_not_given_up_because_the_server_stood_still(tmp_path: Path):
    async with running_service(tmp_path) as service:
        (lab,) = service.enrol("lab-1")
        async with (
            await FakeBoard.join(service, lab) as board,
            await FakeCaller.join(service) as caller,
        ):
            (job,) = await caller.submit("lab-1", timeout=0.1)
            await run(board)
            time.sleep(0.1 + CONFIRM_SECONDS + 0.1)  # noqa: ASYNC251
            await board.end(job, "timeout", rest=b"KeyboardInterrupt")
            assert await caller.ending(job) == ("timeout", "KeyboardInterrupt")


STALL_LIMITS = Limits(
    head_seconds=1.5, authentication_seconds=1.5, message_seconds=1.5, upload_idle_seconds=1.5
)
STALL_SECONDS = 1.8


async def test_requests_are_complete_in_time_although_the_server_stood_still(tmp_path: Path):
    """What arrives while the server stands still is read before it counts as late."""
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
    parts = [(b"", head), (head[:1], head[1:]), (head[:20], head[20:]), (body[:-2], body[-2:])]
    async with running_service(tmp_path, STALL_LIMITS) as service, contextlib.AsyncExitStack() as s:
        peers = [await s.enter_async_context(await RawPeer.dial(service)) for _ in parts]
        for peer, (first, _) in zip(peers, parts, strict=True):
            peer.say(first)
        await service.until(lambda: service.server.unauthenticated.count == len(parts))
        await asyncio.sleep(0.1)
        for peer, (_, rest) in zip(peers, parts, strict=True):
            peer.say(rest)
        time.sleep(STALL_SECONDS)  # noqa: ASYNC251
        statuses = [(await peer.head()).split()[1] for peer in peers]
        assert statuses == ["200", "200", "200", "405"]


async def test_tls_handshake_is_complete_in_time_although_the_server_stood_still(tmp_path: Path):
    async with running_service(tmp_path, STALL_LIMITS) as service:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = service.trust().wrap_bio(incoming, outgoing, server_hostname=config.TLS_NAME)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        hello = outgoing.read()
        async with await RawPeer.dial(service) as peer:
            peer.say(hello[:40])
            await asyncio.sleep(0.1)
            peer.say(hello[40:])
            time.sleep(STALL_SECONDS)  # noqa: ASYNC251
            incoming.write(await within(peer.reader.read(65536)))
            client.do_handshake()
            client.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            peer.say(outgoing.read())
            answer = b""
            while not answer.startswith(b"HTTP/1.1 200 "):
                incoming.write(await within(peer.reader.read(65536)))
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer += client.read(65536)


async def test_message_of_a_caller_is_complete_in_time_although_the_server_stood_still(
    tmp_path: Path,
):
    async with (
        running_service(tmp_path, STALL_LIMITS) as service,
        await RawPeer.upgraded(service, "/caller") as peer,
    ):
        request = wire.pack(wire.REQUEST, b'{"verb": "status"}', job=7)
        offer = json.dumps({"verb": "offer", "sha256": "0" * 64, "size": 9}).encode()
        frame = frames.encode_frame(request, mask=True)
        peer.say(frames.encode_frame(wire.pack(wire.REQUEST, offer, job=6), mask=True))
        assert await peer.frame()
        peer.say(frame[:-3])
        await asyncio.sleep(0.1)
        peer.say(frame[-3:])
        time.sleep(STALL_SECONDS)  # noqa: ASYNC251
        answer = await peer.frame()
        assert answer is not None
        assert wire.unpack(answer.payload).op == wire.REPLY
        assert len(service.server.installs.content_store._uploads) == 1
