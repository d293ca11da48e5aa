"""Split the proxy's streams into units: heads of HTTP and frames, or records of TLS.

A unit is the smallest part that a fault can strike. Without TLS it has the names of the messages
in it (docs/protocol.md), or "request" and "answer" for the heads of the WebSocket handshake. With
TLS only the records are visible, and a fault counts them (``Strike.nth``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cloudmanager.protocol import frames, wire

OPS: Final = (
    *("HELLO", "CHALLENGE", "PROOF", "WELCOME", "EXEC", "MORE", "INTERRUPT", "ANSWER", "RESET"),
    *("OUTPUT", "VALUE", "RESULT", "INPUT", "REQUEST", "REPLY", "SUBMIT", "ACCEPTED", "EVENTS"),
    *("STARTED", "ENDED", "TRUNCATED"),
)
_BY_NUMBER: Final = {getattr(wire, name): name for name in OPS}
_CONTROL: Final = {frames.PING: "ping", frames.PONG: "pong", frames.CLOSE: "close"}
_RECORD_HEAD: Final = 5  # bytes: type, version, length (RFC 8446, 5.1)
_APPLICATION: Final = 23  # the type of a record with data, after the handshake
_BEAT_BYTES: Final = 30  # at most, of a record with a ping or a pong; messages are longer


class Unit(NamedTuple):
    """Bytes that belong together; ``body`` is the offset of their payload."""

    data: bytes
    names: frozenset[str] = frozenset()
    body: int = 0


class Frames:
    """Splits a stream without TLS: the head of HTTP, then frames.

    Args:
        head: the name of the head: "request" or "answer".
    """

    def __init__(self, head: str) -> None:
        self._head: str | None = head
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Unit]:
        """Add bytes and yield the complete units."""
        self._rest += data
        while size := self._size():
            unit, self._rest = self._rest[:size], self._rest[size:]
            yield self._unit(unit)

    def rest(self) -> bytes:
        """Return the bytes of the incomplete unit."""
        return self._rest

    def _size(self) -> int:
        if self._head is not None:
            at = self._rest.find(b"\r\n\r\n")
            return at + 4 if at >= 0 else 0
        found = _measure(self._rest)
        return found[1] if found and found[1] <= len(self._rest) else 0

    def _unit(self, data: bytes) -> Unit:
        if self._head is not None:
            name, self._head = self._head, None
            return Unit(data, frozenset((name,)))
        body, _ = _measure(data) or (0, 0)
        opcode = data[0] & 0x0F
        if opcode in _CONTROL:
            return Unit(data, frozenset((_CONTROL[opcode],)), body)
        return Unit(data, frozenset(_names(data[body:])), body)


class Records:
    """Splits TLS: each record is a unit."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Unit]:
        """Add bytes and yield the complete records; see ``_name``."""
        self._rest += data
        while len(self._rest) >= _RECORD_HEAD:
            size = _RECORD_HEAD + int.from_bytes(self._rest[3:_RECORD_HEAD], "big")
            if len(self._rest) < size:
                return
            unit, self._rest = self._rest[:size], self._rest[size:]
            yield Unit(unit, frozenset((_name(unit),)), _RECORD_HEAD)

    def rest(self) -> bytes:
        """Return the bytes of the incomplete unit."""
        return self._rest


def _name(record: bytes) -> str:
    """Return a record's name: "handshake", "record" for a message, else "beat"."""
    if record[0] != _APPLICATION:
        return "handshake"
    return "record" if len(record) > _RECORD_HEAD + _BEAT_BYTES else "beat"


def _measure(data: bytes) -> tuple[int, int] | None:
    """Return where a frame's payload begins and ends; None if its head is incomplete."""
    if len(data) < 2:
        return None
    size, body = data[1] & 0x7F, 2
    if size > 125:
        body += 2 if size == 126 else 8
        size = int.from_bytes(data[2:body], "big")
    body += 4 if data[1] & 0x80 else 0
    return (body, body + size) if len(data) >= body else None


def _names(payload: bytes) -> Iterator[str]:
    """Yield the names of a message and of the events in it; masks are zero (frames.py)."""
    if len(payload) < wire.HEADER.size:
        return
    message = wire.unpack(payload)
    yield _BY_NUMBER.get(message.op, "?")
    if message.op == wire.EVENTS:
        for event in wire.read_events(message.payload):
            yield _BY_NUMBER.get(event.op, "?")
