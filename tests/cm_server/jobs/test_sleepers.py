"""Boards that sleep, and a server: when one may sleep, what it does before, when it is late."""

from __future__ import annotations

import asyncio
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import frames, proofs, wire
from cm_server.jobs.model import Board
from cm_server.jobs.sleep_facts import quantile
from cm_server.limits import Limits
from cm_server.store.store_queue import Operation
from tests.cm_server.pairs import Two
from tests.cm_server.peers import (
    FACTS,
    BoardMac,
    FakeBoard,
    FakeCaller,
    Identity,
    Service,
    running_service,
)


def sleep(seconds: float, awake: float = 1.5) -> bytes:
    return struct.pack(">II", round(seconds * 1000), round(awake * 1000))


async def ask(board: FakeBoard, seconds: float = 600, awake: float = 1.5) -> wire.Message:
    """Let a board say that it wants to sleep; return the answer."""
    await board.send(wire.SLEEP, sleep(seconds, awake))
    return await board.next()


def wait_of(reply: wire.Message) -> float | None:
    """Return the seconds after which the board asks again; None: it may sleep."""
    assert reply.op == wire.SLEEP_REPLY
    if not reply.flags & wire.STAY_AWAKE:
        return None
    return float(struct.unpack(">I", reply.payload)[0]) / 1000


def board_of(service: Service) -> Board:
    return service.server.registry.by_name["lab-1"]


@pytest.fixture
def lab(service: Service) -> Identity:
    return service.enrol("lab-1")[0]


async def test_board_for_which_nothing_waits_may_sleep_and_is_asleep(service: Service, lab: Any):
    async with await FakeBoard.join(service, lab) as board:
        assert wait_of(await ask(board)) is None
        row = board_of(service).describe()
        assert (row["state"], row["connected_since"]) == ("asleep", None)
        assert abs(row["wakes_at"] - time.time() - 600) < 60
        assert row["awake_ms"] == 1500
        assert (await board.closed())[0] == 1000


async def test_board_that_connects_again_is_awake(service: Service, lab: Any):
    async with await FakeBoard.join(service, lab) as board:
        await ask(board)
    async with await FakeBoard.join(service, lab, boot="b2"):
        row = board_of(service).describe()
        assert (row["state"], row["wakes_at"], row["awake_ms"]) == ("idle", None, 1500)


async def test_job_that_waits_is_sent_before_a_busy_program_sleeps(service: Service, lab: Any):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        await board.send(wire.PROGRAM, b"app.py", flags=wire.BLOCKING)
        await board.send(wire.LOG, bytes(4) + b"x")
        await service.until(lambda: board_of(service).blocked)
        (first,) = await caller.submit("lab-1")
        (second,) = await caller.submit("lab-1")
        assert wait_of(await ask(board)) == 10
        sent = await board.next()
        assert (sent.op, sent.job) == (wire.EXEC, first)
        await board.end(first)
        sent = await board.next()
        assert (sent.op, sent.job) == (wire.EXEC, second)
        assert wait_of(await ask(board)) == 10, "a job is on its way"
        await board.end(second)
        assert wait_of(await ask(board)) is None
        assert (await caller.ending(first))[0] == (await caller.ending(second))[0] == "ok"


async def test_nothing_is_sent_to_a_board_that_may_sleep(service: Service, lab: Any):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        assert wait_of(await ask(board)) is None
        (job,) = await caller.submit("lab-1")
        status, why = await caller.ending(job)
        assert status == "offline"
        assert "it is asleep until " in str(why)


async def test_job_with_wait_starts_when_the_board_wakes(service: Service, lab: Any):
    async with await FakeCaller.join(service) as caller:
        async with await FakeBoard.join(service, lab) as board:
            await ask(board)
        (job,) = await caller.submit("lab-1", wait=30)
        jobs_ahead, known = service.server.dispatch.jobs[job].describe_wait()
        assert jobs_ahead == 0
        assert time.time() < known["wakes_at"] < time.time() + 600
        async with await FakeBoard.join(service, lab, boot="b2") as board:
            assert (await board.next()).job == job
            await board.end(job)
            assert (await caller.ending(job))[0] == "ok"


async def test_reserved_board_sleeps_although_a_job_of_another_waits(service: Service, lab: Any):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as anna,
    ):
        await anna.ask("reserve", target="lab-1", seconds=60)
        async with await FakeCaller.join(service, service.add_token("operator", name="bob")) as bob:
            await bob.socket.send(wire.pack_submit(9, {"target": "lab-1"}, b"1"))
            await bob.event()
            assert wait_of(await ask(board)) is None


