"""A board's link to the server, opened by this machine for a board that has no network.

It implements the board's side of docs/protocol.md: the WebSocket handshake, mutual authentication,
then messages. The other implementation of this side is mpy_client/cm/dial.py.
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
from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.connecting import open_connection
from cloudmanager.client.link import TCP_KEEPALIVE
from cloudmanager.protocol import proofs, wire
from cloudmanager.protocol.errors import LinkLost, NotAllowed, PeerWireError, ServerUnreachable
from cloudmanager.protocol.frames import (
    BINARY,
    CLOSE,
    CLOSE_NO_STATUS,
    CLOSE_NOT_AUTHENTICATED,
    CLOSE_POLICY,
    PING,
    PONG,
    FrameReader,
    accept_key,
    encode_close_frame,
    encode_frame,
    read_close_code,
)
from cloudmanager.protocol.wire import Message

if TYPE_CHECKING:
    from cloudmanager.client.tls import TlsSocket

STEP_SECONDS: Final = 10.0  # for each step of the connection, as on a board
MAX_MESSAGE_BYTES: Final = 65_536  # of the longest message that is accepted
_READ_BYTES: Final = 65_536
_REFUSALS: Final = (CLOSE_POLICY, CLOSE_NOT_AUTHENTICATED)  # the server does not know the key


class BridgedBoardLink:
    """An open link of one board, to be used by one thread.

    Args:
        address: host and TCP port of the server.
        identity: the board's id, name and key.
        proof_fields: PROOF's JSON, without ``buf``.

    Raises:
        ServerUnreachable: no server answers at the address.
        NotAllowed: the server does not know the board, or does not have the board's key.

    Attributes:
        closed: whether ``close`` was called.
        name: the board's name, as the server knows it.
        heartbeat_seconds: seconds between two pings of the server.
        reconnect_spread: seconds over which the reconnections of boards are spread.
        last_heard: when data last arrived (``time.monotonic``).
    """

    def __init__(
        self, address: tuple[str, int], identity: BoardIdentity, proof_fields: dict[str, Any]
    ) -> None:
        host, ca = f"{address[0]}:{address[1]}", identity.extra.get("ca")
        self._url = f"{'https' if ca else 'http'}://{host}"
        self._reader = FrameReader(MAX_MESSAGE_BYTES, masked=False)
        self._messages: list[Message] = []
        self.closed = False
        self._torn = False  # whether a frame may be half written: then no other may follow
        self.last_heard = time.monotonic()
        try:
            self._socket: socket.socket | TlsSocket = open_connection(
                "https" if ca else "http", *address, STEP_SECONDS
            )
        except OSError as error:
            raise ServerUnreachable(self._url, "the bridge", str(error)) from error
        try:
            self._set_socket_options()
            if ca:
                self._start_tls(base64.b64decode(ca))
            self._handle_data(self._websocket_handshake(host))
            welcome = self._authenticate(identity, {**proof_fields, "buf": MAX_MESSAGE_BYTES})
        except OSError as error:
            self.close()
            raise ServerUnreachable(self._url, "the bridge", str(error)) from error
        except BaseException:
            self.close()
            raise
        self.name = str(welcome["name"])
        self.heartbeat_seconds = float(welcome["beat"])
        self.reconnect_spread = float(welcome["spread"])

    def _set_socket_options(self) -> None:
        assert isinstance(self._socket, socket.socket)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in TCP_KEEPALIVE.items():
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _start_tls(self, ca: bytes) -> None:
        """Start TLS; the server's certificate must be signed by this authority (DER)."""
        import ssl  # only here: its import takes 20 ms

        from cloudmanager.client.tls import TlsSocket

        assert isinstance(self._socket, socket.socket)
        context = ssl.create_default_context(cadata=ca)
        self._socket = TlsSocket(self._socket, context, config.TLS_NAME)

    def _websocket_handshake(self, host: str) -> bytes:
        """Do the WebSocket handshake; return the bytes that followed the server's response."""
        key = base64.b64encode(os.urandom(16)).decode()
        self._write(
            f"GET /board HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = self._socket.recv(_READ_BYTES)
            if not more or len(answer) > _READ_BYTES:
                raise OSError("it is not a Cloudmanager server")
            answer += more
        head, _, rest = answer.partition(b"\r\n\r\n")
        wanted = f"sec-websocket-accept: {accept_key(key)}".encode().lower()
        if not head.startswith(b"HTTP/1.1 101") or wanted not in head.lower():
            raise OSError("it is not a Cloudmanager server")
        return rest

    def _authenticate(
        self, identity: BoardIdentity, proof_fields: dict[str, Any]
    ) -> dict[str, Any]:
        """Authenticate the server, then the board; return WELCOME's JSON."""
        nonce = os.urandom(proofs.NONCE_BYTES)
        gen = identity.extra.get("gen", 0)
        hello = {"v": wire.PROTOCOL, "id": identity.id, "nonce": nonce.hex(), "gen": gen}
        self.send(wire.pack_json(wire.HELLO, hello))
        payload = self._await_message(wire.CHALLENGE)
        at = proofs.NONCE_BYTES + proofs.PROOF_BYTES
        nonces, body = nonce + payload[: proofs.NONCE_BYTES], payload[at:]
        wanted = proofs.server_proof(identity.key, nonces, identity.id, body)
        if not hmac.compare_digest(wanted, payload[proofs.NONCE_BYTES : at]):
            raise NotAllowed("", f"the server does not have the key of {identity.name}")
        text = json.dumps(proof_fields).encode()
        proof = proofs.board_proof(identity.key, nonces, identity.id, text)
        self.send(wire.pack(wire.PROOF, proof + text))
        return wire.read_json(self._await_message(wire.WELCOME))

    def _await_message(self, op: int) -> bytes:
        """Return the payload of the next message, which must be of type ``op``.

        Raises:
            PeerWireError: it is of another type.
            ServerUnreachable: no message in time.
        """
        deadline = time.monotonic() + STEP_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            for message in self.receive(left):
                if message.op != op:
                    raise PeerWireError(f"received op 0x{message.op:02x}, expected 0x{op:02x}")
                return message.payload
        raise ServerUnreachable(self._url, "the bridge", "no answer in time")

    def fileno(self) -> int:
        """Return the socket's file descriptor, for ``select``."""
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Send a message; if the link is broken, the next ``receive`` raises."""
        with contextlib.suppress(OSError):
            self._write(encode_frame(message, BINARY, mask=True))

    def _write(self, frame: bytes) -> None:
        """Write a whole frame; if that fails or is interrupted, no later frame is written.

        Raises:
            OSError: the link is broken, or the server did not read for ``STEP_SECONDS``.
        """
        self._raise_if_torn()
        self._torn = True
        try:
            self._socket.sendall(frame)
            self._torn = False
        finally:
            if self._torn:
                self._shut_down()

    def _raise_if_torn(self) -> None:
        """Refuse to write after half a frame: the server would take the next for its rest.

        Raises:
            ConnectionAbortedError: an earlier frame may be half written.
        """
        if self._torn:
            raise ConnectionAbortedError

    def _shut_down(self) -> None:
        """End the connection in both directions; `receive` then reads the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def receive(self, timeout: float) -> Iterator[Message]:
        """Yield the messages that have arrived; wait up to ``timeout`` seconds for the first.

        Raises:
            LinkLost: the link was closed or is broken.
            NotAllowed: the server closed the link since it does not accept the board.
            PeerWireError: the server violated the protocol.
        """
        waiting = not isinstance(self._socket, socket.socket) and self._socket.has_buffered_data()
        ready = waiting or self._messages or select.select([self._socket], [], [], timeout)[0]
        if ready and not self._messages:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                raise LinkLost("", None, "the server closed the connection")
            self._handle_data(data)
        while self._messages:
            yield self._messages.pop(0)

    def _handle_data(self, data: bytes) -> None:
        self.last_heard = time.monotonic()
        for frame in self._reader.feed(data):
            if frame.opcode == BINARY:
                self._messages.append(wire.unpack(frame.payload))
            elif frame.opcode == PING:
                with contextlib.suppress(OSError):
                    self._write(encode_frame(frame.payload, PONG, mask=True))
            elif frame.opcode == CLOSE:
                code = read_close_code(frame.payload)
                why = frame.payload[2:].decode(errors="replace")
                if code in _REFUSALS:
                    raise NotAllowed("", why or "the server does not know this board")
                raise LinkLost("", None, why or f"the server closed the link ({code})")

    def close(self) -> None:
        """Close the link, with a close frame unless a frame is half written."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._write(encode_close_frame(CLOSE_NO_STATUS, mask=True))
        with contextlib.suppress(OSError):
            self._socket.close()
