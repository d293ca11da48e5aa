"""The server's WebSocket: RFC 6455, peers that violate it, floods, and the end of a link."""

from __future__ import annotations

import asyncio
import functools
import socket
import struct

import pytest
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from cloudmanager.protocol import frames, wire
from cm_server import cleanup
from cm_server.limits import Limits
from cm_server.net import socket_transport, websocket
from cm_server.net.websocket import WebSocketLink
from cm_server.rate_limits import RateLimiter
from tests.cm_server.peers import FakeBoard, FakeCaller, RawPeer, Service, handshake, within

STATUS = wire.pack(wire.REQUEST, b'{"verb":"status"}', job=7)
MASK = 0x80


def masked(payload: bytes, opcode: int = frames.BINARY, key: bytes = b"\x01\x80\xff\x00") -> bytes:
    """Return a frame with a mask that is not zero."""
    head = frames.frame_header(opcode, len(payload), mask=True)[:-4]
    return head + key + bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))


async def caller(service: Service, early: bytes = b"") -> RawPeer:
    return await RawPeer.upgraded(service, "/caller", early=early)


async def next_message(peer: RawPeer) -> wire.Message:
    frame = await peer.frame()
    assert frame is not None
    assert frame.opcode == frames.BINARY
    return wire.unpack(frame.payload)


# The handshake


async def test_handshake_is_answered_as_in_the_rfc(service: Service):
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake("/board", **{"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}))
        head = await peer.head()
    assert head.startswith("HTTP/1.1 101 Switching Protocols\r\n")
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head  # RFC 6455, 1.3


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Upgrade": ""}, "This address accepts WebSocket connections only."),
        ({"Upgrade": "h2c"}, "This address accepts WebSocket connections only."),
        ({"Connection": "keep-alive"}, "This address accepts WebSocket connections only."),
        ({"Connection": ""}, "This address accepts WebSocket connections only."),
        ({"Sec-WebSocket-Key": ""}, "This address accepts WebSocket connections only."),
        ({"Sec-WebSocket-Version": "8"}, "Only WebSocket version 13 is supported."),
        ({"Sec-WebSocket-Version": ""}, "Only WebSocket version 13 is supported."),
    ],
    ids=str,
)
async def test_invalid_upgrade_is_refused_with_a_reason(service: Service, headers, reason):
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake("/board", **headers))
        answer = await peer.answer()
    assert answer.startswith("HTTP/1.1 426 Upgrade Required\r\n")
    assert answer.endswith(reason + "\n")
    expected = "Sec-Websocket-Version: 13" if "13" in reason else "Upgrade: websocket"
    assert expected in answer


async def test_upgrade_headers_may_be_in_any_case(service: Service):
    async with await RawPeer.dial(service) as peer:
        peer.say(handshake("/board", Upgrade="WebSocket", Connection="keep-alive, UPGRADE"))
        assert (await peer.head()).startswith("HTTP/1.1 101 ")


async def test_offered_compression_is_not_used(service: Service):
    uri = f"ws://127.0.0.1:{service.tcp_port}/board"
    offer = [ClientPerMessageDeflateFactory(client_max_window_bits=True)]
    async with connect(uri, extensions=offer, proxy=None) as strict:
        assert strict.protocol.extensions == []


async def test_frames_sent_with_the_handshake_are_handled(service: Service):
    async with await caller(service, early=masked(STATUS) * 2) as peer:
        assert (await next_message(peer)).job == 7
        assert (await next_message(peer)).job == 7


async def test_peer_that_closes_before_the_answer_does_no_harm(service: Service, caplog):
    for _ in range(20):
        async with await RawPeer.dial(service) as peer:
            peer.say(handshake("/board"))
    async with await FakeCaller.join(service) as after:
        assert "reply" in await after.ask("status")
    assert not [record for record in caplog.records if record.exc_info]