async def test_pending_key_is_sent_before_the_board_sleeps_but_only_once(
    service: Service, lab: Any
):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        await board.send(wire.PROGRAM, b"app.py", flags=wire.BLOCKING)
        await service.until(lambda: board_of(service).blocked)
        await caller.ask("rotate", target="lab-1")
        assert wait_of(await ask(board)) == 1
        assert (await board.next()).op == wire.REKEY
        assert wait_of(await ask(board)) is None, "it did not answer"


async def test_late_board_is_overdue_after_the_spread_and_a_tenth(service: Service, lab: Any):
    service.server.dispatch.sleepers.spread = lambda: 0.2
    changes = []
    async with await FakeBoard.join(service, lab) as board:
        await ask(board, 2)
    at = board_of(service).overdue_at
    wakes_at = board_of(service).describe()["wakes_at"]
    assert at == pytest.approx(wakes_at + 0.4)
    listener = service.server.registry.subscriptions_listener
    service.server.registry.subscriptions_listener = lambda board: changes.append(board.state)
    await service.until(lambda: "overdue" in changes)
    service.server.registry.subscriptions_listener = listener
    assert time.time() >= (at or 0.0)


async def test_durations_of_wakes_are_kept_with_median_and_90_percent(service: Service, lab: Any):
    for number in range(1, 11):
        async with await FakeBoard.join(service, lab, boot=f"b{number}") as board:
            await ask(board, 600, awake=number)
    row = board_of(service).describe()
    assert (row["awake_ms"], row["awake_p90_ms"]) == (5000, 9000)


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 0.9, 7),
        ([1, 2], 0.5, 1),
        ([3, 1, 2], 0.5, 2),
        (list(range(10)), 0.9, 8),
    ],
)
def test_quantile_is_one_of_the_values(values: list[int], part: float, expected: int):
    assert quantile(values, part) == expected


async def test_board_cannot_report_when_it_wakes_by_its_facts(service: Service, lab: Any):
    facts = {**FACTS, "wakes_at": 1.0, "awake_ms": 5, "overdue_at": 1.0, "awake_times": "x"}
    async with await FakeBoard.join(service, lab, facts=facts):
        row = board_of(service).describe()
        assert (row["wakes_at"], row["awake_ms"]) == (None, None)
        assert board_of(service).overdue_at is None


async def test_board_that_woke_need_not_report_what_the_server_knows(service: Service, lab: Any):
    async with await FakeBoard.join(service, lab, parts=["run", "files"]) as board:
        await ask(board)
    woken: dict[str, Any] = {"boot": "b2", "facts": None, "parts": None, "wake": "app.py"}
    async with await FakeBoard.join(service, lab, **woken):
        row = board_of(service).describe()
        known = (row["state"], row["version"], row["reset"], row["program"], row["wakes_at"])
        assert known == ("idle", FACTS["version"], "deepsleep", "app.py", None)
        assert board_of(service).client_parts == {"run", "files"}


async def test_board_whose_facts_are_not_known_reports_them_again(service: Service, lab: Any):
    board: FakeBoard = await FakeBoard.dial(service, "/board")
    async with board:
        await board.greet(lab.id)
        woken: dict[str, Any] = {"facts": None, "parts": None, "wake": "app.py"}
        await board.prove(lab, await board.next(), **woken)
        assert (await board.closed())[0] == 1001
    async with await FakeBoard.join(service, lab):
        assert board_of(service).describe()["version"] == FACTS["version"]


async def test_wakes_are_no_restarts(service: Service, lab: Any):
    for boot in ("b1", "b2", "b3", "b4"):
        wake: dict[str, Any] = {"facts": None, "parts": None, "wake": "app.py"}
        if boot == "b1":
            wake = {}
        async with await FakeBoard.join(service, lab, boot=boot, **wake) as board:
            await ask(board)
    async with await FakeCaller.join(service) as caller:
        assert (await caller.ask("health"))["reply"]["restarts"] == {}


async def test_job_that_ran_when_the_board_fell_asleep_is_lost(service: Service, lab: Any):
    async with await FakeCaller.join(service) as caller:
        async with await FakeBoard.join(service, lab) as board:
            (job,) = await caller.submit("lab-1")
            assert (await board.next()).job == job
        slept = {**FACTS, "reset": "deepsleep"}
        async with await FakeBoard.join(service, lab, boot="b2", facts=slept):
            assert await caller.ending(job) == ("lost", "the board fell asleep while it ran")


