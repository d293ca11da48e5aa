"""A token's permission is checked when a job starts and whenever a token or board changes."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from cloudmanager.protocol import frames, wire
from tests.cm_server.dispatching import Rig
from tests.cm_server.pairs import Two, run
from tests.cm_server.peers import FakeBoard, FakeCaller, Service, running_service

LATER = 604_800.0  # seconds that a job may wait for its board


class Lab:
    """A server with a connected board (lab-1), an offline one (lab-2), and an administrator."""

    def __init__(self, service: Service, owner: FakeCaller, board: FakeBoard) -> None:
        self.service, self.owner, self.board = service, owner, board
        self.next = 0

    async def operator(self, target: str = "lab-*", expires: float | None = None) -> FakeCaller:
        token = self.service.add_token("operator", target, name="leaver", expires=expires)
        return await FakeCaller.join(self.service, token)


@pytest.fixture
async def lab(tmp_path: Path):
    async with running_service(tmp_path) as service:
        (identity, _) = service.enrol("lab-1", "lab-2")
        async with (
            await FakeBoard.join(service, identity) as board,
            await FakeCaller.join(service) as owner,
        ):
            yield Lab(service, owner, board)


async def nothing_more(board: FakeBoard) -> None:
    """Check that the board receives no message."""
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(board.socket.recv(), 0.05)


@pytest.mark.parametrize("fresh", [False, True])
async def test_waiting_jobs_of_a_revoked_token_never_start(lab: Lab, fresh: bool):
    async with await lab.operator() as caller:
        (running,) = await caller.submit("lab-1")
        assert (await lab.board.next()).op == wire.EXEC
        (queued,) = await caller.submit("lab-1", b"queued", fresh=fresh)
        (waiting,) = await caller.submit("lab-2", b"a week later", wait=LATER, fresh=fresh)
        await lab.owner.ask("token-revoke", name="leaver")
        for job in (queued, waiting):
            status, why = await caller.ending(job)
            assert status == "error"
            assert why.startswith("the token 'leaver' was revoked on ")
            assert why.endswith("; it did not run")
        assert (await caller.closed())[0] == frames.CLOSE_REVOKED
    await lab.board.end(running, rest=b"1")
    await nothing_more(lab.board)
    row = lab.service.store.job(running)
    assert row is not None
    assert row.status == "ok", "the running job continued to its end"
    (_, identity) = lab.service.enrol("lab-1", "lab-2")
    async with await FakeBoard.join(lab.service, identity) as late:
        await nothing_more(late)


async def test_waiting_jobs_end_when_their_token_expires(lab: Lab):
    async with await lab.operator(expires=0.3) as caller:
        await caller.submit("lab-1")
        (waiting,) = await caller.submit("lab-2", wait=LATER)
        status, why = await caller.ending(waiting)
        assert status == "error"
        assert why.startswith("the token 'leaver' expired on ")
        assert (await caller.closed())[0] == frames.CLOSE_REVOKED


async def test_expiry_is_checked_at_each_start(lab: Lab, monkeypatch):
    async with await lab.operator(expires=3000) as caller:
        (running,) = await caller.submit("lab-1")
        assert (await lab.board.next()).op == wire.EXEC
        (queued,) = await caller.submit("lab-1")
        tokens = lab.service.server.tokens
        monkeypatch.setattr(tokens, "_clock", lambda: time.time() + 4000)
        await lab.board.end(running, rest=b"1")
        status, why = await caller.ending(queued)
        assert (status, "expired" in why) == ("error", True)
    await nothing_more(lab.board)


# The reply to "interrupt" is sent at once; the others by a task, which checks the token again.
@pytest.mark.parametrize("verb", ["label", "boards", "interrupt"])
async def test_expiry_is_checked_at_each_request(lab: Lab, monkeypatch, verb: str):
    async with await lab.operator(expires=3000) as caller:
        assert (await caller.ask("boards"))["reply"]
        monkeypatch.setattr(lab.service.server.tokens, "_clock", lambda: time.time() + 4000)
        body = {"verb": verb, "target": "lab-1", "labels": {"a": "b"}, "jobs": []}
        await caller.send(wire.REQUEST, json.dumps(body).encode())
        with pytest.raises(ConnectionClosed):  # before any reply
            await caller.next()
        code, reason = await caller.closed()
        assert (code, "expired" in reason) == (frames.CLOSE_REVOKED, True)
    await lab.owner.ask("label", target="lab-1", labels={"z": "1"})  # after what was asked before
    assert lab.service.server.registry.by_name["lab-1"].labels == {"z": "1"}


@pytest.mark.parametrize("how", ["renamed", "relabelled"])
async def test_job_for_a_board_that_became_unreachable_does_not_start(lab: Lab, how: str):
    await lab.owner.ask("label", target="lab-1", labels={"room": "lab"})
    async with await lab.operator("lab-*&room=lab") as caller:
        (running,) = await caller.submit("lab-1")
        assert (await lab.board.next()).op == wire.EXEC
        (queued,) = await caller.submit("lab-1")
        if how == "renamed":
            await lab.owner.ask("rename", target="lab-1", name="prod-3")
        else:
            await lab.owner.ask("label", target="lab-1", labels={"room": "vault"})
        assert await caller.ending(queued) == (
            "error",
            "lab-1 is no longer within reach of your token; it did not run",
        )
        await lab.board.end(running, output=b"secret", rest=b"1")
        status, why = await caller.ending(running)
        if status == "lost":  # its caller was detached before it ended
            assert (
                why
                == "lab-1 is no longer within reach of your token; what has started there continues"
            )
    await nothing_more(lab.board)


async def test_caller_is_detached_from_a_cell_on_an_unreachable_board(lab: Lab):
    async with await lab.operator() as caller:
        (job,) = await caller.submit("lab-1", answers=True)
        assert (await lab.board.next()).op == wire.EXEC
        await lab.owner.ask("rename", target="lab-1", name="prod-3")
        assert (await caller.ending(job))[0] == "lost"
        await lab.board.send(wire.OUTPUT, b"secret", job=job)
        await lab.board.send(wire.INPUT, b"? ", job=job)
        answer = await lab.board.next()
        assert (answer.op, answer.flags) == (wire.ANSWER, wire.INPUT_EOF)
        assert (await caller.ask("boards"))[
            "reply"
        ] != []  # this reply is the next message: there is no output
        await lab.board.end(job, rest=b"1")
        await lab.service.until(lambda: job not in lab.service.server.dispatch.jobs)
        row = lab.service.store.job(job)
        assert row is not None
        assert row.status == "ok"


async def test_board_renamed_and_renamed_back_gets_its_job(lab: Lab):
    async with await lab.operator() as caller:
        board = lab.service.server.registry.by_name["lab-2"]
        (job,) = await caller.submit("lab-2", wait=LATER)
        lab.service.server.registry.rename(board, "prod-3")
        lab.service.server.registry.rename(board, "lab-2")
        (_, identity) = lab.service.enrol("lab-1", "lab-2")
        async with await FakeBoard.join(lab.service, identity) as late:
            assert (await late.next()).job == job


async def test_board_with_a_reused_name_gets_no_earlier_jobs(lab: Lab):
    async with await lab.operator("lab-2") as caller:
        (job,) = await caller.submit("lab-2", wait=LATER)
        await lab.owner.ask("rename", target="lab-2", name="prod-3")
        await lab.owner.ask("rename", target="lab-1", name="lab-2")
        assert (await caller.ending(job))[0] == "error"
    await nothing_more(lab.board)


async def test_new_token_with_a_revoked_ones_name_does_not_permit_its_jobs(lab: Lab):
    async with await lab.operator() as caller:
        (job,) = await caller.submit("lab-2", wait=LATER)
        dispatch = lab.service.server.dispatch
        dispatch.jobs[job].observer = None
        await lab.owner.ask("token-revoke", name="leaver")
        lab.service.add_token("operator", name="leaver")
        assert job not in dispatch.jobs


async def test_fresh_cell_of_a_token_revoked_during_the_reset_does_not_start(lab: Lab):
    async with await lab.operator() as caller:
        (job,) = await caller.submit("lab-1", fresh=True)
        assert (await lab.board.next()).op == wire.RESET
        await lab.owner.ask("token-revoke", name="leaver")
        assert (await caller.ending(job))[0] == "error"
    await lab.board.socket.close()
    (identity, _) = lab.service.enrol("lab-1", "lab-2")
    async with await FakeBoard.join(lab.service, identity, boot="b2") as again:
        await nothing_more(again)


async def test_job_queued_at_another_server_does_not_start_after_a_revocation(pair: Two):
    _, board = await pair.board_at_b()
    token = pair.a.add_token("operator", "lab-*", name="leaver")
    async with (
        board,
        await FakeCaller.join(pair.a) as owner,
        await FakeCaller.join(pair.a, token) as caller,
    ):
        (running,) = await caller.submit("lab-1")
        await run(board)
        await pair.seen(state="busy")
        (queued,) = await caller.submit("lab-1")
        await pair.b.until(lambda: queued in pair.b.server.dispatch.jobs)
        await owner.ask("token-revoke", name="leaver")
        await pair.b.until(lambda: queued not in pair.b.server.dispatch.jobs)
        await board.end(running, rest=b"1")
        await nothing_more(board)
        row = pair.b.store.job(queued)
        assert row is not None
        assert (row.status, "was revoked" in (row.error or "")) == ("error", True)


async def test_unknown_token_of_a_job_is_read_from_the_shared_store(pair: Two):
    """A token that another server has just created is looked up in the shared store."""
    _, board = await pair.board_at_b()
    async with board:
        pair.b.server.tokens._rows.clear()
        token = pair.a.add_token("operator", "lab-*", name="new")
        async with await FakeCaller.join(pair.a, token) as caller:
            (job,) = await caller.submit("lab-1")
            assert (await run(board)).job == job


def test_thousand_refused_jobs_do_not_exhaust_the_stack():
    rig = Rig()
    rig.connect()
    (first,) = rig.run()
    for _ in range(999):
        rig.run()
    rig.dispatch.scheduler.permission_check = lambda job: "" if job is first else "not any more"
    rig.end(first)
    assert not rig.dispatch.jobs