async def test_socket_options_are_set(service: Service):
    async with await FakeCaller.join(service):
        (connection,) = service.callers
        transport = connection._link._transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection._link.peer.startswith("127.0.0.1:")


async def test_dead_board_is_noticed_soon_and_a_caller_may_stand_still(service: Service):
    (lab,) = service.enrol("lab-1")
    async with await FakeCaller.join(service), await FakeBoard.join(service, lab):
        (caller_link,) = (connection._link for connection in service.callers)
        board_link = service.server.registry.by_name["lab-1"].link
        seconds = {}
        for name, link in (("caller", caller_link), ("board", board_link)):
            assert isinstance(link, WebSocketLink)
            assert link._transport is not None
            sock = link._transport.get_extra_info("socket")
            read = functools.partial(sock.getsockopt, socket.IPPROTO_TCP)
            interval, count = read(socket.TCP_KEEPINTVL), read(socket.TCP_KEEPCNT)
            gone_after = read(socket.TCP_KEEPIDLE) + interval * count
            seconds[name] = gone_after, read(socket.TCP_USER_TIMEOUT)
    assert seconds == {"caller": (600, 0), "board": (25, 15_000)}


# Frames


@pytest.mark.parametrize("key", [b"\0\0\0\0", b"\x01\x80\xff\x00"], ids=["zero", "mixed"])
async def test_frame_is_unmasked(service: Service, key):
    async with await caller(service) as peer:
        peer.say(masked(STATUS, key=key))
        assert b'"version"' in (await next_message(peer)).payload


async def test_frame_may_arrive_byte_by_byte(service: Service):
    async with await caller(service) as peer:
        for byte in masked(STATUS):
            peer.say(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await next_message(peer)).job == 7


@pytest.mark.parametrize("size", [0, 1, 125])
async def test_ping_is_answered_with_its_payload(service: Service, size):
    async with await caller(service) as peer:
        peer.say(masked(b"p" * size, frames.PING))
        assert await peer.frame() == frames.Frame(frames.PONG, b"p" * size)


async def test_unsolicited_pong_is_ignored(service: Service):
    async with await caller(service) as peer:
        peer.say(masked(b"x", frames.PONG) + masked(STATUS))
        assert (await next_message(peer)).job == 7


def head(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes((first, second)) + rest


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frames.encode_frame(STATUS), 1002, id="not masked"),
        pytest.param(masked(STATUS, 0x1), 1003, id="text"),
        pytest.param(head(0x02, MASK | 1, b"\0\0\0\0x"), 1003, id="fragment"),
        pytest.param(head(0x80, MASK | 1, b"\0\0\0\0x"), 1002, id="continuation"),
        pytest.param(head(0xC2, MASK | 1, b"\0\0\0\0x"), 1002, id="reserved bit 1"),
        pytest.param(head(0xA2, MASK | 1, b"\0\0\0\0x"), 1002, id="reserved bit 2"),
        pytest.param(head(0x92, MASK | 1, b"\0\0\0\0x"), 1002, id="reserved bit 3"),
        pytest.param(masked(b"x", 0x3), 1002, id="opcode 3"),
        pytest.param(masked(b"x", 0xB), 1002, id="opcode 11"),
        pytest.param(head(0x89, MASK | 126, b"\x00\x7e"), 1002, id="long ping"),
        pytest.param(head(0x88, MASK | 127, b"\xff" * 8), 1002, id="endless close"),
        pytest.param(head(0x82, MASK | 127, b"\x80" + bytes(7)), 1009, id="2**63 bytes"),
        pytest.param(head(0x82, MASK | 127, b"\xff" * 8), 1009, id="2**64-1 bytes"),
        pytest.param(head(0x82, MASK | 126, b"\0\x05" + bytes(9)), 1002, id="long length"),
        pytest.param(masked(b"\x03", frames.CLOSE), 1002, id="close of one byte"),
        pytest.param(masked(b"\0\0", frames.CLOSE), 1002, id="close 0"),
        pytest.param(masked(b"\x03\xee", frames.CLOSE), 1002, id="close 1006"),
        pytest.param(masked(b"\x03\xe8\xff", frames.CLOSE), 1007, id="close with no text"),
        pytest.param(b"GET /board HTTP/1.1\r\n\r\n", 1002, id="HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 1002, id="TLS"),
    ],
)
async def test_protocol_violation_closes_with_the_code_of_the_rfc(
    service: Service, data, code, caplog
):
    async with await caller(service) as peer:
        peer.say(data)
        received, reason = await peer.closed()
        assert received == code
        assert reason
    assert "broke the protocol" in caplog.text