async def test_malformed_sleep_closes_the_link(service: Service, lab: Any):
    async with await FakeBoard.join(service, lab) as board:
        await board.send(wire.SLEEP, b"123")
        assert (await board.closed())[0] == 1002
    assert board_of(service).describe()["wakes_at"] is None


@pytest.mark.parametrize("milliseconds", [0, -1, -600_000, 30 * 86_400_000 + 1])
async def test_time_that_no_board_may_sleep_closes_the_link(
    service: Service, lab: Any, milliseconds: int
):
    """Negative numbers look as 49 days; a year does not fit."""
    async with await FakeBoard.join(service, lab) as board:
        await board.send(wire.SLEEP, struct.pack(">II", milliseconds & 0xFFFFFFFF, 5))
        assert (await board.closed())[0] == 1002
    assert board_of(service).describe()["wakes_at"] is None
    await service.until(lambda: board_of(service).state == "offline")


async def test_longest_sleep_is_accepted(service: Service, lab: Any):
    async with await FakeBoard.join(service, lab) as board:
        assert wait_of(await ask(board, wire.MAX_SLEEP_SECONDS)) is None
    assert board_of(service).state == "asleep"


async def test_what_a_board_sends_after_it_may_sleep_is_ignored(service: Service, lab: Any):
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        ticks = struct.pack(">Q", 5)
        await board.send(wire.EMIT, ticks + b'{"a":1}')
        await service.until(lambda: board_of(service).sample_buffer.samples)
        samples = list(board_of(service).sample_buffer.samples)
        messages = (
            wire.pack(wire.SLEEP, sleep(600)),
            wire.pack(wire.EMIT, ticks + b'{"a":2}'),
            wire.pack(wire.PROGRAM, b"I am awake"),
            wire.pack(wire.SLEEP, sleep(5)),
        )
        sent = b"".join(frames.encode_frame(each, mask=True) for each in messages)
        board.socket.transport.write(sent)  # at once: the server may close the link
        assert (await board.closed())[0] == 1000
        row = (await caller.ask("boards", target="lab-1"))["reply"][0]
        assert (row["state"], row["program"]) == ("asleep", "")
        assert abs(row["wakes_at"] - time.time() - 600) < 60
        assert list(board_of(service).sample_buffer.samples) == samples


@pytest.mark.parametrize("mac", [False, True])
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
async def test_what_follows_the_proof_is_handled_when_the_board_is_accepted(
    service: Service, monkeypatch: pytest.MonkeyPatch, *, mac: bool, is_late: bool
):
    """Until the store has answered, nothing that a board sends is handled."""
    (lab,) = service.enrol("lab-1", plain=mac)
    claim: Operation[None] = Operation(lambda _store: None)
    if is_late:
        cluster = service.server._board_link_services.cluster
        monkeypatch.setattr(cluster, "claim_board", lambda *_: claim)
    board: FakeBoard = await FakeBoard.dial(service, "/board")
    async with board:
        await board.greet(lab.id, **({"mac": 1} if mac else {}))
        challenge = await board.next()
        await board.prove(lab, challenge)
        if mac:
            nonces = board.nonce + challenge.payload[:16]
            board.mac = BoardMac(proofs.session_key(lab.key, nonces, lab.id))
        await board.send(wire.EMIT, struct.pack(">Q", 5) + b'{"a":1}')
        await board.send(wire.SLEEP, sleep(600))
        if is_late:
            for _ in range(20):
                await asyncio.sleep(0)
            assert board_of(service).state == "offline"
            claim.complete(None)
        assert (await board.next()).op == wire.WELCOME
        assert wait_of(await board.next()) is None
        samples = board_of(service).sample_buffer.samples
        assert [each.values for each in samples] == ['{"a":1}']
        assert board_of(service).state == "asleep"


@pytest.mark.limits(messages_per_second=200, messages_at_once=50)
async def test_flood_of_sleep_is_answered_at_a_bounded_rate(service: Service, lab: Any):
    """Each costs as much as a message that boards seldom send; so it does if it is refused."""
    async with await FakeCaller.join(service) as caller:
        await caller.ask("stay", target="lab-1", seconds=600)
        async with await FakeBoard.join(service, lab) as board:
            began = time.monotonic()
            for _ in range(20):
                await board.send(wire.SLEEP, sleep(600))
            for _ in range(20):
                assert wait_of(await board.next()) is not None
            took = time.monotonic() - began
            assert took >= 0.9 * (19 * Limits.rare_messages - 50) / 200  # timers are early


