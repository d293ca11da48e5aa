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
from .transfers import Files, Transfer

if TYPE_CHECKING:
    from cm_server.jobs.jobs import Job
    from cm_server.jobs.registry import Board

#: An act on files as a board has it; of a `put`, the content stands in place of size and SHA-256.
Act = list[Any]
#: Yields acts, is sent what they gave; raises PackageError or OSError; returns what came of it.
Doing = Generator[Sequence[Act], list[Any], Any]


class Refused(Exception):
    """A job that the server ends; ``why`` names the error as a board would."""

    def __init__(self, error: PackageError | OSError) -> None:
        if isinstance(error, OSError):
            number = error.errno or errno.EIO
            self.why = f"OSError: [Errno {number}] {errno.errorcode[number]}: {error.filename}"
        else:
            self.why = f"PackageError: {error.args[0]}"
        super().__init__(self.why)


class Work:
    """A job in several steps, on any number of boards.

    Args:
        first: acts that it begins with, the same for all boards.
        do: makes what goes on from there, for one of them: its first acts are those.
        step: bytes after which a board tells how far it is.
    """

    gets = starter = False

    def __init__(self, first: Sequence[Act], do: Callable[[Board], Doing], step: int) -> None:
        self.code = wire.pack_acts(step, first, more=True)
        self.step = step
        self._do = do

    def begin(self, job: Job, send: Callable[[bytes], object]) -> Steps:
        """Return its course on one board."""
        return Steps(job, self._do(job.board), send, self.step)


class Steps:
    """One board's course through a ``Work``."""

    def __init__(self, job: Job, doing: Doing, send: Callable[[bytes], object], step: int) -> None:
        self._job = job
        self._doing = doing
        self._send = send
        self._step = step
        size = job.board.buffer_size
        self._room = size - wire.HEADER.size
        self._transfer = Transfer(job.id, Files(step, (), gets=False), send, size)
        self._acts = list(next(doing))
        self._asked = len(self._acts)  # how many of them the board knows of
        self._answers: list[Any] = []
        self._got = bytearray()  # of a file that the board sends

    def on_chunk(self, message: wire.Message) -> bool:
        """Take what an act gave, or of a file; return whether the caller is to see it.

        Raises:
            Refused: it goes no further.
            PeerWireError: it is malformed.
        """
        if len(self._answers) == self._asked:
            raise PeerWireError("the board answers what nobody asked")
        act = self._acts[len(self._answers)]
        if message.flags & wire.GAVE:
            self._take(act, _read(message.payload))
        elif act[0] == "put":
            return self._transfer.on_chunk(message)
        elif len(self._got) < limits.PACKAGE_DOCUMENT_BYTES:
            self._got += message.payload
            self._transfer.take(len(message.payload))
        return False

    def on_left(self, size: int) -> None:
        """Do nothing: no byte of the board's goes on to the caller."""

    def _take(self, act: Act, answer: Any) -> None:
        """Take what an act gave; a failure ends the acts that were asked for with it."""
        if isinstance(answer, dict):
            self._go_on(_error(answer, act[1]))
            return
        self._answers.append(bytes(self._got) if act[0] == "get" else answer)
        self._got.clear()
        if len(self._answers) == len(self._acts):
            self._go_on(None)
        elif len(self._answers) == self._asked:
            self._ask()

    def _go_on(self, error: OSError | None) -> None:
        """Hand over what the acts gave, or that one failed; ask for those that come next."""
        answers, self._answers, self._asked = self._answers, [], 0
        try:
            acts = self._doing.throw(error) if error else self._doing.send(answers)
        except StopIteration as end:
            self._end(end.value)
        except (PackageError, OSError) as refusal:
            self._stop()
            raise Refused(refusal) from refusal
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as wrong:
            raise PeerWireError("what the board answers about its files is no answer") from wrong
        else:
            self._acts = list(acts)
            self._announce()
            self._ask()

    def _announce(self) -> None:
        """Tell the caller how many bytes there are to come."""
        contents = [act[2] for act in self._acts if act[0] == "put"]
        if contents:
            total = self._transfer.sent + sum(content.size for content in contents)
            told = wire.pack_count(wire.CHUNK, total, job=self._job.id, flags=wire.TOTAL)
            self._job.deliver(told)

    def _ask(self) -> None:
        """Send as many acts as the board has room for; behind a `get`, it hears no others."""
        batch: list[Act] = []
        data = b""
        for act in self._acts[self._asked :]:
            more = wire.pack_acts(self._step, [*batch, _on_wire(act)], more=True)
            if len(more) > self._room or (batch and batch[-1][0] == "get"):
                break
            batch.append(_on_wire(act))
            data = more
        if not batch:
            self._stop()
            raise Refused(PackageError("its buffer is too small for this"))
        asked = self._acts[self._asked : self._asked + len(batch)]
        self._transfer.expect([act[2] for act in asked if act[0] == "put"])
        self._asked += len(batch)
        self._send(wire.pack(wire.DATA, data, job=self._job.id, flags=wire.NEXT))

    def _end(self, value: Any) -> None:
        """Let the board end; what came of it becomes the job's value."""
        told = repr([value]).encode()
        self._job.value.add(told)
        self._job.deliver(wire.pack(wire.VALUE, told, job=self._job.id))
        self._stop()

    def _stop(self) -> None:
        data = wire.pack_acts(self._step, ())
        self._send(wire.pack(wire.DATA, data, job=self._job.id, flags=wire.NEXT))


def _on_wire(act: Act) -> Act:
    """Return an act as a board reads it."""
    if act[0] != "put":
        return act
    content: Content = act[2]
    return ["put", act[1], content.size, content.digest, *act[3:]]


def _read(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PeerWireError("what an act gave is malformed") from error


def _error(answer: dict[str, Any], path: str) -> OSError:
    number = answer.get("errno")
    known = number if isinstance(number, int) and number in errno.errorcode else errno.EIO
    return OSError(known, os.strerror(known), path)
