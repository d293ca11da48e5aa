"""Hosted jobs: claimed once, refused if their board is not connected."""

from __future__ import annotations

import time
from types import SimpleNamespace

from cloudmanager.protocol import wire
from cm_server.cluster.hosted_jobs import RemoteObserver
from cm_server.cluster.job_streams import read_counted
from cm_server.jobs.model import RemoteBoardState
from cm_server.limits import Limits
from tests.cm_server.pairs import Two, others_of, store_of
from tests.cm_server.peers import FakeCaller


def test_output_is_dropped_while_the_bus_is_congested_and_results_are_not():
    sent: list[tuple[int, int]] = []

    def send_piece(_server: str, _op: str, piece: bytes, **_options: bool) -> None:
        sent.extend((message[0], message[1]) for message, _ in read_counted(piece))

    pubsub = SimpleNamespace(pending_bytes=0)
    peer_messages = SimpleNamespace(pubsub=pubsub, send_piece=send_piece)
    observer = RemoteObserver(peer_messages, "b", Limits.unsent_bytes)  # type: ignore[arg-type]
    output, value = wire.pack(wire.OUTPUT, b"x", job=1), wire.pack(wire.VALUE, b"x", job=1)
    observer.deliver(output, droppable=True)
    peer_messages.pubsub.pending_bytes = Limits.unsent_bytes + 1
    for message in (output, output, value):
        observer.deliver(message, droppable=True)
    observer.deliver(wire.pack(wire.STARTED, job=1))
    peer_messages.pubsub.pending_bytes = 0
    observer.deliver(output, droppable=True)
    assert sent == [
        (wire.OUTPUT, 0),
        (wire.TRUNCATED, 0),
        (wire.TRUNCATED, wire.VALUE_TRUNCATED),
        (wire.STARTED, 0),
        (wire.OUTPUT, 0),
    ]


def test_results_of_a_cell_wait_for_each_other_and_nothing_else_waits():
    waits: list[tuple[int, bool]] = []

    def send_piece(_server: str, _op: str, piece: bytes, *, more_follow: bool) -> None:
        waits.extend((message[0], more_follow) for message, _ in read_counted(piece))

    flushed: list[int] = []  # after how many messages
    peer_messages = SimpleNamespace(
        pubsub=SimpleNamespace(pending_bytes=0),
        send_piece=send_piece,
        flush=lambda: flushed.append(len(waits)),
    )
    observer = RemoteObserver(peer_messages, "b", Limits.unsent_bytes)  # type: ignore[arg-type]
    observer.expect_results([1, 2, 3])
    observer.expect_results([4])
    observer.deliver(wire.pack(wire.OUTPUT, b"x", job=1))
    for job in (1, 4, 2, 3):
        observer.deliver(wire.pack(wire.RESULT, job=job))
    assert waits == [
        (wire.OUTPUT, False),
        (wire.RESULT, True),
        (wire.RESULT, False),
        (wire.RESULT, True),
        (wire.RESULT, False),
    ]
    assert flushed == [5], "no other job runs for that server"
    assert not observer.streams


async def test_job_for_a_board_that_is_not_connected_is_refused(pair: Two):
    await pair.enrol("lab-1")
    board = pair.a.server.registry.by_name["lab-1"]
    # A has outdated information: the board is not connected to B.
    board.remote_state = RemoteBoardState(store_of(pair.b).server_id, 1, "idle", time.time())
    async with await FakeCaller.join(pair.a) as caller:
        (job,) = await caller.submit("lab-1")
        assert (await caller.ending(job))[0] == "offline"
    assert not board.online


async def test_run_message_for_an_unknown_job_runs_nothing(pair: Two):
    _, board = await pair.board_at_b()
    async with board:
        target = pair.b.server.registry.by_name["lab-1"]
        head = {"timeout": None, "awaits": False, "fresh": False, "answers": False, "files": None}
        request = {"jobs": [[4711, target.id]], "caller": "eve", **head}
        others_of(pair.a).peer_messages.send(store_of(pair.b).server_id, "run", request, b"evil()")
        reply, _ = await others_of(pair.a).peer_messages.request(
            store_of(pair.b).server_id, "interrupt", {"jobs": [4711]}
        )
        assert reply == {"found": 0}
        assert target.current_job is None


async def test_job_is_refused_with_the_reason_while_the_store_is_unavailable(pair: Two):
    _, board = await pair.board_at_b()
    async with board, await FakeCaller.join(pair.a) as caller:
        db = store_of(pair.b)._connection
        db.exec_driver_sql("PRAGMA query_only=ON")
        db.commit()
        (job,) = await caller.submit("lab-1")
        status, why = await caller.ending(job)
        assert status == "lost"
        assert why.startswith("its store cannot be written: ")
        assert why.endswith("; it did not run")
        db.exec_driver_sql("PRAGMA query_only=OFF")
        db.commit()
