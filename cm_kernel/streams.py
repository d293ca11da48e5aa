"""The notebook's own stdout and stderr, flushed where there is something to flush.

ipykernel flushes both twice for each message, and each time waits for its other thread.
"""

from __future__ import annotations

from ipykernel.iostream import OutStream


class Stream(OutStream):
    """A stream that knows whether anything was written."""

    _written = False

    def write(self, string: str) -> int:
        """Write, later."""
        self._written = True
        return super().write(string) or 0

    def flush(self) -> None:
        """Send what was written; return when it is sent."""
        if self._written:
            self._written = False
            super().flush()
