"""Configure the log: its file, lines for people or JSON for programs, and limits for peers."""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .limits import Limits
from .rate_limits import RateLimiter, address_group

log = logging.getLogger("cm_server")

#: Fields of a line of JSON besides its message (docs/metrics.md).
EXTRA_FIELDS = ("event", "job", "jobs", "board", "caller", "target", "status", "elapsed")


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
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
    """Logs lines that peers can cause at any rate: a few a minute for each; counts the others.

    Args:
        limits: how many lines a minute.
        clock: seconds, from any starting point.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        keys = limits.rate_limit_keys
        self._peers = RateLimiter(limits.peer_lines_per_minute, clock, max_keys=keys)
        self._strangers = RateLimiter(limits.stranger_rows_total_per_minute, clock, max_keys=keys)

    def write(self, peer: str, level: int, text: str, *args: object) -> None:
        """Log a line about an authenticated peer, which is identified by its name."""
        self._write(self._peers.allow(peer), level, text, args)

    def write_of_stranger(self, address: str, level: int, text: str, *args: object) -> None:
        """Log a line about an unauthenticated peer; all of these share a second limit."""
        left_out = self._peers.allow(f"stranger {address_group(address)}")
        if left_out is not None:
            left_out_of_all = self._strangers.allow("")
            left_out = None if left_out_of_all is None else left_out + left_out_of_all
        self._write(left_out, level, text, args)

    @staticmethod
    def _is_over_limit(left_out: int | None) -> bool:
        """Return whether ``RateLimiter.allow`` has refused a line."""
        return left_out is None

    def _write(self, left_out: int | None, level: int, text: str, args: tuple[object, ...]) -> None:
        if self._is_over_limit(left_out):
            return
        if left_out:
            text, args = text + " (%d lines before it were left out)", (*args, left_out)
        log.log(level, text, *args)


class LibraryFilter(logging.Filter):
    """Limits number and length of the lines of libraries, which a peer can cause by what it sends.

    Examples are tornado's line about a malformed HTTP request, and asyncio's about a failure.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._rate = RateLimiter(limits.library_lines_per_minute, max_keys=limits.rate_limit_keys)
        self._max_chars = limits.library_line_chars

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged; add to its line how many before it were not."""
        if record.name.startswith("cm_server"):
            return True
        left_out = self._rate.allow(record.name)
        if left_out is None:
            return False
        more = f" ({left_out} lines before it were left out)" if left_out else ""
        record.msg, record.args = f"{self._shorten(record.getMessage())}{more}", ()
        return True

    def _shorten(self, text: str) -> str:
        """Return the beginning of a text: it may contain a whole header of a peer."""
        return text if len(text) <= self._max_chars else f"{text[: self._max_chars]}…"


def configure_logging(path: Path, limits: Limits, *, as_json: bool = False) -> None:
    """Log into a file of bounded size.

    Args:
        path: the file; one older file is kept beside it.
        limits: the size of the file, and how many lines of libraries there are.
        as_json: write lines of JSON, including each job's events.
    """
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=limits.log_bytes, backupCount=1)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else text)
    handler.addFilter(LibraryFilter(limits))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("cm_server.jobs").setLevel(logging.INFO if as_json else logging.WARNING)
    # What these write is about errors that the server handles, and reports in its own words.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.ERROR)
