"""Where the log goes, and its form: lines for people, or JSON for programs."""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import limits
from .net.rate_limits import RateLimiter, address_group

log = logging.getLogger("cm_server")

#: What a line may tell besides its message, by these names (docs/metrics.md).
EXTRA_FIELDS = ("event", "job", "jobs", "board", "caller", "target", "status", "elapsed")


class JsonFormatter(logging.Formatter):
    """One line of JSON for one event, whatever the event holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in EXTRA_FIELDS if name in vars(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PeerLog:
    """Writes lines that a peer can cause at will: a few a minute for each; it counts the rest.

    Args:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._peers = RateLimiter(limits.PEER_LINES_PER_MINUTE, clock)
        self._strangers = RateLimiter(limits.STRANGER_ROWS_TOTAL_PER_MINUTE, clock)

    def write(self, peer: str, level: int, text: str, *args: object) -> None:
        """Write a line about a peer that has proven who it is, by its name."""
        self._write(self._peers.allow(peer), level, text, args)

    def write_of_stranger(self, address: str, level: int, text: str, *args: object) -> None:
        """Write a line about a peer that has proven nothing; all of them share a limit, too."""
        left_out = self._peers.allow(f"stranger {address_group(address)}")
        whole = self._strangers.allow("") if left_out is not None else None
        self._write(
            None if whole is None or left_out is None else left_out + whole, level, text, args
        )

    def _write(self, left_out: int | None, level: int, text: str, args: tuple[object, ...]) -> None:
        if left_out is None:
            return
        if left_out:
            text, args = text + " (%d lines before it were left out)", (*args, left_out)
        log.log(level, text, *args)


class LibraryFilter(logging.Filter):
    """Bounds the lines of libraries, each of which a peer may cause by what it sends.

    Such as tornado's line about each malformed HTTP request, and asyncio's about each failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rate = RateLimiter(limits.LIBRARY_LINES_PER_MINUTE)

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written; its line says how many before it were not."""
        if record.name.startswith("cm_server"):
            return True
        left_out = self._rate.allow(record.name)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} lines before it were left out)"
            record.args = ()
        return left_out is not None


def configure_logging(path: Path, *, as_json: bool = False) -> None:
    """Write the log into a file, which is bounded.

    Args:
        path: the file; one older one is kept beside it.
        as_json: a line of JSON for each event, jobs' lives included.
    """
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=limits.LOG_BYTES, backupCount=1)
    people = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else people)
    handler.addFilter(LibraryFilter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("cm_server.jobs").setLevel(logging.INFO if as_json else logging.WARNING)
