"""What opens a door: callers' tokens and boards' keys. No sockets, no SQL.

A token is 256 random bits, and only its SHA-256 is kept. That is right for a random secret
and would be wrong for a password: nobody can try 2^256 of them, so that a slow hash or a
salt would buy nothing and cost every login. A board's key never crosses the wire
(docs/protocol.md, "Board link: authentication").
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

from cloudmanager.protocol import proofs
from cm_server import limits
from cm_server.store.rows import TokenRow

_TOKEN_BYTES = 32

#: What looks like a token: wherever people may have put one by mistake, it is not written down.
TOKEN_PATTERN = re.compile(r"cm_[\w-]{24,}")

#: Roles, each with the rights of those before it.
ROLES = ("viewer", "operator", "admin")
BOARD_ROLE = (
    "board"  # the role of a token that boards enrol themselves with: it opens no caller's door
)


def new_token() -> str:
    """Return a fresh token."""
    return "cm_" + secrets.token_urlsafe(_TOKEN_BYTES)


def token_hash(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def find_bearer_token(header: str | None, tokens: Mapping[str, TokenRow]) -> TokenRow | None:
    """Return whose token the ``Authorization`` header holds, None for none that we know."""
    scheme, _, token = (header or "").partition(" ")
    return match_token(token, tokens) if scheme.lower() == "bearer" else None


def match_token(token: str, tokens: Mapping[str, TokenRow]) -> TokenRow | None:
    """Return whose token it is, None for none that we know.

    It may have expired or been revoked. Whoever is told so has the whole token. The
    fingerprint of our authority, which stands behind a token's dot, is its bearer's to use.
    """
    token = token[: limits.TOKEN_CHARS + 1].partition(".")[0]
    if not 0 < len(token) <= limits.TOKEN_CHARS:
        return None
    mine = token_hash(token)
    found = None
    for known, row in tokens.items():
        if hmac.compare_digest(known, mine):
            found = row
    return found


def new_board_id() -> str:
    """Return a fresh id for a board: 16 hex digits."""
    return secrets.token_hex(8)


def new_key() -> bytes:
    """Return a fresh key for a board."""
    return secrets.token_bytes(proofs.KEY_BYTES)


def new_nonce() -> bytes:
    """Return the server's half of a link's freshness, or of a next key's."""
    return secrets.token_bytes(proofs.NONCE_BYTES)
