"""The proxy itself: it strikes where it is told to, and passes all else on untouched."""

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

WAIT = 10.0  # seconds
HEAD = b"GET /board HTTP/1.1\r\n\r\n"
HELLO = frames.encode_frame(wire.pack(wire.HELLO, b"{}"), mask=True)
OUTPUT = frames.encode_frame(wire.pack(wire.OUTPUT, b"go\n", job=7), mask=True)
RESULT = frames.encode_frame(wire.pack(wire.RESULT, b"x" * 300, job=7), mask=True)
SAID = HEAD + HELLO + OUTPUT + RESULT


class Far:
    """A server that keeps what it hears, until the end."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.tcp_port = self.listener.getsockname()[1]
        self.heard = b""
        self.ended = threading.Event()
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        near, _ = self.listener.accept()
        with near, contextlib.suppress(ConnectionResetError):
            while data := near.recv(65536):
                self.heard += data
        self.ended.set()


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()
    yield far
    far.listener.close()


@pytest.fixture
def proxy(far: Far) -> Iterator[Proxy]:
    with Loop() as loop:
        yield loop.proxy(far.tcp_port)


def say(proxy: Proxy, data: bytes = SAID) -> socket.socket:
    near = socket.create_connection(("127.0.0.1", proxy.tcp_port), WAIT)
    near.sendall(data)
    return near


#: What the other end hears.
HEARD = {
    "cut before": HEAD + HELLO,
    "cut within": HEAD + HELLO + OUTPUT[: len(OUTPUT) // 2],
    "cut after": HEAD + HELLO + OUTPUT,
    "delay": SAID,
    "drop": HEAD + HELLO + RESULT,
    "duplicate": HEAD + HELLO + OUTPUT + OUTPUT + RESULT,
    "reorder": HEAD + HELLO + RESULT + OUTPUT,
    "flip": HEAD + HELLO + OUTPUT[:6] + bytes((OUTPUT[6] ^ 0x80,)) + OUTPUT[7:] + RESULT,
    "flip head": HEAD + HELLO + bytes((OUTPUT[0] ^ 0x10,)) + OUTPUT[1:] + RESULT,
    "trickle": SAID,
    "hold": SAID,
}


@pytest.mark.parametrize("fault", HEARD)
def test_fault_happens_at_its_message(far: Far, proxy: Proxy, fault: str):
    proxy.strike(Strike(fault, "OUTPUT"))
    began = time.monotonic()
    with say(proxy) as near:
        assert proxy.struck.wait(WAIT) or fault == "delay"
        proxy.go.set()
        near.shutdown(socket.SHUT_WR)
        assert far.ended.wait(WAIT)
    assert far.heard == HEARD[fault]
    assert fault != "delay" or time.monotonic() - began >= DELAY


def test_half_open_link_drops_all_data(far: Far, proxy: Proxy):
    proxy.strike(Strike("half-open", "OUTPUT"))
    with say(proxy) as near:
        assert proxy.struck.wait(WAIT)
        near.sendall(RESULT)
        assert not far.ended.wait(0.1)
    assert not far.ended.wait(0.1)
    assert far.heard == HEAD + HELLO


def test_every_fault_is_tried():
    assert set(HEARD) | {"half-open"} == set(FAULTS)


def test_fault_happens_once_on_the_selected_link(far: Far, proxy: Proxy):
    proxy.strike(Strike("drop", "OUTPUT", nth=2))
    with say(proxy, HEAD + OUTPUT * 4) as near:
        near.shutdown(socket.SHUT_WR)
        assert far.ended.wait(WAIT)
    assert far.heard == HEAD + OUTPUT * 3


def test_closing_one_end_closes_the_other(far: Far, proxy: Proxy):
    with say(proxy) as near:
        until(lambda: far.heard == SAID, "it did not arrive")
        proxy.hang_up()
        assert far.ended.wait(WAIT)
        near.settimeout(WAIT)
        with contextlib.suppress(ConnectionResetError):
            assert near.recv(100) == b""


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
    said = hello + beat + data + data[:3]
    units = [unit for byte in said for unit in cutter.feed(bytes((byte,)))]
    assert [unit.data for unit in units] == [hello, beat, data]
    assert [sorted(unit.names) for unit in units] == [["handshake"], ["beat"], ["record"]]
    assert cutter.rest() == data[:3]


def test_fault_happens_at_a_tls_record(far: Far):
    hello, data = b"\x16\x03\x01\x00\x02hi", b"\x17\x03\x03\x00\x28" + b"d" * 40
    with Loop() as loop:
        proxy = loop.proxy(far.tcp_port, tls=True)
        proxy.strike(Strike("flip", "RESULT", nth=2, up=True))
        with say(proxy, hello + data * 3) as near:
            near.shutdown(socket.SHUT_WR)
            assert far.ended.wait(WAIT)
    assert far.heard == hello + data + data[:5] + bytes((data[5] ^ 0x80,)) + data[6:] + data
