"""The listener: TLS or not, timeouts, counts of unauthenticated connections, bounded rates."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from cm_server import cleanup
from cm_server.limits import Limits
from cm_server.net.listener import all_on_loopback, open_listening_sockets
from cm_server.rate_limits import RateLimiter
from tests.cm_server.peers import FakeBoard, FakeCaller, RawPeer, Service, running_service, within

HELLO = bytes.fromhex("16030100c8010000c40303")  # the first bytes of a TLS client hello


async def gone(peer: RawPeer) -> None:
    """Wait until the server has closed the connection."""
    with contextlib.suppress(ConnectionResetError):
        await within(peer.reader.read(-1))


async def test_tls_and_plain_connections_share_the_port(service: Service):
    one, two = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, one, tls=True),
        await FakeBoard.join(service, two),
        await FakeCaller.join(service) as caller,
    ):
        boards = (await caller.ask("boards"))["reply"]
        assert [board["state"] for board in boards] == ["idle", "idle"]


@pytest.mark.parametrize("start", [b"", HELLO[:1], HELLO, HELLO + bytes(90)], ids=len)
@pytest.mark.limits(head_seconds=0.2)
async def test_stalled_connection_is_closed_in_time(service: Service, start):
    async with await RawPeer.dial(service) as peer:
        if start:
            peer.say(start)
        await gone(peer)
        await service.until(lambda: service.server.unauthenticated.count == 0)


@pytest.mark.parametrize(
    "garbage",
    [HELLO + b"\xff" * 300, b"\x16" + b"GET / HTTP/1.1\r\n\r\n" * 20],
    ids=["record", "text"],
)
async def test_invalid_handshake_closes_only_its_connection(service: Service, garbage, caplog):
    (identity,) = service.enrol("lab-1")
    async with await RawPeer.dial(service) as peer:
        peer.say(garbage)
        await gone(peer)
    assert caplog.text == ""  # nothing is logged, because anybody can cause this at any rate
    async with await FakeBoard.join(service, identity, tls=True):
        assert service.state("lab-1") == "idle"


@pytest.mark.limits(unauthenticated_per_address=2)
async def test_new_connection_counts_as_unauthenticated_and_the_oldest_is_closed(service: Service):
    peers = [await RawPeer.dial(service) for _ in range(2)]
    await service.until(lambda: service.server.unauthenticated.count == 2)
    async with await RawPeer.dial(service):
        await gone(peers[0])
        assert service.server.unauthenticated.dropped == 1
        await peers[1].__aexit__(None, None, None)
    await peers[0].__aexit__(None, None, None)


async def test_closed_connection_is_not_counted(service: Service):
    async with await RawPeer.dial(service):
        await service.until(lambda: service.server.unauthenticated.count == 1)
    await service.until(lambda: service.server.unauthenticated.count == 0)


async def test_long_message_and_many_frames_arrive_over_tls(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity, tls=True) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1", b"pass # " + b"x" * 300_000)
        received = b""
        while len(received) < 300_007:
            message = await board.next()
            received += message.payload[8 if message.op == wire.EXEC else 0 :]
        assert received == b"pass # " + b"x" * 300_000
        for _ in range(50):
            await board.send(wire.OUTPUT, b"y" * 20_000, job=job)
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("", False)])
def test_loopback_is_detected_from_the_sockets(host, local):
    sockets = open_listening_sockets(host, 0)
    try:
        assert all_on_loopback(sockets) is local
    finally:
        for sock in sockets:
            sock.close()


async def test_stop_accepting_keeps_open_connections(service: Service):
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity, tls=True):
        service.listener.stop_accepting()
        with pytest.raises(OSError, match=r".+"):
            await within(asyncio.open_connection("127.0.0.1", service.tcp_port))
        assert service.state("lab-1") == "idle"


@pytest.mark.limits(accept_retry_seconds=0.05)
async def test_accepting_resumes_after_a_lack_of_file_descriptors(service, caplog):
    """Without a pause, the event loop would be busy: the socket stays readable."""
    with no_descriptor_left() as free_one:
        free_one()
        async with await RawPeer.dial(
            service
        ) as peer:  # the client's socket uses the free descriptor
            await service.until(lambda: "no connection can be accepted" in caplog.text)
            await asyncio.sleep(0.3)  # some attempts
            assert caplog.text.count("no connection can be accepted") == 1
            free_one()
            peer.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await peer.answer()).startswith("HTTP/1.1 200 ")


def reset(sock: socket.socket) -> None:
    """Close a connection with RST, as the health checks of some load balancers do."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("data", [b"", b"\x16", HELLO, b"G", b"GET / HTTP/1.1\r\n"], ids=len)
