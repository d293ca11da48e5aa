"""Rollouts of network settings with several servers, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json

import pytest

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two, store_of
from tests.cm_server.peers import FakeBoard, FakeCaller

PARTS = ["run", "files", "boot"]
PASSWORD = "correct horse"


def kept_changes(two: Two) -> str:
    """Return what the store has of changes that are in progress, passwords included."""
    query = "SELECT name, value FROM shared WHERE name LIKE 'network %%'"
    with store_of(two.a).database.connection.engine.connect() as connection:
        rows = connection.exec_driver_sql(query).all()
    return json.dumps([[name, bytes(value).decode()] for name, value in rows])


@pytest.mark.parametrize(
    ("verb", "more", "secret"),
    [
        ("fleet-wifi", {"ssid": "new", "password": PASSWORD, "keep": False}, PASSWORD),
        ("fleet-server", {"host": "new.example", "tcp_port": 18266}, "new.example"),
    ],
)
async def test_board_of_another_server_gets_the_change_and_nothing_of_it_is_left_in_the_store(
    two: Two, verb: str, more: dict[str, object], secret: str
):
    (identity,) = await two.enrol("lab-1")
    async with (
        await FakeCaller.join(two.a) as owner,
        await FakeBoard.join(two.b, identity, parts=PARTS, facts={"mpy": 5}) as board,
    ):
        await two.seen()
        reply = (await owner.ask(verb, target="lab-1", waves=["100%"], **more))["reply"]
        assert (reply["boards"], reply["rollout"]) == (["lab-1"], 1)
        assert secret in kept_changes(two)
        message = await board.next()
        assert message.op == wire.FILE
        assert secret.encode() not in message.payload, "it is sent as a file"
        async with await FakeCaller.join(two.b) as other:
            (rollout,) = (await other.ask("fleet-status"))["reply"]
            assert [each["state"] for each in rollout["boards"]] == ["switching"]
            assert (await other.ask("fleet-abort"))["reply"][0]["state"] == "aborted"
            assert PASSWORD not in json.dumps((await other.ask("audit"))["reply"])
        await two.a.until(lambda: kept_changes(two) == "[]")
