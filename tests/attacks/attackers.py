"""Peers that send hostile input: strangers, boards that prove themselves, callers with a token.

They work over links without TLS, over TLS, and, boards, with MACs. ``mute`` ones await no answers,
so that the same flood can strike a listener that discards everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import ssl
import struct
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from cloudmanager import config
from cloudmanager.protocol import frames, proofs, wire
from tests.cm_server.peers import BoardMac, Identity, handshake

from .hostile_input import HostileInput

ANSWER_SECONDS = 5.0  # that a peer waits for the answer to a handshake
PAUSE_SECONDS = 0.002  # between two writes of one peer
GONE = (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, asyncio.LimitOverrunError)


@dataclass
class Victim:
    """Whom the attackers strike.

    Attributes:
        tcp_port: of a server on loopback, or of what takes its place.
        tokens: of callers; that of an operator is the first.
        boards: identities of boards.
        verbs: names of requests.
        trust: for TLS; None: links without TLS.
        mac: whether boards use MACs.
        mute: whether nobody answers.
        sent: how many messages, by kind of attacker.
    """

    tcp_port: int
    tokens: list[str]
    boards: list[Identity]
    verbs: tuple[str, ...]
    trust: ssl.SSLContext | None = None
    mac: bool = False
    mute: bool = False
    sent: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, messages: int) -> None:
        """Count messages that were sent."""
        self.sent[kind] = self.sent.get(kind, 0) + messages


class HostileLink:
    """A WebSocket client that sends any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = frames.FrameReader(64 * 1024 * 1024, masked=False)
        self._draining: asyncio.Task[None] | None = None
        self.mac: BoardMac | None = None
        self.current_job = 1

    @classmethod
    async def dial(cls, victim: Victim) -> HostileLink:
        """Connect, over TLS if the victim has it."""
        name = config.TLS_NAME if victim.trust is not None else None
        connecting = asyncio.open_connection(
            "127.0.0.1", victim.tcp_port, ssl=victim.trust, server_hostname=name
        )
        return cls(*await asyncio.wait_for(connecting, ANSWER_SECONDS))

    @classmethod
    async def upgraded(cls, victim: Victim, path: str, token: str = "") -> HostileLink:
        """Connect and upgrade to a WebSocket."""
        link = await cls.dial(victim)
        headers = {"Authorization": f"Bearer {token}" if token else "", "Cm-Protocol": "1"}
        await link.write(handshake(path, **headers))
        if not victim.mute:
            head = await link._within(link._reader.readuntil(b"\r\n\r\n"))
            if b" 101 " not in head:
                await link.close()
                raise ConnectionError(head.decode("latin-1"))
        return link

    async def _within(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        return await asyncio.wait_for(reading, ANSWER_SECONDS)

    async def next(self) -> wire.Message:
        """Return the next message."""
        while True:
            while (frame := self._frames.next_frame()) is not None:
                if frame.opcode == frames.BINARY:
                    return wire.unpack(self.mac.open(frame.payload) if self.mac else frame.payload)
                if frame.opcode == frames.CLOSE:
                    raise ConnectionError("closed")
            data = await self._within(self._reader.read(65536))
            if not data:
                raise ConnectionError("gone")
            self._frames.push(data)

    async def send(self, *messages: bytes) -> None:
        """Send messages, each in a frame."""
        sealed = [self.mac.seal(message) if self.mac else message for message in messages]
        await self.write(b"".join(frames.encode_frame(each, mask=True) for each in sealed))

    async def write(self, data: bytes) -> None:
        """Send any bytes."""
        self._writer.write(data)
        await asyncio.wait_for(self._writer.drain(), ANSWER_SECONDS)

    def start_draining(self) -> None:
        """Read and discard from now on, but for the numbers of jobs."""
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        with contextlib.suppress(*GONE):
            while data := await self._reader.read(65536):
                with contextlib.suppress(Exception):
                    self._frames.push(data)
                    while (frame := self._frames.next_frame()) is not None:
                        if frame.opcode == frames.BINARY and len(frame.payload) >= 6:
                            self.current_job = wire.unpack(frame.payload).job or self.current_job
        self._writer.transport.abort()

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed the link."""
        return self._writer.transport.is_closing() or self._reader.at_eof()

    def close_writing(self) -> None:
        """Send FIN, and go on reading."""
        with contextlib.suppress(OSError, NotImplementedError):  # it is closed, or TLS has no FIN
            self._writer.write_eof()

    async def close(self) -> None:
        """Close the connection immediately."""
        self._writer.transport.abort()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait([self._draining])
        with contextlib.suppress(*GONE, ssl.SSLError):
            await asyncio.wait_for(self._writer.wait_closed(), ANSWER_SECONDS)


async def attack_as_strangers(victim: Victim, hostile: HostileInput, count: int) -> None:
    """Open connections and send what no peer would; end them in any way."""
    dice = hostile.dice
    kept: list[HostileLink] = []
    for _ in range(count):
        with contextlib.suppress(*GONE, ssl.SSLError):
            link = await HostileLink.dial(victim)
            kept.append(link)
            data = hostile.stranger_bytes(dice.choice(victim.boards).id)
            if dice.random() < 0.2:
                at = dice.randrange(len(data) + 1)
                await link.write(data[:at])
                await asyncio.sleep(PAUSE_SECONDS)
                data = data[at:]
            await link.write(data)
            victim.count("strangers", 1)
            if dice.random() < 0.3:
                link.close_writing()
        if kept and (len(kept) > 20 or dice.random() < 0.5):
            await kept.pop(dice.randrange(len(kept))).close()
        await asyncio.sleep(PAUSE_SECONDS)
    for link in kept:
        await link.close()


async def attack_as_board(
    victim: Victim, identity: Identity, hostile: HostileInput, count: int
) -> None:
    """Prove to be a board, and send messages until ``count`` were sent."""
    link: HostileLink | None = None
    sent = dials = 0
    while sent < count and dials < count:
        try:
            if link is None or link.is_closed:
                dials += 1
                if link is not None:
                    await link.close()
                link = None
                link = await prove_board(victim, identity, hostile)
                link.start_draining()
            messages = [
                hostile.board_message(link.current_job) for _ in range(hostile.dice.randrange(1, 8))
            ]
            sent += len(messages)
            await link.send(*messages)
            victim.count("boards", len(messages))
            if hostile.dice.random() < 0.01:
                await link.close()
        except (*GONE, ssl.SSLError):
            pass
        await asyncio.sleep(PAUSE_SECONDS)
    if link is not None:
        await link.close()


async def prove_board(victim: Victim, identity: Identity, hostile: HostileInput) -> HostileLink:
    """Connect as a board; only what it reports is hostile."""
    link = await HostileLink.upgraded(victim, "/board")
    try:
        nonce = os.urandom(16)
        hello = {"v": wire.PROTOCOL, "id": identity.id, "nonce": nonce.hex(), "gen": identity.gen}
        await link.send(wire.pack_json(wire.HELLO, hello | ({"mac": 1} if victim.mac else {})))
        nonces = nonce + (bytes(16) if victim.mute else (await link.next()).payload[:16])
        body = json.dumps(hostile.report(link.current_job)).encode()
        proof = proofs.board_proof(identity.key, nonces, identity.id, body)
        await link.send(wire.pack(wire.PROOF, proof + body))
        if victim.mac:
            link.mac = BoardMac(proofs.session_key(identity.key, nonces, identity.id))
        if not victim.mute:
            await link.next()
    except BaseException:
        await link.close()
        raise
    return link


async def attack_as_caller(victim: Victim, token: str, hostile: HostileInput, count: int) -> None:
    """Send messages with a token until ``count`` were sent."""
    link: HostileLink | None = None
    sent = dials = ref = 0
    while sent < count and dials < count:
        try:
            if link is None or link.is_closed:
                dials += 1
                if link is not None:
                    await link.close()
                link = None
                link = await HostileLink.upgraded(victim, "/caller", token)
                link.start_draining()
            messages = []
            for _ in range(4):
                ref += 1
                messages.append(hostile.caller_message(ref))
            sent += len(messages)
            await link.send(*messages)
            victim.count("callers", len(messages))
            if hostile.dice.random() < 0.01:
                await link.close()
        except (*GONE, ssl.SSLError):
            pass
        await asyncio.sleep(PAUSE_SECONDS)
    if link is not None:
        await link.close()


async def give_work(victim: Victim, count: int) -> None:
    """Submit valid jobs, so that hostile boards have something to answer."""
    target, data = "fuzz-[1-2]", b"data"
    jobs: list[dict[str, Any]] = [
        {},
        {"acts": [["get", "/x"]]},
        {"acts": [["put", "/x", hashlib.sha256(data).hexdigest()]]},
        {"packages": {"remove": ["x"]}},
    ]
    link: HostileLink | None = None
    for number in range(count):
        with contextlib.suppress(*GONE, ssl.SSLError):
            if link is None or link.is_closed:
                if link is not None:
                    await link.close()
                link = await HostileLink.upgraded(victim, "/caller", victim.tokens[0])
                link.start_draining()
                offer = {"verb": "offer", "sha256": jobs[2]["acts"][0][2], "size": len(data)}
                await link.send(wire.pack_json(wire.REQUEST, offer, job=1))
                await link.send(wire.pack(wire.CONTENT, struct.pack(">I", 1) + data, job=2))
            head = {"target": target, "timeout": 0.3, "awaits": False, **jobs[number % len(jobs)]}
            await link.send(wire.pack_submit(number + 10, head, b"1"))
        await asyncio.sleep(10 * PAUSE_SECONDS)
    if link is not None:
        await link.close()


async def attack(victim: Victim, seed: int, count: int) -> None:
    """Let all kinds of attackers strike at the same time.

    Args:
        victim: whom they strike.
        seed: of their input.
        count: messages of each attacker; a third as many connections of strangers.
    """

    def hostile(name: str) -> HostileInput:
        return HostileInput(f"{seed} {name}", victim.verbs)

    await asyncio.gather(
        attack_as_strangers(victim, hostile("stranger"), count // 3),
        *(
            attack_as_board(victim, board, hostile(f"board {number}"), count)
            for number, board in enumerate(victim.boards)
        ),
        *(
            attack_as_caller(victim, token, hostile(f"caller {number}"), count)
            for number, token in enumerate(victim.tokens)
        ),
        give_work(victim, count // 8),
    )
