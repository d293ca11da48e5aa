"""Reach: to its bearer, boards outside of a token's target are not enrolled."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import NoSuchBoard, TargetError
from cloudmanager.protocol.targets import parse_target
from cm_server.auth import access
from cm_server.jobs.registry import Board, Registry
from cm_server.store.rows import BoardRow, TokenRow


class Link:
    def send(self, message: bytes) -> None:
        raise AssertionError("nothing is sent here")

    def close(self, code: int, reason: str = "") -> None:
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
    seen = access.reachable_boards(token(target), boards)
    assert " ".join(seen) == names
    assert len(seen) == len(names.split())
    for name in boards:
        assert (name in seen) == (name in names.split())
        assert seen.get(name) is (boards[name] if name in names.split() else None)


def test_unreachable_board_is_unknown_and_not_suggested(boards):
    seen = access.reachable_boards(token("lab-*"), boards)
    outside, never = [
        pytest.raises(NoSuchBoard, parse_target(name).resolve, seen).value
        for name in ("vault-1", "vault-2")
    ]
    assert (outside.suggestion, outside.others) == (never.suggestion, never.others) == (None, ())
    assert "vault" not in str(pytest.raises(NoSuchBoard, parse_target("lab-9").resolve, seen).value)
    assert parse_target("all").resolve(seen).left_out == ("lab-2", "lab-3", "lab-4")


def test_without_reachable_boards_no_board_is_enrolled(boards):
    seen = access.reachable_boards(token("nobody"), boards)
    with pytest.raises(TargetError, match="No board is enrolled yet"):
        parse_target("all").resolve(seen)


def test_changed_label_changes_the_reachable_boards(boards):
    seen = access.reachable_boards(token("room=lab"), boards)
    assert "lab-1" in seen
    boards["lab-1"].labels = {"room": "vault"}
    assert "lab-1" not in seen


def test_enrolment_is_limited_to_names_of_the_target(boards):
    boards["lab-4"].labels = {"room": "vault"}
    bounded = token("lab-*!room=vault")
    assert access.may_enrol(bounded, "lab-9", boards)
    assert access.may_enrol(bounded, "lab-1", boards)
    assert not access.may_enrol(bounded, "lab-4", boards)  # it is there, and not within reach
    assert not access.may_enrol(bounded, "vault-9", boards)
    assert not access.may_enrol(token("room=lab"), "lab-9", boards)
    assert access.may_enrol(token("all"), "vault-9", boards)
