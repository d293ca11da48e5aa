"""Tokens: created, found, refused, expired, revoked; only their hashes are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol.errors import ServerError, TargetError
from cm_server.auth import credentials
from cm_server.auth.audit import AuditEntry
from cm_server.auth.tokens import NewToken, Tokens
from cm_server.limits import Limits
from cm_server.store.rows import TokenRow
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue
from tests.cm_server.waiting import finish

DAY = 86400


class Clock:
    now = 1_700_000_000.0  # 2023-11-14 22:13 UTC

    def __call__(self) -> float:
        return self.now


class Desk:
    """Tokens in a store, with a clock that the test sets."""

    def __init__(self, path: Path | None = None, **limits: int) -> None:
        self.clock = Clock()
        self.store = Store(path)
        self.queue = StoreQueue(self.store)
        self.tokens = Tokens(self.queue, Limits(**limits), self.clock)

    def create(self, name: Any, role: Any = "operator", target: Any = "all", span: Any = None):
        creating = self.tokens.create(NewToken(name, role, target, span), entry("token-create"))
        return finish(self.queue, creating)

    def revoke(self, name: Any):
        return finish(self.queue, self.tokens.revoke(name, entry("token-revoke")))

    def refusal(self, token: str) -> str | None:
        row = self.tokens.find_caller_token(f"Bearer {token}")
        return None if row is None else self.tokens.refusal_reason(row)


def entry(verb: str) -> AuditEntry:
    return AuditEntry("ann", "here", verb)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_token_is_found_with_its_name_role_and_target(desk):
    token = desk.create("lab-notebook", "viewer", " lab-* ")
    row = desk.tokens.find_caller_token(f"Bearer {token}")
    assert row[1:] == ("lab-notebook", "viewer", "lab-*", desk.clock.now, None, None, None)
    assert desk.tokens.refusal_reason(row) == ""


def test_token_is_known_after_a_restart(tmp_path):
    desk = Desk(tmp_path / "server.db")
    token = desk.create("lab-notebook", span=DAY)
    desk.create("other")
    desk.revoke("other")
    desk.store.close()
    again = Desk(tmp_path / "server.db")
    assert again.refusal(token) == ""
    assert [row["state"] for row in again.tokens.describe()] == ["revoked", "valid"]
    again.store.close()


def test_only_the_hash_of_a_token_is_stored(tmp_path):
    desk = Desk(tmp_path / "server.db")
    token = desk.create("lab-notebook")
    desk.revoke("lab-notebook")
    assert token not in repr(desk.tokens.describe())
    desk.store.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in stored
    assert credentials.token_hash(token).encode() in stored


def test_expired_token_is_refused_by_name(desk):
    token = desk.create("lab-notebook", span=DAY)
    desk.clock.now += DAY - 1
    assert desk.refusal(token) == ""
    desk.clock.now += 1
    assert desk.refusal(token) == "the token 'lab-notebook' expired on 2023-11-15 22:13 UTC"


def test_revoked_token_is_refused_by_name(desk):
    token = desk.create("lab-notebook", span=DAY)
    desk.clock.now += 60
    desk.revoke("lab-notebook")
    reason = "the token 'lab-notebook' was revoked on 2023-11-14 22:14 UTC"
    assert desk.refusal(token) == reason
    desk.clock.now += DAY
    assert desk.refusal(token) == reason


def test_wrong_token_gets_no_reason(desk):
    token = desk.create("lab-notebook", span=DAY)
    desk.revoke("lab-notebook")
    assert [desk.refusal(t) for t in (token[:-1], token + "x", "lab-notebook", "cm_")] == [None] * 4


def test_name_of_a_token_is_free_after_its_revocation(desk):
    first = desk.create("lab-notebook", span=DAY)
    with pytest.raises(ServerError, match="a token called lab-notebook already"):
        desk.create("lab-notebook")
    desk.revoke("lab-notebook")
    second = desk.create("lab-notebook")
    assert (desk.refusal(first) or "").startswith("the token 'lab-notebook' was revoked")
    assert desk.refusal(second) == ""


def test_name_of_an_expired_token_is_free_and_the_token_stays_invalid(tmp_path):
    desk = Desk(tmp_path / "server.db")
    first = desk.create("lab-notebook", span=DAY)
    desk.clock.now += 2 * DAY
    second = desk.create("lab-notebook", "viewer")
    desk.clock.now -= 2 * DAY  # the clock was wrong
    assert (desk.refusal(first) or "").startswith("the token 'lab-notebook' was revoked")
    assert desk.refusal(second) == ""
    desk.store.close()
    again = Desk(tmp_path / "server.db")
    assert [again.refusal(token) == "" for token in (first, second)] == [False, True]
    with pytest.raises(ServerError, match="a token called lab-notebook already"):
        again.create("lab-notebook")
    again.store.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": None}, "needs a name"),
        ({"name": ["x"]}, "needs a name"),
        ({"name": ""}, "is not a valid name"),
        ({"name": "all"}, "every board"),
        ({"name": "a b"}, "is not allowed here"),
        ({"name": "x\x1b[2J"}, "is not allowed here"),
        ({"name": "x" * 65}, "is not a valid name"),
        ({"name": "local"}, "local is the token of the user who runs the server"),
        ({"name": "cm_" + "x" * 43}, "needs a name"),
        ({"role": "root"}, "viewer, operator, admin"),
        ({"role": None}, "viewer, operator, admin"),
        ({"role": ["admin"]}, "viewer, operator, admin"),
        ({"target": ""}, "is empty"),
        ({"target": "lab-["}, "is not closed"),
        ({"target": 7}, "needs a name and a target"),
        ({"span": 0}, "above 0 seconds"),
        ({"span": -1}, "above 0 seconds"),
        ({"span": "30d"}, "above 0 seconds"),
        ({"span": True}, "above 0 seconds"),
        ({"span": float("nan")}, "above 0 seconds"),
        ({"span": 10**30}, "above 0 seconds"),
    ],
    ids=str,
)
def test_invalid_arguments_create_no_token(desk, arguments, reason):
    with pytest.raises((ServerError, TargetError), match=reason):
        desk.create(**{"name": "x", **arguments})
    assert desk.tokens.describe() == []
    assert desk.store.audit_rows(9) == []


def test_number_of_valid_tokens_is_bounded():
    desk = Desk(tokens=3)
    for number in range(3):
        desk.create(f"t-{number}")
    with pytest.raises(ServerError, match="3 tokens already"):
        desk.create("t-3")
    desk.revoke("t-0")
    desk.create("t-3")


def test_only_the_newest_invalid_tokens_are_remembered(tmp_path):
    desk = Desk(tmp_path / "server.db", tokens=2)
    made = []
    for number in range(4):
        desk.clock.now += 1
        made.append(desk.create(f"t-{number}"))
        desk.revoke(f"t-{number}")
    desk.store.close()
    again = Desk(tmp_path / "server.db", tokens=2)
    assert [again.refusal(token) is None for token in made] == [True, True, False, False]
    again.store.close()


def test_clock_that_is_ahead_forgets_no_valid_token(tmp_path):
    desk = Desk(tmp_path / "server.db", tokens=2)
    valid = [desk.create(f"v-{number}", span=30 * DAY) for number in range(2)]
    for number in range(3):
        desk.clock.now += 1
        desk.store.add_token(
            TokenRow(str(number), f"old-{number}", "viewer", "all", desk.clock.now, 1.0)
        )
    right = desk.clock.now
    desk.clock.now += 450 * DAY
    desk.tokens.apply_rows(desk.store.tokens())
    assert all("expired" in str(desk.refusal(token)) for token in valid)
    desk.clock.now = right
    assert [desk.refusal(token) for token in valid] == ["", ""]
    desk.store.close()


@pytest.mark.parametrize("name", ["nobody", "", None, ["x"], "LAB", "lab-notebook ", "x" * 9999])
def test_revoking_an_unknown_name_fails(desk, name):
    token = desk.create("lab-notebook")
    with pytest.raises(ServerError, match="no token called") as caught:
        desk.revoke(name)
    assert len(str(caught.value)) < 300
    assert desk.refusal(token) == ""


def test_token_can_be_revoked_only_once(desk):
    desk.create("lab-notebook")
    desk.revoke("lab-notebook")
    with pytest.raises(ServerError, match="no token called"):
        desk.revoke("lab-notebook")


# The local user's token


def test_new_local_token_replaces_the_old_one(desk, tmp_path):
    first, second = credentials.new_token(), credentials.new_token()
    (tmp_path / "token").write_text(first)
    desk.tokens.install_local_token(tmp_path)
    desk.tokens.install_local_token(tmp_path)
    assert desk.refusal(first) == ""
    (tmp_path / "token").write_text(second)
    desk.tokens.install_local_token(tmp_path)
    assert (desk.refusal(first) or "").startswith("the token 'local' was revoked")
    assert desk.refusal(second) == ""
    assert [(row["name"], row["role"], row["target"]) for row in desk.tokens.describe()] == [
        ("local", "admin", "all")
    ] * 2


def test_revoked_local_token_is_replaced_in_its_file(desk, tmp_path):
    desk.tokens.install_local_token(tmp_path, "local-1f3a")
    first = (tmp_path / "token").read_text().strip()
    desk.revoke("local-1f3a")  # at any server
    finish(desk.tokens._store_queue, desk.tokens.renew_local_token())
    second = (tmp_path / "token").read_text().strip()
    assert (desk.refusal(first) or "").startswith("the token 'local-1f3a' was revoked")
    assert desk.refusal(second) == ""
    desk.revoke("local-1f3a")  # while its server is stopped
    desk.tokens.install_local_token(tmp_path, "local-1f3a")
    third = (tmp_path / "token").read_text().strip()
    assert third not in (first, second)
    assert desk.refusal(third) == ""


def test_local_token_cannot_be_revoked(desk, tmp_path):
    token = credentials.new_token()
    (tmp_path / "token").write_text(token)
    desk.tokens.install_local_token(tmp_path)
    with pytest.raises(ServerError, match="delete it and restart the server"):
        desk.revoke("local")
    assert desk.refusal(token) == ""


def test_unknown_token_has_a_refusal_reason(desk):
    token = desk.create("lab-notebook")
    row = desk.tokens.find_caller_token(f"Bearer {token}")
    assert (
        Tokens(StoreQueue(Store(None)), Limits()).refusal_reason(row)
        == "the token 'lab-notebook' is not known here"
    )


# The audit log


def test_creating_and_revoking_write_rows_without_the_token(desk):
    token = desk.create("lab-notebook", "viewer", "lab-*", DAY)
    desk.revoke("lab-notebook")
    rows = [(row.who, row.verb, row.target, row.detail) for row in desk.store.audit_rows(9)]
    assert rows == [
        (
            "ann",
            "token-create",
            "lab-notebook",
            "viewer on lab-*, expires 2023-11-15 22:13 UTC",
        ),
        ("ann", "token-revoke", "lab-notebook", ""),
    ]
    assert token not in repr(rows)


def test_unused_name_is_beyond_all_names_of_the_prefix(desk):
    assert desk.tokens.unused_name("enrol") == "enrol-1"
    for name in ("enrol-1", "enrol-7", "enrol-x", "enrolment-9", "enrol-99999999999999"):
        desk.create(name)
    desk.revoke("enrol-7")
    assert desk.tokens.unused_name("enrol") == "enrol-8"
