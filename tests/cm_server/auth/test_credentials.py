"""Credentials: only exact tokens are found; new ones are random."""

from __future__ import annotations

import base64
import hmac
import re

import pytest

from cm_server.auth import credentials
from cm_server.auth.credentials import find_bearer_token
from cm_server.limits import Limits
from cm_server.store.rows import TokenRow

TOKEN = "cm_Ab-1" + "xY_9" * 10
OTHER = "cm_Zz-9" + "Qr_3" * 10
ANN = TokenRow(credentials.token_hash(TOKEN), "ann", "admin")
BOB = TokenRow(credentials.token_hash(OTHER), "bob", "viewer")
TOKENS = {row.hash: row for row in (ANN, BOB)}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_known_token_is_found(scheme):
    assert find_bearer_token(f"{scheme} {TOKEN}", TOKENS, Limits.token_chars) == ANN
    assert find_bearer_token(f"{scheme} {OTHER}", TOKENS, Limits.token_chars) == BOB


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer  ",
        TOKEN,
        f"Token {TOKEN}",
        f"Basic {base64.b64encode(TOKEN.encode()).decode()}",
        f"Bearer\t{TOKEN}",
        f"Bearer  {TOKEN}",
        f"Bearer {TOKEN} ",
        f"Bearer {TOKEN}\n",
        f"Bearer {TOKEN}\0",
        f"Bearer \0{TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}A",
        f"Bearer {TOKEN[:-1]}\u00e9",
        f"Bearer {TOKEN.swapcase()}",
        f"Bearer {TOKEN} {OTHER}",
        f"Bearer {TOKEN},{OTHER}",
        f"Bearer {credentials.token_hash(TOKEN)}",
        "Bearer null",
        "Bearer undefined",
        "Bearer ***",
        "Bearer \u202e\u0000\U0001f600",
        "Bearer \ud800\udfff",
        "Bearer \udc80",
        "Bearer " + "A" * 256,
        "Bearer " + "A" * 1024 * 1024,
    ],
    ids=lambda header: repr(header)[:24],
)
def test_other_headers_are_refused(header):
    assert find_bearer_token(header, TOKENS, Limits.token_chars) is None


def test_without_tokens_every_header_is_refused():
    assert find_bearer_token(f"Bearer {TOKEN}", {}, Limits.token_chars) is None


def test_empty_token_is_refused_although_its_hash_is_stored():
    assert (
        find_bearer_token(
            "Bearer ",
            {credentials.token_hash(""): TokenRow(credentials.token_hash(""), "ghost", "admin")},
            Limits.token_chars,
        )
        is None
    )


def test_every_token_is_compared(monkeypatch):
    compared: list[str] = []
    real = hmac.compare_digest

    def compare(known, given):
        compared.append(known)
        return real(known, given)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in (TOKEN, OTHER, "nonsense"):
        find_bearer_token(f"Bearer {token}", TOKENS, Limits.token_chars)
    assert compared == list(TOKENS) * 3


def test_new_tokens_are_long_printable_and_different():
    tokens = {credentials.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"cm_[\w-]{43}", token) for token in tokens)


def test_hash_does_not_contain_the_token():
    hashed = credentials.token_hash(TOKEN)
    assert re.fullmatch("[0-9a-f]{64}", hashed)
    assert TOKEN not in hashed


def test_ids_keys_and_nonces_are_random():
    assert re.fullmatch("[0-9a-f]{16}", credentials.new_board_id())
    assert credentials.new_board_id() != credentials.new_board_id()
    assert (len(credentials.new_key()), len(credentials.new_nonce())) == (32, 16)
    assert credentials.new_key() != credentials.new_key()
    assert credentials.new_nonce() != credentials.new_nonce()
