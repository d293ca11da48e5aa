"""What passes through the proxy, cut into units: heads of HTTP and frames, or records of TLS.

A unit is the least that a fault can strike. In the clear it has names: those of the messages in
it (docs/protocol.md), or "request" and "answer" for the handshake. Of TLS only the records are
seen: there a fault counts them (``Strike.record``).
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
_APPLICATION: Final = 23  # the type of a record with data, once the handshake is over
_BEAT_BYTES: Final = 30  # of a record with a ping or a pong, at most: no message is so short


class Unit(NamedTuple):
    """Some bytes that belong together; ``body`` is where what they say begins."""

    data: bytes
    names: frozenset[str] = frozenset()
    body: int = 0


class Frames:
    """Cuts a link in the clear: the head of HTTP, then frames.

    Args:
        head: what the head is called: "request" or "answer".
    """

    def __init__(self, head: str) -> None:
        self._head: str | None = head
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Unit]:
        """Take bytes and yield the units that are whole."""
        self._rest += data
        while size := self._size():
            unit, self._rest = self._rest[:size], self._rest[size:]
            yield self._unit(unit)

    def rest(self) -> bytes:
        """Return what was begun and has not come to its end."""
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
    """Cuts TLS: each record of data is a unit without a name."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Unit]:
        """Take bytes and yield the records that are whole; see ``_name``."""
        self._rest += data
        while len(self._rest) >= _RECORD_HEAD:
            size = _RECORD_HEAD + int.from_bytes(self._rest[3:_RECORD_HEAD], "big")
            if len(self._rest) < size:
                return
            unit, self._rest = self._rest[:size], self._rest[size:]
            yield Unit(unit, frozenset((_name(unit),)), _RECORD_HEAD)

    def rest(self) -> bytes:
        """Return what was begun and has not come to its end."""
        return self._rest


def _name(record: bytes) -> str:
    """Return what a record is called: "handshake", "record" of a message, else "beat"."""
    if record[0] != _APPLICATION:
        return "handshake"
    return "record" if len(record) > _RECORD_HEAD + _BEAT_BYTES else "beat"


def _measure(data: bytes) -> tuple[int, int] | None:
    """Return where a frame's payload begins and ends; None where that is not known yet."""
    if len(data) < 2:
        return None
    size, body = data[1] & 0x7F, 2
    if size > 125:
        body += 2 if size == 126 else 8
        size = int.from_bytes(data[2:body], "big")
    body += 4 if data[1] & 0x80 else 0
    return (body, body + size) if len(data) >= body else None


def _names(payload: bytes) -> Iterator[str]:
    """Yield the names of a message and of those inside it; masks are zero (frames.py)."""
    if len(payload) < wire.HEADER.size:
        return
    message = wire.unpack(payload)
    yield _BY_NUMBER.get(message.op, "?")
    if message.op == wire.EVENTS:
        for event in wire.read_events(message.payload):
            yield _BY_NUMBER.get(event.op, "?")
