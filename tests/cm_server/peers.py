"""A server in this process, and peers for it: the `websockets` library and raw sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import itertools
import json
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from tornado.netutil import bind_sockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cloudmanager import config
from cloudmanager.protocol import frames, proofs, wire
from cloudmanager.server_options import ServerOptions
from cm_server import app
from cm_server.auth.audit import AuditEntry
from cm_server.auth.tokens import NewToken
from cm_server.limits import Limits
from cm_server.net.caller_socket import CallerConnection
from cm_server.net.listener import Listener
from cm_server.store.rows import AuditRow
from cm_server.store.store import Store

from .waiting import finish

T = TypeVar("T")

DEFAULT_LIMITS = Limits()
WAIT = 30.0  # seconds until anything here fails, even on a busy machine
FACTS = {
    "platform": "unix",
    "version": "1.28.0",
    "mpy": 0x0306,
    "machine": "fake",
    "client": "0.1",
    "heap": 60000,
}


async def within(awaitable: Awaitable[T]) -> T:
    """Await something for ``WAIT`` seconds at most."""
    return await asyncio.wait_for(awaitable, WAIT)


class Service:
    """A server that runs in this event loop, with its listener."""

    def __init__(self, server: app.Server, listener: Listener, tcp_port: int) -> None:
        self.server = server
        self.listener = listener
        self.tcp_port = tcp_port
        self.token = config.read_token(config.token_file(server.home)) or ""

    @property
    def store(self) -> Store:
        """The server's store, when its queue has done everything."""
        assert self.server.store_queue.drain()
        return self.server.store

    @property
    def callers(self) -> list[CallerConnection]:
        """The open links of callers."""
        return cast("list[CallerConnection]", list(self.server.callers))

    def enrol(self, *names: str, plain: bool = False) -> list[Identity]:
        enrolling = self.server.enrolment.enrol(list(names), plain=plain)
        configs = finish(self.server.store_queue, enrolling)
        return [Identity(config) for config in configs]

    def trust(self) -> ssl.SSLContext:
        """Return a TLS context that verifies this server."""
        pem = ssl.DER_cert_to_PEM_cert(self.server.certificates.ca)
        return ssl.create_default_context(cadata=pem)

    def add_token(
        self, role: str, target: str = "all", *, name: str = "", expires: float | None = None
    ) -> str:
        """Create a token of a role; ``expires`` is its lifetime in seconds."""
        entry = AuditEntry("test", "", "token-create")
        request = NewToken(name or role, role, target, expires)
        creating = self.server.tokens.create(request, entry)
        return finish(self.server.store_queue, creating)

    def revoke_token(self, name: str) -> None:
        entry = AuditEntry("test", "", "token-revoke")
        finish(self.server.store_queue, self.server.tokens.revoke(name, entry))

    def audited(self) -> list[AuditRow]:
        """Return the rows of the audit log without the first, which created the local token."""
        first, *rows = self.store.audit_rows(1000)
        assert first.verb == "token-create"
        assert first.who == first.target
        assert first.who.startswith("local")
        return rows

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""

        async def poll() -> None:
            while not condition():  # noqa: ASYNC110 - there is no event for most conditions
                await asyncio.sleep(0.002)

        await within(poll())

    def state(self, name: str) -> str:
        return self.server.registry.by_name[name].state


@contextlib.asynccontextmanager
async def running_service(
    home: Path, limits: Limits = DEFAULT_LIMITS, **settings: Any
) -> AsyncIterator[Service]:
    """Run a server as `process.serve` does, on a free TCP port.

    Args:
        home: its folder.
        limits: of the server.
        settings: fields of `ServerOptions` and of `Environment`.
    """
    names = {field.name for field in dataclasses.fields(ServerOptions)} & settings.keys()
    options = ServerOptions(**{name: settings.pop(name) for name in names})
    server = app.Server(home, options, limits, app.Environment(**settings))
    listener = server.make_listener()
    sockets = bind_sockets(0, "127.0.0.1")
    listener.start_accepting(sockets)
    service = Service(server, listener, sockets[0].getsockname()[1])
    server.start(f"http://127.0.0.1:{service.tcp_port}")
    try:
        yield service
    finally:
        listener.stop_accepting()
        server.stop()
        await server.cluster.close()
        await listener.close_all_connections()
        await service.until(lambda: not server.callers and not server.registry.online())


