"""Messages of boards about their jobs and themselves, and answers to ``input()``.

Output and results are forwarded to callers unchanged. No sockets, no SQL. Call from the thread of
the event loop only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError, ServerError
from cm_server import cleanup

from .job_history import ReportedResult
from .job_results import JobResults
from .model import Board, Job, JobRefused
from .scheduler import Scheduler


class BoardMessages:
    """Handles the messages of all boards.

    Args:
        job_results: ends jobs.
        scheduler: starts the next job of a board that has reported a result.
        program_chars: how much of the state of a board's own program is kept.

    Attributes:
        on_emit: called with a board and its EMIT message.
        on_log: called with a board and what it printed outside of cells: a LOG message, or an
            OUTPUT of no job.
        on_read: called with a board and its READ message; returns whether a folder is mounted
            there.
        on_program: called with a board and the new state of its own program.
        on_sleep: called with a board that wants to sleep, and its SLEEP message.
        on_stray: called when a board sends a message about a job that is not its current one, with
            the job's number.
    """

    def __init__(self, job_results: JobResults, scheduler: Scheduler, program_chars: int) -> None:
        self._job_results = job_results
        self._scheduler = scheduler
        self._program_chars = program_chars
        self.on_emit: Callable[[Board, wire.Message], None] = lambda _board, _message: None
        self.on_log: Callable[[Board, wire.Message], None] = lambda _board, _message: None
        self.on_read: Callable[[Board, wire.Message], bool] = lambda _board, _message: False
        self.on_program: Callable[[Board, str], None] = lambda _board, _state: None
        self.on_sleep: Callable[[Board, wire.Message], None] = lambda _board, _message: None
        self.on_stray: Callable[[Board, int], None] = lambda _board, _job: None

    def on_message(self, board: Board, data: bytes) -> None:
        """Handle a message of a board; one about its current job is forwarded unchanged.

        Raises:
            PeerWireError: the message is malformed, or boards may not send it.
        """
        message = wire.unpack(data)
        wire.check_op("open", message)
        job = board.current_job
        if message.op == wire.EMIT:
            self.on_emit(board, message)
        elif message.op == wire.PROGRAM:
            self._on_program(board, message)
        elif message.op == wire.FACTS:
            board.reported_facts = {**board.reported_facts, **wire.read_facts(message)}
            board.notify_changed()
        elif message.op == wire.SLEEP:
            self.on_sleep(board, message)
        elif message.op == wire.TIME:
            if board.link is not None:
                board.link.send(wire.answer_time(message, time.time_ns() // 1000))
        elif message.op == wire.LOG or (message.op == wire.OUTPUT and not message.job):
            self.on_log(board, message)
        elif message.op == wire.READ:
            if not self.on_read(board, message):
                self.on_stray(board, message.job)
        elif not message.job:  # nothing else of the board's own program is of interest
            pass
        elif job is None or not _is_job_number(job, message.job):
            self.on_stray(board, message.job)
        else:
            self.on_job_message(job, message, data)

    def on_failure(self, board: Board, data: bytes, error: Exception) -> None:
        """End the job that a message is about whose handler failed; the link stays open.

        Args:
            board: it has done nothing wrong.
            data: its message.
            error: the unexpected exception of the server.
        """
        cleanup.log_failure(f"a message of {board.name}", error)
        message, job = wire.unpack(data), board.current_job
        if job is None or not _is_job_number(job, message.job):
            return
        if job.state != "ended":
            cleanup.run_all("a job", functools.partial(self._fail_job, job, cleanup.FAILED))
        if message.op == wire.RESULT:
            cleanup.run_all("a job", functools.partial(self._scheduler.on_job_finished, board))

    def _fail_job(self, job: Job, error: str) -> None:
        """End a job with an error of the server, and interrupt it on its board."""
        self._scheduler.refuse_transfer(job, error)
        job.board.interrupt(job.id)

    def on_job_message(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Handle a board's message about one of its jobs, wherever the board is connected.

        Args:
            job: has not ended, or its board does not know yet that it has.
            message: as the board sent it.
            data: the same, packed: callers get it unchanged.
        """
        if message.op == wire.RESULT:
            self._on_result(job, message, data)
        elif message.op == wire.INPUT:
            self._on_input(job, data)
        elif message.op == wire.CHUNK:
            self._on_chunk(job, message, data)
        elif message.op in (wire.OUTPUT, wire.VALUE):
            (job.output_tail if message.op == wire.OUTPUT else job.value).add(message.payload)
            job.deliver(data, droppable=True)
        elif message.op == wire.LATENESS:
            wire.read_lateness(message)
            if job.cell.options.start and not job.has_lateness:
                job.has_lateness = True
                job.deliver(data)
        else:
            job.deliver(data)

    def _on_result(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Forward a result to the caller, which may be waiting for it, then store it."""
        result = wire.read_result(message)
        resets, has_ended = job.state == "resetting", job.state == "ended"
        is_here = not job.owner
        if not has_ended:
            job.deliver(data)
        job.output_tail.add(result.output)
        if result.status == "ok":
            job.value.add(result.value_or_traceback)
            error = ""
        else:
            error = result.value_or_traceback.decode("utf-8", "replace")
        if has_ended:
            self._job_results.amend_result(job.board, ReportedResult(job.id, result.status, error))
        else:
            self._job_results.record_end(job, result.status, error)
        if is_here and not resets:  # else the board restarts before it can start another job
            self._scheduler.on_job_finished(job.board)

    def _on_program(self, board: Board, message: wire.Message) -> None:
        """Record the state of a board's own program; while it blocks the board, cells wait."""
        text = message.payload.decode("utf-8", "replace")[: self._program_chars]
        board.reported_facts = {**board.reported_facts, "program": text}
        self.on_program(board, text)
        board.blocked = bool(message.flags & wire.BLOCKING)
        board.notify_changed()
        job = board.current_job
        overtaken = _overtaken_job(board)
        if overtaken is not None:
            self._scheduler.requeue(overtaken)
        elif board.blocked and job is not None and job.state == "ended":
            board.current_job = None  # the board runs its program, so it has left that job
        if board.current_job is None:
            self._scheduler.start_next(board)

    def _on_chunk(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Pass a piece of a file, or a board's acknowledgement, to the transfer and the caller."""
        if job.transfer is None:  # the job has ended, and the board has not read that yet
            return
        try:
            if job.transfer.on_chunk(message):
                job.deliver(data)
        except JobRefused as error:
            self._scheduler.refuse_transfer(job, error.error_text)
        except PeerWireError as error:
            if not job.owner:  # else another server has its link, and is asked to end the job
                raise
            self._scheduler.refuse_transfer(job, f"the board broke the protocol: {error.detail}")
        except ServerError as error:  # the file cannot be read from the server's disk
            self._fail_job(job, JobRefused(error).error_text)

    def _on_input(self, job: Job, data: bytes) -> None:
        """Forward a job's ``input()`` to its caller, or answer with EOF if nobody can answer."""
        # A board waits for the answer. It asks again if a cell catches an interrupt; one that asks
        # without end must not fill the memory.
        again, job.awaiting_input = _asks_again(job), True
        if job.observer is not None and job.cell.options.answers:
            job.deliver(data, droppable=again)
        else:
            self.answer_input(job, b"", nobody=True)

    def answer_input(self, job: Job, text: bytes, *, nobody: bool = False) -> None:
        """Answer the ``input()`` of a job.

        Args:
            job: ignored if it is not waiting for an answer.
            text: the answer.
            nobody: whether there is nobody to answer; the board raises EOFError.
        """
        if job.awaiting_input and job.owner:
            job.awaiting_input = False
            self._scheduler.remote.answer_input(job, text, nobody=nobody)
        elif job.awaiting_input and job.board.link is not None:
            job.awaiting_input = False
            flags = wire.INPUT_EOF if nobody else 0
            job.board.link.send(wire.pack(wire.ANSWER, text, job=job.id, flags=flags))


def _asks_again(job: Job) -> bool:
    """Return whether a job's ``input()`` has not been answered yet."""
    return job.awaiting_input


def _is_job_number(job: Job, number: int) -> bool:
    """Return whether a board's message is about the job that it runs."""
    return job.id == number


def _overtaken_job(board: Board) -> Job | None:
    """Return the job that was sent to a board before the board reported that its program runs."""
    job = board.current_job
    if board.blocked and job is not None and job.state == "running":
        return job
    return None
