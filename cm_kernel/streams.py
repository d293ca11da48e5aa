"""stdout and stderr of the notebook's own Python, flushed only if something was written.

ipykernel flushes both twice for each message, and each flush waits for the thread that sends.
"""

from __future__ import annotations

from ipykernel.iostream import OutStream


class Stream(OutStream):
    """An output stream whose ``flush`` returns immediately if nothing was written."""

    _written = False

    def write(self, string: str) -> int:
        """Queue text, which ipykernel sends later."""
        self._written = True
        return super().write(string) or 0

    def flush(self) -> None:
        """Send the queued text, and wait until it is sent."""
        if self._written:
            self._written = False
            super().flush()
