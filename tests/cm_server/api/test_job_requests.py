"""File operations and package jobs through a server: refusals, and messages to board and caller."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cm_server.limits import Limits
from tests.cm_server.peers import FakeBoard, FakeCaller, Service

DATA = b"print(1)"
SHA = hashlib.sha256(DATA).hexdigest()
STARTER = (Path(__file__).parents[3] / "mpy_client/main.py").read_bytes()
STARTER_SHA = hashlib.sha256(STARTER).hexdigest()
PARTS = ["run", "files"]


async def upload_content(caller: FakeCaller, data: bytes) -> None:
    """Upload a content."""
    digest = hashlib.sha256(data).hexdigest()
    upload = (await caller.ask("offer", sha256=digest, size=len(data)))["reply"]
    for at in range(0, len(data), 1000):
        piece = upload.to_bytes(4, "big") + data[at : at + 1000]
        await caller.send(wire.CONTENT, piece, job=5)
        reply = await caller.next()
        assert (reply.op, reply.job) == (wire.REPLY, 5)
        assert wire.read_json(reply.payload) == {"reply": min(at + 1000, len(data))}


async def refusal(caller: FakeCaller, acts: Any) -> str:
    await caller.socket.send(wire.pack_submit(1, {"target": "lab-1", "acts": acts}, b""))
    reply = await caller.next()
    assert reply.op == wire.REPLY
    return str(wire.read_json(reply.payload)["args"][0])


@pytest.fixture
async def lab(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity, parts=PARTS) as board,
        await FakeCaller.join(service) as caller,
    ):
        yield service, board, caller


async def test_content_is_uploaded_once_and_sent_with_its_size(lab):
    service, board, caller = lab
    await upload_content(caller, DATA)
    (job,) = await caller.submit(
        "lab-1", b"", acts=[["makedirs", "/lib"], ["put", "/lib/a.py", SHA]]
    )
    order = await board.next()
    assert (order.op, order.job) == (wire.FILE, job)
    step, acts = json.loads(order.payload[8:])
    assert 4 * step == Limits.window_bytes
    assert acts == [["makedirs", "/lib"], ["put", "/lib/a.py", len(DATA), SHA]]
    await board.send(wire.CHUNK, bytes(36), job=job, flags=wire.RESUME_STATE)
    assert await board.next() == (wire.DATA, wire.RESTART_FILE, job, DATA)
    await board.end(job, rest=b"[None, 8]")
    assert await caller.ending(job) == ("ok", "[None, 8]")
    assert (await caller.ask("offer", sha256=SHA, size=len(DATA)))["reply"] == 0
    row = next(row for row in service.audited() if row.verb == "submit")
    assert row.detail == "makedirs /lib; put /lib/a.py"


async def test_content_of_another_token_is_not_sent(lab):
    """Knowing the SHA-256 of a content is not having it."""
    service, board, caller = lab
    await upload_content(caller, DATA)
    token = service.add_token("operator")
    async with await FakeCaller.join(service, token) as other:
        assert "was not uploaded" in await refusal(other, [["put", "/stolen", SHA]])
        sent = {"./x.py": {"x.py": SHA}}
        reply = await other.ask("plan", target="lab-1", wanted=["./x.py"], sent=sent)
        assert "was not sent to the server" in reply["args"][0]
    async with await FakeCaller.join(service, token) as other:
        await upload_content(other, DATA)  # every token has to send it itself
        (job,) = await other.submit("lab-1", b"", acts=[["put", "/a", SHA]])
        assert (await board.next()).job == job
        await board.end(job, rest=b"[8]")
        assert await other.ending(job) == ("ok", "[8]")


async def test_content_may_be_used_by_other_links_of_its_token(lab):
    service, board, caller = lab
    await upload_content(caller, DATA)
    async with await FakeCaller.join(service) as again:
        assert (await again.ask("offer", sha256=SHA, size=len(DATA)))["reply"] == 0
        (job,) = await again.submit("lab-1", b"", acts=[["put", "/a", SHA]])
        assert (await board.next()).job == job
        await board.end(job, rest=b"[8]")


@pytest.mark.parametrize(
    ("acts", "why"),
    [
        (None, "1 to 500 operations"),
        ([], "1 to 500 operations"),
        ([["ls", "/", True]] * 501, "1 to 500 operations"),
        (["ls"], "unknown or malformed file operation"),
        ([["system", "/", "rm"]], "unknown or malformed file operation"),
        ([["ls", "/"]], "unknown or malformed file operation"),
        ([["ls", "/", 1]], "unknown or malformed file operation"),
        ([["put", "/a", 3]], "unknown or malformed file operation"),
        ([["stat", "a"]], "is not a path on a board"),
        ([["stat", "/a/../b"]], "is not a path on a board"),
        ([["stat", "//a"]], "is not a path on a board"),
        ([["stat", "/a/"]], "is not a path on a board"),
        ([["stat", "/a\0b"]], "is not a path on a board"),
        ([["stat", "/a\ud800"]], "is not a path on a board"),
        ([["stat", "/" + "a" * 2000]], "is not a path on a board"),
        ([["put", "/a", SHA]], "was not uploaded"),
        ([["get", "/a" + "b" * 900]] * 80, "at most 65536 bytes"),
        ([["put", "/cm.json", SHA]], "without it the board could not connect"),
        ([["put", "/CM.json", SHA]], "without it the board could not connect"),
        ([["put", "/lib/cm/link.mpy", SHA]], "without it the board could not connect"),
        ([["rm", "/", True]], "without it the board could not connect"),
        ([["rm", "/lib", True]], "without it the board could not connect"),
        ([["rename", "/lib", "/old"]], "without it the board could not connect"),
        ([["rename", "/x", "/cm.json"]], "without it the board could not connect"),
    ],
)
async def test_invalid_file_operations_are_refused(lab, acts, why):
    _, _, caller = lab
    assert why in await refusal(caller, acts)


async def test_audit_row_of_very_long_paths_is_short(lab):
    service, _, caller = lab
    await caller.submit("lab-1", b"", acts=[["stat", "/" + "x" * 900]] * 20)
    row = next(row for row in service.audited() if row.verb == "submit")
    assert len(row.detail) <= Limits.audit_chars


async def test_put_and_get_in_one_job_are_refused(lab):
    _, _, caller = lab
    await upload_content(caller, DATA)
    assert "either put or get" in await refusal(caller, [["put", "/a", SHA], ["get", "/b"]])


async def test_viewer_may_not_list_files(service: Service):
    service.enrol("lab-1")
    async with await FakeCaller.join(service, service.add_token("viewer")) as caller:
        assert await refusal(caller, [["ls", "/", False]]) == "operator"


async def test_board_without_the_files_part_receives_no_file_job(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity) as board,
        await FakeCaller.join(service) as caller,
    ):
        (job,) = await caller.submit("lab-1", b"", acts=[["stat", "/"]])
        assert await caller.ending(job) == (
            "error",
            "its client lacks the part for files (files.mpy)",
        )
        (job,) = await caller.submit("lab-1")  # and it goes on with cells
        assert (await board.next()).op == wire.EXEC


@pytest.mark.parametrize(
    ("act", "parts", "well"),
    [
        (["put", "/main.py", SHA], ["boot"], False),
        (["put", "/Main.py", SHA], ["boot"], False),  # FAT ignores case
        (["rename", "/main.py", "/old.py"], ["boot"], False),
        (["rename", "/new.py", "/main.py"], ["boot"], False),
        (["rm", "/main.py", False], ["boot"], False),
        (["put", "/app.py", SHA], ["boot"], True),
        (["stat", "/main.py"], ["boot"], True),
        (["put", "/boot.py", SHA], ["boot"], False),
        (["put", "/main.py", STARTER_SHA], ["boot"], False),
        (["put", "/main.py", SHA], ["boot", "unix"], False),
        (["put", "/main.py", SHA], [], True),  # on a bridge, it is the user's
    ],
)
async def test_files_that_start_the_client_cannot_be_replaced(service: Service, act, parts, well):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity, parts=[*PARTS, *parts]) as board,
        await FakeCaller.join(service) as caller,
    ):
        for data in (DATA, STARTER):
            await upload_content(caller, data)
        (job,) = await caller.submit("lab-1", b"", acts=[act])
        if well:
            assert (await board.next()).op == wire.FILE
        else:
            status, why = await caller.ending(job)
            assert (status, "own program at /app.py" in why) == ("error", True)


async def test_get_is_acknowledged_when_the_caller_has_its_bytes(lab):
    _, board, caller = lab
    (job,) = await caller.submit("lab-1", b"", acts=[["get", "/a"]])
    await board.next()
    await board.send(wire.CHUNK, job=job, flags=wire.RESUME_STATE)
    for _ in range(20):
        await board.send(wire.CHUNK, bytes(1000), job=job)
    came = 0
    while came < 20_000:
        event = await caller.event()
        assert event.op == wire.CHUNK
        came += len(event.payload)
    acknowledged = await board.next()
    assert acknowledged.op == wire.DATA
    assert wire.read_byte_count(acknowledged) >= Limits.window_bytes // 4
    await board.end(job, rest=b"[]")
    assert (await caller.ending(job))[0] == "ok"


async def test_get_is_interrupted_when_its_caller_disconnects(lab):
    service, board, _ = lab
    async with await FakeCaller.join(service) as other:
        (job,) = await other.submit("lab-1", b"", acts=[["get", "/a"]])
        await board.next()
    assert await board.next() == (wire.INTERRUPT, 0, job, b"")


async def test_put_continues_when_its_caller_disconnects(lab):
    service, board, _ = lab
    async with await FakeCaller.join(service) as other:
        await upload_content(other, DATA)
        (job,) = await other.submit("lab-1", b"", acts=[["put", "/a", SHA]])
        await board.next()
    await board.send(wire.CHUNK, bytes(36), job=job, flags=wire.RESUME_STATE)
    assert (await board.next()).payload == DATA


async def test_slow_caller_does_not_delay_others_or_fill_memory(service: Service):
    """A get whose caller does not read stops at the window; another caller's cell runs."""
    one, two = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, one, parts=PARTS) as board,
        await FakeBoard.join(service, two) as other,
        await FakeCaller.join(service) as caller,
        await FakeCaller.join(service) as brisk,
    ):
        (job,) = await caller.submit("lab-1", b"", acts=[["get", "/a"]])
        await board.next()
        caller.socket.transport.pause_reading()
        granted = sent = 0
        while sent - granted <= Limits.window_bytes:  # as a board does
            await board.send(wire.CHUNK, bytes(1000), job=job)
            sent += 1000
            if sent - granted > Limits.window_bytes // 2 and sent < 30_000_000:
                try:
                    granted = wire.read_byte_count(await asyncio.wait_for(board.next(), 0.2))
                except TimeoutError:
                    break
        (cell,) = await brisk.submit("lab-2")
        await other.next()
        await other.end(cell, rest=b"1")
        assert await brisk.ending(cell) == ("ok", "1")
        (conversation,) = [each for each in service.callers if each._outbox.pending_bytes > 1000]
        assert conversation._outbox.pending_bytes <= 2 * Limits.window_bytes
        caller.socket.transport.resume_reading()


