"""Rows: their repr and their defaults."""

from __future__ import annotations

from cm_server.store.rows import BoardRow, TokenRow


def test_key_of_a_board_is_in_no_repr():
    row = BoardRow("id1", "lab-1", b"k" * 32, {}, {}, 0.0, None)
    assert repr(row) == "BoardRow(id='id1', name='lab-1')"
    assert "kkk" not in f"{row} {[row]}"


def test_token_targets_all_boards_and_never_expires_by_default():
    row = TokenRow("hash", "ann", "viewer")
    assert (row.target, row.expires, row.revoked) == ("all", None, None)
