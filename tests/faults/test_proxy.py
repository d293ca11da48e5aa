"""The proxy causes faults at the given places, and forwards other data unchanged."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cloudmanager.protocol import frames, wire

from .conftest import until
from .proxy import DELAY, FAULTS, Loop, Proxy, Strike
from .units import Frames, Records

WAIT = 60.0  # seconds, even on a busy machine
HEAD = b"GET /board HTTP/1.1\r\n\r\n"
HELLO = frames.encode_frame(wire.pack(wire.HELLO, b"{}"), mask=True)
OUTPUT = frames.encode_frame(wire.pack(wire.OUTPUT, b"go\n", job=7), mask=True)
RESULT = frames.encode_frame(wire.pack(wire.RESULT, b"x" * 300, job=7), mask=True)
SENT = HEAD + HELLO + OUTPUT + RESULT


class RecordingServer:
    """A server that records the received data until the stream ends."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.tcp_port = self.listener.getsockname()[1]
        self.received = b""
        self.ended = threading.Event()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        client, _ = self.listener.accept()
        with client, contextlib.suppress(ConnectionResetError):
            while data := client.recv(65536):
                self.received += data
        self.ended.set()


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    server = RecordingServer()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(server: RecordingServer) -> Iterator[Proxy]:
    with Loop() as loop:
        yield loop.proxy(server.tcp_port)


def send(proxy: Proxy, data: bytes = SENT) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.tcp_port), WAIT)
    client.sendall(data)
    return client


#: Fault -> the data that the server receives.
RECEIVED = {
    "cut before": HEAD + HELLO,
    "cut within": HEAD + HELLO + OUTPUT[: len(OUTPUT) // 2],
    "cut after": HEAD + HELLO + OUTPUT,
    "delay": SENT,
    "drop": HEAD + HELLO + RESULT,
    "duplicate": HEAD + HELLO + OUTPUT + OUTPUT + RESULT,
    "reorder": HEAD + HELLO + RESULT + OUTPUT,
    "flip": HEAD + HELLO + OUTPUT[:6] + bytes((OUTPUT[6] ^ 0x80,)) + OUTPUT[7:] + RESULT,
    "flip head": HEAD + HELLO + bytes((OUTPUT[0] ^ 0x10,)) + OUTPUT[1:] + RESULT,
    "trickle": SENT,
    "hold": SENT,
}


@pytest.mark.parametrize("fault", RECEIVED)
def test_fault_happens_at_its_message(server: RecordingServer, proxy: Proxy, fault: str):
    proxy.strike(Strike(fault, "OUTPUT"))
    began = time.monotonic()
    with send(proxy) as client:
        assert proxy.struck.wait(WAIT) or fault == "delay"
        proxy.released.set()
        client.shutdown(socket.SHUT_WR)
        assert server.ended.wait(WAIT)
    assert server.received == RECEIVED[fault]
    assert fault != "delay" or time.monotonic() - began >= DELAY


def test_half_open_link_drops_all_data(server: RecordingServer, proxy: Proxy):
    proxy.strike(Strike("half-open", "OUTPUT"))
    with send(proxy) as client:
        assert proxy.struck.wait(WAIT)
        client.sendall(RESULT)
        assert not server.ended.wait(0.1)
    assert not server.ended.wait(0.1)
    assert server.received == HEAD + HELLO


def test_every_fault_is_tried():
    assert set(RECEIVED) | {"half-open"} == set(FAULTS)


def test_fault_happens_once_on_the_selected_link(server: RecordingServer, proxy: Proxy):
    proxy.strike(Strike("drop", "OUTPUT", nth=2))
    with send(proxy, HEAD + OUTPUT * 4) as client:
        client.shutdown(socket.SHUT_WR)
        assert server.ended.wait(WAIT)
    assert server.received == HEAD + OUTPUT * 3


def test_closing_one_end_closes_the_other(server: RecordingServer, proxy: Proxy):
    with send(proxy) as client:
        until(lambda: server.received == SENT, "it did not arrive")
        proxy.close_links()
        assert server.ended.wait(WAIT)
        client.settimeout(WAIT)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_units_are_named_after_their_messages():
    events = wire.pack_events([wire.pack(wire.ACCEPTED), wire.pack(wire.OUTPUT, b"x" * 200)])
    data = (
        b"HTTP/1.1 101 Fine\r\n\r\n"
        + frames.encode_frame(b"", frames.PING)
        + frames.encode_frame(events)
    )
    for size in (1, 7, len(data)):
        cutter = Frames("answer")
        units = [
            unit for at in range(0, len(data), size) for unit in cutter.feed(data[at : at + size])
        ]
        assert [sorted(unit.names) for unit in units] == [
            ["answer"],
            ["ping"],
            ["ACCEPTED", "EVENTS", "OUTPUT"],
        ]
        assert b"".join(unit.data for unit in units) == data
        assert cutter.rest() == b""


def test_tls_records_are_counted_by_their_type():
    hello, data = b"\x16\x03\x01\x00\x02hi", b"\x17\x03\x03\x00\x28" + b"d" * 40
    beat = b"\x17\x03\x03\x00\x1a" + b"b" * 26
    cutter = Records()
    sent = hello + beat + data + data[:3]
    units = [unit for byte in sent for unit in cutter.feed(bytes((byte,)))]
    assert [unit.data for unit in units] == [hello, beat, data]
    assert [sorted(unit.names) for unit in units] == [["handshake"], ["beat"], ["record"]]
    assert cutter.rest() == data[:3]


def test_fault_happens_at_a_tls_record(server: RecordingServer):
    hello, data = b"\x16\x03\x01\x00\x02hi", b"\x17\x03\x03\x00\x28" + b"d" * 40
    with Loop() as loop:
        proxy = loop.proxy(server.tcp_port, tls=True)
        proxy.strike(Strike("flip", "RESULT", nth=2, up=True))
        with send(proxy, hello + data * 3) as client:
            client.shutdown(socket.SHUT_WR)
            assert server.ended.wait(WAIT)
    assert server.received == hello + data + data[:5] + bytes((data[5] ^ 0x80,)) + data[6:] + data
