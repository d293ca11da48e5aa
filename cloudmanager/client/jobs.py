"""Jobs: a cell on each board, while it runs; no sockets, no event loop.

A ``JobGroup`` is one cell on several boards. The link's thread passes messages to it; user threads
wait for it. It is finished when its last job has ended, with ``Results``, or when the server
refused the cell.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, overload

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunOptions
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import WAITING, Result, Results, waiting_text
from cloudmanager.results.rows import MAX_HTML_ROWS, html_rows

from .cells import Cell, map_traceback
from .future import Future
from .origin import find_origin
from .outgoing import OutgoingFrame
from .runner import run_blocking
from .unread_events import UnreadEvents
from .wait import Wait, read_wait

#: How much of a job's output a caller keeps; of a longer output, the end.
MAX_OUTPUT_CHARS: Final = 8 * 1024 * 1024
MAX_VALUE_BYTES: Final = 2 * 1024 * 1024  # a board sends half of that at most
#: Replaces the value of a job that ended without an error while the link was down.
LOST_VALUE: Final = "<lost with the link>"
#: Frames of the board's client in a traceback, and of the event loop in which it runs a cell that
#: awaits; they are not shown.
_CLIENT_FRAMES: Final = re.compile(
    r'^  File "cm[/.][^\n]*\n(?:  File "asyncio/core\.py"[^\n]*\n)*', re.MULTILINE
)
#: Numbers that say which parts of a cell are its text: with more of them, a SUBMIT would be refused
#: (``Limits.request_values``), and the server does not keep the text.
MAX_OWN_SPANS: Final = 20_000
INTERRUPT_GRACE_SECONDS: Final = 2.0  # how long an interrupted wait waits for the outcomes


class Event(NamedTuple):
    """Something that happened to a job.

    Attributes:
        kind: queued, resetting, started, output, input, truncated or ended.
        job: the job.
        text: the output; the prompt of ``input``; or what a queued job waits for: "behind 2 jobs of
            anna", "" for the board to connect.
    """

    kind: str
    job: Job
    text: str = ""


#: The method of ``Job`` for each message about a job; all others are in ``exchange``.
_HANDLERS: Final = {
    wire.STARTED: "_on_started",
    wire.OUTPUT: "_on_output",
    wire.VALUE: "_on_value",
    wire.TRUNCATED: "_on_truncated",
    wire.INPUT: "_on_input",
    wire.CHUNK: "_on_chunk",
    wire.LATENESS: "_on_lateness",
    wire.RESULT: "_on_result",
    wire.ENDED: "_on_ended",
}


class Job:
    """One cell on one board.

    Attributes:
        number: the job's number.
        board: the board's name.
        state: queued, resetting, running or ended.
        wait: what it waited for when it was queued; None if it was not.
        result: the result, once it has ended; else None.
        truncated: whether output was left out.
    """

    def __init__(
        self, number: int, board: str, cell: Cell, started: float, *, fresh: bool = False
    ) -> None:
        self.number = number
        self.board = board
        self.state = "resetting" if fresh else "running"
        self.wait: Wait | None = None
        self.result: Result | None = None
        self._starts_with_reset = fresh
        self._cell = cell
        self._started_at = started  # by time.perf_counter(); set again when a queued job starts
        self._decoder = _TextDecoder()
        self._value = bytearray()
        self._value_truncated = False  # whether a piece of the value is missing
        self._stdout: list[str] = []
        self._kept_chars = 0
        self.truncated = False
        self._lateness: wire.Lateness | None = None  # if it started at a time

    def __repr__(self) -> str:
        """Return the number, the board and the state, in one line."""
        return f"<Job {self.number} on {self.board}: {self._state_text()}>"

    def _state_text(self) -> str:
        return self.state if self.result is None else self.result.status

    def _repr_html_(self) -> str:
        """Return the job as an HTML table with one row."""
        return _jobs_html([self])

    def handle_message(self, message: wire.Message) -> list[Event]:
        """Handle one message about this job; return the events that it causes.

        A message that a later version of the server sends is ignored.
        """
        name = _HANDLERS.get(message.op)
        return [] if name is None else list(getattr(self, name)(message))

    def _on_output(self, message: wire.Message) -> list[Event]:
        return self._add_output(message.payload)

    def _on_value(self, message: wire.Message) -> list[Event]:
        self._value_truncated = self._value_truncated or len(self._value) > MAX_VALUE_BYTES
        self._value += b"" if self._value_truncated else message.payload
        return []

    def _on_truncated(self, message: wire.Message) -> list[Event]:
        if message.flags & wire.VALUE_TRUNCATED:
            self._value_truncated = True
            return []
        self.truncated = True
        return [Event("truncated", self)]

    def _on_input(self, message: wire.Message) -> list[Event]:
        return [Event("input", self, message.payload.decode("utf-8", "replace"))]

    def _on_chunk(self, _message: wire.Message) -> list[Event]:
        """Ignore a piece of a file: a cell transfers none; see ``FileJob``."""
        return []

    def _on_lateness(self, message: wire.Message) -> list[Event]:
        self._lateness = wire.read_lateness(message)
        return []

    def _on_started(self, _message: wire.Message) -> list[Event]:
        self._started_at = time.perf_counter()
        resets = self._starts_with_reset and self.state == "queued"
        self.state = "resetting" if resets else "running"
        return [Event("resetting" if resets else "started", self)]

    def mark_queued(self, wait: Wait) -> Event:
        """Mark the job as queued."""
        self.state = "queued"
        self.wait = wait
        return Event("queued", self, wait.text)

    def elapsed(self) -> float:
        """Return for how many seconds the job has been running, or queued."""
        return time.perf_counter() - self._started_at

    def read_output(self, position: OutputPosition | None = None) -> tuple[str, OutputPosition]:
        """Return the output after ``position``, and the new position; from any thread.

        If output was dropped since, the text is all the output that is kept: the position then
        refers to another list.
        """
        pieces = self._stdout
        start = position[1] if position is not None and position[0] is pieces else 0
        new = pieces[start:]
        return "".join(new), (pieces, start + len(new))

    def end_as_lost(self, why: str) -> list[Event]:
        """End the job as lost: the link to the server broke."""
        if self.result is not None:
            return []
        return self._add_output(b"", final=True) + self._finish("lost", why=why)

    def end_as_waiting(self, until: float) -> list[Event]:
        """End the job for this caller: the server keeps it until its board is there.

        Args:
            until: when it ends if it has not run, in seconds since 1970.
        """
        return self._finish(WAITING, why=waiting_text(until))

    def _add_output(self, output: bytes, *, final: bool = False) -> list[Event]:
        text = self._decoder.decode(output, final=final)
        if not text:
            return []
        self._stdout.append(text)
        if self.state == "resetting":
            self.state = "running"
        self._kept_chars += len(text)
        if self._kept_chars > 2 * MAX_OUTPUT_CHARS:
            self._stdout = ["".join(self._stdout)[-MAX_OUTPUT_CHARS:]]
            self._kept_chars, self.truncated = MAX_OUTPUT_CHARS, True
        return [Event("output", self, text)]

    def _on_result(self, message: wire.Message) -> list[Event]:
        body = wire.read_result(message)
        events = self._add_output(body.output, final=True)
        if body.status == "ok":
            text = (self._value + body.value_or_traceback).decode("utf-8", "replace")
            truncated = body.truncated or self._value_truncated
            return events + self._finish("ok", text=text, value_truncated=truncated)
        # The pieces of a value whose repr raised are dropped.
        traceback = self._map_traceback(body.value_or_traceback.decode("utf-8", "replace"))
        return events + self._finish(body.status, traceback=traceback)

    def _map_traceback(self, text: str) -> str:
        """Return a board's traceback with the line numbers of the cell."""
        return map_traceback(_CLIENT_FRAMES.sub("", text.replace("\r\n", "\n")), self._cell)

    def _on_ended(self, message: wire.Message) -> list[Event]:
        events = self._add_output(b"", final=True)
        body = wire.read_json(message.payload)
        status = wire.STATUSES[message.flags] if message.flags < len(wire.STATUSES) else "lost"
        why = str(body.get("why", ""))
        if not body.get("output_lost"):
            return events + self._finish(status, why=why)
        # The link of the board broke, and the board reported later how the job ended.
        self.truncated = True
        if status == "ok":
            return events + self._finish(status, text=LOST_VALUE)
        return events + self._finish(status, traceback=self._map_traceback(why))

    def _finish(self, status: str, **fields: Any) -> list[Event]:
        elapsed = time.perf_counter() - self._started_at
        if self._lateness is not None:
            fields |= {"late": self._lateness.late, "clock_error": self._lateness.error}
        self.result = self._make_result(
            status,
            stdout="".join(self._stdout),
            truncated=self.truncated,
            elapsed=elapsed,
            **fields,
        )
        self.state = "ended"
        return [Event("ended", self)]

    def _make_result(self, status: str, **fields: Any) -> Result:
        return Result(self.board, self.number, status, **fields)


