"""The audit log: rows of actions, reads and refusals, their limits, and masked tokens."""

from __future__ import annotations

from typing import Any

import pytest

from cloudmanager.protocol.errors import NotAllowed, ServerError, TargetError
from cm_server.auth import credentials
from cm_server.auth.audit import AuditEntry, AuditLog, shorten
from cm_server.limits import Limits
from cm_server.store.statements import RowsStatement
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Book:
    """An audit log in a store in memory, with a clock that the test sets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store(None)
        self.queue = StoreQueue(self.store)
        self.audit = AuditLog(self.queue, Limits(), self.clock)

    @property
    def rows(self) -> list[Any]:
        assert self.queue.drain()
        return self.store.audit_rows(10_000)


@pytest.fixture
def book() -> Book:
    return Book()


def test_action_writes_one_row(book):
    entry = AuditEntry("ann", "192.0.2.1:5", "label", "lab-*")
    entry.detail, entry.boards = "room=lab", 3
    book.audit.log_action(entry)
    (row,) = book.rows
    assert row[1:] == (
        "ann",
        "192.0.2.1:5",
        "label",
        "lab-*",
        "room=lab",
        3,
        None,
        None,
        "done",
    )


def test_action_fails_if_its_row_cannot_be_written(book, monkeypatch):
    monkeypatch.setattr(
        book.store, "_insert_audit", RowsStatement("INSERT INTO nowhere VALUES (1)")
    )
    operation = book.audit.log_action(AuditEntry("ann", "here", "interrupt"))
    assert book.rows == []
    with pytest.raises(ServerError, match="cannot be written"):
        operation.result()
    book.audit.log_refusal(
        AuditEntry("ann", "here", "label"), NotAllowed("admin")
    )  # does not raise


def test_refusal_contains_its_reason(book):
    book.audit.log_refusal(AuditEntry("ann", "here", "forget", "lab-1"), NotAllowed("admin"))
    (row,) = book.rows
    assert (row.outcome, row.detail) == ("refused", "Not allowed: this needs the right 'admin'.")
    book.audit.log_refusal(AuditEntry("ann", "here", "replace"), ServerError("lab-1 is connected"))
    assert book.rows[-1].detail == "lab-1 is connected", "without the words for its caller"


def test_refusals_are_bounded_and_counted(book):
    for _ in range(1000):
        book.audit.log_refusal(AuditEntry("ann", "here", "forget"), NotAllowed("admin"))
    assert len(book.rows) == Limits.refusal_rows_per_minute
    book.audit.log_refusal(AuditEntry("bob", "here", "forget"), NotAllowed("admin"))
    assert book.rows[-1].who == "bob"
    book.clock.now += 60
    book.audit.log_refusal(AuditEntry("ann", "here", "forget"), NotAllowed("admin"))
    assert book.rows[-1].detail.endswith("(940 more before it are not listed)")


def test_rows_of_unauthenticated_peers_are_bounded(book):
    logged = [
        book.audit.log_unauthenticated("192.0.2.1", "login", "", "wrong token") for _ in range(1000)
    ]
    assert sum(text is not None for text in logged) == Limits.stranger_rows_per_address_per_minute
    for number in range(1000):
        book.audit.log_unauthenticated(
            f"198.51.{number % 250}.{number // 250}", "login", "", "wrong token"
        )
    assert len(book.rows) == Limits.stranger_rows_total_per_minute
    assert {(row.who, row.outcome) for row in book.rows} == {("", "refused")}
    book.clock.now += 60
    logged_again = book.audit.log_unauthenticated("192.0.2.1", "login", "", "wrong token")
    assert logged_again is not None
    assert logged_again.startswith("wrong token (")
    assert book.rows[-1].address == "192.0.2.1"


def test_reads_of_one_verb_write_one_row_a_minute(book):
    for _ in range(100):
        book.audit.log_read(AuditEntry("ann", "here", "boards"))
    book.audit.log_read(AuditEntry("ann", "here", "jobs"))
    book.audit.log_read(AuditEntry("bob", "here", "boards"))
    assert [(row.who, row.verb) for row in book.rows] == [
        ("ann", "boards"),
        ("ann", "jobs"),
        ("bob", "boards"),
    ]
    book.clock.now += 60
    book.audit.log_read(AuditEntry("ann", "here", "boards"))
    assert len(book.rows) == 4


def test_token_in_another_field_is_masked(book):
    token = credentials.new_token()
    entry = AuditEntry("ann", "here", f"token-revoke {token}", token)
    book.audit.log_refusal(entry, TargetError("No board matches.", f"x,{token}", 0, "Look again."))
    (row,) = book.rows
    assert token not in repr(row)
    assert token[3:20] not in repr(row)
    assert row.target == "cm_***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lab-*", "lab-*"),
        ("a\nb\r\n\tc\0d", "a b c d"),
        ("\ud800x", "?x"),
        ("x" * 10**6, "x" * 500),
        ("cm_" + "y" * 43 + " " + "z" * 1000, "cm_*** " + "z" * 493),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_shorten_returns_one_short_line(text, shown):
    assert shorten(text, 500) == shown
