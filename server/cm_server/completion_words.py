"""Write the names and labels of boards to a file, from which a shell completes words.

The shell reads the file itself (``mbm completion``): to ask the server would take longer than a
person waits after Tab.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cloudmanager.config import completion_file, write_private

from .jobs.model import Board, TimerHandle
from .jobs.registry import Registry

log = logging.getLogger("cm_server")

INTERVAL_SECONDS: Final = 1.0  # between two checks whether a name or a label has changed
#: Shells expand what they complete: words with other characters are left out.
_SAFE: Final = re.compile(r"[A-Za-z0-9_.=+@-]+", re.ASCII)


class CompletionWords:
    """Keeps the file up to date while the server runs.

    Args:
        home: the server's folder.
        registry: all enrolled boards.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
    ) -> None:
        self._path = completion_file(home)
        self._registry = registry
        self._call_later = call_later
        self._written_version = -1
        self._writer: threading.Thread | None = None
        self._timer = call_later(0, self._check)

    def stop(self) -> None:
        """Stop checking; the file stays, since boards keep their names."""
        self._timer.cancel()

    def _check(self) -> None:
        self._timer = self._call_later(INTERVAL_SECONDS, self._check)
        is_writing = self._writer is not None and self._writer.is_alive()
        if self._registry.names_version != self._written_version and not is_writing:
            self._written_version = self._registry.names_version
            text = "".join(f"{word}\n" for word in words(self._registry.by_name.values()))
            self._writer = threading.Thread(target=self._write, args=(text,), daemon=True)
            self._writer.start()

    def _write(self, text: str) -> None:
        try:
            write_private(self._path, text)
        except OSError as error:
            log.warning("%s: names for completion were not written: %s", self._path, error)


def words(boards: Iterable[Board]) -> list[str]:
    """Return the words that a target can consist of: names, then labels as ``key=value``."""
    found = list(boards)
    names = sorted(board.name for board in found)
    labels = sorted({f"{key}={value}" for each in found for key, value in each.labels.items()})
    return [word for word in [*names, *labels, "all"] if _SAFE.fullmatch(word)]
