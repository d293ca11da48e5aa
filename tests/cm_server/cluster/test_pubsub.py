"""The bus: messages arrive while it is connected, and are dropped while it is down."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cm_server.cluster import pubsub as module
from cm_server.cluster.pubsub import InProcessBroker, NatsPubSub
from tests.engines import running_nats

WAIT = 60.0  # seconds, even on a busy machine


@pytest.fixture(autouse=True)
async def _leaks() -> AsyncIterator[None]:
    """Ignore a socket that nats-py leaks if NATS dies while it connects."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Member:
    """A member of the bus: records messages and changes of the connection."""

    def __init__(self, bus: NatsPubSub, *subjects: str) -> None:
        self.bus = bus
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.states: asyncio.Queue[bool] = asyncio.Queue()
        for subject in subjects:
            bus.subscribe(subject)
        bus.start(self.received.put_nowait, self.states.put_nowait)

    async def wait_connected(self, connected: bool) -> None:
        assert await asyncio.wait_for(self.states.get(), WAIT) is connected
        assert self.bus.connected is connected

    async def receive(self) -> bytes:
        return await asyncio.wait_for(self.received.get(), WAIT)


async def test_nats_messages_arrive_again_after_a_restart(tmp_path: Path, monkeypatch):
    with running_nats(tmp_path) as nats:
        a, b = Member(NatsPubSub(nats.url)), Member(NatsPubSub(nats.url), "x")
        for member in (a, b):
            await member.wait_connected(True)
        a.bus.publish("x", b"1")
        a.bus.publish("y", b"no subscriber")
        assert await b.receive() == b"1"
        b.bus.subscribe("z")
        while b.received.empty():  # until NATS has the subscription
            a.bus.publish("z", b"2")
            await asyncio.sleep(0.01)
        assert await b.receive() == b"2"
        nats.restart()
        for member in (a, b):
            await member.wait_connected(False)
        a.bus.publish("x", b"lost")
        for member in (a, b):
            await member.wait_connected(True)
        while not b.received.empty():
            b.received.get_nowait()
        while b.received.empty():  # until NATS has the subscription again
            a.bus.publish("x", b"3")
            await asyncio.sleep(0.01)
        monkeypatch.setattr(module, "MAX_PENDING_BYTES", 10)
        a.bus.publish("x", bytes(11))  # more than the limit
        a.bus.publish("x", b"too much")
        while (message := await b.receive()) == b"3":
            pass
        assert message == bytes(11)
        for member in (a, b):
            await member.bus.close()
        assert a.bus.pending_bytes == 0
        assert a.states.empty()


async def test_connection_starts_while_nats_is_down(tmp_path: Path):
    with running_nats(tmp_path) as nats:
        nats.end()
        member = Member(NatsPubSub(nats.url), "x")
        await asyncio.sleep(0)
        assert not member.bus.connected
        nats.restart()
        await member.wait_connected(True)
        await member.bus.close()


async def test_subscription_that_nats_confirms_late_is_made_once(
    tmp_path: Path, monkeypatch, caplog
):
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.2)
    with running_nats(tmp_path) as nats:
        a, b = Member(NatsPubSub(nats.url)), Member(NatsPubSub(nats.url), "x")
        for member in (a, b):
            await member.wait_connected(True)
        nats.pause()
        b.bus.subscribe("y")
        await b.wait_connected(False)
        nats.wake()
        await b.wait_connected(True)
        while b.received.empty():  # until NATS has the subscription
            a.bus.publish("y", b"ready")
            await asyncio.sleep(0.01)
        for number in range(10):
            a.bus.publish("y", b"%d" % number)
            a.bus.publish("x", b"x")
        received = collections.Counter([await b.receive()])
        while received[b"x"] < 10 or not received[b"9"]:
            received[await b.receive()] += 1
        assert {received[b"%d" % number] for number in range(10)} == {1}
        for member in (a, b):
            await member.bus.close()
    assert not [record for record in caplog.records if record.name.startswith("nats")]


async def test_closing_ends_although_nats_py_swallows_a_cancellation(tmp_path: Path, monkeypatch):
    waiting: set[str] = set()

    def swallow(name: str) -> Callable[..., Awaitable[None]]:
        async def flush(*_: object) -> None:
            waiting.add(name)
            with contextlib.suppress(asyncio.CancelledError):  # as Client._flush_pending does
                await asyncio.sleep(WAIT)

        return flush

    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.1)
    with running_nats(tmp_path) as nats:
        member = Member(NatsPubSub(nats.url), "x")
        await member.wait_connected(True)
        for name in ("flush", "publish"):
            monkeypatch.setattr(member.bus._client, name, swallow(name))
        member.bus.subscribe("y")
        member.bus.publish("x", b"1")
        member.bus.publish("x", b"2")
        async with asyncio.timeout(WAIT):
            while waiting != {"flush", "publish"}:  # noqa: ASYNC110 - in another task's client
                await asyncio.sleep(0.01)
            await member.bus.close()


async def test_in_process_broker_can_be_disconnected_and_reconnected():
    hub = InProcessBroker()
    received: list[bytes] = []
    states: list[bool] = []
    a, b = hub.new_client(), hub.new_client()
    b.subscribe("x")
    for bus in (a, b):
        bus.start(received.append, states.append)
    a.publish("x", b"1")
    hub.set_connected(False)
    a.publish("x", b"lost")
    hub.set_connected(True)
    a.publish("x", b"2")
    await asyncio.sleep(0)
    assert received == [b"1", b"2"]
    assert states == [True, True, False, False, True, True]
    await b.close()
    await b.close()