class Identity:
    """What a board stores about itself: name, id, key and the key's number."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name, self.id = config["name"], config["id"]
        self.key = bytes.fromhex(config["key"])
        self.gen = int(config.get("gen", 0))


class BoardMac(proofs.LinkMac):
    """The board's side of the MACs: sender and receiver are swapped."""

    def _make_tag(self, who: bytes, number: int, message: bytes) -> bytes:
        return super()._make_tag({b"s": b"b", b"b": b"s"}[who], number, message)


class Peer:
    """A WebSocket connection of the `websockets` library."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.mac: BoardMac | None = None

    @classmethod
    async def dial(cls, service: Service, path: str, *, tls: bool = False, **headers: Any) -> Any:
        uri = f"{'wss' if tls else 'ws'}://127.0.0.1:{service.tcp_port}{path}"
        more: dict[str, Any] = (
            {"ssl": service.trust(), "server_hostname": config.TLS_NAME} if tls else {}
        )
        pairs = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        return cls(
            await connect(
                uri, additional_headers=pairs, proxy=None, max_size=None, close_timeout=1, **more
            )
        )

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()

    async def send(self, op: int, payload: bytes = b"", *, job: int = 0, flags: int = 0) -> None:
        data = wire.pack(op, payload, job=job, flags=flags)
        await within(self.socket.send(self.mac.seal(data) if self.mac else data))

    async def next(self) -> wire.Message:
        data = await within(self.socket.recv())
        assert isinstance(data, bytes)
        return wire.unpack(self.mac.open(data) if self.mac else data)

    async def closed(self) -> tuple[int | None, str]:
        """Wait until the server closes the link; return its close code and reason."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await within(self.socket.recv())
        return self.socket.close_code, self.socket.close_reason or ""


class FakeBoard(Peer):
    """A board that follows docs/protocol.md, controlled by a test."""

    nonce = bytes(range(16))
    welcome: dict[str, Any]

    @classmethod
    async def join(
        cls,
        service: Service,
        identity: Identity,
        *,
        tls: bool = False,
        mac: bool = False,
        **reported: Any,
    ) -> FakeBoard:
        """Connect and authenticate; ``reported`` is added to the body of PROOF."""
        board: FakeBoard = await cls.dial(service, "/board", tls=tls)
        await board.greet(identity.id, gen=identity.gen, **({"mac": 1} if mac else {}))
        challenge = await board.next()
        await board.prove(identity, challenge, **reported)
        if mac:
            nonces = board.nonce + challenge.payload[:16]
            board.mac = BoardMac(proofs.session_key(identity.key, nonces, identity.id))
        welcome = await board.next()
        assert welcome.op == wire.WELCOME
        board.welcome = wire.read_json(welcome.payload)
        return board

    async def greet(self, board_id: str, version: int = wire.PROTOCOL, **more: int) -> None:
        body = {"v": version, "id": board_id, "nonce": self.nonce.hex(), **more}
        await self.send(wire.HELLO, json.dumps(body).encode())

    async def prove(self, identity: Identity, challenge: wire.Message, **reported: Any) -> None:
        """Verify the server's proof, then send the board's own."""
        nonces = self.nonce + challenge.payload[:16]
        proof, body = challenge.payload[16:48], challenge.payload[48:]
        expected = proofs.server_proof(identity.key, nonces, identity.id, body)
        assert hmac.compare_digest(proof, expected)
        usual = {"boot": "b1", "buf": 1528, "parts": ["run"], "facts": FACTS, "last": None}
        text = json.dumps({**usual, **reported}).encode()
        own_proof = proofs.board_proof(identity.key, nonces, identity.id, text)
        await self.send(wire.PROOF, own_proof + text)

    async def end(
        self, job: int, status: str = "ok", *, output: bytes = b"", rest: bytes = b""
    ) -> None:
        payload = struct.pack(">H", len(output)) + output + rest
        await self.send(wire.RESULT, payload, job=job, flags=wire.STATUSES.index(status))


