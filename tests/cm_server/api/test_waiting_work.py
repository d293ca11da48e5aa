"""Work that waits, as the store keeps it: what is accepted, and that it is read as it was sent."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cloudmanager.protocol import wire
from cm_server.limits import Limits
from cm_server.packages.plan import InstallPlan, PlannedFile
from cm_server.packages.release import Release, ReleaseFile
from cm_server.packages.requirement import Requirement
from tests.cm_server.peers import FakeBoard, FakeCaller, Service, running_service

DATA = b"A = 1\n" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


async def refusal(caller: FakeCaller, code: bytes = b"1", **head: Any) -> str:
    """Submit work that waits and return why it is refused."""
    body = {"target": "lab-1", "when_online": True, **head}
    await caller.socket.send(wire.pack_submit(next(caller.refs), body, code))
    reply = await caller.next()
    assert reply.op == wire.REPLY, reply
    return str(wire.read_json(reply.payload)["args"][-1])


async def offer(caller: FakeCaller, data: bytes = DATA) -> None:
    """Upload a content."""
    upload = (await caller.ask("offer", sha256=DIGEST, size=len(data)))["reply"]
    await caller.send(wire.CONTENT, upload.to_bytes(4, "big") + data, job=78)
    await caller.next()


async def test_work_that_is_too_large_is_refused(tmp_path):
    async with running_service(tmp_path, Limits(waiting_work_bytes=500)) as service:
        service.enrol("lab-1")
        async with await FakeCaller.join(service) as caller:
            assert "may have at most 0 MiB; nothing waits" in await refusal(caller, b"x" * 600)
            await offer(caller)
            upload = {"acts": [["put", "/a.py", DIGEST]]}
            assert "nothing waits" in await refusal(caller, b"", upload=upload)
            assert (await caller.ask("jobs", waiting=True))["reply"] == []


@pytest.mark.parametrize(
    ("upload", "why"),
    [
        ([], "must be a JSON object"),
        ({}, "must have 1 to 2000 operations"),
        ({"acts": [["get", "/a"]]}, "makes folders and puts files, and nothing else"),
        ({"acts": [["rm", "/a", True]]}, "and nothing else"),
        ({"acts": [["put", "/lib/cm/run.mpy", DIGEST]]}, "belongs to the board's client"),
        ({"acts": [["put", "/a.py", "0" * 64]]}, "the content for /a.py was not uploaded"),
        ({"acts": [["put", "a.py", DIGEST]]}, "is not a path on a board"),
        ({"client": {}}, "a client is an object"),
        ({"client": {"../main.py": DIGEST}}, "a client is an object"),
        ({"client": {"run.mpy": "0" * 64}}, "was not uploaded"),
    ],
)
async def test_malformed_upload_is_refused(upload: Any, why: str, service: Service):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        assert why in await refusal(caller, b"", upload=upload)


async def test_content_of_another_token_is_not_there(service: Service):
    service.enrol("lab-1")
    token = service.add_token("operator", name="other")
    async with (
        await FakeCaller.join(service) as caller,
        await FakeCaller.join(service, token) as other,
    ):
        await offer(caller)
        upload = {"acts": [["put", "/a.py", DIGEST]]}
        assert "was not uploaded" in await refusal(other, b"", upload=upload)


async def test_upload_outlives_its_caller_and_the_cache_of_contents(service: Service):
    (identity,) = service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        await offer(caller)
        acts = [["makedirs", "/lib"], ["put", "/lib/a.py", DIGEST]]
        (number,) = await caller.submit("lab-1", b"", when_online=True, upload={"acts": acts})
    service.server.installs.content_store._contents.clear()
    async with await FakeBoard.join(service, identity, parts=["run", "files"]) as board:
        message = await board.next()
        assert (message.op, message.job) == (wire.FILE, number)
        await board.send(wire.CHUNK, b"[]", job=number, flags=wire.OP_RESULT)
        message = await board.next()
        assert message.flags == wire.NEXT_OPS
        ops = json.loads(message.payload)[1]
        assert ops == [["makedirs", "/lib"], ["put", "/lib/a.py", len(DATA), DIGEST]]
        await board.send(wire.CHUNK, b"null", job=number, flags=wire.OP_RESULT)
        empty = wire.pack(wire.CHUNK, bytes(36), job=number, flags=wire.RESUME_STATE)
        await board.socket.send(empty)
        received = b""
        while len(received) < len(DATA):
            received += (await board.next()).payload
        assert received == DATA


async def test_interrupt_and_wait_do_not_go_together_with_it(service: Service):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        assert "wait keeps the caller waiting" in await refusal(caller, wait=5)
        assert "at most 30 days" in await refusal(caller, expires=31 * 86400)
        assert "above 0" in await refusal(caller, expires=-1)
        assert "cannot be read by work that waits" in await refusal(
            caller, b"", acts=[["get", "/boot.py"]]
        )


def test_plan_is_read_as_it_was_written():
    requirement = Requirement("github", "acme/sht31", "v1.2")
    part = ReleaseFile("sht31.py", "https://x", "", "ab" * 32, 5)
    needs = (Requirement("index", "logging"),)
    release = Release(requirement, "1.2", (part,), needs, "refs/tags/v1.2", notes=("note",))
    files = {0: (PlannedFile("/lib/sht31.py", "ab" * 32, 5, "github:acme/sht31"),), 774: ()}
    plan = InstallPlan(("sht31",), "/lib", (release,), files, ("a note",), {"a": "b"})
    assert InstallPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
