"""Clean-up that always finishes: a step that fails is logged and hinders no other step."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cm_server import limits

from .rate_limits import RateLimiter

log = logging.getLogger("cm_server")

#: A peer may be able to cause a failure at will, so the same failure is logged once a minute.
_failures = RateLimiter(limits.FAILURE_LINES_PER_MINUTE)


def run_all(what: str, *steps: Callable[[], object]) -> None:
    """Run every step in order, whether or not one before it raised; never raises itself.

    Put first what releases a count or a place that others wait for.

    Args:
        what: what is cleaned up, for the log.
        steps: functions without arguments.
    """
    for step in steps:
        try:
            step()
        except Exception as error:
            log_failure(f"the clean-up of {what}", error)


def log_failure(what: str, error: Exception) -> None:
    """Log an unexpected exception with its traceback; repetitions are only counted."""
    left_out = _failures.allow(f"{what} {type(error).__name__}")
    if left_out is not None:
        more = f" ({left_out} more times since the last such line)" if left_out else ""
        log.error("%s failed%s", what, more, exc_info=error)
