"""The one TCP port: who knocks with what, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from cm_server import limits
from cm_server.net.listener import bind, on_loopback
from tests.cm_server.peers import FakeBoard, FakeCaller, RawPeer, Service, running_service, within

HELLO = bytes.fromhex("16030100c8010000c40303")  # as a TLS client begins


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.2)


async def gone(peer: RawPeer) -> None:
    """Wait until the other side hung up."""
    with contextlib.suppress(ConnectionResetError):
        await within(peer.reader.read(-1))


async def test_the_first_byte_tells_tls_from_plain(service: Service):
    one, two = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, one, tls=True),
        await FakeBoard.join(service, two),
        await FakeCaller.join(service) as caller,
    ):
        told = (await caller.ask("boards"))["reply"]
        assert [board["state"] for board in told] == ["idle", "idle"]


@pytest.mark.parametrize("begins", [b"", HELLO[:1], HELLO, HELLO + bytes(90)], ids=len)
@pytest.mark.usefixtures("in_a_hurry")
async def test_who_does_not_go_on_is_cut_in_time(tmp_path: Path, begins):
    async with running_service(tmp_path) as service, await RawPeer.dial(service) as peer:
        if begins:
            peer.say(begins)
        await gone(peer)
        await service.until(lambda: service.server.unproven.count == 0)


@pytest.mark.parametrize(
    "garbage",
    [HELLO + b"\xff" * 300, b"\x16" + b"GET / HTTP/1.1\r\n\r\n" * 20],
    ids=["record", "text"],
)
async def test_what_is_no_handshake_ends_the_connection_and_nothing_else(
    service: Service, garbage, caplog
):
    (identity,) = service.enrol("lab-1")
    async with await RawPeer.dial(service) as peer:
        peer.say(garbage)
        await gone(peer)
    assert caplog.text == ""  # a flood of it must fill no log
    async with await FakeBoard.join(service, identity, tls=True):
        assert service.state("lab-1") == "idle"


async def test_who_knocks_counts_as_unproven_and_the_oldest_is_cut(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "UNPROVEN_PER_ADDRESS", 2)
    peers = [await RawPeer.dial(service) for _ in range(2)]
    await service.until(lambda: service.server.unproven.count == 2)
    async with await RawPeer.dial(service):
        await gone(peers[0])
        assert service.server.unproven.cut == 1
        await peers[1].__aexit__(None, None, None)
    await peers[0].__aexit__(None, None, None)


async def test_a_knock_that_hangs_up_is_forgotten(service: Service):
    async with await RawPeer.dial(service):
        await service.until(lambda: service.server.unproven.count == 1)
    await service.until(lambda: service.server.unproven.count == 0)


async def test_a_long_message_and_many_frames_cross_tls_whole(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity, tls=True) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1", b"pass # " + b"x" * 300_000)
        got = b""
        while len(got) < 300_007:
            message = await board.next()
            got += message.payload[8 if message.op == wire.EXEC else 0 :]
        assert got == b"pass # " + b"x" * 300_000
        for _ in range(50):
            await board.send(wire.OUTPUT, b"y" * 20_000, job=job)
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("", False)])
def test_who_can_reach_it_is_read_off_its_sockets(host, local):
    sockets = bind(host, 0)
    try:
        assert on_loopback(sockets) is local
    finally:
        for sock in sockets:
            sock.close()


async def test_shut_lets_nobody_in_and_leaves_those_who_are(service: Service):
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity, tls=True):
        service.door.shut()
        with pytest.raises(OSError, match=r".+"):
            await within(asyncio.open_connection("127.0.0.1", service.tcp_port))
        assert service.state("lab-1") == "idle"


async def test_without_a_file_left_it_says_so_and_tries_again(service, monkeypatch, caplog):
    """Else the loop would turn for ever: the kernel goes on saying that somebody knocks."""
    monkeypatch.setattr(limits, "FULL_SECONDS", 0.05)
    with no_file_left() as free_one:
        free_one()
        async with await RawPeer.dial(service) as peer:  # its own end takes the one
            await service.until(lambda: "nobody can be let in" in caplog.text)
            assert caplog.text.count("nobody can be let in") < 20
            free_one()
            peer.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await peer.answer()).startswith("HTTP/1.1 200 ")


@contextlib.contextmanager
def no_file_left() -> Iterator[Callable[[], None]]:
    """Let this process have no file more; gives what makes room for one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 9, hard))
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    try:
        yield lambda: os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in taken:
            os.close(handle)
