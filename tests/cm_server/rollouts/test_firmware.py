"""Firmware over the air: who may, which boards, which images."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloudmanager.protocol import wire
from cloudmanager.protocol.firmware_images import read_app_image
from cm_server.jobs.model import Board
from cm_server.rollouts import firmware_ops
from cm_server.store.rows import new_board_row
from tests.cm_server.peers import FakeBoard, FakeCaller, Identity, Service, running_service
from tests.firmware_images import MACHINE, app_image

MPY = 6 | 3 << 8
PARTS = ["run", "files", "trial", "ota"]
FACTS = {"platform": "esp32", "machine": MACHINE, "mpy": MPY, "slots": 2**20, "version": "1.28.0"}
IMAGE = app_image("1.29.0")


class Lab(NamedTuple):
    service: Service
    board: Identity

    def add_content(self, data: bytes, token: str) -> str:
        """Store a content as if a token had uploaded it; return its SHA-256."""
        content = self.service.server.installs.content_store.add_bytes(data)
        content.owners.add(hashlib.sha256(token.encode()).hexdigest())
        return content.digest

    async def submit(self, role: str, data: bytes = IMAGE) -> Any:
        """Ask for an upgrade as somebody with a role; return the refusal."""
        token = self.service.add_token(role, name=f"a-{role}")
        async with await FakeCaller.join(self.service, token) as caller:
            head = {"target": "lab-1", "firmware": {"sha256": self.add_content(data, token)}}
            await caller.socket.send(wire.pack_submit(5, head, b""))
            return wire.read_json((await caller.next()).payload)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_service(tmp_path) as service:
        (board,) = service.enrol("lab-1")
        yield Lab(service, board)


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_only_administrators_write_firmware(lab: Lab, role: str):
    async with await FakeBoard.join(lab.service, lab.board, parts=PARTS, facts=FACTS):
        reply = await lab.submit(role)
        assert reply["error"] == "NotAllowed"


async def test_operator_begins_no_rollout_with_firmware(lab: Lab):
    token = lab.service.add_token("operator", name="ann")
    async with await FakeCaller.join(lab.service, token) as caller:
        digest = lab.add_content(IMAGE, token)
        firmware = {"name": "x.app-bin", "sha256": digest, "size": len(IMAGE)}
        groups = [{"name": "lab", "target": "lab-*", "firmware": firmware}]
        reply = await caller.ask("fleet-plan", groups=groups)
        assert reply["reply"]["changed"] == 1
        reply = await caller.ask("fleet-apply", groups=groups)
        assert (reply["error"], reply["args"][0]) == ("NotAllowed", "admin")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"#!/bin/sh", "this is no firmware image"),
        (IMAGE[:-1], "the image is damaged"),
        (IMAGE[:500] + bytes(100) + IMAGE[600:], "the image is damaged"),
        (IMAGE[:32] + bytes(4) + IMAGE[36:], "the image is no application alone"),
    ],
)
async def test_hostile_image_is_not_sent(lab: Lab, data: bytes, why: str):
    async with await FakeBoard.join(lab.service, lab.board, parts=PARTS, facts=FACTS):
        reply = await lab.submit("admin", data)
        assert reply["error"] == "ServerError"
        assert why in reply["args"][0]


async def test_callers_cannot_write_firmware_as_a_file(lab: Lab):
    token = lab.service.add_token("operator", name="ann")
    async with (
        await FakeBoard.join(lab.service, lab.board, parts=PARTS, facts=FACTS),
        await FakeCaller.join(lab.service, token) as caller,
    ):
        ops = (["put", ":firmware", "0" * 64], ["ota", "boot"], ["ota", "keep"])
        for number, op in enumerate(ops, 5):
            head = {"target": "lab-1", "acts": [op]}
            await caller.socket.send(wire.pack_submit(number, head, b""))
            reply = wire.read_json((await caller.next()).payload)
            assert reply["error"] == "ServerError"


def made_board(parts: list[str], **facts: Any) -> Board:
    board = Board(new_board_row("id-1", "lab-1", bytes(32)))
    board.reported_facts = facts
    board.client_parts = frozenset(parts)
    return board


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"platform": "esp8266"}, "an ESP8266 cannot get firmware over the air: flash it over its"),
        ({"platform": "rp2"}, "an RP2040 or RP2350 cannot get firmware over the air"),
        ({"platform": "linux"}, "a board of the platform linux has no firmware"),
        ({"slots": 0}, "its flash has no second slot for firmware"),
        ({"slots": 4096}, "bytes, and the slot for it 4,096"),
        ({"machine": "ESP32C3 module with ESP32C3"}, "is for ESP32, but the board is ESP32-C3"),
        ({"mpy": 5}, "its client and packages would not run"),
        ({}, ""),
    ],
)
def test_each_kind_of_board_gets_a_sentence(facts: dict[str, Any], why: str):
    board = made_board(PARTS, **{**FACTS, **facts})
    reason = firmware_ops.explain_image(board, read_app_image(IMAGE))
    assert why in reason
    assert bool(why) == bool(reason)


def test_client_without_the_part_gets_no_firmware():
    board = made_board(["run", "files", "trial"], **FACTS)
    assert "its client cannot write firmware" in firmware_ops.refusal_reason(board)
