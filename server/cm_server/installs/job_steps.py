"""Acts on a board's files that depend on what it answers: one job in several steps; no sockets.

What is to be done is a generator: it yields acts, is sent what each of them gave, and in the end
returns what the caller is told. It runs here, for each board; the board does one act after the
other. So a job of many steps is queued, interrupted, timed out and told of like any other.

    FILE(acts, more) ──▶  ◀── CHUNK(gave) …   DATA(next acts) ──▶ …   DATA(no more) ──▶  ◀── RESULT
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PackageError, PeerWireError
from cm_server import limits

from .content_store import Content
from .transfers import FileTransfer, FileTransferSpec

if TYPE_CHECKING:
    from cm_server.jobs.jobs import Job
    from cm_server.jobs.registry import Board

#: An act on files as a board has it; of a `put`, the content stands in place of size and SHA-256.
FileOp = list[Any]
#: Yields acts, is sent what they gave; raises PackageError or OSError; returns what came of it.
OpGenerator = Generator[Sequence[FileOp], list[Any], Any]


class JobRefused(Exception):
    """A job that the server ends; ``error_text`` names the error as a board would."""

    def __init__(self, error: PackageError | OSError) -> None:
        if isinstance(error, OSError):
            number = error.errno or errno.EIO
            self.error_text = (
                f"OSError: [Errno {number}] {errno.errorcode[number]}: {error.filename}"
            )
        else:
            self.error_text = f"PackageError: {error.args[0]}"
        super().__init__(self.error_text)


class SteppedJobSpec:
    """A job in several steps, on any number of boards.

    Args:
        first_ops: acts that it begins with, the same for all boards.
        make_generator: makes what goes on from there, for one of them: its first acts are those.
        ack_bytes: bytes after which a board tells how far it is.
    """

    reads_files = replaces_starter = False

    def __init__(
        self,
        first_ops: Sequence[FileOp],
        make_generator: Callable[[Board], OpGenerator],
        ack_bytes: int,
    ) -> None:
        self.code = wire.pack_file_ops(ack_bytes, first_ops, stepwise=True)
        self.ack_bytes = ack_bytes
        self._make_generator = make_generator

    def start(self, job: Job, send: Callable[[bytes], object]) -> SteppedJob:
        """Return its course on one board."""
        return SteppedJob(job, self._make_generator(job.board), send, self.ack_bytes)


class SteppedJob:
    """One board's course through a ``Work``."""

    def __init__(
        self, job: Job, generator: OpGenerator, send: Callable[[bytes], object], ack_bytes: int
    ) -> None:
        self._job = job
        self._generator = generator
        self._send = send
        self._ack_bytes = ack_bytes
        size = job.board.buffer_size
        self._payload_bytes = size - wire.HEADER.size
        self._transfer = FileTransfer(
            job.id, FileTransferSpec(ack_bytes, (), reads_files=False), send, size
        )
        self._ops = list(next(generator))
        self._ops_sent = len(self._ops)  # how many of them the board knows of
        self._results: list[Any] = []
        self._received = bytearray()  # of a file that the board sends

    def on_chunk(self, message: wire.Message) -> bool:
        """Take what an act gave, or of a file; return whether the caller is to see it.

        Raises:
            Refused: it goes no further.
            PeerWireError: it is malformed.
        """
        if len(self._results) == self._ops_sent:
            raise PeerWireError("the board answers what nobody asked")
        act = self._ops[len(self._results)]
        if message.flags & wire.OP_RESULT:
            self._on_op_result(act, _read_result(message.payload))
        elif act[0] == "put":
            return self._transfer.on_chunk(message)
        elif len(self._received) < limits.PACKAGE_DOCUMENT_BYTES:
            self._received += message.payload
            self._transfer.acknowledge(len(message.payload))
        return False

    def on_bytes_forwarded(self, size: int) -> None:
        """Do nothing: no byte of the board's goes on to the caller."""

    def _on_op_result(self, op: FileOp, result: Any) -> None:
        """Take what an act gave; a failure ends the acts that were asked for with it."""
        if isinstance(result, dict):
            self._resume_generator(_os_error(result, op[1]))
            return
        self._results.append(bytes(self._received) if op[0] == "get" else result)
        self._received.clear()
        if len(self._results) == len(self._ops):
            self._resume_generator(None)
        elif len(self._results) == self._ops_sent:
            self._send_ops()

    def _resume_generator(self, error: OSError | None) -> None:
        """Hand over what the acts gave, or that one failed; ask for those that come next."""
        answers, self._results, self._ops_sent = self._results, [], 0
        try:
            acts = self._generator.throw(error) if error else self._generator.send(answers)
        except StopIteration as end:
            self._finish(end.value)
        except (PackageError, OSError) as refusal:
            self._send_no_more_ops()
            raise JobRefused(refusal) from refusal
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as wrong:
            raise PeerWireError("what the board answers about its files is no answer") from wrong
        else:
            self._ops = list(acts)
            self._send_total()
            self._send_ops()

    def _send_total(self) -> None:
        """Tell the caller how many bytes there are to come."""
        contents = [act[2] for act in self._ops if act[0] == "put"]
        if contents:
            total = self._transfer.sent + sum(content.size for content in contents)
            told = wire.pack_byte_count(wire.CHUNK, total, job=self._job.id, flags=wire.TOTAL_BYTES)
            self._job.deliver(told)

    def _send_ops(self) -> None:
        """Send as many acts as the board has room for; behind a `get`, it hears no others."""
        batch: list[FileOp] = []
        data = b""
        for act in self._ops[self._ops_sent :]:
            more = wire.pack_file_ops(self._ack_bytes, [*batch, _wire_op(act)], stepwise=True)
            if len(more) > self._payload_bytes or (batch and batch[-1][0] == "get"):
                break
            batch.append(_wire_op(act))
            data = more
        if not batch:
            self._send_no_more_ops()
            raise JobRefused(PackageError("its buffer is too small for this"))
        asked = self._ops[self._ops_sent : self._ops_sent + len(batch)]
        self._transfer.add_contents([act[2] for act in asked if act[0] == "put"])
        self._ops_sent += len(batch)
        self._send(wire.pack(wire.DATA, data, job=self._job.id, flags=wire.NEXT_OPS))

    def _finish(self, value: Any) -> None:
        """Let the board end; what came of it becomes the job's value."""
        told = repr([value]).encode()
        self._job.value.add(told)
        self._job.deliver(wire.pack(wire.VALUE, told, job=self._job.id))
        self._send_no_more_ops()

    def _send_no_more_ops(self) -> None:
        data = wire.pack_file_ops(self._ack_bytes, ())
        self._send(wire.pack(wire.DATA, data, job=self._job.id, flags=wire.NEXT_OPS))


def _wire_op(op: FileOp) -> FileOp:
    """Return an act as a board reads it."""
    if op[0] != "put":
        return op
    content: Content = op[2]
    return ["put", op[1], content.size, content.digest, *op[3:]]


def _read_result(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PeerWireError("what an act gave is malformed") from error


def _os_error(result: dict[str, Any], path: str) -> OSError:
    number = result.get("errno")
    known = number if isinstance(number, int) and number in errno.errorcode else errno.EIO
    return OSError(known, os.strerror(known), path)
