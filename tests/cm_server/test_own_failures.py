"""What fails in the server itself is its own: it breaks no link, and the peers get a sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from cloudmanager.protocol import frames, wire
from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup
from cm_server.installs.content_store import Content
from cm_server.rate_limits import RateLimiter

from .dispatching import Rig
from .pairs import run
from .peers import FakeBoard, FakeCaller, Service, running_service


@pytest.fixture(autouse=True)
def every_failure_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests have failures of the same kinds."""
    monkeypatch.setattr(cleanup, "_failures", RateLimiter(1000))


def fail(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/path")


class FailingTail(list[bytes]):
    add = staticmethod(fail)


class FailingTransfer:
    on_chunk = on_bytes_forwarded = staticmethod(fail)


@pytest.mark.parametrize("kind", ["plain", "tls", "mac"])
@pytest.mark.parametrize("where", ["sample", "output", "file"])
async def test_failure_at_a_boards_message_leaves_its_link_open(
    service: Service, caplog, where: str, kind: str
):
    (lab,) = service.enrol("lab-1", plain=kind == "mac")
    service.server.dispatch.board_messages.on_emit = fail
    async with (
        await FakeBoard.join(service, lab, tls=kind == "tls", mac=kind == "mac") as board,
        await FakeCaller.join(service) as caller,
    ):
        (number,) = await caller.submit("lab-1")
        await run(board)
        job = service.server.dispatch.jobs[number]
        if where == "sample":
            await board.send(wire.EMIT, struct.pack(">Q", 1) + b'{"t": 1}')
        elif where == "output":
            job.output_tail = FailingTail()  # type: ignore[assignment]
            await board.send(wire.OUTPUT, b"x", job=number)
        else:
            job.transfer = FailingTransfer()
            await board.send(wire.CHUNK, b"x", job=number)
        if where != "sample":
            assert await caller.ending(number) == ("error", cleanup.FAILED)
            assert (await board.next()).op == wire.INTERRUPT
        await board.end(number, rest=b"1")
        if where == "sample":
            assert await caller.ending(number) == ("ok", "1")
        (number,) = await caller.submit("lab-1")
        await run(board)
        await board.end(number, rest=b"2")
        assert await caller.ending(number) == ("ok", "2")
    assert "a message of lab-1 failed" in caplog.text
    assert "broke the protocol" not in caplog.text


async def test_failure_at_a_callers_message_is_the_reply(service: Service, caplog):
    (lab,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, lab) as board,
        await FakeCaller.join(service) as caller,
    ):
        (number,) = await caller.submit("lab-1")
        await run(board)
        original = service.server.dispatch.submit
        service.server.dispatch.submit = fail  # type: ignore[method-assign]
        service.server.installs.content_store.start_upload = fail  # type: ignore[method-assign]
        for ref, op, body in (
            (901, wire.REQUEST, {"verb": "offer", "sha256": "0" * 64, "size": 1}),
            (902, wire.SUBMIT, {"target": "lab-1"}),
        ):
            text = json.dumps(body).encode()
            head = struct.pack(">I", len(text)) if op == wire.SUBMIT else b""
            await caller.send(op, head + text, job=ref)
            reply = await caller.next()
            error = {"error": "ServerError", "args": [cleanup.FAILED]}
            assert (reply.op, reply.job, wire.read_json(reply.payload)) == (wire.REPLY, ref, error)
        service.server.dispatch.submit = original  # type: ignore[method-assign]
        await board.end(number, rest=b"1")
        assert await caller.ending(number) == ("ok", "1")
        assert "reply" in await caller.ask("status")
    assert "/secret/path" in caplog.text


async def test_failure_while_a_cell_is_started_is_the_reply(service: Service):
    (lab,) = service.enrol("lab-1")
    service.server.dispatch.create_jobs = fail  # type: ignore[method-assign]
    async with await FakeBoard.join(service, lab), await FakeCaller.join(service) as caller:
        await caller.send(wire.SUBMIT, wire.pack_submit(7, {"target": "lab-1"}, b"1")[6:], job=7)
        reply = await caller.next()
        assert wire.read_json(reply.payload)["args"] == [cleanup.FAILED]


class Unsendable:
    """Files that cannot be sent because the server fails."""

    reads_files = replaces_starter = is_local = False
    part = "files"
    start = staticmethod(fail)


def test_job_that_the_server_cannot_send_ends_and_the_others_run():
    rig = Rig()
    link = rig.connect()
    rig.board().client_parts = frozenset(("run", "files"))
    (bad,) = rig.run(files=Unsendable())
    assert rig.caller.ending(bad) == ("error", cleanup.FAILED)
    assert link.closed == [frames.CLOSE_INTERNAL_ERROR]
    rig.connect()
    (good,) = rig.run()
    assert good.state == "running"


def test_disk_that_is_full_in_the_middle_of_a_write_is_an_error(tmp_path: Path):
    data = bytes(3000)
    content = Content(hashlib.sha256(data).hexdigest(), len(data), tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # writes a part, then fails
    try:
        with pytest.raises(ServerError, match="the server cannot store the file: File too large"):
            content.write(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_content_without_a_folder_is_an_error_of_the_server(tmp_path: Path):
    with pytest.raises(ServerError, match=r"cannot store the file: No such file or directory\.$"):
        Content("0" * 64, 1, tmp_path / "gone")


async def test_file_that_the_disk_has_lost_ends_its_job(service: Service):
    (lab,) = service.enrol("lab-1")
    data = b"x" * 5000
    async with (
        await FakeBoard.join(service, lab, parts=["run", "files"]) as board,
        await FakeCaller.join(service) as caller,
    ):
        digest = hashlib.sha256(data).hexdigest()
        upload = (await caller.ask("offer", sha256=digest, size=len(data)))["reply"]
        await caller.send(wire.CONTENT, struct.pack(">I", upload) + data, job=78)
        assert (await caller.next()).op == wire.REPLY
        (content,) = service.server.installs.content_store._contents.values()
        os.ftruncate(content._file, 100)
        (number,) = await caller.submit("lab-1", acts=[["put", "/x", digest]])
        assert (await board.next()).op == wire.FILE
        await board.send(
            wire.CHUNK, struct.pack(">I", 0) + bytes(32), job=number, flags=wire.RESUME_STATE
        )
        status, why = await caller.ending(number)
        assert (status, "cannot read the file back" in why) == ("error", True)
        assert (await board.next()).op == wire.INTERRUPT
        assert service.state("lab-1") == "busy"
        await board.end(number, "interrupted")
        await service.until(lambda: service.state("lab-1") == "idle")


def highest_descriptor() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())


async def join_many_callers(service: Service) -> None:
    async with contextlib.AsyncExitStack() as callers:
        for _ in range(100):
            await callers.enter_async_context(await FakeCaller.join(service))


async def test_connections_leave_descriptors_to_the_server_itself(tmp_path: Path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A quarter is the server's; what other tests have left open is below.
    limit = (highest_descriptor() + 30) * 4 // 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        async with running_service(tmp_path) as service, contextlib.AsyncExitStack() as stack:
            caller = await stack.enter_async_context(await FakeCaller.join(service))
            with pytest.raises(InvalidStatus) as refusal:
                await join_many_callers(service)
            response = refusal.value.response
            assert response.status_code == 503
            assert response.headers["Cm-Refused"].startswith("the server has too many connections")
            assert (await caller.ask("offer", sha256="0" * 64, size=1))["reply"]
            assert caplog.text.count("connections are refused") == 1
            async with await FakeCaller.join(service) as after:
                assert "reply" in await after.ask("status")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