async def test_garbage_closes_only_its_link(service: Service):
    async with await FakeCaller.join(service) as healthy:
        for seed in range(32):
            noise = bytes((seed * 37 + n * n) & 0xFF for n in range(256))
            async with await RawPeer.upgraded(service) as peer:
                peer.say(noise)
                peer.writer.write_eof()
                await peer.gone()
        assert "reply" in await healthy.ask("status")


async def test_incomplete_frame_is_dropped_with_its_link(service: Service):
    async with await caller(service) as peer:
        peer.say(masked(STATUS)[:-1])
        peer.writer.write_eof()
        await peer.gone()
    await service.until(lambda: not service.callers)


# Floods


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(masked(b"", frames.PING), id="ping"),
        pytest.param(masked(b"", frames.PONG), id="pong"),
        pytest.param(masked(b"", frames.PING) * 8000, id="pings"),
    ],
)
@pytest.mark.limits(close_seconds=0.1)
async def test_unauthenticated_ping_closes_the_link_after_a_delay(service, flood, caplog):
    async with await RawPeer.upgraded(service) as peer:
        peer.say(flood)
        frame = await peer.frame()
        assert frame is not None
        assert frame.opcode == frames.CLOSE
        assert frames.read_close_code(frame.payload) == frames.CLOSE_POLICY
        assert service.server.unauthenticated.count == 1  # still counted, and not read
        await peer.gone()
    await service.until(lambda: service.server.unauthenticated.count == 0)
    assert caplog.text.count("no pings and pongs before the proof") == 1


@pytest.mark.limits(close_seconds=0.1)
async def test_unauthenticated_flood_is_closed_in_time(service):
    async with await RawPeer.upgraded(service) as peer:
        peer.say(masked(b"", frames.PING) * 100_000)
        await peer.gone()
    await service.until(lambda: service.server.unauthenticated.count == 0)


