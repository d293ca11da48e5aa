"""Messages between servers: records in authenticated fragments. No sockets, no SQL.

The bus is not trusted. Each fragment carries a MAC with a key that only servers of the same store
know. It covers the sender, the recipient and a sequence number, so that forged, changed, replayed
and redirected fragments are dropped. All records that are sent to one server in one iteration of
the event loop share fragments.

    fragment: sender (8) ─ number (8) ─ flags (1) ─ MAC (16) ─ bytes of records
    record: length of head (4) ─ length of payload (4) ─ head, in JSON ─ payload
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from cloudmanager.protocol.errors import ServerError
from cm_server import cleanup

from .pubsub import PubSub

ALL = "all"  # the recipient of messages to all servers
FRAGMENT_BYTES = 512 * 1024  # NATS accepts messages of 1 MiB by default
REPLY_SECONDS = 2.0  # timeout of a request to another server
REPEAT_SECONDS = 0.6  # after which a request is repeated
BATCH_SECONDS = 0.002  # that pieces may wait for more: see ``PeerMessages.send_piece``
MAX_ROUTES = 256  # (sender, recipient) pairs whose last number is kept
MAX_REASSEMBLED_BYTES = 64 * 1024 * 1024  # of records that span several fragments
_HEAD = struct.Struct(">8sQB16s")
_RECORD = struct.Struct(">II")
_FIRST, _LAST = 1, 2  # flags: the first and the last fragment of a batch of records
#: Called with the sender's id, the head and the payload; for a request, returns both of the reply.
Handler = Callable[[str, dict[str, Any], bytes], Any]


class PeerMessages:
    """Sends, receives and dispatches the messages of one server.

    Args:
        pubsub: the bus.
        fleet: distinguishes the servers of this store from others on the same bus.
        key: the secret key that the servers of this store share.
        server_id: this server's id, 16 hex digits.

    Attributes:
        handlers: functions by the ``op`` of a message.
        dropped: the number of fragments that were dropped as invalid.
        heard_at: when each server's last message arrived, by the monotonic clock.
        on_gap: called when messages of another server are known to be lost.
    """

    def __init__(self, pubsub: PubSub, fleet: str, key: bytes, server_id: str) -> None:
        self.pubsub = pubsub
        self.handlers: dict[str, Handler] = {"reply": self._on_reply, "beat": _ignore}
        self.dropped = 0
        self.heard_at: dict[str, float] = {}
        self.on_gap: Callable[[], None] = lambda: None
        self._fleet, self._key, self._server_id = fleet, key, server_id
        self._numbers: dict[str, itertools.count[int]] = {}
        self._outbox: dict[str, list[bytes]] = {}
        #: The last record for each recipient if more can be added to it: its ``op`` and its pieces.
        self._open_batches: dict[str, tuple[str, list[bytes]]] = {}
        self._unconfirmed: set[str] = set()  # recipients of messages since the last beat
        self._flush_scheduled = False  # at the end of this iteration of the loop
        self._flush_timer: asyncio.TimerHandle | None = None  # for pieces that may wait
        self._last_numbers: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._partial: dict[tuple[str, str], bytearray] = {}
        self._refs = itertools.count(1)
        self._pending_replies: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}

    def start(self, on_connection_change: Callable[[bool], None]) -> None:
        """Start receiving.

        Args:
            on_connection_change: called with whether the bus is connected.
        """
        self.pubsub.subscribe(self._subject(ALL))
        self.pubsub.subscribe(self._subject(self._server_id))
        self.pubsub.start(self._on_fragment, on_connection_change)

    def change_server_id(self, server_id: str) -> None:
        """Continue with a new id; messages to the old one are dropped."""
        self._server_id = server_id
        self._numbers.clear()
        self.pubsub.subscribe(self._subject(server_id))

    def _subject(self, recipient: str) -> str:
        return f"cloudmanager.{self._fleet}.{recipient}"

    # Sending

    def send(self, recipient: str, op: str, head: dict[str, Any], payload: bytes = b"") -> None:
        """Send a message to a server or to ``ALL``, at the end of this iteration of the loop."""
        text = json.dumps({"op": op, **head}, separators=(",", ":")).encode()
        record = _RECORD.pack(len(text), len(payload)) + text + payload
        self._outbox_of(recipient).append(record)
        self._flush_soon()

    def send_piece(
        self, recipient: str, op: str, piece: bytes, *, more_follow: bool = False
    ) -> None:
        """Send a message without a head to a server; several in a row are one message for it.

        Its payload is the pieces, one after the other. Most messages are results of boards, and
        the JSON of a head for each would cost as much as everything else about them.

        Args:
            recipient: the server.
            op: of the message.
            piece: of its payload.
            more_follow: whether to wait for more pieces, for up to ``BATCH_SECONDS``: what each
                message costs two servers and the bus is more than what a result costs.
        """
        self._flush_soon(more_follow=more_follow)
        batch = self._open_batches.get(recipient)
        if batch is None or batch[0] != op:
            self._outbox_of(recipient)
            batch = self._open_batches[recipient] = op, []
        batch[1].append(piece)

    def _outbox_of(self, recipient: str) -> list[bytes]:
        """Return the records for a server that ``flush`` will send; more are added at the end."""
        self._unconfirmed.add(recipient)
        records = self._outbox.setdefault(recipient, [])
        if recipient in self._open_batches:
            op, pieces = self._open_batches.pop(recipient)
            text, payload = json.dumps({"op": op}).encode(), b"".join(pieces)
            records.append(_RECORD.pack(len(text), len(payload)) + text + payload)
        return records

    def send_beats(self) -> None:
        """Send a message to all servers, and one to each that was sent one since the last time.

        Its number shows whether the messages before it have arrived; it shows that this server
        can be heard.
        """
        for recipient in (self._unconfirmed - {ALL}, {ALL}):
            for each in recipient:
                self.send(each, "beat", {})
        self._unconfirmed.clear()

    def _flush_soon(self, *, more_follow: bool = False) -> None:
        """Flush at the end of this iteration of the event loop, or after ``BATCH_SECONDS``."""
        if self._flush_scheduled:
            return
        loop = asyncio.get_running_loop()
        if not more_follow:
            self._flush_scheduled = True
            loop.call_soon(self.flush)
        elif self._flush_timer is None:
            self._flush_timer = loop.call_later(BATCH_SECONDS, self.flush)

    def flush(self) -> None:
        """Publish the messages in the outbox."""
        self._flush_scheduled = False
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for recipient in list(self._open_batches):
            self._outbox_of(recipient)
        outbox, self._outbox = self._outbox, {}
        for recipient, records in outbox.items():
            batch = b"".join(records)
            for start in range(0, len(batch), FRAGMENT_BYTES):
                fragment = batch[start : start + FRAGMENT_BYTES]
                flags = _FIRST if start == 0 else 0
                if start + FRAGMENT_BYTES >= len(batch):
                    flags |= _LAST
                packed = self._pack_fragment(recipient, flags, fragment)
                self.pubsub.publish(self._subject(recipient), packed)

    def _pack_fragment(self, recipient: str, flags: int, fragment: bytes) -> bytes:
        number = next(self._numbers.setdefault(recipient, itertools.count(1)))
        mac = self._mac(self._server_id, recipient, number, flags, fragment)
        return _HEAD.pack(bytes.fromhex(self._server_id), number, flags, mac) + fragment

    def _mac(self, sender: str, recipient: str, number: int, flags: int, fragment: bytes) -> bytes:
        data = _mac_input(sender, recipient, number, flags, fragment)
        return hashlib.blake2b(data, digest_size=16, key=self._key).digest()

    @staticmethod
    def _is_authentic(mac: bytes, expected: bytes) -> bool:
        """Compare two MACs in constant time."""
        return hmac.compare_digest(mac, expected)

    async def request(
        self, recipient: str, op: str, head: dict[str, Any], payload: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request to a server, and return the head and the payload of its reply.

        It is repeated, because the bus may lose it, or the reply; so it must do no harm twice.

        Raises:
            ServerError: it does not reply in time.
        """
        ref = next(self._refs)
        reply: asyncio.Future[tuple[dict[str, Any], bytes]]
        reply = self._pending_replies[ref] = asyncio.get_running_loop().create_future()
        deadline = time.monotonic() + REPLY_SECONDS
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.send(recipient, op, {**head, "ref": ref}, payload)
                await asyncio.wait([reply], timeout=min(left, REPEAT_SECONDS))
                if reply.done():
                    return reply.result()
        finally:
            del self._pending_replies[ref]
        raise ServerError("another server that is needed for this does not answer")

    # Receiving

    def _on_fragment(self, data: bytes) -> None:
        if len(data) < _HEAD.size:
            self.dropped += 1
            return
        sender_raw, number, flags, mac = _HEAD.unpack_from(data)
        sender, fragment = sender_raw.hex(), data[_HEAD.size :]
        if sender == self._server_id:
            return
        for recipient in (self._server_id, ALL):
            if self._is_authentic(mac, self._mac(sender, recipient, number, flags, fragment)):
                self._add_fragment((sender, recipient), number, flags, fragment)
                return
        self.dropped += 1

    def _add_fragment(
        self, route: tuple[str, str], number: int, flags: int, fragment: bytes
    ) -> None:
        """Add an authentic fragment to its batch; handle the batch if it is complete.

        A batch of which a fragment was lost is dropped.
        """
        last = self._last_numbers.get(route, 0)
        if _is_replay(number, last):
            self.dropped += 1
            return
        self.heard_at[route[0]] = time.monotonic()
        if number != last + 1:
            self.on_gap()
        self._last_numbers[route] = number
        self._last_numbers.move_to_end(route)
        if len(self._last_numbers) > MAX_ROUTES:
            self._partial.pop(self._last_numbers.popitem(last=False)[0], None)
        batch = bytearray() if flags & _FIRST else self._partial.pop(route, None)
        if batch is None or (number != last + 1 and not flags & _FIRST):
            return  # an earlier fragment of the batch was lost
        batch += fragment
        if flags & _LAST:
            self._handle_records(route[0], bytes(batch))
        elif len(batch) < MAX_REASSEMBLED_BYTES:
            self._partial[route] = batch

    def _handle_records(self, sender: str, batch: bytes) -> None:
        at = 0
        while at < len(batch):
            head_size, payload_size = _RECORD.unpack_from(batch, at)
            payload_at = at + _RECORD.size + head_size
            head = json.loads(batch[at + _RECORD.size : payload_at])
            at = payload_at + payload_size
            handler = self.handlers.get(head["op"])
            if handler is not None:
                self._handle_record(handler, sender, head, batch[payload_at:at])

    def _handle_record(
        self, handler: Handler, sender: str, head: dict[str, Any], payload: bytes
    ) -> None:
        """Dispatch one message, and send its reply; log and drop it if its handler fails.

        A bug, or a message of a server of another version, must not stop the messages behind it.
        """
        try:
            reply = handler(sender, head, payload)
        except Exception as error:
            cleanup.log_failure(f"the message {head['op']!r} of another server", error)
            return
        if reply is not None and "ref" in head:
            reply_head, reply_payload = reply
            self.send(sender, "reply", {"to": head["ref"], "reply": reply_head}, reply_payload)

    def _on_reply(self, _sender: str, head: dict[str, Any], payload: bytes) -> None:
        pending = self._pending_replies.get(head["to"])
        if pending is not None and not pending.done():
            pending.set_result((head["reply"], payload))


def _ignore(_sender: str, _head: dict[str, Any], _payload: bytes) -> None:
    """Do nothing: what matters is that the message arrived."""


def _mac_input(sender: str, recipient: str, number: int, flags: int, fragment: bytes) -> bytes:
    """Return the bytes that a fragment's MAC covers: its route, number, flags and content."""
    return f"{sender} {recipient} {number} {flags} ".encode() + fragment


def _is_replay(number: int, last: int) -> bool:
    """Return whether a fragment with this number, or a later one, was received on its route."""
    return number <= last
