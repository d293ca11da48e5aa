"""Clean-up that always finishes, and lines of the log that do not repeat themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cm_server.limits import Limits

from .rate_limits import RateLimiter

log = logging.getLogger("cm_server")

#: What peers read of an unexpected exception: it is the server's own, and nothing of theirs.
FAILED = "the server failed to carry this out, and its log has the reason"
#: A peer may be able to cause a failure at any rate, so repeated failures are logged rarely. The
#: limit is the default one, since all parts of a process share this module and its log.
_failures = RateLimiter(Limits.failure_lines_per_minute)


def run_all(what: str, *steps: Callable[[], object]) -> None:
    """Run every step in order, even if an earlier one raised; never raises.

    Steps that release something which others wait for should be first.

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
    """Log an unexpected exception with its traceback; frequent repetitions are only counted.

    Args:
        what: what failed, as the subject of the sentence in the log.
        error: the exception.
    """
    suppressed = _failures.allow(f"{what} {type(error).__name__}")
    if suppressed is not None:
        log.error("%s failed%s", what, _repetitions(suppressed), exc_info=error)


class ProblemLog:
    """Logs what is wrong around the server, such as a full disk: each kind once a minute.

    Each attempt fails in the same way meanwhile, and the next line says how many there were.
    """

    def __init__(self) -> None:
        self._rate = RateLimiter(Limits.failure_lines_per_minute)

    def write(self, level: int, kind: str, text: str, *args: object) -> None:
        """Log a line, unless there was one of its kind within a minute.

        Args:
            level: of ``logging``.
            kind: what counts as the same.
            text: of the line, with places for the arguments.
            args: the arguments.
        """
        suppressed = self._rate.allow(kind)
        if suppressed is not None:
            log.log(level, f"{text}%s", *args, _repetitions(suppressed))


def _repetitions(suppressed: int) -> str:
    return f" ({suppressed} more times since the last such line)" if suppressed else ""