async def test_board_cannot_take_the_name_or_the_state_of_another(service: Service, lab: Any):
    service.enrol("lab-2")
    stolen: dict[str, Any] = {"name": "lab-2", "id": "x", "labels": {"a": "b"}, "stay": 1}
    stolen |= {"serial": "1", "note": "n", "reserved": {"caller": "eve"}, "connected_since": 0}
    facts = {**FACTS, **stolen, "state": "asleep", "uptime": -5, "heap": -1}
    async with await FakeBoard.join(service, lab, facts=facts) as board:
        row = board_of(service).describe()
        shown = (row["name"], row["state"], row["labels"], row["uptime"], row["heap"])
        assert shown == ("lab-1", "idle", {}, None, None)
        assert (row["stay"], row["serial"], row["reserved"]) == (None, "", None)
        assert row["id"] == lab.id
        await board.send(wire.SLEEP, sleep(600), job=2)
        assert wait_of(await board.next()) is None
    states = [service.server.registry.by_name[name].state for name in ("lab-1", "lab-2")]
    assert states == ["asleep", "offline"]


async def test_board_stays_awake_as_long_as_a_caller_wants_from_its_next_wake_on(
    service: Service, lab: Any
):
    async with await FakeCaller.join(service) as caller:
        assert await caller.ask("stay", target="lab-1", seconds=120) == {"reply": ["lab-1"]}
        assert board_of(service).describe()["stay"]["seconds"] == 120
        async with await FakeBoard.join(service, lab) as board:
            assert 60 < (wait_of(await ask(board)) or 0) <= 120
            stay = board_of(service).describe()["stay"]
            assert stay["seconds"] is None
            assert abs(stay["until"] - time.time() - 120) < 60
            assert board_of(service).state == "idle"
            await caller.ask("stay", target="lab-1", seconds=0)
            assert board_of(service).describe()["stay"] is None
            assert wait_of(await board.next()) == 0, "it is to ask again at once"
            assert wait_of(await ask(board)) is None


@pytest.mark.limits(stay_expires_seconds=0.0)
async def test_wish_to_stay_expires(service: Service, lab: Any):
    async with (
        await FakeCaller.join(service) as caller,
        await FakeBoard.join(service, lab) as board,
    ):
        await caller.ask("stay", target="lab-1", seconds=60)
        assert wait_of(await ask(board)) is None


@pytest.mark.limits(stay_seconds=100.0)
@pytest.mark.parametrize("seconds", [-1, 101, True, "1h", None, float("inf"), float("nan")])
async def test_time_to_stay_is_checked(service: Service, lab: Any, seconds: Any):
    async with await FakeCaller.join(service) as caller:
        refused = await caller.ask("stay", target="lab-1", seconds=seconds)
        assert "can be kept awake for up to" in refused["args"][0]
        assert board_of(service).describe()["stay"] is None


async def test_wish_to_stay_survives_a_restart_of_the_server(tmp_path: Path):
    async with running_service(tmp_path) as service:
        service.enrol("lab-1")
        async with await FakeCaller.join(service) as caller:
            await caller.ask("stay", target="lab-1", seconds=60)
        until = board_of(service).describe()["stay"]["until"]
    async with running_service(tmp_path) as service:
        assert board_of(service).describe()["stay"] == {"seconds": 60.0, "until": until}


async def test_other_servers_know_that_a_board_sleeps_and_is_to_stay_awake(two: Two):
    (identity,) = await two.enrol("lab-1")
    async with await FakeCaller.join(two.b) as caller:
        async with await FakeBoard.join(two.a, identity) as board:
            await ask(board)
        await two.b.until(lambda: board_of(two.b).state == "asleep")
        assert board_of(two.b).describe()["wakes_at"] == board_of(two.a).describe()["wakes_at"]
        await caller.ask("stay", target="lab-1", seconds=60)
        async with await FakeBoard.join(two.a, identity, boot="b2") as board:
            await two.a.until(lambda: board_of(two.a).stay is not None)
            assert (wait_of(await ask(board)) or 0) > 30
