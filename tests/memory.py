"""How much memory a process uses, for tests that it does not grow."""

from __future__ import annotations

import psutil


def own_bytes(pid: int) -> int:
    """Return the resident bytes of a process without its pages of files.

    Those are code and libraries: the kernel drops and reads them as it likes, tens of megabytes of
    them, so that a process seems to grow which does not. Where the system does not say how many
    they are (macOS), they are included.
    """
    info = psutil.Process(pid).memory_info()
    return int(info.rss - getattr(info, "shared", 0))
