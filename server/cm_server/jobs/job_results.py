"""How jobs end: told to the caller first, written down in batches, amended by later truth.

No sockets, no SQL. A job is settled once, from any of its states; a board that tells more later
amends the store. Call from the server's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import ServerError
from cm_server.store.store import Store

from .counters import Tally
from .jobs import Job, Recent, Timer, Told
from .registry import Board

log = logging.getLogger("cm_server")

FLUSH_AFTER = 0.05  # seconds that a job's ending may wait for others to share its commit
UNCONFIRMED = "it was told to stop and has not confirmed it; the board may still be busy"


class Endings:
    """The jobs that have not ended, and the ends of those that did.

    Args:
        store: where endings are written.
        later: calls a function after so many seconds and returns what calls it off.
    """

    def __init__(self, store: Store, later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._store = store
        self._later = later
        self._flush_waits = False
        self.jobs: dict[int, Job] = {}  # all that are not settled
        self.recent = Recent()
        self.tally = Tally()

    def settle(self, job: Job, status: str, why: str, *, output_lost: bool = False) -> None:
        """End a job by the server's own word."""
        body = {"why": why, "output_lost": output_lost}
        flags = wire.STATUSES.index(status)
        job.deliver(wire.pack_json(wire.ENDED, body, job=job.id, flags=flags))
        self.close(job, status, why)

    def close(self, job: Job, status: str, error: str) -> None:
        """Note how a job ended whose caller was told."""
        job.stop_timer()
        job.state, job.watcher, job.transfer = "settled", None, None
        job.status, job.error, job.ended = status, error, time.time()
        del self.jobs[job.id]
        self.tally.closed(job)
        self.recent.add(job)
        job.board.touch()
        self._store.end(job.id, status, _last_line(error))
        if not self.jobs:
            self._store.flush()  # nobody waits for the server now
        else:
            self.write_soon()

    def write_soon(self) -> None:
        """Have the store write what waits, in company."""
        if not self._flush_waits:
            self._flush_waits = True
            self._later(FLUSH_AFTER, self._flush)

    def _flush(self) -> None:
        self._flush_waits = False
        self._store.flush()

    def amend(self, board: Board, told: Told) -> None:
        """Believe a board about its own job, where the server had to guess."""
        try:
            row = self._store.job(told.job)
        except ServerError:
            return  # it stays a guess
        if row is None or row.board != board.id:
            return
        if row.status not in (None, "lost") and row.error != UNCONFIRMED:
            return
        why = {"event": "amended", "job": told.job, "board": board.name, "status": told.status}
        log.info("%s: job %d was %s after all", board.name, told.job, told.status, extra=why)
        known = self.recent.get(told.job)
        if known is not None:
            known.status, known.error = told.status, told.error
        self._store.amend(told.job, board.id, told.status, _last_line(told.error))


def _last_line(error: str) -> str:
    """Return the line of a traceback that names the error, for the store."""
    return error.strip().rpartition("\n")[2][:1024]
