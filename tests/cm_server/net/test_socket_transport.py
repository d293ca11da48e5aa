"""The transport without TLS over a real socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from cm_server.net.socket_transport import READ_BYTES, SocketTransport
from tests.cm_server.peers import within

from .test_tls_transport import RecordingProtocol


class Pair(NamedTuple):
    protocol: RecordingProtocol
    transport: SocketTransport
    sock: socket.socket
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Both ends of one connection over TCP: the transport under test, and streams of asyncio."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client_sock = socket.create_connection(listening.getsockname())
        sock, _ = listening.accept()
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client_sock, limit=4 * READ_BYTES)
    protocol = RecordingProtocol()
    transport = SocketTransport(sock, protocol)
    yield Pair(protocol, transport, sock, reader, writer)
    transport.abort()
    writer.transport.abort()
    await within(protocol.lost.wait())


async def test_data_arrives_in_both_directions(pair: Pair):
    pair.transport.write(b"hello")
    assert await within(pair.reader.readexactly(5)) == b"hello"
    pair.writer.write(b"x" * 1_000_000)
    await pair.protocol.until(1_000_000)
    assert pair.protocol.data == b"x" * 1_000_000
    assert max(pair.protocol.pieces) <= READ_BYTES


async def test_data_for_a_slow_peer_is_kept_until_it_reads(pair: Pair):
    data = bytes(range(256)) * 60_000
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


async def test_close_sends_pending_data(pair: Pair):
    data = b"z" * 12_000_000
    pair.transport.write(data)
    pair.transport.close()
    assert pair.transport.is_closing()
    pair.transport.write(b"too late")
    assert await within(pair.reader.readexactly(len(data))) == data
    await within(pair.protocol.lost.wait())


async def test_peer_that_has_sent_all_still_reads(pair: Pair):
    """As asyncio does: a peer may close its side only."""
    data = b"z" * 12_000_000
    pair.transport.write(data)
    pair.writer.write(b"final data")
    pair.writer.write_eof()
    await pair.protocol.until(10)
    assert await within(pair.reader.read(-1)) == data
    await within(pair.protocol.lost.wait())
    assert pair.protocol.data == b"final data"


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
async def test_data_before_the_end_of_a_connection_is_received(pair: Pair, how):
    pair.writer.write(b"final data")
    await pair.writer.drain()
    await pair.protocol.until(10)
    if how == "close":
        pair.writer.close()
    else:
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            client = pair.writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        pair.writer.transport.abort()
    await within(pair.protocol.lost.wait())
    assert pair.protocol.data == b"final data"


async def test_write_to_a_peer_that_is_gone_ends_the_connection(pair: Pair):
    linger = struct.pack("ii", 1, 0)
    client = pair.writer.get_extra_info("socket")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    pair.transport.pause_reading()
    pair.writer.transport.abort()
    while not pair.transport.is_closing():
        pair.transport.write(b"x")
        await asyncio.sleep(0)
    await within(pair.protocol.lost.wait())
    assert pair.sock.fileno() == -1


async def test_abort_may_be_repeated(pair: Pair):
    pair.transport.write(b"q" * 12_000_000)
    pair.transport.abort()
    pair.transport.abort()
    pair.transport.close()
    await within(pair.protocol.lost.wait())
