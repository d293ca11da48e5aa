"""The caller's side of the protocol with the server: bytes in, bytes out; no sockets here.

``Exchange`` implements docs/protocol.md, "Caller link"; ``ServerLink`` sends and receives its
bytes. User threads call ``submit`` and ``request``; the link's thread calls ``handle_data`` and
``on_link_lost``. Each change of a dict below is one operation, which CPython makes atomic.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

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

from .forks import RESULT_IN_PARENT, forked_error
from .future import Future, Source
from .jobs import Job, JobGroup

MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024  # the server's frames are far smaller
MAX_INTERRUPTED_JOBS: Final = 5000  # in one request; the server accepts twice as many
MAX_HEAD_BYTES: Final = 16 * 1024  # of the HTTP response to the handshake
_EVENTS: Final = bytes((wire.EVENTS,))
_UNKNOWN_OUTCOME: Final = "it is not known whether the cell runs; `mbm job-list` shows it"
_NOT_SENT: Final = "the cell was not sent: it does not run"
_LINK_BROKEN: Final = (
    "the link to the server broke; the cell continues, and the server records its outcome"
)
_NO_SERVER: Final = "the program that answers there is not a Cloudmanager server"
_UNEXPECTED_REPLY: Final = "it sent a reply of another kind than was expected"


class Folder(Protocol):
    """A folder of this computer that is mounted on boards."""

    def refresh(self) -> None:
        """Send boards what has changed in it."""


class Exchange:
    """The messages of one connection to the server, from the handshake to its end.

    Args:
        address: the server, and the caller's token.
        host: value of the ``Host`` header.
        send: sends a frame to the server without waiting; from any thread. See ``Outgoing.send``.

    Attributes:
        opened: set when the server has accepted the handshake.
        closed: whether the link is lost.
        on_watch_deleted: called when nobody reads a subscription any more.
        source: the link, if threads that wait for a result may read it themselves; else None.
    """

    def __init__(self, address: ServerAddress, host: str, send: Callable[..., object]) -> None:
        self.source: Source | None = None
        self.opened: Future[None] = Future()
        self.closed = False
        self._address = address
        self._host = host
        self._send = send
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._head = b""
        self._refusal = ""  # the server's explanation, if it closed the link because of the token
        self._reader = frames.FrameReader(MAX_MESSAGE_BYTES, masked=False)
        self._refs = itertools.count(1)
        self._close_lock = threading.Lock()  # nothing is added after the link was lost
        self._replies: dict[int, Future[Any]] = {}
        self._reply_parts: dict[int, Any] = {}  # of replies that are not complete
        self._groups: dict[int, JobGroup] = {}  # submitted, not yet accepted
        self._jobs: dict[int, tuple[JobGroup, Job]] = {}
        self._watch_callbacks: dict[int, Callable[[wire.Message | CloudmanagerError], None]] = {}
        self._mounts: dict[int, Callable[[Exchange, wire.Message], None]] = {}
        self._folders: tuple[
            Folder, ...
        ] = ()  # mounted ones; replaced, so that any thread reads it
        self._deleted_watches: set[int] = set()  # for which UNWATCH has to be sent
        self.on_watch_deleted: Callable[[], None] = lambda: None

    # Called by user threads

    def handshake_request(self) -> bytes:
        """Return the HTTP request that opens the WebSocket (RFC 6455, 4.1)."""
        token = self._address.token.encode("ascii", "replace").decode()
        token = "".join(char for char in token if char.isprintable())
        return (
            f"GET /caller HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {self._key}\r\n"
            f"Sec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n"
            f"Cm-Protocol: {wire.PROTOCOL}\r\n\r\n"
        ).encode()

    def submit(self, group: JobGroup, target: str) -> None:
        """Send a cell (sends SUBMIT); the group receives its events and results."""
        for folder in self._folders:
            folder.refresh()
        ref = next(self._refs)
        head = {"target": target, **group.submit_head()}
        message = wire.pack_submit(ref, head, group.cell.code)
        with self._close_lock:
            lost = self.closed
            if not lost:
                self._groups[ref] = group
        if lost:
            group.on_refused(self._unreachable_error("the link broke"))
            return
        group.withdraw = functools.partial(self._withdraw, ref)
        if group.is_silent:
            group.accepted.source = group.finished.source = self.source
        else:
            self._read_on()
        try:
            self._send(
                frames.encode_frame(message, mask=True), group.set_frame
            )  # set before a byte is sent
        except BaseException:  # such as Ctrl-C: the cell may be sent, but must not run
            group.interrupt()
            raise

    def _read_on(self) -> None:
        """Let the link's thread read: somebody is to hear from the server who does not wait."""
        if self.source is not None:
            self.source.read_on()

    def _withdraw(self, ref: int) -> None:
        """Stop a cell from reaching the server, unless it has been sent completely."""
        group = self._groups.get(ref)
        if group is None or group.frame is None:
            return
        if group.frame.withdraw() and self._groups.pop(ref, None) is not None:
            group.on_refused(CloudmanagerError(f"interrupted: {_NOT_SENT}"))

    def request(self, verb: str, body: dict[str, Any]) -> Future[Any]:
        """Call a verb of the server (sends REQUEST); return a future of the reply."""
        ref = next(self._refs)
        message = wire.pack_json(
            wire.REQUEST, {"verb": verb, **body}, job=ref, flags=wire.ACCEPTS_PARTS
        )
        return self._send_request(ref, message)

    def send_content(self, upload: int, data: bytes) -> Future[Any]:
        """Upload a piece of a file (sends CONTENT); the reply confirms that it was received."""
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
            self._read_on()
            self._send(frames.encode_frame(message, mask=True))
        return reply

    def queued_jobs(self) -> list[Job]:
        """Return the jobs of this link that have not started, by number."""
        return [job for _, job in list(self._jobs.values()) if job.state == "queued"]

    def ping_frame(self) -> bytes:
        """Return a ping frame; the server must answer it."""
        return frames.encode_frame(b"", frames.PING, mask=True)

    def watch(
        self,
        target: str,
        wanted: Mapping[str, bool],
        on_message: Callable[[wire.Message | CloudmanagerError], None],
    ) -> int:
        """Subscribe to boards (sends WATCH); return the number for ``unwatch``.

        Args:
            target: the boards.
            wanted: whether to receive the ``samples`` that they emit, and their ``logs``.
            on_message: called in the link's thread with each CHANGES, and at the end with an error:
                the server refused, or the link broke.
        """
        ref = next(self._refs)
        message = wire.pack_json(wire.WATCH, {"target": target, **wanted}, job=ref)
        with self._close_lock:
            lost = self.closed
            if not lost:
                self._watch_callbacks[ref] = on_message
        if lost:
            on_message(self._unreachable_error("the link broke"))
        else:
            self._read_on()
            self._send(frames.encode_frame(message, mask=True))
        return ref

    def unwatch(self, ref: int) -> None:
        """End a subscription (sends UNWATCH)."""
        if self._watch_callbacks.pop(ref, None) is not None:
            self._send(frames.encode_frame(wire.pack(wire.UNWATCH, job=ref), mask=True))

    def delete_watch(self, ref: int) -> None:
        """Forget a subscription whose reader was deleted.

        Called by the garbage collector in any thread, so no lock is acquired, and nothing is sent:
        UNWATCH follows when the server sends the next update.
        """
        if self._watch_callbacks.pop(ref, None) is not None:
            self._deleted_watches.add(ref)
        self.on_watch_deleted()

    # Mounted folders

    def add_mount(self, on_read: Callable[[Exchange, wire.Message], None]) -> int:
        """Return a new number for the list of a folder that is mounted.

        Args:
            on_read: called in the link's thread with this exchange and each READ.
        """
        number = next(self._refs)
        self._mounts[number] = on_read
        self._read_on()
        return number

    def forget_mounts(self, numbers: Iterable[int]) -> None:
        """Forget lists; files are not read by them any more."""
        for number in numbers:
            self._mounts.pop(number, None)

    def add_folder(self, folder: Folder) -> None:
        """Call a folder's ``refresh`` before each cell that is sent from now on."""
        with self._close_lock:
            self._folders = (*self._folders, folder)

    def remove_folder(self, folder: Folder) -> None:
        """Leave a folder alone from now on."""
        with self._close_lock:
            self._folders = tuple(each for each in self._folders if each is not folder)

    def send_block(self, mount: int, number: int, data: bytes, flags: int) -> None:
        """Answer a READ of the server (sends BLOCK)."""
        message = wire.pack_block(number, data, job=mount, flags=flags)
        self._send(frames.encode_frame(message, mask=True))

    def _interrupt_jobs(self, numbers: list[int]) -> None:
        for start in range(0, len(numbers), MAX_INTERRUPTED_JOBS):
            body = {"verb": "interrupt", "jobs": numbers[start : start + MAX_INTERRUPTED_JOBS]}
            self._send(frames.encode_frame(wire.pack_json(wire.REQUEST, body), mask=True))

    def _answer_input(self, number: int, text: str | None) -> None:
        flags = wire.INPUT_EOF if text is None else 0
        message = wire.pack(wire.ANSWER, (text or "").encode(), job=number, flags=flags)
        self._send(frames.encode_frame(message, mask=True))

    # Called by the link's thread

    def handle_data(self, data: bytes) -> bool:
        """Handle bytes from the server; return False if the link must be closed."""
        try:
            if not self.opened.done:
                data = self._read_response_head(data)
            return all(map(self._on_frame, self._reader.feed(data)))
        except CloudmanagerError as error:
            if not self.opened.done:
                self.opened.set_exception(error)
            else:
                code = getattr(error, "close_code", frames.CLOSE_PROTOCOL_ERROR)
                self._send(frames.encode_close_frame(code, mask=True))
            return False

    def on_link_lost(self, reason: str = "it closed the connection") -> None:
        """End everything that waits for the server: the link is lost."""
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
        for on_message in list(self._watch_callbacks.values()):
            on_message(error)
        self._replies.clear()
        self._reply_parts.clear()
        self._jobs.clear()
        self._watch_callbacks.clear()
        self._mounts.clear()

    @property
    def in_use(self) -> bool:
        """Whether somebody waits for a message of the server."""
        waiting = self._replies or self._groups or self._jobs or self._watch_callbacks
        return bool(waiting or self._mounts)

    def after_fork_in_child(self) -> None:
        """End everything that waits for the server: only the parent process hears from it."""
        self._close_lock = threading.Lock()  # another thread may have held it during the fork
        self.closed = True
        error = forked_error()
        for reply in self._replies.values():
            reply.set_exception(error)
        for group in self._groups.values():
            group.on_refused(error)
        for group, job in self._jobs.values():
            group.end_as_lost(job, RESULT_IN_PARENT)
        self._replies.clear()
        self._groups.clear()
        self._jobs.clear()
        self._mounts.clear()
        self._folders = ()
        self._watch_callbacks.clear()  # not called: see ``Watch.__next__``

    def _refuse_lost(self, group: JobGroup, error: CloudmanagerError, reason: str) -> None:
        """End a group whose cell the server had not accepted when the link broke."""
        if not self._refusal:
            may_have_arrived = group.frame is None or group.frame.complete
            outcome = _UNKNOWN_OUTCOME if may_have_arrived else _NOT_SENT
            error = self._unreachable_error(f"{reason}, and {outcome}")
        group.on_refused(error)

    def _unreachable_error(self, reason: str) -> ServerUnreachable:
        return ServerUnreachable(self._address.url, self._address.source, reason)

    def _read_response_head(self, data: bytes) -> bytes:
        """Handle bytes of the HTTP response to the handshake; return the bytes after it."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > MAX_HEAD_BYTES:
                raise self._unreachable_error(_NO_SERVER)
            return b""
        status, headers = _parse_head(head.decode("latin-1"))
        why = headers.get("cm-refused", "")[:200]  # the server's explanation
        if status == 401:
            raise NotAllowed("caller", why or "the server does not know this token")
        if why:
            raise ServerError(why)
        if status == 409 and (theirs := _parse_number(headers.get("cm-protocol", ""))):
            raise VersionMismatch(wire.PROTOCOL, theirs)
        accepted = headers.get("sec-websocket-accept") == frames.accept_key(self._key)
        if status != 101 or not accepted:
            raise self._unreachable_error(_NO_SERVER)
        self.opened.set_result(None)
        return rest

    def _on_frame(self, frame: frames.Frame) -> bool:
        if frame.opcode == frames.BINARY:
            if frame.payload[:1] == _EVENTS:  # not unpacked: that would copy all messages
                for message in wire.read_events(frame.payload, wire.HEADER.size):
                    _HANDLERS.get(message.op, Exchange._on_job_message)(self, message)
            else:
                message = wire.unpack(frame.payload)
                _HANDLERS.get(message.op, Exchange._on_unexpected)(self, message)
        elif frame.opcode == frames.PING:
            self._send(frames.encode_frame(frame.payload, frames.PONG, mask=True))
        elif frame.opcode == frames.CLOSE:
            code = frames.read_close_code(frame.payload)
            if code == frames.CLOSE_REVOKED:
                self._refusal = frame.payload[2:].decode("utf-8", "replace")
            self._send(frames.encode_close_frame(code, mask=True))
        return frame.opcode != frames.CLOSE

    def _on_reply(self, message: wire.Message) -> None:
        body = wire.read_json(message.payload)
        if message.flags & wire.MORE_PARTS or message.job in self._reply_parts:
            self._join_part(message.job, body)
        if not message.flags & wire.MORE_PARTS:
            self._reply_parts.pop(message.job, None)
            self._end_request(message.job, body)

    def _join_part(self, ref: int, body: dict[str, Any]) -> None:
        """Add one part of a long reply to those before it; ``body`` gets all of them.

        Raises:
            PeerWireError: the parts are not lists, and not objects either.
        """
        part = body.get("reply")
        if "error" in body:
            return
        known = self._reply_parts.setdefault(ref, part)
        if known is not part:
            if isinstance(known, list) and isinstance(part, list):
                known += part
            elif isinstance(known, dict) and isinstance(part, dict):
                known |= part
            else:
                raise PeerWireError("the server sent parts of different replies")
        body["reply"] = known

    def _on_changes(self, message: wire.Message) -> None:
        self._watch_callbacks.get(message.job, _ignore_message)(message)
        if message.job in self._deleted_watches:
            self._deleted_watches.remove(message.job)
            self._send(frames.encode_frame(wire.pack(wire.UNWATCH, job=message.job), mask=True))

    def _on_job_message(self, message: wire.Message) -> None:
        if message.job in self._jobs:
            group, job = self._jobs[message.job]
            group.handle_message(job, message)
            if message.op in wire.JOB_END_OPS:
                del self._jobs[message.job]

    def _on_read(self, message: wire.Message) -> None:
        """Leave a READ to its mounted folder; refuse one for a folder that is not mounted now."""
        on_read = self._mounts.get(message.job)
        if on_read is not None:
            on_read(self, message)
        else:
            request = wire.read_read_request(message)
            self.send_block(message.job, request.number, b"", wire.UNREADABLE)

    def _on_unexpected(self, message: wire.Message) -> None:
        raise PeerWireError(f"the server sent op 0x{message.op:02x}")

    def _on_accepted(self, message: wire.Message) -> None:
        body = wire.read_json(message.payload)
        try:
            group = self._groups[message.job]
            jobs = group.on_accepted(body, self._interrupt_jobs, self._answer_input)
        except (KeyError, TypeError, ValueError) as error:
            raise PeerWireError("the server sent a malformed ACCEPTED") from error
        del self._groups[message.job]
        self._jobs.update((number, (group, job)) for number, job in jobs.items())

    def _end_request(self, ref: int, body: dict[str, Any]) -> None:
        """Hand a complete reply, or an error, to whoever waits for it."""
        group = self._groups.pop(ref, None)
        reply = self._replies.pop(ref, None)
        on_message = self._watch_callbacks.pop(ref, _ignore_message)
        error = _read_error(body) if "error" in body else None
        on_message(error or ServerError(_UNEXPECTED_REPLY))
        if group is not None:
            group.on_refused(error or ServerError(_UNEXPECTED_REPLY))
        elif reply is not None and error is not None:
            reply.set_exception(error)
        elif reply is not None:
            reply.set_result(body.get("reply"))


#: The handler of each message that is not about one job; those are in ``jobs``.
_HANDLERS: Final = {
    wire.REPLY: Exchange._on_reply,
    wire.CHANGES: Exchange._on_changes,
    wire.ACCEPTED: Exchange._on_accepted,
    wire.READ: Exchange._on_read,
}


def _ignore_message(_: wire.Message | CloudmanagerError) -> None:
    """Ignore a message that was sent before the server received UNWATCH."""


def _read_error(body: dict[str, Any]) -> CloudmanagerError:
    """Return the error in a reply, as an instance of its class if that is known here."""
    kind = getattr(errors, str(body["error"]), None)
    if isinstance(kind, type) and issubclass(kind, CloudmanagerError):
        try:
            return kind(*body.get("args", ()))
        except (TypeError, ValueError, AttributeError):  # another version's arguments
            pass
    return ServerError(f"{body['error']}: {body.get('args')}")


def _parse_head(text: str) -> tuple[int, dict[str, str]]:
    """Return status and headers (lower case) of an HTTP response; status 0 if it is not one."""
    first, *lines = text.split("\r\n")
    parts = first.split(" ", 2)
    number = parts[1] if parts[0].startswith("HTTP/1.") and len(parts) > 1 else ""
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return _parse_number(number), headers


def _parse_number(text: str) -> int:
    """Return a number of at most nine digits; 0 for any other text."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0
