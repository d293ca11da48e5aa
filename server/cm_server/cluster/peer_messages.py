"""What servers write to each other: records in pieces, each with a MAC; no sockets, no SQL.

The bus is not trusted. Its pieces carry a MAC under a key that only the store's servers know,
over who sends it to whom and its number, which only goes up: what is forged, changed, replayed or
led astray is dropped. What one turn of the loop writes to one server shares pieces.

    piece: sender (8) ─ number (8) ─ flags (1) ─ MAC (16) ─ bytes of records
    record: length of head (4) ─ length of payload (4) ─ head, in JSON ─ payload
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import logging
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from cloudmanager.protocol.errors import ServerError

from .pubsub import PubSub

log = logging.getLogger("cm_server")

ALL = "all"  # to every server
FRAGMENT_BYTES = 512 * 1024  # NATS takes a megabyte
REPLY_SECONDS = 2.0  # that a server has to answer another
MAX_ROUTES = 256  # whose numbers are remembered
MAX_REASSEMBLED_BYTES = 64 * 1024 * 1024  # of records that come in pieces
_HEAD = struct.Struct(">8sQB16s")
_RECORD = struct.Struct(">II")
_FIRST, _LAST = 1, 2
Handler = Callable[[str, dict[str, Any], bytes], Any]


class PeerMessages:
    """One server's letters.

    Args:
        pubsub: what carries them.
        fleet: what tells this store's servers from others on the same bus.
        key: what only they know.
        server_id: this server's id, 16 hex digits.
    """

    def __init__(self, pubsub: PubSub, fleet: str, key: bytes, server_id: str) -> None:
        self.pubsub = pubsub
        self.handlers: dict[str, Handler] = {"reply": self._on_reply}
        self.dropped = 0  # pieces that were not what they should be
        self._fleet, self._key, self._server_id = fleet, key, server_id
        self._numbers: dict[str, itertools.count[int]] = {}
        self._outbox: dict[str, list[bytes]] = {}
        self._last_numbers: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._partial: dict[tuple[str, str], bytearray] = {}
        self._refs = itertools.count(1)
        self._pending_replies: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}

    def start(self, on_connection_change: Callable[[bool], None]) -> None:
        """Begin to take letters; ``on_connection_change`` is told whether the bus is there."""
        self.pubsub.subscribe(self._subject(ALL))
        self.pubsub.subscribe(self._subject(self._server_id))
        self.pubsub.start(self._on_fragment, on_connection_change)

    def change_server_id(self, server_id: str) -> None:
        """Be another server: letters to the one before are not ours."""
        self._server_id = server_id
        self._numbers.clear()
        self.pubsub.subscribe(self._subject(server_id))

    def _subject(self, recipient: str) -> str:
        return f"cloudmanager.{self._fleet}.{recipient}"

    # Out

    def send(self, recipient: str, op: str, head: dict[str, Any], payload: bytes = b"") -> None:
        """Write to a server, or to ``ALL``; it leaves at the end of this turn of the loop."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self.flush)
        text = json.dumps({"op": op, **head}, separators=(",", ":")).encode()
        record = _RECORD.pack(len(text), len(payload)) + text + payload
        self._outbox.setdefault(recipient, []).append(record)

    def flush(self) -> None:
        """Let go what was written."""
        out, self._outbox = self._outbox, {}
        for to, records in out.items():
            whole = b"".join(records)
            last = (len(whole) - 1) // FRAGMENT_BYTES
            for index in range(last + 1):
                piece = whole[index * FRAGMENT_BYTES : (index + 1) * FRAGMENT_BYTES]
                flags = _FIRST * (index == 0) | _LAST * (index == last)
                self.pubsub.publish(self._subject(to), self._pack_fragment(to, flags, piece))

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
        """Write to a server, and return what it answers.

        Raises:
            ServerError: it does not answer in time.
        """
        ref = next(self._refs)
        reply = self._pending_replies[ref] = asyncio.get_running_loop().create_future()
        self.send(recipient, op, {**head, "ref": ref}, payload)
        try:
            return await asyncio.wait_for(reply, REPLY_SECONDS)
        except TimeoutError:
            raise ServerError("another server, which has what it needs, does not answer") from None
        finally:
            del self._pending_replies[ref]

    # In

    def _on_fragment(self, data: bytes) -> None:
        if len(data) < _HEAD.size:
            self.dropped += 1
            return
        raw, number, flags, mac = _HEAD.unpack_from(data)
        sender, piece = raw.hex(), data[_HEAD.size :]
        if sender == self._server_id:
            return
        for to in (self._server_id, ALL):
            if self._is_authentic(mac, self._mac(sender, to, number, flags, piece)):
                self._add_fragment((sender, to), number, flags, piece)
                return
        self.dropped += 1

    def _add_fragment(
        self, route: tuple[str, str], number: int, flags: int, fragment: bytes
    ) -> None:
        last = self._last_numbers.get(route, 0)
        if _is_replay(number, last):
            self.dropped += 1
            return
        self._last_numbers[route] = number
        self._last_numbers.move_to_end(route)
        if len(self._last_numbers) > MAX_ROUTES:
            self._partial.pop(self._last_numbers.popitem(last=False)[0], None)
        whole = bytearray() if flags & _FIRST else self._partial.pop(route, None)
        if whole is None or (number != last + 1 and not flags & _FIRST):
            return  # its beginning was lost
        whole += fragment
        if flags & _LAST:
            self._handle_records(route[0], bytes(whole))
        elif len(whole) < MAX_REASSEMBLED_BYTES:
            self._partial[route] = whole

    def _handle_records(self, sender: str, whole: bytes) -> None:
        at = 0
        while at < len(whole):
            head_size, size = _RECORD.unpack_from(whole, at)
            begin = at + _RECORD.size + head_size
            head = json.loads(whole[at + _RECORD.size : begin])
            at = begin + size
            handler = self.handlers.get(head["op"])
            if handler is not None:
                self._handle_record(handler, sender, head, whole[begin:at])

    def _handle_record(
        self, handler: Handler, sender: str, head: dict[str, Any], payload: bytes
    ) -> None:
        """Act on a record; a bug of ours, or an older server's words, harm nobody else's."""
        try:
            reply = handler(sender, head, payload)
        except Exception:
            log.exception("a letter of another server's: %s", head["op"])
            return
        if reply is not None and "ref" in head:
            told, data = reply
            self.send(sender, "reply", {"to": head["ref"], "reply": told}, data)

    def _on_reply(self, _sender: str, head: dict[str, Any], payload: bytes) -> None:
        asked = self._pending_replies.get(head["to"])
        if asked is not None and not asked.done():
            asked.set_result((head["reply"], payload))


def _mac_input(sender: str, recipient: str, number: int, flags: int, fragment: bytes) -> bytes:
    """Return the bytes that a fragment's MAC covers: its route, number, flags and content."""
    return f"{sender} {recipient} {number} {flags} ".encode() + fragment


def _is_replay(number: int, last: int) -> bool:
    """Return whether a fragment with this number, or a later one, was received on its route."""
    return number <= last
