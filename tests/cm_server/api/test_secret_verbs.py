"""Secrets: who may set them, what is checked, and that no reply and no log contains one."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.protocol import wire
from tests.cm_server.pairs import Two
from tests.cm_server.peers import FakeBoard, FakeCaller, Service, running_service

PASSWORD = "correct horse battery"


async def test_secret_is_listed_without_its_value_and_removed(service: Service):
    async with await FakeCaller.join(service) as caller:
        before = time.time()
        made = await caller.ask("secret-set", name="mqtt", value=PASSWORD, target="lab-*")
        assert {**made["reply"], "changed": 0} == {"name": "mqtt", "target": "lab-*", "changed": 0}
        await caller.ask("secret-set", name="wifi", value=PASSWORD)
        listed = (await caller.ask("secret-list"))["reply"]
        assert [(each["name"], each["target"]) for each in listed] == [
            ("mqtt", "lab-*"),
            ("wifi", "all"),
        ]
        assert all(before <= each["changed"] <= time.time() for each in listed)
        await caller.ask("secret-set", name="mqtt", value="another value")
        assert (await caller.ask("secret-remove", name="wifi")) == {"reply": "wifi"}
        (left,) = (await caller.ask("secret-list"))["reply"]
        assert (left["name"], left["target"]) == ("mqtt", "all")
        missing = await caller.ask("secret-remove", name="wifi")
        assert missing["args"] == ["there is no secret called 'wifi'; there are mqtt"]
    assert [row.detail for row in service.audited() if row.verb == "secret-set"] == [
        "mqtt",
        "wifi",
        "mqtt",
    ]
    assert PASSWORD not in repr(service.audited())
    assert PASSWORD not in repr(service.store.secret_rows.read())


@pytest.mark.limits(secrets=1, secret_bytes=64)
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"name": "a b", "value": PASSWORD}, "is not allowed here"),
        ({"name": 5, "value": PASSWORD}, "name and target must be text"),
        ({"name": "mqtt", "value": PASSWORD, "target": "lab-["}, ""),
        ({"name": "mqtt", "value": PASSWORD, "target": 5}, "name and target must be text"),
        ({"name": "mqtt"}, "a secret must be text"),
        ({"name": "mqtt", "value": ["hunter22"]}, "a secret must be text"),
        ({"name": "mqtt", "value": "hunter\0002"}, "a secret must be text"),
        ({"name": "mqtt", "value": "hun"}, "at least 4 characters, and 64 bytes at most"),
        ({"name": "mqtt", "value": "hunter22" * 9}, "at least 4 characters, and 64 bytes"),
        ({"name": "second", "value": PASSWORD}, "there are 1 secrets already"),
    ],
)
async def test_what_is_no_secret_is_refused(service: Service, body: dict[str, Any], error: str):
    async with await FakeCaller.join(service) as caller:
        await caller.ask("secret-set", name="first", value=PASSWORD)
        refused = await caller.ask("secret-set", **body)
        assert error in str(refused["args"])
        assert "hun" not in str(refused)
        assert len((await caller.ask("secret-list"))["reply"]) == 1
    assert "hun" not in repr(service.audited())


async def test_secret_survives_a_restart_in_a_private_file(tmp_path: Path):
    async with running_service(tmp_path) as service, await FakeCaller.join(service) as caller:
        await caller.ask("secret-set", name="mqtt", value=PASSWORD)
    assert (tmp_path / "server.db").stat().st_mode & 0o077 == 0
    async with running_service(tmp_path) as service:
        assert [row.value for row in service.store.secret_rows.read()] == [PASSWORD]


class SettingsBoard:
    """Carries out a job about settings as a board does, with its file in memory."""

    def __init__(self, link: FakeBoard, settings: bytes) -> None:
        self.link, self.settings = link, settings

    async def run_job(self) -> int:
        message = await self.link.next()
        assert message.op == wire.FILE
        job = message.job
        ops = json.loads(message.payload[8:])[1]
        while ops:
            ((name, path, *arguments),) = ops
            assert path == "/settings.json"
            await getattr(self, f"_{name}")(job, *arguments)
            message = await self.link.next()
            assert (message.op, message.flags) == (wire.DATA, wire.NEXT_OPS)
            ops = json.loads(message.payload)[1]
        await self.link.end(job, rest=b"None")
        return job

    async def _get(self, job: int) -> None:
        await self.link.send(wire.CHUNK, self.settings, job=job)
        digest = hashlib.sha256(self.settings).hexdigest()
        await self._answer(job, [len(self.settings), digest])

    async def _put(self, job: int, size: int, digest: str) -> None:
        state = struct.pack(">I32s", 0, bytes(32))
        await self.link.send(wire.CHUNK, state, job=job, flags=wire.RESUME_STATE)
        self.settings = b""
        while len(self.settings) < size:
            self.settings += (await self.link.next()).payload
        assert hashlib.sha256(self.settings).hexdigest() == digest
        await self._answer(job, size)

    async def _answer(self, job: int, result: Any) -> None:
        await self.link.send(wire.CHUNK, json.dumps(result).encode(), job=job, flags=wire.OP_RESULT)


async def test_board_of_another_server_gets_a_secret_and_its_caller_does_not(two: Two):
    _, link = await two.board_at_b(parts=["run", "files"])
    board = SettingsBoard(link, b'{"interval": 5}')
    async with link, await FakeCaller.join(two.a) as caller, await FakeCaller.join(two.b) as b:
        await b.ask("secret-set", name="mqtt", value=PASSWORD)
        change = json.dumps({"mqtt": {"secret": "mqtt"}})
        for request in ({"change": change}, {}):
            (job,) = await caller.submit("lab-1", b"", settings=request)
            assert await board.run_job() == job
            texts = [event.payload.decode() async for event in until_end(caller, job)]
            assert '"secret": "mqtt"' in "".join(texts)
            assert PASSWORD not in "".join(texts)
            shown = await caller.ask("job", job=job)
            assert PASSWORD not in str(shown)
        assert json.loads(board.settings) == {"interval": 5, "mqtt": PASSWORD}
    for service in (two.a, two.b):
        assert PASSWORD not in repr(service.store.audit_rows(1000))
    (row,) = [row for row in two.a.store.audit_rows(100) if row.verb == "settings" and row.detail]
    assert row.detail == "mqtt (secrets: mqtt)"


async def until_end(caller: FakeCaller, job: int):
    while True:
        event = await caller.event()
        if event.job == job:
            yield event
            if event.op in wire.JOB_END_OPS:
                return


async def test_viewer_may_not_read_settings(service: Service):
    (identity,) = service.enrol("lab-1")
    async with (
        await FakeBoard.join(service, identity, parts=["run", "files"]),
        await FakeCaller.join(service, service.add_token("viewer")) as viewer,
    ):
        body = {"target": "lab-1", "settings": {}}
        await viewer.socket.send(wire.pack_submit(5, body, b""))
        refused = wire.read_json((await viewer.next()).payload)
        assert refused["error"] == "NotAllowed"