@pytest.mark.limits(close_seconds=0.0)
async def test_log_lines_about_unauthenticated_peers_are_limited(service, caplog):
    for number in range(40):
        async with await RawPeer.upgraded(service) as peer:
            peer.say(masked(b"", frames.PING) if number % 2 else masked(b"", 0x3))
            await peer.gone()
    assert caplog.text.count("broke the protocol") == Limits.peer_lines_per_minute


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(masked(b"", frames.PING), id="pings"),
        pytest.param(masked(wire.pack(wire.UNWATCH, job=1)), id="messages"),
        pytest.param(masked(wire.pack(wire.REQUEST, b'{"verb":"nonsense"}')), id="refusals"),
    ],
)
@pytest.mark.limits(messages_at_once=10**9)
async def test_flood_is_handled_in_slices_and_other_links_in_between(service, flood, monkeypatch):
    """One read contains many thousand frames; without slices, they would block other links."""
    monkeypatch.setattr(socket_transport, "READ_BYTES", 256 * 1024)
    async with await caller(service) as attacker, await caller(service) as healthy:
        links = [connection._link for connection in service.callers]
        attacker.say(flood * (250_000 // len(flood)))
        await service.until(lambda: any(link._backlog for link in links))
        healthy.say(masked(STATUS))
        assert (await next_message(healthy)).job == 7
        await service.until(
            lambda: any(link._backlog for link in links)
        )  # the flood is still being handled


@pytest.mark.limits(messages_per_second=200, messages_at_once=50)
async def test_messages_are_handled_at_a_bounded_rate(service: Service):
    async with await caller(service) as peer:
        began = asyncio.get_running_loop().time()
        peer.say(
            masked(b"x", frames.PONG) * 4 + masked(STATUS)
        )  # a pong counts as several messages
        assert (await next_message(peer)).job == 7
        took = asyncio.get_running_loop().time() - began
        assert took >= (4 * Limits.rare_messages - 50) / 200


async def test_newest_of_many_pings_is_answered(service: Service):
    async with await caller(service) as peer:
        pings = b"".join(masked(bytes((n,)), frames.PING) for n in range(100))
        peer.say(pings + masked(STATUS))
        pongs = []
        while (frame := await peer.frame()) is not None and frame.opcode == frames.PONG:
            pongs.append(frame.payload[0])
        if frame is not None:  # the pong follows the replies of the same slice
            last = None if 99 in pongs else await peer.frame()
            pongs += [last.payload[0]] if last is not None else []
        assert pongs == sorted(set(pongs))
        assert pongs[-1] == 99


async def test_exception_in_a_handler_closes_only_its_link(service, monkeypatch, caplog):
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(1))

    def fail(_data: bytes) -> None:
        raise ZeroDivisionError

    async with await caller(service) as peer:
        (connection,) = service.callers
        connection._link.on_message = fail
        peer.say(masked(STATUS))
        assert (await peer.closed())[0] == frames.CLOSE_INTERNAL_ERROR
    assert caplog.text.count("ZeroDivisionError") >= 1
    await service.until(lambda: not service.callers)
    async with await FakeCaller.join(service) as healthy:
        assert "reply" in await healthy.ask("status")


async def test_failed_clean_up_releases_the_rest(service, monkeypatch, caplog):
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(10))
    (identity,) = service.enrol("lab-1")
    server = service.server
    for place, name in (
        (server.installs.content_store, "discard_uploads"),
        (server.installs.plan_cache, "discard_plans"),
        (server.dispatch, "detach_observer"),
    ):
        monkeypatch.setattr(place, name, None)  # raises when it is called
    async with await FakeBoard.join(service, identity) as board:
        async with await FakeCaller.join(service):
            assert len(service.callers) == 1
        await service.until(lambda: not service.callers)
        monkeypatch.setattr(service.server.dispatch.recovery, "on_link_closed", None)
        await board.socket.close()
        await service.until(lambda: "a board's link failed" in caplog.text)
    assert service.server.unauthenticated.count == 0
    assert "a caller's link failed" in caplog.text
    monkeypatch.undo()
    service.server.registry.by_name["lab-1"].disconnect()


# The end


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", b""),
        (struct.pack(">H", 1000), struct.pack(">H", 1000)),
        (struct.pack(">H", 1001) + b"bye", struct.pack(">H", 1001)),
        (struct.pack(">H", 4321), struct.pack(">H", 4321)),
    ],
    ids=["no code", "1000", "1001", "4321"],
)
async def test_close_frame_is_answered_with_its_code(service: Service, payload, answer):
    async with await caller(service) as peer:
        peer.say(masked(payload, frames.CLOSE))
        assert await peer.frame() == frames.Frame(frames.CLOSE, answer)
        assert await peer.frame() is None


async def test_websockets_library_accepts_both_closing_handshakes(service: Service):
    client = await FakeCaller.join(service)
    await within(client.socket.close(1001, "leaving"))
    assert client.socket.protocol.close_rcvd is not None
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity) as board:
        link = service.server.registry.by_name["lab-1"].link
        assert link is not None
        link.close(4004, "revoked")
        assert await board.closed() == (4004, "revoked")