async def test_reset_connections_are_not_counted(service: Service, data, caplog):
    (identity,) = service.enrol("lab-1")
    loop = asyncio.get_running_loop()
    for number in range(60):
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", service.tcp_port))
        if number % 2:  # the server has accepted it before it is reset
            await service.until(lambda: service.server.unauthenticated.count > 0)
        if data:
            await loop.sock_sendall(sock, data)
        if number % 3:
            await asyncio.sleep(0)
        reset(sock)
    await service.until(lambda: service.server.unauthenticated.count == 0)
    assert caplog.text == ""
    async with await FakeBoard.join(service, identity, tls=True):
        assert service.state("lab-1") == "idle"


class ResetMeanwhile:
    """A TLS context whose sockets are reset just before they are wrapped."""

    def wrap_socket(self, sock: socket.socket, **_: object) -> socket.socket:
        os.close(sock.detach())  # as ssl does: it detaches the socket, then fails
        raise OSError(errno.ENOTCONN, "not connected")


async def test_socket_that_tls_cannot_wrap_is_not_counted(service, monkeypatch, caplog):
    broken = service.server.certificates._replace(context=ResetMeanwhile())
    parts = service.listener._parts._replace(certificates=broken)
    monkeypatch.setattr(service.listener, "_parts", parts)
    for _ in range(5):
        async with await RawPeer.dial(service) as peer:
            peer.say(HELLO)
            await gone(peer)
    assert service.server.unauthenticated.count == 0
    assert caplog.text == ""


async def test_failure_while_accepting_closes_only_that_connection(service, monkeypatch, caplog):
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(1))
    with monkeypatch.context() as patched:
        patched.setattr(service.listener, "handle_stream", None)  # raises when it is called
        for _ in range(5):
            async with await RawPeer.dial(service) as peer:
                peer.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await gone(peer)
    assert service.server.unauthenticated.count == 0
    assert caplog.text.count("Traceback") == 1
    async with await RawPeer.dial(service) as peer:
        peer.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await peer.answer()).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000\r\n\r\n",
        b"\x16\x03\x01\x20\x00\x01\x00\x1f\xfc\x03\x03",
    ],
    ids=["head", "body", "TLS"],
)
@pytest.mark.limits(unauthenticated_reads=8)
async def test_request_in_too_many_pieces_is_closed(service, start):
    async with await RawPeer.dial(service) as peer:
        peer.say(start)
        closed = asyncio.ensure_future(gone(peer))
        for _ in range(500):
            peer.say(b"x")
            await asyncio.wait([closed], timeout=0.005)
            if closed.done():
                break
        assert closed.done()
    await service.until(lambda: service.server.unauthenticated.count == 0)


async def test_request_in_several_pieces_is_answered(service: Service):
    async with await RawPeer.dial(service) as peer:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":
            peer.say(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await peer.answer()).startswith("HTTP/1.1 200 ")


async def test_reads_from_many_connections_share_a_rate(tmp_path: Path, monkeypatch):
    slow = Limits(unauthenticated_reads_per_second=20)
    async with running_service(tmp_path, limits=slow) as service:
        reads = 0
        read_pause = service.server.unauthenticated.read_pause

        def count(number: int) -> float:
            nonlocal reads
            reads += 1
            return read_pause(number)

        monkeypatch.setattr(service.server.unauthenticated, "read_pause", count)
        peers = [await RawPeer.dial(service) for _ in range(20)]
        for peer in peers:
            peer.say(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(100):
            for peer in peers:
                peer.say(b"x")
            await asyncio.sleep(0.002)
        assert 3 * len(peers) <= reads < 5 * len(peers)  # of 2,000 pieces
        for peer in peers:
            await peer.__aexit__(None, None, None)


async def test_connections_are_accepted_at_a_bounded_rate(tmp_path: Path):
    slow = Limits(accepted_per_second=4, accepted_at_once=4)
    async with running_service(tmp_path, limits=slow) as service:
        began = asyncio.get_running_loop().time()
        peers = [await RawPeer.dial(service) for _ in range(8)]
        for peer in peers:
            peer.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for peer in peers:
            assert (await peer.answer()).startswith("HTTP/1.1 200 ")
            await peer.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() - began > 0.9  # four of them waited


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[Callable[[], None]]:
    """Use up all file descriptors; yield a function that frees one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 9, hard))
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
