# MACs: HMAC-SHA256 for proofs; on a plain link one on each message, so that none can be forged.
# Boards: all; it stays in memory only where the link has no TLS.
# Cost: 560 bytes of .mpy, 832 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).
from hashlib import sha256
from struct import pack

_TAG = const(16)  # bytes that each message is longer
_BOARD = const(0x62)  # who says it: "b" and "s"
_SERVER = const(0x73)

# A tag binds session, direction and number, so that nothing is replayed, left out or reordered.
key = None  # of this session
sent = got = 0


def hmac(key, *parts):
    inner = sha256(bytes([b ^ 0x36 for b in key]) + b"\x36" * 32)  # keys have 32 bytes
    for part in parts:
        inner.update(part)
    return sha256(bytes([b ^ 0x5C for b in key]) + b"\x5c" * 32 + inner.digest()).digest()


# Whether two MACs are the same; how long it takes does not tell where they differ.
def same(a, b):
    wrong = len(a) ^ len(b)
    for i in range(len(b)):
        wrong |= a[i] ^ b[i]
    return not wrong


def begin(new):
    global got, key, sent
    key = new
    sent = got = 0


# Puts the tag of mv[start:end] behind it, and gives what was there.
def seal(mv, start, end):
    global sent
    tag = hmac(key, pack(">BQ", _BOARD, sent), mv[start:end])
    sent += 1
    kept = bytes(mv[end : end + _TAG])
    mv[end : end + _TAG] = memoryview(tag)[:_TAG]
    return kept


# The length of a message without its tag; 0 if that is not right.
def check(mv, n):
    global got
    n -= _TAG
    if n < 0:
        return 0
    tag = hmac(key, pack(">BQ", _SERVER, got), mv[:n])
    got += 1
    return n if same(mv[n : n + _TAG], memoryview(tag)[:_TAG]) else 0
