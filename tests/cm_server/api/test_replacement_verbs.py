"""A new board becomes what a dead one was: names, waiting jobs, rollouts, the old identity."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import sqlalchemy as sa

from cloudmanager.protocol import frames, wire
from cloudmanager.protocol.errors import ServerError
from cm_server.rollouts import desired
from cm_server.store.log_rows import LogRow, LogTrims
from cm_server.store.replaced_rows import ReplacedBoard, ReplacedRows, find_periods
from cm_server.store.rollout_replacements import BoardReplacement
from cm_server.store.rollout_rows import (
    GenerationRow,
    NewRollout,
    RolloutChange,
    RolloutPlace,
)
from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from tests.cm_server.pairs import two_servers
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service, running_service
from tests.engines import Postgres

PARTS = ["run", "files", "trial"]
GROUP: dict[str, Any] = {
    "name": "lab",
    "target": "lab-*",
    "settings": '{"a": 1}',
    "waves": ["100%"],
}


class Lab(NamedTuple):
    service: Service
    boards: dict[str, Identity]
    owner: FakeCaller

    async def replace(self, old: str = "lab-1", new: str = "spare") -> Any:
        reply = await self.owner.ask("replace", target=old, new=new)
        return reply.get("reply", reply)

    async def join(self, name: str, **facts: Any) -> FakeBoard:
        """Connect a board, whose client can go back by itself."""
        usual = {"platform": "esp32", "mpy": 5, **facts}
        return await FakeBoard.join(self.service, self.boards[name], parts=PARTS, facts=usual)

    async def status(self, group: str = "lab") -> dict[str, str]:
        """Return the states of the boards in the newest rollout of a group."""
        (row,) = [
            row for row in (await self.owner.ask("fleet-status"))["reply"] if row["group"] == group
        ]
        return {each["board"]: each["state"] for each in row["boards"]}

    def prove(self, *names: str, is_done: bool = False) -> None:
        """Note in the store that the first rollout is proven on boards, or has ended."""
        rows = self.service.store.rollout_rows
        (row,) = rows.latest()
        states = {self.boards[name].id: ("proven", 1.0, "") for name in names}
        assert rows.set_boards(row.number, row.epoch, states)
        if is_done:
            assert rows.update(row.number, row.epoch, state="done")
            self.service.server.rollouts.reload()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_service(tmp_path) as service:
        boards = {each.name: each for each in service.enrol("lab-1", "lab-2", "spare")}
        async with await FakeCaller.join(service) as owner:
            yield Lab(service, boards, owner)


async def refusal(service: Service, identity: Identity) -> tuple[int | None, str]:
    """Connect as a board; return how the server closes the link."""
    async with await FakeBoard.dial(service, "/board") as board:
        await board.greet(identity.id, gen=identity.gen)
        await board.prove(identity, await board.next())
        closed: tuple[int | None, str] = await board.closed()
        return closed


# What the new board gets


async def test_new_board_becomes_what_the_dead_one_was(lab: Lab):
    await lab.owner.ask("label", target="lab-1", labels={"room": "roof"})
    await lab.owner.ask("label", target="spare", labels={"shelf": "3"})
    rows = [
        {"board": "lab-1", "note": "at the chimney", "serial": "A1"},
        {"board": "spare", "note": "new", "serial": "B2"},
    ]
    await lab.owner.ask("import", rows=rows)
    await lab.owner.ask("reserve", target="lab-1", seconds=600)
    (job,) = await lab.owner.submit("lab-1", b"6 * 7", when_online=True)
    async with await lab.join("spare") as board:
        done = await lab.replace()
        assert done == {
            "name": "lab-1",
            "was": "spare",
            "id": lab.boards["spare"].id,
            "replaced": lab.boards["lab-1"].id,
            "waiting_jobs": 1,
            "group": "",
            "rollout": None,
            "note": "",
        }
        cell = await board.next()
        assert (cell.op, cell.job) == (wire.EXEC, job)
        await board.end(job)
        boards = {each["name"]: each for each in (await lab.owner.ask("boards"))["reply"]}
        assert list(boards) == ["lab-1", "lab-2"]
        new = boards["lab-1"]
        assert new["id"] == lab.boards["spare"].id
        assert (new["labels"], new["note"]) == ({"room": "roof"}, "at the chimney")
        assert new["serial"] == "B2", "that is of the hardware"
        assert new["reserved"]["caller"] == "local"
    (stored,) = [row for row in lab.service.store.boards() if row.name == "lab-1"]
    assert (stored.id, stored.labels) == (new["id"], {"room": "roof"})
    (row,) = [row for row in lab.service.audited() if row.verb == "replace"]
    assert (row.target, row.boards, row.outcome) == ("lab-1", 2, "done")
    old = lab.boards["lab-1"].id
    assert row.detail == f"{old} by {new['id']}, which was spare; serial number B2, before A1"


async def test_new_board_that_is_away_gets_all_when_it_comes(lab: Lab):
    (job,) = await lab.owner.submit("lab-1", b"1", when_online=True)
    assert (await lab.replace())["waiting_jobs"] == 1
    async with await lab.join("spare") as board:
        assert (await board.next()).job == job


async def test_new_board_that_has_left_was_seen_when_it_left(lab: Lab):
    spare = lab.service.server.registry.by_name["spare"]
    async with await lab.join("spare"):
        await asyncio.sleep(0.05)
    await lab.service.until(lambda: spare.link is None)
    left = spare.last_seen
    assert (await lab.replace())["name"] == "lab-1"
    boards = {each["name"]: each for each in (await lab.owner.ask("boards"))["reply"]}
    assert boards["lab-1"]["last_seen"] == left


async def test_note_of_the_new_board_stays_if_the_old_one_had_none(lab: Lab):
    await lab.owner.ask("import", rows=[{"board": "spare", "note": "second revision"}])
    await lab.replace()
    (new,) = (await lab.owner.ask("boards", target="lab-1"))["reply"]
    assert new["note"] == "second revision"


async def test_log_and_history_of_the_dead_board_are_those_of_the_new_one(lab: Lab):
    old, store = lab.boards["lab-1"].id, lab.service.store
    async with await lab.join("lab-1") as board, await FakeCaller.join(lab.service) as author:
        (job,) = await author.submit("lab-1", b"6 * 7")
        await board.next()
        await board.end(job)
    await lab.service.until(lambda: lab.service.state("lab-1") == "offline")
    rows = [LogRow(old, time.time(), 0, "brownout\n")]
    store.log_rows.append(rows, LogTrims([], 1000, 1, None))
    await lab.replace()
    ((name, _at, _lost, text),) = (await lab.owner.ask("logs", target="lab-1"))["reply"]["logs"]
    assert (name, text) == ("lab-1", "brownout\n")
    history = (await lab.owner.ask("history", target="lab-1"))["reply"]["jobs"]
    assert [(each["job"], each["board"]) for each in history] == [(job, "lab-1")]
    await lab.owner.ask("history-forget", target="lab-1")
    assert store.text_rows.history(None, job + 1, 10).rows[0].text is None


def test_identities_that_a_board_has_had_are_found():
    replaced = [
        ReplacedBoard("c", "lab-1", b"", 0, None, 30.0, "d"),
        ReplacedBoard("a", "lab-1", b"", 0, None, 10.0, "b"),
        ReplacedBoard("b", "lab-1", b"", 0, None, 20.0, "c"),
        ReplacedBoard("x", "lab-9", b"", 0, None, 5.0, "c"),  # c was lab-9 before
        ReplacedBoard("y", "lab-1", b"", 0, None, 1.0),
    ]
    found = find_periods(["d", "e"], replaced)
    assert found == {"d": [("d", 30.0), ("c", 20.0), ("b", 10.0), ("a", 0.0)], "e": [("e", 0.0)]}


# What is refused


async def test_board_that_is_connected_is_not_replaced(lab: Lab):
    async with await lab.join("lab-1"):
        reply = await lab.replace()
        assert reply["args"][0].startswith("lab-1 is connected, so it is not dead")
    assert {row.name for row in lab.service.store.boards()} == {"lab-1", "lab-2", "spare"}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("lab-1", "lab-1", "lab-1 cannot replace itself"),
        ("lab-*", "spare", "One board replaces one other board."),
        ("lab-1", "lab-2,spare", "One board replaces one other board."),
        ("lab-9", "spare", "lab-9"),
        ("lab-1", "", "The target is empty."),
    ],
)
async def test_wrong_names_are_refused(lab: Lab, old, new, why):
    assert why in (await lab.replace(old, new))["args"][0]


async def test_board_that_somebody_else_has_reserved_replaces_none(lab: Lab):
    token = lab.service.add_token("admin", name="ann")
    async with await FakeCaller.join(lab.service, token) as ann:
        await ann.ask("reserve", target="spare", seconds=600)
    assert "spare: reserved by ann" in (await lab.replace())["args"][0]


async def test_token_that_covers_one_of_the_two_replaces_nothing(lab: Lab):
    for target in ("lab-*", "spare"):
        token = lab.service.add_token("admin", target, name=f"of-{target.strip('-*')}")
        async with await FakeCaller.join(lab.service, token) as caller:
            reply = await caller.ask("replace", target="lab-1", new="spare")
            assert reply["error"] == "NoSuchBoard"
    token = lab.service.add_token("operator", name="ann")
    async with await FakeCaller.join(lab.service, token) as caller:
        reply = await caller.ask("replace", target="lab-1", new="spare")
        assert (reply["error"], reply["args"][0]) == ("NotAllowed", "admin")


# The old identity


async def test_board_that_was_replaced_is_refused_with_a_sentence(lab: Lab, tmp_path: Path):
    await lab.replace()
    day = time.strftime("%Y-%m-%d", time.gmtime())
    sentence = f"it was replaced on {day}; enrol this board again to use it (lab-1)"
    assert await refusal(lab.service, lab.boards["lab-1"]) == (frames.CLOSE_REVOKED, sentence)
    (row,) = [row for row in lab.service.audited() if row.verb == "board"]
    assert (row.target, row.outcome) == (lab.boards["lab-1"].id, "refused")
    assert sentence in row.detail


async def test_replaced_board_is_refused_after_a_restart_of_the_server(tmp_path: Path):
    async with running_service(tmp_path) as service:
        old, _ = service.enrol("lab-1", "spare")
        async with await FakeCaller.join(service) as owner:
            await owner.ask("replace", target="lab-1", new="spare")
    async with running_service(tmp_path) as service:
        code, reason = await refusal(service, old)
        assert code == frames.CLOSE_REVOKED
        assert reason.startswith("it was replaced on ")


async def test_only_the_key_of_a_replaced_board_gets_the_sentence(lab: Lab):
    """A stranger that knows the id learns nothing: not that there was such a board."""
    await lab.replace()
    old = lab.boards["lab-1"]
    for board_id in (old.id, "0123456789abcdef"):
        async with await FakeBoard.dial(lab.service, "/board") as board:
            await board.greet(board_id)
            assert (await board.next()).op == wire.CHALLENGE
            await board.send(wire.PROOF, bytes(32) + b"{}")
            assert await board.closed() == (4001, "authentication failed")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_other_server_refuses_the_replaced_board_too(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    store: Any = tmp_path / "shared.db"
    bus = ""
    if kind == "postgresql":
        store = request.getfixturevalue("postgres").new()
        bus = request.getfixturevalue("nats").url
    async with two_servers(tmp_path, store, bus, dead_after=30) as two:
        old, new = await two.enrol("lab-1", "spare")
        async with await FakeBoard.join(two.b, new):
            await two.seen("spare")
            async with await FakeCaller.join(two.a) as owner:
                await owner.ask("replace", target="lab-1", new="spare")
            await two.b.until(lambda: list(two.b.server.registry.by_name) == ["lab-1"])
            assert two.b.state("lab-1") == "idle"
            await two.b.until(lambda: two.b.server.enrolment.find_replaced(old.id))
            code, reason = await refusal(two.b, old)
            assert code == frames.CLOSE_REVOKED
            assert reason.startswith("it was replaced on ")
        board = two.b.server.registry.by_name["lab-1"]
        periods = two.b.server.enrolment.find_periods([board])[new.id]
        assert [each.id for each in periods] == [new.id, old.id], "it finds both boards' samples"
        erased: list[str] = []
        two.b.server.enrolment.on_erased = erased.extend
        async with await FakeCaller.join(two.b) as owner:
            await owner.ask("revoke", target="lab-1")
        assert erased == [new.id, old.id]


# Rollouts


async def test_new_board_takes_the_place_in_a_rollout_that_is_in_progress(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=[GROUP])
    lab.prove("lab-1")
    done = await lab.replace()
    assert (done["group"], done["rollout"], done["note"]) == ("lab", 1, "")
    assert await lab.status() == {"lab-1": "waiting", "lab-2": "waiting"}
    async with await lab.join("spare") as board:
        assert (await board.next()).op == wire.FILE
        assert await lab.status() == {"lab-1": "switching", "lab-2": "waiting"}


async def test_new_board_gets_the_generation_that_was_proven_on_the_dead_one(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=[GROUP])
    lab.prove("lab-1", "lab-2", is_done=True)
    done = await lab.replace()
    assert (done["group"], done["rollout"]) == ("lab", 2)
    first, second = reversed((await lab.owner.ask("fleet-history"))["reply"])
    assert first["generation"] == second["generation"]
    assert await lab.status() == {"lab-1": "waiting"}
    async with await lab.join("spare") as board:
        assert (await board.next()).op == wire.FILE


async def test_generation_that_the_dead_board_only_claimed_is_not_given(lab: Lab):
    """A board reports what it likes: only what a rollout has proven there passes over."""
    await lab.owner.ask("fleet-apply", groups=[{**GROUP, "name": "vault", "target": "lab-2"}])
    lab.prove("lab-2", is_done=True)
    (row,) = lab.service.store.rollout_rows.latest()
    fact = f"proven {desired.short_id(row.generation)}"
    async with await lab.join("lab-1", generation=fact):
        pass
    await lab.service.until(lambda: lab.service.state("lab-1") == "offline")
    done = await lab.replace()
    assert (done["group"], done["rollout"]) == ("", None)


async def test_board_that_is_being_switched_replaces_none(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=[{**GROUP, "name": "spares", "target": "spare"}])
    async with await lab.join("spare") as board:
        await board.next()
        reply = await lab.replace()
        assert reply["args"][0].startswith("spare is being switched by rollout 1 of spares")
        assert set(lab.service.server.registry.by_name) == {"lab-1", "lab-2", "spare"}
    assert lab.service.server.enrolment.find_replaced(lab.boards["lab-1"].id) is None


async def test_new_board_leaves_the_rollout_of_its_former_group(lab: Lab):
    group = {**GROUP, "name": "spares", "target": "spare,lab-2"}
    await lab.owner.ask("fleet-apply", groups=[group])
    await lab.replace()
    assert await lab.status("spares") == {"lab-1": "missed", "lab-2": "waiting"}
    async with await lab.join("spare") as board:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(board.next(), 0.7)


async def test_board_with_an_old_client_gets_the_name_but_no_generation(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=[GROUP])
    old_client = ["run", "files", "link"]
    async with await FakeBoard.join(lab.service, lab.boards["spare"], parts=old_client):
        done = await lab.replace()
        assert "run mbm board-upgrade-client" in done["note"]
        assert (await lab.status())["lab-1"] == "missed"


# In the store


def filled_store(path: Path | str) -> Store:
    """Return a store with a rollout that has ended, of a dead board, and a new board."""
    store = Store(path)
    old = new_board_row("old", "lab-1", b"k" * 32)._replace(labels={"room": "roof"})
    store.enrol_boards([old, new_board_row("new", "spare", b"n" * 32)])
    manifest: dict[str, Any] = {"app": {}, "packages": {}, "settings": {}, "boards": {}}
    options = {"target": "lab-*", "pin": [], "boards": ["old"], "position": [0, 0.0, None]}
    row = GenerationRow("a" * 64, manifest, 0.0, "ann")
    new = NewRollout("lab", row, None, "", options, {"old": 0}, {})
    store.add_rollouts([new], RolloutPlace("single", 1000))
    store.rollout_rows.set_boards(1, 1, {"old": ("proven", 1.0, "")})
    store.set_rollout_states([1], RolloutChange("done", "", ("running",)))
    return store


def dump(path: Path) -> list[str]:
    """Return all that a store contains."""
    import sqlite3

    with sqlite3.connect(path) as connection:
        lines = list(connection.iterdump())
    connection.close()
    return lines


def is_replaced(lines: list[str]) -> bool:
    """Return whether a store contains all that a replacement changes."""
    text = "\n".join(lines)
    wanted = ("VALUES('new','lab-1'", "VALUES('replaced old'", "VALUES(2,'lab'", "VALUES(2,'new'")
    return "VALUES('old'" not in text and all(each in text for each in wanted)


REQUEST = BoardReplacement("old", "lab-1", "new", "spare", "ann", "t")


def test_server_that_is_killed_between_two_statements_has_changed_all_or_nothing(tmp_path: Path):
    count = unchanged = 0
    while True:
        path = tmp_path / f"{count}.db"
        store = filled_store(path)
        before = dump(path)
        left = count

        def stop(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt  # as far as SQLite sees, the process ends here

        engine = store.database.connection.engine
        sa.event.listen(engine, "before_cursor_execute", stop)
        try:
            done = store.replace_board(REQUEST, RolloutPlace("single", 1000))
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sa.event.remove(engine, "before_cursor_execute", stop)
            store.close()
        found = dump(path)
        unchanged += found == before
        assert found == before or is_replaced(found)  # at the end, all is on the disk
        count += 1
    assert unchanged > 15, "the statements of the transaction were not counted"
    assert (done.row.name, done.row.labels) == ("lab-1", {"room": "roof"})
    assert (done.rollout.group, done.rollout.rollout) == ("lab", 2)
    assert is_replaced(dump(path))


def rows_of(location: str) -> dict[str, list[str]]:
    """Return all rows of a store in PostgreSQL, by the names of their tables."""
    with psycopg.connect(location) as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        names = [name for (name,) in connection.execute(query).fetchall()]
        return {
            name: sorted(map(repr, connection.execute(f'SELECT * FROM "{name}"').fetchall()))
            for name in names
        }


def test_server_that_is_killed_has_changed_nothing_in_postgresql(postgres: Postgres):
    location = postgres.new()
    filled_store(location).close()
    before = rows_of(location)
    for count in itertools.count():
        store = Store(location)
        left = count

        def stop(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        engine = store.database.connection.engine
        sa.event.listen(engine, "before_cursor_execute", stop)
        try:
            store.replace_board(REQUEST, RolloutPlace("single", 1000))
        except KeyboardInterrupt:
            store.database.connection.invalidate()  # PostgreSQL sees that the client is gone
            assert rows_of(location) == before
        else:
            break
        finally:
            sa.event.remove(engine, "before_cursor_execute", stop)
            store.close()
    assert count > 15, "the statements of the transaction were not counted"
    text = repr(rows_of(location))
    assert "replaced old" in text
    assert "'spare'" not in text


def test_board_that_was_renamed_meanwhile_is_not_replaced(tmp_path: Path):
    store = filled_store(tmp_path / "x.db")
    store.update_board("old", name="lab-7")
    with pytest.raises(ServerError, match="renamed or removed meanwhile"):
        store.replace_board(REQUEST, RolloutPlace("single", 1000))
    assert {row.name for row in store.boards()} == {"lab-7", "spare"}
    store.close()


def test_replaced_identities_are_bounded():
    store = Store(None)
    rows = ReplacedRows(store.database.connection, kept=3)
    for number in range(5):
        row = new_board_row(f"id{number}", "lab-1", b"k" * 32)
        assert rows.add(row, float(number), "new") == ([f"id{number - 3}"] if number > 2 else [])
    assert [each.id for each in rows.all()] == ["id2", "id3", "id4"]
    assert rows.find("id0") is None
    assert "kkkk" not in repr(rows.all()[0])
    store.close()
