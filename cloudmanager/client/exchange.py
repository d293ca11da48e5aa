"""What a caller and the server say to each other: bytes in, bytes out; no sockets here.

``Exchange`` is the caller's half of docs/protocol.md, "Caller link": link.py moves its
bytes. People's threads call ``submit`` and ``request``, the link's thread calls ``feed``
and ``lose``; each dict below is written by one operation at a time, which the interpreter
makes whole.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, Final

from cloudmanager.config import ServerAddress
from cloudmanager.protocol import errors, frames, wire
from cloudmanager.protocol.errors import (
    CloudmanagerError,
    NotAllowed,
    PeerWireError,
    ServerError,
    ServerUnreachable,
    VersionMismatch,
)

from .future import Future
from .jobs import Job, JobGroup
from .outgoing import OutgoingFrame

MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024  # bytes; the server's frames are far smaller
CLOSE_REVOKED: Final = 4004  # the close code for a token that opens nothing any more
MAX_HEAD_BYTES: Final = 16 * 1024  # bytes of the answer's head
_UNKNOWN_OUTCOME: Final = "whether the cell runs is not known; `mbm job-list` tells"
_NOT_SENT: Final = "the cell was not sent: it does not run"
_LINK_BROKEN: Final = (
    "the link to the server broke; the cell goes on, and its outcome is with the server"
)


class Exchange:
    """One conversation with the server, from its handshake to its end.

    Args:
        address: the server, and the token that opens it.
        host: what the ``Host`` header says.
        send: writes a frame to the server, and returns at once; from any thread. What it returns
            tells how much of it has left.
    """

    def __init__(
        self, address: ServerAddress, host: str, send: Callable[[bytes], OutgoingFrame | None]
    ) -> None:
        self.opened: Future[None] = Future()
        self.closed = False
        self._address = address
        self._host = host
        self._send = send
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._head = b""
        self._refusal = ""  # why the server closed the link, where the token is why
        self._reader = frames.FrameReader(MAX_MESSAGE_BYTES, masked=False)
        self._refs = itertools.count(1)
        self._close_lock = threading.Lock()  # nothing is added once the link is lost
        self._replies: dict[int, Future[Any]] = {}
        self._groups: dict[int, JobGroup] = {}  # submitted, not yet accepted
        self._jobs: dict[int, tuple[JobGroup, Job]] = {}
        self._watch_callbacks: dict[int, Callable[[wire.Message | CloudmanagerError], None]] = {}

    # What people ask

    def handshake_request(self) -> bytes:
        """Return what a caller says first (RFC 6455, 4.1)."""
        token = self._address.token.encode("ascii", "replace").decode()
        token = "".join(char for char in token if char.isprintable())
        return (
            f"GET /caller HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {self._key}\r\n"
            f"Sec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n"
            f"Cm-Protocol: {wire.PROTOCOL}\r\n\r\n"
        ).encode()

    def submit(self, group: JobGroup, target: str, options: dict[str, Any]) -> None:
        """Send a cell (sends SUBMIT); the group learns what becomes of it."""
        ref = next(self._refs)
        head = {"target": target, "awaits": group.cell.awaits, **options}
        message = wire.pack_submit(ref, head, group.cell.code)
        with self._close_lock:
            lost = self.closed
            if not lost:
                self._groups[ref] = group
        if lost:
            group.on_refused(self._unreachable_error("the link broke"))
            return
        group.withdraw = functools.partial(self._withdraw, ref)
        try:
            group.frame = self._send(frames.encode_frame(message, mask=True))
        except BaseException:  # such as Ctrl-C: if it is sent all the same, it is not wanted
            group.interrupt()
            raise

    def _withdraw(self, ref: int) -> None:
        """Keep a cell that nobody wants any more from the server, if it does not have it yet."""
        group = self._groups.get(ref)
        if group is None or group.frame is None:
            return
        if group.frame.withdraw() and self._groups.pop(ref, None) is not None:
            group.on_refused(CloudmanagerError(f"interrupted: {_NOT_SENT}"))

    def request(self, verb: str, body: dict[str, Any]) -> Future[Any]:
        """Ask for something that is not a cell (sends REQUEST); return what becomes the reply."""
        ref = next(self._refs)
        return self._send_request(
            ref, wire.pack_json(wire.REQUEST, {"verb": verb, **body}, job=ref)
        )

    def send_content(self, upload: int, data: bytes) -> Future[Any]:
        """Send a piece of a file that was offered (sends CONTENT); the reply: it has been read."""
        ref = next(self._refs)
        return self._send_request(ref, wire.pack_content(ref, upload, data))

    def _send_request(self, ref: int, message: bytes) -> Future[Any]:
        reply = Future[Any]()
        with self._close_lock:
            lost = self.closed
            if not lost:
                self._replies[ref] = reply
        if lost:
            reply.set_exception(self._unreachable_error("the link broke"))
        else:
            self._send(frames.encode_frame(message, mask=True))
        return reply

    def ping_frame(self) -> bytes:
        """Return what asks the server for a sign of life."""
        return frames.encode_frame(b"", frames.PING, mask=True)

    def watch(
        self,
        target: str,
        *,
        samples: bool,
        on_message: Callable[[wire.Message | CloudmanagerError], None],
    ) -> int:
        """Follow boards (sends WATCH); return the number for ``unwatch``.

        ``on_message`` gets each CHANGES, in the link's thread, and an error as the last word: the
        server's no, or that the link broke.
        """
        ref = next(self._refs)
        message = wire.pack_json(wire.WATCH, {"target": target, "samples": samples}, job=ref)
        with self._close_lock:
            lost = self.closed
            if not lost:
                self._watch_callbacks[ref] = on_message
        if lost:
            on_message(self._unreachable_error("the link broke"))
        else:
            self._send(frames.encode_frame(message, mask=True))
        return ref

    def unwatch(self, ref: int) -> None:
        """Follow no more (sends UNWATCH)."""
        if self._watch_callbacks.pop(ref, None) is not None:
            self._send(frames.encode_frame(wire.pack(wire.UNWATCH, job=ref), mask=True))

    def _interrupt_jobs(self, numbers: list[int]) -> None:
        message = wire.pack_json(wire.REQUEST, {"verb": "interrupt", "jobs": numbers})
        self._send(frames.encode_frame(message, mask=True))

    def _answer_input(self, number: int, text: str | None) -> None:
        flags = wire.INPUT_EOF if text is None else 0
        message = wire.pack(wire.ANSWER, (text or "").encode(), job=number, flags=flags)
        self._send(frames.encode_frame(message, mask=True))

    # What the server says

    def handle_data(self, data: bytes) -> bool:
        """Take bytes from the server; return whether the link is to be kept."""
        try:
            if not self.opened.done:
                data = self._read_response_head(data)
            return all(self._on_frame(frame) for frame in self._reader.feed(data))
        except CloudmanagerError as error:
            if not self.opened.done:
                self.opened.set_exception(error)
            else:
                code = getattr(error, "close_code", frames.CLOSE_PROTOCOL_ERROR)
                self._send(frames.encode_close_frame(code, mask=True))
            return False

    def on_link_lost(self, reason: str = "it hung up") -> None:
        """Tell everybody who waits that the link is gone."""
        with self._close_lock:
            self.closed = True
        error: CloudmanagerError = self._unreachable_error(reason)
        if self._refusal:
            error = NotAllowed("caller", self._refusal)
        if not self.opened.done:
            self.opened.set_exception(error)
        for reply in self._replies.values():
            reply.set_exception(error)
        while self._groups:
            with contextlib.suppress(KeyError):  # another thread withdrew the last one
                self._refuse_lost(self._groups.popitem()[1], error, reason)
        for group, job in self._jobs.values():
            group.end_as_lost(job, _LINK_BROKEN)
        for tell in list(self._watch_callbacks.values()):
            tell(error)
        for waiting in (self._replies, self._jobs, self._watch_callbacks):
            waiting.clear()

    def _refuse_lost(self, group: JobGroup, error: CloudmanagerError, reason: str) -> None:
        """Tell a group that the link broke before the server had accepted its cell."""
        if not self._refusal:
            arrived = group.frame is None or group.frame.complete  # or may have
            error = self._unreachable_error(
                f"{reason}, and {_UNKNOWN_OUTCOME if arrived else _NOT_SENT}"
            )
        group.on_refused(error)

    def _unreachable_error(self, reason: str) -> ServerUnreachable:
        return ServerUnreachable(self._address.url, self._address.source, reason)

    def _read_response_head(self, data: bytes) -> bytes:
        """Take the answer to the handshake; return the bytes after it."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > MAX_HEAD_BYTES:
                raise self._unreachable_error("what answers there is no Cloudmanager server")
            return b""
        status, headers = _parse_head(head.decode("latin-1"))
        why = headers.get("cm-refused", "")[:200]  # in the server's words
        if status == 401:
            raise NotAllowed("caller", why or "the server does not know this token")
        if why:
            raise ServerError(why)
        if status == 409 and (theirs := _parse_number(headers.get("cm-protocol", ""))):
            raise VersionMismatch(wire.PROTOCOL, theirs)
        accepted = headers.get("sec-websocket-accept") == frames.accept_key(self._key)
        if status != 101 or not accepted:
            raise self._unreachable_error("what answers there is no Cloudmanager server")
        self.opened.set_result(None)
        return rest

    def _on_frame(self, frame: frames.Frame) -> bool:
        if frame.opcode == frames.BINARY:
            self._on_message(wire.unpack(frame.payload))
        elif frame.opcode == frames.PING:
            self._send(frames.encode_frame(frame.payload, frames.PONG, mask=True))
        elif frame.opcode == frames.CLOSE:
            code = frames.read_close_code(frame.payload)
            if code == CLOSE_REVOKED:
                self._refusal = frame.payload[2:].decode("utf-8", "replace")
            self._send(frames.encode_close_frame(code, mask=True))
        return frame.opcode != frames.CLOSE

    def _on_message(self, message: wire.Message) -> None:
        if message.op == wire.EVENTS:
            for event in wire.read_events(message.payload):
                self._on_event(event)
        elif message.op == wire.REPLY:
            self._on_reply(message.job, wire.read_json(message.payload))
        elif message.op == wire.CHANGES:
            self._watch_callbacks.get(message.job, _ignore_message)(message)
        else:
            raise PeerWireError(f"the server sent op 0x{message.op:02x}")

    def _on_event(self, message: wire.Message) -> None:
        if message.op == wire.ACCEPTED:
            self._on_accepted(message)
        elif message.job in self._jobs:
            group, job = self._jobs[message.job]
            group.handle_message(job, message)
            if message.op in wire.JOB_END_OPS:
                del self._jobs[message.job]

    def _on_accepted(self, message: wire.Message) -> None:
        body = wire.read_json(message.payload)
        try:
            group = self._groups[message.job]
            jobs = group.on_accepted(body, self._interrupt_jobs, self._answer_input)
        except (KeyError, TypeError, ValueError) as error:
            raise PeerWireError("the server sent an ACCEPTED that is malformed") from error
        del self._groups[message.job]
        self._jobs.update((number, (group, job)) for number, job in jobs.items())

    def _on_reply(self, ref: int, body: dict[str, Any]) -> None:
        group, reply = self._groups.pop(ref, None), self._replies.pop(ref, None)
        watching = self._watch_callbacks.pop(ref, _ignore_message)
        error = _read_error(body) if "error" in body else None
        watching(error or ServerError("it answered with something else"))
        if group is not None:
            group.on_refused(error or ServerError("it answered with something else"))
        elif reply is not None and error is not None:
            reply.set_exception(error)
        elif reply is not None:
            reply.set_result(body.get("reply"))


def _ignore_message(_: wire.Message | CloudmanagerError) -> None:
    """Follow nothing: it was said before the server knew of an UNWATCH."""


def _read_error(body: dict[str, Any]) -> CloudmanagerError:
    """Return the error that the server raised, as it crossed."""
    kind = getattr(errors, str(body["error"]), None)
    if isinstance(kind, type) and issubclass(kind, CloudmanagerError):
        try:
            return kind(*body.get("args", ()))
        except (TypeError, ValueError, AttributeError):  # an older or newer one's arguments
            pass
    return ServerError(f"{body['error']}: {body.get('args')}")


def _parse_head(text: str) -> tuple[int, dict[str, str]]:
    """Return status and headers (lower case) of an HTTP answer; status 0 if it is none."""
    first, *lines = text.split("\r\n")
    parts = first.split(" ", 2)
    number = parts[1] if parts[0].startswith("HTTP/1.") and len(parts) > 1 else ""
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return _parse_number(number), headers


def _parse_number(text: str) -> int:
    """Return a small number; 0 for all that is none."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0
