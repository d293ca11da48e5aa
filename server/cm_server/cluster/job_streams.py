"""Counts of the messages about a job that cross the bus, by which lost ones are noticed.

The server that runs a job for another server's caller counts what it sends, by kind, and says so
with each message and each second. The caller's server compares.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from cloudmanager.protocol import wire

#: The kinds of messages that are counted, as indexes of a list of counts.
OUTPUT, VALUE, CHUNKS, INPUTS = range(4)
KINDS: Final = 4
_KIND_BY_OP: Final = {
    wire.OUTPUT: OUTPUT,
    wire.VALUE: VALUE,
    wire.CHUNK: CHUNKS,
    wire.INPUT: INPUTS,
}


def kind_of(message: bytes) -> int | None:
    """Return the kind of a packed message; None if it is not counted.

    TRUNCATED counts as what it stands for.
    """
    op, flags, _ = wire.HEADER.unpack_from(message)
    if op == wire.TRUNCATED:
        return VALUE if flags & wire.VALUE_TRUNCATED else OUTPUT
    return _KIND_BY_OP.get(op)


#: Before each message about a job in a batch: its length, and how many of each kind were sent.
_PIECE = struct.Struct(f">I{KINDS}I")


def pack_counted(message: bytes, sent: Sequence[int]) -> bytes:
    """Pack a message about a job with the numbers of messages that were sent until now."""
    return _PIECE.pack(len(message), *sent) + message


def read_counted(batch: bytes) -> Iterator[tuple[bytes, list[int]]]:
    """Yield the messages of a batch, each with its numbers."""
    at = 0
    while at < len(batch):
        size, *sent = _PIECE.unpack_from(batch, at)
        at += _PIECE.size + size
        yield batch[at - size : at], sent
