"""What a store says of its changes: each once it is written, and nothing of what was refused."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.store.change_notifier import Announcing
from cm_server.store.rows import AuditRow, TokenRow, new_board

NOTE = AuditRow(7.0, "ann", "", "board-enrol", "", "", 1, None, None, "done")
BOARD = new_board("id1", "lab-1", b"k" * 32)
TOKEN = TokenRow("abc", "enrol-1", "board", uses=1)


def test_others_are_told_what_changed_of_boards_and_tokens():
    store, told = Announcing(None), []
    store.on_change = lambda *ids, **what: told.append((*ids, *what))
    changes: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
        ("add_token", (TOKEN,), ("tokens",)),
        ("enrol", ([BOARD],), (["id1"],)),
        ("enrol_by", (TOKEN, BOARD._replace(id="id2", name="lab-2"), NOTE), (["id2"], "tokens")),
        ("set_labels", ({"id1": {"room": "lab"}},), (["id1"],)),
        ("open_rotation", ({"id1": b"n"}, NOTE), (["id1"],)),
        ("revoke_token", ("abc", 8.0), ("tokens",)),
        ("forget", (["id1"],), (["id1"],)),
    ]
    for name, given, _ in changes:
        getattr(store, name)(*given)
    store.set_board("id2", name="lab-9")
    assert told == [*(what for *_, what in changes), (["id2"],)]
    with pytest.raises(ServerError, match="cannot be written"):
        store.enrol([BOARD._replace(id="id3", name="lab-9")])
    assert len(told) == len(changes) + 1
    store.close()
