"""Run file operations that depend on a board's results, as one job of several steps; no sockets.

The operations come from a generator, one for each board: it yields a list of operations, is sent
the list of their results, and finally returns the job's value. The generator runs on the server;
the board executes one operation after the other. To the scheduler it is a job like any other: it
is queued, interrupted, timed out and reported in the same way.

    FILE(operations, more follow) ──▶
                                      ◀── CHUNK(result of one operation) …
    DATA(next operations) ──▶
                                      ◀── CHUNK(result of one operation) …
    DATA(no more operations) ──▶
                                      ◀── RESULT
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PackageError, PeerWireError, ServerError
from cm_server.jobs.model import BoardChannel, JobRefused
from cm_server.limits import KIB

from .content_store import Content
from .transfers import FileTransfer, FileTransferSpec

if TYPE_CHECKING:
    from cm_server.jobs.model import Board, Job
    from cm_server.store.store_queue import Operation

#: A file operation as in a FILE message: its name, a path, its arguments. A `put` has a Content in
#: place of the size and the SHA-256.
FileOp = list[Any]
#: Yields lists of operations, is sent the lists of their results, returns the value of the job. If
#: an operation fails, its OSError is thrown into the generator. May raise PackageError or OSError.
OpGenerator = Generator[Sequence[FileOp], list[Any], Any]

_MAX_RESULT_DEPTH: Final = 4  # of the result of a file operation: a list of entries has two


class SteppedJobSpec:
    """A job of several steps, on any number of boards.

    Args:
        first_ops: the first operations, the same for all boards.
        make_generator: makes the generator for one board, from the board and what was read from
            the store; it must yield ``first_ops`` first.
        read_store: starts to read from the store what the generator needs.
        ack_bytes: bytes of a `put` after which a board acknowledges them.
        max_read_bytes: more of a file is not read from a board into memory.

    Attributes:
        reads_files: whether the board sends files to the caller: no, only to the server.
        replaces_starter: whether the job replaces the file that starts the client on a board.
    """

    reads_files = is_local = False
    replaces_starter = False
    part = "files"

    def __init__(
        self,
        first_ops: Sequence[FileOp],
        make_generator: Callable[[Board, Any], OpGenerator],
        read_store: Callable[[Board], Operation[Any]],
        ack_bytes: int,
        max_read_bytes: int,
    ) -> None:
        self.first_ops = first_ops
        self.code = wire.pack_file_ops(ack_bytes, first_ops, stepwise=True)
        self.ack_bytes = ack_bytes
        self.max_read_bytes = max_read_bytes
        self.make_generator = make_generator
        self.read_store = read_store

    def start(self, job: Job, channel: BoardChannel) -> SteppedJob:
        """Start the job on one board.

        Args:
            job: the job on that board.
            channel: to the board.
        """
        return SteppedJob(job, self, channel)


class SteppedJob:
    """The state of a ``SteppedJobSpec`` on one board."""

    def __init__(self, job: Job, spec: SteppedJobSpec, channel: BoardChannel) -> None:
        self._job = job
        self._spec = spec
        self._generator: OpGenerator | None = None  # made when the first results are there
        self._stored = spec.read_store(job.board)
        self._send = channel.send
        self._refuse = channel.refuse
        self._ack_bytes = spec.ack_bytes
        self._max_read_bytes = spec.max_read_bytes
        size = job.board.buffer_size
        self._payload_bytes = size - wire.HEADER.size
        self._transfer = FileTransfer(
            job.id, FileTransferSpec(spec.ack_bytes, (), reads_files=False), channel.send, size
        )
        self._ops = list(spec.first_ops)
        self._ops_sent = len(self._ops)  # how many of them were sent to the board
        self._results: list[Any] = []
        self._received = bytearray()  # of the current `get`

    def on_chunk(self, message: wire.Message) -> bool:
        """Handle a CHUNK from the board: the result of an operation, or part of a file.

        Returns:
            Whether the caller receives the message too: only the progress of a `put`.

        Raises:
            JobRefused: the job ends with an error.
            PeerWireError: the message is malformed or was not requested.
        """
        if len(self._results) == self._ops_sent:
            raise PeerWireError("the board sent a result that was not requested")
        op = self._ops[len(self._results)]
        if message.flags & wire.OP_RESULT:
            self._on_op_result(op, _read_result(message.payload))
        elif op[0] == "put":
            return self._transfer.on_chunk(message)
        else:
            self._check_read_size(op, len(message.payload))
            self._received += message.payload
            self._transfer.acknowledge(len(message.payload))
        return False

    def _check_read_size(self, op: FileOp, size: int) -> None:
        """Refuse a file that is too long to be read into memory."""
        if len(self._received) + size > self._max_read_bytes:
            kib = self._max_read_bytes // KIB
            raise JobRefused(PackageError(f"{op[1]} on the board is longer than {kib} KiB"))

    def on_bytes_forwarded(self, size: int) -> None:
        """Do nothing: no bytes of files are forwarded to the caller."""

    def _on_op_result(self, op: FileOp, result: Any) -> None:
        """Store a result; continue if it is the last one, or if it is an error.

        After an error the board skips the other operations that it was sent.
        """
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
        """Pass the results, or an error, to the generator, and send its next operations.

        Raises:
            JobRefused: the generator raised an error.
            PeerWireError: the generator could not use the results.
        """
        if not self._stored.done:
            self._stored.when_done(lambda _: self._resume_later(error))
            return
        try:
            generator = self._generator or self._start_generator()
            results = self._results
            self._results = []
            self._ops_sent = 0
            ops = generator.throw(error) if error else generator.send(results)
        except StopIteration as end:
            self._finish(end.value)
        except (PackageError, ServerError, OSError) as refusal:
            self._send_no_more_ops()
            raise JobRefused(refusal) from refusal
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as wrong:
            raise PeerWireError("the board's results of file operations are malformed") from wrong
        else:
            self._ops = list(ops)
            self._send_total()
            self._send_ops()

    def _start_generator(self) -> OpGenerator:
        """Make the generator; its first operations were sent already.

        Raises:
            ServerError: the store could not be read.
        """
        generator = self._generator = self._spec.make_generator(
            self._job.board, self._stored.result()
        )
        next(generator)
        return generator

    def _resume_later(self, error: OSError | None) -> None:
        """Continue when the store has answered, unless the job has ended meanwhile."""
        if self._job.transfer is not self:
            return
        try:
            self._resume_generator(error)
        except JobRefused as refusal:
            self._refuse(refusal.error_text)
        except PeerWireError as wrong:
            self._refuse(f"PackageError: {wrong}")

    def _send_total(self) -> None:
        """Send the caller the total number of bytes, for its progress bar."""
        sizes = [op[2].size for op in self._ops if op[0] == "put"]
        if sizes:
            total = self._transfer.transferred + sum(sizes)
            self._job.deliver(
                wire.pack_byte_count(wire.CHUNK, total, job=self._job.id, flags=wire.TOTAL_BYTES)
            )

    def _send_ops(self) -> None:
        """Send as many operations as fit in the board's buffer.

        A `get` is the last one of a message: during a `get` the board expects nothing in DATA
        messages but acknowledgements.

        Raises:
            JobRefused: not even one operation fits.
        """
        batch: list[FileOp] = []
        data = b""
        for op in self._ops[self._ops_sent :]:
            longer = wire.pack_file_ops(self._ack_bytes, [*batch, _wire_op(op)], stepwise=True)
            if len(longer) > self._payload_bytes or (batch and batch[-1][0] == "get"):
                break
            batch.append(_wire_op(op))
            data = longer
        if not batch:
            self._send_no_more_ops()
            raise JobRefused(PackageError("the board's buffer is too small for a path of the plan"))
        sent = self._ops[self._ops_sent : self._ops_sent + len(batch)]
        self._transfer.add_contents([op[2] for op in sent if op[0] == "put"])
        self._ops_sent += len(batch)
        self._send(wire.pack(wire.DATA, data, job=self._job.id, flags=wire.NEXT_OPS))

    def _finish(self, value: Any) -> None:
        """Set the value of the job and let the board end it."""
        value_repr = repr([value]).encode()
        self._job.value.add(value_repr)
        self._job.deliver(wire.pack(wire.VALUE, value_repr, job=self._job.id))
        self._send_no_more_ops()

    def _send_no_more_ops(self) -> None:
        data = wire.pack_file_ops(self._ack_bytes, ())
        self._send(wire.pack(wire.DATA, data, job=self._job.id, flags=wire.NEXT_OPS))


def _wire_op(op: FileOp) -> FileOp:
    """Return an operation as it is sent: a `put` with the size and the SHA-256 of its content."""
    if op[0] != "put":
        return op
    content: Content = op[2]
    return ["put", op[1], content.size, content.digest, *op[3:]]


def _read_result(payload: bytes) -> Any:
    try:
        result = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PeerWireError("the result of a file operation is malformed") from error
    if wire.is_nested_deeper(result, _MAX_RESULT_DEPTH):
        raise PeerWireError("the result of a file operation is nested too deeply")
    return result


def _os_error(result: dict[str, Any], path: str) -> OSError:
    """Return the error of a failed operation; EIO if its number is unknown here."""
    number = result.get("errno")
    known = number if isinstance(number, int) and number in errno.errorcode else errno.EIO
    return OSError(known, os.strerror(known), path)
