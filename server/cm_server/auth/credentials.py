"""Credentials: callers' tokens and boards' keys. No sockets, no SQL.

A token is 256 random bits, of which only the SHA-256 is stored. A slow hash or a salt, as passwords
need them, would add nothing, because nobody can try 2^256 tokens, and would slow down every login.
A board's key is never sent, except when the board enrols itself over TLS (docs/protocol.md,
"Board link: authentication").
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

from cloudmanager.protocol import proofs
from cm_server.store.rows import TokenRow

_TOKEN_BYTES = 32

#: Text that looks like a token; it is masked wherever people may have pasted one by mistake.
TOKEN_PATTERN = re.compile(r"cm_[\w-]{24,}")

#: Roles, each with the rights of those before it.
ROLES = ("viewer", "operator", "admin")
#: The role of a token with which boards enrol themselves; callers cannot log in with it.
BOARD_ROLE = "board"


def new_token() -> str:
    """Return a new random token."""
    return "cm_" + secrets.token_urlsafe(_TOKEN_BYTES)


def token_hash(token: str) -> str:
    """Return the hash of a token, as it is stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def find_bearer_token(
    header: str | None, tokens: Mapping[str, TokenRow], max_chars: int
) -> TokenRow | None:
    """Return the row of the token in an ``Authorization`` header; None if it is unknown."""
    scheme, _, token = (header or "").partition(" ")
    return match_token(token, tokens, max_chars) if scheme.lower() == "bearer" else None


def match_token(token: str, tokens: Mapping[str, TokenRow], max_chars: int) -> TokenRow | None:
    """Return the row of a token; None if it is unknown.

    The token may have expired or been revoked: its bearer may learn that, having the whole token.

    Args:
        token: the token, perhaps with a dot and the fingerprint of the server's certificate
            authority, which only callers use.
        tokens: all rows by hash.
        max_chars: a longer token is not compared.
    """
    token = token[: max_chars + 1].partition(".")[0]
    if not _has_valid_length(token, max_chars):
        return None
    return _find_by_hash(token_hash(token), tokens)


def _has_valid_length(token: str, max_chars: int) -> bool:
    return 0 < len(token) <= max_chars


def _find_by_hash(wanted: str, tokens: Mapping[str, TokenRow]) -> TokenRow | None:
    """Return the row with a hash; compare all of them, so that the time reveals nothing."""
    found = None
    for known, row in tokens.items():
        if hmac.compare_digest(known, wanted):
            found = row
    return found


def new_board_id() -> str:
    """Return a new random id for a board: 16 hex digits."""
    return secrets.token_hex(8)


def new_key() -> bytes:
    """Return a new random key for a board."""
    return secrets.token_bytes(proofs.KEY_BYTES)


def new_nonce() -> bytes:
    """Return a random nonce, for the challenge of a link or for the derivation of a next key."""
    return secrets.token_bytes(proofs.NONCE_BYTES)
