"""Several servers act as one: with SQLite and a bus in one process, and with PostgreSQL and NATS.

Strict peers act as boards and callers; tests/system/test_several.py has real ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cm_server.jobs.model import RemoteBoardState
from cm_server.store.shared_store import NEVER_SENT_ERROR
from tests.cm_server.pairs import Two, others_of, run, store_of
from tests.cm_server.peers import FakeBoard, FakeCaller


async def test_cell_runs_on_a_board_of_another_server(two: Two):
    _, board = await two.board_at_b()
    async with board, await FakeCaller.join(two.a) as caller:
        (job,) = await caller.submit("lab-1", b"print(6)", timeout=5)
        cell = await run(board)
        assert (cell.job, cell.payload[8:]) == (job, b"print(6)")
        assert (await caller.ask("jobs"))["reply"][0]["state"] == "running"
        await board.send(wire.OUTPUT, b"6\r\n", job=job)
        output = await caller.event()
        assert (output.op, output.payload) == (wire.OUTPUT, b"6\r\n")
        await board.end(job, rest=b"42")
        assert await caller.ending(job) == ("ok", "42")
        shown = (await caller.ask("job", job=job))["reply"]
        assert (shown["stdout"], shown["status"]) == ("6\n", "ok")
        async with await FakeCaller.join(two.b) as other:  # the token is valid at both servers
            assert (await other.ask("job", job=job))["reply"]["stdout"] == "6\n"
            assert [line["job"] for line in (await other.ask("jobs"))["reply"]] == [job]
    two.b.store.flush()
    row = two.a.store.job(job)
    assert row is not None
    assert row.status == "ok"


async def test_jobs_are_queued_at_their_boards_server_and_interrupted_from_any(two: Two):
    _, board = await two.board_at_b()
    async with board, await FakeCaller.join(two.a) as a, await FakeCaller.join(two.b) as b:
        (first,) = await a.submit("lab-1")
        await run(board)
        (second,) = await b.submit("lab-1")
        (third,) = await a.submit("lab-1")
        assert (await b.ask("interrupt", jobs=[first]))["reply"] == 1
        assert (await board.next()).op == wire.INTERRUPT
        await board.end(first, "interrupted")
        assert (await a.ending(first))[0] == "interrupted"
        assert (await run(board)).job == second
        await board.end(second)
        assert (await b.ending(second))[0] == "ok"
        assert (await run(board)).job == third
        assert (await a.event()).op == wire.STARTED
        await board.end(third)
        assert (await a.ending(third))[0] == "ok"


async def test_input_is_answered_across_servers(two: Two):
    _, board = await two.board_at_b()
    async with board:
        async with await FakeCaller.join(two.a) as caller:
            (job,) = await caller.submit("lab-1", answers=True)
            await run(board)
            await board.send(wire.INPUT, b"name? ", job=job)
            assert (await caller.event()).payload == b"name? "
            await caller.send(wire.ANSWER, b"ann", job=job)
            answer = await board.next()
            assert (answer.op, answer.payload) == (wire.ANSWER, b"ann")
            await board.send(wire.INPUT, b"age? ", job=job)
            await caller.event()
        assert (await board.next()).flags & wire.INPUT_EOF  # the caller has disconnected
        await board.end(job)


async def test_files_are_copied_to_and_from_boards_of_another_server(two: Two):
    _, board = await two.board_at_b(parts=["run", "files"])
    data = bytes(range(256)) * 1000  # several windows of 64 KB
    digest = hashlib.sha256(data).hexdigest()
    async with board, await FakeCaller.join(two.a) as caller:
        upload = (await caller.ask("offer", sha256=digest, size=len(data)))["reply"]
        for at in range(0, len(data), 65536):
            await caller.socket.send(wire.pack_content(9, upload, data[at : at + 65536]))
            assert (await caller.next()).op == wire.REPLY
        (job,) = await caller.submit("lab-1", b"", acts=[["put", "/a", digest]])
        assert (await board.next()).op == wire.FILE
        await board.send(wire.CHUNK, bytes(36), job=job, flags=wire.RESUME_STATE)
        got = bytearray()
        while len(got) < len(data):
            piece = await board.next()
            assert piece.op == wire.DATA
            got += piece.payload
            await board.socket.send(wire.pack_byte_count(wire.CHUNK, len(got), job=job))
        assert got == data
        await board.end(job)
        assert (await caller.ending(job))[0] == "ok"

        (job,) = await caller.submit("lab-1", b"", acts=[["get", "/a"]])
        assert (await board.next()).op == wire.FILE
        for at in range(0, 100_000, 1000):
            await board.send(wire.CHUNK, data[at : at + 1000], job=job)
        taken = 0
        while taken < 50_000:  # the caller has read: the board may send more
            word = await board.next()
            assert word.op == wire.DATA
            (taken,) = (wire.read_byte_count(word),)
        await board.end(job)


async def test_content_of_another_token_is_not_sent_through_another_server(two: Two):
    _, board = await two.board_at_b(parts=["run", "files"])
    digest = hashlib.sha256(b"secret").hexdigest()
    token = two.a.add_token("operator")
    await two.b.until(lambda: "operator" in [row["name"] for row in two.b.server.tokens.describe()])
    async with board, await FakeCaller.join(two.a) as owner:
        upload = (await owner.ask("offer", sha256=digest, size=6))["reply"]
        await owner.socket.send(wire.pack_content(9, upload, b"secret"))
        assert (await owner.next()).op == wire.REPLY
        for service in (two.a, two.b):
            async with await FakeCaller.join(service, token) as other:
                acts = [["put", "/stolen", digest]]
                await other.socket.send(wire.pack_submit(1, {"target": "lab-1", "acts": acts}, b""))
                assert "was not uploaded" in (await other.next()).payload.decode()


async def test_changes_at_one_server_apply_at_the_other(two: Two):
    identity, board = await two.board_at_b()
    token = two.a.add_token("viewer")
    await two.b.until(lambda: "viewer" in [row["name"] for row in two.b.server.tokens.describe()])
    async with board, await FakeCaller.join(two.a) as a, await FakeCaller.join(two.b, token) as b:
        await a.ask("label", target="lab-1", labels={"room": "lab"})
        await a.ask("rename", target="lab-1", name="lab-9")
        await two.b.until(lambda: "lab-9" in two.b.server.registry.by_name)
        assert (await b.ask("boards", target="room=lab"))["reply"][0]["name"] == "lab-9"
        await a.ask("rotate", target="lab-9")
        assert (await board.next()).op == wire.REKEY
        await a.ask("token-revoke", name="viewer")
        assert "was revoked" in (await b.closed())[1]
        await a.ask("revoke", target="lab-9")
        assert (await board.closed())[0] == 4004
    await two.b.until(lambda: not two.b.server.registry.by_name)


async def test_subscription_covers_boards_and_samples_of_all_servers(two: Two):
    _, board = await two.board_at_b()
    async with board, await FakeCaller.join(two.a) as caller:
        await caller.send(wire.WATCH, json.dumps({"target": "lab-*"}).encode(), job=5)
        whole = wire.read_json((await caller.next()).payload)
        assert [(each["name"], each["state"]) for each in whole["boards"]] == [("lab-1", "idle")]
        await board.send(wire.EMIT, bytes(8) + b'{"t":21}')
        seen: list[Any] = []
        while not seen:
            seen = wire.read_json((await caller.next()).payload)["samples"]
        assert (seen[0][0], seen[0][4]) == ("lab-1", {"t": 21})
        assert len((await caller.ask("samples", target="lab-1"))["reply"]) == 1


async def test_result_is_reported_after_the_board_moves_to_another_server(two: Two):
    identity, board = await two.board_at_b()
    async with await FakeCaller.join(two.b) as caller:
        (job,) = await caller.submit("lab-1")
        await run(board)
        (waits,) = await caller.submit("lab-1", b"next")
        report = {"job": f"{job:08x}", "status": 0, "error": ""}
        async with await FakeBoard.join(two.a, identity, last=report) as moved:
            assert (await board.closed())[0] == 4003
            assert (await run(moved)).job == waits  # the queued job followed the board
            await moved.end(waits, rest=b"7")
            endings: dict[int, wire.Message] = {}
            while len(endings) < 2:
                message = await caller.event()
                if message.op in wire.JOB_END_OPS:
                    endings[message.job] = message
            assert wire.STATUSES[endings[job].flags] == "ok"
            assert wire.read_json(endings[job].payload)["output_lost"]
            assert wire.read_result(endings[waits]).value_or_traceback == b"7"
    assert two.a.server.registry.by_name["lab-1"].epoch == 2


async def test_jobs_end_through_the_store_while_the_bus_is_down(two: Two):
    _, board = await two.board_at_b()
    async with board, await FakeCaller.join(two.a) as caller:
        (job,) = await caller.submit("lab-1")
        await run(board)
        for service in (two.a, two.b):
            others_of(service).peer_messages.pubsub.publish = lambda *_: None  # type: ignore[method-assign]
        await board.end(job, rest=b"1")
        status, _ = await caller.ending(job)
        assert status == "ok"
        (job,) = await caller.submit("lab-1")
        assert await caller.ending(job) == (
            "offline",
            "the server that has its link does not answer; it did not run",
        )


@pytest.mark.parametrize("dead_after", [2.0])
async def test_jobs_of_a_dead_server_end_and_its_boards_are_offline(two: Two):
    _, board = await two.board_at_b()
    (other,) = await two.enrol("lab-2")
    async with board, await FakeCaller.join(two.a) as a:
        (sent,) = await a.submit("lab-1", timeout=600)
        await run(board)
        async with await FakeCaller.join(two.b) as b:
            (waits,) = await b.submit("lab-2", wait=600)
        b_server = two.b.server
        for timer in others_of(two.b)._timers.values():
            timer.cancel()  # for the others it is suspended
        await two.a.until(lambda: two.a.state("lab-1") == "lost")
        row = two.a.store.job(waits)
        assert row is not None
        assert (row.status, row.error) == ("lost", NEVER_SENT_ERROR)
        status, why = await a.ending(sent)
        assert status == "lost"
        assert "did not come back" in why

        board_result = board.end(sent, rest=b"stale")
        await board_result  # it resumes: its writes are refused
        await asyncio.sleep(0)
        await two.b.until(lambda: sent not in b_server.dispatch.jobs)
        store = store_of(two.b)
        store.flush()
        assert store.refused_writes
        old = store.server_id
        others_of(two.b)._on_heartbeat_due()
        await two.b.until(lambda: store.server_id != old)
        assert (await board.closed())[0] == 1001
    row = two.a.store.job(sent)
    assert row is not None
    assert row.status == "lost"


async def test_boards_of_a_server_that_came_and_went_are_offline_without_a_line(pair: Two, caplog):
    await pair.enrol("lab-1")
    board = pair.a.server.registry.by_name["lab-1"]
    for _ in range(2):  # late messages name it again
        board.remote_state = RemoteBoardState("0123456789abcdef", 1, "idle", 0.0)
        for _ in range(2):
            await others_of(pair.a)._send_heartbeat()
        assert board.remote_state is None
    assert "is dead" not in caplog.text
