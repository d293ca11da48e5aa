"""The verb ``import``: all rows or none, what is checked, and what other servers know then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cm_server.pairs import Two
from tests.cm_server.peers import FakeCaller, Service, running_service


def known(service: Service) -> dict[str, dict[str, Any]]:
    """Return what is known of each board, in memory, by its id; the store must have the same."""
    boards = service.server.registry.by_id.values()
    found = {
        board.id: {
            "name": board.name,
            "serial": board.serial,
            "note": board.note,
            "labels": dict(board.labels),
        }
        for board in boards
    }
    for row in service.store.boards():
        assert found[row.id]["name"] == row.name
        assert (found[row.id]["serial"], found[row.id]["note"]) == (
            row.serial or "",
            row.note or "",
        )
        assert found[row.id]["labels"] == row.labels
    return found


async def imported(caller: FakeCaller, *rows: dict[str, Any], **more: Any) -> list[Any]:
    """Return the error of each row, or what it changes."""
    reply = (await caller.ask("import", rows=list(rows), **more))["reply"]
    return [each["error"] or each["changes"] for each in reply]


async def test_boards_are_changed_and_listed(service: Service):
    one, two = service.enrol("lab-1", "lab-2")
    async with await FakeCaller.join(service) as caller:
        outcomes = await imported(
            caller,
            {"board": "lab-1", "serial": "A17", "note": "shelf", "labels": {"room": "lab"}},
            {"id": two.id, "name": "roof", "labels": {"room": ""}},
        )
        assert outcomes == [
            {"serial": "A17", "note": "shelf", "labels": {"room": "lab"}},
            {"name": "roof"},
        ]
        assert known(service) == {
            one.id: {"name": "lab-1", "serial": "A17", "note": "shelf", "labels": {"room": "lab"}},
            two.id: {"name": "roof", "serial": "", "note": "", "labels": {}},
        }
        listed = (await caller.ask("boards"))["reply"]
        assert [(board["serial"], board["note"]) for board in listed] == [
            ("A17", "shelf"),
            ("", ""),
        ]
        removed = await imported(
            caller, {"board": "lab-1", "serial": "", "note": "", "labels": {"room": ""}}
        )
        assert removed == [{"serial": "", "note": "", "labels": {"room": ""}}]
        assert known(service)[one.id]["labels"] == {}


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"board": "lab-9", "note": "x"}, "no board has this name"),
        ({"id": "0" * 16, "note": "x"}, "no board has this id"),
        ({}, "no board has this name"),
        ({"board": "lab-2", "colour": "red"}, "a row has no field 'colour'"),
        ({"board": "lab-2", "serial": 17}, "serial must be text of at most 64 characters"),
        ({"board": "lab-2", "serial": "x" * 65}, "serial must be text of at most 64"),
        ({"board": "lab-2", "note": "x" * 501}, "note must be text of at most 500 characters"),
        ({"board": "lab-2", "note": "a\nb"}, "note must be one line of printable text"),
        ({"board": "lab-2", "note": "\x1b[2J"}, "note must be one line of printable text"),
        ({"board": "lab-2", "name": "all"}, "`all` means every board."),
        ({"board": "lab-2", "name": "a b"}, "' ' is not allowed here."),
        ({"board": "lab-2", "name": 5}, "names must be text"),
        ({"board": "lab-2", "name": "lab-1"}, "another board is called lab-1"),
        ({"board": "lab-2", "labels": {"state": "x"}}, "'state' is a fact."),
        ({"board": "lab-2", "labels": {"a": "x=y"}}, "'=' is not allowed here."),
        ({"board": "lab-2", "labels": {"a": None}}, "a label must be text"),
        ({"board": "lab-2", "labels": []}, "labels must be an object"),
    ],
)
async def test_nothing_is_changed_if_one_row_is_wrong(
    service: Service, row: dict[str, Any], error: str
):
    service.enrol("lab-1", "lab-2")
    before = known(service)
    async with await FakeCaller.join(service) as caller:
        first, second = await imported(caller, {"board": "lab-1", "note": "right"}, row)
        assert first == {"note": "right"}
        assert str(second).startswith(error)
        assert known(service) == before
    assert service.audited()[-1].detail == "nothing was changed: 1 of 2 rows are wrong"


async def test_boards_may_exchange_their_names_but_not_share_one(service: Service):
    one, two = service.enrol("lab-1", "lab-2")
    async with await FakeCaller.join(service) as caller:
        swap = [{"id": one.id, "name": "lab-2"}, {"id": two.id, "name": "lab-1"}]
        assert await imported(caller, *swap) == [{"name": "lab-2"}, {"name": "lab-1"}]
        names = {board_id: each["name"] for board_id, each in known(service).items()}
        assert names == {one.id: "lab-2", two.id: "lab-1"}
        assert service.server.registry.by_name["lab-1"].id == two.id
        share = [{"id": one.id, "name": "roof"}, {"id": two.id, "name": "roof"}]
        assert await imported(caller, *share) == ["several boards would be called roof"] * 2
        twice = [{"id": one.id, "note": "a"}, {"board": "lab-2", "note": "b"}]
        assert await imported(caller, *twice) == ["several rows are about this board"] * 2


async def test_dry_run_changes_nothing(service: Service):
    service.enrol("lab-1")
    before = known(service)
    async with await FakeCaller.join(service) as caller:
        row = {"board": "lab-1", "note": "x"}
        assert await imported(caller, row, dry_run=True) == [{"note": "x"}]
        assert known(service) == before


async def test_administrator_of_some_boards_imports_only_these(service: Service):
    _, vault = service.enrol("lab-1", "vault-1")
    before = known(service)
    async with await FakeCaller.join(service, service.add_token("admin", "lab-*")) as caller:
        rows: list[dict[str, Any]] = [
            {"board": "vault-1", "note": "x"},
            {"id": vault.id, "note": "x"},
            {"board": "lab-1", "name": "vault-2"},
        ]
        first, second, third = await imported(caller, *rows)
        assert (first, second) == ("no board has this name", "no board has this id")
        assert "admin on vault-2" in third
        assert known(service) == before


async def test_malformed_request_is_refused(service: Service):
    async with await FakeCaller.join(service) as caller:
        malformed: list[Any] = [None, {}, ["x"], [[]]]
        for rows in malformed:
            refused = await caller.ask("import", rows=rows)
            assert refused["args"] == ["rows must be a list of objects"]


async def test_inventory_survives_a_restart(tmp_path: Path):
    async with running_service(tmp_path) as service:
        service.enrol("lab-1")
        async with await FakeCaller.join(service) as caller:
            await imported(caller, {"board": "lab-1", "serial": "A17", "note": "shelf"})
    async with running_service(tmp_path) as service:
        (board,) = known(service).values()
        assert (board["serial"], board["note"]) == ("A17", "shelf")


async def test_other_servers_know_what_was_imported(two: Two):
    one, other = await two.enrol("lab-1", "lab-2")
    async with await FakeCaller.join(two.a) as a, await FakeCaller.join(two.b) as b:
        await b.ask("label", target="lab-1", labels={"row": "3"})
        await imported(
            a,
            {"id": one.id, "name": "lab-2", "serial": "A17", "labels": {"room": "lab"}},
            {"id": other.id, "name": "lab-1", "note": "shelf"},
        )
        expected = {
            one.id: {
                "name": "lab-2",
                "serial": "A17",
                "note": "",
                "labels": {"room": "lab", "row": "3"},
            },
            other.id: {"name": "lab-1", "serial": "", "note": "shelf", "labels": {}},
        }

        def at_b() -> bool:
            boards = two.b.server.registry.by_id
            return all(
                {key: getattr(boards[board_id], key) for key in values} == values
                for board_id, values in expected.items()
            )

        await two.b.until(at_b)
        assert known(two.a) == known(two.b) == expected
        names = {board.name for board in two.b.server.registry.by_name.values()}
        assert names == {"lab-1", "lab-2"}
