"""Hostile JSON: very deep, very large, malformed, or with invalid numbers."""

from __future__ import annotations

import pytest

from cloudmanager.protocol import wire
from tests.cm_server.peers import FakeBoard, FakeCaller, Service

BOMBS = {
    "depth": b"[" * 50_000,
    "depth of objects": b'{"a":' * 10_000,
    "digits": b'{"verb": "job", "job": ' + b"9" * 60_000 + b"}",
    "no object": b"[1]",
    "no JSON": b"{'verb': 1}",
    "not UTF-8": b'{"verb": "\xff"}',
    "UTF-16": '{"verb": "status"}'.encode("utf-16"),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_hostile_json_closes_only_its_link(service: Service, bomb: bytes):
    async with await FakeCaller.join(service) as other:
        async with await FakeCaller.join(service) as caller:
            await caller.send(wire.REQUEST, bomb, job=1)
            assert (await caller.closed())[0] == 1002
        async with await FakeBoard.dial(service, "/board") as unauthenticated:
            await unauthenticated.send(wire.HELLO, bomb)
            assert (await unauthenticated.closed())[0] == 1002
        assert (await other.ask("status"))["reply"]["boards"] == 0


@pytest.mark.parametrize(
    "head",
    [
        '{"target": "lab-1", "timeout": NaN}',
        '{"target": "lab-1", "timeout": Infinity}',
        '{"target": "lab-1", "timeout": 1e999}',
        '{"target": "lab-1", "timeout": -1}',
        '{"target": "lab-1", "timeout": "1"}',
        '{"target": "lab-1", "wait": NaN}',
        '{"target": "lab-1", "timeout": 18446744073709551616}',
        '{"target": "lab-1", "target": "vault-1"}',
    ],
)
async def test_invalid_numbers_are_refused(service: Service, head: str):
    service.enrol("lab-1")
    async with await FakeCaller.join(service) as caller:
        size = len(head.encode()).to_bytes(4, "big")
        await caller.send(wire.SUBMIT, size + head.encode() + b"1", job=1)
        assert "error" in wire.read_json((await caller.next()).payload)
        for number in ("18446744073709551616", "-1", "1e3", "NaN", "null", "true"):
            await caller.send(wire.REQUEST, f'{{"verb": "job", "job": {number}}}'.encode(), job=2)
            assert "error" in wire.read_json((await caller.next()).payload)
        assert service.server.dispatch.jobs == {}
