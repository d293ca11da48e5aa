"""Who is who on a board's link: proofs, keys and MACs; no sockets, no clock, no loop.

docs/protocol.md ("Board link: authentication") is the specification, this module the host's half.
A board's key is not transmitted on the link: each side proves to the other that it has it
(HMAC-SHA256, RFC 2104).
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
TAG_BYTES: Final = 16  # of a message's MAC, on a plain link
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


def server_proof(key: bytes, nonces: bytes, board_id: str, body: bytes) -> bytes:
    """Return the server's proof; ``nonces`` is the board's, then the server's."""
    return hmac.digest(key, b"cm1 server" + nonces + board_id.encode() + body, hashlib.sha256)


def board_proof(key: bytes, nonces: bytes, board_id: str, body: bytes) -> bytes:
    """Return the board's proof over the JSON ``body`` of its PROOF."""
    return hmac.digest(key, b"cm1 board" + nonces + board_id.encode() + body, hashlib.sha256)


def session_key(key: bytes, nonces: bytes, board_id: str) -> bytes:
    """Return what the MACs of one link are made with."""
    return hmac.digest(key, b"cm1 session" + nonces + board_id.encode(), hashlib.sha256)


def next_key(key: bytes, gen: int, nonce: bytes) -> bytes:
    """Return the key that follows ``key``: both sides derive it, and it crosses no wire."""
    return hmac.digest(key, b"cm1 rekey" + _U32.pack(gen) + nonce, hashlib.sha256)


def rekey_proof(key: bytes, gen: int, nonce: bytes) -> bytes:
    """Return the proof that a board has the new key, as REKEYED carries it."""
    return hmac.digest(key, b"cm1 rekeyed" + _U32.pack(gen) + nonce, hashlib.sha256)


def pack_rekey(gen: int, nonce: bytes) -> bytes:
    """Return the REKEY that asks for key number ``gen``."""
    return wire.pack(wire.REKEY, _U32.pack(gen) + nonce)


class LinkMac:
    """The MACs of one link: on each message, over its direction, its number and its bytes.

    What is forged, changed, replayed, reordered or left out breaks the link.

    Args:
        key: the session's, see ``session_key``.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sent = self._received = 0

    def seal(self, message: bytes) -> bytes:
        """Return a message of the server's with its tag."""
        self._sent += 1
        return message + self._make_tag(b"s", self._sent - 1, message)

    def open(self, data: bytes) -> bytes:
        """Return the board's message in ``data``.

        Raises:
            PeerWireError: its tag is not right.
        """
        message = data[:-TAG_BYTES]
        wanted = self._make_tag(b"b", self._received, message)
        if not hmac.compare_digest(wanted, data[-TAG_BYTES:]):
            raise PeerWireError("a message's MAC is wrong")
        self._received += 1
        return message

    def _make_tag(self, direction: bytes, number: int, message: bytes) -> bytes:
        text = direction + _U64.pack(number) + message
        return hmac.digest(self._key, text, hashlib.sha256)[:TAG_BYTES]


class Hello(NamedTuple):
    """A board's first message.

    Attributes:
        gen: the number of the key that it has.
        mac: whether each message carries a MAC from WELCOME on.
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
        raise PeerWireError("a board says who it is by HELLO")
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
    """Return the CHALLENGE that answers ``hello`` with the server's own ``nonce``."""
    body = b'{"v":%d}' % wire.PROTOCOL
    proof = server_proof(key, hello.nonce + nonce, hello.board_id, body)
    return wire.pack(wire.CHALLENGE, nonce + proof + body)


def check_proof(
    key: bytes, hello: Hello, nonce: bytes, message: wire.Message
) -> dict[str, Any] | None:
    """Return PROOF's JSON where the board proved itself, None where it did not.

    Raises:
        PeerWireError: it is another message, or malformed.
    """
    wire.check_op("challenged", message)
    proof, body = message.payload[:PROOF_BYTES], message.payload[PROOF_BYTES:]
    wanted = board_proof(key, hello.nonce + nonce, hello.board_id, body)
    return wire.read_json(body) if hmac.compare_digest(wanted, proof) else None
