"""Who may come in: callers' tokens and boards' proofs. No sockets, no SQL.

A token is random, kept only as its SHA-256, and compared in constant time. A board's
key never crosses the wire (docs/protocol.md, "who are you").
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import NamedTuple

from cloudmanager import wire

_TOKEN_BYTES = 32
_MAX_TOKEN = 256  # characters; ours have 46


class Caller(NamedTuple):
    """Somebody with a token: its name and role (viewer, operator, admin)."""

    name: str
    role: str


def new_token() -> str:
    """Return a fresh token."""
    return "cm_" + secrets.token_urlsafe(_TOKEN_BYTES)


def token_hash(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def find_caller(header: str | None, tokens: dict[str, tuple[str, str]]) -> Caller | None:
    """Return who sent the ``Authorization`` header, None for nobody we know."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(token) <= _MAX_TOKEN:
        return None
    mine = token_hash(token)
    found = None
    for known, (name, role) in tokens.items():
        if hmac.compare_digest(known, mine):
            found = Caller(name, role)
    return found


def new_board_id() -> str:
    """Return a fresh id for a board: 16 hex digits."""
    return secrets.token_hex(8)


def new_key() -> bytes:
    """Return a fresh key for a board."""
    return secrets.token_bytes(wire.KEY_BYTES)


def new_nonce() -> bytes:
    """Return the server's half of a link's freshness."""
    return secrets.token_bytes(wire.NONCE_BYTES)
