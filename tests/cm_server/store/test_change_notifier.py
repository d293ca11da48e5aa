"""A notifying store reports each change after it was written, and no refused change."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError
from cm_server.store.change_notifier import NotifyingStore
from cm_server.store.rollout_replacements import BoardReplacement
from cm_server.store.rollout_rows import RolloutPlace
from cm_server.store.rows import AuditRow, TokenRow, new_board_row

NOTE = AuditRow(7.0, "ann", "", "board-enrol", "", "", 1, None, None, "done")
BOARD = new_board_row("id1", "lab-1", b"k" * 32)
TOKEN = TokenRow("abc", "enrol-1", "board", uses=1)


def test_changes_of_boards_and_tokens_are_reported():
    store, reported = NotifyingStore(None), []
    store.on_change = lambda *ids, **what: reported.append((*ids, *what))
    changes: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
        ("add_token", (TOKEN,), ("tokens",)),
        ("enrol_boards", ([BOARD],), (["id1"],)),
        (
            "enrol_with_token",
            (TOKEN, BOARD._replace(id="id2", name="lab-2"), NOTE),
            (["id2"], "tokens"),
        ),
        ("set_labels", (["id1"], {"room": "lab"}), (["id1"],)),
        ("start_key_rotation", ({"id1": b"n"}, NOTE), (["id1"],)),
        ("update_boards", ({"id1": {"note": "x"}},), (["id1"],)),
        ("reserve_boards", (["id1"], "ann", 9e9), (["id1"],)),
        ("release_boards_of", (["id1"], "ann"), (["id1"],)),
        ("revoke_token", ("abc", 8.0), ("tokens",)),
        ("delete_boards", (["id1"],), (["id1"],)),
    ]
    for name, given, _ in changes:
        getattr(store, name)(*given)
    store.update_board("id2", name="lab-9")
    store.enrol_boards([BOARD._replace(id="id4", name="spare")])
    request = BoardReplacement("id2", "lab-9", "id4", "spare", "ann", "abc")
    store.replace_board(request, RolloutPlace("single", 1000))
    after = [(["id2"],), (["id4"],), (["id4", "id2"],)]
    assert reported == [*(what for *_, what in changes), *after]
    with pytest.raises(ServerError, match="the name was given meanwhile"):
        store.enrol_boards([BOARD._replace(id="id3", name="lab-9")])
    assert len(reported) == len(changes) + len(after)
    store.close()
