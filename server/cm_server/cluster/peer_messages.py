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

from .pubsub import Bus

log = logging.getLogger("cm_server")

ALL = "all"  # to every server
PIECE_BYTES = 512 * 1024  # NATS takes a megabyte
REPLY_SECONDS = 2.0  # that a server has to answer another
SENDERS = 256  # whose numbers are remembered
WHOLE_BYTES = 64 * 1024 * 1024  # of records that come in pieces
_HEAD = struct.Struct(">8sQB16s")
_RECORD = struct.Struct(">II")
_FIRST, _LAST = 1, 2
Handler = Callable[[str, dict[str, Any], bytes], Any]


class Post:
    """One server's letters.

    Args:
        bus: what carries them.
        fleet: what tells this store's servers from others on the same bus.
        key: what only they know.
        server: this server's id, 16 hex digits.
    """

    def __init__(self, bus: Bus, fleet: str, key: bytes, server: str) -> None:
        self.bus = bus
        self.handlers: dict[str, Handler] = {"reply": self._on_reply}
        self.dropped = 0  # pieces that were not what they should be
        self._fleet, self._key, self._server = fleet, key, server
        self._numbers: dict[str, itertools.count[int]] = {}
        self._out: dict[str, list[bytes]] = {}
        self._heard: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._parts: dict[tuple[str, str], bytearray] = {}
        self._refs = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}

    def open(self, changed: Callable[[bool], None]) -> None:
        """Begin to take letters; ``changed`` is told whether the bus is there."""
        self.bus.listen(self._subject(ALL))
        self.bus.listen(self._subject(self._server))
        self.bus.open(self._take, changed)

    def begin_anew(self, server: str) -> None:
        """Be another server: letters to the one before are not ours."""
        self._server = server
        self._numbers.clear()
        self.bus.listen(self._subject(server))

    def _subject(self, to: str) -> str:
        return f"cloudmanager.{self._fleet}.{to}"

    # Out

    def send(self, to: str, op: str, head: dict[str, Any], payload: bytes = b"") -> None:
        """Write to a server, or to ``ALL``; it leaves at the end of this turn of the loop."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self.flush)
        text = json.dumps({"op": op, **head}, separators=(",", ":")).encode()
        record = _RECORD.pack(len(text), len(payload)) + text + payload
        self._out.setdefault(to, []).append(record)

    def flush(self) -> None:
        """Let go what was written."""
        out, self._out = self._out, {}
        for to, records in out.items():
            whole = b"".join(records)
            last = (len(whole) - 1) // PIECE_BYTES
            for index in range(last + 1):
                piece = whole[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
                flags = _FIRST * (index == 0) | _LAST * (index == last)
                self.bus.publish(self._subject(to), self._pack(to, flags, piece))

    def _pack(self, to: str, flags: int, piece: bytes) -> bytes:
        number = next(self._numbers.setdefault(to, itertools.count(1)))
        mac = self._mac(self._server, to, number, flags, piece)
        return _HEAD.pack(bytes.fromhex(self._server), number, flags, mac) + piece

    def _mac(self, sender: str, to: str, number: int, flags: int, piece: bytes) -> bytes:
        said = f"{sender} {to} {number} {flags} ".encode() + piece
        return hashlib.blake2b(said, digest_size=16, key=self._key).digest()

    async def ask(
        self, to: str, op: str, head: dict[str, Any], payload: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """Write to a server, and return what it answers.

        Raises:
            ServerError: it does not answer in time.
        """
        ref = next(self._refs)
        reply = self._asked[ref] = asyncio.get_running_loop().create_future()
        self.send(to, op, {**head, "ref": ref}, payload)
        try:
            return await asyncio.wait_for(reply, REPLY_SECONDS)
        except TimeoutError:
            raise ServerError("another server, which has what it needs, does not answer") from None
        finally:
            del self._asked[ref]

    # In

    def _take(self, data: bytes) -> None:
        if len(data) < _HEAD.size:
            self.dropped += 1
            return
        raw, number, flags, mac = _HEAD.unpack_from(data)
        sender, piece = raw.hex(), data[_HEAD.size :]
        if sender == self._server:
            return
        for to in (self._server, ALL):
            if hmac.compare_digest(mac, self._mac(sender, to, number, flags, piece)):
                self._take_piece((sender, to), number, flags, piece)
                return
        self.dropped += 1

    def _take_piece(self, lane: tuple[str, str], number: int, flags: int, piece: bytes) -> None:
        last = self._heard.get(lane, 0)
        if number <= last:
            self.dropped += 1
            return
        self._heard[lane] = number
        self._heard.move_to_end(lane)
        if len(self._heard) > SENDERS:
            self._parts.pop(self._heard.popitem(last=False)[0], None)
        whole = bytearray() if flags & _FIRST else self._parts.pop(lane, None)
        if whole is None or (number != last + 1 and not flags & _FIRST):
            return  # its beginning was lost
        whole += piece
        if flags & _LAST:
            self._read(lane[0], bytes(whole))
        elif len(whole) < WHOLE_BYTES:
            self._parts[lane] = whole

    def _read(self, sender: str, whole: bytes) -> None:
        at = 0
        while at < len(whole):
            head_size, size = _RECORD.unpack_from(whole, at)
            begin = at + _RECORD.size + head_size
            head = json.loads(whole[at + _RECORD.size : begin])
            at = begin + size
            handler = self.handlers.get(head["op"])
            if handler is not None:
                self._handle(handler, sender, head, whole[begin:at])

    def _handle(self, handler: Handler, sender: str, head: dict[str, Any], payload: bytes) -> None:
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
        asked = self._asked.get(head["to"])
        if asked is not None and not asked.done():
            asked.set_result((head["reply"], payload))
