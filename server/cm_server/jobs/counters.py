"""What happened since the server started: counted for ``/metrics``, and jobs told in the log.

Plain numbers, so that counting costs a cell nothing; metrics.py shows them. A job's life is
logged under its number where the log is one for programs (``--log-json``), else not at all:
callers, boards and the store know the job by the same number.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloudmanager.protocol import wire

if TYPE_CHECKING:
    from .jobs import Job

log = logging.getLogger("cm_server.jobs")

#: Seconds: the upper bounds by which jobs are counted.
DURATION_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
END_STATUSES = tuple(status for status in wire.STATUSES if status != "running")


class Counters:
    """The counts.

    Attributes:
        jobs_ended: how many jobs ended, by status.
        duration_counts: jobs by duration: up to each of ``BOUNDS`` seconds, and longer.
        run_seconds: how long they ran together.
        board_links: how many boards proved themselves.
        silent_links: how many links were closed since their board fell silent.
        refused_links: how many were not let in, boards and callers.
    """

    def __init__(self) -> None:
        self.jobs_ended = dict.fromkeys(END_STATUSES, 0)
        self.duration_counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.run_seconds = 0.0
        self.board_links = 0
        self.silent_links = 0
        self.refused_links = {"board": 0, "caller": 0}

    def on_submitted(self, jobs: Sequence[Job], caller: str, target: str) -> None:
        """Note a cell: its jobs are written down."""
        if jobs and log.isEnabledFor(logging.INFO):
            told = {"caller": caller, "target": target, "jobs": [jobs[0].id, jobs[-1].id]}
            log.info("a cell came", extra={"event": "submitted", **told})

    def on_started(self, job: Job) -> None:
        """Note that a job was sent to its board."""
        if log.isEnabledFor(logging.INFO):
            told = {"job": job.id, "board": job.board.name}
            log.info("a job was sent to its board", extra={"event": "started", **told})

    def on_ended(self, job: Job) -> None:
        """Note how a job ended."""
        assert job.status is not None
        self.jobs_ended[job.status] += 1
        elapsed = None
        if job.started is not None and job.ended is not None:
            elapsed = max(job.ended - job.started, 0.0)
            self.run_seconds += elapsed
            self.duration_counts[bisect_left(DURATION_BOUNDS, elapsed)] += 1
        if log.isEnabledFor(logging.INFO):
            told = {"job": job.id, "board": job.board.name, "caller": job.caller}
            how = {"status": job.status, "elapsed": elapsed}
            log.info("a job ended", extra={"event": "ended", **told, **how})
