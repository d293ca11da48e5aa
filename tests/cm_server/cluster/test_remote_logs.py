"""Callers follow the logs of boards of all servers, which are read from the shared store."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from cloudmanager.protocol import wire
from cm_server.store import log_rows
from cm_server.store.log_rows import LogRow, LogTrims
from cm_server.store.shared_store import SharedStore
from tests.cm_server.pairs import Two
from tests.cm_server.peers import FakeBoard, FakeCaller
from tests.engines import Postgres

KEEP_ALL = LogTrims((), 0, 0, None)


def row(text: str, board: str = "id1") -> LogRow:
    return LogRow(board, 1.0, 0, text)


async def follow(caller: FakeCaller, ref: int = 5) -> None:
    """Watch the logs of all boards; return when the server has sent the boards."""
    wanted = {"target": "all", "samples": False, "logs": True}
    await caller.send(wire.WATCH, json.dumps(wanted).encode(), job=ref)
    await caller.next()


async def texts(caller: FakeCaller, count: int) -> list[tuple[str, int, str]]:
    """Return the boards, lost bytes and texts that a caller receives."""
    received: list[tuple[str, int, str]] = []
    while len(received) < count:
        body = wire.read_json((await caller.next()).payload)
        received += [(board, lost, text) for board, _at, lost, text in body["logs"]]
    return received


async def log(board: FakeBoard, text: bytes, lost: int = 0) -> None:
    await board.send(wire.LOG, lost.to_bytes(4, "big") + text)


async def test_logs_of_boards_of_all_servers_are_followed_once(pair: Two):
    here, there = await pair.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(pair.a, here) as near,
        await FakeBoard.join(pair.b, there) as far,
        await FakeCaller.join(pair.a) as caller,
        await FakeCaller.join(pair.b) as other,
    ):
        await log(far, b"before anybody followed\n")
        await pair.b.until(lambda: pair.b.store.log_rows.read([there.id], 0, 0, 99).rows)
        await follow(caller)
        await follow(other)
        await log(near, b"here\n")
        await log(far, b"there\n", 7)
        expected = [("lab-1", 0, "here\n"), ("lab-2", 7, "there\n")]
        assert sorted(await texts(caller, 2)) == expected
        assert sorted(await texts(other, 2)) == expected
        await log(far, b"the last\n")
        # What this server's own board printed was written meanwhile, and is not read back.
        assert await texts(caller, 1) == [("lab-2", 0, "the last\n")]
        assert await texts(other, 1) == [("lab-2", 0, "the last\n")]


async def test_store_is_not_asked_when_nobody_follows_logs_any_more(pair: Two):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        await follow(caller)
        await log(board, b"followed\n")
        await texts(caller, 1)
        await caller.send(wire.UNWATCH, job=5)
        await caller.ask("boards")
        assert pair.a.store.log_rows._newest_id is None


@pytest.fixture(params=["sqlite", "postgresql"])
def two_stores(
    request: pytest.FixtureRequest, tmp_path: object
) -> Iterator[Callable[[], SharedStore]]:
    """Return a function that opens the same store once more."""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        where = postgres.new()
    else:
        where = tmp_path / "server.db"  # type: ignore[operator]
    with contextlib.ExitStack() as stack:

        def make() -> SharedStore:
            store = SharedStore(where)
            stack.callback(store.close)
            return store

        yield make


def test_rows_of_other_servers_are_read_once(two_stores: Callable[[], SharedStore]):
    a, b = two_stores(), two_stores()
    b.log_rows.append([row("old")], KEEP_ALL)
    assert a.log_rows.read_others(100) == ([], 0)
    a.log_rows.append([row("own")], KEEP_ALL)
    b.log_rows.append([row("one"), row("two", "id2")], KEEP_ALL)
    a.log_rows.append([row("own")], KEEP_ALL)
    assert a.log_rows.read_others(100) == ([row("one"), row("two", "id2")], 0)
    assert a.log_rows.read_others(100) == ([], 0)
    a.log_rows.stop_reading_others()
    b.log_rows.append([row("nobody reads this")], KEEP_ALL)
    assert a.log_rows.read_others(100) == ([], 0)
    b.log_rows.append([row("123456"), row("12345"), row("1234")], KEEP_ALL)
    assert a.log_rows.read_others(8) == ([row("12345"), row("1234")], 1)


def test_row_that_is_committed_after_one_with_a_greater_number_is_read(
    two_stores: Callable[[], SharedStore],
):
    a, b = two_stores(), two_stores()
    b.log_rows.append([row("old")], KEEP_ALL)
    a.log_rows.read_others(100)
    table = log_rows._logs
    values = {"id": 9, "board": "id1", "at": 1.0, "lost": 0, "size": 5, "text": "first"}
    b._connection.execute(sa.insert(table), [values])
    b._connection.commit()
    assert a.log_rows.read_others(100) == ([row("first")], 0)
    b._connection.execute(sa.insert(table), [{**values, "id": 8, "text": "late!"}])
    b._connection.commit()
    assert a.log_rows.read_others(100) == ([row("late!")], 0)
    assert a.log_rows.read_others(100) == ([], 0)
