"""Strict peers: the `websockets` library, which breaks a link at the first bent rule.

As a server it takes the on-board client in tests/board/ (peer.py: every real board there speaks
to it). Here it is the caller.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cloudmanager.protocol import wire
from cloudmanager.testing.plugin import RunningServer

WAIT = 60.0  # seconds that anything here may take on a busy machine
pytestmark = pytest.mark.usefixtures("boards")


class Caller:
    """A caller as docs/protocol.md describes it; of the product it uses only the message format."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._refs = iter(range(1, 1000))

    async def ask(self, verb: str, **body: Any) -> Any:
        """Send REQUEST, return what REPLY says."""
        ref = next(self._refs)
        text = json.dumps({"verb": verb, **body}).encode()
        await self.socket.send(wire.pack(wire.REQUEST, text, job=ref))
        while True:
            message = await self._next()
            if message.op == wire.REPLY and message.job == ref:
                return wire.read_json(message.payload)["reply"]

    async def submit(self, target: str, code: str, **options: Any) -> dict[str, int]:
        """Send SUBMIT; return board -> job."""
        head = {"target": target, **options}
        await self.socket.send(wire.pack_submit(next(self._refs), head, code.encode()))
        self._events: list[wire.Message] = []
        accepted = await self.event()
        assert accepted.op == wire.ACCEPTED
        return {board: job for job, board in wire.read_json(accepted.payload)["jobs"]}

    async def event(self) -> wire.Message:
        """Return the next of EVENTS."""
        while not self._events:
            message = await self._next()
            if message.op == wire.EVENTS:
                self._events = list(wire.read_events(message.payload))
        return self._events.pop(0)

    async def endings(self, jobs: dict[str, int]) -> dict[str, wire.ResultBody]:
        """Return how each job ended; each ends once."""
        boards = {job: board for board, job in jobs.items()}
        ended: dict[str, wire.ResultBody] = {}
        while len(ended) < len(jobs):
            event = await self.event()
            if event.op in wire.JOB_END_OPS:
                assert boards[event.job] not in ended
                ended[boards[event.job]] = wire.read_result(event)
        return ended

    async def _next(self) -> wire.Message:
        data = await asyncio.wait_for(self.socket.recv(), WAIT)
        assert isinstance(data, bytes)
        return wire.unpack(data)


def dial(server: RunningServer, token: str = "") -> Any:
    token = token or (server.home / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Cm-Protocol": "1"}
    return connect(f"ws://127.0.0.1:{server.tcp_port}/caller", additional_headers=headers)


async def test_strict_client_runs_a_cell_on_every_board(server: RunningServer):
    async with dial(server) as socket:
        caller = Caller(socket)
        assert socket.response.headers["Upgrade"] == "websocket"
        assert not socket.protocol.extensions  # compression was offered
        names = [board["name"] for board in await caller.ask("boards", target="demo-[1-3]")]
        assert names == ["demo-1", "demo-2", "demo-3"]
        code = "print('x' * 3000)\n__cm__((6 * 7))"
        endings = await caller.endings(await caller.submit("demo-[1-3]", code, timeout=WAIT))
        assert {(board, end.status, end.value_or_traceback) for board, end in endings.items()} == {
            (name, "ok", b"42") for name in names
        }


async def test_strict_client_interrupts(server: RunningServer):
    async with dial(server) as socket:
        caller = Caller(socket)
        jobs = await caller.submit("demo-[1-2]", "print('go')\nwhile True: pass", timeout=WAIT)
        said = {(await caller.event()).job for _ in jobs}
        assert said == set(jobs.values())
        events, caller._events = caller._events, []
        assert await caller.ask("interrupt", jobs=list(jobs.values())) == 2
        caller._events = events
        endings = await caller.endings(jobs)
        assert {end.status for end in endings.values()} == {"interrupted"}


async def test_strict_client_pings_is_pinged_and_closes(server: RunningServer):
    async with dial(server) as socket:
        for data in (b"", b"x" * 125):
            await asyncio.wait_for(await socket.ping(data), WAIT)
        await socket.close(3000, "enough")
        assert socket.close_code == 3000


async def test_strict_client_that_sends_text_is_closed_as_the_rfc_says(server: RunningServer):
    async with dial(server) as socket:
        await socket.send("text")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), WAIT)
        assert socket.close_code == 1003
