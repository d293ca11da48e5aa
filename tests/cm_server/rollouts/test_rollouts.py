"""Rollouts on a server with boards that a test controls: rights, limits, wrong requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.results.fleet_plan import plan_text, rollout_head
from cm_server.store.rollout_rows import GenerationRow, NewRollout, NextRollout, RolloutPlace
from cm_server.store.store import Store
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service, running_service

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

    async def join(self, name: str, **facts: Any) -> FakeBoard:
        """Connect a board, whose client can go back by itself."""
        usual = {"platform": "esp32", "mpy": 5, **facts}
        return await FakeBoard.join(self.service, self.boards[name], parts=PARTS, facts=usual)

    async def status(self) -> dict[str, Any]:
        """Return the newest rollout of the only group."""
        rollouts = (await self.owner.ask("fleet-status"))["reply"]
        return dict(rollouts[-1])

    async def until_state(self, state: str) -> dict[str, Any]:
        """Wait until the only rollout is in a state."""

        def reached() -> bool:
            rows = self.service.store.rollout_rows.latest()
            return [row.state for row in rows] == [state]

        await self.service.until(reached)
        return await self.status()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_service(tmp_path) as service:
        boards = {each.name: each for each in service.enrol("lab-1", "lab-2", "vault-1")}
        async with await FakeCaller.join(service) as owner:
            yield Lab(service, boards, owner)


def group(**more: Any) -> list[dict[str, Any]]:
    return [{**GROUP, **more}]


async def test_board_gets_the_switch_when_it_comes(lab: Lab):
    reply = await lab.owner.ask("fleet-apply", groups=group())
    assert reply["reply"]["rollouts"] == {"lab": 1}
    assert [each["state"] for each in (await lab.status())["boards"]] == ["waiting", "waiting"]
    async with await lab.join("lab-2") as board:
        message = await board.next()
        assert message.op == wire.FILE
        states = {each["board"]: each["state"] for each in (await lab.status())["boards"]}
        assert states == {"lab-1": "waiting", "lab-2": "switching"}


async def test_rollout_of_a_revoked_token_pauses(lab: Lab):
    token = lab.service.add_token("operator", name="leaver")
    async with await FakeCaller.join(lab.service, token) as caller:
        await caller.ask("fleet-apply", groups=group())
    lab.service.revoke_token("leaver")
    stopped: list[str] = []
    lab.service.server.rollouts.on_stopped = stopped.append
    async with await lab.join("lab-1") as board:
        rollout = await lab.until_state("paused")
        assert stopped == ["lab"]
        assert rollout["why"].startswith("the token 'leaver' was revoked")
        assert rollout["boards"][0]["state"] == "waiting"
        with pytest.raises(TimeoutError):
            await board_message(board)


async def board_message(board: FakeBoard) -> wire.Message:
    """Return the next message of a board that comes soon."""
    return await asyncio.wait_for(board.next(), 0.7)


async def test_rollout_pauses_at_a_board_that_its_token_does_not_reach_any_more(lab: Lab):
    token = lab.service.add_token("operator", "room=lab", name="ann")
    await lab.owner.ask("label", target="lab-[1-2]", labels={"room": "lab"})
    async with await FakeCaller.join(lab.service, token) as caller:
        await caller.ask("fleet-apply", groups=group())
    await lab.owner.ask("label", target="lab-1", labels={"room": "vault"})
    async with await lab.join("lab-1"):
        rollout = await lab.until_state("paused")
        assert rollout["why"] == "lab-1 is not within reach of the token 'ann'"


async def test_token_changes_only_rollouts_whose_boards_it_all_covers(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    token = lab.service.add_token("operator", "lab-1", name="ann")
    async with await FakeCaller.join(lab.service, token) as caller:
        for verb in ("fleet-pause", "fleet-abort", "fleet-rollback"):
            reply = await caller.ask(verb)
            assert (reply["error"], reply["args"][0]) == (
                "NotAllowed",
                "operator on all boards of lab",
            )
        (seen,) = (await caller.ask("fleet-status"))["reply"]
        assert [each["board"] for each in seen["boards"]] == ["lab-1"]
    stranger = lab.service.add_token("viewer", "vault-1", name="eve")
    async with await FakeCaller.join(lab.service, stranger) as caller:
        assert (await caller.ask("fleet-status"))["reply"] == []
        assert (await caller.ask("fleet-history"))["reply"] == []
    assert (await lab.status())["state"] == "running"


async def test_two_groups_that_claim_one_board_are_named(lab: Lab):
    groups = [*group(), {**GROUP, "name": "roof", "target": "lab-2,vault-1"}]
    reply = await lab.owner.ask("fleet-plan", groups=groups)
    assert reply["args"] == ["lab-2: both lab and roof have them; a board is in one group"]


async def test_apply_of_another_plan_is_refused_as_stale(lab: Lab):
    plan = (await lab.owner.ask("fleet-plan", groups=group()))["reply"]
    lab.service.enrol("lab-3")
    reply = await lab.owner.ask("fleet-apply", groups=group(), fingerprint=plan["fingerprint"])
    assert reply["args"][0].startswith("the plan is stale")
    assert (await lab.owner.ask("fleet-status"))["reply"] == []


async def test_second_apply_of_the_same_begins_nothing(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    reply = (await lab.owner.ask("fleet-apply", groups=group()))["reply"]
    assert (reply["rollouts"], reply["in_progress"]) == ({}, {"lab": 1})


async def test_newer_rollout_replaces_one_that_is_in_progress(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    await lab.owner.ask("fleet-apply", groups=group(settings='{"a": 2}'))
    history = (await lab.owner.ask("fleet-history"))["reply"]
    assert [(each["rollout"], each["state"]) for each in history] == [
        (2, "running"),
        (1, "replaced"),
    ]


async def test_board_that_has_the_generation_needs_no_rollout(lab: Lab):
    plan = (await lab.owner.ask("fleet-plan", groups=group()))["reply"]
    fact = f"proven {plan['groups'][0]['generation'][:16]}"
    async with await lab.join("lab-1", generation=fact), await lab.join("lab-2", generation=fact):
        reply = (await lab.owner.ask("fleet-apply", groups=group()))["reply"]
        assert (reply["changed"], reply["rollouts"]) == (0, {})


async def test_board_with_an_old_client_is_refused(lab: Lab):
    identity = lab.boards["lab-1"]
    async with await FakeBoard.join(lab.service, identity, parts=["run", "files", "switch"]):
        reply = await lab.owner.ask("fleet-apply", groups=group())
        assert reply["args"] == [
            "lab-1: its client cannot go back by itself, and cannot be replaced over the network"
        ]
    parts = ["run", "files", "switch", "link"]
    async with (
        await FakeBoard.join(lab.service, identity, parts=parts),
        await FakeBoard.join(lab.service, lab.boards["lab-2"], parts=parts),
    ):
        reply = await lab.owner.ask("fleet-apply", groups=group())
        assert reply["args"] == [
            "lab-[1-2]: its client cannot go back by itself: run mbm board-upgrade-client, or "
            'write client = "current" into the file'
        ]


def closed_window() -> dict[str, Any]:
    """Return a window that opens in some hours."""
    start = datetime.now(UTC) + timedelta(hours=6)
    return {"start": f"{start.minute} {start.hour} * * *", "for": 3600, "tz": "UTC"}


async def test_board_begins_only_within_the_window(lab: Lab):
    plan = (await lab.owner.ask("fleet-plan", groups=group(window=closed_window())))["reply"]
    assert "next window: " in plan_text(plan)
    await lab.owner.ask("fleet-apply", groups=group(window=closed_window()))
    async with await lab.join("lab-1") as board:
        with pytest.raises(TimeoutError):
            await board_message(board)
        status = await lab.status()
        assert status["boards"][0]["state"] == "waiting"
        assert "running, wave 1 of 1, next window: " in rollout_head(status)
        async with await lab.join("lab-2") as other:
            await other.send(wire.SLEEP, struct.pack(">II", 600_000, 5000))
            reply = await other.next()
            assert (reply.op, reply.flags) == (wire.SLEEP_REPLY, 0), "it need not stay awake"
        open_now = {"start": "0 * * * *", "for": 7200, "tz": "UTC"}
        await lab.owner.ask("fleet-apply", groups=group(window=open_now))
        assert (await board.next()).op == wire.FILE


async def test_pinned_boards_are_held_back(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group(pin=["lab-2"]))
    assert [each["board"] for each in (await lab.status())["boards"]] == ["lab-1"]


async def test_file_that_was_not_uploaded_is_refused(lab: Lab):
    digest = hashlib.sha256(b"x").hexdigest()
    reply = await lab.owner.ask("fleet-apply", groups=group(app={"/app.py": [digest, 1]}))
    assert "not uploaded" in reply["args"][0]


async def test_file_that_another_token_uploaded_is_refused(lab: Lab):
    data = b"their secret"
    digest = hashlib.sha256(data).hexdigest()
    lab.service.server.installs.content_store.add_bytes(data)
    app = {"/app.py": [digest, len(data)]}
    reply = await lab.owner.ask("fleet-apply", groups=group(app=app))
    assert "not uploaded" in reply["args"][0]


DIGEST = hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": ""}, "a group needs a name"),
        ({"name": 5}, "with a name"),
        ({"target": None}, "lab: the target is missing"),
        ({"target": "platform=esp32"}, "platform= is a fact"),
        ({"target": "lab-["}, "lab: "),
        ({"target": "lab-[7-8]"}, "lab.target: no board is called lab-[7-8]"),
        ({"pin": ["lab-9"]}, "lab.pin: the group has no board 'lab-9'"),
        ({"boards": {"vault-1": "{}"}}, "lab.board: the group has no board 'vault-1'"),
        ({"app": {"/boot.py": [DIGEST, 0]}}, "belongs to the board's client"),
        ({"app": {"/lib/cm/link.mpy": [DIGEST, 0]}}, "belongs to the board's client"),
        ({"app": {"/settings.json": [DIGEST, 0]}}, "is no path of an app"),
        ({"app": {"/../x": [DIGEST, 0]}}, "leaves its folder"),
        ({"app": {"x.py": [DIGEST, 0]}}, "is no path of an app"),
        ({"app": {"/a.py": [DIGEST, 0], "/a.mpy": [DIGEST, 0]}}, "cannot exist together"),
        ({"app": {"/a.py": ["0", 0]}}, "needs its SHA-256"),
        ({"app": {"/a.py": [DIGEST, -1]}}, "needs its SHA-256"),
        ({"app": {"/a.py": [DIGEST, 9 * 1024 * 1024]}}, "at most 8 MiB"),
        ({"settings": "[]"}, "must be the text of a JSON object"),
        ({"settings": '{"a": [{"secret": "x"}]}'}, "a list cannot contain a secret"),
        ({"waves": [1]}, 'waves must end with "100%"'),
        ({"rollback": "none"}, "rollback must be one of local, network"),
        ({"options": {"pause": -1}}, "pause must be a number"),
        ({"options": {"pause": True}}, "pause must be a number"),
        ({"options": {"on_failure": "x"}}, "on_failure must be one of"),
        ({"options": {"health": 5}}, "health must be a cell"),
        ({"client": 5}, "client must be a JSON object with a version"),
        ({"client": {"version": "0.2", "files": {}}}, "a client has 1 to 200 files"),
        ({"client": {"version": "0.2", "files": {"a.mpy": [DIGEST, -1]}}}, "needs its SHA-256"),
        ({"client": {"version": "0.2", "files": {"a.mpy": [DIGEST, 2**21]}}}, "at most 1 MiB"),
        ({"packages": "logging"}, "packages must be a list of strings"),
        ({"window": "nightly"}, "lab: window must be a JSON object"),
        ({"window": {"start": "x", "for": 60, "tz": "UTC"}}, "lab: window.start: 'x' is no cron"),
    ],
)
async def test_wrong_group_is_refused_in_a_sentence(lab: Lab, changed, why):
    reply = await lab.owner.ask("fleet-plan", groups=group(**changed))
    assert why in json.dumps(reply["args"], ensure_ascii=False).replace('\\"', '"')


@pytest.mark.parametrize("name", ["../x.py", "a/b.mpy", "ok", "trial", "x.txt", ""])
async def test_client_with_other_files_is_refused(lab: Lab, name: str):
    client = {"version": "0.2", "files": {name: [DIGEST, 0]}}
    reply = await lab.owner.ask("fleet-plan", groups=group(client=client))
    assert reply["args"] == [f"lab: {name!r} is no file of a client"]


async def test_paused_rollout_begins_with_no_board_until_it_is_resumed(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    await lab.owner.ask("fleet-pause")
    async with await lab.join("lab-1") as board:
        with pytest.raises(TimeoutError):
            await board_message(board)
        (resumed,) = (await lab.owner.ask("fleet-resume"))["reply"]
        assert resumed["state"] == "running"
        assert (await board.next()).op == wire.FILE


async def test_board_stays_awake_until_it_is_proven(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    async with await lab.join("lab-1") as board:
        await board.send(wire.SLEEP, struct.pack(">II", 600_000, 5000))
        reply = await board.next()
        if reply.op == wire.FILE:  # the switch was sent first
            reply = await board.next()
        assert (reply.op, reply.flags) == (wire.SLEEP_REPLY, wire.STAY_AWAKE)


async def test_without_a_rollout_there_is_none_to_change(lab: Lab):
    for verb in ("fleet-pause", "fleet-resume", "fleet-abort", "fleet-rollback"):
        assert (await lab.owner.ask(verb))["args"] == ["there is no rollout"]


async def test_only_open_rollouts_are_changed(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    await lab.owner.ask("fleet-abort")
    for verb, wanted in (
        ("fleet-pause", "running"),
        ("fleet-resume", "paused"),
        ("fleet-abort", "running or paused"),
    ):
        reply = await lab.owner.ask(verb)
        assert reply["args"] == [f"no rollout is {wanted}: lab is aborted"]
    reply = await lab.owner.ask("fleet-pause", group="roof")
    assert reply["args"] == ["there is no rollout of a group 'roof'; there are lab"]


async def test_group_without_an_earlier_generation_is_not_rolled_back(lab: Lab):
    await lab.owner.ask("fleet-apply", groups=group())
    reply = await lab.owner.ask("fleet-rollback")
    assert reply["args"] == ["lab had no generation before"]
    reply = await lab.owner.ask("fleet-rollback", generation="0123")
    assert reply["args"] == ["no generation begins with 0123"]


async def applied(lab: Lab, **more: Any) -> str:
    """Begin a rollout; return the id of its generation."""
    reply = (await lab.owner.ask("fleet-apply", groups=group(**more)))["reply"]
    return str(reply["groups"][0]["generation"])


def change(lab: Lab, number: int, **values: Any) -> None:
    """Change a rollout in the store, as the server that carries it out does."""
    assert lab.service.store.rollout_rows.update(number, 1, changed=time.time(), **values)
    lab.service.server.rollouts.reload()


async def test_board_that_joins_a_group_gets_its_proven_generation(lab: Lab):
    generation = await applied(lab)
    change(lab, 1, state="done")
    later = await applied(lab, settings='{"a": 2}')
    (identity,) = lab.service.enrol("lab-3")
    async with await FakeBoard.join(lab.service, identity, parts=PARTS, facts={"mpy": 5}) as board:
        with pytest.raises(TimeoutError):  # a rollout is in progress
            await asyncio.wait_for(board.next(), 2.5)
        change(lab, 2, state="failed")
        assert (await board.next()).op == wire.FILE
        rollout = await lab.status()
        assert (rollout["rollout"], rollout["joined"], rollout["generation"]) == (
            3,
            True,
            generation,
        )
        assert [each["board"] for each in rollout["boards"]] == ["lab-3"]
        assert rollout["others"] == {"have": [], "lack": ["lab-1", "lab-2"]}
        assert rollout["generation"] != later
    shown = (await lab.owner.ask("fleet-status"))["reply"]
    assert [(each["rollout"], each["state"]) for each in shown] == [(2, "failed"), (3, "running")]
    reply = await lab.owner.ask("fleet-abort")
    assert reply["reply"][0]["rollout"] == 3
    back = (await lab.owner.ask("fleet-rollback", dry_run=True))["reply"]
    assert back["generation"] == generation, "that of before the rollout that failed"
    # It was offered the generation: it is not given it again.
    async with await FakeBoard.join(lab.service, identity, parts=PARTS, facts={"mpy": 5}) as board:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(board.next(), 2.5)


async def test_board_that_removed_its_generation_gets_it_when_no_rollout_waits_for_it(lab: Lab):
    generation = await applied(lab)
    change(lab, 1, state="done")
    for rollout in (2, 2):  # this happens once
        fact = f"cleared {generation[:16]}\nreverted 0123 ?no link"
        async with await lab.join("lab-1", generation=fact) as board:
            if rollout != (await lab.status())["rollout"]:
                assert (await board.next()).op == wire.FILE
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(board.next(), 2.5)
            found = await lab.status()
        assert (found["rollout"], found["joined"]) == (rollout, True)
        assert found["generation"] == generation
        await lab.owner.ask("fleet-abort")


async def test_board_that_cannot_be_sent_what_it_had_fails_with_both_reasons(lab: Lab):
    await applied(lab, target="lab-1", rollback="network")
    rows = lab.service.store.rollout_rows
    row = rows.boards_of(1)[0]
    assert rows.set_boards(1, 1, {row.board: ("returning", 1.0, "health: no sensor")})
    rows.claim("another server", None)
    lab.service.server.rollouts.reload()  # it takes that over
    fact = "cleared 0123456789abcdef\nreverted fedc x"
    async with await lab.join("lab-1", generation=fact):
        rollout = await lab.until_state("failed")
    assert rollout["boards"][0]["why"] == (
        "health: no sensor; the server does not have generation 0123456789abcdef any more"
    )


async def test_board_that_gets_a_label_joins_the_group_if_its_client_can_go_back(lab: Lab):
    await lab.owner.ask("label", target="lab-1", labels={"room": "lab"})
    await applied(lab, target="room=lab")
    change(lab, 1, state="done")
    old = lab.boards["vault-1"]
    async with (
        await lab.join("lab-2") as board,
        await FakeBoard.join(lab.service, old, parts=["run", "files"]) as other,
    ):
        await lab.owner.ask("label", target="lab-2,vault-1", labels={"room": "lab"})
        assert (await board.next()).op == wire.FILE
        assert [each["board"] for each in (await lab.status())["boards"]] == ["lab-2"]
        with pytest.raises(TimeoutError):
            await board_message(other)


async def test_board_that_has_the_generation_or_was_changed_does_not_join(lab: Lab):
    generation = await applied(lab, target="lab-1")
    change(lab, 1, state="done")
    await lab.owner.ask("fleet-apply", groups=group(target="lab-1,vault-1", pin=["lab-1"]))
    change(lab, 2, state="done")
    for fact in (f"proven {generation[:16]}", f"drifted {generation[:16]}"):
        facts = {"mpy": 5, "generation": fact}
        async with await FakeBoard.join(
            lab.service, lab.boards["vault-1"], parts=PARTS, facts=facts
        ) as board:
            lab.service.server.rollouts.reload()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(board.next(), 2.5)


async def test_board_joins_a_group_only_if_the_token_of_its_rollout_reaches_it(lab: Lab):
    token = lab.service.add_token("operator", "lab-1,vault-*", name="ann")
    async with await FakeCaller.join(lab.service, token) as caller:
        await caller.ask("fleet-apply", groups=group(target="*-*"))
    change(lab, 1, state="done")
    async with (
        await lab.join("lab-2") as board,
        await FakeBoard.join(
            lab.service, *lab.service.enrol("vault-2"), parts=PARTS, facts={"mpy": 5}
        ) as other,
    ):
        assert (await other.next()).op == wire.FILE
        assert [each["board"] for each in (await lab.status())["boards"]] == ["vault-2"]
        with pytest.raises(TimeoutError):
            await board_message(board)
    change(lab, 2, state="done")
    lab.service.revoke_token("ann")
    async with await FakeBoard.join(
        lab.service, *lab.service.enrol("vault-3"), parts=PARTS, facts={"mpy": 5}
    ) as board:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(board.next(), 2.5)
    assert len((await lab.owner.ask("fleet-history"))["reply"]) == 2


async def test_boards_of_a_rollout_that_has_ended_finish_after_a_restart_of_the_server(
    tmp_path: Path,
):
    async with running_service(tmp_path) as service:
        (identity,) = service.enrol("lab-1")
        async with await FakeCaller.join(service) as owner:
            await owner.ask("fleet-apply", groups=group())
            row = {identity.id: ("trial", time.time(), "")}
            assert service.store.rollout_rows.set_boards(1, 1, row)
            await owner.ask("fleet-abort")
            (rollout,) = (await owner.ask("fleet-status"))["reply"]
    short = rollout["generation"][:16]
    facts = {"mpy": 5, "generation": f"proven 0123\nreverted {short} it restarted"}
    async with (
        running_service(tmp_path) as service,
        await FakeCaller.join(service) as owner,
        await FakeBoard.join(service, identity, parts=PARTS, facts=facts),
    ):

        def is_failed() -> bool:
            (row,) = service.store.rollout_rows.boards_of(1)
            return (row.state, row.why) == ("failed", "it went back: it restarted")

        await service.until(is_failed)
        (rollout,) = (await owner.ask("fleet-status"))["reply"]
        assert rollout["state"] == "aborted"


def rollout(generation: str, **more: Any) -> NewRollout:
    row = GenerationRow(generation, {}, 1.0, "ann")
    plan: dict[str, Any] = {"boards": []}
    return NewRollout("lab", row, None, "", plan, {}, {})._replace(**more)


PLACE = RolloutPlace("single", 1000)


def test_rollout_that_ends_and_the_one_that_follows_are_written_together(
    monkeypatch: pytest.MonkeyPatch,
):
    store = Store(None)
    store.add_rollouts([rollout("a" * 64)], PLACE)
    follows = NextRollout(rollout("b" * 64), PLACE)

    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("the power failed"))

    with monkeypatch.context() as patched:
        patched.setattr(store.rollout_rows, "add", fail)
        with pytest.raises(Exception, match="power"):
            store.end_rollout(1, 1, {"state": "failed"}, follows)
    assert [row.state for row in store.rollout_rows.history(9)] == ["running"]
    assert store.end_rollout(1, 1, {"state": "failed"}, follows)
    assert [row.state for row in store.rollout_rows.history(9)] == ["running", "failed"]
    assert not store.end_rollout(1, 1, {"state": "failed"}, follows), "it has ended"
    assert len(store.rollout_rows.history(9)) == 2
    store.close()


def test_boards_join_a_group_only_as_it_was_when_they_were_found():
    store = Store(None)
    store.add_rollouts([rollout("a" * 64)], PLACE)
    joining = rollout("a" * 64)
    assert not store.add_joined_boards(joining, PLACE, 1), "it is in progress"
    store.rollout_rows.update(1, 1, state="done")
    assert not store.add_joined_boards(joining, PLACE, 2), "that is not its newest"
    assert not store.add_joined_boards(rollout("c" * 64), PLACE, 1), "that is not stored"
    assert store.add_joined_boards(joining, PLACE, 1)
    assert not store.add_joined_boards(joining, PLACE, 1), "they have begun already"
    store.close()


def test_files_of_generations_are_bounded():
    store = Store(None)

    def add(version: str, data: bytes) -> None:
        generation = GenerationRow(version * 64, {}, float(ord(version)), "ann")
        plan: dict[str, Any] = {"boards": []}
        before = None if version == "a" else chr(ord(version) - 1) * 64
        contents = {hashlib.sha256(data).hexdigest(): data}
        new = NewRollout("lab", generation, before, "", plan, {}, contents)
        store.add_rollouts([new], RolloutPlace("single", 10))

    add("a", b"1111")
    add("b", b"2222")
    with pytest.raises(ServerError, match="no room"):
        add("c", b"3333333")
    add("c", b"33")
    add("d", b"4444")
    assert store.blob_rows.total_bytes() == 10, "the oldest one went"
    assert store.rollout_rows.contents_of("a" * 64) == {}
    store.close()
