"""Counters since the start of the server, for the metrics endpoint, and the log of jobs.

The counters are plain integers, so that counting costs a cell nothing; the Prometheus library reads
them at a request for metrics. The life of a job is logged at level INFO only, which the JSON log
(``--log-json``) records and the log for people does not.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloudmanager.protocol import wire

if TYPE_CHECKING:
    from .model import Job

log = logging.getLogger("cm_server.jobs")

#: Upper bounds, in seconds, of the histogram of durations.
DURATION_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
END_STATUSES = tuple(status for status in wire.STATUSES if status != "running")


class Counters:
    """Counts of jobs and links since the start of the server.

    Attributes:
        jobs_ended: ended jobs by status.
        duration_counts: jobs by duration: one count for each of ``DURATION_BOUNDS``, and a last one
            for longer jobs.
        run_seconds: the sum of the durations of all jobs.
        board_links: links of boards that authenticated.
        silent_links: links that were closed because the board no longer answered.
        refused_links: refused links, by kind: boards and callers.
    """

    def __init__(self) -> None:
        self.jobs_ended = dict.fromkeys(END_STATUSES, 0)
        self.duration_counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.run_seconds = 0.0
        self.board_links = 0
        self.silent_links = 0
        self.refused_links = {"board": 0, "caller": 0}

    def on_submitted(self, jobs: Sequence[Job], caller: str, target: str) -> None:
        """Log that a cell was submitted and its jobs were committed."""
        if jobs and log.isEnabledFor(logging.INFO):
            fields = {"caller": caller, "target": target, "jobs": [jobs[0].id, jobs[-1].id]}
            log.info("cell submitted", extra={"event": "submitted", **fields})

    def on_started(self, job: Job) -> None:
        """Log that a job was sent to its board."""
        if log.isEnabledFor(logging.INFO):
            fields = {"job": job.id, "board": job.board.name}
            log.info("job sent to its board", extra={"event": "started", **fields})

    def on_ended(self, job: Job) -> None:
        """Count and log how a job ended."""
        assert job.status is not None
        self.jobs_ended[job.status] += 1
        elapsed = None
        if job.started is not None and job.ended is not None:
            elapsed = max(job.ended - job.started, 0.0)
            self.run_seconds += elapsed
            self.duration_counts[bisect_left(DURATION_BOUNDS, elapsed)] += 1
        if log.isEnabledFor(logging.INFO):
            fields = {"job": job.id, "board": job.board.name, "caller": job.caller}
            result = {"status": job.status, "elapsed": elapsed}
            log.info("job ended", extra={"event": "ended", **fields, **result})
