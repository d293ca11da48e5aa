"""Values of peers that a database refuses: they must not stop what others write."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudmanager.protocol import wire
from tests.engines import Postgres

from .pairs import run
from .peers import FACTS, FakeBoard, FakeCaller, Service, running_service

NUL = "a\0b"
#: In JSON, half of a character that needs two.
HALF = json.loads('"a\\ud800b"')


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    store = None
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        store = postgres.new()
    async with running_service(tmp_path, store=store) as service:
        yield service


async def test_error_of_a_cell_that_cannot_be_stored_stops_no_other_write(
    service: Service, caplog: pytest.LogCaptureFixture
):
    hostile, good = service.enrol("lab-1", "lab-2")
    async with (
        await FakeBoard.join(service, hostile) as board,
        await FakeBoard.join(service, good) as other,
        await FakeCaller.join(service) as caller,
    ):
        (first,) = await caller.submit("lab-1")
        await run(board)
        await board.end(first, "error", rest=f"Traceback\nValueError: {NUL}".encode())
        assert await caller.ending(first) == ("error", f"Traceback\nValueError: {NUL}")
        for _ in range(2):
            (second,) = await caller.submit("lab-2")
            await run(other)
            await other.end(second, rest=b"1")
            assert await caller.ending(second) == ("ok", "1")
    row = service.store.job(first)
    assert row is not None
    assert (row.status, row.error) == ("error", "ValueError: a\N{REPLACEMENT CHARACTER}b")
    assert "cannot be written" not in caplog.text


@pytest.mark.parametrize("text", [NUL, HALF], ids=["NUL", "surrogate"])
async def test_reported_values_that_cannot_be_stored_stop_no_other_write(
    service: Service, caplog: pytest.LogCaptureFixture, text: str
):
    hostile, good = service.enrol("lab-1", "lab-2")
    async with (
        await FakeCaller.join(service) as first_caller,
        await FakeCaller.join(service) as caller,
    ):
        async with await FakeBoard.join(service, hostile) as board:
            (first,) = await first_caller.submit("lab-1")
            await run(board)
        last = {"job": f"{first:08x}", "status": 1, "error": f"ValueError: {text}", "dropped": 0}
        facts = {**FACTS, "machine": text, "program": text, text: text}
        async with (
            await FakeBoard.join(service, hostile, last=last, facts=facts) as board,
            await FakeBoard.join(service, good) as other,
        ):
            await board.send(
                wire.LOG, struct.pack(">I", 2**32 - 1) + text.encode("utf-8", "replace")
            )
            await board.send(wire.LOG, struct.pack(">I", 2**32 - 1) + b"\xed\xa0\x80\0")
            await board.send(wire.EMIT, struct.pack(">Q", 1) + json.dumps({"t": text}).encode())
            await board.send(wire.PROGRAM, text.encode("utf-8", "replace"))
            await other.send(wire.LOG, struct.pack(">I", 0) + b"hello\n")
            (second,) = await caller.submit("lab-2")
            await run(other)
            await other.end(second, rest=b"1")
            assert await caller.ending(second) == ("ok", "1")
            logs = await caller.ask("logs", target="lab-2")
            assert [text for *_, text in logs["reply"]["logs"]] == ["hello\n"]
            label = await caller.ask("label", target="lab-2", labels={"room": text})
            assert "error" in label
    row = service.store.job(second)
    assert row is not None
    assert row.status == "ok"
    assert "cannot be written" not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "body",
    [{"after": 2**63}, {"after": -1}, {"after": 10**30}, {"since": 10**400}, {"since": 1e300}],
    ids=["after0", "after1", "after2", "since0", "since1"],
)
async def test_impossible_place_in_a_log_is_refused(service: Service, body: dict[str, float]):
    async with await FakeCaller.join(service) as caller:
        reply = await caller.ask("logs", **body)
        assert reply["error"] == "ServerError"
        assert "since must be a time" in reply["args"][0]
        assert (await caller.ask("logs", after=2**63 - 1))["reply"]["logs"] == []
