"""Shares of what the server has a limited number of."""

from __future__ import annotations

import pytest

from cm_server.quotas import Quota, Shares
from cm_server.store.rows import TokenRow

ANN = TokenRow("a" * 64, "ann", "viewer")
BEN = TokenRow("b" * 64, "ben", "operator")
CAT = TokenRow("c" * 64, "cat", "admin")
QUOTA = Quota("links", total=12, per_token=5, reserved=3)


@pytest.mark.parametrize(
    ("token", "own", "used", "amount", "why"),
    [
        (ANN, 0, 0, 1, ""),
        (ANN, 4, 4, 1, ""),
        (ANN, 5, 5, 1, "the token 'ann' has 5 links already"),
        (ANN, 3, 3, 3, "the token 'ann' has 3 links already"),
        (ANN, 0, 8, 1, ""),
        (
            ANN,
            0,
            9,
            1,
            "the server has 9 links already, and the last ones are reserved for administrators",
        ),
        (CAT, 0, 11, 1, ""),
        (CAT, 5, 9, 1, "the token 'cat' has 5 links already"),
        (CAT, 0, 12, 1, "the server has 12 links already"),
        (BEN, 0, 12, 1, "the server has 12 links already"),
    ],
)
def test_share_of_a_token(token, own, used, amount, why):
    assert QUOTA.refusal_reason(token, own, used, amount) == why


def test_reserve_is_at_most_a_quarter():
    assert Quota("links", 1, 1, 50).refusal_reason(ANN, 0, 0) == ""
    assert "reserved" in Quota("links", 8, 8, 50).refusal_reason(ANN, 0, 6)


def test_shares_are_counted_and_given_back():
    shares = Shares(QUOTA)
    shares.add(ANN.hash, 5)
    shares.add(BEN.hash)
    assert (shares.total, shares.used_by(ANN.hash), shares.used_by(BEN.hash)) == (6, 5, 1)
    assert "has 5 links" in shares.refusal_reason(ANN)
    shares.add(ANN.hash, -5)
    assert (shares.total, shares.used_by(ANN.hash)) == (1, 0)
    assert shares.refusal_reason(ANN) == ""
