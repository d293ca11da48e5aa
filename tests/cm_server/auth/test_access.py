"""Access: for a token, boards outside of its target do not exist."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import NoSuchBoard, TargetError
from cloudmanager.protocol.targets import parse_target
from cm_server.auth import access
from cm_server.jobs.model import Board
from cm_server.jobs.registry import Registry
from cm_server.store.rows import BoardRow, TokenRow


class Link:
    def send(self, message: bytes) -> None:
        raise AssertionError("nothing is sent here")

    def close(self, code: int, reason: str = "") -> None:
        raise AssertionError("nothing is closed here")

    def abort(self) -> None:
        raise AssertionError("nothing is closed here")


def row(name: str, room: str) -> BoardRow:
    return BoardRow(f"id-{name}", name, b"k" * 32, {"room": room}, {"platform": "esp32"}, 1.0, 5.0)


@pytest.fixture
def boards() -> dict[str, Board]:
    rows = [row(f"lab-{n}", "lab") for n in range(1, 5)] + [row("vault-1", "vault")]
    registry = Registry(rows)
    registry.by_name["lab-1"].connect(Link(), {}, 1500)
    return registry.by_name


def token(target: str) -> TokenRow:
    return TokenRow("hash", "ann", "operator", target)


def test_token_for_all_boards_gets_the_mapping_itself(boards):
    assert access.reachable_boards(token("all"), boards) is boards
    assert access.reaches_all(token("all"))
    assert not access.reaches_all(token("lab-*"))


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("lab-*", "lab-1 lab-2 lab-3 lab-4"),
        ("room=vault", "vault-1"),
        ("all!room=vault", "lab-1 lab-2 lab-3 lab-4"),
        ("lab-[3-9]", "lab-3 lab-4"),
        ("state=offline & lab-*", "lab-2 lab-3 lab-4"),
        ("lab-1,vault-1 & platform=rp2", "lab-1"),
        ("nobody", ""),
    ],
)
def test_reachable_boards_are_those_of_the_target(boards, target, names):
    reachable = access.reachable_boards(token(target), boards)
    assert " ".join(reachable) == names
    assert len(reachable) == len(names.split())
    for name in boards:
        assert (name in reachable) == (name in names.split())
        assert reachable.get(name) is (boards[name] if name in names.split() else None)


def test_unreachable_board_is_unknown_and_not_suggested(boards):
    reachable = access.reachable_boards(token("lab-*"), boards)
    unreachable, unknown = [
        pytest.raises(NoSuchBoard, parse_target(name).resolve, reachable).value
        for name in ("vault-1", "vault-2")
    ]
    assert (
        (unreachable.suggestion, unreachable.others)
        == (unknown.suggestion, unknown.others)
        == (None, ())
    )
    assert "vault" not in str(
        pytest.raises(NoSuchBoard, parse_target("lab-9").resolve, reachable).value
    )
    assert parse_target("all").resolve(reachable).left_out == ("lab-2", "lab-3", "lab-4")


def test_without_reachable_boards_no_board_is_enrolled(boards):
    reachable = access.reachable_boards(token("nobody"), boards)
    with pytest.raises(TargetError, match="No board is enrolled yet"):
        parse_target("all").resolve(reachable)


def test_changed_label_changes_the_reachable_boards(boards):
    reachable = access.reachable_boards(token("room=lab"), boards)
    assert "lab-1" in reachable
    boards["lab-1"].labels = {"room": "vault"}
    assert "lab-1" not in reachable


def test_enrolment_is_limited_to_names_of_the_target(boards):
    boards["lab-4"].labels = {"room": "vault"}
    limited = token("lab-*!room=vault")
    assert access.may_enrol(limited, "lab-9", boards)
    assert access.may_enrol(limited, "lab-1", boards)
    assert not access.may_enrol(limited, "lab-4", boards)  # it exists, but is not reachable
    assert not access.may_enrol(limited, "vault-9", boards)
    assert not access.may_enrol(token("room=lab"), "lab-9", boards)
    assert access.may_enrol(token("all"), "vault-9", boards)