async def test_data_after_a_close_frame_is_ignored(service: Service):
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity):
        async with await caller(service) as peer:
            cell = wire.pack_submit(1, {"target": "lab-1"}, b"1")
            peer.say(masked(b"", frames.CLOSE) + masked(cell))
            await peer.closed()
        assert service.state("lab-1") == "idle"
        async with await caller(service) as peer:
            peer.say(masked(b"x", 0x1) + masked(cell))
            await peer.closed()
        assert service.state("lab-1") == "idle"


async def test_long_close_reason_is_shortened(service: Service):
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity) as board:
        link = service.server.registry.by_name["lab-1"].link
        assert link is not None
        link.close(4001, "\u00e4" * 200)
        code, reason = await board.closed()
        assert (code, reason) == (4001, "\u00e4" * 61)


@pytest.mark.limits(unsent_bytes=256 * 1024, stall_seconds=0.2)
async def test_peer_that_does_not_read_is_closed(service: Service, caplog):
    async with await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer:
        (connection,) = service.callers
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection._link.send(bytes(8 * 1024 * 1024))
        await service.until(lambda: not service.callers)
    assert "does not read: its link is closed" in caplog.text
    async with await FakeCaller.join(service) as healthy:
        assert "reply" in await healthy.ask("status")


@pytest.mark.limits(unsent_board_bytes=1024 * 1024)
async def test_board_that_does_not_read_is_closed(service: Service, caplog):
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity) as board:
        board.socket.transport.pause_reading()
        link = service.server.registry.by_name["lab-1"].link
        assert link is not None
        for _ in range(400):
            link.send(bytes(64 * 1024))
        await service.until(lambda: service.state("lab-1") == "offline")
    assert "does not read: its link is closed" in caplog.text


@pytest.mark.limits(unsent_bytes=64 * 1024, stall_seconds=0.3)
async def test_peer_that_reads_slowly_is_not_closed(service: Service):
    async with await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer:
        (connection,) = service.callers
        connection._link.send(bytes(4 * 1024 * 1024))
        for _ in range(8):
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await within(peer.reader.readexactly(256 * 1024))
        assert service.callers == [connection]


@pytest.mark.limits(unsent_bytes=64 * 1024)
async def test_requests_of_a_caller_that_does_not_read_wait(service: Service):
    # The kernel holds back megabytes of answers: pings have as long ones, and cost little.
    ping = frames.encode_frame(bytes(125), frames.PING, mask=True)
    async with await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer:
        (connection,) = service.callers
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection._link.send(bytes(4 * 1024 * 1024))
        unsent = connection._link.unsent_bytes
        assert unsent > 64 * 1024
        for _ in range(100):
            peer.say(masked(STATUS) + ping)
        await asyncio.sleep(0.2)
        assert connection._link.unsent_bytes <= unsent
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await within(peer.reader.readexactly(4 * 1024 * 1024 + 10))
        replies = 0
        while replies < 100:
            frame = await peer.frame()
            assert frame is not None
            replies += frame.opcode == frames.BINARY


@pytest.mark.limits(close_seconds=0.05)
async def test_link_is_closed_although_the_peer_does_not_read(service):
    async with await RawPeer.upgraded(service, "/caller", receive_bytes=4096) as peer:
        (connection,) = service.callers
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection._link.send(bytes(4 * 1024 * 1024))
        connection._link.close(4004, "revoked")
        connection._link.close(4004, "revoked")
        await service.until(lambda: connection._link.is_gone)


async def test_sending_on_a_closed_link_does_nothing(service: Service):
    (identity,) = service.enrol("lab-1")
    async with await FakeBoard.join(service, identity):
        link = service.server.registry.by_name["lab-1"].link
    await service.until(lambda: service.state("lab-1") == "offline")
    assert link is not None
    link.send(b"not sent")
    link.close(1000)
    assert isinstance(link, websocket.WebSocketLink)
    link.abort()
    link._resume_reading()  # as after a pause
    link._continue_backlog()


def test_disconnected_socket_has_no_peer_name():
    with socket.socket() as sock:
        assert websocket._peer_name(sock) == "a disconnected peer"