class FakeCaller(Peer):
    """A caller that follows docs/protocol.md, controlled by a test."""

    @classmethod
    async def join(
        cls,
        service: Service,
        token: str | None = None,
        version: int = wire.PROTOCOL,
        *,
        tls: bool = False,
        **headers: Any,
    ) -> FakeCaller:
        caller: FakeCaller = await cls.dial(
            service,
            "/caller",
            tls=tls,
            Authorization=f"Bearer {service.token if token is None else token}",
            Cm_Protocol=str(version),
            **headers,
        )
        caller.events = deque()
        caller.refs = itertools.count(1)
        caller.frames = 0
        return caller

    events: deque[wire.Message]
    refs: itertools.count[int]
    frames: int  # number of EVENTS frames received

    async def submit(self, target: str, code: bytes = b"1", **head: Any) -> list[int]:
        """Submit a cell and return its jobs' numbers."""
        await self.socket.send(wire.pack_submit(next(self.refs), {"target": target, **head}, code))
        accepted = await self.event()
        assert accepted.op == wire.ACCEPTED, accepted
        return [number for number, _ in wire.read_json(accepted.payload)["jobs"]]

    async def ask(self, verb: str, **body: Any) -> Any:
        """Send a request and return the reply's body."""
        text = json.dumps({"verb": verb, **body}).encode()
        await self.send(wire.REQUEST, text, job=77)
        reply = await self.next()
        assert (reply.op, reply.job) == (wire.REPLY, 77)
        return wire.read_json(reply.payload)

    async def event(self) -> wire.Message:
        """Return the next message about a job."""
        while not self.events:
            message = await self.next()
            assert message.op == wire.EVENTS, message
            self.frames += 1
            self.events.extend(wire.read_events(message.payload))
        return self.events.popleft()

    async def ending(self, job: int) -> tuple[str, str]:
        """Skip to the end of a job; return its status, and the reason, value or traceback."""
        while True:
            message = await self.event()
            if message.job == job and message.op == wire.ENDED:
                why = wire.read_json(message.payload)["why"]
                return wire.STATUSES[message.flags], why
            if message.job == job and message.op == wire.RESULT:
                ending = wire.read_result(message)
                return ending.status, ending.value_or_traceback.decode()


class RawPeer:
    """A TCP connection that sends arbitrary bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = frames.FrameReader(64 * 1024 * 1024, masked=False)
        self._waiting: deque[frames.Frame] = deque()

    @classmethod
    async def dial(cls, service: Service, *, receive_bytes: int = 0) -> RawPeer:
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", service.tcp_port))
        return cls(*await asyncio.open_connection(sock=sock, limit=64 * 1024))

    @classmethod
    async def upgraded(
        cls,
        service: Service,
        path: str = "/board",
        *,
        token: str = "",
        receive_bytes: int = 0,
        early: bytes = b"",
    ) -> RawPeer:
        """Connect and upgrade to a WebSocket; ``early`` is sent together with the handshake."""
        peer = await cls.dial(service, receive_bytes=receive_bytes)
        headers = {"Authorization": f"Bearer {token or service.token}", "Cm-Protocol": "1"}
        peer.say(handshake(path, **headers) + early)
        head = await peer.head()
        assert head.startswith("HTTP/1.1 101 "), head
        return peer

    async def __aenter__(self) -> RawPeer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> str:
        """Return the head of an HTTP answer."""
        return (await within(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1")

    async def answer(self) -> str:
        """Return a whole HTTP answer."""
        head = await self.head()
        length = next(
            int(line.partition(":")[2])
            for line in head.split("\r\n")
            if line.lower().startswith("content-length:")
        )
        return head + (await within(self.reader.readexactly(length))).decode()

    async def frame(self) -> frames.Frame | None:
        """Return the next frame; None at the end of the connection."""
        while not self._waiting:
            data = await within(self.reader.read(64 * 1024))
            if not data:
                return None
            self._waiting.extend(self._frames.feed(data))
        return self._waiting.popleft()

    async def closed(self) -> tuple[int, str]:
        """Skip to the close frame, after which the connection ends; return code and reason."""
        while (frame := await self.frame()) is not None:
            if frame.opcode == frames.CLOSE:
                assert await within(self.reader.read()) == b""
                return frames.read_close_code(frame.payload), frame.payload[2:].decode()
        raise AssertionError("the connection ended without a close frame")

    async def gone(self) -> None:
        """Wait until the server has closed the connection, with or without a close frame."""
        with contextlib.suppress(ConnectionError):
            while await self.frame() is not None:
                pass


def handshake(path: str, **more: str) -> bytes:
    """Return a WebSocket handshake (RFC 6455, 4.1); headers with the value "" are left out."""
    headers = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **more,
    }
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")
