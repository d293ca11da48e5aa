"""What jobs of the server itself have returned; pure."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

from cm_server import cleanup
from cm_server.jobs.job_results import UNCONFIRMED_STOP

if TYPE_CHECKING:
    from cm_server.jobs.model import Job

_VALUE_ERRORS: Final = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_MAX_LINE: Final = 200  # characters


def read_value(job: Job) -> Any:
    """Return the value of a job with file operations; None without one."""
    try:
        (value,) = ast.literal_eval(job.value.text())
    except _VALUE_ERRORS:
        return None
    return value


def read_cell_value(job: Job) -> Any:
    """Return the value of a cell; None without one, or if it is no literal."""
    try:
        return ast.literal_eval(job.value.text())
    except _VALUE_ERRORS:
        return None


def last_line(error: str) -> str:
    """Return the last line of a traceback."""
    return error.strip().rpartition("\n")[2][:_MAX_LINE]


def is_broken_off(job: Job) -> bool:
    """Return whether a job has ended without saying anything about what it tried.

    Its link broke, somebody interrupted it, or a server could not carry it out.
    """
    if job.status == "timeout":
        return job.error == UNCONFIRMED_STOP
    if job.status != "error":
        return True
    line = last_line(job.error)
    is_refused = line.endswith("did not run") or line == cleanup.FAILED
    return is_refused or line.startswith("ServerError: ")
