"""Authentication of a board's link: proofs, keys and MACs; no sockets, no clock, no event loop.

docs/protocol.md ("Board link: authentication") is the specification; this module implements the
host's side. A board's key is not transmitted on the link: each side proves to the other that it
has the key (HMAC-SHA256, RFC 2104).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any, Final, NamedTuple

from . import wire
from .errors import PeerWireError

NONCE_BYTES: Final = 16
KEY_BYTES: Final = 32
PROOF_BYTES: Final = 32  # HMAC-SHA256
TAG_BYTES: Final = 16  # length of a message's MAC, on a link without TLS
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


def server_proof(key: bytes, nonces: bytes, board_id: str, body: bytes) -> bytes:
    """Return the server's proof; ``nonces`` is the board's, then the server's."""
    return hmac.digest(key, b"cm1 server" + nonces + board_id.encode() + body, hashlib.sha256)


def board_proof(key: bytes, nonces: bytes, board_id: str, body: bytes) -> bytes:
    """Return the board's proof over the JSON ``body`` of its PROOF."""
    return hmac.digest(key, b"cm1 board" + nonces + board_id.encode() + body, hashlib.sha256)


def session_key(key: bytes, nonces: bytes, board_id: str) -> bytes:
    """Return the key of the MACs of one link."""
    return hmac.digest(key, b"cm1 session" + nonces + board_id.encode(), hashlib.sha256)


def next_key(key: bytes, gen: int, nonce: bytes) -> bytes:
    """Return the key that follows ``key``: both sides derive it; it is not transmitted."""
    return hmac.digest(key, b"cm1 rekey" + _U32.pack(gen) + nonce, hashlib.sha256)


def rekey_proof(key: bytes, gen: int, nonce: bytes) -> bytes:
    """Return the proof that a board has the new key, as sent in REKEYED."""
    return hmac.digest(key, b"cm1 rekeyed" + _U32.pack(gen) + nonce, hashlib.sha256)


def pack_rekey(gen: int, nonce: bytes) -> bytes:
    """Return the REKEY that asks for key number ``gen``."""
    return wire.pack(wire.REKEY, _U32.pack(gen) + nonce)


class LinkMac:
    """The MACs of one link: one for each message, over its direction, its number and its bytes.

    A message that was forged, changed, replayed, reordered or left out fails the check, and the
    link is closed.

    Args:
        key: the key of the session, see ``session_key``.
    """

    __slots__ = ("_key", "_received", "_sent")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sent = self._received = 0

    def seal(self, message: bytes) -> bytes:
        """Return the server's next message with its tag appended."""
        self._sent += 1
        return message + self._make_tag(b"s", self._sent - 1, message)

    def open(self, data: bytes) -> bytes:
        """Verify the board's next message and return it without its tag.

        Raises:
            PeerWireError: the tag is wrong.
        """
        message = data[:-TAG_BYTES]
        if not self._is_authentic(message, data[-TAG_BYTES:]):
            raise PeerWireError("a message's MAC is wrong")
        self._received += 1
        return message

    def _is_authentic(self, message: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is that of the board's next message."""
        return hmac.compare_digest(self._make_tag(b"b", self._received, message), tag)

    def _make_tag(self, direction: bytes, number: int, message: bytes) -> bytes:
        text = _authenticated_bytes(direction, number, message)
        return hmac.digest(self._key, text, hashlib.sha256)[:TAG_BYTES]


def _authenticated_bytes(direction: bytes, number: int, message: bytes) -> bytes:
    """Return the bytes that a tag authenticates.

    Args:
        direction: ``s`` from the server, ``b`` from the board: no message can be sent back.
        number: of the message in its direction, from 0: none can be replayed or reordered.
        message: its bytes, with the header.
    """
    return direction + _U64.pack(number) + message


class Hello(NamedTuple):
    """A board's first message.

    Attributes:
        version: of the protocol.
        board_id: the board's id; not yet authenticated.
        nonce: 16 random bytes.
        gen: the number (generation) of the board's key.
        mac: whether each message from WELCOME on has a MAC.
    """

    version: int
    board_id: str
    nonce: bytes
    gen: int = 0
    mac: bool = False


def read_hello(message: wire.Message) -> Hello:
    """Return the HELLO in ``message``.

    Raises:
        PeerWireError: it is another message, or malformed.
    """
    wire.check_op("new", message)
    if message.op != wire.HELLO:
        raise PeerWireError("the first message of a board must be HELLO")
    body = wire.read_json(message.payload)
    version, board_id, nonce = body.get("v"), body.get("id"), body.get("nonce")
    if not (isinstance(version, int) and isinstance(board_id, str) and isinstance(nonce, str)):
        raise PeerWireError("HELLO lacks v, id or nonce")
    try:
        raw = bytes.fromhex(nonce)
    except ValueError:
        raw = b""
    if len(raw) != NONCE_BYTES or not 0 < len(board_id) <= 64 or not board_id.isascii():
        raise PeerWireError("HELLO's id or nonce is malformed")
    gen = body.get("gen", 0)
    if type(gen) is not int or not 0 <= gen < 2**32:
        raise PeerWireError("HELLO's gen is malformed")
    return Hello(version, board_id, raw, gen, bool(body.get("mac")))


def pack_challenge(key: bytes, hello: Hello, nonce: bytes) -> bytes:
    """Return the CHALLENGE that answers ``hello``; ``nonce`` is the server's."""
    body = b'{"v":%d}' % wire.PROTOCOL
    proof = server_proof(key, hello.nonce + nonce, hello.board_id, body)
    return wire.pack(wire.CHALLENGE, nonce + proof + body)


def check_proof(
    key: bytes, hello: Hello, nonce: bytes, message: wire.Message
) -> dict[str, Any] | None:
    """Return the JSON of PROOF if the board proved that it has the key, else None.

    Raises:
        PeerWireError: it is another message, or malformed.
    """
    wire.check_op("challenged", message)
    proof, body = message.payload[:PROOF_BYTES], message.payload[PROOF_BYTES:]
    expected = board_proof(key, hello.nonce + nonce, hello.board_id, body)
    return wire.read_json(body) if _is_same_proof(expected, proof) else None


def _is_same_proof(expected: bytes, proof: bytes) -> bool:
    """Compare in constant time: how long it takes reveals nothing about the key."""
    return hmac.compare_digest(expected, proof)
