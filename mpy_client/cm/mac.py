# HMAC-SHA256 for authentication and, on a link without TLS, for a tag on each message.
# Boards: all; it stays in memory only if the link has no TLS.
# Cost: 576 bytes of .mpy, 704 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm.firmware import hashlib, struct

# Numbers: written by `python -m tests.board.client_numbers`.
_TAG = const(16)

_BOARD = const(0x62)  # directions: "b" from the board, "s" from the server
_SERVER = const(0x73)

# A tag covers session, direction and message number, so that messages cannot be replayed, omitted
# or reordered.
key = None  # of this session
sent = received = 0


# Returns the first 64 bytes that are hashed: a key of 32 bytes, each of them XORed with byte. As
# one large number, which takes RP2 0.2 ms: a loop takes 0.35 ms.
def _pad(key, byte):
    pad = bytes([byte]) * 32
    return (int.from_bytes(key, "big") ^ int.from_bytes(pad, "big")).to_bytes(32, "big") + pad


def hmac(key, *parts):
    inner = hashlib.sha256(_pad(key, 0x36))
    for part in parts:
        inner.update(part)
    return hashlib.sha256(_pad(key, 0x5C) + inner.digest()).digest()


# Compares two MACs in constant time.
def equal(a, b):
    different = len(a) ^ len(b)
    for i in range(len(b)):
        different |= a[i] ^ b[i]
    return not different


def start(new):
    global received, key, sent
    key = new
    sent = received = 0


# Writes the tag of mv[start:end] after it, and returns the bytes that it replaces.
def sign(mv, start, end):
    global sent
    tag = hmac(key, struct.pack(">BQ", _BOARD, sent), mv[start:end])
    sent += 1
    covered = bytes(mv[end : end + _TAG])
    mv[end : end + _TAG] = memoryview(tag)[:_TAG]
    return covered


# Returns the length of a message without its tag; 0 if the tag is wrong.
def verify(mv, n):
    global received
    n -= _TAG
    if n < 0:
        return 0
    tag = hmac(key, struct.pack(">BQ", _SERVER, received), mv[:n])
    received += 1
    return n if equal(mv[n : n + _TAG], memoryview(tag)[:_TAG]) else 0
