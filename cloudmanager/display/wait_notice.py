"""Says which boards a verb waits for, and why, if it does not start within two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from cloudmanager.client.jobs import Job
from cloudmanager.protocol.text import fold_names, sanitize_text

from .terminal import print_error

NOTICE_AFTER_SECONDS: Final = 2.0  # a shorter wait is not mentioned
_POLL_SECONDS: Final = 0.5  # between two looks at the jobs that wait


def wait_sentences(jobs: Sequence[Job]) -> list[str]:
    """Return a sentence for each reason for which queued jobs wait, with their boards."""
    now = time.perf_counter()
    boards_by_reason: dict[str, list[str]] = {}
    for job in jobs:
        if job.wait is not None:
            boards_by_reason.setdefault(job.wait.sentence(now), []).append(job.board)
    return [
        sanitize_text(f"waiting for {fold_names(boards)}: {reason}").replace("\n", " ")
        for reason, boards in boards_by_reason.items()
    ]


def new_waits(queued_jobs: Callable[[], list[Job]]) -> Callable[[], list[str]]:
    """Return a function that returns the sentences about jobs that are queued from now on.

    Args:
        queued_jobs: returns the jobs that wait at the moment; see ``Fleet.queued_jobs``.
    """
    earlier = {job.number for job in queued_jobs()}
    return lambda: wait_sentences([job for job in queued_jobs() if job.number not in earlier])


class WaitNotice:
    """A context manager that writes which boards the jobs of its block wait for, each once.

    Args:
        queued_jobs: returns the jobs that wait at the moment; see ``Fleet.queued_jobs``.
        quiet: whether to write nothing.
        out: where to write (default: standard error; a progress bar that is shown stays below).
        after: seconds until the first line.
    """

    def __init__(
        self,
        queued_jobs: Callable[[], list[Job]],
        *,
        quiet: bool = False,
        out: TextIO | None = None,
        after: float = NOTICE_AFTER_SECONDS,
    ) -> None:
        self._queued_jobs = queued_jobs
        self._out = out
        self._after = after
        self._noted: set[int] = set()  # numbers of jobs
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not quiet:
            self._thread = threading.Thread(target=self._watch, name="cloudmanager-waits")
            self._thread.daemon = True

    def __enter__(self) -> WaitNotice:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        seconds = self._after
        while not self._ended.wait(seconds):
            seconds = _POLL_SECONDS
            waiting = [job for job in self._queued_jobs() if job.number not in self._noted]
            self._noted.update(job.number for job in waiting)
            for sentence in wait_sentences(waiting):
                print_error(sentence, self._out, role="note")
