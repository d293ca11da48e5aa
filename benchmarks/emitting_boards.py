"""Simulated boards that emit values: links with the real protocol and real authentication.

`python -m benchmarks.emitting_boards URL SECONDS`, with the identities (the JSON of `fleet.enrol`)
on standard input, opens a link for each, until standard input ends. Each board emits a value every
SECONDS and answers each cell with its own name after 0.2 s; the boards do not run code. They are
for tests with more boards than the machine could run as MicroPython processes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from cloudmanager.protocol import frames, proofs, wire

_FACTS = {"version": "1.28.0", "mpy": 0x0306, "machine": "simulated", "client": "0.1"}
_PLATFORMS = ("esp32", "rp2", "esp8266")
_CONCURRENT_DIALS = 50  # boards that connect at the same time
_CELL_SECONDS = 0.2  # duration of a cell


@contextlib.contextmanager
def emitting_boards(url: str, boards: list[dict[str, Any]], seconds: float) -> Iterator[None]:
    """Keep a link open for each board during a `with` block, in a separate process.

    Args:
        url: the server's URL.
        boards: the result of `fleet.enrol`.
        seconds: interval of the values of one board.
    """
    command = [sys.executable, "-m", "benchmarks.emitting_boards", url, str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(boards).encode() + b"\n")
        process.stdin.flush()
        try:
            yield
        finally:
            process.stdin.close()


class EmittingBoard:
    """One simulated board.

    Args:
        board: its entry in the result of `fleet.enrol`; "facts" may replace its usual facts.
        number: makes it differ from other boards.
    """

    def __init__(self, board: dict[str, Any], number: int) -> None:
        self.name, self.id, self.key = board["name"], board["id"], bytes.fromhex(board["key"])
        self.gen = board.get("gen", 0)  # the key's number, which increases with each enrolment
        self.number = number
        self.facts = json.loads(board.get("facts", "{}"))
        self._frames = frames.FrameReader(1 << 20, masked=False)
        self._unread_frames: list[frames.Frame] = []

    def send(self, op: int, payload: bytes = b"", *, job: int = 0, flags: int = 0) -> None:
        """Send a message."""
        message = wire.pack(op, payload, job=job, flags=flags)
        self._writer.write(frames.encode_frame(message, mask=True))

    async def receive(self) -> wire.Message:
        """Return the next message; answer pings.

        Raises:
            ConnectionError: the server closed the link.
        """
        while True:
            while not self._unread_frames:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise ConnectionError(f"the server closed the link of {self.name}")
                self._unread_frames += self._frames.feed(data)
            frame = self._unread_frames.pop(0)
            if frame.opcode == frames.BINARY:
                return wire.unpack(frame.payload)
            if frame.opcode == frames.PING:
                self._writer.write(frames.encode_frame(frame.payload, frames.PONG, mask=True))

    async def connect(self, host: str, tcp_port: int) -> None:
        """Connect and authenticate; the server's proof is not verified."""
        self._reader, self._writer = await asyncio.open_connection(host, tcp_port)
        key = base64.b64encode(os.urandom(16)).decode()
        self._writer.write(
            f"GET /board HTTP/1.1\r\nHost: {host}:{tcp_port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        await self._reader.readuntil(b"\r\n\r\n")
        nonce = os.urandom(16)
        hello = {"v": wire.PROTOCOL, "id": self.id, "nonce": nonce.hex(), "gen": self.gen}
        self.send(wire.HELLO, json.dumps(hello).encode())
        nonces = nonce + (await self.receive()).payload[:16]
        text = json.dumps(self._proof_fields()).encode()
        self.send(wire.PROOF, proofs.board_proof(self.key, nonces, self.id, text) + text)
        await self.receive()

    def _proof_fields(self) -> dict[str, Any]:
        facts = {
            **_FACTS,
            "platform": _PLATFORMS[self.number % len(_PLATFORMS)],
            "heap": random.randrange(20_000, 120_000),
            "rssi": -random.randrange(40, 90),
            **self.facts,
        }
        boot = os.urandom(8).hex()
        return {"boot": boot, "buf": 1016, "parts": ["run"], "facts": facts, "last": None}

    async def emit_values(self, seconds: float) -> None:
        """Emit values until the task is cancelled."""
        await asyncio.sleep(random.random() * seconds)
        while True:
            now = time.monotonic()
            values = {"temp": round(21 + 3 * math.sin(now / 10 + self.number), 2)}
            self.send(wire.EMIT, int(now * 1000).to_bytes(8, "big") + json.dumps(values).encode())
            await asyncio.sleep(seconds)

    async def answer_cells(self) -> None:
        """Answer cells until the link ends."""
        while True:
            message = await self.receive()
            if message.op == wire.EXEC:
                await asyncio.sleep(_CELL_SECONDS)
                self.send(wire.RESULT, b"\0\0" + repr(self.name).encode(), job=message.job)


async def _main(url: str, seconds: float) -> None:
    boards = json.loads(sys.stdin.buffer.readline())
    host, tcp_port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    dial_slots = asyncio.Semaphore(_CONCURRENT_DIALS)

    async def serve(board: EmittingBoard) -> None:
        async with dial_slots:
            await board.connect(host, tcp_port)
        await asyncio.gather(board.emit_values(seconds), board.answer_cells())

    for number, board in enumerate(boards):
        task = asyncio.ensure_future(serve(EmittingBoard(board, number)))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)  # then asyncio logs the task's exception immediately
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


_tasks: set[asyncio.Future[None]] = set()

if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2])))
