"""Jobs: a cell on each board, while it runs; no sockets, no loop.

A ``JobGroup`` is one cell on several boards. The link feeds it from its own thread; people
wait on it from theirs. It settles once, when its last job has ended or the server refused
it; ``Results`` is what is left then.
"""

from __future__ import annotations

import codecs
import collections
import queue
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, overload

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .cells import Cell, map_traceback
from .future import Future
from .outgoing import OutgoingFrame

#: Characters of a job's output that a caller keeps; of a longer one, the end.
MAX_OUTPUT_CHARS: Final = 8 * 1024 * 1024
MAX_VALUE_BYTES: Final = 2 * 1024 * 1024  # bytes of a value; a board cuts its own at half of that
#: What stands for a value that was lost with the link, on a board that ended well without it.
LOST_VALUE: Final = "<lost with the link>"
#: Lines of a traceback that speak of the on-board client, which no cell is about.
_CLIENT_FRAMES: Final = re.compile(r'^  File "cm/[^\n]*\n', re.MULTILINE)
INTERRUPT_GRACE_SECONDS: Final = 2.0  # how long an interrupted wait still listens for the outcomes


class Event(NamedTuple):
    """Something that happened to a job, in the order of happening.

    ``kind`` is queued, resetting, started, output, input, truncated or ended; ``text`` is the
    output, the prompt, or what a queued job waits for: "behind 2", or "" for its board.
    """

    kind: str
    job: Job
    text: str = ""


class Job:
    """One cell on one board, while it runs; ``result`` is there once it ended.

    ``state`` is queued, resetting, running or ended.
    """

    def __init__(
        self, number: int, board: str, cell: Cell, started: float, *, fresh: bool = False
    ) -> None:
        self.number = number
        self.board = board
        self.state = "resetting" if fresh else "running"
        self.waiting_for = ""  # what for, if it is queued: as in its event
        self.result: Result | None = None
        self._starts_with_reset = fresh
        self._cell = cell
        self._started_at = started  # by time.perf_counter(); anew where it was queued
        self._decoder = _TextDecoder()
        self._value = bytearray()
        self._value_truncated = False  # whether a piece of the value is missing
        self._stdout: list[str] = []
        self._kept_chars = 0
        self.truncated = False

    def handle_message(self, message: wire.Message) -> Iterator[Event]:
        """Take one message about this job and yield what it means."""
        if message.op == wire.OUTPUT:
            yield from self._add_output(message.payload)
        elif message.op == wire.VALUE:
            self._value_truncated = self._value_truncated or len(self._value) > MAX_VALUE_BYTES
            self._value += b"" if self._value_truncated else message.payload
        elif message.op == wire.RESULT:
            yield from self._on_result(wire.read_result(message))
        elif message.op == wire.ENDED:
            yield from self._on_ended(message)
        elif message.op == wire.STARTED:
            self._started_at = time.perf_counter()
            resets = self._starts_with_reset and self.state == "queued"
            self.state = "resetting" if resets else "running"
            yield Event("resetting" if resets else "started", self)
        elif message.op == wire.INPUT:
            yield Event("input", self, message.payload.decode("utf-8", "replace"))
        elif message.op == wire.TRUNCATED and message.flags & wire.VALUE_TRUNCATED:
            self._value_truncated = True
        elif message.op == wire.TRUNCATED:
            self.truncated = True
            yield Event("truncated", self)

    def mark_queued(self, jobs_ahead: int) -> Event:
        """Take the server's word that so many jobs go first; with none, the board is not there."""
        self.state, self.waiting_for = "queued", f"behind {jobs_ahead}" if jobs_ahead else ""
        return Event("queued", self, self.waiting_for)

    def elapsed(self) -> float:
        """Return for how many seconds it has been running, or waiting."""
        return time.perf_counter() - self._started_at

    def read_output(self, position: OutputPosition | None = None) -> tuple[str, OutputPosition]:
        """Return what was printed after ``position``, and the place to go on from; from any thread.

        Where the new place is of another list than ``position``, the text is all that is kept.
        """
        pieces = self._stdout
        start = position[1] if position is not None and position[0] is pieces else 0
        new = pieces[start:]
        return "".join(new), (pieces, start + len(new))

    def end_as_lost(self, why: str) -> Iterator[Event]:
        """End the job as lost: the link to the server broke."""
        if self.result is None:
            yield from self._add_output(b"", final=True)
            yield from self._finish("lost", why=why)

    def _add_output(self, output: bytes, *, final: bool = False) -> Iterator[Event]:
        text = self._decoder.decode(output, final=final)
        if not text:
            return
        self._stdout.append(text)
        if self.state == "resetting":
            self.state = "running"
        self._kept_chars += len(text)
        if self._kept_chars > 2 * MAX_OUTPUT_CHARS:
            self._stdout = ["".join(self._stdout)[-MAX_OUTPUT_CHARS:]]
            self._kept_chars, self.truncated = MAX_OUTPUT_CHARS, True
        yield Event("output", self, text)

    def _on_result(self, body: wire.ResultBody) -> Iterator[Event]:
        yield from self._add_output(body.output, final=True)
        if body.status == "ok":
            text = (self._value + body.value_or_traceback).decode("utf-8", "replace")
            yield from self._finish(
                "ok", text=text, value_truncated=body.truncated or self._value_truncated
            )
        else:  # pieces of a value whose repr failed half-way are of no use
            traceback = self._map_traceback(body.value_or_traceback.decode("utf-8", "replace"))
            yield from self._finish(body.status, traceback=traceback)

    def _map_traceback(self, text: str) -> str:
        """Return a board's traceback as one about the cell."""
        return map_traceback(_CLIENT_FRAMES.sub("", text.replace("\r\n", "\n")), self._cell)

    def _on_ended(self, message: wire.Message) -> Iterator[Event]:
        yield from self._add_output(b"", final=True)
        body = wire.read_json(message.payload)
        status = wire.STATUSES[message.flags] if message.flags < len(wire.STATUSES) else "lost"
        told = {"why": str(body.get("why", ""))}
        if body.get("output_lost"):  # the link broke, and the board told later how it ended
            self.truncated = True
            trace = self._map_traceback(told["why"])
            told = {"text": LOST_VALUE} if status == "ok" else {"traceback": trace}
        yield from self._finish(status, **told)

    def _finish(self, status: str, **fields: Any) -> Iterator[Event]:
        elapsed = time.perf_counter() - self._started_at
        stdout, truncated = "".join(self._stdout), self.truncated
        self.result = self._make_result(
            status, stdout=stdout, truncated=truncated, elapsed=elapsed, **fields
        )
        self.state = "ended"
        yield Event("ended", self)

    def _make_result(self, status: str, **fields: Any) -> Result:
        return Result(self.board, self.number, status, **fields)


