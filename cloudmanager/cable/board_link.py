"""A board's link to the server, dialled from this machine for a board that has no network.

It speaks the board's side of docs/protocol.md: the WebSocket handshake, proofs in both directions,
then messages. The server's half is cm_server/board_socket.py, a board's mpy_client/cm/dial.py.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from cloudmanager import config
from cloudmanager.board_client import Identity
from cloudmanager.client.link import KEEPALIVE
from cloudmanager.protocol import proofs, wire
from cloudmanager.protocol.errors import LinkLost, NotAllowed, PeerWireError, ServerUnreachable
from cloudmanager.protocol.frames import (
    BINARY,
    CLOSE,
    NO_CODE,
    PING,
    PONG,
    FrameReader,
    accept_key,
    close_code,
    encode,
    encode_close,
)
from cloudmanager.protocol.wire import Message

if TYPE_CHECKING:
    from cloudmanager.client.tls import Tls

PATIENCE: Final = 10.0  # seconds for each step, as on a board
BUFFER_BYTES: Final = 65_536  # of the longest message that we take
_READ_BYTES: Final = 65_536
_NOT_PROVEN: Final = (1008, 4001)  # docs/protocol.md


class BoardLink:
    """One open link of a board; for one thread.

    Args:
        address: host and TCP port of the server.
        identity: who the board is.
        about: PROOF's JSON, without ``buf``.

    Raises:
        ServerUnreachable: nobody answers there.
        NotAllowed: the server does not know the board, or is not who it claims to be.

    Attributes:
        beat: seconds between two pings of the server.
        spread: seconds over which boards dial again.
        heard: when it was last heard of (``time.monotonic``).
    """

    def __init__(self, address: tuple[str, int], identity: Identity, about: dict[str, Any]) -> None:
        host, ca = f"{address[0]}:{address[1]}", identity.more.get("ca")
        self._where = f"{'https' if ca else 'http'}://{host}"
        self._reader = FrameReader(BUFFER_BYTES, masked=False)
        self._messages: list[Message] = []
        self.closed = False
        self._torn = False  # whether a frame may be half written: then nothing may follow
        self.heard = time.monotonic()
        try:
            self._socket: socket.socket | Tls = socket.create_connection(address, PATIENCE)
        except OSError as error:
            raise ServerUnreachable(self._where, "the bridge", str(error)) from error
        try:
            self._tune()
            if ca:
                self._secure(base64.b64decode(ca))
            self._take(self._upgrade(host))
            told = self._prove(identity, {**about, "buf": BUFFER_BYTES})
        except OSError as error:
            self.close()
            raise ServerUnreachable(self._where, "the bridge", str(error)) from error
        except BaseException:
            self.close()
            raise
        self.name = str(told["name"])
        self.beat, self.spread = float(told["beat"]), float(told["spread"])

    def _tune(self) -> None:
        assert isinstance(self._socket, socket.socket)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _secure(self, ca: bytes) -> None:
        """Go on by TLS, with whom this authority vouches for."""
        import ssl  # only here: its import takes 20 ms

        from cloudmanager.client.tls import Tls

        assert isinstance(self._socket, socket.socket)
        context = ssl.create_default_context(cadata=ca)
        self._socket = Tls(self._socket, context, config.TLS_NAME)

    def _upgrade(self, host: str) -> bytes:
        """Shake hands; return what came behind the answer."""
        key = base64.b64encode(os.urandom(16)).decode()
        self._write(
            f"GET /board HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = self._socket.recv(_READ_BYTES)
            if not more or len(answer) > _READ_BYTES:
                raise OSError("it is no Cloudmanager server")
            answer += more
        head, _, rest = answer.partition(b"\r\n\r\n")
        wanted = f"sec-websocket-accept: {accept_key(key)}".encode().lower()
        if not head.startswith(b"HTTP/1.1 101") or wanted not in head.lower():
            raise OSError("it is no Cloudmanager server")
        return rest

    def _prove(self, identity: Identity, about: dict[str, Any]) -> dict[str, Any]:
        """Have the server prove itself, then prove who we are; return WELCOME's JSON."""
        nonce = os.urandom(proofs.NONCE_BYTES)
        gen = identity.more.get("gen", 0)
        hello = {"v": wire.PROTOCOL, "id": identity.id, "nonce": nonce.hex(), "gen": gen}
        self.send(wire.pack_json(wire.HELLO, hello))
        payload = self._await(wire.CHALLENGE)
        at = proofs.NONCE_BYTES + proofs.PROOF_BYTES
        nonces, body = nonce + payload[: proofs.NONCE_BYTES], payload[at:]
        wanted = proofs.server_proof(identity.key, nonces, identity.id, body)
        if not hmac.compare_digest(wanted, payload[proofs.NONCE_BYTES : at]):
            raise NotAllowed("", f"the server does not prove that it knows {identity.name}")
        text = json.dumps(about).encode()
        proof = proofs.board_proof(identity.key, nonces, identity.id, text)
        self.send(wire.pack(wire.PROOF, proof + text))
        return wire.read_json(self._await(wire.WELCOME))

    def _await(self, op: int) -> bytes:
        """Return the payload of the next message, which has to be this one."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            for message in self.receive(left):
                if message.op != op:
                    raise PeerWireError(f"op 0x{message.op:02x} came in place of 0x{op:02x}")
                return message.payload
        raise ServerUnreachable(self._where, "the bridge", "no answer in time")

    def fileno(self) -> int:
        """Return the socket, for select."""
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Send a message; a link that breaks here raises at the next receive."""
        with contextlib.suppress(OSError):
            self._write(encode(message, BINARY, mask=True))

    def _write(self, frame: bytes) -> None:
        """Write a frame, whole; where that fails, or is interrupted, nothing is written again.

        Raises:
            OSError: the link is broken, or the server did not read for ``PATIENCE`` seconds.
        """
        if self._torn:
            raise ConnectionAbortedError
        self._torn = True
        try:
            self._socket.sendall(frame)
            self._torn = False
        finally:
            if self._torn:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # receive sees the end

    def receive(self, timeout: float) -> Iterator[Message]:
        """Yield the messages that are there; wait for the first up to ``timeout`` seconds.

        Raises:
            LinkLost: the link is gone.
            PeerWireError: the server broke the protocol.
        """
        waiting = not isinstance(self._socket, socket.socket) and self._socket.waiting()
        ready = waiting or self._messages or select.select([self._socket], [], [], timeout)[0]
        if ready and not self._messages:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                raise LinkLost("", None, "the server hung up")
            self._take(data)
        while self._messages:
            yield self._messages.pop(0)

    def _take(self, data: bytes) -> None:
        self.heard = time.monotonic()
        for frame in self._reader.feed(data):
            if frame.opcode == BINARY:
                self._messages.append(wire.unpack(frame.payload))
            elif frame.opcode == PING:
                with contextlib.suppress(OSError):
                    self._write(encode(frame.payload, PONG, mask=True))
            elif frame.opcode == CLOSE:
                code = close_code(frame.payload)
                why = frame.payload[2:].decode(errors="replace")
                if code in _NOT_PROVEN:
                    raise NotAllowed("", why or "the server does not know this board")
                raise LinkLost("", None, why or f"the server closed the link ({code})")

    def close(self) -> None:
        """Hang up; with a word, if no frame is half written."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._write(encode_close(NO_CODE, mask=True))
        with contextlib.suppress(OSError):
            self._socket.close()
