"""Where the log goes, and its form: lines for people, or JSON for programs."""

from __future__ import annotations

import json
import logging
import logging.handlers
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import limits

#: What a line may tell besides its message, by these names (docs/metrics.md).
FIELDS = ("event", "job", "jobs", "board", "caller", "target", "status", "elapsed")


class JsonLines(logging.Formatter):
    """One line of JSON for one event, whatever the event holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to(path: Path, *, as_json: bool = False) -> None:
    """Write the log into a file, which is bounded.

    Args:
        path: the file; one older one is kept beside it.
        as_json: a line of JSON for each event, jobs' lives included.
    """
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=limits.LOG_BYTES, backupCount=1)
    people = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if as_json else people)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("cm_server.jobs").setLevel(logging.INFO if as_json else logging.WARNING)