#: How far a job's output was read: the list that it is in, and how many pieces.
OutputPosition = tuple[list[str], int]


class JobGroup:
    """One cell on several boards: wait for it, interrupt it, follow it. From any thread.

    Attributes:
        cell: what runs.
        jobs: board -> Job, once the server has accepted the cell.
        left_out: boards that the target matched but that are not connected.
        fresh: whether the boards make a soft reset first.
    """

    fresh = False

    def __init__(
        self,
        cell: Cell,
        *,
        listen: bool = False,
        on_event: Callable[[Event | None], None] | None = None,
    ) -> None:
        self.cell = cell
        self.jobs: dict[str, Job] = {}
        self.left_out: tuple[str, ...] = ()
        self.accepted: Future[None] = Future()
        self.finished: Future[Results] = Future()
        self._unfinished_count = 0
        self._interrupt_requested = False
        self._submitted_at = time.perf_counter()
        self._event_queue: queue.SimpleQueue[Event | None] | None = (
            queue.SimpleQueue() if listen else None
        )
        self._on_event = on_event or (
            self._event_queue.put if self._event_queue is not None else _ignore_event
        )
        self.frame: OutgoingFrame | None = None  # what carries the cell to the server
        self.withdraw: Callable[[], None] = lambda: None  # keeps the cell from the server
        self._interrupt_jobs: Callable[[list[int]], None] = lambda _: None
        self._answer_input: Callable[[int, str | None], None] = lambda _job, _text: None

    def __repr__(self) -> str:
        """Show which jobs these are, and how far they are, in one line."""
        states = collections.Counter(
            job.state if job.result is None else job.result.status for job in self.jobs.values()
        )
        told = ", ".join(f"{count:,} {state}" for state, count in states.items())
        told = next(iter(states)) if len(self.jobs) == 1 else told
        numbers = fold_names(str(job.number) for job in self.jobs.values()).strip("[]")
        word = "job" if len(self.jobs) == 1 else "jobs"
        return f"<JobGroup: {word} {numbers} on {fold_names(self.jobs)}, {told}>"

    # For people

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs ended, at most ``timeout`` seconds; return whether they did."""
        return self.finished.wait(timeout)

    def results(self, timeout: float | None = None) -> Results:
        """Wait for all jobs to end and return their results.

        Raises:
            TimeoutError: they did not, within ``timeout`` seconds; they go on.
            CloudmanagerError: the server refused the cell.
        """
        if not self.finished.wait(timeout):
            raise TimeoutError(f"{self._unfinished_count} of {len(self.jobs)} boards are not done")
        return self.finished.result()

    def interrupt(self) -> None:
        """Interrupt the cell on every board where it has not ended; returns at once.

        A cell that the server does not have yet, or only a part of, is not sent, and ends so.
        """
        self._interrupt_requested = True  # also what the server accepts only after this
        numbers = [job.number for job in self.jobs.values() if job.result is None]
        if numbers:
            self._interrupt_jobs(numbers)
        elif not self.accepted.done:
            self.withdraw()

    def answer(self, job: Job, text: str | None) -> None:
        """Answer a job's ``input()``; None means that nobody can (EOFError there)."""
        self._answer_input(job.number, text)

    @overload
    def events(self) -> Iterator[Event]: ...

    @overload
    def events(self, tick: float) -> Iterator[Event | None]: ...

    def events(self, tick: float | None = None) -> Iterator[Event | None]:
        """Yield what happens, as it happens, until all jobs ended; for one reader.

        Needs a group that was submitted with ``listen=True``. A reader that stopped half-way
        may call it again and goes on where it stopped.

        Args:
            tick: seconds after which None is yielded where nothing happened; None: never.

        Raises:
            CloudmanagerError: the server refused the cell.
        """
        if self._event_queue is None:
            raise ValueError("submit with listen=True to follow the events")
        # The last word may have been taken by a reader before.
        while not (self.finished.done and self._event_queue.empty()):
            try:
                event = self._event_queue.get(timeout=tick)
            except queue.Empty:
                yield None
                continue
            if event is None:
                break
            yield event
        self.results()

    # For the link, in its thread

    def on_accepted(
        self,
        body: Mapping[str, Any],
        interrupt_jobs: Callable[[list[int]], None],
        answer_input: Callable[[int, str | None], None],
    ) -> dict[int, Job]:
        """Take the server's word on which jobs there are; return them by number."""
        self._interrupt_jobs, self._answer_input = interrupt_jobs, answer_input
        jobs = {number: self._make_job(number, board) for number, board in body["jobs"]}
        self.jobs = {job.board: job for job in jobs.values()}
        self.left_out = tuple(body.get("left_out", ()))
        self._unfinished_count = len(jobs)
        for number, before in body.get("queued", ()):
            self._on_event(jobs[number].mark_queued(before))
        self.accepted.set_result(None)
        if self._interrupt_requested:
            self.interrupt()
        if not jobs:
            self._finish()
        return jobs

    def _make_job(self, number: int, board: str) -> Job:
        return Job(number, board, self.cell, self._submitted_at, fresh=self.fresh)

    def on_refused(self, error: CloudmanagerError) -> None:
        """Take the server's no."""
        self.accepted.set_exception(error)
        self.finished.set_exception(error)
        self._on_event(None)

    def handle_message(self, job: Job, message: wire.Message) -> None:
        """Take one message about one of the jobs."""
        self._handle_events(job.handle_message(message))

    def end_as_lost(self, job: Job, why: str) -> None:
        """End one of the jobs: the link to the server is gone."""
        self._handle_events(job.end_as_lost(why))

    def _handle_events(self, events: Iterator[Event]) -> None:
        for event in events:
            self._on_event(event)
            if event.kind == "ended":
                self._unfinished_count -= 1
                if self._unfinished_count == 0:
                    self._finish()

    def _finish(self) -> None:
        ended = {name: job.result for name, job in self.jobs.items() if job.result is not None}
        self.finished.set_result(Results(ended, self.left_out))
        self._on_event(None)


def _ignore_event(_: Event | None) -> None:
    """Follow nothing."""


class _TextDecoder:
    """UTF-8 to text with LF for CRLF, across the borders of messages."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending_cr = ""  # a CR at the end, whose LF may still come

    def decode(self, data: bytes, *, final: bool = False) -> str:
        text = self._pending_cr + self._decoder.decode(data, final)
        self._pending_cr = ""
        if text.endswith("\r") and not final:
            text, self._pending_cr = text[:-1], "\r"
        return text.replace("\r\n", "\n")
