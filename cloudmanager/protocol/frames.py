"""WebSocket frames (RFC 6455): bytes in, messages out; no sockets, no clock, no event loop.

Used by the server, for boards and callers, and by the caller's link. Only what the protocol needs
is supported: binary messages of one frame, ping, pong and close. Text, fragments, reserved bits
and, on the server, unmasked frames are refused with the close code that the RFC names (sections
5.1, 5.2, 5.5, 7.4.1).
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from .errors import PeerWireError

BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

#: Close codes (RFC 6455, 7.4.1).
CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_UNSUPPORTED_DATA: Final = 1003
CLOSE_NO_STATUS: Final = 1005  # never sent: the value for a close frame without a code
CLOSE_INVALID_PAYLOAD: Final = 1007
CLOSE_POLICY: Final = 1008
CLOSE_MESSAGE_TOO_BIG: Final = 1009
CLOSE_INTERNAL_ERROR: Final = 1011
#: Close codes of this protocol (RFC 6455, 7.4.2: from 4000 they are private; docs/protocol.md).
CLOSE_NOT_AUTHENTICATED: Final = 4001
CLOSE_WRONG_VERSION: Final = 4002
CLOSE_REPLACED: Final = 4003  # by a newer link of the same board
CLOSE_REVOKED: Final = 4004  # the token or the key is no longer valid
CLOSE_NOT_SECURE: Final = 4005  # neither TLS nor MACs

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: Codes that a close frame may have: registered ones (7.4.1, IANA), and 3000 to 4999 (7.4.2).
_VALID_CLOSE_CODES: Final = frozenset((*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)))
_TEXT: Final = 0x1
_CONTROL_BIT: Final = 0x8  # set in the opcodes of control frames
_FIN: Final = 0x80
_MASKED: Final = 0x80
_WHOLE_MESSAGE: Final = _FIN | BINARY  # the first byte of a message in one frame
_SHORT_MAX: Final = 125  # the greatest length that fits in the second byte
_LEN16: Final = struct.Struct(">H")
_LEN64: Final = struct.Struct(">Q")
_ZERO_MASK_KEY: Final = b"\0\0\0\0"  # a valid key, which needs no XOR


class Frame(NamedTuple):
    """One frame: its opcode and its unmasked payload."""

    opcode: int
    payload: bytes


class FrameError(PeerWireError):
    """The peer sent a frame that is not allowed; ``close_code`` is the code to close with."""

    def __init__(self, message: str, close_code: int = CLOSE_PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.close_code = close_code


def accept_key(key: str) -> str:
    """Return the ``Sec-WebSocket-Accept`` that answers ``key`` (RFC 6455, 4.2.2)."""
    digest = hashlib.sha1(key.encode("latin-1", "replace") + _GUID, usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode()


def frame_header(opcode: int, size: int, *, mask: bool) -> bytes:
    """Return the bytes before a payload of ``size`` bytes; with ``mask``, the key is zero."""
    bit = _MASKED if mask else 0
    key = _ZERO_MASK_KEY if mask else b""
    if size <= _SHORT_MAX:
        return bytes((_FIN | opcode, bit | size)) + key
    if size <= 0xFFFF:
        return bytes((_FIN | opcode, bit | 126)) + _LEN16.pack(size) + key
    return bytes((_FIN | opcode, bit | 127)) + _LEN64.pack(size) + key


def encode_frame(payload: bytes, opcode: int = BINARY, *, mask: bool = False) -> bytes:
    """Return one complete frame with ``payload``."""
    return frame_header(opcode, len(payload), mask=mask) + payload


def encode_close_frame(code: int, reason: str = "", *, mask: bool = False) -> bytes:
    """Return a close frame; the reason is cut to what fits in a control frame."""
    text = reason.encode()[: _SHORT_MAX - 2].decode(errors="ignore").encode()
    payload = b"" if code == CLOSE_NO_STATUS else _LEN16.pack(code) + text
    return encode_frame(payload, CLOSE, mask=mask)


def read_close_code(payload: bytes) -> int:
    """Return the code in a close frame's payload; 1005 if there is none."""
    return int(_LEN16.unpack_from(payload)[0]) if len(payload) >= 2 else CLOSE_NO_STATUS


