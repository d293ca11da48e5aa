"""A dispatch without sockets, with a clock that tests set: for tests of boards and jobs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.run_options import RunOptions
from cm_server.jobs.dispatch import Dispatch, Submission
from cm_server.jobs.job_history import read_last_result
from cm_server.jobs.job_services import JobServices
from cm_server.jobs.model import Board, Cell, Job, Requester
from cm_server.jobs.registry import Registry
from cm_server.limits import Limits
from cm_server.store.rows import new_board_row
from cm_server.store.store import Store
from cm_server.store.store_queue import StoreQueue

GRACE = 10.0
DEFAULT_LIMITS = Limits()


class RecordedTimer:
    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at, self.act, self.cancelled = at, act, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A clock that stands still until a test turns it; calls scheduled functions."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[RecordedTimer] = []

    def later(self, seconds: float, act: Callable[[], None]) -> RecordedTimer:
        timer = RecordedTimer(self.now + seconds, act)
        self.timers.append(timer)
        return timer

    def turn(self, seconds: float) -> None:
        """Advance by some seconds; call what is due, in order."""
        until = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.at <= until]:
            timer = min(due, key=lambda t: t.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.act()
        self.now = until


class RecordingLink:
    """A board's link that records the server's messages."""

    def __init__(self) -> None:
        self.sent: list[wire.Message] = []
        self.closed: list[int] = []

    def send(self, message: bytes) -> None:
        self.sent.append(wire.unpack(message))

    def close(self, code: int, reason: str = "") -> None:
        self.closed.append(code)

    def abort(self) -> None:
        self.closed.append(1006)

    def ops(self, job: Job) -> list[int]:
        return [message.op for message in self.sent if message.job == job.id]


class RecordingObserver:
    """A caller that records the messages that it receives."""

    def __init__(self) -> None:
        self.messages: list[wire.Message] = []
        self.droppable: list[int] = []

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        self.messages.append(wire.unpack(message))
        if droppable:
            self.droppable.append(message[0])

    def ops(self, job: Job) -> list[int]:
        return [message.op for message in self.messages if message.job == job.id]

    def ending(self, job: Job) -> tuple[str, str]:
        """Return the job's status and the server's reason; a job ends exactly once."""
        (end,) = (m for m in self.messages if m.job == job.id and m.op in wire.JOB_END_OPS)
        if end.op == wire.RESULT:
            return wire.read_result(end).status, ""
        return wire.STATUSES[end.flags], wire.read_json(end.payload)["why"]


class Rig:
    """A dispatch with boards lab-1 to lab-3; tests act as boards, caller and clock."""

    def __init__(self, store: Store | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self.store = store or Store(None)
        if not self.store.boards():
            self.store.enrol_boards(
                [new_board_row(f"id{n}", f"lab-{n}", bytes(32)) for n in (1, 2, 3)]
            )
        self.clock = Clock()
        self.registry = Registry(self.store.boards())
        self.queue = StoreQueue(self.store)
        services = JobServices(
            store_queue=self.queue,
            registry=self.registry,
            call_later=self.clock.later,
            limits=limits,
            lost_after=lambda: GRACE,
        )
        self.dispatch = Dispatch(services)
        self.caller = RecordingObserver()

    def board(self, name: str = "lab-1") -> Board:
        return self.registry.by_name[name]

    def connect(
        self, name: str = "lab-1", *, boot: str = "b1", last: Any = None, buffer_size: int = 1500
    ) -> RecordingLink:
        """Connect as a board, as net/board_socket.py does it."""
        board, link = self.board(name), RecordingLink()
        if board.link is not None:
            self.dispatch.recovery.on_link_closed(board, board.link)
        same_boot = boot == board.reported_facts.get("boot")
        board.connect(link, {"boot": boot}, buffer_size)
        reported = read_last_result(last)
        self.dispatch.recovery.on_link_opened(board, same_boot=same_boot, reported=reported)
        return link

    def drop(self, name: str = "lab-1") -> None:
        board = self.board(name)
        assert board.link is not None
        self.dispatch.recovery.on_link_closed(board, board.link)

    def run(
        self, *names: str, code: bytes = b"1", timeout: float | None = None, **more: Any
    ) -> list[Job]:
        boards = [self.board(name) for name in names or ("lab-1",)]
        of_cell = {name: more.pop(name) for name in ("awaits", "files") if name in more}
        cell = Cell(code, RunOptions(timeout=timeout, **more), **of_cell)
        return self.submit(Submission(boards, cell, Requester("ann", self.caller)))

    def submit(self, submission: Submission) -> list[Job]:
        """Commit and launch a cell, as net/caller_socket.py does it."""
        numbers = self.dispatch.submit(submission).result()
        jobs = self.dispatch.create_jobs(submission, numbers)
        self.dispatch.scheduler.launch(jobs)
        return jobs

    def send(self, job: Job, op: int, payload: bytes = b"", flags: int = 0) -> None:
        """Send a message as the job's board."""
        self.dispatch.board_messages.on_message(
            job.board, wire.pack(op, payload, job=job.id, flags=flags)
        )

    def end(self, job: Job, status: str = "ok", output: bytes = b"", rest: bytes = b"") -> None:
        payload = struct.pack(">H", len(output)) + output + rest
        self.send(job, wire.RESULT, payload, wire.STATUSES.index(status))

    def written(self, job: Job) -> tuple[str | None, str | None]:
        """Return the job's status and error in the store."""
        row = self.store.job(job.id)
        assert row is not None
        return row.status, row.error


def last(job: Job, status: str = "ok", error: str = "") -> dict[str, Any]:
    """Return a board's report of its last job, as in PROOF."""
    number = wire.STATUSES.index(status)
    return {"job": f"{job.id:08x}", "status": number, "error": error, "dropped": 0}
