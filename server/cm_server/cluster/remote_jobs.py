"""A caller's jobs on boards whose link another server has; no sockets, no SQL.

The job is written down here, and the other server asked to run it: it takes the job in the
store, runs it, and says what the board says. So what was asked twice, or too late, runs once. Where
no word comes, the store has the outcome: whatever became of the other server or of the bus.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.jobs.jobs import Cell, Job, Timer
from cm_server.jobs.scheduler import CONFIRM
from cm_server.store.rows import JobRow

from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.job_results import Endings
    from cm_server.jobs.registry import Board
    from cm_server.store.shared_store import SharedStore

    from .peer_messages import Post

log = logging.getLogger("cm_server")

WORD_SECONDS = 3.0  # that the other server has to say that it has a job
LATE_SECONDS = 0.08  # after the other server's own deadline
TRIES = 4  # at finding the server that has a board, while it moves
_STORE = "?"  # who has a job that the store alone knows about


class Elsewhere:
    """The jobs that other servers run for callers here.

    Args:
        dispatch: whose jobs they are.
        store: which says whose a job is.
        post: letters to the other servers.
        later: calls a function after so many seconds and returns what calls it off.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        endings: Endings,
        store: SharedStore,
        post: Post,
        later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._dispatch, self._endings = dispatch, endings
        self._store, self._post, self._later = store, post, later
        self._batch: dict[tuple[str, Cell, str, str], list[Job]] = {}
        self._tries: dict[int, int] = {}  # of jobs of which no word has come
        self._asked: dict[int, float] = {}  # when for the first, by the monotonic clock
        self._ended: set[int] = set()  # that the last look at the store saw
        post.handlers |= {"taken": self._on_taken, "refused": self._on_refused, "say": self._on_say}

    # Out

    def launch(self, job: Job) -> None:
        """Have a job run by the server that has its board."""
        away = job.board.away
        assert away is not None
        job.stop_timer()
        job.state = "running" if away.state == "idle" else "queued"
        self._tries[job.id] = self._tries.get(job.id, 0) + 1
        self._asked.setdefault(job.id, time.monotonic())
        self._launch(job, away.server)

    def _launch(self, job: Job, server: str) -> None:
        job.away = server
        if not self._batch:
            self._later(0, self._send)
        self._batch.setdefault((server, job.cell, job.caller, job.token), []).append(job)

    def _send(self) -> None:
        """Ask each server once for all that one cell is to it."""
        batch, self._batch = self._batch, {}
        for (server, cell, caller, token), jobs in batch.items():
            asked = [
                [job.id, job.board.id, job.name] for job in jobs if job.id in self._dispatch.jobs
            ]
            who = {"caller": caller, "token": token}
            self._post.send(server, "run", {"jobs": asked, **who, **_told(cell)}, cell.code)
            self._later(WORD_SECONDS, lambda jobs=jobs: self._on_no_word(jobs))  # type: ignore[misc]

    def interrupt(self, job: Job) -> None:
        """Interrupt it, wherever it is."""
        to = ALL if job.away == _STORE else job.away
        self._post.send(to, "interrupt", {"jobs": [job.id]})

    def answer(self, job: Job, text: bytes, *, nobody: bool) -> None:
        """Answer its ``input()``."""
        self._post.send(job.away, "answer", {"job": job.id, "nobody": nobody}, text)

    def refuse(self, job: Job, why: str) -> None:
        """Have a job ended that goes no further: the word comes back as its ending."""
        self._post.send(job.away, "refuse", {"job": job.id, "why": why})

    # What the other servers say

    def _on_taken(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        for number, waits, buffer_size in head["jobs"]:
            job = self._known(number, sender)
            if job is None:
                continue
            job.board.buffer_size = buffer_size
            self._forget(number)
            if waits:
                job.state = "queued"
            elif job.state == "queued":
                job.deliver(wire.pack(wire.STARTED, job=number))
                self._begun(job)
            else:
                self._begun(job)

    def _forget(self, number: int) -> None:
        """Know that a job is another server's, or has ended."""
        self._tries.pop(number, None)
        self._asked.pop(number, None)
        self._store.let_go(number)

    def _known(self, number: int, sender: str) -> Job | None:
        job = self._dispatch.jobs.get(number)
        if job is not None and job.away == _STORE:
            job.away = sender  # who speaks of it has it
        return job if job is not None and job.away == sender else None

    def _begun(self, job: Job) -> None:
        job.stop_timer()
        job.state, job.started = "running", time.time()
        if job.cell.files is not None:
            job.transfer = job.cell.files.begin(job, lambda data: self._pass(job, data))
        if job.cell.timeout is not None:
            seconds = job.cell.timeout + CONFIRM + LATE_SECONDS
            job.timer = self._later(seconds, lambda: self._on_late(job))

    def _pass(self, job: Job, data: bytes) -> None:
        """Send a board what belongs to a job's files: they are moved from here."""
        self._post.send(job.away, "data", {"job": job.id}, data)

    def _on_late(self, job: Job) -> None:
        """The other server should have said by now how the job ended."""
        job.timer = None
        if job.id in self._dispatch.jobs and job.away:
            self._forget(job.id)
            self._endings.settle(job, "lost", "the server that has its board does not say more")

    def _on_refused(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Try another server, or none: the board has moved, or is gone."""
        jobs = [job for number in head["jobs"] if (job := self._known(number, sender))]
        if head.get("why"):
            for job in jobs:
                self._endings.settle(job, "lost", head["why"])
            return
        holders = self._holders()
        for job in jobs:
            self._again(job, holders)

    def _holders(self) -> dict[str, tuple[str, int]]:
        try:
            return self._store.holders()
        except ServerError:
            return {}

    def _again(self, job: Job, holders: dict[str, tuple[str, int]]) -> None:
        board = job.board
        holder, epoch = holders.get(board.id, ("", 0))
        tried, job.away, job.state = job.away, "", "queued"
        if holder == tried or self._tries.get(job.id, 0) >= TRIES:
            holder = ""
        if board.link is None and board.away is not None:
            state = "idle" if holder else "offline"
            since = time.time() if holder else None
            board.away = board.away._replace(server=holder, epoch=epoch, state=state, since=since)
        self._dispatch.launch([job])

    def _on_say(self, sender: str, _head: dict[str, Any], data: bytes) -> None:
        message = wire.unpack(data)
        job = self._known(message.job, sender)
        if job is not None:
            self._hear(job, message, data)

    def _hear(self, job: Job, message: wire.Message, data: bytes) -> None:
        """Take what a board says of its job, as dispatch.py does from a board itself."""
        if message.op in (wire.OUTPUT, wire.VALUE):
            (job.tail if message.op == wire.OUTPUT else job.value).add(message.payload)
            job.deliver(data, droppable=True)
        elif message.op == wire.RESULT:
            self._dispatch.take_result(job, message, data)
        elif message.op == wire.ENDED:
            job.deliver(data)
            why = str(wire.read_json(message.payload)["why"])
            self._end(job, wire.STATUSES[message.flags], why)
        elif message.op == wire.INPUT:
            self._dispatch.take_input(job, data)
        elif message.op == wire.CHUNK:
            self._dispatch.take_chunk(job, message, data)
        else:
            if message.op == wire.STARTED:
                self._begun(job)
            job.deliver(data)

    def _end(self, job: Job, status: str, why: str) -> None:
        self._forget(job.id)
        self._endings.close(job, status, why)

    # What the store says

    def follow(self, job: Job) -> None:
        """Leave a job to others, whoever they are; its outcome comes out of the store."""
        job.stop_timer()
        job.away, job.asking, job.transfer = _STORE, False, None
        self._forget(job.id)
        if job.cell.timeout is not None and job.began is not None:
            until = job.began + job.cell.timeout + CONFIRM + LATE_SECONDS
            left = max(until - time.monotonic(), 0.0)
            job.timer = self._later(left, lambda: self._on_late(job))

    def lost(self, server: str) -> None:
        """Note that a server is gone: what it had goes to others."""
        for job in list(self._dispatch.jobs.values()):
            if job.away == server and job.id not in self._tries:
                self.follow(job)

    def _on_no_word(self, jobs: Sequence[Job]) -> None:
        """Ask whoever has their boards by now, or end jobs so that nobody will take them."""
        open_jobs = self._dispatch.jobs
        waiting = [job for job in jobs if job.id in self._tries and open_jobs.get(job.id) is job]
        holders = self._holders() if waiting else {}
        waiting = [job for job in waiting if job.away and not self._ask_anew(job, holders)]
        if waiting:
            self._withdraw(waiting)

    def _ask_anew(self, job: Job, holders: dict[str, tuple[str, int]]) -> bool:
        """Ask again for a job that nobody has taken: another server, or while its caller waits."""
        holder = holders.get(job.board.id, (job.away, 0))[0]
        patient = time.monotonic() < self._asked.get(job.id, 0.0) + job.cell.wait
        if holder == job.away and not patient:
            return False
        if holder == job.away:
            self._launch(job, holder)
        else:
            self._again(job, holders)
        return True

    def _withdraw(self, waiting: Sequence[Job]) -> None:
        why = "the server that has its link does not answer; it did not run"
        try:
            ended = self._store.withdraw([job.id for job in waiting], "offline", why)
        except ServerError:
            self._later(WORD_SECONDS, lambda: self._withdraw(waiting))
            return
        for job in waiting:
            self._forget(job.id)
            if job.id in ended:
                self._endings.settle(job, "offline", why)
            else:
                self.follow(job)

    def look(self) -> None:
        """Look for outcomes that nobody has told; twice, since a word may be on its way.

        Raises:
            ServerError: the store is away.
        """
        numbers = [job.id for job in self._dispatch.jobs.values() if job.away]
        rows = self._store.outcomes(numbers) if numbers else []
        for row in rows:
            if row.id in self._ended and (job := self._dispatch.jobs.get(row.id)) is not None:
                self._tell(job, row)
        self._ended = {row.id for row in rows}

    def _tell(self, job: Job, row: JobRow) -> None:
        self._forget(job.id)
        self._endings.settle(job, str(row.status), row.error or "", output_lost=True)

    def moved(self, board: Board) -> None:
        """Give up what was here of a board that another server has now."""
        self._dispatch.lose(board)
        jobs = list(board.queue)
        board.queue.clear()
        for job in jobs:
            if job.resends:  # it was sent: the store knows whose it is now
                self.follow(job)
        self._dispatch.launch([job for job in jobs if not job.resends])


def _told(cell: Cell) -> dict[str, Any]:
    """Return a cell as it travels, but for its code."""
    told = cell._asdict()
    del told["code"]
    if cell.files is not None:
        told["files"] = [cell.files.gets, cell.files.starter]
    return told