class FrameReader:
    """Splits a byte stream into frames.

    Args:
        max_size: the greatest length of a payload, in bytes; checked before it is received.
        masked: whether the peer must mask (True on a server, RFC 6455, 5.1).
    """

    __slots__ = ("_buffer", "_masked", "max_size")

    def __init__(self, max_size: int, *, masked: bool) -> None:
        self.max_size = max_size
        self._masked = masked
        self._buffer = bytearray()

    @property
    def empty(self) -> bool:
        """Whether all received bytes have been returned as frames."""
        return not self._buffer

    @property
    def pending_bytes(self) -> int:
        """The received bytes that have not been returned as frames."""
        return len(self._buffer)

    def clear(self) -> None:
        """Drop the received bytes, because the link has ended."""
        self._buffer = bytearray()

    def push(self, data: bytes) -> None:
        """Append received bytes; ``next_frame`` reads them."""
        self._buffer += data

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Append ``data`` and yield each frame that is now complete.

        Raises:
            FrameError: the peer broke a rule; the link has to be closed.
        """
        self.push(data)
        while self._buffer and (frame := self.next_frame()) is not None:
            yield frame

    def next_frame(self) -> Frame | None:
        """Return the next frame, removed from the buffer; None if none is complete.

        Raises:
            FrameError: the peer broke a rule; the link has to be closed.
        """
        buffer = self._buffer
        header = self._read_header(buffer)
        if header is None:
            return None
        opcode, key_at, body_at, end = header
        if end > len(buffer):
            return None
        payload = bytes(memoryview(buffer)[body_at:end])
        if self._masked and (key := buffer[key_at:body_at]) != _ZERO_MASK_KEY:
            payload = _unmask(payload, key)
        del buffer[:end]  # cheap: CPython moves a bytearray's start pointer, not its bytes
        if opcode == CLOSE:
            _check_close_payload(payload)
        return Frame(opcode, payload)

    def _read_header(self, buffer: bytearray) -> tuple[int, int, int, int] | None:
        """Return (opcode, index of the key, of the payload, of its end); None if incomplete."""
        received = len(buffer)
        if received < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first == _WHOLE_MESSAGE and (second >= _MASKED) is self._masked:  # nearly every frame
            opcode, size = BINARY, second & 0x7F
        else:
            opcode, size = self._check_first_bytes(first, second)
        key_at = 2
        if size > _SHORT_MAX:
            length, shorter_max = (_LEN16, _SHORT_MAX) if size == 126 else (_LEN64, 0xFFFF)
            key_at += length.size
            if received < key_at:
                return None
            size = int(length.unpack_from(buffer, 2)[0])
            if size <= shorter_max:
                raise FrameError("a length is not in its shortest form")
        self._check_size(size)
        body_at = key_at + 4 if self._masked else key_at
        return opcode, key_at, body_at, body_at + size

    def _check_first_bytes(self, first: int, second: int) -> tuple[int, int]:
        """Return opcode and length; refuse what RFC 6455 or the protocol does not allow."""
        opcode, size = first & 0x0F, second & 0x7F
        _check_reserved_bits(first)
        self._check_mask_bit(second)
        _check_opcode(opcode)
        _check_control_frame(opcode, first, size)
        _check_not_fragmented(first)
        return opcode, size

    def _check_mask_bit(self, second: int) -> None:
        if bool(second & _MASKED) is not self._masked:
            raise FrameError("a client must mask and a server must not")

    def _check_size(self, size: int) -> None:
        if size > self.max_size:
            raise FrameError(f"a message of {size} bytes is too long", CLOSE_MESSAGE_TOO_BIG)


def _check_reserved_bits(first: int) -> None:
    if first & 0x70:
        raise FrameError("reserved bits are set")


def _check_opcode(opcode: int) -> None:
    if opcode not in (BINARY, CLOSE, PING, PONG):
        code = CLOSE_UNSUPPORTED_DATA if opcode == _TEXT else CLOSE_PROTOCOL_ERROR
        raise FrameError(f"opcode {opcode} is not supported", code)


def _check_control_frame(opcode: int, first: int, size: int) -> None:
    if opcode & _CONTROL_BIT and (size > _SHORT_MAX or not first & _FIN):
        raise FrameError("a control frame is too long or fragmented")


def _check_not_fragmented(first: int) -> None:
    if not first & _FIN:
        raise FrameError("fragmented messages are not supported", CLOSE_UNSUPPORTED_DATA)


def _check_close_payload(payload: bytes) -> None:
    """Refuse a close frame that RFC 6455 does not allow (5.5.1, 7.4, and 5.6 for its text)."""
    if payload and (len(payload) == 1 or read_close_code(payload) not in _VALID_CLOSE_CODES):
        raise FrameError("a close frame is malformed")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError("a close frame's reason is not UTF-8", CLOSE_INVALID_PAYLOAD) from None


def _unmask(payload: bytes, key: bytes | bytearray) -> bytes:
    """Return ``payload`` XOR the repeated ``key``."""
    size = len(payload)
    repeated = bytes(key) * (size // 4 + 1)
    unmasked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:size], "big")
    return unmasked.to_bytes(size, "big")
