"""The TLS transport over a real socket pair, with asyncio's own TLS as the peer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudmanager import config
from cm_server import cleanup
from cm_server.net import certificates
from cm_server.net.socket_transport import READ_BYTES
from cm_server.net.tls_transport import TlsTransport
from cm_server.rate_limits import RateLimiter
from tests.cm_server.peers import within


class RecordingProtocol(asyncio.Protocol):
    """The protocol of the transport under test; it records all calls."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pieces: list[int] = []
        self.paused = 0
        self.received = asyncio.Event()
        self.lost = asyncio.Event()
        self.drained = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.pieces.append(len(data))
        self.received.set()

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.drained.set()

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.lost.set()

    async def until(self, size: int) -> None:
        while len(self.data) < size:
            self.received.clear()
            await within(self.received.wait())


class Pair(NamedTuple):
    protocol: RecordingProtocol
    transport: TlsTransport
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Both ends of one connection: the transport under test, and streams of asyncio."""
    made = certificates.load(tmp_path)
    server_sock, client_sock = socket.socketpair()
    trust = ssl.create_default_context(cafile=config.ca_file(tmp_path))
    sock = made.context.wrap_socket(server_sock, server_side=True, do_handshake_on_connect=False)
    handshake = asyncio.get_running_loop().run_in_executor(None, sock.do_handshake)
    reader, writer = await within(
        asyncio.open_connection(
            sock=client_sock, ssl=trust, server_hostname="cloudmanager", limit=4 * READ_BYTES
        )
    )
    await handshake
    sock.setblocking(False)
    protocol = RecordingProtocol()
    transport = TlsTransport(sock, protocol)
    yield Pair(protocol, transport, reader, writer)
    transport.abort()
    writer.transport.abort()
    await within(protocol.lost.wait())


async def test_data_arrives_in_both_directions(pair: Pair):
    pair.transport.write(b"hello")
    assert await within(pair.reader.readexactly(5)) == b"hello"
    pair.writer.write(b"x" * 1_000_000)
    await pair.protocol.until(1_000_000)
    assert pair.protocol.data == b"x" * 1_000_000
    assert max(pair.protocol.pieces) < READ_BYTES + 16 * 1024


async def test_data_for_a_slow_peer_is_kept_until_it_reads(pair: Pair):
    data = bytes(range(256)) * 40_000
    for start in range(0, len(data), 100_000):
        pair.transport.write(data[start : start + 100_000])
    assert pair.protocol.paused == 1
    assert 0 < pair.transport.get_write_buffer_size() < len(data)
    assert await within(pair.reader.readexactly(len(data))) == data
    await within(pair.protocol.drained.wait())
    assert pair.transport.get_write_buffer_size() == 0


async def test_paused_transport_reads_nothing(pair: Pair):
    pair.transport.pause_reading()
    pair.writer.write(b"y" * 100_000)
    pair.transport.write(b"go")
    await within(pair.reader.readexactly(2))
    assert pair.protocol.data == b""
    pair.transport.resume_reading()
    await pair.protocol.until(100_000)


async def test_close_sends_pending_data_and_close_notify(pair: Pair):
    data = b"z" * 3_000_000
    pair.transport.write(data)
    pair.transport.close()
    assert pair.transport.is_closing()
    pair.transport.write(b"too late")
    assert await within(pair.reader.read(-1)) == data  # no SSLError: close_notify was sent
    await within(pair.protocol.lost.wait())


async def test_abort_may_be_repeated(pair: Pair):
    pair.transport.write(b"q" * 3_000_000)
    pair.transport.abort()
    pair.transport.abort()
    pair.transport.close()
    await within(pair.protocol.lost.wait())


@pytest.mark.parametrize("how", ["close", "abort", "garbage"])
async def test_data_before_the_end_of_a_connection_is_received(pair: Pair, how):
    pair.writer.write(b"final data")
    await pair.writer.drain()
    await pair.protocol.until(10)
    if how == "close":
        pair.writer.close()
    elif how == "abort":
        pair.writer.transport.abort()
    else:
        raw = pair.writer.get_extra_info("socket").dup()
        raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        raw.close()
    await within(pair.protocol.lost.wait())
    assert pair.protocol.data == b"final data"


async def test_connection_lost_is_called_although_closing_the_socket_fails(
    pair, monkeypatch, caplog
):
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(1))
    sock, close = pair.transport._sock, pair.transport._sock.close

    def fail() -> None:
        close()
        raise OSError

    monkeypatch.setattr(sock, "close", fail)
    pair.transport.abort()
    await within(pair.protocol.lost.wait())
    assert "the clean-up of a link failed" in caplog.text
