"""Remote jobs: they end, whichever messages are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.run_options import RunOptions
from cm_server.cluster import membership, remote_jobs
from cm_server.jobs.dispatch import Submission
from cm_server.jobs.model import Board, Cell, Job, Requester
from cm_server.store.rows import ClaimedBoard
from cm_server.store.store_queue import Operation
from tests.cm_server.dispatching import RecordingObserver
from tests.cm_server.pairs import Two, others_of, run, store_of
from tests.cm_server.peers import FakeBoard, FakeCaller, Service


def mute(service: Service) -> None:
    """Drop all messages of a server."""
    others_of(service).peer_messages.pubsub.publish = lambda *_: None  # type: ignore[method-assign]


async def test_unclaimed_job_ends_offline_and_cannot_be_claimed_later(pair: Two):
    _, board = await pair.board_at_b()
    messages: list[tuple[str, bytes]] = []
    async with board, await FakeCaller.join(pair.a) as caller:
        bus = others_of(pair.a).peer_messages.pubsub
        bus.publish = lambda *message: messages.append(message)  # type: ignore[method-assign]
        (job,) = await caller.submit("lab-1")
        status, why = await caller.ending(job)
        assert (status, why) == (
            "offline",
            "the server that has its link does not answer; it did not run",
        )
        for _, data in messages:  # they arrive late
            others_of(pair.b).peer_messages._on_fragment(data)
        assert pair.b.state("lab-1") == "idle"
        assert job not in pair.b.server.dispatch.jobs


async def test_job_of_a_silent_server_is_lost_and_corrected_later(pair: Two, monkeypatch):
    monkeypatch.setattr(remote_jobs, "CONFIRM_SECONDS", 0.1)
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        (job,) = await caller.submit("lab-1", timeout=0.2)
        await run(board)
        await pair.a.until(lambda: pair.a.server.dispatch.jobs[job].started)
        mute(pair.b)
        status, why = await caller.ending(job)
        assert (status, why) == ("lost", "the server that has its board does not report a result")
        await board.end(job, rest=b"7")
        await pair.b.until(lambda: job not in pair.b.server.dispatch.jobs)
        row = store_of(pair.a).job(job)
        assert row is not None
        assert row.status == "ok"


@pytest.mark.parametrize(
    ("lost", "flags"),
    [
        ([], []),
        ([wire.OUTPUT], [0]),
        ([wire.VALUE], [wire.VALUE_TRUNCATED]),
        ([wire.OUTPUT, wire.VALUE], [0, wire.VALUE_TRUNCATED]),
    ],
)
async def test_lost_pieces_are_reported_as_truncated(pair: Two, lost: list[int], flags: list[int]):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        (job,) = await caller.submit("lab-1")
        await run(board)
        for op in (wire.OUTPUT, wire.VALUE):
            await board.send(op, b"1", job=job)
            while (await caller.event()).op != op:
                pass
        assert pair.hub is not None
        pair.hub.set_connected(False)
        for op in lost:
            await board.send(op, b"2", job=job)
        hosted = pair.b.server.dispatch.jobs[job]
        await pair.b.until(lambda: len(hosted.output_tail) + len(hosted.value) == 2 + len(lost))
        pair.hub.set_connected(True)
        await board.end(job, rest=b"3")
        events: list[wire.Message] = []
        while not events or events[-1].op != wire.RESULT:
            events.append(await caller.event())
        assert [event.flags for event in events if event.op == wire.TRUNCATED] == flags


async def test_remote_job_is_queued_and_starts_when_its_board_is_free(pair: Two):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        (first,) = await caller.submit("lab-1")
        await run(board)
        await pair.seen(state="busy")
        (second,) = await caller.submit("lab-1")
        await board.end(first)
        await run(board)
        ops: list[tuple[int, int]] = []
        while not ops or ops[-1] != (second, wire.STARTED):
            message = await caller.event()
            ops.append((message.job, message.op))
        assert (first, wire.RESULT) in ops
        await board.end(second)
        assert (await caller.ending(second))[0] == "ok"


async def test_job_waits_for_a_board_that_connects_to_another_server(pair: Two):
    (identity,) = await pair.enrol("lab-1")
    async with await FakeCaller.join(pair.a) as caller:
        (job,) = await caller.submit("lab-1", wait=5)
        async with await FakeBoard.join(pair.b, identity) as board:
            assert (await run(board)).job == job
            await board.end(job, rest=b"1")
            assert await caller.ending(job) == ("ok", "1")


async def test_board_that_moved_is_found(pair: Two):
    identity, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.b) as caller:
        mute(pair.a)  # B does not learn that the board moved
        async with await FakeBoard.join(pair.a, identity) as moved:
            del others_of(pair.a).peer_messages.pubsub.publish
            (job,) = await caller.submit("lab-1", timeout=600)
            cell = await run(board)  # for B, the board is still connected
            assert cell.job == job
            others_of(pair.a).board_directory.publish_changes()
            others_of(pair.a).board_directory._on_boards_requested(
                store_of(pair.b).server_id, {}, b""
            )
            assert (await board.closed())[0] == 4003
            await pair.b.until(lambda: pair.b.server.dispatch.jobs[job].owner == "?")
            (again,) = await caller.submit("lab-1")
            assert (await run(moved)).job == again
            await moved.end(again)
            assert (await caller.ending(again))[0] == "ok"


async def test_job_sent_to_the_older_link_during_a_claim_ends(pair: Two, monkeypatch):
    identity, board = await pair.board_at_b()
    cluster, dispatch = others_of(pair.b), pair.b.server.dispatch
    claim_board, observer, jobs = cluster.claim_board, RecordingObserver(), list[Job]()

    def claim_and_submit(board: Board, facts: dict[str, Any]) -> Operation[ClaimedBoard | None]:
        claim = claim_board(board, facts)
        submission = Submission([board], Cell(b"1", RunOptions()), Requester("ann", observer))
        jobs.extend(dispatch.create_jobs(submission, dispatch.submit(submission).result()))
        dispatch.scheduler.launch(jobs)
        return claim

    monkeypatch.setattr(cluster, "claim_board", claim_and_submit)
    async with board, await FakeBoard.join(pair.b, identity):
        (job,) = jobs
        assert observer.ending(job) == ("lost", "it never reached the board")
        assert pair.b.state("lab-1") == "idle"
    store_of(pair.b).flush()
    row = pair.a.store.job(job.id)
    assert row is not None
    assert row.status == "lost"


async def test_withdrawal_is_retried_while_the_store_is_unavailable(pair: Two, monkeypatch):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        mute(pair.a)
        (job,) = await caller.submit("lab-1")
        db = store_of(pair.a)._connection
        db.exec_driver_sql("PRAGMA query_only=ON")
        db.commit()
        await pair.a.until(lambda: pair.a.store.write_error)
        db.exec_driver_sql("PRAGMA query_only=OFF")
        db.commit()
        assert (await caller.ending(job))[0] == "offline"


async def test_other_servers_are_asked_before_own_boards_get_the_cell(pair: Two):
    near, far = await pair.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(pair.a, near) as here,
        await FakeBoard.join(pair.b, far) as elsewhere,
    ):
        await pair.a.until(lambda: {pair.a.state("lab-1"), pair.a.state("lab-2")} == {"idle"})
        board, bus = pair.a.server.registry.by_name["lab-1"], others_of(pair.a).peer_messages.pubsub
        publish, own_jobs = bus.publish, []

        def note_and_publish(subject: str, data: bytes) -> None:
            if b'"op":"run"' in data:
                own_jobs.append(board.current_job)
            publish(subject, data)

        bus.publish = note_and_publish  # type: ignore[method-assign]
        async with await FakeCaller.join(pair.a) as caller:
            jobs = await caller.submit("lab-*")
            for each, job in ((here, jobs[0]), (elsewhere, jobs[1])):
                await run(each)
                await each.end(job)
            for job in jobs:
                assert (await caller.ending(job))[0] == "ok"
    assert own_jobs == [None]


async def test_cell_that_ran_is_not_offline_if_its_confirmation_and_result_are_lost(
    pair: Two, monkeypatch
):
    monkeypatch.setattr(membership, "OUTCOME_POLL_SECONDS", 0.6)  # the request is repeated first
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        await asyncio.sleep(0.2)  # polls were more frequent until now
        bus = others_of(pair.b).peer_messages.pubsub
        bus.publish = lambda *_: None  # type: ignore[method-assign]
        (job,) = await caller.submit("lab-1")
        await run(board)
        await board.end(job)
        await pair.b.until(lambda: job not in pair.b.server.dispatch.jobs)
        del bus.publish
        assert await caller.ending(job) == ("ok", "")


async def test_confirmed_jobs_share_one_timer(pair: Two, monkeypatch):
    _, board = await pair.board_at_b()
    remote, timers = others_of(pair.a).remote_jobs, []
    call_later = remote._call_later

    def count_timers(seconds: float, act: Callable[[], None]) -> Any:
        timers.append(seconds)
        return call_later(seconds, act)

    monkeypatch.setattr(remote, "_call_later", count_timers)
    monkeypatch.setattr(remote_jobs, "ACK_SECONDS", 60.0)
    async with board, await FakeCaller.join(pair.a) as caller:
        for _ in range(5):
            (job,) = await caller.submit("lab-1")
            await run(board)
            await board.end(job)
            assert (await caller.ending(job))[0] == "ok"
    assert timers == [pytest.approx(20.0, abs=1.0)]