#: The results of the first operations on a board without packages.
EMPTY = ([4096, 4096, 9, 9], None, None, None, None)


async def give_answers(board: FakeBoard, job: int, *answers: Any) -> None:
    for answer in answers:
        payload = json.dumps(answer).encode()
        await board.send(wire.CHUNK, payload, job=job, flags=wire.OP_RESULT)


async def test_package_job_is_one_job_in_steps(lab):
    service, board, caller = lab
    (job,) = await caller.submit("lab-1", b"", packages={})
    order = await board.next()
    step, acts, more = json.loads(order.payload[8:])
    assert (order.op, acts[0], more) == (wire.FILE, ["statvfs", "/"], 1)
    await give_answers(board, job, *EMPTY)
    assert json.loads((await board.next()).payload)[1] == [["statvfs", "/"]]
    await give_answers(board, job, [4096, 4096, 9, 9])
    assert json.loads((await board.next()).payload) == [step, []]
    await board.end(job)
    value = await caller.event()
    assert (value.op, b"'packages': {}" in value.payload) == (wire.VALUE, True)
    assert await caller.ending(job) == ("ok", "")
    row = service.audited()[-1]
    assert (row.verb, row.first_job, row.last_job) == ("packages", job, job)


async def test_refused_package_job_ends_and_frees_the_board(lab):
    _, board, caller = lab
    (job,) = await caller.submit("lab-1", b"", packages={"remove": ["nope"]})
    assert json.loads((await board.next()).payload[8:])[1][0] == ["finish", "/.cm/journal"]
    await give_answers(board, job, None, *EMPTY)
    why = "PackageError: no package is called nope: the board has none"
    assert await caller.ending(job) == ("error", why)
    assert json.loads((await board.next()).payload)[1] == []
    (behind,) = await caller.submit("lab-1", b"2")
    await board.end(job)
    assert (await board.next()).job == behind
    await board.end(behind)
    assert await caller.ending(behind) == ("ok", "")


@pytest.mark.parametrize(
    "asked", [None, [], {"plan": 1}, {"plan": "1"}, {"remove": []}, {"remove": [1]}], ids=repr
)
async def test_invalid_package_job_is_refused(lab, asked):
    _, _, caller = lab
    head = {"target": "lab-1", "packages": asked}
    await caller.socket.send(wire.pack_submit(1, head, b""))
    reply = await caller.next()
    assert (reply.op, wire.read_json(reply.payload)["error"]) == (wire.REPLY, "ServerError")