#: How far a job's output was read: the list of pieces, and the number of pieces read.
OutputPosition = tuple[list[str], int]


class JobGroup:
    """One cell on several boards: wait for it, interrupt it, read its events; from any thread.

    Attributes:
        cell: the cell.
        jobs: board -> Job, once the server has accepted the cell.
        left_out: boards that the target matched but that are not connected.
        accepted: set when the server has accepted or refused the cell.
        finished: set when all jobs have ended.
        options: how it is run.
    """

    def __init__(
        self,
        cell: Cell,
        options: RunOptions = DEFAULT_OPTIONS,
        *,
        listen: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.cell = cell
        self.options = options
        self.jobs: dict[str, Job] = {}
        self.left_out: tuple[str, ...] = ()
        self.accepted: Future[None] = Future()
        self.finished: Future[Results] = Future()
        self._unfinished_count = 0
        self._interrupt_requested = False
        self._submitted_at = time.perf_counter()
        self._on_event = on_event or _ignore_event
        self._listens = listen
        if listen:
            self._on_event = self._keep_event
            self._unread_events = UnreadEvents(lambda job: Event("truncated", job))
            self._event_arrived = Future[None]()  # replaced before each look at the unread events
            self.finished.add_done_callback(lambda: self._event_arrived.set_result(None))
        self.frame: OutgoingFrame | None = None  # the frame with the cell
        self.withdraw: Callable[[], None] = lambda: None  # stops the cell from being sent
        self._interrupt_jobs: Callable[[list[int]], None] = lambda _: None
        self._answer_input: Callable[[int, str | None], None] = lambda _job, _text: None

    def __repr__(self) -> str:
        """Return numbers, boards and states of the jobs, in one line."""
        states = collections.Counter(job._state_text() for job in self.jobs.values())
        if len(self.jobs) == 1:
            summary = next(iter(states))
        else:
            summary = ", ".join(f"{count:,} {state}" for state, count in states.items())
        numbers = fold_names(str(job.number) for job in self.jobs.values()).strip("[]")
        word = "job" if len(self.jobs) == 1 else "jobs"
        return f"<JobGroup: {word} {numbers} on {fold_names(self.jobs)}, {summary}>"

    def _repr_html_(self) -> str | None:
        """Return the jobs as an HTML table; None, for the text, before they are accepted."""
        jobs = list(self.jobs.values())
        return _jobs_html(jobs) if jobs else None

    # Called by user threads

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended, at most ``timeout`` seconds; return whether they have."""
        return self.finished.wait(timeout)

    def results(self, timeout: float | None = None) -> Results:
        """Wait for all jobs to end and return their results.

        Raises:
            TimeoutError: they have not ended within ``timeout`` seconds; they continue.
            CloudmanagerError: the server refused the cell.
        """
        if not self.finished.wait(timeout):
            raise TimeoutError(f"{self._unfinished_count} of {len(self.jobs)} boards are not done")
        return self.finished.result()

    async def completed(self) -> Results:
        """Wait for the results; interrupt the cell on the boards if the wait is interrupted."""
        try:  # not ``with self.interrupted_on_error()``, which takes 1 us longer
            return await self.finished
        except BaseException as error:
            self._give_up(error)
            raise

    @contextlib.contextmanager
    def interrupted_on_error(self) -> Iterator[None]:
        """Interrupt the cell on the boards if the block is interrupted or cancelled."""
        try:
            yield
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """Interrupt the cell because a wait was interrupted; after Ctrl-C, wait a moment."""
        if not self.finished.done:
            self.interrupt()
        if isinstance(error, KeyboardInterrupt):
            self.wait(INTERRUPT_GRACE_SECONDS)

    @property
    def is_silent(self) -> bool:
        """Whether nobody hears of its jobs before all of them have ended."""
        return self._on_event is _ignore_event

    def set_frame(self, frame: OutgoingFrame) -> None:
        """Keep the frame with the cell, so that it can be withdrawn."""
        self.frame = frame

    def interrupt(self) -> None:
        """Interrupt the cell on every board where it has not ended; does not wait.

        A cell that has not been sent completely will not be sent, and never runs.
        """
        self._interrupt_requested = True  # for a cell that the server accepts later
        numbers = [job.number for job in self.jobs.values() if job.result is None]
        if numbers:
            self._interrupt_jobs(numbers)
        elif not self.accepted.done:
            self.withdraw()

    def answer(self, job: Job, text: str | None) -> None:
        """Answer a job's ``input()``; None raises EOFError on the board."""
        self._answer_input(job.number, text)

    @overload
    def events(self) -> Iterator[Event]: ...

    @overload
    def events(self, tick: float) -> Iterator[Event | None]: ...

    def events(self, tick: float | None = None) -> Iterator[Event | None]:
        """Yield events until all jobs have ended; for one reader.

        The group must have been submitted with ``listen=True``. A reader that stopped early can
        call this again and continues where it stopped.

        Args:
            tick: seconds without an event after which None is yielded; None for never.

        Raises:
            CloudmanagerError: the server refused the cell.
        """
        events = self.read_events(tick)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield run_blocking(anext(events))

    async def read_events(self, tick: float | None = None) -> AsyncGenerator[Event | None, None]:
        """Yield events as ``events`` does, for coroutines that ``runner`` runs."""
        if not self._listens:
            raise ValueError("submit with listen=True to read the events")
        while True:
            self._event_arrived = Future()  # first: an event from here on ends the wait
            finished = self.finished.done
            while (event := self._unread_events.take()) is not None:
                yield event
            if finished:
                break
            if tick is None:
                await self._event_arrived
            elif not await self._event_arrived.done_within(tick):
                yield None
        await self.finished  # raises if the server refused the cell

    @property
    def has_unread_events(self) -> bool:
        """Whether events have arrived that are not read yet."""
        return bool(self._unread_events)

    def _keep_event(self, event: Event) -> None:
        """Keep an event for the reader; called in the link's thread."""
        self._unread_events.add(event)
        self._event_arrived.set_result(None)

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        cell = self.cell
        head: dict[str, Any] = {"awaits": cell.awaits, **self.options.to_wire(), **find_origin()}
        if title := cell.title:
            head["title"] = title
        if cell.own and len(cell.own) <= MAX_OWN_SPANS:
            head["own"] = cell.own
        if cell.name:
            head["named"] = True
        if cell.inputs:
            head["inputs"] = cell.inputs
        if cell.restarts:
            head["restarts"] = True
        return head

    # Called by the link's thread

    def on_accepted(
        self,
        body: Mapping[str, Any],
        interrupt_jobs: Callable[[list[int]], None],
        answer_input: Callable[[int, str | None], None],
    ) -> dict[int, Job]:
        """Make the jobs that the server lists in ACCEPTED.

        Returns:
            Those about which messages follow, by number: not those that wait for their boards.
        """
        self._interrupt_jobs, self._answer_input = interrupt_jobs, answer_input
        jobs = {number: self._make_job(number, board) for number, board in body["jobs"]}
        self.jobs = {job.board: job for job in jobs.values()}
        self.left_out = tuple(body.get("left_out", ()))
        self._unfinished_count = len(jobs)
        for number, *wait in body.get("queued", ()):
            self._on_event(jobs[number].mark_queued(read_wait(*wait)))
        self.accepted.set_result(None)
        if "waiting" in body:  # no message about these jobs follows
            if self._interrupt_requested:
                interrupt_jobs(list(jobs))
            for job in jobs.values():
                self._handle_events(job.end_as_waiting(float(body["waiting"])))
            return {}
        if self._interrupt_requested:
            self.interrupt()
        if not jobs:
            self._finish()
        return jobs

    def _make_job(self, number: int, board: str) -> Job:
        return Job(number, board, self.cell, self._submitted_at, fresh=self.options.fresh)

    def on_refused(self, error: CloudmanagerError) -> None:
        """End the group with an error: the server refused the cell, or was not reached."""
        self.accepted.set_exception(error)
        self.finished.set_exception(error)

    def handle_message(self, job: Job, message: wire.Message) -> None:
        """Handle one message about one of the jobs."""
        self._handle_events(job.handle_message(message))

    def end_as_lost(self, job: Job, why: str) -> None:
        """End one of the jobs as lost: the link to the server broke."""
        self._handle_events(job.end_as_lost(why))

    def _handle_events(self, events: list[Event]) -> None:
        for event in events:
            self._on_event(event)
            if event.kind == "ended":
                self._unfinished_count -= 1
                if self._unfinished_count == 0:
                    self._finish()

    def _finish(self) -> None:
        ended = {name: job.result for name, job in self.jobs.items() if job.result is not None}
        self.finished.set_result(Results(ended, self.left_out))


def _jobs_html(jobs: Sequence[Job]) -> str:
    """Return jobs as an HTML table: where each runs, how far it is, and for how long."""
    rows = []
    for job in jobs[:MAX_HTML_ROWS]:
        state = f"queued {job.wait.text}" if job.wait and job.state == "queued" else ""
        seconds = job.elapsed() if job.result is None else job.result.elapsed
        rows.append(
            (str(job.number), job.board, state.strip() or job._state_text(), f"{seconds:.3f} s")
        )
    return html_rows(("job", "board", "state", "took"), rows, len(jobs))


def _ignore_event(_: Event) -> None:
    """Ignore an event."""


class _TextDecoder:
    """Decodes UTF-8 that is split into messages anywhere, and replaces CRLF by LF."""

    __slots__ = ("_decoder", "_pending_cr")

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None  # made when needed
        self._pending_cr = ""  # a CR at the end of a message; the next may begin with LF

    def decode(self, data: bytes, *, final: bool = False) -> str:
        if self._decoder is None:
            if final:  # of nearly every job, this is all of its output
                return data.decode("utf-8", "replace").replace("\r\n", "\n")
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._pending_cr + self._decoder.decode(data, final)
        self._pending_cr = ""
        if text.endswith("\r") and not final:
            text, self._pending_cr = text[:-1], "\r"
        return text.replace("\r\n", "\n")
